//! IPv4 (RFC 791) with options and IPv6 (RFC 8200) with extension headers.
//!
//! Promises: a parsed [`Ip`] describes bytes that are there, `payload <= total <= packet.len()`. Refuses: wrong
//! versions and lengths, wrong IPv4 header checksums, source-routed packets, malformed options and extension headers,
//! chains beyond [`MAX_EXTENSIONS`], jumbograms, and addresses that cannot stand on a wire (RFC 1122, section 3.2.1.3).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::icmp::IcmpError;
use super::{be16, be32, bytes, protocol};
use crate::checksum::Sum;
use crate::stats::DropReason;

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_HEADER: usize = 40;
/// Bytes of an IPv6 fragment header (RFC 8200, section 4.5).
pub const FRAGMENT_HEADER: usize = 8;
/// IPv6 extension headers of one packet. RFC 8200 lists six that a packet should carry at most once, destination
/// options twice; 8 leaves room for one more.
pub const MAX_EXTENSIONS: usize = 8;
/// Options in all extension headers of one packet, paddings included (RFC 8504, section 5.3, allows a bound).
pub const MAX_OPTIONS: usize = 64;

/// A checked IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address; never unspecified, multicast, broadcast, loopback or v4-mapped.
    pub src: IpAddr,
    /// Destination address, of the same family; never unspecified, loopback or v4-mapped.
    pub dst: IpAddr,
    /// Protocol number of the upper layer, after all extension headers.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Explicit congestion notification, 2 bits (RFC 3168, section 5).
    pub ecn: u8,
    /// Offset of the upper layer, bytes.
    pub payload: u16,
    /// Bytes of the packet including its headers; bytes beyond are padding of the link.
    pub total: u32,
    /// Set if this is a part of a datagram. An IPv6 fragment header that says "all of it" (RFC 6946) is not one.
    pub fragment: Option<Fragment>,
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification: 16 bits of IPv4, 32 bits of IPv6.
    pub id: u32,
    /// Offset of its payload in the datagram's fragmentable part, bytes; a multiple of 8.
    pub offset: u32,
    /// Whether more fragments follow.
    pub more: bool,
    /// Bytes before the fragmentable part: the IPv4 header, or the IPv6 header and what precedes the fragment header
    /// (which starts here). A reassembled datagram is these bytes and the fragmentable part.
    pub unfragmentable: u16,
    /// Offset of the byte to be set to [`Ip::protocol`] in a reassembled datagram: the next-header field that now
    /// names the fragment header (IPv6), or the protocol field (IPv4).
    pub next_header_at: u16,
}

