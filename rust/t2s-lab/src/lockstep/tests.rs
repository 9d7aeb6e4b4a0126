//! The same seed, the same result; what a link loses; and each fault that counters can see.

use serde_json::Value;

use super::*;
use crate::lab::Lab;
use crate::spec::tests::phase;
use crate::spec::{Driver, FaultName, FaultSpec};

const MIX: &str = r#"{"kind":"tcp_stream","weight":3,"flows":32,"segment_bytes":900,"reorder":0.1,"duplicate":0.01,
    "overlap":0.01,"ip_fragment":0.05,"v6_ratio":0.3,"upstream":{"mode":"sink"}},
    {"kind":"tcp_churn","weight":2,"concurrent":16,"segments":3,"segment_bytes":100,"reset_ratio":0.2,
    "v6_ratio":0.3,"upstream":{"mode":"echo"}},
    {"kind":"udp","weight":2,"flows":16,"payload_bytes":64,"v6_ratio":0.5,"upstream":{"mode":"echo"}},
    {"kind":"dns","weight":1,"names":100,"malformed":0.1,"upstream":{"mode":"echo","reply_bytes":120}},
    {"kind":"malformed","weight":1}"#;

fn lockstep(components: &str) -> PhaseSpec {
    PhaseSpec { driver: Driver::Lockstep, ..phase(components) }
}

fn run_phase(spec: &PhaseSpec) -> Value {
    let lab = Lab::new(&serde_json::to_string(spec).unwrap()).unwrap();
    lab.start().unwrap();
    assert!(lab.wait(std::time::Duration::from_secs(300)), "the phase never ends");
    serde_json::from_str(&lab.result().unwrap()).unwrap()
}

fn number(result: &Value, pointer: &str) -> u64 {
    result.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer} in {result}"))
}

fn assert_nothing_left(result: &Value) {
    for pointer in [
        "/pool/live_bytes_after_drain",
        "/flow_map/flows_after_drain",
        "/timers_after_drain",
        "/reassembly/bytes_after_drain",
        "/heap/left_bytes",
    ] {
        assert_eq!(number(result, pointer), 0, "{pointer}");
    }
}

#[test]
fn the_same_seed_gives_the_same_result_to_the_byte() {
    let mut spec = lockstep(MIX);
    let (first, second) = (run_phase(&spec), run_phase(&spec));
    assert_eq!(first, second);
    assert_nothing_left(&first);
    assert_eq!((number(&first, "/truth/faults"), number(&first, "/lost")), (0, 0));
    assert!(number(&first, "/truth/streams_up/flows") > 100 && number(&first, "/truth/datagrams_down/sent") > 500);
    // The link and the generator allocate for each packet; the core does not.
    assert!(number(&first, "/heap/allocations") < 500, "{}", first["heap"]);
    assert!(first["reply_latency"]["count"].as_u64() > Some(500));
    spec.seed += 1;
    assert_ne!(run_phase(&spec)["result_digest"], first["result_digest"]);
}

#[test]
fn what_the_link_loses_is_counted_exactly_and_streams_mend_it() {
    let mut spec = lockstep(MIX);
    spec.link = Some(LinkSpec { loss: 0.01, delay_us: 500, reorder: 0.01 });
    let result = run_phase(&spec);
    assert_nothing_left(&result);
    assert_eq!(result, run_phase(&spec));
    let lost = number(&result, "/lockstep/link_lost_up") + number(&result, "/lockstep/link_lost_down");
    assert!(lost > 50 && number(&result, "/lockstep/link_reordered") > 50, "{result}");
    assert!(number(&result, "/generator/retransmits") + number(&result, "/generator/repeated_segments") > 0);
    for direction in ["up", "down"] {
        let truth = &result["truth"][format!("streams_{direction}")];
        for kind in ["lost_bytes", "corrupted_bytes", "duplicated_bytes"] {
            assert_eq!(truth[kind], 0, "{direction} {kind}");
        }
        assert_eq!(truth["flows_agree"], true, "{direction}");
        let datagrams = &result["truth"][format!("datagrams_{direction}")];
        assert!(datagrams["lost"].as_u64() > Some(0) && datagrams["corrupted"] == 0, "{direction}");
    }
    assert_eq!((number(&result, "/truth/unaccounted"), number(&result, "/truth/faults")), (0, 0));
}

/// A phase with a fault, and one of its figures.
fn with_fault(components: &str, name: FaultName, size: f64, pointer: &str) -> (Value, u64) {
    let mut spec = lockstep(components);
    spec.fault = Some(FaultSpec { name, size });
    let result = run_phase(&spec);
    let figure = number(&result, pointer);
    (result, figure)
}

#[test]
fn silent_drops_are_unaccounted_datagrams_and_segments_sent_again() {
    let udp = r#"{"kind":"udp","weight":1,"flows":16,"payload_bytes":18,"upstream":{"mode":"sink"}}"#;
    let (result, unaccounted) = with_fault(udp, FaultName::SilentDrop, 500.0, "/truth/unaccounted");
    assert!(unaccounted > 3, "{result}");
    assert_eq!(
        (result["lost"].as_u64(), number(&result, "/truth/datagrams_up/lost")),
        (Some(unaccounted), unaccounted)
    );
    assert_eq!(result["dropped"], 0, "the core knows of none");
    let tcp = r#"{"kind":"tcp_stream","weight":1,"flows":16,"segment_bytes":500,"upstream":{"mode":"sink"}}"#;
    let (result, again) = with_fault(tcp, FaultName::SilentDrop, 500.0, "/generator/retransmits");
    assert!(again > 3, "{result}");
    assert_eq!(number(&result, "/truth/faults"), 0, "TCP mends it");
}

