//! The only composer: packets and upstream events in, packets and requests out.
//!
//! A [`Stack`] belongs to one worker thread. It promises that nothing is lost silently (each refused packet counts a
//! [`DropReason`](crate::stats::DropReason)), that nothing it holds is unbounded (see [`Config`]), and that after
//! [`Stack::shutdown`] and a drain no buffer, flow or timer is left. It refuses to do I/O, to read a clock, and to
//! panic on untrusted bytes.
//!
//! The driver's iteration: `handle_batch`, `handle_timeout` and the upstream calls (`connected`, `upstream_data`, …) in
//! any order, then `poll_request` until it is empty, then `poll_transmit` until it is empty.

mod api;
mod cursor;
mod datagrams;
mod egress;
mod flows;
mod ingress;
mod owner;
mod path_mtu;
mod probe;
mod slab;
#[cfg(test)]
mod tests;
mod worker_map;

use std::collections::VecDeque;
use std::sync::Arc;

pub use api::{CloseReason, Disposition, FlowId, FlowInfo, MAX_SLICES, Packet, Refusal, Request, StackStats, Transmit};

use crate::buf::{Buf, Pool, PoolCache};
use crate::config::Config;
use crate::fragment::FragmentReassembler;
use crate::icmp::IcmpErrorLimiter;
use crate::path_mtu::PathMtus;
use crate::reassembly::Budget;
use crate::tcp::BufferBudget;
use crate::time::Instant;
use crate::timer::Wheel;
use crate::udp::{SessionInfo, Sessions};
use cursor::ShardCursor;
use egress::Staged;
pub use flows::EVICT_SLACK;
use flows::{Flow, TransmitQueue};
use ingress::{Parsed, PendingSegment};
use probe::Probe;
use slab::Slab;
pub use worker_map::WorkerMap;

/// Packets built by the stack itself (RST, ICMP, datagrams) that may wait for the device. Beyond that they are dropped:
/// each of them is one that IP lets a host drop.
const RAW_QUEUE: usize = 4_096;
/// Timers whose flows are fetched together: their cache misses overlap.
const TIMERS: usize = 4;

/// Timers that may move to a lower level of the wheel for each that may fire; a move costs about a cache miss.
const MOVES: usize = 8;

/// Headers of a transmitted packet: IPv6 (40) and TCP with all its options (60) fit.
const HEADER_MAX: usize = 128;

/// A packet that the stack built whole.
#[derive(Debug)]
struct Raw {
    buf: Buf,
    virtio: crate::wire::virtio::VirtioNetHdr,
}

/// The packet core of one worker.
#[derive(Debug)]
pub struct Stack {
    map: Arc<WorkerMap>,
    inner: Inner,
}

/// Everything but the shared map, so that a locked shard and the rest can be borrowed side by side.
#[derive(Debug)]
struct Inner {
    config: Config,
    worker: usize,
    workers: usize,
    pool: PoolCache,
    flows: Slab<Flow>,
    wheel: Wheel,
    sessions: Sessions,
    fragments: FragmentReassembler,
    budget: Budget,
    memory: BufferBudget,
    icmp_errors: IcmpErrorLimiter,
    paths: PathMtus,
    stats: StackStats,
    requests: VecDeque<Request>,
    /// Segments between the steps of a batch; empty outside of one.
    segments: Vec<PendingSegment>,
    /// Counts flows that came or went: what was looked up before may be wrong after.
    changes: u32,
    /// Flows touched in this batch, each once ([`flows::Life`]); those that are gone since are skipped.
    dirty: Vec<FlowId>,
    transmit: TransmitQueue,
    raw: VecDeque<Raw>,
    /// Flows that are closed, to be reaped under their shard's lock.
    closed: Vec<FlowId>,
    foreign: VecDeque<(usize, Packet)>,
    header: [u8; HEADER_MAX],
    staged: Staged,
    /// The packet handed out last, kept until the next call because the caller reads from it.
    last: Option<Buf>,
    /// Super-segments or segments that the flow in front of `transmit` has sent in a row.
    burst: u32,
    /// Where the search for an idle flow goes on.
    evict_cursor: u32,
    ip_id: u16,
    /// Stage times on the way in, and on the way out.
    probe: Probe,
    probe_out: Probe,
}

