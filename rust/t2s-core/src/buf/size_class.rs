//! The pool of one class: magazines and single buffers over slabs. Its lock is the depot's.

use std::collections::{BTreeSet, VecDeque};

use super::memory::{Block, Slab};

/// An array of free blocks of one class; full at its capacity, to which it is created.
pub(super) type Magazine = Vec<Block>;

/// Empty magazines that the depot keeps for exchanges; more are freed.
const EMPTY_KEPT: usize = 32;

/// The pool of one class.
#[derive(Default)]
pub(super) struct SizeClass {
    /// Magazines with buffers: taken and put at the back, reaped from the front, where the coldest are.
    pub(super) full: VecDeque<Magazine>,
    empty: Vec<Magazine>,
    /// Single buffers (dropped, flushed, or all of them when there is no cache) until they make a magazine.
    pub(super) loose: Magazine,
    /// Whether `loose` was used since the last giving back.
    pub(super) loose_used: bool,
    /// The fewest full magazines since the last giving back, and in the interval before: what nobody needed.
    pub(super) least_full: usize,
    least_before: usize,
    /// Slabs by id; `None` for ids that are vacant (then in `vacant`) or about to be filled.
    pub(super) slabs: Vec<Option<Slab>>,
    vacant: Vec<u32>,
    /// Slabs with blocks to take. The lowest id first, so that live buffers gather and other slabs empty out.
    partial: BTreeSet<u32>,
    /// Blocks to take of the slabs in `partial`.
    available: usize,
    /// A slab that was mapped before anything needed it. Not in `partial`, where its number may be the lowest: it is to
    /// stay whole while others have blocks, so that it can go again.
    spare: Option<Slab>,
    /// The class would have been low without it since the last giving back.
    spare_used: bool,
    /// No handle is left: blocks go straight to their slabs, and idle slabs to the system.
    pub(super) closed: bool,
    pub(super) misses: u64,
    /// Slabs that were mapped before one was needed.
    pub(super) preallocated: u64,
    pub(super) dropped: u64,
    pub(super) exchanges: u64,
    pub(super) lock_wait_ns: u64,
}

impl SizeClass {
    /// A magazine with buffers, if there is one.
    pub(super) fn pop_full(&mut self) -> Option<Magazine> {
        let magazine = self.full.pop_back();
        self.least_full = self.least_full.min(self.full.len());
        magazine
    }

    pub(super) fn keep_empty(&mut self, magazine: Magazine) {
        if self.empty.len() < EMPTY_KEPT && magazine.capacity() > 0 {
            self.empty.push(magazine);
        }
    }

    /// Moves up to `size` buffers into `magazine`: loose ones, else from slabs.
    pub(super) fn fill(&mut self, magazine: &mut Magazine, size: usize) {
        if !self.loose.is_empty() {
            self.loose_used = true;
            let keep = self.loose.len().saturating_sub(size - magazine.len());
            magazine.extend(self.loose.drain(keep..));
            return;
        }
        while magazine.len() < size {
            let Some(block) = self.take_from_slabs() else { return };
            magazine.push(block);
        }
    }

    pub(super) fn take_from_slabs(&mut self) -> Option<Block> {
        if self.partial.is_empty()
            && let Some(spare) = self.spare.take()
        {
            self.add(spare);
        }
        let id = *self.partial.first()?;
        let slab = self.slabs[id as usize].as_mut().expect("an id in `partial` names a slab");
        let block = slab.take();
        self.available -= usize::from(block.is_some());
        if !slab.has_free() {
            self.partial.remove(&id);
        }
        block
    }

    /// Whether fewer than `low_watermark` buffers are left and no slab stands behind them.
    pub(super) fn is_low(&mut self, low_watermark: usize) -> bool {
        let low = self.available + self.loose.len() < low_watermark && self.full.is_empty();
        self.spare_used |= low;
        low && self.spare.is_none()
    }

    /// Keeps a slab for later.
    pub(super) fn add_spare(&mut self, slab: Slab) {
        self.preallocated += 1;
        self.spare_used = true;
        match self.spare {
            None => self.spare = Some(slab),
            // Another thread had the same thought.
            Some(_) => self.add(slab),
        }
    }

    /// Takes the spare slab out, for the caller to drop unlocked.
    pub(super) fn take_spare(&mut self) -> Option<Slab> {
        let spare = self.spare.take()?;
        self.release_id(spare.id());
        Some(spare)
    }

    /// Whether the spare slab was of no use since the last giving back; begins the next interval.
    pub(super) fn spare_is_idle(&mut self) -> bool {
        !std::mem::take(&mut self.spare_used)
    }

    /// Puts a single buffer.
    pub(super) fn put(&mut self, block: Block, size: usize) {
        self.loose_used = true;
        if self.loose.len() == self.loose.capacity() {
            let empty = self.take_empty(size);
            let full = std::mem::replace(&mut self.loose, empty);
            // At first there is a magazine without room, which is no magazine.
            if !full.is_empty() {
                self.full.push_back(full);
            }
        }
        self.loose.push(block);
    }

    pub(super) fn take_empty(&mut self, size: usize) -> Magazine {
        self.empty.pop().unwrap_or_else(|| Magazine::with_capacity(size))
    }

    /// Returns a block to its slab; the slab, if it is idle now, leaves the class for the caller to drop unlocked.
    pub(super) fn restore(&mut self, block: Block) -> Option<Slab> {
        let id = block.slab_id();
        let place = &mut self.slabs[id as usize];
        let slab = place.as_mut().expect("a block's slab stays until the block is back");
        slab.put(block);
        self.available += 1;
        if slab.is_idle() {
            self.available -= slab.free_blocks();
            let slab = place.take();
            self.partial.remove(&id);
            self.release_id(id);
            return slab;
        }
        self.partial.insert(id);
        None
    }

    /// Takes out the slabs that nobody ever took a block of (two threads grew the heap for one need).
    pub(super) fn take_unused(&mut self) -> Vec<Slab> {
        let Self { slabs, vacant, partial, available, .. } = self;
        let mut unused = Vec::new();
        partial.retain(|&id| {
            let place = &mut slabs[id as usize];
            let idle = place.as_ref().is_some_and(Slab::is_idle);
            if idle {
                *available -= place.as_ref().map_or(0, Slab::free_blocks);
                unused.extend(place.take());
                vacant.push(id);
            }
            !idle
        });
        unused
    }

    /// An id for a slab that is about to be mapped.
    pub(super) fn reserve_id(&mut self) -> u32 {
        self.vacant.pop().unwrap_or_else(|| {
            self.slabs.push(None);
            self.slabs.len() as u32 - 1
        })
    }

    /// Gives up an id of no slab.
    pub(super) fn release_id(&mut self, id: u32) {
        self.vacant.push(id);
    }

    pub(super) fn add(&mut self, slab: Slab) {
        self.available += slab.free_blocks();
        let id = slab.id();
        self.slabs[id as usize] = Some(slab);
        self.partial.insert(id);
    }

    /// Magazines that nobody needed over two intervals; begins the next interval.
    pub(super) fn excess(&mut self) -> usize {
        let idle = self.least_full.min(self.least_before);
        self.least_before = self.least_full;
        self.least_full = self.full.len();
        // When most lie idle, all are taken apart: what is needed comes back from the lowest slabs, which gathers the
        // buffers in use and lets the other slabs go.
        if idle * 2 >= self.full.len() && idle > 0 { self.full.len() } else { idle }
    }
}
