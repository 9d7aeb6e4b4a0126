//! Settings of a stack: limits, timeouts and the five switchable optimizations. Each default lives here, once.

use crate::named::named;
use crate::time::{ClockFn, MILLIS, SECONDS, no_clock};

/// Keys for hashes that an attacker must not predict: random unless fixed ones are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// Keys of the flow map's hash.
    pub flow_hash: [u64; 4],
    /// Key of the initial sequence number function (RFC 6528, section 3).
    pub isn: [u64; 2],
}

impl Secrets {
    /// Keys from the system's random number generator.
    ///
    /// # Panics
    /// When the system has none, as in a sandbox that forbids it: keys that can be guessed would be worse.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [[0; 8]; 6];
        getrandom::fill(bytes.as_flattened_mut()).expect("the system has a random number generator");
        let [flow_hash @ .., isn_0, isn_1] = bytes.map(u64::from_ne_bytes);
        Self { flow_hash, isn: [isn_0, isn_1] }
    }

    /// Fixed keys, for tests and seeded lab runs; never for a tunnel.
    pub const fn fixed(seed: u64) -> Self {
        Self {
            flow_hash: [seed, seed ^ 0x9e37_79b9_7f4a_7c15, seed.rotate_left(17), !seed],
            isn: [seed ^ 0x6a09_e667_f3bc_c908, seed.rotate_left(31)],
        }
    }
}

named! {
    /// Whether out-of-order data and fragments are bounded (the default) or not (the lab's ablation).
    Reassembly is a "reassembly mode" {
        /// Caps per flow and over all flows, early drain.
        Bounded = "bounded",
        /// No caps: what the reference implementation did.
        Unbounded = "unbounded",
    }
}

named! {
    /// When the client's SYN is answered.
    SynAck is a "SYN-ACK mode" {
        /// After the upstream has answered, so that a refused port is refused on the wire.
        AfterConnect = "after-connect",
        /// At once; an upstream failure then resets an established connection.
        Immediate = "immediate",
    }
}

named! {
    /// What the stack makes of UDP datagrams to port 53.
    DnsCheck is a "DNS check" {
        /// Well-formed queries pass, everything else is refused and counted.
        Strict = "strict",
        /// Datagrams like any other.
        Off = "off",
    }
}

named! {
    /// Congestion control algorithm of the sending side.
    CongestionControl is a "congestion control" {
        /// RFC 9438.
        Cubic = "cubic",
        /// RFC 5681, 6582.
        NewReno = "newreno",
    }
}

/// What the device can take off our hands, as negotiated at open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Received packets carry valid or to-be-completed checksums that need no verification when flagged so.
    pub rx_checksum: bool,
    /// The device completes transport checksums from a pseudo-header sum.
    pub tx_checksum: bool,
    /// The device segments TCP super-segments (TSO4 and TSO6).
    pub tso: bool,
    /// The device segments UDP super-datagrams (USO4 and USO6).
    pub uso: bool,
}

/// TCP limits and timeouts; times in nanoseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpConfig {
    /// When the SYN-ACK is sent.
    pub syn_ack: SynAck,
    /// Congestion control of the sending side.
    pub congestion: CongestionControl,
    /// Receive window a new flow starts with, bytes.
    pub recv_window_min: u32,
    /// Receive window a busy flow may grow to, bytes.
    pub recv_window_max: u32,
    /// Bytes from the upstream that one flow may hold unacknowledged, at start.
    pub send_buffer_min: u32,
    /// Bytes from the upstream that one busy flow may hold unacknowledged.
    pub send_buffer_max: u32,
    /// Delay of an acknowledgement when nothing else forces it (RFC 9293, section 3.8.6.3: below 500 ms).
    pub delayed_ack: u64,
    /// What a retransmission timeout adds to the round trip at least (RFC 6298 says 1 s in all; both kernels at the
    /// ends add 200 ms).
    pub rto_min: u64,
    /// Largest retransmission timeout (RFC 6298, section 2.5: at least 60 s).
    pub rto_max: u64,
    /// Timeout before the first round-trip sample (RFC 6298, section 2.1).
    pub rto_initial: u64,
    /// Retransmissions of one segment before the flow is aborted (RFC 1122, section 4.2.3.5: R2).
    pub retransmit_limit: u8,
    /// Idle time before a keepalive probe; 0 switches probes off (RFC 1122, section 4.2.3.6).
    pub keepalive_idle: u64,
    /// Time between keepalive probes.
    pub keepalive_interval: u64,
    /// Unanswered keepalive probes before the flow is aborted.
    pub keepalive_probes: u8,
    /// TIME-WAIT; the tunnel's both ends share a machine, so the network's 2 MSL does not apply in full.
    pub time_wait: u64,
    /// FIN-WAIT-2 without traffic, once the upstream takes nothing more; before, it may be a half-close, which has no
    /// limit.
    pub fin_wait2: u64,
    /// Time for the upstream to answer a connect.
    pub connect_timeout: u64,
    /// A flow without traffic for this long is reset; 0 switches it off.
    pub idle_timeout: u64,
    /// Challenge ACKs a flow may send in a second (RFC 5961, section 10).
    pub challenge_acks_per_second: u8,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            syn_ack: SynAck::AfterConnect,
            congestion: CongestionControl::Cubic,
            recv_window_min: 128 * 1024,
            recv_window_max: 4 * 1024 * 1024,
            send_buffer_min: 128 * 1024,
            send_buffer_max: 4 * 1024 * 1024,
            delayed_ack: 40 * MILLIS,
            rto_min: 200 * MILLIS,
            rto_max: 60 * SECONDS,
            rto_initial: SECONDS,
            retransmit_limit: 15,
            keepalive_idle: 7_200 * SECONDS,
            keepalive_interval: 75 * SECONDS,
            keepalive_probes: 9,
            time_wait: 2 * SECONDS,
            fin_wait2: 60 * SECONDS,
            connect_timeout: 30 * SECONDS,
            idle_timeout: 0,
            challenge_acks_per_second: 10,
        }
    }
}

