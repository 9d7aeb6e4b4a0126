//! From the reports of threads to the result of a phase.

use std::collections::BTreeMap;

use t2s_core::buf::PoolStats;
use t2s_core::stats::{DropReason, Stage};

use crate::core_config::config_of;
use crate::generator::link::Counters;
use crate::generator::{Exchange, Window};
use crate::measure::clock;
use crate::measure::distribution::Distribution;
use crate::measure::recorder::Recorder;
use crate::measure::sampler::Sampler;
use crate::measure::slices::Slice;
use crate::result::{
    CpuResult, DatagramTruth, FlowMapResult, GeneratorResult, HeapResult, LoopResult, PhaseResult, PoolResult,
    ReassemblyResult, RssResult, StageResult, StreamTruth, TruthResult,
};
use crate::spec::{Phase, PhaseSpec};
use crate::truth::{Damage, SequenceCounts, StreamTotals};
use crate::worker::{Report, Snapshot};
use t2s_core::config::Reassembly;

/// Offered below this part of intended makes a load phase invalid: the generator, not the core, was too slow.
pub const OFFERED_RATIO_MIN: f64 = 0.99;

/// Alarms in a result.
const ALARMS: usize = 256;

/// What one generator measured.
#[derive(Clone, Debug)]
pub struct GeneratorReport {
    /// Its window.
    pub window: Window,
    /// What its datagrams came to.
    pub exchange: Exchange,
    /// CPU use with polling, as a share of one CPU.
    pub cpu_share: f64,
}

/// Everything that a result is made of.
pub struct Parts<'a> {
    /// The phase.
    pub spec: &'a PhaseSpec,
    /// What the control thread saw.
    pub sampler: &'a Sampler,
    /// The workers; `None` for null devices.
    pub workers: &'a [Option<Box<Report>>],
    /// The generators.
    pub generators: &'a [GeneratorReport],
    /// The pool after everything has ended.
    pub pool: PoolStats,
    /// File descriptors of the process before and after.
    pub fds: (u64, u64),
    /// Packets that the link lost.
    pub link_lost: u64,
}

impl Parts<'_> {
    fn reports(&self) -> impl Iterator<Item = &Report> {
        self.workers.iter().flatten().map(AsRef::as_ref)
    }

    /// The difference of a counter over the window, over all workers.
    fn over_window(&self, read: impl Fn(&Snapshot) -> u64) -> u64 {
        self.reports().map(|report| read(&report.end).saturating_sub(read(&report.begin))).sum()
    }

    fn generated(&self, read: impl Fn(&Window) -> u64) -> u64 {
        self.generators.iter().map(|generator| read(&generator.window)).sum()
    }

    /// Length of the window in seconds: the longest of the generators'.
    fn seconds(&self) -> f64 {
        let spans = self.generators.iter().map(|generator| generator.window.span);
        spans.map(|(begin, end)| end.saturating_sub(begin)).max().unwrap_or(0) as f64 / 1e9
    }

    fn merged(&self, read: impl Fn(&Report) -> &Recorder) -> Recorder {
        let mut all = Recorder::new();
        self.reports().for_each(|report| all.merge(read(report)));
        all
    }

    /// Slices of the same time are those of the worker that had it worst; the last one that all have completed ends it.
    fn slices(&self, read: impl Fn(&Report) -> &[Slice]) -> Vec<Slice> {
        let mut all: Option<Vec<Slice>> = None;
        for report in self.reports() {
            let own = read(report);
            all = Some(match all {
                None => own.to_vec(),
                Some(so_far) => so_far.iter().zip(own).map(|(a, &b)| a.worse(b)).collect(),
            });
        }
        all.unwrap_or_default()
    }
}

