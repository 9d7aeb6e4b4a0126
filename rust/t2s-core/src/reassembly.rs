//! Out-of-order TCP data: waits here until the hole in front of it is filled (RFC 9293, section 3.4; RFC 2018).
//!
//! Promises: bytes that are held never change (of two overlapping segments the first to arrive wins), a byte is held
//! and delivered once, what became contiguous can be taken at once ([`StreamReassembler::pop`], the early drain), and
//! nothing is ever held beyond the caps of a flow or of the [`Budget`] that all flows of a worker share. Segments are
//! kept in the buffers they came in; nothing is allocated for a segment once the queue has grown to its working size.
//!
//! Refuses: data beyond a cap ([`DropReason::ReassemblyFull`]), data further than [`FAR`] ahead
//! ([`DropReason::TcpOutOfWindow`]). A refusal changes nothing and hands the buffer back. Refusing new data is
//! preferred to dropping held data, because what is held was probably acknowledged selectively, and a sender finds out
//! about such reneging only by timeout (RFC 2018, section 8). Held data is dropped only by [`StreamReassembler::shed`],
//! under pressure of the shared budget, highest sequence numbers first; it was never acknowledged cumulatively.

use std::collections::VecDeque;

use crate::buf::Buf;
use crate::config::{Reassembly, StreamLimits};
use crate::stats::DropReason;
use crate::wire::tcp::SeqNumber;

#[cfg(test)]
mod tests;

/// Bytes ahead of the next expected one that can be told from bytes behind it: the largest window of RFC 7323,
/// section 2.3, is 2^30.
pub const FAR: u32 = 1 << 30;

/// Blocks that are remembered for selective acknowledgement; a header without other options has room for four
/// (RFC 2018, section 3).
pub const SACK_BLOCKS: usize = 4;

/// Entries of queue memory that an empty queue keeps, so that flows with a little reordering do not allocate for it;
/// more is given back once the queue is empty.
const KEEP: usize = 16;

/// Empty queues that a worker keeps: holes open and close all the time, few at once for long.
const SPARE: usize = 16;

/// A flow's cap never shrinks below this part of its configured value while the shared budget has room, so that one
/// flow's hole does not keep another from recovering a single loss.
const FLOOR_DIVISOR: u64 = 16;

/// What all flows of one worker hold out of order, in bytes of buffers: a segment is charged the capacity of the buffer
/// that it keeps, so that the cap bounds memory, not only payload.
#[derive(Debug, Default)]
pub struct Budget {
    limit: u64,
    used: u64,
    peak: u64,
    total_in: u64,
    /// Buffers that became useless; kept here so that a call can displace several without allocating.
    displaced: Vec<Buf>,
    /// Empty queues with their memory, for the next flow that sees a hole.
    #[expect(clippy::vec_box, reason = "a flow holds its queue in a box, and the box is what is spared")]
    spare: Vec<Box<StreamReassembler>>,
}

impl Budget {
    /// A budget of `limit` bytes ([`StreamLimits::total_bytes`]).
    pub fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// The cap, bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Held now, bytes of buffers.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The most that was ever held at once, bytes of buffers.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Payload bytes that were ever stored.
    pub fn total_in(&self) -> u64 {
        self.total_in
    }

    /// Takes a buffer that a call made useless (its bytes were covered by another); to be called until `None` after
    /// [`StreamReassembler::insert`], [`StreamReassembler::pop`] and [`StreamReassembler::clear`], so that buffers go
    /// back to the pool by the fast way.
    #[inline]
    pub fn reclaim(&mut self) -> Option<Buf> {
        self.displaced.pop()
    }

    /// An empty queue: one that was put by, or a new one.
    #[expect(clippy::unnecessary_box_returns, reason = "a flow holds its queue in a box")]
    pub fn queue(&mut self) -> Box<StreamReassembler> {
        self.spare.pop().unwrap_or_default()
    }

    /// Puts an empty queue by, unless there are enough.
    pub fn put_by(&mut self, queue: Box<StreamReassembler>) {
        debug_assert!(queue.is_empty() && queue.recent == [None; SACK_BLOCKS], "an empty queue is like a new one");
        if queue.is_empty() && self.spare.len() < SPARE {
            self.spare.push(queue);
        }
    }

    fn charge(&mut self, footprint: u64) {
        self.used += footprint;
        self.peak = self.peak.max(self.used);
    }

    fn release(&mut self, footprint: u64) {
        debug_assert!(self.used >= footprint, "released more than was charged");
        self.used = self.used.saturating_sub(footprint);
    }
}

