//! Ways to the upstream: a SOCKS5 proxy, an HTTP proxy that knows CONNECT, or none.
//!
//! [`url`] reads what the user wrote, [`resolve`] turns the proxy's name into addresses away from the packet path.

pub mod resolve;
pub mod url;

pub use resolve::Route;
pub use url::{Credentials, ProxyUrl, Scheme, UrlError};
