//! Packets of the generator, written straight into the device ring, and what it reads from replies.
//!
//! The codecs here share no code with the core's, so that each checks the other. Headers are written field by field
//! over constant sums (addresses, payload pattern); single changed words are patched by RFC 1624. Payload is a pattern
//! over the stream offset, so that any byte at any place can be checked by whoever receives it.

use crate::generator::address::{FlowAddresses, client_of};
use crate::generator::rng::Rng;

/// TCP flag bits (RFC 9293, section 3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 0x10;
}

/// Protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// Bytes of a TCP header with the timestamp option, NOP-padded (RFC 7323, appendix A).
pub const TCP_TIMESTAMP_HEADER: usize = 32;

/// Period of the payload pattern, bytes: longer than what is on its way in most flows, so that bytes from another place
/// are other bytes, and small enough to stay in a cache. A power of two, since stream offsets wrap at 2^32.
pub const PERIOD: usize = 1 << 14;

/// Bytes that can be had from the pattern at once.
pub const LONGEST: usize = 65_536;

/// The payload of every stream: byte `n` of a stream is `pattern[(start + n) % PERIOD]`, where the start is the flow's.
pub struct Pattern {
    bytes: Box<[u8]>,
}

impl Pattern {
    /// A pattern long enough for one packet at any phase.
    pub fn new() -> Self {
        let mut rng = Rng::new(0x7432_7330, 0);
        let mut bytes: Vec<u8> = (0..PERIOD / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
        for at in 0..LONGEST {
            bytes.push(bytes[at]);
        }
        Self { bytes: bytes.into_boxed_slice() }
    }

    /// `len` bytes from a stream offset; `len` is at most [`LONGEST`].
    #[inline]
    pub fn at(&self, offset: u64, len: usize) -> &[u8] {
        let phase = offset as usize % PERIOD;
        &self.bytes[phase..phase + len]
    }

    /// Whether `bytes` stand at `offset`, every one of them.
    #[inline]
    pub fn matches(&self, bytes: &[u8], offset: u64) -> bool {
        bytes.len() <= LONGEST && same(self.at(offset, bytes.len()), bytes)
    }
}

/// Whether two slices of one length are equal: few bytes by two loads that may overlap, which a call would outweigh.
#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    match a.len() {
        8..=16 => a.first_chunk::<8>() == b.first_chunk() && a.last_chunk::<8>() == b.last_chunk(),
        4..=7 => a.first_chunk::<4>() == b.first_chunk() && a.last_chunk::<4>() == b.last_chunk(),
        _ => a == b,
    }
}

impl Default for Pattern {
    fn default() -> Self {
        Self::new()
    }
}

/// Sums of payloads of one length at each phase of the pattern.
pub struct PayloadSums {
    len: usize,
    sums: Box<[u16]>,
}

impl PayloadSums {
    /// Sums for payloads of `len` bytes.
    pub fn new(pattern: &Pattern, len: usize) -> Self {
        // Sums of every second byte below a place: a payload's high and low bytes are differences of two of them.
        let mut below = vec![0_u32; pattern.bytes.len() + 2];
        for (at, &byte) in pattern.bytes.iter().enumerate() {
            below[at + 2] = below[at] + u32::from(byte);
        }
        let every_second = |from: usize, count: usize| u64::from(below[from + 2 * count] - below[from]);
        let sum = |phase: usize| {
            let (high, low) = (every_second(phase, len.div_ceil(2)), every_second(phase + 1, len / 2));
            let sum = 256 * high + low;
            fold((sum & 0xffff) as u32 + (sum >> 16) as u32)
        };
        Self { len, sums: (0..PERIOD).map(sum).collect() }
    }

    /// The sum of `len` bytes from `offset`: a look-up for the usual length, computed for others.
    #[inline]
    pub fn get(&self, pattern: &Pattern, offset: u64, len: usize) -> u16 {
        if len == self.len { self.sums[offset as usize % PERIOD] } else { fold(sum_of(pattern.at(offset, len))) }
    }
}

/// Ones-complement sum of big-endian words, an odd last byte padded (RFC 1071), not folded; up to 128 KiB fit.
pub fn sum_of(bytes: &[u8]) -> u32 {
    let mut words = bytes.chunks_exact(2);
    let sum: u32 = words.by_ref().map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    sum + words.remainder().first().map_or(0, |&last| u32::from(last) << 8)
}

/// Folds carries into 16 bits.
#[inline]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The checksum after one word changed (RFC 1624, equation 3).
#[inline]
pub const fn patched(check: u16, old: u16, new: u16) -> u16 {
    !fold(!check as u32 + !old as u32 + new as u32)
}

