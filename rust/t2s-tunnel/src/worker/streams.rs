//! The upstream sockets of TCP flows: dialled, fed from the stack, read into it, and closed.

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use t2s_core::buf::CLASSES;
use t2s_core::stack::{CloseReason, FlowId, Refusal};
use t2s_core::time::Instant;

use super::preconnect::has_crossed;
use super::token::{Kind, Token};
use super::{HEADROOM, Worker, WorkerStats};
use crate::dial::{ConnectError, Connector, Progress, Target};
use crate::log::Level;
use t2s_sys::epoll::{Event, Interest};
use t2s_sys::socket;

/// Slices of one write to an upstream.
const WRITE_SLICES: usize = 32;
/// Writes of one flow in a row before others have their turn.
const WRITES: usize = 4;
/// Reads of one flow in a row before others have their turn: 2 super-segments.
const READS: usize = 2;
/// Reads of one iteration, over all flows.
const READS_PER_TURN: usize = 64;
/// Bytes that are read from upstreams before they are written to the device: what stays in a second-level cache
/// between the kernel's copy into the buffer and its copy out of it.
const BYTES_PER_TURN: u64 = 176 * 1024;
/// A read shorter than this is copied into a buffer of its size: the largest class but one, less headroom.
const RECEIVE_COPY_MAX: usize = CLASSES[CLASSES.len() - 2] - HEADROOM;
/// Payload of a super-segment that all header combinations leave room for, bytes (65,535 less IPv6, TCP and options).
const SUPER_MAX: usize = 65_535 - 100;

/// Where the upstream of a flow stands.
enum Phase {
    /// On the way.
    Dialing {
        attempt: Box<Connector>,
        /// Where to, should the end of a connection that was made ahead cross the request.
        again: Option<Target>,
    },
    /// Bytes flow.
    Open,
}

/// The upstream of one flow.
pub(super) struct Stream {
    flow: FlowId,
    fd: OwnedFd,
    phase: Phase,
    /// A read has not come back short since the last edge.
    readable: bool,
    /// The peer has ended or failed: read until that shows.
    ended: bool,
    /// A write has not come back short since the last edge.
    writable: bool,
    /// Stands in [`Streams::ready`].
    queued: bool,
    /// The stack has no room for bytes of this flow.
    parked: bool,
    /// The client has ended: shut the upstream down behind the last byte.
    finish: bool,
    /// The upstream was shut down for writing.
    shut: bool,
    /// The upstream has ended.
    eof: bool,
    /// When it was dialled, connected, answered and first heard of, nanoseconds of the worker's clock; 0: not yet.
    pub(super) phases: [u64; 4],
    /// The name that it was dialled by.
    domain: Option<Box<str>>,
}

impl Stream {
    /// Bytes of the target came; only the first time counts.
    fn first_byte(&mut self, now: u64, stats: &mut WorkerStats) {
        if self.phases[3] == 0 {
            self.phases[3] = now;
            stats.first_byte_times.record(now.saturating_sub(self.phases[0]));
        }
    }
}

/// All upstreams of a worker, by the index of their flow.
#[derive(Default)]
pub(super) struct Streams {
    slots: Vec<Option<Stream>>,
    /// Flows whose upstream may be read, each once, in turn.
    ready: VecDeque<FlowId>,
    /// Flows with bytes that their writable upstream has not been offered yet.
    pending_writes: VecDeque<FlowId>,
    /// Upstreams that exist.
    live: usize,
}

/// The part of a flow's id that tells it from others with its index.
fn generation(flow: FlowId) -> u32 {
    (flow.to_bits() >> 32) as u32
}

fn token(flow: FlowId) -> Token {
    Token::new(Kind::Stream, flow.index() as u32, generation(flow))
}

impl Streams {
    fn get(&mut self, flow: FlowId) -> Option<&mut Stream> {
        self.slots.get_mut(flow.index())?.as_mut().filter(|stream| stream.flow == flow)
    }

    fn by_token(&mut self, token: Token) -> Option<&mut Stream> {
        let stream = self.slots.get_mut(token.index())?.as_mut()?;
        token.is_generation(generation(stream.flow)).then_some(stream)
    }

    fn insert(&mut self, stream: Stream) {
        let index = stream.flow.index();
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        self.live += 1;
        self.slots[index] = Some(stream);
    }

