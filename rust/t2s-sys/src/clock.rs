//! The clocks of the kernel, in nanoseconds, and what it knows of a thread's time.

use std::mem::MaybeUninit;

/// `CLOCK_MONOTONIC`: the clock of all workers of a tunnel. Read through the vDSO, some 20 ns.
#[inline]
pub fn monotonic_nanos() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// `CLOCK_THREAD_CPUTIME_ID`: time that the calling thread has spent on a CPU. A real system call.
pub fn thread_cpu_nanos() -> u64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Time that the calling thread has spent on a CPU as the kernel's ticks tell it; `None` where nobody says. A system
/// call.
///
/// Each tick (see [`tick_nanos`]) is charged to the thread that it finds. A guest's other clocks run on while the
/// hypervisor has its CPU; ticks do not. Kernels that account by clock instead of by tick give what
/// [`thread_cpu_nanos`] does.
pub fn thread_tick_nanos() -> Option<u64> {
    /// The clock of a thread (bit 2) of type 0 (`CPUCLOCK_PROF`, user and system time unscaled), the thread (above bit
    /// 2, inverted) being 0, the caller.
    const THREAD_TICKS: libc::clockid_t = (!0 << 3) | 4;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a writable timespec; a clock that the kernel does not have is an error.
    let answer = unsafe { libc::clock_gettime(THREAD_TICKS, &raw mut time) };
    (answer == 0).then_some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Time between two ticks of the kernel; `None` where what is said cannot be one.
pub fn tick_nanos() -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a writable timespec. The clock exists on every Linux, and advances by one tick.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    let tick = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
    (100_000..=100_000_000).contains(&tick).then_some(tick)
}

/// How often the calling thread has given up its CPU by itself: it slept, or waited for a lock or a page. A system
/// call.
pub fn thread_sleeps() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a writable rusage, and zeroed it is a valid one should the call fail, which it cannot with
    // this `who` on Linux.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_nvcsw as u64
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a writable timespec. Both clocks exist on every Linux, so that the call cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    #[test]
    fn clocks_advance() {
        let (wall, cpu) = (super::monotonic_nanos(), super::thread_cpu_nanos());
        let mut sum = 0_u64;
        while super::monotonic_nanos() - wall < 2_000_000 {
            sum = sum.wrapping_add(1);
        }
        assert!(super::thread_cpu_nanos() > cpu, "{sum}");
    }

    #[test]
    fn ticks_are_charged_to_a_thread_that_runs() {
        let (wall, tick) = (super::monotonic_nanos(), super::tick_nanos().expect("Linux has ticks"));
        let before = super::thread_tick_nanos().expect("Linux has this clock");
        while super::thread_tick_nanos().expect("still") < before + 2 * tick {
            assert!(super::monotonic_nanos() - wall < 10_000_000_000, "no tick in ten seconds");
        }
    }

    #[test]
    fn a_sleep_is_counted() {
        let before = super::thread_sleeps();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(super::thread_sleeps() > before);
    }
}
