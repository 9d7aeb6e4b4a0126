//! Raw memory of the pool: slabs cut into blocks. The only file of the core's pool that holds `unsafe`.
//!
//! The argument in short. A [`Slab`] owns one mapping and hands out [`Block`]s, each the sole owner of `capacity` bytes
//! of it: an index is either in the slab's free list, beyond its carve mark, or represented by exactly one `Block`.
//! A slab unmaps only when every carved index is back, so a block's pointers outlive the block. The slab's [`Header`] is
//! immutable after its creation and freed together with the mapping. Everything else in the pool is safe code that moves
//! blocks around.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use super::CLASSES;
use super::depot::Shared;

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
        // SAFETY: the caller passes a mapping of `map`, which wrote the allocation's address there; users of the mapping
        // have no access to it.
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
}

/// One mapping, cut into blocks of one class.
///
/// Invariant: of the indices `0..carved`, each is either once in `free` or held by exactly one [`Block`]; `carved` never
/// passes `blocks`, and `blocks * CLASSES[class]` fits the mapping.
pub(super) struct Slab {
    header: NonNull<Header>,
    class: u8,
    blocks: u16,
    /// Blocks below this index were handed out at least once; pages above it were never touched.
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
        let header = Box::new(Header { owner: Arc::clone(owner), memory, base, bytes, id });
        Some(Self {
            header: NonNull::from(Box::leak(header)),
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
        Some(Block { data, header: self.header, capacity: capacity as u32, class: self.class })
    }

    /// Takes a block of this slab back.
    ///
    /// # Panics
    /// If the block belongs to another slab: the caller looked it up by the block's own [`Block::slab_id`].
    pub(super) fn put(&mut self, block: Block) {
        assert!(block.header == self.header, "a block goes back to the slab that it was cut from");
        // SAFETY: the header lives as long as the slab.
        let base = unsafe { self.header.as_ref() }.base;
        let index = (block.data.addr().get() - base.addr().get()) / block.capacity as usize;
        debug_assert!(index < self.carved as usize);
        self.free.push(index as u16);
        std::mem::forget(block);
    }

    /// Whether a block can be taken.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty() || self.carved < self.blocks
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

/// The sole owner of one buffer's memory. Dropping it hands it back to its pool through the depot's lock.
pub(super) struct Block {
    data: NonNull<u8>,
    header: NonNull<Header>,
    capacity: u32,
    class: u8,
}

const _: () = assert!(size_of::<Block>() == 24 && size_of::<Option<Block>>() == 24);

// SAFETY: a block owns its bytes; the header is immutable and its `Arc<Shared>` is usable from every thread.
unsafe impl Send for Block {}
// SAFETY: a shared block gives shared access to bytes only.
unsafe impl Sync for Block {}

impl Block {
    /// Index of its size class.
    #[inline]
    pub(super) fn class(&self) -> usize {
        self.class as usize
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

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: the slab frees its header only when none of its blocks is out; this one is.
        unsafe { self.header.as_ref() }
    }
}

impl Deref for Block {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the block is the sole owner of `capacity` bytes at `data`, which were zeroed when they were mapped
        // (so they are initialised), and `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.capacity as usize) }
    }
}

impl DerefMut for Block {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.capacity as usize) }
    }
}

impl Drop for Block {
    #[cold]
    #[inline(never)]
    fn drop(&mut self) {
        // The pool may end with this very block, so it must be held while the block goes home.
        let owner = Arc::clone(&self.header().owner);
        // The same block again, as a value: `self` is not used afterwards, so there is still one owner.
        let block = Self { data: self.data, header: self.header, capacity: self.capacity, class: self.class };
        owner.take_back(block);
    }
}
