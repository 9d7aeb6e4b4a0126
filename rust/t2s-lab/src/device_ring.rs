//! A single-producer, single-consumer ring of packets: the in-process device between generator and worker.
//!
//! Records have any length; a packet is contiguous. Each carries the time it was due, so lateness in the ring is
//! visible to whoever takes it out. Promises: no allocation and no lock after [`ring`]; records arrive in order and
//! whole. A full ring refuses ([`Producer::reserve`] is `None`): the packet is late, never lost.
//!
//! Layout: 16-byte units; a record is one unit of header and its bytes rounded up to units. A record that does not fit
//! before the end of the memory is preceded by a filler, so positions grow monotonically and `position % capacity` is
//! the offset.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use t2s_core::prefetch::prefetch_to_read;

/// Bytes of the unit of allocation, which is also the size of a header.
const UNIT: usize = size_of::<Header>();

/// Bytes that are fetched as soon as they are announced: a packet of an Ethernet's MTU and its header.
const FETCHED: usize = 1_536;

/// Length that marks the rest of the memory up to its end as filler.
const FILLER: u32 = u32::MAX;

/// What stands before each record; exactly one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
struct Header {
    due_ns: u64,
    len: u32,
    flags: u32,
}

/// One unit of memory: a header, or 16 bytes of a packet.
#[repr(transparent)]
struct Unit(UnsafeCell<Header>);

/// A counter on cache lines of its own (two, since processors fetch pairs), so the two ends do not slow one another.
#[repr(align(128))]
struct Position(AtomicUsize);

struct Shared {
    units: Box<[Unit]>,
    /// Bytes ever published; written by the producer.
    head: Position,
    /// Bytes ever released; written by the consumer. Invariant: `head - capacity <= tail <= head`.
    tail: Position,
}

// SAFETY: the bytes in `tail..head` are touched by the consumer only, all others by the producer only; the hand-over of
// a byte is ordered by the release store and acquire load of `head` (to the consumer) and `tail` (back).
unsafe impl Sync for Shared {}
// SAFETY: plain bytes and counters, bound to no thread.
unsafe impl Send for Shared {}

impl Shared {
    fn capacity(&self) -> usize {
        self.units.len() * UNIT
    }

    /// The unit at `position`; all bytes from there to the end of the memory may be reached through it.
    #[inline]
    fn at(&self, position: usize) -> *mut Header {
        // The capacity is a power of two, and positions are multiples of a unit.
        let index = (position & (self.capacity() - 1)) / UNIT;
        let first: *const UnsafeCell<Header> = self.units.as_ptr().cast();
        // SAFETY: the index is below the number of units, and `first` points to all of them; `Unit` is transparent.
        unsafe { UnsafeCell::raw_get(first.add(index)) }
    }

    /// Bytes from `position` to the end of the memory.
    #[inline]
    fn until_end(&self, position: usize) -> usize {
        self.capacity() - (position & (self.capacity() - 1))
    }
}

/// Makes a ring of at least `capacity` bytes (rounded up to a power of two, 4 KiB at least).
pub fn ring(capacity: usize) -> (Producer, Consumer) {
    let units = capacity.max(4096).next_power_of_two() / UNIT;
    let shared = Arc::new(Shared {
        units: (0..units).map(|_| Unit(UnsafeCell::new(Header { due_ns: 0, len: 0, flags: 0 }))).collect(),
        head: Position(AtomicUsize::new(0)),
        tail: Position(AtomicUsize::new(0)),
    });
    (
        Producer { shared: Arc::clone(&shared), head: 0, published: 0, cuts: VecDeque::new(), tail: 0, reserved: None },
        Consumer { shared, tail: 0, released: 0, head: 0 },
    )
}

/// Bytes that a record of `len` bytes takes.
const fn footprint(len: usize) -> usize {
    UNIT + len.next_multiple_of(UNIT)
}

