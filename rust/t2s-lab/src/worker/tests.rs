//! Generator and worker in lockstep under virtual time: every component kind ends with nothing left.

use std::sync::atomic::Ordering;

use t2s_core::buf::PoolConfig;
use t2s_core::stack::WorkerMap;

use super::*;
use crate::control::Control;
use crate::core_config::config_of;
use crate::device_ring::ring;
use crate::generator::placement::Placement;
use crate::generator::{Generator, Window};
use crate::measure::clock::now_ns;
use crate::spec::tests::phase;

/// Runs a phase in steps of 2 µs of virtual time and checks that nothing is left and every byte was right.
fn run(components: &str) -> (Window, Report) {
    run_spec(&phase(components))
}

fn run_spec(spec: &PhaseSpec) -> (Window, Report) {
    let pool = Pool::new(PoolConfig::default());
    let map = Arc::new(WorkerMap::new(&config_of(spec), 1, 1));
    let mut generator = Generator::new(spec, 0, &Placement::everywhere());
    let mut worker = Worker::new(spec, config_of(spec), &pool, &map, 0, Arc::default(), Plain);
    let (mut tx, mut device) = ring(1 << 19);
    let (mut out, mut rx) = ring(1 << 20);
    let control = Control::default();
    // The stack was made at the real time, so the virtual one starts there.
    let start = now_ns();
    let mut now = start;
    loop {
        now += 2_000;
        generator.iterate(now, &mut tx, &mut rx, &control);
        if control.ready.load(Ordering::Relaxed) == 1 && control.epoch.load(Ordering::Relaxed) == 0 {
            control.epoch.store(now + 1_000, Ordering::Relaxed);
        }
        if worker.iterate(now, &mut device, &mut out).ended {
            break;
        }
        assert!(now - start < 30_000_000_000, "the phase never ends");
    }
    let report = worker.finish(now, &mut out);
    let window = generator.window();
    let (stack, pool) = (&report.last.stack, pool.stats());
    assert_eq!((stack.flows, stack.sessions, stack.timers), (0, 0, 0), "{components:?}", components = spec.components);
    assert_eq!((pool.live_bytes, pool.live_buffers), (0, 0), "{:?}", spec.components);
    assert_eq!((stack.reassembly_bytes, stack.fragment_bytes, stack.buffered), (0, 0, 0));
    assert_eq!(map.len(), 0);
    assert_eq!((report.corrupt, window.total.corrupt), (0, 0), "{:?}", spec.components);
    (window, report)
}

#[test]
fn streams_with_every_disorder_arrive_whole() {
    let (window, report) = run(
        r#"{"kind":"tcp_stream","weight":1,"flows":64,"segment_bytes":700,"reorder":0.2,"duplicate":0.02,"overlap":0.02,
        "ip_fragment":0.1,"v6_ratio":0.3,"upstream":{"mode":"sink"}}"#,
    );
    assert_eq!(report.last.accepted, window.total.payload);
    assert!(report.last.stack.tcp.out_of_order > 500, "{:?}", report.last.stack.tcp.out_of_order);
    assert_eq!((window.total.retransmits, window.total.aborted), (0, 0));
    assert_eq!(report.measured, window.counters.packets);
}

#[test]
fn echoes_come_back_as_sent() {
    let (window, report) = run(r#"{"kind":"tcp_stream","weight":1,"flows":16,"segment_bytes":300,"v6_ratio":0.5,
        "upstream":{"mode":"echo","delay_us":500}},
        {"kind":"udp","weight":1,"flows":16,"payload_bytes":64,"v6_ratio":0.5,"upstream":{"mode":"echo"}}"#);
    assert_eq!(report.last.accepted, window.total.payload);
    assert!(window.counters.received > 2_000, "{:?}", window.counters);
}

