//! When unused memory is given back to the system: after work, not during it.
//!
//! Promises that memory goes back within a bounded time although a trickle of work goes on, and that a worker without
//! work is not woken for ever.

/// Trims after work: the pool takes for idle what nobody has needed over two intervals, so the third finds it.
const TRIMS: u8 = 3;

/// When unused memory is to be given back.
pub(super) enum Trim {
    /// Now; `last` when nothing more is to come before the next work.
    Now {
        /// The last of its row.
        last: bool,
    },
    /// At this time, nanoseconds, unless work comes first.
    At(u64),
    /// Nothing was used since the last time.
    Never,
}

/// Says when a trim is due.
#[derive(Debug, Default)]
pub(super) struct TrimTimer {
    /// Work was done since the last trim: the first of it and the last of it at these times.
    busy: Option<(u64, u64)>,
    /// Trims since work was done last.
    trims: u8,
}

impl TrimTimer {
    /// Work was done that may have left memory behind.
    pub(super) fn worked(&mut self, now: u64) {
        let first = self.busy.filter(|_| self.trims == 0).map_or(now, |(first, _)| first);
        self.busy = Some((first, now));
        self.trims = 0;
    }

    /// When memory may be given back: [`TRIMS`] times after a time without work, `quiet` apart; and `latest` after the
    /// first work at the latest, since a trickle of packets must not keep what a burst has left.
    pub(super) fn poll(&mut self, now: u64, quiet: u64, latest: u64) -> Trim {
        let Some((first, last)) = self.busy else { return Trim::Never };
        let at = (last + quiet).min(first + latest);
        if now < at {
            return Trim::At(at);
        }
        self.trims += 1;
        let more = self.trims < TRIMS;
        self.busy = more.then_some((now, now));
        Trim::Now { last: !more }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trims_come_after_work_and_end() {
        let mut timer = TrimTimer::default();
        assert!(matches!(timer.poll(5, 10, 50), Trim::Never));
        timer.worked(5);
        assert!(matches!(timer.poll(6, 10, 50), Trim::At(15)));
        for now in [15, 25, 35] {
            let Trim::Now { last } = timer.poll(now, 10, 50) else { panic!("no trim at {now}") };
            assert_eq!(last, now == 35);
            assert!(matches!(timer.poll(now + 1, 10, 50), Trim::At(_) | Trim::Never));
        }
        assert!(matches!(timer.poll(60, 10, 50), Trim::Never));
    }

    #[test]
    fn a_trickle_of_work_does_not_put_the_trim_off_for_ever() {
        let mut timer = TrimTimer::default();
        let mut trims = Vec::new();
        for now in (0..200).step_by(5) {
            timer.worked(now);
            if matches!(timer.poll(now, 10, 50), Trim::Now { last: false }) {
                trims.push(now);
            }
        }
        assert_eq!(trims, [50, 105, 160]);
    }
}
