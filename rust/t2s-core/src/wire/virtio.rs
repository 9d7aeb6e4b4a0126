//! The virtio-net header that a TUN device opened with `IFF_VNET_HDR` puts before each packet
//! (`struct virtio_net_hdr` of `linux/virtio_net.h`, 10 bytes).
//!
//! Fields are in the *host's* byte order: TUN uses the legacy layout unless told otherwise (`TUNSETVNETLE`), and legacy
//! means native. Offload is a hint by the sender: what the header says is checked against the packet, and `hdr_len`,
//! which kernels fill carelessly, is never trusted.

use super::ip::Ip;
use super::{bytes, protocol};
use crate::checksum::{Kernel, Sum};
use crate::stats::DropReason;

/// Bytes of the header.
pub const VIRTIO_HEADER: usize = 10;
/// Flag: the checksum field holds the pseudo-header sum and is to be completed over `csum_start..`.
pub const F_NEEDS_CSUM: u8 = 1;
/// Flag: the checksum has been verified.
pub const F_DATA_VALID: u8 = 2;
/// Not a super-packet.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// UDP fragmentation offload: IP fragments, deprecated.
pub const GSO_UDP: u8 = 3;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP segmentation: datagrams of equal size.
pub const GSO_UDP_L4: u8 = 5;
/// Bit in `gso_type`: the TCP flow uses ECN.
pub const GSO_ECN: u8 = 0x80;

/// The header, in host values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioNetHdr {
    /// `F_*`.
    pub flags: u8,
    /// `GSO_*`.
    pub gso_type: u8,
    /// Bytes of all headers, as a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment of a super-packet.
    pub gso_size: u16,
    /// Where the checksum starts, bytes from the start of the packet.
    pub csum_start: u16,
    /// Where the checksum field is, bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VirtioNetHdr {
    /// Splits a read into header and packet.
    #[inline]
    pub fn decode(frame: &[u8]) -> Result<(Self, &[u8]), DropReason> {
        let Some((header, packet)) = frame.split_first_chunk::<VIRTIO_HEADER>() else {
            return Err(DropReason::Truncated);
        };
        let field = |at| u16::from_ne_bytes(bytes(header, at));
        let header = Self {
            flags: header[0],
            gso_type: header[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        };
        Ok((header, packet))
    }

    /// The bytes to be written before a packet.
    #[inline]
    #[must_use]
    pub const fn encode(&self) -> [u8; VIRTIO_HEADER] {
        let [hdr_len, gso_size, start, offset] = [
            self.hdr_len.to_ne_bytes(),
            self.gso_size.to_ne_bytes(),
            self.csum_start.to_ne_bytes(),
            self.csum_offset.to_ne_bytes(),
        ];
        [
            self.flags,
            self.gso_type,
            hdr_len[0],
            hdr_len[1],
            gso_size[0],
            gso_size[1],
            start[0],
            start[1],
            offset[0],
            offset[1],
        ]
    }

    /// Whether the transport checksum needs no verification: it is verified, or never left this machine.
    #[inline]
    #[must_use]
    pub const fn checksum_trusted(&self) -> bool {
        self.flags & (F_NEEDS_CSUM | F_DATA_VALID) != 0
    }

    /// The kind of super-packet without the ECN bit.
    #[inline]
    #[must_use]
    pub const fn gso(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    /// Checks the header against its packet: a known kind of super-packet that is what the packet is, with a segment
    /// size, and a checksum field inside the transport header of this packet.
    #[inline]
    pub fn check(&self, ip: &Ip) -> Result<(), DropReason> {
        if self.flags & F_NEEDS_CSUM != 0 {
            let want = match ip.protocol {
                protocol::TCP => 16,
                protocol::UDP => 6,
                protocol::ICMP | protocol::ICMPV6 => 2,
                _ => return Err(DropReason::BadOffload),
            };
            let end = u32::from(self.csum_start) + u32::from(self.csum_offset) + 2;
            if self.csum_start != ip.payload || self.csum_offset != want || end > ip.total {
                return Err(DropReason::BadOffload);
            }
        }
        let fits = match self.gso() {
            GSO_NONE => return Ok(()),
            GSO_TCPV4 => ip.is_v4() && ip.protocol == protocol::TCP,
            GSO_TCPV6 => !ip.is_v4() && ip.protocol == protocol::TCP,
            GSO_UDP_L4 => ip.protocol == protocol::UDP,
            _ => false,
        };
        if fits && self.gso_size != 0 && ip.fragment.is_none() { Ok(()) } else { Err(DropReason::BadOffload) }
    }

    /// Completes the checksum in software, for a device that does not; the header then asks for none.
    pub fn complete_checksum(&mut self, kernel: Kernel, packet: &mut [u8]) -> Result<(), DropReason> {
        if self.flags & F_NEEDS_CSUM == 0 {
            return Ok(());
        }
        let start = usize::from(self.csum_start);
        let field = start + usize::from(self.csum_offset);
        if field + 2 > packet.len() {
            return Err(DropReason::BadOffload);
        }
        let check = match kernel.sum(&packet[start..], Sum::ZERO).finish() {
            0 if self.csum_offset == 6 => 0xffff,
            check => check,
        };
        packet[field..field + 2].copy_from_slice(&check.to_be_bytes());
        self.flags &= !F_NEEDS_CSUM;
        Ok(())
    }
}
