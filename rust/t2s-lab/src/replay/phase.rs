//! A phase of the lab whose device is a capture: the replay, repeated and measured.
//!
//! One thread does everything, so "service" is the core's whole way of a packet and nothing else. Each pass over the
//! capture has a stack of its own on a shared pool. With recorded or scaled speed, latency counts from a packet's due
//! time; at the highest speed every packet is due when the one before is done, and latency is service.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use t2s_core::buf::{Pool, PoolConfig, PoolStats};
use t2s_core::stats::{DropCounts, Stage, StageTimes};

use super::capture::{Capture, CaptureError};
use super::player::{Observer, Pace, Replay, ReplayOptions, replay};
use crate::control::Control;
use crate::core_config::config_from;
use crate::measure::clock::{self, now_ns};
use crate::measure::recorder::Recorder;
use crate::measure::sampler::{Gauge, Sampler};
use crate::result::{
    CpuResult, FlowMapResult, GeneratorResult, HeapResult, LoopResult, PhaseResult, PoolResult, ReassemblyResult,
    RssResult, StageResult,
};
use crate::spec::{Phase, Settings, SpecError};
use crate::summary::without_clock;
use t2s_core::config::Reassembly;
use t2s_sys::clock::thread_cpu_nanos;
use t2s_sys::memory::MAPPED;

/// Time between two looks at clock and memory, nanoseconds.
const POLL_INTERVAL: u64 = 10_000_000;

/// How fast a capture is replayed, as scenario files say it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Speed {
    /// `"recorded"` or `"max"`.
    Named(NamedSpeed),
    /// A factor; 2.0 is twice the recorded speed.
    Factor(f64),
}

/// The speeds that have a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamedSpeed {
    /// As recorded.
    Recorded,
    /// As fast as the core can.
    Max,
}

impl Speed {
    /// The pace of a replay; `None` for a factor that is no speed.
    pub fn pace(self) -> Option<Pace> {
        match self {
            Self::Named(NamedSpeed::Recorded) => Some(Pace::Times(1.0)),
            Self::Named(NamedSpeed::Max) => Some(Pace::Max),
            Self::Factor(factor) => (factor.is_finite() && factor > 0.0).then_some(Pace::Times(factor)),
        }
    }
}

/// The name of the driver, for the `driver` key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Driver {
    /// A capture is the device.
    #[serde(rename = "pcap")]
    Pcap,
}

/// One phase on a capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureSpec {
    /// Tells this spec from that of generated load.
    pub driver: Driver,
    /// Name of the scenario, for the result.
    pub scenario: String,
    /// `load` replays at `speed`, `capacity` as fast as the core can.
    pub phase: Phase,
    /// Seed of the stack's keys.
    pub seed: u64,
    /// Measured time, seconds.
    pub seconds: f64,
    /// Time before it that is not measured, seconds.
    pub warmup_seconds: f64,
    /// Must be 1: a capture has one order.
    pub workers: u32,
    /// Not used: one thread needs no pinning against another.
    #[serde(default)]
    pub pin: bool,
    /// Settings of the core.
    pub settings: Settings,
    /// The capture.
    pub path: PathBuf,
    /// Speed of the load phase.
    pub speed: Speed,
    /// Not used: the capture says what is sent.
    #[serde(default)]
    pub rate_pps: f64,
    /// Not used: the capture says what is sent.
    #[serde(default)]
    pub components: Vec<serde_json::Value>,
}

impl CaptureSpec {
    /// Checks a spec; all that is wrong with it at once.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn from_json(text: &str) -> Result<Self, SpecError> {
        let spec: Self = serde_json::from_str(text)?;
        let mut wrong = spec.settings.all_problems();
        if spec.speed.pace().is_none() {
            wrong.push("speed: must be \"recorded\", \"max\" or a factor above 0".to_owned());
        }
        if spec.phase == Phase::GeneratorSelftest {
            wrong.push("phase: a capture has no generator to test".to_owned());
        }
        if !(spec.seconds.is_finite() && spec.seconds > 0.0) {
            wrong.push("seconds: must be above 0".to_owned());
        }
        if !(spec.warmup_seconds.is_finite() && spec.warmup_seconds >= 0.0) {
            wrong.push("warmup_seconds: must not be below 0".to_owned());
        }
        if wrong.is_empty() { Ok(spec) } else { Err(SpecError::Invalid(wrong)) }
    }
}

/// What happened in the measured window.
struct Watch<'a> {
    control: &'a Control,
    gauge: &'a [Gauge],
    sampler: Sampler,
    begin: u64,
    end: u64,
    next_look: u64,
    pass_start: u64,
    due: u64,
    entered: u64,
    service: Recorder,
    latency: Recorder,
    offered: u64,
    accepted: u64,
    cpu: [u64; 2],
    span: (u64, u64),
}

