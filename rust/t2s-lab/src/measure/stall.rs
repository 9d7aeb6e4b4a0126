//! Stalls of the machine: who sees them, and which packets they delayed.
//!
//! Generator and workers poll without rest, so a thread that has nothing to do and yet does not look at the clock for
//! [`STALL`] was off its CPU, or its CPU was the hypervisor's. The core cannot cause that: the generator never runs its
//! code, and a worker's gap counts only between its iterations, to which belongs what the core gets ready behind them.
//! Within an iteration a stall cannot be told from slow code and is the core's, but where the kernel says that the
//! thread was put off its CPU without having slept. A packet is *disturbed* when it was due in such a gap, was in hand,
//! or waited behind the backlog that the gap left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Time between two looks at the clock that a polling thread never takes by itself, nanoseconds.
pub const STALL: u64 = 5_000;

/// A backlog is worked off within this many times the stall's length, or it is the core that is too slow.
const BACKLOG: u64 = 10;

/// What an iteration of a generator that catches up takes at most, nanoseconds: it sends a burst.
const BURST: u64 = 50_000;

/// The last stall of a generator, told to its worker. It lasts until what was due meanwhile has left.
#[derive(Debug, Default)]
pub struct LastStall {
    began: AtomicU64,
    /// Written after the others, and read before them.
    ended: AtomicU64,
    /// Until when its backlog explains that packets wait.
    excused: AtomicU64,
}

/// A generator's side of it.
#[derive(Debug)]
pub struct GeneratorStallDetector {
    told: Arc<LastStall>,
    /// When the generator looked at the clock last.
    last: u64,
    /// Until when the last stall explains that packets leave late; 0 once it has caught up.
    excused: u64,
}

impl GeneratorStallDetector {
    /// One that tells `told`.
    pub fn new(told: Arc<LastStall>) -> Self {
        Self { told, last: 0, excused: 0 }
    }

    /// The generator looks at the clock; `next_due` is when its next packet is, or was, due. To be called before
    /// packets are sent: whoever receives them knows of the stall.
    #[inline]
    pub fn look(&mut self, now: u64, next_due: impl FnOnce() -> Option<u64>) {
        let last = std::mem::replace(&mut self.last, now);
        let catches_up = now < self.excused;
        if last > 0 && now.saturating_sub(last) > if catches_up { BURST } else { STALL } {
            self.stalled(last, now);
        } else if catches_up {
            if next_due().is_some_and(|due| due + STALL < now) {
                self.told.ended.store(now, Ordering::Release);
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
        self.told.excused.store(self.excused, Ordering::Relaxed);
        self.told.ended.store(now, Ordering::Release);
    }
}

/// Tells disturbed packets of one worker from the others.
#[derive(Debug, Default)]
pub struct StallDetector {
    /// When the worker was seen last.
    seen: u64,
    /// Packets that are taken up before this time are behind the backlog of a stall of the worker.
    until: u64,
    /// The generator's last stall as it was known last: its end, and until when packets may be behind its backlog.
    known: u64,
    behind: u64,
}

/// Which of the packets in hand are disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StallWindow {
    /// All of them: they were behind a backlog.
    all: bool,
    /// Else those that were due from then on…
    from: u64,
    /// … until then: the generator was away.
    to: u64,
}

impl StallWindow {
    /// Whether it is one for a packet that was due at `due`.
    #[inline]
    pub fn covers(&self, due: u64) -> bool {
        self.all || self.from <= due && due < self.to
    }
}

impl StallDetector {
    /// An iteration begins; returns for how long the worker had been away before it, 0 if for no longer than an
    /// iteration takes anyway.
    #[inline]
    pub fn begin(&mut self, now: u64) -> u64 {
        let gap = now.saturating_sub(self.seen);
        if self.seen == 0 || gap <= STALL {
            return 0;
        }
        self.disturb(self.seen, now);
        gap
    }

    /// An iteration has ended; with `drained` it had found no packet waiting.
    #[inline]
    pub fn end(&mut self, now: u64, drained: bool) {
        self.seen = now;
        if drained {
            (self.until, self.behind) = (0, 0);
        }
    }

    /// The worker was put off its CPU for so long in an iteration that has ended. To be told after
    /// [`StallDetector::end`], which knows what waited before it.
    #[inline]
    pub fn put_off(&mut self, duration: u64, turn_ended: u64) {
        if duration > STALL {
            self.disturb(turn_ended - duration, turn_ended);
        }
    }

    /// What excuses packets that are in hand in the iteration begun at `begin`.
    #[inline]
    pub fn excuse(&mut self, begin: u64, generator: &LastStall) -> StallWindow {
        let to = generator.ended.load(Ordering::Acquire);
        let from = generator.began.load(Ordering::Relaxed);
        if to != self.known {
            self.known = to;
            self.behind = generator.excused.load(Ordering::Relaxed);
        }
        // An iteration begun before the stall cannot hold what that left behind.
        StallWindow { all: begin < self.until || from <= begin && begin < self.behind, from, to }
    }

