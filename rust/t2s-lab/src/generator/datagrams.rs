//! UDP components: datagrams over fixed client ports, and DNS queries from pseudorandom ports (RFC 4814).

use std::sync::Arc;

use crate::generator::address::FlowAddresses;
use crate::generator::client::send_both_fragments;
use crate::generator::clients::PortCursor;
use crate::generator::link::Link;
use crate::generator::packets::{Pattern, PayloadSums, Reply, Upper, cut, fold, ip_header_len, sum_of, write_udp};
use crate::generator::placement::Placement;
use crate::generator::rng::Rng;
use crate::generator::slot::Slot;
use crate::measure::recorder::Recorder;
use crate::spec::{Dns, Udp, UpstreamMode};
use crate::truth::{SequenceTracker, datagram, mix};

/// Port of the targets of UDP components.
pub const UDP_PORT: u16 = 4433;

/// Port of DNS (RFC 1035, section 4.2).
pub const DNS_PORT: u16 = 53;

/// Ports tried before a draw is given up.
const DRAWS: u32 = 4_096;

/// The next endpoint of the cursor that belongs to this worker.
fn draw(cursor: &mut PortCursor, placement: &Placement, mut ends: FlowAddresses) -> FlowAddresses {
    for _ in 0..DRAWS {
        (ends.slot, ends.client_port) = cursor.draw();
        if placement.owns_udp(ends) {
            break;
        }
    }
    ends
}

/// The flows of a `udp` component.
pub struct Datagrams {
    ends: Vec<FlowAddresses>,
    payload: usize,
    /// Payload of a reply, bytes; `None` when there are none.
    reply: Option<usize>,
    ip_fragment: f64,
    sums: PayloadSums,
    /// The flow whose turn it is: `sent` modulo their count.
    cursor: usize,
    sent: u64,
    replies: Replies,
    rng: Rng,
    scratch: Vec<u8>,
}

impl Datagrams {
    /// `count` client ports.
    #[expect(clippy::too_many_arguments, reason = "one call site, which has each as a name")]
    pub fn new(
        spec: &Udp,
        count: usize,
        worker: u8,
        component: u8,
        pattern: &Pattern,
        ports: &Arc<[u16]>,
        placement: &Placement,
        mut rng: Rng,
    ) -> Self {
        let slots = count / (ports.len() / 2) + 1;
        let mut cursors = [PortCursor::new(Arc::clone(ports), slots), PortCursor::new(Arc::clone(ports), slots)];
        let ends = (0..count).map(|_| {
            let v6 = rng.chance(spec.v6_ratio);
            let blank = FlowAddresses { v6, worker, component, slot: 0, client_port: 0, target_port: UDP_PORT };
            draw(&mut cursors[usize::from(v6)], placement, blank)
        });
        let ends = ends.collect();
        let payload = spec.payload_bytes as usize;
        let reply = match (spec.upstream.mode, spec.upstream.reply_bytes) {
            (UpstreamMode::Echo, 0) => Some(payload),
            (UpstreamMode::Echo, n) => Some(n as usize),
            _ => None,
        };
        Self {
            ends,
            payload,
            reply,
            ip_fragment: spec.ip_fragment,
            sums: PayloadSums::new(pattern, payload - datagram::number_len(payload)),
            cursor: 0,
            sent: 0,
            replies: Replies::new(count),
            rng,
            scratch: Vec::new(),
        }
    }

    /// Whether there are no flows.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The flow whose turn a number is.
    #[inline]
    fn flow_of(&self, number: u64) -> Option<FlowAddresses> {
        self.ends.get((number % self.ends.len().max(1) as u64) as usize).copied()
    }

    /// Sends the next flow's datagram.
    #[inline]
    pub fn send(&mut self, link: &mut Link<'_>) -> Slot {
        let Some(&ends) = self.ends.get(self.cursor) else { return Slot::Blocked };
        let (number, len) = (self.sent, self.payload);
        let header = ip_header_len(ends.v6) + 8;
        let sum = datagram::sum(number, len, link.pattern, &self.sums);
        let fragmented = if self.rng.chance(self.ip_fragment) { cut(8 + len) } else { None };
        let sent = if let Some(first) = fragmented {
            self.scratch.resize(header + len, 0);
            write_udp(&mut self.scratch, ends, len, sum);
            datagram::write(&mut self.scratch[header..], number, link.pattern);
            let swapped = self.rng.chance(0.25);
            u32::from(send_both_fragments(link, &self.scratch, ends.v6, number as u32, first, swapped)) * 2
        } else {
            let pattern = link.pattern;
            u32::from(link.send_with(header + len, 0, |out| {
                write_udp(out, ends, len, sum);
                datagram::write(&mut out[header..], number, pattern);
                header + len
            }))
        };
        if sent == 0 {
            return Slot::Full;
        }
        link.counters.payload += len as u64;
        self.replies.asked(number, link);
        self.sent += 1;
        self.cursor = if self.cursor + 1 == self.ends.len() { 0 } else { self.cursor + 1 };
        Slot::Sent(sent)
    }

