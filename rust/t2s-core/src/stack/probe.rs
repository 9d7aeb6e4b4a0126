//! Stage times of one packet in N, measured with the caller's clock.

use crate::stats::{Stage, StageTimes};
use crate::time::ClockFn;

/// Decides which packets are timed and books the time between marks to stages.
#[derive(Debug)]
pub(super) struct Probe {
    clock: ClockFn,
    every: u32,
    countdown: u32,
    on: bool,
    last: u64,
    pub(super) times: StageTimes,
}

impl Probe {
    pub(super) fn new(clock: ClockFn, every: u32) -> Self {
        Self { clock, every, countdown: every, on: false, last: 0, times: StageTimes::default() }
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
            self.countdown = self.every;
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
