//! TCP flows as the stack keeps them: commands of the driver, settling after a batch, timers, eviction, reaping.
//!
//! A flow's life is a [`Life`]. Queues name flows by id and skip those that are stale, so that ending a flow never
//! searches a queue.

use core::hash::Hasher;
use core::net::SocketAddr;
use std::collections::VecDeque;

use siphasher::sip::SipHasher24;

use super::api::{CloseReason, FlowId, FlowInfo, Refusal, Request, StackStats};
use super::cursor::ShardCursor;
use super::slab::Slab;
use super::{Inner, MOVES, Stack, TIMERS};
use crate::buf::{Buf, PoolCache};
use crate::config::Config;
use crate::flow::FlowKey;
use crate::reassembly::Budget;
use crate::tcp::{self, BufferBudget, Ctx, Events, State, Tcb};
use crate::time::{Instant, SECONDS};
use crate::timer::TimerId;
use crate::wire::icmp::IcmpError;
use crate::wire::tcp::SeqNumber;

/// Flows of a worker beyond its cap: those whose predecessors are evicted, but not yet reaped. One batch's worth.
pub const EVICT_SLACK: usize = 256;

/// Slots that one search for an idle flow looks at: the oldest of 64 by chance is among the oldest 5 % with a
/// probability of 96 %, at a cost that does not grow with the table.
const EVICT_SAMPLE: u32 = 64;

/// A flow younger in idleness than this is not evicted for a newcomer.
const EVICT_MIN_IDLE: u64 = 5 * SECONDS;

/// Stale entries of the transmit queue below which it is not swept: a sweep is to be worth its call.
const STALE_MIN: usize = 64;

/// A flow's life, and which queues name it. Only [`Life::after`] leads from one part to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Waits for the answer of its upstream; counts in `StackStats::pending`.
    Connecting(Queued),
    /// The upstream has answered.
    Open(Queued),
    /// The driver has been told [`Request::Closed`], once; last segments may still leave.
    Ended(Queued),
    /// Nothing more leaves. `Inner::closed` names it, and the next [`Inner::reap`] takes it out of map and table.
    Closed,
}

/// The queues that name a flow, each once at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Queued {
    /// `Inner::dirty`: it was touched, and has to be settled.
    dirty: bool,
    /// `Inner::transmit`: it may have something to send.
    transmit: bool,
}

/// What leads to the next part of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The upstream has answered, or the flow needs no answer any more.
    Answered,
    /// The driver is told that the flow is gone.
    End,
    /// The last segment has left.
    Close,
}

impl Life {
    /// The part of life that `step` leads to; `None` where it leads nowhere.
    const fn after(self, step: Step) -> Option<Self> {
        match (self, step) {
            (Self::Connecting(queued), Step::Answered) => Some(Self::Open(queued)),
            (Self::Connecting(queued) | Self::Open(queued), Step::End) => Some(Self::Ended(queued)),
            (Self::Ended(_), Step::Close) => Some(Self::Closed),
            // An answer that comes twice or too late; an end that the driver knows of; a close before it does.
            (Self::Open(_) | Self::Ended(_) | Self::Closed, Step::Answered)
            | (Self::Ended(_) | Self::Closed, Step::End)
            | (Self::Connecting(_) | Self::Open(_) | Self::Closed, Step::Close) => None,
        }
    }

    /// Whether the flow's id means something to the driver.
    #[inline]
    pub(super) const fn is_alive(self) -> bool {
        matches!(self, Self::Connecting(_) | Self::Open(_))
    }

    /// The queues that name the flow; none may once it is closed.
    #[inline]
    const fn queued(&mut self) -> Option<&mut Queued> {
        match self {
            Self::Connecting(queued) | Self::Open(queued) | Self::Ended(queued) => Some(queued),
            Self::Closed => None,
        }
    }
}

/// Flows that may have something to send, one after the other. Each that is alive stands in it once at most; the ids of
/// those that are not are skipped, and swept out before they outnumber the rest, so that a device that takes nothing
/// does not make it grow.
#[derive(Debug, Default)]
pub(super) struct TransmitQueue {
    ids: VecDeque<FlowId>,
    /// Entries of flows that are closed or gone.
    stale: usize,
    /// Entries that were looked at.
    #[cfg(test)]
    pub(super) steps: u64,
}

