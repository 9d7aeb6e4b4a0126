//! The table of one shard: an [`Index`] over a dense array of flows.
//!
//! Flows keep their place while they live, so a sweep can go on where it ended. Nothing is allocated after `new`, and
//! memory becomes resident as flows use it.

use std::ops::Range;

use super::{FlowKey, TableFull};
use crate::index::{Index, Site};
use crate::time::Instant;

/// A flow, or a vacant place (without a value). On one cache line (with a small `V`), so that a lookup among many flows
/// misses the cache twice: for its slot and for its flow.
#[repr(C, align(64))]
struct Flow<V> {
    key: FlowKey,
    /// When the flow was last inserted or touched.
    touched: Instant,
    value: Option<V>,
}

/// See the module.
pub(super) struct Table<V> {
    /// Keys stand in the flows.
    index: Index,
    flows: Vec<Flow<V>>,
    /// Places of `flows` without a value.
    vacant: Vec<u32>,
    /// Flows that may be held.
    limit: usize,
    /// The place where the next sweep begins.
    sweep: usize,
}

impl<V> Table<V> {
    /// A table for `limit` flows (at most 2^31).
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.min(1 << 31);
        Self {
            index: Index::with_room(limit),
            flows: Vec::with_capacity(limit),
            vacant: Vec::with_capacity(limit),
            limit,
            sweep: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Places that were ever used: the range of [`Self::range`].
    pub(super) fn places(&self) -> usize {
        self.flows.len()
    }

    /// The place of a flow.
    #[inline]
    fn find(&self, hash: u64, key: &FlowKey) -> Option<usize> {
        self.index.find(hash, |place| self.flows[place as usize].key == *key).map(|place| place as usize)
    }

    /// See [`Index::guess`].
    #[inline]
    pub(super) fn guess(&self, hash: u64) -> Option<u32> {
        self.index.guess(hash)
    }

    /// See [`Index::site`].
    pub(super) fn site(&self) -> Site {
        self.index.site()
    }

    #[inline]
    pub(super) fn get(&self, hash: u64, key: &FlowKey) -> Option<&V> {
        let place = self.find(hash, key)?;
        self.flows[place].value.as_ref()
    }

    /// The value, writable; `touch` marks the flow as used.
    #[inline]
    pub(super) fn get_mut(&mut self, hash: u64, key: &FlowKey, touch: Option<Instant>) -> Option<&mut V> {
        let place = self.find(hash, key)?;
        let flow = &mut self.flows[place];
        flow.touched = touch.unwrap_or(flow.touched);
        flow.value.as_mut()
    }

    pub(super) fn insert(&mut self, hash: u64, key: FlowKey, value: V, now: Instant) -> Result<Option<V>, TableFull> {
        let flow = Flow { key, touched: now, value: Some(value) };
        if let Some(place) = self.find(hash, &key) {
            return Ok(std::mem::replace(&mut self.flows[place], flow).value);
        }
        if self.is_full() {
            return Err(TableFull);
        }
        let place = if let Some(place) = self.vacant.pop() {
            self.flows[place as usize] = flow;
            place
        } else {
            self.flows.push(flow);
            self.flows.len() as u32 - 1
        };
        self.index.insert(hash, place);
        Ok(None)
    }

    pub(super) fn remove(&mut self, hash: u64, key: &FlowKey) -> Option<V> {
        let place = self.index.remove(hash, |place| self.flows[place as usize].key == *key)?;
        self.vacant.push(place);
        self.flows[place as usize].value.take()
    }

    /// The flows in a range of places.
    pub(super) fn range(&self, places: Range<usize>) -> impl Iterator<Item = (&FlowKey, &V)> {
        let end = places.end.min(self.flows.len());
        let flows = self.flows.get(places.start.min(end)..end).unwrap_or_default();
        flows.iter().filter_map(|flow| flow.value.as_ref().map(|value| (&flow.key, value)))
    }

    /// Visits the next `budget` places and removes flows last touched before `older_than`.
    pub(super) fn remove_expired(
        &mut self,
        older_than: Instant,
        budget: usize,
        hash: impl Fn(&FlowKey) -> u64,
        f: &mut impl FnMut(FlowKey, V),
    ) -> usize {
        let mut removed = 0;
        for _ in 0..budget.min(self.flows.len()) {
            let place = self.sweep;
            self.sweep = if place + 1 < self.flows.len() { place + 1 } else { 0 };
            let flow = &self.flows[place];
            if flow.value.is_some() && flow.touched < older_than {
                let key = flow.key;
                if let Some(value) = self.remove(hash(&key), &key) {
                    removed += 1;
                    f(key, value);
                }
            }
        }
        removed
    }

    /// See [`Index::longest_probe`].
    #[cfg(test)]
    pub(super) fn longest_probe(&self) -> usize {
        self.index.longest_probe()
    }

    /// Reserved memory: it must never change.
    #[cfg(test)]
    pub(super) fn reserved(&self) -> (usize, usize, usize) {
        (self.index.slots(), self.flows.capacity(), self.vacant.capacity())
    }
}
