//! Portable kernel: 64-bit lanes. Also the head and tail of the vector kernels, and theirs whole for short inputs.

use super::Sum;

/// Adds the words of `data`; an odd last byte counts as the first of its word.
#[inline]
pub(super) fn sum(data: &[u8], initial: Sum) -> Sum {
    // A 128-bit sum needs no end-around carry on the way: the upper half counts the carries. Two of them, because the
    // addition's latency is what bounds the loop.
    let (pairs, rest) = data.as_chunks::<16>();
    let (mut even, mut odd) = (0u128, 0u128);
    for pair in pairs {
        let pair = u128::from_ne_bytes(*pair);
        even += pair & u128::from(u64::MAX);
        odd += pair >> 64;
    }
    if let Some((lane, _)) = rest.split_first_chunk() {
        even += u128::from(u64::from_ne_bytes(*lane));
    }
    odd += u128::from(tail(data));
    // Carries of 2^64 count as 1.
    let total = even + odd;
    initial.add_lane(total as u64).add_lane((total >> 64) as u64)
}

/// Copies `src` to `dst`, of the same length, and adds it.
#[inline]
pub(super) fn copy_and_sum(dst: &mut [u8], src: &[u8], initial: Sum) -> Sum {
    // In pieces that stay in the first-level cache: the copy is `memcpy`, the sum reads what that has just brought in;
    // from the source, because loads from bytes that were stored in other pieces a moment ago have to wait for them.
    const PIECE: usize = 8192;
    let mut total = initial;
    for (dst, src) in dst.chunks_mut(PIECE).zip(src.chunks(PIECE)) {
        dst.copy_from_slice(src);
        total = sum(src, total);
    }
    total
}

/// The last `len % 8` bytes as a lane, padded with zeros behind.
#[inline]
fn tail(data: &[u8]) -> u64 {
    let rest = data.len() % 8;
    if rest == 0 {
        return 0;
    }
    let lane = if let Some(last) = data.last_chunk::<8>() {
        // One load that ends with the data, shifted so that the bytes before the tail fall out.
        u64::from_le_bytes(*last) >> (64 - 8 * rest)
    } else {
        let mut lane = 0;
        let mut at = 0;
        if let Some((word, _)) = data.split_first_chunk::<4>() {
            lane = u64::from(u32::from_le_bytes(*word));
            at = 4;
        }
        if let Some((word, _)) = data[at..].split_first_chunk::<2>() {
            lane |= u64::from(u16::from_le_bytes(*word)) << (8 * at);
            at += 2;
        }
        if let Some(byte) = data.get(at) {
            lane |= u64::from(*byte) << (8 * at);
        }
        lane
    };
    u64::from_ne_bytes(lane.to_le_bytes())
}
