//! What comes in: order, acknowledgements, windows, and segments that do not belong (RFC 5961, RFC 7323).

use super::*;
use crate::tcp::budget::WINDOW_GROWTH;

#[test]
fn every_second_segment_is_acknowledged_the_first_after_a_while() {
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    bench.receive(Flags::ACK, 0, 0, 65_000, &[1; 100]);
    assert!(bench.poll(&LIMITS).is_none());
    bench.expire(TimerKind::DelayedAck);
    assert_eq!(bench.poll(&LIMITS).expect("delayed").repr.ack, IRS + 101);
    bench.receive(Flags::ACK, 100, 0, 65_000, &[1; 100]);
    bench.receive(Flags::ACK, 200, 0, 65_000, &[1; 100]);
    assert_eq!(bench.poll(&LIMITS).expect("second").repr.ack, IRS + 301);
    bench.receive(Flags::ACK, 300, 0, 65_000, &[1; 5_000]);
    assert_eq!(bench.poll(&LIMITS).expect("super-segment").repr.ack, IRS + 5_301);
    // Data carries the acknowledgement.
    bench.receive(Flags::ACK, 5_300, 0, 65_000, &[1; 100]);
    bench.push(10);
    assert_eq!(bench.poll(&LIMITS).expect("data").repr.ack, IRS + 5_401);
    assert!(bench.poll(&LIMITS).is_none());
    assert_eq!(bench.tcb().readable_len(), 5_400);
    assert_eq!(bench.events(), Events::READABLE);
    bench.finish();
}

#[test]
fn out_of_order_data_is_acknowledged_with_sack_and_drained_early() {
    let mut bench = Bench::modern();
    bench.receive(Flags::ACK, 1_000, 0, 1_000, &[2; 1_000]);
    let first = bench.poll(&LIMITS).expect("at once");
    assert_eq!(first.repr.ack, IRS + 1);
    assert_eq!(first.repr.options.sack.as_slice(), [(IRS + 1_001, IRS + 2_001)]);
    bench.receive(Flags::ACK, 3_000, 0, 1_000, &[4; 1_000]);
    let second = bench.poll(&LIMITS).expect("at once");
    assert_eq!(second.repr.options.sack.as_slice()[0], (IRS + 3_001, IRS + 4_001), "newest first");
    bench.receive(Flags::ACK, 0, 0, 1_000, &[1; 1_000]);
    assert_eq!(bench.tcb().readable_len(), 2_000, "early drain");
    assert_eq!(bench.poll(&LIMITS).expect("at once").repr.ack, IRS + 2_001);
    bench.receive(Flags::ACK | Flags::FIN, 4_000, 0, 1_000, &[]);
    assert!(!bench.events().contains(Events::PEER_FIN), "not in sequence yet");
    bench.receive(Flags::ACK, 2_000, 0, 1_000, &[3; 1_000]);
    assert!(bench.events().contains(Events::PEER_FIN));
    assert_eq!(bench.tcb().state(), State::CloseWait);
    let bytes: Vec<u8> = bench.tcb().readable().flatten().copied().collect();
    assert_eq!(bytes, [[1; 1_000], [2; 1_000], [3; 1_000], [4; 1_000]].concat());
    bench.finish();
}

#[test]
fn the_first_sack_block_is_of_the_segment_that_came() {
    let mut bench = Bench::modern();
    for at in [1_000, 3_000, 5_000] {
        bench.receive(Flags::ACK, at, 0, 1_000, &[1; 1_000]);
        bench.drain(&LIMITS);
    }
    // Held already, in whole, in part, and across the end of what is held: RFC 2018, section 4.
    for (seq, len, first) in [
        (1_000, 1_000, (1_000, 2_000)),
        (3_200, 300, (3_000, 4_000)),
        (1_999, 1, (1_000, 2_000)),
        (5_000, 1, (5_000, 6_000)),
        (3_500, 600, (3_000, 4_100)),
    ] {
        bench.receive(Flags::ACK, seq, 0, 1_000, &vec![1; len]);
        let blocks = bench.poll(&LIMITS).expect("at once").repr.options.sack;
        let first = (IRS + 1 + first.0, IRS + 1 + first.1);
        assert_eq!(blocks.as_slice()[0], first, "{seq} + {len}");
        assert_eq!(blocks.len(), 3, "none is forgotten");
    }
    bench.finish();
}