impl TransmitQueue {
    /// The flow whose iteration it is. Entries in front of it that are stale go.
    #[inline]
    pub(super) fn front(&mut self, flows: &Slab<Flow>) -> Option<FlowId> {
        while let Some(&id) = self.ids.front() {
            #[cfg(test)]
            {
                self.steps += 1;
            }
            if is_queued(flows, id) {
                return Some(id);
            }
            self.ids.pop_front();
            self.stale -= 1;
        }
        None
    }

    /// The flow in front has had its turn.
    pub(super) fn rotate(&mut self) {
        if let Some(id) = self.ids.pop_front() {
            self.ids.push_back(id);
        }
    }

    /// The flow in front has nothing left to send.
    pub(super) fn pop(&mut self, flows: &mut Slab<Flow>) {
        if let Some(id) = self.ids.pop_front()
            && let Some(queued) = flows.get_mut(id).and_then(|flow| flow.life.queued())
        {
            queued.transmit = false;
        }
    }

    /// A flow that stood in the queue has just been closed or removed. Constant in the mean: a sweep looks at no more
    /// than twice as many entries as went stale since the last one.
    fn went_stale(&mut self, flows: &Slab<Flow>) {
        self.stale += 1;
        if self.stale >= STALE_MIN && self.stale * 2 > self.ids.len() {
            #[cfg(test)]
            {
                self.steps += self.ids.len() as u64;
            }
            self.ids.retain(|&id| is_queued(flows, id));
            self.stale = 0;
        }
    }
}

fn is_queued(flows: &Slab<Flow>, id: FlowId) -> bool {
    let life = flows.get(id).map(|flow| flow.life);
    life.is_some_and(|mut life| life.queued().is_some_and(|queued| queued.transmit))
}

/// One TCP flow. What each segment touches comes first, so that it shares cache lines.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Flow {
    pub(super) last_active: Instant,
    bytes_up: u64,
    /// Up to two entries of the wheel: an earlier deadline is armed beside a later one, which stays where it is. Taking
    /// that out would touch its neighbours, flows that nobody has seen for long, for an acknowledgement 40 ms ahead.
    timers: [Armed; 2],
    pub(super) life: Life,
    pub(super) tcb: Tcb,
    bytes_down: u64,
    opened_at: Instant,
    key: FlowKey,
    hash: u64,
}

/// An entry of the wheel; its token is twice the flow's index, plus which of the two it is.
#[derive(Clone, Copy, Debug)]
struct Armed {
    /// [`TimerId::NONE`] without one.
    id: TimerId,
    /// [`Instant::FAR`] without one.
    at: Instant,
}

impl Armed {
    const NONE: Self = Self { id: TimerId::NONE, at: Instant::FAR };
}

impl Flow {
    pub(super) fn new(tcb: Tcb, key: FlowKey, hash: u64, now: Instant) -> Self {
        Self {
            tcb,
            key,
            hash,
            timers: [Armed::NONE; 2],
            last_active: now,
            opened_at: now,
            bytes_up: 0,
            bytes_down: 0,
            life: Life::Connecting(Queued::default()),
        }
    }

    pub(super) fn is_v4(&self) -> bool {
        self.key.src().is_ipv4()
    }

    /// Reads a little of each part that a segment will need, so that the parts are on their way to the cache.
    #[inline]
    pub(super) fn warm(&self) -> u64 {
        self.last_active.nanos() ^ self.tcb.warm()
    }

    pub(super) fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.key.source(), self.key.destination())
    }

    pub(super) fn info(&self, id: FlowId) -> FlowInfo {
        let (client, target) = self.ends();
        FlowInfo {
            id,
            client,
            target,
            state: self.tcb.state(),
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
            opened_at: self.opened_at.nanos(),
        }
    }
}

/// What a control block needs from its stack, borrowed field by field.
pub(super) fn context<'a>(
    now: Instant,
    config: &'a Config,
    pool: &'a mut PoolCache,
    budget: &'a mut Budget,
    memory: &'a mut BufferBudget,
    stats: &'a mut StackStats,
) -> Ctx<'a> {
    Ctx {
        now,
        config: &config.tcp,
        stream: &config.stream,
        mode: config.reassembly,
        pool,
        budget,
        memory,
        counts: &mut stats.drops,
        tcp: &mut stats.tcp,
    }
}

impl Stack {
    /// The upstream of `flow` is there: the client's handshake goes on.
    pub fn connected(&mut self, now: Instant, flow: FlowId) {
        self.command(now, flow, Tcb::connected);
    }