    #[cold]
    fn disturb(&mut self, began: u64, ended: u64) {
        self.until = self.until.max(ended + BACKLOG * ended.saturating_sub(began));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl StallDetector {
        /// Whether a packet due at `due` is disturbed that is in hand in the iteration begun at `begin`.
        fn is_disturbed(&mut self, begin: u64, due: u64, generator: &LastStall) -> bool {
            self.excuse(begin, generator).covers(due)
        }
    }

    #[test]
    fn a_gap_between_turns_disturbs_until_the_backlog_is_gone() {
        let (mut detector, generator) = (StallDetector::default(), LastStall::default());
        let is_disturbed = |detector: &mut StallDetector, at: u64| detector.is_disturbed(at, at, &generator);
        detector.begin(1_000_000);
        assert!(!is_disturbed(&mut detector, 1_000_000));
        // A long iteration is the worker's own.
        detector.end(1_900_000, false);
        detector.begin(1_900_000 + STALL);
        assert!(!is_disturbed(&mut detector, 1_900_000 + STALL));
        detector.end(2_000_000, false);
        detector.begin(2_100_000);
        assert!(is_disturbed(&mut detector, 2_100_000));
        detector.end(2_110_000, false);
        assert!(is_disturbed(&mut detector, 2_110_000), "the backlog");
        detector.end(2_120_000, true);
        assert!(!is_disturbed(&mut detector, 2_120_000));
    }

    #[test]
    fn a_turn_in_which_the_worker_was_put_off_is_disturbed() {
        let (mut detector, generator) = (StallDetector::default(), LastStall::default());
        let is_disturbed = |detector: &mut StallDetector, at: u64| detector.is_disturbed(at, at, &generator);
        detector.begin(1_000_000);
        detector.end(1_900_000, false);
        detector.put_off(STALL, 1_900_000);
        assert!(!is_disturbed(&mut detector, 1_000_000));
        detector.put_off(800_000, 1_900_000);
        assert!(is_disturbed(&mut detector, 1_000_000), "what was in hand");
        assert!(is_disturbed(&mut detector, 1_901_000), "the backlog");
        detector.end(1_910_000, true);
        assert!(!is_disturbed(&mut detector, 1_911_000));
        // An iteration without packets, in which some came.
        detector.end(2_900_000, true);
        detector.put_off(800_000, 2_900_000);
        assert!(is_disturbed(&mut detector, 2_900_100));
    }

    #[test]
    fn a_core_that_does_not_catch_up_is_not_excused() {
        let (mut detector, generator) = (StallDetector::default(), LastStall::default());
        detector.end(1_000_000, true);
        detector.begin(1_010_000);
        let late = 1_010_000 + BACKLOG * 10_000;
        detector.end(late, false);
        assert!(!detector.is_disturbed(late, late, &generator));
    }

    #[test]
    fn a_stall_of_the_generator_lasts_until_it_has_caught_up() {
        let generator = Arc::new(LastStall::default());
        let (mut detector, mut generator_detector) =
            (StallDetector::default(), GeneratorStallDetector::new(Arc::clone(&generator)));
        generator_detector.look(1_000_000, || None);
        generator_detector.look(1_000_000 + STALL, || None);
        assert!(!detector.is_disturbed(1_000_000 + STALL, 1_000_000, &generator));
        generator_detector.look(2_000_000, || Some(1_100_000));
        assert!(detector.is_disturbed(2_000_500, 1_100_000, &generator), "due while it was away");
        // The worker is done with what has come so far, the generator is not.
        detector.end(2_001_000, true);
        generator_detector.look(2_002_000, || Some(1_500_000));
        generator_detector.look(2_010_000, || Some(1_990_000));
        detector.end(2_011_000, true);
        assert!(detector.is_disturbed(2_011_100, 1_990_000, &generator));
        generator_detector.look(2_012_000, || Some(2_009_000));
        detector.end(2_013_000, true);
        assert!(!detector.is_disturbed(2_013_100, 2_012_500, &generator), "it has caught up");
        generator_detector.look(2_016_000, || Some(2_000_000));
        assert!(!detector.is_disturbed(2_016_100, 2_012_500, &generator), "and is late by itself now");
    }

    #[test]
    fn a_stall_of_the_generator_excuses_nothing_before_it() {
        let generator = Arc::new(LastStall::default());
        let (mut detector, mut generator_detector) =
            (StallDetector::default(), GeneratorStallDetector::new(Arc::clone(&generator)));
        // A long iteration of the core, from 1 to 6 ms, and a hiccup of the generator within.
        detector.end(1_000_000, false);
        generator_detector.look(5_000_000, || None);
        generator_detector.look(5_006_000, || None);
        assert!(!detector.is_disturbed(1_000_000, 999_000, &generator), "what was in hand");
        detector.end(6_000_000, false);
        assert!(!detector.is_disturbed(6_000_000, 4_999_000, &generator), "what waited for the iteration");
        assert!(detector.is_disturbed(6_000_000, 5_003_000, &generator));
        assert!(!detector.is_disturbed(6_000_000, 5_006_000, &generator));
    }

    #[test]
    fn a_generator_that_does_not_catch_up_is_not_excused() {
        for step in [2_000, STALL + 1_000] {
            let generator = Arc::new(LastStall::default());
            let (mut detector, mut generator_detector) =
                (StallDetector::default(), GeneratorStallDetector::new(Arc::clone(&generator)));
            generator_detector.look(1_000_000, || None);
            generator_detector.look(1_010_000, || Some(1_000_000));
            let last = 1_010_000 + BACKLOG * 10_000;
            let mut at = 1_010_000;
            while at + step < last {
                at += step;
                generator_detector.look(at, || Some(1_000_500));
                detector.excuse(at, &generator);
                detector.end(at, false);
            }
            assert!(detector.is_disturbed(last - 1, last - 1, &generator));
            assert!(!detector.is_disturbed(last, last, &generator), "neither is a core behind it");
        }
    }
}
