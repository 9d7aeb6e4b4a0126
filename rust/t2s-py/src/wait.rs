//! Waiting with the interpreter lock released and signals looked at.

use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::errors::ConfigError;

/// Signals are looked at this often while Python waits, so that Ctrl-C is felt at once.
const SIGNAL_STEP: Duration = Duration::from_millis(50);

/// Waits in steps until `done` says so or the time is up; answers which.
pub(crate) fn wait(py: Python<'_>, timeout: Duration, mut done: impl FnMut(Duration) -> bool + Send) -> PyResult<bool> {
    let start = Instant::now();
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        if py.detach(|| done(left.min(SIGNAL_STEP))) {
            return Ok(true);
        }
        py.check_signals()?;
        if left.is_zero() {
            return Ok(false);
        }
    }
}

/// A time that Python gave, seconds.
pub(crate) fn seconds(key: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|error| ConfigError::new_err(format!("{key}={value}: {error}")))
}
