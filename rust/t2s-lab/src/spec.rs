//! What one phase of a scenario asks for: JSON from the lab, checked here once.
//!
//! Refuses unknown keys and impossible values, the latter all at once and each with its path. Defaults live in the
//! scenario schema of the lab; only parts that a component may leave out have one here.

use serde::{Deserialize, Serialize};
use t2s_core::checksum::Kernel;
use t2s_core::config::{CongestionControl, Reassembly, SynAck};

/// Flows of one TCP component that a generator's address plan can name.
pub const MAX_FLOWS: u32 = 1_000_000;

/// Bytes of the largest segment or datagram payload a component may send (an IP packet's 65,535 less headers).
pub const MAX_PAYLOAD: u32 = 65_000;

/// Bytes of the longest response to a request.
pub const MAX_RESPONSE: u32 = 1 << 28;

/// Slices of one phase.
const MAX_SLICES: f64 = 10_000.0;

/// What can be wrong with a spec.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not JSON, an unknown key, or a wrong type.
    #[error("the phase does not parse: {0}")]
    Parse(#[from] serde_json::Error),
    /// Values that cannot work; every one of them.
    #[error("the phase cannot run: {}", .0.join("; "))]
    Invalid(Vec<String>),
}

/// The kind of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Open loop at the stated rate.
    Load,
    /// As fast as the device ring and the peer's windows allow.
    Capacity,
    /// The generator against a device that only acknowledges: its self-test.
    GeneratorSelftest,
}

/// One phase of one scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseSpec {
    /// Name of the scenario, for the result.
    pub scenario: String,
    /// Which phase.
    pub phase: Phase,
    /// Same seed, same packets.
    pub seed: u64,
    /// Measured time, seconds.
    pub seconds: f64,
    /// Time before it that is not measured, seconds.
    pub warmup_seconds: f64,
    /// Length of a slice of the measured time that has percentiles of its own, seconds; 0 = there are none.
    #[serde(default)]
    pub slice_seconds: f64,
    /// Worker threads, each with a stack, a generator and a device of its own.
    pub workers: u32,
    /// Bind each worker and generator to a CPU.
    pub pin: bool,
    /// Settings of the core.
    pub settings: Settings,
    /// Packets a second, over all workers.
    pub rate_pps: f64,
    /// What is sent; weights share the rate.
    pub components: Vec<Component>,
    /// Threads and the machine's time, or one thread and virtual time.
    #[serde(default, skip_serializing_if = "Driver::is_memory")]
    pub driver: Driver,
    /// What lies between clients and core, in virtual time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkSpec>,
    /// What is wrong with the core, to see whether it is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultSpec>,
}

/// How generated load is driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// A thread for each generator and each worker.
    #[default]
    Memory,
    /// One thread, virtual time: the same seed gives the same result to the byte.
    Lockstep,
}

impl Driver {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    fn is_memory(&self) -> bool {
        *self == Self::Memory
    }
}

/// A link that loses, delays and reorders, each direction alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    /// Share of packets lost.
    #[serde(default)]
    pub loss: f64,
    /// Time from one end to the other, microseconds.
    #[serde(default)]
    pub delay_us: u64,
    /// Share of packets that others overtake.
    #[serde(default)]
    pub reorder: f64,
}

/// A fault around the core.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSpec {
    /// What it does.
    pub name: FaultName,
    /// How much of it; the unit is the name's.
    pub size: f64,
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultName {
    /// Each packet takes so many nanoseconds longer.
    SlowPacket,
    /// One packet in 1,000 takes so many microseconds longer.
    SlowThousandth,
    /// The thread sleeps so many milliseconds each second.
    Sleep,
    /// The thread computes for so many milliseconds each five seconds.
    Busy,
    /// Another thread holds the locks of the flow map for so many milliseconds each second.
    Lock,
    /// Each packet takes so many nanoseconds longer, between iterations.
    HiddenWork,
    /// Each so many flows a buffer is lost.
    BufferLeak,
    /// The heap grows by so many bytes a second.
    HeapGrowth,
    /// One in so many packets disappears.
    SilentDrop,
    /// One in so many segments has a wrong byte, either way, with a right checksum.
    WrongByte,
    /// One in so many datagrams has a wrong byte, either way, with a right checksum.
    WrongUdpPayload,
    /// Each reply is held for so many microseconds.
    HeldReplies,
    /// One in so many window updates is not sent.
    MissingWindowUpdate,
    /// So many percent of all bytes are summed up once more.
    SlowChecksum,
}

