//! How a flow begins: the SYN-ACK and what it waits for, refusals, and those who never come back.

use super::*;

#[test]
fn the_syn_ack_waits_for_the_upstream() {
    let mut bench = Bench::new(TcpConfig::default(), Options { mss: Some(1_460), ..Options::NONE });
    assert_eq!(bench.tcb().state(), State::SynPending);
    assert!(bench.poll(&LIMITS).is_none());
    let syn = Tcp { seq: IRS, ack: SeqNumber(0), ..bench.header(Flags::SYN, 0, 0, 65_000) };
    bench.receive_header(&syn, &[]);
    assert!(bench.poll(&LIMITS).is_none(), "a repeated SYN waits too");
    with!(bench, tcb, ctx => tcb.connected(ctx));
    let syn_ack = bench.poll(&LIMITS).expect("SYN-ACK");
    assert_eq!(syn_ack.repr.options.mss, Some(MSS + 12));
    assert_eq!(syn_ack.repr.options.window_scale, None, "not offered");
    assert!(!syn_ack.repr.options.sack_permitted && syn_ack.repr.options.timestamp.is_none());
    // Lost: repeated after the timeout, and at once for a repeated SYN.
    bench.expire(TimerKind::Retransmit);
    assert_eq!(bench.poll(&LIMITS).expect("again").repr.seq, ISS);
    bench.receive_header(&syn, &[]);
    assert_eq!(bench.poll(&LIMITS).expect("again").repr.flags, Flags::SYN | Flags::ACK);
    bench.finish();
}

#[test]
fn a_silent_client_does_not_hold_a_half_open_flow() {
    let mut bench = Bench::new(TcpConfig::default(), Options::NONE);
    with!(bench, tcb, ctx => tcb.connected(ctx));
    let start = bench.now;
    let mut sent = 0;
    while bench.tcb().state() != State::Closed {
        sent += bench.drain(&LIMITS).len();
        let (at, _) = bench.tcb().deadline().expect("a timer");
        bench.wait(at.since(bench.now));
    }
    assert_eq!(sent, 6);
    assert_eq!(bench.now.since(start) / SECONDS, 63, "1 + 2 + 4 + 8 + 16 + 32 s");
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::RetransmitTimeout));
    bench.finish();
}

#[test]
fn refusals_look_as_asked() {
    for (mode, how, segments) in [
        (SynAck::AfterConnect, Refusal::Reset, 1),
        (SynAck::AfterConnect, Refusal::Silent, 0),
        (SynAck::Immediate, Refusal::Silent, 1),
    ] {
        let mut bench = Bench::new(TcpConfig { syn_ack: mode, ..TcpConfig::default() }, Options::NONE);
        if mode == SynAck::Immediate {
            assert!(bench.poll(&LIMITS).is_some_and(|segment| segment.repr.flags.syn()));
        }
        let _ = bench.events();
        with!(bench, tcb, ctx => tcb.refused(ctx, how));
        let out = bench.drain(&LIMITS);
        assert_eq!(out.len(), segments);
        if let Some(reset) = out.first() {
            assert_eq!(reset.repr.flags, Flags::RST | Flags::ACK);
            assert_eq!(reset.repr.ack, IRS + 1);
            let seq = if mode == SynAck::Immediate { ISS + 1 } else { SeqNumber(0) };
            assert_eq!(reset.repr.seq, seq, "RFC 9293, section 3.10.7.1");
        }
        assert_eq!(bench.events(), Events::CLOSED, "the upstream knows already");
        bench.finish();
    }
}

#[test]
fn a_connect_that_takes_too_long_is_dropped_in_silence() {
    let mut bench = Bench::new(TcpConfig::default(), Options::NONE);
    let _ = bench.events();
    bench.expire(TimerKind::Connect);
    assert!(bench.poll(&LIMITS).is_none());
    let events = bench.events();
    assert!(events.contains(Events::RESET) && events.contains(Events::CLOSED));
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::ConnectTimeout));
    bench.finish();
}

/// A flow whose SYN-ACK is out, with a client that offers no options.
fn syn_received() -> Bench {
    let mut bench = Bench::new(TcpConfig::default(), Options::NONE);
    with!(bench, tcb, ctx => tcb.connected(ctx));
    assert!(bench.poll(&LIMITS).is_some_and(|segment| segment.repr.flags.syn()));
    let _ = bench.events();
    bench
}

