//! One flow in hand: rules of the RFCs one by one, and random segments in every state.
//!
//! The other end is the test itself. What only shows over a whole connection (delivery under loss) is tested against
//! smoltcp, in `tests/tcp_smoltcp.rs`.

use proptest::prelude::*;

use super::*;
use crate::buf::{Pool, PoolConfig};
use crate::config::AcceptMode;
use crate::stats::DropReason;
use crate::time::{MILLIS, SECONDS};
use crate::wire::tcp::{Flags, Options, SackBlocks, Tcp};

/// Payload of a packet in most tests; the device's MSS has room for timestamps beside it.
const MSS: u16 = 1_000;
const ISS: SeqNumber = SeqNumber(0xffff_fe00);
const IRS: SeqNumber = SeqNumber(0x7fff_ff00);
const LIMITS: SegmentLimits = SegmentLimits { mss: MSS + 12, tso_max: 60_000, slices: 16 };
const PLAIN: SegmentLimits = SegmentLimits { mss: MSS + 12, tso_max: 0, slices: 16 };

/// A worker with one flow.
struct Bench {
    now: Instant,
    config: TcpConfig,
    stream: StreamLimits,
    pool: Pool,
    cache: PoolCache,
    budget: Budget,
    memory: BufferBudget,
    counts: DropCounts,
    stats: TcpStats,
    tcb: Option<Tcb>,
    options: Options,
}

macro_rules! with {
    ($bench:expr, $tcb:ident, $ctx:ident => $body:expr) => {{
        let mut $tcb = $bench.tcb.take().expect("a flow");
        let $ctx = &mut Ctx {
            now: $bench.now,
            config: &$bench.config,
            stream: &$bench.stream,
            mode: ReassemblyMode::Bounded,
            pool: &mut $bench.cache,
            budget: &mut $bench.budget,
            memory: &mut $bench.memory,
            counts: &mut $bench.counts,
            tcp: &mut $bench.stats,
        };
        let result = $body;
        $bench.tcb = Some($tcb);
        result
    }};
}

impl Bench {
    /// A flow in `SynPending` or, with `AcceptMode::Early`, `SynReceived`.
    fn new(config: TcpConfig, options: Options) -> Self {
        let pool = Pool::new(PoolConfig::default());
        let cache = pool.cache();
        let stream = StreamLimits { flow_bytes: 64 * 1024, flow_segments: 64, total_bytes: 1 << 20 };
        let mut bench = Self {
            now: Instant::from_millis(5_000),
            config,
            stream,
            pool,
            cache,
            budget: Budget::new(1 << 20),
            memory: BufferBudget::new(64 << 20),
            counts: DropCounts::default(),
            stats: TcpStats::default(),
            tcb: None,
            options,
        };
        let syn = Tcp { seq: IRS, ack: SeqNumber(0), ..bench.header(Flags::SYN, 0, 0, 65_000) };
        let tcb = Tcb::accept(
            &mut Ctx {
                now: bench.now,
                config: &bench.config,
                stream: &bench.stream,
                mode: ReassemblyMode::Bounded,
                pool: &mut bench.cache,
                budget: &mut bench.budget,
                memory: &mut bench.memory,
                counts: &mut bench.counts,
                tcp: &mut bench.stats,
            },
            &syn,
            ISS,
            MSS + 12,
        );
        bench.tcb = Some(tcb);
        bench
    }

    fn established(config: TcpConfig, options: Options) -> Self {
        let mut bench = Self::new(config, options);
        assert_eq!(bench.events(), Events::CONNECT_WANTED);
        with!(bench, tcb, ctx => tcb.connected(ctx));
        let syn_ack = bench.poll(&LIMITS).expect("SYN-ACK");
        assert_eq!(syn_ack.repr.flags, Flags::SYN | Flags::ACK);
        assert_eq!((syn_ack.repr.seq, syn_ack.repr.ack), (ISS, IRS + 1));
        assert!(bench.poll(&LIMITS).is_none());
        bench.receive(Flags::ACK, 0, 0, 65_000, &[]);
        assert_eq!(bench.tcb().state(), State::Established);
        assert_eq!(bench.events(), Events::ESTABLISHED);
        bench
    }