    /// Reads a reply, which must be what was sent, to the length that was asked for.
    pub fn handle(&mut self, reply: &Reply<'_>, link: &mut Link<'_>) {
        let good = match &reply.upper {
            Upper::Udp(payload) => {
                let number = self.number_of(reply, payload, link.pattern);
                self.replies.note(number, payload.len(), link);
                // The device that only acknowledges sends everything back.
                number.is_some()
            }
            Upper::Unreachable(_) => {
                link.counters.refused += 1;
                true
            }
            Upper::Tcp(..) => false,
        };
        link.counters.corrupt += u64::from(!good);
    }

    /// The number of the datagram that this answers; `None` if it is none of this client's, or not whole.
    fn number_of(&self, reply: &Reply<'_>, payload: &[u8], pattern: &Pattern) -> Option<u64> {
        if self.reply.is_some_and(|len| len != payload.len()) {
            return None;
        }
        let (own, rest) = payload.split_at(payload.len().min(self.payload));
        let number = datagram::read(own, self.replies.tracker.next(), pattern)?;
        let ends = self.flow_of(number)?;
        let addressed = (ends.v6, ends.slot, ends.client_port) == (reply.v6, reply.slot, reply.client_port);
        (number < self.sent && addressed && rest.iter().all(|&byte| byte == 0)).then_some(number)
    }

    /// Waits for replies on their way; true when none is expected any more.
    pub fn drain(&mut self, give_up: bool, link: &Link<'_>) -> bool {
        give_up || self.reply.is_none() || self.replies.settled(self.sent, link)
    }

    /// What was sent, and what came back.
    pub fn exchange(&self) -> (u64, &Replies) {
        (self.sent, &self.replies)
    }

    /// Replies from here on are the window's.
    pub fn replies(&mut self) -> &mut Replies {
        &mut self.replies
    }
}

/// Replies to what was numbered: which came, and how long after their questions had been due.
pub struct Replies {
    /// Which came.
    pub tracker: SequenceTracker,
    /// From the due time of what was sent until its reply was read.
    pub latency: Recorder,
    /// How much longer or shorter a reply was on its way than the one before it of the same flow (RFC 3550, section
    /// 6.4.1: the differences that jitter is the mean of).
    pub jitter: Recorder,
    /// The way of each flow's last reply, nanoseconds; 0 before the window.
    ways: Box<[u64]>,
    /// When the last questions were due, `number % ASKED`.
    due: Box<[u64]>,
    /// Due times that count.
    window: (u64, u64),
    /// When a reply came last; 0 before the drain.
    last: u64,
    asked: u64,
}

/// Questions whose due time is remembered; a reply to an older one counts as if it had been to the oldest of them.
const ASKED: u64 = 1 << 14;

/// Without a reply for this long in the drain none is expected any more, nanoseconds.
const SETTLED: u64 = 100_000_000;

impl Replies {
    /// Replies over so many flows.
    pub fn new(flows: usize) -> Self {
        Self {
            tracker: SequenceTracker::new(flows),
            latency: Recorder::new(),
            jitter: Recorder::new(),
            ways: vec![0; flows].into_boxed_slice(),
            due: vec![0; ASKED as usize].into_boxed_slice(),
            window: (u64::MAX, u64::MAX),
            last: 0,
            asked: 0,
        }
    }

    /// Questions that are due from `begin` on, and before `end`, are those of the measured window.
    pub fn measure(&mut self, begin: Option<u64>, end: Option<u64>) {
        self.window = (begin.unwrap_or(self.window.0), end.unwrap_or(self.window.1));
    }

    /// Question `number` goes out.
    #[inline]
    pub fn asked(&mut self, number: u64, link: &Link<'_>) {
        self.due[(number % ASKED) as usize] = link.due_ns;
        self.asked = number + 1;
    }

