//! Raw memory of the pool: slabs cut into blocks. The only file of the core's pool that holds `unsafe`.
//!
//! The argument in short. A [`Slab`] owns one mapping and hands out [`Block`]s, each the sole owner of its part: an
//! index is either in the slab's free list, beyond its carve mark, or represented by exactly one `Block` or [`Window`]
//! (a block in use; each turns into the other by value). A slab unmaps only when every carved index is back, so what a
//! block points to outlives the block. The slab's [`Header`] is immutable after its creation and freed together with
//! the mapping. Everything else in the pool is safe code that moves blocks around.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

use super::CLASSES;
use super::depot::Shared;
use crate::prefetch::prefetch_to_write;

/// Alignment of a mapping, bytes: a page of every platform with 4 KiB pages, and more than a cache line on all.
pub const MAP_ALIGN: usize = 4_096;

/// Bytes that a slab aims at. Small enough that slabs empty out again after a burst, large enough that one system call
/// serves a hundred packets.
const SLAB_BYTES: usize = 256 * 1024;

/// Fewest blocks of a slab, so that the largest class does not map for every second buffer.
const SLAB_BLOCKS_MIN: usize = 15;

/// Where slabs come from.
///
/// # Safety
/// `map` must return memory of at least `bytes` bytes that is zeroed, aligned to [`MAP_ALIGN`], readable and writable
/// from every thread, and used by nobody else until it is passed to `unmap`.
pub unsafe trait Memory: Sync {
    /// Maps `bytes` (a multiple of [`MAP_ALIGN`]) of zeroed memory; `None` when the system refuses.
    fn map(&self, bytes: usize) -> Option<NonNull<u8>>;

    /// Returns a mapping to the system.
    ///
    /// # Safety
    /// `start` and `bytes` are those of an earlier `map` of the same object, which was not unmapped since, and nobody
    /// uses the memory any more.
    unsafe fn unmap(&self, start: NonNull<u8>, bytes: usize);
}

/// [`Memory`] from the global allocator.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeapMemory;

/// The [`HeapMemory`] that is the default of a pool.
pub static HEAP: HeapMemory = HeapMemory;

impl HeapMemory {
    /// What is asked of the allocator for a mapping: an alignment beyond the allocator's own would make it clear the
    /// memory by hand, and so touch every page. A page more lets the start be rounded up, another one holds, behind the
    /// mapping, the address to free.
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes.checked_add(2 * MAP_ALIGN)?, align_of::<*mut u8>()).ok()
    }
}

// SAFETY: the memory is zeroed, exclusive until it is freed, and `start` is aligned with `bytes` behind it: rounding up
// skips less than one `MAP_ALIGN` of the two that `layout` adds.
unsafe impl Memory for HeapMemory {
    fn map(&self, bytes: usize) -> Option<NonNull<u8>> {
        let layout = Self::layout(bytes)?;
        // SAFETY: the layout's size is not zero.
        let raw = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skip = raw.addr().get().next_multiple_of(MAP_ALIGN) - raw.addr().get();
        // SAFETY: `skip < MAP_ALIGN`, within the allocation.
        let start = unsafe { raw.add(skip) };
        // SAFETY: `skip + bytes` and a pointer behind it lie within the allocation, aligned as `bytes` is a multiple of
        // `MAP_ALIGN` (by contract).
        unsafe { start.add(bytes).cast::<NonNull<u8>>().write(raw) };
        Some(start)
    }

    unsafe fn unmap(&self, start: NonNull<u8>, bytes: usize) {
        let Some(layout) = Self::layout(bytes) else { return };
        // SAFETY: the caller passes a mapping of `map`, which wrote the allocation's address there; users of the
        // mapping have no access to it.
        let raw = unsafe { start.add(bytes).cast::<NonNull<u8>>().read() };
        // SAFETY: allocated by `map` with the same layout; nobody uses it any more.
        unsafe { dealloc(raw.as_ptr(), layout) }
    }
}

/// Blocks in a slab of a class.
pub(super) fn slab_blocks(class: usize) -> usize {
    (SLAB_BYTES / CLASSES[class]).max(SLAB_BLOCKS_MIN)
}

/// Bytes of a slab's mapping.
pub(super) fn slab_bytes(class: usize) -> usize {
    (slab_blocks(class) * CLASSES[class]).next_multiple_of(MAP_ALIGN)
}

/// What all blocks of a slab share; immutable from the slab's creation to its unmapping.
struct Header {
    owner: Arc<Shared>,
    memory: &'static dyn Memory,
    base: NonNull<u8>,
    bytes: usize,
    id: u32,
    /// Bytes of each block.
    capacity: u32,
    class: u8,
}

/// One mapping, cut into blocks of one class.
///
/// Invariant: of the indices `0..carved`, each is either once in `free` or held by exactly one [`Block`]; `carved`
/// never passes `blocks`, and `blocks * CLASSES[class]` fits the mapping.
pub(super) struct Slab {
    header: NonNull<Header>,
    class: u8,
    blocks: u16,
    /// Blocks below this index were handed out at least once; the pages of those above it were not touched since they
    /// came.
    carved: u16,
    free: Vec<u16>,
}

