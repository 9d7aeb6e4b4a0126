//! Histograms of one worker: preallocated, so that recording allocates nothing, and merged, never averaged.

use base64::Engine as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2Serializer};

use crate::measure::distribution::Distribution;

/// Largest value kept apart, nanoseconds; longer ones count as this.
const LONGEST: u64 = 100_000_000_000;

/// Significant digits: 2 keep a histogram at some 30 KB, small enough to stay in the cache beside the packet path, and
/// a value within 1 %.
const DIGITS: u8 = 2;

/// A distribution of nanoseconds.
#[derive(Clone, Debug)]
pub struct Recorder {
    histogram: Histogram<u64>,
    /// The largest value, exact.
    max: u64,
}

impl Recorder {
    /// An empty distribution with all its memory.
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("the bounds and digits are valid");
        Self { histogram, max: 0 }
    }

    /// Records one value.
    #[inline]
    pub fn record(&mut self, nanos: u64) {
        self.histogram.saturating_record(nanos);
        self.max = self.max.max(nanos);
    }

    /// Records the same value `count` times.
    #[inline]
    pub fn record_n(&mut self, nanos: u64, count: u64) {
        self.histogram.saturating_record_n(nanos, count);
        self.max = self.max.max(nanos);
    }

    /// Adds another distribution to this one.
    pub fn merge(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("all recorders have the same bounds");
        self.max = self.max.max(other.max);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.histogram.reset();
        self.max = 0;
    }

    /// The value at a quantile. The histogram has the upper end of its bucket; the exact maximum is a tighter bound.
    pub fn quantile(&self, quantile: f64) -> u64 {
        self.histogram.value_at_quantile(quantile).min(self.max)
    }

    /// Recorded values.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Percentiles and the whole histogram.
    pub fn distribution(&self) -> Distribution {
        let histogram = &self.histogram;
        let mut encoded = Vec::new();
        V2Serializer::new().serialize(histogram, &mut encoded).expect("writing to memory does not fail");
        Distribution {
            count: histogram.len(),
            mean: histogram.mean(),
            p50: self.quantile(0.5),
            p95: self.quantile(0.95),
            p99: self.quantile(0.99),
            p999: self.quantile(0.999),
            max: self.max,
            hdr: base64::engine::general_purpose::STANDARD.encode(encoded),
        }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;

    use super::*;

    #[test]
    fn percentiles_are_within_a_percent() {
        let mut recorder = Recorder::new();
        for value in 1..=10_000 {
            recorder.record(value);
        }
        let result = recorder.distribution();
        assert_eq!((result.count, result.max), (10_000, 10_000));
        for (got, want) in [(result.p50, 5_000), (result.p95, 9_500), (result.p99, 9_900), (result.p999, 9_990)] {
            assert!(got.abs_diff(want) <= want / 100, "{got} for {want}");
        }
    }

    #[test]
    fn merging_is_recording_both() {
        let (mut a, mut b, mut both) = (Recorder::new(), Recorder::new(), Recorder::new());
        for value in 1..1_000 {
            a.record(value);
            b.record_n(value * 1_000, 3);
            both.record(value);
            both.record_n(value * 1_000, 3);
        }
        a.merge(&b);
        assert_eq!(a.distribution(), both.distribution());
    }

    #[test]
    fn the_encoded_histogram_is_the_recorded_one() {
        let mut recorder = Recorder::new();
        recorder.record(0);
        recorder.record(u64::MAX);
        recorder.record(123_456);
        let bytes = base64::engine::general_purpose::STANDARD.decode(recorder.distribution().hdr).unwrap();
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!(read, recorder.histogram);
        assert_eq!(Recorder::new().distribution().count, 0);
    }
}
