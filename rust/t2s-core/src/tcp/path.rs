//! The size of the path: segments shrink to what a router says it takes (RFC 1191, RFC 8201, RFC 9293, section 3.7.2),
//! and when full-sized segments vanish without a word (RFC 4821, section 7.7; RFC 8899, section 4.4: black holes).

use super::accept::{TIMESTAMP_BYTES, period};
use super::{Ctx, Recovery, State, Tcb, facts};
use crate::path_mtu::LIFETIME;
use crate::wire::tcp::SeqNumber;

/// Timeouts in a row, with a full-sized segment in front, after which its size is suspected. The first two are loss
/// more often than not.
const SUSPECT_AFTER: u8 = 3;
/// Payload without options that nearly all paths carry: packets of 1,280 bytes, the least of IPv6 and the usual base of
/// probing (RFC 8899, section 5.1.2); and the default of IPv4, when even that vanishes.
const BASE: u16 = 1_220;
const BASE_V4: u16 = 536;

/// A lowered size is kept for good.
const FOR_GOOD: u32 = u32::MAX;

/// What the path takes, when that is less than both ends do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Narrow {
    /// Payload of a full packet before the first limit.
    full: u16,
    /// When the full size is tried again, in the units of [`period`].
    until: u32,
}

impl Tcb {
    /// Whether a segment that starts at `seq` is on its way: what an ICMP error must quote to be believed (RFC 5927,
    /// section 4.1).
    pub fn has_sent(&self, seq: SeqNumber) -> bool {
        seq.ge(self.snd_una) && seq.lt(self.snd_nxt)
    }

    /// The path takes packets of `payload` bytes without TCP options. What is outstanding and larger was lost, which
    /// says nothing about congestion: it is sent again at once, within the window as it is (RFC 1191, section 6.4).
    /// After ten minutes the full size is tried again.
    pub fn limit_payload(&mut self, ctx: &mut Ctx<'_>, payload: u16) {
        let until = period(ctx.now).saturating_add((LIFETIME >> 30) as u32).min(FOR_GOOD - 1);
        if !self.narrow(payload, until) || self.flight() == 0 || !self.may_retransmit() {
            return;
        }
        self.recovery = Recovery::Loss;
        self.recovery_point = self.snd_nxt;
        self.rexmit_nxt = self.snd_una;
        self.duplicate_acks = 0;
        self.duplicate_bytes = 0;
        self.clear_fact(facts::TIMED);
    }

    /// The retransmission timer expired, not for the first time: perhaps segments of this size do not get through, and
    /// nobody says so.
    pub(super) fn suspect_black_hole(&mut self) {
        if self.backoff < SUSPECT_AFTER || self.flight() < u32::from(self.mss) {
            return;
        }
        self.narrow(BASE, FOR_GOOD);
        if self.fact(facts::V4) && self.backoff >= SUSPECT_AFTER + 2 {
            self.narrow(BASE_V4, FOR_GOOD);
        }
    }

    /// Tries the full size again, when it is time for that.
    #[inline]
    pub(super) fn widen_when_due(&mut self, ctx: &Ctx<'_>) {
        if self.fact(facts::NARROW) && period(ctx.now) >= self.narrow.until {
            self.mss = self.narrow.full;
            self.narrow = Narrow::default();
            self.clear_fact(facts::NARROW);
        }
    }

    /// Makes segments smaller; false if they are small enough.
    fn narrow(&mut self, payload: u16, until: u32) -> bool {
        let options = if self.fact(facts::TIMESTAMPS) { TIMESTAMP_BYTES } else { 0 };
        let mss = payload.saturating_sub(options).max(1);
        if mss >= self.mss {
            return false;
        }
        let full = if self.fact(facts::NARROW) { self.narrow.full } else { self.mss };
        self.set_fact(facts::NARROW);
        self.narrow = Narrow { full, until: until.max(self.narrow.until) };
        self.mss = mss;
        true
    }

    fn may_retransmit(&self) -> bool {
        matches!(self.state, State::Established | State::CloseWait | State::FinWait1 | State::Closing | State::LastAck)
    }
}
