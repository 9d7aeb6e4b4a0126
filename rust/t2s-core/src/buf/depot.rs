//! What the threads share: shelves of magazines over slabs, one lock a class, and the ceiling over all.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::cache::{Counters, PoolCache};
use super::memory::{Block, Slab, slab_blocks, slab_bytes};
use super::{CLASSES, PoolConfig, PoolExhausted, PoolStats};

/// An array of free blocks of one class; full at its capacity, to which it is created.
pub(super) type Magazine = Vec<Block>;

/// Most bytes of buffers in one magazine: bounds what a thread hoards, and what one exchange moves.
const MAGAZINE_BYTES: usize = 512 * 1024;

/// Buffers in a magazine of the depot when threads have no cache.
const UNCACHED_MAGAZINE: usize = 64;

/// Magazines that one turn of giving back takes apart under the lock (about 10 µs for workers that wait meanwhile).
const REAP_STEP: usize = 8;

/// Empty magazines that the depot keeps for exchanges; more are freed.
const EMPTY_KEPT: usize = 32;

/// Buffers of a full magazine of a class; 0 when the cache is off.
pub(super) fn magazine_size(cache: u16, class: usize) -> usize {
    if cache == 0 { 0 } else { (cache as usize).min((MAGAZINE_BYTES / CLASSES[class]).max(1)) }
}

/// The pool of one class.
#[derive(Default)]
struct Shelf {
    /// Magazines with buffers: taken and put at the back, reaped from the front, where the coldest are.
    full: VecDeque<Magazine>,
    empty: Vec<Magazine>,
    /// Single buffers (dropped, flushed, or all of them when there is no cache) until they make a magazine.
    loose: Magazine,
    /// Whether `loose` was used since the last giving back.
    loose_used: bool,
    /// The fewest full magazines since the last giving back, and in the interval before: what nobody needed.
    least_full: usize,
    least_before: usize,
    /// Slabs by id; `None` for ids that are vacant (then in `vacant`) or about to be filled.
    slabs: Vec<Option<Slab>>,
    vacant: Vec<u32>,
    /// Slabs with blocks to take. The lowest id first, so that live buffers gather and other slabs empty out.
    partial: BTreeSet<u32>,
    /// No handle is left: blocks go straight to their slabs, and idle slabs to the system.
    closed: bool,
    misses: u64,
    dropped: u64,
    exchanges: u64,
    lock_wait_ns: u64,
}

impl Shelf {
    /// A magazine with buffers, if there is one.
    fn pop_full(&mut self) -> Option<Magazine> {
        let magazine = self.full.pop_back();
        self.least_full = self.least_full.min(self.full.len());
        magazine
    }

    fn keep_empty(&mut self, magazine: Magazine) {
        if self.empty.len() < EMPTY_KEPT && magazine.capacity() > 0 {
            self.empty.push(magazine);
        }
    }