#[test]
fn the_window_grows_when_it_was_the_limit_and_shrinks_after_silence() {
    let config = TcpConfig { recv_window_min: 10_000, recv_window_max: 60_000, ..TcpConfig::default() };
    let mut bench = Bench::established(config, Options::NONE);
    let mut at = 0;
    let mut edge = IRS;
    for capacity in [20_000, 40_000, 60_000, 60_000] {
        let room = (bench.tcb().rcv_adv - bench.tcb().rcv_nxt) as u32;
        let mut left = room;
        while left > 0 {
            let len = left.min(5_000);
            bench.receive(Flags::ACK, at, 0, 65_000, &vec![1; len as usize]);
            at += len;
            left -= len;
        }
        let closed = bench.poll(&LIMITS).expect("acknowledgement");
        assert!((closed.repr.ack + u32::from(closed.repr.window)).ge(edge), "the edge moved left");
        let queued = bench.tcb().readable_len();
        with!(bench, tcb, ctx => tcb.consume(ctx, queued));
        let open = bench.poll(&LIMITS).expect("window update");
        edge = open.repr.ack + u32::from(open.repr.window);
        assert_eq!(u32::from(open.repr.window), capacity);
    }
    // A slow reader does not get more.
    bench.receive(Flags::ACK, at, 0, 65_000, &[1; 100]);
    at += 100;
    bench.now = bench.now.plus(11 * SECONDS);
    bench.receive(Flags::ACK, at, 0, 65_000, &[1; 100]);
    assert_eq!(bench.tcb().recv_capacity, 10_000);
    let after = bench.poll(&LIMITS).expect("acknowledgement");
    assert_eq!(after.repr.ack + u32::from(after.repr.window), edge, "promised is promised");
    bench.finish();
}

#[test]
fn windows_of_a_worker_together_stay_within_what_a_device_queues() {
    let config = TcpConfig { recv_window_min: 10_000, recv_window_max: 60_000, ..TcpConfig::default() };
    let mut bench = Bench::established(config, Options::NONE);
    // Others have grown: there is room for one doubling, not for two.
    let others = (WINDOW_GROWTH - 15_000) as u32;
    assert!(bench.memory.grow(others));
    let mut at = 0;
    for capacity in [20_000, 20_000] {
        let room = (bench.tcb().rcv_adv - bench.tcb().rcv_nxt) as u32;
        bench.receive(Flags::ACK, at, 0, 65_000, &vec![1; room as usize]);
        at += room;
        with!(bench, tcb, ctx => tcb.consume(ctx, room as usize));
        bench.drain(&LIMITS);
        assert_eq!(bench.tcb().recv_capacity, capacity);
    }
    // Silence gives it back, and so does the end.
    bench.now = bench.now.plus(11 * SECONDS);
    bench.receive(Flags::ACK, at, 0, 65_000, &[1; 100]);
    assert_eq!((bench.tcb().recv_capacity, bench.memory.grown), (10_000, u64::from(others)));
    bench.memory.shrink(others);
    bench.finish();
}

#[test]
fn memory_pressure_closes_windows_but_starves_nobody() {
    let mut bench = Bench::modern();
    bench.memory = BufferBudget::new(10_000);
    bench.memory.charge(10_000);
    let room = bench.room();
    assert!(room > 0, "a flow with nothing queued has room");
    bench.push(2_000);
    assert_eq!(bench.room(), 0);
    // What the window promised is taken, and no more is promised.
    let edge = bench.tcb().rcv_adv;
    bench.receive(Flags::ACK, 0, 0, 1_000, &vec![1; 20_000]);
    assert_eq!(bench.tcb().readable_len(), 20_000);
    assert!(!bench.drain(&LIMITS).is_empty());
    assert_eq!(bench.tcb().rcv_adv, edge);
    bench.memory.discharge(10_000);
    bench.finish();
}

#[test]
fn a_small_request_is_not_answered_with_a_window_update() {
    // The SYN-ACK cannot tell a window of more than 65,535 bytes (RFC 7323, section 2.2): half of it is news at once.
    let scaled = Options { mss: Some(MSS), window_scale: Some(7), ..Options::NONE };
    let mut bench = Bench::established(TcpConfig::default(), scaled);
    bench.receive(Flags::ACK, 0, 0, 500, &[1; 1_000]);
    with!(bench, tcb, ctx => tcb.consume(ctx, 1_000));
    assert!(bench.poll(&LIMITS).is_none());
    // A client that goes on hears of it with the next acknowledgement, before a third of the window is left.
    bench.receive(Flags::ACK, 1_000, 0, 500, &[1; 1_000]);
    with!(bench, tcb, ctx => tcb.consume(ctx, 1_000));
    let ack = bench.poll(&LIMITS).expect("the second segment");
    // 4 MiB in 16 bits: units of 128 bytes.
    assert!(u32::from(ack.repr.window) << 7 > 65_535, "{}", ack.repr.window);
    with!(bench, tcb, ctx => tcb.abort(ctx));
    bench.drain(&LIMITS);
    bench.finish();
}

