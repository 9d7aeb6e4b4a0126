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

    // Nobody reads any more: the client's direction has a limit.
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
    bench.drain(&LIMITS);
    bench.receive(Flags::ACK, 0, 1, 65_000, &[]);
    with!(bench, tcb, ctx => tcb.reader_gone(ctx));
    bench.expire(TimerKind::FinWait2);
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::FinWait2Timeout));
    bench.finish();
}

#[test]
fn a_half_closed_client_has_as_long_as_any_other() {
    // RFC 9293, section 3.6: FIN-WAIT-2 goes on receiving until the client's FIN.
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
    bench.drain(&LIMITS);
    bench.receive(Flags::ACK, 0, 1, 65_000, &[]);
    let keepalive = bench.config.keepalive_idle;
    for round in 0..3 {
        let start = bench.now;
        while bench.now.since(start) < keepalive {
            bench.expire(TimerKind::Keepalive);
        }
        assert!(bench.poll(&LIMITS).is_some_and(|probe| probe.repr.seq == ISS + 1), "probed in round {round}");
        bench.receive(Flags::ACK, 0, 1, 65_000, &[]);
        assert_eq!(bench.tcb().state(), State::FinWait2);
    }
    bench.receive(Flags::ACK, 0, 1, 65_000, b"late");
    assert_eq!(bench.tcb().readable_len(), 4);
    bench.expire(TimerKind::DelayedAck);
    // A dead one is found all the same.
    while bench.tcb().state() != State::Closed {
        bench.drain(&LIMITS);
        bench.expire(TimerKind::Keepalive);
    }
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::KeepaliveTimeout));
    bench.finish();
}

#[test]
fn bytes_that_nobody_takes_do_not_keep_a_finished_flow() {
    for (idle, limit) in [(10 * SECONDS, 10 * SECONDS), (0, 7_875 * SECONDS)] {
        let config = TcpConfig { idle_timeout: idle, ..TcpConfig::default() };
        let mut bench = Bench::established(config, Options::NONE);
        bench.receive(Flags::ACK | Flags::FIN, 0, 0, 65_000, &[1; 10]);
        with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
        bench.drain(&LIMITS);
        bench.receive(Flags::ACK, 11, 1, 65_000, &[]);
        let _ = bench.events();
        bench.wait(limit - SECONDS);
        // A slow reader is a reader.
        with!(bench, tcb, ctx => tcb.consume(ctx, 1));
        bench.wait(limit - SECONDS);
        assert_eq!((bench.tcb().readable_len(), bench.events()), (9, Events::NONE));
        bench.expire(TimerKind::Keepalive);
        let events = bench.events();
        assert!(events.contains(Events::RESET) && events.contains(Events::CLOSED), "the upstream lost bytes");
        assert_eq!(bench.tcb().close_reason(), Some(CloseReason::IdleTimeout));
        assert_eq!((bench.tcb().readable_len(), bench.tcb().deadline()), (0, None));
        bench.finish();
    }
}

#[test]
fn an_idle_flow_gives_its_window_growth_to_others() {
    let config = TcpConfig { recv_window_min: 10_000, recv_window_max: 60_000, ..TcpConfig::default() };
    let mut bench = Bench::established(config, Options::NONE);
    bench.receive(Flags::ACK, 0, 0, 65_000, &[1; 10_000]);
    with!(bench, tcb, ctx => tcb.consume(ctx, 10_000));
    bench.drain(&LIMITS);
    assert_eq!((bench.tcb().recv_capacity, bench.memory.grown), (20_000, 10_000));
    bench.wait(9 * SECONDS);
    bench.receive(Flags::ACK, 10_000, 0, 65_000, &[1]);
    bench.expire(TimerKind::DelayedAck);
    bench.drain(&LIMITS);
    bench.expire(TimerKind::Keepalive);
    assert_eq!(bench.memory.grown, 10_000, "it has moved since");
    bench.expire(TimerKind::Keepalive);
    assert_eq!((bench.tcb().recv_capacity, bench.memory.grown), (10_000, 0));
    // Keepalive is where it was.
    let heard = bench.tcb().last_received();
    while bench.poll(&LIMITS).is_none() {
        bench.expire(TimerKind::Keepalive);
    }
    assert_eq!(bench.now.since(heard), bench.config.keepalive_idle);
    bench.finish();
}
