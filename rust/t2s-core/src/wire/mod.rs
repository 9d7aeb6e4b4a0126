//! Wire formats: bytes are checked once, at a `parse` constructor; afterwards nothing can fail.
//!
//! Parsed headers are small `Copy` values that hold *offsets*, not slices, because the bytes live in a pooled buffer
//! that is moved. A `…Repr` is what we want to send; `emit` writes it. Every refusal is a
//! [`DropReason`]; no input panics.

pub mod icmp;
pub mod ip;
pub mod tcp;
#[cfg(test)]
mod tests;
mod transport;
pub mod udp;
pub mod virtio;

pub use icmp::{Icmp, IcmpError};
pub use ip::{Fragment, Ip, IpRepr};
pub use tcp::{Flags, SackBlocks, SeqNumber, Tcp, TcpRepr};
pub use transport::{fill_pseudo_sum, fill_transport_checksum, fill_transport_checksum_parts, verify_transport};
pub use udp::{Udp, UdpRepr};
pub use virtio::VirtioNetHdr;

use crate::stats::DropReason;

/// IP protocol numbers (IANA) of the upper layers that a tunnel meets.
pub mod protocol {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// `ICMPv6` (RFC 4443).
    pub const ICMPV6: u8 = 58;
}

/// The `N` bytes at `at`; for offsets that a length check has covered, so that the check folds away.
#[inline(always)]
fn bytes<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&data[at..at + N]);
    out
}

/// The big-endian 16-bit value at `at`; same condition as [`bytes`].
#[inline(always)]
fn be16(data: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes(data, at))
}

/// The big-endian 32-bit value at `at`; same condition as [`bytes`].
#[inline(always)]
fn be32(data: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes(data, at))
}

/// The part of `packet` above the IP header that `ip` describes: transport header and payload, without padding.
#[inline]
pub fn upper_layer<'a>(ip: &Ip, packet: &'a [u8]) -> Result<&'a [u8], DropReason> {
    packet.get(usize::from(ip.payload)..ip.total as usize).ok_or(DropReason::Truncated)
}
