//! The client's bytes: sequencing, what waits for the upstream, the window, and when an acknowledgement is due.
//!
//! In-order payload stays in the buffer that it came in. The window never moves its right edge to the left: what was
//! promised is taken, even when memory has become tight since (RFC 9293, section 3.8.6). It opens to `recv_capacity`,
//! which doubles when the client filled the window and the upstream took everything at once, and falls back when the
//! flow was idle; with the worker's budget tight it opens to the configured minimum only, and at the budget's end not
//! at all, except for two segments to a flow that holds nothing, so that none starves.

use super::accept::recv_limit;
use super::{CloseReason, Ctx, Events, State, Tcb, facts, owed};
use crate::buf::{Buf, PoolCache};
use crate::reassembly::{Budget, Insert, StreamReassembler};
use crate::stats::DropReason;
use crate::time::{Instant, SECONDS};
use crate::wire::tcp::SeqNumber;

/// Silence after which a grown window is no longer justified, nanoseconds.
pub(super) const WINDOW_IDLE: u64 = 10 * SECONDS;

/// Segments after which an acknowledgement is due (RFC 9293, section 3.8.6.3; RFC 5681, section 4.2).
const ACK_EVERY: u8 = 2;

impl Tcb {
    /// Bytes of the client that the upstream has not taken yet.
    #[inline]
    pub fn readable_len(&self) -> usize {
        self.recv.len()
    }

    /// These bytes, in order.
    #[inline]
    pub fn readable(&self) -> impl Iterator<Item = &[u8]> {
        self.recv.slices(0, self.recv.len())
    }

    /// The upstream took `count` bytes from the front. The window may open: poll for a segment afterwards.
    #[inline]
    pub fn consume(&mut self, ctx: &mut Ctx<'_>, count: usize) {
        let taken = self.recv.consume(count, ctx.pool);
        ctx.memory.discharge(taken);
        if self.recv.is_empty() {
            if self.fact(facts::WINDOW_LIMITED) {
                self.clear_fact(facts::WINDOW_LIMITED);
                self.grow_window(ctx);
            }
            if self.state == State::Closed {
                self.slow_at = Instant::FAR;
                self.tell_closed();
                return;
            }
        } else if self.state == State::Closed && taken > 0 {
            self.arm_unread_timer(ctx);
        }
        if taken > 0 && self.state.may_receive() && self.is_update_due(ctx) {
            self.owed |= owed::ACK;
        }
    }

    /// Payload that starts at `RCV.NXT` and lies within the window.
    #[inline]
    pub(super) fn take_in_order(&mut self, ctx: &mut Ctx<'_>, payload: Buf) {
        let len = payload.len() as u32;
        debug_assert!(len > 0 && (self.rcv_nxt + len).le(self.rcv_adv), "beyond the window");
        self.rcv_nxt += len;
        ctx.tcp.bytes_in += u64::from(len);
        ctx.memory.charge(len as usize);
        self.recv.push(payload, ctx.pool);
        self.events.insert(Events::READABLE);
        // Within a quarter of the end: the window is about to stop the client.
        if ((self.rcv_adv - self.rcv_nxt) as u32) < self.recv_capacity / 4 {
            self.set_fact(facts::WINDOW_LIMITED);
        }
        self.unacked_segments = self.unacked_segments.saturating_add(1 + u8::from(len > u32::from(self.mss)));
        if self.unacked_segments >= ACK_EVERY {
            self.owed |= owed::ACK;
        } else if self.ack_at == Instant::FAR {
            self.ack_at = ctx.now.plus(ctx.config.delayed_ack);
        }
    }