impl FaultName {
    /// Whether it does something to time alone.
    pub fn needs_real_time(self) -> bool {
        use FaultName::{Busy, HiddenWork, Lock, Sleep, SlowChecksum, SlowPacket, SlowThousandth};
        matches!(self, SlowPacket | SlowThousandth | Sleep | Busy | Lock | HiddenWork | SlowChecksum)
    }

    /// Whether its size is "one in so many".
    fn is_one_in(self) -> bool {
        use FaultName::{BufferLeak, MissingWindowUpdate, SilentDrop, WrongByte, WrongUdpPayload};
        matches!(self, BufferLeak | MissingWindowUpdate | SilentDrop | WrongByte | WrongUdpPayload)
    }
}

/// Settings of the core, the five optimizations among them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Shards of the flow map; 0 = one a worker.
    pub flow_shards: u32,
    /// Buffers in a thread's magazine; 0 = every allocation takes the depot's lock.
    pub pool_cache: u16,
    /// Checksum kernel by name.
    pub checksum: String,
    /// `bounded` or `unbounded`.
    pub reassembly: Reassembly,
    /// Measure each loop iteration by stage and raise alarms.
    pub watchdog: bool,
    /// An iteration longer than this raises an alarm, milliseconds.
    pub loop_stall_ms: f64,
    /// Ceiling of the buffer pool, MiB.
    pub pool_ceiling_mib: u32,
    /// TCP flows of one worker.
    pub max_tcp_flows: u32,
    /// UDP sessions of one worker.
    pub max_udp_sessions: u32,
    /// Largest IP packet without offload, bytes.
    pub mtu: u16,
    /// The device verifies checksums and segments super-segments.
    pub offload: bool,
    /// One packet in this many has its stages timed; 0 = none.
    pub sample_every: u32,
    /// Payload that one worker may hold, MiB.
    pub buffer_budget_mib: u32,
    /// When the SYN-ACK is sent.
    pub syn_ack: SynAck,
    /// Congestion control of the sending side.
    pub congestion: CongestionControl,
}

/// One kind of traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Component {
    /// Long TCP flows.
    TcpStream(TcpStream),
    /// Short TCP connections.
    TcpChurn(TcpChurn),
    /// Requests over long TCP flows, each answered with `upstream.reply_bytes`.
    TcpRequest(TcpRequest),
    /// Datagrams.
    Udp(Udp),
    /// DNS queries from pseudorandom ports (RFC 4814).
    Dns(Dns),
    /// Packets that must be refused.
    Malformed(Malformed),
    /// SYNs from addresses that never answer.
    SynFlood(SynFlood),
}

/// Long TCP flows, with disorder made by the sender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpStream {
    /// Share of the rate, relative to the other components.
    pub weight: f64,
    /// Flows over all workers.
    pub flows: u32,
    /// Payload of a segment, bytes.
    pub segment_bytes: u32,
    /// Share of segments that arrive ahead of an earlier one.
    #[serde(default)]
    pub reorder: f64,
    /// Share of segments sent twice.
    #[serde(default)]
    pub duplicate: f64,
    /// Share of segments that begin inside the one before.
    #[serde(default)]
    pub overlap: f64,
    /// Share of segments that travel as IP fragments.
    #[serde(default)]
    pub ip_fragment: f64,
    /// Share of flows over IPv6.
    #[serde(default)]
    pub v6_ratio: f64,
    /// The other end.
    pub upstream: Upstream,
}

/// Short TCP connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpChurn {
    /// Share of the rate, relative to the other components.
    pub weight: f64,
    /// Connections at once, over all workers.
    pub concurrent: u32,
    /// Segments of payload a connection sends.
    pub segments: u32,
    /// Payload of a segment, bytes.
    pub segment_bytes: u32,
    /// Share of connections that end with a reset.
    #[serde(default)]
    pub reset_ratio: f64,
    /// Share of connections over IPv6.
    #[serde(default)]
    pub v6_ratio: f64,
    /// The other end.
    pub upstream: Upstream,
}

/// Requests over long TCP flows: one a flow at a time. Few bytes of response make request and response, many make a
/// download.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpRequest {
    /// Share of the rate, relative to the other components.
    pub weight: f64,
    /// Flows over all workers.
    pub flows: u32,
    /// Payload of a request, bytes, in one segment.
    pub request_bytes: u32,
    /// Share of flows over IPv6.
    #[serde(default)]
    pub v6_ratio: f64,
    /// The other end, whose mode is `respond`.
    pub upstream: Upstream,
}

