//! The loop of RFC 1071, section 4.1: 16 bits at a time. The reference of the other kernels and the lab's ablation.

use super::Sum;

/// Adds the words of `data`; an odd last byte counts as the first of its word.
///
/// The sum has 32 bits, as in the RFC, and is folded when it would overflow. That check also keeps the compiler from
/// making a vector kernel of the loop, so that the name says what runs: about a word a cycle
/// (`benches/checksum.rs` has the loop as the compiler vectorizes it beside this one).
pub(super) fn sum(data: &[u8], initial: Sum) -> Sum {
    let mut sum = 0u32;
    let mut words = data.chunks_exact(2);
    for word in words.by_ref() {
        let word = u32::from(u16::from_ne_bytes([word[0], word[1]]));
        sum = match sum.checked_add(word) {
            Some(sum) => sum,
            None => (sum >> 16) + (sum & 0xffff) + word,
        };
    }
    let last = match *words.remainder() {
        [last] => u16::from_ne_bytes([last, 0]),
        _ => 0,
    };
    initial.add_lane(u64::from(sum)).add_lane(u64::from(last))
}
