//! Counters of a worker, and rows of its flows.

use std::net::SocketAddr;

use serde::Serialize;

use t2s_core::buf::PoolStats;
use t2s_core::stack::{CloseReason, FlowInfo, StackStats};
use t2s_core::stats::{DropCounts, DropReason};
use t2s_core::udp::SessionInfo;

use super::Worker;
use super::histogram::Histogram;
use crate::dial::Failure;

/// Counters of one worker since its start.
#[derive(Clone, Debug, Default)]
pub struct WorkerStats {
    /// Counters of its stack.
    pub stack: StackStats,
    /// Packets dropped before they reached the stack, by reason.
    pub drops: DropCounts,
    /// Packets read from the device; super-segments count once.
    pub device_reads: u64,
    /// Packets written to the device; super-segments count once.
    pub device_writes: u64,
    /// Writes that the device refused.
    pub device_errors: u64,
    /// Times that the device's offload was given up.
    pub offload_dropped: u64,
    /// Writes to upstream streams.
    pub upstream_writes: u64,
    /// Reads from upstream streams.
    pub upstream_reads: u64,
    /// Bytes written to upstream streams.
    pub bytes_up: u64,
    /// Bytes read from upstream streams.
    pub bytes_down: u64,
    /// Upstreams that broke while bytes flowed.
    pub upstream_resets: u64,
    /// Flows that wanted a connection, dialled or made ahead.
    pub dials: u64,
    /// Connections to the proxy made ahead of the flows that may use them.
    pub dials_ahead: u64,
    /// Of these, those that a flow or a session has taken.
    pub taken_ahead: u64,
    /// Of these, those whose end crossed the request, so that it was dialled anew.
    pub dialled_again: u64,
    /// Connections made.
    pub dials_done: u64,
    /// From dialling to the connection with the proxy.
    pub connect_times: Histogram,
    /// From dialling to the proxy's answer.
    pub reply_times: Histogram,
    /// From dialling to the target's first byte.
    pub first_byte_times: Histogram,
    /// Connections that failed, by [`Failure::index`].
    pub failures: [u64; Failure::KINDS],
    /// Datagrams written to upstreams.
    pub datagrams_up: u64,
    /// Datagrams read from upstreams.
    pub datagrams_down: u64,
    /// Datagrams to or from upstreams that were lost there, or made no sense.
    pub datagrams_lost: u64,
    /// Calls that wrote or read datagrams.
    pub datagram_calls: u64,
    /// Datagrams to port 53.
    pub dns_queries: u64,
    /// DNS queries answered by the tunnel itself.
    pub dns_answered: u64,
    /// TCP connections to the tunnel's own name server, refused: it speaks UDP alone.
    pub dns_streams_refused: u64,
    /// Connections and datagrams to fake addresses that have no name (any more).
    pub fake_unknown: u64,
    /// DNS queries carried over TCP.
    pub lookups: u64,
    /// Of these, answered.
    pub lookups_answered: u64,
    /// Iterations of the event loop.
    pub iterations: u64,
    /// The longest of them, nanoseconds.
    pub iteration_max_ns: u64,
    /// Iterations by duration.
    pub iteration_times: Histogram,
    /// Iterations above the limit.
    pub alarms: u64,
}

impl WorkerStats {
    /// A connection was made, so long after it was dialled.
    pub(super) fn connected(&mut self, nanos: u64) {
        self.dials_done += 1;
        self.reply_times.record(nanos);
    }

    /// A connection failed.
    pub(super) fn refused(&mut self, failure: &Failure) {
        self.failures[failure.index()] += 1;
    }
}

