//! The operating-system shell of t2s: the TUN device, ways to the upstream, the workers of a tunnel, a small proxy, and
//! the load of the lab.
//!
//! The rules of the protocols live in `t2s_core`; what is here moves bytes between it and the kernel, as few times and
//! in as few calls as can be. `unsafe` stands in [`sys`] alone.

pub mod config;
pub mod dial;
pub mod engine;
pub mod load;
pub mod log;
pub mod privilege;
pub mod proxy;
mod rates;
pub mod replay;
mod resolver;
pub mod sys;
pub mod tun;
pub mod worker;