    /// A reply was read, to question `number` if it is one.
    #[inline]
    pub fn note(&mut self, number: Option<u64>, bytes: usize, link: &mut Link<'_>) {
        let Some(number) = number else {
            self.tracker.note_corrupted();
            return;
        };
        if !self.tracker.note(number) {
            return;
        }
        link.counters.payload_received += bytes as u64;
        let due = self.due[(number.max(self.asked.saturating_sub(ASKED)) % ASKED) as usize];
        if self.window.0 <= due && due < self.window.1 {
            let way = link.now_ns.saturating_sub(due);
            self.latency.record(way);
            if !self.ways.is_empty() {
                let flow = (number % self.ways.len() as u64) as usize;
                let before = std::mem::replace(&mut self.ways[flow], way.max(1));
                if before > 0 {
                    self.jitter.record(before.abs_diff(way));
                }
            }
        }
    }

    /// Whether all of `expected` replies have come, or none has for long.
    fn settled(&mut self, expected: u64, link: &Link<'_>) -> bool {
        let received = self.tracker.counts.received;
        if received >= expected {
            return true;
        }
        if self.last == 0 || received != self.asked {
            // Nothing is asked any more: the field counts what has come by now.
            (self.last, self.asked) = (link.now_ns, received);
        }
        link.now_ns.saturating_sub(self.last) > SETTLED
    }
}

/// The queries of a `dns` component.
pub struct Queries {
    ends: FlowAddresses,
    cursor: PortCursor,
    placement: Placement,
    names: u32,
    malformed: f64,
    /// Payload of a reply, bytes; `None` when there are none.
    reply: Option<usize>,
    sent: u64,
    replies: Replies,
    rng: Rng,
}

/// Largest query made here: header, `n` + 8 digits, two fixed labels, type and class.
const MAX_QUERY: usize = 64;

/// The fixed labels behind a query's own: `.lab.example` (RFC 2606).
const SUFFIX: &[u8] = b"\x03lab\x07example\x00";

impl Queries {
    /// Queries of one worker.
    pub fn new(spec: &Dns, worker: u8, component: u8, ports: &Arc<[u16]>, placement: &Placement, rng: Rng) -> Self {
        let ends = FlowAddresses { v6: false, worker, component, slot: 0, client_port: 0, target_port: DNS_PORT };
        let reply = match (spec.upstream.mode, spec.upstream.reply_bytes) {
            (UpstreamMode::Echo, 0) => Some(QUERY),
            (UpstreamMode::Echo, n) => Some(n as usize),
            _ => None,
        };
        Self {
            ends,
            cursor: PortCursor::new(Arc::clone(ports), 1),
            placement: placement.clone(),
            names: spec.names,
            malformed: spec.malformed,
            reply,
            sent: 0,
            replies: Replies::new(0),
            rng,
        }
    }

    /// Sends a query from the next port.
    #[inline]
    pub fn send(&mut self, link: &mut Link<'_>) -> Slot {
        let mut query = [0; MAX_QUERY];
        if !link.ring.fits(28 + MAX_QUERY) {
            return Slot::Full;
        }
        let mut len = write_query(&mut query, self.sent, self.names);
        let broken = self.rng.chance(self.malformed);
        if broken {
            len = spoil_query(&mut query, len, &mut self.rng);
        }
        self.ends = draw(&mut self.cursor, &self.placement, self.ends);
        let query = &query[..len];
        let sum = fold(sum_of(query));
        let sent = link.send_with(28 + len, 0, |out| {
            write_udp(out, self.ends, len, sum);
            out[28..].copy_from_slice(query);
            28 + len
        });
        if sent && !broken {
            link.counters.payload += len as u64;
            self.replies.asked(self.sent, link);
            self.sent += 1;
        }
        Slot::one(sent)
    }

    /// Reads a reply: the response to one of the queries, or an ICMP error.
    pub fn handle(&mut self, reply: &Reply<'_>, link: &mut Link<'_>) {
        let good = match &reply.upper {
            Upper::Udp(payload) if is_good_query(payload) => {
                let number = self.number_of(payload);
                self.replies.note(number, payload.len(), link);
                number.is_some()
            }
            // A corrupted query may come back from a device that does not look.
            Upper::Udp(payload) => self.reply.is_none() || payload.get(2).is_none_or(|flags| flags & RESPONSE != 0),
            Upper::Unreachable(_) => true,
            Upper::Tcp(..) => false,
        };
        link.counters.corrupt += u64::from(!good);
    }

