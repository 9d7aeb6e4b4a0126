//! SOCKS version 5 (RFC 1928) with user name and password (RFC 1929): the client's handshake, the header of relayed
//! datagrams, and the server's side for a small proxy of our own.
//!
//! Promises: no I/O and no clock, any split of the incoming bytes gives the same result, bytes behind the handshake are
//! never consumed, every reply code is a value of its own. Refuses: names and credentials that do not fit their length
//! byte, other versions, methods that were not offered, fragments of datagrams (RFC 1928, section 7, allows that).

mod address;
mod client;
mod exchange;
mod server;
#[cfg(test)]
mod tests;
pub mod udp_header;

pub use address::{Address, AddressRef, BadAddress};
pub use client::{Command, Handshake, Outcome, Stage};
pub(crate) use exchange::Outbox;
pub use server::{Request, ServerHandshake, ServerOutcome};

use core::fmt;

/// Protocol version (RFC 1928, section 3).
const VERSION: u8 = 5;
/// Version of the password subnegotiation (RFC 1929, section 2).
const AUTH_VERSION: u8 = 1;
/// Method: no authentication required.
const METHOD_NONE: u8 = 0;
/// Method: user name and password.
const METHOD_PASSWORD: u8 = 2;
/// No acceptable method.
const METHOD_REFUSED: u8 = 0xff;
/// Longest user name, password and domain name: each has one length byte.
const FIELD_MAX: usize = 255;

/// A user name and a password, each 1 to 255 bytes. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: Box<[u8]>,
    password: Box<[u8]>,
}

impl Credentials {
    /// Checks the lengths (RFC 1929, section 2: 1 to 255 bytes each; an empty password is let through, since servers
    /// take it).
    pub fn new(user: &[u8], password: &[u8]) -> Result<Self, Error> {
        if user.is_empty() || user.len() > FIELD_MAX || password.len() > FIELD_MAX {
            return Err(Error::CredentialsTooLong);
        }
        Ok(Self { user: user.into(), password: password.into() })
    }

    /// The user name.
    pub fn user(&self) -> &[u8] {
        &self.user
    }

    /// The password.
    pub fn password(&self) -> &[u8] {
        &self.password
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// What a proxy answers to a request (RFC 1928, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reply {
    /// 00.
    #[error("succeeded")]
    Succeeded,
    /// 01.
    #[error("general failure of the proxy")]
    GeneralFailure,
    /// 02.
    #[error("connection not allowed by the proxy's rules")]
    NotAllowed,
    /// 03.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// 04.
    #[error("host unreachable")]
    HostUnreachable,
    /// 05.
    #[error("connection refused")]
    ConnectionRefused,
    /// 06.
    #[error("time to live expired")]
    TtlExpired,
    /// 07.
    #[error("command not supported by the proxy")]
    CommandNotSupported,
    /// 08.
    #[error("address type not supported by the proxy")]
    AddressTypeNotSupported,
    /// 09 to FF, which nobody assigned.
    #[error("unassigned reply code {0:#04x}")]
    Unassigned(u8),
}

impl Reply {
    /// The value of a code.
    pub const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Succeeded,
            1 => Self::GeneralFailure,
            2 => Self::NotAllowed,
            3 => Self::NetworkUnreachable,
            4 => Self::HostUnreachable,
            5 => Self::ConnectionRefused,
            6 => Self::TtlExpired,
            7 => Self::CommandNotSupported,
            8 => Self::AddressTypeNotSupported,
            9.. => Self::Unassigned(code),
        }
    }

    /// The code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::GeneralFailure => 1,
            Self::NotAllowed => 2,
            Self::NetworkUnreachable => 3,
            Self::HostUnreachable => 4,
            Self::ConnectionRefused => 5,
            Self::TtlExpired => 6,
            Self::CommandNotSupported => 7,
            Self::AddressTypeNotSupported => 8,
            Self::Unassigned(code) => code,
        }
    }
}

/// Why a handshake cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The peer speaks something else.
    #[error("the peer does not speak SOCKS version 5 (first byte {0:#04x})")]
    BadVersion(u8),
    /// The proxy wants a method that we have no means for; give credentials, or take them away.
    #[error("the proxy accepts none of the offered authentication methods")]
    NoAcceptableMethod,
    /// The proxy chose a method that was not offered.
    #[error("the proxy chose an authentication method that was not offered ({0:#04x})")]
    UnofferedMethod(u8),
    /// User name or password are wrong.
    #[error("the proxy refuses the user name or password (status {0:#04x})")]
    AuthenticationFailed(u8),
    /// Another version of the password subnegotiation than RFC 1929's.
    #[error("bad version of the password reply ({0:#04x})")]
    BadAuthVersion(u8),
    /// An address type that RFC 1928 does not have, or an empty name.
    #[error("malformed address")]
    BadAddress,
    /// A command that RFC 1928 does not have.
    #[error("unknown command {0:#04x}")]
    BadCommand(u8),
    /// The peer closed the connection before the handshake was over.
    #[error("the connection was closed in the middle of the handshake ({0})")]
    Closed(Stage),
    /// A domain name is empty, longer than 255 bytes, or has bytes that no name has.
    #[error("the domain name is empty, too long or has control characters")]
    BadDomain,
    /// A user name or password is empty or longer than 255 bytes.
    #[error("user name and password must be 1 to 255 bytes long")]
    CredentialsTooLong,
    /// The handshake failed before; nothing more is taken.
    #[error("the handshake failed before")]
    AlreadyFailed,
}

impl From<BadAddress> for Error {
    fn from(_: BadAddress) -> Self {
        Self::BadAddress
    }
}