#[test]
fn churn_closes_what_it_opens() {
    for upstream in [
        r#"{"mode":"sink"}"#,
        r#"{"mode":"echo","connect_delay_us":300}"#,
        r#"{"mode":"half_close","reply_bytes":500}"#,
        r#"{"mode":"reset"}"#,
        r#"{"mode":"sink","reply_bytes":3000}"#,
    ] {
        let (window, report) = run(&format!(
            r#"{{"kind":"tcp_churn","weight":1,"concurrent":32,"segments":3,"segment_bytes":90,"reset_ratio":0.2,
            "v6_ratio":0.3,"upstream":{upstream}}}"#
        ));
        assert!(window.total.opened > 200, "{upstream}: {:?}", window.total);
        assert_eq!(window.total.opened, window.total.closed, "{upstream}");
        assert_eq!(report.last.stack.flows_opened, window.total.opened + window.total.refused, "{upstream}");
    }
}

#[test]
fn refusals_reach_the_client() {
    // ICMP errors are limited to 1,000 a second, RST segments are not.
    for (mode, at_least) in [("refuse", 500), ("unreachable", 100)] {
        let (window, report) = run(&format!(
            r#"{{"kind":"tcp_churn","weight":1,"concurrent":32,"segments":3,"segment_bytes":90,"v6_ratio":0.5,
            "upstream":{{"mode":"{mode}"}}}}"#
        ));
        assert_eq!((window.total.opened, report.last.accepted), (0, 0), "{mode}");
        assert!(window.total.refused > at_least, "{mode}: {:?}", window.total);
    }
}

#[test]
fn datagrams_and_their_fragments_arrive() {
    let (window, report) =
        run(r#"{"kind":"udp","weight":1,"flows":64,"payload_bytes":1200,"v6_ratio":0.5,"ip_fragment":0.3,
        "upstream":{"mode":"echo","reply_bytes":100}}"#);
    assert_eq!(report.last.accepted, window.total.payload);
    assert!(report.last.stack.fragment_bytes_total > 0);
}

#[test]
fn queries_are_answered_and_spoiled_ones_are_not_counted() {
    let (window, report) =
        run(r#"{"kind":"dns","weight":1,"names":100,"malformed":0.2,"upstream":{"mode":"echo","reply_bytes":120}}"#);
    assert_eq!(report.last.accepted, window.total.payload);
    assert!(window.counters.received > 3_000, "{:?}", window.counters);
}

#[test]
fn hostile_traffic_leaves_nothing() {
    let (window, report) = run(r#"{"kind":"malformed","weight":1},{"kind":"syn_flood","weight":1}"#);
    let refused = report.end.stack.drops.total() - report.begin.stack.drops.total();
    assert!(refused > window.counters.packets / 3, "{refused} of {:?}", window.counters);
    assert!(report.last.stack.flows_refused > 1_000);
}

#[test]
fn back_pressure_reaches_the_client_and_memory_stays_bounded() {
    let mut spec = phase(
        r#"{"kind":"tcp_stream","weight":1,"flows":8,"segment_bytes":1400,
        "upstream":{"mode":"sink","bandwidth_mbit":2,"delay_us":20000}}"#,
    );
    spec.seconds = 2.0;
    let (window, report) = run_spec(&spec);
    assert!(window.counters.window_blocked > 0, "{:?}", window.counters);
    assert_eq!(window.intended, window.counters.packets, "what the window forbids is not intended");
    assert!(report.upstream_wait.is_some_and(|wait| wait.count() > 0));
    assert_eq!(report.last.accepted, window.total.payload);
}

#[test]
fn what_the_core_prepares_between_turns_is_no_stall_of_the_machine() {
    let spec = phase(r#"{"kind":"malformed","weight":1}"#);
    let (pool, map) = (Pool::new(PoolConfig::default()), Arc::new(WorkerMap::new(&config_of(&spec), 1, 1)));
    let mut worker = Worker::new(&spec, config_of(&spec), &pool, &map, 0, Arc::default(), Plain);
    worker.measuring = true;
    let began = now_ns() - 1_000_000;
    worker.stall_detector.end(began, false);
    worker.prepared(began, began + 1_000_000);
    assert_eq!(worker.stall_detector.begin(began + 1_000_000), 0, "the worker was seen since");
    assert!(worker.loop_timer.recorder.quantile(1.0) >= 1_000_000, "the loop's time holds it");
}
