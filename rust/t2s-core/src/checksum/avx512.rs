//! AVX-512 kernel (F and BW): 32 words an instruction, and one masked load for what is left at the end.
//!
//! The arithmetic is the AVX2 kernel's: flip sign bits, `vpmaddwd`, add the 0x8000s back at the end.
#![allow(unsafe_code)]

use core::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_add_epi64, _mm512_and_si512, _mm512_loadu_si512, _mm512_madd_epi16,
    _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_reduce_add_epi64, _mm512_set1_epi16, _mm512_set1_epi32,
    _mm512_set1_epi64, _mm512_setzero_si512, _mm512_srli_epi64, _mm512_storeu_si512, _mm512_xor_si512,
};

use core::ptr;

use super::vectors::add_vectors;
use super::{Sum, swar};

/// Bytes of a vector.
const VECTOR: usize = 64;
/// Bytes of an iteration of the main loop: four vectors, so that four additions are in flight.
const BLOCK: usize = 4 * VECTOR;
/// Bytes that 32-bit lanes can take: each vector adds at most 2 * 65,535 to a lane, so 32,768 vectors (2 MiB) fit.
const RUN: usize = 512 * 1024;
/// Inputs below this are summed in 64-bit lanes, as in the AVX2 kernel.
const SHORT: usize = 160;

/// Holding the value proves that the CPU has AVX-512F and AVX-512BW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The kernel, if this CPU can run it.
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")).then_some(Self(()))
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
        // SAFETY: `self` exists only if the CPU has AVX-512F and BW; `rest` is readable; nothing is copied.
        unsafe { run::<false>(ptr::null_mut(), rest.as_ptr(), rest.len(), total) }
    }

    /// Copies `src` to `dst`, of the same length, and adds it.
    #[expect(clippy::unused_self, reason = "holding the value is the proof that the CPU can run this")]
    #[inline]
    pub(super) fn copy_and_sum(self, dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
        assert_eq!(dst.len(), src.len());
        let mut total = initial;
        for (dst, src) in dst.chunks_mut(RUN).zip(src.chunks(RUN)) {
            // SAFETY: `self` exists only if the CPU has AVX-512F and BW; both slices have this length (equal ones are
            // cut equally); a unique and a shared reference don't overlap.
            total = unsafe { run::<true>(dst.as_mut_ptr(), src.as_ptr(), src.len(), total) };
        }
        total
    }
}

/// Adds one run; with `COPY` also copies it.
///
/// Raw pointers, because the compiler makes a call of `memcpy` and a second pass out of a loop over references.
///
/// # Safety
/// The CPU has AVX-512F and BW; `len <= RUN`; `src` is readable for `len` bytes and, with `COPY`, `dst` writable, and
/// they do not overlap.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn run<const COPY: bool>(dst: *mut u8, src: *const u8, len: usize, initial: Sum) -> Sum {
    debug_assert!(len <= RUN);
    let take = |at: usize| {
        debug_assert!(at + VECTOR <= len);
        // SAFETY: `add_vectors` calls this only where `at + VECTOR <= len`; unaligned access is allowed.
        unsafe {
            let vector = _mm512_loadu_si512(src.add(at).cast());
            if COPY {
                _mm512_storeu_si512(dst.add(at).cast(), vector);
            }
            vector
        }
    };
    let mut sums = [_mm512_setzero_si512(); 4];
    let at = add_vectors!(sums, len, take);
    debug_assert!(len - at < VECTOR);
    let mask: u64 = (1 << (len - at)) - 1;
    // SAFETY: the mask names the `len - at` bytes that are left; bytes that it does not name are not accessed. `at` is
    // at most `len`, so the pointers stay within, or one past, their objects.
    let tail = unsafe {
        let tail = _mm512_maskz_loadu_epi8(mask, src.add(at).cast());
        if COPY {
            _mm512_mask_storeu_epi8(dst.add(at).cast(), mask, tail);
        }
        tail
    };
    sums[3] = add_words(sums[3], tail);
    horizontal(sums, at / VECTOR + 1, initial)
}

/// Adds each pair of words, less 2 * 0x8000, to a 32-bit lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_words(sum: __m512i, words: __m512i) -> __m512i {
    let signed = _mm512_xor_si512(words, _mm512_set1_epi16(i16::MIN));
    _mm512_add_epi32(sum, _mm512_madd_epi16(signed, _mm512_set1_epi16(1)))
}

/// Adds all lanes of sums that took `vectors` vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn horizontal(sums: [__m512i; 4], vectors: usize, initial: Sum) -> Sum {
    // Modulo 2^32 on the way; with the 0x8000s back each lane is its true sum, which fits (see `RUN`).
    let bias = _mm512_set1_epi32((vectors << 16) as i32);
    let lanes = _mm512_add_epi32(
        _mm512_add_epi32(sums[0], sums[1]),
        _mm512_add_epi32(_mm512_add_epi32(sums[2], sums[3]), bias),
    );
    let low = _mm512_and_si512(lanes, _mm512_set1_epi64(0xffff_ffff));
    let wide = _mm512_add_epi64(low, _mm512_srli_epi64::<32>(lanes));
    initial.add_lane(_mm512_reduce_add_epi64(wide) as u64)
}