/// Writes `value` big-endian at `at`; the caller has checked the length.
#[inline]
pub fn put_u16(out: &mut [u8], at: usize, value: u16) {
    out[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[inline]
fn put_u32(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Reads a big-endian word; `None` past the end.
#[inline]
pub fn get_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

#[inline]
fn get_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|quad| u32::from_be_bytes([quad[0], quad[1], quad[2], quad[3]]))
}

/// Bytes of the IP header of a family.
#[inline]
pub const fn ip_header_len(v6: bool) -> usize {
    if v6 { 40 } else { 20 }
}

/// Writes the IP header of a packet whose upper layer has `payload_len` bytes; IPv4 with DF and identification 0
/// (RFC 6864, section 4.1).
#[inline]
pub fn write_ip(out: &mut [u8], ends: FlowAddresses, protocol: u8, payload_len: usize) {
    if ends.v6 {
        let header: &mut [u8; 40] = (&mut out[..40]).try_into().expect("the slice has 40 bytes");
        put_u32(header, 0, 6 << 28);
        put_u16(header, 4, payload_len as u16);
        header[6] = protocol;
        header[7] = 64;
        header[8..24].copy_from_slice(&ends.client_v6());
        header[24..40].copy_from_slice(&ends.target_v6());
    } else {
        const DONT_FRAGMENT: u16 = 0x4000;
        let header: &mut [u8; 20] = (&mut out[..20]).try_into().expect("the slice has 20 bytes");
        let total = 20 + payload_len as u16;
        let life = u16::from_be_bytes([64, protocol]);
        let sum = 0x4500 + u32::from(total) + u32::from(DONT_FRAGMENT) + u32::from(life) + ends.address_sum();
        put_u16(header, 0, 0x4500);
        put_u16(header, 2, total);
        put_u16(header, 4, 0);
        put_u16(header, 6, DONT_FRAGMENT);
        put_u16(header, 8, life);
        put_u16(header, 10, !fold(sum));
        header[12..16].copy_from_slice(&ends.client_v4());
        header[16..20].copy_from_slice(&ends.target_v4());
    }
}

/// The variable fields of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFields {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flag bits.
    pub flags: u8,
    /// Window field as on the wire.
    pub window: u16,
    /// Timestamp value and echo.
    pub timestamp: Option<(u32, u32)>,
    /// MSS and window scale of a SYN, which also permits SACK.
    pub syn: Option<(u16, u8)>,
}

impl TcpFields {
    /// Bytes of the TCP header.
    #[inline]
    pub const fn header_len(&self) -> usize {
        match (self.syn, self.timestamp) {
            (Some(_), Some(_)) => 40,
            (Some(_), None) => 32,
            (None, Some(_)) => TCP_TIMESTAMP_HEADER,
            (None, None) => 20,
        }
    }
}

/// Writes IP and TCP headers in front of a payload of `payload_len` bytes whose sum is `payload_sum`.
#[inline]
pub fn write_tcp(out: &mut [u8], ends: FlowAddresses, fields: &TcpFields, payload_len: usize, payload_sum: u16) {
    let header_len = fields.header_len();
    write_ip(out, ends, protocol::TCP, header_len + payload_len);
    let tcp = &mut out[ip_header_len(ends.v6)..][..header_len];
    let offset_flags = (header_len as u16 / 4) << 12 | u16::from(fields.flags);
    put_u16(tcp, 0, ends.client_port);
    put_u16(tcp, 2, ends.target_port);
    put_u32(tcp, 4, fields.seq);
    put_u32(tcp, 8, fields.ack);
    put_u16(tcp, 12, offset_flags);
    put_u16(tcp, 14, fields.window);
    put_u32(tcp, 16, 0);
    let mut at = 20;
    if let Some((mss, scale)) = fields.syn {
        put_u32(tcp, at, 0x0204_0000 | u32::from(mss));
        put_u32(tcp, at + 4, 0x0103_0300 | u32::from(scale));
        put_u32(tcp, at + 8, 0x0101_0402);
        at += 12;
    }
    if let Some((value, echo)) = fields.timestamp {
        if fields.syn.is_some() {
            // 20 + 12 bytes stand; kind and length go right behind, so that the option ends at 40 with NOP-free
            // padding.
            tcp[at - 4..at].copy_from_slice(&[4, 2, 8, 10]);
            put_u32(tcp, at, value);
            put_u32(tcp, at + 4, echo);
        } else {
            put_u32(tcp, at, 0x0101_080a);
            put_u32(tcp, at + 4, value);
            put_u32(tcp, at + 8, echo);
        }
    }
    let pseudo = ends.address_sum() + u32::from(protocol::TCP) + (header_len + payload_len) as u32;
    let check = !fold(pseudo + sum_of(tcp) + u32::from(payload_sum));
    put_u16(tcp, 16, check);
}