impl Stack {
    /// The stack of a single worker, with a map of its own.
    pub fn new(config: Config, pool: &Pool, now: Instant) -> Self {
        let map = Arc::new(WorkerMap::new(&config, 1, 1));
        Self::for_worker(config, pool, &map, 0, now)
    }

    /// The stack of one of the workers that share `map`, which was made with the same `config`.
    ///
    /// A worker owns the flows whose shard or hash modulo the number of workers is its own number.
    ///
    /// # Panics
    /// When `worker` is not below [`WorkerMap::workers`]: a programming error.
    pub fn for_worker(config: Config, pool: &Pool, map: &Arc<WorkerMap>, worker: usize, now: Instant) -> Self {
        let workers = map.workers();
        assert!(worker < workers, "worker {worker} of {workers}");
        let map = Arc::clone(map);
        let inner = Inner {
            worker,
            workers,
            pool: pool.cache(),
            // A timer names a flow and one bit more.
            flows: Slab::new((config.max_tcp_flows as usize + flows::EVICT_SLACK).min(1 << 31)),
            wheel: Wheel::new(now),
            sessions: Sessions::new(config.udp, config.max_udp_sessions, config.secrets.flow_hash),
            fragments: FragmentReassembler::new(config.fragment, config.reassembly, config.secrets.flow_hash),
            budget: Budget::new(config.stream.total_bytes),
            memory: BufferBudget::new(config.buffer_budget),
            icmp_errors: IcmpErrorLimiter::new(config.icmp_errors_per_second, now),
            paths: PathMtus::default(),
            stats: StackStats::default(),
            requests: VecDeque::with_capacity(256),
            segments: Vec::with_capacity(256),
            changes: 0,
            dirty: Vec::with_capacity(256),
            transmit: TransmitQueue::default(),
            raw: VecDeque::with_capacity(64),
            closed: Vec::with_capacity(64),
            foreign: VecDeque::new(),
            header: [0; HEADER_MAX],
            staged: Staged::Nothing,
            last: None,
            burst: 0,
            evict_cursor: 0,
            ip_id: config.secrets.isn[0] as u16,
            probe: Probe::new(config.clock, config.sample_every),
            probe_out: Probe::new(config.clock, config.sample_every),
            config,
        };
        Self { map, inner }
    }

    /// Takes one packet; see [`Stack::handle_batch`] for many.
    pub fn handle_packet(&mut self, now: Instant, packet: Packet) -> Disposition {
        let Self { map, inner } = self;
        let map = &map.map;
        let mut cursor = ShardCursor::new(map);
        let disposition = match inner.parse(now, packet, map) {
            Parsed::Done(disposition) => disposition,
            Parsed::Segment(mut segment) => {
                inner.lookup(&mut segment, &mut cursor);
                inner.deliver(now, segment, true, &mut cursor)
            }
        };
        inner.end_batch(now, &mut cursor);
        disposition
    }

    /// Takes all packets of `batch` (which is empty afterwards), locking each shard at most once in a row.
    /// Returns how many were accepted.
    pub fn handle_batch(&mut self, now: Instant, batch: &mut Vec<Packet>) -> usize {
        let Self { map, inner } = self;
        let map = &map.map;
        let mut cursor = ShardCursor::new(map);
        let mut accepted = 0;
        let mut segments = core::mem::take(&mut inner.segments);
        for packet in batch.drain(..) {
            match inner.parse(now, packet, map) {
                Parsed::Segment(segment) => segments.push(segment),
                Parsed::Done(Disposition::Dropped(_)) => {}
                Parsed::Done(_) => accepted += 1,
            }
        }
        for segment in &mut segments {
            inner.lookup(segment, &mut cursor);
        }
        inner.warm(&segments);
        let changes = inner.changes;
        for segment in segments.drain(..) {
            let fresh = inner.changes == changes;
            if !matches!(inner.deliver(now, segment, fresh, &mut cursor), Disposition::Dropped(_)) {
                accepted += 1;
            }
        }
        inner.segments = segments;
        inner.end_batch(now, &mut cursor);
        accepted
    }

