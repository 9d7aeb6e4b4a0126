//! Against a naive twin that keeps a map from byte to value, over any split, order, duplication and overlap.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::buf::{Pool, PoolCache, PoolConfig};

const LIMITS: StreamLimits = StreamLimits { flow_bytes: 100_000, flow_segments: 1_000, total_bytes: 100_000_000 };

fn cache() -> PoolCache {
    Pool::new(PoolConfig { ceiling_bytes: 64 << 20, ..PoolConfig::default() }).cache()
}

fn buf(pool: &mut PoolCache, bytes: &[u8]) -> Buf {
    pool.alloc_copy(bytes, 0).expect("the test's pool is large")
}

/// A queue with its pool, budget and stream position, offset by `isn`.
struct Bench {
    pool: PoolCache,
    budget: Budget,
    queue: StreamReassembler,
    limits: StreamLimits,
    mode: Reassembly,
    isn: SeqNumber,
    next: u32,
}

impl Bench {
    fn new(isn: u32, limits: StreamLimits) -> Self {
        Self {
            pool: cache(),
            budget: Budget::new(limits.total_bytes),
            queue: StreamReassembler::new(),
            limits,
            mode: Reassembly::Bounded,
            isn: SeqNumber(isn),
            next: 0,
        }
    }

    fn insert(&mut self, at: u32, bytes: &[u8]) -> Insert {
        let data = buf(&mut self.pool, bytes);
        let (next, seq) = (self.isn + self.next, self.isn + at);
        let insert = self.queue.insert(next, seq, data, &self.limits, self.mode, &mut self.budget);
        self.reclaim();
        self.check();
        insert
    }

    fn drain(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(data) = self.queue.pop(self.isn + self.next, &mut self.budget) {
            assert!(!data.is_empty(), "an empty segment");
            out.extend_from_slice(data.as_slice());
            self.next += data.len() as u32;
            self.pool.free(data);
            self.reclaim();
            self.check();
        }
        self.reclaim();
        out
    }

    fn reclaim(&mut self) {
        while let Some(data) = self.budget.reclaim() {
            self.pool.free(data);
        }
    }

    /// The invariants that the fields promise.
    fn check(&self) {
        let held: Vec<(i32, i32)> =
            self.queue.segments.iter().map(|s| (s.start - self.isn, s.end() - self.isn)).collect();
        assert!(held.iter().all(|(start, end)| start < end), "empty segment in {held:?}");
        assert!(held.windows(2).all(|pair| pair[0].1 <= pair[1].0), "overlap in {held:?}");
        assert_eq!(held.iter().map(|(start, end)| end - start).sum::<i32>() as u32, self.queue.held_bytes());
        assert_eq!(self.queue.segments.iter().map(|s| s.buf.capacity() as u64).sum::<u64>(), self.budget.used());
        let mut runs: Vec<(i32, i32)> = Vec::new();
        for &(start, end) in &held {
            match runs.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => runs.push((start, end)),
            }
        }
        let blocks: Vec<(i32, i32)> =
            self.queue.sack_blocks(4).map(|(left, right)| (left - self.isn, right - self.isn)).collect();
        assert_eq!(blocks.len(), runs.len().min(SACK_BLOCKS), "{blocks:?} of {runs:?}");
        for (index, block) in blocks.iter().enumerate() {
            assert!(runs.contains(block), "{block:?} is not a run of {runs:?}");
            assert!(!blocks[..index].contains(block), "{block:?} twice");
        }
        if self.mode == Reassembly::Bounded {
            assert!(self.queue.held_bytes() <= self.limits.flow_bytes);
            assert!(self.queue.segments() <= usize::from(self.limits.flow_segments));
            assert!(self.budget.used() <= self.budget.limit());
        }
    }
}

/// The byte that the stream has at `at`.
fn byte(at: u32) -> u8 {
    (at ^ (at >> 8)) as u8
}

fn stream(from: u32, len: u32) -> Vec<u8> {
    (from..from + len).map(byte).collect()
}

fn stored(insert: &Insert) -> Option<u32> {
    match insert {
        Insert::Stored { new_bytes } => Some(*new_bytes),
        Insert::Duplicate(_) | Insert::Refused(..) => None,
    }
}

