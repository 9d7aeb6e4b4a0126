//! What happens when nothing does: window probes, keepalive, idle and half-closed flows.

use super::*;

#[test]
fn a_zero_window_is_probed_for_ever_while_the_client_answers() {
    let mut bench = Bench::established(TcpConfig::default(), Options { mss: Some(MSS), ..Options::NONE });
    bench.receive(Flags::ACK, 0, 0, 0, &[]);
    bench.push(3_000);
    assert!(bench.poll(&PLAIN).is_none());
    for round in 0..50 {
        bench.expire(TimerKind::Persist);
        let probe = bench.poll(&PLAIN).expect("probe");
        assert_eq!((probe.payload_len, probe.repr.seq), (1, ISS + 1));
        assert!(bench.poll(&PLAIN).is_none());
        bench.receive(Flags::ACK, 0, 0, 0, &[]);
        assert_ne!(bench.tcb().state(), State::Closed, "round {round}");
    }
    // The window opens; the probe's byte was not taken.
    bench.receive(Flags::ACK, 0, 0, 2_000, &[]);
    let out = bench.drain(&PLAIN);
    assert_eq!(out.iter().map(|segment| segment.payload_len).collect::<Vec<_>>(), [1_000, 1_000]);
    assert_eq!(out[0].repr.seq, ISS + 1);
    // The window closes with data queued, and this time the probe's byte is taken.
    bench.receive(Flags::ACK, 0, 2_000, 0, &[]);
    assert!(bench.poll(&PLAIN).is_none());
    bench.expire(TimerKind::Persist);
    assert!(bench.poll(&PLAIN).is_some());
    bench.receive(Flags::ACK, 0, 2_001, 5_000, &[]);
    let out = bench.drain(&PLAIN);
    assert_eq!((out[0].repr.seq, out[0].payload_len), (ISS + 2_002, 999));
    // A silent client is given up.
    bench.receive(Flags::ACK, 0, 3_000, 0, &[]);
    bench.push(10);
    while bench.tcb().state() != State::Closed {
        bench.drain(&PLAIN);
        bench.expire(TimerKind::Persist);
    }
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::RetransmitTimeout));
    bench.finish();
}

#[test]
fn keepalive_probes_and_gives_up() {
    let config = TcpConfig {
        keepalive_idle: 60 * SECONDS,
        keepalive_interval: 10 * SECONDS,
        keepalive_probes: 3,
        ..TcpConfig::default()
    };
    let mut bench = Bench::established(config, Options::NONE);
    bench.expire(TimerKind::Keepalive);
    let probe = bench.poll(&LIMITS).expect("probe");
    assert_eq!((probe.repr.seq, probe.payload_len), (ISS, 0));
    bench.receive(Flags::ACK, 0, 0, 65_000, &[]);
    let mut probes = 0;
    let start = bench.now;
    while bench.tcb().state() != State::Closed {
        bench.expire(TimerKind::Keepalive);
        probes += bench.drain(&LIMITS).iter().filter(|segment| !segment.repr.flags.rst()).count();
    }
    assert_eq!(probes, 3);
    assert_eq!(bench.now.since(start), 90 * SECONDS);
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::KeepaliveTimeout));
    // The client's own probe is answered.
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    bench.receive(Flags::ACK, u32::MAX, 0, 65_000, &[]);
    assert_eq!(bench.poll(&LIMITS).expect("answer").repr.ack, IRS + 1);
    bench.finish();
}

#[test]
fn idle_and_half_closed_flows_end() {
    let config = TcpConfig { idle_timeout: 30 * SECONDS, ..TcpConfig::default() };
    let mut bench = Bench::established(config, Options::NONE);
    bench.wait(20 * SECONDS);
    bench.receive(Flags::ACK, 0, 0, 65_000, &[1]);
    bench.wait(20 * SECONDS);
    assert_eq!(bench.tcb().state(), State::Established);
    bench.wait(11 * SECONDS);
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::IdleTimeout));
    assert!(bench.poll(&LIMITS).expect("RST").repr.flags.rst());
    bench.finish();

    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
    bench.drain(&LIMITS);
    bench.receive(Flags::ACK, 0, 1, 65_000, &[]);
    bench.expire(TimerKind::FinWait2);
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::FinWait2Timeout));
    bench.finish();
}
