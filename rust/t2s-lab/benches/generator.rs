//! The generator alone, against the null device, on one thread: nanoseconds of the generator a packet, replies
//! included.
//!
//! `cargo bench -p t2s-lab --bench generator`. The lab needs the generator to be twice as fast as a worker, 4 million
//! small packets/s: at most 250 ns a packet. Both ends take turns on this thread, and only the generator's iterations
//! are timed, so that other load on the machine matters little; the median of slices is printed.

use t2s_lab::control::Control;
use t2s_lab::device_ring::ring;
use t2s_lab::generator::Generator;
use t2s_lab::generator::placement::Placement;
use t2s_lab::measure::clock::now_ns;
use t2s_lab::spec::PhaseSpec;
use t2s_lab::worker::null::NullDevice;

const CASES: [(&str, &str); 6] = [
    (
        "tcp, 6 B, 512 flows",
        r#"{"kind":"tcp_stream","weight":1,"flows":512,"segment_bytes":6,"upstream":{"mode":"sink"}}"#,
    ),
    (
        "tcp, 256 B, 50,000 flows",
        r#"{"kind":"tcp_stream","weight":1,"flows":50000,"segment_bytes":256,"upstream":{"mode":"sink"}}"#,
    ),
    (
        "tcp, 1,400 B, disorder",
        r#"{"kind":"tcp_stream","weight":1,"flows":128,"segment_bytes":1400,"reorder":0.2,"duplicate":0.02,"overlap":0.02,"ip_fragment":0.1,"upstream":{"mode":"sink"}}"#,
    ),
    (
        "churn, 64 B",
        r#"{"kind":"tcp_churn","weight":1,"concurrent":512,"segments":3,"segment_bytes":64,"reset_ratio":0.3,"upstream":{"mode":"sink"}}"#,
    ),
    ("udp, 18 B, echoed", r#"{"kind":"udp","weight":1,"flows":512,"payload_bytes":18,"upstream":{"mode":"echo"}}"#),
    ("dns, answered", r#"{"kind":"dns","weight":1,"names":10000,"malformed":0.05,"upstream":{"mode":"echo"}}"#),
];

/// Slices of which the median is taken, and packets of each.
const SLICES: usize = 31;
const PACKETS: u64 = 20_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (name, component) in CASES {
        println!("{name:28} {:7.1} ns a packet", nanos_per_packet(component)?);
    }
    Ok(())
}

fn nanos_per_packet(component: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let spec = PhaseSpec::from_json(&format!(
        r#"{{"scenario":"bench","phase":"capacity","seed":1,"seconds":3600,"warmup_seconds":0,"workers":1,"pin":false,
        "settings":{{"flow_shards":0,"pool_cache":64,"checksum":"auto","reassembly":"bounded","watchdog":true,
        "loop_stall_ms":10,"pool_ceiling_mib":256,"max_tcp_flows":70000,"max_udp_sessions":70000,"mtu":1500,
        "offload":false,"sample_every":64,"buffer_budget_mib":128,"syn_ack":"after-connect","congestion":"cubic"}},
        "rate_pps":1000,"components":[{component}]}}"#
    ))?;
    let (mut tx, mut device_rx) = ring(512 * 1024);
    let (mut device_tx, mut rx) = ring(1024 * 1024);
    let mut generator = Generator::new(&spec, 0, &Placement::everywhere());
    let mut device = NullDevice::new(true);
    let control = Control::default();
    control.epoch.store(now_ns(), std::sync::atomic::Ordering::Relaxed);
    let mut slices = Vec::new();
    // The first slice is the set-up.
    while slices.len() <= SLICES {
        let (start, mut spent) = (generator.offered(), 0);
        while generator.offered() - start < PACKETS {
            let before = now_ns();
            generator.iterate(before, &mut tx, &mut rx, &control);
            spent += now_ns() - before;
            while device.iterate(&mut device_rx, &mut device_tx).0 {}
        }
        slices.push(spent as f64 / (generator.offered() - start) as f64);
    }
    let measured = &mut slices[1..];
    measured.sort_by(f64::total_cmp);
    Ok(measured[SLICES / 2])
}
