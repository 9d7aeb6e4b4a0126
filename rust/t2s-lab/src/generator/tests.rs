//! The generator in lockstep with the null device, under a clock of the test's own.

use super::*;
use crate::control::Control;
use crate::device_ring::ring;
use crate::spec::tests::phase;
use crate::worker::null::NullDevice;

/// What a run against the null device left behind.
struct Run {
    window: Window,
    /// Hash and count of every packet sent.
    digest: u64,
    strangers: u64,
}

/// Runs a phase in steps of 1 µs of virtual time.
fn run(spec: &PhaseSpec) -> Run {
    let mut generator = Generator::new(spec, 0, &Placement::everywhere());
    let (mut tx, mut device_rx) = ring(1 << 18);
    let (mut device_tx, mut rx) = ring(1 << 20);
    let (mut copy_tx, mut copy_rx) = ring(1 << 18);
    // Spoiled queries are echoed too: the device does not look.
    let mut device = NullDevice::new(true);
    let control = Control::default();
    let (mut now, mut digest) = (5_000_000_000_u64, 0xcbf2_9ce4_8422_2325_u64);
    while !generator.is_done() {
        now += 1_000;
        generator.iterate(now, &mut tx, &mut rx, &control);
        if control.ready.load(Ordering::Relaxed) == 1 && control.epoch.load(Ordering::Relaxed) == 0 {
            control.epoch.store(now + 1_000, Ordering::Relaxed);
        }
        while let Some(record) = device_rx.pop() {
            for &byte in record.bytes {
                digest = (digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
            assert!(copy_tx.push(record.bytes, record.due_ns, record.flags));
        }
        device_rx.release();
        copy_tx.publish();
        while device.iterate(&mut copy_rx, &mut device_tx).0 {}
        assert!(now < 60_000_000_000, "the generator never ends");
    }
    Run { window: generator.window(), digest, strangers: generator.strangers }
}

const STREAM: &str = r#"{"kind":"tcp_stream","weight":2,"flows":32,"segment_bytes":500,"reorder":0.2,"duplicate":0.02,
    "overlap":0.02,"v6_ratio":0.3,"upstream":{"mode":"sink"}}"#;
const CHURN: &str = r#"{"kind":"tcp_churn","weight":1,"concurrent":16,"segments":3,"segment_bytes":100,
    "reset_ratio":0.3,"v6_ratio":0.5,"upstream":{"mode":"sink"}}"#;
const UDP: &str =
    r#"{"kind":"udp","weight":1,"flows":16,"payload_bytes":18,"v6_ratio":0.5,"upstream":{"mode":"echo"}}"#;
const DNS: &str = r#"{"kind":"dns","weight":1,"names":100,"malformed":0.1,"upstream":{"mode":"sink"}}"#;
const HOSTILE: &str = r#"{"kind":"malformed","weight":1},{"kind":"syn_flood","weight":1}"#;

#[test]
fn the_rate_and_the_window_are_the_ones_asked_for() {
    for components in [STREAM, CHURN, UDP, HOSTILE] {
        let run = run(&phase(components));
        let counters = run.window.counters;
        let scheduled = counters.packets - counters.reactions;
        assert!((5_950..=6_050).contains(&scheduled), "{components}: {scheduled} packets in 0.3 s at 20,000/s");
        assert_eq!(run.window.intended, counters.packets, "{components}");
        assert_eq!((counters.retransmits, counters.aborted), (0, 0), "{components}");
        assert!(run.window.behind_max <= 2_000, "{components}: {} ns late", run.window.behind_max);
    }
}

#[test]
fn same_seed_same_bytes() {
    let all = [STREAM, CHURN, UDP, DNS, HOSTILE].join(",");
    let mut spec = phase(&all);
    let first = run(&spec);
    let second = run(&spec);
    assert_eq!((first.digest, first.window), (second.digest, second.window));
    spec.seed += 1;
    assert_ne!(run(&spec).digest, first.digest);
}

#[test]
fn streams_lose_no_payload_to_their_own_disorder() {
    let run = run(&phase(STREAM));
    assert_eq!(run.window.total.corrupt, 0);
    assert_eq!(run.strangers, 0);
    assert_eq!(run.window.total.opened, 32);
    assert_eq!(run.window.total.closed, 32);
    assert!(run.window.counters.payload > 4_000 * 500);
}

#[test]
fn churn_opens_as_many_as_it_closes() {
    let run = run(&phase(CHURN));
    let total = run.window.total;
    assert!(total.opened > 500, "{total:?}");
    assert_eq!((total.opened, total.corrupt), (total.closed, 0));
}

#[test]
fn the_null_device_answers_queries_as_their_client_expects() {
    let run = run(&phase(DNS));
    assert!(run.window.counters.received > 1_000);
    assert_eq!(run.window.total.corrupt, 0);
}

#[test]
fn capacity_sends_without_a_schedule_and_keeps_the_mix() {
    let mut spec = phase(&[UDP, DNS].join(","));
    spec.phase = Phase::Capacity;
    (spec.warmup_seconds, spec.seconds) = (0.0, 0.002);
    let run = run(&spec);
    assert!(run.window.counters.packets > 50_000, "{:?}", run.window.counters);
    assert_eq!(run.window.intended, run.window.counters.packets);
}

#[test]
fn a_stop_ends_a_run_that_has_not_begun() {
    let mut generator = Generator::new(&phase(STREAM), 0, &Placement::everywhere());
    let (mut tx, mut device_rx) = ring(1 << 18);
    let (_device_tx, mut rx) = ring(1 << 18);
    let control = Control::default();
    control.stop.store(true, Ordering::Relaxed);
    control.epoch.store(1, Ordering::Relaxed);
    let mut now = 0;
    while !generator.is_done() {
        now += 1_000_000;
        generator.iterate(now, &mut tx, &mut rx, &control);
        while device_rx.pop().is_some() {}
        device_rx.release();
    }
    assert_eq!(generator.window().intended, 0);
}
