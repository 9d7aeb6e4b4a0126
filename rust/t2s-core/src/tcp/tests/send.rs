//! What goes out: super-segments, silly windows, and when the upstream may write again.

use super::*;

#[test]
fn super_segments_are_whole_packets_until_the_last() {
    let mut bench = Bench::modern();
    for _ in 0..3 {
        bench.push(4_500);
    }
    let out = bench.drain(&LIMITS);
    assert_eq!(out.len(), 1, "10 of 13.5 packets fit into the first window");
    assert_eq!((out[0].payload_len, out[0].gso_size), (10_000, Some(1_000)));
    assert_eq!(out[0].repr.flags, Flags::ACK, "more is queued: no PSH");
    bench.receive(Flags::ACK, 0, 10_000, 1_000, &[]);
    let out = bench.drain(&LIMITS);
    assert_eq!(out.len(), 1);
    assert_eq!((out[0].payload_len, out[0].gso_size), (3_500, Some(1_000)));
    assert_eq!(out[0].repr.flags, Flags::ACK | Flags::PSH);
    assert_eq!(bench.tcb().segment_unit(&LIMITS), 60_000);
    bench.finish();
}

#[test]
fn slices_bound_a_super_segment() {
    let mut bench = Bench::modern();
    for _ in 0..8 {
        // Too large to be packed.
        bench.push(1_100);
    }
    let limits = SegmentLimits { slices: 3, ..LIMITS };
    let first = bench.poll(&limits).expect("data");
    assert_eq!(first.payload_len, 3_000, "three slices, cut to whole packets");
    assert!(bench.tcb().payload(first.payload_offset, first.payload_len).count() <= 3);
    let second = bench.poll(&limits).expect("data");
    assert!(bench.tcb().payload(second.payload_offset, second.payload_len).count() <= 3);
    bench.finish();
}

#[test]
fn small_windows_do_not_make_small_segments() {
    let mut bench = Bench::established(TcpConfig::default(), Options { mss: Some(MSS), ..Options::NONE });
    bench.push(5_000);
    bench.receive(Flags::ACK, 0, 0, 2_000, &[]);
    assert_eq!(bench.drain(&PLAIN).len(), 2);
    bench.receive(Flags::ACK, 0, 2_000, 100, &[]);
    assert!(bench.poll(&PLAIN).is_none(), "100 bytes of window are not worth a segment");
    bench.expire(TimerKind::Persist);
    let forced = bench.poll(&PLAIN).expect("after the override timeout");
    assert_eq!(forced.payload_len, 100);
    bench.finish();
}

#[test]
fn a_busy_client_does_not_put_the_override_off() {
    let mut bench = Bench::established(TcpConfig::default(), Options { mss: Some(MSS), ..Options::NONE });
    bench.receive(Flags::ACK, 0, 0, 100, &[1]);
    bench.push(5_000);
    assert!(bench.poll(&PLAIN).is_none());
    let start = bench.now;
    let mut sent = Vec::new();
    for step in 1..=100 {
        bench.wait(10 * MILLIS);
        bench.receive(Flags::ACK, step, sent.iter().sum::<usize>() as u32, 100, &[1]);
        sent.extend(bench.drain(&PLAIN).iter().map(|segment| segment.payload_len).filter(|len| *len > 0));
        assert!(!sent.is_empty() || bench.now.since(start) < SECONDS, "nothing in {step} steps");
    }
    assert!(sent.iter().all(|len| *len == 100), "what the window takes: {sent:?}");
    bench.finish();
    // Also when the window was closed first, and a probe was far ahead.
    let mut bench = Bench::established(TcpConfig::default(), Options { mss: Some(MSS), ..Options::NONE });
    bench.receive(Flags::ACK, 0, 0, 0, &[]);
    bench.push(5_000);
    for _ in 0..6 {
        bench.poll(&PLAIN);
        bench.expire(TimerKind::Persist);
    }
    assert!(bench.poll(&PLAIN).is_some());
    assert!(bench.tcb().deadline().expect("a timer").0.since(bench.now) > 5 * SECONDS);
    bench.receive(Flags::ACK, 0, 0, 100, &[]);
    assert!(bench.poll(&PLAIN).is_none());
    assert!(bench.tcb().deadline().expect("a timer").0.since(bench.now) <= SECONDS);
    bench.expire(TimerKind::Persist);
    assert_eq!(bench.poll(&PLAIN).expect("the override").payload_len, 100);
    bench.finish();
}

#[test]
fn who_finds_no_room_is_told_when_there_is_some() {
    let mut bench = Bench::modern();
    // All of the limit is queued; the push itself was made while the limit was higher.
    bench.push(60_000);
    bench.memory = BufferBudget::new(60_000);
    bench.memory.charge(60_000);
    assert_eq!(bench.room(), 0);
    let sent: usize = bench.drain(&LIMITS).iter().map(|segment| segment.payload_len).sum();
    bench.memory = BufferBudget::new(1 << 30);
    bench.memory.charge(60_000);
    bench.receive(Flags::ACK, 0, sent as u32, 10_000, &[]);
    assert!(bench.events().contains(Events::WRITABLE));
    bench.finish();
}

#[test]
fn writable_comes_when_room_is_ample_again() {
    let mut bench = Bench::modern();
    let room = bench.room();
    assert_eq!(room, bench.config.send_buffer_min as usize);
    bench.push(60_000);
    bench.push(60_000);
    assert!(bench.events().is_empty());
    let sent: usize = bench.drain(&LIMITS).iter().map(|segment| segment.payload_len).sum();
    assert_eq!(sent, 10_000);
    let mut at = 0;
    while !bench.events().contains(Events::WRITABLE) {
        at = (bench.tcb().snd_nxt - (ISS + 1)) as u32;
        bench.receive(Flags::ACK, 0, at, 1_000, &[]);
        bench.drain(&LIMITS);
    }
    assert!((50_000..=80_000).contains(&at), "{at}");
    bench.finish();
}
