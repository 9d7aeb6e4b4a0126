//! `/dev/net/tun` and its controls (`linux/if_tun.h`), and the few interface controls of `netdevice(7)`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::io::IoSlice;
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use super::{check, check_fd, check_len};

/// Longest interface name, bytes without the terminating zero (`IFNAMSIZ` − 1).
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// Opens the clone device, non-blocking.
pub fn open_clone_device() -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    Ok(file.into())
}

/// An interface request with a name and nothing else.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() > NAME_MAX || name.bytes().any(|byte| byte == 0 || byte == b'/' || byte.is_ascii_whitespace()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no interface name")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes: Vec<u8> = request.ifr_name.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `TUNSETIFF`: attaches the descriptor to the interface `name` (or a new one from a pattern such as `tun%d`) and
/// answers the interface's real name.
pub fn set_interface(fd: impl AsFd, name: &str, flags: i32) -> io::Result<String> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the control reads and writes an `ifreq`.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    Ok(name_of(&request))
}

/// `TUNGETIFF`: name and flags of the interface that an inherited descriptor is attached to.
pub fn interface(fd: impl AsFd) -> io::Result<(String, i32)> {
    let mut request = request("")?;
    // SAFETY: the control writes an `ifreq`.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })?;
    // SAFETY: the control has set the flags; any bits are a valid `c_short`.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((name_of(&request), i32::from(flags as u16)))
}

/// `TUNGETDEVNETNS` of `linux/if_tun.h` (Linux 5.1): `_IO('T', 227)`.
const TUNGETDEVNETNS: u32 = 0x54E3;

/// Whether the interface of a descriptor lives in the calling thread's network namespace, so that its name means the
/// same here; `None` where the kernel does not tell, which takes `CAP_NET_ADMIN` in the interface's namespace.
pub fn is_here(fd: impl AsFd) -> Option<bool> {
    // SAFETY: the control takes no argument and answers with a new descriptor, which `check_fd` owns.
    let theirs = check_fd(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TUNGETDEVNETNS as _) }).ok()?;
    let (theirs, ours) = (File::from(theirs).metadata().ok()?, fs::metadata("/proc/thread-self/ns/net").ok()?);
    Some((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
}

/// The flags that an interface was made with, as the driver tells them in sysfs.
///
/// `TUNGETIFF` says `IFF_NOFILTER` in the very bit of `IFF_NO_PI`, so that its answer tells nothing about that one.
pub fn driver_flags(name: &str) -> io::Result<i32> {
    request(name)?;
    let text = fs::read_to_string(format!("/sys/class/net/{name}/tun_flags"))?;
    let digits = text.trim().trim_start_matches("0x");
    i32::from_str_radix(digits, 16).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// `TUNSETOFFLOAD`: which unfinished packets this side accepts.
pub fn set_offload(fd: impl AsFd, features: u32) -> io::Result<()> {
    // SAFETY: the control takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(features)) })?;
    Ok(())
}

/// `TUNSETVNETHDRSZ`: the length of the virtio-net header in front of each packet, bytes.
pub fn set_header_len(fd: impl AsFd, len: i32) -> io::Result<()> {
    // SAFETY: the control reads one int.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const len) })?;
    Ok(())
}

/// Reads one packet. One call, one packet: what does not fit is cut off.
pub fn read(fd: impl AsFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `bytes`, which is writable.
    check_len(unsafe { libc::read(fd.as_fd().as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) })
}

/// Writes one packet out of several slices.
pub fn write_vectored(fd: impl AsFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: an `IoSlice` has the layout of `iovec`; the slices are borrowed for the call.
    check_len(unsafe { libc::writev(fd.as_fd().as_raw_fd(), slices.as_ptr().cast(), slices.len() as libc::c_int) })
}

/// Makes an inherited descriptor non-blocking.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: no pointers.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// A copy of a descriptor that its caller keeps owning, closed on exec.
pub fn duplicate(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a number that is no open descriptor is answered with `EBADF`.
    check_fd(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })
}

/// A socket to send interface controls through.
fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    check_fd(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })
}

/// The MTU of an interface, bytes.
pub fn mtu(name: &str) -> io::Result<u32> {
    let mut request = request(name)?;
    let socket = control_socket()?;
    // SAFETY: the control reads the name and writes the MTU.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) })?;
    // SAFETY: the control has set the MTU.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// Sets the MTU of an interface; needs `CAP_NET_ADMIN`.
pub fn set_mtu(name: &str, mtu: u32) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu as libc::c_int;
    let socket = control_socket()?;
    // SAFETY: the control reads name and MTU.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU as _, &raw const request) })?;
    Ok(())
}

/// Sets how many packets an interface's queue holds; needs `CAP_NET_ADMIN`.
pub fn set_queue_len(name: &str, packets: u32) -> io::Result<()> {
    let mut request = request(name)?;
    // `ifr_qlen` is another name for this integer of the union.
    request.ifr_ifru.ifru_metric = packets as libc::c_int;
    let socket = control_socket()?;
    // SAFETY: the control reads name and length.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN as _, &raw const request) })?;
    Ok(())
}

/// Sets an interface up; needs `CAP_NET_ADMIN`.
pub fn set_up(name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    let socket = control_socket()?;
    // SAFETY: the control reads the name and writes the flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) })?;
    // SAFETY: the control has set the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: the control reads name and flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })?;
    Ok(())
}