/// What became of a segment.
#[must_use]
#[derive(Debug)]
pub enum Insert {
    /// It is held, and this many of its bytes were new.
    Stored {
        /// Payload bytes that were not held before; at least 1.
        new_bytes: u32,
    },
    /// All its bytes were received before, or it has none.
    Duplicate(Buf),
    /// It cannot be held; nothing changed.
    Refused(Buf, DropReason),
}

/// One held segment.
#[derive(Debug)]
struct Segment {
    start: SeqNumber,
    buf: Buf,
}

impl Segment {
    fn end(&self) -> SeqNumber {
        self.start + self.buf.len() as u32
    }
}

/// The part of an arriving segment that would be stored, and where.
struct Plan {
    /// Index that it takes in the queue.
    at: usize,
    /// Held segments from `at` on that it covers wholly.
    covered: usize,
    /// Payload bytes and footprint of these.
    covered_bytes: u32,
    covered_footprint: u64,
    /// Bytes cut off its front and bytes left after that.
    skip: u32,
    len: u32,
}

/// The out-of-order queue of one flow.
#[derive(Debug, Default)]
pub struct StreamReassembler {
    /// Sorted by sequence number, without overlap, none empty; at most [`FAR`] bytes from first to last.
    segments: VecDeque<Segment>,
    /// Payload bytes held: the sum of the segments' lengths.
    bytes: u32,
    /// Most recently changed first; each is a maximal contiguous run of held segments.
    recent: [Option<Block>; SACK_BLOCKS],
    /// Whether a run may be missing in `recent`.
    forgotten: bool,
}

/// A contiguous run of held bytes: first one, and the one after the last.
type Block = (SeqNumber, SeqNumber);

impl StreamReassembler {
    /// An empty queue; allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is held.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Payload bytes held.
    #[inline]
    pub fn held_bytes(&self) -> u32 {
        self.bytes
    }

    /// Segments held.
    #[inline]
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The highest sequence number held, plus one.
    pub fn end(&self) -> Option<SeqNumber> {
        self.segments.back().map(Segment::end)
    }

    /// Holds the bytes of `buf`, the first of which has sequence number `seq`; `next` is the next byte expected in
    /// order (RCV.NXT). Bytes before `next` and bytes that are held already are not stored again.
    ///
    /// With [`Reassembly::Unbounded`] the caps are ignored. Follow with [`Budget::reclaim`].
    pub fn insert(
        &mut self,
        next: SeqNumber,
        seq: SeqNumber,
        mut buf: Buf,
        limits: &StreamLimits,
        mode: Reassembly,
        budget: &mut Budget,
    ) -> Insert {
        self.discard_before(next, budget);
        let ahead = seq - next;
        let Ok(len) = u32::try_from(buf.len()) else { return Insert::Refused(buf, DropReason::TooBig) };
        if i64::from(ahead) + i64::from(len) > i64::from(FAR) {
            return Insert::Refused(buf, DropReason::TcpOutOfWindow);
        }
        let Some(plan) = self.plan(next, seq, len) else {
            self.promote(seq, len);
            return Insert::Duplicate(buf);
        };
        let footprint = footprint(&buf);
        if mode == Reassembly::Bounded && !self.fits(&plan, footprint, limits, budget) {
            return Insert::Refused(buf, DropReason::ReassemblyFull);
        }

        buf.advance(plan.skip as usize);
        buf.truncate(plan.len as usize);
        let start = seq + plan.skip;
        for _ in 0..plan.covered {
            // Always at `at`: each removal moves the next covered segment there.
            let Some(old) = self.segments.remove(plan.at) else { break };
            let from = (old.start - start) as usize;
            // The first arrival wins: its bytes go over the newcomer's.
            if let Some(target) = buf.as_mut_slice().get_mut(from..from + old.buf.len()) {
                target.copy_from_slice(old.buf.as_slice());
            }
            budget.displaced.push(old.buf);
        }
        let new_bytes = plan.len - plan.covered_bytes;
        self.bytes += new_bytes;
        budget.release(plan.covered_footprint);
        budget.charge(footprint);
        budget.total_in += u64::from(new_bytes);
        self.segments.insert(plan.at, Segment { start, buf });
        self.remember(plan.at);
        Insert::Stored { new_bytes }
    }

