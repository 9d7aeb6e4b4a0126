//! Portable kernel: 64-bit lanes with end-around carry.

use super::Sum;

/// Adds the words of `data`; an odd last byte counts as the first of its word.
#[inline]
pub(super) fn sum(data: &[u8], initial: Sum) -> Sum {
    let (lanes, rest) = data.as_chunks::<8>();
    let mut sum = initial;
    for lane in lanes {
        sum = sum.add_lane(u64::from_ne_bytes(*lane));
    }
    let mut tail = [0u8; 8];
    tail[..rest.len()].copy_from_slice(rest);
    sum.add_lane(u64::from_ne_bytes(tail))
}