    fn remove(&mut self, flow: FlowId) -> Option<Stream> {
        self.get(flow)?;
        self.live -= 1;
        self.slots.get_mut(flow.index())?.take()
    }

    fn queue(&mut self, flow: FlowId) {
        if let Some(stream) = self.get(flow)
            && stream.readable
            && !stream.queued
            && !stream.parked
            && !stream.eof
            && matches!(stream.phase, Phase::Open)
        {
            stream.queued = true;
            self.ready.push_back(flow);
        }
    }

    /// Whether an upstream waits to be read.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.pending_writes.is_empty()
    }

    /// Gives memory of a burst back.
    pub(super) fn trim(&mut self) {
        if self.live == 0 {
            self.slots = Vec::new();
        } else {
            while self.slots.last().is_some_and(Option::is_none) {
                self.slots.pop();
            }
            self.slots.shrink_to(self.slots.len() * 2);
        }
        self.ready.shrink_to(64);
    }

    /// The phase times of a flow's upstream.
    pub(super) fn phases(&self, flow: FlowId) -> [u64; 4] {
        let stream = self.slots.get(flow.index()).and_then(Option::as_ref).filter(|stream| stream.flow == flow);
        stream.map_or([0; 4], |stream| stream.phases)
    }

    /// The name that a flow's upstream was dialled by.
    pub(super) fn domain(&self, flow: FlowId) -> Option<String> {
        let stream = self.slots.get(flow.index()).and_then(Option::as_ref).filter(|stream| stream.flow == flow);
        stream?.domain.as_deref().map(Into::into)
    }
}

impl Worker {
    /// A client wants to reach `target`.
    pub(super) fn open_stream(&mut self, flow: FlowId, target: SocketAddr) {
        if self.stop_at.is_some() {
            return self.stack.refused(self.now, flow, Refusal::Refused);
        }
        let target = match self.stream_target(target) {
            Ok(target) => target,
            Err(refusal) => return self.stack.refused(self.now, flow, refusal),
        };
        let (fd, attempt, again) = match self.take_preconnect(&target, token(flow)) {
            Some((fd, attempt)) => (fd, attempt, Some(target.clone())),
            None => match self.dial(&target, token(flow)) {
                Ok((fd, attempt)) => (fd, attempt, None),
                Err(failure) => return self.refuse_stream(flow, &failure),
            },
        };
        self.stats.dials += 1;
        self.streams.insert(Stream {
            flow,
            fd,
            phase: Phase::Dialing { attempt: Box::new(attempt), again },
            readable: false,
            ended: false,
            writable: false,
            queued: false,
            parked: false,
            finish: false,
            shut: false,
            eof: false,
            phases: [self.now.nanos(), 0, 0, 0],
            domain: match target {
                Target::Domain(name, _) => Some(name.into()),
                Target::Ip(_) | Target::Associate => None,
            },
        });
        // A proxy on this host, or behind a virtual link, has often accepted by now: its handshake starts at once.
        self.dial_on(flow);
    }

    /// Starts a connection of its own towards `target`.
    pub(super) fn dial(&mut self, target: &Target, token: Token) -> Result<(OwnedFd, Connector), ConnectError> {
        let (fd, attempt) = Connector::connect(&self.endpoint, self.shared.config.fwmark, target)?;
        self.epoll.add(&fd, Interest::EDGES, token.bits()).map_err(|error| ConnectError::system(&error))?;
        Ok((fd, attempt))
    }

    /// Something happened to an upstream's socket.
    pub(super) fn stream_event(&mut self, token: Token, event: Event) {
        let Some(stream) = self.streams.by_token(token) else { return };
        let flow = stream.flow;
        stream.readable |= event.readable();
        stream.ended |= event.ended();
        let unblocked = event.writable() && !stream.writable;
        stream.writable |= event.writable();
        if matches!(stream.phase, Phase::Dialing { .. }) {
            return self.dial_on(flow);
        }
        self.streams.queue(flow);
        if unblocked {
            self.send_stream(flow);
        }
    }

