//! The simulated upstream of one worker: what sockets and a proxy would be, driven by the stack's requests.
//!
//! Which behaviour a flow meets follows from its target address. Sinks and echoes take all at once; a limited upstream
//! has a socket buffer of `buffer_bytes` that drains at `bandwidth_mbit` (TCP only), and what does not fit stays in the
//! core until there is room (`upstream_wait`). Delays sit in a heap of the worker's own thread. Payload is checked
//! against the pattern where it is taken. Promises: bounded memory (a flow's delayed bytes by its buffer, datagrams by
//! [`DELAYED_DATAGRAMS`]); after [`Upstreams::release_all`] nothing is held.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;

use t2s_core::buf::Buf;
use t2s_core::stack::{FlowId, Refusal, Request, Stack};
use t2s_core::time::Instant;
use t2s_core::udp::SessionId;

use crate::generator::address::component_of;
use crate::generator::packets::Pattern;
use crate::measure::recorder::Recorder;
use crate::spec::{Component, Upstream, UpstreamMode};

/// Room for headers in front of payload that goes to the client: IPv6 and TCP with options, or the stack's 48 for UDP.
const HEADROOM: usize = 128;

/// While load is measured one slice in so many is compared with what the client sent there; in the drain all are. A
/// stream that lost a byte or got one twice is shifted from there on, so a look now and then finds it; looking at each
/// would charge the core with the cache misses of bytes that it never reads.
const VERIFY_EVERY: u64 = 256;

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
    /// Bytes a nanosecond; 0 = no limit.
    rate: f64,
    buffer: u32,
}

/// One TCP connection of the upstream.
#[derive(Default)]
struct Conn {
    flow: Option<FlowId>,
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
    to_give: u32,
    /// Bytes that wait in the heap for their delay.
    delayed: u32,
    replied: bool,
    finish_wanted: bool,
    finished: bool,
    /// Since when bytes wait in the core; 0 = none do.
    blocked_since: u64,
    resume_armed: bool,
}

enum Event {
    Connect(FlowId),
    Resume(FlowId),
    Reply(FlowId, Buf),
    Datagram(SessionId, SocketAddr, Buf),
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

/// All upstreams of one worker.
pub struct Upstreams {
    behaviours: Vec<Behaviour>,
    conns: Vec<Conn>,
    heap: BinaryHeap<Reverse<Due>>,
    order: u64,
    pattern: Pattern,
    delayed_datagrams: usize,
    draining: bool,
    /// How long bytes waited in the core for this upstream.
    pub wait: Recorder,
    /// Whether any component can make bytes wait.
    pub can_block: bool,
    /// Payload bytes of valid traffic that were taken.
    pub accepted: u64,
    /// Bytes taken that were not what the client sent there.
    pub corrupt: u64,
    /// Slices of streams taken so far.
    slices: u64,
    /// Datagrams lost in the upstream's own delay queue.
    pub overrun: u64,
}

impl Upstreams {
    /// The upstreams of these components.
    pub fn new(components: &[Component]) -> Self {
        let behaviours: Vec<Behaviour> = components.iter().map(Behaviour::new).collect();
        Self {
            can_block: components.iter().any(|component| component.upstream().limits_the_sender()),
            behaviours,
            conns: Vec::new(),
            heap: BinaryHeap::new(),
            order: 0,
            pattern: Pattern::new(),
            delayed_datagrams: 0,
            draining: false,
            wait: Recorder::new(),
            accepted: 0,
            corrupt: 0,
            slices: 0,
            overrun: 0,
        }
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
            Request::Connect { flow, target, .. } => self.connect(now, stack, flow, target),
            Request::Readable(flow) | Request::Writable(flow) => self.advance(now, stack, flow),
            Request::Finish(flow) => {
                if let Some(conn) = self.conn(flow) {
                    conn.finish_wanted = true;
                    self.advance(now, stack, flow);
                }
            }
            Request::Closed(flow, _) => {
                if let Some(conn) = self.conn(flow) {
                    *conn = Conn::default();
                }
            }
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

    /// Lifts all limits: delays end now, silent connects are answered, blocked flows go on.
    pub fn release_all(&mut self, now: u64, stack: &mut Stack) {
        self.draining = true;
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
            Event::Datagram(session, from, buf) => {
                self.delayed_datagrams -= 1;
                stack.datagram(Instant::from_nanos(now), session, from, buf);
            }
        }
    }

