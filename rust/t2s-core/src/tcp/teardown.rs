//! The end of a flow: FIN in either direction, RST, abort.

use super::{CloseReason, Ctx, Events, Recovery, State, Tcb, facts, owed};
use crate::buf::PoolCache;
use crate::reassembly::Budget;
use crate::time::Instant;

impl Tcb {
    /// The upstream has ended: FIN follows the last byte that was pushed. The client's direction stays open.
    pub fn upstream_eof(&mut self, ctx: &mut Ctx<'_>) {
        if self.fact(facts::FIN_QUEUED) {
            return;
        }
        match self.state {
            // FIN follows once the handshake is over.
            State::SynPending | State::SynReceived => self.set_fact(facts::FIN_QUEUED),
            State::Established => {
                self.set_fact(facts::FIN_QUEUED);
                self.state = State::FinWait1;
                self.arm_slow_timer(ctx);
            }
            State::CloseWait => {
                self.set_fact(facts::FIN_QUEUED);
                self.state = State::LastAck;
                self.arm_slow_timer(ctx);
            }
            State::FinWait1 | State::FinWait2 | State::Closing | State::LastAck | State::TimeWait | State::Closed => {}
        }
    }

    /// The upstream takes no more bytes, though it may still give some. Unread or later bytes of the client end the
    /// flow with RST, so that the client learns that they were lost (RFC 1122, section 4.2.2.13).
    pub fn reader_gone(&mut self, ctx: &mut Ctx<'_>) {
        if self.state == State::Closed {
            self.forget_unread(ctx);
            return;
        }
        self.set_fact(facts::READER_GONE);
        if self.state == State::FinWait2 {
            // Nobody is left on our side (an orphan, in the words of Linux).
            self.arm_slow_timer(ctx);
        }
        if !self.recv.is_empty() || self.out_of_order.is_some() {
            self.close(ctx, CloseReason::ReaderGone, true);
        }
    }

    /// Ends the flow with RST, whatever is queued. [`Events::CLOSED`] follows once the RST was polled.
    pub fn abort(&mut self, ctx: &mut Ctx<'_>) {
        if self.state == State::Closed {
            self.forget_unread(ctx);
        } else {
            self.close(ctx, CloseReason::Aborted, true);
        }
    }

    /// The client has finished in peace and left bytes for an upstream that takes none: they go.
    pub(super) fn forget_unread(&mut self, ctx: &mut Ctx<'_>) {
        if !self.recv.is_empty() {
            self.slow_at = Instant::FAR;
            self.drop_queues(ctx.pool, ctx.budget, ctx.memory);
            self.tell_closed();
        }
    }

    /// Gives every buffer back; the flow ends without a word. For a flow that is closed, evicted, or whose worker ends.
    pub fn release(mut self, pool: &mut PoolCache, budget: &mut Budget, memory: &mut super::BufferBudget) {
        memory.shrink(self.recv_grown);
        self.drop_queues(pool, budget, memory);
    }

    /// Closes the flow for `reason`, with RST if `reset`.
    pub(super) fn close(&mut self, ctx: &mut Ctx<'_>, reason: CloseReason, reset: bool) {
        debug_assert!(self.state != State::Closed, "closed twice");
        // TIME-WAIT has nobody left to reset.
        let reset = reset && self.state != State::TimeWait;
        let opening = self.state == State::SynPending;
        self.drop_queues(ctx.pool, ctx.budget, ctx.memory);
        self.reason = reason;
        self.state = State::Closed;
        self.owed = 0;
        self.rto_at = Instant::FAR;
        self.ack_at = Instant::FAR;
        self.slow_at = Instant::FAR;
        match reason {
            CloseReason::Finished | CloseReason::Aborted | CloseReason::Refused => {}
            CloseReason::PeerReset
            | CloseReason::ConnectTimeout
            | CloseReason::RetransmitTimeout
            | CloseReason::KeepaliveTimeout
            | CloseReason::IdleTimeout
            | CloseReason::FinWait2Timeout
            | CloseReason::ReaderGone
            | CloseReason::Protocol => self.events.insert(Events::RESET),
        }
        if reset {
            self.owed = owed::RESET;
            if opening {
                // No sequence number of ours was ever sent (RFC 9293, section 3.10.7.1: SEQ 0).
                self.snd_nxt = crate::wire::tcp::SeqNumber(0);
                self.snd_una = self.snd_nxt;
                self.rexmit_nxt = self.snd_nxt;
            }
        } else {
            self.tell_closed();
        }
    }

