//! From SYN to established: options, the SYN-ACK (at once or after the upstream's answer), and refusal.
//!
//! In `SynAck::AfterConnect` a flow starts in [`State::SynPending`]: the client's SYN retransmissions are swallowed
//! until [`Tcb::connected`] or [`Tcb::refused`]. In `SynAck::Immediate` the SYN-ACK is owed at once, bytes of the
//! client are queued while the upstream is being dialled, and a refusal resets an established connection.

use super::{CloseReason, Ctx, Events, Recovery, State, Tcb, facts, owed};
use crate::config::{SynAck, TcpConfig};
use crate::stats::DropReason;
use crate::time::Instant;
use crate::wire::tcp::{Flags, SeqNumber, Tcp, WINDOW_SCALE_MAX};

use super::congestion::Controller;
use super::path::Narrow;
use super::queue::ByteQueue;
use super::rtt::Rtt;

/// MSS of a client that announces none: the least packet that each host takes, less both headers (RFC 9293, section
/// 3.7.1, MUST-15).
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1_220;

/// Least MSS that is taken seriously, bytes: below, headers outweigh payload and each window costs thousands of
/// segments (the attack that CVE-2019-11479 describes).
const MSS_MIN: u16 = 64;

/// Bytes of the timestamp option with its padding (RFC 7323, appendix A).
pub(super) const TIMESTAMP_BYTES: u16 = 12;

/// SYN-ACK retransmissions before the half-open flow is dropped; with the first RTO of 1 s that is half a minute.
pub(super) const SYN_ACK_RETRIES: u8 = 5;

/// How a refusal looks on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// RST: the port is closed.
    Reset,
    /// Nothing, as when the network swallows the SYN, or the stack sends an ICMP error in its place. A connection that
    /// was already accepted is reset all the same.
    Silent,
}

impl Tcb {
    /// A flow from the client's SYN.
    ///
    /// `isn` is our initial sequence number (RFC 6528), `local_mss` what we announce: the device's MTU without IP and
    /// TCP headers; `v4` says which IP. Data on the SYN is not taken. Events: [`Events::CONNECT_WANTED`].
    pub fn accept(ctx: &mut Ctx<'_>, syn: &Tcp, isn: SeqNumber, local_mss: u16, v4: bool) -> Self {
        ctx.tcp.accepted += 1;
        let options = &syn.options;
        let mut facts = if v4 { facts::V4 } else { 0 };
        let (mut rcv_shift, mut snd_shift) = (0, 0);
        if let Some(shift) = options.window_scale {
            facts |= facts::SCALING;
            rcv_shift = scale_for(ctx.config.recv_window_max);
            snd_shift = shift.min(WINDOW_SCALE_MAX);
        }
        if options.sack_permitted {
            facts |= facts::SACK;
        }
        let default = if v4 { MSS_DEFAULT_V4 } else { MSS_DEFAULT_V6 };
        let mut mss = options.mss.unwrap_or(default).min(local_mss).max(MSS_MIN);
        let mut ts_recent = 0;
        if let Some((value, _)) = options.timestamp {
            facts |= facts::TIMESTAMPS;
            ts_recent = value;
            mss -= TIMESTAMP_BYTES;
        }
        let recv_capacity = ctx.config.recv_window_min.clamp(1, recv_limit(ctx.config, facts & facts::SCALING != 0));
        let rcv_nxt = syn.seq + 1;
        let mut events = Events::NONE;
        events.insert(Events::CONNECT_WANTED);
        let mut tcb = Self {
            state: State::SynPending,
            owed: 0,
            events,
            facts,
            unacked_segments: 0,
            duplicate_acks: 0,
            rcv_nxt,
            rcv_adv: rcv_nxt,
            last_ack_sent: rcv_nxt,
            snd_una: isn,
            snd_nxt: isn,
            snd_wnd: u32::from(syn.window),
            snd_wl1: syn.seq,
            snd_wl2: isn,
            ts_recent,
            ts_recent_at: period(ctx.now),
            // Any function of the unpredictable ISN will do.
            ts_offset: isn.0.rotate_left(13) ^ 0x5bd1_e995,
            mss,
            rcv_shift,
            snd_shift,
            last_received: ctx.now,
            rto_at: Instant::FAR,
            ack_at: Instant::FAR,
            slow_at: ctx.now.plus(ctx.config.connect_timeout),
            recv: ByteQueue::default(),
            send: ByteQueue::default(),
            rtt: Rtt::new(),
            cc: Controller::new(ctx.config.congestion, u32::from(mss)),
            recv_capacity,
            recv_grown: 0,
            max_snd_wnd: u32::from(syn.window),
            recovery_point: isn,
            rexmit_nxt: isn,
            recovery: Recovery::Open,
            backoff: 0,
            unanswered: 0,
            reason: CloseReason::Finished,
            challenges: 0,
            challenge_period: 0,
            duplicate_bytes: 0,
            last_sent: ctx.now,
            reset_seq: SeqNumber(0),
            fin_seq: rcv_nxt,
            iss: isn,
            irs: syn.seq,
            local_mss,
            narrow: Narrow::default(),
            out_of_order: None,
            scoreboard: None,
            #[cfg(test)]
            forced_slow: false,
        };
        if ctx.config.syn_ack == SynAck::Immediate {
            tcb.answer_syn();
        }
        tcb
    }