#[test]
fn blind_attacks_get_challenges_and_no_more_than_the_rate() {
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    bench.now = Instant::from_nanos(8 << 30);
    bench.receive(Flags::RST, 100, 0, 0, &[]);
    assert_eq!(bench.poll(&LIMITS).expect("challenge").repr.ack, IRS + 1);
    bench.receive(Flags::RST, 1 << 20, 0, 0, &[]);
    assert!(bench.poll(&LIMITS).is_none(), "outside the window: nothing");
    bench.receive(Flags::SYN, 50, 0, 0, &[]);
    assert!(bench.poll(&LIMITS).is_some());
    bench.receive(Flags::ACK, 0, 5_000, 65_000, &[1; 10]);
    assert!(bench.poll(&LIMITS).is_some(), "acknowledges what was never sent");
    assert_eq!(bench.tcb().readable_len(), 0);
    for _ in 0..100 {
        bench.receive(Flags::RST, 100, 0, 0, &[]);
        bench.drain(&LIMITS);
    }
    assert_eq!(bench.stats.challenge_acks, 10);
    assert_eq!(bench.counts.get(DropReason::TcpChallenged), 103);
    assert_eq!(bench.tcb().state(), State::Established);
    bench.now = bench.now.plus(2 * SECONDS);
    bench.receive(Flags::RST, 100, 0, 0, &[]);
    assert!(bench.poll(&LIMITS).is_some(), "the rate is a rate");
    bench.receive(Flags::RST, 0, 0, 0, &[]);
    assert_eq!(bench.tcb().close_reason(), Some(CloseReason::PeerReset));
    let events = bench.events();
    assert!(events.contains(Events::RESET) && events.contains(Events::CLOSED));
    bench.finish();
}

#[test]
fn old_timestamps_are_refused() {
    let mut bench = Bench::modern();
    bench.options.timestamp = Some((100, 0));
    bench.receive(Flags::ACK, 0, 0, 1_000, &[1; 10]);
    bench.drain(&LIMITS);
    bench.wait(50 * MILLIS);
    assert_eq!(bench.poll(&LIMITS).expect("delayed").repr.options.timestamp.expect("negotiated").1, 100);
    bench.options.timestamp = Some((99, 0));
    bench.receive(Flags::ACK, 10, 0, 1_000, &[1; 10]);
    assert_eq!(bench.counts.get(DropReason::TcpPaws), 1);
    assert_eq!(bench.tcb().readable_len(), 10);
    assert!(bench.poll(&LIMITS).is_some(), "acknowledged, dropped");
    // After 24 days the clock may have wrapped.
    bench.now = bench.now.plus(25 * 86_400 * SECONDS);
    bench.receive(Flags::ACK, 10, 0, 1_000, &[1; 10]);
    assert_eq!(bench.tcb().readable_len(), 20);
    bench.finish();
}

#[test]
fn the_end_of_the_sequence_space_is_nothing_special() {
    let mut bench = Bench::modern();
    let mut received = 0_u32;
    let mut sent = 0_u32;
    for _ in 0..200 {
        bench.receive(Flags::ACK, received, sent, 1_000, &vec![5; 20_000]);
        received = received.wrapping_add(20_000);
        with!(bench, tcb, ctx => tcb.consume(ctx, 20_000));
        bench.push(9_000);
        sent = sent.wrapping_add(bench.drain(&LIMITS).iter().map(|segment| segment.payload_len as u32).sum());
    }
    assert_eq!(bench.stats.bytes_in, 4_000_000);
    assert_eq!(bench.counts.total(), 0);
    assert!(bench.stats.predicted > 190);
    bench.finish();
}

#[test]
fn a_discarded_segment_leaves_no_trace() {
    for (seq, ack) in [(0, 100_000), (u32::MAX, 100_000), (0, 1), (0, 0x8000_0000), (0, 0xf000_0000)] {
        let mut bench = Bench::modern();
        let heard = bench.tcb().last_received();
        bench.wait(50 * MILLIS);
        let timestamp = bench.options.timestamp;
        bench.options.timestamp = Some((1_000_000, 0));
        bench.receive(Flags::ACK, seq, ack, 0, &[9; 10]);
        assert_eq!(bench.poll(&LIMITS).expect("a challenge").repr.options.timestamp.expect("negotiated").1, 1);
        assert_eq!((bench.tcb().readable_len(), bench.tcb().last_received()), (0, heard), "{seq} {ack}");
        bench.options.timestamp = timestamp;
        bench.receive(Flags::ACK, 0, 0, 1_000, &[1; 10]);
        assert_eq!((bench.tcb().readable_len(), bench.counts.get(DropReason::TcpPaws)), (10, 0), "{seq} {ack}");
        bench.finish();
    }
}

#[test]
fn only_the_repeated_fin_prolongs_time_wait() {
    let mut bench = Bench::established(TcpConfig::default(), Options::NONE);
    with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
    bench.drain(&LIMITS);
    bench.receive(Flags::ACK | Flags::FIN, 0, 1, 65_000, &[]);
    let (end, kind) = bench.tcb().deadline().expect("a timer");
    assert_eq!(kind, TimerKind::TimeWait);
    bench.wait(SECONDS);
    for (seq, ack) in [(u32::MAX - 5_000, 1), (0x7000_0000, 1), (0, 9)] {
        bench.receive(Flags::ACK | Flags::FIN, seq, ack, 65_000, &[]);
        bench.drain(&LIMITS);
        assert_eq!(bench.tcb().deadline(), Some((end, TimerKind::TimeWait)), "{seq} {ack}");
    }
    bench.receive(Flags::ACK | Flags::FIN, 0, 1, 65_000, &[]);
    assert_eq!(bench.tcb().deadline(), Some((end.plus(SECONDS), TimerKind::TimeWait)));
    bench.finish();
}