    /// Runs all timers that are due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Self { map, inner } = self;
        let map = &map.map;
        inner.run_timers(now, usize::MAX);
        inner.end_batch(now, &mut ShardCursor::new(map));
    }

    /// Runs at most so many timers of flows, and ends of sessions, that are due at `now`, so that an iteration stays
    /// short when many have one in the same tick; [`Stack::next_timeout`] says whether there are more.
    pub fn handle_some_timeouts(&mut self, now: Instant, most: usize) {
        let Self { map, inner } = self;
        let map = &map.map;
        inner.run_timers(now, most);
        inner.end_batch(now, &mut ShardCursor::new(map));
    }

    /// When `handle_timeout` wants to be called next; `None` while nothing is armed.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let inner = &self.inner;
        [inner.wheel.next(), inner.fragments.next_timeout(), inner.sessions.next_timeout()].into_iter().flatten().min()
    }

    /// The next thing to do for an upstream.
    #[must_use]
    pub fn poll_request(&mut self, now: Instant) -> Option<Request> {
        self.inner.settle_dirty(now);
        self.inner.requests.pop_front()
    }

    /// A packet for another worker, with that worker's number; hand it to that worker's `handle_packet`.
    #[must_use]
    pub fn poll_foreign(&mut self) -> Option<(usize, Packet)> {
        self.inner.foreign.pop_front()
    }

    /// The next packet for the device. It borrows the stack: write or copy it before the next call.
    #[must_use]
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit<'_>> {
        if !self.inner.stage_transmit(now) {
            let Self { map, inner } = self;
            let map = &map.map;
            inner.reap(&mut ShardCursor::new(map));
            return None;
        }
        Some(self.inner.staged())
    }

    /// A buffer of at least `len` bytes behind `headroom` bytes; `None` at the pool's ceiling (counted there).
    #[must_use]
    pub fn alloc(&mut self, len: usize, headroom: usize) -> Option<Buf> {
        self.inner.pool.alloc(len + headroom, headroom).ok()
    }

    /// Gives a buffer back.
    pub fn free(&mut self, buf: Buf) {
        self.inner.pool.free(buf);
    }

    /// The worker's end of the memory pool.
    pub fn pool(&mut self) -> &mut PoolCache {
        &mut self.inner.pool
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The device refused an offloaded packet: sends plain packets from now on.
    pub fn drop_offload(&mut self) {
        self.inner.config.offload = crate::config::Offload::default();
    }

    /// Housekeeping between two iterations, when nothing waits: gets memory ready that the next new flow or session
    /// would have to touch for the first time, which takes microseconds, or the next packet would have to ask the
    /// system for, which takes tens of them: true if so. At the cap of sessions, fetches the one that goes next. Next
    /// to nothing when there is nothing to do.
    pub fn prepare(&mut self) -> bool {
        let inner = &mut self.inner;
        inner.flows.prepare() | inner.sessions.prepare() | inner.pool.preallocate()
    }

    /// Housekeeping, about once a second while idle: gives free table chunks and cached buffers back.
    pub fn trim(&mut self) {
        self.inner.flows.trim();
        self.inner.pool.flush();
    }

    /// A copy of the counters.
    pub fn stats(&self) -> StackStats {
        self.inner.snapshot()
    }

    /// All TCP flows.
    pub fn flows(&self) -> Vec<FlowInfo> {
        self.inner.flows.iter().map(|(id, flow)| flow.info(id)).collect()
    }

    /// All UDP sessions.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.inner.sessions.iter().collect()
    }

    /// Resets every flow and forgets every session and fragment; the resets come out of `poll_transmit`.
    pub fn shutdown(&mut self, now: Instant) {
        let Self { map, inner } = self;
        let map = &map.map;
        inner.shutdown(now);
        inner.end_batch(now, &mut ShardCursor::new(map));
    }
}
