//! A distribution as results carry it: percentiles for people, the whole histogram for merging.

use serde::Serialize;

/// A distribution: percentiles for reading, the whole histogram for merging.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// Recorded values.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 95th percentile.
    pub p95: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Largest.
    pub max: u64,
    /// The histogram: V2 encoding without compression, in base64.
    pub hdr: String,
}