/// Datagrams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Udp {
    /// Share of the rate, relative to the other components.
    pub weight: f64,
    /// Client ports, over all workers.
    pub flows: u32,
    /// Payload of a datagram, bytes.
    pub payload_bytes: u32,
    /// Share of flows over IPv6.
    #[serde(default)]
    pub v6_ratio: f64,
    /// Share of datagrams that travel as IP fragments.
    #[serde(default)]
    pub ip_fragment: f64,
    /// The other end.
    pub upstream: Upstream,
}

/// DNS queries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// Share of the rate, relative to the other components.
    pub weight: f64,
    /// Different names asked for.
    pub names: u32,
    /// Share of queries that do not parse.
    #[serde(default)]
    pub malformed: f64,
    /// The other end.
    pub upstream: Upstream,
}

/// Packets that must be refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Malformed {
    /// Share of the rate, relative to the other components.
    pub weight: f64,
}

/// SYNs from addresses that never answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SynFlood {
    /// Share of the rate, relative to the other components.
    pub weight: f64,
    /// The other end; by default a proxy that reports a timeout after 50 ms.
    #[serde(default = "flood_upstream")]
    pub upstream: Upstream,
}

/// A flood goes to hosts that do not exist, as a scan does: the proxy answers late and says so.
fn flood_upstream() -> Upstream {
    Upstream { mode: UpstreamMode::Timeout, connect_delay_us: 50_000, ..Upstream::default() }
}

/// What the simulated upstream does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamMode {
    /// Takes everything; closes when the client does.
    #[default]
    Sink,
    /// Sends back what it takes.
    Echo,
    /// Answers each request of a `tcp_request` with `reply_bytes`.
    Respond,
    /// Refuses connections and datagrams.
    Refuse,
    /// Reports the host as unreachable.
    Unreachable,
    /// Answers a connect after `connect_delay_us` with a timeout (0: never).
    Timeout,
    /// Takes the first bytes, then resets.
    Reset,
    /// Sends `reply_bytes`, closes its side, and goes on taking.
    HalfClose,
}

/// The other end of a component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// What it does.
    pub mode: UpstreamMode,
    /// Time until a reply leaves, microseconds.
    #[serde(default)]
    pub delay_us: u64,
    /// Time until a connect is answered, microseconds.
    #[serde(default)]
    pub connect_delay_us: u64,
    /// Bytes it takes, Mbit/s for each flow; 0 = no limit.
    #[serde(default)]
    pub bandwidth_mbit: f64,
    /// Bytes its socket holds before it takes no more; 0 = 64 KiB.
    #[serde(default)]
    pub buffer_bytes: u32,
    /// Bytes of one reply: to the first bytes of a connection, or to each datagram; 0 = as received when echoing, else
    /// none.
    #[serde(default)]
    pub reply_bytes: u32,
    /// When in the measured window the upstream goes away, milliseconds: its connections are reset, others refused, and
    /// datagrams stay unanswered.
    #[serde(default)]
    pub outage_after_ms: u64,
    /// For how long, milliseconds; 0 = it never does.
    #[serde(default)]
    pub outage_ms: u64,
}

impl Upstream {
    /// Whether waiting is part of the design: a blocked packet is then not intended rather than late. Besides limits
    /// and delays these are refusals by ICMP, which the core must rate-limit (RFC 1812, section 4.3.2.8), and by
    /// silence.
    pub fn limits_the_sender(&self) -> bool {
        let silent = matches!(self.mode, UpstreamMode::Unreachable | UpstreamMode::Timeout);
        silent || self.bandwidth_mbit > 0.0 || self.delay_us > 0 || self.connect_delay_us > 0 || self.outage_ms > 0
    }

    /// Whether connections end by resets that are meant.
    pub fn resets(&self) -> bool {
        self.mode == UpstreamMode::Reset || self.outage_ms > 0
    }
}

impl Component {
    /// Share of the rate, relative to the other components.
    pub fn weight(&self) -> f64 {
        match self {
            Self::TcpStream(c) => c.weight,
            Self::TcpChurn(c) => c.weight,
            Self::TcpRequest(c) => c.weight,
            Self::Udp(c) => c.weight,
            Self::Dns(c) => c.weight,
            Self::Malformed(c) => c.weight,
            Self::SynFlood(c) => c.weight,
        }
    }

