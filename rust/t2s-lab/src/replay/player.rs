//! Runs a script against a live stack.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant as Wall};

use t2s_core::buf::Pool;
use t2s_core::checksum::Kernel;
use t2s_core::config::Config;
use t2s_core::stack::{CloseReason, Disposition, FlowId, Packet, Refusal, Request, Stack, StackStats};
use t2s_core::time::{Instant, SECONDS};
use t2s_core::udp::SessionId;
use t2s_core::wire::ip::Ip;
use t2s_core::wire::tcp::{Flags, SeqNumber, Tcp};
use t2s_core::wire::{self, protocol};

use super::capture::Capture;
use super::rewrite::{pure_ack, rewrite};
use super::script::{Answer, ClientSegment, Script, Step};

/// Headroom of buffers from the simulated upstream: that of the tunnel's.
const HEADROOM: usize = 128;

/// Bytes that the simulated upstream hands over at once: a socket read of ordinary size.
const CHUNK: usize = 8 * 1024;

/// Acknowledgements that may be made up in a row while one captured acknowledgement waits. A window doubles with each
/// round trip, so even a gigabyte takes fewer.
const MAX_SYNTHETIC: u32 = 1_024;

/// Time that the stack gets after the last packet, in steps of one second: enough for TIME-WAIT.
const LINGER_STEPS: u64 = 5;

/// How fast a capture is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As fast as the core can.
    Max,
    /// Recorded gaps divided by this factor; 1.0 is the recorded speed. Finite and above 0.
    Times(f64),
}

/// What to replay, and how.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Settings of the core.
    pub config: Config,
    /// Speed.
    pub pace: Pace,
    /// Keep the bytes and datagrams that were delivered upstream, not only their number.
    pub keep: bool,
}

/// Watches a replay, packet by packet.
pub trait Observer {
    /// The capture begins.
    fn pass(&mut self) {}
    /// A client packet is about to enter the stack; `due` is when it should have, nanoseconds after the capture's
    /// begin, unless the replay is as fast as can be.
    fn begin(&mut self, due: Option<u64>);
    /// It has had its effect.
    fn end(&mut self, accepted: bool);
    /// Whether to end the replay now.
    fn stopped(&mut self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn begin(&mut self, _due: Option<u64>) {}
    fn end(&mut self, _accepted: bool) {}
}

/// One TCP connection of the capture, as replayed.
#[derive(Clone, Debug)]
pub struct ReplayFlow {
    /// The client's end.
    pub client: SocketAddr,
    /// The server's end.
    pub server: SocketAddr,
    /// Bytes that the core delivered upstream.
    pub bytes_up: u64,
    /// The same, if kept.
    pub stream: Vec<u8>,
    /// Bytes that the client has sent, each counted once.
    pub bytes_sent: u64,
    /// Bytes that the upstream handed to the core.
    pub bytes_down: u64,
    /// Of the upstream's bytes, those that the capture missed (replayed as zeros).
    pub missing: u64,
    /// The client's FIN was delivered.
    pub finished: bool,
    /// How it ended in the live stack; `None` if it was still open at the end.
    pub closed: Option<CloseReason>,
}

/// A datagram that the core delivered upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayDatagram {
    /// The client's end.
    pub client: SocketAddr,
    /// Where it went.
    pub target: SocketAddr,
    /// Its payload, if kept.
    pub payload: Vec<u8>,
}

/// What a replay did.
#[derive(Clone, Debug)]
pub struct Replay {
    /// TCP connections in the order of their SYNs.
    pub flows: Vec<ReplayFlow>,
    /// Datagrams in order.
    pub datagrams: Vec<ReplayDatagram>,
    /// Client packets replayed.
    pub packets: u64,
    /// Of these, accepted by the core.
    pub accepted: u64,
    /// Packets that the core sent to the client.
    pub replies: u64,
    /// Of these, with a wrong checksum or unparsable: 0 unless the core is broken.
    pub corrupt: u64,
    /// Acknowledgements that were made up because the live stack needed more round trips than the captured one.
    pub synthetic_acks: u64,
    /// Acknowledgements of bytes that the live stack had not sent, lowered to what it had.
    pub lowered_acks: u64,
    /// TCP packets of connections that the capture joined midway, left out.
    pub midway: u64,
    /// Packets between strangers, left out.
    pub other: u64,
    /// Counters of the core before its shutdown.
    pub stats: StackStats,
    /// What was left after the shutdown: nothing unless the core leaks.
    pub left: Left,
    /// Bytes of pool buffers alive after the shutdown: 0 unless the core leaks.
    pub live_bytes: u64,
}