    /// Payload and FIN of an acceptable segment in a state that may receive. `seq` is the payload's first byte; it may
    /// be old in part, or beyond the window in part.
    pub(super) fn handle_payload(&mut self, ctx: &mut Ctx<'_>, mut seq: SeqNumber, mut payload: Buf, mut fin: bool) {
        debug_assert!(self.state.may_receive(), "payload in {:?}", self.state);
        if seq.lt(self.rcv_nxt) {
            payload.advance((self.rcv_nxt - seq) as usize);
            seq = self.rcv_nxt;
        }
        let room = (self.rcv_adv - seq).max(0) as usize;
        if payload.len() > room {
            ctx.counts.add(DropReason::TcpOutOfWindow);
            payload.truncate(room);
            fin = false;
            self.owed |= owed::ACK;
        }
        if self.fact(facts::FIN_SEEN) {
            // Nothing follows a FIN.
            payload.truncate((self.fin_seq - seq).max(0) as usize);
        } else if fin {
            self.set_fact(facts::FIN_SEEN);
            self.fin_seq = seq + payload.len() as u32;
        }
        if payload.is_empty() {
            ctx.pool.free(payload);
        } else if self.fact(facts::READER_GONE) {
            ctx.counts.add(DropReason::TcpClosed);
            ctx.pool.free(payload);
            self.close(ctx, CloseReason::ReaderGone, true);
            return;
        } else if seq == self.rcv_nxt {
            self.take_in_order(ctx, payload);
            self.drain_held(ctx);
        } else {
            self.hold(ctx, seq, payload);
        }
        if self.fact(facts::FIN_SEEN) {
            if self.rcv_nxt.ge(self.fin_seq) {
                self.fin_seq = self.rcv_nxt;
                if let Some(mut held) = self.out_of_order.take() {
                    drop_held(&mut held, ctx.pool, ctx.budget);
                }
                self.handle_fin(ctx);
            } else {
                self.owed |= owed::ACK;
            }
        }
    }

    /// Early drain: what became contiguous moves to the receive queue at once.
    fn drain_held(&mut self, ctx: &mut Ctx<'_>) {
        let Some(mut held) = self.out_of_order.take() else { return };
        // A filled hole is acknowledged at once (RFC 5681, section 4.2).
        self.owed |= owed::ACK;
        while let Some(buf) = held.pop(self.rcv_nxt, ctx.budget) {
            self.take_in_order(ctx, buf);
        }
        self.keep_held(ctx, held);
    }

    /// Puts the out-of-order queue back, or drops it when it is empty.
    fn keep_held(&mut self, ctx: &mut Ctx<'_>, mut held: Box<StreamReassembler>) {
        while let Some(buf) = held.shed(ctx.stream, ctx.mode, ctx.budget) {
            ctx.counts.add(DropReason::ReassemblyFull);
            ctx.pool.free(buf);
        }
        while let Some(buf) = ctx.budget.reclaim() {
            ctx.pool.free(buf);
        }
        if held.is_empty() {
            ctx.budget.put_by(held);
        } else {
            self.out_of_order = Some(held);
        }
    }

    /// Out-of-order payload within the window.
    fn hold(&mut self, ctx: &mut Ctx<'_>, seq: SeqNumber, payload: Buf) {
        ctx.tcp.out_of_order += 1;
        // A duplicate acknowledgement at once (RFC 5681, section 4.2), with SACK blocks if negotiated.
        self.owed |= owed::ACK;
        let payload = if payload.len() * 4 < payload.capacity() {
            // A hole may wait long; a small payload does not pin a large buffer.
            let Ok(copy) = ctx.pool.alloc_copy(payload.as_slice(), 0) else {
                ctx.counts.add(DropReason::PoolExhausted);
                ctx.pool.free(payload);
                return;
            };
            ctx.pool.free(payload);
            copy
        } else {
            payload
        };
        let mut held = self.out_of_order.take().unwrap_or_else(|| ctx.budget.queue());
        match held.insert(self.rcv_nxt, seq, payload, ctx.stream, ctx.mode, ctx.budget) {
            Insert::Stored { .. } => {}
            Insert::Duplicate(buf) => {
                ctx.counts.add(DropReason::TcpDuplicate);
                ctx.pool.free(buf);
            }
            Insert::Refused(buf, reason) => {
                ctx.counts.add(reason);
                ctx.pool.free(buf);
            }
        }
        // Near the end of the shared budget a flow gives back its newest holes; the client sends them again.
        while let Some(buf) = held.shed(ctx.stream, ctx.mode, ctx.budget) {
            ctx.counts.add(DropReason::ReassemblyFull);
            ctx.pool.free(buf);
        }
        self.keep_held(ctx, held);
    }

