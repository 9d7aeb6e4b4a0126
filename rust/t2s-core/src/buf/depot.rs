//! What the threads share: a size class and a lock for each, and the ceiling over all.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::cache::{Counters, PoolCache};
use super::memory::{Block, Slab, slab_blocks, slab_bytes};
use super::size_class::{Magazine, SizeClass};
use super::{CLASSES, PoolConfig, PoolExhausted, PoolStats};

/// Most bytes of buffers in one magazine: bounds what a thread hoards, and what one exchange moves.
const MAGAZINE_BYTES: usize = 512 * 1024;

/// Buffers in a magazine of the depot when threads have no cache.
const UNCACHED_MAGAZINE: usize = 64;

/// Magazines that one iteration of giving back takes apart under the lock (about 10 µs for workers that wait
/// meanwhile).
const REAP_STEP: usize = 8;

/// Buffers of a full magazine of a class; 0 when the cache is off.
pub(super) fn magazine_size(cache: u16, class: usize) -> usize {
    if cache == 0 { 0 } else { (cache as usize).min((MAGAZINE_BYTES / CLASSES[class]).max(1)) }
}

/// Below this many buffers a slab is mapped before one is needed: half of one.
fn low_watermark(class: usize) -> usize {
    slab_blocks(class) / 2
}

