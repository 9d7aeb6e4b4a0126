//! The system's allocator, with a count for each thread of what it has allocated and not freed: what a worker's heap
//! holds beside the buffer pool, to the byte, without what an interpreter in the same process does.
//!
//! `mallinfo2` would count that too, and rounds. A thread's counters cost about a nanosecond an allocation and are
//! shared with nobody; what one thread frees for another is negative there, so the sum over threads is what is live.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The allocator; a program that wants the counts declares it with `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

/// What one thread has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapCounts {
    /// Allocations, those that grew or shrank included.
    pub allocations: u64,
    /// Bytes allocated less bytes freed.
    pub bytes: i64,
}

impl HeapCounts {
    /// The difference to an earlier reading of the same thread.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { allocations: self.allocations - earlier.allocations, bytes: self.bytes - earlier.bytes }
    }
}

thread_local! {
    static COUNTS: Cell<HeapCounts> = const { Cell::new(HeapCounts { allocations: 0, bytes: 0 }) };
}

#[inline]
fn count(allocations: u64, bytes: i64) {
    // A thread that is ending has no cell any more only where cells need to be dropped; this one does not.
    let _ = COUNTS.try_with(|counts| {
        let HeapCounts { allocations: before, bytes: live } = counts.get();
        counts.set(HeapCounts { allocations: before + allocations, bytes: live + bytes });
    });
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        count(0, -(layout.size() as i64));
        // SAFETY: the caller keeps the contract of `dealloc`, and the block is the system's.
        unsafe { System.dealloc(start, layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(1, new_size as i64 - layout.size() as i64);
        // SAFETY: the caller keeps the contract of `realloc`, and the block is the system's.
        unsafe { System.realloc(start, layout, new_size) }
    }
}

/// The counts of the calling thread; `None` in a program with another allocator.
pub fn thread_heap() -> Option<HeapCounts> {
    let counts = COUNTS.get();
    if counts.allocations > 0 {
        return Some(counts);
    }
    // A thread that has not allocated yet tells by doing so.
    drop(std::hint::black_box(Box::new(0_u8)));
    let counts = COUNTS.get();
    (counts.allocations > 0).then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    #[test]
    fn what_is_held_is_counted_and_what_went_is_not() {
        let before = thread_heap().unwrap();
        let mut held: Vec<u8> = Vec::with_capacity(1_000);
        held.reserve_exact(3_000);
        let now = thread_heap().unwrap().since(before);
        assert_eq!((now.bytes, now.allocations), (3_000, 2));
        let elsewhere = std::thread::spawn(move || {
            let before = thread_heap().unwrap();
            drop(held);
            thread_heap().unwrap().since(before).bytes
        });
        assert_eq!(elsewhere.join().unwrap(), -3_000);
    }
}
