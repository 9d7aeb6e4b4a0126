//! `Stack`: the packet core itself, fed and emptied by hand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use t2s_core::buf::Buf;
use t2s_core::checksum::Kernel;
use t2s_core::config::{Config, CongestionControl, DnsCheck, Reassembly, Secrets, SynAck};
use t2s_core::named::UnknownName;
use t2s_core::stack::{CloseReason, Disposition, FlowId, Packet, Refusal, StackStats};
use t2s_core::stats::Stage;
use t2s_core::tcp::TcpStats;
use t2s_core::time::{Instant, MILLIS};
use t2s_core::udp::SessionId;

use crate::bytes::{Lent, join};
use crate::errors::{ConfigError, OrRaise};
use crate::pool::{MemoryPool, SharedPool};
use crate::request::{End, Request, address_of, end_of};
use crate::stream::drops_dict;

/// Bytes that go to a flow in one buffer: what the largest class of buffers holds, in whole KiB.
const CHUNK: usize = 64 * 1024;

/// Most entries of a table: room for them is reserved, and more would only be a way to run out of address space.
const TABLE_MAX: u32 = 1 << 24;

/// Room in front of a datagram for its headers, bytes; without it the core copies.
const DATAGRAM_HEADROOM: usize = 128;

/// The packet core: IP packets of clients in, byte streams and datagrams for the upstreams out, and back.
///
/// It does no input or output and reads no clock: `feed` it the packets of a device, `take` those that it answers with,
/// do what `requests` asks for, and `advance` its clock. Settings left at `None` are the core's own defaults: `mtu` in
/// bytes; `syn_ack` `"after-connect"` (the client's SYN is answered when the upstream is there) or `"immediate"`; `congestion`
/// `"cubic"` or `"newreno"`; `checksum` a kernel; `reassembly` `"bounded"` or `"unbounded"`; `dns` `"strict"` (only
/// well-formed queries pass to port 53) or `"off"`; the bounds `max_tcp_flows`, `max_pending_connects`,
/// `max_udp_sessions` and `buffer_budget` (bytes); `icmp_echo`; `idle_timeout_ns` and `connect_timeout_ns`. `seed`
/// fixes all keys, which are random without it, so that a run can be repeated. Times are nanoseconds of the caller's clock, which starts at `now_ns`
/// and never goes back. Raises `ConfigError` for what cannot be.
///
/// >>> from t2s import Request, Stack
/// >>> echo_request = bytes.fromhex("4500001c000100004001aede0a000001c00002010800f7fd00010001")
/// >>> stack = Stack()
/// >>> stack.feed(echo_request)
/// >>> [reply] = stack.take()
/// >>> reply[20:28].hex()  # an echo reply
/// '0000fffd00010001'
/// >>> stack.feed(bytes(20))
/// 'bad_version'
#[pyclass(frozen, module = "t2s")]
pub(crate) struct Stack {
    state: Mutex<State>,
    pool: Arc<SharedPool>,
}

struct State {
    stack: t2s_core::stack::Stack,
    now: Instant,
}

impl State {
    /// Moves the clock, if it is told where to.
    fn tell(&mut self, now_ns: Option<u64>) -> Instant {
        if let Some(nanos) = now_ns {
            self.now = self.now.max(Instant::from_nanos(nanos));
        }
        self.now
    }
}

impl Stack {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pooled copy of a packet or datagram.
    fn copy_in(&self, py: Python<'_>, data: &Lent, headroom: usize) -> PyResult<Buf> {
        data.read(py, |bytes| self.pool.cache().alloc_copy(bytes, headroom)).or_raise()
    }
}