/// The writing end.
pub struct Producer {
    shared: Arc<Shared>,
    /// Bytes written, published or not.
    head: usize,
    published: usize,
    /// Ends of portions that are published one by one, oldest first.
    cuts: VecDeque<usize>,
    /// The consumer's position as last seen.
    tail: usize,
    /// Where the reserved record starts, and its length.
    reserved: Option<(usize, usize)>,
}

impl Producer {
    /// Room for a record of up to `len` bytes, or `None` while the ring is full. Nothing is sent before
    /// [`Producer::commit`]; a second reservation replaces the first.
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        let need = footprint(len);
        let until_end = self.shared.until_end(self.head);
        let skip = if need > until_end { until_end } else { 0 };
        if !self.has_room(skip + need) {
            return None;
        }
        if skip > 0 {
            // SAFETY: `has_room` showed that the producer owns these bytes; the position is unit-aligned and a header
            // is one unit.
            unsafe {
                self.shared.at(self.head).write(Header { due_ns: 0, len: FILLER, flags: 0 });
            }
            self.head += skip;
        }
        self.reserved = Some((self.head, len));
        // SAFETY: the producer owns `need` contiguous bytes from `head` (`has_room`, and no wrap within, by `skip`);
        // `&mut self` keeps the slice unique; the memory is initialised since its creation.
        Some(unsafe { std::slice::from_raw_parts_mut(self.shared.at(self.head).add(1).cast(), len) })
    }

    /// Ends the reserved record with its first `len` bytes; it becomes visible with the next [`Producer::publish`].
    /// Without a reservation, or with a longer length than reserved, nothing is sent.
    #[inline]
    pub fn commit(&mut self, len: usize, due_ns: u64, flags: u32) {
        let Some((start, reserved)) = self.reserved.take() else { return };
        debug_assert!(start == self.head && len <= reserved, "a commit fits its reservation");
        if len > reserved {
            return;
        }
        // SAFETY: `reserve` showed that the producer owns the unit at `start`, which is aligned.
        unsafe { self.shared.at(start).write(Header { due_ns, len: len as u32, flags }) };
        self.head = start + footprint(len);
    }

    /// Reserves, copies and commits; `false` while the ring is full.
    #[inline]
    pub fn push(&mut self, bytes: &[u8], due_ns: u64, flags: u32) -> bool {
        let Some(room) = self.reserve(bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.commit(bytes.len(), due_ns, flags);
        true
    }

    /// Makes everything committed visible to the consumer.
    #[inline]
    pub fn publish(&mut self) {
        self.cuts.clear();
        self.publish_until(self.head);
    }

    /// Ends a portion behind what was committed last, for [`Producer::publish_portion`].
    #[inline]
    pub fn cut(&mut self) {
        self.cuts.push_back(self.head);
    }

    /// Makes the oldest portion visible to the consumer; nothing when there is none.
    #[inline]
    pub fn publish_portion(&mut self) {
        if let Some(end) = self.cuts.pop_front() {
            self.publish_until(end);
        }
    }

    #[inline]
    fn publish_until(&mut self, end: usize) {
        if self.published != end {
            self.published = end;
            self.shared.head.0.store(end, Ordering::Release);
        }
    }

    /// Whether a record of `len` bytes fits wherever the end of the memory lies.
    #[inline]
    pub fn fits(&mut self, len: usize) -> bool {
        let need = footprint(len);
        let until_end = self.shared.until_end(self.head);
        self.has_room(if need > until_end { need + until_end } else { need })
    }

    #[inline]
    fn has_room(&mut self, need: usize) -> bool {
        if self.head + need - self.tail <= self.shared.capacity() {
            return true;
        }
        self.tail = self.shared.tail.0.load(Ordering::Acquire);
        self.head + need - self.tail <= self.shared.capacity()
    }
}

