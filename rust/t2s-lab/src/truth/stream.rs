//! The bytes of streams: what is wrong, missing or there twice, and what each flow came to.

use crate::generator::packets::{LONGEST, PERIOD, Pattern};
use crate::truth::mix;

/// Bytes that are looked at to tell a stream that is shifted from one with wrong bytes.
const WINDOW: usize = 16;

/// Fewer bytes than this say nothing about a shift.
const FEWEST: usize = 8;

/// Bytes of streams that were not what the sender sent there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Wrong bytes.
    pub corrupted: u64,
    /// Bytes that were left out: what follows is right, but comes too early.
    pub lost: u64,
    /// Bytes that came once more.
    pub duplicated: u64,
}

impl Damage {
    /// Adds another count to this one.
    pub fn merge(&mut self, other: &Self) {
        self.corrupted += other.corrupted;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
    }
}

/// Compares `bytes` with what stands at `offset` of the pattern, moved by what was left out or doubled before
/// (`shift`); whether all were right.
#[inline]
pub fn check(pattern: &Pattern, bytes: &[u8], offset: u64, shift: &mut i16, damage: &mut Damage) -> bool {
    let at = offset.wrapping_add_signed(i64::from(*shift));
    pattern.matches(bytes, at) || {
        examine(pattern, bytes, offset, shift, damage);
        false
    }
}

/// Says byte by byte what is wrong.
#[cold]
fn examine(pattern: &Pattern, bytes: &[u8], offset: u64, shift: &mut i16, damage: &mut Damage) {
    let mut at = 0;
    while at < bytes.len() {
        let place = (offset + at as u64).wrapping_add_signed(i64::from(*shift));
        if bytes[at] == pattern.at(place, 1)[0] {
            at += 1;
            continue;
        }
        let window = &bytes[at..bytes.len().min(at + WINDOW)];
        let wrong = window.iter().zip(pattern.at(place, window.len())).filter(|(a, b)| a != b).count();
        let moved = window.len() >= FEWEST && 2 * wrong > window.len();
        if let Some(by) = if moved { find(pattern, window, place) } else { None } {
            damage.lost += u64::try_from(by).unwrap_or(0);
            damage.duplicated += u64::from((-by.min(0)).unsigned_abs());
            *shift = wrapped(i32::from(*shift) + by);
        } else {
            damage.corrupted += 1;
            at += 1;
        }
    }
}

/// How far from `place` the bytes of `window` stand in the pattern; the nearest place, in front or behind.
fn find(pattern: &Pattern, window: &[u8], place: u64) -> Option<i32> {
    let half = PERIOD as i32 / 2;
    let by = (1..=half).flat_map(|by| [by, -by]);
    by.into_iter().find(|&by| pattern.matches(window, place.wrapping_add_signed(i64::from(by))))
}

/// A shift modulo the period.
fn wrapped(shift: i32) -> i16 {
    let period = PERIOD as i32;
    let shift = shift.rem_euclid(period);
    (if shift >= period / 2 { shift - period } else { shift }) as i16
}

/// What flows came to at one end, in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamTotals {
    /// Flows that ended in order.
    pub flows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Sum over these flows of a hash of flow and bytes: equal at both ends if each flow's bytes are.
    pub digest: u64,
    /// Flows that ended in another way, of which bytes may be missing at the other end.
    pub aborted_flows: u64,
    /// Their bytes.
    pub aborted_bytes: u64,
}

impl StreamTotals {
    /// A flow has ended with so many bytes, counted modulo 2^32 as sequence numbers are.
    pub fn add(&mut self, key: u64, bytes: u32, in_order: bool) {
        if in_order {
            self.flows += 1;
            self.bytes += u64::from(bytes);
            self.digest = self.digest.wrapping_add(mix(key ^ mix(u64::from(bytes) + 1)));
        } else {
            self.aborted_flows += 1;
            self.aborted_bytes += u64::from(bytes);
        }
    }

    /// Adds another count to this one.
    pub fn merge(&mut self, other: &Self) {
        self.flows += other.flows;
        self.bytes += other.bytes;
        self.digest = self.digest.wrapping_add(other.digest);
        self.aborted_flows += other.aborted_flows;
        self.aborted_bytes += other.aborted_bytes;
    }
}

const _: () = assert!(PERIOD <= 1 << 15 && LONGEST >= WINDOW, "a shift fits its type, and a window the pattern");

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a stream in pieces of `piece` bytes.
    fn damage(stream: &[u8], offset: u64, piece: usize) -> Damage {
        let (pattern, mut shift, mut damage) = (Pattern::new(), 0, Damage::default());
        let mut at = offset;
        for bytes in stream.chunks(piece) {
            check(&pattern, bytes, at, &mut shift, &mut damage);
            at += bytes.len() as u64;
        }
        damage
    }

    #[test]
    fn every_single_wrong_byte_is_counted() {
        let pattern = Pattern::new();
        let stream = pattern.at(77, 1_400).to_vec();
        assert_eq!(damage(&stream, 77, 1_400), Damage::default());
        for at in 0..stream.len() {
            let mut broken = stream.clone();
            broken[at] ^= 0x40;
            let seen = damage(&broken, 77, 700);
            assert_eq!(seen, Damage { corrupted: 1, ..Damage::default() }, "byte {at}");
        }
    }

    #[test]
    fn what_is_left_out_or_doubled_is_told_from_wrong_bytes() {
        let pattern = Pattern::new();
        let stream = pattern.at(500, 20_000).to_vec();
        for (from, len) in [(0, 1), (1_400, 1_400), (9_000, 256), (3_000, 8_000)] {
            let lost = [&stream[..from], &stream[from + len..]].concat();
            let want = Damage { lost: len as u64, ..Damage::default() };
            assert_eq!(damage(&lost, 500, 1_400), want, "{len} bytes from {from}");
            let twice = [&stream[..from + len], &stream[from..]].concat();
            let want = Damage { duplicated: len as u64, ..Damage::default() };
            assert_eq!(damage(&twice, 500, 1_400), want, "{len} bytes from {from}");
        }
        // Two segments that changed places: the second comes too early, the first late, and then all is as it was.
        let swapped = [&stream[..1_400], &stream[2_800..4_200], &stream[1_400..2_800], &stream[4_200..]].concat();
        let seen = damage(&swapped, 500, 1_400);
        assert_eq!((seen.corrupted, seen.lost, seen.duplicated), (0, 2_800, 2_800));
    }

    #[test]
    fn digests_differ_where_two_flows_exchange_bytes() {
        let total = |lengths: [u32; 2]| {
            let mut totals = StreamTotals::default();
            for (key, bytes) in (1..).zip(lengths) {
                totals.add(key, bytes, true);
            }
            totals
        };
        let (a, b) = (total([100, 200]), total([110, 190]));
        assert_eq!(a.bytes, b.bytes);
        assert_ne!(a.digest, b.digest);
        assert_ne!(total([1, 2]).digest, total([2, 1]).digest);
    }
}
