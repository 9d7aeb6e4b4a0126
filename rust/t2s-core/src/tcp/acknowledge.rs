//! The client's acknowledgements: what they free, what they say about loss, and the recovery that follows.
//!
//! Loss is found by SACK (RFC 6675), by three duplicates (RFC 5681), or by the timer; recovery ends when everything
//! that was outstanding at its start is acknowledged. What to retransmit in it, and when, is the business of `send`.

use super::sack::{DUP_THRESH, Scoreboard};
use super::send::ROOM_WORTH;
use super::{Ctx, Events, Recovery, Tcb, facts};
use crate::stats::DropReason;
use crate::time::{Instant, MILLIS};
use crate::wire::tcp::{SeqNumber, Tcp};

impl Tcb {
    /// The acknowledgement of a segment in the general path: validity, SACK, duplicates, window. False if the segment
    /// is to be dropped.
    pub(super) fn handle_ack(&mut self, ctx: &mut Ctx<'_>, seg: &Tcp, payload_len: usize) -> bool {
        let ack = seg.ack;
        if ack.gt(self.highest_ack()) || ack.lt(self.snd_una - self.max_snd_wnd) {
            // RFC 5961, section 5.
            ctx.counts.add(DropReason::TcpChallenged);
            self.challenge(ctx);
            return false;
        }
        if ack.gt(self.snd_nxt) {
            // The probe's byte was taken after all.
            debug_assert!(self.fact(facts::PROBED), "beyond SND.NXT without a probe");
            self.clear_fact(facts::PROBED);
            self.snd_nxt = ack;
        }
        let fresh = self.note_sack(seg);
        let same_window = u32::from(seg.window) << self.snd_shift == self.snd_wnd;
        let advanced = ack.gt(self.snd_una);
        if advanced {
            self.sample_timestamp(ctx, seg);
            self.acknowledge(ctx, ack);
        } else if ack == self.snd_una && self.flight() > 0 {
            // RFC 6675, section 2, with SACK blocks; RFC 5681, section 2, without.
            let bare = payload_len == 0 && !seg.flags.fin() && seg.options.sack.is_empty();
            if fresh > 0 || (bare && same_window) {
                self.note_duplicate(ctx, fresh > 0);
            }
        }
        if ack.ge(self.snd_una) {
            self.update_window(seg, advanced);
        }
        if self.fact(facts::PERSIST) || self.snd_wnd == 0 {
            // The client lives and says so: it may keep its window shut for ever (RFC 9293, section 3.8.6.1).
            self.unanswered = 0;
        }
        if self.fact(facts::PERSIST) && self.snd_wnd > 0 {
            // The window has opened. If it is too small still, what waits goes out at the override timeout, counted
            // from when it began to wait: a client that goes on sending must not put it off (RFC 9293, section
            // 3.8.6.2.1).
            self.backoff = 0;
            self.rto_at = self.rto_at.min(ctx.now.plus(self.override_timeout(ctx)));
        }
        if self.recovery == Recovery::Open && self.view().is_head_lost() {
            self.enter_recovery(ctx);
        }
        true
    }

    /// A round-trip sample from the echoed timestamp, when no segment is being timed (after retransmissions).
    fn sample_timestamp(&mut self, ctx: &Ctx<'_>, seg: &Tcp) {
        if let (Some((_, echo)), false, true) =
            (seg.options.timestamp, self.fact(facts::TIMED), self.fact(facts::TIMESTAMPS))
        {
            let elapsed = self.timestamp(ctx).wrapping_sub(echo);
            // Nothing that we sent is older than the longest timeout; anything else is made up.
            if u64::from(elapsed) * MILLIS <= ctx.config.rto_max {
                self.rtt.sample(u64::from(elapsed.max(1)) * MILLIS);
            }
        }
    }

    /// Our timestamp (RFC 7323, section 5.4): milliseconds.
    #[inline]
    pub(super) fn timestamp(&self, ctx: &Ctx<'_>) -> u32 {
        ((ctx.now.nanos() / MILLIS) as u32).wrapping_add(self.ts_offset)
    }

    /// Takes SACK blocks into the scoreboard; returns how many bytes they added.
    fn note_sack(&mut self, seg: &Tcp) -> u32 {
        if seg.options.sack.is_empty() || !self.fact(facts::SACK) {
            return 0;
        }
        let floor = self.snd_una.max(seg.ack);
        let mut fresh = 0;
        for &(left, right) in seg.options.sack.as_slice() {
            // What is not above the acknowledgement is D-SACK or old, what is beyond SND.NXT a lie. Both ends are held
            // against SND.NXT: sequence numbers compare in a circle, and an end half of it away lies on either side.
            if left.lt(right) && left.gt(floor) && left.lt(self.snd_nxt) && right.le(self.snd_nxt) {
                fresh += self.scoreboard.get_or_insert_with(|| Box::new(Scoreboard::new())).insert(left, right);
            }
        }
        fresh
    }

