//! `epoll(7)`: readiness of many descriptors.
//!
//! Descriptors are registered once, edge-triggered, for both directions; their owner remembers what is ready until a
//! call answers `EAGAIN`. So a connection costs one `epoll_ctl` in its life: closing a descriptor removes it.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use super::{check, check_fd};

/// What is ready, or asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(u32);

impl Interest {
    /// Both directions and the peer's end of stream, on edges: for sockets.
    pub const EDGES: Self = Self((libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP) as u32 | libc::EPOLLET as u32);
    /// Readable, on edges: for devices and event counters.
    pub const EDGE_IN: Self = Self(libc::EPOLLIN as u32 | libc::EPOLLET as u32);
    /// Readable, as long as it is: for listening sockets.
    pub const LEVEL_IN: Self = Self(libc::EPOLLIN as u32);
}

/// One descriptor that became ready.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The number given at registration.
    pub token: u64,
    flags: u32,
}

impl Event {
    /// A read would not wait (data, end of stream or error).
    pub fn readable(self) -> bool {
        self.flags & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// A write would not wait (room or error).
    pub fn writable(self) -> bool {
        self.flags & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// The peer has ended its direction, or the connection has failed: read until told so.
    pub fn ended(self) -> bool {
        self.flags & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }
}

/// An epoll instance.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// A new instance, closed on exec.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        check_fd(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    /// Registers a descriptor under a token. It leaves when its last copy is closed.
    pub fn add(&self, fd: impl AsFd, interest: Interest, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_fd(), interest, token)
    }

    /// Changes what is asked for.
    pub fn modify(&self, fd: impl AsFd, interest: Interest, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_fd(), interest, token)
    }

    /// Removes a descriptor that stays open.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd.as_fd(), Interest(0), 0)
    }

    fn control(&self, operation: libc::c_int, fd: BorrowedFd<'_>, interest: Interest, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.0, u64: token };
        // SAFETY: both descriptors are open, `event` is initialised and outlives the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) })?;
        Ok(())
    }

    /// Waits until something is ready, at most `timeout` nanoseconds (`None`: without end), and puts it into `events`.
    ///
    /// An interrupting signal ends the wait with no events. Timeouts are rounded up to milliseconds, so that a timer
    /// is due when the wait for it ends.
    pub fn wait(&self, events: &mut Events, timeout: Option<u64>) -> io::Result<()> {
        let timeout = timeout.map_or(-1, |nanos| i32::try_from(nanos.div_ceil(1_000_000)).unwrap_or(i32::MAX));
        let capacity = i32::try_from(events.list.len()).unwrap_or(i32::MAX);
        events.len = 0;
        // SAFETY: the list has room for `capacity` events and outlives the call.
        match check(unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.list.as_mut_ptr(), capacity, timeout) }) {
            Ok(n) => events.len = n as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Room for the events of one wait.
pub struct Events {
    list: Vec<libc::epoll_event>,
    len: usize,
}

impl Events {
    /// Room for `capacity` events.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { list: vec![libc::epoll_event { events: 0, u64: 0 }; capacity.max(1)], len: 0 }
    }

    /// The events of the last wait.
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.list[..self.len].iter().map(|raw| Event { token: raw.u64, flags: raw.events })
    }

    /// How many events the last wait brought.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the last wait brought nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_edge_is_told_once() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let (epoll, mut events) = (Epoll::new().unwrap(), Events::with_capacity(4));
        epoll.add(&b, Interest::EDGE_IN, 7).unwrap();
        epoll.wait(&mut events, Some(0)).unwrap();
        assert!(events.is_empty());
        a.write_all(b"x").unwrap();
        epoll.wait(&mut events, None).unwrap();
        let event = events.iter().next().unwrap();
        assert!(event.token == 7 && event.readable() && !event.ended());
        epoll.wait(&mut events, Some(0)).unwrap();
        assert!(events.is_empty());
        drop(a);
        epoll.wait(&mut events, Some(0)).unwrap();
        assert!(events.iter().next().unwrap().ended());
    }
}