    /// The number of the query that this answers.
    fn number_of(&self, response: &[u8]) -> Option<u64> {
        if self.reply.is_some_and(|len| len != response.len()) || response[2] & RESPONSE == 0 {
            return None;
        }
        let mut query = [0; QUERY];
        let own = response.len().min(QUERY);
        query[..own].copy_from_slice(&response[..own]);
        query[2] &= !RESPONSE;
        let number = read_query(&query[..own], self.replies.tracker.next(), self.names)?;
        (number < self.sent && response[own..].iter().all(|&byte| byte == 0)).then_some(number)
    }

    /// Waits for replies on their way; true when none is expected any more.
    pub fn drain(&mut self, give_up: bool, link: &Link<'_>) -> bool {
        give_up || self.reply.is_none() || self.replies.settled(self.sent, link)
    }

    /// What was sent, and what came back.
    pub fn exchange(&self) -> (u64, &Replies) {
        (self.sent, &self.replies)
    }

    /// Replies from here on are the window's.
    pub fn replies(&mut self) -> &mut Replies {
        &mut self.replies
    }
}

/// The QR bit of a DNS message's flags (RFC 1035, section 4.1.1).
const RESPONSE: u8 = 0x80;

/// Bytes of a query: header, one label of ten bytes, the fixed ones, type and class.
const QUERY: usize = 22 + SUFFIX.len() + 4;

/// Whether a datagram has the shape of one of the queries that are not corrupted, or of a response to it.
pub fn is_good_query(message: &[u8]) -> bool {
    message.len() >= QUERY && message[4..6] == [0, 1] && message[12] == 9 && message[QUERY - 4..QUERY] == [0, 1, 0, 1]
}

/// The number of a query near `near`; `None` when one byte is not that query's.
pub fn read_query(message: &[u8], near: u64, names: u32) -> Option<u64> {
    let id = u16::from_be_bytes([*message.first()?, *message.get(1)?]);
    let number = datagram::nearest(u64::from(id), 16, near);
    let mut query = [0; MAX_QUERY];
    let len = write_query(&mut query, number, names);
    (message == &query[..len]).then_some(number)
}

/// Writes query `number`, for a name `n<digits>.lab.example` that follows from it, type A, class IN (RFC 1035, section
/// 4.1); returns its length.
fn write_query(out: &mut [u8; MAX_QUERY], number: u64, names: u32) -> usize {
    out[..2].copy_from_slice(&(number as u16).to_be_bytes());
    out[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    out[12] = 9;
    out[13] = b'n';
    let mut rest = ((mix(number) >> 32) * u64::from(names)) >> 32;
    for digit in out[14..22].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let end = 22 + SUFFIX.len();
    out[22..end].copy_from_slice(SUFFIX);
    out[end..end + 4].copy_from_slice(&[0, 1, 0, 1]);
    end + 4
}

/// Breaks a query in one of several ways; returns the new length.
fn spoil_query(out: &mut [u8; MAX_QUERY], len: usize, rng: &mut Rng) -> usize {
    match rng.below(5) {
        // Shorter than a header.
        0 => 1 + rng.below(11) as usize,
        // Ends within the name.
        1 => 16,
        // More questions than there are.
        2 => {
            out[4..6].copy_from_slice(&[0xff, 0xff]);
            len
        }
        // A compression pointer to itself.
        3 => {
            out[12..14].copy_from_slice(&[0xc0, 12]);
            len
        }
        // A label longer than 63 (RFC 1035, section 2.3.4).
        _ => {
            out[12] = 0x7f;
            len
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_parse_and_spoiled_ones_differ() {
        let mut query = [0; MAX_QUERY];
        let len = write_query(&mut query, 0x5_1234, 10_000);
        assert_eq!((len, &query[..2], &query[12..18]), (QUERY, &[0x12, 0x34][..], &b"\x09n0000"[..]));
        assert!(is_good_query(&query[..len]));
        assert_eq!(read_query(&query[..len], 0x5_0000, 10_000), Some(0x5_1234));
        for at in 0..len {
            let mut wrong = query;
            wrong[at] ^= 4;
            assert_eq!(read_query(&wrong[..len], 0x5_0000, 10_000), None, "byte {at}");
        }
        assert_eq!(&query[len - 4..len], [0, 1, 0, 1]);
        let mut rng = Rng::new(1, 1);
        for _ in 0..100 {
            let mut corrupted = query;
            let new_len = spoil_query(&mut corrupted, len, &mut rng);
            assert!(new_len != len || corrupted != query);
        }
    }
}
