//! What identifies a flow: addresses, ports and protocol, as seen from the client's side.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The five-tuple of a flow in 40 bytes; IPv4 addresses are held as IPv4-mapped IPv6 addresses (RFC 4291, section
/// 2.5.5.2).
///
/// Equality and hashing work on five words; the order (source, destination, ports, protocol) serves stable listings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey {
    src: [u64; 2],
    dst: [u64; 2],
    /// Source port, destination port, protocol and 24 bits of zero, from the top.
    tail: u64,
}

const _: () = assert!(size_of::<FlowKey>() == 40);

impl FlowKey {
    /// The key of a packet from `src` to `dst` with an IP protocol number.
    #[inline]
    pub fn new(src: IpAddr, src_port: u16, dst: IpAddr, dst_port: u16, protocol: u8) -> Self {
        Self {
            src: words(src),
            dst: words(dst),
            tail: u64::from(src_port) << 48 | u64::from(dst_port) << 32 | u64::from(protocol) << 24,
        }
    }

    /// Source address; an IPv4-mapped one is IPv4.
    pub fn src(&self) -> IpAddr {
        address(self.src)
    }

    /// Destination address; an IPv4-mapped one is IPv4.
    pub fn dst(&self) -> IpAddr {
        address(self.dst)
    }

    /// Source port.
    pub fn src_port(&self) -> u16 {
        (self.tail >> 48) as u16
    }

    /// Destination port.
    pub fn dst_port(&self) -> u16 {
        (self.tail >> 32) as u16
    }

    /// IP protocol number.
    pub fn protocol(&self) -> u8 {
        (self.tail >> 24) as u8
    }

    /// Source address and port.
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(self.src(), self.src_port())
    }

    /// Destination address and port.
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.dst(), self.dst_port())
    }
}

#[inline]
fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => [0, 0xffff_0000_0000 | u64::from(v4.to_bits())],
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            [(bits >> 64) as u64, bits as u64]
        }
    }
}

fn address([high, low]: [u64; 2]) -> IpAddr {
    if high == 0 && low >> 32 == 0xffff {
        IpAddr::V4(Ipv4Addr::from_bits(low as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(wide([high, low])))
    }
}

impl Hash for FlowKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Two wide writes: ahash mixes them with all of its key and without a chain through every word.
        state.write_u128(wide(self.src));
        state.write_u128(wide(self.dst));
        state.write_u64(self.tail);
    }
}

#[inline]
fn wide([high, low]: [u64; 2]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

impl std::fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {} protocol {}", self.source(), self.destination(), self.protocol())
    }
}
