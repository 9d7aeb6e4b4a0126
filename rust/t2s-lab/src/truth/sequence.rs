//! The sequence numbers of the datagrams of one component in one direction: new, seen before, or overtaken.

/// Sequence numbers of which it is known whether they were seen: the last half second of a million packets/s. Older
/// ones that turn up count as reordered.
const REMEMBERED: u64 = 1 << 19;

/// What arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SequenceCounts {
    /// Datagrams, right or wrong.
    pub received: u64,
    /// Those that had come before.
    pub duplicated: u64,
    /// Those that a later one of the same flow had overtaken.
    pub reordered: u64,
    /// Those that were not what their sender sent.
    pub corrupted: u64,
}

impl SequenceCounts {
    /// Adds another count to this one.
    pub fn merge(&mut self, other: &Self) {
        self.received += other.received;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
    }
}

/// Follows one sequence that goes round over a number of flows.
#[derive(Clone, Debug)]
pub struct SequenceTracker {
    /// One bit a number, `number % REMEMBERED`; in the word of the highest number, bits behind it are 0.
    seen: Box<[u64]>,
    /// The number behind the highest seen.
    next: u64,
    /// Numbers from one of a flow to the next.
    flows: u64,
    /// What came so far.
    pub counts: SequenceCounts,
}

impl SequenceTracker {
    /// Number `n` belongs to flow `n % flows`; with 0 flows each number is one, so that none overtakes another.
    pub fn new(flows: usize) -> Self {
        Self {
            seen: vec![0; (REMEMBERED / 64) as usize].into_boxed_slice(),
            next: 0,
            flows: if flows == 0 { u64::MAX } else { flows as u64 },
            counts: SequenceCounts::default(),
        }
    }

    /// The number behind the highest seen, near which the next one is.
    #[inline]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// A datagram came whose bytes are those of `number`; whether it is new.
    #[inline]
    pub fn note(&mut self, number: u64) -> bool {
        if number < self.next || number >= self.next + REMEMBERED {
            return self.note_other(number);
        }
        self.counts.received += 1;
        // Words that are entered still hold what was seen a round ago.
        for word in self.next.div_ceil(64)..=number / 64 {
            self.seen[(word % (REMEMBERED / 64)) as usize] = 0;
        }
        self.seen[Self::word(number)] |= 1 << (number % 64);
        self.next = number + 1;
        true
    }

    /// A number below the highest, or one that was never sent.
    fn note_other(&mut self, number: u64) -> bool {
        if number >= self.next {
            self.note_corrupted();
            return false;
        }
        self.counts.received += 1;
        if number + REMEMBERED - 64 <= self.next {
            self.counts.reordered += 1;
            return true;
        }
        if self.was_seen(number) {
            self.counts.duplicated += 1;
            return false;
        }
        let mut later = number.saturating_add(self.flows);
        while later < self.next && !self.was_seen(later) {
            later = later.saturating_add(self.flows);
        }
        self.counts.reordered += u64::from(later < self.next);
        self.seen[Self::word(number)] |= 1 << (number % 64);
        true
    }

    /// A datagram came that is none of the sender's.
    #[cold]
    pub fn note_corrupted(&mut self) {
        self.counts.received += 1;
        self.counts.corrupted += 1;
    }

    #[inline]
    fn word(number: u64) -> usize {
        ((number % REMEMBERED) / 64) as usize
    }

    #[inline]
    fn was_seen(&self, number: u64) -> bool {
        self.seen[Self::word(number)] >> (number % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_counts_once_and_flows_keep_their_order() {
        let mut tracker = SequenceTracker::new(4);
        for number in (0..2_000_000).filter(|number| number % 1_000 != 7) {
            assert!(tracker.note(number));
        }
        let received = 2_000_000 - 2_000;
        assert_eq!(tracker.counts, SequenceCounts { received, ..SequenceCounts::default() });
        // Another flow's numbers may be overtaken, a flow's own may not.
        tracker.note(2_000_005);
        tracker.note(2_000_004);
        assert_eq!(tracker.counts.reordered, 0);
        tracker.note(2_000_001);
        assert_eq!(tracker.counts.reordered, 1);
        assert!(!tracker.note(2_000_005));
        assert_eq!((tracker.counts.duplicated, tracker.counts.received), (1, received + 4));
        tracker.note(12);
        assert_eq!(tracker.counts.reordered, 2, "older than what is remembered");
        assert!(!tracker.note(1 << 50), "such a number was never sent");
        assert_eq!((tracker.counts.corrupted, tracker.next()), (1, 2_000_006));
    }
}
