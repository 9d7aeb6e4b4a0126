//! The table of one shard: an index with open addressing over a dense array of flows.
//!
//! The index holds one word a slot: 32 bits of the hash, and where the flow stands. Its slots are probed one after the
//! other, eight to a cache line, and the hash bits do what control bytes do elsewhere: a flow's own memory is touched
//! only when they agree. A removal moves the following slots back (the hash bits say how far), so there are no
//! tombstones, and the table never has to rehash. That is why it is not `hashbrown`: its deletions leave tombstones,
//! which under the steady churn of flows gather at any load until a rehash of everything stalls a packet.
//!
//! Flows keep their place while they live, so a sweep can go on where it ended. Nothing is allocated after `new`, and
//! memory becomes resident as flows use it.

use std::ops::Range;

use super::{FlowKey, TableFull};
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

/// An empty slot of the index; others hold `hash bits << 32 | place + 1`.
const EMPTY: u64 = 0;

/// See the module.
pub(super) struct Table<V> {
    /// A power of two, of which at most two thirds are in use.
    index: Box<[u64]>,
    flows: Vec<Flow<V>>,
    /// Places of `flows` without a value.
    vacant: Vec<u32>,
    /// Flows that may be held.
    limit: usize,
    /// The place where the next sweep begins.
    sweep: usize,
}

/// The hash bits that a slot keeps.
#[inline]
fn bits(hash: u64) -> u32 {
    hash as u32
}

#[inline]
fn slot_bits(slot: u64) -> u32 {
    (slot >> 32) as u32
}

/// The place that a slot names; the slot is not empty.
#[inline]
fn slot_place(slot: u64) -> usize {
    slot as u32 as usize - 1
}

impl<V> Table<V> {
    /// A table for `limit` flows (at most 2^31).
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.min(1 << 31);
        let slots = (limit + limit / 2 + 1).next_power_of_two();
        Self {
            // Zeroed by the system: no page is touched yet.
            index: vec![EMPTY; slots].into_boxed_slice(),
            flows: Vec::with_capacity(limit),
            vacant: Vec::with_capacity(limit),
            limit,
            sweep: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len() - self.vacant.len()
    }

    /// Places that were ever used: the range of [`Self::range`].
    pub(super) fn places(&self) -> usize {
        self.flows.len()
    }

    #[inline]
    fn mask(&self) -> usize {
        self.index.len() - 1
    }

    /// The slot and the place of a flow.
    #[inline]
    fn find(&self, hash: u64, key: &FlowKey) -> Option<(usize, usize)> {
        let bits = bits(hash);
        let mask = self.mask();
        let mut at = bits as usize & mask;
        // Ends: a third of the slots is empty.
        loop {
            let slot = self.index[at];
            if slot == EMPTY {
                return None;
            }
            if slot_bits(slot) == bits {
                let place = slot_place(slot);
                if self.flows[place].key == *key {
                    return Some((at, place));
                }
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    pub(super) fn get(&self, hash: u64, key: &FlowKey) -> Option<&V> {
        let (_, place) = self.find(hash, key)?;
        self.flows[place].value.as_ref()
    }

    /// The value, writable; `touch` marks the flow as used.
    #[inline]
    pub(super) fn get_mut(&mut self, hash: u64, key: &FlowKey, touch: Option<Instant>) -> Option<&mut V> {
        let (_, place) = self.find(hash, key)?;
        let flow = &mut self.flows[place];
        flow.touched = touch.unwrap_or(flow.touched);
        flow.value.as_mut()
    }

    pub(super) fn insert(&mut self, hash: u64, key: FlowKey, value: V, now: Instant) -> Result<Option<V>, TableFull> {
        let flow = Flow { key, touched: now, value: Some(value) };
        if let Some((_, place)) = self.find(hash, &key) {
            return Ok(std::mem::replace(&mut self.flows[place], flow).value);
        }
        if self.len() >= self.limit {
            return Err(TableFull);
        }
        let place = if let Some(place) = self.vacant.pop() {
            self.flows[place as usize] = flow;
            place
        } else {
            self.flows.push(flow);
            self.flows.len() as u32 - 1
        };
        let mask = self.mask();
        let mut at = bits(hash) as usize & mask;
        while self.index[at] != EMPTY {
            at = (at + 1) & mask;
        }
        self.index[at] = u64::from(bits(hash)) << 32 | u64::from(place + 1);
        Ok(None)
    }

    pub(super) fn remove(&mut self, hash: u64, key: &FlowKey) -> Option<V> {
        let (at, place) = self.find(hash, key)?;
        self.close_gap(at);
        self.vacant.push(place as u32);
        self.flows[place].value.take()
    }

    /// Empties a slot and moves back those behind it that a probe would otherwise no longer reach.
    fn close_gap(&mut self, slot: usize) {
        let mask = self.mask();
        let mut gap = slot;
        let mut at = slot;
        loop {
            at = (at + 1) & mask;
            let slot = self.index[at];
            if slot == EMPTY {
                break;
            }
            let home = slot_bits(slot) as usize & mask;
            // It may move if its home is not between the gap and where it stands.
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.index[gap] = slot;
                gap = at;
            }
        }
        self.index[gap] = EMPTY;
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

    /// The longest way from a flow's home to its slot; asserts that every flow can be reached.
    #[cfg(test)]
    pub(super) fn longest_probe(&self) -> usize {
        let mask = self.mask();
        let used = self.index.iter().filter(|&&slot| slot != EMPTY).count();
        assert_eq!(used, self.len(), "one slot a flow");
        let probe = |(at, &slot): (usize, &u64)| {
            let home = slot_bits(slot) as usize & mask;
            let steps = at.wrapping_sub(home) & mask;
            assert!((0..steps).all(|step| self.index[(home + step) & mask] != EMPTY), "no gap on the way");
            steps
        };
        self.index.iter().enumerate().filter(|&(_, &slot)| slot != EMPTY).map(probe).max().unwrap_or(0)
    }

    /// Reserved memory: it must never change.
    #[cfg(test)]
    pub(super) fn reserved(&self) -> (usize, usize, usize) {
        (self.index.len(), self.flows.capacity(), self.vacant.capacity())
    }
}
