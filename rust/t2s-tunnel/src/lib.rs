//! The tunnel of t2s: a TUN device on one side, a SOCKS5 or HTTP proxy on the other, and the workers between them.
//!
//! The rules of the protocols live in `t2s_core`, the system calls in `t2s_sys`; what is here moves bytes between the
//! two, as few times and in as few calls as can be. [`proxy`] is a small SOCKS5 server, for tests and trials.
#![forbid(unsafe_code)]

pub mod config;
pub mod dial;
mod dns_settings;
pub mod log;
pub mod privilege;
pub mod proxy;
mod proxy_probe;
mod rates;
mod resolver;
pub mod tun;
pub mod tunnel;
pub mod worker;
