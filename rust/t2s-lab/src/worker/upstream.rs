//! The simulated upstream of one worker: what sockets and a proxy would be, driven by the stack's requests.
//!
//! Which behaviour a flow meets follows from its target address. Sinks and echoes take all at once; a limited upstream
//! has a socket buffer of `buffer_bytes` that drains at `bandwidth_mbit` (TCP only), and what does not fit stays in the
//! core until there is room (`upstream_wait`). Delays sit in a heap of the worker's own thread. Every byte is compared
//! with what its client sent, where it is taken. That is timed ([`Checking`]), and the worker charges it to nobody.
//! Promises: bounded memory (a flow's
//! delayed bytes by its buffer, datagrams by [`DELAYED_DATAGRAMS`]); after [`Upstreams::release_all`] nothing is held.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;

use t2s_core::buf::Buf;
use t2s_core::stack::{CloseReason, FlowId, Refusal, Request, Stack};
use t2s_core::time::Instant;
use t2s_core::udp::SessionId;

use crate::generator::address::{component_of, key_of};
use crate::generator::component::part;
use crate::generator::datagrams::{is_good_query, read_query};
use crate::generator::packets::{PERIOD, Pattern};
use crate::measure::clock::{self, now_ns};
use crate::measure::recorder::Recorder;
use crate::spec::{Component, PhaseSpec, Upstream, UpstreamMode};
use crate::truth::{Damage, SequenceCounts, SequenceTracker, StreamTotals, datagram, stream};

/// Room for headers in front of payload that goes to the client: IPv6 and TCP with options, or the stack's 48 for UDP.
const HEADROOM: usize = 128;

/// Comparing so many bytes or more at once is timed each time. Fewer take less than the two readings of the clock, so
/// that one in [`TIMED_EVERY`] is.
const TIMED_FROM: usize = 512;
const TIMED_EVERY: u32 = 64;

/// Bytes moved at once between a flow and its upstream: the largest buffer class less headroom, rounded down.
const CHUNK: usize = 65_536;

/// Socket buffer of an upstream that names none, bytes.
const DEFAULT_BUFFER: u32 = 65_536;

/// Delayed datagrams of one worker; beyond, they are lost as in any queue.
const DELAYED_DATAGRAMS: usize = 8_192;

/// A behaviour, with what is derived from it.
struct Behaviour {
    upstream: Upstream,
    dns: bool,
    /// The payload of this component follows the pattern.
    patterned: bool,
    /// Names that queries are about.
    names: u32,
    /// Bytes of a request.
    request: u32,
    /// From when until when it is away.
    outage: (u64, u64),
    /// Bytes a nanosecond; 0 = no limit.
    rate: f64,
    buffer: u32,
}

/// One TCP connection of the upstream.
#[derive(Default)]
struct Conn {
    flow: Option<FlowId>,
    /// The flow's number, [`key_of`].
    key: u64,
    /// By how much what was taken is shifted against what should have been.
    shift: i16,
    behaviour: usize,
    connecting: bool,
    /// Bytes taken from the client.
    taken: u64,
    /// Bytes given to the client, queued by delay or not.
    given: u64,
    /// Bytes in the simulated socket buffer, at `level_at`.
    level: f64,
    level_at: u64,
    /// Bytes of a reply still to be given.
    to_give: u64,
    /// Bytes that wait in the heap for their delay.
    delayed: u32,
    replied: bool,
    finish_wanted: bool,
    finished: bool,
    /// A byte that waits in the core: its place in the stream, and since when; 0 = none is followed.
    waiting_byte: u64,
    waiting_since: u64,
    resume_armed: bool,
}

enum Event {
    Connect(FlowId),
    Resume(FlowId),
    Reply(FlowId, Buf),
    Datagram(SessionId, SocketAddr, Buf),
    /// The upstream with this behaviour goes away.
    Outage(usize),
}