    /// Moves up to `size` buffers into `magazine`: loose ones, else from slabs.
    fn fill(&mut self, magazine: &mut Magazine, size: usize) {
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

    fn take_from_slabs(&mut self) -> Option<Block> {
        let id = *self.partial.first()?;
        let slab = self.slabs[id as usize].as_mut().expect("an id in `partial` names a slab");
        let block = slab.take();
        if !slab.has_free() {
            self.partial.remove(&id);
        }
        block
    }

    /// Puts a single buffer.
    fn put(&mut self, block: Block, size: usize) {
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

    fn take_empty(&mut self, size: usize) -> Magazine {
        self.empty.pop().unwrap_or_else(|| Magazine::with_capacity(size))
    }

    /// Returns a block to its slab; the slab, if it is idle now, leaves the shelf for the caller to drop unlocked.
    fn restore(&mut self, block: Block) -> Option<Slab> {
        let id = block.slab_id();
        let place = &mut self.slabs[id as usize];
        let slab = place.as_mut().expect("a block's slab stays until the block is back");
        slab.put(block);
        if slab.is_idle() {
            let slab = place.take();
            self.partial.remove(&id);
            self.vacant.push(id);
            return slab;
        }
        self.partial.insert(id);
        None
    }

    /// Takes out the slabs that nobody ever took a block of (two threads grew the heap for one need).
    fn take_unused(&mut self) -> Vec<Slab> {
        let Self { slabs, vacant, partial, .. } = self;
        let mut unused = Vec::new();
        partial.retain(|&id| {
            let place = &mut slabs[id as usize];
            let idle = place.as_ref().is_some_and(Slab::is_idle);
            if idle {
                unused.extend(place.take());
                vacant.push(id);
            }
            !idle
        });
        unused
    }

    /// An id for a slab that is about to be mapped.
    fn reserve_id(&mut self) -> u32 {
        self.vacant.pop().unwrap_or_else(|| {
            self.slabs.push(None);
            self.slabs.len() as u32 - 1
        })
    }

    fn add(&mut self, slab: Slab) {
        let id = slab.id();
        self.slabs[id as usize] = Some(slab);
        self.partial.insert(id);
    }

    /// Magazines that nobody needed over two intervals; begins the next interval.
    fn excess(&mut self) -> usize {
        let idle = self.least_full.min(self.least_before);
        self.least_before = self.least_full;
        self.least_full = self.full.len();
        // When most lie idle, all are taken apart: what is needed comes back from the lowest slabs, which gathers the
        // buffers in use and lets the other slabs go.
        if idle * 2 >= self.full.len() && idle > 0 { self.full.len() } else { idle }
    }
}

/// The shared part of a pool. Kept alive by its handles and by every mapped slab.
pub(super) struct Shared {
    config: PoolConfig,
    shelves: [Mutex<Shelf>; CLASSES.len()],
    /// Bytes of slabs, mapped or about to be; never above the ceiling.
    heap: AtomicUsize,
    heap_peak: AtomicUsize,
    refused: AtomicU64,
    registry: Mutex<Registry>,
    handles: AtomicUsize,
}

/// Counters of living caches, and the sums of ended ones.
#[derive(Default)]
struct Registry {
    active: Vec<Arc<Counters>>,
    alloc: [u64; CLASSES.len()],
    free: [u64; CLASSES.len()],
}

impl Shared {
    fn lock(&self, class: usize) -> MutexGuard<'_, Shelf> {
        let mutex = &self.shelves[class];
        match mutex.try_lock() {
            Ok(shelf) => shelf,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let since = (self.config.clock)();
                let mut shelf = mutex.lock().unwrap_or_else(PoisonError::into_inner);
                shelf.lock_wait_ns += (self.config.clock)().saturating_sub(since);
                shelf
            }
        }
    }

    fn size(&self, class: usize) -> usize {
        let cache = if self.config.cache == 0 { UNCACHED_MAGAZINE as u16 } else { self.config.cache };
        magazine_size(cache, class)
    }

    /// Fills an empty magazine, in exchange or from slabs; grows the heap when there is nothing.
    pub(super) fn take_magazine(self: &Arc<Self>, class: usize, magazine: &mut Magazine) -> Result<(), PoolExhausted> {
        debug_assert!(magazine.is_empty());
        let mut shelf = self.lock(class);
        shelf.exchanges += 1;
        if let Some(full) = shelf.pop_full() {
            shelf.keep_empty(std::mem::replace(magazine, full));
            return Ok(());
        }
        let size = self.size(class);
        shelf.fill(magazine, size);
        if magazine.is_empty() {
            drop(shelf);
            shelf = self.grow(class)?;
            shelf.fill(magazine, size);
        }
        Ok(())
    }

    /// Takes one buffer under the lock.
    pub(super) fn take_one(self: &Arc<Self>, class: usize) -> Result<Block, PoolExhausted> {
        let mut shelf = self.lock(class);
        shelf.exchanges += 1;
        loop {
            shelf.loose_used = true;
            if let Some(block) = shelf.loose.pop() {
                return Ok(block);
            }
            if let Some(full) = shelf.pop_full() {
                let empty = std::mem::replace(&mut shelf.loose, full);
                shelf.keep_empty(empty);
            } else if let Some(block) = shelf.take_from_slabs() {
                return Ok(block);
            } else {
                drop(shelf);
                shelf = self.grow(class)?;
            }
        }
    }

    /// Leaves a full magazine and takes an empty one.
    pub(super) fn put_magazine(&self, class: usize, magazine: &mut Magazine) {
        let mut shelf = self.lock(class);
        shelf.exchanges += 1;
        let empty = shelf.take_empty(self.size(class));
        shelf.full.push_back(std::mem::replace(magazine, empty));
    }

