//! The TUN device: opened by name, created, or inherited as a descriptor; one [`Queue`] a worker.
//!
//! It promises: packets carry no packet-information header; when offload was granted each packet has a virtio-net
//! header (`linux/virtio_net.h`) in front and may be a super-segment of up to 64 KiB. Offload is a hint: it is asked
//! for in sets that shrink until the kernel agrees, can be switched off, and what was granted is told by
//! [`Queue::offload`]. It refuses TAP devices.

mod features;

use std::fmt;
use std::io;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use t2s_core::config::Offload;

pub use features::VNET_HEADER;
use features::{IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_TUN, IFF_VNET_HDR};

/// MTU of a device with offload when none was asked for, bytes: seven segments of it fill one super-segment.
pub const MTU_OFFLOAD: u16 = 8_500;
/// MTU of a device without offload when none was asked for, bytes.
pub const MTU_PLAIN: u16 = 1_500;
/// Packets that a device's queue holds. The kernel's 500 overflow with a few hundred busy connections, and what is lost
/// there hits the weakest again and again until it stands still. Windows bound what is really queued.
const QUEUE_LEN: u32 = 10_000;
/// Smallest MTU, bytes: what IPv6 needs (RFC 8200, section 5).
pub const MTU_MIN: u16 = 1_280;
/// Queues the kernel has for one device (`MAX_TAP_QUEUES` in `drivers/net/tun.c`).
pub const QUEUES_MAX: u16 = 256;

/// Which device to open, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Name of the interface, or a pattern such as `t2s%d`; empty lets the kernel choose.
    pub name: String,
    /// A descriptor that somebody else has opened and attached; it is copied, the caller keeps its own.
    pub inherited: Option<RawFd>,
    /// MTU to set, bytes; `None` takes [`MTU_OFFLOAD`] or [`MTU_PLAIN`] for a new device, and an inherited device's
    /// own.
    pub mtu: Option<u16>,
    /// Queues, one a worker.
    pub queues: u16,
    /// Ask for offload.
    pub offload: bool,
    /// Set the interface up.
    pub up: bool,
}

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No TUN driver, or no right to use it.
    #[error("cannot open /dev/net/tun: {0} (is the tun module loaded, and is this user allowed to use it?)")]
    CloneDevice(#[source] io::Error),
    /// The interface could not be attached.
    #[error("cannot attach to interface {name:?}: {error} (creating one needs CAP_NET_ADMIN)")]
    Attach {
        /// The name that was asked for.
        name: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The inherited descriptor is not usable.
    #[error("file descriptor {fd} is not a usable TUN device: {reason}")]
    Inherited {
        /// The descriptor.
        fd: RawFd,
        /// What is wrong with it.
        reason: String,
    },
    /// Several queues of one inherited descriptor.
    #[error("an inherited descriptor is one queue; set queues to 1")]
    InheritedQueues,
    /// A setting of the interface was refused.
    #[error("cannot set {what} of interface {name}: {error}")]
    Setting {
        /// Which setting.
        what: &'static str,
        /// The interface.
        name: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A number outside its range.
    #[error("{what} must lie between {min} and {max}, not {value}")]
    Range {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u32,
        /// Smallest good value.
        min: u32,
        /// Largest good value.
        max: u32,
    },
}

/// An open device.
#[derive(Debug)]
pub struct Device {
    /// The interface's name; empty for an inherited descriptor that does not tell.
    pub name: String,
    /// The interface's MTU, bytes.
    pub mtu: u16,
    /// What was granted.
    pub offload: Offload,
    /// One a worker.
    pub queues: Vec<Queue>,
}

impl Device {
    /// Opens a device. Dropping all its queues removes the interface unless it is persistent or inherited.
    pub fn open(config: &DeviceConfig) -> Result<Self, OpenError> {
        let range = |what, value: u16, min: u16, max: u16| {
            let error = OpenError::Range { what, value: value.into(), min: min.into(), max: max.into() };
            if (min..=max).contains(&value) { Ok(()) } else { Err(error) }
        };
        range("queues", config.queues, 1, QUEUES_MAX)?;
        if let Some(mtu) = config.mtu {
            range("mtu", mtu, MTU_MIN, u16::MAX)?;
        }
        match config.inherited {
            Some(fd) => Self::inherit(config, fd),
            None => Self::attach(config),
        }
    }

    fn attach(config: &DeviceConfig) -> Result<Self, OpenError> {
        let mut name = config.name.clone();
        let mut queues: Vec<Queue> = Vec::with_capacity(config.queues.into());
        let mut multi = if config.queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        for _ in 0..config.queues {
            let fd = t2s_sys::tun::open_clone_device().map_err(OpenError::CloneDevice)?;
            let header = if config.offload { IFF_VNET_HDR } else { 0 };
            let mut attached = t2s_sys::tun::set_interface(&fd, &name, IFF_TUN | IFF_NO_PI | header | multi);
            // An existing device insists on the kind it was made with.
            if multi == 0 && attached.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)) {
                multi = IFF_MULTI_QUEUE;
                attached = t2s_sys::tun::set_interface(&fd, &name, IFF_TUN | IFF_NO_PI | header | multi);
            }
            name = attached.map_err(|error| OpenError::Attach { name: name.clone(), error })?;
            queues.push(Queue::new(fd, config.offload, config.offload));
        }
        let offload = queues.first().map(|queue| queue.offload).unwrap_or_default();
        let default = if offload.tso { MTU_OFFLOAD } else { MTU_PLAIN };
        let wanted = config.mtu.unwrap_or(default);
        let current = t2s_sys::tun::mtu(&name);
        // A device that was made ready for an unprivileged user already has its MTU and is up.
        if !current.is_ok_and(|mtu| mtu == u32::from(wanted)) {
            t2s_sys::tun::set_mtu(&name, wanted.into()).map_err(|error| OpenError::Setting {
                what: "the MTU",
                name: name.clone(),
                error,
            })?;
        }
        // Without the right to do so the queue stays as it is.
        let _ = t2s_sys::tun::set_queue_len(&name, QUEUE_LEN);
        if config.up {
            t2s_sys::tun::set_up(&name).map_err(|error| OpenError::Setting {
                what: "the up flag",
                name: name.clone(),
                error,
            })?;
        }
        Ok(Self { name, mtu: wanted, offload, queues })
    }

    fn inherit(config: &DeviceConfig, fd: RawFd) -> Result<Self, OpenError> {
        if config.queues != 1 {
            return Err(OpenError::InheritedQueues);
        }
        let refuse = |reason: &dyn fmt::Display| OpenError::Inherited { fd, reason: reason.to_string() };
        let copy = t2s_sys::tun::duplicate(fd).map_err(|error| refuse(&error))?;
        t2s_sys::tun::set_nonblocking(&copy).map_err(|error| refuse(&error))?;
        // Android forbids the question; there the device is a plain one without packet information.
        let (name, flags) = t2s_sys::tun::interface(&copy).unwrap_or((String::new(), IFF_TUN | IFF_NO_PI));
        if flags & IFF_TAP != 0 {
            return Err(refuse(&"it is a TAP device, which carries Ethernet frames"));
        }
        // What the name of a device in another namespace means here is a stranger, if anything.
        let here = t2s_sys::tun::is_here(&copy);
        let known = (!name.is_empty() && here != Some(false)).then_some(name.as_str());
        // Where sysfs is not to be had (Android) devices have no packet information.
        let made_with = known.and_then(|name| t2s_sys::tun::driver_flags(name).ok()).unwrap_or(IFF_NO_PI);
        if made_with & IFF_NO_PI == 0 {
            return Err(refuse(&"it was opened without IFF_NO_PI"));
        }
        let own = known.and_then(|name| t2s_sys::tun::mtu(name).ok()).and_then(|mtu| u16::try_from(mtu).ok());
        let mtu = config.mtu.or(own).unwrap_or(MTU_PLAIN);
        let queue = Queue::new(copy, flags & IFF_VNET_HDR != 0, config.offload);
        if here == Some(true) && own.is_some_and(|own| own != mtu) {
            // Whoever handed the descriptor over may have kept the right to set this; packets within the device's own
            // MTU flow either way.
            let _ = t2s_sys::tun::set_mtu(&name, mtu.into());
        }
        Ok(Self { name, mtu, offload: queue.offload, queues: vec![queue] })
    }
}