/// Puts the result together; `flows_left` are those of the map after the drain.
pub fn summarize(parts: &Parts<'_>, flows_left: u64) -> PhaseResult {
    let spec = parts.spec;
    let total = |read: fn(&Counters) -> u64| parts.generated(|window| read(&window.counters));
    let ever = |read: fn(&Counters) -> u64| parts.generated(|window| read(&window.total));
    let (intended, offered) = (parts.generated(|window| window.intended), total(|c| c.packets));
    let drops = drops(parts);
    let lost_by_reason = lost(parts, &drops);
    let dropped = lost_by_reason.values().sum::<u64>().min(offered);
    let unsent = intended.saturating_sub(offered);
    let truth = truth(parts);
    let corrupt = ever(|c| c.corrupt) + parts.reports().map(|report| report.corrupt).sum::<u64>();
    let payload_offered = total(|c| c.payload);
    let accepted_ever: u64 = parts.reports().map(|report| report.last.accepted).sum();
    let payload_before = parts.generated(|window| window.payload_before);
    let seconds = parts.seconds();
    PhaseResult {
        scenario: spec.scenario.clone(),
        phase: spec.phase,
        seed: spec.seed,
        seconds,
        workers: spec.workers,
        intended,
        offered,
        forwarded: offered - dropped,
        dropped,
        lost_by_reason,
        unsent,
        lost: unsent + truth.as_ref().map_or(0, |truth| truth.lost_packets),
        truth,
        invalid: invalid(spec.phase, intended, offered, corrupt),
        latency: parts.merged(|report| &report.latency.0).distribution(),
        undisturbed: parts.merged(|report| &report.undisturbed.0).distribution(),
        service_time: parts.merged(|report| &report.service_time.0).distribution(),
        reply_latency: reply_latency(parts),
        reply_jitter: reply_jitter(parts),
        reply_latency_by_component: reply_latency_by_component(parts),
        latency_slices: parts.slices(|report| &report.latency.1),
        undisturbed_slices: parts.slices(|report| &report.undisturbed.1),
        service_time_slices: parts.slices(|report| &report.service_time.1),
        upstream_wait: upstream_wait(parts),
        bytes_offered: Some(total(|c| c.bytes)),
        payload_offered,
        // What was sent before the window is upstream before it (streams are in order), so the rest is the window's.
        payload_forwarded: accepted_ever.saturating_sub(payload_before).min(payload_offered),
        payload_window: parts.over_window(|snapshot| snapshot.accepted),
        payload_window_down: total(|c| c.payload_received),
        connections_opened: total(|c| c.opened),
        connections_closed: total(|c| c.closed),
        connections_refused: total(|c| c.refused),
        pool: pool(parts),
        flow_map: flow_map(parts, flows_left),
        reassembly: reassembly(parts),
        event_loop: event_loop(parts),
        cpu: cpu(parts, offered, seconds),
        rss: RssResult { samples: parts.sampler.rss.clone() },
        heap: heap(parts),
        fds_left: parts.fds.1 as i64 - parts.fds.0 as i64,
        stages: stages(parts),
        drops,
        generator: GeneratorResult {
            offered_pps: offered as f64 / seconds.max(1e-9),
            cpu_percent: parts.generators.iter().map(|g| g.cpu_share * 100.0).sum::<f64>()
                / parts.generators.len().max(1) as f64,
            retransmits: total(|c| c.retransmits),
            resets_received: total(|c| c.resets_received),
            behind_ns_max: parts.generators.iter().map(|g| g.window.behind_max).max().unwrap_or(0),
            window_blocked: total(|c| c.window_blocked),
            received: total(|c| c.received),
            corrupt,
            aborted: ever(|c| c.aborted),
            reset_by_peer: total(|c| c.reset).saturating_sub(total(|c| c.aborted)),
            window_probes: total(|c| c.window_probes),
            repeated_segments: ever(|c| c.repeated),
            segment_gaps: ever(|c| c.gaps),
            strangers: parts.generators.iter().map(|generator| generator.exchange.strangers).sum(),
            hiccup_ns_max: parts.sampler.hiccup_max,
        },
        timers_after_drain: parts.reports().map(|report| report.last.stack.timers).sum(),
        clock: clock::facts(),
        lockstep: None,
        result_digest: None,
    }
}

fn invalid(phase: Phase, intended: u64, offered: u64, corrupt: u64) -> Option<String> {
    if corrupt > 0 {
        return Some(format!("{corrupt} packets or slices were not what their sender sent: the core has a bug"));
    }
    if phase == Phase::Load && (offered as f64) < OFFERED_RATIO_MIN * intended as f64 {
        return Some(format!(
            "the generator sent {offered} of {intended} packets ({:.1} %): the device was full or the machine was busy",
            100.0 * offered as f64 / intended as f64
        ));
    }
    None
}

/// Reasons of the core that explain why a good datagram did not arrive. No other one does: a checksum, say, that was
/// right when it was sent.
const EXPLAINS: [DropReason; 11] = [
    DropReason::FragmentFull,
    DropReason::FragmentOverlap,
    DropReason::FragmentTimeout,
    DropReason::FlowTableFull,
    DropReason::PendingFull,
    DropReason::PoolExhausted,
    DropReason::UdpQueueFull,
    DropReason::UdpRefused,
    DropReason::TooBig,
    DropReason::InboxFull,
    DropReason::ReassemblyFull,
];

