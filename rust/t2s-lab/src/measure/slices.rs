//! A distribution that is also kept slice by slice, so that a long phase can be judged like rounds: a stall of the
//! machine then corrupts the slice it falls into, not the whole phase.
//!
//! Promises: nothing is recorded twice or lost, and recording allocates nothing. A slice that the phase did not
//! complete counts in the whole only.

use serde::Serialize;

use crate::measure::recorder::Recorder;

/// Percentiles of one slice, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Slice {
    /// Median.
    pub p50: u64,
    /// 95th percentile.
    pub p95: u64,
    /// 99th percentile.
    pub p99: u64,
}

impl Slice {
    /// The worse of two workers' slices of the same time.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        Self { p50: self.p50.max(other.p50), p95: self.p95.max(other.p95), p99: self.p99.max(other.p99) }
    }
}

/// A distribution and its slices.
#[derive(Debug)]
pub struct Sliced {
    /// Of the slice that goes on.
    pub current: Recorder,
    whole: Recorder,
    slices: Vec<Slice>,
}

impl Sliced {
    /// Room for so many slices; more are left out.
    pub fn new(slices: usize) -> Self {
        Self { current: Recorder::new(), whole: Recorder::new(), slices: Vec::with_capacity(slices) }
    }

    /// A slice is complete.
    pub fn cut(&mut self) {
        if self.current.count() > 0 && self.slices.len() < self.slices.capacity() {
            let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|quantile| self.current.quantile(quantile));
            self.slices.push(Slice { p50, p95, p99 });
        }
        self.whole.merge(&self.current);
        self.current.clear();
    }

    /// The whole, and the slices that were completed.
    pub fn finish(mut self) -> (Recorder, Vec<Slice>) {
        self.whole.merge(&self.current);
        (self.whole, self.slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_all_that_was_recorded_and_slices_are_complete_ones() {
        let (mut sliced, mut twin) = (Sliced::new(3), Recorder::new());
        for slice in 1..=5_u64 {
            for value in 1..=100 {
                sliced.current.record(value * slice);
                twin.record(value * slice);
            }
            if slice < 5 {
                sliced.cut();
            }
        }
        let (whole, slices) = sliced.finish();
        assert_eq!(whole.distribution(), twin.distribution());
        assert_eq!(slices.iter().map(|slice| slice.p50).collect::<Vec<_>>(), [50, 100, 150]);
        assert_eq!(slices[0], Slice { p50: 50, p95: 95, p99: 99 });
        assert_eq!(slices[0].worse(slices[1]), slices[1]);
    }

    #[test]
    fn an_empty_slice_is_none() {
        let mut sliced = Sliced::new(2);
        sliced.cut();
        assert!(sliced.finish().1.is_empty());
    }
}