/// What a stack still holds after its shutdown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// TCP flows.
    pub flows: u64,
    /// UDP sessions.
    pub sessions: u64,
    /// Armed timers.
    pub timers: u64,
}

/// Replays a capture.
pub fn replay(capture: &Capture, options: &ReplayOptions, pool: &Pool, observer: &mut impl Observer) -> Replay {
    let script = Script::new(capture);
    let mut player = Player::new(&script, options, pool);
    let started = Wall::now();
    observer.pass();
    for (at, step) in &script.steps {
        if observer.stopped() {
            break;
        }
        player.due = match options.pace {
            Pace::Max => None,
            Pace::Times(factor) => Some((*at as f64 / factor) as u64),
        };
        if let Some(due) = player.due {
            std::thread::sleep((started + Duration::from_nanos(due)).saturating_duration_since(Wall::now()));
        }
        player.advance(Instant::from_nanos(ORIGIN + at));
        player.step(step, observer);
    }
    player.finish(&script, pool)
}

/// The stack's time of the capture's first packet; not 0, so that "earlier" exists.
const ORIGIN: u64 = SECONDS;

/// A scripted flow in the live stack.
#[derive(Default)]
struct Live {
    id: Option<FlowId>,
    isn: Option<SeqNumber>,
    /// End of what the stack has sent, relative to its initial sequence number.
    sent: u32,
    /// The newest timestamp value that the stack sent.
    timestamp: u32,
    /// Bytes that the upstream has, and those it has handed over.
    available: usize,
    pushed: usize,
    finish: bool,
    finish_sent: bool,
    answered: bool,
    sent_up: u64,
    bytes_up: u64,
    stream: Vec<u8>,
    finished: bool,
    closed: Option<CloseReason>,
}

struct Player<'a> {
    script: &'a Script,
    keep: bool,
    /// When the present step was due.
    due: Option<u64>,
    stack: Stack,
    now: Instant,
    live: Vec<Live>,
    /// The flow that a pair of ends means now.
    current: BTreeMap<(SocketAddr, SocketAddr), usize>,
    by_id: BTreeMap<u64, usize>,
    sessions: BTreeMap<SocketAddr, SessionId>,
    /// Datagrams for clients whose session is not there (yet, or any more) are dropped, as a network would.
    datagrams: Vec<ReplayDatagram>,
    packets: u64,
    accepted: u64,
    replies: u64,
    corrupt: u64,
    synthetic_acks: u64,
    lowered_acks: u64,
    blocked: BTreeSet<usize>,
}

impl<'a> Player<'a> {
    fn new(script: &'a Script, options: &ReplayOptions, pool: &Pool) -> Self {
        let now = Instant::from_nanos(ORIGIN);
        Self {
            script,
            keep: options.keep,
            due: None,
            stack: Stack::new(options.config.clone(), pool, now),
            now,
            live: script.flows.iter().map(|_| Live::default()).collect(),
            current: BTreeMap::new(),
            by_id: BTreeMap::new(),
            sessions: BTreeMap::new(),
            datagrams: Vec::new(),
            packets: 0,
            accepted: 0,
            replies: 0,
            corrupt: 0,
            synthetic_acks: 0,
            lowered_acks: 0,
            blocked: BTreeSet::new(),
        }
    }

    /// Runs timers up to `until`.
    fn advance(&mut self, until: Instant) {
        while let Some(due) = self.stack.next_timeout()
            && due <= until
        {
            self.now = self.now.max(due);
            self.stack.handle_timeout(self.now);
            self.drive();
            if self.stack.next_timeout() == Some(due) {
                // A lower bound that did not move: the rest comes with the next step.
                break;
            }
        }
        self.now = self.now.max(until);
        self.stack.handle_timeout(self.now);
    }

    fn step(&mut self, step: &Step, observer: &mut impl Observer) {
        match step {
            Step::Client { packet, segment } => self.client(packet, *segment, observer),
            Step::Answer { flow, answer } => self.answer(*flow, *answer),
            Step::Bytes { flow, upto } => {
                let live = &mut self.live[*flow];
                live.available = live.available.max(*upto);
                self.push(*flow);
            }
            Step::Finish { flow } => {
                self.live[*flow].finish = true;
                self.push(*flow);
            }
            Step::Reset { flow } => {
                if let Some(id) = self.live[*flow].id {
                    self.stack.upstream_reset(self.now, id);
                }
            }
            Step::Datagram { client, from, payload } => {
                if let Some(&session) = self.sessions.get(client)
                    && let Ok(buf) = self.stack.pool().alloc_copy(payload, HEADROOM)
                {
                    self.stack.datagram(self.now, session, *from, buf);
                }
            }
        }
        self.drive();
    }

