//! One connection against hand-made segments.

use super::*;
use crate::device_ring::{Consumer, Producer, ring};
use crate::generator::link::Counters;
use crate::generator::packets::{Pattern, Upper, parse_reply};

struct Bench {
    shape: Shape,
    pattern: Pattern,
    counters: Counters,
    tx: Producer,
    rx: Consumer,
    now_ms: u64,
    flow: Flow,
}

/// What the connection sent.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    seq: u32,
    ack: u32,
    flags: u8,
    payload: Vec<u8>,
}

const PEER_ISS: u32 = u32::MAX - 2;

impl Bench {
    fn new() -> Self {
        let pattern = Pattern::new();
        let sums = PayloadSums::new(&pattern, 100);
        let shape =
            Shape { worker: 0, component: 0, target_port: 443, mss: [1460, 1440], segment: 100, sums, resets: false };
        let (tx, rx) = ring(1 << 16);
        Self { shape, pattern, counters: Counters::default(), tx, rx, now_ms: 10, flow: Flow::new(false, false) }
    }

    /// A bench whose connection is established with this window.
    fn established(window: u16) -> Self {
        let mut bench = Self::new();
        bench.act(|flow, shape, link| assert!(flow.open(shape, link, 1, 5000, 1000)));
        assert_eq!(bench.take()[0].flags, flag::SYN);
        let syn_ack = Segment {
            seq: PEER_ISS,
            ack: 1001,
            flags: flag::SYN | flag::ACK,
            window,
            mss: Some(1460),
            ..Segment::default()
        };
        assert_eq!(bench.receive(syn_ack, b""), (Event::Opened, true));
        assert_eq!(bench.acknowledge(), Some(Event::None));
        assert_eq!(
            bench.take(),
            [Sent { seq: 1001, ack: PEER_ISS.wrapping_add(1), flags: flag::ACK, payload: vec![] }]
        );
        bench
    }

    /// Where in the pattern the flow's bytes begin.
    fn start(&self) -> u64 {
        self.flow.ends(&self.shape).key() % PERIOD as u64
    }

