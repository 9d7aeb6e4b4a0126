//! One TCP client connection: a correct sender and receiver (RFC 9293) in 52 bytes.
//!
//! Sequence numbers, acknowledgements, the peer's window, window scaling, timestamps, retransmission after a timeout
//! (RFC 6298, simplified to fixed times with back-off) or three duplicate acknowledgements (RFC 5681, section 3.2),
//! both orders of closing, resets. Payload needs no store: a byte is a function of its stream offset. Two
//! simplifications, since the device neither loses nor reorders: no congestion window, and out-of-order data from the
//! core is answered with a duplicate acknowledgement instead of being kept. Every send can fail on a full ring and then
//! changes nothing.

mod send;

use crate::generator::address::FlowAddresses;
use crate::generator::link::Link;
use crate::generator::packets::{PERIOD, PayloadSums, Segment, TcpFields, flag, ip_header_len, write_tcp};
use crate::truth::stream;

pub use send::send_both_fragments;

/// Window scale that clients offer: 65,535 << 5 is 2 MiB.
const WINDOW_SCALE: u8 = 5;

/// Window field of every segment; a client reads at once, so its window never closes.
const WINDOW: u16 = u16::MAX;

/// First retransmission timeout of data, milliseconds; above the core's delayed acknowledgement (40 ms) by far.
const RTO_MS: u32 = 300;

/// First retransmission timeout of a SYN, milliseconds (RFC 6298, section 2.1).
const SYN_RTO_MS: u32 = 1_000;

/// Retransmissions before a connection is given up.
const RETRY_LIMIT: u8 = 8;

/// Duplicate acknowledgements that mean a loss (RFC 5681, section 3.2).
const DUPLICATE_ACKS: u8 = 3;

/// Where a connection is. Which sides have closed is kept in flags, so that both orders share their code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// No connection.
    #[default]
    Closed,
    /// SYN sent.
    SynSent,
    /// Established, or closing.
    Open,
}

/// What a segment or a timeout did to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing its owner must know.
    None,
    /// Established now.
    Opened,
    /// RST or ICMP error before it was established; closed now.
    Refused,
    /// RST, or given up; closed now.
    Aborted,
    /// Both sides have closed; closed now.
    Closed,
}

/// Bits of [`Flow::bits`].
mod bit {
    pub(super) const V6: u8 = 1;
    pub(super) const TIMESTAMPS: u8 = 2;
    /// Stands in its owner's list of owed acknowledgements.
    pub(super) const OWED: u8 = 4;
    /// `held` is a segment that was overtaken on purpose and has not been sent yet.
    pub(super) const HELD: u8 = 8;
    pub(super) const FIN_SENT: u8 = 16;
    pub(super) const PEER_FIN: u8 = 32;
    /// Sending was stopped by the peer's window.
    pub(super) const BLOCKED: u8 = 64;
}

/// One connection.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    iss: u32,
    /// Oldest unacknowledged sequence number. Invariant: `una <= nxt` (in sequence space).
    una: u32,
    /// Next sequence number to send.
    nxt: u32,
    /// First sequence number beyond the peer's window.
    limit: u32,
    irs: u32,
    rcv_nxt: u32,
    ts_recent: u32,
    /// When the oldest outstanding byte was sent or progress was made last, milliseconds.
    timer_ms: u32,
    /// The segment held back last, sent since or not; the initial sequence number before there was one.
    held: u32,
    /// By how much what was received is shifted against what should have been.
    shift: i16,
    client_port: u16,
    mss: u16,
    /// Segments that the owner still wants to send.
    pub todo: u16,
    slot: u8,
    state: State,
    scale: u8,
    retries: u8,
    dup_acks: u8,
    held_left: u8,
    bits: u8,
}

/// What all connections of one component share.
pub struct Shape {
    /// Worker of this generator.
    pub worker: u8,
    /// Index of the component.
    pub component: u8,
    /// Port of the target.
    pub target_port: u16,
    /// Largest segment that a client announces, by family: MTU less headers.
    pub mss: [u16; 2],
    /// Usual payload of a segment, bytes.
    pub segment: u32,
    /// Sums of payloads of the usual length.
    pub sums: PayloadSums,
    /// The upstream resets connections, so that these do not end in order.
    pub resets: bool,
}