// SAFETY: a slab owns its mapping and its header; `Memory` and `Shared` are usable from every thread.
unsafe impl Send for Slab {}

impl Slab {
    /// Maps a slab; `None` when the system refuses.
    pub(super) fn map(owner: &Arc<Shared>, memory: &'static dyn Memory, class: usize, id: u32) -> Option<Self> {
        let bytes = slab_bytes(class);
        let base = memory.map(bytes)?;
        let header = Header {
            owner: Arc::clone(owner),
            memory,
            base,
            bytes,
            id,
            capacity: CLASSES[class] as u32,
            class: class as u8,
        };
        Some(Self {
            header: NonNull::from(Box::leak(Box::new(header))),
            class: class as u8,
            blocks: slab_blocks(class) as u16,
            carved: 0,
            free: Vec::new(),
        })
    }

    /// The number that its owner gave it.
    pub(super) fn id(&self) -> u32 {
        // SAFETY: the header lives as long as the slab.
        unsafe { self.header.as_ref() }.id
    }

    /// Bytes of the mapping.
    pub(super) fn bytes(&self) -> usize {
        slab_bytes(self.class as usize)
    }

    /// Takes a free block; blocks that were used before (and whose pages are resident) first.
    pub(super) fn take(&mut self) -> Option<Block> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.carved < self.blocks => {
                self.carved += 1;
                self.carved - 1
            }
            None => return None,
        };
        let capacity = CLASSES[self.class as usize];
        // SAFETY: the header lives as long as the slab.
        let base = unsafe { self.header.as_ref() }.base;
        // SAFETY: `index < blocks`, so the block lies within the mapping (invariant of `Slab`).
        let data = unsafe { base.add(index as usize * capacity) };
        Some(Block { data, header: self.header })
    }

    /// Takes a block of this slab back.
    ///
    /// # Panics
    /// If the block belongs to another slab: the caller looked it up by the block's own [`Block::slab_id`].
    pub(super) fn put(&mut self, block: Block) {
        assert!(block.header == self.header, "a block goes back to the slab that it was cut from");
        // SAFETY: the header lives as long as the slab.
        let base = unsafe { self.header.as_ref() }.base;
        let index = (block.data.addr().get() - base.addr().get()) / CLASSES[self.class as usize];
        debug_assert!(index < self.carved as usize);
        self.free.push(index as u16);
        std::mem::forget(block);
    }

    /// Blocks that can be taken.
    pub(super) fn free_blocks(&self) -> usize {
        self.free.len() + usize::from(self.blocks - self.carved)
    }

    /// Whether a block can be taken.
    pub(super) fn has_free(&self) -> bool {
        self.free_blocks() > 0
    }

    /// Whether no block of it is out.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.carved as usize
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // A block that is still out keeps its memory: leaking a mapping is safe, freeing it would not be.
        debug_assert!(self.is_idle(), "a slab is dropped only when its blocks are back");
        if !self.is_idle() {
            return;
        }
        // SAFETY: the pointer came from `Box::leak` in `map`; no block refers to it any more (`is_idle`), and the slab,
        // its only other holder, ends here.
        let header = unsafe { Box::from_raw(self.header.as_ptr()) };
        // SAFETY: `base` and `bytes` are those of `map`, called on the same `memory`; no block is out.
        unsafe { header.memory.unmap(header.base, header.bytes) }
    }
}

/// A free block, or the bare ownership of one: what magazines hold.
///
/// Dropping it hands it back to its pool through the depot's lock. Two words, so that it moves in two registers.
pub(super) struct Block {
    data: NonNull<u8>,
    header: NonNull<Header>,
}

const _: () = assert!(size_of::<Block>() == 2 * size_of::<usize>() && size_of::<Option<Block>>() == size_of::<Block>());

// SAFETY: a block owns its bytes; the header is immutable and its `Arc<Shared>` is usable from every thread.
unsafe impl Send for Block {}
// SAFETY: a shared block gives access to the immutable header only.
unsafe impl Sync for Block {}

impl Block {
    /// Index of its size class.
    #[inline]
    pub(super) fn class(&self) -> usize {
        self.header().class as usize
    }

    /// The number of its slab.
    #[inline]
    pub(super) fn slab_id(&self) -> u32 {
        self.header().id
    }

