//! Whether a worker looks a little longer before it goes to sleep.
//!
//! A request and its answer wake a tunnel twice; where the next event follows within microseconds, going to sleep and
//! being woken cost more than the wait itself. So it looks again and again for a moment, but only while the last waits
//! were that short, and it lets every other thread of its CPU go first. A tunnel that is idle, or busy with waits that
//! are longer, never does.

/// Short waits in a row from which it polls.
const WANTED: u8 = 4;
/// Credit at most: so many long waits are taken for chance before it stops.
const MOST: u8 = 16;

/// Learns from the waits of a worker.
#[derive(Debug)]
pub(super) struct BusyPoll {
    /// Longest poll, nanoseconds; 0: never polls.
    limit: u64,
    credit: u8,
}

impl BusyPoll {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, credit: 0 }
    }

    /// How long to poll before the next sleep, nanoseconds; 0: not at all.
    pub(super) fn poll(&self) -> u64 {
        if self.credit >= WANTED { self.limit } else { 0 }
    }

    /// A wait has ended after `waited` nanoseconds, with an event or without.
    pub(super) fn learn(&mut self, waited: u64, woken: bool) {
        if woken && waited < self.limit {
            self.credit = (self.credit + 1).min(MOST);
        } else {
            self.credit /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_polls_while_waits_are_short_and_only_then() {
        let mut busy_poll = BusyPoll::new(50_000);
        for _ in 0..WANTED {
            assert_eq!(busy_poll.poll(), 0);
            busy_poll.learn(10_000, true);
        }
        assert_eq!(busy_poll.poll(), 50_000);
        for _ in 0..100 {
            busy_poll.learn(10_000, true);
        }
        busy_poll.learn(60_000, true);
        assert_eq!(busy_poll.poll(), 50_000, "one long wait is chance");
        for _ in 0..3 {
            busy_poll.learn(1_000, false);
        }
        assert_eq!(busy_poll.poll(), 0);
    }

    #[test]
    fn without_a_limit_it_never_polls() {
        let mut busy_poll = BusyPoll::new(0);
        for _ in 0..100 {
            busy_poll.learn(0, true);
        }
        assert_eq!(busy_poll.poll(), 0);
    }
}
