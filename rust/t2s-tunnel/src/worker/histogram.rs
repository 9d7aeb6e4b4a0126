//! A histogram of durations: a count and a sum for each power of two of microseconds.
//!
//! It promises: recording takes constant time and no memory; histograms add up; bucket `i` counts durations of at most
//! 2^i µs, so that cumulative buckets (Prometheus) need no rounding. The last bucket takes all that are longer.

use serde::Serialize;

/// Buckets: the last but one ends at 2^24 µs, 17 s, longer than any sane handshake or iteration.
pub(super) const BUCKETS: usize = 26;

/// Durations, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Histogram {
    /// Bucket `i` counts durations of more than 2^(i-1) and at most 2^i µs; the first all up to 1 µs, the last the
    /// rest.
    pub buckets: [u64; BUCKETS],
    /// Durations counted.
    pub count: u64,
    /// Their sum, nanoseconds.
    pub sum_ns: u64,
}

impl Histogram {
    /// Counts a duration.
    #[inline]
    pub(super) fn record(&mut self, nanos: u64) {
        let whole = nanos.saturating_sub(1) / 1_000;
        let bucket = (u64::BITS - whole.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(nanos);
    }

    /// Adds what another has counted.
    pub(super) fn merge(&mut self, other: &Self) {
        for (sum, count) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += count;
        }
        self.count += other.count;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// The mean, nanoseconds; 0 when there are none.
    pub fn mean_ns(&self) -> u64 {
        self.sum_ns.checked_div(self.count).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_stands_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let edges = (0..BUCKETS - 1).flat_map(|power| {
            let bound = 1_000_u64 << power;
            [bound - 1, bound, bound + 1]
        });
        for nanos in [0, 1].into_iter().chain(edges).chain([u64::MAX]) {
            let mut histogram = Histogram::default();
            histogram.record(nanos);
            let naive = (0..BUCKETS - 1).find(|&power| nanos <= 1_000 << power).unwrap_or(BUCKETS - 1);
            assert_eq!(histogram.buckets[naive], 1, "{nanos}");
            assert_eq!((histogram.count, histogram.sum_ns), (1, nanos));
        }
    }

    #[test]
    fn histograms_add_up() {
        let (mut one, mut other, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
        for nanos in [10, 5_000, 70_000_000] {
            one.record(nanos);
            other.record(nanos * 3);
            both.record(nanos);
            both.record(nanos * 3);
        }
        one.merge(&other);
        assert_eq!(one, both);
        assert_eq!(one.mean_ns(), (10 + 5_000 + 70_000_000) * 4 / 6);
        assert_eq!(Histogram::default().mean_ns(), 0);
    }
}
