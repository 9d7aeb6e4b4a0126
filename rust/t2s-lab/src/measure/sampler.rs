//! What the control thread watches while a phase runs: resident memory, CPU windows of the workers, hiccups.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that a worker or generator publishes about every 10 ms, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Gauge {
    /// CPU time of the thread, nanoseconds.
    pub cpu: AtomicU64,
    /// Its part of empty polls, nanoseconds.
    pub idle: AtomicU64,
    /// Packets sent (generator) or dealt with (worker).
    pub packets: AtomicU64,
    /// Flows now (worker).
    pub flows: AtomicU64,
}

/// Time between two looks at resident memory, nanoseconds.
const RSS_EVERY: u64 = 100_000_000;

/// Samples of resident memory that are kept; when full, every second one goes and the time between two doubles.
const RSS_SAMPLES: usize = 4_096;

/// Length of a CPU window, nanoseconds; that of the measured time where that is shorter.
const WINDOW: u64 = 1_000_000_000;

/// A window ends so long after the measured time at most, nanoseconds: what comes then is the drain's.
const LATE: u64 = 50_000_000;

/// CPU windows that are kept: 7 days.
const WINDOWS: usize = 604_800;

/// Samples over the measured window.
#[derive(Debug)]
pub struct Sampler {
    begin: u64,
    end: u64,
    /// Milliseconds since the begin, and bytes.
    pub rss: Vec<(u64, u64)>,
    rss_every: u64,
    next_rss: u64,
    /// The busiest worker's CPU use in each window, percent, without empty polls.
    pub windows: Vec<f64>,
    window: u64,
    next_window: u64,
    /// CPU and idle time of each worker at the begin of the window.
    last: Vec<(u64, u64)>,
    /// Longest oversleep of the control thread, nanoseconds.
    pub hiccup_max: u64,
}

impl Sampler {
    /// Samples between `begin` and `end`, nanoseconds of the lab's clock.
    pub fn new(begin: u64, end: u64) -> Self {
        Self {
            begin,
            end,
            rss: Vec::with_capacity(RSS_SAMPLES),
            rss_every: RSS_EVERY,
            next_rss: begin,
            windows: Vec::new(),
            window: WINDOW.min(end.saturating_sub(begin)),
            next_window: begin,
            last: Vec::new(),
            hiccup_max: 0,
        }
    }

    /// How long until something is due, at most `most`, nanoseconds: each look takes a CPU from a thread that is
    /// measured.
    pub fn rest(&self, now: u64, most: u64) -> u64 {
        if now < self.begin || now > self.end + LATE {
            return most;
        }
        let until = |due: u64| due.max(now + 1) - now;
        if now <= self.end { until(self.next_rss.min(self.next_window)) } else { until(self.next_window).min(most) }
    }

    /// Looks at what is due. `overslept` is how much longer than asked the caller has just slept.
    pub fn look(&mut self, now: u64, overslept: u64, workers: &[Gauge]) {
        if now < self.begin || now > self.end + LATE {
            return;
        }
        self.hiccup_max = self.hiccup_max.max(overslept);
        if now >= self.next_rss && now <= self.end {
            self.next_rss = now + self.rss_every;
            self.sample_rss(now);
        }
        if now >= self.next_window {
            self.close_window(now, workers);
        }
    }

    fn sample_rss(&mut self, now: u64) {
        let Some(bytes) = resident_bytes() else { return };
        self.rss.push(((now - self.begin) / 1_000_000, bytes));
        if self.rss.len() == RSS_SAMPLES {
            let mut keep = false;
            self.rss.retain(|_| {
                keep = !keep;
                keep
            });
            self.rss_every *= 2;
        }
    }

    fn close_window(&mut self, now: u64, workers: &[Gauge]) {
        let read = |gauge: &Gauge| (gauge.cpu.load(Ordering::Relaxed), gauge.idle.load(Ordering::Relaxed));
        let current: Vec<(u64, u64)> = workers.iter().map(read).collect();
        let wall = now - (self.next_window - self.window.min(self.next_window));
        if self.last.len() == current.len() && self.windows.len() < WINDOWS {
            let busy = |(old, new): (&(u64, u64), &(u64, u64))| {
                let (cpu, idle) = (new.0.saturating_sub(old.0), new.1.saturating_sub(old.1));
                100.0 * cpu.saturating_sub(idle) as f64 / wall as f64
            };
            self.windows.push(self.last.iter().zip(&current).map(busy).fold(0.0, f64::max));
        }
        self.last = current;
        self.next_window = now + self.window;
    }
}

/// Resident memory of this process, bytes (`/proc/self/statm`, second field, in pages); `None` where there is none.
pub fn resident_bytes() -> Option<u64> {
    /// Bytes of a page on the systems that this runs on; `smaps` and `VmRSS` agree.
    const PAGE: u64 = 4096;
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * PAGE)
}

/// File descriptors that this process has open; 0 where nobody says.
pub fn open_files() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_the_busiest_workers_without_its_idle_time() {
        let gauges = [Gauge::default(), Gauge::default()];
        let mut sampler = Sampler::new(WINDOW, 10 * WINDOW);
        sampler.look(WINDOW / 2, 5, &gauges);
        sampler.look(WINDOW, 7, &gauges);
        assert!(sampler.windows.is_empty() && sampler.hiccup_max == 7);
        gauges[1].cpu.store(WINDOW, Ordering::Relaxed);
        gauges[1].idle.store(WINDOW * 3 / 4, Ordering::Relaxed);
        sampler.look(2 * WINDOW, 0, &gauges);
        assert_eq!(sampler.windows, [25.0]);
    }

    #[test]
    fn a_short_phase_is_one_window_and_the_drain_none() {
        let gauges = [Gauge::default()];
        let length = WINDOW * 4 / 5;
        let mut sampler = Sampler::new(WINDOW, WINDOW + length);
        sampler.look(WINDOW, 0, &gauges);
        gauges[0].cpu.store(length / 2, Ordering::Relaxed);
        sampler.look(WINDOW + RSS_EVERY, 0, &gauges);
        assert!(sampler.windows.is_empty());
        sampler.look(WINDOW + length, 0, &gauges);
        assert_eq!(sampler.windows, [50.0]);
        for late in 1..40 {
            sampler.look(WINDOW + length + late * RSS_EVERY, 0, &gauges);
        }
        assert_eq!(sampler.windows.len(), 1);
    }

    #[test]
    fn it_is_woken_for_what_is_due_and_for_nothing_else() {
        let mut sampler = Sampler::new(WINDOW, 3 * WINDOW);
        assert_eq!(sampler.rest(WINDOW / 2, 10), 10);
        sampler.look(WINDOW, 0, &[]);
        assert_eq!(sampler.rest(WINDOW, 10), RSS_EVERY);
        assert_eq!(sampler.rest(WINDOW + RSS_EVERY, 10), 1);
        assert_eq!(sampler.rest(4 * WINDOW, 10), 10);
    }

    #[test]
    fn memory_is_sampled_within_bounds() {
        let mut sampler = Sampler::new(0, u64::MAX / 2);
        for at in 0..20_000 {
            sampler.look(at * RSS_EVERY, 0, &[]);
        }
        assert!(sampler.rss.len() <= RSS_SAMPLES && sampler.rss.len() > RSS_SAMPLES / 4);
        assert!(sampler.rss.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(sampler.rss[0].1 > 0);
    }
}
