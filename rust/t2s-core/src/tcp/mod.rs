//! The TCP terminator: the passive end of a client's connection, as a state machine without I/O or clock.
//!
//! One [`Tcb`] is one flow. Segments of the client go in by [`Tcb::handle_segment`], time by [`Tcb::handle_timeout`],
//! the upstream's bytes by [`Tcb::push`]; segments to send come out of [`Tcb::poll_segment`], the client's bytes out of
//! [`Tcb::readable`], and news for the stack out of [`Tcb::take_events`]. Roles are split by file:
//!
//! | file | role |
//! |---|---|
//! | `accept` | SYN to established: deferred SYN-ACK, options, refusal |
//! | `segment` | the order of checks of RFC 9293, section 3.10.7, and the fast path in front of it |
//! | `receive` | sequencing, reassembly, window, when an acknowledgement is due |
//! | `send` | send queue, what goes out next |
//! | `acknowledge` | what the client's acknowledgements free, and what they say about loss |
//! | `sack` | scoreboard of the peer's SACK blocks (RFC 2018, 6675) |
//! | `congestion` | `NewReno` and CUBIC windows |
//! | `rtt` | round-trip estimation and RTO (RFC 6298) |
//! | `path` | segments that fit the path to the client |
//! | `timer` | deadlines: retransmission, persist, delayed ACK, keepalive, idle, TIME-WAIT |
//! | `teardown` | FIN both ways, RST, abort |
//! | `queue` | byte queues of pooled buffers |
//! | `budget` | memory that the queues of a worker's flows share |
//! | `state`, `stats` | where a flow stands and why it ended; counters |
//!
//! Promises: RFC 9293 (passive side), 7323 (window scale, timestamps, PAWS), 2018 and 6675 (SACK both ways, limited
//! transmit of RFC 3042 included), 6298 (RTO with Karn's rule), 5681/6582 or 9438 (congestion control), 5961 (blind
//! attacks), 1191 and 8201 (path MTU, with a fall-back where nobody tells it), 1122 (delayed ACK, silly window
//! avoidance on both sides, keepalive). Nothing a client sends panics.
//!
//! Refuses, on purpose:
//! - LISTEN is the stack's (a SYN without a flow makes a [`Tcb`]); SYN-SENT and simultaneous open do not occur, since a
//!   terminator never opens towards the client.
//! - Urgent data: the URG bit and pointer are ignored, the bytes stay in line (RFC 6093 recommends that reading).
//! - Nagle's algorithm: a proxy sends what the upstream said when it said it.
//! - ECN is not negotiated; the bits are tolerated. Data on a SYN (RFC 7413) is left for the client to repeat.
//! - D-SACK (RFC 2883) is understood as a duplicate and nothing more.

mod accept;
mod acknowledge;
mod budget;
mod congestion;
mod path;
mod queue;
mod receive;
mod rtt;
mod sack;
mod segment;
mod send;
mod state;
mod stats;
mod teardown;
#[cfg(test)]
mod tests;
mod timer;

use crate::buf::PoolCache;
use crate::config::{Reassembly, StreamLimits, TcpConfig};
use crate::reassembly::{Budget, StreamReassembler};
use crate::stats::DropCounts;
use crate::time::Instant;
use crate::wire::tcp::{SeqNumber, TcpRepr};

use congestion::Controller;
use path::Narrow;
use queue::ByteQueue;
use rtt::Rtt;
use sack::Scoreboard;

pub use accept::Refusal;
pub use budget::BufferBudget;
pub use state::{CloseReason, State};
pub use stats::TcpStats;
pub use timer::TimerKind;

/// News of a flow since the last [`Tcb::take_events`]: a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events(u8);