/// What both ends counted; `None` without a core between them.
fn truth(parts: &Parts<'_>) -> Option<TruthResult> {
    parts.reports().next()?;
    let (mut sent, mut received, mut damage_down) =
        ([StreamTotals::default(); 2], [StreamTotals::default(); 2], Damage::default());
    let (mut asked, mut replies) = (0, SequenceCounts::default());
    for generator in parts.generators {
        let counters = &generator.window.total;
        sent[0].merge(&counters.up);
        received[1].merge(&counters.down);
        damage_down.merge(&counters.damage);
        asked += generator.exchange.sent;
        replies.merge(&generator.exchange.replies);
    }
    let (mut damage_up, mut answered, mut datagrams) = (Damage::default(), 0, SequenceCounts::default());
    for report in parts.reports() {
        received[0].merge(&report.arrivals.up);
        sent[1].merge(&report.arrivals.down);
        damage_up.merge(&report.arrivals.damage);
        answered += report.arrivals.replies;
        datagrams.merge(&report.datagrams);
    }
    let streams_up = stream_truth(&sent[0], &received[0], &damage_up);
    let streams_down = stream_truth(&sent[1], &received[1], &damage_down);
    let (datagrams_up, datagrams_down) = (datagram_truth(asked, &datagrams), datagram_truth(answered, &replies));
    let segment = u64::from(parts.spec.settings.mtu - 40);
    let lost_bytes = streams_up.lost_bytes + streams_down.lost_bytes;
    let lost_datagrams = datagrams_up.lost + datagrams_down.lost;
    let explained: u64 = parts
        .reports()
        .map(|report| {
            let own = report.last.no_buffer + report.last.foreign + report.overrun;
            own + EXPLAINS.iter().map(|&reason| report.last.stack.drops.get(reason)).sum::<u64>()
        })
        .sum();
    let unaccounted = lost_datagrams.saturating_sub(explained + parts.link_lost) + lost_bytes.div_ceil(segment);
    // A link that reorders does so to datagrams too, and the core must not mend it.
    let in_order = parts.spec.link.is_none_or(|link| link.reorder <= 0.0);
    let wrong = |truth: &DatagramTruth| truth.corrupted + truth.duplicated + if in_order { truth.reordered } else { 0 };
    let wrong_bytes =
        |truth: &StreamTruth| truth.corrupted_bytes + truth.duplicated_bytes + u64::from(!truth.flows_agree);
    let faults = unaccounted
        + wrong(&datagrams_up)
        + wrong(&datagrams_down)
        + wrong_bytes(&streams_up)
        + wrong_bytes(&streams_down);
    Some(TruthResult {
        lost_packets: lost_datagrams + lost_bytes.div_ceil(segment),
        unaccounted,
        faults,
        streams_up,
        streams_down,
        datagrams_up,
        datagrams_down,
    })
}

fn stream_truth(sent: &StreamTotals, received: &StreamTotals, damage: &Damage) -> StreamTruth {
    StreamTruth {
        flows: sent.flows,
        sent_bytes: sent.bytes,
        received_bytes: received.bytes,
        // What a doubled byte adds must not make up for one that is missing.
        lost_bytes: damage.lost.max(sent.bytes.saturating_sub(received.bytes.saturating_sub(damage.duplicated))),
        corrupted_bytes: damage.corrupted,
        duplicated_bytes: damage.duplicated.max(received.bytes.saturating_sub(sent.bytes)),
        flows_agree: (sent.flows, sent.digest) == (received.flows, received.digest),
        aborted_flows: sent.aborted_flows,
        aborted_bytes: sent.aborted_bytes,
    }
}

fn datagram_truth(sent: u64, received: &SequenceCounts) -> DatagramTruth {
    DatagramTruth {
        sent,
        received: received.received,
        lost: sent.saturating_sub(received.received - received.duplicated),
        corrupted: received.corrupted,
        duplicated: received.duplicated,
        reordered: received.reordered,
    }
}

fn reply_latency(parts: &Parts<'_>) -> Option<Distribution> {
    let mut all = Recorder::new();
    parts
        .generators
        .iter()
        .flat_map(|generator| generator.exchange.latency.iter().flatten())
        .for_each(|own| all.merge(own));
    (all.count() > 0).then(|| all.distribution())
}

