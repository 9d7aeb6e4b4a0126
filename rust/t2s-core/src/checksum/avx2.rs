//! AVX2 kernel: 16 words an instruction.
//!
//! `vpmaddwd` adds neighbouring words into 32 bits, but takes them as signed; flipping the sign bit makes an unsigned
//! word `u` the signed word `u - 0x8000`, and the 0x8000s are added back once at the end. Three instructions for 32
//! bytes; the usual unpack-and-add takes four.
#![allow(unsafe_code)]

use core::arch::x86_64::{
    __m256i, _mm_add_epi64, _mm_cvtsi128_si64, _mm_unpackhi_epi64, _mm256_add_epi32, _mm256_add_epi64,
    _mm256_and_si256, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_setzero_si256, _mm256_srli_epi64,
    _mm256_storeu_si256, _mm256_xor_si256,
};
use core::ptr;

use super::vectors::add_vectors;
use super::{Sum, swar};

/// Bytes of a vector.
const VECTOR: usize = 32;
/// Bytes of an iteration of the main loop: four vectors, so that four additions are in flight.
const BLOCK: usize = 4 * VECTOR;
/// Bytes that 32-bit lanes can take: each vector adds at most 2 * 65,535 to a lane, so 32,768 vectors (1 MiB) fit.
const RUN: usize = 512 * 1024;
/// Inputs below this are faster in 64-bit lanes, which need no horizontal sum at the end (measured with
/// `benches/checksum.rs`).
const SHORT: usize = 160;
/// The same for copying, where the alternative is a call of `memcpy` and a second pass.
const SHORT_COPY: usize = 64;

/// Holding the value proves that the CPU has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The kernel, if this CPU can run it.
    pub(super) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    /// Adds the words of `data`; an odd last byte counts as the first of its word.
    #[expect(clippy::unused_self, reason = "holding the value is the proof that the CPU can run this")]
    #[inline]
    pub(super) fn sum(self, data: &[u8], initial: Sum) -> Sum {
        if data.len() < SHORT {
            return swar::sum(data, initial);
        }
        let mut total = initial;
        let mut rest = data;
        while rest.len() > RUN {
            let (data, after) = rest.split_at(RUN);
            // SAFETY: as below, and `RUN` bytes are a run.
            total = unsafe { run::<false>(ptr::null_mut(), data.as_ptr(), data.len(), total) };
            rest = after;
        }
        if rest.len() < SHORT {
            return swar::sum(rest, total);
        }
        // SAFETY: `self` exists only if the CPU has AVX2; `rest` is readable and longer than a vector and one byte;
        // nothing is copied.
        unsafe { run::<false>(ptr::null_mut(), rest.as_ptr(), rest.len(), total) }
    }

    /// Copies `src` to `dst`, of the same length, and adds it.
    #[expect(clippy::unused_self, reason = "holding the value is the proof that the CPU can run this")]
    #[inline]
    pub(super) fn copy_and_sum(self, dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
        assert_eq!(dst.len(), src.len());
        let mut total = initial;
        for (dst, src) in dst.chunks_mut(RUN).zip(src.chunks(RUN)) {
            total = if src.len() < SHORT_COPY {
                swar::copy_and_sum(dst, src, total)
            } else {
                // SAFETY: `self` exists only if the CPU has AVX2; both slices have this length (equal ones are cut
                // equally), which is more than a vector and one byte; a unique and a shared reference don't overlap.
                unsafe { run::<true>(dst.as_mut_ptr(), src.as_ptr(), src.len(), total) }
            };
        }
        total
    }
}

/// Adds one run; with `COPY` also copies it.
///
/// Raw pointers, because the compiler makes a call of `memcpy` and a second pass out of a loop over references.
///
/// # Safety
/// The CPU has AVX2; `VECTOR < len <= RUN`; `src` is readable for `len` bytes and, with `COPY`, `dst` writable, and
/// they do not overlap.
#[target_feature(enable = "avx2")]
unsafe fn run<const COPY: bool>(dst: *mut u8, src: *const u8, len: usize, initial: Sum) -> Sum {
    debug_assert!(VECTOR < len && len <= RUN);
    let take = |at: usize| {
        debug_assert!(at + VECTOR <= len);
        // SAFETY: within `len` (`add_vectors` and the caller below say why); unaligned access is allowed.
        unsafe {
            let vector = _mm256_loadu_si256(src.add(at).cast());
            if COPY {
                _mm256_storeu_si256(dst.add(at).cast(), vector);
            }
            vector
        }
    };
    let mut sums = [_mm256_setzero_si256(); 4];
    let at = add_vectors!(sums, len, take);
    // The rest without an odd last byte: one vector that ends there, its bytes before `at` masked. An even number of
    // bytes is kept, so words stay words. `len` exceeds a vector, so it starts within the data.
    let even = len & !1;
    let mask = &MASK[even - at..];
    debug_assert!(mask.len() >= VECTOR);
    // SAFETY: `even - at < VECTOR`, so 32 bytes of the mask follow.
    let mask = unsafe { _mm256_loadu_si256(mask.as_ptr().cast()) };
    sums[3] = add_words(sums[3], _mm256_and_si256(take(even - VECTOR), mask));
    let mut total = initial;
    if len > even {
        // SAFETY: `even` is the offset of the last byte.
        let last = unsafe {
            if COPY {
                *dst.add(even) = *src.add(even);
            }
            *src.add(even)
        };
        total = total.add_lane(u64::from(u16::from_ne_bytes([last, 0])));
    }
    horizontal(sums, at / VECTOR + 1, total)
}

/// 32 bytes of zeros, then 32 of ones: from offset `n` on, a mask of the last `n` bytes of a vector.
static MASK: [u8; 2 * VECTOR] = {
    let mut mask = [0; 2 * VECTOR];
    let mut at = VECTOR;
    while at < mask.len() {
        mask[at] = 0xff;
        at += 1;
    }
    mask
};

/// Adds each pair of words, less 2 * 0x8000, to a 32-bit lane.
#[inline]
#[target_feature(enable = "avx2")]
fn add_words(sum: __m256i, words: __m256i) -> __m256i {
    let signed = _mm256_xor_si256(words, _mm256_set1_epi16(i16::MIN));
    _mm256_add_epi32(sum, _mm256_madd_epi16(signed, _mm256_set1_epi16(1)))
}

/// Adds all lanes of sums that took `vectors` vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn horizontal(sums: [__m256i; 4], vectors: usize, initial: Sum) -> Sum {
    // Modulo 2^32 on the way; with the 0x8000s back each lane is its true sum, which fits (see `RUN`).
    let bias = _mm256_set1_epi32((vectors << 16) as i32);
    let right = _mm256_add_epi32(_mm256_add_epi32(sums[2], sums[3]), bias);
    let lanes = _mm256_add_epi32(_mm256_add_epi32(sums[0], sums[1]), right);
    let low = _mm256_and_si256(lanes, _mm256_set1_epi64x(0xffff_ffff));
    let wide = _mm256_add_epi64(low, _mm256_srli_epi64::<32>(lanes));
    let half = _mm_add_epi64(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
    let whole = _mm_add_epi64(half, _mm_unpackhi_epi64(half, half));
    initial.add_lane(_mm_cvtsi128_si64(whole) as u64)
}
