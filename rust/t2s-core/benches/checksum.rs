//! All checksum kernels beside the loop of RFC 1071, `memcpy` and the `internet-checksum` crate.
//!
//! `cargo bench -p t2s-core --bench checksum`. Every kernel's answer is checked against RFC 1071 before it is timed.
//! `auto` is the kernel that a stack would use.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use t2s_core::checksum::{Kernel, Sum};

const SIZES: &[usize] = &[20, 64, 256, 1500, 9000, 65_536];
/// Kernels by name; those that this CPU cannot run are skipped.
const KERNELS: &[&str] = &["scalar", "swar", "avx2", "avx512", "neon"];

fn main() {
    for kernel in Kernel::available() {
        for &size in SIZES {
            for len in [size, size - 1] {
                let data = bytes(len);
                assert_eq!(kernel.sum(&data, Sum::ZERO).finish(), rfc_1071(&data), "{} {len}", kernel.name());
                let mut copy = vec![0; len];
                assert_eq!(kernel.copy_and_sum(&mut copy, &data, Sum::ZERO).finish(), rfc_1071(&data));
                assert_eq!(copy, data);
                assert_eq!(u16::from_be_bytes(internet_checksum::checksum(&data)), rfc_1071(&data));
            }
        }
    }
    divan::main();
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

/// The example code of RFC 1071, section 4.1.
fn rfc_1071(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn bench(bencher: Bencher, size: usize, mut checksum: impl FnMut(&[u8]) -> u16 + Sync + Send + Copy) {
    let data = bytes(size);
    bencher.counter(BytesCount::new(size)).bench_local(|| checksum(black_box(&data)));
}

#[divan::bench(args = SIZES, consts = [0, 1, 2, 3, 4])]
fn kernel<const INDEX: usize>(bencher: Bencher, size: usize) {
    let Ok(kernel) = Kernel::by_name(KERNELS[INDEX]) else { return };
    bench(bencher, size, |data| kernel.sum(data, Sum::ZERO).finish());
}

#[divan::bench(args = SIZES)]
fn auto(bencher: Bencher, size: usize) {
    let kernel = Kernel::auto();
    bench(bencher, size, |data| kernel.sum(data, Sum::ZERO).finish());
}

#[divan::bench(name = "internet-checksum crate", args = SIZES)]
fn internet_checksum_crate(bencher: Bencher, size: usize) {
    bench(bencher, size, |data| u16::from_be_bytes(internet_checksum::checksum(data)));
}

#[divan::bench(args = SIZES)]
fn memcpy(bencher: Bencher, size: usize) {
    let data = bytes(size);
    let mut copy = vec![0; size];
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        black_box(&mut copy[..]).copy_from_slice(black_box(&data));
    });
}

#[divan::bench(args = SIZES)]
fn auto_copy_and_sum(bencher: Bencher, size: usize) {
    let kernel = Kernel::auto();
    let data = bytes(size);
    let mut copy = vec![0; size];
    bencher
        .counter(BytesCount::new(size))
        .bench_local(|| kernel.copy_and_sum(black_box(&mut copy[..]), black_box(&data), Sum::ZERO).finish());
}
