//! Ways to the upstream: a SOCKS5 proxy, an HTTP proxy that knows CONNECT, or none.
//!
//! [`url`] reads what the user wrote; [`resolve`] turns the proxy's name into addresses away from the packet path, where
//! [`guide`] also finds out what the proxy can do; [`connect`] is one connection on its way, as a state machine over a
//! non-blocking socket, and [`failure`] is why it did not arrive.

pub mod connect;
pub mod failure;
pub(crate) mod guide;
pub mod resolve;
mod speech;
pub mod url;

pub use connect::{Attempt, Done, Progress, Target};
pub use failure::Failure;
pub use resolve::Route;
pub use url::{Credentials, ProxyUrl, Scheme, UrlError};
