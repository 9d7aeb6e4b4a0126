//! The upstreams of UDP sessions: one SOCKS5 association, or one socket of this host, for each client source.
//!
//! All destinations of a client share its upstream, and whatever comes back to it goes to the client (full cone,
//! RFC 4787: endpoint-independent mapping and filtering). Datagrams travel in batches, and runs of equal length as one
//! super-datagram where the kernel takes it.

mod replies;

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use t2s_core::buf::Buf;
use t2s_core::time::{Instant, SECONDS};
use t2s_core::udp::SessionId;

use super::Worker;
use super::preconnect::has_crossed;
use super::reply_address::ReplyAddressMap;
use super::token::{Kind, Token};
use crate::config::DnsMode;
use crate::dial::{ConnectError, Connector, Progress, Scheme, Target};
use crate::dns_settings::DNS;
use crate::log::Level;
use t2s_sys::datagram::{self, BATCH, Outgoing};
use t2s_sys::epoll::{Event, Interest};
use t2s_sys::socket::{self, SocketOption};

use replies::Run;

/// Datagrams of a run that goes out as one: the kernel's `UDP_MAX_SEGMENTS` was 64 for long.
const RUN: usize = BATCH;
/// Longest datagram of a run: what fits into the smallest usual path.
const RUN_MAX: usize = 1_400;
/// Payload of a run, bytes: less than the longest datagram.
const RUN_BYTES: usize = 60_000;
/// Time before a session whose association failed asks for another, nanoseconds; its datagrams are refused meanwhile.
const ASK_AGAIN: u64 = SECONDS;
/// Receive buffer of a datagram socket, bytes: some hundred datagrams that came in one burst.
const SOCKET_BUFFER: i32 = 1 << 20;

/// Where the upstream of a session stands.
#[derive(Debug)]
enum Via {
    /// The association is on its way; since when, if over a connection that was made ahead.
    Dialing { attempt: Box<Connector>, taken: Option<Instant> },
    /// Datagrams go to the proxy's relay, behind a header each.
    Relay,
    /// Datagrams go to their targets.
    Direct,
    /// The proxy carries no datagrams.
    Refused,
}

/// The upstream of one session.
#[derive(Debug)]
struct Session {
    id: SessionId,
    via: Via,
    /// Keeps the association alive.
    control: Option<OwnedFd>,
    /// The datagram socket.
    socket: Option<OwnedFd>,
    readable: bool,
    writable: bool,
    /// Stands in [`Datagrams::ready`].
    queued: bool,
    /// The kernel takes runs.
    runs: bool,
    /// When its association failed.
    failed: Option<Instant>,
    /// What the client must see instead of where datagrams really come from.
    aliases: Option<Box<ReplyAddressMap>>,
}

/// All upstreams of UDP sessions of a worker.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    slots: Vec<Option<Session>>,
    ready: VecDeque<SessionId>,
    /// Large buffers for batched reads.
    rooms: Vec<Buf>,
    /// The batch that is being written.
    batch: Vec<(SocketAddr, Buf)>,
    /// Datagrams of one session that are being joined, within one iteration.
    run: Option<Run>,
}

fn index(id: SessionId) -> usize {
    id.to_u64() as u32 as usize
}

fn generation(id: SessionId) -> u32 {
    (id.to_u64() >> 32) as u32
}

impl Datagrams {
    fn get(&mut self, id: SessionId) -> Option<&mut Session> {
        self.slots.get_mut(index(id))?.as_mut().filter(|session| session.id == id)
    }

    fn by_token(&mut self, token: Token) -> Option<&mut Session> {
        let session = self.slots.get_mut(token.index())?.as_mut()?;
        token.is_generation(generation(session.id)).then_some(session)
    }

    fn insert(&mut self, session: Session) {
        let index = index(session.id);
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(session);
    }

    /// What a session's client must see instead of where datagrams really come from; made if there is nothing yet.
    pub(super) fn aliases(&mut self, id: SessionId) -> Option<&mut ReplyAddressMap> {
        Some(self.get(id)?.aliases.get_or_insert_default())
    }

