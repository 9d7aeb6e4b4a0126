//! Addresses as SOCKS writes them: type, address, port (RFC 1928, section 5).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Error, FIELD_MAX};

const TYPE_V4: u8 = 1;
pub(super) const TYPE_DOMAIN: u8 = 3;
const TYPE_V6: u8 = 4;

/// Longest address on the wire: type, length, 255 bytes of name, port.
pub(super) const ADDRESS_MAX: usize = 1 + 1 + FIELD_MAX + 2;

/// The bytes are no address, whatever follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed address")]
pub struct BadAddress;

/// Where to, or where from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A name that the proxy resolves, and a port; 1 to 255 bytes, checked when it is written.
    Domain(Box<str>, u16),
}

impl Address {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Domain(_, port) => *port,
        }
    }

    /// Refuses a name that cannot be written: empty, too long, or with bytes that could end a line or a field of
    /// another protocol (HTTP CONNECT carries the same names).
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self {
            Self::Ip(_) => Ok(()),
            Self::Domain(name, _) => {
                let bad =
                    name.is_empty() || name.len() > FIELD_MAX || name.bytes().any(|byte| byte <= b' ' || byte == 0x7f);
                if bad { Err(Error::BadDomain) } else { Ok(()) }
            }
        }
    }

    /// Where to send datagrams to, given that this is what a proxy at `proxy` answered to UDP ASSOCIATE: many answer an
    /// unspecified address and mean their own. `None` for a name.
    pub fn relay(&self, proxy: IpAddr) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) if address.ip().is_unspecified() => Some(SocketAddr::new(proxy, address.port())),
            Self::Ip(address) => Some(*address),
            Self::Domain(..) => None,
        }
    }

    /// Appends the address; a name is at most 255 bytes long (see [`Address::check`]).
    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ip(address) => {
                let mut bytes = [0; 19];
                let len = emit_ip(*address, &mut bytes);
                out.extend_from_slice(bytes.get(..len).unwrap_or_default());
            }
            Self::Domain(name, port) => {
                let name = name.as_bytes();
                out.extend_from_slice(&[TYPE_DOMAIN, name.len() as u8]);
                out.extend_from_slice(name);
                out.extend_from_slice(&port.to_be_bytes());
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Domain(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

/// An address in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressRef<'a> {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// The bytes of a name, at least one, and a port.
    Domain(&'a [u8], u16),
}

impl<'a> AddressRef<'a> {
    /// Reads an address from the start of `bytes`; with it the bytes that it took. `Ok(None)` if it is cut short.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, BadAddress> {
        let len = needed(bytes)?;
        let Some(bytes) = bytes.get(..len) else { return Ok(None) };
        let Some((rest, port)) = bytes.split_last_chunk::<2>() else { return Ok(None) };
        let port = u16::from_be_bytes(*port);
        let address = match rest {
            [TYPE_V4, octets @ ..] => match octets.first_chunk::<4>() {
                Some(octets) => Self::Ip(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(*octets)), port)),
                None => return Ok(None),
            },
            [TYPE_V6, octets @ ..] => match octets.first_chunk::<16>() {
                Some(octets) => Self::Ip(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(*octets)), port)),
                None => return Ok(None),
            },
            [TYPE_DOMAIN, _, name @ ..] => Self::Domain(name, port),
            _ => return Err(BadAddress),
        };
        Ok(Some((address, len)))
    }

    /// An owned copy; a name that is not UTF-8 is refused.
    pub fn to_owned(self) -> Result<Address, BadAddress> {
        match self {
            Self::Ip(address) => Ok(Address::Ip(address)),
            Self::Domain(name, port) => {
                Ok(Address::Domain(core::str::from_utf8(name).map_err(|_| BadAddress)?.into(), port))
            }
        }
    }
}

/// Bytes that the address at the start of `bytes` takes, or at least: 2 bytes decide.
pub(super) fn needed(bytes: &[u8]) -> Result<usize, BadAddress> {
    match *bytes {
        [TYPE_V4, ..] => Ok(1 + 4 + 2),
        [TYPE_V6, ..] => Ok(1 + 16 + 2),
        [TYPE_DOMAIN, 0, ..] => Err(BadAddress),
        [TYPE_DOMAIN, len, ..] => Ok(1 + 1 + usize::from(len) + 2),
        [] | [TYPE_DOMAIN] => Ok(2),
        [..] => Err(BadAddress),
    }
}

/// Writes an IP address and port; returns the length.
pub(super) fn emit_ip(address: SocketAddr, out: &mut [u8; 19]) -> usize {
    let port = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(ip) => {
            out[0] = TYPE_V4;
            out[1..5].copy_from_slice(&ip.octets());
            out[5..7].copy_from_slice(&port);
            7
        }
        IpAddr::V6(ip) => {
            out[0] = TYPE_V6;
            out[1..17].copy_from_slice(&ip.octets());
            out[17..19].copy_from_slice(&port);
            19
        }
    }
}