    /// Takes the handshake as far as it goes now.
    fn dial_on(&mut self, flow: FlowId) {
        let Some(stream) = self.streams.get(flow) else { return };
        let Phase::Dialing { attempt, again } = &mut stream.phase else { return };
        let progress = attempt.advance(stream.fd.as_fd());
        if attempt.is_connected() && stream.phases[1] == 0 {
            stream.phases[1] = self.now.nanos();
            self.stats.connect_times.record(stream.phases[1].saturating_sub(stream.phases[0]));
        }
        match progress {
            Progress::Waiting => {}
            Progress::Failed(failure) => {
                let taken = Instant::from_nanos(stream.phases[0]);
                let again = again.take().filter(|_| has_crossed(attempt, &failure, self.now, taken));
                if let Some(target) = again {
                    return self.dial_again(flow, &target);
                }
                self.streams.remove(flow);
                self.refuse_stream(flow, &failure);
            }
            Progress::Done(done) => {
                stream.phase = Phase::Open;
                stream.writable = true;
                stream.phases[2] = self.now.nanos();
                // Edges that came during the handshake are spent: look again, unless the last read came back short.
                stream.readable = !done.drained || stream.ended;
                let spent = stream.phases[2].saturating_sub(stream.phases[0]);
                self.stats.connected(spent);
                self.stack.connected(self.now, flow);
                if !done.early_data.is_empty() {
                    stream.first_byte(self.now.nanos(), &mut self.stats);
                }
                if !done.early_data.is_empty()
                    && let Some(mut buf) = self.stack.alloc(done.early_data.len(), HEADROOM)
                {
                    buf.append(&done.early_data);
                    self.deliver(flow, buf);
                }
                self.streams.queue(flow);
                self.send_stream(flow);
            }
        }
    }

    /// Dials a flow whose connection, made ahead, has ended as its request was on the way.
    fn dial_again(&mut self, flow: FlowId, target: &Target) {
        self.preconnects.abandon(self.now);
        self.stats.preconnect_retries += 1;
        match self.dial(target, token(flow)) {
            Ok((fd, attempt)) => {
                if let Some(stream) = self.streams.get(flow) {
                    stream.fd = fd;
                    stream.phase = Phase::Dialing { attempt: Box::new(attempt), again: None };
                    (stream.readable, stream.ended, stream.writable) = (false, false, false);
                    stream.phases[1] = 0;
                    self.dial_on(flow);
                }
            }
            Err(failure) => {
                self.streams.remove(flow);
                self.refuse_stream(flow, &failure);
            }
        }
    }

    fn refuse_stream(&mut self, flow: FlowId, failure: &ConnectError) {
        self.stats.refused(failure);
        if failure.is_proxy() {
            self.report_unreachable();
        }
        if self.shared.logger.hears(Level::Debug)
            && let Some((client, target)) = self.stack.ends(flow)
        {
            self.log(Level::Debug, format_args!("tcp {client} to {target}: {failure}"));
        }
        self.stack.refused(self.now, flow, failure.refusal());
    }

    /// Hands bytes of the upstream to the stack.
    fn deliver(&mut self, flow: FlowId, buf: t2s_core::buf::Buf) {
        self.stats.bytes_down += buf.len() as u64;
        if let Err(buf) = self.stack.upstream_data(self.now, flow, buf) {
            self.stack.free(buf);
        }
    }