/// Writes IP and UDP headers in front of a payload of `payload_len` bytes whose sum is `payload_sum`.
#[inline]
pub fn write_udp(out: &mut [u8], ends: FlowAddresses, payload_len: usize, payload_sum: u16) {
    let len = 8 + payload_len;
    write_ip(out, ends, protocol::UDP, len);
    let udp = &mut out[ip_header_len(ends.v6)..][..8];
    let sum = ends.address_sum()
        + u32::from(protocol::UDP)
        + 2 * len as u32
        + u32::from(ends.client_port)
        + u32::from(ends.target_port)
        + u32::from(payload_sum);
    put_u16(udp, 0, ends.client_port);
    put_u16(udp, 2, ends.target_port);
    put_u16(udp, 4, len as u16);
    // RFC 768: a computed 0 is sent as all ones.
    put_u16(
        udp,
        6,
        match !fold(sum) {
            0 => 0xffff,
            check => check,
        },
    );
}

/// Where to cut an upper layer of `len` bytes into two fragments, if it is worth it: the first keeps the whole TCP
/// header (RFC 7112, section 5; RFC 3128) and ends on 8 bytes.
pub fn cut(len: usize) -> Option<usize> {
    let first = (len / 2).max(48).next_multiple_of(8);
    (first < len).then_some(first)
}

/// Bytes of a fragment that carries `len` bytes of the upper layer.
pub const fn fragment_len(v6: bool, len: usize) -> usize {
    ip_header_len(v6) + if v6 { 8 } else { 0 } + len
}

/// Writes the fragment `offset..offset + len` of the upper layer of `packet` (a whole packet of this module).
pub fn write_fragment(out: &mut [u8], packet: &[u8], v6: bool, id: u32, offset: usize, len: usize) {
    let header = ip_header_len(v6);
    let more = header + offset + len < packet.len();
    out[..header].copy_from_slice(&packet[..header]);
    if v6 {
        out[6] = protocol::FRAGMENT;
        put_u16(out, 4, 8 + len as u16);
        out[40] = packet[6];
        out[41] = 0;
        put_u16(out, 42, offset as u16 | u16::from(more));
        put_u32(out, 44, id);
        out[48..48 + len].copy_from_slice(&packet[header + offset..][..len]);
    } else {
        put_u16(out, 2, 20 + len as u16);
        put_u16(out, 4, id as u16);
        put_u16(out, 6, u16::from(more) << 13 | (offset / 8) as u16);
        put_u16(out, 10, 0);
        let check = !fold(sum_of(&out[..20]));
        put_u16(out, 10, check);
        out[20..20 + len].copy_from_slice(&packet[header + offset..][..len]);
    }
}

/// A segment from the core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flag bits.
    pub flags: u8,
    /// Window field as on the wire.
    pub window: u16,
    /// MSS option.
    pub mss: Option<u16>,
    /// Window scale option.
    pub scale: Option<u8>,
    /// Timestamp value of the core.
    pub timestamp: Option<u32>,
}

/// The upper layer of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper<'a> {
    /// A segment and its payload.
    Tcp(Segment, &'a [u8]),
    /// A datagram's payload.
    Udp(&'a [u8]),
    /// An ICMP error about a packet of this client, of the protocol given.
    Unreachable(u8),
}

/// A packet from the core to one of this worker's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// IPv6 or IPv4.
    pub v6: bool,
    /// Component of the client.
    pub component: u8,
    /// Slot of the client.
    pub slot: u8,
    /// Port of the client.
    pub client_port: u16,
    /// What it says.
    pub upper: Upper<'a>,
}

/// Reads a packet from the core; `None` when it is for nobody here (floods) or not readable.
#[inline]
pub fn parse_reply(packet: &[u8], worker: u8) -> Option<Reply<'_>> {
    let (v6, protocol, payload) = split_ip(packet)?;
    let client = if v6 { packet.get(24..40)? } else { packet.get(16..20)? };
    let (component, slot) = client_of(client, worker)?;
    let (client_port, upper) = match protocol {
        protocol::TCP => {
            let (segment, data) = parse_segment(payload)?;
            (get_u16(payload, 2)?, Upper::Tcp(segment, data))
        }
        protocol::UDP => (get_u16(payload, 2)?, Upper::Udp(payload.get(8..)?)),
        protocol::ICMP | protocol::ICMPV6 => {
            // Both families: 8 bytes, then the offending packet, whose source is the client.
            let (_, inner_protocol, inner) = split_ip(payload.get(8..)?)?;
            (get_u16(inner, 0)?, Upper::Unreachable(inner_protocol))
        }
        _ => return None,
    };
    Some(Reply { v6, component, slot, client_port, upper })
}

