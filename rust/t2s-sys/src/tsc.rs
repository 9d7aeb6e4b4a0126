//! The processor's time-stamp counter, where it exists and ticks at a constant rate.
#![allow(unsafe_code)]

/// Whether the counter is invariant: constant rate, never stopped (Intel SDM vol. 3, 18.17.1; CPUID `8000_0007h` EDX
/// 8).
#[cfg(target_arch = "x86_64")]
pub fn is_invariant() -> bool {
    use std::arch::x86_64::__cpuid;
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0
}

/// There is no counter that this crate reads on this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub fn is_invariant() -> bool {
    false
}

/// The counter now; not ordered against neighbouring instructions, which a measurement of ≥ 100 ns does not notice.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn read() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 processor and is permitted in user mode unless prctl(PR_SET_TSC) forbade
    // it, which nothing here does.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Never called: [`is_invariant`] is false here.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub fn read() -> u64 {
    0
}
