//! What is asked of a proxy.

use std::net::SocketAddr;

/// What is asked of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP connection to an address.
    Ip(SocketAddr),
    /// A TCP connection to a name and port, which the proxy resolves.
    Domain(String, u16),
    /// A UDP association; the connection keeps it alive.
    Associate,
}