    fn answer(&mut self, flow: usize, answer: Answer) {
        let live = &mut self.live[flow];
        let Some(id) = live.id else { return };
        if core::mem::replace(&mut live.answered, true) {
            return;
        }
        match answer {
            Answer::Connected => self.stack.connected(self.now, id),
            Answer::Refused => self.stack.refused(self.now, id, Refusal::Refused),
            Answer::HostUnreachable => self.stack.refused(self.now, id, Refusal::HostUnreachable),
            Answer::NetUnreachable => self.stack.refused(self.now, id, Refusal::NetUnreachable),
            Answer::Prohibited => self.stack.refused(self.now, id, Refusal::Prohibited),
        }
    }

    /// Hands the upstream's bytes to the stack as far as there is room.
    fn push(&mut self, flow: usize) {
        let Some(id) = self.live[flow].id else { return };
        loop {
            let live = &self.live[flow];
            let wanted = (live.available - live.pushed).min(CHUNK).min(self.stack.room(id));
            if wanted == 0 {
                break;
            }
            let bytes = &self.script.flows[flow].bytes[live.pushed..live.pushed + wanted];
            let Ok(buf) = self.stack.pool().alloc_copy(bytes, HEADROOM) else { break };
            if let Err(buf) = self.stack.upstream_data(self.now, id, buf) {
                self.stack.free(buf);
                break;
            }
            self.live[flow].pushed += wanted;
        }
        let live = &mut self.live[flow];
        if live.finish && live.pushed == live.available && !core::mem::replace(&mut live.finish_sent, true) {
            self.stack.upstream_eof(self.now, id);
        }
        if live.pushed < live.available {
            self.blocked.insert(flow);
        } else {
            self.blocked.remove(&flow);
        }
    }

    fn client(&mut self, packet: &[u8], segment: Option<ClientSegment>, observer: &mut impl Observer) {
        let mut packet = packet.to_vec();
        if let Some(segment) = segment {
            let script = &self.script.flows[segment.flow];
            self.live[segment.flow].sent_up = segment.sent;
            if segment.syn {
                self.current.insert((script.client, script.server), segment.flow);
            }
            if let Some(ack) = segment.ack {
                self.wait_for(segment.flow, ack, &packet);
                self.map_acknowledgement(segment.flow, ack, &mut packet);
            }
        }
        self.packets += 1;
        let Ok(buf) = self.stack.pool().alloc_copy(&packet, 0) else { return };
        observer.begin(self.due);
        let accepted = !matches!(self.stack.handle_packet(self.now, Packet::plain(buf)), Disposition::Dropped(_));
        self.drive();
        observer.end(accepted);
        self.accepted += u64::from(accepted);
    }

    /// Gets the stack to send what the client is about to acknowledge.
    fn wait_for(&mut self, flow: usize, ack: u32, packet: &[u8]) {
        if !self.live[flow].answered {
            self.answer(flow, Answer::Connected);
            self.drive();
        }
        let wanted = (ack as usize).saturating_sub(1);
        let known = self.script.flows[flow].bytes.len();
        let live = &mut self.live[flow];
        live.available = live.available.max(wanted.min(known));
        self.push(flow);
        self.drive();
        let mut last = 0;
        for _ in 0..MAX_SYNTHETIC {
            let live = &self.live[flow];
            if live.sent >= ack || live.sent == last || live.closed.is_some() {
                break;
            }
            last = live.sent;
            let Some(isn) = live.isn else { break };
            let Some(made) = pure_ack(packet, isn + last, live.timestamp) else { break };
            let Ok(buf) = self.stack.pool().alloc_copy(&made, 0) else { break };
            self.synthetic_acks += 1;
            self.stack.handle_packet(self.now, Packet::plain(buf));
            self.push(flow);
            self.drive();
        }
    }

    /// Rewrites what a client's packet says about the captured server's stream into what the live stack has sent.
    fn map_acknowledgement(&mut self, flow: usize, ack: u32, packet: &mut [u8]) {
        let live = &self.live[flow];
        let (Some(isn), Some(captured)) = (live.isn, self.script.flows[flow].server_isn) else { return };
        if ack > live.sent {
            self.lowered_acks += 1;
        }
        rewrite(packet, isn + ack.min(live.sent), isn - captured, live.timestamp);
    }

