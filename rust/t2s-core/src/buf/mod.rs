//! The memory pool: size-classed buffers with a cache per thread, a shared depot and a hard ceiling.
//!
//! Every packet and every queued byte lives in a [`Buf`]. The design is Bonwick's (USENIX 2001, "Magazines and Vmem"):
//! a [`PoolCache`] belongs to one thread and serves from two magazines (arrays of free buffers) per size class without
//! a lock or an atomic read-modify-write; only when both are empty (or both full) does it exchange a whole magazine
//! with the depot, under a lock. Below the depot lie slabs: mappings cut into buffers of one class, obtained through
//! [`Memory`], so that an OS shell can hand in `mmap`. A thread that has a moment between its iterations maps the next
//! slab before it is needed ([`PoolCache::preallocate`]).
//!
//! Promises:
//! * the heap never passes [`PoolConfig::ceiling_bytes`]; beyond it an allocation is refused and counted, nothing
//!   aborts;
//! * a buffer that is dropped instead of freed goes back through the depot's lock: slower, never lost;
//! * a buffer may outlive every handle of its pool; the last one to go takes the pool's memory with it;
//! * memory that stayed idle is given back to the system by [`Pool::give_back`];
//! * [`PoolStats::live_bytes`] is exact once all threads rest: 0 after a drain means that nothing leaked.
//!
//! Refused: buffers above the largest class, and any allocation beyond the ceiling.

mod buffer;
mod cache;
mod depot;
mod memory;
mod size_class;

pub use buffer::Buf;
pub use cache::PoolCache;
pub use depot::Pool;
pub use memory::{HEAP, HeapMemory, MAP_ALIGN, Memory};

use crate::time::{ClockFn, no_clock};

/// Capacities of the size classes, bytes; multiples of 256 so that every buffer starts on a cache line.
///
/// * 256: bare acknowledgements, DNS queries and the header room of a packet without payload;
/// * 2,048: one packet of an Ethernet-sized MTU (1,500) with headroom;
/// * 10,240: one jumbo frame (9,000) with headroom;
/// * 67,584: one super-segment or reassembled datagram (65,535) with virtio header and headroom.
pub const CLASSES: [usize; 4] = [256, 2_048, 10_240, 67_584];

/// Settings of a pool.
#[derive(Clone, Copy)]
pub struct PoolConfig {
    /// Bytes of slabs that the pool may hold at once; allocations beyond are refused.
    pub ceiling_bytes: usize,
    /// Buffers of one magazine; large classes hold fewer (a magazine is at most 512 KiB). A thread caches two magazines
    /// a class. 0: no cache, every allocation and every free takes the depot's lock (the lab's ablation).
    pub cache: u16,
    /// Where slabs come from.
    pub memory: &'static dyn Memory,
    /// Times the waits for the depot's lock.
    pub clock: ClockFn,
}

impl Default for PoolConfig {
    fn default() -> Self {
        // A VPN extension of a phone may use some 50 MB in all (iOS); a third of it is for everything else.
        Self { ceiling_bytes: 32 * 1024 * 1024, cache: 64, memory: &HEAP, clock: no_clock }
    }
}

impl std::fmt::Debug for PoolConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolConfig")
            .field("ceiling_bytes", &self.ceiling_bytes)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

/// Counters of a pool since its start, summed over all threads.
///
/// Each counter is written by one thread and read without stopping it, so sums taken while threads run may be a few
/// operations apart from each other; they are exact once the threads rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Buffers handed out.
    pub buffers_allocated: u64,
    /// Buffers that came back, freed or dropped.
    pub buffers_freed: u64,
    /// Allocations that had to grow the heap by a slab, and waited for it.
    pub grow_stalls: u64,
    /// Slabs by which [`PoolCache::preallocate`] grew the heap, when no allocation waited.
    pub preallocated_slabs: u64,
    /// Allocations refused: at the ceiling, out of system memory, or larger than the largest class.
    pub refused: u64,
    /// Bytes of slabs held now.
    pub heap_bytes: usize,
    /// The most that [`Self::heap_bytes`] ever was.
    pub heap_peak_bytes: usize,
    /// Capacity of the buffers that are handed out, bytes.
    pub live_bytes: usize,
    /// Buffers that are handed out.
    pub live_buffers: usize,
    /// Nanoseconds that threads waited for the depot's locks.
    pub lock_wait_ns: u64,
    /// Visits to the depot: magazine exchanges and single operations under its lock.
    pub depot_exchanges: u64,
}

/// The pool refused an allocation: its ceiling is reached, the system has no memory, or the request is larger than
/// [`CLASSES`] provide. Counted in [`PoolStats::refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the buffer pool is exhausted; raise its ceiling or free buffers")]
pub struct PoolExhausted;

/// The smallest class that holds `len` bytes; `None` beyond the largest.
#[inline]
pub(crate) fn class_of(len: usize) -> Option<usize> {
    // Written out: the common sizes are decided by one or two predictable compares.
    if len <= CLASSES[1] {
        Some(usize::from(len > CLASSES[0]))
    } else if len <= CLASSES[2] {
        Some(2)
    } else if len <= CLASSES[3] {
        Some(3)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
