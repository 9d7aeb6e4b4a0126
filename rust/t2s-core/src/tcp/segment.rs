//! A segment arrives: the order of checks of RFC 9293, section 3.10.7, and a fast path in front of it.
//!
//! The fast path (Van Jacobson's header prediction) takes what an established flow sees nearly always: the next
//! segment in sequence, or a pure acknowledgement of new data, with nothing out of order or lost in either direction.
//! Whatever deviates goes through the general path, which gives the same result for predicted segments too; a test
//! holds the two against each other.

use super::accept::period;
use super::{CloseReason, Ctx, Recovery, State, Tcb, facts, owed};
use crate::buf::Buf;
use crate::stats::DropReason;
use crate::wire::tcp::{Flags, SeqNumber, Tcp};

/// After this long without a segment a timestamp is too old for PAWS (RFC 7323, section 5.5: 24 days), in the units of
/// `period`.
const PAWS_IDLE: u32 = ((24 * 86_400 * crate::time::SECONDS) >> 30) as u32;

/// Facts that the fast path does not deal with.
const SLOW_FACTS: u16 = facts::FIN_SEEN | facts::READER_GONE | facts::PERSIST | facts::PROBED | facts::FIN_SENT;

impl Tcb {
    /// Takes a segment of the client; `payload` starts after the TCP header and may be empty or a super-segment.
    ///
    /// The buffer is kept or freed, never lost. Poll for segments and events at the end of the batch.
    #[inline]
    pub fn handle_segment(&mut self, ctx: &mut Ctx<'_>, seg: &Tcp, payload: Buf) {
        ctx.tcp.segments_in += 1;
        if self.is_predicted(seg, payload.len()) {
            self.handle_predicted(ctx, seg, payload);
        } else {
            self.handle_general(ctx, seg, payload);
        }
        self.check();
    }

    #[inline]
    fn is_predicted(&self, seg: &Tcp, payload_len: usize) -> bool {
        #[cfg(test)]
        if self.forced_slow {
            return false;
        }
        let acked = (seg.ack - self.snd_una) as u32;
        let fresh = match seg.options.timestamp {
            Some((value, _)) => value.wrapping_sub(self.ts_recent) as i32 >= 0,
            None => true,
        };
        self.state == State::Established
            && seg.flags.without(Flags::PSH) == Flags::ACK
            && seg.seq == self.rcv_nxt
            && acked <= (self.snd_nxt - self.snd_una) as u32
            && (payload_len > 0 || acked > 0)
            && payload_len <= (self.rcv_adv - self.rcv_nxt) as u32 as usize
            && fresh
            && self.facts & SLOW_FACTS == 0
            && self.recovery == Recovery::Open
            && self.duplicate_acks == 0
            && self.out_of_order.is_none()
            && self.scoreboard.is_none()
            && seg.options.sack.is_empty()
            && seg.window != 0
    }

    #[inline]
    fn handle_predicted(&mut self, ctx: &mut Ctx<'_>, seg: &Tcp, payload: Buf) {
        ctx.tcp.predicted += 1;
        self.note_received(ctx);
        self.note_timestamp(ctx, seg);
        let advanced = seg.ack != self.snd_una;
        if advanced {
            self.acknowledge(ctx, seg.ack);
        }
        self.update_window(seg, advanced);
        if payload.is_empty() {
            ctx.pool.free(payload);
        } else {
            self.take_in_order(ctx, payload);
        }
    }

    /// Everything that the fast path leaves over.
    #[inline(never)]
    fn handle_general(&mut self, ctx: &mut Ctx<'_>, seg: &Tcp, payload: Buf) {
        match self.state {
            State::Closed => {
                ctx.counts.add(DropReason::TcpClosed);
                ctx.pool.free(payload);
                return;
            }
            State::SynPending | State::SynReceived => {
                if !self.handle_opening(ctx, seg, payload.len() as u32) {
                    ctx.pool.free(payload);
                    return;
                }
            }
            State::Established
            | State::CloseWait
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck
            | State::TimeWait => {}
        }
        if let Err(reason) = self.check_sequence(ctx, seg, payload.len() as u32) {
            ctx.counts.add(reason);
            ctx.pool.free(payload);
            return;
        }
        if seg.flags.rst() {
            self.handle_rst(ctx, seg);
            ctx.pool.free(payload);
            return;
        }
        if seg.flags.syn() {
            // RFC 5961, section 4: never a reset, always a challenge.
            ctx.counts.add(DropReason::TcpChallenged);
            self.challenge(ctx);
            ctx.pool.free(payload);
            return;
        }
        if !seg.flags.ack() {
            ctx.counts.add(DropReason::TcpMalformed);
            ctx.pool.free(payload);
            return;
        }
        if !self.handle_ack(ctx, seg, payload.len()) {
            ctx.pool.free(payload);
            return;
        }
        // Not before: a segment that is discarded for its acknowledgement (RFC 5961, section 5.2) must leave no trace.
        // One timestamp of a stranger would make PAWS refuse all that the client sends from then on.
        self.note_received(ctx);
        self.note_timestamp(ctx, seg);
        match self.state {
            State::SynReceived | State::Established | State::FinWait1 | State::FinWait2 => {
                if !payload.is_empty() || seg.flags.fin() {
                    self.handle_payload(ctx, seg.seq, payload, seg.flags.fin());
                } else {
                    ctx.pool.free(payload);
                }
            }
            State::SynPending
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => {
                // Nothing can follow the client's FIN (RFC 9293, section 3.10.7.4, seventh check).
                if !payload.is_empty() {
                    ctx.counts.add(DropReason::TcpClosed);
                }
                ctx.pool.free(payload);
            }
        }
    }

