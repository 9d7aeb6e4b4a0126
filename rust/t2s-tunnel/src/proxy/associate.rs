//! UDP ASSOCIATE (RFC 1928, section 7): datagrams of one client, with a header each, to anywhere and back.

use std::io;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use t2s_core::socks5::udp_header::{self, HEADER_MAX};
use t2s_core::socks5::{Address, AddressRef, Reply, ServerHandshake};

use super::resolve::Names;
use super::{Ended, Side, say};
use t2s_sys::address::Address as RawAddress;
use t2s_sys::clock::monotonic_nanos;
use t2s_sys::datagram::{self, Incoming, Outgoing};
use t2s_sys::epoll::{Epoll, Event, Interest};
use t2s_sys::socket::{self, SocketOption};

/// Datagrams of one batch.
const BATCH: usize = 16;
/// Room for a datagram of any length.
const ROOM: usize = 65_536;
/// Batches of one direction in a row before other connections have their turn.
const READS: usize = 8;
/// Longest datagram that is sent as part of a run: one packet of Ethernet's MTU over IPv6.
const SEGMENT_MAX: usize = 1_500 - 48;
/// Socket buffers, bytes.
const SOCKET_BUFFER: i32 = 1 << 20;

/// The association of one client.
pub(super) struct Association {
    control: OwnedFd,
    control_ended: bool,
    /// Towards the client.
    relay: OwnedFd,
    relay_ready: bool,
    /// Towards targets, IPv4 and IPv6; a family that this host lacks has none.
    targets: [Option<OwnedFd>; 2],
    targets_ready: bool,
    /// Only this host may use the association.
    host: IpAddr,
    /// The client's datagram socket, once it has been heard.
    client: Option<SocketAddr>,
    /// Batches of rooms, made with the first datagram.
    rooms: Vec<Vec<u8>>,
    names: Names,
}