impl Events {
    /// Nothing happened.
    pub const NONE: Self = Self(0);
    /// The upstream shall be dialled (once, right after [`Tcb::accept`]).
    pub const CONNECT_WANTED: Self = Self(1);
    /// New bytes are readable.
    pub const READABLE: Self = Self(2);
    /// [`Tcb::upstream_room`] was small and is ample again.
    pub const WRITABLE: Self = Self(4);
    /// The client's FIN is in sequence: the readable bytes are the last ones.
    pub const PEER_FIN: Self = Self(8);
    /// The flow ended abnormally, and not by the upstream's own [`Tcb::abort`]; see [`Tcb::close_reason`].
    pub const RESET: Self = Self(16);
    /// Nothing is left to send or to wait for: release the flow. Given once, after the last segment was polled.
    pub const CLOSED: Self = Self(32);
    /// The client completed the handshake (the first time the flow is established).
    pub const ESTABLISHED: Self = Self(64);

    /// Whether all bits of `other` are in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing happened.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds the bits of `other`.
    fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What a flow needs from its worker for the length of one call.
pub struct Ctx<'a> {
    /// The caller's clock.
    pub now: Instant,
    /// TCP settings.
    pub config: &'a TcpConfig,
    /// Bounds of out-of-order data.
    pub stream: &'a StreamLimits,
    /// Whether those bounds hold.
    pub mode: Reassembly,
    /// Where buffers come from and go back to.
    pub pool: &'a mut PoolCache,
    /// Out-of-order bytes over all flows of the worker.
    pub budget: &'a mut Budget,
    /// Queued bytes over all flows of the worker.
    pub memory: &'a mut BufferBudget,
    /// Refusals by reason.
    pub counts: &'a mut DropCounts,
    /// TCP counters.
    pub tcp: &'a mut TcpStats,
}

/// What the device takes in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLimits {
    /// Most TCP payload of one packet without options, bytes: MTU minus IP and TCP header.
    pub mss: u16,
    /// Most payload of one super-segment, bytes; 0 without segmentation offload. A device of 64 KiB packets takes
    /// 65,535 minus IP and TCP headers with options.
    pub tso_max: usize,
    /// Most slices that [`Tcb::payload`] may yield for one segment; at least 1.
    pub slices: usize,
}

/// A segment to send.
#[derive(Clone, Debug)]
pub struct OutSegment {
    /// The header; the stack fills in the ports.
    pub repr: TcpRepr,
    /// Where the payload starts in the send queue; for [`Tcb::payload`], before the next call that changes the flow.
    pub payload_offset: usize,
    /// Payload bytes; a multiple of `gso_size` when the payload is a super-segment and more is queued behind it.
    pub payload_len: usize,
    /// Payload bytes of each packet that the device shall cut, when one packet is not enough.
    pub gso_size: Option<u16>,
}