    /// The upstream is there: the withheld SYN-ACK goes out.
    pub fn connected(&mut self, ctx: &mut Ctx<'_>) {
        if self.fact(facts::CONNECTED) || self.state == State::Closed {
            return;
        }
        self.set_fact(facts::CONNECTED);
        if self.state == State::SynPending {
            self.answer_syn();
        }
        self.arm_slow_timer(ctx);
    }

    /// The upstream could not be reached.
    ///
    /// Before the handshake [`Refusal::Silent`] ends the flow without a segment; [`Refusal::Reset`] answers the SYN
    /// with RST (RFC 9293, section 3.10.7.1).
    pub fn refused(&mut self, ctx: &mut Ctx<'_>, how: Refusal) {
        if self.state == State::Closed {
            self.forget_unread(ctx);
            return;
        }
        let silent = self.state == State::SynPending && how == Refusal::Silent;
        self.close(ctx, CloseReason::Refused, !silent);
    }

    /// Whether `syn` opens a new connection over this flow; the caller then releases this one and accepts anew, with an
    /// ISN above [`Tcb::next_isn`].
    ///
    /// So it is when the flow is only waiting for stray segments (RFC 9293, section 3.10.7.4: TIME-WAIT; RFC 6191,
    /// section 2, where timestamps decide), and when the SYN-ACK is still withheld: nothing was said to the client that
    /// dialled first, so who dials now from the same port is the one to be answered.
    pub fn may_reopen(&self, syn: &Tcp) -> bool {
        if !syn.flags.syn() || syn.flags.ack() {
            return false;
        }
        let newer = || match syn.options.timestamp {
            Some((value, _)) if self.fact(facts::TIMESTAMPS) && value != self.ts_recent => {
                value.wrapping_sub(self.ts_recent) as i32 > 0
            }
            _ => syn.seq.gt(self.rcv_nxt),
        };
        match self.state {
            State::Closed => self.recv.is_empty(),
            State::TimeWait => self.recv.is_empty() && newer(),
            State::SynPending => syn.seq != self.irs,
            State::SynReceived
            | State::Established
            | State::CloseWait
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck => false,
        }
    }

    /// The sequence number of the client's SYN.
    pub fn client_isn(&self) -> SeqNumber {
        self.irs
    }

    /// The least initial sequence number that cannot be confused with this connection's.
    pub fn next_isn(&self) -> SeqNumber {
        self.snd_nxt + 128_000
    }

    /// Owes the SYN-ACK; from here on the connect timeout is the upstream's own matter.
    fn answer_syn(&mut self) {
        self.state = State::SynReceived;
        self.owed |= owed::SYN_ACK;
    }

