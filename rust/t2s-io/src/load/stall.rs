//! Stalls of the machine: who sees them, and which packets they delayed.
//!
//! Generator and workers poll without rest, so a thread that has nothing to do and yet does not look at the clock for
//! [`STALL`] was off its CPU, or its CPU was the hypervisor's. The core cannot cause that: the generator never runs its
//! code, and a worker's gap counts only between its turns. Within a turn a stall cannot be told from slow code and is the
//! core's, but where the kernel says that the thread was put off its CPU without having slept. A packet is *disturbed*
//! when it was due in such a gap, was in hand, or waited behind the backlog that the gap left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Time between two looks at the clock that a polling thread never takes by itself, nanoseconds.
pub const STALL: u64 = 5_000;

/// A backlog is worked off within this many times the stall's length, or it is the core that is too slow.
const BACKLOG: u64 = 10;

/// The last stall of a generator, told to its worker. It lasts until what was due meanwhile has left.
#[derive(Debug, Default)]
pub struct LastStall {
    began: AtomicU64,
    ended: AtomicU64,
}

/// A generator's side of it.
#[derive(Debug)]
pub struct Lookout {
    told: Arc<LastStall>,
    /// When the generator looked at the clock last.
    last: u64,
    /// Until when the last stall explains that packets leave late.
    excused: u64,
}

impl Lookout {
    /// One that tells `told`.
    pub fn new(told: Arc<LastStall>) -> Self {
        Self { told, last: 0, excused: 0 }
    }

    /// The generator looks at the clock; `next_due` is when its next packet is, or was, due. To be called before packets
    /// are sent: whoever receives them knows of the stall.
    #[inline]
    pub fn look(&mut self, now: u64, next_due: impl FnOnce() -> Option<u64>) {
        let last = std::mem::replace(&mut self.last, now);
        if last > 0 && now.saturating_sub(last) > STALL {
            self.stalled(last, now);
        } else if now < self.excused {
            if next_due().is_some_and(|due| due + STALL < now) {
                self.told.ended.store(now, Ordering::Relaxed);
            } else {
                self.excused = 0;
            }
        }
    }

