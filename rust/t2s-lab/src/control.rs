//! The signals of a phase, which all its threads share.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

/// What generators, workers and the lab tell one another besides packets.
#[derive(Debug, Default)]
pub struct Control {
    /// Generators that have set up.
    pub ready: AtomicU32,
    /// When the warm-up begins, nanoseconds of the lab's clock; 0 until all are ready.
    pub epoch: AtomicU64,
    /// Ask for the end: drain, then report.
    pub stop: AtomicBool,
    /// A thread has failed: end at once.
    pub abort: AtomicBool,
}