#[test]
fn a_filled_hole_releases_what_waited() {
    let mut bench = Bench::new(u32::MAX - 5, LIMITS);
    assert_eq!(stored(&bench.insert(10, &stream(10, 10))), Some(10));
    assert_eq!(stored(&bench.insert(30, &stream(30, 10))), Some(10));
    assert_eq!(bench.drain(), Vec::<u8>::new());
    bench.next = 10;
    assert_eq!(bench.drain(), stream(10, 10));
    bench.next = 35;
    assert_eq!(bench.drain(), stream(35, 5));
    assert!(bench.queue.is_empty());
    assert_eq!((bench.budget.used(), bench.budget.total_in()), (0, 20));
}

#[test]
fn in_order_data_beyond_what_waited_discards_it() {
    let mut bench = Bench::new(0, LIMITS);
    assert_eq!(stored(&bench.insert(10, &stream(10, 10))), Some(10));
    bench.next = 25;
    assert_eq!(bench.drain(), Vec::<u8>::new());
    assert!(bench.queue.is_empty());
    assert_eq!(bench.queue.sack_blocks(4).count(), 0);
    assert_eq!(bench.budget.used(), 0);
}

#[test]
fn of_two_overlapping_segments_the_first_wins() {
    for (from, len) in [(0u32, 30u32), (5, 20), (5, 10), (12, 3), (15, 10), (10, 10), (10, 11), (9, 11), (9, 12)] {
        let mut bench = Bench::new(u32::MAX - 14, LIMITS);
        assert_eq!(stored(&bench.insert(10, &[1; 10])), Some(10));
        let new = (from..from + len).filter(|at| !(10..20).contains(at)).count() as u32;
        let insert = bench.insert(from, &vec![2; len as usize]);
        assert_eq!(stored(&insert).unwrap_or(0), new, "{from}+{len}");
        bench.next = from.min(10);
        let got = bench.drain();
        let end = (from + len).max(20);
        let want: Vec<u8> =
            (bench.next - got.len() as u32..end).map(|at| if (10..20).contains(&at) { 1 } else { 2 }).collect();
        assert_eq!(got, want, "{from}+{len}");
    }
}

#[test]
fn the_most_recent_block_comes_first() {
    let mut bench = Bench::new(7, LIMITS);
    let blocks = |bench: &Bench| -> Vec<(i32, i32)> {
        bench.queue.sack_blocks(SACK_BLOCKS).map(|(left, right)| (left - bench.isn, right - bench.isn)).collect()
    };
    for at in [10, 30, 50, 70, 90] {
        let _ = bench.insert(at, &stream(at, 10));
    }
    assert_eq!(blocks(&bench), [(90, 100), (70, 80), (50, 60), (30, 40)]);
    // Joins the forgotten block: reported as the whole run.
    let _ = bench.insert(20, &stream(20, 5));
    assert_eq!(blocks(&bench)[0], (10, 25));
    let _ = bench.insert(25, &stream(25, 5));
    assert_eq!(blocks(&bench)[0], (10, 40));
    // Two blocks became one: the place is filled with a forgotten one.
    assert_eq!(blocks(&bench).len(), 4);
    assert_eq!(bench.queue.sack_blocks(2).count(), 2);
}

#[test]
fn caps_refuse_and_change_nothing() {
    let limits = StreamLimits { flow_bytes: 100, flow_segments: 3, total_bytes: 1_000_000 };
    let mut bench = Bench::new(0, limits);
    assert_eq!(stored(&bench.insert(10, &stream(10, 90))), Some(90));
    assert!(
        matches!(bench.insert(200, &stream(200, 11)), Insert::Refused(b, DropReason::ReassemblyFull) if b.len() == 11)
    );
    assert_eq!(bench.queue.held_bytes(), 90);
    assert_eq!(stored(&bench.insert(200, &stream(200, 5))), Some(5));
    assert_eq!(stored(&bench.insert(300, &stream(300, 3))), Some(3));
    assert!(matches!(bench.insert(400, &stream(400, 1)), Insert::Refused(_, DropReason::ReassemblyFull)));
    // A segment that covers another takes its place.
    assert_eq!(stored(&bench.insert(299, &stream(299, 4))), Some(1));
    assert_eq!(bench.queue.segments(), 3);
}

