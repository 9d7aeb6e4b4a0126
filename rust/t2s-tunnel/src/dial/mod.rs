//! Ways to the upstream: a SOCKS5 proxy, an HTTP proxy that knows CONNECT, or none.
//!
//! [`url`] reads what the user wrote; [`endpoint`] turns the proxy's name into addresses away from the packet path;
//! [`connect`] is one connection on its way to its [`target`], as a state machine over a non-blocking socket, and
//! [`error`] is why it did not arrive.

pub mod connect;
pub mod endpoint;
pub mod error;
mod handshake;
pub mod target;
pub mod url;

pub use connect::{Connector, Done, Progress};
pub use endpoint::ProxyEndpoint;
pub use error::ConnectError;
pub use target::Target;
pub use url::{Credentials, ProxyUrl, Scheme, UrlError};
