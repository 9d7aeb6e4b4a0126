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

/// How often the calling thread has given up its CPU by itself: it slept, or waited for a lock or a page. A system call.
pub fn thread_sleeps() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a writable rusage, and zeroed it is a valid one should the call fail, which it cannot with this
    // `who` on Linux.
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
    fn a_sleep_is_counted() {
        let before = super::thread_sleeps();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(super::thread_sleeps() > before);
    }
}
