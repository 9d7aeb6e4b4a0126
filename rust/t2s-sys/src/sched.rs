//! The scheduler's calls that the lab needs: pinning and yielding.
//!
//! Promises: nothing here blocks; each call's failure is either returned or harmless (a yield). Refuses to pin to CPUs
//! outside the set that the process was given.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;

/// CPUs that a `cpu_set_t` can name.
const CPU_SETSIZE: usize = libc::CPU_SETSIZE as usize;

/// The CPUs this thread may run on, in ascending order.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero cpu_set_t is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: `set` is a writable cpu_set_t and the size given is its own.
    let done = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every index is below CPU_SETSIZE, the number of bits of the set.
    Ok((0..CPU_SETSIZE).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// Asks the scheduler to prefer the calling thread (nice -15); true if it may. Nice values are a thread's own on Linux.
pub fn prefer_this_thread() -> bool {
    // SAFETY: no pointers; 0 means the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) == 0 }
}

/// Binds the calling thread to one CPU.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    if cpu >= CPU_SETSIZE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("CPU {cpu} is beyond a cpu_set_t")));
    }
    // SAFETY: an all-zero cpu_set_t is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: `cpu` is below CPU_SETSIZE, checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is a valid cpu_set_t and the size given is its own.
    let done = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets another runnable thread have this CPU.
pub fn yield_now() {
    // SAFETY: takes no arguments and touches no memory of ours.
    unsafe { libc::sched_yield() };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_pinned_to_each_cpu_it_is_allowed() {
        let cpus = allowed_cpus().unwrap();
        assert!(!cpus.is_empty());
        std::thread::spawn(move || {
            for cpu in cpus {
                pin_to(cpu).unwrap();
                assert_eq!(allowed_cpus().unwrap(), [cpu]);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_yield_comes_back() {
        yield_now();
    }

    #[test]
    fn an_impossible_cpu_is_refused() {
        assert!(pin_to(usize::MAX).is_err());
    }
}
