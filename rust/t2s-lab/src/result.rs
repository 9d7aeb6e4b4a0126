//! What a phase measured, as JSON for the lab. The words are those of the design: intended, offered, forwarded, lost,
//! latency, service. Counts are packets of the measured window; times are nanoseconds unless a name says otherwise.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::measure::clock::ClockFacts;
use crate::measure::distribution::Distribution;
use crate::measure::loop_time::LoopStall;
use crate::measure::slices::Slice;
use crate::spec::Phase;

/// The buffer pool over the measured window (`pool_grow_stalls` and `preallocated_slabs` over the whole phase).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PoolResult {
    /// Buffers handed out.
    pub buffers_allocated: u64,
    /// Buffers given back.
    pub buffers_freed: u64,
    /// Allocations that waited for the heap to grow, in the whole phase.
    pub pool_grow_stalls: u64,
    /// The same after warm-up.
    pub pool_grow_stalls_after_warmup: u64,
    /// Slabs by which the heap grew before an allocation needed them, in the whole phase.
    pub preallocated_slabs: u64,
    /// The same after warm-up.
    pub preallocated_slabs_after_warmup: u64,
    /// Bytes held from the system at the end of the window.
    pub heap_bytes: u64,
    /// The most ever held.
    pub heap_peak_bytes: u64,
    /// Bytes handed out and not returned, after the drain; anything but 0 is a leak.
    pub live_bytes_after_drain: u64,
    /// Time spent waiting for the depot's lock.
    pub lock_wait_ns: u64,
    /// Allocations refused at the ceiling.
    pub refused: u64,
}

/// The flow map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlowMapResult {
    /// Time spent waiting for shard locks in the measured window.
    pub lock_wait_ns: u64,
    /// Most flows seen at once (sampled).
    pub flows_peak: u64,
    /// Flows after the drain; anything but 0 is a leak.
    pub flows_after_drain: u64,
    /// Insertions refused at the cap, in the whole phase.
    pub refused: u64,
}

/// Out-of-order data and fragments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReassemblyResult {
    /// Payload bytes that ever waited out of order.
    pub bytes_total: u64,
    /// Most that waited at once in one worker.
    pub bytes_peak: u64,
    /// The cap of one worker; 0 = none.
    pub cap: u64,
    /// Most fragment bytes held at once in one worker.
    pub fragment_bytes_peak: u64,
    /// The cap of one worker.
    pub fragment_cap: u64,
    /// Bytes of both kinds held after the drain.
    pub bytes_after_drain: u64,
}

/// Event loop iterations with work, from wake to next wait.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LoopResult {
    /// Iterations.
    pub iterations: u64,
    /// Longest.
    pub max_wall_ns: u64,
    /// Most time on the CPU in one iteration.
    pub max_on_cpu_ns: u64,
    /// Most time off the CPU in one iteration.
    pub max_off_cpu_ns: u64,
    /// Most of that in one iteration in which the thread had slept or waited by itself: the core's time.
    pub max_waited_ns: u64,
    /// Iterations above the limit, the first 64 of each worker.
    pub stalls: Vec<LoopStall>,
    /// All iterations.
    pub hist: Distribution,
}

/// CPU time of the worker threads in the measured window.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuResult {
    /// CPU time without empty polls, over all workers.
    pub engine_ns: u64,
    /// CPU time of empty polls, which busy-polling spends to keep wake-ups out of the latency.
    pub idle_poll_ns: u64,
    /// CPU time in which the simulated upstream compared what arrived with what was sent; in none of the others.
    pub checking_ns: u64,
    /// `engine_ns` as a share of one CPU for each worker, percent.
    pub percent: f64,
    /// The busiest worker's percentage in each window of 1 s, or of the measured time if that is shorter (a shorter
    /// last one is left out).
    pub windows: Vec<f64>,
    /// `engine_ns` a packet.
    pub ns_per_packet: f64,
}

/// Resident memory of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RssResult {
    /// Pairs of milliseconds from the begin of the measured window and bytes.
    pub samples: Vec<(u64, u64)>,
}

/// The heap of the lab's threads, without the pool's slabs; nothing in a program without the counting allocator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HeapResult {
    /// Allocations of the workers' threads in the measured window.
    pub allocations: Option<u64>,
    /// Bytes that the workers' threads held at the begin of the window.
    pub begin_bytes: Option<i64>,
    /// At its end.
    pub end_bytes: Option<i64>,
    /// After the drain, while tables still stand.
    pub after_drain_bytes: Option<i64>,
    /// What is left once all of the phase has gone; anything but 0 is a leak.
    pub left_bytes: Option<i64>,
}