    /// The upstream of `flow` said no; the client is told on the wire what `how` means.
    pub fn refused(&mut self, now: Instant, flow: FlowId, how: Refusal) {
        self.inner.refuse_flow(now, flow, how);
        self.settle_commands(now);
    }

    /// Bytes from the upstream, to the client. Gives the buffer back when the flow is gone.
    ///
    /// # Errors
    /// The buffer, when `flow` is not alive.
    pub fn upstream_data(&mut self, now: Instant, flow: FlowId, data: Buf) -> Result<(), Buf> {
        let Inner { flows, config, pool, budget, memory, stats, .. } = &mut self.inner;
        let Some(entry) = flows.get_mut(flow).filter(|entry| entry.life.is_alive()) else { return Err(data) };
        entry.last_active = now;
        entry.bytes_down += data.len() as u64;
        let mut ctx = context(now, config, pool, budget, memory, stats);
        entry.tcb.push(&mut ctx, data);
        self.inner.touch(flow.index);
        Ok(())
    }

    /// The upstream has no more bytes: FIN to the client after what is queued.
    pub fn upstream_eof(&mut self, now: Instant, flow: FlowId) {
        self.command(now, flow, Tcb::upstream_eof);
    }

    /// The upstream broke: RST to the client.
    pub fn upstream_reset(&mut self, now: Instant, flow: FlowId) {
        if self.inner.flows.get(flow).is_some() {
            self.inner.end(now, flow.index, CloseReason::Upstream);
        }
    }

    /// Bytes that wait for the upstream.
    pub fn readable_len(&self, flow: FlowId) -> usize {
        self.inner.flows.get(flow).map_or(0, |entry| entry.tcb.readable_len())
    }

    /// The bytes that wait for the upstream, in order; tell with [`Stack::consume`] how many it took.
    pub fn readable(&self, flow: FlowId) -> impl Iterator<Item = &[u8]> {
        self.inner.flows.get(flow).into_iter().flat_map(|entry| entry.tcb.readable())
    }

    /// The upstream took `len` bytes of `readable(flow)`; the client's window opens by as much.
    pub fn consume(&mut self, now: Instant, flow: FlowId, len: usize) {
        let Inner { flows, config, pool, budget, memory, stats, .. } = &mut self.inner;
        let Some(entry) = flows.get_mut(flow).filter(|entry| entry.life.is_alive()) else { return };
        entry.bytes_up += len as u64;
        let mut ctx = context(now, config, pool, budget, memory, stats);
        entry.tcb.consume(&mut ctx, len);
        self.inner.touch(flow.index);
    }

    /// The upstream takes no more bytes, though it may still give some: bytes of the client are answered with RST.
    pub fn reader_gone(&mut self, now: Instant, flow: FlowId) {
        self.command(now, flow, Tcb::reader_gone);
    }

    /// Bytes that the upstream may hand over now; after 0, a [`Request::Writable`] says when to ask again.
    pub fn room(&mut self, flow: FlowId) -> usize {
        let Inner { flows, config, memory, .. } = &mut self.inner;
        flows
            .get_mut(flow)
            .filter(|entry| entry.life.is_alive())
            .map_or(0, |entry| entry.tcb.upstream_room(&config.tcp, memory))
    }

    /// Payload of the largest segment or super-segment to the client, bytes: reads from the upstream are best a
    /// multiple of it. 0 for a flow that is gone.
    pub fn segment_unit(&self, flow: FlowId) -> usize {
        let inner = &self.inner;
        inner.flows.get(flow).map_or(0, |entry| entry.tcb.segment_unit(&inner.limits(entry.is_v4())))
    }

    /// Whether `flow` is alive.
    pub fn is_open(&self, flow: FlowId) -> bool {
        self.inner.flows.get(flow).is_some_and(|entry| entry.life.is_alive())
    }

    /// Client and target of a flow.
    pub fn ends(&self, flow: FlowId) -> Option<(SocketAddr, SocketAddr)> {
        self.inner.flows.get(flow).map(Flow::ends)
    }

    /// Settles what upstream calls have changed since the last batch: requests appear, timers are armed.
    ///
    /// [`Stack::handle_batch`] and [`Stack::poll_transmit`] do so themselves.
    pub fn settle_commands(&mut self, now: Instant) {
        let Self { map, inner } = self;
        let map = &map.map;
        inner.end_batch(now, &mut ShardCursor::new(map));
    }

