//! A byte queue over pooled buffers, by reference: nothing is copied that is worth keeping where it is.
//!
//! Buffers are queued as they come. Only payloads that would waste most of their buffer are packed by copy into the
//! tail of the last one, so that a queue holds at most about four times its length. Each entry knows its place in the
//! stream, so a slice at any offset is found by binary search: a send queue of a large window has hundreds of entries.

use std::collections::VecDeque;

use crate::buf::{Buf, PoolCache};

/// Payloads up to this many bytes are packed whenever the last buffer has room: the copy is cheaper than one more
/// vector of a gathered write.
const PACK_BYTES: usize = 512;

/// Entries that an empty queue may keep allocated; beyond, the memory is given back.
const KEEP_ENTRIES: usize = 8;

struct Entry {
    /// Place of the buffer's first byte in the stream; only differences count, so it may wrap.
    start: u32,
    buf: Buf,
}

/// Bytes in order, in pooled buffers.
#[derive(Default)]
pub(super) struct ByteQueue {
    entries: VecDeque<Entry>,
    /// Sum of the entries' lengths; no entry is empty.
    len: usize,
}

impl ByteQueue {
    /// Bytes queued.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the buffer's bytes; the buffer is kept, or freed after a copy.
    #[inline]
    pub(super) fn push(&mut self, buf: Buf, pool: &mut PoolCache) {
        let len = buf.len();
        if len == 0 {
            pool.free(buf);
            return;
        }
        let start = match self.entries.back_mut() {
            None => 0,
            Some(last) => {
                if (len <= PACK_BYTES || len * 4 < buf.capacity()) && last.buf.tailroom() >= len {
                    last.buf.append(buf.as_slice());
                    self.len += len;
                    pool.free(buf);
                    return;
                }
                last.start.wrapping_add(last.buf.len() as u32)
            }
        };
        self.entries.push_back(Entry { start, buf });
        self.len += len;
    }

    /// Removes `count` bytes from the front, at most all; returns how many.
    #[inline]
    pub(super) fn consume(&mut self, count: usize, pool: &mut PoolCache) -> usize {
        let count = count.min(self.len);
        let mut left = count;
        while left > 0 {
            let Some(front) = self.entries.front_mut() else { break };
            if left < front.buf.len() {
                front.buf.advance(left);
                front.start = front.start.wrapping_add(left as u32);
                break;
            }
            left -= front.buf.len();
            if let Some(entry) = self.entries.pop_front() {
                pool.free(entry.buf);
            }
        }
        self.len -= count;
        if self.len == 0 && self.entries.capacity() > KEEP_ENTRIES {
            self.entries = VecDeque::new();
        }
        count
    }

    /// Frees everything; returns how many bytes that were.
    pub(super) fn clear(&mut self, pool: &mut PoolCache) -> usize {
        let count = self.consume(self.len, pool);
        self.entries = VecDeque::new();
        count
    }

    /// Index of the entry that holds byte `offset`, and where in it that byte is.
    #[inline]
    fn find(&self, offset: usize) -> (usize, usize) {
        let Some(front) = self.entries.front() else { return (0, 0) };
        if offset < front.buf.len() {
            return (0, offset);
        }
        let base = front.start;
        let index = self.entries.partition_point(|entry| entry.start.wrapping_sub(base) as usize <= offset);
        // The front entry starts at 0, so at least one entry satisfies the predicate.
        let index = index.saturating_sub(1);
        let start = self.entries.get(index).map_or(0, |entry| entry.start.wrapping_sub(base) as usize);
        (index, offset - start)
    }

    /// The bytes from `offset`, `len` of them (fewer at the end of the queue), as slices.
    #[inline]
    pub(super) fn slices(&self, offset: usize, len: usize) -> Slices<'_> {
        let (index, skip) = self.find(offset);
        Slices { entries: self.entries.range(index.min(self.entries.len())..), skip, left: len }
    }

    /// `len`, or as many bytes from `offset` as fit in `most` slices.
    #[inline]
    pub(super) fn within_slices(&self, offset: usize, len: usize, most: usize) -> usize {
        if self.entries.len() <= most {
            return len;
        }
        self.slices(offset, len).take(most).map(<[u8]>::len).sum()
    }
}

/// Slices of a queue, front to back.
pub(super) struct Slices<'a> {
    entries: std::collections::vec_deque::Iter<'a, Entry>,
    skip: usize,
    left: usize,
}

impl<'a> Iterator for Slices<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        let bytes = self.entries.next()?.buf.as_slice().get(self.skip..)?;
        let bytes = &bytes[..bytes.len().min(self.left)];
        self.skip = 0;
        self.left -= bytes.len();
        Some(bytes)
    }
}