#[pymethods]
impl Stack {
    #[new]
    #[pyo3(signature = (
        *, mtu = None, syn_ack = None, congestion = None, checksum = None, reassembly = None, dns = None,
        max_tcp_flows = None, max_pending_connects = None, max_udp_sessions = None, buffer_budget = None,
        icmp_echo = None, idle_timeout_ns = None, connect_timeout_ns = None, seed = None, pool = None, now_ns = 0
    ))]
    #[allow(clippy::too_many_arguments)] // each is a keyword in Python
    fn new(
        mtu: Option<u16>,
        syn_ack: Option<&str>,
        congestion: Option<&str>,
        checksum: Option<&str>,
        reassembly: Option<&str>,
        dns: Option<&str>,
        max_tcp_flows: Option<u32>,
        max_pending_connects: Option<u32>,
        max_udp_sessions: Option<u32>,
        buffer_budget: Option<u64>,
        icmp_echo: Option<bool>,
        idle_timeout_ns: Option<u64>,
        connect_timeout_ns: Option<u64>,
        seed: Option<u64>,
        pool: Option<&Bound<'_, MemoryPool>>,
        now_ns: u64,
    ) -> PyResult<Self> {
        let mut config = Config::default();
        set(&mut config.secrets, seed.map(Secrets::fixed));
        set(&mut config.mtu, mtu);
        choose("syn_ack", syn_ack, SynAck::by_name, &mut config.tcp.syn_ack)?;
        choose("congestion", congestion, CongestionControl::by_name, &mut config.tcp.congestion)?;
        choose("reassembly", reassembly, Reassembly::by_name, &mut config.reassembly)?;
        choose("dns", dns, DnsCheck::by_name, &mut config.dns)?;
        set(&mut config.checksum, checksum.map(Kernel::by_name).transpose().or_raise()?);
        set(&mut config.max_tcp_flows, max_tcp_flows);
        set(&mut config.max_pending_connects, max_pending_connects);
        set(&mut config.max_udp_sessions, max_udp_sessions);
        set(&mut config.buffer_budget, buffer_budget);
        set(&mut config.icmp_echo, icmp_echo);
        set(&mut config.tcp.idle_timeout, idle_timeout_ns);
        set(&mut config.tcp.connect_timeout, connect_timeout_ns);
        // RFC 791: every host takes 68 bytes; RFC 8200: every IPv6 link 1,280, below which only IPv4 works.
        if config.mtu < 68 {
            return Err(ConfigError::new_err(format!("mtu={}: at least 68", config.mtu)));
        }
        for (key, value) in [("max_tcp_flows", config.max_tcp_flows), ("max_udp_sessions", config.max_udp_sessions)] {
            if value == 0 || value > TABLE_MAX {
                return Err(ConfigError::new_err(format!("{key}={value}: wanted 1 to {TABLE_MAX}")));
            }
        }
        let (pool, now) = (MemoryPool::shared(pool), Instant::from_nanos(now_ns));
        let stack = t2s_core::stack::Stack::new(config, pool.pool(), now);
        Ok(Self { state: Mutex::new(State { stack, now }), pool })
    }

    /// Take one IP packet of the device; return `None`, or why it was dropped.
    ///
    /// The name of the reason is the one it is counted under in `stats()["drops"]`. Raises `PoolExhausted` when there
    /// is no buffer for it.
    #[pyo3(signature = (packet, now_ns = None))]
    fn feed(&self, py: Python<'_>, packet: Lent, now_ns: Option<u64>) -> PyResult<Option<&'static str>> {
        let buf = self.copy_in(py, &packet, 0)?;
        let mut state = self.lock();
        let now = state.tell(now_ns);
        Ok(match state.stack.handle_packet(now, Packet::plain(buf)) {
            // Never foreign: the only worker owns every flow.
            Disposition::Accepted | Disposition::Foreign => None,
            Disposition::Dropped(reason) => Some(reason.name()),
        })
    }

    /// Take a list of IP packets in one batch, as a device's worker does; return how many had an effect.
    ///
    /// Raises `PoolExhausted` when there are no buffers for all; none is taken then.
    #[pyo3(signature = (packets, now_ns = None))]
    fn feed_batch(&self, py: Python<'_>, packets: Vec<Lent>, now_ns: Option<u64>) -> PyResult<usize> {
        let mut batch = packets
            .iter()
            .map(|packet| self.copy_in(py, packet, 0).map(Packet::plain))
            .collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| {
            let mut state = self.lock();
            let now = state.tell(now_ns);
            state.stack.handle_batch(now, &mut batch)
        }))
    }

    /// Return the packets for the device, in order, `most` of them or all.
    #[pyo3(signature = (most = None))]
    fn take<'py>(&self, py: Python<'py>, most: Option<usize>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let mut packets = Vec::new();
        let mut state = self.lock();
        let now = state.now;
        while packets.len() < most.unwrap_or(usize::MAX) {
            let Some(packet) = state.stack.poll_transmit(now) else { break };
            packets.push(join(py, std::iter::once(packet.header).chain(packet.payload().iter().copied()))?);
        }
        Ok(packets)
    }

    /// Return what the driver is asked to do, in order, each once.
    fn requests(&self) -> Vec<Request> {
        let mut state = self.lock();
        let now = state.now;
        std::iter::from_fn(|| state.stack.poll_request(now)).map(Request::from).collect()
    }

    /// Say that the upstream of `flow` is there: the client's handshake goes on.
    fn connected(&self, flow: u64) {
        let State { stack, now } = &mut *self.lock();
        stack.connected(*now, FlowId::from_bits(flow));
        stack.settle_commands(*now);
    }

    /// Say that `flow` has no upstream; the client is told on the wire.
    ///
    /// `how`: `"refused"` and `"failed"` reset it, `"host_unreachable"`, `"net_unreachable"` and `"prohibited"` send
    /// ICMP, `"timeout"` says nothing. Raises `ConfigError` for another word.
    #[pyo3(signature = (flow, how = "refused"))]
    fn refused(&self, flow: u64, how: &str) -> PyResult<()> {
        let mut refusal = Refusal::Refused;
        choose("how", Some(how), Refusal::by_name, &mut refusal)?;
        let State { stack, now } = &mut *self.lock();
        stack.refused(*now, FlowId::from_bits(flow), refusal);
        Ok(())
    }

    /// Hand over bytes from the upstream to the client; return how many were taken, 0 when the flow is gone.
    ///
    /// When fewer are taken, `Request.Writable` says when to go on. Raises `PoolExhausted` when there is no buffer for
    /// any of them.
    fn send(&self, py: Python<'_>, flow: u64, data: Lent) -> PyResult<usize> {
        let flow = FlowId::from_bits(flow);
        data.read(py, |bytes| {
            let State { stack, now } = &mut *self.lock();
            let mut taken = 0;
            while taken < bytes.len() {
                let part = stack.room(flow).min(CHUNK).min(bytes.len() - taken);
                if part == 0 {
                    break;
                }
                let buf = match stack.pool().alloc_copy(&bytes[taken..taken + part], 0) {
                    Ok(buf) => buf,
                    Err(_) if taken > 0 => break,
                    Err(exhausted) => return Err(exhausted),
                };
                if let Err(buf) = stack.upstream_data(*now, flow, buf) {
                    stack.free(buf);
                    break;
                }
                taken += part;
            }
            stack.settle_commands(*now);
            Ok(taken)
        })
        .or_raise()
    }

    /// Take up to `most` bytes (or all) that the client sent; the client may send as many more.
    #[pyo3(signature = (flow, most = None))]
    fn receive<'py>(&self, py: Python<'py>, flow: u64, most: Option<usize>) -> PyResult<Bound<'py, PyBytes>> {
        let flow = FlowId::from_bits(flow);
        let State { stack, now } = &mut *self.lock();
        let mut left = most.unwrap_or(usize::MAX);
        let pieces: Vec<&[u8]> = stack
            .readable(flow)
            .map(|piece| {
                let piece = &piece[..piece.len().min(left)];
                left -= piece.len();
                piece
            })
            .take_while(|piece| !piece.is_empty())
            .collect();
        let taken = pieces.iter().map(|piece| piece.len()).sum();
        let bytes = join(py, pieces.into_iter())?;
        stack.consume(*now, flow, taken);
        stack.settle_commands(*now);
        Ok(bytes)
    }

    /// Bytes that `send` takes now.
    fn room(&self, flow: u64) -> usize {
        self.lock().stack.room(FlowId::from_bits(flow))
    }

    /// Say that the upstream has no more bytes: the client gets a FIN after what is under way.
    fn finish(&self, flow: u64) {
        let State { stack, now } = &mut *self.lock();
        stack.upstream_eof(*now, FlowId::from_bits(flow));
        stack.settle_commands(*now);
    }

    /// Say that the upstream broke: the client gets a RST.
    fn reset(&self, flow: u64) {
        let State { stack, now } = &mut *self.lock();
        stack.upstream_reset(*now, FlowId::from_bits(flow));
        stack.settle_commands(*now);
    }

    /// Take the datagrams that wait in a session, as `(target, payload)`, where a target is `(address, port)`.
    fn receive_datagrams<'py>(&self, py: Python<'py>, session: u64) -> PyResult<Vec<(End, Bound<'py, PyBytes>)>> {
        let session = SessionId::from_u64(session);
        let waiting: Vec<_> = {
            let mut state = self.lock();
            std::iter::from_fn(|| state.stack.pop_datagram(session)).collect()
        };
        let datagrams = waiting
            .iter()
            .map(|(target, buf)| Ok((end_of(*target), join(py, std::iter::once(buf.as_slice()))?)))
            .collect();
        let mut state = self.lock();
        for (_, buf) in waiting {
            state.stack.free(buf);
        }
        datagrams
    }

    /// Send a datagram from `source`, an `(address, port)`, to the client of a session.
    ///
    /// Raises `PoolExhausted` when there is no buffer for it.
    fn send_datagram(&self, py: Python<'_>, session: u64, source: End, data: Lent) -> PyResult<()> {
        let buf = self.copy_in(py, &data, DATAGRAM_HEADROOM)?;
        let State { stack, now } = &mut *self.lock();
        stack.datagram(*now, SessionId::from_u64(session), address_of(source), buf);
        Ok(())
    }

    /// Say to the client of a session that `target` cannot be reached (ICMP port unreachable).
    fn datagram_unreachable(&self, session: u64, target: End) {
        let State { stack, now } = &mut *self.lock();
        stack.udp_unreachable(*now, SessionId::from_u64(session), address_of(target));
    }

    /// Forget a session and what waits in it.
    fn close_session(&self, session: u64) {
        self.lock().stack.close_session(SessionId::from_u64(session));
    }

    /// Move the clock to `now_ns` and run every timer that is due by then, each at its own time.
    fn advance(&self, py: Python<'_>, now_ns: u64) {
        py.detach(|| {
            let mut state = self.lock();
            let end = state.now.max(Instant::from_nanos(now_ns));
            while let Some(due) = state.stack.next_timeout().filter(|&due| due <= end) {
                // What is due may be told a tick early: time passes by a tick, so that it comes.
                state.now = due.max(state.now.plus(MILLIS)).min(end);
                let now = state.now;
                state.stack.handle_timeout(now);
                if now == end {
                    break;
                }
            }
            state.now = end;
            state.stack.handle_timeout(end);
        });
    }

    /// The clock, nanoseconds.
    #[getter]
    fn now_ns(&self) -> u64 {
        self.lock().now.nanos()
    }

    /// When the next timer is due, nanoseconds; `None` while none is armed.
    #[getter]
    fn next_timeout_ns(&self) -> Option<u64> {
        self.lock().stack.next_timeout().map(Instant::nanos)
    }

    /// Reset every flow and forget every session and fragment; `take` has the resets.
    fn shutdown(&self) {
        let State { stack, now } = &mut *self.lock();
        stack.shutdown(*now);
    }

    /// Return the TCP flows: `flow`, `client`, `target`, `state`, `bytes_up`, `bytes_down` and `opened_at_ns` of each.
    fn flows<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let flows = self.lock().stack.flows();
        flows
            .into_iter()
            .map(|flow| {
                let dict = PyDict::new(py);
                dict.set_item("flow", flow.id.to_bits())?;
                dict.set_item("client", end_of(flow.client))?;
                dict.set_item("target", end_of(flow.target))?;
                dict.set_item("state", flow.state.name())?;
                dict.set_item("bytes_up", flow.bytes_up)?;
                dict.set_item("bytes_down", flow.bytes_down)?;
                dict.set_item("opened_at_ns", flow.opened_at)?;
                Ok(dict)
            })
            .collect()
    }

    /// Return all counters by name.
    ///
    /// Nested: `drops` by reason, `tcp` (the terminator's own), `flows_closed` by reason, and `stages`, sampled
    /// nanoseconds by stage of the path.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.lock().stack.stats();
        stats_dict(py, &stats)
    }
}

