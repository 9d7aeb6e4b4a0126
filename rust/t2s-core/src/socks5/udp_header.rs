//! The header in front of relayed datagrams: reserved, fragment number, address (RFC 1928, section 7).

use core::net::SocketAddr;

use super::address::{AddressRef, BadAddress, TYPE_DOMAIN, emit_ip};
use crate::buf::Buf;

/// Longest header with an address: an IPv6 one; what a sender needs as headroom.
pub const HEADER_MAX: usize = 3 + 19;
/// Longest header with a name.
pub const DOMAIN_HEADER_MAX: usize = 3 + super::address::ADDRESS_MAX;

/// Why a relayed datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UdpHeaderError {
    /// Shorter than its header.
    #[error("shorter than its header")]
    Truncated,
    /// Reserved bytes are not 0, or an unknown address type.
    #[error("malformed header")]
    Malformed,
    /// A fragment, which no proxy in use makes; "an implementation that does not support fragmentation MUST drop".
    #[error("fragments are not supported")]
    Fragment,
}

impl From<BadAddress> for UdpHeaderError {
    fn from(_: BadAddress) -> Self {
        Self::Malformed
    }
}

/// Bytes of the header for an address.
#[inline]
pub const fn header_len(address: SocketAddr) -> usize {
    if address.is_ipv4() { 3 + 7 } else { 3 + 19 }
}

/// Writes the header to the start of `out` and returns its length; `None`, and nothing written, if `out` is shorter.
#[inline]
pub fn emit(address: SocketAddr, out: &mut [u8]) -> Option<usize> {
    let mut bytes = [0; 19];
    let len = 3 + emit_ip(address, &mut bytes);
    let out = out.get_mut(..len)?;
    let (reserved, rest) = out.split_at_mut(3);
    reserved.fill(0);
    rest.copy_from_slice(bytes.get(..len - 3)?);
    Some(len)
}

/// Puts the header in front of a datagram; false, and the datagram unchanged, if it has not that much headroom.
#[inline]
#[must_use]
pub fn prepend(datagram: &mut Buf, address: SocketAddr) -> bool {
    datagram.prepend(header_len(address)).and_then(|room| emit(address, room)).is_some()
}

/// Puts the header for a name, which the relay resolves, in front of a datagram; false, and the datagram unchanged, if
/// it has not that much headroom ([`DOMAIN_HEADER_MAX`] is always enough), or the name is empty or longer than 255
/// bytes.
#[must_use]
pub fn prepend_domain(datagram: &mut Buf, name: &str, port: u16) -> bool {
    let Some(len) = u8::try_from(name.len()).ok().filter(|&len| len > 0) else { return false };
    let Some(room) = datagram.prepend(3 + 1 + 1 + name.len() + 2) else { return false };
    let (head, rest) = room.split_at_mut(5);
    head.copy_from_slice(&[0, 0, 0, TYPE_DOMAIN, len]);
    let (text, tail) = rest.split_at_mut(name.len());
    text.copy_from_slice(name.as_bytes());
    tail.copy_from_slice(&port.to_be_bytes());
    true
}

/// Reads the header of a datagram from a relay: the address that it is from, and where its payload starts. `None` for
/// whatever [`decode`] refuses, and for names, which no session could be told.
#[inline]
pub fn parse(datagram: &[u8]) -> Option<(SocketAddr, usize)> {
    match decode(datagram) {
        Ok((AddressRef::Ip(address), at)) => Some((address, at)),
        Ok((AddressRef::Domain(..), _)) | Err(_) => None,
    }
}