    /// The same, if there is something.
    pub(super) fn known_aliases(&mut self, id: SessionId) -> Option<&mut ReplyAddressMap> {
        self.get(id)?.aliases.as_deref_mut()
    }

    /// The name that a session knows a fake address by.
    pub(super) fn name_of(&self, id: SessionId, fake: SocketAddr) -> Option<String> {
        let session = self.slots.get(index(id))?.as_ref().filter(|session| session.id == id)?;
        session.aliases.as_deref()?.name_of(fake).map(Into::into)
    }

    fn queue(&mut self, id: SessionId) {
        if let Some(session) = self.get(id)
            && session.readable
            && !session.queued
            && session.socket.is_some()
        {
            session.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Whether a session waits to be read.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Gives the buffers of a burst back.
    pub(super) fn drain_rooms(&mut self) -> impl Iterator<Item = Buf> + '_ {
        while self.slots.last().is_some_and(Option::is_none) {
            self.slots.pop();
        }
        self.slots.shrink_to(self.slots.len() * 2);
        self.rooms.drain(..)
    }
}

fn control_token(id: SessionId) -> Token {
    Token::new(Kind::Control, index(id) as u32, generation(id))
}

impl Worker {
    /// A client has sent its first datagram.
    pub(super) fn open_session(&mut self, id: SessionId, client: SocketAddr) {
        let mut session = Session {
            id,
            via: Via::Refused,
            control: None,
            socket: None,
            readable: false,
            writable: true,
            queued: false,
            runs: true,
            failed: None,
            aliases: None,
        };
        if self.endpoint.scheme == Scheme::Direct {
            session.via = Via::Direct;
            let any: IpAddr =
                if client.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            match self.datagram_socket(id, SocketAddr::new(any, 0), None) {
                Ok(socket) => session.socket = Some(socket),
                Err(error) => {
                    session.via = Via::Refused;
                    self.log(Level::Debug, format_args!("udp {client}: {error}"));
                }
            }
        }
        // Everything else is decided by the first datagram, which may be a DNS query that needs no association.
        self.datagrams.insert(session);
    }

    /// A registered datagram socket: bound to `local`, or connected to `relay`.
    fn datagram_socket(&self, id: SessionId, local: SocketAddr, relay: Option<SocketAddr>) -> io::Result<OwnedFd> {
        let fd = socket::udp(relay.unwrap_or(local))?;
        if let Some(fwmark) = self.shared.config.fwmark {
            socket::set(&fd, SocketOption::Mark, fwmark as i32)?;
        }
        let _ = socket::set(&fd, SocketOption::ReceiveBuffer, SOCKET_BUFFER);
        let _ = socket::set(&fd, SocketOption::SendBuffer, SOCKET_BUFFER);
        // An old kernel hands over datagrams one by one.
        let _ = socket::set(&fd, SocketOption::UdpGro, 1);
        match relay {
            Some(relay) => socket::connect(&fd, relay).map(|_| ())?,
            None => socket::bind(&fd, local)?,
        }
        let token = Token::new(Kind::Relay, index(id) as u32, generation(id));
        self.epoll.add(&fd, Interest::EDGES, token.bits())?;
        Ok(fd)
    }

    /// Starts an association for a session that has none.
    fn associate(&mut self, id: SessionId) {
        match self.take_preconnect(&Target::Associate, control_token(id)) {
            Some((fd, attempt)) => self.associate_over(id, fd, attempt, Some(self.now)),
            None => self.associate_anew(id),
        }
    }

    fn associate_anew(&mut self, id: SessionId) {
        match self.dial(&Target::Associate, control_token(id)) {
            Ok((fd, attempt)) => self.associate_over(id, fd, attempt, None),
            Err(failure) => self.refuse_session(id, &failure),
        }
    }

    fn associate_over(&mut self, id: SessionId, fd: OwnedFd, attempt: Connector, taken: Option<Instant>) {
        let Some(session) = self.datagrams.get(id) else { return };
        session.control = Some(fd);
        session.via = Via::Dialing { attempt: Box::new(attempt), taken };
        self.associate_on(id);
    }