fn reply_jitter(parts: &Parts<'_>) -> Option<Distribution> {
    let mut all = Recorder::new();
    parts.generators.iter().for_each(|generator| all.merge(&generator.exchange.jitter));
    (all.count() > 0).then(|| all.distribution())
}

/// The same by component.
fn reply_latency_by_component(parts: &Parts<'_>) -> Vec<Option<Distribution>> {
    let component = |at: usize| {
        let mut all = Recorder::new();
        let own = parts.generators.iter().filter_map(|generator| generator.exchange.latency.get(at)?.as_ref());
        own.for_each(|own| all.merge(own));
        (all.count() > 0).then(|| all.distribution())
    };
    (0..parts.spec.components.len()).map(component).collect()
}

/// What the workers' threads hold; the caller adds what is left in the end.
fn heap(parts: &Parts<'_>) -> HeapResult {
    let sum = |read: fn(&Report) -> Option<i64>| parts.reports().map(read).sum::<Option<i64>>();
    let none = parts.reports().next().is_none();
    HeapResult {
        allocations: if none {
            None
        } else {
            sum(|report| Some(report.end.heap?.since(report.begin.heap?).allocations as i64)).map(|count| count as u64)
        },
        begin_bytes: sum(|report| Some(report.begin.heap?.bytes)).filter(|_| !none),
        end_bytes: sum(|report| Some(report.end.heap?.bytes)).filter(|_| !none),
        after_drain_bytes: sum(|report| Some(report.last.heap?.bytes)).filter(|_| !none),
        left_bytes: None,
    }
}

