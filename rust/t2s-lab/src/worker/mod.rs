//! One worker: device ring → pooled buffers → stack → simulated upstream → device ring, measured.
//!
//! An iteration takes at most [`BUDGET`] packets. The copy into a pooled buffer is the device's read; from there on the
//! packet takes the tunnel's way. Effect is reached when the iteration has emptied the stack's requests and packets, so
//! a packet's service time is that of its whole iteration. While the device's way out is full nothing is read: the ring
//! fills, and packets are late instead of lost.

pub mod fault;
pub mod harness;
pub mod null;
pub mod upstream;

use std::collections::BTreeMap;
use std::sync::Arc;

use t2s_core::buf::{Pool, PoolStats};
use t2s_core::config::Config;
use t2s_core::flow::FlowMapStats;
use t2s_core::stack::{Packet, Stack, StackStats, WorkerMap};
use t2s_core::time::Instant;
use t2s_core::wire::virtio::F_NEEDS_CSUM;

use crate::device_ring::{Consumer, Producer};
use crate::generator::link::{FLAG_GSO_SHIFT, FLAG_MARK, FLAG_PARTIAL_CHECKSUM, Mark};
use crate::measure::loop_time::{LoopTimer, Part};
use crate::measure::recorder::Recorder;
use crate::measure::slices::{Slice, Sliced};
use crate::measure::stall::{LastStall, StallDetector};
use crate::spec::{Component, PhaseSpec};
use crate::truth::SequenceCounts;
use crate::worker::harness::{Egress, Harness, Plain};
use crate::worker::upstream::{Arrivals, Upstreams};
use t2s_sys::heap::{HeapCounts, thread_heap};

/// Packets of one iteration: enough to share locks and acknowledgements, few enough to keep an iteration below 100 µs.
pub const BUDGET: usize = 64;

/// With no more than so many bytes waiting, an iteration takes one packet: there is little to share, and the first of
/// three packets need not wait for the other two.
const FEW: usize = 8_192;

/// Room that the device's way out must have before a packet is asked of the stack: the largest packet and its record.
const LARGEST: usize = 66_000;

/// Time between two looks at the stack's timers, nanoseconds; its wheel ticks in milliseconds.
const TIMER_LOOK: u64 = 200_000;

/// How long timers and the upstream's delays wait while there are packets, nanoseconds.
const PACKETS_FIRST: u64 = 20_000;

/// Timers of one iteration: with what one of them sends an iteration takes a quarter of a microsecond, and a packet
/// that comes meanwhile waits no longer. (Iterations cost next to nothing here; where each asks the kernel, a few at
/// once are better.)
const TIMERS: usize = 1;

/// Getting ready takes less than this, nanoseconds, or it is an iteration's time like any other.
const READY: u64 = 1_000;

/// A gap between two empty polls longer than this was spent off the CPU, nanoseconds.
const POLL_GAP: u64 = 20_000;

/// Steps of virtual time in which everything must have ended after the generator has.
const DRAIN_STEPS_MAX: u32 = 2_000_000;

/// Counters at a mark.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The stack's.
    pub stack: StackStats,
    /// The pool's, all threads.
    pub pool: PoolStats,
    /// The flow map's, all shards.
    pub map: FlowMapStats,
    /// CPU time of the worker's thread, nanoseconds.
    pub cpu: u64,
    /// Its part of empty polls.
    pub idle: u64,
    /// Payload bytes taken upstream that were right and new.
    pub accepted: u64,
    /// Time that the upstream spent comparing them, part of `cpu`.
    pub checking: u64,
    /// Packets read from the device.
    pub packets: u64,
    /// Packets for which there was no buffer.
    pub no_buffer: u64,
    /// Packets that belonged to other workers.
    pub foreign: u64,
    /// What the worker's thread holds.
    pub heap: Option<HeapCounts>,
}