    /// Takes the association's handshake as far as it goes now.
    fn associate_on(&mut self, id: SessionId) {
        let Some(session) = self.datagrams.get(id) else { return };
        let (Via::Dialing { attempt, taken }, Some(control)) = (&mut session.via, &session.control) else { return };
        match attempt.advance(control) {
            Progress::Waiting => {}
            Progress::Failed(failure) if taken.is_some_and(|at| has_crossed(attempt, &failure, self.now, at)) => {
                self.preconnects.abandon(self.now);
                self.stats.preconnect_retries += 1;
                self.associate_anew(id);
            }
            Progress::Failed(failure) => self.refuse_session(id, &failure),
            Progress::Done(done) => {
                let Some(relay) = done.bound else {
                    return self
                        .refuse_session(id, &ConnectError::Protocol("an association without an address".into()));
                };
                match self.datagram_socket(id, relay, Some(relay)) {
                    Ok(socket) => {
                        let Some(session) = self.datagrams.get(id) else { return };
                        session.socket = Some(socket);
                        session.via = Via::Relay;
                        self.send_datagrams(id);
                    }
                    Err(error) => self.refuse_session(id, &ConnectError::system(&error)),
                }
            }
        }
    }

    /// The upstream carries no datagrams of this session.
    fn refuse_session(&mut self, id: SessionId, failure: &ConnectError) {
        self.stats.refused(failure);
        if failure.is_proxy() {
            self.report_unreachable();
        }
        if let ConnectError::Reply(7) = failure {
            self.shared.endpoint.update(|endpoint| endpoint.udp = Some(false));
            self.shared.endpoint.refresh(&mut self.endpoint_version, &mut self.endpoint);
        }
        if !self.shared.udp_refusal_told.swap(true, Ordering::Relaxed) {
            self.log(
                Level::Warn,
                format_args!("no UDP through the proxy ({failure}): DNS goes over TCP, other datagrams are refused"),
            );
        }
        if let Some(session) = self.datagrams.get(id) {
            session.via = Via::Refused;
            session.failed = Some(self.now);
            session.control = None;
            session.socket = None;
        }
        self.send_datagrams(id);
    }

    /// Something happened to the connection that keeps an association alive.
    pub(super) fn control_event(&mut self, token: Token, event: Event) {
        let Some(session) = self.datagrams.by_token(token) else { return };
        let id = session.id;
        if matches!(session.via, Via::Dialing { .. }) {
            return self.associate_on(id);
        }
        if event.ended() {
            // RFC 1928, section 6: the association ends with the connection. The next datagram makes a new one.
            self.stack.close_session(id);
        }
    }

    /// Something happened to a datagram socket.
    pub(super) fn relay_event(&mut self, token: Token, event: Event) {
        let Some(session) = self.datagrams.by_token(token) else { return };
        let id = session.id;
        session.readable |= event.readable();
        let unblocked = event.writable() && !session.writable;
        session.writable |= event.writable();
        self.datagrams.queue(id);
        if unblocked {
            self.send_datagrams(id);
        }
    }

    /// Writes the datagrams that wait in a session, as many as the socket takes.
    pub(super) fn send_datagrams(&mut self, id: SessionId) {
        loop {
            let Some(session) = self.datagrams.get(id) else { return };
            match session.via {
                Via::Dialing { .. } => return,
                Via::Relay | Via::Direct if !session.writable => return,
                Via::Relay | Via::Direct | Via::Refused => {}
            }
            // A session whose upstream nobody has asked for yet: the first datagram says whether it needs one.
            let undecided = matches!(session.via, Via::Refused)
                && session.failed.is_none_or(|at| self.now.since(at) >= ASK_AGAIN)
                && self.endpoint.scheme == Scheme::Socks5
                && self.endpoint.udp != Some(false);
            let relayed = matches!(session.via, Via::Relay);
            let refused = matches!(session.via, Via::Refused);
            let over_tcp = self.shared.config.dns == DnsMode::OverTcp || (refused && !undecided);
            let mut batch = std::mem::take(&mut self.datagrams.batch);
            let mut more = false;
            while let Some((target, payload)) = self.stack.pop_datagram(id) {
                if target.port() == DNS && self.ends_here(target, over_tcp) {
                    self.take_query(id, target, payload);
                } else if undecided {
                    self.stack.unpop_datagram(id, target, payload);
                    self.datagrams.batch = batch;
                    return self.associate(id);
                } else if refused {
                    self.stack.free(payload);
                    self.stack.udp_unreachable(self.now, id, target);
                } else {
                    let Some(addressed) = self.address(id, target, payload, relayed) else { continue };
                    batch.push(addressed);
                    if batch.len() == BATCH {
                        more = true;
                        break;
                    }
                }
            }
            self.write_batch(id, &mut batch, relayed);
            self.datagrams.batch = batch;
            if !more {
                return;
            }
        }
    }

