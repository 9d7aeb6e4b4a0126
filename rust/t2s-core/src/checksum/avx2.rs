//! AVX2 kernel: 16 words an instruction.
//!
//! `vpmaddwd` adds neighbouring words into 32 bits, but takes them as signed; flipping the sign bit makes an unsigned
//! word `u` the signed word `u - 0x8000`, and the 0x8000s are added back once at the end. Three instructions for 32
//! bytes; the usual unpack-and-add takes four.
#![allow(unsafe_code)]

use core::arch::x86_64::{
    __m128i, __m256i, _mm_add_epi64, _mm_cvtsi128_si64, _mm_unpackhi_epi64, _mm256_add_epi32, _mm256_add_epi64,
    _mm256_and_si256, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_setzero_si256, _mm256_srli_epi64,
    _mm256_storeu_si256, _mm256_xor_si256,
};

use super::{Sum, swar};

/// Bytes of a vector.
const VECTOR: usize = 32;
/// Bytes of a turn of the main loop: four vectors, so that four additions are in flight.
const BLOCK: usize = 4 * VECTOR;
/// Bytes that 32-bit lanes can take: each vector adds at most 2 * 65,535 to a lane, so 32,768 vectors (1 MiB) fit.
const RUN: usize = 512 * 1024;
/// Inputs below this are faster in 64-bit lanes: no horizontal sum at the end (measured, `benches/checksum.rs`).
const SHORT: usize = 64;

/// Holding the value proves that the CPU has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The kernel, if this CPU can run it.
    pub(super) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    /// Adds the words of `data`; an odd last byte counts as the first of its word.
    #[inline]
    pub(super) fn sum(self, data: &[u8], initial: Sum) -> Sum {
        if data.len() < SHORT {
            return swar::sum(data, initial);
        }
        // SAFETY: `self` exists only if the CPU has AVX2.
        unsafe { sum(data, initial) }
    }

    /// Copies `src` to `dst`, of the same length, and adds it.
    #[inline]
    pub(super) fn copy_and_sum(self, dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
        if src.len() < SHORT {
            return swar::copy_and_sum(dst, src, initial);
        }
        // SAFETY: `self` exists only if the CPU has AVX2.
        unsafe { copy_and_sum(dst, src, initial) }
    }
}

#[target_feature(enable = "avx2")]
fn sum(data: &[u8], initial: Sum) -> Sum {
    let mut total = initial;
    for data in data.chunks(RUN) {
        if data.len() < SHORT {
            return swar::sum(data, total);
        }
        let mut sums = [_mm256_setzero_si256(); 4];
        let (blocks, rest) = data.as_chunks::<BLOCK>();
        for block in blocks {
            let (vectors, _) = block.as_chunks::<VECTOR>();
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = add_words(*sum, load(vector));
            }
        }
        let (vectors, _) = rest.as_chunks::<VECTOR>();
        for (sum, vector) in sums.iter_mut().zip(vectors) {
            *sum = add_words(*sum, load(vector));
        }
        let (last, mask, odd) = tail(data);
        sums[3] = add_words(sums[3], _mm256_and_si256(load(last), load(mask)));
        total = horizontal(sums, data.len() / VECTOR + 1, total.add_lane(odd));
    }
    total
}

#[target_feature(enable = "avx2")]
fn copy_and_sum(dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
    let mut total = initial;
    for (dst, src) in dst.chunks_mut(RUN).zip(src.chunks(RUN)) {
        if src.len() < SHORT {
            return swar::copy_and_sum(dst, src, total);
        }
        let mut sums = [_mm256_setzero_si256(); 4];
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
        let (vectors, _) = rest.as_chunks::<VECTOR>();
        let (dst_vectors, _) = dst_rest.as_chunks_mut::<VECTOR>();
        for ((sum, vector), dst) in sums.iter_mut().zip(vectors).zip(dst_vectors) {
            let vector = load(vector);
            store(dst, vector);
            *sum = add_words(*sum, vector);
        }
        let (last, mask, odd) = tail(src);
        sums[3] = add_words(sums[3], _mm256_and_si256(load(last), load(mask)));
        // The odd last byte and the tail lie within the last vector; what it overlaps is written twice, equally.
        if let (Some(dst), Some(src)) = (dst.last_chunk_mut(), src.last_chunk()) {
            store(dst, load(src));
        }
        total = horizontal(sums, src.len() / VECTOR + 1, total.add_lane(odd));
    }
    total
}

/// The last vector that ends at an even offset, a mask of those of its bytes that no whole vector has covered, and the
/// odd last byte as a lane (0 if there is none).
///
/// The mask keeps an even number of bytes, so words stay words.
#[inline]
fn tail(data: &[u8]) -> (&[u8; VECTOR], &'static [u8; VECTOR], u64) {
    static MASK: [u8; 2 * VECTOR] = {
        let mut mask = [0; 2 * VECTOR];
        let mut at = VECTOR;
        while at < mask.len() {
            mask[at] = 0xff;
            at += 1;
        }
        mask
    };
    let (even, odd) = match data {
        [even @ .., last] if data.len() % 2 == 1 => (even, u64::from(u16::from_ne_bytes([*last, 0]))),
        even => (even, 0),
    };
    let last = even.last_chunk().expect("at least SHORT bytes, more than a vector and one");
    let kept = even.len() % VECTOR;
    let mask = MASK[kept..].first_chunk().expect("kept is below VECTOR");
    (last, mask, odd)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(vector: &[u8; VECTOR]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(vector.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(out: &mut [u8; VECTOR], vector: __m256i) {
    // SAFETY: the reference is to 32 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), vector) }
}

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
    let lanes = _mm256_add_epi32(
        _mm256_add_epi32(sums[0], sums[1]),
        _mm256_add_epi32(_mm256_add_epi32(sums[2], sums[3]), bias),
    );
    let low = _mm256_and_si256(lanes, _mm256_set1_epi64x(0xffff_ffff));
    let wide = _mm256_add_epi64(low, _mm256_srli_epi64::<32>(lanes));
    let half: __m128i = _mm_add_epi64(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
    let whole = _mm_add_epi64(half, _mm_unpackhi_epi64(half, half));
    initial.add_lane(_mm_cvtsi128_si64(whole) as u64)
}