    /// Whether it was cut from a slab of `owner`.
    #[inline]
    pub(super) fn is_of(&self, owner: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.header().owner, owner)
    }

    /// Opens the block with an empty window at `start`.
    ///
    /// # Panics
    /// If `start` lies beyond the block: the pool chose its class by it.
    #[inline]
    pub(super) fn open(self, start: usize) -> Window {
        // Every class has the smallest one's capacity, so the usual headroom needs no look at the header.
        assert!(start <= CLASSES[0] || start <= self.header().capacity as usize, "a class holds its headroom");
        let window = Window { data: self.data, start: start as u32, len: 0, header: self.header };
        std::mem::forget(self);
        window
    }

    /// Gets the first `bytes` under way to this CPU's cache, to be written. A hint: nothing changes.
    #[inline]
    pub(super) fn prefetch(&self, bytes: usize) {
        prefetch_to_write(self.data.as_ptr(), bytes.min(CLASSES[self.class()]));
    }

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: the slab frees its header only when none of its blocks is out; this one is.
        unsafe { self.header.as_ref() }
    }
}

impl Drop for Block {
    #[cold]
    #[inline(never)]
    fn drop(&mut self) {
        // The pool may end with this very block, so it must be held while the block goes home.
        let owner = Arc::clone(&self.header().owner);
        // The same block again, as a value: `self` is not used afterwards, so there is still one owner.
        let block = Self { data: self.data, header: self.header };
        owner.take_back(block);
    }
}

/// A block in use, with a window on its bytes. Dropping it drops the block.
///
/// Invariant: `start + len` is at most the block's capacity.
#[repr(C)] // the pointers apart: next to each other they would be loaded as one vector just after two separate stores
pub(super) struct Window {
    data: NonNull<u8>,
    start: u32,
    len: u32,
    header: NonNull<Header>,
}

// SAFETY: a window owns its block's bytes, as a block does.
unsafe impl Send for Window {}
// SAFETY: a shared window gives shared access to bytes only.
unsafe impl Sync for Window {}

impl Window {
    /// Where the window begins.
    #[inline]
    pub(super) fn start(&self) -> usize {
        self.start as usize
    }

    /// Bytes in the window.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// Bytes of the block.
    #[inline]
    pub(super) fn capacity(&self) -> usize {
        self.header().capacity as usize
    }

    /// Index of the block's size class.
    #[inline]
    pub(super) fn class(&self) -> usize {
        self.header().class as usize
    }

    /// Moves the window; false, and no change, if it would leave the block.
    #[inline]
    #[must_use]
    pub(super) fn set(&mut self, start: usize, len: usize) -> bool {
        let end = start.saturating_add(len);
        // What ends within the old window ends within the block: no look at the header.
        let fits = end <= self.start() + self.len() || end <= self.capacity();
        if fits {
            // At most a capacity, which is a `u32`.
            self.start = start as u32;
            self.len = len as u32;
        }
        fits
    }

    /// The bytes in the window.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the window lies within its block (invariant), which owns its bytes; they were zeroed when they were
        // mapped, so they are initialised; `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.data.add(self.start()).as_ptr(), self.len()) }
    }

    /// The bytes in the window, writable.
    #[inline]
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(self.start()).as_ptr(), self.len()) }
    }

    /// The bytes of the block behind the window, writable.
    #[inline]
    pub(super) fn behind_mut(&mut self) -> &mut [u8] {
        let end = self.start() + self.len();
        // SAFETY: the window ends within its block (invariant), so the rest up to the capacity is the block's too.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(end).as_ptr(), self.capacity() - end) }
    }

    /// Ends the window and keeps the block.
    #[inline]
    pub(super) fn close(self) -> Block {
        let block = Block { data: self.data, header: self.header };
        std::mem::forget(self);
        block
    }

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: as for a block: the slab frees its header only when none of its blocks is out.
        unsafe { self.header.as_ref() }
    }
}

impl Drop for Window {
    #[inline]
    fn drop(&mut self) {
        // `self` is not used afterwards: the block has one owner, which ends here.
        drop(Block { data: self.data, header: self.header });
    }
}

/// [`HeapMemory`] that counts its mappings and refuses beyond a number of them.
#[cfg(test)]
pub(super) struct CountedMemory {
    mapped: std::sync::atomic::AtomicUsize,
    refused: std::sync::atomic::AtomicUsize,
    limit: usize,
}

#[cfg(test)]
impl CountedMemory {
    pub(super) const fn new(limit: usize) -> Self {
        let zero = std::sync::atomic::AtomicUsize::new;
        Self { mapped: zero(0), refused: zero(0), limit }
    }

    pub(super) fn refused(&self) -> usize {
        self.refused.load(std::sync::atomic::Ordering::SeqCst)
    }

    pub(super) fn mapped(&self) -> usize {
        self.mapped.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[cfg(test)]
// SAFETY: passes through to `HeapMemory`, which keeps the contract.
unsafe impl Memory for CountedMemory {
    fn map(&self, bytes: usize) -> Option<NonNull<u8>> {
        if self.mapped() >= self.limit {
            self.refused.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            return None;
        }
        self.mapped.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        HEAP.map(bytes)
    }

    unsafe fn unmap(&self, start: NonNull<u8>, bytes: usize) {
        self.mapped.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        // SAFETY: the caller keeps the same contract.
        unsafe { HEAP.unmap(start, bytes) }
    }
}