impl Flow {
    /// A connection that does not exist yet, of a family, with or without timestamps.
    pub fn new(v6: bool, timestamps: bool) -> Self {
        Self { bits: (bit::V6 * u8::from(v6)) | (bit::TIMESTAMPS * u8::from(timestamps)), ..Self::default() }
    }

    /// Where the connection is.
    #[inline]
    pub fn state(&self) -> State {
        self.state
    }

    /// IPv6 or IPv4.
    #[inline]
    pub fn v6(&self) -> bool {
        self.has(bit::V6)
    }

    /// Client slot and port.
    pub fn endpoint(&self) -> (u8, u16) {
        (self.slot, self.client_port)
    }

    /// Gives a closed connection an endpoint, so that it can refuse segments.
    pub fn place(&mut self, slot: u8, client_port: u16) {
        (self.slot, self.client_port) = (slot, client_port);
    }

    /// Whether this side has closed.
    pub fn has_finished(&self) -> bool {
        self.has(bit::FIN_SENT)
    }

    /// Whether everything sent was acknowledged.
    pub fn is_idle(&self) -> bool {
        self.una == self.nxt && !self.has(bit::HELD)
    }

    /// Whether a segment was overtaken and waits to be sent; with how many more to overtake it.
    #[inline]
    pub fn held(&self) -> Option<u8> {
        self.has(bit::HELD).then_some(self.held_left)
    }

    /// Bytes of payload sent so far.
    #[inline]
    pub fn sent(&self) -> u32 {
        self.nxt.wrapping_sub(self.iss).wrapping_sub(1 + u32::from(self.has(bit::FIN_SENT)))
    }

    #[inline]
    fn has(&self, bits: u8) -> bool {
        self.bits & bits != 0
    }

    #[inline]
    fn set(&mut self, bits: u8, on: bool) {
        if on {
            self.bits |= bits;
        } else {
            self.bits &= !bits;
        }
    }

    /// Bytes of payload received in order so far, modulo 2^32.
    pub fn received(&self) -> u32 {
        self.rcv_nxt.wrapping_sub(self.irs).wrapping_sub(1 + u32::from(self.has(bit::PEER_FIN)))
    }

    /// Bytes of payload that were not acknowledged yet.
    pub fn unacknowledged(&self) -> u32 {
        self.nxt.wrapping_sub(self.una).saturating_sub(u32::from(self.has(bit::FIN_SENT)))
    }

    /// The addresses and ports.
    #[inline]
    pub fn ends(&self, shape: &Shape) -> FlowAddresses {
        FlowAddresses {
            v6: self.v6(),
            worker: shape.worker,
            component: shape.component,
            slot: self.slot,
            client_port: self.client_port,
            target_port: shape.target_port,
        }
    }

    /// Sends a SYN from a new port with a new initial sequence number.
    pub fn open(&mut self, shape: &Shape, link: &mut Link<'_>, slot: u8, client_port: u16, iss: u32) -> bool {
        let fresh = Self {
            iss,
            una: iss,
            held: iss,
            nxt: iss.wrapping_add(1),
            timer_ms: link.now_ms(),
            slot,
            client_port,
            todo: self.todo,
            state: State::SynSent,
            bits: self.bits & (bit::V6 | bit::TIMESTAMPS | bit::OWED),
            ..Self::default()
        };
        if !fresh.transmit_syn(shape, link) {
            return false;
        }
        *self = fresh;
        true
    }

    fn transmit_syn(&self, shape: &Shape, link: &mut Link<'_>) -> bool {
        let mss = shape.mss[usize::from(self.v6())];
        let fields = TcpFields {
            seq: self.iss,
            ack: 0,
            flags: flag::SYN,
            window: WINDOW,
            timestamp: self.timestamp(link),
            syn: Some((mss, WINDOW_SCALE)),
        };
        self.transmit(shape, link, &fields, 0)
    }

