//! The performance lab of t2s: an open-loop generator, an in-process device, and a simulated upstream around the same
//! core that the tunnel runs; and the replay of captures through it.
//!
//! One pair of threads a worker: the generator sends packets on their due times through a ring (the device), the worker
//! copies them into pooled buffers and drives the stack; what the stack sends goes back through a second ring. Nothing
//! is shared between the two but those rings. Promises: same seed, same packets; a late packet keeps its due time;
//! recording allocates nothing; after the drain nothing is live. Refuses to hide a generator that cannot keep up: such
//! a run is marked invalid. `unsafe` stands in `device_ring` alone.
#![deny(unsafe_code)]

pub mod control;
pub mod core_config;
pub mod device_ring;
pub mod generator;
pub mod lab;
pub mod lockstep;
pub mod measure;
pub mod replay;
pub mod result;
pub mod spec;
pub mod summary;
pub mod truth;
pub mod worker;

/// So that tests see what the workers' heaps hold.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: t2s_sys::heap::CountingAllocator = t2s_sys::heap::CountingAllocator;
