//! Datagrams in batches: `sendmmsg(2)` and `recvmmsg(2)`, with segmentation both ways (`UDP_SEGMENT`, `UDP_GRO`).

use std::io;
use std::io::IoSlice;
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _};

use super::address::Address;
use super::check;

/// Messages of one call: enough that the call's own cost vanishes, few enough that their headers fit on the stack.
pub const BATCH: usize = 32;

/// Room for one `UDP_SEGMENT` or `UDP_GRO` control message with its alignment, bytes (`CMSG_SPACE(4)` is 24).
const CONTROL: usize = 32;

/// Control bytes, aligned as `cmsghdr` wants.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// One message to send.
pub struct Outgoing<'a> {
    /// Where to; `None` on a connected socket.
    pub to: Option<Address>,
    /// The bytes.
    pub slices: &'a [IoSlice<'a>],
    /// Cut the bytes into datagrams of this length (the last may be shorter); 0: one datagram.
    pub segment: u16,
}

/// Room for one message, and what was received into it.
pub struct Incoming<'a> {
    /// Where the bytes go.
    pub buffer: &'a mut [u8],
    /// Bytes received.
    pub len: usize,
    /// Who sent it.
    pub from: Address,
    /// The bytes are datagrams of this length one after the other (the last may be shorter); 0: one datagram.
    pub segment: u16,
    /// The datagram was longer than the room.
    pub truncated: bool,
}

impl<'a> Incoming<'a> {
    /// Room in `buffer`.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0, from: Address::empty(), segment: 0, truncated: false }
    }
}

/// All headers of a batch, zeroed.
fn headers() -> [libc::mmsghdr; BATCH] {
    // SAFETY: `mmsghdr` is plain data for which all zeros is a value.
    unsafe { mem::zeroed() }
}

/// Sends up to [`BATCH`] messages and answers how many the socket took.
///
/// An error concerns the first message; when some were sent before it, they are answered and the next call tells.
pub fn send(fd: impl AsFd, messages: &[Outgoing<'_>]) -> io::Result<usize> {
    let mut raw = headers();
    let mut controls = [Control([0; CONTROL]); BATCH];
    let count = messages.len().min(BATCH);
    for ((message, raw), control) in messages.iter().zip(&mut raw).zip(&mut controls) {
        let header = &mut raw.msg_hdr;
        if let Some(to) = &message.to {
            header.msg_name = (&raw const to.storage).cast_mut().cast();
            header.msg_namelen = to.len;
        }
        header.msg_iov = message.slices.as_ptr().cast_mut().cast();
        header.msg_iovlen = message.slices.len() as _;
        if message.segment != 0 {
            header.msg_control = control.0.as_mut_ptr().cast();
            // SAFETY: `CMSG_SPACE` and `CMSG_LEN` compute with numbers alone.
            let (space, len) = unsafe { (libc::CMSG_SPACE(2), libc::CMSG_LEN(2)) };
            header.msg_controllen = space as _;
            // SAFETY: the control buffer holds `CMSG_SPACE(2)` bytes and has the alignment of `cmsghdr`, so that the
            // first header and its two bytes of data lie inside.
            unsafe {
                let first = libc::CMSG_FIRSTHDR(header);
                (*first).cmsg_level = libc::SOL_UDP;
                (*first).cmsg_type = libc::UDP_SEGMENT;
                (*first).cmsg_len = len as _;
                libc::CMSG_DATA(first).cast::<u16>().write_unaligned(message.segment);
            }
        }
    }
    // SAFETY: the first `count` headers point to addresses, slices and control bytes that outlive the call.
    check(unsafe {
        libc::sendmmsg(
            fd.as_fd().as_raw_fd(),
            raw.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
        )
    })
    .map(|sent| sent as usize)
}

/// Receives up to [`BATCH`] messages and answers how many arrived.
pub fn receive(fd: impl AsFd, messages: &mut [Incoming<'_>]) -> io::Result<usize> {
    let mut raw = headers();
    let mut controls = [Control([0; CONTROL]); BATCH];
    let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
    let count = messages.len().min(BATCH);
    for (((message, raw), control), slice) in messages.iter_mut().zip(&mut raw).zip(&mut controls).zip(&mut slices) {
        *slice = libc::iovec { iov_base: message.buffer.as_mut_ptr().cast(), iov_len: message.buffer.len() };
        let header = &mut raw.msg_hdr;
        header.msg_name = (&raw mut message.from.storage).cast();
        header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_iov = slice;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL as _;
    }
    // SAFETY: the first `count` headers point to room that is borrowed mutably for the call.
    let received = check(unsafe {
        libc::recvmmsg(
            fd.as_fd().as_raw_fd(),
            raw.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    })? as usize;
    for (message, raw) in messages.iter_mut().zip(&raw).take(received) {
        message.len = (raw.msg_len as usize).min(message.buffer.len());
        message.from.len = raw.msg_hdr.msg_namelen;
        message.truncated = raw.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        message.segment = segment_of(&raw.msg_hdr);
    }
    Ok(received)
}

/// The datagram length that the kernel has told in a `UDP_GRO` control message; 0 without one.
fn segment_of(header: &libc::msghdr) -> u16 {
    // SAFETY: the kernel has filled `msg_controllen` bytes of the control buffer, which the walk does not leave;
    // `UDP_GRO` carries an int.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            if (*control).cmsg_level == libc::SOL_UDP && (*control).cmsg_type == libc::UDP_GRO {
                return libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned() as u16;
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket;
    use crate::socket::SocketOption;
    use std::net::UdpSocket;

    #[test]
    fn a_batch_goes_out_and_comes_in() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let to = Address::from(b.local_addr().unwrap());
        let (one, two) = ([IoSlice::new(b"one"), IoSlice::new(b"!")], [IoSlice::new(b"two")]);
        let sent = send(
            &a,
            &[Outgoing { to: Some(to), slices: &one, segment: 0 }, Outgoing { to: Some(to), slices: &two, segment: 0 }],
        );
        assert_eq!(sent.unwrap(), 2);
        let (mut x, mut y) = ([0; 16], [0; 2]);
        let mut incoming = [Incoming::new(&mut x), Incoming::new(&mut y)];
        assert_eq!(receive(&b, &mut incoming).unwrap(), 2);
        assert_eq!(incoming[0].from.socket_addr(), Some(a.local_addr().unwrap()));
        assert!(incoming[0].len == 4 && incoming[1].len == 2 && incoming[1].truncated);
        assert_eq!(&x[..4], b"one!");
        assert_eq!(receive(&b, &mut [Incoming::new(&mut [0; 4])]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn segments_survive_the_trip() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        socket::set(&b, SocketOption::UdpGro, 1).unwrap();
        let to = Address::from(b.local_addr().unwrap());
        let bytes = [7_u8; 250];
        send(&a, &[Outgoing { to: Some(to), slices: &[IoSlice::new(&bytes)], segment: 100 }]).unwrap();
        let mut room = [0; 1024];
        let mut incoming = [Incoming::new(&mut room)];
        assert_eq!(receive(&b, &mut incoming).unwrap(), 1);
        // Loopback keeps the run together; a kernel that cuts it hands over the first datagram alone.
        assert!((incoming[0].len, incoming[0].segment) == (250, 100) || incoming[0].len == 100);
    }
}