    /// Writes what the client has sent to the upstream, as much as it takes.
    pub(super) fn send_stream(&mut self, flow: FlowId) {
        let Some(stream) = self.streams.get(flow) else { return };
        if !matches!(stream.phase, Phase::Open) || stream.shut {
            return;
        }
        let mut writes = 0;
        while stream.writable && writes < WRITES {
            writes += 1;
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let (mut count, mut total) = (0, 0);
            for (slot, bytes) in slices.iter_mut().zip(self.stack.readable(flow)) {
                *slot = IoSlice::new(bytes);
                count += 1;
                total += bytes.len();
            }
            if total == 0 {
                break;
            }
            match socket::send_vectored(&stream.fd, &slices[..count]) {
                Ok(sent) => {
                    self.stats.upstream_writes += 1;
                    self.stats.bytes_up += sent as u64;
                    self.stack.consume(self.now, flow, sent);
                    if sent < total {
                        stream.writable = false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.break_stream(flow),
            }
        }
        if stream.writable && self.stack.readable_len(flow) == 0 && stream.finish {
            stream.shut = true;
            // Where both have ended, closing says so too.
            if !stream.eof {
                let _ = socket::shutdown_write(&stream.fd);
            }
            self.forget_if_done(flow);
        } else if stream.writable && self.stack.readable_len(flow) > 0 {
            self.streams.pending_writes.push_back(flow);
        }
    }

    /// The stack has room for a flow again.
    pub(super) fn unpark_stream(&mut self, flow: FlowId) {
        if let Some(stream) = self.streams.get(flow) {
            stream.parked = false;
            self.streams.queue(flow);
        }
    }

    /// The client has ended.
    pub(super) fn finish_stream(&mut self, flow: FlowId) {
        if let Some(stream) = self.streams.get(flow) {
            stream.finish = true;
            self.send_stream(flow);
        }
    }

    /// The flow is gone.
    pub(super) fn close_stream(&mut self, flow: FlowId, reason: CloseReason) {
        if let Some(stream) = self.streams.remove(flow)
            && reason != CloseReason::Finished
        {
            let _ = socket::reset_on_close(&stream.fd);
        }
    }

    /// The upstream broke.
    fn break_stream(&mut self, flow: FlowId) {
        self.stats.upstream_resets += 1;
        self.streams.remove(flow);
        self.stack.upstream_reset(self.now, flow);
    }

    /// Closes a socket that has ended in both directions; the flow may live on to its last acknowledgement.
    fn forget_if_done(&mut self, flow: FlowId) {
        if self.streams.get(flow).is_some_and(|stream| stream.shut && stream.eof) {
            self.streams.remove(flow);
        }
    }

    /// Reads from upstreams that are ready, in turn.
    pub(super) fn receive_streams(&mut self) {
        for _ in 0..self.streams.pending_writes.len() {
            if let Some(flow) = self.streams.pending_writes.pop_front() {
                self.send_stream(flow);
            }
        }
        let (mut reads, enough) = (0, self.stats.bytes_down + BYTES_PER_TURN);
        while reads < READS_PER_TURN && self.stats.bytes_down < enough && !self.starved {
            let Some(flow) = self.streams.ready.pop_front() else { break };
            let Some(stream) = self.streams.get(flow) else { continue };
            stream.queued = false;
            reads += self.receive_stream(flow);
            self.streams.queue(flow);
        }
    }

    /// Reads from one upstream until it has no more, its share is used up, or the stack has no room; answers how many
    /// reads that took.
    fn receive_stream(&mut self, flow: FlowId) -> usize {
        let segment = self.stack.segment_unit(flow).max(1);
        // Whole segments, so that each read leaves as one full super-segment.
        let full = (SUPER_MAX / segment).max(1) * segment;
        for reads in 1..=READS {
            let room = self.stack.room(flow);
            let Some(mut buf) = self.scratch() else { return reads };
            let Some(stream) = self.streams.get(flow) else {
                self.keep(buf);
                return reads;
            };
            if room == 0 {
                stream.parked = true;
                self.keep(buf);
                return reads;
            }
            let want = if room >= full { full } else { room.max(segment) / segment * segment };
            buf.reset(HEADROOM);
            let spare = buf.spare_mut();
            let want = want.min(spare.len());
            match socket::recv(&stream.fd, &mut spare[..want]) {
                Ok(0) => {
                    stream.eof = true;
                    stream.readable = false;
                    self.keep(buf);
                    self.stack.upstream_eof(self.now, flow);
                    self.forget_if_done(flow);
                    return reads;
                }
                Ok(len) => {
                    self.stats.upstream_reads += 1;
                    stream.first_byte(self.now.nanos(), &mut self.stats);
                    // A short read of a stream means that there is no more, unless its end is already known.
                    let drained = len < want && !stream.ended;
                    if drained {
                        stream.readable = false;
                    }
                    buf.grow(len);
                    if len <= RECEIVE_COPY_MAX
                        && let Some(mut small) = self.stack.alloc(len, HEADROOM)
                    {
                        small.append(buf.as_slice());
                        self.keep(std::mem::replace(&mut buf, small));
                    }
                    self.deliver(flow, buf);
                    if drained {
                        return reads;
                    }
                }
                Err(error) => {
                    self.keep(buf);
                    match error.kind() {
                        io::ErrorKind::WouldBlock => stream_dry(self.streams.get(flow)),
                        io::ErrorKind::Interrupted => {}
                        _ => self.break_stream(flow),
                    }
                    return reads;
                }
            }
        }
        READS
    }
}

fn stream_dry(stream: Option<&mut Stream>) {
    if let Some(stream) = stream {
        stream.readable = false;
    }
}
