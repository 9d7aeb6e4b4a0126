//! Transport checksums: verify, fill, and partial fill for a device that completes them.

use core::net::IpAddr;

use super::ip::Ip;
use super::{be16, protocol, upper_layer};
use crate::checksum::{Kernel, Sum, pseudo_header};

/// Whether the checksum of the upper layer is right: TCP, UDP (0 means "none" on IPv4 and is refused on IPv6, RFC 8200,
/// section 8.1), ICMP, `ICMPv6`. Other protocols, whose checksum is unknown here, are let through; a fragment, whose
/// datagram is not whole, is not valid.
#[inline]
pub fn verify_transport(kernel: Kernel, ip: &Ip, packet: &[u8]) -> bool {
    let Ok(segment) = upper_layer(ip, packet) else { return false };
    if ip.fragment.is_some() {
        return false;
    }
    let (segment, initial) = match ip.protocol {
        protocol::TCP if segment.len() >= 20 => (segment, transport_pseudo(ip, segment.len())),
        protocol::UDP if segment.len() >= 8 => {
            if be16(segment, 6) == 0 {
                return ip.is_v4();
            }
            let Some(segment) = segment.get(..usize::from(be16(segment, 4))) else { return false };
            (segment, transport_pseudo(ip, segment.len()))
        }
        protocol::ICMP if ip.is_v4() => (segment, Sum::ZERO),
        protocol::ICMPV6 if !ip.is_v4() => (segment, transport_pseudo(ip, segment.len())),
        protocol::TCP | protocol::UDP => return false,
        _ => return true,
    };
    kernel.sum(segment, initial).is_valid()
}

#[inline]
fn transport_pseudo(ip: &Ip, len: usize) -> Sum {
    pseudo_header(ip.src, ip.dst, ip.protocol, len as u32)
}

/// Offset of the checksum field in the transport header.
#[inline]
const fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        protocol::ICMP | protocol::ICMPV6 => Some(2),
        _ => None,
    }
}

/// Computes and writes the checksum of a TCP, UDP, ICMP or `ICMPv6` `segment` (header and payload).
///
/// # Panics
/// If the segment is shorter than its header; other protocols are left alone.
#[inline]
pub fn fill_transport_checksum(kernel: Kernel, src: IpAddr, dst: IpAddr, protocol: u8, segment: &mut [u8]) {
    fill_transport_checksum_parts(kernel, src, dst, protocol, segment, core::iter::empty());
}

/// The same for a segment whose payload is in further slices, of any lengths.
///
/// # Panics
/// As [`fill_transport_checksum`].
#[inline]
pub fn fill_transport_checksum_parts<'a>(
    kernel: Kernel,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    header: &mut [u8],
    payload: impl IntoIterator<Item = &'a [u8]>,
) {
    let Some(at) = checksum_at(protocol) else { return };
    header[at..at + 2].fill(0);
    let mut len = header.len();
    let mut sum = kernel.sum(header, Sum::ZERO);
    for part in payload {
        sum = sum.combine(kernel.sum(part, Sum::ZERO), len % 2 == 1);
        len += part.len();
    }
    if protocol != protocol::ICMP {
        sum = sum.combine(pseudo_header(src, dst, protocol, len as u32), false);
    }
    let check = match sum.finish() {
        // 0 would mean "no checksum" (RFC 768).
        0 if protocol == protocol::UDP => 0xffff,
        check => check,
    };
    header[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

/// Writes the sum of the pseudo-header alone, not complemented, into the checksum field of a TCP or UDP `header`: what
/// a device expects that completes checksums (`VIRTIO_NET_HDR_F_NEEDS_CSUM`). `len` counts header and payload, bytes.
///
/// # Panics
/// As [`fill_transport_checksum`].
#[inline]
pub fn fill_pseudo_sum(src: IpAddr, dst: IpAddr, protocol: u8, len: u32, header: &mut [u8]) {
    let Some(at) = checksum_at(protocol) else { return };
    let sum = pseudo_header(src, dst, protocol, len).fold();
    header[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