    #[inline]
    fn command(&mut self, now: Instant, flow: FlowId, run: impl FnOnce(&mut Tcb, &mut Ctx<'_>)) {
        let Inner { flows, config, pool, budget, memory, stats, .. } = &mut self.inner;
        let Some(entry) = flows.get_mut(flow).filter(|entry| entry.life.is_alive()) else { return };
        let mut ctx = context(now, config, pool, budget, memory, stats);
        run(&mut entry.tcb, &mut ctx);
        self.inner.touch(flow.index);
    }
}

impl Inner {
    /// The flow's state may have changed: settle it at the end of the batch.
    #[inline]
    pub(super) fn touch(&mut self, index: u32) {
        if let Some(queued) = self.flows.at_mut(index).and_then(|flow| flow.life.queued())
            && !queued.dirty
        {
            queued.dirty = true;
            self.dirty.push(self.flows.id_of(index));
        }
    }

    /// Settles all touched flows and reaps the closed ones.
    pub(super) fn end_batch(&mut self, now: Instant, cursor: &mut ShardCursor<'_>) {
        self.settle_dirty(now);
        self.reap(cursor);
    }

    /// Turns what happened to touched flows into requests, timers and places in the transmit queue.
    pub(super) fn settle_dirty(&mut self, now: Instant) {
        // Indexing, not draining: settling may end a flow, which touches nothing but that flow.
        let mut position = 0;
        while let Some(&id) = self.dirty.get(position) {
            position += 1;
            self.settle(now, id);
        }
        self.dirty.clear();
    }

    fn settle(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        if let Some(queued) = flow.life.queued() {
            queued.dirty = false;
        }
        self.hear(id.index);
        self.want_transmit(id.index);
        self.arm(now, id.index);
    }

    /// A flow has sent all that it can for now.
    pub(super) fn settle_sent(&mut self, now: Instant, index: u32) {
        self.hear(index);
        self.arm(now, index);
    }

    /// Iterations the news of a flow into requests.
    fn hear(&mut self, index: u32) {
        let Some(flow) = self.flows.at_mut(index) else { return };
        if flow.tcb.state() != State::SynPending
            && let Some(open) = flow.life.after(Step::Answered)
        {
            flow.life = open;
            self.stats.pending -= 1;
        }
        if !flow.tcb.has_events() {
            return;
        }
        let events = flow.tcb.take_events();
        let alive = flow.life.is_alive();
        let reason = flow.tcb.close_reason();
        let id = self.flows.id_of(index);
        if alive {
            if events.contains(Events::READABLE) {
                self.requests.push_back(Request::Readable(id));
            }
            if events.contains(Events::PEER_FIN) {
                self.requests.push_back(Request::Finish(id));
            }
            if events.contains(Events::WRITABLE) {
                self.requests.push_back(Request::Writable(id));
            }
            if events.contains(Events::RESET) || events.contains(Events::CLOSED) {
                self.finish(id, reason.map_or(CloseReason::Finished, CloseReason::from));
            }
        }
        if events.contains(Events::CLOSED) {
            self.close(id);
        }
    }

    #[inline]
    fn want_transmit(&mut self, index: u32) {
        if let Some(queued) = self.flows.at_mut(index).and_then(|flow| flow.life.queued())
            && !queued.transmit
        {
            queued.transmit = true;
            self.transmit.ids.push_back(self.flows.id_of(index));
        }
    }

    /// Arms the flow's timer when its deadline is earlier than what is armed; a later one re-arms itself when it fires.
    pub(super) fn arm(&mut self, now: Instant, index: u32) {
        let Some(flow) = self.flows.at_mut(index) else { return };
        let deadline = flow.tcb.deadline().map_or(Instant::FAR, |(at, _)| at);
        let [first, second] = &flow.timers;
        if deadline >= first.at.min(second.at) {
            return;
        }
        // A free place, else that of the earlier one.
        let which =
            if first.at == Instant::FAR { 0 } else { usize::from(second.at == Instant::FAR || second.at < first.at) };
        let place = &mut flow.timers[which];
        self.wheel.cancel(place.id);
        let id = self.wheel.insert(index << 1 | which as u32, deadline.max(now));
        *place = Armed { id, at: deadline };
    }

