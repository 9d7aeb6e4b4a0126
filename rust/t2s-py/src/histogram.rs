//! `Histogram`: latencies with a stated precision, as the lab records and stores them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use pyo3::prelude::*;

use crate::errors::{ConfigError, DecodeError};

/// Counts of values, each kept to `digits` significant digits (an HdrHistogram).
///
/// Values are integers of one unit (the lab's are nanoseconds) from 1 to `highest` (one hour in nanoseconds, unless
/// told); larger ones count as `highest`.
/// Histograms are merged, never averaged: percentiles of a merged one are those of all values together. The text form
/// is the base64 of HdrHistogram's V2 encoding, which its other implementations read.
///
/// >>> from t2s import Histogram
/// >>> histogram = Histogram()
/// >>> for value in range(1, 1001):
/// ...     histogram.record(value)
/// >>> histogram.count, histogram.percentile(50), histogram.percentile(99), histogram.max
/// (1000, 500, 990, 1000)
/// >>> Histogram.decode(histogram.encode()) == histogram
/// True
#[pyclass(frozen, module = "t2s")]
pub(crate) struct Histogram(Mutex<hdrhistogram::Histogram<u64>>);

impl Histogram {
    fn lock(&self) -> MutexGuard<'_, hdrhistogram::Histogram<u64>> {
        // No method leaves the histogram half changed, so a panic elsewhere takes nothing from it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Histogram {
    #[new]
    #[pyo3(signature = (highest = 3_600_000_000_000, digits = 3))]
    fn new(highest: u64, digits: u8) -> PyResult<Self> {
        hdrhistogram::Histogram::new_with_bounds(1, highest, digits)
            .map(|histogram| Self(Mutex::new(histogram)))
            .map_err(|error| ConfigError::new_err(format!("highest={highest}, digits={digits}: {error}")))
    }

    /// Return the histogram in `text`, base64 of the V2 encoding, deflated or not.
    ///
    /// Raises `DecodeError` when it is not one.
    #[staticmethod]
    fn decode(py: Python<'_>, text: &str) -> PyResult<Self> {
        py.detach(|| {
            let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
            Deserializer::new().deserialize(&mut bytes.as_slice()).map_err(|error| error.to_string())
        })
        .map(|histogram| Self(Mutex::new(histogram)))
        .map_err(|why| DecodeError::new_err(format!("not a histogram: {why}")))
    }

    /// Return the histogram as text that `decode` reads.
    fn encode(&self) -> PyResult<String> {
        let mut bytes = Vec::new();
        V2Serializer::new()
            .serialize(&self.lock(), &mut bytes)
            .map_err(|error| DecodeError::new_err(format!("too large to encode: {error}")))?;
        Ok(STANDARD.encode(bytes))
    }

    /// Count `value`, `times` over.
    #[pyo3(signature = (value, times = 1))]
    fn record(&self, value: u64, times: u64) {
        let mut histogram = self.lock();
        let highest = histogram.high();
        // Within the bounds by the line above, so it cannot be refused.
        let _ = histogram.record_n(value.clamp(1, highest), times);
    }

    /// Add all values of `other`.
    ///
    /// Raises `ConfigError` when they do not fit this histogram's range.
    fn merge(&self, other: PyRef<'_, Self>) -> PyResult<()> {
        // A copy first: two locks at once could wait for each other, and a histogram may be merged with itself.
        let theirs = other.lock().clone();
        self.lock().add(&theirs).map_err(|error| ConfigError::new_err(format!("cannot merge: {error}")))
    }

    /// Return the smallest value that at least `percent` % of all values do not exceed; 0 when there are none.
    ///
    /// Raises `ConfigError` when `percent` is not from 0 to 100.
    fn percentile(&self, percent: f64) -> PyResult<u64> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(ConfigError::new_err(format!("percent={percent}: not from 0 to 100")));
        }
        let histogram = self.lock();
        // The upper end of the value's bucket, but never more than was seen.
        Ok(histogram.value_at_quantile(percent / 100.0).min(histogram.max()))
    }

    /// Return `(value, count)` for each bucket that counted something, in order; `value` is the bucket's upper end.
    fn buckets(&self) -> Vec<(u64, u64)> {
        self.lock().iter_recorded().map(|step| (step.value_iterated_to(), step.count_since_last_iteration())).collect()
    }

    /// Values counted.
    #[getter]
    fn count(&self) -> u64 {
        self.lock().len()
    }

    /// Smallest value counted; 0 when there are none.
    #[getter]
    fn min(&self) -> u64 {
        let histogram = self.lock();
        if histogram.is_empty() { 0 } else { histogram.min() }
    }

    /// Largest value counted; 0 when there are none.
    #[getter]
    fn max(&self) -> u64 {
        self.lock().max()
    }

    /// Arithmetic mean of all values; 0 when there are none.
    #[getter]
    fn mean(&self) -> f64 {
        self.lock().mean()
    }

    fn __eq__(&self, other: PyRef<'_, Self>) -> bool {
        let theirs = other.lock().clone();
        *self.lock() == theirs
    }

    fn __repr__(&self) -> String {
        let histogram = self.lock();
        format!(
            "Histogram(count={}, p50={}, p99={}, max={})",
            histogram.len(),
            histogram.value_at_quantile(0.5),
            histogram.value_at_quantile(0.99),
            histogram.max()
        )
    }
}