/// Takes a setting that was given.
fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Takes a setting that is one of a few words.
fn choose<T>(
    key: &str,
    word: Option<&str>,
    by_name: fn(&str) -> Result<T, UnknownName>,
    field: &mut T,
) -> PyResult<()> {
    if let Some(word) = word {
        *field = by_name(word).map_err(|error| ConfigError::new_err(format!("{key}: {error}")))?;
    }
    Ok(())
}

/// Puts fields into a dict under their own names.
macro_rules! put {
    ($dict:ident, $from:ident: $($field:ident),+ $(,)?) => { $($dict.set_item(stringify!($field), $from.$field)?;)+ };
}

pub(crate) fn stats_dict<'py>(py: Python<'py>, stats: &StackStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    put!(dict, stats: packets_in, bytes_in, packets_out, bytes_out, flows, flows_peak, pending, flows_opened,
        flows_refused, flows_evicted, sessions, sessions_opened, sessions_evicted, datagrams_up, datagrams_down,
        dns_queries, icmp_echoes, icmp_errors, raw_dropped, resets_sent, reassembly_bytes_total, reassembly_bytes,
        reassembly_bytes_peak, fragment_bytes, fragment_bytes_peak, fragment_bytes_total, buffered, timers);
    dict.set_item("drops", drops_dict(py, &stats.drops)?)?;
    dict.set_item("tcp", tcp_dict(py, &stats.tcp)?)?;
    let closed = PyDict::new(py);
    for (reason, count) in CloseReason::ALL.iter().zip(stats.flows_closed).filter(|&(_, count)| count > 0) {
        closed.set_item(reason.name(), count)?;
    }
    dict.set_item("flows_closed", closed)?;
    let stages = PyDict::new(py);
    for (stage, nanos) in Stage::ALL.iter().zip(stats.stages.nanos) {
        stages.set_item(stage.name(), nanos)?;
    }
    dict.set_item("stages", stages)?;
    Ok(dict)
}

fn tcp_dict<'py>(py: Python<'py>, tcp: &TcpStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    put!(dict, tcp: accepted, established, segments_in, predicted, bytes_in, segments_out, bytes_out, bytes_acked,
        acks_out, out_of_order, retransmits, timeouts, recoveries, duplicate_acks, challenge_acks, window_probes,
        keepalive_probes, resets_out, resets_in);
    Ok(dict)
}
