//! The upstream's bytes: the send queue, the client's acknowledgements, and what goes out next.
//!
//! Data stays in the buffers that the upstream filled until the client has acknowledged it. Segments are cut when they
//! are polled: as large as windows, device and queue allow, in whole multiples of the packet's payload while more is
//! queued. `snd_nxt` never moves back; retransmission walks the holes of the flight with a cursor of its own.

use super::accept::TIMESTAMP_BYTES;
use super::sack::Flight;
use super::{Ctx, OutSegment, Recovery, SegmentLimits, State, Tcb, facts, owed};
use crate::buf::Buf;
use crate::config::TcpConfig;
use crate::stats::DropReason;
use crate::time::{Instant, MILLIS, SECONDS};
use crate::wire::tcp::{Flags, Options, SackBlocks, SeqNumber, TcpRepr};

use super::BufferBudget;

/// Room that is worth waking the upstream for, bytes: one super-segment.
pub(super) const ROOM_WORTH: usize = 64 * 1024;

/// Room that a flow with nothing queued has even when the worker's memory is exhausted, bytes: so that none starves.
const ROOM_FLOOR: usize = 16 * 1024;

/// A window's share (one in this many) that a segment should fill while the client's acknowledgements are on the way:
/// waiting for one more is cheaper than many small super-segments.
const DEFER_DIVISOR: usize = 3;

/// Bounds of the override timeout of silly window avoidance, nanoseconds (RFC 9293, section 3.8.6.2.1).
const OVERRIDE_MIN: u64 = 100 * MILLIS;
const OVERRIDE_MAX: u64 = SECONDS;

impl Tcb {
    /// Bytes that the upstream may hand over now. Twice what the network takes, between the configured bounds, less
    /// what is queued; when it was small, [`Events::WRITABLE`] says that it is ample again.
    #[inline]
    pub fn upstream_room(&mut self, config: &TcpConfig, memory: &BufferBudget) -> usize {
        if !self.state.may_send() || self.fact(facts::FIN_QUEUED) {
            return 0;
        }
        let limit = self.send_limit(config, memory);
        let room = limit.saturating_sub(self.send.len());
        // The limit may have shrunk since the last push (a closed window, a loss): who waits now must be told as well.
        if room < (limit / 2).min(ROOM_WORTH) || room == 0 {
            self.set_fact(facts::BLOCKED);
        }
        room
    }

    /// Payload of the largest super-segment: what a read from the upstream should be a multiple of, so that no segment
    /// is cut short.
    pub fn segment_unit(&self, limits: &SegmentLimits) -> usize {
        let mss = usize::from(self.mss.min(limits.mss)).max(1);
        (limits.tso_max / mss * mss).max(mss)
    }

    /// Queues bytes of the upstream. The caller keeps to [`Tcb::upstream_room`]; more is taken all the same. After the
    /// end of the upstream or of the flow the bytes are freed.
    pub fn push(&mut self, ctx: &mut Ctx<'_>, data: Buf) {
        if !self.state.may_send() || self.fact(facts::FIN_QUEUED) {
            ctx.counts.add(DropReason::TcpClosed);
            ctx.pool.free(data);
            return;
        }
        ctx.memory.charge(data.len());
        self.send.push(data, ctx.pool);
        let limit = self.send_limit(ctx.config, ctx.memory);
        if limit.saturating_sub(self.send.len()) < (limit / 2).min(ROOM_WORTH) {
            self.set_fact(facts::BLOCKED);
        }
    }

    /// Bytes queued for the client: unacknowledged and unsent.
    pub fn send_len(&self) -> usize {
        self.send.len()
    }

    /// The payload of a polled segment, as slices of the send queue.
    #[inline]
    pub fn payload(&self, offset: usize, len: usize) -> impl Iterator<Item = &[u8]> {
        self.send.slices(offset, len)
    }