impl Association {
    /// Opens an association and answers the client.
    pub(super) fn open(control: OwnedFd, mut handshake: Box<ServerHandshake>) -> io::Result<Self> {
        let local = socket::local_address(&control)?;
        let host = socket::peer_address(&control)?.ip();
        let relay = socket::udp(local)?;
        socket::bind(&relay, SocketAddr::new(local.ip(), 0))?;
        let target = |any: IpAddr| {
            let fd = socket::udp(SocketAddr::new(any, 0)).ok()?;
            socket::bind(&fd, SocketAddr::new(any, 0)).ok()?;
            Some(fd)
        };
        let targets = [target(Ipv4Addr::UNSPECIFIED.into()), target(Ipv6Addr::UNSPECIFIED.into())];
        for fd in targets.iter().flatten().chain([&relay]) {
            let _ = socket::set(fd, SocketOption::ReceiveBuffer, SOCKET_BUFFER);
            let _ = socket::set(fd, SocketOption::SendBuffer, SOCKET_BUFFER);
        }
        let bound = socket::local_address(&relay)?;
        handshake.reply(Reply::Succeeded, &Address::Ip(bound));
        say(&mut handshake, &control).map_err(|Ended| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(Self {
            control,
            control_ended: false,
            relay,
            relay_ready: true,
            targets,
            targets_ready: false,
            host,
            client: None,
            rooms: Vec::new(),
            names: Names::default(),
        })
    }

    /// Registers the datagram sockets; the control connection is registered already.
    pub(super) fn register(&self, epoll: &Epoll, token: impl Fn(Side) -> u64) -> io::Result<()> {
        epoll.add(&self.relay, Interest::EDGE_IN, token(Side::Relay))?;
        for fd in self.targets.iter().flatten() {
            epoll.add(fd, Interest::EDGE_IN, token(Side::Target))?;
        }
        Ok(())
    }

    /// Something happened to one of the sockets.
    pub(super) fn note(&mut self, side: Side, event: Event) {
        match side {
            Side::Client => self.control_ended |= event.ended(),
            Side::Target => self.targets_ready = true,
            Side::Relay => self.relay_ready = true,
        }
    }

    /// Moves datagrams as far as they go now; true when there is more.
    pub(super) fn advance(&mut self) -> Result<bool, Ended> {
        if self.control_ended {
            let mut byte = [0];
            // The association lives as long as its connection; what a client sends over it has no meaning.
            match socket::recv(&self.control, &mut byte) {
                Ok(len) if len > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.control_ended = false,
                Ok(_) | Err(_) => return Err(Ended),
            }
        }
        if self.rooms.is_empty() && (self.relay_ready || self.targets_ready) {
            self.rooms = vec![vec![0; ROOM + HEADER_MAX]; BATCH];
        }
        if self.relay_ready {
            self.relay_ready = self.relay_out();
        }
        if self.targets_ready {
            let mut more = false;
            for index in 0..self.targets.len() {
                more |= self.relay_back(index);
            }
            self.targets_ready = more;
        }
        Ok(self.relay_ready || self.targets_ready)
    }

    /// Names that are to be resolved now.
    pub(super) fn take_wanted(&mut self) -> Vec<String> {
        self.names.take_wanted()
    }

    /// A name was resolved, to no address at worst: what has waited for it goes.
    pub(super) fn resolved(&mut self, name: &str, addresses: &[SocketAddr]) {
        let targets = &self.targets;
        let usable = |address: &&SocketAddr| targets[usize::from(address.is_ipv6())].is_some();
        let address = addresses.iter().find(usable).map(SocketAddr::ip);
        for (port, payload) in self.names.resolved(monotonic_nanos(), name, address) {
            let Some(address) = address else { continue };
            let Some(socket) = &targets[usize::from(address.is_ipv6())] else { continue };
            let to = Some(RawAddress::from(SocketAddr::new(address, port)));
            send_all(socket, &[Outgoing { to, slices: &[IoSlice::new(&payload)], segment: 0 }]);
        }
    }

    /// Sends the client's datagrams to their targets; true when there may be more.
    fn relay_out(&mut self) -> bool {
        let Self { relay, targets, host, client, rooms, names, .. } = self;
        for _ in 0..READS {
            let mut told = [(0, None); BATCH];
            let Some(count) = receive(relay, rooms, 0, &mut told) else { return false };
            let mut slices = [[[IoSlice::new(&[])]; BATCH]; 2];
            let mut to = [[None; BATCH]; 2];
            let mut waiting = [0; 2];
            for (room, &(len, from)) in rooms.iter().zip(&told[..count]) {
                let Some(from) = from.filter(|from: &SocketAddr| from.ip() == *host) else { continue };
                let Ok((target, header)) = udp_header::decode(&room[..len]) else { continue };
                *client = Some(from);
                let target = match target {
                    AddressRef::Ip(target) => Some(target),
                    AddressRef::Domain(name, port) => names.endpoint(monotonic_nanos(), name, port, &room[header..len]),
                };
                let Some(target) = target else { continue };
                let family = usize::from(target.is_ipv6());
                let place = waiting[family];
                slices[family][place] = [IoSlice::new(&room[header..len])];
                to[family][place] = Some(target);
                waiting[family] += 1;
            }
            for (family, socket) in targets.iter().enumerate() {
                if let Some(socket) = socket {
                    send_runs(socket, &to[family], &slices[family][..waiting[family]]);
                }
            }
            if count < BATCH {
                return false;
            }
        }
        true
    }

    /// Sends what targets answer to the client; true when there may be more.
    fn relay_back(&mut self, index: usize) -> bool {
        let Self { relay, targets, client, rooms, .. } = self;
        let Some(socket) = &targets[index] else { return false };
        for _ in 0..READS {
            let mut told = [(0, None); BATCH];
            let Some(count) = receive(socket, rooms, HEADER_MAX, &mut told) else { return false };
            let Some(client) = *client else { continue };
            let mut headers = [[0; HEADER_MAX]; BATCH];
            let mut slices = [[IoSlice::new(&[]), IoSlice::new(&[])]; BATCH];
            let mut whole = 0;
            for ((header, room), &(len, from)) in headers.iter_mut().zip(rooms.iter()).zip(&told[..count]) {
                let Some(from) = from else { continue };
                let _ = udp_header::emit(from, header);
                let header = &header[..udp_header::header_len(from)];
                slices[whole] = [IoSlice::new(header), IoSlice::new(&room[HEADER_MAX..HEADER_MAX + len])];
                whole += 1;
            }
            send_runs(relay, &[Some(client); BATCH], &slices[..whole]);
            if count < BATCH {
                return false;
            }
        }
        true
    }
}

/// One batched read, each datagram `offset` bytes into its room; `None` when there was none.
fn receive(
    socket: &OwnedFd,
    rooms: &mut [Vec<u8>],
    offset: usize,
    told: &mut [(usize, Option<SocketAddr>); BATCH],
) -> Option<usize> {
    let mut messages: Vec<Incoming<'_>> =
        rooms.iter_mut().map(|room| Incoming::new(&mut room[offset..offset + ROOM])).collect();
    let count = loop {
        match datagram::receive(socket, &mut messages) {
            Ok(count) => break count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            // An ICMP error about an earlier datagram.
            Err(_) => {}
        }
    };
    for (told, message) in told.iter_mut().zip(&messages[..count]) {
        let whole = if message.truncated { None } else { message.from.socket_addr() };
        *told = (message.len, whole);
    }
    Some(count)
}

/// Sends datagrams, each in `N` slices, to their addresses: runs of one length to one address as one message, which the
/// kernel or the device cuts.
fn send_runs<const N: usize>(socket: &OwnedFd, to: &[Option<SocketAddr>], mut datagrams: &[[IoSlice<'_>; N]]) {
    let mut to = &to[..datagrams.len()];
    let message = |to: Option<SocketAddr>, slices, segment| Outgoing { to: to.map(RawAddress::from), slices, segment };
    while !datagrams.is_empty() {
        let mut messages = Vec::with_capacity(datagrams.len());
        let mut ends = Vec::with_capacity(datagrams.len());
        let mut at = 0;
        while at < datagrams.len() {
            let (run, segment) = run_len(&to[at..], &datagrams[at..]);
            messages.push(message(to[at], datagrams[at..at + run].as_flattened(), segment));
            at += run;
            ends.push(at);
        }
        let done = match datagram::send(socket, &messages) {
            Ok(sent) => ends[sent.clamp(1, ends.len()) - 1],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {
                // One that cannot go, or a way without segmentation.
                for (slices, &to) in datagrams[..ends[0]].iter().zip(to).filter(|_| ends[0] > 1) {
                    send_all(socket, &[message(to, slices, 0)]);
                }
                ends[0]
            }
        };
        (to, datagrams) = (&to[done..], &datagrams[done..]);
    }
}

/// How many datagrams at the front go as one message, and the length that it is cut to; 0 for a single one.
fn run_len<const N: usize>(to: &[Option<SocketAddr>], datagrams: &[[IoSlice<'_>; N]]) -> (usize, u16) {
    let size = |datagram: &[IoSlice<'_>; N]| datagram.iter().map(|slice| slice.len()).sum::<usize>();
    let Some(first) = datagrams.first().map(size).filter(|len| (1..=SEGMENT_MAX).contains(len)) else { return (1, 0) };
    let alike =
        |(other, datagram): &(&Option<SocketAddr>, &[IoSlice<'_>; N])| **other == to[0] && size(datagram) == first;
    let count = to.iter().zip(datagrams).take_while(alike).count();
    (count, if count > 1 { first as u16 } else { 0 })
}

/// Sends a batch; what does not go is lost, as datagrams are.
fn send_all(socket: &OwnedFd, mut batch: &[Outgoing<'_>]) {
    while !batch.is_empty() {
        match datagram::send(socket, batch) {
            Ok(sent) => batch = &batch[sent.clamp(1, batch.len())..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => batch = &batch[1..],
        }
    }
}