    /// Puts one buffer under the lock.
    pub(super) fn put_one(&self, block: Block) {
        let class = block.class();
        let mut shelf = self.lock(class);
        shelf.exchanges += 1;
        shelf.put(block, self.size(class));
    }

    /// Puts all buffers of a cache.
    pub(super) fn put_all(&self, class: usize, blocks: impl Iterator<Item = Block>) {
        let mut blocks = blocks.peekable();
        if blocks.peek().is_none() {
            return;
        }
        let mut shelf = self.lock(class);
        shelf.exchanges += 1;
        let size = self.size(class);
        blocks.for_each(|block| shelf.put(block, size));
    }

    /// Takes a block whose owner dropped it.
    pub(super) fn take_back(&self, block: Block) {
        let class = block.class();
        let mut shelf = self.lock(class);
        shelf.dropped += 1;
        shelf.exchanges += 1;
        let idle = if shelf.closed {
            shelf.restore(block)
        } else {
            shelf.put(block, self.size(class));
            None
        };
        drop(shelf);
        self.unmap(idle);
    }

    /// Counts a refusal.
    #[cold]
    pub(super) fn refuse(&self) -> PoolExhausted {
        self.refused.fetch_add(1, Ordering::Relaxed);
        PoolExhausted
    }

    /// Maps a slab (with no lock held) and returns the shelf that has it. Other classes' idle slabs make room first.
    fn grow(self: &Arc<Self>, class: usize) -> Result<MutexGuard<'_, Shelf>, PoolExhausted> {
        let bytes = slab_bytes(class);
        if !self.reserve(bytes) {
            (0..CLASSES.len()).filter(|&other| other != class).for_each(|other| self.make_room(other));
            if !self.reserve(bytes) {
                return Err(self.refuse());
            }
        }
        let id = self.lock(class).reserve_id();
        let slab = Slab::map(self, self.config.memory, class, id);
        let mut shelf = self.lock(class);
        if let Some(slab) = slab {
            shelf.misses += 1;
            shelf.add(slab);
            return Ok(shelf);
        }
        shelf.vacant.push(id);
        drop(shelf);
        self.heap.fetch_sub(bytes, Ordering::Relaxed);
        Err(self.refuse())
    }

    /// Counts `bytes` as heap if they stay below the ceiling.
    fn reserve(&self, bytes: usize) -> bool {
        let ceiling = self.config.ceiling_bytes;
        let grown = self.heap.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |heap| {
            heap.checked_add(bytes).filter(|&heap| heap <= ceiling)
        });
        if let Ok(before) = grown {
            self.heap_peak.fetch_max(before + bytes, Ordering::Relaxed);
        }
        grown.is_ok()
    }

    /// Gives up what a class holds idle, if that can free a slab: a refusal at the ceiling must stay cheap.
    fn make_room(&self, class: usize) {
        let magazines = self.lock(class).full.len();
        if magazines * self.size(class) >= slab_blocks(class) {
            self.reap(class, magazines);
        }
    }

    /// Takes up to `magazines` apart, a few under each lock, and unmaps the slabs that are idle then.
    fn reap(&self, class: usize, magazines: usize) {
        let mut left = magazines;
        while left > 0 {
            let mut idle = Vec::new();
            let mut shelf = self.lock(class);
            for _ in 0..left.min(REAP_STEP) {
                let Some(mut magazine) = shelf.full.pop_front() else {
                    left = 0;
                    break;
                };
                left -= 1;
                idle.extend(magazine.drain(..).filter_map(|block| shelf.restore(block)));
                shelf.keep_empty(magazine);
            }
            shelf.least_full = shelf.least_full.min(shelf.full.len());
            drop(shelf);
            self.unmap(idle);
        }
    }

    /// Takes the loose buffers of a class apart, if `loose`, and unmaps the slabs that are idle then.
    fn reap_rest(&self, class: usize, loose: bool) {
        let mut shelf = self.lock(class);
        let mut idle = shelf.take_unused();
        if loose {
            let loose = std::mem::take(&mut shelf.loose);
            idle.extend(loose.into_iter().filter_map(|block| shelf.restore(block)));
        }
        drop(shelf);
        self.unmap(idle);
    }

    /// Ends slabs, with no lock held.
    fn unmap(&self, slabs: impl IntoIterator<Item = Slab>) {
        for slab in slabs {
            let bytes = slab.bytes();
            drop(slab);
            self.heap.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    pub(super) fn give_back(&self) {
        for class in 0..CLASSES.len() {
            let mut shelf = self.lock(class);
            let excess = shelf.excess();
            let loose_idle = !std::mem::take(&mut shelf.loose_used);
            drop(shelf);
            self.reap(class, excess);
            self.reap_rest(class, loose_idle);
        }
    }

    fn reclaim(&self) {
        for class in 0..CLASSES.len() {
            self.reap(class, usize::MAX);
            self.reap_rest(class, true);
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(&self, counters: &Arc<Counters>) {
        self.registry().active.push(Arc::clone(counters));
    }

    pub(super) fn retire(&self, counters: &Arc<Counters>) {
        let mut registry = self.registry();
        registry.active.retain(|other| !Arc::ptr_eq(other, counters));
        for class in 0..CLASSES.len() {
            registry.alloc[class] += counters.alloc[class].load(Ordering::Relaxed);
            registry.free[class] += counters.free[class].load(Ordering::Relaxed);
        }
    }

    fn stats(&self) -> PoolStats {
        let registry = self.registry();
        let (mut alloc, mut free) = (registry.alloc, registry.free);
        for counters in &registry.active {
            for class in 0..CLASSES.len() {
                alloc[class] += counters.alloc[class].load(Ordering::Relaxed);
                free[class] += counters.free[class].load(Ordering::Relaxed);
            }
        }
        drop(registry);
        let mut stats = PoolStats {
            refused: self.refused.load(Ordering::Relaxed),
            bytes_heap: self.heap.load(Ordering::Relaxed),
            bytes_heap_peak: self.heap_peak.load(Ordering::Relaxed),
            ..PoolStats::default()
        };
        for class in 0..CLASSES.len() {
            // Readers wait here without timing: statistics do not count as waiting of the packet path.
            let shelf = self.shelves[class].lock().unwrap_or_else(PoisonError::into_inner);
            stats.pool_miss += shelf.misses;
            stats.lock_wait_ns += shelf.lock_wait_ns;
            stats.depot_exchanges += shelf.exchanges;
            let free = free[class] + shelf.dropped;
            drop(shelf);
            // A buffer freed by another thread between the two reads may be missed on one side only.
            let live = alloc[class].saturating_sub(free);
            stats.alloc += alloc[class];
            stats.free += free;
            stats.buffers_live += live as usize;
            stats.bytes_live += live as usize * CLASSES[class];
        }
        stats
    }

    /// The last handle is gone: buffers still out go home one by one.
    fn close(&self) {
        (0..CLASSES.len()).for_each(|class| self.lock(class).closed = true);
        self.reclaim();
    }
}

/// A counted handle: when the last one ends, the pool closes.
pub(super) struct Handle(Arc<Shared>);

impl Handle {
    #[inline]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    pub(super) fn config(&self) -> &PoolConfig {
        &self.0.config
    }
}

impl std::ops::Deref for Handle {
    type Target = Shared;

    #[inline]
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        self.0.handles.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.0.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.close();
        }
    }
}

