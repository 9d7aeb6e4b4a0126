//! What a client sends of its own accord: the next bytes, bytes out of order, twice, overlapping or in fragments, and
//! the end.

use super::{Flow, Shape, State, bit};
use crate::generator::link::Link;
use crate::generator::packets::{cut, flag, fragment_len, ip_header_len, write_fragment, write_tcp};

impl Flow {
    /// Whether the peer's window has room for `len` more bytes.
    #[inline]
    pub fn has_window(&self, len: u32) -> bool {
        self.limit.wrapping_sub(self.nxt.wrapping_add(len)) as i32 >= 0
    }

    /// Remembers that the window stopped a send, so that the timer probes it (RFC 9293, section 3.8.6.1).
    pub fn note_blocked(&mut self, link: &Link<'_>) {
        if !self.has(bit::BLOCKED) {
            self.set(bit::BLOCKED, true);
            if self.una == self.nxt {
                self.timer_ms = link.now_ms();
            }
        }
    }

    /// Starts the clock of the retransmission timer when something becomes outstanding.
    #[inline]
    fn arm(&mut self, link: &Link<'_>) {
        if self.una == self.nxt {
            self.timer_ms = link.now_ms();
        }
        self.set(bit::BLOCKED, false);
    }

    /// Sends the next `len` bytes. The caller has asked [`Flow::has_window`].
    #[inline]
    pub fn send(&mut self, shape: &Shape, link: &mut Link<'_>, len: u32) -> bool {
        let fields = self.fields(link, self.nxt, flag::ACK | flag::PSH);
        if !self.transmit(shape, link, &fields, len as usize) {
            return false;
        }
        self.arm(link);
        self.nxt = self.nxt.wrapping_add(len);
        self.held_left = self.held_left.saturating_sub(1);
        link.counters.payload += u64::from(len);
        true
    }

    /// Sends the segment after the next one first; `overtakers` segments in all will overtake the one held.
    pub fn send_ahead(&mut self, shape: &Shape, link: &mut Link<'_>, len: u32, overtakers: u8) -> bool {
        let fields = self.fields(link, self.nxt.wrapping_add(len), flag::ACK | flag::PSH);
        if !self.transmit(shape, link, &fields, len as usize) {
            return false;
        }
        self.arm(link);
        self.held = self.nxt;
        self.held_left = overtakers.saturating_sub(1);
        self.set(bit::HELD, true);
        self.nxt = self.nxt.wrapping_add(2 * len);
        link.counters.payload += 2 * u64::from(len);
        true
    }

    /// Sends the overtaken segment.
    pub fn send_held(&mut self, shape: &Shape, link: &mut Link<'_>) -> bool {
        let fields = self.fields(link, self.held, flag::ACK | flag::PSH);
        if !self.transmit(shape, link, &fields, shape.segment as usize) {
            return false;
        }
        self.set(bit::HELD, false);
        self.dup_acks = 0;
        true
    }

    /// Sends the last `len` bytes once more; false when that many were never sent, or the ring is full.
    pub fn send_duplicate(&self, shape: &Shape, link: &mut Link<'_>, len: u32) -> bool {
        let fields = self.fields(link, self.nxt.wrapping_sub(len), flag::ACK | flag::PSH);
        self.transmit(shape, link, &fields, len as usize)
    }

    /// Sends `len` bytes of which the first `back` were sent before. The caller has asked [`Flow::has_window`] for the
    /// rest.
    pub fn send_overlap(&mut self, shape: &Shape, link: &mut Link<'_>, len: u32, back: u32) -> bool {
        let fields = self.fields(link, self.nxt.wrapping_sub(back), flag::ACK | flag::PSH);
        if !self.transmit(shape, link, &fields, len as usize) {
            return false;
        }
        self.arm(link);
        self.nxt = self.nxt.wrapping_add(len - back);
        link.counters.payload += u64::from(len - back);
        true
    }

    /// Sends the next `len` bytes as two IP fragments, the second first when `swapped`; `None` when a segment of that
    /// size is not worth cutting, else the packets sent (0 while the ring is full).
    pub fn send_fragmented(
        &mut self,
        shape: &Shape,
        link: &mut Link<'_>,
        len: u32,
        id: u32,
        swapped: bool,
        scratch: &mut Vec<u8>,
    ) -> Option<u32> {
        let ends = self.ends(shape);
        let fields = self.fields(link, self.nxt, flag::ACK | flag::PSH);
        let (offset, ip) = (self.offset(shape, self.nxt), ip_header_len(ends.v6));
        let header = ip + fields.header_len();
        let upper = fields.header_len() + len as usize;
        let first = cut(upper)?;
        scratch.resize(header + len as usize, 0);
        write_tcp(scratch, ends, &fields, len as usize, shape.sums.get(link.pattern, offset, len as usize));
        scratch[header..].copy_from_slice(link.pattern.at(offset, len as usize));
        if !send_both_fragments(link, scratch, ends.v6, id, first, swapped) {
            return Some(0);
        }
        self.arm(link);
        self.nxt = self.nxt.wrapping_add(len);
        link.counters.payload += u64::from(len);
        Some(2)
    }

    /// Closes this side.
    pub fn finish(&mut self, shape: &Shape, link: &mut Link<'_>) -> bool {
        let fields = self.fields(link, self.nxt, flag::ACK | flag::FIN);
        if !self.transmit(shape, link, &fields, 0) {
            return false;
        }
        self.arm(link);
        self.nxt = self.nxt.wrapping_add(1);
        self.set(bit::FIN_SENT, true);
        true
    }

    /// Resets the connection; closed at once.
    pub fn reset(&mut self, shape: &Shape, link: &mut Link<'_>) -> bool {
        let fields = self.fields(link, self.nxt, flag::ACK | flag::RST);
        if !self.transmit(shape, link, &fields, 0) {
            return false;
        }
        self.state = State::Closed;
        true
    }
}

/// Sends both fragments of the packet in `packet`, or nothing when the ring has no room for both.
pub fn send_both_fragments(link: &mut Link<'_>, packet: &[u8], v6: bool, id: u32, first: usize, swapped: bool) -> bool {
    let upper = packet.len() - ip_header_len(v6);
    let mut pieces = [(0, first), (first, upper - first)];
    if swapped {
        pieces.swap(0, 1);
    }
    let [len_a, len_b] = pieces.map(|(_, len)| fragment_len(v6, len));
    if !link.ring.fits(len_a + len_b + 64) {
        return false;
    }
    for (offset, len) in pieces {
        link.send_with(fragment_len(v6, len), 0, |out| {
            write_fragment(out, packet, v6, id, offset, len);
            out.len()
        });
    }
    true
}
