//! ICMP (RFC 792) and `ICMPv6` (RFC 4443): echo, and the errors that a tunnel sends for an upstream.
//!
//! Refuses to send an error about an ICMP error, a fragment other than the first, or a packet to a group
//! (RFC 1122, section 3.2.2; RFC 4443, section 2.4 e), or "nothing follows" as a protocol that is not spoken (RFC 8200,
//! section 4.7); such a call returns `None`.

use core::net::IpAddr;

use super::ip::{Ip, IpRepr, NO_NEXT_HEADER, next_header_at};
use super::tcp::SeqNumber;
use super::{be16, be32, bytes, fill_transport_checksum, protocol};
use crate::checksum::{Kernel, update_u16};
use crate::stats::DropReason;

/// Bytes of the header of echo and error messages.
pub const ICMP_HEADER: usize = 8;
/// Longest ICMP error over IPv4, bytes (RFC 1812, section 4.3.2.3).
pub const ERROR_MAX_V4: usize = 576;
/// Longest `ICMPv6` error, bytes: the minimum MTU (RFC 4443, section 2.4 c).
pub const ERROR_MAX_V6: usize = 1280;

/// Time to live of errors that we send; the kernel at the other end is one hop away, RFC 1700 recommends 64.
const ERROR_TTL: u8 = 64;

/// A checked ICMP or `ICMPv6` message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// Echo request.
    EchoRequest(Echo),
    /// Echo reply.
    EchoReply(Echo),
    /// An error about a packet that was sent; the packet's start follows the 8 bytes of header.
    Error {
        /// What happened.
        error: IcmpError,
    },
    /// Any other type.
    Other {
        /// The type field.
        kind: u8,
    },
}

/// Identifier and sequence number; data follow the 8 bytes of header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Identifier.
    pub ident: u16,
    /// Sequence number.
    pub sequence: u16,
}

/// Why a packet was not delivered, in words of both versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// No route to the network (v4: 3/0; v6: 1/0).
    NetUnreachable,
    /// The host does not answer (v4: 3/1; v6: 1/3).
    HostUnreachable,
    /// Nobody listens there (v4: 3/3; v6: 1/4).
    PortUnreachable,
    /// The protocol is not spoken (v4: 3/2; v6: 4/1).
    ProtocolUnreachable,
    /// Forbidden (v4: 3/13; v6: 1/1).
    Prohibited,
    /// Larger than the next link takes (v4: 3/4 of RFC 1191; v6: 2/0), with that link's MTU in bytes.
    TooBig {
        /// MTU, bytes.
        mtu: u32,
    },
    /// A header that is not understood (v4: 12; v6: 4).
    ParameterProblem {
        /// 0: an erroneous field, 1: an unknown next header, 2: an unknown option (v6).
        code: u8,
        /// Offset of what is not understood, bytes.
        pointer: u32,
    },
    /// Hop limit or reassembly time exceeded (v4: 11; v6: 3).
    TimeExceeded {
        /// 0: hop limit, 1: reassembly.
        code: u8,
    },
    /// Another code of an error type.
    Other {
        /// The type field.
        kind: u8,
        /// The code field.
        code: u8,
    },
}

impl Icmp {
    /// Checks a message, whose checksum is [`super::verify_transport`]'s.
    pub fn parse(ip: &Ip, message: &[u8]) -> Result<Self, DropReason> {
        let Some(header) = message.first_chunk::<ICMP_HEADER>() else { return Err(DropReason::IcmpMalformed) };
        let echo = Echo { ident: be16(header, 4), sequence: be16(header, 6) };
        let (kind, code) = (header[0], header[1]);
        Ok(match (ip.is_v4(), ip.protocol) {
            (true, protocol::ICMP) => match kind {
                8 if code == 0 => Self::EchoRequest(echo),
                0 if code == 0 => Self::EchoReply(echo),
                0 | 8 => return Err(DropReason::IcmpMalformed),
                3 => Self::Error {
                    error: match code {
                        0 => IcmpError::NetUnreachable,
                        1 => IcmpError::HostUnreachable,
                        2 => IcmpError::ProtocolUnreachable,
                        3 => IcmpError::PortUnreachable,
                        4 => IcmpError::TooBig { mtu: u32::from(be16(header, 6)) },
                        13 => IcmpError::Prohibited,
                        code => IcmpError::Other { kind, code },
                    },
                },
                11 => Self::Error { error: IcmpError::TimeExceeded { code } },
                12 => Self::Error { error: IcmpError::ParameterProblem { code, pointer: u32::from(header[4]) } },
                // Source quench, redirect (RFC 1122, section 3.2.2).
                4 | 5 => Self::Error { error: IcmpError::Other { kind, code } },
                kind => Self::Other { kind },
            },
            (false, protocol::ICMPV6) => match (kind, code) {
                (128, 0) => Self::EchoRequest(echo),
                (129, 0) => Self::EchoReply(echo),
                (128 | 129, _) => return Err(DropReason::IcmpMalformed),
                (1, 0) => Self::Error { error: IcmpError::NetUnreachable },
                (1, 1) => Self::Error { error: IcmpError::Prohibited },
                (1, 3) => Self::Error { error: IcmpError::HostUnreachable },
                (1, 4) => Self::Error { error: IcmpError::PortUnreachable },
                (2, _) => Self::Error { error: IcmpError::TooBig { mtu: be32(header, 4) } },
                (3, code) => Self::Error { error: IcmpError::TimeExceeded { code } },
                (4, 1) => Self::Error { error: IcmpError::ProtocolUnreachable },
                (4, code) => Self::Error { error: IcmpError::ParameterProblem { code, pointer: be32(header, 4) } },
                (0..=127, code) => Self::Error { error: IcmpError::Other { kind, code } },
                (kind, _) => Self::Other { kind },
            },
            _ => return Err(DropReason::IcmpMalformed),
        })
    }
}

