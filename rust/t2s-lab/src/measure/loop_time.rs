//! The watchdog of a loop: how long its iterations take, on and off the CPU, and an alarm when one is too long.
//!
//! A reading of the thread's clocks costs half a microsecond, too much for each iteration. They are read every
//! [`REFRESH`] and at the end of an iteration that was long; what is missing between wall and CPU time since the last
//! reading was time off the CPU, and all of it that fits is charged to the long iteration (the others in between were
//! short), but what gaps between iterations account for. Whose time that was the kernel says: a thread that has not
//! slept since then, nor has it waited for anything, was put off its CPU.
//!
//! A guest's CPU clock runs on while the hypervisor has its CPU, and not all of that is reported as stolen. The
//! kernel's ticks tell it: a thread that runs for longer than one of them meets the next.

use serde::Serialize;

use crate::measure::recorder::Recorder;
use t2s_sys::clock::{thread_cpu_nanos, thread_sleeps, thread_tick_nanos, tick_nanos};

/// One loop iteration that took too long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoopStall {
    /// When, milliseconds from the begin of the measured window.
    pub at_ms: i64,
    /// The longest stage of the iteration.
    pub stage: &'static str,
    /// Length of the iteration.
    pub wall_ns: u64,
    /// Part of it that the thread was off the CPU.
    pub off_cpu_ns: u64,
    /// Part of that which began with the thread's own sleep or wait, for a lock say: the core's, not the machine's.
    pub waited_ns: u64,
}

/// Time between two readings of the CPU clock and the count of sleeps, nanoseconds: 0.3 % of the thread.
const REFRESH: u64 = 250_000;

/// An iteration this long has its CPU time looked at, nanoseconds; shorter ones are taken as wholly on the CPU.
const LONG: u64 = 100_000;

/// Alarms that are kept.
const ALARMS: usize = 64;

/// Parts of an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Part {
    /// Reading the device into buffers.
    Device,
    /// The stack: packets and timers.
    Core,
    /// The upstream.
    Upstream,
    /// Building packets and writing them to the device.
    Transmit,
}

impl Part {
    /// Names, in order.
    pub const NAMES: [&'static str; 4] = ["device", "core", "upstream", "transmit"];
}

/// Measures iterations.
pub struct LoopTimer {
    watchdog: bool,
    limit: u64,
    /// When the CPU clock was read last, what it said, the thread's ticks, and how often it had slept.
    read_at: u64,
    cpu: u64,
    ticks: Option<u64>,
    sleeps: u64,
    /// Nanoseconds between two ticks.
    tick: Option<u64>,
    /// Time since then that the loop was away between iterations, nanoseconds.
    gaps: u64,
    /// The window's origin, nanoseconds; stalls count from it.
    pub origin: u64,
    /// All iterations of the window.
    pub recorder: Recorder,
    /// Longest time on the CPU in one iteration.
    pub max_on_cpu: u64,
    /// Longest time off the CPU in one iteration.
    pub max_off_cpu: u64,
    /// Longest time off the CPU in one iteration in which the thread had slept or waited by itself.
    pub max_waited: u64,
    /// Iterations above the limit.
    pub stalls: Vec<LoopStall>,
    /// Time by part.
    pub parts: [u64; 4],
}

impl LoopTimer {
    /// A watchdog with an alarm above `limit` nanoseconds; without `watchdog` only the wall time is recorded.
    pub fn new(watchdog: bool, limit: u64) -> Self {
        Self {
            watchdog,
            limit,
            read_at: 0,
            cpu: 0,
            ticks: None,
            sleeps: 0,
            tick: tick_nanos(),
            gaps: 0,
            origin: 0,
            recorder: Recorder::new(),
            max_on_cpu: 0,
            max_off_cpu: 0,
            max_waited: 0,
            stalls: Vec::with_capacity(ALARMS),
            parts: [0; 4],
        }
    }

    /// Forgets what came before the window.
    pub fn begin(&mut self, now: u64) {
        *self = Self::new(self.watchdog, self.limit);
        self.origin = now;
        self.refresh(now);
    }

    /// Whether iterations are timed by part.
    #[inline]
    pub fn by_part(&self) -> bool {
        self.watchdog
    }

    /// To be called between iterations: keeps the CPU reading fresh.
    #[inline]
    pub fn between(&mut self, now: u64) {
        if self.watchdog && now.saturating_sub(self.read_at) > REFRESH {
            self.refresh(now);
        }
    }

    #[cold]
    fn refresh(&mut self, now: u64) {
        self.cpu = thread_cpu_nanos();
        self.ticks = thread_tick_nanos();
        self.sleeps = thread_sleeps();
        self.read_at = now;
        self.gaps = 0;
    }

    /// The loop was away for so long between two iterations, nanoseconds.
    #[inline]
    pub fn away(&mut self, gap: u64) {
        self.gaps += gap;
    }

    /// An iteration has ended; `stamps` are its begin and the ends of its parts (all but the first and last may be
    /// equal). Returns for how long of it the thread had been put off its CPU, as far as that is known.
    #[inline]
    pub fn record(&mut self, stamps: &[u64; 5]) -> u64 {
        let wall = stamps[4].saturating_sub(stamps[0]);
        self.recorder.record(wall);
        if !self.watchdog {
            self.max_on_cpu = self.max_on_cpu.max(wall);
            return 0;
        }
        for (part, pair) in self.parts.iter_mut().zip(stamps.windows(2)) {
            *part += pair[1].saturating_sub(pair[0]);
        }
        if wall < LONG {
            self.max_on_cpu = self.max_on_cpu.max(wall);
            return 0;
        }
        self.examine(stamps, wall)
    }

