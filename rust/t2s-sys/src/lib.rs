//! Every system call of this crate, and with them every `unsafe` block but those of the load's ring.
//!
//! Each function wraps one call: it takes typed arguments, turns the return value into an [`io::Result`], and a new
//! descriptor into an [`OwnedFd`] on the same line, so that nothing above this module can leak or misuse one. Nothing
//! here decides anything.
#![allow(unsafe_code)]

pub mod address;
pub mod clock;
pub mod credentials;
pub mod datagram;
pub mod epoll;
pub mod event;
pub mod heap;
pub mod memory;
pub mod sched;
pub mod socket;
pub mod tsc;
pub mod tun;

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// The result of a call that answers -1 on failure.
fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// The same for a call that answers a number of bytes.
fn check_len(answer: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// The same for a call that answers a new descriptor, which the caller owns from here on.
fn check_fd(answer: libc::c_int) -> io::Result<OwnedFd> {
    let fd: RawFd = check(answer)?;
    // SAFETY: the kernel has just handed out this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