/// The shared part of a pool. Kept alive by its handles and by every mapped slab.
pub(super) struct Shared {
    config: PoolConfig,
    classes: [Mutex<SizeClass>; CLASSES.len()],
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
    fn lock(&self, class: usize) -> MutexGuard<'_, SizeClass> {
        let mutex = &self.classes[class];
        match mutex.try_lock() {
            Ok(size_class) => size_class,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let since = (self.config.clock)();
                let mut size_class = mutex.lock().unwrap_or_else(PoisonError::into_inner);
                size_class.lock_wait_ns += (self.config.clock)().saturating_sub(since);
                size_class
            }
        }
    }

    fn size(&self, class: usize) -> usize {
        let cache = if self.config.cache == 0 { UNCACHED_MAGAZINE as u16 } else { self.config.cache };
        magazine_size(cache, class)
    }

    /// Fills an empty magazine, in exchange or from slabs; grows the heap when there is nothing. Tells whether little
    /// is left: then [`Self::preallocate`] is due.
    pub(super) fn take_magazine(
        self: &Arc<Self>,
        class: usize,
        magazine: &mut Magazine,
    ) -> Result<bool, PoolExhausted> {
        debug_assert!(magazine.is_empty());
        let mut size_class = self.lock(class);
        size_class.exchanges += 1;
        if let Some(full) = size_class.pop_full() {
            size_class.keep_empty(std::mem::replace(magazine, full));
            return Ok(size_class.is_low(low_watermark(class)));
        }
        let size = self.size(class);
        size_class.fill(magazine, size);
        if magazine.is_empty() {
            drop(size_class);
            size_class = self.grow(class)?;
            size_class.fill(magazine, size);
        }
        Ok(size_class.is_low(low_watermark(class)))
    }

    /// Takes one buffer under the lock; tells whether little is left, as [`Self::take_magazine`] does.
    pub(super) fn take_one(self: &Arc<Self>, class: usize) -> Result<(Block, bool), PoolExhausted> {
        let mut size_class = self.lock(class);
        size_class.exchanges += 1;
        loop {
            size_class.loose_used = true;
            if let Some(block) = size_class.loose.pop() {
                return Ok((block, size_class.is_low(low_watermark(class))));
            }
            if let Some(full) = size_class.pop_full() {
                let empty = std::mem::replace(&mut size_class.loose, full);
                size_class.keep_empty(empty);
            } else if let Some(block) = size_class.take_from_slabs() {
                return Ok((block, size_class.is_low(low_watermark(class))));
            } else {
                drop(size_class);
                size_class = self.grow(class)?;
            }
        }
    }

    /// Leaves a full magazine and takes an empty one.
    pub(super) fn put_magazine(&self, class: usize, magazine: &mut Magazine) {
        let mut size_class = self.lock(class);
        size_class.exchanges += 1;
        let empty = size_class.take_empty(self.size(class));
        size_class.full.push_back(std::mem::replace(magazine, empty));
    }

    /// Puts one buffer under the lock.
    pub(super) fn put_one(&self, block: Block) {
        let class = block.class();
        let mut size_class = self.lock(class);
        size_class.exchanges += 1;
        size_class.put(block, self.size(class));
    }

    /// Puts all buffers of a cache.
    pub(super) fn put_all(&self, class: usize, blocks: impl Iterator<Item = Block>) {
        let mut blocks = blocks.peekable();
        if blocks.peek().is_none() {
            return;
        }
        let mut size_class = self.lock(class);
        size_class.exchanges += 1;
        let size = self.size(class);
        blocks.for_each(|block| size_class.put(block, size));
    }

    /// Takes a block whose owner dropped it.
    pub(super) fn take_back(&self, block: Block) {
        let class = block.class();
        let mut size_class = self.lock(class);
        size_class.dropped += 1;
        size_class.exchanges += 1;
        let idle = if size_class.closed {
            size_class.restore(block)
        } else {
            size_class.put(block, self.size(class));
            None
        };
        drop(size_class);
        self.unmap(idle);
    }

    /// Counts a refusal.
    #[cold]
    pub(super) fn refuse(&self) -> PoolExhausted {
        self.refused.fetch_add(1, Ordering::Relaxed);
        PoolExhausted
    }

    /// Maps a slab (with no lock held) and returns the class that has it. Other classes' idle slabs make room first.
    fn grow(self: &Arc<Self>, class: usize) -> Result<MutexGuard<'_, SizeClass>, PoolExhausted> {
        let bytes = slab_bytes(class);
        if !self.reserve(bytes, 0) {
            (0..CLASSES.len()).filter(|&other| other != class).for_each(|other| self.make_room(other));
            if !self.reserve(bytes, 0) {
                return Err(self.refuse());
            }
        }
        let Some(slab) = self.map(class) else { return Err(self.refuse()) };
        let mut size_class = self.lock(class);
        size_class.misses += 1;
        size_class.add(slab);
        Ok(size_class)
    }

    /// Maps a slab for the next need, if the class is still low; tells whether it tried. Nobody asked for it: a slab of
    /// any class must still fit below the ceiling, and when the system has none, nothing is refused.
    pub(super) fn preallocate(self: &Arc<Self>, class: usize) -> bool {
        if !self.lock(class).is_low(low_watermark(class))
            || !self.reserve(slab_bytes(class), slab_bytes(CLASSES.len() - 1))
        {
            return false;
        }
        if let Some(slab) = self.map(class) {
            self.lock(class).add_spare(slab);
        }
        true
    }

    /// Maps a slab whose bytes are reserved, with no lock held; ends the reservation when the system refuses.
    fn map(self: &Arc<Self>, class: usize) -> Option<Slab> {
        let id = self.lock(class).reserve_id();
        let slab = Slab::map(self, self.config.memory, class, id);
        if slab.is_none() {
            self.lock(class).release_id(id);
            self.heap.fetch_sub(slab_bytes(class), Ordering::Relaxed);
        }
        slab
    }

    /// Counts `bytes` as heap if they, and `beyond` more, stay below the ceiling.
    fn reserve(&self, bytes: usize, beyond: usize) -> bool {
        let ceiling = self.config.ceiling_bytes.saturating_sub(beyond);
        let grown = self.heap.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |heap| {
            heap.checked_add(bytes).filter(|&heap| heap <= ceiling)
        });
        if let Ok(before) = grown {
            self.heap_peak.fetch_max(before + bytes, Ordering::Relaxed);
        }
        grown.is_ok()
    }

    /// Gives up what a class holds idle: its spare slab, and its magazines if they can free a slab, since a refusal at
    /// the ceiling must stay cheap.
    fn make_room(&self, class: usize) {
        let mut size_class = self.lock(class);
        let (magazines, spare) = (size_class.full.len(), size_class.take_spare());
        drop(size_class);
        self.unmap(spare);
        if magazines * self.size(class) >= slab_blocks(class) {
            self.reap(class, magazines);
        }
    }

    /// Takes up to `magazines` apart, a few under each lock, and unmaps the slabs that are idle then.
    fn reap(&self, class: usize, magazines: usize) {
        let mut left = magazines;
        while left > 0 {
            let mut idle = Vec::new();
            let mut size_class = self.lock(class);
            for _ in 0..left.min(REAP_STEP) {
                let Some(mut magazine) = size_class.full.pop_front() else {
                    left = 0;
                    break;
                };
                left -= 1;
                idle.extend(magazine.drain(..).filter_map(|block| size_class.restore(block)));
                size_class.keep_empty(magazine);
            }
            size_class.least_full = size_class.least_full.min(size_class.full.len());
            drop(size_class);
            self.unmap(idle);
        }
    }

    /// Takes the loose buffers of a class apart, if `loose`, and unmaps the slabs that are idle then, and the `spare`
    /// one.
    fn reap_rest(&self, class: usize, loose: bool, spare: bool) {
        let mut size_class = self.lock(class);
        let mut idle = size_class.take_unused();
        if spare {
            idle.extend(size_class.take_spare());
        }
        if loose {
            let loose = std::mem::take(&mut size_class.loose);
            idle.extend(loose.into_iter().filter_map(|block| size_class.restore(block)));
        }
        drop(size_class);
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
            let mut size_class = self.lock(class);
            let excess = size_class.excess();
            let loose_idle = !std::mem::take(&mut size_class.loose_used);
            let spare_idle = size_class.spare_is_idle();
            drop(size_class);
            self.reap(class, excess);
            self.reap_rest(class, loose_idle, spare_idle);
        }
    }

    fn reclaim(&self) {
        for class in 0..CLASSES.len() {
            self.reap(class, usize::MAX);
            self.reap_rest(class, true, true);
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
            heap_bytes: self.heap.load(Ordering::Relaxed),
            heap_peak_bytes: self.heap_peak.load(Ordering::Relaxed),
            ..PoolStats::default()
        };
        for class in 0..CLASSES.len() {
            // Readers wait here without timing: statistics do not count as waiting of the packet path.
            let size_class = self.classes[class].lock().unwrap_or_else(PoisonError::into_inner);
            stats.grow_stalls += size_class.misses;
            stats.preallocated_slabs += size_class.preallocated;
            stats.lock_wait_ns += size_class.lock_wait_ns;
            stats.depot_exchanges += size_class.exchanges;
            let free = free[class] + size_class.dropped;
            drop(size_class);
            // A buffer freed by another thread between the two reads may be missed on one side only.
            let live = alloc[class].saturating_sub(free);
            stats.buffers_allocated += alloc[class];
            stats.buffers_freed += free;
            stats.live_buffers += live as usize;
            stats.live_bytes += live as usize * CLASSES[class];
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
            classes: std::array::from_fn(|_| Mutex::default()),
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
    /// memory still mapped; and a preallocated slab that was of no use since the last call. Buffers in threads' caches
    /// keep their slabs: see [`PoolCache::flush`].
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