#[test]
fn before_the_handshake_ends_segments_are_judged_as_after_it() {
    let ack = Flags::ACK;
    // RFC 9293, section 3.10.7.4, and RFC 5961, section 3.2: what is answered, and the state afterwards.
    let answers = [
        ("old", ack, u32::MAX - 500, 0, Some(ack), State::SynReceived),
        ("old, and its acknowledgement is bad", ack, u32::MAX - 500, 9, Some(ack), State::SynReceived),
        ("beyond the window", ack, 1 << 20, 0, Some(ack), State::SynReceived),
        ("a bad acknowledgement", ack, 0, 9, Some(Flags::RST), State::SynReceived),
        ("an old acknowledgement", ack, 0, u32::MAX, Some(Flags::RST), State::SynReceived),
        ("no acknowledgement", Flags::PSH, 0, 0, None, State::SynReceived),
        ("RST at RCV.NXT", Flags::RST, 0, 0, None, State::Closed),
        ("RST in the window", Flags::RST, 500, 0, Some(ack), State::SynReceived),
        ("RST at the SYN", Flags::RST, u32::MAX, 0, None, State::SynReceived),
        ("RST beyond the window", Flags::RST, 1 << 20, 0, None, State::SynReceived),
        ("SYN in the window", Flags::SYN, 5_000, 0, None, State::Closed),
        ("SYN outside", Flags::SYN, 1 << 30, 0, Some(ack), State::SynReceived),
    ];
    for (name, flags, seq, ack, answer, state) in answers {
        let mut bench = syn_received();
        let payload: &[u8] = if flags == Flags::ACK { b"x" } else { b"" };
        let header = Tcp { options: Options::NONE, ..bench.header(flags, seq, ack, 65_000) };
        bench.receive_header(&header, payload);
        let out = bench.drain(&LIMITS);
        assert_eq!(out.iter().map(|segment| segment.repr.flags).collect::<Vec<_>>(), Vec::from_iter(answer), "{name}");
        if answer == Some(Flags::ACK) {
            assert_eq!((out[0].repr.seq, out[0].repr.ack), (ISS + 1, IRS + 1), "{name}");
        }
        assert_eq!(bench.tcb().state(), state, "{name}");
        assert_eq!(bench.tcb().readable_len(), 0, "{name}");
        if state == State::SynReceived {
            bench.receive(Flags::ACK, 0, 0, 65_000, b"x");
            assert_eq!(bench.tcb().readable_len(), 1, "{name}: the client goes on");
        }
        bench.finish();
    }
}

#[test]
fn a_client_that_dials_anew_is_not_left_to_the_back_off() {
    let mut bench = syn_received();
    for _ in 0..4 {
        bench.expire(TimerKind::Retransmit);
        bench.drain(&LIMITS);
    }
    let far = bench.tcb().deadline().expect("a timer").0;
    assert_eq!(far.since(bench.now), 16 * SECONDS);
    let again = Tcp { options: Options::NONE, ..bench.header(Flags::SYN, 1 << 30, 0, 65_000) };
    bench.receive_header(&again, &[]);
    assert_eq!(bench.poll(&LIMITS).expect("an acknowledgement").repr.flags, Flags::ACK);
    assert_eq!(bench.tcb().deadline().expect("a timer").0.since(bench.now), bench.config.rto_min);
    // The client answers either with RST.
    bench.receive(Flags::RST, 0, 0, 0, &[]);
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::PeerReset));
    bench.finish();

    // Nothing was said yet: the newcomer is the client. The first one's repetition is not a newcomer.
    let mut bench = Bench::new(TcpConfig::default(), Options::NONE);
    let _ = bench.events();
    assert!(bench.tcb().may_reopen(&again));
    assert!(!bench.tcb().may_reopen(&Tcp { seq: IRS, ..again }));
    bench.finish();
}

#[test]
fn timestamps_decide_whether_time_wait_ends() {
    let mut bench = Bench::modern();
    bench.options.timestamp = Some((100, 0));
    with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
    bench.drain(&LIMITS);
    bench.receive(Flags::ACK | Flags::FIN, 0, 1, 1_000, &[]);
    assert_eq!(bench.tcb().state(), State::TimeWait);
    // RFC 6191, section 2: newer, older, the same, none.
    for (value, seq, opens) in [
        (Some(101), 0x9000_0000, true),
        (Some(99), 9_000, false),
        (Some(100), 9_000, true),
        (Some(100), 0x9000_0000, false),
        (None, 9_000, true),
        (None, 0, false),
    ] {
        let mut syn = bench.header(Flags::SYN, seq, 0, 1_000);
        syn.options.timestamp = value.map(|value| (value, 0));
        assert_eq!(bench.tcb().may_reopen(&syn), opens, "{value:?} {seq}");
    }
    bench.finish();
}
