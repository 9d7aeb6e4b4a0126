//! The packet core of t2s: IP packets in, byte streams and datagrams out, and back.
//!
//! Pure by construction: no sockets, no clock, no environment. Callers pass `now` in and are told what to do; limits
//! arrive in [`config::Config`]. Random are its hash keys alone, drawn once by [`config::Secrets::random`] unless the
//! caller fixes them; then the same input gives the same output. Dependencies between modules run one way: `checksum,
//! config, stats, time → wire, buf → fragment, path_mtu, reassembly, flow, timer, tcp, udp, icmp, dns, socks5 → stack`.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod buf;
pub mod checksum;
pub mod config;
pub mod dns;
pub mod flow;
pub mod fragment;
pub mod http_connect;
pub mod icmp;
mod index;
mod lru;
pub mod named;
mod path_mtu;
pub mod prefetch;
pub mod reassembly;
pub mod socks5;
pub mod stack;
pub mod stats;
pub mod tcp;
pub mod time;
pub mod timer;
pub mod udp;
pub mod wire;