/// One packet taken from the ring; its bytes stay valid until the next call on the consumer.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When the packet was due, on the lab's clock.
    pub due_ns: u64,
    /// The producer's flags.
    pub flags: u32,
    /// The packet.
    pub bytes: &'a [u8],
}

/// The reading end.
pub struct Consumer {
    shared: Arc<Shared>,
    /// Bytes read, released or not.
    tail: usize,
    released: usize,
    /// The producer's position as last seen.
    head: usize,
}

impl Consumer {
    /// The next record, or `None` when there is none. Its room is given back by [`Consumer::release`].
    #[inline]
    pub fn pop(&mut self) -> Option<Record<'_>> {
        let header = self.next_header()?;
        let start = self.tail;
        self.tail += footprint(header.len as usize);
        // SAFETY: the record lies in `released..head`, which the consumer owns until `release`, and that needs
        // `&mut self`, which the returned borrow holds; a record is contiguous.
        let bytes = unsafe { std::slice::from_raw_parts(self.shared.at(start).add(1).cast(), header.len as usize) };
        Some(Record { due_ns: header.due_ns, flags: header.flags, bytes })
    }

    /// The flags of the next record without taking it.
    #[inline]
    pub fn peek_flags(&mut self) -> Option<u32> {
        self.next_header().map(|header| header.flags)
    }

    /// Gives the room of all records read back to the producer.
    #[inline]
    pub fn release(&mut self) {
        if self.released != self.tail {
            self.released = self.tail;
            self.shared.tail.0.store(self.tail, Ordering::Release);
        }
    }

    /// Bytes that wait, as far as is known without asking the producer again while there are any.
    #[inline]
    pub fn waiting(&mut self) -> usize {
        if self.tail == self.head {
            self.head = self.shared.head.0.load(Ordering::Acquire);
            // On their way all at once, before the first of them is looked at.
            prefetch_to_read(self.shared.at(self.tail).cast(), (self.head - self.tail).min(FETCHED));
        }
        self.head - self.tail
    }

    #[inline]
    fn next_header(&mut self) -> Option<Header> {
        loop {
            if self.waiting() == 0 {
                return None;
            }
            // SAFETY: `tail < head`, so a published header stands here, aligned to its unit.
            let header = unsafe { self.shared.at(self.tail).read() };
            if header.len != FILLER {
                return Some(header);
            }
            self.tail += self.shared.until_end(self.tail);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A length for record `n` that visits small, unaligned and large records.
    fn length_of(n: u64) -> usize {
        let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if mixed.is_multiple_of(7) { (mixed >> 32) as usize % 1500 } else { (mixed >> 40) as usize % 90 }
    }

    #[test]
    fn records_come_out_as_they_went_in() {
        let (mut tx, mut rx) = ring(4096);
        assert!(rx.pop().is_none());
        assert!(tx.push(b"one", 1, 10) && tx.push(b"", 2, 20));
        assert!(rx.pop().is_none(), "nothing is visible before it is published");
        tx.publish();
        assert_eq!(rx.peek_flags(), Some(10));
        assert_eq!(rx.pop(), Some(Record { due_ns: 1, flags: 10, bytes: b"one" }));
        assert_eq!(rx.pop(), Some(Record { due_ns: 2, flags: 20, bytes: b"" }));
        assert!(rx.pop().is_none());
    }

    #[test]
    fn portions_become_visible_one_by_one() {
        let (mut tx, mut rx) = ring(4096);
        assert!(tx.push(b"one", 1, 0) && tx.push(b"two", 2, 0));
        tx.cut();
        assert!(tx.push(b"three", 3, 0));
        tx.cut();
        assert!(tx.push(b"four", 4, 0));
        tx.publish_portion();
        assert_eq!([(); 3].map(|()| rx.pop().map(|record| record.due_ns)), [Some(1), Some(2), None]);
        tx.publish_portion();
        assert_eq!([(); 2].map(|()| rx.pop().map(|record| record.due_ns)), [Some(3), None]);
        tx.publish_portion();
        assert!(rx.pop().is_none(), "there is no third portion");
        tx.cut();
        tx.publish();
        assert!(tx.push(b"five", 5, 0));
        tx.publish_portion();
        assert_eq!([(); 2].map(|()| rx.pop().map(|record| record.due_ns)), [Some(4), None], "all was one portion");
    }

    #[test]
    fn a_commit_may_be_shorter_than_its_reservation() {
        let (mut tx, mut rx) = ring(4096);
        tx.reserve(1000).unwrap()[..2].copy_from_slice(b"ab");
        tx.commit(2, 7, 0);
        tx.publish();
        assert_eq!(rx.pop().unwrap().bytes, b"ab");
    }

    #[test]
    fn a_full_ring_refuses_and_loses_nothing() {
        let (mut tx, mut rx) = ring(4096);
        let mut sent = 0;
        while tx.push(&[sent; 100], 0, 0) {
            sent += 1;
        }
        assert_eq!(usize::from(sent), 4096 / footprint(100));
        assert!(!tx.fits(100));
        tx.publish();
        assert_eq!(rx.pop().unwrap().bytes, [0; 100]);
        assert!(!tx.push(&[0; 100], 0, 0), "read but not released");
        rx.release();
        assert!(tx.push(&[sent; 100], 0, 0));
        tx.publish();
        for expected in 1..=sent {
            assert_eq!(rx.pop().unwrap().bytes, [expected; 100]);
        }
    }

    #[test]
    fn a_record_larger_than_the_ring_is_refused() {
        let (mut tx, _rx) = ring(4096);
        assert!(tx.reserve(4096).is_none());
        assert!(tx.reserve(4096 - UNIT).is_some());
    }

    #[test]
    fn agrees_with_a_queue_over_many_wraps() {
        let (mut tx, mut rx) = ring(8192);
        let mut twin: VecDeque<(Vec<u8>, u64)> = VecDeque::new();
        let (mut sent, mut taken) = (0_u64, 0_u64);
        while taken < 20_000 {
            let burst = sent.wrapping_mul(31) % 9;
            for _ in 0..burst {
                let bytes = vec![sent as u8; length_of(sent)];
                if !tx.push(&bytes, sent, sent as u32) {
                    break;
                }
                twin.push_back((bytes, sent));
                sent += 1;
            }
            sent += u64::from(burst == 0);
            tx.publish();
            for _ in 0..=taken.wrapping_mul(17) % 7 {
                let Some(record) = rx.pop() else { break };
                let (bytes, due) = twin.pop_front().expect("the ring held no more than the queue");
                assert_eq!((record.bytes, record.due_ns), (bytes.as_slice(), due));
                taken += 1;
            }
            rx.release();
        }
    }

    #[test]
    fn two_threads_hand_over_every_byte() {
        const RECORDS: u64 = 200_000;
        let (mut tx, mut rx) = ring(16 * 1024);
        let writer = std::thread::spawn(move || {
            for n in 0..RECORDS {
                let len = length_of(n);
                loop {
                    if let Some(room) = tx.reserve(len) {
                        room.fill(n as u8);
                        break;
                    }
                    tx.publish();
                    std::thread::yield_now();
                }
                tx.commit(len, n, !(n as u32));
                if n % 5 == 0 {
                    tx.publish();
                }
            }
            tx.publish();
        });
        let mut n = 0;
        while n < RECORDS {
            let Some(record) = rx.pop() else {
                rx.release();
                std::thread::yield_now();
                continue;
            };
            assert_eq!((record.due_ns, record.flags), (n, !(n as u32)));
            assert_eq!(record.bytes.len(), length_of(n));
            assert!(record.bytes.iter().all(|&byte| byte == n as u8), "record {n} is torn");
            n += 1;
            if n % 3 == 0 {
                rx.release();
            }
        }
        writer.join().unwrap();
    }
}
