//! The way out: a datagram larger than the device's MTU, cut into fragments.
//!
//! Promises: fragments in order, without overlap, each within the MTU and all but the last as large as it allows;
//! nothing is copied. Refuses ([`DropReason::TooBig`]): datagrams beyond what the length fields can say, and MTUs below
//! the least of their protocol (68 bytes by RFC 791, 1,280 by RFC 8200, section 5).

use core::net::IpAddr;

use crate::stats::DropReason;
use crate::wire::IpRepr;
use crate::wire::ip::{FRAGMENT_HEADER, IPV4_HEADER, IPV6_HEADER, fill_v4_header_checksum};

/// Bytes of the longest header of a fragment.
const HEADER_MAX: usize = IPV6_HEADER + FRAGMENT_HEADER;
/// Protocol number of the IPv6 fragment header.
const FRAGMENT_PROTOCOL: u8 = 44;
/// Least MTU of IPv4 and of IPv6, bytes.
const MTU_MIN: (usize, usize) = (68, 1280);
/// Offsets count units of 8 bytes.
const UNIT: usize = 8;

/// One fragment to be sent: its header, and its part of the payload.
#[derive(Clone, Copy, Debug)]
pub struct OutFragment<'a> {
    header: [u8; HEADER_MAX],
    header_len: u8,
    /// The part of the payload that goes behind the header.
    pub payload: &'a [u8],
}

impl OutFragment<'_> {
    /// The IP header, with the IPv6 fragment header.
    pub fn header(&self) -> &[u8] {
        self.header.get(..usize::from(self.header_len)).unwrap_or_default()
    }
}

/// The fragments of one datagram, from the first to the last.
#[derive(Clone, Debug)]
pub struct Fragments<'a> {
    repr: IpRepr,
    id: u32,
    payload: &'a [u8],
    offset: usize,
    /// Payload bytes of all but the last; a multiple of 8.
    step: usize,
}

/// Cuts `payload` (transport header and data, with the checksum of the whole) into fragments of at most `mtu` bytes.
/// `repr` is the datagram's header; its `payload_len`, `id` and `dont_fragment` are not looked at. `id` must differ
/// between datagrams that travel at the same time (RFC 6864; RFC 7739 asks for unpredictable ones); IPv4 uses its lower
/// 16 bits.
///
/// A payload that fits the MTU gives one packet that is no fragment.
pub fn fragment<'a>(repr: &IpRepr, payload: &'a [u8], mtu: u16, id: u32) -> Result<Fragments<'a>, DropReason> {
    let mtu = usize::from(mtu);
    let (header, room, least, longest) = match repr.src {
        IpAddr::V4(_) => (IPV4_HEADER, IPV4_HEADER, MTU_MIN.0, 65_535 - IPV4_HEADER),
        IpAddr::V6(_) => (IPV6_HEADER, HEADER_MAX, MTU_MIN.1, 65_535),
    };
    if mtu < least || payload.len() > longest {
        return Err(DropReason::TooBig);
    }
    let step = if header + payload.len() <= mtu { payload.len() } else { (mtu - room) / UNIT * UNIT };
    Ok(Fragments { repr: IpRepr { dont_fragment: false, id: id as u16, ..*repr }, id, payload, offset: 0, step })
}

impl<'a> Iterator for Fragments<'a> {
    type Item = OutFragment<'a>;

    fn next(&mut self) -> Option<OutFragment<'a>> {
        if self.offset >= self.payload.len() {
            return None;
        }
        let end = self.payload.len().min(self.offset + self.step);
        let payload = self.payload.get(self.offset..end)?;
        let more = end < self.payload.len();
        let mut fragment = OutFragment { header: [0; HEADER_MAX], header_len: 0, payload };
        let header = &mut fragment.header;
        let field = self.offset as u16;
        if self.step == self.payload.len() {
            let repr = IpRepr { payload_len: payload.len() as u32, ..self.repr };
            repr.emit(header);
            fragment.header_len = repr.header_len() as u8;
        } else if self.repr.src.is_ipv4() {
            let repr = IpRepr { payload_len: payload.len() as u32, ..self.repr };
            repr.emit(header);
            header[6..8].copy_from_slice(&((u16::from(more) << 13) | (field / UNIT as u16)).to_be_bytes());
            fill_v4_header_checksum(header);
            fragment.header_len = IPV4_HEADER as u8;
        } else {
            let payload_len = (FRAGMENT_HEADER + payload.len()) as u32;
            IpRepr { payload_len, protocol: FRAGMENT_PROTOCOL, ..self.repr }.emit(header);
            header[IPV6_HEADER] = self.repr.protocol;
            header[IPV6_HEADER + 2..IPV6_HEADER + 4].copy_from_slice(&(field | u16::from(more)).to_be_bytes());
            header[IPV6_HEADER + 4..].copy_from_slice(&self.id.to_be_bytes());
            fragment.header_len = HEADER_MAX as u8;
        }
        self.offset = end;
        Some(fragment)
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::wire::Ip;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

    fn repr(addr: IpAddr) -> IpRepr {
        IpRepr { src: addr, dst: addr, protocol: 17, ttl: 9, ecn: 0, payload_len: 0, id: 0, dont_fragment: true }
    }

    #[test]
    fn fragments_are_as_large_as_they_may_be_and_parse() {
        let payload: Vec<u8> = (0..5_000u32).map(|at| at as u8).collect();
        for (addr, mtu, step) in
            [(V4, 1500u16, 1480usize), (V4, 1499, 1472), (V4, 68, 48), (V6, 1280, 1232), (V6, 1500, 1448)]
        {
            let mut at = 0;
            for fragment in fragment(&repr(addr), &payload, mtu, 0x0102_0304).expect("fits") {
                let packet = [fragment.header(), fragment.payload].concat();
                let ip = Ip::parse(&packet).expect("valid");
                let part = ip.fragment.expect("a fragment");
                assert!(packet.len() <= usize::from(mtu));
                assert_eq!((ip.protocol, ip.ttl, part.offset as usize), (17, 9, at));
                assert_eq!(part.id, if ip.is_v4() { 0x0304 } else { 0x0102_0304 });
                assert_eq!(fragment.payload, &payload[at..at + fragment.payload.len()]);
                at += fragment.payload.len();
                assert_eq!(part.more, at < payload.len());
                assert!(fragment.payload.len() == step || !part.more);
            }
            assert_eq!(at, payload.len());
        }
    }

    #[test]
    fn what_fits_is_not_fragmented() {
        for (addr, len) in [(V4, 1480usize), (V6, 1460)] {
            let payload = vec![1; len];
            let packets: Vec<_> = fragment(&repr(addr), &payload, 1500, 1).expect("fits").collect();
            assert_eq!(packets.len(), 1);
            let packet = [packets[0].header(), packets[0].payload].concat();
            assert_eq!(packet.len(), 1500);
            assert_eq!(Ip::parse(&packet).expect("valid").fragment, None);
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (addr, mtu, longest) in [(V4, 67u16, 65_515usize), (V6, 1279, 65_535)] {
            assert!(matches!(fragment(&repr(addr), &[0; 100], mtu, 1), Err(DropReason::TooBig)));
            assert!(fragment(&repr(addr), &vec![0; longest], mtu + 1, 1).is_ok());
            assert!(matches!(fragment(&repr(addr), &vec![0; longest + 1], 1500, 1), Err(DropReason::TooBig)));
        }
    }
}