    fn connect(&mut self, now: u64, stack: &mut Stack, flow: FlowId, target: SocketAddr) {
        let known = component_of(target.ip()).filter(|&component| component < self.behaviours.len());
        let Some(behaviour) = known else {
            stack.refused(Instant::from_nanos(now), flow, Refusal::Refused);
            return;
        };
        if self.conns.len() <= flow.index() {
            self.conns.resize_with((flow.index() + 1).next_power_of_two(), Conn::default);
        }
        self.conns[flow.index()] =
            Conn { flow: Some(flow), behaviour, connecting: true, level_at: now, ..Conn::default() };
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
            UpstreamMode::Refuse => stack.refused(at, flow, Refusal::Refused),
            UpstreamMode::Unreachable => stack.refused(at, flow, Refusal::HostUnreachable),
            UpstreamMode::Timeout => stack.refused(at, flow, Refusal::Timeout),
            UpstreamMode::Sink | UpstreamMode::Echo | UpstreamMode::Reset => stack.connected(at, flow),
            UpstreamMode::HalfClose => {
                stack.connected(at, flow);
                let reply = self.behaviours[behaviour].upstream.reply_bytes;
                if let Some(conn) = self.conn(flow) {
                    (conn.to_give, conn.replied) = (reply, true);
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
                self.block(now, flow);
                return;
            }
            if !self.take_some(now, stack, flow, allowed, echo) {
                return;
            }
        }
        let Some(conn) = self.conn(flow) else { return };
        if conn.blocked_since > 0 {
            let waited = now.saturating_sub(std::mem::take(&mut conn.blocked_since));
            self.wait.record(waited);
        }
    }

    /// Takes `len` bytes; false when no buffer was there to echo them.
    fn take_some(&mut self, now: u64, stack: &mut Stack, flow: FlowId, len: usize, echo: bool) -> bool {
        let Some(conn) = self.conns.get_mut(flow.index()) else { return false };
        let behaviour = &self.behaviours[conn.behaviour];
        let verify_all = self.draining;
        let mut copy = None;
        if echo {
            let Some(mut buf) = stack.alloc(len, HEADROOM) else { return false };
            buf.reset(HEADROOM);
            copy = Some(buf);
        }
        let (mut left, mut offset, mut corrupt) = (len, conn.taken, 0);
        for slice in stack.readable(flow) {
            let slice = &slice[..slice.len().min(left)];
            let verify = behaviour.patterned && (self.slices.is_multiple_of(VERIFY_EVERY) || verify_all);
            corrupt += u64::from(verify && !Pattern::matches_ends(slice, offset));
            self.slices += 1;
            if let Some(copy) = &mut copy {
                copy.append(slice);
            }
            offset += slice.len() as u64;
            left -= slice.len();
            if left == 0 {
                break;
            }
        }
        conn.taken += len as u64;
        conn.level += if behaviour.rate > 0.0 { len as f64 } else { 0.0 };
        self.corrupt += corrupt;
        self.accepted += if behaviour.patterned { len as u64 } else { 0 };
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
        } else if reply_bytes > 0 && !conn.replied {
            conn.replied = true;
            conn.to_give = reply_bytes;
        }
        true
    }

    /// Bytes wait in the core: remember since when, and when to go on.
    fn block(&mut self, now: u64, flow: FlowId) {
        let Self { behaviours, conns, .. } = self;
        let Some(conn) = conns.get_mut(flow.index()) else { return };
        let behaviour = &behaviours[conn.behaviour];
        if conn.blocked_since == 0 {
            conn.blocked_since = now.max(1);
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
            let len = stack.room(flow).min(conn.to_give as usize).min(CHUNK);
            if len == 0 {
                return;
            }
            let Some(mut buf) = stack.alloc(len, HEADROOM) else { return };
            let (offset, behaviour) = (conn.given, conn.behaviour);
            conn.given += len as u64;
            conn.to_give -= len as u32;
            buf.reset(HEADROOM);
            buf.append(self.pattern.at(offset, len));
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
            let behaviour = component_of(target.ip()).and_then(|component| self.behaviours.get(component));
            let Some(behaviour) = behaviour else {
                stack.free(buf);
                continue;
            };
            let Upstream { mode, delay_us, reply_bytes, .. } = behaviour.upstream;
            match mode {
                UpstreamMode::Sink | UpstreamMode::HalfClose | UpstreamMode::Echo => {
                    let valid = if behaviour.dns { is_good_query(buf.as_slice()) } else { behaviour.patterned };
                    self.accepted += if valid { buf.len() as u64 } else { 0 };
                }
                UpstreamMode::Refuse | UpstreamMode::Unreachable => stack.udp_unreachable(at, session, target),
                UpstreamMode::Timeout | UpstreamMode::Reset => {}
            }
            if mode != UpstreamMode::Echo {
                stack.free(buf);
                continue;
            }
            let Some(reply) = reply_to(stack, buf, behaviour.dns, reply_bytes as usize) else { continue };
            if delay_us == 0 || self.draining {
                stack.datagram(at, session, target, reply);
            } else if self.delayed_datagrams < DELAYED_DATAGRAMS {
                self.delayed_datagrams += 1;
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
            patterned: matches!(component, Component::TcpStream(_) | Component::TcpChurn(_) | Component::Udp(_)),
            upstream,
            rate,
            buffer,
        }
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

/// Whether a datagram is one of the generator's unspoiled queries.
fn is_good_query(message: &[u8]) -> bool {
    message.len() > 22 && message[4..6] == [0, 1] && message[12] == 9 && message[message.len() - 4..] == [0, 1, 0, 1]
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