    /// Runs what is due, at most so many timers of flows and ends of sessions each.
    pub(super) fn run_timers(&mut self, now: Instant, most: usize) {
        let mut left = most;
        let mut moves = most.saturating_mul(MOVES);
        while left > 0 {
            let mut due = [0; TIMERS];
            let mut count = 0;
            let expired = core::iter::from_fn(|| self.wheel.pop_expired_within(now, &mut moves));
            for (slot, token) in due.iter_mut().zip(expired).take(left) {
                *slot = token;
                count += 1;
            }
            // Flows with a timer have mostly not been seen for a while: their cache misses overlap here.
            let flows = due[..count].iter().filter_map(|&token| self.flows.at(token >> 1));
            core::hint::black_box(flows.fold(0, |sum, flow| sum ^ flow.warm()));
            for &token in &due[..count] {
                self.flow_timer(now, token);
            }
            left -= count;
            if count < TIMERS {
                break;
            }
        }
        while let Some(first) = self.fragments.handle_timeout(now, &mut self.pool) {
            self.reassembly_late(now, first);
        }
        self.expire_sessions(now, most);
    }

    fn flow_timer(&mut self, now: Instant, token: u32) {
        let index = token >> 1;
        let Inner { flows, config, pool, budget, memory, stats, .. } = self;
        let Some(flow) = flows.at_mut(index) else { return };
        flow.timers[token as usize & 1] = Armed::NONE;
        if flow.tcb.deadline().is_some_and(|(at, _)| at <= now) {
            let mut ctx = context(now, config, pool, budget, memory, stats);
            flow.tcb.handle_timeout(&mut ctx);
        }
        self.touch(index);
    }

    /// Ends a flow with an RST to the client.
    pub(super) fn end(&mut self, now: Instant, index: u32, reason: CloseReason) {
        let Inner { flows, config, pool, budget, memory, stats, .. } = self;
        let Some(flow) = flows.at_mut(index).filter(|flow| flow.life.is_alive()) else { return };
        let mut ctx = context(now, config, pool, budget, memory, stats);
        flow.tcb.abort(&mut ctx);
        let id = self.flows.id_of(index);
        self.finish(id, reason);
        self.touch(index);
    }

    fn refuse_flow(&mut self, now: Instant, id: FlowId, how: Refusal) {
        let Some(flow) = self.flows.get(id).filter(|flow| flow.life.is_alive()) else { return };
        self.stats.flows_refused += 1;
        let (client, target) = flow.ends();
        let seq = flow.tcb.client_isn();
        // Once a SYN-ACK has left, neither silence nor ICMP says anything that a client must believe (RFC 5461): then
        // it is a reset.
        let unanswered = flow.tcb.state() == State::SynPending;
        let icmp = match how {
            Refusal::Refused | Refusal::Failed | Refusal::Timeout => None,
            Refusal::HostUnreachable => Some(IcmpError::HostUnreachable),
            Refusal::NetUnreachable => Some(IcmpError::NetUnreachable),
            Refusal::Prohibited => Some(IcmpError::Prohibited),
        };
        let silent = unanswered && (icmp.is_some() || how == Refusal::Timeout);
        if let Some(error) = icmp
            && unanswered
        {
            self.send_tcp_unreachable(now, client, target, seq, error);
        }
        let Inner { flows, config, pool, budget, memory, stats, .. } = self;
        let Some(flow) = flows.get_mut(id) else { return };
        let mut ctx = context(now, config, pool, budget, memory, stats);
        flow.tcb.refused(&mut ctx, if silent { tcp::Refusal::Silent } else { tcp::Refusal::Reset });
        self.finish(id, CloseReason::Upstream);
        self.touch(id.index);
    }

    /// The driver learns that the flow is gone; its last segments may still leave.
    fn finish(&mut self, id: FlowId, reason: CloseReason) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Some(ended) = flow.life.after(Step::End) else { return };
        if matches!(flow.life, Life::Connecting(_)) {
            self.stats.pending -= 1;
        }
        flow.life = ended;
        self.stats.flows_closed[reason as usize] += 1;
        self.requests.push_back(Request::Closed(id, reason));
    }

    /// A flow that has ended has nothing left to send.
    fn close(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Some(closed) = flow.life.after(Step::Close) else { return };
        let before = core::mem::replace(&mut flow.life, closed);
        self.forget(before);
        self.closed.push(id);
    }

