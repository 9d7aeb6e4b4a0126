//! Kernels against a naive twin over lengths, offsets and extreme bytes; partial sums; incremental update.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{Kernel, Sum, pseudo_header, update_u16, update_u32};

/// RFC 1071 in the plainest words.
fn naive(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Bytes without a pattern that a sum could hide.
fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

/// Sums and copies with every kernel and compares with the twin; guard bytes show writes outside.
fn check(data: &[u8]) {
    let want = naive(data);
    for kernel in Kernel::available() {
        let context = (kernel.name(), data.len());
        assert_eq!(kernel.sum(data, Sum::ZERO).fold(), want, "sum {context:?}");
        let mut copy = vec![0xa5; data.len() + 2];
        let sum = kernel.copy_and_sum(&mut copy[1..=data.len()], data, Sum::ZERO);
        assert_eq!(sum.fold(), want, "copy {context:?}");
        assert_eq!((copy[0], &copy[1..=data.len()], copy[data.len() + 1]), (0xa5, data, 0xa5), "{context:?}");
    }
}

#[test]
fn example_of_rfc_1071() {
    // Section 3.
    check(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
    assert_eq!(naive(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
}

#[test]
fn every_length_to_9001() {
    let data = bytes(9001);
    for len in 0..=data.len() {
        check(&data[..len]);
    }
}

#[test]
fn every_alignment_of_short_and_packet_lengths() {
    let data = bytes(2048);
    for start in 0..64 {
        for len in (0..260).chain([1459, 1460, 1500]) {
            check(&data[start..start + len]);
        }
    }
}

#[test]
fn extreme_bytes_and_more_than_a_run_of_lanes() {
    for byte in [0x00, 0x01, 0x7f, 0x80, 0xff] {
        for len in [0, 1, 63, 64, 1500, 65_535, 524_287, 524_288, 524_289, 524_300, 1_300_001] {
            check(&vec![byte; len]);
        }
    }
}

#[test]
fn batch_is_each_alone() {
    let data = bytes(3000);
    let packets: Vec<&[u8]> = (0..40).map(|n| &data[n..n * 70]).filter(|data| !data.is_empty()).collect();
    for kernel in Kernel::available() {
        let mut out = vec![0; packets.len()];
        kernel.sum_batch(&packets, &mut out);
        for (packet, out) in packets.iter().zip(out) {
            assert_eq!(out, !naive(packet));
        }
    }
}

#[test]
fn names_find_kernels() {
    for kernel in Kernel::available() {
        assert_eq!(Kernel::by_name(kernel.name()), Ok(kernel));
    }
    assert_eq!(Kernel::by_name("auto"), Ok(Kernel::auto()));
    assert!(Kernel::available().contains(&Kernel::auto()));
    let error = Kernel::by_name("mmx").expect_err("there is no such kernel").to_string();
    assert!(error.contains("`mmx`") && error.contains("scalar, swar"), "{error}");
}

#[test]
#[should_panic(expected = "equal lengths")]
fn copy_of_unequal_lengths_panics() {
    let _ = Kernel::auto().copy_and_sum(&mut [0; 3], &[0; 4], Sum::ZERO);
}

#[test]
fn pseudo_headers_are_their_bytes() {
    let (src, dst) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 255));
    let want = [&src.octets()[..], &dst.octets(), &[0, 17], &1234u16.to_be_bytes()].concat();
    assert_eq!(pseudo_header(IpAddr::V4(src), IpAddr::V4(dst), 17, 1234).fold(), naive(&want));
    let (src, dst) = (Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 2, 3, 4, 0xffff), Ipv6Addr::new(0xfd00, 9, 8, 7, 6, 5, 4, 3));
    let want = [&src.octets()[..], &dst.octets(), &70_000u32.to_be_bytes(), &[0, 0, 0, 6]].concat();
    assert_eq!(pseudo_header(IpAddr::V6(src), IpAddr::V6(dst), 6, 70_000).fold(), naive(&want));
}

#[test]
fn incremental_update_example_of_rfc_1624() {
    // Section 4: a header with checksum 0xdd2f, a field that changes from 0x5555 to 0x3285, new checksum 0x0000 (where
    // RFC 1141 gave 0xffff).
    assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
}

#[test]
fn incremental_update_that_changes_nothing_keeps_0x0000() {
    // ~(~0x0000 + ~m + m) = ~(0xffff + 0xffff) = 0x0000: data that are not all zero keep their one right checksum.
    assert_eq!(update_u16(0x0000, 0x1234, 0x1234), 0x0000);
    assert_eq!(update_u32(0x0000, 0xffff_0000, 0xffff_0000), 0x0000);
}

proptest! {
    #[test]
    fn parts_combine_at_any_split(data in prop::collection::vec(any::<u8>(), 0..600), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(data.len() + 1)).collect();
        cuts.sort_unstable();
        for kernel in Kernel::available() {
            let mut sum = Sum::ZERO;
            let mut at = 0;
            for cut in cuts.iter().copied().chain([data.len()]) {
                sum = sum.combine(kernel.sum(&data[at..cut], Sum::ZERO), at % 2 == 1);
                at = cut;
            }
            prop_assert_eq!(sum.fold(), naive(&data));
        }
    }

    #[test]
    fn incremental_update_is_full_computation(mut data in prop::collection::vec(any::<u8>(), 4..80), at in any::<prop::sample::Index>(), new in any::<u32>()) {
        data.truncate(data.len() & !1);
        let at = at.index(data.len() / 2 - 1) * 2;
        let check = !naive(&data);
        let old = u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
        data[at..at + 4].copy_from_slice(&new.to_be_bytes());
        let full = !naive(&data);
        let updated = update_u32(check, old, new);
        // Data that are all zero now: 0xffff and 0x0000 both verify, RFC 1624 gives either.
        prop_assert!(updated == full || data.iter().all(|byte| *byte == 0) && updated == 0, "{updated:#x} {full:#x}");
    }

    #[test]
    fn fields_are_their_bytes(initial in any::<u64>(), short in any::<u16>(), long in any::<u32>()) {
        let sum = Sum::ZERO.add_lane(initial).add_u16(short).add_u32(long);
        let bytes = [&initial.to_ne_bytes()[..], &short.to_be_bytes(), &long.to_be_bytes()].concat();
        prop_assert_eq!(sum.fold(), naive(&bytes));
    }

    #[test]
    fn right_checksums_verify(data in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut data = data;
        data.truncate(data.len() & !1);
        data.extend((!naive(&data)).to_be_bytes());
        let sum = Kernel::auto().sum(&data, Sum::ZERO);
        prop_assert!(sum.is_valid());
        prop_assert_eq!(sum.finish(), 0);
    }
}