/// Family, protocol and upper layer of a packet without options or extension headers (the core sends none); a truncated
/// upper layer, as in ICMP errors, is returned as far as it goes.
#[inline]
pub fn split_ip(packet: &[u8]) -> Option<(bool, u8, &[u8])> {
    match packet.first()? >> 4 {
        4 => {
            let total = usize::from(get_u16(packet, 2)?).min(packet.len());
            Some((false, *packet.get(9)?, packet.get(20..total)?))
        }
        6 => {
            let end = (40 + usize::from(get_u16(packet, 4)?)).min(packet.len());
            Some((true, *packet.get(6)?, packet.get(40..end)?))
        }
        _ => None,
    }
}

#[inline]
fn parse_segment(tcp: &[u8]) -> Option<(Segment, &[u8])> {
    let header: &[u8; 20] = tcp.get(..20)?.try_into().ok()?;
    let header_len = usize::from(header[12] >> 4) * 4;
    let mut segment = Segment {
        seq: get_u32(header, 4)?,
        ack: get_u32(header, 8)?,
        flags: header[13],
        window: get_u16(header, 14)?,
        ..Segment::default()
    };
    let options = tcp.get(20..header_len)?;
    match options {
        [] => {}
        [1, 1, 8, 10, ..] if options.len() >= 12 => segment.timestamp = get_u32(options, 4),
        _ => parse_options(options, &mut segment),
    }
    Some((segment, tcp.get(header_len..)?))
}

fn parse_options(mut options: &[u8], segment: &mut Segment) {
    while let [kind, rest @ ..] = options {
        match (kind, rest) {
            (0, _) => return,
            (1, rest) => options = rest,
            (kind, [len, ..]) if usize::from(*len) >= 2 && options.len() >= usize::from(*len) => {
                let body = &options[2..usize::from(*len)];
                match (kind, body) {
                    (2, _) => segment.mss = get_u16(body, 0),
                    (3, [scale]) => segment.scale = Some(*scale),
                    (8, _) => segment.timestamp = get_u32(body, 0),
                    _ => {}
                }
                options = &options[usize::from(*len)..];
            }
            _ => return,
        }
    }
}

/// Whether all checksums of a whole packet without options hold; a UDP checksum of 0 is absent (RFC 768).
pub fn checksums_hold(packet: &[u8]) -> bool {
    let Some((v6, protocol, upper)) = split_ip(packet) else { return false };
    let header_good = v6 || fold(sum_of(&packet[..20])) == 0xffff;
    let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
    let pseudo =
        if protocol == protocol::ICMP { 0 } else { sum_of(addresses) + u32::from(protocol) + upper.len() as u32 };
    let absent = protocol == protocol::UDP && get_u16(upper, 6) == Some(0);
    header_good && (absent || fold(u32::from(fold(sum_of(upper))) + pseudo) == 0xffff)
}

#[cfg(test)]
mod tests {
    use t2s_core::wire::{ip::Ip, tcp::Tcp, udp::Udp};

    use super::*;

    fn ends(v6: bool) -> FlowAddresses {
        FlowAddresses { v6, worker: 3, component: 9, slot: 5, client_port: 40_000, target_port: 443 }
    }

    fn tcp_packet(v6: bool, fields: TcpFields, payload: &[u8]) -> Vec<u8> {
        let header = ip_header_len(v6) + fields.header_len();
        let mut packet = vec![0xaa; header + payload.len()];
        write_tcp(&mut packet, ends(v6), &fields, payload.len(), fold(sum_of(payload)));
        packet[header..].copy_from_slice(payload);
        packet
    }

