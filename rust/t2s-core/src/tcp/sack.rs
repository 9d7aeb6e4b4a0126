//! What the client holds beyond its cumulative acknowledgement, and what that says about loss (RFC 2018, RFC 6675).
//!
//! The scoreboard keeps ranges, not segments, and a bounded number of them: a range beyond the bound is forgotten,
//! which costs a needless retransmission, never data. [`Flight`] computes the RFC's `Pipe`, `IsLost` and `NextSeg` in
//! one walk over the holes; it works without a scoreboard as well (no ranges), for clients without SACK and after
//! timeouts.

use crate::wire::tcp::SeqNumber;

/// Ranges kept; each hole between them is a loss event of its own.
const RANGES: usize = 32;

/// Segments above a hole that make it lost (RFC 6675, section 2: `DupThresh`).
pub(super) const DUP_THRESH: u8 = 3;

/// Bytes `left..right`.
type Range = (SeqNumber, SeqNumber);

/// Ranges that the client has selectively acknowledged.
pub(super) struct Scoreboard {
    /// Ascending, not empty, not touching each other; `len` of them count.
    ranges: [Range; RANGES],
    len: usize,
}

impl Scoreboard {
    pub(super) fn new() -> Self {
        Self { ranges: [(SeqNumber(0), SeqNumber(0)); RANGES], len: 0 }
    }

    pub(super) fn ranges(&self) -> &[Range] {
        &self.ranges[..self.len]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `left..right`, which must lie within the flight; returns how many bytes were new.
    pub(super) fn insert(&mut self, left: SeqNumber, right: SeqNumber) -> u32 {
        debug_assert!(left.lt(right), "empty range");
        let before = self.bytes();
        // Ranges first..last touch the new one.
        let first = self.ranges().partition_point(|range| range.1.lt(left));
        let last = self.ranges().partition_point(|range| range.0.le(right));
        if first == last {
            if self.len == RANGES {
                return 0;
            }
            self.ranges.copy_within(first..self.len, first + 1);
            self.ranges[first] = (left, right);
            self.len += 1;
        } else {
            let merged = (self.ranges[first].0.min(left), self.ranges[last - 1].1.max(right));
            self.ranges[first] = merged;
            self.ranges.copy_within(last..self.len, first + 1);
            self.len -= last - first - 1;
        }
        self.bytes() - before
    }

    /// Forgets what lies below the cumulative acknowledgement.
    pub(super) fn acknowledge(&mut self, una: SeqNumber) {
        let gone = self.ranges().partition_point(|range| range.1.le(una));
        self.ranges.copy_within(gone..self.len, 0);
        self.len -= gone;
        if let Some(first) = self.ranges[..self.len].first_mut() {
            first.0 = first.0.max(una);
        }
    }

    fn bytes(&self) -> u32 {
        self.ranges().iter().map(|range| (range.1 - range.0) as u32).sum()
    }
}

/// What is outstanding, and what of it is taken for lost.
pub(super) struct Flight<'a> {
    pub(super) una: SeqNumber,
    pub(super) nxt: SeqNumber,
    /// Everything missing below it was retransmitted (`HighRxt`).
    pub(super) cursor: SeqNumber,
    /// Everything missing below it is lost, whatever the ranges say.
    pub(super) lost_below: SeqNumber,
    pub(super) mss: u32,
    pub(super) ranges: &'a [Range],
}

/// A run of bytes that the client has not selectively acknowledged.
struct Hole {
    left: SeqNumber,
    right: SeqNumber,
    /// The part below it is lost; `left <= lost <= right`.
    lost: SeqNumber,
    /// Something above it was selectively acknowledged.
    below_sacked: bool,
}