    /// Gives [`Events::CLOSED`], once.
    pub(super) fn tell_closed(&mut self) {
        if !self.fact(facts::CLOSED_TOLD) {
            self.set_fact(facts::CLOSED_TOLD);
            self.events.insert(Events::CLOSED);
        }
    }

    fn drop_queues(&mut self, pool: &mut PoolCache, budget: &mut Budget, memory: &mut super::BufferBudget) {
        memory.discharge(self.recv.clear(pool));
        memory.discharge(self.send.clear(pool));
        if let Some(mut held) = self.out_of_order.take() {
            super::receive::drop_held(&mut held, pool, budget);
        }
        self.scoreboard = None;
        self.recovery = Recovery::Open;
        self.snd_una = self.snd_nxt;
        self.rexmit_nxt = self.snd_nxt;
    }

    /// The client's FIN is next in sequence.
    pub(super) fn handle_fin(&mut self, ctx: &mut Ctx<'_>) {
        debug_assert!(self.rcv_nxt == self.fin_seq, "FIN out of sequence");
        self.rcv_nxt += 1;
        self.rcv_adv = self.rcv_adv.max(self.rcv_nxt);
        self.events.insert(Events::PEER_FIN);
        match self.state {
            State::Established => {
                self.state = State::CloseWait;
                // The upstream mostly ends in answer: our FIN then carries the acknowledgement.
                self.ack_at = self.ack_at.min(ctx.now.plus(ctx.config.delayed_ack));
            }
            State::FinWait1 => {
                self.owed |= owed::ACK;
                self.state = State::Closing;
            }
            State::FinWait2 => {
                self.owed |= owed::ACK;
                self.enter_time_wait(ctx);
            }
            State::SynPending
            | State::SynReceived
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => debug_assert!(false, "FIN taken in {:?}", self.state),
        }
    }

    /// Our FIN is acknowledged.
    pub(super) fn handle_fin_acked(&mut self, ctx: &mut Ctx<'_>) {
        match self.state {
            State::FinWait1 => {
                self.state = State::FinWait2;
                self.arm_slow_timer(ctx);
            }
            State::Closing => self.enter_time_wait(ctx),
            State::LastAck => self.finish(ctx),
            State::SynPending
            | State::SynReceived
            | State::Established
            | State::CloseWait
            | State::FinWait2
            | State::TimeWait
            | State::Closed => debug_assert!(false, "FIN acknowledged in {:?}", self.state),
        }
    }

    /// Both FINs are acknowledged and nothing is to be waited for. The client's last bytes may still wait for the
    /// upstream: they stay readable, and [`Events::CLOSED`] comes when they are consumed.
    pub(super) fn finish(&mut self, ctx: &mut Ctx<'_>) {
        ctx.memory.discharge(self.send.clear(ctx.pool));
        self.reason = CloseReason::Finished;
        self.state = State::Closed;
        self.rto_at = Instant::FAR;
        self.ack_at = Instant::FAR;
        self.slow_at = Instant::FAR;
        if self.recv.is_empty() {
            self.tell_closed();
        } else {
            self.arm_unread_timer(ctx);
        }
    }

    /// Both directions are done; stray segments are answered for a while. Unread bytes stay readable.
    fn enter_time_wait(&mut self, ctx: &mut Ctx<'_>) {
        self.state = State::TimeWait;
        self.reason = CloseReason::Finished;
        self.rto_at = Instant::FAR;
        self.slow_at = ctx.now.plus(ctx.config.time_wait);
    }
}