/// What one worker measured.
#[derive(Debug)]
pub struct Report {
    /// At the begin of the window.
    pub begin: Snapshot,
    /// At its end, before the drain.
    pub end: Snapshot,
    /// After the drain.
    pub last: Snapshot,
    /// Due time to effect.
    pub latency: (Recorder, Vec<Slice>),
    /// The same of packets that no stall of the machine disturbed.
    pub undisturbed: (Recorder, Vec<Slice>),
    /// Dequeue to effect.
    pub service_time: (Recorder, Vec<Slice>),
    /// Bytes that waited for the upstream, when any could.
    pub upstream_wait: Option<Recorder>,
    /// Packets that had their effect in the window.
    pub measured: u64,
    /// The loop: iterations and stalls.
    pub iterations: Recorder,
    /// Longest time on the CPU in one iteration.
    pub max_on_cpu: u64,
    /// Longest time off the CPU in one iteration.
    pub max_off_cpu: u64,
    /// The same where the thread had slept or waited by itself.
    pub max_waited: u64,
    /// Iterations above the limit.
    pub stalls: Vec<crate::measure::loop_time::LoopStall>,
    /// Time by part of the loop.
    pub parts: BTreeMap<&'static str, u64>,
    /// Slices and datagrams that did not arrive as sent.
    pub corrupt: u64,
    /// What arrived upstream and what left it, over the whole phase.
    pub arrivals: Arrivals,
    /// Numbered datagrams that arrived upstream.
    pub datagrams: SequenceCounts,
    /// Datagrams lost in the simulated upstream.
    pub overrun: u64,
}

/// The worker of one generator, with what stands around its core.
pub struct Worker<H = Plain> {
    /// What stands around the core.
    pub harness: H,
    /// Bytes that the thread held before.
    heap_before: Option<HeapCounts>,
    stack: Stack,
    pool: Pool,
    map: Arc<WorkerMap>,
    upstreams: Upstreams,
    batch: Vec<Packet>,
    dues: Vec<u64>,
    mtu: usize,
    /// The window is open.
    measuring: bool,
    latency: Sliced,
    undisturbed: Sliced,
    service_time: Sliced,
    /// Nanoseconds of a slice, and when the present one ends.
    slice_ns: u64,
    slice_ends: u64,
    loop_timer: LoopTimer,
    stall_detector: StallDetector,
    generator: Arc<LastStall>,
    next_timer_look: u64,
    packets: u64,
    no_buffer: u64,
    foreign: u64,
    measured: u64,
    idle_ns: u64,
    /// When the last empty poll was, if the last iteration was one.
    last_poll: Option<u64>,
    marks: [Snapshot; 2],
}

/// What an iteration came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iteration {
    /// There was something to do.
    pub worked: bool,
    /// The generator has ended.
    pub ended: bool,
}

impl<H: Harness> Worker<H> {
    /// Worker number `worker` of this phase; its `generator` tells of stalls.
    pub fn new(
        spec: &PhaseSpec,
        config: Config,
        pool: &Pool,
        map: &Arc<WorkerMap>,
        worker: usize,
        generator: Arc<LastStall>,
        harness: H,
    ) -> Self {
        let heap_before = thread_heap();
        let limit = (spec.settings.loop_stall_ms * 1e6) as u64;
        let mtu = usize::from(config.mtu);
        Self {
            heap_before,
            stack: Stack::for_worker(config, pool, map, worker, Instant::from_nanos(harness.clock())),
            harness,
            pool: pool.clone(),
            map: Arc::clone(map),
            upstreams: Upstreams::new(spec, worker, H::REAL_TIME),
            batch: Vec::with_capacity(BUDGET),
            dues: Vec::with_capacity(BUDGET),
            mtu,
            measuring: false,
            latency: Sliced::new(spec.slices()),
            undisturbed: Sliced::new(spec.slices()),
            service_time: Sliced::new(spec.slices()),
            slice_ns: if spec.slices() > 0 { (spec.slice_seconds * 1e9) as u64 } else { u64::MAX },
            slice_ends: u64::MAX,
            loop_timer: LoopTimer::new(spec.settings.watchdog, limit),
            stall_detector: StallDetector::default(),
            generator,
            next_timer_look: 0,
            packets: 0,
            no_buffer: 0,
            foreign: 0,
            measured: 0,
            idle_ns: 0,
            last_poll: None,
            marks: [Snapshot::default(), Snapshot::default()],
        }
    }