/// Reads the header of a datagram: whom it is for (or from), and where its payload starts.
#[inline]
pub fn decode(datagram: &[u8]) -> Result<(AddressRef<'_>, usize), UdpHeaderError> {
    match datagram {
        [0, 0, 0, rest @ ..] => match AddressRef::parse(rest)? {
            Some((address, len)) => Ok((address, 3 + len)),
            None => Err(UdpHeaderError::Truncated),
        },
        [0, 0, _, ..] => Err(UdpHeaderError::Fragment),
        [] | [0] | [0, 0] => Err(UdpHeaderError::Truncated),
        [..] => Err(UdpHeaderError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::buf::{Pool, PoolConfig};

    proptest! {
        #[test]
        fn round_trip_and_truncation(address: SocketAddr, payload in prop::collection::vec(any::<u8>(), 0..40)) {
            let address = SocketAddr::new(address.ip(), address.port());
            let mut datagram = vec![0xee; HEADER_MAX];
            let len = emit(address, &mut datagram).expect("room for the longest");
            prop_assert_eq!(len, header_len(address));
            datagram.truncate(len);
            datagram.extend(&payload);
            prop_assert_eq!(decode(&datagram), Ok((AddressRef::Ip(address), len)));
            for cut in 0..len {
                prop_assert_eq!(decode(&datagram[..cut]), Err(UdpHeaderError::Truncated));
                prop_assert_eq!(parse(&datagram[..cut]), None);
                prop_assert_eq!(emit(address, &mut datagram.clone()[..cut]), None);
            }
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((_, at)) = decode(&bytes) {
                prop_assert!(at <= bytes.len());
            }
        }
    }

    #[test]
    fn prepends_where_there_is_room() {
        let mut pool = Pool::new(PoolConfig { ceiling_bytes: 1 << 20, ..PoolConfig::default() }).cache();
        let (v4, v6) = (SocketAddr::from(([192, 0, 2, 1], 53)), SocketAddr::from(([1, 2, 3, 4, 5, 6, 7, 8], 53)));
        let mut datagram = pool.alloc_copy(b"abc", 40).expect("the pool is large");
        assert!(prepend(&mut datagram, v4));
        assert_eq!(parse(datagram.as_slice()), Some((v4, 10)));
        assert!(prepend(&mut datagram, v6));
        assert_eq!(parse(datagram.as_slice()), Some((v6, 22)));
        // 8 bytes of headroom are left.
        assert!(!prepend(&mut datagram, v4));
        assert_eq!(datagram.len(), 3 + 10 + 22);
    }

    #[test]
    fn names_go_in_front_too() {
        let mut pool = Pool::new(PoolConfig { ceiling_bytes: 1 << 20, ..PoolConfig::default() }).cache();
        let longest = "a".repeat(255);
        for name in ["a", "name.example", longest.as_str()] {
            let mut datagram = pool.alloc_copy(b"abc", DOMAIN_HEADER_MAX).expect("the pool is large");
            assert!(prepend_domain(&mut datagram, name, 443));
            let header = 7 + name.len();
            assert_eq!(decode(datagram.as_slice()), Ok((AddressRef::Domain(name.as_bytes(), 443), header)));
            assert_eq!(&datagram.as_slice()[header..], b"abc");
        }
        let mut tight = pool.alloc_copy(b"abc", 18).expect("the pool is large");
        for bad in ["name.example", "", &"a".repeat(256)] {
            assert!(!prepend_domain(&mut tight, bad, 443));
            assert_eq!(tight.as_slice(), b"abc");
        }
    }

    #[test]
    fn names_are_read_and_fragments_refused() {
        let datagram = [&[0, 0, 0, 3, 4][..], b"a.de", &[0, 53, 9, 9]].concat();
        assert_eq!(decode(&datagram), Ok((AddressRef::Domain(b"a.de", 53), 11)));
        assert_eq!(parse(&datagram), None);
        assert_eq!(decode(&[0, 0, 1, 1, 1, 2, 3, 4, 0, 1]), Err(UdpHeaderError::Fragment));
        assert_eq!(decode(&[0, 1, 0, 1, 1, 2, 3, 4, 0, 1]), Err(UdpHeaderError::Malformed));
        assert_eq!(decode(&[0, 0, 0, 2, 1, 2, 3, 4, 0, 1]), Err(UdpHeaderError::Malformed));
        assert_eq!(decode(&[0, 0, 0, 3, 0, 0, 1]), Err(UdpHeaderError::Malformed));
    }
}