    #[cold]
    fn stalled(&mut self, last: u64, now: u64) {
        if self.excused <= last {
            self.told.began.store(last, Ordering::Relaxed);
        }
        self.excused = self.excused.max(now + BACKLOG * (now - last));
        self.told.ended.store(now, Ordering::Relaxed);
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

    /// The worker was put off its CPU for so long in a turn that has ended.
    #[inline]
    pub fn put_off(&mut self, duration: u64, turn_ended: u64) {
        if duration > STALL {
            self.disturb(turn_ended - duration, turn_ended);
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

    /// Until when a packet must have been due to be disturbed, of those that are in hand in the turn begun at `begin`: all of
    /// them behind a backlog, else those for which the generator was away.
    #[inline]
    pub fn disturbed_until(&mut self, begin: u64, generator: &LastStall) -> u64 {
        let ended = generator.ended.load(Ordering::Relaxed);
        if ended != self.known {
            self.known = ended;
            self.disturb(generator.began.load(Ordering::Relaxed), ended);
        }
        if begin < self.until { u64::MAX } else { ended }
    }

    #[cold]
    fn disturb(&mut self, began: u64, ended: u64) {
        self.until = self.until.max(ended + BACKLOG * ended.saturating_sub(began));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Witness {
        /// Whether a packet due at `due` is disturbed that is in hand in the turn begun at `begin`.
        fn is_disturbed(&mut self, begin: u64, due: u64, generator: &LastStall) -> bool {
            due < self.disturbed_until(begin, generator)
        }
    }

    #[test]
    fn a_gap_between_turns_disturbs_until_the_backlog_is_gone() {
        let (mut witness, generator) = (Witness::default(), LastStall::default());
        let is_disturbed = |witness: &mut Witness, at: u64| witness.is_disturbed(at, at, &generator);
        witness.begin(1_000_000);
        assert!(!is_disturbed(&mut witness, 1_000_000));
        // A long turn is the worker's own.
        witness.end(1_900_000, false);
        witness.begin(1_900_000 + STALL);
        assert!(!is_disturbed(&mut witness, 1_900_000 + STALL));
        witness.end(2_000_000, false);
        witness.begin(2_100_000);
        assert!(is_disturbed(&mut witness, 2_100_000));
        witness.end(2_110_000, false);
        assert!(is_disturbed(&mut witness, 2_110_000), "the backlog");
        witness.end(2_120_000, true);
        assert!(!is_disturbed(&mut witness, 2_120_000));
    }

    #[test]
    fn a_turn_in_which_the_worker_was_put_off_is_disturbed() {
        let (mut witness, generator) = (Witness::default(), LastStall::default());
        let is_disturbed = |witness: &mut Witness, at: u64| witness.is_disturbed(at, at, &generator);
        witness.begin(1_000_000);
        witness.put_off(STALL, 1_900_000);
        assert!(!is_disturbed(&mut witness, 1_000_000));
        witness.put_off(800_000, 1_900_000);
        assert!(is_disturbed(&mut witness, 1_000_000), "what was in hand");
        witness.end(1_900_000, false);
        assert!(is_disturbed(&mut witness, 1_901_000), "the backlog");
        witness.end(1_910_000, true);
        assert!(!is_disturbed(&mut witness, 1_911_000));
    }

    #[test]
    fn a_core_that_does_not_catch_up_is_not_excused() {
        let (mut witness, generator) = (Witness::default(), LastStall::default());
        witness.end(1_000_000, true);
        witness.begin(1_010_000);
        let late = 1_010_000 + BACKLOG * 10_000;
        witness.end(late, false);
        assert!(!witness.is_disturbed(late, late, &generator));
    }

    #[test]
    fn a_stall_of_the_generator_lasts_until_it_has_caught_up() {
        let generator = Arc::new(LastStall::default());
        let (mut witness, mut lookout) = (Witness::default(), Lookout::new(Arc::clone(&generator)));
        lookout.look(1_000_000, || None);
        lookout.look(1_000_000 + STALL, || None);
        assert!(!witness.is_disturbed(1_000_000 + STALL, 1_000_000, &generator));
        lookout.look(2_000_000, || Some(1_100_000));
        assert!(witness.is_disturbed(2_000_500, 1_100_000, &generator), "due while it was away");
        // The worker is done with what has come so far, the generator is not.
        witness.end(2_001_000, true);
        lookout.look(2_002_000, || Some(1_500_000));
        lookout.look(2_004_000, || Some(1_990_000));
        witness.end(2_005_000, true);
        assert!(witness.is_disturbed(2_005_100, 1_990_000, &generator));
        lookout.look(2_006_000, || Some(2_003_000));
        witness.end(2_007_000, true);
        assert!(!witness.is_disturbed(2_007_100, 2_006_500, &generator), "it has caught up");
        lookout.look(2_009_000, || Some(2_000_000));
        assert!(!witness.is_disturbed(2_009_100, 2_006_500, &generator), "and is late by itself now");
    }

    #[test]
    fn a_generator_that_does_not_catch_up_is_not_excused() {
        let generator = Arc::new(LastStall::default());
        let (mut witness, mut lookout) = (Witness::default(), Lookout::new(Arc::clone(&generator)));
        lookout.look(1_000_000, || None);
        lookout.look(1_010_000, || Some(1_000_000));
        for at in (1_012_000..1_200_000).step_by(2_000) {
            lookout.look(at, || Some(1_000_500));
        }
        let last = 1_010_000 + BACKLOG * 10_000;
        witness.disturbed_until(1_200_000, &generator);
        witness.end(1_200_000, true);
        assert!(witness.is_disturbed(1_200_100, last - 3_000, &generator));
        assert!(!witness.is_disturbed(1_200_100, last, &generator));
    }
}
