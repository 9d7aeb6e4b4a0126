//! Congestion windows: `NewReno` (RFC 5681, 6582) and CUBIC (RFC 9438), both over byte counts.
//!
//! The controller only sizes the window; what is outstanding, lost or retransmitted is the sender's knowledge. It grows
//! only while the window was what held the sender back, so an idle or chatty flow does not collect credit. `HyStart` is
//! left out: the path to a tunnel's client is one hop in the same machine.

use crate::config::CongestionControl;
use crate::time::Instant;

/// Largest window, bytes: more than any window that can be advertised (RFC 7323, section 2.3).
const WINDOW_MAX: u32 = 1 << 30;

/// CUBIC's constants (RFC 9438, section 4.1 and 4.6).
const CUBIC_C: f32 = 0.4;
const CUBIC_BETA: f32 = 0.7;

/// The window of one flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Controller {
    cwnd: u32,
    ssthresh: u32,
    algorithm: Algorithm,
}

#[derive(Clone, Copy, Debug)]
enum Algorithm {
    NewReno {
        /// Bytes acknowledged towards the next full segment of window.
        acked: u32,
    },
    Cubic(Cubic),
}

/// CUBIC's epoch; windows in segments, times in seconds.
#[derive(Clone, Copy, Debug)]
struct Cubic {
    /// Start of the epoch; `FAR` when none runs.
    epoch: Instant,
    /// Window before the last reduction.
    w_max: f32,
    /// Time until the curve is back at `w_max`.
    k: f32,
    /// What Reno would have by now (section 4.3).
    w_est: f32,
    /// Fraction of growth not yet worth a byte.
    remainder: f32,
}

impl Controller {
    /// The initial window of RFC 6928.
    pub(super) fn new(kind: CongestionControl, mss: u32) -> Self {
        let algorithm = match kind {
            CongestionControl::NewReno => Algorithm::NewReno { acked: 0 },
            CongestionControl::Cubic => {
                Algorithm::Cubic(Cubic { epoch: Instant::FAR, w_max: 0.0, k: 0.0, w_est: 0.0, remainder: 0.0 })
            }
        };
        Self { cwnd: initial_window(mss), ssthresh: u32::MAX, algorithm }
    }

    #[inline]
    pub(super) fn window(&self) -> u32 {
        self.cwnd
    }

    /// New data was acknowledged, outside fast recovery. `limited`: the window was what held the sender back.
    #[inline]
    pub(super) fn on_ack(&mut self, acked: u32, mss: u32, limited: bool, now: Instant, srtt_micros: u32) {
        if !limited {
            return;
        }
        if self.cwnd < self.ssthresh {
            // Slow start with byte counting (RFC 3465); the limit L is left out because acknowledgements of
            // super-segments cover many segments by design.
            self.cwnd = self.cwnd.saturating_add(acked).min(WINDOW_MAX);
            return;
        }
        match &mut self.algorithm {
            Algorithm::NewReno { acked: sum } => {
                *sum = sum.saturating_add(acked);
                if *sum >= self.cwnd {
                    *sum -= self.cwnd;
                    self.cwnd = self.cwnd.saturating_add(mss).min(WINDOW_MAX);
                }
            }
            Algorithm::Cubic(cubic) => {
                self.cwnd = cubic.on_ack(self.cwnd, acked, mss, now, srtt_micros).min(WINDOW_MAX);
            }
        }
    }

    /// Fast recovery begins with `flight` bytes outstanding.
    pub(super) fn on_loss(&mut self, flight: u32, mss: u32) {
        self.reduce(flight, mss);
        self.cwnd = self.ssthresh;
    }

    /// Fast recovery ended with `flight` bytes outstanding. With SACK the pipe has been kept at the threshold all
    /// along, and the window stays there (RFC 6675, section 5); without, the threshold could let out a burst (RFC 6582,
    /// section 3.2, step 3, option 1).
    pub(super) fn on_recovered(&mut self, flight: u32, mss: u32, sack: bool) {
        let most = if sack { u32::MAX } else { flight.max(mss).saturating_add(mss) };
        self.cwnd = self.ssthresh.min(most).max(2 * mss);
    }

    /// The retransmission timer expired; `first` of its kind in a row (RFC 5681, section 3.1).
    pub(super) fn on_timeout(&mut self, flight: u32, mss: u32, first: bool) {
        if first {
            self.reduce(flight, mss);
        }
        self.cwnd = mss;
    }

    /// Nothing was sent for a retransmission timeout (RFC 5681, section 4.1).
    pub(super) fn on_idle(&mut self, mss: u32) {
        self.cwnd = self.cwnd.min(initial_window(mss));
        if let Algorithm::Cubic(cubic) = &mut self.algorithm {
            cubic.epoch = Instant::FAR;
        }
    }

    fn reduce(&mut self, flight: u32, mss: u32) {
        let target = match &mut self.algorithm {
            Algorithm::NewReno { acked } => {
                *acked = 0;
                flight / 2
            }
            Algorithm::Cubic(cubic) => {
                let segments = self.cwnd as f32 / mss as f32;
                // Fast convergence (section 4.7).
                cubic.w_max = if segments < cubic.w_max { segments * f32::midpoint(1.0, CUBIC_BETA) } else { segments };
                cubic.epoch = Instant::FAR;
                (flight as f32 * CUBIC_BETA) as u32
            }
        };
        self.ssthresh = target.max(2 * mss);
    }
}