    #[inline]
    fn timestamp(&self, link: &Link<'_>) -> Option<(u32, u32)> {
        self.has(bit::TIMESTAMPS).then(|| (link.now_ms(), self.ts_recent))
    }

    #[inline]
    fn fields(&self, link: &Link<'_>, seq: u32, flags: u8) -> TcpFields {
        let timestamp = self.timestamp(link);
        TcpFields { seq, ack: self.rcv_nxt, flags, window: WINDOW, timestamp, syn: None }
    }

    /// Place in the pattern of a sequence number.
    #[inline]
    fn offset(&self, shape: &Shape, seq: u32) -> u64 {
        self.ends(shape).key() % PERIOD as u64 + u64::from(seq.wrapping_sub(self.iss).wrapping_sub(1))
    }

    /// Counts what the connection came to, now that it has ended. In order is a direction whose end was sent and
    /// acknowledged: then each of its bytes must have arrived.
    pub fn account(&self, shape: &Shape, link: &mut Link<'_>) {
        let key = self.ends(shape).key();
        let finished = self.has(bit::FIN_SENT) && self.una == self.nxt && !shape.resets;
        link.counters.up.add(key, self.sent(), finished);
        let ended = self.has(bit::PEER_FIN);
        link.counters.down.add(key, self.received(), ended && finished);
    }

    /// Writes one segment with `len` bytes of the stream at `fields.seq` into the ring.
    #[inline]
    fn transmit(&self, shape: &Shape, link: &mut Link<'_>, fields: &TcpFields, len: usize) -> bool {
        let ends = self.ends(shape);
        let (offset, pattern) = (self.offset(shape, fields.seq), link.pattern);
        let header = ip_header_len(ends.v6) + fields.header_len();
        let segment_payload = self.mss.saturating_sub(if fields.timestamp.is_some() { 12 } else { 0 });
        let gso_size = if len > usize::from(segment_payload) && len > 0 { segment_payload } else { 0 };
        link.send_with(header + len, gso_size, |out| {
            let (headers, payload) = out.split_at_mut(header);
            let sum = if len == 0 { 0 } else { shape.sums.get(pattern, offset, len) };
            write_tcp(headers, ends, fields, len, sum);
            payload.copy_from_slice(pattern.at(offset, len));
            header + len
        })
    }

    /// Sends the acknowledgement that is owed; what that completes. `None` while the ring is full.
    pub fn acknowledge(&mut self, shape: &Shape, link: &mut Link<'_>) -> Option<Event> {
        if self.state != State::Open {
            self.set(bit::OWED, false);
            return Some(Event::None);
        }
        let fields = self.fields(link, self.nxt, flag::ACK);
        if !self.transmit(shape, link, &fields, 0) {
            return None;
        }
        link.counters.reactions += 1;
        self.set(bit::OWED, false);
        Some(self.close_if_done())
    }

    /// Whether an acknowledgement is owed and not listed yet; lists it.
    #[inline]
    fn owe(&mut self) -> bool {
        let listed = self.has(bit::OWED);
        self.set(bit::OWED, true);
        !listed
    }

    fn close_if_done(&mut self) -> Event {
        if self.has(bit::FIN_SENT) && self.has(bit::PEER_FIN) && self.una == self.nxt && !self.has(bit::OWED) {
            self.state = State::Closed;
            return Event::Closed;
        }
        Event::None
    }

    /// A segment from the core. The second value says that the owner must list this flow for [`Flow::acknowledge`].
    #[inline]
    pub fn handle(&mut self, shape: &Shape, link: &mut Link<'_>, segment: &Segment, payload: &[u8]) -> (Event, bool) {
        match self.state {
            State::Closed => {
                if segment.flags & flag::RST == 0 {
                    self.refuse_segment(shape, link, segment, payload.len());
                }
                (Event::None, false)
            }
            State::SynSent => self.handle_syn_sent(shape, link, segment),
            State::Open => self.handle_open(shape, link, segment, payload),
        }
    }