impl Ip {
    /// Checks the headers of a packet.
    ///
    /// Of a fragment, `protocol` and `payload` are what follows the (fragment) header, not looked at further.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, DropReason> {
        match packet.first() {
            Some(first) if first >> 4 == 4 => Self::parse_v4(packet),
            Some(first) if first >> 4 == 6 => Self::parse_v6(packet),
            Some(_) => Err(DropReason::BadVersion),
            None => Err(DropReason::Truncated),
        }
    }

    /// Whether this is IPv4.
    #[inline]
    pub const fn is_v4(&self) -> bool {
        self.src.is_ipv4()
    }

    /// Whether the destination is one host: neither multicast nor the limited broadcast.
    #[inline]
    pub fn dst_is_unicast(&self) -> bool {
        match self.dst {
            IpAddr::V4(dst) => !dst.is_multicast() && !dst.is_broadcast(),
            IpAddr::V6(dst) => !dst.is_multicast(),
        }
    }

    /// Bytes of the upper layer, its header included.
    #[inline]
    pub const fn payload_len(&self) -> usize {
        self.total as usize - self.payload as usize
    }

    #[inline]
    fn parse_v4(packet: &[u8]) -> Result<Self, DropReason> {
        let Some(header) = packet.first_chunk::<IPV4_HEADER>() else { return Err(DropReason::Truncated) };
        let total = usize::from(be16(header, 2));
        let payload = usize::from(header[0] & 0x0f) * 4;
        if payload != IPV4_HEADER {
            check_v4_options(packet, payload)?;
        } else if !v4_header_sum(header).is_valid() {
            return Err(DropReason::IpChecksum);
        }
        if total < payload {
            return Err(DropReason::BadLength);
        }
        if total > packet.len() {
            return Err(DropReason::Truncated);
        }
        let src: [u8; 4] = bytes(header, 12);
        let dst: [u8; 4] = bytes(header, 16);
        // 0/8 is "this network", 127/8 loopback, 224/4 multicast (RFC 1122, section 3.2.1.3; RFC 6890).
        if matches!(src[0], 0 | 127 | 224..=239) || src == [255; 4] || matches!(dst[0], 0 | 127) {
            return Err(DropReason::BadAddress);
        }
        let field = be16(header, 6);
        let fragment = (field & 0x3fff != 0).then(|| Fragment {
            id: u32::from(be16(header, 4)),
            offset: u32::from(field & 0x1fff) * 8,
            more: field & 0x2000 != 0,
            unfragmentable: payload as u16,
            next_header_at: 9,
        });
        Ok(Self {
            src: IpAddr::V4(Ipv4Addr::from(src)),
            dst: IpAddr::V4(Ipv4Addr::from(dst)),
            protocol: header[9],
            ttl: header[8],
            ecn: header[1] & 3,
            payload: payload as u16,
            total: total as u32,
            fragment,
        })
    }

    #[inline]
    fn parse_v6(packet: &[u8]) -> Result<Self, DropReason> {
        let Some(header) = packet.first_chunk::<IPV6_HEADER>() else { return Err(DropReason::Truncated) };
        let total = IPV6_HEADER + usize::from(be16(header, 4));
        let Some(packet) = packet.get(..total) else { return Err(DropReason::Truncated) };
        let src = Ipv6Addr::from(bytes::<16>(header, 8));
        let dst = Ipv6Addr::from(bytes::<16>(header, 24));
        if src.is_multicast() || never_on_wire(src) || never_on_wire(dst) {
            return Err(DropReason::BadAddress);
        }
        let mut ip = Self {
            src: IpAddr::V6(src),
            dst: IpAddr::V6(dst),
            protocol: header[6],
            ttl: header[7],
            ecn: (header[1] >> 4) & 3,
            payload: IPV6_HEADER as u16,
            total: total as u32,
            fragment: None,
        };
        if is_extension(ip.protocol) {
            ip.skip_extensions(packet)?;
        }
        Ok(ip)
    }

    /// Walks the extension headers of `packet`, which ends at `total`.
    #[cold]
    fn skip_extensions(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        let mut at = IPV6_HEADER;
        let mut next_header_at = 6;
        let mut options = MAX_OPTIONS;
        for index in 0..=MAX_EXTENSIONS {
            if !is_extension(self.protocol) {
                self.payload = at as u16;
                return Ok(());
            }
            if index == MAX_EXTENSIONS {
                break;
            }
            let rest = &packet[at..];
            let Some(head) = rest.first_chunk::<8>() else { return Err(DropReason::Truncated) };
            let kind = core::mem::replace(&mut self.protocol, head[0]);
            if kind == EXT_FRAGMENT {
                let field = be16(head, 2);
                if field & 0xfff9 != 0 {
                    self.fragment = Some(Fragment {
                        id: be32(head, 4),
                        offset: u32::from(field & 0xfff8),
                        more: field & 1 != 0,
                        unfragmentable: at as u16,
                        next_header_at,
                    });
                    self.payload = (at + FRAGMENT_HEADER) as u16;
                    return Ok(());
                }
                next_header_at = at as u16;
                at += FRAGMENT_HEADER;
                continue;
            }
            let len = usize::from(head[1]) * 8 + 8;
            let Some(extension) = rest.get(..len) else { return Err(DropReason::Truncated) };
            match kind {
                // Only directly behind the IPv6 header (RFC 8200, section 4.1).
                EXT_HOP_BY_HOP if index != 0 => return Err(DropReason::BadExtension),
                EXT_HOP_BY_HOP | EXT_DESTINATION => check_v6_options(&extension[2..], &mut options)?,
                // Segments left: we are not a router of this packet (RFC 8200, section 4.4; RFC 5095).
                _ if head[3] != 0 => return Err(DropReason::BadExtension),
                _ => {}
            }
            next_header_at = at as u16;
            at += len;
        }
        Err(DropReason::BadExtension)
    }
}

