//! The watchdog of the event loop: how long each iteration took, and an alarm with its phase above a limit.

use std::fmt;

use super::histogram::Histogram;
use t2s_sys::clock::thread_cpu_nanos;

/// Iterations between two looks at the thread's CPU clock, which is a real system call.
const CPU_EVERY: u32 = 256;

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

/// Measures iterations.
#[derive(Debug)]
pub(super) struct LoopWatchdog {
    limit: u64,
    started: u64,
    phase: &'static str,
    phase_started: u64,
    /// The longest phase of this iteration.
    longest: (&'static str, u64),
    /// CPU time at some moment before this iteration started.
    cpu: u64,
    since_cpu: u32,
    pub(super) longest_wall: u64,
    pub(super) histogram: Histogram,
}

impl LoopWatchdog {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            started: 0,
            phase: "events",
            phase_started: 0,
            longest: ("events", 0),
            cpu: thread_cpu_nanos(),
            since_cpu: 0,
            longest_wall: 0,
            histogram: Histogram::default(),
        }
    }

    /// A wait that may last is about to begin: a cheap moment to look at the CPU clock.
    pub(super) fn wait(&mut self) {
        if self.limit != 0 && self.since_cpu >= CPU_EVERY / 8 {
            self.cpu = thread_cpu_nanos();
            self.since_cpu = 0;
        }
    }

    /// An iteration begins.
    pub(super) fn start(&mut self, now: u64) {
        self.since_cpu += 1;
        if self.limit != 0 && self.since_cpu >= CPU_EVERY {
            self.cpu = thread_cpu_nanos();
            self.since_cpu = 0;
        }
        self.started = now;
        self.phase = "events";
        self.phase_started = now;
        self.longest = ("events", 0);
    }

    /// The iteration enters a phase.
    #[inline]
    pub(super) fn phase(&mut self, name: &'static str) {
        if self.limit != 0 {
            let now = t2s_sys::clock::monotonic_nanos();
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_iteration_raises_an_alarm_with_its_phase() {
        let mut watchdog = LoopWatchdog::new(1_000_000);
        let now = t2s_sys::clock::monotonic_nanos();
        watchdog.start(now);
        watchdog.phase("device");
        std::thread::sleep(std::time::Duration::from_millis(3));
        watchdog.phase("timers");
        let alarm = watchdog.end(t2s_sys::clock::monotonic_nanos()).unwrap();
        assert_eq!(alarm.phase, "device");
        assert!(alarm.off_cpu > 1_000_000, "{alarm}");
        watchdog.start(now);
        assert!(watchdog.end(now + 1_000).is_none());
        assert_eq!((watchdog.histogram.buckets[0], watchdog.histogram.count), (1, 2));
    }
}
