//! NEON kernel: `uadalp` adds neighbouring words and accumulates them in 32 bits, one instruction for 16 bytes.
#![allow(unsafe_code)]

use core::arch::aarch64::{
    uint8x16_t, uint32x4_t, vaddlvq_u32, vdupq_n_u32, vld1q_u8, vpadalq_u16, vreinterpretq_u16_u8, vst1q_u8,
};

use super::{Sum, swar};

/// Bytes of a vector.
const VECTOR: usize = 16;
/// Bytes of a turn of the main loop: four vectors, so that four additions are in flight.
const BLOCK: usize = 4 * VECTOR;
/// Bytes that 32-bit lanes can take: each vector adds at most 2 * 65,535 to a lane, so 32,768 vectors (512 KiB) fit
/// into one; four sums share them.
const RUN: usize = 512 * 1024;
/// Inputs below this are faster in 64-bit lanes.
const SHORT: usize = 64;

/// Holding the value proves that the CPU has NEON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neon(());

impl Neon {
    /// The kernel, if this CPU can run it.
    pub(super) fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    /// Adds the words of `data`; an odd last byte counts as the first of its word.
    #[inline]
    pub(super) fn sum(self, data: &[u8], initial: Sum) -> Sum {
        if data.len() < SHORT {
            return swar::sum(data, initial);
        }
        // SAFETY: `self` exists only if the CPU has NEON.
        unsafe { sum(data, initial) }
    }

    /// Copies `src` to `dst`, of the same length, and adds it.
    #[inline]
    pub(super) fn copy_and_sum(self, dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
        if src.len() < SHORT {
            return swar::copy_and_sum(dst, src, initial);
        }
        // SAFETY: `self` exists only if the CPU has NEON.
        unsafe { copy_and_sum(dst, src, initial) }
    }
}

#[target_feature(enable = "neon")]
fn sum(data: &[u8], initial: Sum) -> Sum {
    let mut total = initial;
    for data in data.chunks(RUN) {
        let mut sums = [vdupq_n_u32(0); 4];
        let (blocks, rest) = data.as_chunks::<BLOCK>();
        for block in blocks {
            let (vectors, _) = block.as_chunks::<VECTOR>();
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = add_words(*sum, load(vector));
            }
        }
        total = swar::sum(rest, horizontal(sums, total));
    }
    total
}

#[target_feature(enable = "neon")]
fn copy_and_sum(dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
    let mut total = initial;
    for (dst, src) in dst.chunks_mut(RUN).zip(src.chunks(RUN)) {
        let mut sums = [vdupq_n_u32(0); 4];
        let (blocks, rest) = src.as_chunks::<BLOCK>();
        let (dst_blocks, dst_rest) = dst.as_chunks_mut::<BLOCK>();
        for (dst_block, block) in dst_blocks.iter_mut().zip(blocks) {
            let (vectors, _) = block.as_chunks::<VECTOR>();
            let (dst_vectors, _) = dst_block.as_chunks_mut::<VECTOR>();
            for ((sum, vector), dst) in sums.iter_mut().zip(vectors).zip(dst_vectors) {
                let vector = load(vector);
                store(dst, vector);
                *sum = add_words(*sum, vector);
            }
        }
        total = swar::copy_and_sum(dst_rest, rest, horizontal(sums, total));
    }
    total
}

#[inline]
#[target_feature(enable = "neon")]
fn load(vector: &[u8; VECTOR]) -> uint8x16_t {
    // SAFETY: the reference is to 16 readable bytes, and `vld1q_u8` needs no alignment.
    unsafe { vld1q_u8(vector.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(out: &mut [u8; VECTOR], vector: uint8x16_t) {
    // SAFETY: the reference is to 16 writable bytes, and `vst1q_u8` needs no alignment.
    unsafe { vst1q_u8(out.as_mut_ptr(), vector) }
}

/// Adds each pair of words to a 32-bit lane.
#[inline]
#[target_feature(enable = "neon")]
fn add_words(sum: uint32x4_t, words: uint8x16_t) -> uint32x4_t {
    vpadalq_u16(sum, vreinterpretq_u16_u8(words))
}

/// Adds all lanes, in 64 bits.
#[inline]
#[target_feature(enable = "neon")]
fn horizontal(sums: [uint32x4_t; 4], initial: Sum) -> Sum {
    let mut total = initial;
    for sum in sums {
        total = total.add_lane(vaddlvq_u32(sum));
    }
    total
}