/// Bounds of stream reassembly (out-of-order TCP data).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    /// Payload bytes one flow may hold out of order.
    pub flow_bytes: u32,
    /// Segments one flow may hold out of order.
    pub flow_segments: u16,
    /// Bytes of buffers that all flows of a worker may hold out of order.
    pub total_bytes: u64,
}

/// Bounds of IP fragment reassembly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentLimits {
    /// Bytes held over all datagrams of a worker.
    pub total_bytes: u64,
    /// Datagrams in reassembly at once.
    pub datagrams: u16,
    /// Fragments of one datagram.
    pub fragments: u16,
    /// Age at which an incomplete datagram is dropped (RFC 8200, section 4.5: 60 s; Linux: 30 s), nanoseconds.
    pub age: u64,
}

/// UDP limits and timeouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpConfig {
    /// A session without datagrams for this long ends (RFC 4787, REQ-5: not below 2 min), nanoseconds.
    pub idle_timeout: u64,
    /// The same for a session that only ever spoke to port 53 (RFC 4787 allows well-known ports to be shorter).
    pub dns_idle_timeout: u64,
    /// Datagrams of one session that wait for its upstream.
    pub queue: u16,
    /// Bytes of buffers that wait over all sessions of a worker.
    pub queued_bytes: u64,
}

/// All settings of a stack.
///
/// The defaults suit a phone, with [`PoolConfig`](crate::buf::PoolConfig): 16 MiB of payload, keys that are random.
#[derive(Clone, Debug)]
pub struct Config {
    /// Largest IP packet the device takes, bytes; super-segments excepted.
    pub mtu: u16,
    /// Abilities of the device.
    pub offload: Offload,
    /// TCP settings.
    pub tcp: TcpConfig,
    /// UDP settings.
    pub udp: UdpConfig,
    /// What becomes of UDP datagrams to port 53.
    pub dns: DnsCheck,
    /// Stream reassembly bounds.
    pub stream: StreamLimits,
    /// Fragment reassembly bounds.
    pub fragment: FragmentLimits,
    /// Bounded or not (`reassembly = "unbounded"` is the ablation).
    pub reassembly: Reassembly,
    /// TCP flows of one worker; those that were evicted for others come on top until their last segments have left, at
    /// most [`EVICT_SLACK`](crate::stack::EVICT_SLACK).
    pub max_tcp_flows: u32,
    /// Flows whose upstream has not answered yet, of one worker: the bound against SYN floods.
    pub max_pending_connects: u32,
    /// UDP sessions of one worker.
    pub max_udp_sessions: u32,
    /// Bytes of payload that one worker may hold for all its flows; windows shrink when it comes near.
    pub buffer_budget: u64,
    /// Answer ICMP echo requests to any address.
    pub icmp_echo: bool,
    /// ICMP errors sent a second by one worker (RFC 4443, section 2.4 f).
    pub icmp_errors_per_second: u32,
    /// Checksum kernel by name: `auto`, `scalar`, `swar`, `avx2`, `avx512`, `neon`.
    pub checksum: crate::checksum::Kernel,
    /// Keys of hashes.
    pub secrets: Secrets,
    /// One packet in this many has its stages timed; 0 for none.
    pub sample_every: u32,
    /// Clock of sampled stages.
    pub clock: ClockFn,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mtu: 1500,
            offload: Offload::default(),
            tcp: TcpConfig::default(),
            udp: UdpConfig {
                idle_timeout: 120 * SECONDS,
                dns_idle_timeout: 10 * SECONDS,
                queue: 64,
                queued_bytes: 4 * 1024 * 1024,
            },
            dns: DnsCheck::Off,
            stream: StreamLimits { flow_bytes: 512 * 1024, flow_segments: 256, total_bytes: 4 * 1024 * 1024 },
            fragment: FragmentLimits { total_bytes: 4 * 1024 * 1024, datagrams: 256, fragments: 64, age: 30 * SECONDS },
            reassembly: Reassembly::Bounded,
            max_tcp_flows: 65_536,
            max_pending_connects: 4_096,
            max_udp_sessions: 16_384,
            buffer_budget: 16 * 1024 * 1024,
            icmp_echo: true,
            icmp_errors_per_second: 1_000,
            checksum: crate::checksum::Kernel::auto(),
            secrets: Secrets::random(),
            sample_every: 0,
            clock: no_clock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_unless_they_are_fixed() {
        assert_ne!(Secrets::random(), Secrets::random());
        assert_ne!(Config::default().secrets, Config::default().secrets);
        assert_eq!(Secrets::fixed(7), Secrets::fixed(7));
    }
}