    /// Takes the segment that continues the stream at `next`, cut so that it starts there; call until `None`, advancing
    /// `next` by what came, and follow with [`Budget::reclaim`].
    #[inline]
    pub fn pop(&mut self, next: SeqNumber, budget: &mut Budget) -> Option<Buf> {
        if self.segments.is_empty() {
            return None;
        }
        self.discard_before(next, budget);
        let first = self.segments.front()?;
        let behind = next - first.start;
        if behind < 0 {
            return None;
        }
        let first = self.segments.pop_front()?;
        self.bytes -= first.buf.len() as u32;
        budget.release(footprint(&first.buf));
        self.cut_recent();
        self.give_back_memory();
        let mut buf = first.buf;
        buf.advance(behind as usize);
        Some(buf)
    }

    /// The blocks to report in a SACK option, the most recently changed first (RFC 2018, section 4).
    pub fn sack_blocks(&self, max: usize) -> impl Iterator<Item = (SeqNumber, SeqNumber)> + '_ {
        self.recent.iter().copied().flatten().take(max)
    }

    /// Drops the segment with the highest sequence numbers while this flow holds more than it may now that the shared
    /// budget is near its end; `None` when it is within its share. Call until `None` whenever the flow receives
    /// something while [`Budget::used`] is high.
    pub fn shed(&mut self, limits: &StreamLimits, mode: Reassembly, budget: &mut Budget) -> Option<Buf> {
        if mode == Reassembly::Unbounded || u64::from(self.bytes) <= flow_cap(limits, budget) {
            return None;
        }
        self.drop_newest(budget)
    }

    /// Drops the segment with the highest sequence numbers.
    pub fn drop_newest(&mut self, budget: &mut Budget) -> Option<Buf> {
        let last = self.segments.pop_back()?;
        self.bytes -= last.buf.len() as u32;
        budget.release(footprint(&last.buf));
        self.cut_recent();
        self.give_back_memory();
        Some(last.buf)
    }

    /// Drops everything, memory included; follow with [`Budget::reclaim`].
    pub fn clear(&mut self, budget: &mut Budget) {
        for segment in self.segments.drain(..) {
            budget.release(footprint(&segment.buf));
            budget.displaced.push(segment.buf);
        }
        *self = Self::default();
    }

    /// What of a segment would be stored; `None` when nothing of it is new.
    fn plan(&self, next: SeqNumber, seq: SeqNumber, len: u32) -> Option<Plan> {
        let behind = (next - seq).max(0) as u32;
        if behind >= len {
            return None;
        }
        let (mut start, mut end) = (seq + behind, seq + len);
        // Most data arrives behind everything that is held: look there before searching.
        let mut at = match self.segments.back() {
            Some(last) if start - last.start >= 0 => self.segments.len(),
            Some(_) => self.segments.partition_point(|held| held.start - start <= 0),
            None => 0,
        };
        if let Some(previous) = at.checked_sub(1).and_then(|index| self.segments.get(index)) {
            if previous.start == start && end - previous.end() > 0 {
                // Same start but longer: the newcomer covers it.
                at -= 1;
            } else if previous.end() - start > 0 {
                start = previous.end();
            }
        }
        if end - start <= 0 {
            return None;
        }
        let mut plan =
            Plan { at, covered: 0, covered_bytes: 0, covered_footprint: 0, skip: (start - seq) as u32, len: 0 };
        for held in self.segments.range(at..) {
            if held.start - end >= 0 {
                break;
            }
            if held.end() - end > 0 {
                end = held.start;
                break;
            }
            plan.covered += 1;
            plan.covered_bytes += held.buf.len() as u32;
            plan.covered_footprint += footprint(&held.buf);
        }
        plan.len = (end - start).max(0) as u32;
        // Segments that cover the newcomer's rest without a gap leave nothing new.
        (plan.len > plan.covered_bytes).then_some(plan)
    }

    /// Whether a planned segment stays within all caps.
    fn fits(&self, plan: &Plan, footprint: u64, limits: &StreamLimits, budget: &Budget) -> bool {
        let bytes = u64::from(self.bytes) + u64::from(plan.len - plan.covered_bytes);
        let segments = self.segments.len() + 1 - plan.covered;
        let used = budget.used - plan.covered_footprint + footprint;
        segments <= usize::from(limits.flow_segments) && used <= budget.limit && bytes <= flow_cap(limits, budget)
    }

    /// Drops what lies wholly before `next` (an in-order segment covered it).
    fn discard_before(&mut self, next: SeqNumber, budget: &mut Budget) {
        while let Some(first) = self.segments.front()
            && next - first.end() >= 0
        {
            let Some(first) = self.segments.pop_front() else { break };
            self.bytes -= first.buf.len() as u32;
            budget.release(footprint(&first.buf));
            budget.displaced.push(first.buf);
            self.cut_recent();
        }
        self.give_back_memory();
    }

    /// Gives queue memory of an emptied queue back when it is more than a little.
    fn give_back_memory(&mut self) {
        if self.segments.is_empty() && self.segments.capacity() > KEEP {
            self.segments = VecDeque::new();
        }
    }

    /// A segment of which nothing is new is what the acknowledgement answers: its block comes first (RFC 2018, section
    /// 4).
    fn promote(&mut self, seq: SeqNumber, len: u32) {
        let last = seq + len.saturating_sub(1);
        let at = self.segments.partition_point(|held| held.end() - last <= 0);
        if self.segments.get(at).is_some_and(|held| held.start - last <= 0) {
            self.remember(at);
        }
    }

    /// Makes the run around the segment at `at` the most recent block.
    fn remember(&mut self, at: usize) {
        let Some(segment) = self.segments.get(at) else { return };
        let (start, end) = (segment.start, segment.end());
        let mut run = (start, end);
        let mut others = [None; SACK_BLOCKS];
        let mut count = 0;
        for block in self.recent.iter().copied().flatten() {
            if block.0 - run.1 <= 0 && block.1 - run.0 >= 0 {
                run = (earlier(run.0, block.0), later(run.1, block.1));
            } else {
                others[count] = Some(block);
                count += 1;
            }
        }
        // Remembered blocks are maximal runs, so a side that grew is complete; else its neighbour may be of a run that
        // was forgotten, which takes a walk. Rare: more than four runs must be held for that.
        if run.0 == start {
            for held in self.segments.range(..at).rev() {
                if held.end() != run.0 {
                    break;
                }
                run.0 = held.start;
            }
        }
        if run.1 == end {
            for held in self.segments.range(at + 1..) {
                if held.start != run.1 {
                    break;
                }
                run.1 = held.end();
            }
        }
        self.forgotten |= count == SACK_BLOCKS;
        self.recent = [Some(run), others[0], others[1], others[2]];
        self.recall();
    }

    /// Cuts the remembered blocks at both ends of what is held, after something left there.
    fn cut_recent(&mut self) {
        let (Some(first), Some(end)) = (self.segments.front().map(|held| held.start), self.end()) else {
            self.recent = [None; SACK_BLOCKS];
            self.forgotten = false;
            return;
        };
        let mut kept = [None; SACK_BLOCKS];
        let mut count = 0;
        for block in self.recent.iter().copied().flatten() {
            let block = (later(block.0, first), earlier(block.1, end));
            if block.1 - block.0 > 0 {
                kept[count] = Some(block);
                count += 1;
            }
        }
        self.recent = kept;
        self.recall();
    }

    /// Fills free places with runs that were forgotten, lowest first (RFC 2018, section 4: as many as fit).
    fn recall(&mut self) {
        if !self.forgotten {
            return;
        }
        let mut count = self.recent.iter().flatten().count();
        let mut held = self.segments.iter().peekable();
        while count < SACK_BLOCKS {
            let Some(first) = held.next() else {
                self.forgotten = false;
                return;
            };
            let mut run = (first.start, first.end());
            while let Some(more) = held.next_if(|more| more.start == run.1) {
                run.1 = more.end();
            }
            if !self.recent.contains(&Some(run)) {
                self.recent[count] = Some(run);
                count += 1;
            }
        }
    }
}

/// Bytes that one flow may hold now: the configured cap, shrinking to nothing over the last quarter of the shared
/// budget (but never below a part that recovers a single loss).
fn flow_cap(limits: &StreamLimits, budget: &Budget) -> u64 {
    let cap = u64::from(limits.flow_bytes);
    let quarter = budget.limit / 4;
    let left = budget.limit.saturating_sub(budget.used);
    if left >= quarter {
        return cap;
    }
    (u128::from(cap) * u128::from(left) / u128::from(quarter)).max(u128::from(cap / FLOOR_DIVISOR)) as u64
}

/// What a buffer costs, bytes.
fn footprint(buf: &Buf) -> u64 {
    buf.capacity() as u64
}

fn earlier(a: SeqNumber, b: SeqNumber) -> SeqNumber {
    if a - b <= 0 { a } else { b }
}

fn later(a: SeqNumber, b: SeqNumber) -> SeqNumber {
    if a - b >= 0 { a } else { b }
}