/// A heap entry, ordered by time and then by age.
struct Due {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// What arrived upstream, and what the upstream sent, over the whole phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Bytes that ended flows have brought.
    pub up: StreamTotals,
    /// Bytes that were given to ended flows.
    pub down: StreamTotals,
    /// Bytes taken that their clients have not sent there.
    pub damage: Damage,
    /// Datagrams that were given to clients.
    pub replies: u64,
}

/// Time spent comparing what arrived, so that it is not taken for the core's.
pub struct Checking {
    on: bool,
    /// All of it, nanoseconds.
    pub ns: u64,
    /// Comparisons of few bytes until the next one that is timed, and what the last ones took, nanoseconds.
    countdown: u32,
    mean: u64,
    /// What two readings of the clock find between them.
    clock: u64,
}

impl Checking {
    fn new(on: bool) -> Self {
        let clock = if on { clock::cost_ns() as u64 } else { 0 };
        Self { on, ns: 0, countdown: TIMED_EVERY, mean: 0, clock }
    }

    /// So many bytes are compared from here on; when that began, if it is timed.
    #[inline]
    fn begin(&mut self, len: usize) -> Option<u64> {
        self.countdown -= u32::from(len < TIMED_FROM);
        (self.on && (len >= TIMED_FROM || self.countdown == 0)).then(now_ns)
    }

    #[inline]
    fn end(&mut self, len: usize, began: Option<u64>) {
        let took = began.map(|began| now_ns().saturating_sub(began));
        if len >= TIMED_FROM {
            // The second reading is part of what was lost with it.
            self.ns += took.map_or(0, |took| took + self.clock);
        } else {
            self.ns += self.mean;
            if self.countdown == 0 {
                self.countdown = TIMED_EVERY;
                // A stall within says nothing of the others.
                let took = took.unwrap_or(0).saturating_sub(self.clock).min(4 * self.mean + 100);
                self.mean = (7 * self.mean + took).div_ceil(8);
            }
        }
    }
}

/// All upstreams of one worker.
pub struct Upstreams {
    behaviours: Vec<Behaviour>,
    conns: Vec<Conn>,
    heap: BinaryHeap<Reverse<Due>>,
    order: u64,
    pattern: Pattern,
    delayed_datagrams: usize,
    draining: bool,
    /// The window is open.
    pub measuring: bool,
    /// The time of comparing.
    pub checking: Checking,
    /// Datagrams of each component.
    trackers: Vec<Option<SequenceTracker>>,
    /// What came of the truth.
    pub arrivals: Arrivals,
    /// How long bytes waited in the core for this upstream.
    pub wait: Recorder,
    /// Whether any component can make bytes wait.
    pub can_block: bool,
    /// Payload bytes of valid traffic that were taken.
    pub accepted: u64,
    /// Slices and datagrams taken that were not what the client sent there.
    pub corrupt: u64,
    /// Datagrams lost in the upstream's own delay queue.
    pub overrun: u64,
}

impl Upstreams {
    /// The upstreams of worker number `worker`; `timed` keeps the time of comparing.
    pub fn new(spec: &PhaseSpec, worker: usize, timed: bool) -> Self {
        let components = &spec.components;
        let behaviours: Vec<Behaviour> = components.iter().map(Behaviour::new).collect();
        let tracker = |component: &Component| match component {
            Component::Udp(c) => Some(SequenceTracker::new(part(c.flows, worker as u32, spec.workers))),
            Component::Dns(_) => Some(SequenceTracker::new(0)),
            _ => None,
        };
        Self {
            can_block: components.iter().any(|component| component.upstream().limits_the_sender()),
            behaviours,
            conns: Vec::new(),
            heap: BinaryHeap::new(),
            order: 0,
            pattern: Pattern::new(),
            delayed_datagrams: 0,
            draining: false,
            measuring: false,
            checking: Checking::new(timed),
            trackers: components.iter().map(tracker).collect(),
            arrivals: Arrivals::default(),
            wait: Recorder::new(),
            accepted: 0,
            corrupt: 0,
            overrun: 0,
        }
    }