    /// A segment before the handshake is over, in the order of RFC 9293, section 3.10.7.4. True if it completed the
    /// handshake and is to be processed further.
    pub(super) fn handle_opening(&mut self, ctx: &mut Ctx<'_>, seg: &Tcp, payload_len: u32) -> bool {
        debug_assert!(matches!(self.state, State::SynPending | State::SynReceived), "only while opening");
        if seg.flags.syn() && !seg.flags.intersects(Flags::ACK.with(Flags::RST)) && seg.seq == self.irs {
            // The client did not get our SYN-ACK, or waits for the one that is withheld.
            if self.state == State::SynReceived && self.snd_nxt != self.iss {
                self.owed |= owed::SYN_ACK;
            }
            ctx.counts.add(DropReason::TcpDuplicate);
            return false;
        }
        // First: the sequence number, which an acknowledgement answers. While the SYN-ACK is withheld nothing can be
        // said.
        if let Err(reason) = self.check_sequence(ctx, seg, payload_len) {
            ctx.counts.add(reason);
            if seg.flags.syn() {
                self.hasten_syn_ack(ctx);
            }
            return false;
        }
        // Second: RST, by RFC 5961, section 3.2, as in the other states.
        if seg.flags.rst() {
            self.handle_rst(ctx, seg);
            return false;
        }
        // Fourth: a SYN in the window. A passive connection goes back to LISTEN, without a word.
        if seg.flags.syn() {
            ctx.counts.add(DropReason::TcpChallenged);
            self.close(ctx, CloseReason::PeerReset, false);
            return false;
        }
        // Fifth: the acknowledgement. An unacceptable one is answered with RST.
        if !seg.flags.ack() {
            ctx.counts.add(DropReason::TcpMalformed);
            return false;
        }
        if self.state == State::SynPending || seg.ack.le(self.snd_una) || seg.ack.gt(self.snd_nxt) {
            ctx.counts.add(DropReason::TcpChallenged);
            self.owed |= owed::RESET_REPLY;
            self.reset_seq = seg.ack;
            return false;
        }
        self.state = State::Established;
        self.events.insert(Events::ESTABLISHED);
        ctx.tcp.established += 1;
        self.owed &= !owed::SYN_ACK;
        self.snd_una = self.iss + 1;
        self.rexmit_nxt = self.snd_una;
        self.recovery_point = self.iss;
        self.rto_at = Instant::FAR;
        if self.backoff == 0 {
            self.rtt.sample(ctx.now.since(self.last_sent));
        }
        self.backoff = 0;
        self.unanswered = 0;
        self.snd_wnd = u32::from(seg.window) << self.snd_shift;
        self.max_snd_wnd = self.snd_wnd;
        self.snd_wl1 = seg.seq;
        self.snd_wl2 = seg.ack;
        if self.fact(facts::FIN_QUEUED) {
            self.state = State::FinWait1;
        }
        self.arm_slow_timer(ctx);
        true
    }

    /// A client dials anew while our SYN-ACK to its predecessor is unanswered. The acknowledgement that it gets may be
    /// lost on a host that tracks connections; the SYN-ACK makes it send RST, and so it does not wait for the end of a
    /// long back-off. It counts as one of the retransmissions.
    fn hasten_syn_ack(&mut self, ctx: &Ctx<'_>) {
        if self.state == State::SynReceived && self.rto_at != Instant::FAR {
            self.rto_at = self.rto_at.min(ctx.now.plus(ctx.config.rto_min));
        }
    }

    /// The options and flags of the SYN-ACK.
    pub(super) fn syn_ack(&mut self, ctx: &mut Ctx<'_>) -> super::OutSegment {
        self.owed &= !owed::SYN_ACK;
        let first = self.snd_nxt == self.iss;
        if first {
            self.snd_nxt = self.iss + 1;
            self.last_sent = ctx.now;
        }
        if self.rto_at == Instant::FAR {
            self.rto_at = ctx.now.plus(self.rtt.timeout(ctx.config, self.backoff));
        }
        // The window of a SYN is never scaled (RFC 7323, section 2.2).
        let window = self.open_window(ctx).min(u32::from(u16::MAX));
        let edge = self.rcv_adv.max(self.rcv_nxt + window);
        let mut segment = self.bare_segment(ctx, Flags::SYN | Flags::ACK, self.iss);
        self.rcv_adv = edge;
        segment.repr.window = window as u16;
        let options = &mut segment.repr.options;
        options.mss = Some(self.local_mss);
        options.window_scale = self.fact(facts::SCALING).then_some(self.rcv_shift);
        options.sack_permitted = self.fact(facts::SACK);
        segment
    }
}

/// Largest receive window that can be advertised.
pub(super) fn recv_limit(config: &TcpConfig, scaling: bool) -> u32 {
    let representable = if scaling { u32::from(u16::MAX) << WINDOW_SCALE_MAX } else { u32::from(u16::MAX) };
    config.recv_window_max.clamp(1, representable)
}

/// The least shift with which `window` fits into 16 bits (RFC 7323, section 2.3).
fn scale_for(window: u32) -> u8 {
    (0..WINDOW_SCALE_MAX).find(|shift| u16::try_from(window >> shift).is_ok()).unwrap_or(WINDOW_SCALE_MAX)
}

/// Coarse time, units of 2^30 ns (1.07 s), for what is measured in seconds or days.
#[inline]
pub(super) fn period(now: Instant) -> u32 {
    (now.nanos() >> 30) as u32
}
