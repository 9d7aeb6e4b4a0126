//! What is measured, and with what: clock, histograms, loop iterations, stalls, samples of the process.
//!
//! Promises that recording allocates nothing and never waits.

pub mod clock;
pub mod distribution;
pub mod loop_time;
pub mod recorder;
pub mod sampler;
pub mod slices;
pub mod stall;
