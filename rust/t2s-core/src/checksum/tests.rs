//! Kernels against a naive twin, partial sums, incremental update.

use super::{Kernel, Sum, update_u16};

/// RFC 1071 in the plainest words.
fn naive(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn example_of_rfc_1071() {
    let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    for kernel in Kernel::available() {
        assert_eq!(kernel.sum(&data, Sum::ZERO).fold(), 0xddf2, "{}", kernel.name());
    }
}

#[test]
fn kernels_agree_with_naive() {
    let data: Vec<u8> = (0..600u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for kernel in Kernel::available() {
        for len in 0..data.len() {
            assert_eq!(kernel.sum(&data[..len], Sum::ZERO).fold(), naive(&data[..len]), "{} {len}", kernel.name());
        }
    }
}

#[test]
fn incremental_update_example_of_rfc_1624() {
    // Section 4: header with checksum 0xdd2f, field changes from 0x5555 to 0x3285, new checksum 0x0000.
    assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
}