/// One TCP flow or UDP session.
#[derive(Clone, Debug, Serialize)]
pub struct FlowRow {
    /// The worker that owns it.
    pub worker: usize,
    /// Tells it from all others of its worker and protocol, past ones included.
    pub id: u64,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The client's end.
    pub client: SocketAddr,
    /// Where it goes; of a UDP session, where its first datagram went.
    pub target: SocketAddr,
    /// The name that it was dialled by, if `target` is a fake address.
    pub domain: Option<String>,
    /// Its TCP state.
    pub state: Option<&'static str>,
    /// Payload bytes taken from the client.
    pub bytes_up: u64,
    /// Payload bytes acknowledged by the client, or sent to it in datagrams.
    pub bytes_down: u64,
    /// Bytes a second from the client, see [`crate::engine::Tunnel::flows`].
    pub rate_up: f64,
    /// Bytes a second to the client.
    pub rate_down: f64,
    /// Age, nanoseconds.
    pub age_ns: u64,
    /// From SYN to the connection with the proxy, nanoseconds; 0: not yet.
    pub connect_ns: u64,
    /// From SYN to the proxy's answer, nanoseconds; 0: not yet.
    pub reply_ns: u64,
    /// From SYN to the target's first byte, nanoseconds; 0: not yet.
    pub first_byte_ns: u64,
}