    /// Established, with scaling by 7, SACK and timestamps.
    fn modern() -> Self {
        let options = Options {
            mss: Some(MSS + 12),
            window_scale: Some(7),
            sack_permitted: true,
            timestamp: Some((1, 0)),
            sack: SackBlocks::EMPTY,
        };
        let mut bench = Self::new(TcpConfig::default(), options);
        let _ = bench.events();
        with!(bench, tcb, ctx => tcb.connected(ctx));
        assert!(bench.poll(&LIMITS).is_some());
        bench.receive(Flags::ACK, 0, 0, 1_000, &[]);
        let _ = bench.events();
        bench
    }

    fn tcb(&self) -> &Tcb {
        self.tcb.as_ref().expect("a flow")
    }

    fn room(&mut self) -> usize {
        self.tcb.as_mut().expect("a flow").upstream_room(&self.config, &self.memory)
    }

    fn events(&mut self) -> Events {
        self.tcb.as_mut().expect("a flow").take_events()
    }

    /// A header of the client; `seq` and `ack` count from the first byte after the SYNs.
    fn header(&self, flags: Flags, seq: u32, ack: u32, window: u16) -> Tcp {
        let mut options = self.options;
        if !flags.syn() {
            options = Options { timestamp: options.timestamp, ..Options::NONE };
        }
        Tcp { src_port: 1, dst_port: 2, seq: IRS + 1 + seq, ack: ISS + 1 + ack, flags, window, header_len: 20, options }
    }

    fn receive(&mut self, flags: Flags, seq: u32, ack: u32, window: u16, payload: &[u8]) {
        let header = self.header(flags, seq, ack, window);
        self.receive_header(&header, payload);
    }

    fn receive_header(&mut self, header: &Tcp, payload: &[u8]) {
        let buf = self.cache.alloc_copy(payload, 64).expect("room");
        with!(self, tcb, ctx => tcb.handle_segment(ctx, header, buf));
    }

    fn sack(&mut self, ack: u32, blocks: &[(u32, u32)]) {
        let mut header = self.header(Flags::ACK, 0, ack, 1_000);
        header.options.sack = blocks.iter().map(|&(left, right)| (ISS + 1 + left, ISS + 1 + right)).collect();
        self.receive_header(&header, &[]);
    }

    fn poll(&mut self, limits: &SegmentLimits) -> Option<OutSegment> {
        with!(self, tcb, ctx => tcb.poll_segment(ctx, limits))
    }

    fn drain(&mut self, limits: &SegmentLimits) -> Vec<OutSegment> {
        std::iter::from_fn(|| self.poll(limits)).take(1_000).collect()
    }

    fn push(&mut self, len: usize) {
        let buf = self.cache.alloc_copy(&vec![7; len], 0).expect("room");
        with!(self, tcb, ctx => tcb.push(ctx, buf));
    }

    fn wait(&mut self, nanos: u64) {
        self.now = self.now.plus(nanos);
        with!(self, tcb, ctx => tcb.handle_timeout(ctx));
    }

    /// Waits for the deadline, which must be of this kind.
    fn expire(&mut self, kind: TimerKind) {
        let (at, found) = self.tcb().deadline().expect("a timer");
        assert_eq!(found, kind);
        self.wait(at.since(self.now));
    }

    /// Releases the flow; nothing may be left.
    fn finish(mut self) {
        let tcb = self.tcb.take().expect("a flow");
        tcb.release(&mut self.cache, &mut self.budget, &mut self.memory);
        self.cache.flush();
        assert_eq!(self.pool.stats().buffers_live, 0, "buffers left");
        assert_eq!(self.memory.used(), 0, "bytes left in the budget");
        assert_eq!(self.budget.used(), 0, "out-of-order bytes left in the budget");
    }
}