    /// Writes a batch; what the socket does not take is lost, as in any full queue on the way, except that the session
    /// waits before it offers more.
    fn write_batch(&mut self, id: SessionId, batch: &mut Vec<(SocketAddr, Buf)>, relayed: bool) {
        let mut offset = 0;
        while offset < batch.len() {
            let Some(session) = self.datagrams.get(id) else { break };
            let Some(socket) = &session.socket else { break };
            let rest = &batch[offset..];
            let mut slices = [IoSlice::new(&[]); BATCH];
            for (slot, (_, payload)) in slices.iter_mut().zip(rest) {
                *slot = IoSlice::new(payload.as_slice());
            }
            let mut messages = [const { Outgoing { to: None, slices: &[], segment: 0 } }; BATCH];
            // How many datagrams stand in each message.
            let (mut runs, mut count, mut at) = ([0_usize; BATCH], 0, 0);
            while at < rest.len().min(BATCH) {
                let len = if session.runs { run_len(&rest[at..], relayed) } else { 1 };
                messages[count] = Outgoing {
                    to: (!relayed).then(|| rest[at].0.into()),
                    slices: &slices[at..at + len],
                    segment: if len > 1 { rest[at].1.len() as u16 } else { 0 },
                };
                runs[count] = len;
                at += len;
                count += 1;
            }
            self.stats.datagram_calls += 1;
            match datagram::send(socket, &messages[..count]) {
                Ok(sent) => {
                    let datagrams: usize = runs[..sent].iter().sum();
                    self.stats.datagrams_up += datagrams as u64;
                    offset += datagrams;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => {
                        session.writable = false;
                        break;
                    }
                    Some(libc::EINTR) => {}
                    // A device without segmentation, or a path with a smaller MTU: one by one from now on.
                    Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE | libc::EOPNOTSUPP) if runs[0] > 1 => {
                        session.runs = false;
                    }
                    // Of this datagram alone (too long, unreachable), or of one before it (ICMP): the rest goes on.
                    _ => {
                        self.stats.datagrams_lost += 1;
                        offset += runs[0].max(1);
                    }
                },
            }
        }
        self.stats.datagrams_lost += (batch.len() - offset.min(batch.len())) as u64;
        for (_, payload) in batch.drain(..) {
            self.stack.free(payload);
        }
    }

    /// The session is gone.
    pub(super) fn close_session(&mut self, id: SessionId) {
        if self.datagrams.get(id).is_some() {
            self.datagrams.slots[index(id)] = None;
        }
    }
}

/// How many datagrams at the front of `rest` go out as one: all of one length, the last one maybe shorter, to one
/// address.
fn run_len(rest: &[(SocketAddr, Buf)], relayed: bool) -> usize {
    let Some(((to, first), others)) = rest.split_first() else { return 0 };
    let len = first.len();
    if len == 0 || len > RUN_MAX {
        return 1;
    }
    let most = (RUN_BYTES / len).min(RUN) - 1;
    let mut count = 1;
    for (target, next) in others.iter().take(most) {
        if next.is_empty() || next.len() > len || !(relayed || target == to) {
            break;
        }
        count += 1;
        if next.len() < len {
            break;
        }
    }
    count
}
