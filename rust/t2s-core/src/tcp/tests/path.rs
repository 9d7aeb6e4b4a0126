//! Segments that fit the path: what a router says of it, and what silence says.

use super::*;

/// Payload lengths of what goes out.
fn lengths(bench: &mut Bench) -> Vec<usize> {
    bench.drain(&PLAIN).iter().map(|segment| segment.payload_len).collect()
}

#[test]
fn what_a_router_refused_is_sent_again_in_smaller_segments() {
    let mut bench = Bench::modern();
    bench.push(20_000);
    assert_eq!(lengths(&mut bench), [1_000; 10]);
    let window = bench.tcb().congestion_window();
    let (first, beyond) = (ISS + 1, ISS + 1 + 10_000);
    assert!(bench.tcb().has_sent(first) && bench.tcb().has_sent(beyond - 1));
    assert!(!bench.tcb().has_sent(first - 1) && !bench.tcb().has_sent(beyond));
    // 812 bytes with timestamps are 800 without.
    with!(bench, tcb, ctx => tcb.limit_payload(ctx, 812));
    let again = bench.drain(&PLAIN);
    assert!(again.iter().all(|segment| segment.payload_len <= 800), "{again:?}");
    assert_eq!((again[0].repr.seq, again[0].payload_len), (first, 800));
    assert_eq!(bench.tcb().congestion_window(), window, "it says nothing about congestion (RFC 1191, section 6.4)");
    assert_eq!(again.len(), 12, "as many as the window takes whole");
    // The other segments of the flight meet the same router: nothing is sent a third time.
    with!(bench, tcb, ctx => tcb.limit_payload(ctx, 812));
    with!(bench, tcb, ctx => tcb.limit_payload(ctx, 1_000));
    assert!(bench.drain(&PLAIN).is_empty());
    bench.receive(Flags::ACK, 0, 10_000, 1_000, &[]);
    assert!(lengths(&mut bench).iter().all(|len| *len <= 800));
    bench.receive(Flags::ACK, 0, 20_000, 1_000, &[]);
    // After ten minutes the path may have changed (RFC 1191, section 6.3).
    bench.now = bench.now.plus(610 * SECONDS);
    bench.push(3_000);
    assert_eq!(lengths(&mut bench), [1_000; 3]);
    bench.finish();
}

/// Sends `len` bytes through a path that swallows packets with more than `most` bytes of payload; how many timeouts
/// that took, and the payload of the packets in the end.
fn through(v4: bool, mss: u16, most: usize, len: usize) -> (u64, u16) {
    let limits = SegmentLimits { mss, tso_max: 0, slices: 16 };
    let options = Options { mss: Some(mss), sack_permitted: true, ..Options::NONE };
    let mut bench = Bench::established_with(TcpConfig::default(), options, mss, v4);
    for part in vec![0; len].chunks(50_000) {
        bench.push(part.len());
    }
    let mut arrived = vec![false; len];
    for _ in 0..1_000 {
        let out = bench.drain(&limits);
        let before = arrived.iter().take_while(|byte| **byte).count();
        for segment in out.iter().filter(|segment| segment.payload_len <= most) {
            let at = (segment.repr.seq - (ISS + 1)) as usize;
            arrived[at..at + segment.payload_len].fill(true);
        }
        let after = arrived.iter().take_while(|byte| **byte).count();
        if after == len {
            bench.receive(Flags::ACK, 0, len as u32, 65_000, &[]);
            assert!(lengths(&mut bench).is_empty());
            let found = (bench.stats.timeouts, bench.tcb().mss);
            bench.finish();
            return found;
        }
        if after > before {
            bench.receive(Flags::ACK, 0, after as u32, 65_000, &[]);
        } else {
            bench.expire(TimerKind::Retransmit);
        }
    }
    panic!("{:?} of {len} bytes came through", arrived.iter().filter(|byte| **byte).count());
}

#[test]
fn full_sized_segments_that_vanish_in_silence_become_smaller() {
    assert_eq!(through(true, 1_460, 1_360, 30_000), (3, 1_220));
    assert_eq!(through(false, 1_440, 1_340, 30_000), (3, 1_220));
    assert_eq!(through(true, 8_000, 1_360, 100_000), (3, 1_220));
    assert_eq!(through(true, 1_460, 600, 30_000), (5, 536), "IPv4 goes below 1,280 bytes");
    assert_eq!(through(true, 1_460, 1_460, 30_000), (0, 1_460));
    assert_eq!(through(true, 1_200, 600, 30_000), (5, 536));
}

#[test]
fn small_segments_that_vanish_do_not_shrink_the_others() {
    let mut bench = Bench::modern();
    bench.push(300);
    for _ in 0..8 {
        bench.drain(&PLAIN);
        bench.expire(TimerKind::Retransmit);
    }
    assert_eq!(bench.tcb().mss, MSS);
    bench.finish();
}
