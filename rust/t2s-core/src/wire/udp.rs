//! UDP (RFC 768).
//!
//! Refuses: datagrams whose length field contradicts the packet, and port 0, to which no reply can be sent.

use super::be16;
use crate::stats::DropReason;

/// Bytes of the header.
pub const UDP_HEADER: usize = 8;

/// A checked UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Source port; not 0.
    pub src_port: u16,
    /// Destination port; not 0.
    pub dst_port: u16,
    /// Bytes of header and payload; bytes of the segment beyond are not part of the datagram.
    pub len: u16,
}

impl Udp {
    /// Checks the header; the checksum is [`super::verify_transport`]'s.
    #[inline]
    pub fn parse(segment: &[u8]) -> Result<Self, DropReason> {
        let Some(header) = segment.first_chunk::<UDP_HEADER>() else { return Err(DropReason::UdpMalformed) };
        let udp = Self { src_port: be16(header, 0), dst_port: be16(header, 2), len: be16(header, 4) };
        let len = usize::from(udp.len);
        if len < UDP_HEADER || len > segment.len() || udp.src_port == 0 || udp.dst_port == 0 {
            return Err(DropReason::UdpMalformed);
        }
        Ok(udp)
    }

    /// Bytes of the payload.
    #[inline]
    pub const fn payload_len(self) -> usize {
        self.len as usize - UDP_HEADER
    }
}

/// A UDP header to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpRepr {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Bytes of the payload; at most 65,527.
    pub payload_len: u16,
}

impl UdpRepr {
    /// Writes the header to the start of `out`, checksum field 0.
    ///
    /// # Panics
    /// If `out` is shorter than [`UDP_HEADER`].
    #[inline]
    pub fn emit(self, out: &mut [u8]) {
        let out = out.first_chunk_mut::<UDP_HEADER>().expect("the caller reserved UDP_HEADER bytes");
        debug_assert!(usize::from(self.payload_len) + UDP_HEADER <= 0xffff);
        out[0..2].copy_from_slice(&self.src_port.to_be_bytes());
        out[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        out[4..6].copy_from_slice(&(UDP_HEADER as u16 + self.payload_len).to_be_bytes());
        out[6..8].fill(0);
    }
}