/// Counters of a whole tunnel.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TunnelStats {
    /// Seconds since the start.
    pub uptime_s: f64,
    /// Workers that answered.
    pub workers: usize,
    /// IP packets taken from the device; super-segments count once.
    pub packets_in: u64,
    /// Their bytes.
    pub packet_bytes_in: u64,
    /// IP packets handed to the device; super-segments count once.
    pub packets_out: u64,
    /// Their bytes.
    pub packet_bytes_out: u64,
    /// Payload bytes from clients that upstreams took.
    pub bytes_up: u64,
    /// Payload bytes from upstreams.
    pub bytes_down: u64,
    /// TCP flows now.
    pub flows: u64,
    /// The most TCP flows at once, summed over workers.
    pub flows_peak: u64,
    /// TCP flows opened.
    pub flows_opened: u64,
    /// TCP flows whose upstream refused.
    pub flows_refused: u64,
    /// TCP flows that made room for others.
    pub flows_evicted: u64,
    /// TCP flows ended, by reason.
    pub flows_closed: Vec<(&'static str, u64)>,
    /// Flows that wait for the proxy now.
    pub pending: u64,
    /// UDP sessions now.
    pub sessions: u64,
    /// UDP sessions opened.
    pub sessions_opened: u64,
    /// UDP sessions that made room for others.
    pub sessions_evicted: u64,
    /// Datagrams from clients to upstreams.
    pub datagrams_up: u64,
    /// Datagrams from upstreams to clients.
    pub datagrams_down: u64,
    /// Datagrams lost at upstreams.
    pub datagrams_lost: u64,
    /// DNS queries seen.
    pub dns_queries: u64,
    /// Of these, answered by the tunnel itself.
    pub dns_answered: u64,
    /// TCP connections to the tunnel's own name server, refused: it speaks UDP alone.
    pub dns_streams_refused: u64,
    /// Names that have fake addresses now.
    pub fake_names: u64,
    /// Names that lost theirs to others.
    pub fake_evicted: u64,
    /// Connections and datagrams to fake addresses that have no name (any more), refused.
    pub fake_unknown: u64,
    /// DNS queries carried over TCP.
    pub lookups: u64,
    /// Of these, answered.
    pub lookups_answered: u64,
    /// Echo requests answered.
    pub icmp_echoes: u64,
    /// ICMP errors sent.
    pub icmp_errors: u64,
    /// Packets without effect, by reason; reasons that never occurred are left out.
    pub drops: Vec<(&'static str, u64)>,
    /// Flows that wanted a connection, dialled or made ahead.
    pub dials: u64,
    /// Connections to the proxy made ahead of the flows that may use them.
    pub dials_ahead: u64,
    /// Of these, those that a flow or a session has taken.
    pub taken_ahead: u64,
    /// Of these, those whose end crossed the request, so that it was dialled anew.
    pub dialled_again: u64,
    /// Connections made.
    pub dials_done: u64,
    /// Mean time from dialling to the proxy's answer, nanoseconds.
    pub dial_mean_ns: u64,
    /// From dialling to the connection with the proxy, over TCP flows.
    pub connect_times: Histogram,
    /// From dialling to the proxy's answer.
    pub reply_times: Histogram,
    /// From dialling to the target's first byte.
    pub first_byte_times: Histogram,
    /// Connections that failed, by cause; causes that never occurred are left out.
    pub dial_failures: Vec<(&'static str, u64)>,
    /// Upstreams that broke while bytes flowed.
    pub upstream_resets: u64,
    /// Reads from the device.
    pub device_reads: u64,
    /// Writes to the device.
    pub device_writes: u64,
    /// Writes that the device refused.
    pub device_errors: u64,
    /// Times that offload was given up.
    pub offload_dropped: u64,
    /// Reads from upstream streams.
    pub upstream_reads: u64,
    /// Writes to upstream streams.
    pub upstream_writes: u64,
    /// Calls that read or wrote datagrams.
    pub datagram_calls: u64,
    /// Retransmissions towards clients.
    pub retransmits: u64,
    /// Payload bytes queued now, both directions.
    pub buffered: u64,
    /// Payload bytes in out-of-order queues now.
    pub reassembly_bytes: u64,
    /// Timers armed now.
    pub timers: u64,
    /// Event-loop iterations.
    pub iterations: u64,
    /// The longest of them, nanoseconds.
    pub iteration_max_ns: u64,
    /// Iterations by duration.
    pub iteration_times: Histogram,
    /// Iterations above the limit.
    pub alarms: u64,
    /// Buffers handed out by the pool so far.
    pub pool_alloc: u64,
    /// Buffers that came back.
    pub pool_free: u64,
    /// Allocations that grew the pool, and waited for it.
    pub pool_miss: u64,
    /// Slabs by which the pool grew when nothing waited.
    pub pool_slabs_ahead: u64,
    /// Allocations refused.
    pub pool_refused: u64,
    /// Bytes that the pool holds.
    pub pool_bytes: u64,
    /// Bytes of buffers in use.
    pub pool_bytes_live: u64,
    /// Nanoseconds that threads waited for the pool's locks.
    pub pool_lock_wait_ns: u64,
}

impl TunnelStats {
    /// The sum over workers.
    pub(crate) fn sum(workers: &[WorkerStats], pool: &PoolStats, uptime: f64) -> Self {
        let mut this = Self {
            uptime_s: uptime,
            workers: workers.len(),
            pool_alloc: pool.alloc,
            pool_free: pool.free,
            pool_miss: pool.pool_miss,
            pool_slabs_ahead: pool.preallocated_slabs,
            pool_refused: pool.refused,
            pool_bytes: pool.bytes_heap as u64,
            pool_bytes_live: pool.bytes_live as u64,
            pool_lock_wait_ns: pool.lock_wait_ns,
            ..Self::default()
        };
        let (mut closed, mut drops) = ([0_u64; CloseReason::ALL.len()], DropCounts::default());
        let mut failures = [0_u64; Failure::KINDS];
        for worker in workers {
            let stack = &worker.stack;
            this.packets_in += stack.packets_in;
            this.packet_bytes_in += stack.bytes_in;
            this.packets_out += stack.packets_out;
            this.packet_bytes_out += stack.bytes_out;
            this.bytes_up += worker.bytes_up;
            this.bytes_down += worker.bytes_down;
            this.flows += stack.flows;
            this.flows_peak += stack.flows_peak;
            this.flows_opened += stack.flows_opened;
            this.flows_refused += stack.flows_refused;
            this.flows_evicted += stack.flows_evicted;
            this.pending += stack.pending;
            this.sessions += stack.sessions;
            this.sessions_opened += stack.sessions_opened;
            this.sessions_evicted += stack.sessions_evicted;
            this.datagrams_up += worker.datagrams_up;
            this.datagrams_down += worker.datagrams_down;
            this.datagrams_lost += worker.datagrams_lost;
            this.dns_queries += worker.dns_queries;
            this.dns_answered += worker.dns_answered;
            this.dns_streams_refused += worker.dns_streams_refused;
            this.fake_unknown += worker.fake_unknown;
            this.lookups += worker.lookups;
            this.lookups_answered += worker.lookups_answered;
            this.icmp_echoes += stack.icmp_echoes;
            this.icmp_errors += stack.icmp_errors;
            this.dials += worker.dials;
            this.dials_ahead += worker.dials_ahead;
            this.taken_ahead += worker.taken_ahead;
            this.dialled_again += worker.dialled_again;
            this.dials_done += worker.dials_done;
            this.upstream_resets += worker.upstream_resets;
            this.device_reads += worker.device_reads;
            this.device_writes += worker.device_writes;
            this.device_errors += worker.device_errors;
            this.offload_dropped += worker.offload_dropped;
            this.upstream_reads += worker.upstream_reads;
            this.upstream_writes += worker.upstream_writes;
            this.datagram_calls += worker.datagram_calls;
            this.retransmits += stack.tcp.retransmits;
            this.buffered += stack.buffered;
            this.reassembly_bytes += stack.reassembly_bytes;
            this.timers += stack.timers;
            this.iterations += worker.iterations;
            this.iteration_max_ns = this.iteration_max_ns.max(worker.iteration_max_ns);
            this.alarms += worker.alarms;
            this.iteration_times.merge(&worker.iteration_times);
            this.connect_times.merge(&worker.connect_times);
            this.reply_times.merge(&worker.reply_times);
            this.first_byte_times.merge(&worker.first_byte_times);
            add(&mut closed, &stack.flows_closed);
            add(&mut failures, &worker.failures);
            drops.merge(&stack.drops);
            drops.merge(&worker.drops);
        }
        this.dial_mean_ns = this.reply_times.mean_ns();
        this.flows_closed = CloseReason::ALL.iter().map(|reason| reason.name()).zip(closed).collect();
        let named = drops.iter().map(|(reason, count): (DropReason, u64)| (reason.name(), count));
        this.drops = named.filter(|&(_, count)| count > 0).collect();
        this.dial_failures = Failure::NAMES.into_iter().zip(failures).filter(|&(_, count)| count > 0).collect();
        this
    }
}

fn add(sums: &mut [u64], more: &[u64]) {
    for (sum, count) in sums.iter_mut().zip(more) {
        *sum += count;
    }
}

impl Worker {
    /// A copy of all counters.
    pub(super) fn snapshot(&self) -> WorkerStats {
        WorkerStats {
            stack: self.stack.stats(),
            iterations: self.clockwork.histogram.count,
            iteration_max_ns: self.clockwork.longest_wall,
            iteration_times: self.clockwork.histogram.clone(),
            ..self.stats.clone()
        }
    }

    /// A row for each TCP flow and each UDP session; their rates are the asker's to fill in.
    pub(super) fn flow_rows(&self) -> Vec<FlowRow> {
        let now = self.now.nanos();
        let flow = |flow: FlowInfo| {
            let phases = self.streams.phases(flow.id);
            let after = |at: u64| if at == 0 { 0 } else { at.saturating_sub(flow.opened_at).max(1) };
            FlowRow {
                worker: self.index,
                id: flow.id.to_bits(),
                protocol: "tcp",
                client: flow.client,
                target: flow.target,
                domain: self.streams.domain(flow.id),
                state: Some(flow.state.name()),
                bytes_up: flow.bytes_up,
                bytes_down: flow.bytes_down,
                rate_up: 0.0,
                rate_down: 0.0,
                age_ns: now.saturating_sub(flow.opened_at),
                connect_ns: after(phases[1]),
                reply_ns: after(phases[2]),
                first_byte_ns: after(phases[3]),
            }
        };
        let session = |session: SessionInfo| FlowRow {
            worker: self.index,
            id: session.id.to_u64(),
            protocol: "udp",
            client: session.client,
            target: session.target,
            domain: self.datagrams.name_of(session.id, session.target),
            state: None,
            bytes_up: session.bytes_up,
            bytes_down: session.bytes_down,
            rate_up: 0.0,
            rate_down: 0.0,
            age_ns: self.now.since(session.opened_at),
            connect_ns: 0,
            reply_ns: 0,
            first_byte_ns: 0,
        };
        let flows = self.stack.flows().into_iter().map(flow);
        flows.chain(self.stack.sessions().into_iter().map(session)).collect()
    }
}
