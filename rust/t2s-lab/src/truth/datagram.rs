//! What the datagrams of the lab carry: a sequence number, and bytes that follow from it.

use crate::generator::packets::{Pattern, PayloadSums, fold, sum_of};
use crate::truth::mix;

/// Bytes of the sequence number in front; a shorter datagram has as many of the lowest.
pub const NUMBER_BYTES: usize = 8;

/// How many bytes of a datagram of `len` bytes are its number.
#[inline]
pub const fn number_len(len: usize) -> usize {
    if len < NUMBER_BYTES { len } else { NUMBER_BYTES }
}

/// Places in the pattern where the bytes of a datagram may begin: few enough to stay in the cache.
const PLACES: u64 = 1 << 10;

/// Where in the pattern the bytes behind the number come from; every bit of the number moves it.
#[inline]
const fn place(number: u64) -> u64 {
    mix(number) % PLACES
}

/// Fills `out` with datagram `number`.
#[inline]
pub fn write(out: &mut [u8], number: u64, pattern: &Pattern) {
    if let Some((head, rest)) = out.split_first_chunk_mut() {
        *head = number.to_be_bytes();
        rest.copy_from_slice(pattern.at(place(number), rest.len()));
        return;
    }
    let (head, rest) = out.split_at_mut(number_len(out.len()));
    let bytes = number.to_be_bytes();
    head.copy_from_slice(&bytes[NUMBER_BYTES - head.len()..]);
    rest.copy_from_slice(pattern.at(place(number), rest.len()));
}

/// The checksum of datagram `number` of `len` bytes; `sums` are those of what is behind the number.
#[inline]
pub fn sum(number: u64, len: usize, pattern: &Pattern, sums: &PayloadSums) -> u16 {
    let head = number_len(len);
    let own = if head == NUMBER_BYTES {
        [48, 32, 16, 0].iter().map(|&shift| (number >> shift) as u32 & 0xffff).sum()
    } else {
        sum_of(&number.to_be_bytes()[NUMBER_BYTES - head..])
    };
    fold(own + u32::from(sums.get(pattern, place(number), len - head)))
}

/// The number in front of `bytes`, as the one next to `near` where not all of it is there.
#[inline]
pub fn number_of(bytes: &[u8], near: u64) -> u64 {
    let head = number_len(bytes.len());
    let low = bytes[..head].iter().fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
    nearest(low, 8 * head as u32, near)
}

/// The number with these lowest `bits` that is nearest to `near`.
#[inline]
pub fn nearest(low: u64, bits: u32, near: u64) -> u64 {
    if bits == 0 || bits >= 64 {
        return if bits == 0 { near } else { low };
    }
    let unused = 64 - bits;
    let apart = (low.wrapping_sub(near) << unused) as i64 >> unused;
    near.checked_add_signed(apart).unwrap_or(low)
}

/// Whether `bytes` are the first of datagram `number`, of whatever length.
#[inline]
pub fn matches(bytes: &[u8], number: u64, pattern: &Pattern) -> bool {
    let (head, rest) = bytes.split_at(number_len(bytes.len()));
    number.to_be_bytes().ends_with(head) && pattern.matches(rest, place(number))
}

/// The number of a whole datagram that is what its sender sent; `None` for one that is not.
#[inline]
pub fn read(bytes: &[u8], near: u64, pattern: &Pattern) -> Option<u64> {
    if let Some((head, rest)) = bytes.split_first_chunk() {
        let number = u64::from_be_bytes(*head);
        return pattern.matches(rest, place(number)).then_some(number);
    }
    let number = number_of(bytes, near);
    matches(bytes, number, pattern).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_of_every_length_tell_their_number() {
        let pattern = Pattern::new();
        for len in [1, 2, 7, 8, 9, 18, 200, 1_400, 60_000] {
            let sums = PayloadSums::new(&pattern, len - number_len(len));
            for number in [0, 1, 100, 200, 70_000] {
                let mut bytes = vec![0; len];
                write(&mut bytes, number, &pattern);
                assert_eq!(sum(number, len, &pattern, &sums), fold(sum_of(&bytes)), "{len} {number}");
                assert_eq!(read(&bytes, number.saturating_sub(3), &pattern), Some(number), "{len} {number}");
                assert_eq!(read(&bytes, number + 3, &pattern), Some(number), "{len} {number}");
            }
        }
    }

    #[test]
    fn one_wrong_byte_is_another_datagram() {
        let pattern = Pattern::new();
        let mut bytes = vec![0; 200];
        write(&mut bytes, 12_345, &pattern);
        for at in 0..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 1;
            assert_eq!(read(&broken, 12_345, &pattern), None, "byte {at}");
        }
    }
}
