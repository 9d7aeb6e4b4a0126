//! The watchdog of the event loop, its histogram, and when memory may be given back.

use std::fmt;

use super::histogram::Histogram;
use crate::sys::clock::thread_cpu_nanos;

/// Iterations between two looks at the thread's CPU clock, which is a real system call.
const CPU_EVERY: u32 = 256;

/// Trims after work: the pool takes for idle what nobody has needed over two intervals, so the third finds it.
const TRIMS: u8 = 3;

/// An iteration that took longer than the limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alarm {
    phase: &'static str,
    wall: u64,
    phase_wall: u64,
    off_cpu: u64,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |nanos: u64| nanos as f64 / 1e6;
        write!(
            f,
            "{:.1} ms, of these {:.1} ms in {} and at least {:.1} ms off the CPU",
            ms(self.wall),
            ms(self.phase_wall),
            self.phase,
            ms(self.off_cpu)
        )
    }
}

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

/// Measures iterations.
#[derive(Debug)]
pub(super) struct Clockwork {
    limit: u64,
    started: u64,
    phase: &'static str,
    phase_started: u64,
    /// The longest phase of this iteration.
    longest: (&'static str, u64),
    /// CPU time at some moment before this iteration started.
    cpu: u64,
    since_cpu: u32,
    /// Work was done since the last trim: the first of it and the last of it at these times.
    busy: Option<(u64, u64)>,
    /// Trims since work was done last.
    trims: u8,
    pub(super) longest_wall: u64,
    pub(super) histogram: Histogram,
}

impl Clockwork {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            started: 0,
            phase: "events",
            phase_started: 0,
            longest: ("events", 0),
            cpu: thread_cpu_nanos(),
            since_cpu: 0,
            busy: None,
            trims: 0,
            longest_wall: 0,
            histogram: Histogram::default(),
        }
    }

    /// A wait that may last is about to begin: a cheap moment to look at the CPU clock.
    pub(super) fn rest(&mut self) {
        if self.limit != 0 && self.since_cpu >= CPU_EVERY / 8 {
            self.cpu = thread_cpu_nanos();
            self.since_cpu = 0;
        }
    }

    /// An iteration begins; `woken` when something else than time has ended the wait.
    pub(super) fn start(&mut self, now: u64, woken: bool) {
        self.since_cpu += 1;
        if self.limit != 0 && self.since_cpu >= CPU_EVERY {
            self.cpu = thread_cpu_nanos();
            self.since_cpu = 0;
        }
        self.started = now;
        self.phase = "events";
        self.phase_started = now;
        self.longest = ("events", 0);
        if woken {
            self.worked(now);
        }
    }

    /// Work was done that may have left memory behind.
    pub(super) fn worked(&mut self, now: u64) {
        let first = self.busy.filter(|_| self.trims == 0).map_or(now, |(first, _)| first);
        self.busy = Some((first, now));
        self.trims = 0;
    }

    /// The iteration enters a phase.
    #[inline]
    pub(super) fn phase(&mut self, name: &'static str) {
        if self.limit != 0 {
            let now = crate::sys::clock::monotonic_nanos();
            self.close_phase(now);
            self.phase = name;
            self.phase_started = now;
        }
    }

    fn close_phase(&mut self, now: u64) {
        let took = now.saturating_sub(self.phase_started);
        if took > self.longest.1 {
            self.longest = (self.phase, took);
        }
    }

    /// The iteration ends.
    pub(super) fn end(&mut self, now: u64) -> Option<Alarm> {
        let wall = now.saturating_sub(self.started);
        self.longest_wall = self.longest_wall.max(wall);
        self.histogram.record(wall);
        if self.limit == 0 || wall <= self.limit {
            return None;
        }
        self.close_phase(now);
        // CPU time since some moment before the start is an upper bound of this iteration's own.
        let cpu = thread_cpu_nanos();
        let off_cpu = wall.saturating_sub(cpu.saturating_sub(self.cpu));
        self.cpu = cpu;
        self.since_cpu = 0;
        Some(Alarm { phase: self.longest.0, wall, phase_wall: self.longest.1, off_cpu })
    }

    /// When memory may be given back: [`TRIMS`] times after a time without work, `quiet` apart; and `latest` after the
    /// first work at the latest, since a trickle of packets must not keep what a burst has left.
    pub(super) fn trim_due(&mut self, now: u64, quiet: u64, latest: u64) -> Trim {
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
    fn a_long_iteration_raises_an_alarm_with_its_phase() {
        let mut clockwork = Clockwork::new(1_000_000);
        let now = crate::sys::clock::monotonic_nanos();
        clockwork.start(now, true);
        clockwork.phase("device");
        std::thread::sleep(std::time::Duration::from_millis(3));
        clockwork.phase("timers");
        let alarm = clockwork.end(crate::sys::clock::monotonic_nanos()).unwrap();
        assert_eq!(alarm.phase, "device");
        assert!(alarm.off_cpu > 1_000_000, "{alarm}");
        clockwork.start(now, true);
        assert!(clockwork.end(now + 1_000).is_none());
        assert_eq!((clockwork.histogram.buckets[0], clockwork.histogram.count), (1, 2));
    }

    #[test]
    fn trims_come_after_work_and_end() {
        let mut clockwork = Clockwork::new(0);
        assert!(matches!(clockwork.trim_due(5, 10, 50), Trim::Never));
        clockwork.start(5, true);
        assert!(matches!(clockwork.trim_due(6, 10, 50), Trim::At(15)));
        for now in [15, 25, 35] {
            let Trim::Now { last } = clockwork.trim_due(now, 10, 50) else { panic!("no trim at {now}") };
            assert_eq!(last, now == 35);
            assert!(matches!(clockwork.trim_due(now + 1, 10, 50), Trim::At(_) | Trim::Never));
        }
        assert!(matches!(clockwork.trim_due(60, 10, 50), Trim::Never));
    }

    #[test]
    fn a_trickle_of_work_does_not_put_the_trim_off_for_ever() {
        let mut clockwork = Clockwork::new(0);
        let mut trims = Vec::new();
        for now in (0..200).step_by(5) {
            clockwork.start(now, true);
            if matches!(clockwork.trim_due(now, 10, 50), Trim::Now { last: false }) {
                trims.push(now);
            }
        }
        assert_eq!(trims, [50, 105, 160]);
    }
}
