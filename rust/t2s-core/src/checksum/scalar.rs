//! The loop of RFC 1071, section 4.1: 16 bits at a time. The oracle of the other kernels and the lab's ablation.

use super::Sum;

/// Adds the words of `data`; an odd last byte counts as the first of its word.
pub(super) fn sum(data: &[u8], initial: Sum) -> Sum {
    let mut sum = 0u64;
    let mut words = data.chunks_exact(2);
    for word in words.by_ref() {
        sum += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = *words.remainder() {
        sum += u64::from(u16::from_ne_bytes([last, 0]));
    }
    initial.add_lane(sum)
}