impl Flight<'_> {
    /// The holes, ascending, the unSACKed end of the flight included.
    fn holes(&self) -> impl Iterator<Item = Hole> + '_ {
        let mut above: u32 = self.ranges.iter().map(|range| (range.1 - range.0) as u32).sum();
        let mut left = self.una;
        (0..=self.ranges.len()).map(move |index| {
            let segments = self.ranges.len() - index;
            let (right, next) = self.ranges.get(index).map_or((self.nxt, self.nxt), |range| (range.0, range.1));
            // RFC 6675, section 4: IsLost.
            let is_lost = segments >= usize::from(DUP_THRESH) || above > u32::from(DUP_THRESH - 1) * self.mss;
            let lost = if is_lost { right } else { self.lost_below.min(right).max(left) };
            let hole = Hole { left, right, lost, below_sacked: segments > 0 };
            above -= (next - right) as u32;
            left = next;
            hole
        })
    }

    /// Bytes that are thought to be in the network (RFC 6675, section 4: `SetPipe`).
    pub(super) fn pipe(&self) -> u32 {
        self.holes()
            .map(|hole| {
                let waiting = (hole.right - hole.lost) as u32;
                let again = (hole.right.min(self.cursor) - hole.left).max(0) as u32;
                waiting + again
            })
            .sum()
    }

    /// Whether the first missing byte is lost by the SACK rule alone.
    pub(super) fn is_head_lost(&self) -> bool {
        !self.ranges.is_empty() && self.holes().next().is_some_and(|hole| hole.left.lt(hole.lost))
    }

    /// The next run to retransmit (RFC 6675, section 4: `NextSeg`, rule 1).
    pub(super) fn next_lost(&self) -> Option<Range> {
        self.holes().find_map(|hole| {
            let left = hole.left.max(self.cursor);
            left.lt(hole.lost).then_some((left, hole.lost))
        })
    }

    /// A run that may be lost, when nothing else is to be sent (rule 3).
    pub(super) fn next_doubtful(&self) -> Option<Range> {
        self.holes().filter(|hole| hole.below_sacked).find_map(|hole| {
            let left = hole.left.max(self.cursor);
            left.lt(hole.right).then_some((left, hole.right))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seq(n: u32) -> SeqNumber {
        // Straddles the wrap.
        SeqNumber(u32::MAX - 100) + n
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn agrees_with_a_set_of_bytes(ops in prop::collection::vec((0u32..250, 1u32..20, any::<bool>()), 1..40)) {
            let mut board = Scoreboard::new();
            let mut twin = vec![false; 300];
            let mut una = 0;
            for (left, len, acknowledge) in ops {
                if acknowledge && left > una && left < una + 40 {
                    una = left;
                    board.acknowledge(seq(una));
                    twin[..una as usize].fill(false);
                } else if left >= una && board.len < RANGES {
                    let fresh = board.insert(seq(left), seq(left + len));
                    let bytes = &mut twin[left as usize..(left + len) as usize];
                    prop_assert_eq!(fresh as usize, bytes.iter().filter(|held| !**held).count());
                    bytes.fill(true);
                }
                let mut expected = vec![false; 300];
                for range in board.ranges() {
                    prop_assert!(range.0.lt(range.1));
                    let (l, r) = ((range.0 - seq(0)) as usize, (range.1 - seq(0)) as usize);
                    prop_assert!(!expected[l] && (l == 0 || !expected[l - 1]), "ascending and apart");
                    expected[l..r].fill(true);
                }
                prop_assert_eq!(&expected, &twin);

                let flight = Flight {
                    una: seq(una), nxt: seq(290), cursor: seq(una), lost_below: seq(una), mss: 5, ranges: board.ranges(),
                };
                // IsLost byte by byte, as RFC 6675 says it.
                let missing: Vec<usize> = (una as usize..290).filter(|&at| !twin[at]).collect();
                let lost = |at: usize| {
                    let above = &twin[at..];
                    let bytes = above.iter().filter(|held| **held).count();
                    let runs = above.windows(2).filter(|pair| !pair[0] && pair[1]).count();
                    runs >= 3 || bytes > 10
                };
                let pipe = missing.iter().filter(|&&at| !lost(at)).count();
                prop_assert_eq!(flight.pipe() as usize, pipe);
                let first = missing.iter().copied().find(|&at| lost(at)).map(|at| seq(at as u32));
                prop_assert_eq!(flight.next_lost().map(|run| run.0), first);
            }
        }
    }

    #[test]
    fn forgets_beyond_its_bound() {
        let mut board = Scoreboard::new();
        for index in 0..100 {
            board.insert(seq(index * 10), seq(index * 10 + 5));
        }
        assert_eq!(board.ranges().len(), RANGES);
        assert_eq!(board.insert(seq(0), seq(1_000)), 1_000 - 5 * RANGES as u32);
        assert_eq!(board.ranges().len(), 1);
    }

    #[test]
    fn retransmitted_bytes_are_in_the_pipe_again() {
        let flight = Flight { una: seq(0), nxt: seq(100), cursor: seq(30), lost_below: seq(60), mss: 10, ranges: &[] };
        assert_eq!(flight.pipe(), 40 + 30);
        assert_eq!(flight.next_lost(), Some((seq(30), seq(60))));
        assert!(!flight.is_head_lost());
        assert_eq!(flight.next_doubtful(), None);
    }
}
