//! The only composer: packets and upstream events in, packets and requests out.
//!
//! A [`Stack`] belongs to one worker thread. It promises that nothing is lost silently (each refused packet counts a
//! [`DropReason`](crate::stats::DropReason)), that nothing it holds is unbounded (see [`Config`]), and that after
//! [`Stack::shutdown`] and a drain no buffer, flow or timer is left. It refuses to do I/O, to read a clock, and to
//! panic on untrusted bytes.
//!
//! The driver's turn: `handle_batch`, `handle_timeout` and the upstream calls (`connected`, `upstream_data`, …) in any
//! order, then `poll_request` until it is empty, then `poll_transmit` until it is empty.

mod api;
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

use std::collections::VecDeque;
use std::sync::Arc;

pub use api::{CloseReason, Disposition, FlowId, FlowInfo, MAX_SLICES, Packet, Refusal, Request, StackStats, Transmit};
pub use owner::owner_of;

use crate::buf::{Buf, Pool, PoolCache};
use crate::config::Config;
use crate::flow::{FlowMap, ShardGuard};
use crate::fragment::FragmentReassembler;
use crate::icmp::Errors;
use crate::path_mtu::PathMtus;
use crate::reassembly::Budget;
use crate::tcp::BufferBudget;
use crate::time::Instant;
use crate::timer::Wheel;
use crate::udp::{SessionInfo, Sessions};
use egress::Staged;
use flows::Flow;
use ingress::{Look, Looked};
use probe::Probe;
use slab::Slab;

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

/// The shard that a batch holds locked.
type Held<'m> = Option<(usize, ShardGuard<'m, u32>)>;

/// The packet core of one worker.
#[derive(Debug)]
pub struct Stack {
    map: Arc<FlowMap<u32>>,
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
    icmp_errors: Errors,
    paths: PathMtus,
    stats: StackStats,
    requests: VecDeque<Request>,
    /// Segments between the steps of a batch; empty outside of one.
    looked: Vec<Looked>,
    /// Counts flows that came or went: what was looked up before may be wrong after.
    changes: u32,
    /// Flows touched in this batch, each once (`Flow::dirty`).
    dirty: Vec<u32>,
    /// Flows that may have something to send, each once (`Flow::queued`).
    tx: VecDeque<u32>,
    raw: VecDeque<Raw>,
    /// Flows that are over and have said their last word; buried under the shard's lock.
    graves: Vec<u32>,
    foreign: VecDeque<(usize, Packet)>,
    header: [u8; HEADER_MAX],
    staged: Staged,
    /// The packet handed out last, kept until the next call because the caller reads from it.
    last: Option<Buf>,
    /// Super-segments or segments that the flow in front of `tx` has sent in a row.
    burst: u32,
    /// Where the search for an idle flow goes on.
    evict_cursor: u32,
    ip_id: u16,
    /// Stage times on the way in, and on the way out.
    probe: Probe,
    probe_out: Probe,
}

impl Stack {
    /// A stack for `worker` of `workers`, which share `map` and `pool`.
    ///
    /// A worker owns the flows whose hash modulo `workers` is its number; `map` has either one shard or a multiple of
    /// `workers` shards, so that a shard has one owner unless it is the only one.
    ///
    /// # Panics
    /// When `worker >= workers`, or the shards are neither 1 nor a multiple of `workers`: a programming error.
    pub fn new(
        config: Config,
        pool: &Pool,
        map: Arc<FlowMap<u32>>,
        worker: usize,
        workers: usize,
        now: Instant,
    ) -> Self {
        assert!(worker < workers, "worker {worker} of {workers}");
        assert!(
            map.shards() == 1 || map.shards().is_multiple_of(workers),
            "{} shards for {workers} workers",
            map.shards()
        );
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
            icmp_errors: Errors::new(config.icmp_errors_per_second, now),
            paths: PathMtus::default(),
            stats: StackStats::default(),
            requests: VecDeque::with_capacity(256),
            looked: Vec::with_capacity(256),
            changes: 0,
            dirty: Vec::with_capacity(256),
            tx: VecDeque::with_capacity(256),
            raw: VecDeque::with_capacity(64),
            graves: Vec::with_capacity(64),
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
        let mut held = None;
        let disposition = match inner.look(now, packet, map) {
            Look::Done(disposition) => disposition,
            Look::Segment(mut looked) => {
                inner.look_up(&mut looked, map, &mut held);
                inner.deliver(now, looked, true, map, &mut held)
            }
        };
        inner.end_batch(now, map, &mut held);
        disposition
    }

    /// Takes all packets of `batch` (which is empty afterwards), locking each shard at most once in a row.
    /// Returns how many were accepted.
    pub fn handle_batch(&mut self, now: Instant, batch: &mut Vec<Packet>) -> usize {
        let Self { map, inner } = self;
        let mut held = None;
        let mut accepted = 0;
        let mut looked = core::mem::take(&mut inner.looked);
        for packet in batch.drain(..) {
            match inner.look(now, packet, map) {
                Look::Segment(segment) => looked.push(segment),
                Look::Done(Disposition::Dropped(_)) => {}
                Look::Done(_) => accepted += 1,
            }
        }
        for segment in &mut looked {
            inner.look_up(segment, map, &mut held);
        }
        inner.warm(&looked);
        let changes = inner.changes;
        for segment in looked.drain(..) {
            let fresh = inner.changes == changes;
            if !matches!(inner.deliver(now, segment, fresh, map, &mut held), Disposition::Dropped(_)) {
                accepted += 1;
            }
        }
        inner.looked = looked;
        inner.end_batch(now, map, &mut held);
        accepted
    }

    /// Runs all timers that are due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Self { map, inner } = self;
        inner.run_timers(now, usize::MAX);
        inner.end_batch(now, map, &mut None);
    }

    /// Runs at most so many timers of flows, and ends of sessions, that are due at `now`, so that a turn stays short when
    /// many have one in the same tick; [`Stack::next_timeout`] says whether there are more.
    pub fn handle_some_timeouts(&mut self, now: Instant, most: usize) {
        let Self { map, inner } = self;
        inner.run_timers(now, most);
        inner.end_batch(now, map, &mut None);
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
            inner.bury(map, &mut None);
            return None;
        }
        Some(self.inner.transmit())
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

    /// Housekeeping between two turns, when nothing waits: gets memory ready that the next new flow or session would
    /// have to touch for the first time, which takes microseconds, or the next packet would have to ask the system for,
    /// which takes tens of them: true if so. At the cap of sessions, fetches the one that goes next. Next to nothing when
    /// there is nothing to do.
    pub fn prepare(&mut self) -> bool {
        let inner = &mut self.inner;
        inner.flows.prepare() | inner.sessions.prepare() | inner.pool.grow_ahead()
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
        inner.shutdown(now);
        inner.end_batch(now, map, &mut None);
    }
}
