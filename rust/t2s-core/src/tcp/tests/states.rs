//! Each state by each kind of segment, against RFC 9293, section 3.10.7.4, with RFC 5961 and RFC 7323, written down
//! anew.
//!
//! For each cell: what is answered within 100 ms, the state afterwards, the bytes that were taken; and a segment that
//! the RFCs discard must have left nothing behind.

use super::*;

const STATES: [State; 8] = [
    State::SynReceived,
    State::Established,
    State::CloseWait,
    State::FinWait1,
    State::FinWait2,
    State::Closing,
    State::LastAck,
    State::TimeWait,
];

/// Flags and bytes of payload. SYN with FIN or RST never gets this far (`wire::Tcp`).
const KINDS: [(Flags, u32); 12] = [
    (Flags::SYN, 0),
    (Flags::SYN.with(Flags::ACK), 0),
    (Flags::ACK, 0),
    (Flags::ACK.with(Flags::PSH), 10),
    (Flags::ACK.with(Flags::FIN), 0),
    (Flags::ACK.with(Flags::FIN), 10),
    (Flags::RST, 0),
    (Flags::RST.with(Flags::ACK), 0),
    (Flags::RST.with(Flags::ACK).with(Flags::FIN), 0),
    (Flags::PSH, 0),
    (Flags::PSH, 10),
    (Flags::FIN, 0),
];