    /// The next segment to send, marked as sent at `ctx.now`; call until `None`, once a batch.
    ///
    /// Order: RST and SYN-ACK, retransmissions, new data and FIN, and an acknowledgement if none of these carried it.
    #[inline]
    pub fn poll_segment(&mut self, ctx: &mut Ctx<'_>, limits: &SegmentLimits) -> Option<OutSegment> {
        let segment = if self.has_data_work() { self.poll_with_data(ctx, limits) } else { None };
        let segment = match segment {
            Some(segment) => segment,
            None if self.owed == 0 => return None,
            None => self.poll_owed(ctx)?,
        };
        ctx.tcp.segments_out += 1;
        ctx.tcp.bytes_out += segment.payload_len as u64;
        Some(segment)
    }

    /// Whether data, FIN or retransmissions could be sent.
    #[inline]
    fn has_data_work(&self) -> bool {
        match self.state {
            State::Established | State::CloseWait | State::FinWait1 | State::Closing | State::LastAck => {
                self.recovery != Recovery::Open
                    || self.unsent() > 0
                    || self.facts & (facts::FIN_QUEUED | facts::FIN_SENT) == facts::FIN_QUEUED
            }
            State::SynPending | State::SynReceived | State::FinWait2 | State::TimeWait | State::Closed => false,
        }
    }

    fn poll_with_data(&mut self, ctx: &mut Ctx<'_>, limits: &SegmentLimits) -> Option<OutSegment> {
        self.widen_when_due(ctx);
        let mss = self.packet_payload(limits);
        if self.recovery != Recovery::Open
            && let Some(segment) = self.poll_lost(ctx, limits, mss)
        {
            return Some(segment);
        }
        if let Some(segment) = self.poll_new(ctx, limits, mss) {
            return Some(segment);
        }
        if self.recovery == Recovery::Fast { self.poll_doubtful(ctx, limits, mss) } else { None }
    }

    /// Segments without data.
    fn poll_owed(&mut self, ctx: &mut Ctx<'_>) -> Option<OutSegment> {
        if self.owed & owed::RESET != 0 {
            self.owed = 0;
            ctx.tcp.resets_out += 1;
            let segment = self.bare_segment(ctx, Flags::RST | Flags::ACK, self.snd_nxt);
            self.tell_closed();
            return Some(segment);
        }
        if self.owed & owed::RESET_REPLY != 0 {
            self.owed &= !owed::RESET_REPLY;
            ctx.tcp.resets_out += 1;
            let repr = TcpRepr {
                src_port: 0,
                dst_port: 0,
                seq: self.reset_seq,
                ack: SeqNumber(0),
                flags: Flags::RST,
                window: 0,
                options: Options::NONE,
            };
            return Some(OutSegment { repr, payload_offset: 0, payload_len: 0, gso_size: None });
        }
        if self.owed & owed::SYN_ACK != 0 {
            return Some(self.syn_ack(ctx));
        }
        if self.state == State::SynPending || (self.state == State::SynReceived && self.snd_nxt == self.iss) {
            // Nothing but the SYN-ACK may be said yet.
            self.owed = 0;
            return None;
        }
        // A probe whose reason is gone.
        self.owed &= !owed::PROBE;
        if self.owed & owed::KEEPALIVE != 0 {
            self.owed &= !owed::KEEPALIVE;
            if self.flight() == 0 {
                ctx.tcp.keepalive_probes += 1;
                return Some(self.bare_segment(ctx, Flags::ACK, self.snd_nxt - 1));
            }
        }
        if self.owed & owed::ACK != 0 {
            ctx.tcp.acks_out += 1;
            return Some(self.bare_segment(ctx, Flags::ACK, self.snd_nxt));
        }
        None
    }

