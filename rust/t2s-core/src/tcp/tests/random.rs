//! Random segments, reads, writes and waits in every state; and the fast path beside the general one.

use proptest::prelude::*;

use super::*;

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
        let mut bench = Bench::new(TcpConfig { syn_ack: SynAck::Immediate, ..config }, Options::NONE);
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