/// The handle of a pool: gives each thread its cache, reports, and returns idle memory. Cloning shares the pool.
#[derive(Clone)]
pub struct Pool(Handle);

impl Pool {
    /// A pool without any memory yet.
    pub fn new(config: PoolConfig) -> Self {
        Self(Handle(Arc::new(Shared {
            config,
            shelves: std::array::from_fn(|_| Mutex::default()),
            heap: AtomicUsize::new(0),
            heap_peak: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            registry: Mutex::default(),
            handles: AtomicUsize::new(1),
        })))
    }

    /// A cache for one thread.
    pub fn cache(&self) -> PoolCache {
        PoolCache::new(self.0.clone())
    }

    /// The counters.
    pub fn stats(&self) -> PoolStats {
        self.0.stats()
    }

    /// The settings.
    pub fn config(&self) -> &PoolConfig {
        self.0.config()
    }

    /// Unmaps what lay idle in the depot since the call before the last; meant to be called about once a second.
    ///
    /// Idle is what the depot never fell short of over two intervals, so a burst that returns within seconds finds its
    /// memory still mapped. Buffers in threads' caches keep their slabs: see [`PoolCache::flush`].
    pub fn give_back(&self) {
        self.0.give_back();
    }

    /// Unmaps everything that lies idle in the depot now.
    pub fn reclaim(&self) {
        self.0.reclaim();
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