    /// A duplicate acknowledgement: something left the network, something may be lost.
    fn note_duplicate(&mut self, ctx: &mut Ctx<'_>, sacked: bool) {
        ctx.tcp.duplicate_acks += 1;
        self.duplicate_acks = self.duplicate_acks.saturating_add(1).min(u8::MAX - 1);
        if self.recovery == Recovery::Loss {
            return;
        }
        if !self.fact(facts::SACK) {
            self.duplicate_bytes = self.duplicate_bytes.saturating_add(u32::from(self.mss)).min(self.flight());
        }
        // Without SACK, duplicates of an earlier recovery's retransmissions are not loss (RFC 6582, section 3.2, step
        // 2).
        let new_loss = sacked || self.snd_una.gt(self.recovery_point);
        if self.recovery == Recovery::Open && self.duplicate_acks >= DUP_THRESH && new_loss {
            self.enter_recovery(ctx);
        }
    }

    /// Fast retransmit and fast recovery begin.
    fn enter_recovery(&mut self, ctx: &mut Ctx<'_>) {
        debug_assert!(self.recovery == Recovery::Open, "already recovering");
        ctx.tcp.recoveries += 1;
        self.cc.on_loss(self.flight(), u32::from(self.mss));
        self.recovery = Recovery::Fast;
        self.recovery_point = self.snd_nxt;
        self.rexmit_nxt = self.snd_una;
    }

    /// New data is acknowledged: `snd_una < ack <= snd_nxt`.
    #[inline]
    pub(super) fn acknowledge(&mut self, ctx: &mut Ctx<'_>, ack: SeqNumber) {
        let flight = self.flight();
        let acked = (ack - self.snd_una) as u32;
        debug_assert!(acked > 0 && acked <= flight, "not an acknowledgement of the flight");
        let fin_acked = self.fact(facts::FIN_SENT) && ack == self.snd_nxt;
        let freed = self.send.consume((acked - u32::from(fin_acked)) as usize, ctx.pool);
        ctx.memory.discharge(freed);
        ctx.tcp.bytes_acked += freed as u64;
        self.snd_una = ack;
        self.backoff = 0;
        self.unanswered = 0;
        if self.fact(facts::TIMED) && ack.ge(self.rtt.timed_seq) {
            self.clear_fact(facts::TIMED);
            self.rtt.sample(ctx.now.since(self.rtt.timed_at));
        }
        if self.recovery == Recovery::Open && self.scoreboard.is_none() {
            self.rexmit_nxt = ack;
            self.recovery_point = ack - 1;
            self.duplicate_acks = 0;
            self.duplicate_bytes = 0;
            // At least half of the window was in use.
            let limited = flight >= self.cc.window() / 2;
            self.cc.on_ack(acked, u32::from(self.mss), limited, ctx.now, self.rtt.srtt_micros().unwrap_or(0));
        } else {
            self.acknowledge_in_recovery(ctx, acked, flight);
        }
        self.rto_at = if self.flight() == 0 { Instant::FAR } else { ctx.now.plus(self.rtt.timeout(ctx.config, 0)) };
        if self.fact(facts::BLOCKED) {
            let limit = self.send_limit(ctx.config, ctx.memory);
            if limit.saturating_sub(self.send.len()) >= (limit / 2).min(ROOM_WORTH) {
                self.clear_fact(facts::BLOCKED);
                self.events.insert(Events::WRITABLE);
            }
        }
        if fin_acked {
            self.handle_fin_acked(ctx);
        }
    }

    /// The rest of [`Tcb::acknowledge`] while something is lost or selectively acknowledged. `flight` is from before.
    #[inline(never)]
    fn acknowledge_in_recovery(&mut self, ctx: &mut Ctx<'_>, acked: u32, flight: u32) {
        let mss = u32::from(self.mss);
        if let Some(board) = &mut self.scoreboard {
            board.acknowledge(self.snd_una);
            if board.is_empty() {
                self.scoreboard = None;
            }
        }
        self.rexmit_nxt = self.rexmit_nxt.max(self.snd_una);
        let srtt = self.rtt.srtt_micros().unwrap_or(0);
        match self.recovery {
            Recovery::Open => {
                self.rexmit_nxt = self.snd_una;
                self.duplicate_acks = 0;
                self.duplicate_bytes = 0;
                self.cc.on_ack(acked, mss, flight >= self.cc.window() / 2, ctx.now, srtt);
            }
            Recovery::Fast => {
                if self.snd_una.ge(self.recovery_point) {
                    self.cc.on_recovered(self.flight(), mss, self.fact(facts::SACK));
                    self.end_recovery();
                } else {
                    // Partial acknowledgement: each duplicate before it stood for one of the segments that it covers,
                    // but for the retransmitted one (RFC 6582, section 3.2, step 3).
                    self.duplicate_bytes = self.duplicate_bytes.saturating_sub(acked.saturating_sub(mss));
                    self.duplicate_bytes = self.duplicate_bytes.min(self.flight());
                }
            }
            Recovery::Loss => {
                self.cc.on_ack(acked, mss, true, ctx.now, srtt);
                if self.snd_una.ge(self.recovery_point) {
                    self.end_recovery();
                }
            }
        }
    }

    fn end_recovery(&mut self) {
        self.recovery = Recovery::Open;
        self.rexmit_nxt = self.snd_una;
        self.duplicate_acks = 0;
        self.duplicate_bytes = 0;
    }
}
