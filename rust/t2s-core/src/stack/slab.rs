//! Slots for flows: stable indices, generation-checked ids, growth in chunks.
//!
//! Promises: an index stays valid until `remove`, growth never moves a flow (no latency spike), and an id from before a
//! removal finds nothing. Refuses: more than `limit` flows at once.

use super::api::FlowId;
use crate::prefetch::prefetch_to_write;

/// Flows of one chunk. 64 flows of 576 bytes make 36 KiB: small enough for an idle tunnel, large enough that growth is
/// rare.
const CHUNK: usize = 64;

/// Slots begin at a cache line: what a flow keeps together then shares one.
#[derive(Debug)]
#[repr(align(64))]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// A bounded table of flows.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<Box<[Slot<T>]>>,
    free: Vec<u32>,
    len: usize,
    limit: usize,
    /// Generation of slots in a new chunk: above any that a given-back chunk had, so that old ids stay stale.
    fresh: u32,
}

impl<T> Slab<T> {
    pub(super) fn new(limit: usize) -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), len: 0, limit, fresh: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= self.limit
    }

    /// Slots that exist, free ones included.
    pub(super) fn slots(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    /// Stores `make(id)`; `None` when full.
    pub(super) fn insert_with(&mut self, make: impl FnOnce(FlowId) -> T) -> Option<FlowId> {
        if self.is_full() {
            return None;
        }
        if self.free.is_empty() {
            self.grow();
        }
        let index = self.free.pop()?;
        let slot = &mut self.chunks[index as usize / CHUNK][index as usize % CHUNK];
        let id = FlowId { index, generation: slot.generation };
        slot.value = Some(make(id));
        self.len += 1;
        Some(id)
    }

    fn grow(&mut self) {
        let first = self.slots() as u32;
        self.chunks.push((0..CHUNK).map(|_| Slot { generation: self.fresh, value: None }).collect());
        self.free.extend((first..first + CHUNK as u32).rev());
    }

    /// Grows now if the next flow would have to and the table is in use: for when nothing waits. Tells whether it did.
    pub(super) fn prepare(&mut self) -> bool {
        let grows = self.free.is_empty() && self.len > 0 && !self.is_full();
        if grows {
            self.grow();
        }
        grows
    }

    /// Gets the first `bytes` of a slot under way to the cache.
    #[inline]
    pub(super) fn prefetch(&self, index: u32, bytes: usize) {
        if let Some(chunk) = self.chunks.get(index as usize / CHUNK) {
            prefetch_to_write((&raw const chunk[index as usize % CHUNK]).cast(), bytes.min(size_of::<Slot<T>>()));
        }
    }

    #[inline]
    pub(super) fn at(&self, index: u32) -> Option<&T> {
        self.chunks.get(index as usize / CHUNK)?[index as usize % CHUNK].value.as_ref()
    }

    #[inline]
    pub(super) fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.chunks.get_mut(index as usize / CHUNK)?[index as usize % CHUNK].value.as_mut()
    }

    /// The id of the slot's present flow, or of its next one.
    #[inline]
    pub(super) fn id_of(&self, index: u32) -> FlowId {
        let slot = &self.chunks[index as usize / CHUNK][index as usize % CHUNK];
        FlowId { index, generation: slot.generation }
    }

    #[inline]
    pub(super) fn get(&self, id: FlowId) -> Option<&T> {
        let slot = &self.chunks.get(id.index as usize / CHUNK)?[id.index as usize % CHUNK];
        (slot.generation == id.generation).then_some(slot.value.as_ref())?
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut T> {
        let slot = &mut self.chunks.get_mut(id.index as usize / CHUNK)?[id.index as usize % CHUNK];
        (slot.generation == id.generation).then_some(slot.value.as_mut())?
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<T> {
        let slot = &mut self.chunks.get_mut(index as usize / CHUNK)?[index as usize % CHUNK];
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        self.len -= 1;
        Some(value)
    }

    /// Gives back the free chunks at the end; for a housekeeping call, not for the packet path.
    pub(super) fn trim(&mut self) {
        let before = self.chunks.len();
        while let Some(last) = self.chunks.last() {
            if last.iter().any(|slot| slot.value.is_some()) {
                break;
            }
            let newest = last.iter().map(|slot| slot.generation).max().unwrap_or(0);
            self.fresh = self.fresh.max(newest.wrapping_add(1));
            self.chunks.pop();
        }
        if self.chunks.len() < before {
            let slots = self.slots() as u32;
            self.free.retain(|&index| index < slots);
            self.free.shrink_to(slots as usize);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowId, &T)> {
        self.chunks.iter().flatten().enumerate().filter_map(|(index, slot)| {
            let id = FlowId { index: index as u32, generation: slot.generation };
            slot.value.as_ref().map(|value| (id, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_made_ready_ahead_of_the_next_flow() {
        let mut slab = Slab::new(2 * CHUNK);
        slab.prepare();
        assert_eq!(slab.slots(), 0, "an unused table takes no memory");
        for n in 0..CHUNK {
            slab.insert_with(|_| n).unwrap();
        }
        assert_eq!(slab.slots(), CHUNK);
        slab.prepare();
        slab.prepare();
        assert_eq!((slab.slots(), slab.len()), (2 * CHUNK, CHUNK));
        for n in CHUNK..2 * CHUNK {
            slab.insert_with(|_| n).unwrap();
        }
        slab.prepare();
        assert_eq!(slab.slots(), 2 * CHUNK, "a full table needs no more");
        assert!(slab.insert_with(|_| 0).is_none());
        assert!(slab.iter().map(|(_, &value)| value).eq(0..2 * CHUNK));
    }
}