/// The core's drop counters over the window, non-zero ones.
fn drops(parts: &Parts<'_>) -> BTreeMap<&'static str, u64> {
    let count = |reason: DropReason| parts.over_window(|snapshot| snapshot.stack.drops.get(reason));
    DropReason::ALL.iter().map(|&reason| (reason.name(), count(reason))).filter(|&(_, count)| count > 0).collect()
}

/// Packets without effect: the drops, and those that never reached the stack.
fn lost(parts: &Parts<'_>, drops: &BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
    let mut lost = drops.clone();
    let unread = [
        (DropReason::PoolExhausted, parts.over_window(|snapshot| snapshot.no_buffer)),
        (DropReason::InboxFull, parts.over_window(|snapshot| snapshot.foreign)),
    ];
    for (reason, count) in unread {
        if count > 0 {
            *lost.entry(reason.name()).or_default() += count;
        }
    }
    lost
}

fn upstream_wait(parts: &Parts<'_>) -> Option<Distribution> {
    let mut waits = parts.reports().filter_map(|report| report.upstream_wait.as_ref());
    let mut all = waits.next()?.clone();
    waits.for_each(|wait| all.merge(wait));
    Some(all.distribution())
}

/// The first worker's readings at the marks cover all threads.
fn pool(parts: &Parts<'_>) -> PoolResult {
    let Some(first) = parts.reports().next() else { return PoolResult::default() };
    let (begin, end, last) = (first.begin.pool, first.end.pool, parts.pool);
    PoolResult {
        buffers_allocated: end.buffers_allocated.saturating_sub(begin.buffers_allocated),
        buffers_freed: end.buffers_freed.saturating_sub(begin.buffers_freed),
        pool_grow_stalls: last.grow_stalls,
        pool_grow_stalls_after_warmup: end.grow_stalls.saturating_sub(begin.grow_stalls),
        preallocated_slabs: last.preallocated_slabs,
        preallocated_slabs_after_warmup: end.preallocated_slabs.saturating_sub(begin.preallocated_slabs),
        heap_bytes: end.heap_bytes as u64,
        heap_peak_bytes: last.heap_peak_bytes as u64,
        live_bytes_after_drain: last.live_bytes as u64,
        lock_wait_ns: end.lock_wait_ns.saturating_sub(begin.lock_wait_ns),
        refused: last.refused,
    }
}

fn flow_map(parts: &Parts<'_>, flows_left: u64) -> FlowMapResult {
    let Some(first) = parts.reports().next() else { return FlowMapResult::default() };
    let sessions_left: u64 = parts.reports().map(|report| report.last.stack.sessions).sum();
    FlowMapResult {
        lock_wait_ns: first.end.map.total.lock_wait_ns.saturating_sub(first.begin.map.total.lock_wait_ns),
        flows_peak: parts.reports().map(|report| report.last.stack.flows_peak).sum(),
        flows_after_drain: flows_left + sessions_left,
        refused: parts.reports().map(|report| report.last.stack.drops.get(DropReason::FlowTableFull)).sum(),
    }
}

fn reassembly(parts: &Parts<'_>) -> ReassemblyResult {
    let config = config_of(parts.spec);
    let bounded = parts.spec.settings.reassembly == Reassembly::Bounded;
    let peak = |read: fn(&Report) -> u64| parts.reports().map(read).max().unwrap_or(0);
    ReassemblyResult {
        bytes_total: parts.over_window(|snapshot| snapshot.stack.reassembly_bytes_total),
        bytes_peak: peak(|report| report.last.stack.reassembly_bytes_peak),
        cap: if bounded { config.stream.total_bytes } else { 0 },
        fragment_bytes_peak: peak(|report| report.last.stack.fragment_bytes_peak),
        fragment_cap: if bounded { config.fragment.total_bytes } else { 0 },
        bytes_after_drain: parts
            .reports()
            .map(|report| report.last.stack.reassembly_bytes + report.last.stack.fragment_bytes)
            .sum(),
    }
}

fn event_loop(parts: &Parts<'_>) -> LoopResult {
    let all = parts.merged(|report| &report.iterations);
    let mut stalls: Vec<_> = parts.reports().flat_map(|report| report.stalls.iter().cloned()).collect();
    stalls.sort_by_key(|alarm| alarm.at_ms);
    stalls.truncate(ALARMS);
    let distribution = all.distribution();
    LoopResult {
        iterations: all.count(),
        max_wall_ns: distribution.max,
        max_on_cpu_ns: parts.reports().map(|report| report.max_on_cpu).max().unwrap_or(0),
        max_off_cpu_ns: parts.reports().map(|report| report.max_off_cpu).max().unwrap_or(0),
        max_waited_ns: parts.reports().map(|report| report.max_waited).max().unwrap_or(0),
        stalls,
        hist: distribution,
    }
}

fn cpu(parts: &Parts<'_>, packets: u64, seconds: f64) -> CpuResult {
    let used = parts.over_window(|snapshot| snapshot.cpu);
    let idle = parts.over_window(|snapshot| snapshot.idle).min(used);
    // Comparing what arrived is the lab's work.
    let checking = parts.over_window(|snapshot| snapshot.checking);
    let engine = (used - idle).saturating_sub(checking);
    let workers = parts.reports().count().max(1) as f64;
    CpuResult {
        engine_ns: engine,
        idle_poll_ns: idle,
        checking_ns: checking,
        percent: engine as f64 / (seconds.max(1e-9) * 1e9) / workers * 100.0,
        windows: parts.sampler.windows.clone(),
        ns_per_packet: engine as f64 / packets.max(1) as f64,
    }
}

/// Sampled time less that of the clock's own readings; below 0 where the clock was faster than usual.
pub fn without_clock(nanos: u64, marks: u64) -> i64 {
    if nanos == 0 {
        // Nothing was timed.
        return 0;
    }
    nanos as i64 - (marks as f64 * clock::cost_ns()) as i64
}

fn stages(parts: &Parts<'_>) -> BTreeMap<&'static str, StageResult> {
    let mut stages = BTreeMap::new();
    let samples = parts.over_window(|snapshot| snapshot.stack.stages.packets);
    for &stage in Stage::ALL {
        let ns = parts.over_window(|snapshot| snapshot.stack.stages.nanos[stage as usize]);
        let marks = parts.over_window(|snapshot| snapshot.stack.stages.marks[stage as usize]);
        stages.insert(stage.name(), StageResult { ns: without_clock(ns, marks), samples, marks });
    }
    let packets = parts.reports().map(|report| report.measured).sum();
    for report in parts.reports() {
        for (&name, &ns) in &report.parts {
            let entry: &mut StageResult = stages.entry(name).or_default();
            entry.ns += without_clock(ns, report.iterations.count());
            entry.marks += report.iterations.count();
            entry.samples = packets;
        }
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_as_short_as_the_clock_comes_to_nothing_and_may_come_to_less() {
        let cost = clock::cost_ns();
        assert_eq!(without_clock((1_000_000.0 * cost) as u64, 1_000_000), 0);
        assert!(without_clock(1, 1_000) < 0, "what varies is not hidden");
    }
}