    /// The other end; malformed packets have one too, for those that a lenient stack lets through.
    pub fn upstream(&self) -> Upstream {
        match self {
            Self::TcpStream(c) => c.upstream,
            Self::TcpChurn(c) => c.upstream,
            Self::TcpRequest(c) => c.upstream,
            Self::Udp(c) => c.upstream,
            Self::Dns(c) => c.upstream,
            Self::Malformed(_) => Upstream { mode: UpstreamMode::Refuse, ..Upstream::default() },
            Self::SynFlood(c) => c.upstream,
        }
    }
}

impl PhaseSpec {
    /// Reads and checks a phase.
    pub fn from_json(json: &str) -> Result<Self, SpecError> {
        let spec: Self = serde_json::from_str(json)?;
        let problems = spec.problems();
        if problems.is_empty() { Ok(spec) } else { Err(SpecError::Invalid(problems)) }
    }

    /// Slices that the measured time is cut into.
    pub fn slices(&self) -> usize {
        if self.slice_seconds > 0.0 { (self.seconds / self.slice_seconds) as usize } else { 0 }
    }

    /// Everything that keeps this phase from running, each with its path.
    pub fn problems(&self) -> Vec<String> {
        let mut found = Problems(Vec::new());
        found.check(self.seconds > 0.0 && self.seconds <= 7.0 * 86_400.0, "seconds", "must be in (0, 604800]");
        found.check((0.0..=3600.0).contains(&self.warmup_seconds), "warmup_seconds", "must be in [0, 3600]");
        let slices = self.seconds / self.slice_seconds;
        let sliced = self.slice_seconds == 0.0 || (self.slice_seconds > 0.0 && slices <= MAX_SLICES);
        found.check(sliced, "slice_seconds", "must be 0, or cut the measured time into 10,000 slices at most");
        found.check((1..=64).contains(&self.workers), "workers", "must be in [1, 64]");
        found.check(self.rate_pps > 0.0 && self.rate_pps <= 1e8, "rate_pps", "must be in (0, 1e8]");
        found.check((1..=64).contains(&self.components.len()), "components", "must be 1 to 64");
        self.settings.problems(&mut found);
        let lockstep = self.driver == Driver::Lockstep;
        found.check(!lockstep || self.workers == 1, "workers", "must be 1 in lockstep");
        found.check(!lockstep || self.phase == Phase::Load, "phase", "must be load in lockstep");
        if let Some(link) = self.link {
            found.check(lockstep, "link", "needs driver \"lockstep\"");
            found.check((0.0..=0.5).contains(&link.loss), "link.loss", "must be in [0, 0.5]");
            found.check((0.0..=0.5).contains(&link.reorder), "link.reorder", "must be in [0, 0.5]");
            found.check(link.delay_us <= 10_000_000, "link.delay_us", "must be at most 10 s");
        }
        if let Some(FaultSpec { name, size }) = self.fault {
            let least = if name.is_one_in() { 1.0 } else { 0.0 };
            found.check(
                (least..=1e12).contains(&size),
                "fault.size",
                "must be positive, and 1 at least where it is one in so many",
            );
            found.check(!lockstep || !name.needs_real_time(), "fault.name", "needs real time, so driver \"memory\"");
        }
        let largest_segment = if self.settings.offload { MAX_PAYLOAD } else { u32::from(self.settings.mtu) - 72 };
        for (index, component) in self.components.iter().enumerate() {
            component.problems(&mut found, &format!("components[{index}]"), largest_segment);
        }
        found.0
    }
}

struct Problems(Vec<String>);

impl Problems {
    fn check(&mut self, good: bool, path: &str, rule: &str) {
        if !good {
            self.0.push(format!("{path} {rule}"));
        }
    }

    fn share(&mut self, value: f64, path: &str, key: &str) {
        self.check((0.0..=1.0).contains(&value), &format!("{path}.{key}"), "must be in [0, 1]");
    }

    fn range(&mut self, value: u32, range: std::ops::RangeInclusive<u32>, path: &str, key: &str) {
        let rule = format!("must be in [{}, {}]", range.start(), range.end());
        self.check(range.contains(&value), &format!("{path}.{key}"), &rule);
    }
}

impl Settings {
    /// All that is wrong with the settings, each with its path.
    pub fn all_problems(&self) -> Vec<String> {
        let mut found = Problems(Vec::new());
        self.problems(&mut found);
        found.0
    }

