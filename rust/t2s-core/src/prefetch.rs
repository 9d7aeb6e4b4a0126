//! Hints to the CPU's cache: what will be needed soon is fetched while something else goes on.
#![allow(unsafe_code)]

/// Bytes of a cache line; where lines are longer, some hints are given twice.
const LINE: usize = 64;

/// Asks for the cache lines of `bytes` from `at` on, to be read. A hint, which any address may be given: nothing
/// changes, and nothing is read.
#[inline]
pub fn prefetch_to_read(at: *const u8, bytes: usize) {
    for offset in (0..bytes).step_by(LINE) {
        line_to_read(at.wrapping_add(offset));
    }
}

/// As [`prefetch_to_read`], in a state that can be written.
#[inline]
pub(crate) fn prefetch_to_write(at: *const u8, bytes: usize) {
    for offset in (0..bytes).step_by(LINE) {
        line_to_write(at.wrapping_add(offset));
    }
}

#[inline]
fn line_to_read(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch faults nowhere.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint that changes no register and no memory.
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

#[inline]
fn line_to_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch faults nowhere; CPUs without PREFETCHW take it for a no-op.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_ET0>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint that changes no register and no memory.
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{0}]", in(reg) at, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}
