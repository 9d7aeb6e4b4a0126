//! Loss, by what tells of it: SACK (RFC 6675), duplicates (RFC 6582), the timeout (RFC 6298); with the congestion
//! window that follows.

use super::*;

#[test]
fn sack_recovery_retransmits_what_is_missing() {
    let mut bench = Bench::modern();
    bench.push(10_000);
    assert_eq!(bench.drain(&PLAIN).len(), 10);
    bench.sack(1_000, &[(2_000, 3_000)]);
    bench.sack(1_000, &[(2_000, 4_000)]);
    assert!(bench.drain(&PLAIN).is_empty(), "not yet");
    bench.sack(1_000, &[(5_000, 6_000), (2_000, 4_000)]);
    let out = bench.drain(&PLAIN);
    assert_eq!(out[0].repr.seq, ISS + 1_001, "the first hole: 3 segments above it");
    assert_eq!(bench.stats.recoveries, 1);
    let holes: Vec<u32> = out.iter().map(|segment| (segment.repr.seq - (ISS + 1)) as u32).collect();
    assert!(holes.iter().all(|at| *at == 1_000 || *at == 4_000 || *at >= 6_000), "only what is missing: {holes:?}");
    bench.sack(10_000, &[]);
    assert_eq!(bench.tcb().recovery, Recovery::Open);
    assert!(bench.tcb().scoreboard.is_none(), "the board is given back");
    assert_eq!(bench.tcb().congestion_window(), 6_300, "0.7 of a flight of 9 segments (RFC 6675, section 5)");
    assert!(bench.drain(&PLAIN).is_empty());
    assert!(bench.tcb().deadline().is_none_or(|(_, kind)| kind == TimerKind::Keepalive));
    bench.finish();
}

#[test]
fn without_sack_three_duplicates_start_newreno_recovery() {
    let mut bench = Bench::established(TcpConfig::default(), Options { mss: Some(MSS), ..Options::NONE });
    bench.push(30_000);
    assert_eq!(bench.drain(&PLAIN).len(), 10);
    for _ in 0..2 {
        bench.receive(Flags::ACK, 0, 0, 65_000, &[]);
        assert_eq!(bench.drain(&PLAIN).len(), 1, "limited transmit (RFC 3042)");
    }
    bench.receive(Flags::ACK, 0, 0, 65_000, &[]);
    let out = bench.drain(&PLAIN);
    assert_eq!(out[0].repr.seq, ISS + 1, "fast retransmit");
    // A partial acknowledgement shows the next hole.
    bench.receive(Flags::ACK, 0, 3_000, 65_000, &[]);
    let out = bench.drain(&PLAIN);
    assert_eq!(out[0].repr.seq, ISS + 3_001);
    let all = (bench.tcb().snd_nxt - (ISS + 1)) as u32;
    bench.receive(Flags::ACK, 0, all, 65_000, &[]);
    assert_eq!(bench.tcb().recovery, Recovery::Open);
    assert_eq!(bench.stats.recoveries, 1);
    bench.finish();
}

#[test]
fn a_timeout_goes_back_and_doubles() {
    let mut bench = Bench::modern();
    bench.push(10_000);
    bench.drain(&PLAIN);
    let first = bench.tcb().deadline().expect("a timer").0.since(bench.now);
    bench.expire(TimerKind::Retransmit);
    assert_eq!(bench.tcb().congestion_window(), u32::from(MSS));
    let out = bench.drain(&PLAIN);
    assert_eq!((out.len(), out[0].repr.seq), (1, ISS + 1));
    let second = bench.tcb().deadline().expect("a timer").0.since(bench.now);
    assert_eq!(second, 2 * first);
    // Slow start over what is left of the flight.
    bench.receive(Flags::ACK, 0, 1_000, 1_000, &[]);
    assert_eq!(bench.drain(&PLAIN).len(), 2);
    bench.receive(Flags::ACK, 0, 10_000, 1_000, &[]);
    assert!(bench.drain(&PLAIN).is_empty());
    bench.finish();
}