    /// What all numbered datagrams came to.
    pub fn datagrams_received(&self) -> SequenceCounts {
        let mut all = SequenceCounts::default();
        self.trackers.iter().flatten().for_each(|tracker| all.merge(&tracker.counts));
        all
    }

    /// When the next delay ends, nanoseconds.
    #[inline]
    pub fn next_due(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(due)| due.at)
    }

    /// Does what the stack asks for.
    #[inline]
    pub fn handle(&mut self, now: u64, stack: &mut Stack, request: Request) {
        match request {
            Request::Connect { flow, client, target } => self.connect(now, stack, flow, client, target),
            Request::Readable(flow) | Request::Writable(flow) => self.advance(now, stack, flow),
            Request::Finish(flow) => {
                if let Some(conn) = self.conn(flow) {
                    conn.finish_wanted = true;
                    self.advance(now, stack, flow);
                }
            }
            Request::Closed(flow, reason) => self.closed(flow, reason),
            Request::UdpOpen { .. } | Request::UdpClosed(_) => {}
            Request::Datagrams(session) => self.datagrams(now, stack, session),
        }
    }

    /// Runs the delays that have ended; true when there were any.
    pub fn run(&mut self, now: u64, stack: &mut Stack) -> bool {
        let mut any = false;
        while let Some(Reverse(due)) = self.heap.peek() {
            if due.at > now && !self.draining {
                break;
            }
            let Some(Reverse(due)) = self.heap.pop() else { break };
            any = true;
            self.fire(now, stack, due.event);
        }
        any
    }

    /// The measured window begins.
    pub fn begin(&mut self, now: u64) {
        self.measuring = true;
        for at in 0..self.behaviours.len() {
            let Upstream { outage_after_ms, outage_ms, .. } = self.behaviours[at].upstream;
            if outage_ms > 0 {
                let begin = now + outage_after_ms * 1_000_000;
                self.behaviours[at].outage = (begin, begin + outage_ms * 1_000_000);
                self.schedule(begin, Event::Outage(at));
            }
        }
    }

    /// Lifts all limits: delays end now, silent connects are answered, blocked flows go on.
    pub fn release_all(&mut self, now: u64, stack: &mut Stack) {
        self.draining = true;
        self.behaviours.iter_mut().for_each(|behaviour| behaviour.outage = (u64::MAX, u64::MAX));
        self.run(now, stack);
        for at in 0..self.conns.len() {
            let Some(flow) = self.conns[at].flow else { continue };
            if self.conns[at].connecting {
                self.answer_connect(now, stack, flow);
            } else {
                self.advance(now, stack, flow);
            }
        }
    }

    fn conn(&mut self, flow: FlowId) -> Option<&mut Conn> {
        self.conns.get_mut(flow.index()).filter(|conn| conn.flow == Some(flow))
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.heap.push(Reverse(Due { at, order: self.order, event }));
    }

    fn fire(&mut self, now: u64, stack: &mut Stack, event: Event) {
        match event {
            Event::Connect(flow) => self.answer_connect(now, stack, flow),
            Event::Resume(flow) => {
                if let Some(conn) = self.conn(flow) {
                    conn.resume_armed = false;
                    self.advance(now, stack, flow);
                }
            }
            Event::Reply(flow, buf) => {
                if let Some(conn) = self.conn(flow) {
                    conn.delayed = conn.delayed.saturating_sub(buf.len() as u32);
                }
                give(now, stack, flow, buf);
                // The buffer of the simulated socket has room again.
                self.advance(now, stack, flow);
            }
            Event::Outage(behaviour) if !self.draining => {
                for conn in self.conns.iter().filter(|conn| conn.behaviour == behaviour && !conn.connecting) {
                    if let Some(flow) = conn.flow {
                        stack.upstream_reset(Instant::from_nanos(now), flow);
                    }
                }
            }
            Event::Outage(_) => {}
            Event::Datagram(session, from, buf) => {
                self.delayed_datagrams -= 1;
                stack.datagram(Instant::from_nanos(now), session, from, buf);
            }
        }
    }

    /// A flow is gone: what it came to is compared with what its client counted. In order is a direction whose end was
    /// sent; a client that has seen both ends may answer the core's repeated FIN with RST.
    fn closed(&mut self, flow: FlowId, reason: CloseReason) {
        let Self { conns, behaviours, arrivals, .. } = self;
        let Some(conn) = conns.get_mut(flow.index()).filter(|conn| conn.flow == Some(flow)) else { return };
        if behaviours[conn.behaviour].patterned && !conn.connecting {
            let resets = behaviours[conn.behaviour].upstream.resets();
            let finished = conn.finish_wanted && !resets;
            let ended = conn.finished && matches!(reason, CloseReason::Finished | CloseReason::ClientReset);
            arrivals.up.add(conn.key, conn.taken as u32, finished);
            arrivals.down.add(conn.key, conn.given as u32, finished && ended);
        }
        *conn = Conn::default();
    }

    fn connect(&mut self, now: u64, stack: &mut Stack, flow: FlowId, client: SocketAddr, target: SocketAddr) {
        let known = component_of(target.ip()).filter(|&component| component < self.behaviours.len());
        let Some(behaviour) = known else {
            stack.refused(Instant::from_nanos(now), flow, Refusal::Refused);
            return;
        };
        if self.conns.len() <= flow.index() {
            self.conns.resize_with((flow.index() + 1).next_power_of_two(), Conn::default);
        }
        let key = key_of(client).unwrap_or(0);
        self.conns[flow.index()] =
            Conn { flow: Some(flow), key, behaviour, connecting: true, level_at: now, ..Conn::default() };
        let Upstream { mode, connect_delay_us, .. } = self.behaviours[behaviour].upstream;
        match connect_delay_us {
            _ if self.draining => self.answer_connect(now, stack, flow),
            0 if mode == UpstreamMode::Timeout => {}
            0 => self.answer_connect(now, stack, flow),
            delay => self.schedule(now + delay * 1_000, Event::Connect(flow)),
        }
    }

    fn answer_connect(&mut self, now: u64, stack: &mut Stack, flow: FlowId) {
        let Some(conn) = self.conn(flow).filter(|conn| conn.connecting) else { return };
        conn.connecting = false;
        let behaviour = conn.behaviour;
        let at = Instant::from_nanos(now);
        match self.behaviours[behaviour].upstream.mode {
            _ if self.behaviours[behaviour].is_away(now) => stack.refused(at, flow, Refusal::Refused),
            UpstreamMode::Refuse => stack.refused(at, flow, Refusal::Refused),
            UpstreamMode::Unreachable => stack.refused(at, flow, Refusal::HostUnreachable),
            UpstreamMode::Timeout => stack.refused(at, flow, Refusal::Timeout),
            UpstreamMode::Sink | UpstreamMode::Echo | UpstreamMode::Respond | UpstreamMode::Reset => {
                stack.connected(at, flow);
            }
            UpstreamMode::HalfClose => {
                stack.connected(at, flow);
                let reply = self.behaviours[behaviour].upstream.reply_bytes;
                if let Some(conn) = self.conn(flow) {
                    (conn.to_give, conn.replied) = (u64::from(reply), true);
                }
                self.advance(now, stack, flow);
            }
        }
    }

    /// Takes and gives what a connection can now.
    fn advance(&mut self, now: u64, stack: &mut Stack, flow: FlowId) {
        self.take(now, stack, flow);
        self.give_reply(now, stack, flow);
        self.finish_if_done(now, stack, flow);
    }

    fn take(&mut self, now: u64, stack: &mut Stack, flow: FlowId) {
        loop {
            let Self { behaviours, conns, draining, .. } = self;
            let Some(conn) = conns.get_mut(flow.index()).filter(|conn| conn.flow == Some(flow)) else { return };
            let waiting = stack.readable_len(flow);
            if waiting == 0 {
                break;
            }
            let behaviour = &behaviours[conn.behaviour];
            let echo = behaviour.upstream.mode == UpstreamMode::Echo && behaviour.upstream.reply_bytes == 0;
            let mut allowed = conn.room(behaviour, now, *draining).min(waiting);
            if echo {
                let unsent = behaviour.buffer.saturating_sub(conn.delayed) as usize;
                allowed = allowed.min(stack.room(flow)).min(if *draining { usize::MAX } else { unsent }).min(CHUNK);
            }
            if allowed == 0 {
                self.block(now, flow, waiting);
                return;
            }
            if !self.take_some(now, stack, flow, allowed, echo) {
                return;
            }
        }
    }

    /// Takes `len` bytes; false when no buffer was there to echo them.
    fn take_some(&mut self, now: u64, stack: &mut Stack, flow: FlowId, len: usize, echo: bool) -> bool {
        let Some(conn) = self.conns.get_mut(flow.index()) else { return false };
        let behaviour = &self.behaviours[conn.behaviour];
        let mut copy = None;
        if echo {
            let Some(mut buf) = stack.alloc(len, HEADROOM) else { return false };
            buf.reset(HEADROOM);
            copy = Some(buf);
        }
        if behaviour.patterned {
            let began = self.checking.begin(len);
            let (mut left, mut offset, mut damage) = (len, conn.key % PERIOD as u64 + conn.taken, Damage::default());
            for slice in stack.readable(flow) {
                let slice = &slice[..slice.len().min(left)];
                let right = stream::check(&self.pattern, slice, offset, &mut conn.shift, &mut damage);
                self.corrupt += u64::from(!right);
                offset += slice.len() as u64;
                left -= slice.len();
                if left == 0 {
                    break;
                }
            }
            self.arrivals.damage.merge(&damage);
            self.accepted += (len as u64).saturating_sub(damage.corrupted + damage.duplicated);
            self.checking.end(len, began);
        }
        if let Some(copy) = &mut copy {
            let mut left = len;
            for slice in stack.readable(flow) {
                let slice = &slice[..slice.len().min(left)];
                copy.append(slice);
                left -= slice.len();
                if left == 0 {
                    break;
                }
            }
        }
        conn.taken += len as u64;
        conn.level += if behaviour.rate > 0.0 { len as f64 } else { 0.0 };
        if conn.waiting_since > 0 && conn.taken >= conn.waiting_byte {
            let waited = now.saturating_sub(std::mem::take(&mut conn.waiting_since));
            // In the drain the upstream has no limits any more, and before the window it was not full yet.
            if self.measuring {
                self.wait.record(waited);
            }
        }
        stack.consume(Instant::from_nanos(now), flow, len);
        let Upstream { mode, reply_bytes, delay_us, .. } = behaviour.upstream;
        if mode == UpstreamMode::Reset {
            stack.upstream_reset(Instant::from_nanos(now), flow);
            return false;
        }
        if let Some(copy) = copy {
            conn.given += copy.len() as u64;
            if delay_us == 0 || self.draining {
                give(now, stack, flow, copy);
            } else {
                conn.delayed += copy.len() as u32;
                self.schedule(now + delay_us * 1_000, Event::Reply(flow, copy));
            }
        } else if mode == UpstreamMode::Respond {
            let request = u64::from(behaviour.request);
            let requests = conn.taken / request - (conn.taken - len as u64) / request;
            conn.to_give += requests * u64::from(reply_bytes);
        } else if reply_bytes > 0 && !conn.replied {
            conn.replied = true;
            conn.to_give = u64::from(reply_bytes);
        }
        true
    }

    /// So many bytes wait in the core: the last of them is followed until it is taken, and the time to go on is noted.
    fn block(&mut self, now: u64, flow: FlowId, waiting: usize) {
        let Self { behaviours, conns, .. } = self;
        let Some(conn) = conns.get_mut(flow.index()) else { return };
        let behaviour = &behaviours[conn.behaviour];
        if conn.waiting_since == 0 {
            (conn.waiting_byte, conn.waiting_since) = (conn.taken + waiting as u64, now.max(1));
        }
        if behaviour.rate > 0.0 && !conn.resume_armed && conn.level > 0.0 {
            // Until half of the buffer is free: a socket reports writable at about that.
            conn.resume_armed = true;
            let excess = (conn.level - f64::from(behaviour.buffer) / 2.0).max(1.0);
            let at = now + (excess / behaviour.rate) as u64;
            self.schedule(at, Event::Resume(flow));
        }
    }

    fn give_reply(&mut self, now: u64, stack: &mut Stack, flow: FlowId) {
        loop {
            let draining = self.draining;
            let Some(conn) = self.conn(flow).filter(|conn| conn.to_give > 0) else { return };
            let len = stack.room(flow).min(usize::try_from(conn.to_give).unwrap_or(CHUNK)).min(CHUNK);
            if len == 0 {
                return;
            }
            let Some(mut buf) = stack.alloc(len, HEADROOM) else { return };
            let (key, offset, behaviour) = (conn.key, conn.given, conn.behaviour);
            conn.given += len as u64;
            conn.to_give -= len as u64;
            buf.reset(HEADROOM);
            buf.append(self.pattern.at(key % PERIOD as u64 + offset, len));
            let delay = self.behaviours[behaviour].upstream.delay_us * 1_000;
            if delay == 0 || draining {
                give(now, stack, flow, buf);
            } else {
                if let Some(conn) = self.conn(flow) {
                    conn.delayed += len as u32;
                }
                self.schedule(now + delay, Event::Reply(flow, buf));
            }
        }
    }

    fn finish_if_done(&mut self, now: u64, stack: &mut Stack, flow: FlowId) {
        let Some(conn) = self.conn(flow).filter(|conn| !conn.finished && !conn.connecting) else { return };
        let (behaviour, idle) = (conn.behaviour, conn.to_give == 0 && conn.delayed == 0);
        let half_close = self.behaviours[behaviour].upstream.mode == UpstreamMode::HalfClose;
        let Some(conn) = self.conn(flow) else { return };
        if idle && (half_close || (conn.finish_wanted && stack.readable_len(flow) == 0)) {
            conn.finished = true;
            stack.upstream_eof(Instant::from_nanos(now), flow);
        }
    }

    fn datagrams(&mut self, now: u64, stack: &mut Stack, session: SessionId) {
        let at = Instant::from_nanos(now);
        while let Some((target, buf)) = stack.pop_datagram(session) {
            let component = component_of(target.ip()).filter(|&component| component < self.behaviours.len());
            let Some(behaviour) = component.map(|component| &self.behaviours[component]) else {
                stack.free(buf);
                continue;
            };
            let Upstream { mode, delay_us, reply_bytes, .. } = behaviour.upstream;
            match mode {
                UpstreamMode::Sink | UpstreamMode::HalfClose | UpstreamMode::Echo | UpstreamMode::Respond => {
                    let began = self.checking.begin(buf.len());
                    let tracker = component.and_then(|component| self.trackers[component].as_mut());
                    if let Some(tracker) = tracker {
                        let (before, bytes) = (tracker.counts.corrupted, buf.as_slice());
                        let new = note_datagram(tracker, bytes, behaviour, &self.pattern);
                        self.corrupt += tracker.counts.corrupted - before;
                        self.accepted += if new { bytes.len() as u64 } else { 0 };
                    }
                    self.checking.end(buf.len(), began);
                }
                UpstreamMode::Refuse | UpstreamMode::Unreachable => stack.udp_unreachable(at, session, target),
                UpstreamMode::Timeout | UpstreamMode::Reset => {}
            }
            if mode != UpstreamMode::Echo || behaviour.is_away(now) {
                stack.free(buf);
                continue;
            }
            let Some(reply) = reply_to(stack, buf, behaviour.dns, reply_bytes as usize) else { continue };
            let counts = u64::from(!behaviour.dns || is_good_query(reply.as_slice()));
            if delay_us == 0 || self.draining {
                self.arrivals.replies += counts;
                stack.datagram(at, session, target, reply);
            } else if self.delayed_datagrams < DELAYED_DATAGRAMS {
                self.delayed_datagrams += 1;
                self.arrivals.replies += counts;
                self.schedule(now + delay_us * 1_000, Event::Datagram(session, target, reply));
            } else {
                self.overrun += 1;
                stack.free(reply);
            }
        }
    }
}

