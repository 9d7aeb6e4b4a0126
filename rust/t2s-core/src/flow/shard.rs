//! One shard: a table behind a lock, and the guard through which a batch uses it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::table::Table;
use super::{FlowKey, ShardStats, TableFull};
use crate::index::Site;
use crate::time::{ClockFn, Instant};

/// Counters that only the holder of the lock writes, readable without it.
#[derive(Default)]
pub(super) struct ShardCounters {
    pub(super) len: AtomicUsize,
    peak: AtomicUsize,
    lookups: AtomicU64,
    refused: AtomicU64,
    lock_wait_ns: AtomicU64,
}

/// A table, its lock and its counters, on cache lines of their own.
#[repr(align(128))]
pub(super) struct Shard<V> {
    table: Mutex<Table<V>>,
    /// Of the table's index, which never grows.
    pub(super) site: Site,
    pub(super) counters: ShardCounters,
}

impl<V> Shard<V> {
    pub(super) fn new(limit: usize) -> Self {
        let table = Table::new(limit);
        Self { site: table.site(), table: Mutex::new(table), counters: ShardCounters::default() }
    }

    #[inline]
    pub(super) fn lock(&self, clock: ClockFn) -> ShardGuard<'_, V> {
        let table = match self.table.try_lock() {
            Ok(table) => table,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => self.wait(clock),
        };
        ShardGuard { table, counters: &self.counters, lookups: Cell::new(0) }
    }

    #[cold]
    fn wait(&self, clock: ClockFn) -> MutexGuard<'_, Table<V>> {
        let since = clock();
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        add(&self.counters.lock_wait_ns, clock().saturating_sub(since));
        table
    }

    pub(super) fn stats(&self) -> ShardStats {
        ShardStats {
            len: self.counters.len.load(Relaxed),
            peak: self.counters.peak.load(Relaxed),
            lookups: self.counters.lookups.load(Relaxed),
            refused: self.counters.refused.load(Relaxed),
            lock_wait_ns: self.counters.lock_wait_ns.load(Relaxed),
        }
    }
}

/// Adds to a counter that only the holder of the lock writes.
#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

/// Exclusive use of one shard. Keys must be passed with their own hash ([`super::FlowMap::hash`]) and to their own
/// shard ([`super::FlowMap::shard_of`]); elsewhere they are simply not found.
pub struct ShardGuard<'a, V> {
    table: MutexGuard<'a, Table<V>>,
    counters: &'a ShardCounters,
    lookups: Cell<u64>,
}

impl<V> ShardGuard<'_, V> {
    #[inline]
    fn count_lookup(&self) {
        self.lookups.set(self.lookups.get() + 1);
    }

    /// Flows of this shard.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether this shard has no flow.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the shard's bound is reached, so that a new flow would be refused.
    pub fn is_full(&self) -> bool {
        self.table.is_full()
    }

    /// Which place the flow of a hash probably has: flows get places in the order in which they come, and vacant ones
    /// are taken again last in, first out. Counts as no lookup, and may be wrong: a hint for what to fetch meanwhile.
    #[inline]
    pub fn guess(&self, hash: u64) -> Option<u32> {
        self.table.guess(hash)
    }

    /// The value of a flow.
    #[inline]
    pub fn get(&self, hash: u64, key: &FlowKey) -> Option<&V> {
        self.count_lookup();
        self.table.get(hash, key)
    }

    /// The value of a flow, writable.
    #[inline]
    pub fn get_mut(&mut self, hash: u64, key: &FlowKey) -> Option<&mut V> {
        self.count_lookup();
        self.table.get_mut(hash, key, None)
    }

    /// Marks a flow as used at `now` and returns its value.
    #[inline]
    pub fn touch(&mut self, hash: u64, key: &FlowKey, now: Instant) -> Option<&mut V> {
        self.count_lookup();
        self.table.get_mut(hash, key, Some(now))
    }

    /// Inserts a flow, or replaces its value and returns the old one.
    ///
    /// # Errors
    /// [`TableFull`] for a new flow at the shard's bound.
    pub fn insert(&mut self, hash: u64, key: FlowKey, value: V, now: Instant) -> Result<Option<V>, TableFull> {
        self.count_lookup();
        let result = self.table.insert(hash, key, value, now);
        match result {
            Ok(_) => self.publish_len(),
            Err(TableFull) => add(&self.counters.refused, 1),
        }
        result
    }

    /// Removes a flow.
    pub fn remove(&mut self, hash: u64, key: &FlowKey) -> Option<V> {
        self.count_lookup();
        let value = self.table.remove(hash, key);
        self.publish_len();
        value
    }

    /// All flows of the shard, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, &V)> {
        self.table.range(0..usize::MAX)
    }

    /// Removes flows last touched before `older_than` among the next `budget` places.
    pub(super) fn remove_expired(
        &mut self,
        older_than: Instant,
        budget: usize,
        hash: impl Fn(&FlowKey) -> u64,
        f: &mut impl FnMut(FlowKey, V),
    ) -> usize {
        let removed = self.table.remove_expired(older_than, budget, hash, f);
        self.publish_len();
        removed
    }

    /// The table, for tests of its inner order.
    #[cfg(test)]
    pub(super) fn table(&self) -> &Table<V> {
        &self.table
    }

    fn publish_len(&self) {
        let len = self.table.len();
        self.counters.len.store(len, Relaxed);
        if len > self.counters.peak.load(Relaxed) {
            self.counters.peak.store(len, Relaxed);
        }
    }
}

impl<V: Clone> ShardGuard<'_, V> {
    /// Copies the flows of up to `count` places from `place` on; the place to go on with, if there are more.
    pub(super) fn copy(&self, place: usize, count: usize, flows: &mut Vec<(FlowKey, V)>) -> Option<usize> {
        let end = place.saturating_add(count);
        flows.extend(self.table.range(place..end).map(|(&key, value)| (key, value.clone())));
        (end < self.table.places()).then_some(end)
    }
}

impl<V> Drop for ShardGuard<'_, V> {
    fn drop(&mut self) {
        add(&self.counters.lookups, self.lookups.get());
    }
}

impl<V> std::fmt::Debug for ShardGuard<'_, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardGuard").field("len", &self.len()).finish_non_exhaustive()
    }
}
