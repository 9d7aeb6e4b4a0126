//! The lab's clock: nanoseconds from the time-stamp counter, calibrated once against `CLOCK_MONOTONIC`.
//!
//! Promises: never runs backwards on one thread, costs about 10 ns where the counter is invariant and falls back to
//! `clock_gettime` (about 25 ns) where it is not. The calibration is a fact of the machine, not of a lab, so it is the
//! one process-wide value here. Its error over the 10 ms of calibration is a few parts per million, which moves a
//! window's end, never a difference of microseconds.

use std::sync::OnceLock;

use t2s_sys::clock::monotonic_nanos;
use t2s_sys::tsc;

/// Length of the calibration, nanoseconds: 50 ns of reading error in it are 5 ppm.
const CALIBRATION_NS: u64 = 10_000_000;

/// Counter ticks to nanoseconds: `origin_ns + (ticks - origin_ticks) * scale / 2^32`.
#[derive(Clone, Copy, Debug)]
struct Calibration {
    origin_ticks: u64,
    origin_ns: u64,
    scale: u64,
}

static CALIBRATION: OnceLock<Option<Calibration>> = OnceLock::new();

/// Nanoseconds of the lab's clock; the origin is that of `CLOCK_MONOTONIC`.
#[inline]
pub fn now_ns() -> u64 {
    match CALIBRATION.get() {
        Some(Some(calibration)) => convert(*calibration, tsc::read()),
        Some(None) => monotonic_nanos(),
        None => first_call(),
    }
}

#[cold]
fn first_call() -> u64 {
    match CALIBRATION.get_or_init(calibrate) {
        Some(calibration) => convert(*calibration, tsc::read()),
        None => monotonic_nanos(),
    }
}

#[inline]
fn convert(calibration: Calibration, ticks: u64) -> u64 {
    let elapsed = ticks.saturating_sub(calibration.origin_ticks);
    calibration.origin_ns + ((u128::from(elapsed) * u128::from(calibration.scale)) >> 32) as u64
}

fn calibrate() -> Option<Calibration> {
    if !tsc::is_invariant() {
        return None;
    }
    let (origin_ticks, origin_ns) = paired_reading();
    std::thread::sleep(std::time::Duration::from_nanos(CALIBRATION_NS));
    let (ticks, ns) = paired_reading();
    let elapsed_ticks = ticks.checked_sub(origin_ticks).filter(|&ticks| ticks > 0)?;
    let scale = (u128::from(ns.checked_sub(origin_ns)?) << 32) / u128::from(elapsed_ticks);
    (scale > 0).then_some(Calibration { origin_ticks, origin_ns, scale: u64::try_from(scale).ok()? })
}

/// Both clocks at the same moment: the tightest of several tries, so that a preemption between them does not count.
fn paired_reading() -> (u64, u64) {
    let try_once = || {
        let before = tsc::read();
        let ns = monotonic_nanos();
        let after = tsc::read();
        (after.wrapping_sub(before), before.wrapping_add(after.wrapping_sub(before) / 2), ns)
    };
    let (_, ticks, ns) = (0..16).map(|_| try_once()).min().expect("sixteen tries are more than none");
    (ticks, ns)
}

/// What two readings of the clock find between them where nothing is, nanoseconds; measured once, and the least of many
/// tries, so that what the machine does meanwhile is not in it.
pub fn cost_ns() -> f64 {
    const TRIES: u32 = 64;
    const READINGS: u32 = 256;
    static COST: OnceLock<f64> = OnceLock::new();
    *COST.get_or_init(|| {
        let one = || {
            let start = now_ns();
            let end = (0..READINGS).fold(start, |_, _| std::hint::black_box(now_ns()));
            (end - start) as f64 / f64::from(READINGS)
        };
        (0..TRIES).map(|_| one()).fold(f64::INFINITY, f64::min)
    })
}

/// What reading the clock is worth, for the environment of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ClockFacts {
    /// `tsc` or `clock_gettime`.
    pub source: &'static str,
    /// Smallest step between two readings that differ, nanoseconds.
    pub quantum_ns: u64,
    /// Cost of one reading, picoseconds.
    pub cost_ps: u64,
}

/// Measures the clock itself: its quantum and its cost.
pub fn facts() -> ClockFacts {
    const READINGS: u64 = 4096;
    let (mut last, mut quantum) = (now_ns(), u64::MAX);
    for _ in 0..READINGS {
        let now = now_ns();
        if now > last {
            quantum = quantum.min(now - last);
        }
        last = now;
    }
    let source = if matches!(CALIBRATION.get(), Some(Some(_))) { "tsc" } else { "clock_gettime" };
    ClockFacts { source, quantum_ns: quantum, cost_ps: (cost_ns() * 1e3) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_forward_and_stays_with_the_monotonic_clock() {
        let mut last = now_ns();
        for _ in 0..10_000 {
            let now = now_ns();
            assert!(now >= last);
            last = now;
        }
        let apart = now_ns().abs_diff(monotonic_nanos());
        assert!(apart < 1_000_000_000, "{apart} ns from CLOCK_MONOTONIC");
    }

    #[test]
    fn conversion_keeps_its_origin_and_scale() {
        let calibration = Calibration { origin_ticks: 1_000, origin_ns: 5, scale: 1 << 31 };
        assert_eq!(convert(calibration, 1_000), 5);
        assert_eq!(convert(calibration, 3_000), 1_005);
        assert_eq!(convert(calibration, 0), 5, "a reading before the origin does not wrap");
    }

    #[test]
    fn facts_are_plausible() {
        let facts = facts();
        assert!(facts.quantum_ns < 1_000_000 && facts.cost_ps > 0);
        assert!(cost_ns() > 0.0 && (cost_ns() - cost_ns()).abs() < f64::EPSILON, "measured once");
    }
}
