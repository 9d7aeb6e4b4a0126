//! Slabs of the buffer pool straight from the kernel: their pages come all at once, since one by one each costs a fault
//! of its own on the packet path, and unmapping gives them back at once, which an allocator need not do; and the
//! request that the allocator does so for all else.

use std::ptr::NonNull;

use t2s_core::buf::Memory;

/// Anonymous private mappings.
#[derive(Clone, Copy, Debug, Default)]
pub struct MappedMemory;

/// The [`MappedMemory`] that tunnels hand to their pools.
pub static MAPPED: MappedMemory = MappedMemory;

// SAFETY: a fresh anonymous mapping is zeroed, page-aligned (4,096 or more on every Linux), readable, writable, and
// belongs to nobody else until it is unmapped.
unsafe impl Memory for MappedMemory {
    fn map(&self, bytes: usize) -> Option<NonNull<u8>> {
        // SAFETY: no address is asked for, so that no existing mapping is replaced.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) }
    }

    unsafe fn unmap(&self, start: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller says that this is a whole mapping of ours that nobody uses any more.
        let answer = unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
        debug_assert_eq!(answer, 0, "munmap of a mapping of ours");
    }
}

/// Asks the C library to give free pages of its heap back: tables of flows that have ended lie between what still
/// lives, so that it would keep them. Takes up to some milliseconds; nothing where the C library has no such call.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointer, and the allocator's own locks guard what it does.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_zeroed_and_go_back() {
        let start = MAPPED.map(1 << 16).unwrap();
        // SAFETY: the mapping is 64 KiB long and ours alone; it is unmapped once.
        unsafe {
            let bytes = std::slice::from_raw_parts_mut(start.as_ptr(), 1 << 16);
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(1);
            MAPPED.unmap(start, 1 << 16);
        }
    }
}
