//! From the keys of a scenario to the settings of the core.

use t2s_core::checksum::Kernel;
use t2s_core::config::{Config, DnsCheck, Offload, Secrets};

use crate::measure::clock::now_ns;
use crate::spec::{PhaseSpec, Settings};

/// The core's settings for a phase.
pub fn config_of(spec: &PhaseSpec) -> Config {
    config_from(&spec.settings, spec.seed)
}

/// The core's settings.
pub fn config_from(settings: &Settings, seed: u64) -> Config {
    let offload = Offload { rx_checksum: true, tx_checksum: true, tso: true, uso: true };
    let budget = u64::from(settings.buffer_budget_mib) << 20;
    let mut config = Config {
        mtu: settings.mtu,
        // The lab's datagrams to port 53 are queries, and those that are not are meant to be refused.
        dns: DnsCheck::Strict,
        offload: if settings.offload { offload } else { Offload::default() },
        reassembly: settings.reassembly,
        max_tcp_flows: settings.max_tcp_flows,
        max_udp_sessions: settings.max_udp_sessions,
        buffer_budget: budget,
        checksum: Kernel::by_name(&settings.checksum).expect("the spec was checked"),
        secrets: Secrets::fixed(seed),
        sample_every: settings.sample_every,
        clock: now_ns,
        ..Config::default()
    };
    config.udp.queued_bytes = budget / 8;
    config.stream.total_bytes = budget / 16;
    config.tcp.syn_ack = settings.syn_ack;
    config.tcp.congestion = settings.congestion;
    config
}
