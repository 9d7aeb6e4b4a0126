//! Memory that the queues of a worker's flows share.

/// What all receive windows of a worker may grow beyond their floor, bytes. All of it may be on the way at once, and
/// what a device's queue does not hold is lost: Linux gives a TUN queue 500 packets, 32 MB in super-segments.
pub(super) const WINDOW_GROWTH: u64 = 32 << 20;

/// Payload bytes queued over all flows of one worker, in both directions, against a limit.
///
/// The limit is soft by design: a window once advertised is honoured. Near it (3/4) windows and rooms stop growing and
/// fall back to their floor, above it nothing new is promised; the pool's ceiling is the hard bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferBudget {
    limit: u64,
    used: u64,
    peak: u64,
    /// What all receive windows have grown beyond their floor.
    pub(super) grown: u64,
}

impl BufferBudget {
    /// An unused budget of `limit` bytes.
    pub const fn new(limit: u64) -> Self {
        Self { limit, used: 0, peak: 0, grown: 0 }
    }

    /// Bytes queued now.
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// The most bytes that were ever queued.
    pub const fn peak(&self) -> u64 {
        self.peak
    }

    /// The limit.
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// Above half of the limit: nothing grows.
    pub(super) const fn is_busy(&self) -> bool {
        self.used > self.limit / 2
    }

    /// Whether a window may grow by so much; it has then.
    pub(super) fn grow(&mut self, bytes: u32) -> bool {
        let fits = !self.is_busy() && self.grown + u64::from(bytes) <= WINDOW_GROWTH;
        self.grown += if fits { u64::from(bytes) } else { 0 };
        fits
    }

    /// A window has shrunk by so much, or is gone.
    pub(super) fn shrink(&mut self, bytes: u32) {
        debug_assert!(self.grown >= u64::from(bytes), "more shrunk than grown");
        self.grown = self.grown.saturating_sub(bytes.into());
    }

    /// Above three quarters of the limit: everything falls back to its floor.
    pub(super) const fn is_tight(&self) -> bool {
        self.used > self.limit / 4 * 3
    }

    /// At the limit: nothing new is promised.
    pub(super) const fn is_exhausted(&self) -> bool {
        self.used >= self.limit
    }

    pub(super) fn charge(&mut self, bytes: usize) {
        self.used += bytes as u64;
        self.peak = self.peak.max(self.used);
    }

    pub(super) fn discharge(&mut self, bytes: usize) {
        debug_assert!(self.used >= bytes as u64, "more discharged than charged");
        self.used = self.used.saturating_sub(bytes as u64);
    }
}