#[test]
fn unbounded_ignores_caps() {
    let mut bench = Bench::new(0, StreamLimits { flow_bytes: 1, flow_segments: 1, total_bytes: 1 });
    bench.mode = Reassembly::Unbounded;
    for at in 1..100 {
        assert_eq!(stored(&bench.insert(at * 10, &stream(at * 10, 5))), Some(5));
    }
    assert!(bench.queue.shed(&bench.limits, bench.mode, &mut bench.budget).is_none());
}

#[test]
fn far_data_is_refused() {
    let mut bench = Bench::new(3, LIMITS);
    assert!(matches!(bench.insert(FAR, &[1]), Insert::Refused(_, DropReason::TcpOutOfWindow)));
    assert_eq!(stored(&bench.insert(FAR - 1, &[1])), Some(1));
    assert_eq!(stored(&bench.insert(1, &[1])), Some(1));
    bench.check();
}

#[test]
fn empty_and_old_segments_are_duplicates() {
    let mut bench = Bench::new(3, LIMITS);
    bench.next = 100;
    assert!(matches!(bench.insert(50, &stream(50, 50)), Insert::Duplicate(_)));
    assert!(matches!(bench.insert(120, &[]), Insert::Duplicate(_)));
    assert_eq!(stored(&bench.insert(90, &stream(90, 11))), Some(1));
    assert_eq!(bench.drain(), stream(100, 1));
}

#[test]
fn near_the_budget_flows_shrink_and_shed_from_the_top() {
    let mut pool = cache();
    let limits = StreamLimits { flow_bytes: 64 * 1024, flow_segments: 1_000, total_bytes: 64 * 2048 };
    let mut budget = Budget::new(limits.total_bytes);
    let (mut first, mut second) = (StreamReassembler::new(), StreamReassembler::new());
    let next = SeqNumber(0);
    let mut fill = |queue: &mut StreamReassembler, budget: &mut Budget| {
        let mut count = 0u32;
        loop {
            let data = buf(&mut pool, &[1; 1400]);
            let seq = next + 10 + count * 1400;
            match queue.insert(next, seq, data, &limits, Reassembly::Bounded, budget) {
                Insert::Stored { .. } => count += 1,
                Insert::Duplicate(_) => panic!("all is new"),
                Insert::Refused(..) => return count,
            }
        }
    };
    let many = fill(&mut first, &mut budget);
    assert!((40..50).contains(&many), "the first flow meets its own cap at {many}");
    let few = fill(&mut second, &mut budget);
    assert!(few < many && few > 0, "the second meets a smaller one at {few}");
    assert!(budget.used() <= budget.limit());
    // The first flow is now above its shrunken share: it gives from the top until it is within.
    let end = first.end();
    let mut shed = 0;
    while let Some(data) = first.shed(&limits, Reassembly::Bounded, &mut budget) {
        assert_eq!(data.len(), 1400);
        shed += 1;
    }
    assert!(shed > 0 && first.end().zip(end).is_some_and(|(new, old)| new.lt(old)) && !first.is_empty());
    first.clear(&mut budget);
    second.clear(&mut budget);
    assert_eq!(budget.used(), 0);
}

#[test]
fn an_empty_queue_keeps_little_memory() {
    let mut bench = Bench::new(0, LIMITS);
    for at in 1..200 {
        let _ = bench.insert(at * 10, &stream(at * 10, 5));
    }
    for at in 1..200 {
        bench.next = at * 10;
        assert_eq!(bench.drain().len(), 5);
    }
    assert!(bench.queue.segments.capacity() <= KEEP);
    assert!(size_of::<StreamReassembler>() <= 104, "{}", size_of::<StreamReassembler>());
}

/// Which byte values are held, byte by byte.
#[derive(Default)]
struct Twin {
    held: BTreeMap<u32, u8>,
    next: u32,
}

impl Twin {
    fn insert(&mut self, at: u32, bytes: &[u8]) -> u32 {
        let mut new = 0;
        for (at, &value) in (at..).zip(bytes) {
            if at >= self.next {
                self.held.entry(at).or_insert_with(|| {
                    new += 1;
                    value
                });
            }
        }
        new
    }