/// A segment, relative to what the flow has: its first byte to RCV.NXT, its acknowledgement to SND.NXT, its timestamp
/// to TS.Recent (`None`: without the option).
#[derive(Clone, Copy, Debug)]
struct Segment {
    flags: Flags,
    len: u32,
    seq: i32,
    ack: i32,
    timestamp: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// `<SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>`
    Ack,
    /// `<SEQ=SEG.ACK><CTL=RST>`
    Reset,
    SynAck,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outcome {
    answer: Option<Answer>,
    state: State,
    /// Bytes of payload that went into the stream.
    taken: u32,
    /// Nothing of the segment may be left.
    discarded: bool,
}

/// What of the flow the rules look at.
#[derive(Clone, Copy, Debug)]
struct Facts {
    state: State,
    /// RCV.WND, bytes.
    window: i64,
    /// SND.NXT - SND.UNA.
    flight: i32,
    /// The largest window that the client ever offered (MAX.SND.WND of RFC 5961, section 5.2).
    max_window: i64,
    timestamps: bool,
}

/// The rules, in the order of the text.
fn by_the_rfcs(facts: Facts, seg: Segment) -> Outcome {
    let Facts { state, window, flight, max_window, timestamps } = facts;
    let (syn, fin, rst, ack) = (seg.flags.syn(), seg.flags.fin(), seg.flags.rst(), seg.flags.ack());
    let discard = |answer| Outcome { answer, state, taken: 0, discarded: true };
    let opening = state == State::SynReceived;
    // A repeated SYN is not in the window, and is what the SYN-ACK answers.
    if opening && syn && !ack && seg.seq == -1 {
        return discard(Some(Answer::SynAck));
    }
    let (first, len) = (i64::from(seg.seq), i64::from(seg.len) + i64::from(syn) + i64::from(fin));
    // RFC 5961, section 3.2.
    if rst {
        return match first {
            0 => Outcome { answer: None, state: State::Closed, taken: 0, discarded: false },
            _ if first > 0 && first < window => discard(Some(Answer::Ack)),
            _ => discard(None),
        };
    }
    // RFC 7323, section 5.3, R1; TS.Recent is not old here.
    if timestamps && seg.timestamp.is_some_and(|value| value < 0) {
        return discard(Some(Answer::Ack));
    }
    // First check. Beyond the text: an acknowledgement without data at the right edge of the window is taken, since
    // that is where a client stands that has filled it.
    let inside = |at: i64| at >= 0 && at < window;
    let acceptable = if len == 0 {
        inside(first) || first == window
    } else {
        inside(first) || inside(first + len - 1) || (first < 0 && first + len > window)
    };
    if !acceptable {
        // A keepalive probe shows that the client lives (RFC 1122, section 4.2.3.6), and a repeated FIN that it has not
        // got our last acknowledgement: 2 MSL start anew (TIME-WAIT, eighth check).
        let is_probe = len == 0 && first == -1;
        let is_last_fin = state == State::TimeWait && fin && first + len == 0;
        let counts = !opening && !syn && ack && seg.ack == 0 && (is_probe || is_last_fin);
        return Outcome { discarded: !counts, ..discard(Some(Answer::Ack)) };
    }
    // Fourth check: SYN.
    if syn && opening {
        return Outcome { answer: None, state: State::Closed, taken: 0, discarded: false };
    }
    if syn {
        return discard(Some(Answer::Ack));
    }
    // Fifth check: ACK.
    if !ack {
        return discard(None);
    }
    if opening && (seg.ack > 0 || seg.ack <= -flight) {
        return discard(Some(Answer::Reset));
    }
    if seg.ack > 0 || i64::from(seg.ack) < -i64::from(flight) - max_window {
        return discard(Some(Answer::Ack));
    }
    let state = match state {
        State::SynReceived => State::Established,
        State::FinWait1 if seg.ack == 0 => State::FinWait2,
        State::Closing if seg.ack == 0 => State::TimeWait,
        State::LastAck if seg.ack == 0 => State::Closed,
        state => state,
    };
    // Seventh and eighth check: text and FIN.
    let receives = matches!(state, State::Established | State::FinWait1 | State::FinWait2);
    if !receives || len == 0 {
        return Outcome { answer: None, state, taken: 0, discarded: false };
    }
    let in_order = first <= 0;
    let taken = if in_order { (first + i64::from(seg.len)).max(0) as u32 } else { 0 };
    let state = match state {
        State::Established if fin && in_order => State::CloseWait,
        State::FinWait1 if fin && in_order => State::Closing,
        State::FinWait2 if fin && in_order => State::TimeWait,
        state => state,
    };
    Outcome { answer: Some(Answer::Ack), state, taken, discarded: false }
}

/// A flow in `state`; both directions have carried bytes, unless it is opening.
fn flow_in(state: State, timestamps: bool) -> Bench {
    let options = if timestamps {
        Options {
            mss: Some(1_000),
            window_scale: Some(7),
            sack_permitted: true,
            timestamp: Some((1, 0)),
            ..Options::NONE
        }
    } else {
        Options { mss: Some(1_000), ..Options::NONE }
    };
    if state == State::SynReceived {
        let mut bench = Bench::new(TcpConfig::default(), options);
        with!(bench, tcb, ctx => tcb.connected(ctx));
        assert!(bench.poll(&LIMITS).is_some());
        return bench;
    }
    let mut bench = Bench::established(TcpConfig::default(), options);
    let window = 1_000;
    bench.receive(Flags::ACK, 0, 0, window, &[1; 5]);
    with!(bench, tcb, ctx => tcb.consume(ctx, 5));
    bench.push(50);
    bench.drain(&LIMITS);
    bench.receive(Flags::ACK, 5, 50, window, &[]);
    let client_fin = |bench: &mut Bench, ack: u32| {
        bench.receive(Flags::ACK | Flags::FIN, 5, ack, window, &[]);
        bench.wait(50 * MILLIS);
    };
    let our_fin = |bench: &mut Bench| {
        with!(bench, tcb, ctx => tcb.upstream_eof(ctx));
        bench.drain(&LIMITS);
    };
    match state {
        State::CloseWait => client_fin(&mut bench, 50),
        State::LastAck => {
            client_fin(&mut bench, 50);
            our_fin(&mut bench);
        }
        State::FinWait1 => our_fin(&mut bench),
        State::FinWait2 => {
            our_fin(&mut bench);
            bench.receive(Flags::ACK, 5, 51, window, &[]);
        }
        State::Closing => {
            our_fin(&mut bench);
            client_fin(&mut bench, 50);
        }
        State::TimeWait => {
            our_fin(&mut bench);
            client_fin(&mut bench, 51);
        }
        _ => {}
    }
    bench.drain(&LIMITS);
    let _ = bench.events();
    assert_eq!(bench.tcb().state(), state);
    bench
}

/// What a discarded segment must not change.
fn trace(tcb: &Tcb) -> impl PartialEq + use<> {
    let sequence = (tcb.rcv_nxt, tcb.snd_una, tcb.snd_nxt, tcb.rexmit_nxt, tcb.recovery_point);
    let window = (tcb.snd_wnd, tcb.max_snd_wnd, tcb.snd_wl1, tcb.snd_wl2, tcb.duplicate_acks);
    // The SYN of a client that dials anew hastens the SYN-ACK; no other timer moves.
    let timer = if tcb.state == State::SynReceived { Instant::FAR } else { tcb.rto_at };
    let clock = (tcb.ts_recent, tcb.ts_recent_at, tcb.slow_at, timer, tcb.unanswered, tcb.last_received());
    (tcb.state, tcb.facts, tcb.readable_len(), tcb.out_of_order.is_some(), sequence, window, clock)
}

/// Feeds the segment; what came of it.
fn feed(bench: &mut Bench, seg: Segment) -> (Vec<Answer>, State, u32) {
    let tcb = bench.tcb();
    let options = Options {
        timestamp: seg.timestamp.map(|delta| (tcb.ts_recent.wrapping_add(delta as u32), 0)),
        ..Options::NONE
    };
    let header = Tcp {
        src_port: 1,
        dst_port: 2,
        seq: tcb.rcv_nxt + seg.seq as u32,
        ack: if seg.flags.ack() { tcb.snd_nxt + seg.ack as u32 } else { SeqNumber(0) },
        flags: seg.flags,
        window: 0,
        header_len: 20,
        options,
    };
    let (before, held) = (bench.tcb().rcv_nxt, bench.tcb().readable_len());
    bench.receive_header(&header, &vec![3; seg.len as usize]);
    let mut out = bench.drain(&LIMITS);
    bench.wait(100 * MILLIS);
    out.extend(bench.drain(&LIMITS));
    let tcb = bench.tcb();
    let answers = out.iter().map(|segment| {
        let repr = &segment.repr;
        match repr.flags {
            Flags::RST => {
                assert_eq!(repr.seq, header.ack);
                Answer::Reset
            }
            flags if flags.syn() => Answer::SynAck,
            flags => {
                assert_eq!((flags, repr.seq, repr.ack, segment.payload_len), (Flags::ACK, tcb.snd_nxt, tcb.rcv_nxt, 0));
                Answer::Ack
            }
        }
    });
    let taken = tcb.readable_len() - held;
    let fin = u32::from(tcb.rcv_nxt != before && tcb.fact(facts::FIN_SEEN) && tcb.fin_seq + 1 == tcb.rcv_nxt);
    assert_eq!((tcb.rcv_nxt - before) as u32, taken as u32 + fin, "RCV.NXT and the stream go together");
    (answers.collect(), tcb.state(), taken as u32)
}

#[test]
fn each_state_by_each_segment() {
    let (mut cells, mut wrong) = (0_u32, Vec::new());
    for timestamps in [false, true] {
        let stamps: &[Option<i32>] =
            if timestamps { &[Some(1), Some(0), Some(-10), None, Some(100_000)] } else { &[None] };
        for state in STATES {
            let probe = flow_in(state, timestamps);
            let tcb = probe.tcb();
            let facts = Facts {
                state,
                window: i64::from(tcb.rcv_adv - tcb.rcv_nxt),
                flight: tcb.flight() as i32,
                max_window: tcb.max_snd_wnd.into(),
                timestamps,
            };
            probe.finish();
            let edge = facts.window as i32;
            assert!(edge > 10_000, "{state:?}: {edge}");
            let seqs = [-1_000, -11, -10, -5, -1, 0, 5_000, edge - 1, edge, edge + 5_000, i32::MIN + 5, i32::MAX - 20];
            let oldest = -facts.flight - facts.max_window as i32;
            let acks = [0, -facts.flight, -facts.flight - 1, oldest, oldest - 1, 1, 100_000, i32::MIN + 5];
            for (flags, len) in KINDS {
                for seq in seqs {
                    let acks = if flags.ack() { &acks[..] } else { &acks[..1] };
                    for &ack in acks {
                        for &timestamp in stamps {
                            let seg = Segment { flags, len, seq, ack, timestamp };
                            let wanted = by_the_rfcs(facts, seg);
                            let mut bench = flow_in(state, timestamps);
                            let before = trace(bench.tcb());
                            let (answers, after, taken) = feed(&mut bench, seg);
                            let answer = answers.first().copied();
                            let found = Outcome { answer, state: after, taken, discarded: wanted.discarded };
                            let trace = wanted.discarded && trace(bench.tcb()) != before;
                            if found != wanted || answers.len() > 1 || trace {
                                wrong.push(format!(
                                    "{facts:?} {seg:?}: {answers:?} {found:?}, not {wanted:?}; trace: {trace}"
                                ));
                            }
                            bench.finish();
                            cells += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {cells} are off, such as\n{}",
        wrong.len(),
        wrong.iter().step_by(wrong.len() / 20 + 1).cloned().collect::<Vec<_>>().join("\n")
    );
    // 12 places of the segment, 7 kinds with 8 acknowledgements and 5 without, 1 and 5 timestamps.
    assert_eq!(cells, 8 * 12 * (7 * 8 + 5) * 6);
}