/// What is wrong with the extension headers of a packet that [`Ip::parse`] refused with [`DropReason::BadExtension`],
/// as its sender must be told (RFC 8200, section 4; RFC 4443, section 3.4); with its header, whose protocol is the
/// upper layer's if the walk gets there. `None` for IPv4, and where silence is right.
#[cold]
pub fn parameter_problem(packet: &[u8]) -> Option<(Ip, IcmpError)> {
    let header = packet.first_chunk::<IPV6_HEADER>().filter(|header| header[0] >> 4 == 6)?;
    // The header alone, as if nothing followed: then the addresses are checked and no extension is.
    let mut bare = *header;
    bare[4..7].copy_from_slice(&[0, 0, NO_NEXT_HEADER]);
    let mut ip = Ip::parse_v6(&bare).ok()?;
    let packet = packet.get(..IPV6_HEADER + usize::from(be16(header, 4)))?;
    (ip.total, ip.protocol) = (packet.len() as u32, header[6]);
    let group = !ip.dst_is_unicast();
    let (mut at, mut next_header_at) = (IPV6_HEADER, 6);
    let mut found = None;
    for index in 0..MAX_EXTENSIONS {
        let Some(head) = packet.get(at..).and_then(<[u8]>::first_chunk::<8>) else { break };
        let is_part = ip.protocol == EXT_FRAGMENT && be16(head, 2) & 0xfff9 != 0;
        if !is_extension(ip.protocol) || is_part {
            break;
        }
        let len = if ip.protocol == EXT_FRAGMENT { FRAGMENT_HEADER } else { usize::from(head[1]) * 8 + 8 };
        if at + len > packet.len() {
            break;
        }
        let problem = match ip.protocol {
            EXT_HOP_BY_HOP if index != 0 => Some(Verdict::Told(1, next_header_at)),
            EXT_HOP_BY_HOP | EXT_DESTINATION => option_problem(packet, at + 2, at + len, group),
            EXT_ROUTING if head[3] != 0 => Some(Verdict::Told(0, at + 2)),
            _ => None,
        };
        found = found.or(problem);
        ip.protocol = head[0];
        next_header_at = at;
        at += len;
    }
    ip.payload = at as u16;
    let Some(Verdict::Told(code, pointer)) = found else { return None };
    Some((ip, IcmpError::ParameterProblem { code, pointer: pointer as u32 }))
}

/// What follows from a header for which a packet is discarded.
enum Verdict {
    Silence,
    /// A parameter problem: code and pointer.
    Told(u8, usize),
}

/// The verdict of the first option for which the packet is discarded, if there is one (RFC 8200, section 4.2); the
/// options of the header stand at `at..end`.
fn option_problem(packet: &[u8], mut at: usize, end: usize, group: bool) -> Option<Verdict> {
    let options = packet.get(..end)?;
    // Each round moves on by a byte at least.
    while let Some(&kind) = options.get(at) {
        let next = match (kind, options.get(at + 1)) {
            (0, _) => at + 1,
            (_, Some(&len)) => at + 2 + usize::from(len),
            (_, None) => return Some(Verdict::Told(0, at)),
        };
        match kind >> 6 {
            1 => return Some(Verdict::Silence),
            3 if group => return Some(Verdict::Silence),
            2 | 3 => return Some(Verdict::Told(2, at)),
            _ if next > end => return Some(Verdict::Told(0, at + 1)),
            _ => at = next,
        }
    }
    None
}

/// Where a packet names the upper layer that [`Ip::parse`] found: the offset of the last next-header field.
#[cold]
pub(super) fn next_header_at(packet: &[u8]) -> u32 {
    let (mut field, mut at) = (6, IPV6_HEADER);
    for _ in 0..MAX_EXTENSIONS {
        let Some(kind) = packet.get(field).copied().filter(|&kind| is_extension(kind)) else { break };
        let Some(head) = packet.get(at..).and_then(<[u8]>::first_chunk::<8>) else { break };
        field = at;
        at += if kind == EXT_FRAGMENT { FRAGMENT_HEADER } else { usize::from(head[1]) * 8 + 8 };
    }
    field as u32
}

/// "Nothing follows" (RFC 8200, section 4.7).
pub(super) const NO_NEXT_HEADER: u8 = 59;
/// Hop-by-hop options header.
const EXT_HOP_BY_HOP: u8 = 0;
/// Routing header.
const EXT_ROUTING: u8 = 43;
/// Fragment header.
const EXT_FRAGMENT: u8 = 44;
/// Destination options header.
const EXT_DESTINATION: u8 = 60;

/// Extension headers that are walked; others (ESP, AH, mobility) count as an upper layer that nobody here carries.
#[inline]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, EXT_HOP_BY_HOP | EXT_ROUTING | EXT_FRAGMENT | EXT_DESTINATION)
}

/// Unspecified, loopback, or v4-mapped (RFC 4291, section 2.5; RFC 4942, section 2.2).
#[inline]
fn never_on_wire(addr: Ipv6Addr) -> bool {
    let value = u128::from_be_bytes(addr.octets());
    value <= 1 || value >> 32 == 0xffff
}

/// The sum of a header without options.
#[inline]
fn v4_header_sum(header: &[u8; IPV4_HEADER]) -> Sum {
    let mut sum = 0u64;
    for at in [0, 4, 8, 12, 16] {
        sum += u64::from(u32::from_ne_bytes(bytes(header, at)));
    }
    Sum::ZERO.add_lane(sum)
}

