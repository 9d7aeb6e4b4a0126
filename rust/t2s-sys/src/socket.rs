//! Stream sockets: non-blocking, closed on exec, never a `SIGPIPE`.

use std::io;
use std::io::IoSlice;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use super::address::Address;
use super::{check, check_fd, check_len};

/// Slices that one call takes at most; far below the kernel's `UIO_MAXIOV` (1,024), above what a flow offers at once.
pub const MAX_SLICES: usize = 64;

/// A socket option that is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketOption {
    /// `TCP_NODELAY`: segments leave at once.
    NoDelay,
    /// `TCP_QUICKACK`: acknowledgements leave at once, for now.
    QuickAck,
    /// `SO_MARK`: the firewall mark that keeps proxy traffic out of the tunnel; needs `CAP_NET_ADMIN`.
    Mark,
    /// `SO_KEEPALIVE`.
    KeepAlive,
    /// `SO_SNDBUF`, bytes; the kernel doubles it.
    SendBuffer,
    /// `SO_RCVBUF`, bytes; the kernel doubles it.
    ReceiveBuffer,
    /// `TCP_NOTSENT_LOWAT`: a socket is writable while fewer bytes than this are unsent.
    NotSentLowWater,
    /// `UDP_GRO`: the kernel hands over runs of equal datagrams in one piece.
    UdpGro,
    /// `IPV6_V6ONLY`.
    V6Only,
}

impl SocketOption {
    fn number(self) -> (libc::c_int, libc::c_int) {
        match self {
            Self::NoDelay => (libc::IPPROTO_TCP, libc::TCP_NODELAY),
            Self::QuickAck => (libc::IPPROTO_TCP, libc::TCP_QUICKACK),
            Self::Mark => (libc::SOL_SOCKET, libc::SO_MARK),
            Self::KeepAlive => (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            Self::SendBuffer => (libc::SOL_SOCKET, libc::SO_SNDBUF),
            Self::ReceiveBuffer => (libc::SOL_SOCKET, libc::SO_RCVBUF),
            Self::NotSentLowWater => (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
            Self::UdpGro => (libc::SOL_UDP, libc::UDP_GRO),
            Self::V6Only => (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
        }
    }
}

/// A new TCP socket of the family of `address`.
pub fn tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    new(address, libc::SOCK_STREAM)
}

/// A new UDP socket of the family of `address`.
pub fn udp(address: SocketAddr) -> io::Result<OwnedFd> {
    new(address, libc::SOCK_DGRAM)
}

fn new(address: SocketAddr, kind: libc::c_int) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers.
    check_fd(unsafe { libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) })
}

/// Sets a numeric option.
pub fn set(fd: impl AsFd, option: SocketOption, value: i32) -> io::Result<()> {
    let (level, name) = option.number();
    set_raw(fd.as_fd(), level, name, &value)
}

/// Makes the coming close a reset: unsent data is thrown away and the peer learns that this was no orderly end.
pub fn reset_on_close(fd: impl AsFd) -> io::Result<()> {
    set_raw(fd.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })
}

fn set_raw<T>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, a plain C value that outlives the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) })?;
    Ok(())
}

/// Starts to connect. `true`: connected already; `false`: the socket becomes writable when it is decided.
pub fn connect(fd: impl AsFd, address: SocketAddr) -> io::Result<bool> {
    let address = Address::from(address);
    // SAFETY: the address is initialised up to its length and outlives the call.
    match check(unsafe { libc::connect(fd.as_fd().as_raw_fd(), (&raw const address.storage).cast(), address.len) }) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Binds to a local address.
pub fn bind(fd: impl AsFd, address: SocketAddr) -> io::Result<()> {
    let address = Address::from(address);
    // SAFETY: as in `connect`.
    check(unsafe { libc::bind(fd.as_fd().as_raw_fd(), (&raw const address.storage).cast(), address.len) })?;
    Ok(())
}

/// The address a socket is bound to.
pub fn local_address(fd: impl AsFd) -> io::Result<SocketAddr> {
    let mut address = Address::empty();
    // SAFETY: storage and length are writable and belong together.
    check(unsafe {
        libc::getsockname(fd.as_fd().as_raw_fd(), (&raw mut address.storage).cast(), &raw mut address.len)
    })?;
    address.socket_addr().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The address at the other end of a socket; an error while it is not connected.
pub fn peer_address(fd: impl AsFd) -> io::Result<SocketAddr> {
    let mut address = Address::empty();
    // SAFETY: storage and length are writable and belong together.
    check(unsafe {
        libc::getpeername(fd.as_fd().as_raw_fd(), (&raw mut address.storage).cast(), &raw mut address.len)
    })?;
    address.socket_addr().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Whether a socket has a peer.
pub fn is_connected(fd: impl AsFd) -> bool {
    peer_address(fd).is_ok()
}

/// The pending error of a socket (`SO_ERROR`), which is thereby cleared.
pub fn take_error(fd: impl AsFd) -> io::Result<Option<io::Error>> {
    let (mut code, mut len): (libc::c_int, _) = (0, mem::size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: `code` is writable and `len` its size.
    check(unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut code).cast(), &raw mut len)
    })?;
    Ok((code != 0).then(|| io::Error::from_raw_os_error(code)))
}

/// Sends what the socket takes of `bytes`.
pub fn send(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `bytes`.
    check_len(unsafe {
        libc::send(fd.as_fd().as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    })
}

/// Sends what the socket takes of several slices, in one call. Slices beyond [`MAX_SLICES`] are left out.
pub fn send_vectored(fd: impl AsFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: `msghdr` is plain data for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    // An `IoSlice` has the layout of `iovec`, as its documentation promises; the kernel only reads through it.
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len().min(MAX_SLICES) as _;
    // SAFETY: the message points to slices that are borrowed for the call.
    check_len(unsafe {
        libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    })
}

/// Receives into `bytes`. 0 is the end of the stream.
pub fn recv(fd: impl AsFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `bytes`, which is writable.
    check_len(unsafe { libc::recv(fd.as_fd().as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) })
}

/// Looks whether there is something to receive, and leaves it there. 0 is the end of the stream.
pub fn peek(fd: impl AsFd) -> io::Result<usize> {
    let mut byte = 0_u8;
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: the pointer is to one writable byte, and so is the length.
    check_len(unsafe { libc::recv(fd.as_fd().as_raw_fd(), (&raw mut byte).cast(), 1, flags) })
}

/// Ends the sending direction: the peer reads the end of the stream after all that was sent.
pub fn shutdown_write(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::shutdown(fd.as_fd().as_raw_fd(), libc::SHUT_WR) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::TcpListener;

    #[test]
    fn a_stream_connects_sends_and_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let fd = tcp(address).unwrap();
        set(&fd, SocketOption::NoDelay, 1).unwrap();
        connect(&fd, address).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        assert!(take_error(&fd).unwrap().is_none());
        assert_eq!(recv(&fd, &mut [0; 4]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(send_vectored(&fd, &[IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"c")]).unwrap(), 3);
        shutdown_write(&fd).unwrap();
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
    }

    #[test]
    fn a_refused_connect_leaves_its_error() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let fd = tcp(address).unwrap();
        let refused = match connect(&fd, address) {
            Ok(_) => take_error(&fd).unwrap().unwrap(),
            Err(error) => error,
        };
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