    #[test]
    fn segments_of_every_shape_are_read_by_the_core() {
        let pattern = Pattern::new();
        for v6 in [false, true] {
            for timestamp in [None, Some((77, 88))] {
                for syn in [None, Some((1460, 5))] {
                    for len in [0, 1, 17, 1000] {
                        let fields = TcpFields { seq: 1 << 31, ack: 9, flags: 0x18, window: 501, timestamp, syn };
                        let packet = tcp_packet(v6, fields, pattern.at(3, len));
                        assert!(checksums_hold(&packet), "{fields:?} {len}");
                        let ip = Ip::parse(&packet).unwrap();
                        assert_eq!((ip.src, ip.dst), (ends(v6).client(), ends(v6).target()));
                        let tcp = Tcp::parse(&packet[usize::from(ip.payload)..]).unwrap();
                        assert_eq!(usize::from(tcp.header_len), fields.header_len());
                        assert_eq!(tcp.options.timestamp, timestamp);
                        assert_eq!(tcp.options.mss, syn.map(|s| s.0));
                        assert_eq!(tcp.options.window_scale, syn.map(|s| s.1));
                        assert_eq!(tcp.options.sack_permitted, syn.is_some());
                        assert_eq!((tcp.src_port, tcp.dst_port, tcp.window), (40_000, 443, 501));
                    }
                }
            }
        }
    }

    #[test]
    fn datagrams_are_read_by_the_core() {
        for v6 in [false, true] {
            let payload = b"hello";
            let header = ip_header_len(v6) + 8;
            let mut packet = vec![0; header + 5];
            write_udp(&mut packet, ends(v6), 5, fold(sum_of(payload)));
            packet[header..].copy_from_slice(payload);
            assert!(checksums_hold(&packet));
            let ip = Ip::parse(&packet).unwrap();
            let udp = Udp::parse(&packet[usize::from(ip.payload)..]).unwrap();
            assert_eq!((udp.src_port, udp.dst_port), (40_000, 443));
        }
    }

    #[test]
    fn a_broken_byte_breaks_a_checksum() {
        let packet = tcp_packet(false, TcpFields::default(), b"payload");
        for at in 0..packet.len() {
            let mut broken = packet.clone();
            broken[at] ^= 0x10;
            // The first bytes decide how the rest is read; everything else is covered by a sum.
            assert!(!checksums_hold(&broken), "byte {at}");
        }
    }

    #[test]
    fn fragments_carry_the_whole_packet() {
        let pattern = Pattern::new();
        for v6 in [false, true] {
            let packet = tcp_packet(v6, TcpFields::default(), pattern.at(0, 301));
            let header = ip_header_len(v6);
            let upper = packet.len() - header;
            let first = cut(upper).unwrap();
            let mut whole = Vec::new();
            for (offset, len) in [(0, first), (first, upper - first)] {
                let mut fragment = vec![0; fragment_len(v6, len)];
                write_fragment(&mut fragment, &packet, v6, 7, offset, len);
                let ip = Ip::parse(&fragment).unwrap();
                let seen = ip.fragment.unwrap();
                assert_eq!((seen.offset as usize, seen.more, seen.id), (offset, offset == 0, 7));
                whole.extend_from_slice(&fragment[fragment.len() - len..]);
            }
            assert_eq!(whole, &packet[header..]);
        }
        assert_eq!(cut(48), None);
    }

    #[test]
    fn payload_sums_agree_with_the_bytes() {
        let pattern = Pattern::new();
        let sums = PayloadSums::new(&pattern, 99);
        for offset in [0, 1, 255, 256, 1_000_003] {
            for len in [0, 1, 98, 99, 1400] {
                assert_eq!(sums.get(&pattern, offset, len), fold(sum_of(pattern.at(offset, len))));
                assert!(pattern.matches(pattern.at(offset, len), offset));
            }
            assert!(!pattern.matches(pattern.at(offset, 50), offset + 1));
            assert!(!pattern.matches(pattern.at(offset, 50), offset + 256), "a byte's worth apart is another place");
        }
    }

    #[test]
    fn a_patched_checksum_is_the_computed_one() {
        let mut packet = tcp_packet(false, TcpFields::default(), b"");
        let (old, new) = (get_u16(&packet, 12).unwrap(), 0x6440);
        put_u16(&mut packet, 12, new);
        let ip_check = patched(get_u16(&packet, 10).unwrap(), old, new);
        put_u16(&mut packet, 10, ip_check);
        let tcp_check = patched(get_u16(&packet, 36).unwrap(), old, new);
        put_u16(&mut packet, 36, tcp_check);
        assert!(checksums_hold(&packet));
    }

    #[test]
    fn truncated_replies_are_nobodys() {
        // A reply is a packet with its ends exchanged; for reading, the client's own address as target will do.
        let mut packet = tcp_packet(false, TcpFields { timestamp: Some((1, 2)), ..TcpFields::default() }, b"abc");
        let client = ends(false).client_v4();
        packet[16..20].copy_from_slice(&client);
        assert!(parse_reply(&packet, 3).is_some());
        for len in 0..20 + 32 {
            assert_eq!(parse_reply(&packet[..len], 3), None, "{len}");
        }
    }
}