/// Checks a header that is not 20 bytes long: length, checksum, options (RFC 791, section 3.1).
#[cold]
fn check_v4_options(packet: &[u8], len: usize) -> Result<(), DropReason> {
    if len < IPV4_HEADER {
        return Err(DropReason::BadLength);
    }
    let Some(header) = packet.get(..len) else { return Err(DropReason::Truncated) };
    if !crate::checksum::Kernel::SWAR.sum(header, Sum::ZERO).is_valid() {
        return Err(DropReason::IpChecksum);
    }
    let mut options = &header[IPV4_HEADER..];
    loop {
        match *options {
            [] | [0, ..] => return Ok(()),
            [1, ..] => options = &options[1..],
            // Loose and strict source route: refused (RFC 7126, sections 4.3 and 4.4).
            [131 | 137, ..] => return Err(DropReason::BadExtension),
            [_, len, ..] if len >= 2 && usize::from(len) <= options.len() => options = &options[usize::from(len)..],
            [..] => return Err(DropReason::BadExtension),
        }
    }
}

/// Checks the options of a hop-by-hop or destination header (RFC 8200, section 4.2); `left` is the packet's allowance.
fn check_v6_options(mut options: &[u8], left: &mut usize) -> Result<(), DropReason> {
    loop {
        *left = left.checked_sub(1).ok_or(DropReason::BadExtension)?;
        match *options {
            [] => return Ok(()),
            [0, ..] => options = &options[1..],
            // Not known here, and its two highest bits say "discard"; the jumbo payload (RFC 2675) is among them.
            [kind, ..] if kind & 0xc0 != 0 => return Err(DropReason::BadExtension),
            [_, len, ..] if usize::from(len) + 2 <= options.len() => options = &options[usize::from(len) + 2..],
            [..] => return Err(DropReason::BadExtension),
        }
    }
}

/// An IP header to be sent: IPv4 without options, or IPv6 without extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpRepr {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Protocol number of the upper layer.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Explicit congestion notification, 2 bits.
    pub ecn: u8,
    /// Bytes of the upper layer; at most 65,515 (IPv4) or 65,535 (IPv6).
    pub payload_len: u32,
    /// Identification; IPv4 only.
    pub id: u16,
    /// Forbid fragmentation on the way; IPv4 only, IPv6 always does.
    pub dont_fragment: bool,
}

impl IpRepr {
    /// Bytes that [`IpRepr::emit`] writes.
    #[inline]
    pub const fn header_len(&self) -> usize {
        match self.src {
            IpAddr::V4(_) => IPV4_HEADER,
            IpAddr::V6(_) => IPV6_HEADER,
        }
    }

    /// Writes the header to the start of `out`, with its checksum.
    ///
    /// # Panics
    /// If `out` is shorter than [`IpRepr::header_len`], if the addresses are of different families, or (debug only)
    /// if `payload_len` does not fit: errors of the caller, whatever came from outside.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let out = out.first_chunk_mut::<IPV4_HEADER>().expect("the caller reserved header_len() bytes");
                let total = IPV4_HEADER as u32 + self.payload_len;
                debug_assert!(total <= 0xffff);
                *out = [0; IPV4_HEADER];
                out[0] = 0x45;
                out[1] = self.ecn & 3;
                out[2..4].copy_from_slice(&(total as u16).to_be_bytes());
                out[4..6].copy_from_slice(&self.id.to_be_bytes());
                out[6] = u8::from(self.dont_fragment) << 6;
                out[8] = self.ttl;
                out[9] = self.protocol;
                out[12..16].copy_from_slice(&src.octets());
                out[16..20].copy_from_slice(&dst.octets());
                let check = v4_header_sum(out).finish();
                out[10..12].copy_from_slice(&check.to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let out = out.first_chunk_mut::<IPV6_HEADER>().expect("the caller reserved header_len() bytes");
                debug_assert!(self.payload_len <= 0xffff);
                out[..4].copy_from_slice(&[0x60, (self.ecn & 3) << 4, 0, 0]);
                out[4..6].copy_from_slice(&(self.payload_len as u16).to_be_bytes());
                out[6] = self.protocol;
                out[7] = self.ttl;
                out[8..24].copy_from_slice(&src.octets());
                out[24..40].copy_from_slice(&dst.octets());
            }
            _ => panic!("source and destination of different families"),
        }
    }

    /// The protocol number of ICMP in this packet's family.
    pub const fn icmp_protocol(&self) -> u8 {
        if self.src.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 }
    }
}

/// Writes the checksum of an IPv4 header whose fields were changed in place; nothing if it is not one.
pub fn fill_v4_header_checksum(packet: &mut [u8]) {
    let len = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    if len < IPV4_HEADER {
        return;
    }
    if let Some(header) = packet.get_mut(..len) {
        header[10..12].fill(0);
        let check = crate::checksum::Kernel::SWAR.sum(header, Sum::ZERO).finish();
        header[10..12].copy_from_slice(&check.to_be_bytes());
    }
}