impl Behaviour {
    fn new(component: &Component) -> Self {
        let upstream = component.upstream();
        let buffer = if upstream.buffer_bytes == 0 { DEFAULT_BUFFER } else { upstream.buffer_bytes };
        let mut rate = upstream.bandwidth_mbit / 8_000.0;
        if upstream.delay_us > 0 && upstream.mode != UpstreamMode::Echo {
            // A socket with a round trip of `delay` empties one buffer in that time at best.
            let by_delay = f64::from(buffer) / (upstream.delay_us as f64 * 1_000.0);
            rate = if rate > 0.0 { rate.min(by_delay) } else { by_delay };
        }
        Self {
            dns: matches!(component, Component::Dns(_)),
            names: if let Component::Dns(c) = component { c.names } else { 0 },
            patterned: matches!(
                component,
                Component::TcpStream(_) | Component::TcpChurn(_) | Component::TcpRequest(_) | Component::Udp(_)
            ),
            request: if let Component::TcpRequest(c) = component { c.request_bytes } else { 1 },
            upstream,
            outage: (u64::MAX, u64::MAX),
            rate,
            buffer,
        }
    }
}

impl Behaviour {
    fn is_away(&self, now: u64) -> bool {
        self.outage.0 <= now && now < self.outage.1
    }
}