    /// A segment of headers only; whatever acknowledgement was owed goes with it.
    #[inline]
    pub(super) fn bare_segment(&mut self, ctx: &Ctx<'_>, flags: Flags, seq: SeqNumber) -> OutSegment {
        let mut options = Options::NONE;
        if self.fact(facts::TIMESTAMPS) {
            options.timestamp = Some((self.timestamp(ctx), self.ts_recent));
        }
        if self.out_of_order.is_some() {
            options.sack = self.sack_option();
        }
        let window = self.select_window(ctx);
        self.owed &= !owed::ACK;
        self.unacked_segments = 0;
        self.ack_at = Instant::FAR;
        self.last_ack_sent = self.rcv_nxt;
        let repr = TcpRepr { src_port: 0, dst_port: 0, seq, ack: self.rcv_nxt, flags, window, options };
        OutSegment { repr, payload_offset: 0, payload_len: 0, gso_size: None }
    }

    /// What is held out of order, newest first (RFC 2018, section 4).
    fn sack_option(&self) -> SackBlocks {
        if !self.fact(facts::SACK) {
            return SackBlocks::EMPTY;
        }
        // 40 bytes of options: 3 blocks beside timestamps.
        let most = if self.fact(facts::TIMESTAMPS) { 3 } else { 4 };
        self.out_of_order.as_ref().map_or(SackBlocks::EMPTY, |held| held.sack_blocks(most).collect())
    }

    /// Payload of one packet: SACK blocks on data segments take their room from it.
    fn packet_payload(&self, limits: &SegmentLimits) -> usize {
        let timestamps = if self.fact(facts::TIMESTAMPS) { TIMESTAMP_BYTES } else { 0 };
        let mut mss = usize::from(self.mss.min(limits.mss.saturating_sub(timestamps)));
        if self.out_of_order.is_some() {
            let blocks = self.sack_option().len();
            if blocks > 0 {
                mss = mss.saturating_sub(4 + 8 * blocks);
            }
        }
        mss.max(1)
    }

    /// Sequence numbers outstanding.
    #[inline]
    pub(super) fn flight(&self) -> u32 {
        (self.snd_nxt - self.snd_una) as u32
    }

    /// Queued bytes that were never sent.
    #[inline]
    fn unsent(&self) -> usize {
        if self.fact(facts::FIN_SENT) { 0 } else { self.send.len() - self.flight() as usize }
    }

