//! Stalls of the machine: who sees them, and which packets they delayed.
//!
//! Generator and workers poll without rest, so a thread that has nothing to do and yet does not look at the clock for
//! [`STALL`] was off its CPU, or its CPU was the hypervisor's. The core cannot cause that: the generator never runs its
//! code, and a worker's gap counts only between its turns. (A stall within a turn cannot be told from slow code, and is
//! the core's.) A packet is *disturbed* when it was due in such a gap or waited behind the backlog that the gap left.

use std::sync::atomic::{AtomicU64, Ordering};

/// Time between two looks at the clock that a polling thread never takes by itself, nanoseconds.
pub const STALL: u64 = 5_000;

/// A backlog is worked off within this many times the stall's length, or it is the core that is too slow.
const BACKLOG: u64 = 10;

/// The last stall of a generator, told to its worker.
#[derive(Debug, Default)]
pub struct LastStall {
    began: AtomicU64,
    ended: AtomicU64,
}

impl LastStall {
    /// The generator looks at the clock, `last` being when it did before. To be called before packets are sent: whoever
    /// receives them knows of the stall.
    #[inline]
    pub fn look(&self, last: u64, now: u64) {
        if last > 0 && now.saturating_sub(last) > STALL {
            self.began.store(last, Ordering::Relaxed);
            self.ended.store(now, Ordering::Relaxed);
        }
    }
}

/// Tells disturbed packets of one worker from the others.
#[derive(Debug, Default)]
pub struct Witness {
    /// When the worker was seen last.
    seen: u64,
    /// End of the last stall of the generator that was taken into account.
    known: u64,
    /// Packets that are taken up before this time are disturbed.
    until: u64,
}

impl Witness {
    /// A turn begins.
    #[inline]
    pub fn begin(&mut self, now: u64) {
        if self.seen > 0 && now.saturating_sub(self.seen) > STALL {
            self.disturb(self.seen, now);
        }
    }

    /// A turn has ended; with `drained` it found no packet waiting.
    #[inline]
    pub fn end(&mut self, now: u64, drained: bool) {
        self.seen = now;
        if drained {
            self.until = 0;
        }
    }

    /// Whether the packets of the turn begun at `begin`, which are in hand, are disturbed.
    #[inline]
    pub fn is_disturbed(&mut self, begin: u64, generator: &LastStall) -> bool {
        let ended = generator.ended.load(Ordering::Relaxed);
        if ended != self.known {
            self.known = ended;
            self.disturb(generator.began.load(Ordering::Relaxed), ended);
        }
        begin < self.until
    }

    #[cold]
    fn disturb(&mut self, began: u64, ended: u64) {
        self.until = self.until.max(ended + BACKLOG * ended.saturating_sub(began));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_between_turns_disturbs_until_the_backlog_is_gone() {
        let (mut witness, generator) = (Witness::default(), LastStall::default());
        witness.begin(1_000_000);
        assert!(!witness.is_disturbed(1_000_000, &generator));
        // A long turn is the worker's own.
        witness.end(1_900_000, false);
        witness.begin(1_900_000 + STALL);
        assert!(!witness.is_disturbed(1_900_000 + STALL, &generator));
        witness.end(2_000_000, false);
        witness.begin(2_100_000);
        assert!(witness.is_disturbed(2_100_000, &generator));
        witness.end(2_110_000, false);
        assert!(witness.is_disturbed(2_110_000, &generator), "the backlog");
        witness.end(2_120_000, true);
        assert!(!witness.is_disturbed(2_120_000, &generator));
    }

    #[test]
    fn a_core_that_does_not_catch_up_is_not_excused() {
        let (mut witness, generator) = (Witness::default(), LastStall::default());
        witness.end(1_000_000, true);
        witness.begin(1_010_000);
        witness.end(1_010_000 + BACKLOG * 10_000, false);
        assert!(!witness.is_disturbed(1_010_000 + BACKLOG * 10_000, &generator));
    }

    #[test]
    fn a_stall_of_the_generator_disturbs_what_it_sends_after_it() {
        let (mut witness, generator) = (Witness::default(), LastStall::default());
        generator.look(0, 1_000_000);
        generator.look(1_000_000, 1_000_000 + STALL);
        assert!(!witness.is_disturbed(1_000_000 + STALL, &generator));
        generator.look(2_000_000, 2_006_000);
        assert!(witness.is_disturbed(2_006_100, &generator));
        witness.end(2_006_500, true);
        assert!(!witness.is_disturbed(2_007_000, &generator));
    }
}
