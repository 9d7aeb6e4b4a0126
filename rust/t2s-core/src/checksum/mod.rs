//! The Internet checksum (RFC 1071): kernels behind one run-time dispatch, partial sums, incremental update.
//!
//! Promises: every [`Kernel`] gives the same [`Sum::fold`] for the same bytes; a kernel value exists only where the
//! CPU has its instructions. Refuses: nothing; any bytes of any length have a sum. The arithmetic is the
//! ones-complement sum of 16-bit words, which does not care about byte order (RFC 1071, section 2B), so words are
//! summed in the machine's order and swapped once at the end.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod swar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vectors;

use core::net::IpAddr;

pub use kernel::{Kernel, UnknownKernel};

/// A partial ones-complement sum: of some bytes, of a pseudo-header, or of both.
///
/// Congruent modulo 2^16 - 1 to the sum of 16-bit words in the machine's byte order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Adds one 64-bit word (four 16-bit words in the machine's order) with end-around carry.
    #[inline]
    #[must_use]
    pub(crate) const fn add_lane(self, lane: u64) -> Self {
        let (sum, carry) = self.0.overflowing_add(lane);
        Self(sum + carry as u64)
    }

    /// Adds a 16-bit field, given as a host value.
    #[inline]
    #[must_use]
    pub const fn add_u16(self, value: u16) -> Self {
        self.add_lane(value.to_be() as u64)
    }

    /// Adds a 32-bit field, given as a host value.
    #[inline]
    #[must_use]
    pub const fn add_u32(self, value: u32) -> Self {
        self.add_lane(value.to_be() as u64)
    }

    /// Appends the sum of bytes that follow; `other_at_odd_offset` says that an odd number of bytes precedes them
    /// (RFC 1071, section 2B: the bytes of the sum then change places).
    #[inline]
    #[must_use]
    pub const fn combine(self, other: Self, other_at_odd_offset: bool) -> Self {
        if other_at_odd_offset {
            self.add_lane(other.fold_native().swap_bytes() as u64)
        } else {
            self.add_lane(other.0)
        }
    }

    /// The 16-bit ones-complement sum, not complemented, as a host value to be written big-endian.
    #[inline]
    #[must_use]
    pub const fn fold(self) -> u16 {
        u16::from_be(self.fold_native())
    }

    /// The checksum: the complement of [`Sum::fold`], as a host value to be written big-endian.
    #[inline]
    #[must_use]
    pub const fn finish(self) -> u16 {
        !self.fold()
    }

    /// Whether this is the sum of bytes that carry their own right checksum: 0xffff. Bytes that are all zero sum to 0
    /// and are not valid, as in kernels.
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.fold_native() == 0xffff
    }

    const fn fold_native(self) -> u16 {
        // 64 → 33 → 17 → 16 bits and once more, because the last addition may carry.
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 32) + (sum & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        sum as u16
    }
}

/// The sum of a TCP, UDP or `ICMPv6` pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1); `len` is the length
/// of the upper-layer header and data, bytes. Addresses of different families have no pseudo-header: each is summed
/// as it is.
#[inline]
#[must_use]
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: u32) -> Sum {
    Sum::ZERO.add_u32(len).add_u16(u16::from(protocol)).add_addr(src).add_addr(dst)
}

impl Sum {
    /// Adds an address.
    #[inline]
    #[must_use]
    pub fn add_addr(self, addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => self.add_lane(u64::from(u32::from_ne_bytes(addr.octets()))),
            IpAddr::V6(addr) => {
                let octets = u128::from_ne_bytes(addr.octets());
                self.add_lane(octets as u64).add_lane((octets >> 64) as u64)
            }
        }
    }
}

/// The checksum after a 16-bit field changed (RFC 1624, equation 3: `HC' = ~(~HC + ~m + m')`); all host values.
///
/// Unlike RFC 1141's equation it never yields 0xffff for data that are not all zero. The corner that no update can see:
/// if the change makes *all* checksummed bytes zero, this yields 0x0000 where receivers want 0xffff (the sum of
/// nothing but zeros is 0, not 0xffff). No IPv4 header and no pseudo-header is all zero; an ICMP echo reply may be, see
/// [`crate::wire::icmp::reply_to_echo`].
#[inline]
#[must_use]
pub const fn update_u16(check: u16, old: u16, new: u16) -> u16 {
    let sum = (!check) as u32 + (!old) as u32 + new as u32;
    let sum = (sum >> 16) + (sum & 0xffff);
    !(((sum >> 16) + (sum & 0xffff)) as u16)
}

/// The checksum after a 32-bit field at an even offset changed; see [`update_u16`].
#[inline]
#[must_use]
pub const fn update_u32(check: u16, old: u32, new: u32) -> u16 {
    let check = update_u16(check, (old >> 16) as u16, (new >> 16) as u16);
    update_u16(check, old as u16, new as u16)
}