    fn act<T>(&mut self, action: impl FnOnce(&mut Flow, &Shape, &mut Link<'_>) -> T) -> T {
        let mut link = Link {
            ring: &mut self.tx,
            now_ns: self.now_ms * 1_000_000,
            due_ns: 0,
            pattern: &self.pattern,
            counters: &mut self.counters,
        };
        action(&mut self.flow, &self.shape, &mut link)
    }

    fn receive(&mut self, segment: Segment, payload: &[u8]) -> (Event, bool) {
        self.act(|flow, shape, link| flow.handle(shape, link, &segment, payload))
    }

    fn acknowledge(&mut self) -> Option<Event> {
        self.act(super::Flow::acknowledge)
    }

    /// Packets sent since the last call; each is checked to be for the target.
    fn take(&mut self) -> Vec<Sent> {
        self.tx.publish();
        let mut sent = Vec::new();
        while let Some(record) = self.rx.pop() {
            let mut reply = record.bytes.to_vec();
            // Exchange the addresses, so that the reader of replies can read it.
            let (source, target) = reply[12..20].split_at_mut(4);
            source.swap_with_slice(target);
            let Upper::Tcp(segment, payload) = parse_reply(&reply, 0).unwrap().upper else { panic!("not TCP") };
            let Segment { seq, ack, flags, .. } = segment;
            sent.push(Sent { seq, ack, flags, payload: payload.to_vec() });
        }
        self.rx.release();
        sent
    }

    fn ack(ack: u32, window: u16) -> Segment {
        Segment { seq: PEER_ISS.wrapping_add(1), ack, flags: flag::ACK, window, ..Segment::default() }
    }
}

#[test]
fn sends_within_the_window_only() {
    let mut bench = Bench::established(250);
    for expected in [true, true, false] {
        assert_eq!(bench.flow.has_window(100), expected);
        if expected {
            assert!(bench.act(|flow, shape, link| flow.send(shape, link, 100)));
        }
    }
    let sent = bench.take();
    assert_eq!(sent.iter().map(|s| s.seq).collect::<Vec<_>>(), [1001, 1101]);
    assert_eq!(sent[1].payload, bench.pattern.at(bench.start() + 100, 100));
    bench.receive(Bench::ack(1201, 250), b"");
    assert!(bench.flow.is_idle() && bench.flow.has_window(100));
    assert_eq!(bench.counters.payload, 200);
}

#[test]
fn three_duplicate_acknowledgements_send_again_at_once() {
    let mut bench = Bench::established(1000);
    bench.act(|flow, shape, link| flow.send(shape, link, 100) && flow.send(shape, link, 100));
    bench.take();
    bench.receive(Bench::ack(1001, 1000), b"");
    bench.receive(Bench::ack(1001, 1000), b"");
    assert_eq!(bench.take(), []);
    bench.receive(Bench::ack(1001, 1000), b"");
    let sent = bench.take();
    assert_eq!((sent.len(), sent[0].seq, sent[0].payload.len()), (1, 1001, 100));
}

#[test]
fn silence_sends_again_with_back_off_and_gives_up() {
    let mut bench = Bench::established(1000);
    bench.act(|flow, shape, link| flow.send(shape, link, 100));
    bench.take();
    let mut at = Vec::new();
    let mut event = Event::None;
    while event == Event::None {
        bench.now_ms += 10;
        event = bench.act(super::Flow::check_timer);
        if bench.take().iter().any(|s| s.flags & flag::RST == 0) {
            at.push(bench.now_ms);
        }
    }
    assert_eq!((event, at.len()), (Event::Aborted, usize::from(RETRY_LIMIT)));
    assert_eq!(at[1] - at[0], 2 * u64::from(RTO_MS));
    assert_eq!(bench.flow.state(), State::Closed);
}

#[test]
fn overtaken_segments_arrive_late_and_are_not_retransmissions() {
    let mut bench = Bench::established(1000);
    bench.act(|flow, shape, link| {
        assert!(flow.send_ahead(shape, link, 100, 2) && flow.held() == Some(1));
        assert!(flow.send(shape, link, 100) && flow.held() == Some(0));
    });
    for _ in 0..5 {
        bench.receive(Bench::ack(1001, 1000), b"");
    }
    assert_eq!(bench.take().iter().map(|s| s.seq).collect::<Vec<_>>(), [1101, 1201]);
    assert!(bench.act(super::Flow::send_held));
    assert_eq!(bench.take()[0].seq, 1001);
    // Duplicates that were on their way when it was sent mean nothing either.
    for _ in 0..5 {
        bench.receive(Bench::ack(1001, 1000), b"");
    }
    assert_eq!(bench.take(), []);
    bench.receive(Bench::ack(1301, 1000), b"");
    assert!(bench.flow.is_idle());
    assert_eq!((bench.counters.payload, bench.counters.retransmits), (300, 0));
}

#[test]
fn data_is_acknowledged_once_a_batch_and_checked() {
    let mut bench = Bench::established(1000);
    let good = bench.pattern.at(bench.start(), 50).to_vec();
    let segment = Bench::ack(1001, 1000);
    assert_eq!(bench.receive(segment, &good), (Event::None, true));
    let next = Segment { seq: segment.seq.wrapping_add(50), ..segment };
    let more = bench.pattern.at(bench.start() + 50, 9).to_vec();
    assert_eq!(bench.receive(next, &more), (Event::None, false), "listed already");
    bench.acknowledge();
    assert_eq!(bench.take()[0].ack, PEER_ISS.wrapping_add(60));
    assert_eq!(bench.counters.corrupt, 0);
    let next = Segment { seq: segment.seq.wrapping_add(59), ..segment };
    bench.receive(next, b"wrong");
    assert_eq!((bench.counters.corrupt, bench.counters.damage.corrupted), (1, 5));
    bench.receive(segment, &good);
    assert_eq!((bench.counters.repeated, bench.counters.gaps, bench.counters.payload_received), (1, 0, 64));
    bench.receive(Segment { seq: segment.seq.wrapping_add(500), ..segment }, &good);
    assert_eq!((bench.counters.repeated, bench.counters.gaps), (1, 1));
}

#[test]
fn closes_in_both_orders() {
    // This side first.
    let mut bench = Bench::established(1000);
    assert!(bench.act(super::Flow::finish));
    assert_eq!(bench.receive(Bench::ack(1002, 1000), b""), (Event::None, false));
    let fin = Segment { flags: flag::FIN | flag::ACK, ..Bench::ack(1002, 1000) };
    assert_eq!(bench.receive(fin, b""), (Event::None, true));
    assert_eq!(bench.acknowledge(), Some(Event::Closed));
    // The peer first.
    let mut bench = Bench::established(1000);
    let fin = Segment { flags: flag::FIN | flag::ACK, ..Bench::ack(1001, 1000) };
    assert_eq!(bench.receive(fin, b""), (Event::None, true));
    assert_eq!(bench.acknowledge(), Some(Event::None));
    assert!(bench.act(super::Flow::finish));
    let last = Segment { seq: PEER_ISS.wrapping_add(2), ..Bench::ack(1002, 1000) };
    assert_eq!(bench.receive(last, b""), (Event::Closed, false));
}

#[test]
fn resets_need_the_exact_sequence_number() {
    let mut bench = Bench::established(1000);
    let blind = Segment { seq: PEER_ISS.wrapping_add(9), flags: flag::RST, ..Segment::default() };
    assert_eq!(bench.receive(blind, b""), (Event::None, true));
    let exact = Segment { seq: PEER_ISS.wrapping_add(1), flags: flag::RST, ..Segment::default() };
    assert_eq!(bench.receive(exact, b"").0, Event::Aborted);
}

#[test]
fn a_refused_connect_is_told_from_an_answer_to_something_else() {
    let mut bench = Bench::new();
    bench.act(|flow, shape, link| flow.open(shape, link, 1, 5000, 1000));
    let stale = Segment { ack: 77, flags: flag::RST | flag::ACK, ..Segment::default() };
    assert_eq!(bench.receive(stale, b"").0, Event::None);
    let refusal = Segment { ack: 1001, flags: flag::RST | flag::ACK, ..Segment::default() };
    assert_eq!(bench.receive(refusal, b"").0, Event::Refused);
    bench.act(|flow, shape, link| flow.open(shape, link, 1, 5000, 1000));
    assert_eq!(bench.flow.handle_unreachable(), Event::Refused);
}

#[test]
fn a_full_ring_changes_nothing() {
    let mut bench = Bench::established(60_000);
    while bench.tx.push(&[0; 1000], 0, 0) {}
    while bench.tx.push(&[0; 8], 0, 0) {}
    let before = format!("{:?}", bench.flow);
    bench.act(|flow, shape, link| {
        assert!(!flow.send(shape, link, 100) && !flow.finish(shape, link) && !flow.reset(shape, link));
        assert!(!flow.send_ahead(shape, link, 100, 1) && !flow.send_overlap(shape, link, 100, 50));
        assert_eq!(flow.send_fragmented(shape, link, 100, 1, false, &mut Vec::new()), Some(0));
    });
    assert_eq!(format!("{:?}", bench.flow), before);
}