    fn handle_syn_sent(&mut self, shape: &Shape, link: &mut Link<'_>, segment: &Segment) -> (Event, bool) {
        let acceptable = segment.flags & flag::ACK != 0 && segment.ack == self.nxt;
        if segment.flags & flag::RST != 0 {
            link.counters.resets_received += 1;
            if acceptable {
                self.state = State::Closed;
                return (Event::Refused, false);
            }
            return (Event::None, false);
        }
        if !acceptable || segment.flags & flag::SYN == 0 {
            self.refuse_segment(shape, link, segment, 0);
            return (Event::None, false);
        }
        self.una = segment.ack;
        self.irs = segment.seq;
        self.rcv_nxt = segment.seq.wrapping_add(1);
        self.scale = segment.scale.unwrap_or(0).min(14);
        self.mss = segment.mss.unwrap_or(536).min(shape.mss[usize::from(self.v6())]);
        // A window in a SYN is never scaled (RFC 7323, section 2.2).
        self.limit = segment.ack.wrapping_add(u32::from(segment.window));
        self.note_timestamp(segment);
        self.retries = 0;
        self.state = State::Open;
        (Event::Opened, self.owe())
    }

    fn handle_open(&mut self, shape: &Shape, link: &mut Link<'_>, segment: &Segment, payload: &[u8]) -> (Event, bool) {
        if segment.flags & flag::RST != 0 {
            link.counters.resets_received += 1;
            // RFC 5961, section 3.2: only the exact next sequence number resets.
            if segment.seq == self.rcv_nxt {
                self.state = State::Closed;
                return (Event::Aborted, false);
            }
            return (Event::None, self.owe());
        }
        if segment.flags & flag::SYN != 0 {
            return (Event::None, self.owe());
        }
        let fin = segment.flags & flag::FIN != 0;
        if segment.flags & flag::ACK != 0 {
            self.handle_ack(shape, link, segment, payload.is_empty() && !fin);
        }
        if payload.is_empty() && !fin {
            return (self.close_if_done(), false);
        }
        if segment.seq == self.rcv_nxt && !self.has(bit::PEER_FIN) {
            self.note_timestamp(segment);
            let offset = self.rcv_nxt.wrapping_sub(self.irs).wrapping_sub(1);
            let place = self.ends(shape).key() % PERIOD as u64 + u64::from(offset);
            let right = stream::check(link.pattern, payload, place, &mut self.shift, &mut link.counters.damage);
            link.counters.corrupt += u64::from(!right);
            link.counters.payload_received += payload.len() as u64;
            self.rcv_nxt = self.rcv_nxt.wrapping_add(payload.len() as u32 + u32::from(fin));
            self.set(bit::PEER_FIN, fin);
        } else if segment.seq.wrapping_sub(self.rcv_nxt) as i32 > 0 {
            link.counters.gaps += 1;
        } else {
            link.counters.repeated += 1;
        }
        // In order: acknowledge it. Before or beyond: say again what is expected (RFC 5681, section 4.2).
        (Event::None, self.owe())
    }

    #[inline]
    fn handle_ack(&mut self, shape: &Shape, link: &mut Link<'_>, segment: &Segment, pure: bool) {
        let advance = segment.ack.wrapping_sub(self.una);
        let outstanding = self.nxt.wrapping_sub(self.una);
        if advance > outstanding {
            // Older than `una` (ignored), or of something never sent, which the core must not do.
            let never_sent = segment.ack.wrapping_sub(self.nxt) as i32 > 0;
            link.counters.corrupt += u64::from(never_sent);
            return;
        }
        let limit = segment.ack.wrapping_add(u32::from(segment.window) << self.scale);
        if advance > 0 {
            self.una = segment.ack;
            self.timer_ms = link.now_ms();
            self.retries = 0;
            self.dup_acks = 0;
            if self.has(bit::HELD) && self.una.wrapping_sub(self.held) as i32 > 0 {
                // Only a device that does not look at sequence numbers gets here: nothing is left to send.
                self.set(bit::HELD, false);
            }
        } else if pure && outstanding > 0 && limit == self.limit && self.una.wrapping_sub(self.held) as i32 > 0 {
            // Up to the segment that was held, duplicates tell of the disorder made on purpose and not of a loss.
            self.dup_acks = self.dup_acks.saturating_add(1);
            if self.dup_acks == DUPLICATE_ACKS {
                self.retransmit(shape, link);
            }
        }
        self.limit = limit;
    }

