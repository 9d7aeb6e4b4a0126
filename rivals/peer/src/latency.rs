//! Latencies of many threads, kept whole and merged: percentiles are never averaged.

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Longest latency that is told apart, nanoseconds; longer ones count as this one.
const LONGEST: u64 = 60_000_000_000;

/// A histogram of nanoseconds with three significant digits.
pub(crate) struct Latency(Histogram<u64>);

impl Latency {
    /// An empty one; recording allocates nothing later.
    pub(crate) fn new() -> io::Result<Self> {
        Histogram::new_with_bounds(1, LONGEST, 3).map(Self).map_err(io::Error::other)
    }

    /// Adds one.
    pub(crate) fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(LONGEST));
    }

    /// Adds all of another one.
    pub(crate) fn add(&mut self, other: &Self) -> io::Result<()> {
        self.0.add(&other.0).map_err(io::Error::other)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Percentiles in microseconds; null when nothing was recorded.
    pub(crate) fn to_json(&self) -> Value {
        if self.0.is_empty() {
            return json!({ "p50_us": null, "p99_us": null, "max_us": null });
        }
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e3;
        json!({ "p50_us": at(0.5), "p99_us": at(0.99), "max_us": self.0.max() as f64 / 1e3 })
    }
}