    /// First check: timestamp (PAWS) and sequence number. An `Err` drops the segment; what it deserves is owed.
    pub(super) fn check_sequence(&mut self, ctx: &mut Ctx<'_>, seg: &Tcp, payload_len: u32) -> Result<(), DropReason> {
        let len = seg.sequence_len(payload_len);
        let window = (self.rcv_adv - self.rcv_nxt).max(0) as u32;
        let offset = seg.seq - self.rcv_nxt;
        if seg.flags.rst() {
            // RFC 5961, section 3: judged by its sequence number alone.
            let inside = offset == 0 || (offset > 0 && (offset as u32) < window);
            return if inside { Ok(()) } else { Err(DropReason::TcpOutOfWindow) };
        }
        if let (Some((value, _)), true) = (seg.options.timestamp, self.fact(facts::TIMESTAMPS)) {
            // Segments without the option are let through, as the field does; PAWS then does not protect them.
            let old = (value.wrapping_sub(self.ts_recent) as i32) < 0;
            if old && period(ctx.now).wrapping_sub(self.ts_recent_at) < PAWS_IDLE {
                self.answer_unacceptable(ctx, len);
                return Err(DropReason::TcpPaws);
            }
        }
        // `end` is where the segment ends relative to RCV.NXT; both fit: |offset| < 2^31, len <= 2^17.
        let end = i64::from(offset) + i64::from(len);
        let acceptable = if len == 0 {
            // A pure acknowledgement of a client that filled the window stands at its right edge.
            offset >= 0 && offset as u32 <= window
        } else if window == 0 {
            // Acknowledgements are taken even then (RFC 9293, section 3.10.7.4), and so is a bare FIN: it needs no
            // room.
            offset == 0
        } else {
            end > 0 && i64::from(offset) < i64::from(window)
        };
        if acceptable {
            return Ok(());
        }
        if self.state == State::TimeWait && seg.flags.fin() && end == 0 && seg.flags.ack() && seg.ack == self.snd_nxt {
            // The client did not get our last acknowledgement; 2 MSL start anew.
            self.slow_at = ctx.now.plus(ctx.config.time_wait);
        }
        if len == 0 {
            // A keepalive probe of the client stands one before the window. It must be answered, and shows life.
            if offset == -1 && seg.flags.ack() && seg.ack == self.snd_nxt {
                self.last_received = ctx.now;
            }
        }
        self.answer_unacceptable(ctx, len);
        Err(if end <= 0 { DropReason::TcpDuplicate } else { DropReason::TcpOutOfWindow })
    }

    /// Owes the acknowledgement that an unacceptable segment is answered with. Segments with data get it always, since
    /// their sender waits for it; others within a rate, so that two ends cannot answer each other for ever.
    fn answer_unacceptable(&mut self, ctx: &mut Ctx<'_>, len: u32) {
        if len > 0 {
            self.owed |= owed::ACK;
        } else {
            self.challenge(ctx);
        }
    }

    /// A RST within the window: exact ones end the flow, others are challenged (RFC 5961, section 3.2).
    pub(super) fn handle_rst(&mut self, ctx: &mut Ctx<'_>, seg: &Tcp) {
        if seg.seq == self.rcv_nxt {
            ctx.tcp.resets_in += 1;
            if self.state == State::TimeWait {
                self.finish(ctx);
            } else {
                self.close(ctx, CloseReason::PeerReset, false);
            }
        } else {
            ctx.counts.add(DropReason::TcpChallenged);
            self.challenge(ctx);
        }
    }

    /// A challenge ACK, within the rate of RFC 5961, section 10.
    pub(super) fn challenge(&mut self, ctx: &mut Ctx<'_>) {
        let now = period(ctx.now);
        if self.challenge_period != now {
            self.challenge_period = now;
            self.challenges = 0;
        }
        if self.challenges < ctx.config.challenge_acks_per_second {
            self.challenges += 1;
            ctx.tcp.challenge_acks += 1;
            self.owed |= owed::ACK;
        }
    }

    /// Remembers the client's timestamp for the echo and for PAWS (RFC 7323, section 4.3).
    #[inline]
    fn note_timestamp(&mut self, ctx: &Ctx<'_>, seg: &Tcp) {
        if let Some((value, _)) = seg.options.timestamp
            && seg.seq.le(self.last_ack_sent)
            && self.fact(facts::TIMESTAMPS)
        {
            self.ts_recent = value;
            self.ts_recent_at = period(ctx.now);
        }
    }

    /// Takes the client's window from an acceptable segment whose acknowledgement is not old.
    ///
    /// Beyond RFC 9293 (section 3.10.7.4: `SND.WL1`, `SND.WL2`) an acknowledgement that `advanced` always counts: its
    /// segment may stand before one that came out of order, and the old window behind the new acknowledgement would
    /// reach further than the client ever said.
    #[inline]
    pub(super) fn update_window(&mut self, seg: &Tcp, advanced: bool) {
        let newer = self.snd_wl1.lt(seg.seq) || (self.snd_wl1 == seg.seq && self.snd_wl2.le(seg.ack));
        if advanced || newer {
            self.snd_wnd = u32::from(seg.window) << self.snd_shift;
            self.max_snd_wnd = self.max_snd_wnd.max(self.snd_wnd);
            self.snd_wl1 = seg.seq;
            self.snd_wl2 = seg.ack;
        }
    }

    /// The highest acknowledgement that makes sense: a window probe may be one byte ahead of `snd_nxt`.
    pub(super) fn highest_ack(&self) -> SeqNumber {
        self.snd_nxt + u32::from(self.fact(facts::PROBED))
    }
}
