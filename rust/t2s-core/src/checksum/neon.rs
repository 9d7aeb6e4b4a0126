//! NEON kernel: `uadalp` adds neighbouring words and accumulates them in 32 bits, one instruction for 16 bytes.
#![allow(unsafe_code)]

use core::arch::aarch64::{
    uint8x16_t, uint32x4_t, vaddlvq_u32, vdupq_n_u32, vld1q_u8, vpadalq_u16, vreinterpretq_u16_u8, vst1q_u8,
};

use core::ptr;

use super::{Sum, swar};

/// Bytes of a vector.
const VECTOR: usize = 16;
/// Bytes of an iteration of the main loop: four vectors, so that four additions are in flight.
const BLOCK: usize = 4 * VECTOR;
/// Bytes that 32-bit lanes can take: each vector adds at most 2 * 65,535 to a lane, so 32,768 vectors (512 KiB) fit
/// into one; four sums share them.
const RUN: usize = 512 * 1024;

/// Holding the value proves that the CPU has NEON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neon(());

impl Neon {
    /// The kernel, if this CPU can run it.
    pub(super) fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    /// Adds the words of `data`; an odd last byte counts as the first of its word.
    #[expect(clippy::unused_self, reason = "holding the value is the proof that the CPU can run this")]
    #[inline]
    pub(super) fn sum(self, data: &[u8], initial: Sum) -> Sum {
        let mut total = initial;
        for data in data.chunks(RUN) {
            let (blocks, rest) = data.split_at(data.len() - data.len() % BLOCK);
            if !blocks.is_empty() {
                // SAFETY: `self` exists only if the CPU has NEON; `blocks` is readable, whole blocks, at most `RUN`
                // bytes; nothing is copied.
                total = unsafe { run::<false>(ptr::null_mut(), blocks.as_ptr(), blocks.len(), total) };
            }
            total = swar::sum(rest, total);
        }
        total
    }

    /// Copies `src` to `dst`, of the same length, and adds it.
    #[expect(clippy::unused_self, reason = "holding the value is the proof that the CPU can run this")]
    #[inline]
    pub(super) fn copy_and_sum(self, dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
        assert_eq!(dst.len(), src.len());
        let mut total = initial;
        for (dst, src) in dst.chunks_mut(RUN).zip(src.chunks(RUN)) {
            let whole = src.len() - src.len() % BLOCK;
            let (blocks, rest) = src.split_at(whole);
            let (dst_blocks, dst_rest) = dst.split_at_mut(whole);
            // SAFETY: `self` exists only if the CPU has NEON; both slices have this length (equal ones are cut
            // equally), which is whole blocks, at most `RUN` bytes; a unique and a shared reference don't overlap.
            total = unsafe { run::<true>(dst_blocks.as_mut_ptr(), blocks.as_ptr(), whole, total) };
            total = swar::copy_and_sum(dst_rest, rest, total);
        }
        total
    }
}

/// Adds one run of whole blocks; with `COPY` also copies it.
///
/// Raw pointers, because the compiler makes a call of `memcpy` and a second pass out of a loop over references.
///
/// # Safety
/// The CPU has NEON; `len <= RUN`, a multiple of `BLOCK`; `src` is readable for `len` bytes and, with `COPY`, `dst`
/// writable, and they do not overlap.
#[target_feature(enable = "neon")]
unsafe fn run<const COPY: bool>(dst: *mut u8, src: *const u8, len: usize, initial: Sum) -> Sum {
    debug_assert!(len <= RUN && len % BLOCK == 0);
    let take = |at: usize| {
        debug_assert!(at + VECTOR <= len);
        // SAFETY: the loop below calls this for vectors of whole blocks within `len`; no alignment is needed.
        unsafe {
            let vector = vld1q_u8(src.add(at));
            if COPY {
                vst1q_u8(dst.add(at), vector);
            }
            vector
        }
    };
    let mut sums = [vdupq_n_u32(0); 4];
    for at in (0..len).step_by(BLOCK) {
        sums[0] = add_words(sums[0], take(at));
        sums[1] = add_words(sums[1], take(at + VECTOR));
        sums[2] = add_words(sums[2], take(at + 2 * VECTOR));
        sums[3] = add_words(sums[3], take(at + 3 * VECTOR));
    }
    sums.into_iter().fold(initial, |total, sum| total.add_lane(vaddlvq_u32(sum)))
}

/// Adds each pair of words to a 32-bit lane.
#[inline]
#[target_feature(enable = "neon")]
fn add_words(sum: uint32x4_t, words: uint8x16_t) -> uint32x4_t {
    vpadalq_u16(sum, vreinterpretq_u16_u8(words))
}