/// What an ICMP error says of the packet that it is about: its headers' start, with the first 8 bytes behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol number of the upper layer.
    pub protocol: u8,
    /// Bytes of the whole packet, as its header said.
    pub total: u32,
    /// The first 8 bytes of the upper layer: ports and, of TCP, the sequence number.
    pub start: [u8; 8],
}

impl Quote {
    /// Reads what follows the 8 bytes of an error's header. `None` if it is too short, of another family than the
    /// error, or a fragment other than the first; a router may have changed checksum and time to live, so these are not
    /// looked at.
    pub fn parse(v4: bool, quoted: &[u8]) -> Option<Self> {
        let (src, dst, protocol, total, at): (IpAddr, IpAddr, u8, u32, usize) = if v4 {
            let header = quoted.first_chunk::<20>().filter(|header| header[0] >> 4 == 4)?;
            if be16(header, 6) & 0x1fff != 0 {
                return None;
            }
            let (src, dst): ([u8; 4], [u8; 4]) = (bytes(header, 12), bytes(header, 16));
            (src.into(), dst.into(), header[9], be16(header, 2).into(), usize::from(header[0] & 0xf) * 4)
        } else {
            let header = quoted.first_chunk::<40>().filter(|header| header[0] >> 4 == 6)?;
            let (src, dst): ([u8; 16], [u8; 16]) = (bytes(header, 8), bytes(header, 24));
            let total = 40 + u32::from(be16(header, 4));
            let (protocol, at) = match (header[6], quoted.get(40..)?.first_chunk::<8>()) {
                (FRAGMENT, Some(part)) if be16(part, 2) & 0xfff8 == 0 => (part[0], 48),
                (FRAGMENT, _) => return None,
                (protocol, _) => (protocol, 40),
            };
            (src.into(), dst.into(), protocol, total, at)
        };
        Some(Self { src, dst, protocol, total, start: *quoted.get(at..)?.first_chunk()? })
    }

    /// Source and destination port of TCP or UDP.
    pub fn ports(&self) -> (u16, u16) {
        (be16(&self.start, 0), be16(&self.start, 2))
    }

    /// The sequence number of TCP.
    pub fn seq(&self) -> SeqNumber {
        SeqNumber(be32(&self.start, 4))
    }
}

/// IPv6 fragment header.
const FRAGMENT: u8 = 44;

impl IcmpError {
    /// Type, code and the second word of the header of an error about `original`.
    fn fields(self, v4: bool, original: &[u8]) -> (u8, u8, u32) {
        match (self, v4) {
            (Self::NetUnreachable, true) => (3, 0, 0),
            (Self::HostUnreachable, true) => (3, 1, 0),
            (Self::ProtocolUnreachable, true) => (3, 2, 0),
            (Self::PortUnreachable, true) => (3, 3, 0),
            (Self::TooBig { mtu }, true) => (3, 4, mtu.min(0xffff)),
            (Self::Prohibited, true) => (3, 13, 0),
            (Self::TimeExceeded { code }, true) => (11, code, 0),
            (Self::NetUnreachable, false) => (1, 0, 0),
            (Self::Prohibited, false) => (1, 1, 0),
            (Self::HostUnreachable, false) => (1, 3, 0),
            (Self::PortUnreachable, false) => (1, 4, 0),
            (Self::TooBig { mtu }, false) => (2, 0, mtu),
            (Self::TimeExceeded { code }, false) => (3, code, 0),
            (Self::ParameterProblem { code, pointer }, true) => (12, code, pointer << 24),
            (Self::ParameterProblem { code, pointer }, false) => (4, code, pointer),
            // Unrecognized next header; the pointer is that of the field that names it (RFC 4443, section 3.4).
            (Self::ProtocolUnreachable, false) => (4, 1, next_header_at(original)),
            (Self::Other { kind, code }, _) => (kind, code, 0),
        }
    }
}

