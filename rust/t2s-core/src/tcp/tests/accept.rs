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