    fn problems(&self, found: &mut Problems) {
        if let Err(unknown) = Kernel::by_name(&self.checksum) {
            found.0.push(format!("settings.checksum: {unknown}"));
        }
        found.range(self.flow_shards, 0..=1024, "settings", "flow_shards");
        found.check(self.loop_stall_ms > 0.0, "settings.loop_stall_ms", "must be positive");
        found.range(self.pool_ceiling_mib, 1..=1 << 20, "settings", "pool_ceiling_mib");
        found.range(self.max_tcp_flows, 1..=1 << 24, "settings", "max_tcp_flows");
        found.range(self.max_udp_sessions, 1..=1 << 24, "settings", "max_udp_sessions");
        found.range(u32::from(self.mtu), 1280..=65_535, "settings", "mtu");
        found.range(self.buffer_budget_mib, 1..=1 << 20, "settings", "buffer_budget_mib");
    }
}

impl Component {
    fn problems(&self, found: &mut Problems, path: &str, largest_segment: u32) {
        let weight = self.weight();
        found.check(weight > 0.0 && weight.is_finite(), &format!("{path}.weight"), "must be positive");
        let requests = matches!(self, Self::TcpRequest(_));
        self.upstream().problems(found, &format!("{path}.upstream"), if requests { MAX_RESPONSE } else { MAX_PAYLOAD });
        let responds = self.upstream().mode == UpstreamMode::Respond;
        found.check(
            requests == responds,
            &format!("{path}.upstream.mode"),
            "must be respond for tcp_request, and only there",
        );
        match self {
            Self::TcpRequest(c) => {
                found.range(c.flows, 1..=MAX_FLOWS, path, "flows");
                found.range(c.request_bytes, 1..=largest_segment, path, "request_bytes");
                found.share(c.v6_ratio, path, "v6_ratio");
                found.check(c.upstream.reply_bytes > 0, &format!("{path}.upstream.reply_bytes"), "must be positive");
            }
            Self::TcpStream(c) => {
                found.range(c.flows, 1..=MAX_FLOWS, path, "flows");
                found.range(c.segment_bytes, 1..=largest_segment, path, "segment_bytes");
                let shares = [
                    (c.reorder, "reorder"),
                    (c.duplicate, "duplicate"),
                    (c.overlap, "overlap"),
                    (c.ip_fragment, "ip_fragment"),
                    (c.v6_ratio, "v6_ratio"),
                ];
                for (value, key) in shares {
                    found.share(value, path, key);
                }
            }
            Self::TcpChurn(c) => {
                found.range(c.concurrent, 1..=MAX_FLOWS, path, "concurrent");
                found.range(c.segments, 0..=65_535, path, "segments");
                found.range(c.segment_bytes, 1..=largest_segment, path, "segment_bytes");
                found.share(c.reset_ratio, path, "reset_ratio");
                found.share(c.v6_ratio, path, "v6_ratio");
            }
            Self::Udp(c) => {
                found.range(c.flows, 1..=MAX_FLOWS, path, "flows");
                let largest = if c.ip_fragment > 0.0 { MAX_PAYLOAD } else { largest_segment };
                found.range(c.payload_bytes, 1..=largest, path, "payload_bytes");
                found.share(c.v6_ratio, path, "v6_ratio");
                found.share(c.ip_fragment, path, "ip_fragment");
            }
            Self::Dns(c) => {
                let whole = c.upstream.reply_bytes == 0 || c.upstream.reply_bytes >= 39;
                found.check(whole, &format!("{path}.upstream.reply_bytes"), "must be 0, or at least the query's 39");
                found.range(c.names, 1..=1 << 24, path, "names");
                found.share(c.malformed, path, "malformed");
            }
            Self::Malformed(_) | Self::SynFlood(_) => {}
        }
    }
}

