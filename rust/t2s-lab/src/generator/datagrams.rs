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
use crate::spec::{Dns, Udp};

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
    reply: Option<usize>,
    ip_fragment: f64,
    sums: PayloadSums,
    cursor: usize,
    sent: u64,
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
        let reply = match spec.upstream.reply_bytes {
            0 => Some(payload),
            n => Some(n as usize),
        };
        Self {
            ends,
            payload,
            reply,
            ip_fragment: spec.ip_fragment,
            sums: PayloadSums::new(pattern, payload),
            cursor: 0,
            sent: 0,
            rng,
            scratch: Vec::new(),
        }
    }

    /// Whether there are no flows.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Sends the next flow's datagram.
    #[inline]
    pub fn send(&mut self, link: &mut Link<'_>) -> Slot {
        let Some(&ends) = self.ends.get(self.cursor) else { return Slot::Blocked };
        let (offset, len) = (self.sent, self.payload);
        let header = ip_header_len(ends.v6) + 8;
        let sum = self.sums.get(link.pattern, offset, len);
        let fragmented = if self.rng.chance(self.ip_fragment) { cut(8 + len) } else { None };
        let sent = if let Some(first) = fragmented {
            self.scratch.resize(header + len, 0);
            write_udp(&mut self.scratch, ends, len, sum);
            self.scratch[header..].copy_from_slice(link.pattern.at(offset, len));
            let swapped = self.rng.chance(0.25);
            u32::from(send_both_fragments(link, &self.scratch, ends.v6, offset as u32, first, swapped)) * 2
        } else {
            let pattern = link.pattern;
            u32::from(link.send_with(header + len, 0, |out| {
                write_udp(out, ends, len, sum);
                out[header..].copy_from_slice(pattern.at(offset, len));
                header + len
            }))
        };
        if sent == 0 {
            return Slot::Full;
        }
        link.counters.payload += len as u64;
        self.sent += 1;
        self.cursor = if self.cursor + 1 == self.ends.len() { 0 } else { self.cursor + 1 };
        Slot::Sent(sent)
    }

    /// Reads a reply: its length must be the echo's or the one asked for.
    pub fn handle(&mut self, reply: &Reply<'_>, link: &mut Link<'_>) {
        let good = match &reply.upper {
            Upper::Udp(payload) => self.reply == Some(payload.len()),
            Upper::Unreachable(_) => {
                link.counters.refused += 1;
                true
            }
            Upper::Tcp(..) => false,
        };
        link.counters.corrupt += u64::from(!good);
    }
}

/// The queries of a `dns` component.
pub struct Queries {
    ends: FlowAddresses,
    cursor: PortCursor,
    placement: Placement,
    names: u32,
    malformed: f64,
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
        let cursor = PortCursor::new(Arc::clone(ports), 1);
        Self { ends, cursor, placement: placement.clone(), names: spec.names, malformed: spec.malformed, rng }
    }

    /// Sends a query from the next port.
    #[inline]
    pub fn send(&mut self, link: &mut Link<'_>) -> Slot {
        let mut query = [0; MAX_QUERY];
        if !link.ring.fits(28 + MAX_QUERY) {
            return Slot::Full;
        }
        let mut len = write_query(&mut query, self.rng.next_u32() as u16, self.rng.below(self.names));
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
        }
        Slot::one(sent)
    }

    /// Reads a reply: a DNS response, or an ICMP error.
    pub fn handle(reply: &Reply<'_>, link: &mut Link<'_>) {
        const RESPONSE: u8 = 0x80;
        const HEADER: usize = 12;
        let good = match &reply.upper {
            // A corrupted query that is shorter than a header may come back from a device that does not look.
            Upper::Udp(payload) => payload.len() < HEADER || payload[2] & RESPONSE != 0,
            Upper::Unreachable(_) => true,
            Upper::Tcp(..) => false,
        };
        link.counters.corrupt += u64::from(!good);
    }
}

/// Writes a query for `n<number>.lab.example`, type A, class IN (RFC 1035, section 4.1); returns its length.
fn write_query(out: &mut [u8; MAX_QUERY], id: u16, number: u32) -> usize {
    out[..2].copy_from_slice(&id.to_be_bytes());
    out[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    out[12] = 9;
    out[13] = b'n';
    let mut rest = number;
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
        let len = write_query(&mut query, 0x1234, 42);
        assert_eq!(&query[12..22], b"\x09n00000042");
        assert_eq!(&query[len - 4..len], [0, 1, 0, 1]);
        let mut rng = Rng::new(1, 1);
        for _ in 0..100 {
            let mut corrupted = query;
            let new_len = spoil_query(&mut corrupted, len, &mut rng);
            assert!(new_len != len || corrupted != query);
        }
    }
}
