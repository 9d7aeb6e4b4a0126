//! Two streams joined: what one side sends the other side gets, each direction for itself.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use t2s_core::socks5::{Address, Reply, ServerHandshake};

use super::{Ended, Side, say, unspecified};
use t2s_sys::epoll::{Epoll, Event, Interest};
use t2s_sys::socket::{self, SocketOption};

/// Reads of one direction in a row before other connections have their turn.
const READS: usize = 4;

/// One end of a relay.
struct End {
    fd: OwnedFd,
    readable: bool,
    writable: bool,
    ended: bool,
}

impl End {
    fn new(fd: OwnedFd) -> Self {
        // Its edges were spent on the handshake: read until it has no more.
        Self { fd, readable: true, writable: true, ended: true }
    }
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// Bytes that were read and not taken; `at` of them were since.
    rest: Vec<u8>,
    at: usize,
    /// The source has ended.
    eof: bool,
    /// The destination was told.
    shut: bool,
}

/// Two streams joined.
pub(super) struct Relay {
    client: End,
    /// `None` until the first target is dialled.
    target: Option<End>,
    /// Present while the client waits for the answer.
    handshake: Option<Box<ServerHandshake>>,
    /// Addresses that were not tried yet, the next one last.
    addresses: Vec<SocketAddr>,
    up: Flow,
    down: Flow,
}

impl Relay {
    /// A relay that will try these addresses in order; `early` came from the client behind its request.
    pub(super) fn connect(
        client: OwnedFd,
        handshake: Box<ServerHandshake>,
        early: Vec<u8>,
        mut addresses: Vec<SocketAddr>,
    ) -> Self {
        addresses.reverse();
        let up = Flow { rest: early, ..Flow::default() };
        Self {
            client: End::new(client),
            target: None,
            handshake: Some(handshake),
            addresses,
            up,
            down: Flow::default(),
        }
    }

    /// Dials the next address.
    pub(super) fn dial(&mut self, epoll: &Epoll, token: u64) -> Result<(), Ended> {
        let mut failure = Reply::HostUnreachable;
        while let Some(address) = self.addresses.pop() {
            let dialled = socket::tcp(address).and_then(|fd| {
                socket::set(&fd, SocketOption::NoDelay, 1)?;
                socket::connect(&fd, address)?;
                epoll.add(&fd, Interest::EDGES, token)?;
                Ok(fd)
            });
            match dialled {
                Ok(fd) => {
                    self.target = Some(End { fd, readable: false, writable: false, ended: false });
                    return Ok(());
                }
                Err(error) => failure = reply_for(&error),
            }
        }
        self.refuse(failure)
    }

    fn refuse(&mut self, reply: Reply) -> Result<(), Ended> {
        if let Some(mut handshake) = self.handshake.take() {
            handshake.reply(reply, &Address::Ip(unspecified()));
            say(&mut handshake, &self.client.fd)?;
        }
        Err(Ended)
    }

    /// Something happened to one of the sockets.
    pub(super) fn note(&mut self, side: Side, event: Event) {
        let end = match side {
            Side::Client => Some(&mut self.client),
            Side::Target | Side::Relay => self.target.as_mut(),
        };
        if let Some(end) = end {
            end.readable |= event.readable();
            end.writable |= event.writable();
            end.ended |= event.ended();
        }
    }

    /// Moves bytes as far as they go now; true when there is more.
    pub(super) fn advance(&mut self, scratch: &mut [u8]) -> Result<bool, Ended> {
        let Some(target) = &mut self.target else { return Ok(false) };
        if let Some(handshake) = &mut self.handshake {
            if let Ok(Some(error)) = socket::take_error(&target.fd) {
                self.refuse(reply_for(&error))?;
                return Err(Ended);
            }
            if !socket::is_connected(&target.fd) {
                return Ok(false);
            }
            let bound = socket::local_address(&target.fd).unwrap_or_else(|_| unspecified());
            handshake.reply(Reply::Succeeded, &Address::Ip(bound));
            say(handshake, &self.client.fd)?;
            self.handshake = None;
            (target.readable, target.writable) = (true, true);
        }
        let up = pump(&mut self.client, target, &mut self.up, scratch)?;
        let down = pump(target, &mut self.client, &mut self.down, scratch)?;
        if self.up.shut && self.down.shut {
            return Err(Ended);
        }
        Ok(up || down)
    }
}

/// Moves bytes of one direction; true when there is more.
fn pump(from: &mut End, to: &mut End, flow: &mut Flow, scratch: &mut [u8]) -> Result<bool, Ended> {
    for _ in 0..READS {
        while flow.at < flow.rest.len() {
            if !to.writable {
                return Ok(false);
            }
            match socket::send(&to.fd, &flow.rest[flow.at..]) {
                Ok(len) => flow.at += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(broken(from)),
            }
        }
        if flow.at > 0 {
            // A stalled direction holds its bytes; a moving one holds no buffer.
            (flow.rest, flow.at) = (Vec::new(), 0);
        }
        if flow.eof {
            if !flow.shut {
                flow.shut = true;
                let _ = socket::shutdown_write(&to.fd);
            }
            return Ok(false);
        }
        if !from.readable {
            return Ok(false);
        }
        let len = match socket::recv(&from.fd, scratch) {
            Ok(0) => {
                flow.eof = true;
                continue;
            }
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                (from.readable, from.ended) = (false, false);
                return Ok(false);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(broken(to)),
        };
        if len < scratch.len() && !from.ended {
            from.readable = false;
        }
        let sent = match socket::send(&to.fd, &scratch[..len]) {
            Ok(sent) => sent,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(_) => return Err(broken(from)),
        };
        if sent < len {
            to.writable = false;
            flow.rest = scratch[sent..len].to_vec();
            flow.at = 0;
            return Ok(false);
        }
    }
    Ok(true)
}

/// One end broke: the other shall see a reset, not an orderly end.
fn broken(other: &End) -> Ended {
    let _ = socket::reset_on_close(&other.fd);
    Ended
}

/// The reply of RFC 1928 for a failed connect.
fn reply_for(error: &io::Error) -> Reply {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Reply::ConnectionRefused,
        Some(libc::ENETUNREACH | libc::ENETDOWN) => Reply::NetworkUnreachable,
        Some(libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ETIMEDOUT) => Reply::HostUnreachable,
        Some(libc::EACCES | libc::EPERM) => Reply::NotAllowed,
        Some(libc::EAFNOSUPPORT) => Reply::AddressTypeNotSupported,
        _ => Reply::GeneralFailure,
    }
}