    /// The flight as the scoreboard sees it.
    pub(super) fn view(&self) -> Flight<'_> {
        let mss = u32::from(self.mss);
        Flight {
            una: self.snd_una,
            nxt: self.snd_nxt,
            cursor: self.rexmit_nxt,
            lost_below: match self.recovery {
                Recovery::Open => self.snd_una,
                // The head of the flight, when recovery begins and after each partial acknowledgement (RFC 6582).
                Recovery::Fast => (self.snd_una + mss).min(self.snd_nxt),
                Recovery::Loss => self.recovery_point,
            },
            mss,
            ranges: self.scoreboard.as_ref().map_or(&[], |board| board.ranges()),
        }
    }

    /// Bytes thought to be in the network.
    fn pipe(&self) -> u32 {
        if self.recovery == Recovery::Open && self.scoreboard.is_none() {
            return self.flight().saturating_sub(self.duplicate_bytes);
        }
        self.view().pipe().saturating_sub(self.duplicate_bytes)
    }

    /// Retransmits what is lost, within the congestion window; the first segment of each round goes out regardless
    /// (RFC 6675, section 5, step 4.3).
    fn poll_lost(&mut self, ctx: &mut Ctx<'_>, limits: &SegmentLimits, mss: usize) -> Option<OutSegment> {
        let (left, right) = self.view().next_lost()?;
        let room = self.cc.window().saturating_sub(self.pipe()) as usize;
        let first = self.rexmit_nxt == self.snd_una;
        if room < mss && !first {
            return None;
        }
        Some(self.retransmit(ctx, limits, mss, left, (right - left) as usize, room.max(mss)))
    }

    /// Retransmits what may be lost, when there is nothing better to send (RFC 6675, section 4: `NextSeg`, rule 3).
    fn poll_doubtful(&mut self, ctx: &mut Ctx<'_>, limits: &SegmentLimits, mss: usize) -> Option<OutSegment> {
        let (left, right) = self.view().next_doubtful()?;
        if (self.cc.window().saturating_sub(self.pipe()) as usize) < mss {
            return None;
        }
        Some(self.retransmit(ctx, limits, mss, left, (right - left) as usize, mss))
    }

    /// Sends `left..` again, at most `len` sequence numbers and `room` bytes.
    fn retransmit(
        &mut self,
        ctx: &mut Ctx<'_>,
        limits: &SegmentLimits,
        mss: usize,
        left: SeqNumber,
        len: usize,
        room: usize,
    ) -> OutSegment {
        let offset = (left - self.snd_una) as usize;
        let data = self.send.len().saturating_sub(offset).min(len);
        let most = (limits.tso_max.min(room) / mss * mss).max(mss);
        let mut count = data.min(most);
        let fitting = self.send.within_slices(offset, count, limits.slices.max(1));
        if fitting < count {
            count = if fitting >= mss { fitting / mss * mss } else { fitting };
        }
        // Our FIN stands behind the last byte of the queue; it is part of the run if the run is longer than the data.
        let fin = self.fact(facts::FIN_SENT) && offset + count == self.send.len() && len > count;
        self.clear_fact(facts::TIMED);
        self.rexmit_nxt = self.rexmit_nxt.max(left + count as u32 + u32::from(fin));
        ctx.tcp.retransmits += 1;
        if self.rto_at == Instant::FAR {
            self.rto_at = ctx.now.plus(self.rtt.timeout(ctx.config, self.backoff));
        }
        self.data_segment(ctx, left, offset, count, mss, fin)
    }

    /// New data, FIN, or a probe of the window.
    fn poll_new(&mut self, ctx: &mut Ctx<'_>, limits: &SegmentLimits, mss: usize) -> Option<OutSegment> {
        let unsent = self.unsent();
        let fin = self.facts & (facts::FIN_QUEUED | facts::FIN_SENT) == facts::FIN_QUEUED;
        if unsent == 0 {
            return fin.then(|| self.send_new(ctx, 0, mss, true));
        }
        let flight = self.flight();
        if flight == 0 && ctx.now.since(self.last_sent) > self.rtt.timeout(ctx.config, 0) {
            self.cc.on_idle(u32::from(self.mss));
        }
        let window = (self.snd_una + self.snd_wnd - self.snd_nxt).max(0) as usize;
        let network = self.cc.window().saturating_sub(self.pipe()) as usize;
        let most = (limits.tso_max / mss * mss).max(mss);
        let mut len = unsent.min(window).min(network).min(most);
        let fitting = self.send.within_slices((self.snd_nxt - self.snd_una) as usize, len, limits.slices.max(1));
        let sliced = fitting < len;
        len = fitting;
        if len < unsent {
            if len >= mss {
                len = len / mss * mss;
            }
            // Silly window avoidance (RFC 1122, section 4.2.3.4). A segment cut short by its slices is not silly.
            let worthwhile = len >= mss || (len > 0 && (len * 2 >= self.max_snd_wnd as usize || sliced));
            if !worthwhile {
                return self.hold_back(ctx, window, mss);
            }
            // More room is coming: the flight is more than half of the window.
            let bound = self.cc.window().min(self.snd_wnd) as usize / DEFER_DIVISOR;
            if !sliced && len < most.min(bound) && flight > 0 && self.recovery == Recovery::Open {
                return None;
            }
        }
        Some(self.send_new(ctx, len, mss, fin && len == unsent))
    }

    /// Nothing worthwhile fits. With nothing on the way no acknowledgement will change that: the persist timer does.
    fn hold_back(&mut self, ctx: &mut Ctx<'_>, window: usize, mss: usize) -> Option<OutSegment> {
        if self.flight() > 0 {
            return None;
        }
        if self.owed & owed::PROBE != 0 {
            self.owed &= !owed::PROBE;
            ctx.tcp.window_probes += 1;
            if window > 0 {
                let len = window.min(mss).min(self.unsent());
                return Some(self.send_new(ctx, len, mss, false));
            }
            // One byte beyond the window, not counted as sent: the client refuses it, or acknowledges it.
            self.set_fact(facts::PROBED);
            self.arm_persist(ctx);
            return Some(self.data_segment(ctx, self.snd_nxt, 0, 1, mss, false));
        }
        if self.rto_at == Instant::FAR {
            self.arm_persist(ctx);
        }
        None
    }

    fn arm_persist(&mut self, ctx: &Ctx<'_>) {
        self.set_fact(facts::PERSIST);
        let delay =
            if self.snd_wnd > 0 { self.override_timeout(ctx) } else { self.rtt.timeout(ctx.config, self.backoff) };
        self.rto_at = ctx.now.plus(delay);
    }

    /// How long silly window avoidance may hold data back (RFC 9293, section 3.8.6.2.1: 0.1 to 1 s).
    pub(super) fn override_timeout(&self, ctx: &Ctx<'_>) -> u64 {
        self.rtt.timeout(ctx.config, 0).clamp(OVERRIDE_MIN, OVERRIDE_MAX)
    }

    /// Sends the next `len` bytes for the first time, and FIN behind them if `fin`.
    #[inline]
    fn send_new(&mut self, ctx: &mut Ctx<'_>, len: usize, mss: usize, fin: bool) -> OutSegment {
        let seq = self.snd_nxt;
        let offset = (seq - self.snd_una) as usize;
        if fin {
            self.set_fact(facts::FIN_SENT);
        }
        self.snd_nxt += len as u32 + u32::from(fin);
        if self.recovery == Recovery::Open {
            self.rexmit_nxt = self.snd_una;
        }
        self.owed &= !owed::PROBE;
        self.last_sent = ctx.now;
        if self.facts & (facts::TIMED | facts::PROBED) == 0 {
            self.set_fact(facts::TIMED);
            self.rtt.timed_seq = self.snd_nxt;
            self.rtt.timed_at = ctx.now;
        }
        if self.rto_at == Instant::FAR || self.fact(facts::PERSIST) {
            self.backoff = if self.fact(facts::PERSIST) { 0 } else { self.backoff };
            self.rto_at = ctx.now.plus(self.rtt.timeout(ctx.config, self.backoff));
        }
        self.clear_fact(facts::PERSIST | facts::PROBED);
        self.data_segment(ctx, seq, offset, len, mss, fin)
    }

    /// The segment for `len` bytes at `offset` of the send queue.
    #[inline]
    fn data_segment(
        &mut self,
        ctx: &Ctx<'_>,
        seq: SeqNumber,
        offset: usize,
        len: usize,
        mss: usize,
        fin: bool,
    ) -> OutSegment {
        let mut flags = Flags::ACK;
        if fin {
            flags |= Flags::FIN;
        }
        if len > 0 && offset + len == self.send.len() {
            flags |= Flags::PSH;
        }
        let mut segment = self.bare_segment(ctx, flags, seq);
        segment.payload_offset = offset;
        segment.payload_len = len;
        segment.gso_size = (len > mss).then_some(mss as u16);
        segment
    }

    /// Bytes that the send queue may hold.
    pub(super) fn send_limit(&self, config: &TcpConfig, memory: &BufferBudget) -> usize {
        if memory.is_exhausted() {
            return if self.send.is_empty() { ROOM_FLOOR } else { 0 };
        }
        let floor = config.send_buffer_min;
        if memory.is_tight() {
            return floor as usize;
        }
        let network = self.cc.window().min(self.snd_wnd);
        network.saturating_mul(2).clamp(floor, config.send_buffer_max.max(floor)) as usize
    }
}