/// One TCP flow of the passive side.
///
/// Hot fields come first and in the order of use: an in-order data segment touches the first three lines, a pure
/// acknowledgement the send queue's as well, neither anything behind a box. Reassembly and scoreboard are boxed and
/// made on first use.
#[repr(C)]
pub struct Tcb {
    state: State,
    /// What must be sent besides data: bits of [`owed`].
    owed: u8,
    events: Events,
    /// Facts that don't change often: bits of [`facts`].
    facts: u16,
    /// Data segments taken since the last acknowledgement went out; a super-segment counts as 2.
    unacked_segments: u8,
    /// Consecutive duplicate acknowledgements.
    duplicate_acks: u8,
    /// Next sequence number expected. `rcv_nxt <= rcv_adv`.
    rcv_nxt: SeqNumber,
    /// Right edge of the widest window ever advertised; never moves left.
    rcv_adv: SeqNumber,
    /// `RCV.NXT` of the last acknowledgement sent: `Last.ACK.sent` of RFC 7323.
    last_ack_sent: SeqNumber,
    /// Oldest unacknowledged. `snd_una <= snd_nxt`.
    snd_una: SeqNumber,
    /// Next to be sent for the first time; never moves left.
    snd_nxt: SeqNumber,
    /// The client's window, bytes, unscaled.
    snd_wnd: u32,
    /// Segment that set `snd_wnd` last (RFC 9293: `SND.WL1`, `SND.WL2`).
    snd_wl1: SeqNumber,
    snd_wl2: SeqNumber,
    /// The client's newest timestamp in sequence (RFC 7323: `TS.Recent`) and when it came, in units of 2^30 ns.
    ts_recent: u32,
    ts_recent_at: u32,
    /// Added to the millisecond clock in our timestamps, so that flows don't share a clock (RFC 7323, section 5.4).
    ts_offset: u32,
    /// Payload of a full packet: the smaller MSS of both ends minus the timestamp option.
    mss: u16,
    /// Shift of the windows that we advertise, and of those that the client advertises; both 0 or both negotiated.
    rcv_shift: u8,
    snd_shift: u8,
    /// Last segment of the client.
    last_received: Instant,
    /// Retransmission or persist timer.
    rto_at: Instant,
    /// Delayed acknowledgement.
    ack_at: Instant,
    /// Connect, keepalive, idle, FIN-WAIT-2 or TIME-WAIT, by state; re-armed lazily.
    slow_at: Instant,
    recv: ByteQueue,
    /// Size of the receive buffer, bytes: what the window may open to. Within the configured minimum and maximum.
    recv_capacity: u32,
    /// Its part beyond the floor, which counts in [`BufferBudget::grow`].
    recv_grown: u32,
    out_of_order: Option<Box<StreamReassembler>>,
    scoreboard: Option<Box<Scoreboard>>,
    recovery: Recovery,
    send: ByteQueue,
    rtt: Rtt,
    cc: Controller,
    /// Largest window that the client ever offered (sender's silly window avoidance).
    max_snd_wnd: u32,
    /// Loss recovery: where it ends, and how far retransmission has come. `snd_una <= rexmit_nxt <= snd_nxt`.
    recovery_point: SeqNumber,
    rexmit_nxt: SeqNumber,
    /// Doublings of the timeout: expirations of `rto_at` in a row without progress.
    backoff: u8,
    /// Retransmissions, or keepalive probes, since the client last gave the answer that they ask for.
    unanswered: u8,
    /// Why it ended, once it did.
    reason: CloseReason,
    /// RFC 5961 rate limit: challenge ACKs sent in the running period of 2^30 ns.
    challenges: u8,
    challenge_period: u32,
    /// Bytes that left the network by duplicate acknowledgements, for clients without SACK.
    duplicate_bytes: u32,
    /// When data was sent last.
    last_sent: Instant,
    /// Sequence number of a RST in answer to an unacceptable acknowledgement, while [`owed::RESET_REPLY`].
    reset_seq: SeqNumber,
    /// The client's FIN, when it came before the data in front of it: [`facts::FIN_SEEN`].
    fin_seq: SeqNumber,
    /// Initial sequence numbers, ours and the client's.
    iss: SeqNumber,
    irs: SeqNumber,
    /// The MSS that we announce.
    local_mss: u16,
    /// The path takes less than both ends.
    narrow: Narrow,
    /// Tests hold the general path against the fast one.
    #[cfg(test)]
    forced_slow: bool,
}

/// What a flow owes the client besides data, in order of urgency.
mod owed {
    /// RST, and the flow is over.
    pub(super) const RESET: u8 = 1;
    /// RST in answer to one segment; the flow goes on.
    pub(super) const RESET_REPLY: u8 = 2;
    /// SYN-ACK.
    pub(super) const SYN_ACK: u8 = 4;
    /// An acknowledgement, at the end of this batch.
    pub(super) const ACK: u8 = 8;
    /// A keepalive probe.
    pub(super) const KEEPALIVE: u8 = 16;
    /// A window probe, or the data that silly window avoidance held back for long enough.
    pub(super) const PROBE: u8 = 32;
}