impl Upstream {
    fn problems(&self, found: &mut Problems, path: &str, longest_reply: u32) {
        const LONGEST_US: u64 = 60_000_000;
        found.check(self.delay_us <= LONGEST_US, &format!("{path}.delay_us"), "must be at most 60 s");
        found.check(self.connect_delay_us <= LONGEST_US, &format!("{path}.connect_delay_us"), "must be at most 60 s");
        let bandwidth = self.bandwidth_mbit >= 0.0 && self.bandwidth_mbit.is_finite();
        found.check(bandwidth, &format!("{path}.bandwidth_mbit"), "must not be negative");
        found.range(self.reply_bytes, 0..=longest_reply, path, "reply_bytes");
        found.range(self.buffer_bytes, 0..=1 << 30, path, "buffer_bytes");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn what_needs_a_driver_or_a_time_of_its_own_is_told_so() {
        let mut spec = phase(r#"{"kind":"malformed","weight":1}"#);
        spec.link = Some(LinkSpec { loss: 0.1, ..LinkSpec::default() });
        spec.fault = Some(FaultSpec { name: FaultName::SilentDrop, size: 0.5 });
        assert_eq!(spec.problems().len(), 2);
        spec.driver = Driver::Lockstep;
        (spec.workers, spec.phase) = (2, Phase::Capacity);
        spec.fault = Some(FaultSpec { name: FaultName::Sleep, size: 3.0 });
        let problems = spec.problems().join("; ");
        for path in ["workers", "phase", "fault.name"] {
            assert!(problems.contains(path), "{path} missing in {problems}");
        }
    }

    /// A phase that runs, for the tests of this folder.
    pub(crate) fn phase(components: &str) -> PhaseSpec {
        let json = format!(
            r#"{{"scenario":"test","phase":"load","seed":1,"seconds":0.3,"warmup_seconds":0.05,"workers":1,"pin":false,
            "settings":{{"flow_shards":0,"pool_cache":64,"checksum":"auto","reassembly":"bounded","watchdog":true,
            "loop_stall_ms":10,"pool_ceiling_mib":256,"max_tcp_flows":70000,"max_udp_sessions":70000,"mtu":1500,
            "offload":false,"sample_every":64,"buffer_budget_mib":128,"syn_ack":"after-connect","congestion":"cubic"}},
            "rate_pps":20000,"components":[{components}]}}"#
        );
        PhaseSpec::from_json(&json).unwrap()
    }

    #[test]
    fn every_kind_parses_and_survives_a_round_trip() {
        let spec = phase(
            r#"{"kind":"tcp_stream","weight":1,"flows":4,"segment_bytes":100,"reorder":0.2,"upstream":{"mode":"sink"}},
            {"kind":"tcp_churn","weight":1,"concurrent":4,"segments":2,"segment_bytes":9,"upstream":{"mode":"echo"}},
            {"kind":"udp","weight":1,"flows":4,"payload_bytes":18,"upstream":{"mode":"echo","delay_us":5}},
            {"kind":"dns","weight":1,"names":10,"malformed":0.1,"upstream":{"mode":"echo","reply_bytes":120}},
            {"kind":"malformed","weight":1},{"kind":"syn_flood","weight":1}"#,
        );
        assert_eq!(spec.components.len(), 6);
        assert_eq!(spec.components[5].upstream(), flood_upstream());
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(PhaseSpec::from_json(&json).unwrap(), spec);
    }

    #[test]
    fn unknown_keys_are_refused_in_every_part() {
        let good = serde_json::to_value(phase(
            r#"{"kind":"udp","weight":1,"flows":4,"payload_bytes":18,"upstream":{"mode":"echo"}}"#,
        ))
        .unwrap();
        for pointer in ["", "/settings", "/components/0", "/components/0/upstream"] {
            let mut bad = good.clone();
            let part = bad.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
            part.insert("surprise".to_owned(), 1.into());
            let error = PhaseSpec::from_json(&bad.to_string()).unwrap_err().to_string();
            assert!(error.contains("surprise"), "{pointer}: {error}");
        }
    }

    #[test]
    fn all_impossible_values_are_named_at_once() {
        let mut spec = phase(r#"{"kind":"malformed","weight":1}"#);
        spec.seconds = 0.0;
        spec.workers = 0;
        spec.settings.checksum = "crc".to_owned();
        spec.components[0] = Component::TcpStream(TcpStream {
            weight: -1.0,
            flows: 0,
            segment_bytes: 9000,
            reorder: 2.0,
            duplicate: 0.0,
            overlap: 0.0,
            ip_fragment: 0.0,
            v6_ratio: 0.0,
            upstream: Upstream { delay_us: u64::MAX, ..Upstream::default() },
        });
        let problems = spec.problems();
        for path in [
            "seconds",
            "workers",
            "settings.checksum",
            "components[0].weight",
            "components[0].flows",
            "components[0].segment_bytes",
            "components[0].reorder",
            "components[0].upstream.delay_us",
        ] {
            assert!(problems.iter().any(|p| p.starts_with(path)), "{path} missing in {problems:?}");
        }
        let error = PhaseSpec::from_json(&serde_json::to_string(&spec).unwrap()).unwrap_err();
        assert!(matches!(error, SpecError::Invalid(all) if all.len() == problems.len()));
    }
}