    /// Packets read from the device so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Time spent in empty polls so far, nanoseconds.
    pub fn idle_ns(&self) -> u64 {
        self.idle_ns
    }

    /// What the thread has allocated since `paused` is not the worker's: others share its thread.
    pub fn exclude_heap(&mut self, paused: Option<HeapCounts>) {
        if let (Some(before), Some(paused), Some(now)) = (&mut self.heap_before, paused, thread_heap()) {
            let others = now.since(paused);
            before.allocations += others.allocations;
            before.bytes += others.bytes;
        }
    }

    /// One iteration of the loop, begun at `now`.
    #[inline]
    pub fn iterate(&mut self, now: u64, device: &mut Consumer, out: &mut Producer) -> Iteration {
        self.loop_timer.away(self.stall_detector.begin(now));
        let mark = if out.fits(LARGEST) { self.read(device) } else { None };
        let read = self.dues.len();
        // Packets first, but not for ever.
        let since = now.saturating_sub(if read > 0 { PACKETS_FIRST } else { 0 });
        let timers = since >= self.next_timer_look;
        let delays = self.upstreams.next_due().is_some_and(|due| due <= since);
        let kept = H::WRAPS && self.harness.is_due(now);
        if read == 0 && mark.is_none() && !timers && !delays && !kept && out.fits(LARGEST) {
            self.note_poll(now);
            return Iteration { worked: false, ended: false };
        }
        self.last_poll = None;
        let at = Instant::from_nanos(now);
        let mut stamps = [now; 5];
        stamps[1] = self.stamp(now);
        if read > 0 {
            if H::WRAPS {
                self.harness.ingress(now, &mut self.batch, &mut self.stack);
            }
            self.stack.handle_batch(at, &mut self.batch);
            if H::WRAPS {
                self.harness.worked(now, read, &mut self.stack, &self.map);
            }
        }
        if timers {
            self.next_timer_look = now + TIMER_LOOK;
            let due = |stack: &Stack| stack.next_timeout().is_some_and(|due| due <= at);
            if due(&self.stack) {
                self.stack.handle_some_timeouts(at, TIMERS);
                if due(&self.stack) {
                    // The rest comes with the next iteration, behind the packets that wait.
                    self.next_timer_look = now;
                }
            }
        }
        stamps[2] = self.stamp(now);
        let checked = self.upstreams.checking.ns;
        self.serve_upstreams(now, delays);
        // Comparing is the lab's own work, and nobody's time.
        stamps[3] = (self.stamp(now) - (self.upstreams.checking.ns - checked)).max(stamps[2]);
        let sent = self.transmit(now, out);
        device.release();
        stamps[4] = self.harness.clock();
        let worked = read > 0 || sent > 0 || delays;
        self.stall_detector.end(stamps[4], read == 0);
        let mut end = stamps[4];
        if worked && self.measuring {
            stamps[4] = (end - (self.upstreams.checking.ns - checked)).max(stamps[3]);
            self.record(&stamps);
        }
        if read > 0 {
            // Nobody waits now. A buffer that comes out of a deep queue has left the cache long ago.
            self.stack.pool().prefetch(self.mtu);
            let grew = self.stack.prepare();
            self.harness.prepare(read);
            let ready = self.harness.clock();
            if grew || ready > end + READY {
                self.prepared(end, ready);
                end = ready;
            }
        }
        self.dues.clear();
        self.loop_timer.between(end);
        if let Some(mark) = mark {
            self.pass(mark, end);
        }
        Iteration { worked, ended: mark == Some(Mark::End) }
    }

