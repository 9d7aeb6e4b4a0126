//! The memory driver of the lab: an open-loop generator, an in-process device, and a simulated upstream around the same
//! core that the tunnel runs.
//!
//! One pair of threads a worker: the generator sends packets on their due times through a ring (the device), the worker
//! copies them into pooled buffers and drives the stack; what the stack sends goes back through a second ring. Nothing
//! is shared between the two but those rings. Promises: same seed, same packets; a late packet keeps its due time;
//! recording allocates nothing; after the drain nothing is live. Refuses to hide a generator that cannot keep up: such
//! a run is marked invalid.

pub mod address;
pub mod churn;
pub mod client;
pub mod clients;
pub mod clock;
pub mod component;
pub mod datagrams;
pub mod generator;
pub mod hostile;
pub mod link;
pub mod null;
pub mod packets;
pub mod placement;
pub mod recorder;
pub mod result;
pub mod ring;
pub mod rng;
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod slices;
pub mod spec;
pub mod stall;
pub mod stream;
pub mod summary;
pub mod turns;
pub mod upstream;
pub mod worker;
