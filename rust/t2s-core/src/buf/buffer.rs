//! One pooled buffer: an owned block with a window on its content.

use super::memory::Block;

/// An owned buffer of the pool, with room in front of its content (headroom) and behind it (tailroom).
///
/// Not counted by reference: it moves from owner to owner, across threads if need be. It is given back with
/// [`super::PoolCache::free`]; dropping it works too, by way of the depot's lock. All bytes are always initialised (0 at
/// first, what an earlier user left later).
pub struct Buf {
    // Invariant: start + len <= block.len().
    block: Block,
    start: u32,
    len: u32,
}

const _: () = assert!(size_of::<Buf>() == 32 && size_of::<Option<Buf>>() == 32);

impl Buf {
    /// An empty buffer whose content will start at `headroom`, which must be within the block.
    #[inline]
    pub(super) fn new(block: Block, headroom: usize) -> Self {
        debug_assert!(headroom <= block.len());
        Self { block, start: headroom as u32, len: 0 }
    }

    /// Ends the buffer and keeps its memory.
    #[inline]
    pub(super) fn into_block(self) -> Block {
        self.block
    }

    /// The content.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.block[self.start as usize..(self.start + self.len) as usize]
    }

    /// The content, writable.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.block[self.start as usize..(self.start + self.len) as usize]
    }

    /// Bytes of content.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is no content.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the whole buffer: headroom, content and tailroom.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.block.len()
    }

    /// Bytes in front of the content.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.start as usize
    }

    /// Bytes behind the content.
    #[inline]
    pub fn tailroom(&self) -> usize {
        self.capacity() - self.start as usize - self.len as usize
    }

    /// Index of its size class in [`super::CLASSES`].
    #[inline]
    pub fn class(&self) -> usize {
        self.block.class()
    }

    /// Drops `n` bytes from the front of the content (at most all); they become headroom.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        let n = n.min(self.len as usize) as u32;
        self.start += n;
        self.len -= n;
    }

    /// Keeps the first `n` bytes of the content (all, if it has fewer).
    #[inline]
    pub fn truncate(&mut self, n: usize) {
        self.len = self.len.min(n.min(u32::MAX as usize) as u32);
    }

    /// Sets the length of the content; a longer one takes tailroom, with the bytes that are there.
    ///
    /// Returns false, and changes nothing, when the buffer has no such room.
    #[inline]
    #[must_use]
    pub fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= self.capacity() - self.start as usize;
        if fits {
            self.len = len as u32;
        }
        fits
    }

    /// Grows the content by `n` bytes at its front and returns these for writing; `None`, and no change, without
    /// headroom.
    #[inline]
    pub fn prepend(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > self.start as usize {
            return None;
        }
        self.start -= n as u32;
        self.len += n as u32;
        let start = self.start as usize;
        Some(&mut self.block[start..start + n])
    }

    /// The tailroom, for a reader to write into; what it wrote becomes content with [`Self::set_len`] or
    /// [`Self::grow`].
    #[inline]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        &mut self.block[(self.start + self.len) as usize..]
    }

    /// Makes the first `n` bytes of the tailroom (at most all) content.
    #[inline]
    pub fn grow(&mut self, n: usize) {
        self.len += n.min(self.tailroom()) as u32;
    }

    /// Appends as much of `data` as the tailroom takes; returns how much that was.
    #[inline]
    pub fn append(&mut self, data: &[u8]) -> usize {
        let spare = self.spare_mut();
        let n = data.len().min(spare.len());
        spare[..n].copy_from_slice(&data[..n]);
        self.len += n as u32;
        n
    }

    /// Empties the buffer and puts the start of its content at `headroom` (at most the capacity).
    #[inline]
    pub fn reset(&mut self, headroom: usize) {
        self.start = headroom.min(self.capacity()) as u32;
        self.len = 0;
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buf")
            .field("capacity", &self.capacity())
            .field("start", &self.start)
            .field("len", &self.len)
            .finish()
    }
}