    /// Copies waiting packets into buffers, up to a mark or the budget.
    #[inline]
    fn read(&mut self, device: &mut Consumer) -> Option<Mark> {
        let budget = if device.waiting() <= FEW { 1 } else { BUDGET };
        while self.dues.len() < budget {
            let record = device.pop()?;
            if record.flags & FLAG_MARK != 0 {
                return Mark::from_due(record.due_ns);
            }
            self.packets += 1;
            self.dues.push(record.due_ns);
            // A device does not know the length before it reads: the buffer is for the MTU, or for a super-segment.
            let Some(mut buf) = self.stack.alloc(record.bytes.len().max(self.mtu), 0) else {
                self.no_buffer += 1;
                continue;
            };
            buf.reset(0);
            buf.append(record.bytes);
            self.batch.push(Packet {
                buf,
                checksum_trusted: record.flags & FLAG_PARTIAL_CHECKSUM != 0,
                gso_size: (record.flags >> FLAG_GSO_SHIFT) as u16,
            });
        }
        None
    }

    #[inline]
    fn serve_upstreams(&mut self, now: u64, delays: bool) {
        if delays {
            self.upstreams.run(now, &mut self.stack);
        }
        while let Some(request) = self.stack.poll_request(Instant::from_nanos(now)) {
            self.upstreams.handle(now, &mut self.stack, request);
        }
    }

    /// Writes what the stack has to send, as far as the device has room; returns how many packets.
    #[inline]
    fn transmit(&mut self, now: u64, out: &mut Producer) -> usize {
        let at = Instant::from_nanos(now);
        let mut sent = 0;
        if H::WRAPS {
            self.harness.release(now, out);
        }
        loop {
            while out.fits(LARGEST) {
                let Some(packet) = self.stack.poll_transmit(at) else { break };
                let len = packet.len();
                let partial = packet.virtio.flags & F_NEEDS_CSUM != 0;
                let flags = u32::from(packet.virtio.gso_size) << FLAG_GSO_SHIFT
                    | if partial { FLAG_PARTIAL_CHECKSUM } else { 0 };
                if let Some(room) = out.reserve(len) {
                    packet.copy_to(room);
                    if !H::WRAPS || self.harness.egress(now, room, flags) == Egress::Send {
                        out.commit(len, now, flags);
                    }
                }
                sent += 1;
            }
            // Sending may end flows or make room for an upstream.
            let Some(request) = self.stack.poll_request(at) else { break };
            self.upstreams.handle(now, &mut self.stack, request);
        }
        while self.stack.poll_foreign().is_some() {
            self.foreign += 1;
        }
        out.publish();
        sent
    }

    #[inline]
    fn record(&mut self, stamps: &[u64; 5]) {
        let (begin, end) = (stamps[0], stamps[4]);
        if begin >= self.slice_ends {
            self.latency.cut();
            self.undisturbed.cut();
            self.service_time.cut();
            self.slice_ends += self.slice_ns;
        }
        let put_off = self.loop_timer.record(stamps);
        self.stall_detector.put_off(put_off, end);
        self.measured += self.dues.len() as u64;
        if !self.dues.is_empty() {
            self.service_time.current.record_n(end.saturating_sub(begin), self.dues.len() as u64);
        }
        for &due in &self.dues {
            self.latency.current.record(end.saturating_sub(due));
        }
        let excuse = self.stall_detector.excuse(begin, &self.generator);
        for &due in self.dues.iter().filter(|&&due| !excuse.covers(due)) {
            self.undisturbed.current.record(end.saturating_sub(due));
        }
    }

    /// The time, if iterations are timed by part.
    #[inline]
    fn stamp(&self, now: u64) -> u64 {
        if self.loop_timer.by_part() { self.harness.clock() } else { now }
    }

    /// From `begin`, when an iteration ended, until `end` the core has got ready for the next: time of its own, not a
    /// stall of the machine that would excuse the packets that waited meanwhile.
    #[cold]
    fn prepared(&mut self, begin: u64, end: u64) {
        self.stall_detector.end(end, false);
        if self.measuring {
            let put_off = self.loop_timer.record(&[begin, begin, end, end, end]);
            self.stall_detector.put_off(put_off, end);
        }
    }

