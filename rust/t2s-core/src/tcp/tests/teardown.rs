//! How a flow ends: FINs in every order, lost ones, and bytes that nobody reads.

use super::*;

#[test]
fn an_end_that_is_answered_with_an_end_takes_one_segment() {
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    bench.receive(Flags::ACK | Flags::FIN, 0, 0, 65_000, &[]);
    with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
    let out = bench.drain(&LIMITS);
    assert_eq!(out.len(), 1);
    assert!(out[0].repr.flags.fin());
    assert_eq!(out[0].repr.ack, IRS + 2);
    bench.receive(Flags::ACK, 1, 1, 65_000, &[]);
    assert!(bench.events().contains(Events::CLOSED));
    bench.finish();
}

#[test]
fn half_close_works_both_ways() {
    // The client first.
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    bench.receive(Flags::ACK | Flags::FIN, 0, 0, 65_000, &[9; 10]);
    let events = bench.events();
    assert!(events.contains(Events::PEER_FIN) && events.contains(Events::READABLE));
    assert!(bench.poll(&LIMITS).is_none(), "the upstream's answer may carry it");
    bench.expire(TimerKind::DelayedAck);
    assert_eq!(bench.poll(&LIMITS).expect("the answer takes too long").repr.ack, IRS + 12);
    bench.push(500);
    assert_eq!(bench.poll(&LIMITS).expect("data").payload_len, 500);
    with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
    assert_eq!(bench.tcb().state(), State::LastAck);
    let fin = bench.poll(&LIMITS).expect("FIN");
    assert!(fin.repr.flags.fin());
    bench.receive(Flags::ACK, 11, 501, 65_000, &[]);
    assert_eq!(bench.tcb().state(), State::Closed);
    assert!(!bench.events().contains(Events::CLOSED), "bytes wait for the upstream");
    assert!(bench.tcb().deadline().is_some(), "but not for ever");
    with!(bench, tcb, ctx => tcb.consume(ctx, 10));
    assert_eq!(bench.events(), Events::CLOSED);
    assert!(bench.tcb().deadline().is_none());
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::Finished));
    bench.finish();

    // The upstream first.
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    bench.push(500);
    with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
    let last = bench.poll(&LIMITS).expect("data with FIN");
    assert!(last.repr.flags.fin() && last.payload_len == 500);
    bench.receive(Flags::ACK, 0, 501, 65_000, &[]);
    assert_eq!(bench.tcb().state(), State::FinWait2);
    bench.receive(Flags::ACK, 0, 501, 65_000, &[1; 3_000]);
    assert_eq!(bench.tcb().readable_len(), 3_000);
    with!(bench, tcb, ctx => tcb.consume(ctx, 3_000));
    bench.receive(Flags::ACK | Flags::FIN, 3_000, 501, 65_000, &[]);
    assert_eq!(bench.tcb().state(), State::TimeWait);
    assert_eq!(bench.drain(&LIMITS).len(), 1);
    bench.wait(SECONDS);
    bench.receive(Flags::ACK | Flags::FIN, 3_000, 501, 65_000, &[]);
    assert_eq!(bench.drain(&LIMITS).len(), 1, "a repeated FIN is acknowledged, and 2 MSL start anew");
    let later = bench.header(Flags::SYN, 10_000, 0, 65_000);
    assert!(bench.tcb().may_reopen(&later));
    assert!(!bench.tcb().may_reopen(&bench.header(Flags::SYN, 5, 0, 65_000)));
    bench.expire(TimerKind::TimeWait);
    assert!(bench.events().contains(Events::CLOSED));
    bench.finish();

    // Both at once.
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
    assert!(bench.poll(&LIMITS).expect("FIN").repr.flags.fin());
    bench.receive(Flags::ACK | Flags::FIN, 0, 0, 65_000, &[]);
    assert_eq!(bench.tcb().state(), State::Closing);
    bench.receive(Flags::ACK, 1, 1, 65_000, &[]);
    assert_eq!(bench.tcb().state(), State::TimeWait);
    bench.finish();
}

#[test]
fn a_lost_fin_is_sent_again() {
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    bench.push(10);
    with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
    bench.drain(&LIMITS);
    bench.receive(Flags::ACK, 0, 10, 65_000, &[]);
    bench.expire(TimerKind::Retransmit);
    let fin = bench.poll(&LIMITS).expect("FIN");
    assert!(fin.repr.flags.fin() && fin.payload_len == 0 && fin.repr.seq == ISS + 11);
    bench.finish();
}

#[test]
fn bytes_for_nobody_reset_the_flow() {
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    with!(bench, tcb, ctx => tcb.reader_gone(ctx));
    assert_eq!(bench.tcb().state(), State::Established, "nothing was lost yet");
    bench.push(10);
    assert_eq!(bench.drain(&LIMITS).len(), 1);
    bench.receive(Flags::ACK, 0, 10, 65_000, &[1]);
    assert!(bench.poll(&LIMITS).expect("RST").repr.flags.rst());
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::ReaderGone));
    bench.finish();
}