#[test]
fn stays_small() {
    assert!(size_of::<Tcb>() <= 400, "{} bytes", size_of::<Tcb>());
    assert!(size_of::<OutSegment>() <= 128, "{} bytes", size_of::<OutSegment>());
}

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
        (AcceptMode::Deferred, Refusal::Reset, 1),
        (AcceptMode::Deferred, Refusal::Silent, 0),
        (AcceptMode::Early, Refusal::Silent, 1),
    ] {
        let mut bench = Bench::new(TcpConfig { accept: mode, ..TcpConfig::default() }, Options::NONE);
        if mode == AcceptMode::Early {
            assert!(bench.poll(&LIMITS).is_some_and(|segment| segment.repr.flags.syn()));
        }
        let _ = bench.events();
        with!(bench, tcb, ctx => tcb.refused(ctx, how));
        let out = bench.drain(&LIMITS);
        assert_eq!(out.len(), segments);
        if let Some(reset) = out.first() {
            assert_eq!(reset.repr.flags, Flags::RST | Flags::ACK);
            assert_eq!(reset.repr.ack, IRS + 1);
            let seq = if mode == AcceptMode::Early { ISS + 1 } else { SeqNumber(0) };
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
    assert!(bench.tcb().deadline().is_none());
    with!(bench, tcb, ctx => tcb.consume(ctx, 10));
    assert_eq!(bench.events(), Events::CLOSED);
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

/// What the random tests do to a flow.
#[derive(Clone, Debug)]
enum Step {
    Segment { flags: u8, seq: i32, ack: i32, window: u16, len: usize, timestamp: Option<i32>, sack: Vec<(i32, i32)> },
    Poll { tso: bool },
    Wait(u64),
    Push(usize),
    Consume(usize),
    Connected,
    Eof,
    ReaderGone,
    Abort,
    Refused,
}

fn near() -> impl Strategy<Value = i32> {
    prop_oneof![6 => Just(0), 4 => -3..3, 4 => -3_000..70_000, 1 => any::<i32>()]
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![
        12 => Just(Flags::ACK.0),
        2 => Just(Flags::ACK.0 | Flags::FIN.0),
        1 => Just(Flags::RST.0),
        1 => Just(Flags::SYN.0),
        1 => any::<u8>()
    ];
    let segment = (
        flags,
        near(),
        near(),
        prop_oneof![Just(0), any::<u16>()],
        prop_oneof![Just(0), 1..2_000_usize, 1..60_000_usize],
        prop::option::of(near()),
        prop::collection::vec((near(), near()), 0..4),
    )
        .prop_map(|(flags, seq, ack, window, len, timestamp, sack)| Step::Segment {
            flags,
            seq,
            ack,
            window,
            len,
            timestamp,
            sack,
        });
    prop_oneof![
        20 => segment,
        8 => any::<bool>().prop_map(|tso| Step::Poll { tso }),
        3 => prop_oneof![0..MILLIS, 0..SECONDS, 0..100 * SECONDS].prop_map(Step::Wait),
        5 => (1..60_000_usize).prop_map(Step::Push),
        5 => (0..60_000_usize).prop_map(Step::Consume),
        2 => Just(Step::Connected),
        1 => Just(Step::Eof),
        1 => prop_oneof![Just(Step::ReaderGone), Just(Step::Abort), Just(Step::Refused)],
    ]
}

/// Applies a step; sequence numbers are relative to what the flow expects, so that many of them are acceptable.
fn apply(bench: &mut Bench, step: &Step) {
    match step {
        Step::Segment { flags, seq, ack, window, len, timestamp, sack } => {
            let tcb = bench.tcb();
            let flight = tcb.flight();
            let acked = if *ack == 0 { flight } else { *ack as u32 };
            let una = tcb.snd_una;
            let mut options = Options::NONE;
            options.timestamp = timestamp.map(|delta| (tcb.ts_recent.wrapping_add(delta as u32), 0));
            for (left, right) in sack {
                options.sack.push(una + *left as u32, una + *right as u32);
            }
            let header = Tcp {
                src_port: 1,
                dst_port: 2,
                seq: tcb.rcv_nxt + *seq as u32,
                ack: una + acked,
                flags: Flags(*flags),
                window: *window,
                header_len: 20,
                options,
            };
            let payload: Vec<u8> = (0..*len).map(|at| header.seq.0.wrapping_add(at as u32) as u8).collect();
            bench.receive_header(&header, &payload);
        }
        Step::Poll { tso } => {
            let limits = if *tso { LIMITS } else { PLAIN };
            let mut count = 0;
            while let Some(segment) = bench.poll(&limits) {
                count += 1;
                assert!(count < 1_000, "endless output");
                let most = if *tso { limits.tso_max } else { usize::from(MSS) };
                assert!(segment.payload_len <= most);
                let tcb = bench.tcb();
                let bytes: usize = tcb.payload(segment.payload_offset, segment.payload_len).map(<[u8]>::len).sum();
                assert_eq!(bytes, segment.payload_len, "the payload is there");
            }
        }
        Step::Wait(nanos) => {
            bench.wait(*nanos);
            let now = bench.now;
            assert!(bench.tcb().deadline().is_none_or(|(at, _)| at > now), "a due timer stays due");
        }
        Step::Push(len) => bench.push(*len),
        Step::Consume(len) => with!(bench, tcb, ctx => tcb.consume(ctx, *len)),
        Step::Connected => with!(bench, tcb, ctx => tcb.connected(ctx)),
        Step::Eof => with!(bench, tcb, ctx => tcb.upstream_eof(ctx)),
        Step::ReaderGone => with!(bench, tcb, ctx => tcb.reader_gone(ctx)),
        Step::Abort => with!(bench, tcb, ctx => tcb.abort(ctx)),
        Step::Refused => with!(bench, tcb, ctx => tcb.refused(ctx, Refusal::Reset)),
    }
}

/// A flow led to each state by the shortest way.
fn lead_to(state: State, modern: bool) -> Bench {
    let config = TcpConfig { send_buffer_min: 20_000, recv_window_min: 30_000, ..TcpConfig::default() };
    if state == State::SynPending {
        return Bench::new(config, Options::NONE);
    }
    if state == State::SynReceived {
        let mut bench = Bench::new(TcpConfig { accept: AcceptMode::Early, ..config }, Options::NONE);
        bench.drain(&LIMITS);
        return bench;
    }
    let mut bench = if modern { Bench::modern() } else { Bench::established(config, Options::NONE) };
    let fin = Flags::ACK | Flags::FIN;
    match state {
        State::SynPending | State::SynReceived | State::Established => {}
        State::CloseWait => bench.receive(fin, 0, 0, 1_000, &[]),
        State::FinWait1 | State::FinWait2 | State::Closing | State::TimeWait => {
            with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
            bench.drain(&LIMITS);
            if state == State::Closing {
                bench.receive(fin, 0, 0, 1_000, &[]);
            }
            if matches!(state, State::FinWait2 | State::TimeWait) {
                bench.receive(Flags::ACK, 0, 1, 1_000, &[]);
            }
            if state == State::TimeWait {
                bench.receive(fin, 0, 1, 1_000, &[]);
            }
        }
        State::LastAck => {
            bench.receive(fin, 0, 0, 1_000, &[]);
            with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
        }
        State::Closed => with!(bench, tcb, ctx => tcb.abort(ctx)),
    }
    assert_eq!(bench.tcb().state(), state);
    bench
}

const STATES: [State; 10] = [
    State::SynPending,
    State::SynReceived,
    State::Established,
    State::CloseWait,
    State::FinWait1,
    State::FinWait2,
    State::Closing,
    State::LastAck,
    State::TimeWait,
    State::Closed,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever the client and the upstream do, in whatever state: no panic, no broken invariant (`debug_assert`), no
    /// endless output, no timer that stays due, and nothing left behind.
    #[test]
    fn random_steps_break_nothing(
        modern in any::<bool>(),
        state in prop::sample::select(&STATES[..]),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut bench = lead_to(state, modern);
        let mut closed = 0;
        for step in &steps {
            apply(&mut bench, step);
            closed += u32::from(bench.events().contains(Events::CLOSED));
        }
        prop_assert!(closed <= 1, "closed is told once");
        bench.finish();
    }

    /// The fast path and the general path agree, segment by segment.
    #[test]
    fn prediction_changes_nothing(steps in prop::collection::vec(step(), 1..60)) {
        let mut fast = lead_to(State::Established, true);
        let mut slow = lead_to(State::Established, true);
        for step in &steps {
            apply(&mut fast, step);
            slow.tcb.as_mut().expect("a flow").forced_slow = true;
            apply(&mut slow, step);
            let (a, b) = (fast.tcb(), slow.tcb());
            prop_assert_eq!(a.state, b.state);
            prop_assert_eq!(a.owed, b.owed);
            prop_assert_eq!((a.rcv_nxt, a.rcv_adv, a.ts_recent), (b.rcv_nxt, b.rcv_adv, b.ts_recent));
            prop_assert_eq!((a.snd_una, a.snd_nxt, a.snd_wnd), (b.snd_una, b.snd_nxt, b.snd_wnd));
            prop_assert_eq!((a.rto_at, a.ack_at, a.slow_at), (b.rto_at, b.ack_at, b.slow_at));
            prop_assert_eq!(a.cc.window(), b.cc.window());
            prop_assert_eq!((a.facts, a.recovery, a.duplicate_acks), (b.facts, b.recovery, b.duplicate_acks));
            prop_assert!(a.readable().flatten().eq(b.readable().flatten()));
            prop_assert_eq!(fast.events(), slow.events());
        }
        prop_assert_eq!(slow.stats.predicted, 0);
        fast.finish();
        slow.finish();
    }
}
