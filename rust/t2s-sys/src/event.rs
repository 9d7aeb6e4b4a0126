//! `eventfd(2)`: how other threads wake a worker.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use super::{check_fd, check_len};

/// A wake-up counter; [`Waker::wake`] may be called from any thread, and from a signal handler.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// A new counter at 0, non-blocking.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        check_fd(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(Self)
    }

    /// Makes the descriptor readable. A counter at its limit is readable already, so there is no failure to tell.
    pub fn wake(&self) {
        let one = 1_u64;
        // SAFETY: `one` is eight readable bytes.
        let _ = check_len(unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) });
    }

    /// Takes back all wake-ups.
    pub fn clear(&self) {
        let mut count = 0_u64;
        // SAFETY: `count` is eight writable bytes.
        let _ = check_len(unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) });
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