impl Cubic {
    /// The window after `acked` bytes in congestion avoidance (RFC 9438, section 4.2 to 4.5).
    fn on_ack(&mut self, cwnd: u32, acked: u32, mss: u32, now: Instant, srtt_micros: u32) -> u32 {
        let mss = mss as f32;
        let window = cwnd as f32 / mss;
        if self.epoch == Instant::FAR {
            self.epoch = now;
            self.w_max = self.w_max.max(window);
            self.k = ((self.w_max - window) / CUBIC_C).cbrt();
            self.w_est = window;
            self.remainder = 0.0;
        }
        let elapsed = now.since(self.epoch) as f32 * 1e-9;
        let segments = acked as f32 / mss;
        let alpha = if self.w_est < self.w_max { 3.0 * (1.0 - CUBIC_BETA) / (1.0 + CUBIC_BETA) } else { 1.0 };
        self.w_est += alpha * segments / window;
        let curve = |t: f32| CUBIC_C * (t - self.k).powi(3) + self.w_max;
        let next = if curve(elapsed) < self.w_est {
            self.w_est.max(window)
        } else {
            let target = curve(elapsed + srtt_micros as f32 * 1e-6).clamp(window, 1.5 * window);
            window + (target - window) / window * segments
        };
        let bytes = (next * mss + self.remainder).min(WINDOW_MAX as f32);
        self.remainder = bytes.fract();
        (bytes as u32).max(cwnd)
    }
}

/// RFC 6928, section 2: `min(10 * MSS, max(2 * MSS, 14600))`.
pub(super) fn initial_window(mss: u32) -> u32 {
    (10 * mss).min((2 * mss).max(14_600))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::MILLIS;

    const MSS: u32 = 1_000;

    /// Acknowledges a whole window per round trip of 10 ms.
    fn rounds(controller: &mut Controller, count: u64, start: u64) {
        for round in 0..count {
            let now = Instant::from_nanos((start + round) * 10 * MILLIS);
            let mut left = controller.window();
            while left >= 2 * MSS {
                controller.on_ack(2 * MSS, MSS, true, now, 10_000);
                left -= 2 * MSS;
            }
        }
    }

    #[test]
    fn newreno_halves_and_adds_one_segment_a_round() {
        let mut reno = Controller::new(CongestionControl::NewReno, MSS);
        assert_eq!(reno.window(), 10 * MSS);
        rounds(&mut reno, 3, 0);
        assert_eq!(reno.window(), 80 * MSS, "slow start doubles");
        reno.on_loss(80 * MSS, MSS);
        assert_eq!(reno.window(), 40 * MSS);
        rounds(&mut reno, 10, 3);
        assert!((49 * MSS..=50 * MSS).contains(&reno.window()), "{}", reno.window());
        reno.on_timeout(50 * MSS, MSS, true);
        assert_eq!(reno.window(), MSS);
        reno.on_timeout(MSS, MSS, false);
        rounds(&mut reno, 1, 20);
        assert_eq!(
            reno.window(),
            MSS,
            "a second timeout keeps the threshold but a window below 2 MSS has no pair here"
        );
    }

    #[test]
    fn cubic_keeps_seven_tenths_and_returns_to_its_maximum() {
        let mut cubic = Controller::new(CongestionControl::Cubic, MSS);
        rounds(&mut cubic, 4, 0);
        let before = cubic.window();
        cubic.on_loss(before, MSS);
        assert_eq!(cubic.window(), (before as f32 * 0.7) as u32);
        // K = cbrt(0.3 * 160 / 0.4) = 4.9 s; the Reno estimate may be faster on a path of 10 ms.
        rounds(&mut cubic, 500, 10);
        assert!(cubic.window() >= before, "{} < {before}", cubic.window());
        let mut last = 0;
        for round in 0..100 {
            rounds(&mut cubic, 1, 600 + round);
            assert!(cubic.window() >= last, "never shrinks without loss");
            last = cubic.window();
        }
    }

    #[test]
    fn recovery_ends_at_the_threshold_with_sack_and_carefully_without() {
        for kind in [CongestionControl::NewReno, CongestionControl::Cubic] {
            for (sack, window) in [(true, None), (false, Some(2 * MSS))] {
                let mut controller = Controller::new(kind, MSS);
                controller.on_loss(10 * MSS, MSS);
                let threshold = controller.window();
                controller.on_recovered(0, MSS, sack);
                assert_eq!(controller.window(), window.unwrap_or(threshold));
            }
        }
    }

    #[test]
    fn does_not_grow_unless_limited() {
        for kind in [CongestionControl::NewReno, CongestionControl::Cubic] {
            let mut controller = Controller::new(kind, MSS);
            for _ in 0..1_000 {
                controller.on_ack(MSS, MSS, false, Instant::ZERO, 100);
            }
            assert_eq!(controller.window(), 10 * MSS);
        }
    }

    #[test]
    fn windows_stay_in_bounds() {
        for kind in [CongestionControl::NewReno, CongestionControl::Cubic] {
            let mut controller = Controller::new(kind, 65_000);
            for step in 0..100_000_u64 {
                controller.on_ack(u32::MAX, 65_000, true, Instant::from_millis(step * 1_000), 60_000_000);
                assert!(controller.window() <= WINDOW_MAX);
            }
            controller.on_loss(0, 65_000);
            assert_eq!(controller.window(), 130_000);
            controller.on_recovered(0, 65_000, false);
            assert_eq!(controller.window(), 130_000);
            controller.on_recovered(u32::MAX, 65_000, false);
            assert!(controller.window() <= WINDOW_MAX);
        }
    }
}
