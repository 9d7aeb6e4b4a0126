//! Whole phases with real threads; what they count is checked, never how long they take.

use serde_json::Value;

use super::*;
use crate::spec::tests::phase;
use t2s_core::config::Reassembly;

fn run_phase(spec: &PhaseSpec) -> Value {
    let lab = Lab::new(&serde_json::to_string(spec).unwrap()).unwrap();
    lab.start().unwrap();
    assert!(lab.wait(Duration::from_secs(120)), "the phase never ends");
    serde_json::from_str(&lab.result().unwrap()).unwrap()
}

/// The equalities that hold after every drain.
fn assert_drained(result: &Value) {
    for pointer in [
        "/pool/live_bytes_after_drain",
        "/flow_map/flows_after_drain",
        "/timers_after_drain",
        "/reassembly/bytes_after_drain",
        "/generator/corrupt",
        "/truth/faults",
        "/truth/lost_packets",
        "/heap/left_bytes",
    ] {
        let without_core =
            result["phase"] == "generator_selftest" && ["/truth", "/heap"].iter().any(|part| pointer.starts_with(part));
        if without_core {
            continue;
        }
        assert_eq!(result.pointer(pointer), Some(&Value::from(0)), "{pointer} of {}", result["scenario"]);
    }
}

const COMPONENTS: [(&str, &str); 7] = [
    (
        "stream",
        r#"{"kind":"tcp_stream","weight":1,"flows":32,"segment_bytes":200,"reorder":0.2,"duplicate":0.01,
        "overlap":0.01,"ip_fragment":0.1,"v6_ratio":0.2,"upstream":{"mode":"sink"}}"#,
    ),
    (
        "churn",
        r#"{"kind":"tcp_churn","weight":1,"concurrent":32,"segments":2,"segment_bytes":100,"reset_ratio":0.2,
        "upstream":{"mode":"echo"}}"#,
    ),
    ("udp", r#"{"kind":"udp","weight":1,"flows":32,"payload_bytes":18,"upstream":{"mode":"echo"}}"#),
    ("dns", r#"{"kind":"dns","weight":1,"names":50,"malformed":0.1,"upstream":{"mode":"echo","reply_bytes":90}}"#),
    (
        "request",
        r#"{"kind":"tcp_request","weight":0.2,"flows":16,"request_bytes":100,"v6_ratio":0.3,
        "upstream":{"mode":"respond","reply_bytes":3000}}"#,
    ),
    ("malformed", r#"{"kind":"malformed","weight":1}"#),
    ("syn_flood", r#"{"kind":"syn_flood","weight":1}"#),
];

#[test]
fn every_component_kind_drains_to_nothing() {
    for (name, component) in COMPONENTS {
        let mut spec = phase(component);
        spec.scenario = name.to_owned();
        let result = run_phase(&spec);
        assert_drained(&result);
        let offered = result["offered"].as_u64().unwrap();
        assert!(offered > 0, "{name}");
        assert_eq!(offered, result["forwarded"].as_u64().unwrap() + result["dropped"].as_u64().unwrap(), "{name}");
        assert_eq!(result["latency"]["count"].as_u64(), Some(offered), "{name}: each packet has one latency");
        assert_eq!(result["latency"]["count"], result["service_time"]["count"], "{name}");
        let lost: u64 = result["lost_by_reason"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        assert_eq!(result["dropped"].as_u64(), Some(lost.min(offered)), "{name}");
        assert_eq!(result["lost"], result["unsent"], "{name}: all that was sent arrived");
        if matches!(name, "stream" | "udp" | "dns") {
            assert_eq!(result["payload_offered"], result["payload_forwarded"], "{name}");
        }
    }
}

#[test]
fn a_component_that_is_set_up_opens_no_flow_again_while_others_are_not() {
    let stream = |flows: u32| {
        format!(
            r#"{{"kind":"tcp_stream","weight":1,"flows":{flows},"segment_bytes":100,"v6_ratio":0.1,
            "reorder":0,"duplicate":0,"overlap":0,"ip_fragment":0,"upstream":{{"mode":"sink"}}}}"#
        )
    };
    let spec = phase(&format!("{},{},{}", stream(8), stream(600), stream(3)));
    let result = run_phase(&spec);
    assert_drained(&result);
    assert_eq!(result.pointer("/flow_map/flows_peak").and_then(Value::as_u64), Some(8 + 600 + 3));
}

#[test]
fn the_whole_mix_on_two_workers_with_and_without_offload() {
    let all = COMPONENTS.map(|(_, component)| component).join(",");
    for offload in [false, true] {
        let mut spec = phase(&all);
        spec.workers = 2;
        spec.pin = true;
        spec.settings.offload = offload;
        let result = run_phase(&spec);
        assert_drained(&result);
        assert_eq!(result["lost_by_reason"].get("inbox_full"), None, "every flow reached its own worker");
    }
}

#[test]
fn each_optimization_can_be_switched_off() {
    let mut spec = phase(&[COMPONENTS[0].1, COMPONENTS[2].1].join(","));
    spec.settings.flow_shards = 1;
    spec.settings.pool_cache = 0;
    spec.settings.checksum = "scalar".to_owned();
    spec.settings.reassembly = Reassembly::Unbounded;
    spec.settings.watchdog = false;
    let result = run_phase(&spec);
    assert_drained(&result);
    assert_eq!(result.pointer("/reassembly/cap"), Some(&Value::from(0)));
}

#[test]
fn capacity_and_null_phases_send_more_than_the_stated_rate() {
    for phase_kind in [Phase::Capacity, Phase::GeneratorSelftest] {
        let mut spec = phase(COMPONENTS[0].1);
        spec.phase = phase_kind;
        spec.rate_pps = 100.0;
        let result = run_phase(&spec);
        assert!(result["offered"].as_u64().unwrap() > 1_000, "{result}");
        assert_eq!(result["intended"], result["offered"]);
        assert_drained(&result);
    }
}

#[test]
fn a_stop_ends_early_and_keeps_what_was_measured() {
    let mut spec = phase(COMPONENTS[2].1);
    spec.seconds = 3600.0;
    let lab = Lab::new(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert!(!lab.wait(Duration::ZERO));
    assert!(matches!(lab.result(), Err(LabError::NotDone)));
    lab.start().unwrap();
    assert!(matches!(lab.start(), Err(LabError::AlreadyStarted)));
    while lab.progress().elapsed < 0.1 {
        thread::sleep(Duration::from_millis(5));
    }
    lab.stop();
    assert!(lab.wait(Duration::from_secs(60)));
    let result: Value = serde_json::from_str(&lab.result().unwrap()).unwrap();
    assert!(result["offered"].as_u64().unwrap() > 0);
    assert!(result["invalid"].as_str().unwrap().contains("stopped"));
    assert_drained(&result);
}

#[test]
fn a_lab_that_is_dropped_ends_its_threads() {
    let mut spec = phase(COMPONENTS[0].1);
    spec.seconds = 3600.0;
    let lab = Lab::new(&serde_json::to_string(&spec).unwrap()).unwrap();
    lab.start().unwrap();
    drop(lab);
}