#[test]
fn wrong_bytes_are_seen_wherever_they_are_in_both_directions() {
    let echo = r#"{"kind":"tcp_churn","weight":1,"concurrent":16,"segments":3,"segment_bytes":1000,
        "upstream":{"mode":"echo"}}"#;
    let (result, up) = with_fault(echo, FaultName::WrongByte, 100.0, "/truth/streams_up/corrupted_bytes");
    // What went wrong upwards comes back as wrong, and more goes wrong on its way down.
    assert!(up > 20 && number(&result, "/truth/streams_down/corrupted_bytes") > up + 10, "{up}: {result}");
    let udp = r#"{"kind":"udp","weight":1,"flows":16,"payload_bytes":200,"upstream":{"mode":"echo"}}"#;
    let (result, up) = with_fault(udp, FaultName::WrongUdpPayload, 100.0, "/truth/datagrams_up/corrupted");
    assert!(up > 20 && number(&result, "/truth/datagrams_down/corrupted") > up + 10, "{up}: {result}");
    assert!(result["invalid"].is_string());
}

#[test]
fn what_is_left_is_seen_in_the_pool_and_on_the_heap() {
    let churn = r#"{"kind":"tcp_churn","weight":1,"concurrent":16,"segments":2,"segment_bytes":50,
        "upstream":{"mode":"sink"}}"#;
    let (_, live) = with_fault(churn, FaultName::BufferLeak, 100.0, "/pool/live_bytes_after_drain");
    assert!(live > 1_000, "{live}");
    let (_, left) = with_fault(churn, FaultName::HeapGrowth, 1_000.0, "/heap/left_bytes");
    assert!((100..2_000).contains(&left), "{left} of 1,000 bytes a second");
}

#[test]
fn held_replies_come_late_at_the_client() {
    let udp = r#"{"kind":"udp","weight":1,"flows":16,"payload_bytes":200,"upstream":{"mode":"echo"}}"#;
    let plain = number(&run_phase(&lockstep(udp)), "/reply_latency/p50");
    let (result, held) = with_fault(udp, FaultName::HeldReplies, 3_000.0, "/reply_latency/p50");
    assert!(plain < 100_000 && held > 3_000_000, "{plain} {held}");
    assert_eq!(number(&result, "/truth/faults"), 0, "late, not lost");
}

#[test]
fn missing_window_updates_make_clients_ask_for_the_window() {
    let slow = r#"{"kind":"tcp_stream","weight":1,"flows":8,"segment_bytes":1400,
        "upstream":{"mode":"sink","bandwidth_mbit":8,"buffer_bytes":32768}}"#;
    let run = |fault| {
        let mut spec = lockstep(slow);
        (spec.seconds, spec.fault) = (3.0, fault);
        let result = run_phase(&spec);
        (number(&result, "/generator/window_probes"), number(&result, "/payload_window"))
    };
    let (probes, bytes) = run(None);
    let (more, fewer) = run(Some(FaultSpec { name: FaultName::MissingWindowUpdate, size: 1.0 }));
    assert!(more > probes && fewer < bytes, "{probes} and {more} probes, {bytes} and {fewer} bytes");
}

#[test]
fn a_response_takes_the_round_trip_and_a_download_arrives_whole() {
    let request = r#"{"kind":"tcp_request","weight":1,"flows":64,"request_bytes":100,"v6_ratio":0.3,
        "upstream":{"mode":"respond","reply_bytes":2000,"delay_us":1000}}"#;
    let download = r#"{"kind":"tcp_request","weight":1,"flows":2,"request_bytes":20,
        "upstream":{"mode":"respond","reply_bytes":1000000}}"#;
    let mut spec = lockstep(&format!("{request},{download}"));
    (spec.rate_pps, spec.seconds) = (2_000.0, 1.0);
    spec.link = Some(LinkSpec { delay_us: 2_000, ..LinkSpec::default() });
    let result = run_phase(&spec);
    assert_nothing_left(&result);
    assert_eq!((number(&result, "/truth/faults"), number(&result, "/generator/aborted")), (0, 0));
    let p50 = |at: usize| number(&result, &format!("/reply_latency_by_component/{at}/p50"));
    assert!((5_000_000..8_000_000).contains(&p50(0)), "two ways of 2 ms and 1 ms upstream: {} ns", p50(0));
    assert!(p50(1) > p50(0), "{} ns for a megabyte", p50(1));
    assert!(number(&result, "/payload_window_down") > 10_000_000, "{result}");
}

#[test]
fn an_upstream_that_goes_away_is_felt_and_its_return_too() {
    let parts = r#"{"kind":"tcp_stream","weight":1,"flows":8,"segment_bytes":500,
        "upstream":{"mode":"sink","outage_after_ms":100,"outage_ms":100}},
        {"kind":"udp","weight":1,"flows":4,"payload_bytes":100,
        "upstream":{"mode":"echo","outage_after_ms":100,"outage_ms":100}}"#;
    let mut spec = lockstep(parts);
    (spec.rate_pps, spec.seconds) = (4_000.0, 0.4);
    let result = run_phase(&spec);
    assert_nothing_left(&result);
    assert_eq!((number(&result, "/truth/faults"), number(&result, "/generator/reset_by_peer")), (0, 0), "it is meant");
    assert!(number(&result, "/connections_refused") > 8, "connects were refused meanwhile: {result}");
    assert!(number(&result, "/connections_opened") >= 8, "and taken again after it: {result}");
    let asked = number(&result, "/truth/datagrams_up/received");
    let answered = number(&result, "/truth/datagrams_down/received");
    assert!((150..=250).contains(&(asked - answered)), "a tenth of a second of 2,000 a second: {asked} {answered}");
    assert_eq!(result["reply_jitter"]["max"], 0, "all ways are alike in virtual time");
}
