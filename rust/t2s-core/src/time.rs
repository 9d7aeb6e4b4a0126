//! Instants handed in by the caller.
//!
//! The core never reads a clock. An [`Instant`] is nanoseconds since an origin that the caller chose (one monotonic
//! clock for all workers of a stack); `u64` nanoseconds last 584 years.

/// Nanoseconds in a microsecond.
pub const MICROS: u64 = 1_000;
/// Nanoseconds in a millisecond.
pub const MILLIS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SECONDS: u64 = 1_000_000_000;

/// A point of the caller's monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The origin of the caller's clock.
    pub const ZERO: Self = Self(0);
    /// Later than every instant a caller can reach.
    pub const FAR: Self = Self(u64::MAX);

    /// The instant `nanos` after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The instant `millis` after the origin.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * MILLIS)
    }

    /// Nanoseconds since the origin.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the origin.
    pub const fn millis(self) -> u64 {
        self.0 / MILLIS
    }

    /// This instant and `nanos` more; saturates at [`Instant::FAR`].
    #[must_use]
    pub const fn plus(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// Nanoseconds since `earlier`; 0 when `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A source of nanoseconds for measuring inside the core (lock waits, sampled stages).
///
/// Handed in by the caller, so that the core itself reads no clock; [`no_clock`] measures nothing.
pub type ClockFn = fn() -> u64;

/// The clock of callers that do not measure: always 0.
pub fn no_clock() -> u64 {
    0
}
