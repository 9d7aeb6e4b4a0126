//! From the keys of a scenario to the settings of the core.

use t2s_core::checksum::Kernel;
use t2s_core::config::{AcceptMode, Config, Congestion, DnsCheck, Offload, ReassemblyMode, Secrets};

use crate::measure::clock::now_ns;
use crate::spec::{Accept, CongestionName, PhaseSpec, Reassembly, Settings};

/// The core's settings for a phase.
pub fn config_of(spec: &PhaseSpec) -> Config {
    config_from(&spec.settings, spec.seed)
}

/// The core's settings.
pub fn config_from(settings: &Settings, seed: u64) -> Config {
    let offload = Offload { rx_checksum: true, tx_checksum: true, tso: true, uso: true };
    let mut config = Config {
        mtu: settings.mtu,
        // The lab's datagrams to port 53 are queries, and those that are not are meant to be refused.
        dns: DnsCheck::Strict,
        offload: if settings.offload { offload } else { Offload::default() },
        reassembly: match settings.reassembly {
            Reassembly::Bounded => ReassemblyMode::Bounded,
            Reassembly::Unbounded => ReassemblyMode::Unbounded,
        },
        max_tcp_flows: settings.max_tcp_flows,
        max_udp_sessions: settings.max_udp_sessions,
        buffer_budget: u64::from(settings.buffer_budget_mib) << 20,
        checksum: Kernel::by_name(&settings.checksum).expect("the spec was checked"),
        secrets: Secrets::fixed(seed),
        sample_every: settings.sample_every,
        clock: now_ns,
        ..Config::default()
    };
    config.tcp.accept = match settings.syn_ack {
        Accept::AfterConnect => AcceptMode::Deferred,
        Accept::Immediate => AcceptMode::Early,
    };
    config.tcp.congestion = match settings.congestion {
        CongestionName::Cubic => Congestion::Cubic,
        CongestionName::NewReno => Congestion::NewReno,
    };
    config
}