/// Facts about a flow.
mod facts {
    /// Timestamps were negotiated.
    pub(super) const TIMESTAMPS: u16 = 1;
    /// SACK was negotiated.
    pub(super) const SACK: u16 = 2;
    /// Window scaling was negotiated.
    pub(super) const SCALING: u16 = 4;
    /// The upstream has ended: our FIN follows the last queued byte.
    pub(super) const FIN_QUEUED: u16 = 8;
    /// Our FIN was sent at least once.
    pub(super) const FIN_SENT: u16 = 16;
    /// The client's FIN came, in sequence or not; its place is `fin_seq`.
    pub(super) const FIN_SEEN: u16 = 32;
    /// The upstream takes no more bytes.
    pub(super) const READER_GONE: u16 = 64;
    /// The client came close to the end of the window since the queue was last empty.
    pub(super) const WINDOW_LIMITED: u16 = 128;
    /// `upstream_room` was small after the last push.
    pub(super) const BLOCKED: u16 = 256;
    /// The upstream has answered.
    pub(super) const CONNECTED: u16 = 512;
    /// The `rto_at` timer is the persist timer.
    pub(super) const PERSIST: u16 = 1024;
    /// A segment is being timed (in [`super::Rtt`]).
    pub(super) const TIMED: u16 = 2048;
    /// The closed event was given.
    pub(super) const CLOSED_TOLD: u16 = 4096;
    /// A window probe put the byte at `snd_nxt` on the wire: the client may acknowledge it.
    pub(super) const PROBED: u16 = 8192;
    /// The client speaks IPv4.
    pub(super) const V4: u16 = 16_384;
    /// Segments are smaller than both ends take: [`super::Narrow`].
    pub(super) const NARROW: u16 = 32_768;
}

/// Loss recovery of the sending side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Recovery {
    /// Nothing is known to be lost.
    Open,
    /// Fast recovery (RFC 6675, or RFC 6582 without SACK).
    Fast,
    /// After a timeout: everything outstanding then is taken for lost, until `recovery_point` is acknowledged.
    Loss,
}

impl core::fmt::Debug for Tcb {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Tcb")
            .field("state", &self.state)
            .field("rcv_nxt", &self.rcv_nxt)
            .field("snd_una", &self.snd_una)
            .field("snd_nxt", &self.snd_nxt)
            .finish_non_exhaustive()
    }
}

impl Tcb {
    /// Where the flow stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Reads a little of each line that a segment will need, so that all are on their way to the cache.
    #[inline]
    pub(crate) fn warm(&self) -> u64 {
        self.state as u64 ^ self.recv.len() as u64 ^ u64::from(self.out_of_order.is_some())
    }

    /// Why the flow ended; `None` while it lives.
    pub fn close_reason(&self) -> Option<CloseReason> {
        (self.state == State::Closed || self.state == State::TimeWait).then_some(self.reason)
    }

    /// News since the last call.
    #[inline]
    #[must_use]
    pub fn take_events(&mut self) -> Events {
        core::mem::take(&mut self.events)
    }

    /// Whether [`Tcb::take_events`] has news.
    #[inline]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// When the client was last heard.
    pub fn last_received(&self) -> Instant {
        self.last_received
    }

    /// Bytes held for this flow in both directions, out-of-order bytes included.
    pub fn held_bytes(&self) -> usize {
        self.recv.len() + self.send.len() + self.out_of_order.as_ref().map_or(0, |held| held.held_bytes() as usize)
    }

    /// Smoothed round-trip time in microseconds; `None` before the first sample.
    pub fn srtt_micros(&self) -> Option<u32> {
        self.rtt.srtt_micros()
    }

    /// Congestion window, bytes.
    pub fn congestion_window(&self) -> u32 {
        self.cc.window()
    }

    #[inline]
    fn fact(&self, bit: u16) -> bool {
        self.facts & bit != 0
    }

    #[inline]
    fn set_fact(&mut self, bit: u16) {
        self.facts |= bit;
    }

    #[inline]
    fn clear_fact(&mut self, bit: u16) {
        self.facts &= !bit;
    }

    /// Repeats the invariants beside the fields; free in release builds.
    fn check(&self) {
        debug_assert!(self.rcv_nxt.le(self.rcv_adv) || self.state == State::Closed, "window's edge left of RCV.NXT");
        debug_assert!(self.snd_una.le(self.snd_nxt), "acknowledged what was not sent");
        debug_assert!(
            self.rexmit_nxt.ge(self.snd_una) && self.rexmit_nxt.le(self.snd_nxt),
            "retransmission cursor outside the flight"
        );
        debug_assert!(self.recovery != Recovery::Open || self.duplicate_acks < u8::MAX, "duplicate ACKs overflow");
    }
}