/// Builds the whole IP packet of an error about `original` (a packet of which `ip` was parsed) into `out` and returns
/// its length. It comes from the original's destination unless `from` says otherwise, and quotes as much of the
/// original as the standards and `out` allow.
///
/// `None` if no error may be sent about this packet, or if `out` has no room for the headers, the original's IP header
/// and 8 bytes more (RFC 792).
#[must_use]
pub fn build_error(
    kernel: Kernel,
    ip: &Ip,
    original: &[u8],
    from: Option<IpAddr>,
    error: IcmpError,
    out: &mut [u8],
) -> Option<usize> {
    let original = original.get(..ip.total as usize)?;
    let upper = original.get(usize::from(ip.payload)..)?;
    if !ip.dst_is_unicast() || ip.fragment.is_some_and(|fragment| fragment.offset != 0) || is_icmp_error(ip, upper) {
        return None;
    }
    if !ip.is_v4() && ip.protocol == NO_NEXT_HEADER && error == IcmpError::ProtocolUnreachable {
        return None;
    }
    let src = from.unwrap_or(ip.dst);
    if src.is_ipv4() != ip.is_v4() {
        return None;
    }
    let mut repr = IpRepr {
        src,
        dst: ip.src,
        protocol: if ip.is_v4() { protocol::ICMP } else { protocol::ICMPV6 },
        ttl: ERROR_TTL,
        ecn: 0,
        payload_len: 0,
        id: 0,
        dont_fragment: false,
    };
    let headers = repr.header_len() + ICMP_HEADER;
    let room = out.len().min(if ip.is_v4() { ERROR_MAX_V4 } else { ERROR_MAX_V6 }).checked_sub(headers)?;
    let quoted = original.len().min(room);
    if quoted < original.len().min(usize::from(ip.payload) + 8) {
        return None;
    }
    repr.payload_len = (ICMP_HEADER + quoted) as u32;
    repr.emit(out);
    let message = &mut out[repr.header_len()..headers + quoted];
    let (kind, code, word) = error.fields(ip.is_v4(), original);
    message[0] = kind;
    message[1] = code;
    message[2..4].fill(0);
    message[4..8].copy_from_slice(&word.to_be_bytes());
    message[8..].copy_from_slice(&original[..quoted]);
    fill_transport_checksum(kernel, repr.src, repr.dst, repr.protocol, message);
    Some(headers + quoted)
}

/// Whether `upper` is (or, cut short, may be) an ICMP error.
fn is_icmp_error(ip: &Ip, upper: &[u8]) -> bool {
    match (ip.protocol, upper.first()) {
        (protocol::ICMP, kind) => !matches!(kind, Some(0 | 8 | 9 | 10 | 13..=18)),
        (protocol::ICMPV6, kind) => !matches!(kind, Some(128..=255)),
        _ => false,
    }
}

/// Iterations an echo request into its reply in place: type, and checksum incrementally (the pseudo-header's sum does
/// not change when addresses change places). The caller iterations the IP header round.
pub fn reply_to_echo(v4: bool, message: &mut [u8]) -> Result<(), DropReason> {
    let Some(header) = message.first_chunk_mut::<ICMP_HEADER>() else { return Err(DropReason::IcmpMalformed) };
    let (request, reply) = if v4 { (8, 0) } else { (128, 129) };
    if header[0] != request {
        return Err(DropReason::IcmpMalformed);
    }
    let old = be16(header, 0);
    header[0] = reply;
    let check = update_u16(be16(header, 2), old, be16(header, 0));
    header[2..4].copy_from_slice(&check.to_be_bytes());
    // Identifier, sequence number and data all zero: the sum of zeros is 0, so the checksum is 0xffff, which an update
    // cannot know (see `update_u16`).
    if v4 && check == 0 && message.iter().all(|byte| *byte == 0) {
        message[2..4].fill(0xff);
    }
    Ok(())
}

/// Writes an echo message header to the start of `message`, whose data are there already, with its checksum.
///
/// # Panics
/// If `message` is shorter than [`ICMP_HEADER`].
pub fn emit_echo(kernel: Kernel, src: IpAddr, dst: IpAddr, reply: bool, echo: Echo, message: &mut [u8]) {
    let v4 = src.is_ipv4();
    let header = message.first_chunk_mut::<ICMP_HEADER>().expect("the caller reserved ICMP_HEADER bytes");
    header[0] = match (v4, reply) {
        (true, false) => 8,
        (true, true) => 0,
        (false, false) => 128,
        (false, true) => 129,
    };
    header[1] = 0;
    header[4..6].copy_from_slice(&echo.ident.to_be_bytes());
    header[6..8].copy_from_slice(&echo.sequence.to_be_bytes());
    let protocol = if v4 { protocol::ICMP } else { protocol::ICMPV6 };
    fill_transport_checksum(kernel, src, dst, protocol, message);
}