    /// The entry that the transmit queue may have of a flow with this life is stale now.
    fn forget(&mut self, mut life: Life) {
        if life.queued().is_some_and(|queued| queued.transmit) {
            self.transmit.went_stale(&self.flows);
        }
    }

    /// Takes closed flows out of map and table.
    pub(super) fn reap(&mut self, cursor: &mut ShardCursor<'_>) {
        while let Some(id) = self.closed.pop() {
            if self.flows.get(id).is_some() {
                self.reap_one(id.index, cursor);
            }
        }
    }

    /// Takes one flow out of map and table, whatever it was doing.
    pub(super) fn reap_one(&mut self, index: u32, cursor: &mut ShardCursor<'_>) {
        if let Some(flow) = self.flows.at(index) {
            // A client that dials anew while its upstream is being dialled has given the first attempt up.
            let opening = matches!(flow.tcb.state(), State::SynPending | State::SynReceived);
            let reason = if opening { CloseReason::ClientReset } else { CloseReason::Finished };
            self.finish(self.flows.id_of(index), reason);
        }
        let Some(flow) = self.flows.remove(index) else { return };
        self.changes = self.changes.wrapping_add(1);
        cursor.shard(flow.hash).remove(flow.hash, &flow.key);
        self.forget(flow.life);
        for armed in flow.timers {
            self.wheel.cancel(armed.id);
        }
        flow.tcb.release(&mut self.pool, &mut self.budget, &mut self.memory);
    }

    /// Ends the most idle flow of a sample, to make room; false when none is idle enough.
    pub(super) fn evict(&mut self, now: Instant) -> bool {
        let slots = self.flows.slots() as u32;
        let mut oldest: Option<(u32, Instant)> = None;
        for step in 0..EVICT_SAMPLE.min(slots) {
            let index = (self.evict_cursor + step) % slots;
            if let Some(flow) = self.flows.at(index)
                && flow.life.is_alive()
                && oldest.is_none_or(|(_, at)| flow.last_active < at)
            {
                oldest = Some((index, flow.last_active));
            }
        }
        self.evict_cursor = (self.evict_cursor + EVICT_SAMPLE) % slots.max(1);
        let Some((index, at)) = oldest else { return false };
        let waits = self.flows.at(index).is_some_and(|flow| flow.tcb.state() == State::TimeWait);
        if !waits && now.since(at) < EVICT_MIN_IDLE {
            return false;
        }
        self.stats.flows_evicted += 1;
        self.end(now, index, CloseReason::Evicted);
        true
    }

    /// The initial sequence number of RFC 6528, section 3: a clock of 4 µs ticks and a keyed hash of both ends.
    pub(super) fn initial_sequence(&self, now: Instant, key: &FlowKey) -> SeqNumber {
        let [k0, k1] = self.config.secrets.isn;
        let mut hasher = SipHasher24::new_with_keys(k0, k1);
        core::hash::Hash::hash(key, &mut hasher);
        SeqNumber((now.nanos() / 4_000).wrapping_add(hasher.finish()) as u32)
    }

    pub(super) fn shutdown(&mut self, now: Instant) {
        for index in 0..self.flows.slots() as u32 {
            self.end(now, index, CloseReason::Shutdown);
        }
        self.fragments.clear(&mut self.pool);
        self.close_sessions();
    }

    pub(super) fn snapshot(&self) -> StackStats {
        let mut stats = self.stats.clone();
        stats.flows = self.flows.len() as u64;
        stats.sessions = self.sessions.len() as u64;
        stats.reassembly_bytes = self.budget.used();
        stats.reassembly_bytes_peak = self.budget.peak();
        stats.reassembly_bytes_total = self.budget.total_in();
        stats.drops.merge(self.fragments.lost());
        let fragments = self.fragments.stats();
        stats.fragment_bytes = fragments.bytes;
        stats.fragment_bytes_peak = fragments.bytes_peak;
        stats.fragment_bytes_total = fragments.bytes_total;
        stats.buffered = self.memory.used();
        stats.timers = self.wheel.len() as u64;
        stats.stages = self.probe.times;
        let (transmit, out) = (crate::stats::Stage::Transmit as usize, &self.probe_out.times);
        stats.stages.nanos[transmit] = out.nanos[transmit];
        stats.stages.marks[transmit] = out.marks[transmit];
        stats
    }
}
