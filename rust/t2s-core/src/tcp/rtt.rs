//! Round-trip estimation and the retransmission timeout (RFC 6298).
//!
//! One segment a round trip is timed to the nanosecond of the caller's clock; a retransmission ends the timing (Karn's
//! rule). While nothing can be timed, an echoed timestamp (RFC 7323, section 4) gives the sample instead, to the
//! millisecond.

use crate::config::TcpConfig;
use crate::time::{Instant, MICROS};
use crate::wire::tcp::SeqNumber;

/// Clock granularity G of RFC 6298, microseconds: the timer wheel's tick.
const GRANULARITY: u32 = 1_000;

/// Longest round trip that the arithmetic is asked to carry, microseconds: a minute.
const LONGEST: u32 = 60_000_000;

/// Round-trip state of one flow; times in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rtt {
    /// Eight times the smoothed round trip; 0 before the first sample.
    srtt8: u32,
    /// Four times the smoothed deviation.
    rttvar4: u32,
    /// The timed byte, while one is timed, and when it went out.
    pub(super) timed_seq: SeqNumber,
    pub(super) timed_at: Instant,
}

impl Rtt {
    pub(super) fn new() -> Self {
        Self { srtt8: 0, rttvar4: 0, timed_seq: SeqNumber(0), timed_at: Instant::ZERO }
    }

    /// Takes a sample in nanoseconds (RFC 6298, section 2.2 and 2.3).
    #[inline]
    pub(super) fn sample(&mut self, nanos: u64) {
        let sample = ((nanos / MICROS) as u32).clamp(1, LONGEST);
        if self.srtt8 == 0 {
            self.srtt8 = sample * 8;
            self.rttvar4 = sample * 2;
        } else {
            let deviation = (self.srtt8 / 8).abs_diff(sample);
            self.rttvar4 = self.rttvar4 - self.rttvar4 / 4 + deviation;
            self.srtt8 = (self.srtt8 - self.srtt8 / 8 + sample).max(8);
        }
    }

    /// Smoothed round trip, microseconds.
    pub(super) fn srtt_micros(&self) -> Option<u32> {
        (self.srtt8 != 0).then_some(self.srtt8 / 8)
    }

    /// The timeout after `backoff` timeouts in a row, nanoseconds (RFC 6298, section 2 and 5.5).
    ///
    /// The configured minimum is one of the deviation's part, as in Linux and FreeBSD: on a long path whose deviation
    /// has decayed, a minimum of the whole would leave no room for an acknowledgement that the client delays.
    #[inline]
    pub(super) fn timeout(&self, config: &TcpConfig, backoff: u8) -> u64 {
        let base = if self.srtt8 == 0 {
            config.rto_initial.max(config.rto_min)
        } else {
            let deviation = u64::from(self.rttvar4.max(GRANULARITY)) * MICROS;
            u64::from(self.srtt8 / 8) * MICROS + deviation.max(config.rto_min)
        };
        let shifted = if backoff == 0 { base } else { base.saturating_mul(1 << backoff.min(32)) };
        shifted.min(config.rto_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{MILLIS, SECONDS};

    #[test]
    fn follows_rfc_6298() {
        let config = TcpConfig { rto_min: MILLIS, ..TcpConfig::default() };
        let mut rtt = Rtt::new();
        assert_eq!(rtt.timeout(&config, 0), SECONDS);
        assert_eq!(rtt.timeout(&config, 2), 4 * SECONDS);
        rtt.sample(100 * MILLIS);
        assert_eq!(rtt.srtt_micros(), Some(100_000));
        assert_eq!(rtt.timeout(&config, 0), 300 * MILLIS, "SRTT + 4 * R/2");
        for _ in 0..200 {
            rtt.sample(100 * MILLIS);
        }
        let settled = rtt.timeout(&config, 0);
        assert!((100 * MILLIS..=104 * MILLIS).contains(&settled), "deviation decays: {settled}");
        assert_eq!(rtt.timeout(&config, 40), config.rto_max, "backoff saturates");
    }

    #[test]
    fn floor_and_extremes() {
        let config = TcpConfig::default();
        let mut rtt = Rtt::new();
        rtt.sample(0);
        assert_eq!(rtt.timeout(&config, 0), config.rto_min + MICROS);
        for _ in 0..200 {
            rtt.sample(300 * MILLIS);
        }
        let settled = rtt.timeout(&config, 0) / MILLIS;
        assert!(
            (499..=501).contains(&settled),
            "the minimum is beside the round trip, not instead of it: {settled} ms"
        );
        rtt.sample(u64::MAX);
        rtt.sample(u64::MAX);
        assert!(rtt.timeout(&config, 0) <= config.rto_max);
    }
}