    /// Does what the stack asks for and looks at what it sends, until it is quiet.
    fn drive(&mut self) {
        loop {
            while let Some(request) = self.stack.poll_request(self.now) {
                self.request(request);
            }
            let Some(transmit) = self.stack.poll_transmit(self.now) else { break };
            let mut bytes = vec![0; transmit.len()];
            let whole = transmit.copy_to(&mut bytes).is_some();
            self.replies += 1;
            if !whole || !self.reply(&bytes) {
                self.corrupt += 1;
            }
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Connect { flow, client, target } => {
                if let Some(&index) = self.current.get(&(client, target)) {
                    self.by_id.insert(flow.to_bits(), index);
                    self.live[index].id = Some(flow);
                }
            }
            Request::Readable(id) => {
                let Some(&flow) = self.by_id.get(&id.to_bits()) else { return };
                let live = &mut self.live[flow];
                let mut taken = 0;
                for slice in self.stack.readable(id) {
                    taken += slice.len();
                    if self.keep {
                        live.stream.extend_from_slice(slice);
                    }
                }
                live.bytes_up += taken as u64;
                self.stack.consume(self.now, id, taken);
            }
            Request::Writable(id) => {
                if let Some(&flow) = self.by_id.get(&id.to_bits()) {
                    self.push(flow);
                }
            }
            Request::Finish(id) => {
                if let Some(&flow) = self.by_id.get(&id.to_bits()) {
                    self.live[flow].finished = true;
                }
            }
            Request::Closed(id, reason) => {
                if let Some(flow) = self.by_id.remove(&id.to_bits()) {
                    self.live[flow].closed = Some(reason);
                    self.live[flow].id = None;
                    self.blocked.remove(&flow);
                }
            }
            Request::UdpOpen { session, client } => {
                self.sessions.insert(client, session);
            }
            Request::Datagrams(session) => {
                let client = self.stack.session_client(session);
                while let Some((target, payload)) = self.stack.pop_datagram(session) {
                    if let Some(client) = client {
                        let kept = if self.keep { payload.as_slice().to_vec() } else { Vec::new() };
                        self.datagrams.push(ReplayDatagram { client, target, payload: kept });
                    }
                    self.stack.free(payload);
                }
            }
            Request::UdpClosed(session) => self.sessions.retain(|_, open| *open != session),
        }
    }

    /// Looks at a packet that the stack sent; false when it is broken.
    fn reply(&mut self, packet: &[u8]) -> bool {
        let Ok(ip) = Ip::parse(packet) else { return false };
        if ip.fragment.is_some() {
            return true;
        }
        if !wire::verify_transport(Kernel::auto(), &ip, packet) {
            return false;
        }
        if ip.protocol != protocol::TCP {
            return true;
        }
        let segment = &packet[usize::from(ip.payload)..ip.total as usize];
        let Ok(tcp) = Tcp::parse(segment) else { return false };
        let ends = (SocketAddr::new(ip.dst, tcp.dst_port), SocketAddr::new(ip.src, tcp.src_port));
        if let Some(&flow) = self.current.get(&ends) {
            let live = &mut self.live[flow];
            if tcp.flags.contains(Flags::SYN.with(Flags::ACK)) {
                live.isn = Some(tcp.seq);
            }
            if let Some(isn) = live.isn
                && !tcp.flags.rst()
            {
                let payload = segment.len() - usize::from(tcp.header_len);
                let end = (tcp.seq + tcp.sequence_len(payload as u32)) - isn;
                live.sent = live.sent.max(end.max(0) as u32);
            }
            if let Some((value, _)) = tcp.options.timestamp {
                live.timestamp = value;
            }
        }
        true
    }

    fn finish(mut self, script: &Script, pool: &Pool) -> Replay {
        for _ in 0..LINGER_STEPS {
            self.advance(self.now.plus(SECONDS));
            for flow in self.blocked.clone() {
                self.push(flow);
            }
            self.drive();
        }
        let stats = self.stack.stats();
        let flows = self
            .live
            .iter_mut()
            .zip(&script.flows)
            .map(|(live, script)| ReplayFlow {
                client: script.client,
                server: script.server,
                bytes_up: live.bytes_up,
                stream: core::mem::take(&mut live.stream),
                bytes_sent: live.sent_up,
                bytes_down: live.pushed as u64,
                missing: script.missing as u64,
                finished: live.finished,
                closed: live.closed,
            })
            .collect();
        self.stack.shutdown(self.now);
        self.drive();
        let last = self.stack.stats();
        let left = Left { flows: last.flows, sessions: last.sessions, timers: last.timers };
        let Self { stack, datagrams, packets, accepted, replies, corrupt, synthetic_acks, lowered_acks, .. } = self;
        drop(stack);
        Replay {
            flows,
            datagrams,
            packets,
            accepted,
            replies,
            corrupt,
            synthetic_acks,
            lowered_acks,
            midway: script.midway,
            other: script.other,
            stats,
            left,
            live_bytes: pool.stats().live_bytes as u64,
        }
    }
}