/// One queue of a device: a packet a read, a packet a write.
#[derive(Debug)]
pub struct Queue {
    fd: OwnedFd,
    header: usize,
    offload: Offload,
}

impl Queue {
    /// Takes an attached descriptor; `framed` says whether with `IFF_VNET_HDR`. With `offload` it asks for as much as
    /// the kernel grants.
    fn new(fd: OwnedFd, framed: bool, offload: bool) -> Self {
        if !framed {
            return Self { fd, header: 0, offload: Offload::default() };
        }
        // The legacy header of ten bytes is the default; a persistent device may have been set otherwise before.
        let _ = t2s_sys::tun::set_header_len(&fd, VNET_HEADER as i32);
        let offload = if offload {
            features::negotiate(|set| t2s_sys::tun::set_offload(&fd, set).is_ok())
        } else {
            // Whoever opened it may have asked for some.
            let _ = t2s_sys::tun::set_offload(&fd, 0);
            Offload::default()
        };
        Self { fd, header: VNET_HEADER, offload }
    }

    /// Bytes of virtio-net header in front of each packet, both ways: [`VNET_HEADER`] or 0.
    pub fn header_len(&self) -> usize {
        self.header
    }

    /// What this queue can do.
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Reads one packet with its header. `WouldBlock` when there is none.
    #[inline]
    pub fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        t2s_sys::tun::read(&self.fd, bytes)
    }

    /// Writes one packet with its header.
    #[inline]
    pub fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        t2s_sys::tun::write_vectored(&self.fd, slices)
    }
}

impl From<Queue> for OwnedFd {
    /// The descriptor alone, to be handed to another process.
    fn from(queue: Queue) -> Self {
        queue.fd
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> DeviceConfig {
        DeviceConfig { queues: 1, offload: true, ..DeviceConfig::default() }
    }

    #[test]
    fn numbers_out_of_range_are_refused_before_anything_is_opened() {
        for config in [
            DeviceConfig { queues: 0, ..config() },
            DeviceConfig { queues: QUEUES_MAX + 1, ..config() },
            DeviceConfig { mtu: Some(MTU_MIN - 1), ..config() },
        ] {
            assert!(matches!(Device::open(&config), Err(OpenError::Range { .. })));
        }
    }

    #[test]
    fn an_inherited_descriptor_must_be_one_open_queue() {
        let closed = DeviceConfig { inherited: Some(i32::MAX), ..config() };
        assert!(matches!(Device::open(&closed), Err(OpenError::Inherited { .. })));
        let two = DeviceConfig { inherited: Some(0), queues: 2, ..config() };
        assert!(matches!(Device::open(&two), Err(OpenError::InheritedQueues)));
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        for name in ["a name", "way-too-long-for-linux", "a/b"] {
            let config = DeviceConfig { name: name.into(), ..config() };
            // Without the device file the refusal comes earlier, which is one all the same.
            assert!(matches!(Device::open(&config), Err(OpenError::Attach { .. } | OpenError::CloneDevice(_))));
        }
    }
}
