//! Stage times of one packet in N, measured with the caller's clock.
//!
//! N is a mean: the distance to the next sampled packet is drawn, since traffic has a rhythm (every second packet a
//! datagram, say) that a constant distance would keep in step with.

use crate::stats::{Stage, StageTimes};
use crate::time::ClockFn;

/// Decides which packets are timed and books the time between marks to stages.
#[derive(Debug)]
pub(super) struct Probe {
    clock: ClockFn,
    every: u32,
    countdown: u32,
    /// State of the drawing: a 64-bit linear congruential generator, of which the top bits are used.
    draw: u64,
    on: bool,
    last: u64,
    pub(super) times: StageTimes,
}

impl Probe {
    pub(super) fn new(clock: ClockFn, every: u32) -> Self {
        Self { clock, every, countdown: every, draw: 1, on: false, last: 0, times: StageTimes::default() }
    }

    /// A packet begins.
    #[inline]
    pub(super) fn begin(&mut self) {
        if self.every == 0 {
            return;
        }
        self.countdown -= 1;
        self.on = self.countdown == 0;
        if self.on {
            self.draw = self.draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Even over 1..2N, so N in the mean.
            self.countdown = 1 + (((self.draw >> 33) * (2 * u64::from(self.every) - 1)) >> 31) as u32;
            self.times.packets += 1;
            self.last = (self.clock)();
        }
    }

    /// The time since the last mark belongs to `stage`.
    #[inline]
    pub(super) fn mark(&mut self, stage: Stage) {
        if self.on {
            let now = (self.clock)();
            self.times.add(stage, now.saturating_sub(self.last));
            self.last = now;
        }
    }

    /// The packet of an earlier `begin` goes on, if that one was timed.
    #[inline]
    pub(super) fn resume(&mut self, sampled: bool) {
        if sampled {
            self.on = true;
            self.last = (self.clock)();
        }
    }

    /// Whether the present packet is timed.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// The packet is done, for now.
    #[inline]
    pub(super) fn end(&mut self) {
        self.on = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_n_is_sampled_whatever_the_rhythm() {
        for every in [1, 2, 64, 97] {
            let mut probe = Probe::new(crate::time::no_clock, every);
            let mut hits = [0_u32; 2];
            for packet in 0..200_000 {
                probe.begin();
                hits[packet % 2] += u32::from(probe.is_on());
                probe.end();
            }
            let expected = 100_000 / every;
            for hit in hits {
                assert!(hit.abs_diff(expected) <= expected / 5 + 20, "every {every}: {hits:?}");
            }
        }
        let mut probe = Probe::new(crate::time::no_clock, 0);
        probe.begin();
        assert!(!probe.is_on());
    }
}