    #[inline]
    fn note_poll(&mut self, now: u64) {
        if let Some(last) = self.last_poll {
            let gap = now.saturating_sub(last);
            self.idle_ns += if gap < POLL_GAP { gap } else { 0 };
        }
        self.last_poll = Some(now);
        self.stall_detector.end(now, true);
        self.loop_timer.between(now);
    }

    fn pass(&mut self, mark: Mark, now: u64) {
        match mark {
            Mark::Begin => {
                self.marks[0] = self.snapshot();
                self.measuring = true;
                self.upstreams.begin(now);
                self.loop_timer.begin(now);
                self.harness.begin(now);
                self.slice_ends = now.saturating_add(self.slice_ns);
            }
            Mark::Drain => {
                self.marks[1] = self.snapshot();
                self.measuring = false;
                self.upstreams.measuring = false;
                self.upstreams.release_all(now, &mut self.stack);
            }
            Mark::End => {}
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            stack: self.stack.stats(),
            pool: self.pool.stats(),
            map: self.map.stats(),
            cpu: self.harness.cpu(),
            idle: self.idle_ns,
            accepted: self.upstreams.accepted,
            checking: self.upstreams.checking.ns,
            packets: self.packets,
            no_buffer: self.no_buffer,
            foreign: self.foreign,
            heap: thread_heap().zip(self.heap_before).map(|(now, before)| now.since(before)),
        }
    }

    /// Lives on after the generator has ended: the stack's clock jumps from timer to timer until nothing is armed, so
    /// that idle sessions, half-open flows and fragments end by their own timeouts. What is left then is a leak.
    pub fn finish(mut self, now: u64, out: &mut Producer) -> Report {
        let mut now = now;
        for _ in 0..DRAIN_STEPS_MAX {
            self.upstreams.release_all(now, &mut self.stack);
            self.serve_upstreams(now, true);
            let at = Instant::from_nanos(now);
            while self.stack.poll_transmit(at).is_some() {}
            while self.stack.poll_foreign().is_some() {}
            if let Some(request) = self.stack.poll_request(at) {
                self.upstreams.handle(now, &mut self.stack, request);
                continue;
            }
            let Some(next) = self.stack.next_timeout() else { break };
            now = next.nanos().max(now + 1_000_000);
            self.stack.handle_timeout(Instant::from_nanos(now));
        }
        out.publish();
        self.stack.trim();
        let last = self.snapshot();
        let [begin, end] = self.marks;
        let mut parts = BTreeMap::new();
        for part in [Part::Device, Part::Upstream] {
            parts.insert(Part::NAMES[part as usize], self.loop_timer.parts[part as usize]);
        }
        Report {
            begin,
            end,
            last,
            latency: self.latency.finish(),
            undisturbed: self.undisturbed.finish(),
            service_time: self.service_time.finish(),
            upstream_wait: self.upstreams.can_block.then(|| self.upstreams.wait.clone()),
            measured: self.measured,
            iterations: self.loop_timer.recorder,
            max_on_cpu: self.loop_timer.max_on_cpu,
            max_off_cpu: self.loop_timer.max_off_cpu,
            max_waited: self.loop_timer.max_waited,
            stalls: self.loop_timer.stalls,
            parts,
            corrupt: self.upstreams.corrupt,
            arrivals: self.upstreams.arrivals,
            datagrams: self.upstreams.datagrams_received(),
            overrun: self.upstreams.overrun,
        }
    }
}

/// Whether the device of this phase must carry super-segments.
pub fn largest_packet(components: &[Component]) -> usize {
    let largest = |component: &Component| match component {
        Component::TcpStream(c) => c.segment_bytes,
        Component::TcpChurn(c) => c.segment_bytes,
        Component::TcpRequest(c) => c.request_bytes,
        Component::Udp(c) => c.payload_bytes,
        Component::Dns(_) | Component::Malformed(_) | Component::SynFlood(_) => 0,
    };
    components.iter().map(largest).max().unwrap_or(0) as usize + 100
}

#[cfg(test)]
mod tests;