impl Watch<'_> {
    fn measured(&self, now: u64) -> bool {
        now >= self.begin && now < self.end
    }

    fn look(&mut self, now: u64) {
        if now < self.next_look {
            return;
        }
        self.next_look = now + POLL_INTERVAL;
        let cpu = thread_cpu_nanos();
        self.gauge[0].cpu.store(cpu, Ordering::Relaxed);
        self.gauge[0].packets.store(self.offered, Ordering::Relaxed);
        if now >= self.begin && self.span.0 == 0 {
            (self.span.0, self.cpu[0]) = (now, cpu);
        }
        (self.span.1, self.cpu[1]) = (now.min(self.end), cpu);
        self.sampler.look(now, 0, self.gauge);
    }
}

impl Observer for Watch<'_> {
    fn pass(&mut self) {
        self.pass_start = now_ns();
    }

    fn begin(&mut self, due: Option<u64>) {
        self.entered = now_ns();
        self.due = due.map_or(self.entered, |due| (self.pass_start + due).min(self.entered));
    }

    fn end(&mut self, accepted: bool) {
        let now = now_ns();
        if self.measured(self.entered) {
            self.offered += 1;
            self.accepted += u64::from(accepted);
            self.service.record(now.saturating_sub(self.entered));
            self.latency.record(now.saturating_sub(self.due));
        }
        self.look(now);
    }

    fn stopped(&mut self) -> bool {
        let now = now_ns();
        self.look(now);
        now >= self.end || self.control.stop.load(Ordering::Relaxed)
    }
}

/// Sums over the passes of a phase.
#[derive(Default)]
struct Sums {
    drops: DropCounts,
    stages: StageTimes,
    payload_up: u64,
    payload_sent: u64,
    opened: u64,
    closed: u64,
    refused: u64,
    replies: u64,
    corrupt: u64,
    flows_peak: u64,
    flows_refused: u64,
    reassembly_total: u64,
    reassembly_peak: u64,
    fragment_peak: u64,
    left: u64,
    timers: u64,
}

impl Sums {
    fn add(&mut self, pass: &Replay) {
        let stats = &pass.stats;
        self.drops.merge(&stats.drops);
        for (sum, nanos) in self.stages.nanos.iter_mut().zip(stats.stages.nanos) {
            *sum += nanos;
        }
        for (sum, marks) in self.stages.marks.iter_mut().zip(stats.stages.marks) {
            *sum += marks;
        }
        self.stages.packets += stats.stages.packets;
        self.payload_up += pass.flows.iter().map(|flow| flow.bytes_up).sum::<u64>();
        self.payload_sent += pass.flows.iter().map(|flow| flow.bytes_sent).sum::<u64>();
        self.opened += stats.flows_opened;
        self.closed += stats.flows_closed.iter().sum::<u64>();
        self.refused += stats.flows_refused;
        self.replies += pass.replies;
        self.corrupt += pass.corrupt;
        self.flows_peak = self.flows_peak.max(stats.flows_peak);
        self.flows_refused += stats.drops.get(t2s_core::stats::DropReason::FlowTableFull);
        self.reassembly_total += stats.reassembly_bytes_total;
        self.reassembly_peak = self.reassembly_peak.max(stats.reassembly_bytes_peak);
        self.fragment_peak = self.fragment_peak.max(stats.fragment_bytes_peak);
        self.left += pass.left.flows + pass.left.sessions;
        self.timers += pass.left.timers;
    }
}

/// Runs a phase on the calling thread.
///
/// # Errors
/// [`CaptureError`] when the capture cannot be read.
pub fn run_capture(spec: &CaptureSpec, control: &Control, gauge: &[Gauge]) -> Result<PhaseResult, CaptureError> {
    let capture = Capture::open(&spec.path)?;
    let config = config_from(&spec.settings, spec.seed);
    let pool = Pool::new(PoolConfig {
        ceiling_bytes: (spec.settings.pool_ceiling_mib as usize) << 20,
        cache: spec.settings.pool_cache,
        memory: &MAPPED,
        clock: now_ns,
    });
    let pace = match spec.phase {
        Phase::Capacity => Pace::Max,
        Phase::Load | Phase::GeneratorSelftest => spec.speed.pace().unwrap_or(Pace::Max),
    };
    let options = ReplayOptions { config: config.clone(), pace, keep: false };
    let epoch = now_ns();
    control.epoch.store(epoch, Ordering::Release);
    let begin = epoch + (spec.warmup_seconds * 1e9) as u64;
    let end = begin + (spec.seconds * 1e9) as u64;
    let mut watch = Watch {
        control,
        gauge,
        sampler: Sampler::new(begin, end),
        begin,
        end,
        next_look: 0,
        pass_start: epoch,
        due: 0,
        entered: 0,
        service: Recorder::new(),
        latency: Recorder::new(),
        offered: 0,
        accepted: 0,
        cpu: [0; 2],
        span: (0, 0),
    };
    let mut sums = Sums::default();
    let mut steady = None;
    while !watch.stopped() {
        let pass = replay(&capture, &options, &pool, &mut watch);
        sums.add(&pass);
        if pass.packets == 0 {
            break;
        }
        if steady.is_none() && now_ns() >= begin {
            steady = Some(pool.stats());
        }
    }
    Ok(result(spec, &watch, &sums, &pool, &steady.unwrap_or_default(), &config))
}

