//! One phase from start to result: threads, windows, drain.

use std::time::Duration;

use super::result::Progress;
use super::spec::{PhaseSpec, SpecError};

/// Why a phase has no result.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The spec cannot run.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// `start` was called twice.
    #[error("this phase was started before; make a new lab for another run")]
    AlreadyStarted,
    /// `result` before the end.
    #[error("this phase has not ended yet; wait for it first")]
    NotDone,
    /// A thread could not be made.
    #[error("a thread of the lab did not start: {0}")]
    Thread(#[from] std::io::Error),
    /// A thread ended by a panic.
    #[error("the {0} thread of the lab panicked")]
    Panicked(String),
}

/// One phase of one scenario. All methods may be called from any thread.
pub struct Lab {
    spec: PhaseSpec,
}

impl Lab {
    /// Checks the spec (JSON) and prepares; nothing runs yet.
    pub fn new(spec_json: &str) -> Result<Self, LabError> {
        Ok(Self { spec: PhaseSpec::from_json(spec_json)? })
    }

    /// Starts the threads and returns at once.
    pub fn start(&self) -> Result<(), LabError> {
        Ok(())
    }

    /// Where the phase is.
    pub fn progress(&self) -> Progress {
        Progress { seconds: self.spec.seconds, ..Progress::default() }
    }

    /// Waits up to `timeout` for the end; true when it has ended.
    pub fn wait(&self, _timeout: Duration) -> bool {
        true
    }

    /// Asks the phase to end now; it still drains, and its result covers what was measured.
    pub fn stop(&self) {}

    /// The result as JSON, after the end.
    pub fn result(&self) -> Result<String, LabError> {
        Err(LabError::NotDone)
    }
}
