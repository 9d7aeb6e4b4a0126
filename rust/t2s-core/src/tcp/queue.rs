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

/// Entries behind the front that an empty queue may keep allocated; beyond, the memory is given back.
const KEEP_ENTRIES: usize = 8;

struct Entry {
    /// Place of the buffer's first byte in the stream; only differences count, so it may wrap.
    start: u32,
    buf: Buf,
}

/// Bytes in order, in pooled buffers.
///
/// Most queues hold one buffer at most: it lies in the queue itself, so that a flow's first byte takes no memory but
/// its buffer's, and a cold flow costs no cache miss for a list of one.
#[derive(Default)]
pub(super) struct ByteQueue {
    front: Option<Buf>,
    /// Place of the front buffer's first byte in the stream, like [`Entry::start`].
    start: u32,
    /// Sum of all buffers' lengths; no buffer is empty. Windows keep it far below 4 GiB.
    len: u32,
    /// What follows the front buffer; empty when there is none.
    rest: VecDeque<Entry>,
}

impl ByteQueue {
    /// Bytes queued.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len as usize
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
        let Some(front) = &mut self.front else {
            (self.start, self.len) = (0, len as u32);
            self.front = Some(buf);
            return;
        };
        self.len += len as u32;
        let (last, start) = match self.rest.back_mut() {
            Some(last) => (&mut last.buf, last.start),
            None => (front, self.start),
        };
        if (len <= PACK_BYTES || len * 4 < buf.capacity()) && last.tailroom() >= len {
            last.append(buf.as_slice());
            pool.free(buf);
            return;
        }
        let start = start.wrapping_add(last.len() as u32);
        self.rest.push_back(Entry { start, buf });
    }

    /// Removes `count` bytes from the front, at most all; returns how many.
    #[inline]
    pub(super) fn consume(&mut self, count: usize, pool: &mut PoolCache) -> usize {
        let count = count.min(self.len());
        let mut left = count;
        while let Some(front) = &mut self.front {
            if left < front.len() {
                front.advance(left);
                self.start = self.start.wrapping_add(left as u32);
                break;
            }
            left -= front.len();
            if let Some(used) = self.front.take() {
                pool.free(used);
            }
            if let Some(next) = self.rest.pop_front() {
                (self.start, self.front) = (next.start, Some(next.buf));
            }
        }
        self.len -= count as u32;
        if self.len == 0 && self.rest.capacity() > KEEP_ENTRIES {
            self.rest = VecDeque::new();
        }
        count
    }

    /// Frees everything; returns how many bytes that were.
    pub(super) fn clear(&mut self, pool: &mut PoolCache) -> usize {
        let count = self.consume(self.len(), pool);
        self.rest = VecDeque::new();
        count
    }

    /// The bytes from `offset`, `len` of them (fewer at the end of the queue), as slices.
    #[inline]
    pub(super) fn slices(&self, offset: usize, len: usize) -> Slices<'_> {
        match &self.front {
            Some(front) if offset >= front.len() => {
                let place = |entry: &Entry| entry.start.wrapping_sub(self.start) as usize;
                // The first entry whose bytes lie behind the offset, less one; at 0 the offset is the front's end.
                let index = self.rest.partition_point(|entry| place(entry) <= offset).saturating_sub(1);
                let skip = self.rest.get(index).map_or(0, |entry| offset - place(entry));
                Slices { front: None, rest: self.rest.range(index.min(self.rest.len())..), skip, left: len }
            }
            front => Slices { front: front.as_ref(), rest: self.rest.iter(), skip: offset, left: len },
        }
    }

    /// `len`, or as many bytes from `offset` as fit in `most` slices.
    #[inline]
    pub(super) fn within_slices(&self, offset: usize, len: usize, most: usize) -> usize {
        if self.rest.len() < most {
            return len;
        }
        self.slices(offset, len).take(most).map(<[u8]>::len).sum()
    }
}

/// Slices of a queue, front to back.
pub(super) struct Slices<'a> {
    front: Option<&'a Buf>,
    rest: std::collections::vec_deque::Iter<'a, Entry>,
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
        let buf = self.front.take().or_else(|| self.rest.next().map(|entry| &entry.buf))?;
        let bytes = buf.as_slice().get(self.skip..)?;
        let bytes = &bytes[..bytes.len().min(self.left)];
        self.skip = 0;
        self.left -= bytes.len();
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{Pool, PoolConfig};

    #[test]
    fn it_holds_the_bytes_that_a_vector_would() {
        let pool = Pool::new(PoolConfig::default());
        let mut cache = pool.cache();
        let (mut queue, mut twin) = (ByteQueue::default(), VecDeque::<u8>::new());
        let mut random = 7_u64;
        let mut draw = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        for step in 0..20_000_usize {
            if draw(3) > 0 && twin.len() < 60_000 {
                let bytes: Vec<u8> =
                    (0..draw(if step % 2 == 0 { 40 } else { 3_000 })).map(|at| (at + step) as u8).collect();
                queue.push(cache.alloc_copy(&bytes, 0).unwrap(), &mut cache);
                twin.extend(&bytes);
            } else {
                let count = draw(8_000);
                assert_eq!(queue.consume(count, &mut cache), count.min(twin.len()));
                twin.drain(..count.min(twin.len()));
            }
            assert_eq!((queue.len(), queue.is_empty()), (twin.len(), twin.is_empty()));
            let (offset, len) = (draw(twin.len() + 10), draw(5_000));
            let found: Vec<u8> = queue.slices(offset, len).flatten().copied().collect();
            assert!(found.iter().eq(twin.iter().skip(offset).take(len)), "step {step}: {len} bytes at {offset}");
            let within = queue.within_slices(offset, found.len(), 3);
            assert_eq!(within, queue.slices(offset, found.len()).take(3).map(<[u8]>::len).sum::<usize>());
        }
        assert_eq!(queue.clear(&mut cache), twin.len());
        drop(cache);
        assert_eq!(pool.stats().live_bytes, 0);
    }
}
