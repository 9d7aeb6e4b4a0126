//! One shard: a table behind a lock, and the guard through which a batch uses it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::{FlowKey, ShardStats, TableFull};
use crate::time::{ClockFn, Instant};

struct Flow<V> {
    key: FlowKey,
    /// When the flow was last inserted or touched.
    touched: Instant,
    value: V,
}

struct Table<V> {
    flows: HashTable<Flow<V>>,
    /// For the rehash that the reserve of [`Shard::new`] avoids.
    hasher: ahash::RandomState,
    /// Flows that may be held.
    limit: usize,
    /// Where the next expiry sweep begins.
    sweep: usize,
}

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
    pub(super) counters: ShardCounters,
}

impl<V> Shard<V> {
    pub(super) fn new(limit: usize, hasher: ahash::RandomState) -> Self {
        // A quarter more than the bound keeps the load at or below 0.7, where deletions hardly ever leave tombstones,
        // and tombstones plus flows never fill the table.
        let flows = HashTable::with_capacity(limit.saturating_add(limit / 4));
        Self { table: Mutex::new(Table { flows, hasher, limit, sweep: 0 }), counters: ShardCounters::default() }
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

/// Exclusive use of one shard. Keys must be passed with their own hash ([`super::FlowMap::hash`]) and to their own shard
/// ([`super::FlowMap::shard_of`]); elsewhere they are simply not found.
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
        self.table.flows.len()
    }

    /// Whether this shard has no flow.
    pub fn is_empty(&self) -> bool {
        self.table.flows.is_empty()
    }

    /// The value of a flow.
    #[inline]
    pub fn get(&self, hash: u64, key: &FlowKey) -> Option<&V> {
        self.count_lookup();
        self.table.flows.find(hash, |flow| flow.key == *key).map(|flow| &flow.value)
    }

    /// The value of a flow, writable.
    #[inline]
    pub fn get_mut(&mut self, hash: u64, key: &FlowKey) -> Option<&mut V> {
        self.count_lookup();
        self.table.flows.find_mut(hash, |flow| flow.key == *key).map(|flow| &mut flow.value)
    }

    /// Marks a flow as used at `now` and returns its value.
    #[inline]
    pub fn touch(&mut self, hash: u64, key: &FlowKey, now: Instant) -> Option<&mut V> {
        self.count_lookup();
        let flow = self.table.flows.find_mut(hash, |flow| flow.key == *key)?;
        flow.touched = now;
        Some(&mut flow.value)
    }

    /// Inserts a flow, or replaces its value and returns the old one.
    ///
    /// # Errors
    /// [`TableFull`] for a new flow at the shard's bound.
    pub fn insert(&mut self, hash: u64, key: FlowKey, value: V, now: Instant) -> Result<Option<V>, TableFull> {
        self.count_lookup();
        let Table { flows, hasher, limit, .. } = &mut *self.table;
        let flow = Flow { key, touched: now, value };
        if flows.len() >= *limit {
            // At the bound a vacant entry must not be asked for: hashbrown would reserve a slot for it.
            let Some(old) = flows.find_mut(hash, |flow| flow.key == key) else {
                add(&self.counters.refused, 1);
                return Err(TableFull);
            };
            return Ok(Some(std::mem::replace(old, flow).value));
        }
        match flows.entry(hash, |flow| flow.key == key, |flow| hasher.hash_one(flow.key)) {
            Entry::Occupied(mut entry) => Ok(Some(std::mem::replace(entry.get_mut(), flow).value)),
            Entry::Vacant(entry) => {
                entry.insert(flow);
                self.publish_len();
                Ok(None)
            }
        }
    }

    /// Removes a flow.
    pub fn remove(&mut self, hash: u64, key: &FlowKey) -> Option<V> {
        self.count_lookup();
        let entry = self.table.flows.find_entry(hash, |flow| flow.key == *key).ok()?;
        let (flow, _) = entry.remove();
        self.publish_len();
        Some(flow.value)
    }

    /// All flows of the shard, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, &V)> {
        self.table.flows.iter().map(|flow| (&flow.key, &flow.value))
    }

    /// Removes flows last touched before `older_than` among the next `budget` slots.
    pub(super) fn remove_expired(
        &mut self,
        older_than: Instant,
        budget: usize,
        f: &mut impl FnMut(FlowKey, V),
    ) -> usize {
        let Table { flows, sweep, .. } = &mut *self.table;
        let slots = flows.num_buckets();
        let mut removed = 0;
        for _ in 0..budget.min(slots) {
            let slot = *sweep;
            *sweep = if slot + 1 < slots { slot + 1 } else { 0 };
            let expired = flows.get_bucket(slot).is_some_and(|flow| flow.touched < older_than);
            if expired && let Ok(entry) = flows.get_bucket_entry(slot) {
                let (flow, _) = entry.remove();
                removed += 1;
                f(flow.key, flow.value);
            }
        }
        self.publish_len();
        removed
    }

    fn publish_len(&self) {
        let len = self.table.flows.len();
        self.counters.len.store(len, Relaxed);
        if len > self.counters.peak.load(Relaxed) {
            self.counters.peak.store(len, Relaxed);
        }
    }
}

impl<V: Clone> ShardGuard<'_, V> {
    /// Copies the flows of up to `count` slots from `slot` on; the slot to go on with, if there are more.
    pub(super) fn copy_slots(&self, slot: usize, count: usize, flows: &mut Vec<(FlowKey, V)>) -> Option<usize> {
        let slots = self.table.flows.num_buckets();
        let end = slots.min(slot.saturating_add(count));
        flows.extend((slot..end).filter_map(|slot| {
            let flow = self.table.flows.get_bucket(slot)?;
            Some((flow.key, flow.value.clone()))
        }));
        (end < slots).then_some(end)
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