/// The streams of one direction, over the whole phase. Bytes are those of flows that ended in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StreamTruth {
    /// Flows that ended in order, by their sender.
    pub flows: u64,
    /// Bytes that their senders sent, each once.
    pub sent_bytes: u64,
    /// Bytes that their receivers took.
    pub received_bytes: u64,
    /// Bytes that never came.
    pub lost_bytes: u64,
    /// Bytes that were wrong, of all flows.
    pub corrupted_bytes: u64,
    /// Bytes that came more than once, of all flows.
    pub duplicated_bytes: u64,
    /// Whether each single flow brought as many bytes as were sent.
    pub flows_agree: bool,
    /// Flows that were reset or given up, by their sender: nothing is said of their last bytes.
    pub aborted_flows: u64,
    /// Bytes sent on these.
    pub aborted_bytes: u64,
}

/// The numbered datagrams of one direction, over the whole phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DatagramTruth {
    /// Sent.
    pub sent: u64,
    /// Received, wrong ones and repetitions included.
    pub received: u64,
    /// Those that never came.
    pub lost: u64,
    /// Those that were not as sent.
    pub corrupted: u64,
    /// Those that came once more.
    pub duplicated: u64,
    /// Those that a later one of the same flow had overtaken.
    pub reordered: u64,
}

/// What was sent and what arrived, by what both ends counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TruthResult {
    /// From clients to the upstream.
    pub streams_up: StreamTruth,
    /// From the upstream to clients.
    pub streams_down: StreamTruth,
    /// From clients to the upstream.
    pub datagrams_up: DatagramTruth,
    /// From the upstream to clients.
    pub datagrams_down: DatagramTruth,
    /// Packets lost between the ends: datagrams of both directions, and the segments of lost bytes.
    pub lost_packets: u64,
    /// Those among them that no drop reason of the core explains.
    pub unaccounted: u64,
    /// Everything that is wrong: lost without a reason, corrupted, doubled or reordered. Anything but 0 is a bug.
    pub faults: u64,
}

/// Sampled time of one stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StageResult {
    /// Sum of the sampled times, less the clock's own: below 0 where a stage takes less than that varies.
    pub ns: i64,
    /// Packets sampled.
    pub samples: u64,
    /// Times that were taken, each of which cost one reading of the clock (`clock.cost_ps`).
    pub marks: u64,
}

/// The generator's own figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GeneratorResult {
    /// Packets a second that it sent.
    pub offered_pps: f64,
    /// Its CPU use with polling, percent of one CPU for each generator.
    pub cpu_percent: f64,
    /// Segments sent again after a timeout or three duplicate acknowledgements.
    pub retransmits: u64,
    /// RST segments received.
    pub resets_received: u64,
    /// Latest that a packet left after its due time.
    pub behind_ns_max: u64,
    /// Packets that were due while the peer's window was closed by design.
    pub window_blocked: u64,
    /// Packets received from the core.
    pub received: u64,
    /// Received packets that were not what the core should have sent.
    pub corrupt: u64,
    /// Flows given up after too many retransmissions.
    pub aborted: u64,
    /// Connections reset by the peer, in the window, where the upstream does no such thing.
    pub reset_by_peer: u64,
    /// Requests for the peer's window after it had been closed for long, in the window.
    pub window_probes: u64,
    /// Segments that the core sent once more.
    pub repeated_segments: u64,
    /// Segments that came ahead of one that had not come.
    pub segment_gaps: u64,
    /// Packets that were for no client.
    pub strangers: u64,
    /// Longest oversleep of an idle thread (the machine's hiccups).
    pub hiccup_ns_max: u64,
}

/// A phase in virtual time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LockstepResult {
    /// Steps of virtual time.
    pub steps: u64,
    /// Packets from clients to the core, as sent.
    pub packets_up: u64,
    /// Packets from the core to clients, as sent.
    pub packets_down: u64,
    /// Hash of every byte of both, in their order.
    pub packets_digest: String,
    /// Packets that the link lost, upwards.
    pub link_lost_up: u64,
    /// Packets that the link lost, downwards.
    pub link_lost_down: u64,
    /// Packets that the link let others overtake.
    pub link_reordered: u64,
}

