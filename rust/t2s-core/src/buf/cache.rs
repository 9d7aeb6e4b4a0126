//! The cache of one thread: two magazines a class, no lock and no atomic read-modify-write while they last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::buffer::Buf;
use super::depot::{Handle, magazine_size};
use super::memory::Block;
use super::size_class::Magazine;
use super::{CLASSES, PoolExhausted, class_of};

/// Allocations and frees of one thread by class. Written by its owner alone, read by anyone.
#[derive(Default)]
#[repr(align(128))] // two cache lines: adjacent-line prefetch must not couple two threads' counters
pub(super) struct Counters {
    pub(super) alloc: [AtomicU64; CLASSES.len()],
    pub(super) free: [AtomicU64; CLASSES.len()],
}

/// Adds one to a counter that only this thread writes: a plain load and store.
#[inline]
fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// Two magazines of one class. A magazine is full at its capacity, which is 0 without a cache.
struct Rack {
    loaded: Magazine,
    previous: Magazine,
}

/// A thread's way to its pool. Cheap to use, a few KiB to hold; dropping it returns what it caches.
pub struct PoolCache {
    racks: [Rack; CLASSES.len()],
    /// Classes, as bits, of which little was left when this thread visited the depot.
    low: u8,
    counters: Arc<Counters>,
    pool: Handle,
}

impl PoolCache {
    pub(super) fn new(pool: Handle) -> Self {
        let cache = pool.config().cache;
        let racks = std::array::from_fn(|class| {
            let size = magazine_size(cache, class);
            Rack { loaded: Vec::with_capacity(size), previous: Vec::with_capacity(size) }
        });
        let counters = Arc::new(Counters::default());
        pool.register(&counters);
        Self { racks, low: 0, counters, pool }
    }

    /// An empty buffer with room for `len` bytes, of which the first `headroom` lie in front of its content.
    ///
    /// # Errors
    /// [`PoolExhausted`], counted as refused, at the pool's ceiling or when `len` is beyond the largest class.
    #[inline]
    pub fn alloc(&mut self, len: usize, headroom: usize) -> Result<Buf, PoolExhausted> {
        let Some(class) = class_of(len.max(headroom)) else { return Err(self.pool.refuse()) };
        let block = match self.racks[class].loaded.pop() {
            Some(block) => block,
            None => self.reload(class)?,
        };
        bump(&self.counters.alloc[class]);
        Ok(Buf::new(block, headroom))
    }

    /// A buffer that holds a copy of `data` behind `headroom` bytes of room.
    ///
    /// # Errors
    /// As [`Self::alloc`].
    #[inline]
    pub fn alloc_copy(&mut self, data: &[u8], headroom: usize) -> Result<Buf, PoolExhausted> {
        let mut buf = self.alloc(headroom.saturating_add(data.len()), headroom)?;
        buf.append(data);
        Ok(buf)
    }

    /// Gets the buffer that [`Self::alloc`] would give for `len` bytes under way to this CPU's cache, if it is at hand:
    /// between two packets, when nobody waits for it.
    #[inline]
    pub fn prefetch(&self, len: usize) {
        if let Some(block) = class_of(len).and_then(|class| self.racks[class].loaded.last()) {
            block.prefetch(len);
        }
    }

    /// Maps a slab for a class of which little is left in the depot, so that no allocation waits for the system; tells
    /// whether it tried, which takes tens of microseconds. To be called between iterations, when nobody waits; next to
    /// nothing when there is nothing to do.
    #[inline]
    pub fn preallocate(&mut self) -> bool {
        self.low != 0 && self.map_ahead()
    }

    /// One class at a time: a packet may come meanwhile.
    #[cold]
    #[inline(never)]
    fn map_ahead(&mut self) -> bool {
        let class = self.low.trailing_zeros() as usize;
        self.low &= self.low - 1;
        self.pool.shared().preallocate(class)
    }

    /// Gives a buffer back. One of another pool goes home too, by way of that pool's lock.
    #[inline]
    pub fn free(&mut self, buf: Buf) {
        let block = buf.into_block();
        if !block.is_of(self.pool.shared()) {
            drop(block);
            return;
        }
        let class = block.class();
        bump(&self.counters.free[class]);
        let rack = &mut self.racks[class];
        if rack.loaded.len() < rack.loaded.capacity() {
            rack.loaded.push(block);
        } else {
            self.unload(block);
        }
    }

    /// Returns everything that is cached to the depot: before a thread sleeps for long, and before
    /// [`super::Pool::give_back`], since a cached buffer keeps its slab mapped.
    pub fn flush(&mut self) {
        for (class, rack) in self.racks.iter_mut().enumerate() {
            self.pool.shared().put_all(class, rack.loaded.drain(..).chain(rack.previous.drain(..)));
        }
    }

    /// Flushes, and has the pool unmap what lies idle: see [`super::Pool::give_back`].
    pub fn give_back(&mut self) {
        self.flush();
        self.pool.give_back();
    }

    /// The loaded magazine is empty: take the previous one, else a full one from the depot.
    #[cold]
    #[inline(never)]
    fn reload(&mut self, class: usize) -> Result<Block, PoolExhausted> {
        let rack = &mut self.racks[class];
        if rack.loaded.capacity() == 0 {
            let (block, low) = self.pool.shared().take_one(class)?;
            self.low |= u8::from(low) << class;
            return Ok(block);
        }
        if rack.previous.is_empty() {
            let low = self.pool.shared().take_magazine(class, &mut rack.loaded)?;
            self.low |= u8::from(low) << class;
        } else {
            std::mem::swap(&mut rack.loaded, &mut rack.previous);
        }
        rack.loaded.pop().ok_or(PoolExhausted)
    }

    /// The loaded magazine is full: use the previous one, whose buffers go to the depot if it is full as well.
    #[cold]
    #[inline(never)]
    fn unload(&mut self, block: Block) {
        let class = block.class();
        let rack = &mut self.racks[class];
        if rack.loaded.capacity() == 0 {
            self.pool.shared().put_one(block);
            return;
        }
        if rack.previous.len() == rack.previous.capacity() {
            self.pool.shared().put_magazine(class, &mut rack.previous);
        }
        std::mem::swap(&mut rack.loaded, &mut rack.previous);
        rack.loaded.push(block);
    }
}

impl Drop for PoolCache {
    fn drop(&mut self) {
        self.flush();
        self.pool.retire(&self.counters);
    }
}

impl std::fmt::Debug for PoolCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolCache").finish_non_exhaustive()
    }
}