fn result(
    spec: &CaptureSpec,
    watch: &Watch<'_>,
    sums: &Sums,
    pool: &Pool,
    before: &PoolStats,
    config: &t2s_core::config::Config,
) -> PhaseResult {
    let last = pool.stats();
    let seconds = watch.span.1.saturating_sub(watch.span.0) as f64 / 1e9;
    let engine = watch.cpu[1].saturating_sub(watch.cpu[0]);
    let bounded = spec.settings.reassembly == Reassembly::Bounded;
    let named: BTreeMap<_, _> =
        sums.drops.iter().filter(|(_, count)| *count > 0).map(|(reason, count)| (reason.name(), count)).collect();
    let service = watch.service.distribution();
    PhaseResult {
        scenario: spec.scenario.clone(),
        phase: spec.phase,
        seed: spec.seed,
        seconds,
        workers: 1,
        intended: watch.offered,
        offered: watch.offered,
        forwarded: watch.accepted,
        dropped: watch.offered - watch.accepted,
        unsent: 0,
        // A capture has no second end that could miss a packet.
        lost: watch.offered - watch.accepted,
        truth: None,
        lost_by_reason: named.clone(),
        invalid: (sums.corrupt > 0).then(|| format!("{} replies were broken: the core has a bug", sums.corrupt)),
        latency: watch.latency.distribution(),
        undisturbed: watch.latency.distribution(),
        service_time: service.clone(),
        reply_latency: None,
        reply_jitter: None,
        reply_latency_by_component: Vec::new(),
        latency_slices: Vec::new(),
        undisturbed_slices: Vec::new(),
        service_time_slices: Vec::new(),
        upstream_wait: None,
        bytes_offered: None,
        payload_offered: sums.payload_sent,
        payload_forwarded: sums.payload_up,
        payload_window: sums.payload_up,
        payload_window_down: 0,
        connections_opened: sums.opened,
        connections_closed: sums.closed,
        connections_refused: sums.refused,
        pool: PoolResult {
            buffers_allocated: last.buffers_allocated,
            buffers_freed: last.buffers_freed,
            pool_grow_stalls: last.grow_stalls,
            pool_grow_stalls_after_warmup: last.grow_stalls.saturating_sub(before.grow_stalls),
            preallocated_slabs: last.preallocated_slabs,
            preallocated_slabs_after_warmup: last.preallocated_slabs.saturating_sub(before.preallocated_slabs),
            heap_bytes: last.heap_bytes as u64,
            heap_peak_bytes: last.heap_peak_bytes as u64,
            live_bytes_after_drain: last.live_bytes as u64,
            lock_wait_ns: last.lock_wait_ns,
            refused: last.refused,
        },
        flow_map: FlowMapResult {
            lock_wait_ns: 0,
            flows_peak: sums.flows_peak,
            flows_after_drain: sums.left,
            refused: sums.flows_refused,
        },
        reassembly: ReassemblyResult {
            bytes_total: sums.reassembly_total,
            bytes_peak: sums.reassembly_peak,
            cap: if bounded { config.stream.total_bytes } else { 0 },
            fragment_bytes_peak: sums.fragment_peak,
            fragment_cap: if bounded { config.fragment.total_bytes } else { 0 },
            bytes_after_drain: 0,
        },
        event_loop: LoopResult {
            iterations: service.count,
            max_wall_ns: service.max,
            max_on_cpu_ns: service.max,
            max_off_cpu_ns: 0,
            max_waited_ns: 0,
            stalls: Vec::new(),
            hist: service,
        },
        cpu: CpuResult {
            engine_ns: engine,
            idle_poll_ns: 0,
            checking_ns: 0,
            percent: engine as f64 / (seconds.max(1e-9) * 1e7),
            windows: watch.sampler.windows.clone(),
            ns_per_packet: engine as f64 / watch.offered.max(1) as f64,
        },
        rss: RssResult { samples: watch.sampler.rss.clone() },
        heap: HeapResult::default(),
        fds_left: 0,
        stages: Stage::ALL
            .iter()
            .map(|&stage| {
                let ns = sums.stages.nanos[stage as usize];
                let marks = sums.stages.marks[stage as usize];
                (stage.name(), StageResult { ns: without_clock(ns, marks), samples: sums.stages.packets, marks })
            })
            .collect(),
        drops: named,
        generator: GeneratorResult {
            offered_pps: watch.offered as f64 / seconds.max(1e-9),
            received: sums.replies,
            corrupt: sums.corrupt,
            ..GeneratorResult::default()
        },
        timers_after_drain: sums.timers,
        clock: clock::facts(),
        lockstep: None,
        result_digest: None,
    }
}