    /// Doubles the receive buffer, if the worker's budget is far from its end and other windows leave room.
    fn grow_window(&mut self, ctx: &mut Ctx<'_>) {
        let limit = recv_limit(ctx.config, self.fact(facts::SCALING));
        let more = self.recv_capacity.saturating_mul(2).min(limit).saturating_sub(self.recv_capacity);
        if more > 0 && ctx.memory.grow(more) {
            self.recv_capacity += more;
            self.recv_grown += more;
            self.watch_window(ctx);
        }
    }

    /// A segment came, after a silence perhaps.
    #[inline]
    pub(super) fn note_received(&mut self, ctx: &mut Ctx<'_>) {
        if self.recv_grown > 0 {
            self.shrink_idle_window(ctx);
        }
        self.last_received = ctx.now;
    }

    /// After a silence a window that grew before it is no longer justified: its growth is given to flows that move.
    pub(super) fn shrink_idle_window(&mut self, ctx: &mut Ctx<'_>) {
        if ctx.now.since(self.last_received) >= WINDOW_IDLE {
            ctx.memory.shrink(self.recv_grown);
            self.recv_capacity -= self.recv_grown;
            self.recv_grown = 0;
        }
    }

    /// How far the window may open beyond `RCV.NXT`, bytes.
    pub(super) fn open_window(&self, ctx: &Ctx<'_>) -> u32 {
        let capacity = if ctx.memory.is_exhausted() {
            if self.recv.is_empty() { self.recv_capacity.min(2 * u32::from(self.mss)) } else { 0 }
        } else if ctx.memory.is_tight() {
            self.recv_capacity.min(ctx.config.recv_window_min)
        } else {
            self.recv_capacity
        };
        let free = u64::from(capacity).saturating_sub(self.recv.len() as u64) as u32;
        free.min(u32::from(u16::MAX) << self.rcv_shift)
    }

    /// Growth of the window that is worth telling (RFC 1122, section 4.2.3.3).
    fn worth_telling(&self) -> u32 {
        (self.recv_capacity / 2).min(u32::from(self.mss)).max(1)
    }

    /// Whether the client should hear that the window has opened: it was nearly closed, or opened by half while less
    /// than a third is left. Senders hold back from about there; before, acknowledgements of data tell it in time.
    fn is_update_due(&self, ctx: &Ctx<'_>) -> bool {
        let current = (self.rcv_adv - self.rcv_nxt).max(0) as u32;
        let open = self.open_window(ctx) >> self.rcv_shift << self.rcv_shift;
        let gain = open.saturating_sub(current);
        let half = gain >= (self.recv_capacity / 2).max(1) && current < self.recv_capacity / 3;
        half || (current < u32::from(self.mss) && gain >= self.worth_telling())
    }

    /// The window field of the segment that is being built; moves `rcv_adv`.
    #[inline]
    pub(super) fn select_window(&mut self, ctx: &Ctx<'_>) -> u16 {
        let current = (self.rcv_adv - self.rcv_nxt).max(0) as u32;
        let open = self.open_window(ctx);
        let rounded = open >> self.rcv_shift;
        let window = if rounded << self.rcv_shift >= current.saturating_add(self.worth_telling()) {
            rounded
        } else {
            // The edge stays. It may not be a multiple of the window's unit: rounded up if there is room for that,
            // else down, by less than a unit, as RFC 7323, section 2.4, allows; what was promised is still taken.
            let up = (current + (1 << self.rcv_shift) - 1) >> self.rcv_shift;
            if up << self.rcv_shift <= open.max(current) { up } else { current >> self.rcv_shift }
        };
        let window = window.min(u32::from(u16::MAX));
        self.rcv_adv = self.rcv_adv.max(self.rcv_nxt + (window << self.rcv_shift));
        window as u16
    }
}

/// Gives all held buffers back.
pub(super) fn drop_held(held: &mut StreamReassembler, pool: &mut PoolCache, budget: &mut Budget) {
    held.clear(budget);
    while let Some(buf) = budget.reclaim() {
        pool.free(buf);
    }
}
