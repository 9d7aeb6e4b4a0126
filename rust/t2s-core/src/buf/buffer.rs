//! One pooled buffer: an owned block with a window on its content.

use super::memory::{Block, Window};

/// An owned buffer of the pool, with room in front of its content (headroom) and behind it (tailroom).
///
/// Not counted by reference: it moves from owner to owner, across threads if need be. It is given back with
/// [`super::PoolCache::free`]; dropping it works too, by way of the depot's lock. All bytes are always initialised (0
/// at first, what an earlier user left later).
pub struct Buf(Window);

const _: () = assert!(size_of::<Buf>() == 2 * size_of::<usize>() + 8 && size_of::<Option<Buf>>() == size_of::<Buf>());

impl Buf {
    /// An empty buffer whose content will start at `headroom`, which must be within the block.
    #[inline]
    pub(super) fn new(block: Block, headroom: usize) -> Self {
        Self(block.open(headroom))
    }

    /// Ends the buffer and keeps its memory.
    #[inline]
    pub(super) fn into_block(self) -> Block {
        self.0.close()
    }

    /// The content.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The content, writable.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }

    /// Bytes of content.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no content.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the whole buffer: headroom, content and tailroom.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Bytes in front of the content.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.0.start()
    }

    /// Bytes behind the content.
    #[inline]
    pub fn tailroom(&self) -> usize {
        self.capacity() - self.headroom() - self.len()
    }

    /// Index of its size class in [`super::CLASSES`].
    #[inline]
    pub fn class(&self) -> usize {
        self.0.class()
    }

    /// Drops `n` bytes from the front of the content (at most all); they become headroom.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        let n = n.min(self.len());
        self.set(self.headroom() + n, self.len() - n);
    }

    /// Keeps the first `n` bytes of the content (all, if it has fewer).
    #[inline]
    pub fn truncate(&mut self, n: usize) {
        self.set(self.headroom(), self.len().min(n));
    }

    /// Sets the length of the content; a longer one takes tailroom, with the bytes that are there.
    ///
    /// Returns false, and changes nothing, when the buffer has no such room.
    #[inline]
    #[must_use]
    pub fn set_len(&mut self, len: usize) -> bool {
        self.0.set(self.headroom(), len)
    }

    /// Grows the content by `n` bytes at its front and returns these for writing; `None`, and no change, without
    /// headroom.
    #[inline]
    pub fn prepend(&mut self, n: usize) -> Option<&mut [u8]> {
        let start = self.headroom().checked_sub(n)?;
        self.set(start, self.len() + n);
        self.as_mut_slice().get_mut(..n)
    }

    /// The tailroom, for a reader to write into; what it wrote becomes content with [`Self::set_len`] or
    /// [`Self::grow`].
    #[inline]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        self.0.behind_mut()
    }

    /// Makes the first `n` bytes of the tailroom (at most all) content.
    #[inline]
    pub fn grow(&mut self, n: usize) {
        self.set(self.headroom(), self.len() + n.min(self.tailroom()));
    }

    /// Appends as much of `data` as the tailroom takes; returns how much that was.
    #[inline]
    pub fn append(&mut self, data: &[u8]) -> usize {
        let spare = self.spare_mut();
        let n = data.len().min(spare.len());
        spare[..n].copy_from_slice(&data[..n]);
        self.grow(n);
        n
    }

    /// Empties the buffer and puts the start of its content at `headroom` (at most the capacity).
    #[inline]
    pub fn reset(&mut self, headroom: usize) {
        self.set(headroom.min(self.capacity()), 0);
    }

    /// Moves the window to where the caller knows that it fits.
    #[inline]
    fn set(&mut self, start: usize, len: usize) {
        let fits = self.0.set(start, len);
        debug_assert!(fits, "the caller stays within the block");
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
            .field("headroom", &self.headroom())
            .field("len", &self.len())
            .finish()
    }
}
