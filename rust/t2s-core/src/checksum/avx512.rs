//! AVX-512 kernel (F and BW): 32 words an instruction, and one masked load for what is left at the end.
//!
//! The arithmetic is the AVX2 kernel's: flip sign bits, `vpmaddwd`, add the 0x8000s back at the end.
#![allow(unsafe_code)]

use core::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_add_epi64, _mm512_and_si512, _mm512_loadu_si512, _mm512_madd_epi16,
    _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_reduce_add_epi64, _mm512_set1_epi16, _mm512_set1_epi32,
    _mm512_set1_epi64, _mm512_setzero_si512, _mm512_srli_epi64, _mm512_storeu_si512, _mm512_xor_si512,
};

use super::{Sum, swar};

/// Bytes of a vector.
const VECTOR: usize = 64;
/// Bytes of a turn of the main loop: four vectors, so that four additions are in flight.
const BLOCK: usize = 4 * VECTOR;
/// Bytes that 32-bit lanes can take: each vector adds at most 2 * 65,535 to a lane, so 32,768 vectors (2 MiB) fit.
const RUN: usize = 512 * 1024;
/// Inputs below this are faster in 64-bit lanes, as in the AVX2 kernel.
const SHORT: usize = 64;

/// Holding the value proves that the CPU has AVX-512F and AVX-512BW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The kernel, if this CPU can run it.
    pub(super) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")).then_some(Self(()))
    }

    /// Adds the words of `data`; an odd last byte counts as the first of its word.
    #[inline]
    pub(super) fn sum(self, data: &[u8], initial: Sum) -> Sum {
        if data.len() < SHORT {
            return swar::sum(data, initial);
        }
        // SAFETY: `self` exists only if the CPU has AVX-512F and AVX-512BW.
        unsafe { sum(data, initial) }
    }

    /// Copies `src` to `dst`, of the same length, and adds it.
    #[inline]
    pub(super) fn copy_and_sum(self, dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
        if src.len() < SHORT {
            return swar::copy_and_sum(dst, src, initial);
        }
        // SAFETY: `self` exists only if the CPU has AVX-512F and AVX-512BW.
        unsafe { copy_and_sum(dst, src, initial) }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn sum(data: &[u8], initial: Sum) -> Sum {
    let mut total = initial;
    for data in data.chunks(RUN) {
        let mut sums = [_mm512_setzero_si512(); 4];
        let (blocks, rest) = data.as_chunks::<BLOCK>();
        for block in blocks {
            let (vectors, _) = block.as_chunks::<VECTOR>();
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = add_words(*sum, load(vector));
            }
        }
        let (vectors, tail) = rest.as_chunks::<VECTOR>();
        for (sum, vector) in sums.iter_mut().zip(vectors) {
            *sum = add_words(*sum, load(vector));
        }
        sums[3] = add_words(sums[3], load_tail(tail));
        total = horizontal(sums, data.len() / VECTOR + 1, total);
    }
    total
}

#[target_feature(enable = "avx512f,avx512bw")]
fn copy_and_sum(dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
    let mut total = initial;
    for (dst, src) in dst.chunks_mut(RUN).zip(src.chunks(RUN)) {
        let mut sums = [_mm512_setzero_si512(); 4];
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
        let (vectors, tail) = rest.as_chunks::<VECTOR>();
        let (dst_vectors, dst_tail) = dst_rest.as_chunks_mut::<VECTOR>();
        for ((sum, vector), dst) in sums.iter_mut().zip(vectors).zip(dst_vectors) {
            let vector = load(vector);
            store(dst, vector);
            *sum = add_words(*sum, vector);
        }
        let vector = load_tail(tail);
        store_tail(dst_tail, vector);
        sums[3] = add_words(sums[3], vector);
        total = horizontal(sums, src.len() / VECTOR + 1, total);
    }
    total
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(vector: &[u8; VECTOR]) -> __m512i {
    // SAFETY: the reference is to 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store(out: &mut [u8; VECTOR], vector: __m512i) {
    // SAFETY: the reference is to 64 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), vector) }
}

/// The lowest `len` bits: a mask of the first `len` bytes of a vector.
#[inline]
const fn first_bytes(len: usize) -> u64 {
    debug_assert!(len < VECTOR);
    (1 << len) - 1
}

/// Fewer than 64 bytes, padded with zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_tail(tail: &[u8]) -> __m512i {
    // SAFETY: only the bytes of `tail` are named by the mask; masked-out bytes are not accessed.
    unsafe { _mm512_maskz_loadu_epi8(first_bytes(tail.len()), tail.as_ptr().cast()) }
}

/// The first bytes of a vector, as many as `out` takes (fewer than 64).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store_tail(out: &mut [u8], vector: __m512i) {
    // SAFETY: only the bytes of `out` are named by the mask; masked-out bytes are not accessed.
    unsafe { _mm512_mask_storeu_epi8(out.as_mut_ptr().cast(), first_bytes(out.len()), vector) }
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