    #[cold]
    fn examine(&mut self, stamps: &[u64; 5], wall: u64) -> u64 {
        let (cpu_before, read_before, sleeps_before, gaps) = (self.cpu, self.read_at, self.sleeps, self.gaps);
        let ticks_before = self.ticks;
        self.refresh(stamps[4]);
        let ticked = self.ticks.zip(ticks_before).map(|(now, before)| now.saturating_sub(before));
        let on_cpu = time_on_cpu(self.cpu.saturating_sub(cpu_before), ticked.zip(self.tick));
        let off_cpu = stamps[4].saturating_sub(read_before).saturating_sub(on_cpu).saturating_sub(gaps).min(wall);
        self.max_off_cpu = self.max_off_cpu.max(off_cpu);
        self.max_on_cpu = self.max_on_cpu.max(wall - off_cpu);
        let waited = if self.sleeps == sleeps_before { 0 } else { off_cpu };
        self.max_waited = self.max_waited.max(waited);
        if wall > self.limit && self.stalls.len() < ALARMS {
            let part = |at: usize| stamps[at + 1].saturating_sub(stamps[at]);
            let longest = (0..4).max_by_key(|&at| part(at)).unwrap_or(0);
            let at_ms = (stamps[0] as i64 - self.origin as i64) / 1_000_000;
            self.stalls.push(LoopStall {
                at_ms,
                stage: Part::NAMES[longest],
                wall_ns: wall,
                off_cpu_ns: off_cpu,
                waited_ns: waited,
            });
        }
        off_cpu - waited
    }
}

/// How long a thread was on its CPU, by its CPU clock, and by the time that its ticks tell and that between two of
/// them, if anyone counts them.
fn time_on_cpu(clock: u64, ticks: Option<(u64, u64)>) -> u64 {
    ticks.map_or(clock, |(ticked, tick)| clock.min(ticked + tick))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_had_no_ticks_was_the_hypervisors() {
        const MS: u64 = 1_000_000;
        assert_eq!(time_on_cpu(20 * MS, Some((4 * MS, 4 * MS))), 8 * MS);
        assert_eq!(time_on_cpu(12 * MS, Some((12 * MS, 4 * MS))), 12 * MS, "slow code meets its ticks");
        assert_eq!(time_on_cpu(15 * MS, Some((12 * MS, 4 * MS))), 15 * MS, "the last of them may be yet to come");
        assert_eq!(time_on_cpu(MS, Some((0, 4 * MS))), MS);
        assert_eq!(time_on_cpu(20 * MS, None), 20 * MS);
    }

    #[test]
    fn a_long_turn_raises_an_alarm_that_names_its_part() {
        let mut timer = LoopTimer::new(true, 10_000_000);
        timer.begin(1_000);
        timer.record(&[1_000, 1_100, 1_200, 1_300, 1_400]);
        assert!(timer.stalls.is_empty() && timer.max_on_cpu == 400);
        timer.record(&[2_000, 2_100, 2_200, 20_002_200, 20_002_300]);
        assert_eq!((timer.stalls.len(), timer.stalls[0].stage), (1, "upstream"));
        // The thread never ran for those 20 ms of invented time, so they are off the CPU.
        assert!(timer.stalls[0].off_cpu_ns > 10_000_000 && timer.max_on_cpu < 10_000_000);
        assert_eq!(timer.recorder.count(), 2);
        for at in 0..1_000 {
            timer.record(&[at, at, at, at, at + 20_000_000]);
        }
        assert_eq!(timer.stalls.len(), ALARMS);
    }

    #[test]
    fn a_sleep_is_the_threads_own() {
        let clock = crate::measure::clock::now_ns;
        let mut timer = LoopTimer::new(true, 10_000_000);
        timer.begin(clock());
        let start = clock();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let end = clock();
        assert_eq!(timer.record(&[start, start, end, end, end]), 0);
        assert!(timer.max_off_cpu > 1_000_000, "{}", timer.max_off_cpu);
        assert_eq!(timer.max_waited, timer.max_off_cpu);
        // A time in which it neither ran nor slept.
        let later = end + 20_000_000;
        assert!(timer.record(&[end, end, later, later, later]) > 19_000_000);
        // As much between two iterations, the second of which is on the CPU for 3 ms.
        let cpu = thread_cpu_nanos();
        while thread_cpu_nanos() - cpu < 3_000_000 {}
        let (begin, over) = (later + 20_000_000, later + 23_000_000);
        timer.away(begin - later);
        assert!(timer.record(&[begin, begin, over, over, over]) < 1_000_000);
    }

    #[test]
    fn time_on_the_cpu_is_not_called_off() {
        let clock = crate::measure::clock::now_ns;
        let mut timer = LoopTimer::new(true, 1_000);
        timer.begin(clock());
        let (start, cpu) = (clock(), thread_cpu_nanos());
        while thread_cpu_nanos() - cpu < 3_000_000 {}
        let end = clock();
        timer.record(&[start, start, end, end, end]);
        assert!(timer.max_on_cpu > 2_000_000, "{}", timer.max_on_cpu);
    }

    #[test]
    fn without_watchdog_only_the_wall_is_kept() {
        let mut timer = LoopTimer::new(false, 1);
        timer.record(&[0, 0, 0, 0, 20_000_000]);
        assert!(timer.stalls.is_empty() && timer.parts == [0; 4] && timer.recorder.count() == 1);
    }
}