    fn drain(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(value) = self.held.remove(&self.next) {
            out.push(value);
            self.next += 1;
        }
        out
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A segment at an offset from the next byte, of a length, whose bytes are marked with its own value.
    Insert { ahead: i16, len: u8, value: u8 },
    /// In-order bytes arrive and are delivered at once.
    InOrder { len: u8 },
    /// The newest data is dropped.
    Drop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (-20i16..200, 0u8..40, any::<u8>()).prop_map(|(ahead, len, value)| Step::Insert { ahead, len, value }),
        2 => (1u8..40).prop_map(|len| Step::InOrder { len }),
        1 => Just(Step::Drop),
    ]
}

proptest! {
    /// Conflicting contents, wrap-around, drops: every byte that comes out is the one the twin holds.
    #[test]
    fn same_as_the_twin(isn in prop_oneof![any::<u32>(), u32::MAX - 300..=u32::MAX], steps in prop::collection::vec(step(), 1..80)) {
        let mut bench = Bench::new(isn, LIMITS);
        let mut twin = Twin::default();
        for step in steps {
            match step {
                Step::Insert { ahead, len, value } => {
                    let Some(at) = bench.next.checked_add_signed(i32::from(ahead)) else { continue };
                    let bytes = vec![value; usize::from(len)];
                    let want = twin.insert(at, &bytes);
                    match bench.insert(at, &bytes) {
                        Insert::Stored { new_bytes } => {
                            prop_assert_eq!(new_bytes, want);
                            let (left, right) = bench.queue.sack_blocks(1).next().expect("something is held");
                            prop_assert!(left - (bench.isn + at.max(bench.next)) <= 0 || want < u32::from(len));
                            prop_assert!(right - left > 0);
                        }
                        Insert::Duplicate(_) => prop_assert_eq!(want, 0),
                        Insert::Refused(..) => prop_assert!(false, "refused within all caps"),
                    }
                }
                Step::InOrder { len } => {
                    bench.next += u32::from(len);
                    twin.next += u32::from(len);
                    twin.held.retain(|&at, _| at >= twin.next);
                }
                Step::Drop => {
                    if let Some(data) = bench.queue.drop_newest(&mut bench.budget) {
                        for _ in 0..data.len() {
                            twin.held.pop_last();
                        }
                    }
                }
            }
            prop_assert_eq!(bench.drain(), twin.drain());
            prop_assert_eq!(bench.next, twin.next);
            prop_assert_eq!(bench.queue.held_bytes() as usize, twin.held.len());
            bench.check();
        }
        bench.queue.clear(&mut bench.budget);
        prop_assert_eq!(bench.budget.used(), 0);
    }

    /// A stream cut anyhow, sent in any order with duplicates and overlaps under small caps, refused parts sent again:
    /// what is delivered is what was sent, it only ever grows, and no cap is exceeded (`check`).
    #[test]
    fn delivered_is_sent(
        isn in prop_oneof![any::<u32>(), u32::MAX - 2_000..=u32::MAX],
        pieces in prop::collection::vec((0u32..2_000, 1u32..120), 1..120),
        flow_bytes in 100u32..1_500,
        flow_segments in 1u16..20,
        total_bytes in 1_000u64..20_000,
    ) {
        let sent = stream(0, 2_000);
        let mut bench = Bench::new(isn, StreamLimits { flow_bytes, flow_segments, total_bytes });
        let mut got: Vec<u8> = Vec::new();
        // Then all of it in order, as a sender that retransmits does in the end.
        let retransmitted = (0..20).map(|index| (index * 100, 100));
        for (at, len) in pieces.into_iter().chain(retransmitted) {
            let end = (at + len).min(2_000);
            let delivered = got.len() as u32;
            if at <= delivered {
                // In order: the receiver delivers it directly.
                if end > delivered {
                    got.extend_from_slice(&sent[delivered as usize..end as usize]);
                    bench.next = end;
                }
            } else {
                let _ = bench.insert(at, &sent[at as usize..end as usize]);
            }
            got.extend(bench.drain());
            prop_assert!(got.len() as u32 >= delivered);
            bench.check();
        }
        prop_assert_eq!(got, sent);
        prop_assert!(bench.queue.is_empty());
        prop_assert_eq!(bench.budget.used(), 0);
    }
}
