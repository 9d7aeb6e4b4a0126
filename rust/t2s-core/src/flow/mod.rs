//! The flow map: five-tuple to a small value, sharded, keyed, bounded.
//!
//! A worker owns a shard and holds its lock for a batch of packets ([`FlowMap::lock`]), so nothing on the path waits;
//! the lock is there for the others: statistics, and packets that the kernel steered to another queue. The hash is
//! keyed with secrets from the configuration, so that clients cannot choose collisions. A shard is a dense array under
//! an index made for steady churn: see `index`.
//!
//! Promises:
//! * at most `capacity / shards` (rounded up) flows a shard; beyond, an insertion is refused, counted, and changes
//!   nothing;
//! * no allocation after construction and no rehash, ever; reserving touches no pages, they become resident as flows
//!   use them;
//! * expiry and snapshots visit a bounded number of flows under one lock.
//!
//! Refused: more flows than the bound.

mod key;
mod shard;
mod table;

pub use key::FlowKey;
pub use shard::ShardGuard;

use std::sync::atomic::Ordering::Relaxed;

use crate::time::{ClockFn, Instant, no_clock};
use shard::Shard;

/// Flows that a snapshot visits under one lock.
const SNAPSHOT_STEP: usize = 4_096;

/// Settings of a flow map.
#[derive(Clone, Copy, Debug)]
pub struct FlowMapConfig {
    /// Shards, each with a lock of its own; one for each worker. 0 counts as 1.
    pub shards: usize,
    /// Flows of all shards together.
    pub capacity: usize,
    /// Key of the hash.
    pub hash_key: [u64; 4],
    /// Times the waits for shards' locks.
    pub clock: ClockFn,
}

impl Default for FlowMapConfig {
    fn default() -> Self {
        Self { shards: 1, capacity: 65_536, hash_key: [0; 4], clock: no_clock }
    }
}

/// The shard's bound is reached; counted in [`FlowMapStats::refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the flow table is full")]
pub struct TableFull;

/// Counters of one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Flows held now.
    pub len: usize,
    /// The most flows ever held.
    pub peak: usize,
    /// Lookups of any kind, insertions and removals included.
    pub lookups: u64,
    /// Insertions refused at the bound.
    pub refused: u64,
    /// Nanoseconds that threads waited for the lock.
    pub lock_wait_ns: u64,
}

/// Counters of a map: sums over its shards (`peak` too, so it may exceed what was ever held at one time), and each one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowMapStats {
    /// Sums over all shards.
    pub total: ShardStats,
    /// Each shard.
    pub per_shard: Vec<ShardStats>,
}

/// A sharded map from [`FlowKey`] to `V`.
pub struct FlowMap<V> {
    shards: Box<[Shard<V>]>,
    hasher: ahash::RandomState,
    clock: ClockFn,
}

impl<V> FlowMap<V> {
    /// An empty map with its memory reserved.
    pub fn new(config: FlowMapConfig) -> Self {
        let shards = config.shards.max(1);
        let limit = config.capacity.div_ceil(shards);
        let [k0, k1, k2, k3] = config.hash_key;
        Self {
            shards: (0..shards).map(|_| Shard::new(limit)).collect(),
            hasher: ahash::RandomState::with_seeds(k0, k1, k2, k3),
            clock: config.clock,
        }
    }

    /// The keyed hash, computed once a packet and passed to the operations.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Gets what a lookup of this hash begins with under way to the cache, without the lock.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.shards[self.shard_of(hash)].site.prefetch(hash);
    }

    /// The shard that owns a hash.
    #[inline]
    pub fn shard_of(&self, hash: u64) -> usize {
        // The upper half: the table keeps and uses the lower one.
        (((hash >> 32) * self.shards.len() as u64) >> 32) as usize
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Locks a shard, meant to last a batch. Waiting, if another thread holds it, is timed.
    ///
    /// # Panics
    /// If there is no such shard.
    #[inline]
    pub fn lock(&self, shard: usize) -> ShardGuard<'_, V> {
        self.shards[shard].lock(self.clock)
    }

    /// Flows held, over all shards.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.counters.len.load(Relaxed)).sum()
    }

    /// Whether no flow is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The counters, without a lock; those of a batch show when its guard ends.
    pub fn stats(&self) -> FlowMapStats {
        let per_shard: Vec<_> = self.shards.iter().map(Shard::stats).collect();
        let mut total = ShardStats::default();
        for shard in &per_shard {
            total.len += shard.len;
            total.peak += shard.peak;
            total.lookups += shard.lookups;
            total.refused += shard.refused;
            total.lock_wait_ns += shard.lock_wait_ns;
        }
        FlowMapStats { total, per_shard }
    }

    /// Visits up to `budget` flows of a shard, from where the last call ended, and removes the flows that were last
    /// touched before `older_than`; each goes to `f`. Returns how many.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn remove_expired(
        &self,
        shard: usize,
        older_than: Instant,
        budget: usize,
        mut f: impl FnMut(FlowKey, V),
    ) -> usize {
        self.lock(shard).remove_expired(older_than, budget, |key| self.hash(key), &mut f)
    }
}

impl<V: Clone> FlowMap<V> {
    /// All flows, ordered by key. Each shard is locked for a few thousand flows at a time, so flows that come or go
    /// meanwhile may or may not be in it.
    pub fn snapshot(&self) -> Vec<(FlowKey, V)> {
        let mut flows = Vec::with_capacity(self.len());
        for shard in 0..self.shards.len() {
            let mut place = 0;
            while let Some(next) = self.lock(shard).copy(place, SNAPSHOT_STEP, &mut flows) {
                place = next;
            }
        }
        flows.sort_unstable_by_key(|&(key, _)| key);
        flows
    }
}

impl<V> std::fmt::Debug for FlowMap<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowMap").field("shards", &self.shards.len()).field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