impl Conn {
    /// Bytes that the simulated socket takes now.
    fn room(&mut self, behaviour: &Behaviour, now: u64, draining: bool) -> usize {
        if behaviour.rate <= 0.0 || draining {
            return usize::MAX;
        }
        let elapsed = now.saturating_sub(self.level_at) as f64;
        self.level = (self.level - elapsed * behaviour.rate).max(0.0);
        self.level_at = now;
        (f64::from(behaviour.buffer) - self.level).max(0.0) as usize
    }
}

/// Hands bytes to the client; frees them when the flow is gone.
fn give(now: u64, stack: &mut Stack, flow: FlowId, buf: Buf) {
    if let Err(buf) = stack.upstream_data(Instant::from_nanos(now), flow, buf) {
        stack.free(buf);
    }
}

/// Takes note of a datagram; whether it is new and right. A query that was corrupted on purpose is none.
#[inline]
fn note_datagram(tracker: &mut SequenceTracker, bytes: &[u8], behaviour: &Behaviour, pattern: &Pattern) -> bool {
    let number = if behaviour.dns {
        if !is_good_query(bytes) {
            return false;
        }
        read_query(bytes, tracker.next(), behaviour.names)
    } else {
        datagram::read(bytes, tracker.next(), pattern)
    };
    if let Some(number) = number {
        return tracker.note(number);
    }
    tracker.note_corrupted();
    false
}

/// The echo of a datagram, or a reply of `wanted` bytes that begins like it; a DNS reply says that it is one.
fn reply_to(stack: &mut Stack, request: Buf, dns: bool, wanted: usize) -> Option<Buf> {
    const RESPONSE: u8 = 0x80;
    let mut reply = if wanted == 0 || wanted == request.len() {
        request
    } else {
        let reply = stack.alloc(wanted, HEADROOM).map(|mut reply| {
            reply.reset(HEADROOM);
            // Buffers come back with old bytes: the rest of a reply is cleared.
            reply.append(request.as_slice().get(..wanted).unwrap_or(request.as_slice()));
            while reply.len() < wanted {
                reply.append(&[0; 256][..(wanted - reply.len()).min(256)]);
            }
            reply
        });
        stack.free(request);
        reply?
    };
    if dns && let Some(flags) = reply.as_mut_slice().get_mut(2) {
        *flags |= RESPONSE;
    }
    Some(reply)
}
