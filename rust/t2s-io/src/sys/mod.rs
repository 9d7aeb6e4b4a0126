//! Every system call of this crate, and with them every `unsafe` block but those of the load's ring.

pub mod sched;
pub mod tsc;