/// The result of one phase.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseResult {
    /// Name of the scenario.
    pub scenario: String,
    /// Which phase.
    pub phase: Phase,
    /// Seed of the packets.
    pub seed: u64,
    /// Length of the measured window.
    pub seconds: f64,
    /// Worker threads.
    pub workers: u32,
    /// Packets that were to be sent: due ones (without those the peer's window forbade by design) and reactions.
    pub intended: u64,
    /// Packets sent.
    pub offered: u64,
    /// Packets that the core says had their effect: offered less dropped.
    pub forwarded: u64,
    /// Packets without effect, as the core counts them; what is refused on purpose is among them.
    pub dropped: u64,
    /// The same by reason.
    pub lost_by_reason: BTreeMap<&'static str, u64>,
    /// Packets that were to be sent in the window and could not be.
    pub unsent: u64,
    /// Packets that had to arrive and did not: unsent ones, and those that the two ends miss (`truth.lost_packets`).
    pub lost: u64,
    /// What both ends counted; none for the generator's self-test.
    pub truth: Option<TruthResult>,
    /// Why this run says nothing about speed, if it does not.
    pub invalid: Option<String>,
    /// From due time to effect.
    pub latency: Distribution,
    /// The latency of packets that no stall of the machine disturbed.
    pub undisturbed: Distribution,
    /// From dequeue to effect.
    pub service_time: Distribution,
    /// From the due time of a datagram or request to the reply that the generator has read, where there are replies.
    pub reply_latency: Option<Distribution>,
    /// How much longer or shorter a datagram and its reply were on their way than those before them of the same flow.
    pub reply_jitter: Option<Distribution>,
    /// `reply_latency` for each component, in their order.
    pub reply_latency_by_component: Vec<Option<Distribution>>,
    /// The latency of each slice, where the phase has some.
    pub latency_slices: Vec<Slice>,
    /// The undisturbed latency of each slice.
    pub undisturbed_slices: Vec<Slice>,
    /// The service time of each slice.
    pub service_time_slices: Vec<Slice>,
    /// How long bytes waited in the core because the simulated upstream took none.
    pub upstream_wait: Option<Distribution>,
    /// Bytes of the packets offered, IP headers included; none for a capture, whose passes count packets.
    pub bytes_offered: Option<u64>,
    /// Payload bytes of valid packets sent in the window, each byte once.
    pub payload_offered: u64,
    /// Those accepted upstream, those of the drain included.
    pub payload_forwarded: u64,
    /// Payload bytes taken upstream within the window, whenever they were sent: the goodput of a limited upstream.
    pub payload_window: u64,
    /// Payload bytes that reached clients within the window, each byte once.
    pub payload_window_down: u64,
    /// Connections established in the window.
    pub connections_opened: u64,
    /// Connections ended in the window.
    pub connections_closed: u64,
    /// Connections refused in the window, as designed or not.
    pub connections_refused: u64,
    /// The buffer pool.
    pub pool: PoolResult,
    /// The flow map.
    pub flow_map: FlowMapResult,
    /// Out-of-order data.
    pub reassembly: ReassemblyResult,
    /// The worker's loop.
    #[serde(rename = "loop")]
    pub event_loop: LoopResult,
    /// CPU of the workers.
    pub cpu: CpuResult,
    /// Resident memory.
    pub rss: RssResult,
    /// The heap outside the pool.
    pub heap: HeapResult,
    /// File descriptors that the phase left open; less than 0 where others were closed meanwhile.
    pub fds_left: i64,
    /// Stage times; the core's are sampled; `device` and `upstream` are the loop's, over all packets.
    pub stages: BTreeMap<&'static str, StageResult>,
    /// Refusals of the core in the window, its whole drop counters.
    pub drops: BTreeMap<&'static str, u64>,
    /// The generator.
    pub generator: GeneratorResult,
    /// Timers left after the drain; anything but 0 is a leak.
    pub timers_after_drain: u64,
    /// The clock that all times come from.
    pub clock: ClockFacts,
    /// What virtual time adds, in lockstep.
    pub lockstep: Option<LockstepResult>,
    /// Hash of all else in this result, in lockstep: the same seed gives the same.
    pub result_digest: Option<String>,
}

/// What a running phase can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// Seconds since the window of warm-up began.
    pub elapsed: f64,
    /// Warm-up and measured time together.
    pub seconds: f64,
    /// Packets sent so far.
    pub offered: u64,
    /// Packets that the workers have dealt with so far.
    pub forwarded: u64,
    /// Packets a second since the last call.
    pub pps: f64,
}