    #[inline]
    fn note_timestamp(&mut self, segment: &Segment) {
        if let Some(value) = segment.timestamp {
            self.ts_recent = value;
        }
    }

    /// RST for a segment that belongs to no connection (RFC 9293, section 3.5.2); lost when the ring is full, as on a
    /// wire.
    fn refuse_segment(&self, shape: &Shape, link: &mut Link<'_>, segment: &Segment, len: usize) {
        let fields = if segment.flags & flag::ACK != 0 {
            TcpFields { seq: segment.ack, flags: flag::RST, ..TcpFields::default() }
        } else {
            let ack = segment.seq.wrapping_add(len as u32 + u32::from(segment.flags & flag::SYN != 0));
            TcpFields { ack, flags: flag::RST | flag::ACK, ..TcpFields::default() }
        };
        link.counters.reactions += u64::from(self.transmit(shape, link, &fields, 0));
    }

    /// An ICMP error: hard before the connection is established, soft after (RFC 5461).
    pub fn handle_unreachable(&mut self) -> Event {
        if self.state == State::SynSent {
            self.state = State::Closed;
            return Event::Refused;
        }
        Event::None
    }

    /// Sends the oldest outstanding segment again.
    fn retransmit(&self, shape: &Shape, link: &mut Link<'_>) {
        let fin = u32::from(self.has(bit::FIN_SENT));
        let data_end = self.nxt.wrapping_sub(fin);
        let len = data_end.wrapping_sub(self.una).min(shape.segment);
        let sent = if self.state == State::SynSent {
            self.transmit_syn(shape, link)
        } else if len == 0 {
            let fields = self.fields(link, self.una, flag::ACK | flag::FIN);
            self.transmit(shape, link, &fields, 0)
        } else {
            let fields = self.fields(link, self.una, flag::ACK | flag::PSH);
            self.transmit(shape, link, &fields, len as usize)
        };
        link.counters.retransmits += u64::from(sent);
        link.counters.reactions += u64::from(sent);
    }

    /// Looks at the timer: retransmits, probes a closed window, or gives up.
    pub fn check_timer(&mut self, shape: &Shape, link: &mut Link<'_>) -> Event {
        let waiting = match self.state {
            State::Closed => false,
            State::SynSent => true,
            State::Open => self.una != self.nxt || self.has(bit::BLOCKED),
        };
        let base = if self.state == State::SynSent { SYN_RTO_MS } else { RTO_MS };
        let quiet = link.now_ms().wrapping_sub(self.timer_ms);
        if !waiting || quiet < base << self.retries.min(5) {
            return Event::None;
        }
        if self.has(bit::HELD) {
            // Not lost, only not sent yet because the flow's next packet is not due.
            self.send_held(shape, link);
            self.timer_ms = link.now_ms();
            return Event::None;
        }
        self.timer_ms = link.now_ms();
        if self.una == self.nxt {
            // A keepalive-like probe asks for the window: a sequence number already acknowledged, so it is answered.
            let fields = self.fields(link, self.una.wrapping_sub(1), flag::ACK);
            let sent = u64::from(self.transmit(shape, link, &fields, 0));
            link.counters.reactions += sent;
            link.counters.window_probes += sent;
            return Event::None;
        }
        if self.retries >= RETRY_LIMIT {
            if self.state == State::Open {
                let fields = self.fields(link, self.nxt, flag::ACK | flag::RST);
                link.counters.reactions += u64::from(self.transmit(shape, link, &fields, 0));
            }
            self.state = State::Closed;
            link.counters.aborted += 1;
            return Event::Aborted;
        }
        self.retries += 1;
        self.retransmit(shape, link);
        Event::None
    }
}

#[cfg(test)]
mod tests;
