//! Components that mean harm: packets that must be refused, and SYNs from addresses that never answer.

use crate::generator::address::FlowAddresses;
use crate::generator::component::TCP_PORT;
use crate::generator::link::Link;
use crate::generator::packets::{
    TcpFields, flag, get_u16, ip_header_len, patched, protocol, put_u16, write_ip, write_tcp, write_udp,
};
use crate::generator::placement::Placement;
use crate::generator::rng::Rng;
use crate::generator::slot::Slot;

/// Payload of a packet before it is broken, bytes.
const PAYLOAD: usize = 64;

/// Largest packet made here: IPv6 and TCP headers and payload.
const MAX_PACKET: usize = 40 + 20 + PAYLOAD;

/// Ways to break a packet.
const WAYS: u32 = 20;

/// The packets of a `malformed` component.
pub struct Malformed {
    worker: u8,
    component: u8,
    placement: Placement,
    rng: Rng,
}

impl Malformed {
    /// Packets of one worker.
    pub fn new(worker: u8, component: u8, placement: &Placement, rng: Rng) -> Self {
        Self { worker, component, placement: placement.clone(), rng }
    }

    /// Sends a packet that must be refused.
    pub fn send(&mut self, link: &mut Link<'_>) -> Slot {
        if !link.ring.fits(MAX_PACKET) {
            return Slot::Full;
        }
        let mut packet = [0; MAX_PACKET];
        let len = self.make(&mut packet);
        Slot::one(link.send_with(len, 0, |out| {
            out.copy_from_slice(&packet[..len]);
            len
        }))
    }

    fn make(&mut self, out: &mut [u8; MAX_PACKET]) -> usize {
        let way = self.rng.below(WAYS);
        let v6 = matches!(way, 15..=18);
        let mut ends = FlowAddresses {
            v6,
            worker: self.worker,
            component: self.component,
            slot: self.rng.below(200) as u8,
            client_port: 1024 + self.rng.below(64_000) as u16,
            target_port: TCP_PORT,
        };
        for _ in 0..64 {
            if self.placement.owns_tcp(ends) {
                break;
            }
            ends.client_port = 1024 + self.rng.below(64_000) as u16;
        }
        corrupt(way, ends, &mut self.rng, out)
    }
}

/// Writes a packet that is wrong in one way; returns its length.
fn corrupt(way: u32, ends: FlowAddresses, rng: &mut Rng, out: &mut [u8; MAX_PACKET]) -> usize {
    let ip = ip_header_len(ends.v6);
    let fields = TcpFields { seq: rng.next_u32(), ack: rng.next_u32(), flags: flag::ACK, ..TcpFields::default() };
    let tcp_len = ip + 20 + PAYLOAD;
    // The payload stays zero, so its sum is 0 and the untouched packet is valid.
    let tcp = |out: &mut [u8; MAX_PACKET], fields: &TcpFields| write_tcp(out, ends, fields, PAYLOAD, 0);
    match way {
        // Cut short anywhere.
        0 => {
            tcp(out, &fields);
            1 + rng.below(tcp_len as u32 - 1) as usize
        }
        // A version that does not exist.
        1 => {
            tcp(out, &fields);
            out[0] = 0x75;
            tcp_len
        }
        // IPv4 header checksum.
        2 => {
            tcp(out, &fields);
            out[10] ^= 0x55;
            tcp_len
        }
        // Total length beyond the packet.
        3 => {
            tcp(out, &fields);
            let (old, new) = (get_u16(out, 2).unwrap_or(0), 9_000);
            put_u16(out, 2, new);
            let check = patched(get_u16(out, 10).unwrap_or(0), old, new);
            put_u16(out, 10, check);
            tcp_len
        }
        // Header length below the minimum.
        4 => {
            tcp(out, &fields);
            out[0] = 0x42;
            tcp_len
        }
        // TCP checksum.
        5 => {
            tcp(out, &fields);
            out[ip + 16] ^= 0x55;
            tcp_len
        }
        // TCP header length below the minimum, checksum right.
        6 => {
            tcp(out, &fields);
            patch_tcp(out, ip, 12, 0x1010);
            tcp_len
        }
        // TCP header length beyond the segment.
        7 => {
            write_tcp(out, ends, &fields, 0, 0);
            patch_tcp(out, ip, 12, 0xf010);
            ip + 20
        }
        // SYN and FIN together.
        8 => {
            tcp(out, &TcpFields { flags: flag::SYN | flag::FIN, ..fields });
            tcp_len
        }
        // No flag at all.
        9 => {
            tcp(out, &TcpFields { flags: 0, ..fields });
            tcp_len
        }
        // Data for no connection: answered with RST.
        10 => {
            tcp(out, &fields);
            tcp_len
        }
        // RST for no connection.
        11 => {
            write_tcp(out, ends, &TcpFields { flags: flag::RST, ..fields }, 0, 0);
            ip + 20
        }
        // UDP length beyond the packet.
        12 => {
            write_udp(out, ends, PAYLOAD, 0);
            put_u16(out, ip + 4, 4_000);
            ip + 8 + PAYLOAD
        }
        // UDP checksum.
        13 => {
            write_udp(out, ends, PAYLOAD, 0);
            out[ip + 6] ^= 0x55;
            ip + 8 + PAYLOAD
        }
        // A protocol that a proxy cannot carry (GRE).
        14 | 15 => {
            write_ip(out, ends, 47, PAYLOAD);
            ip + PAYLOAD
        }
        // An IPv6 hop-by-hop header that reaches beyond the packet.
        16 => {
            write_ip(out, ends, 0, PAYLOAD);
            out[40] = protocol::TCP;
            out[41] = 0xff;
            ip + PAYLOAD
        }
        // IPv6 payload length beyond the packet.
        17 => {
            tcp(out, &fields);
            put_u16(out, 4, 9_000);
            tcp_len
        }
        // IPv6 UDP without a checksum (RFC 8200, section 8.1).
        18 => {
            write_udp(out, ends, PAYLOAD, 0);
            put_u16(out, ip + 6, 0);
            ip + 8 + PAYLOAD
        }
        // A multicast source.
        _ => {
            tcp(out, &fields);
            let old = get_u16(out, 12).unwrap_or(0);
            let new = 0xe000 | old & 0x00ff;
            put_u16(out, 12, new);
            for at in [10, ip + 16] {
                let check = patched(get_u16(out, at).unwrap_or(0), old, new);
                put_u16(out, at, check);
            }
            tcp_len
        }
    }
}

/// Changes a word of the TCP header and keeps its checksum right.
fn patch_tcp(out: &mut [u8; MAX_PACKET], ip: usize, at: usize, new: u16) {
    let old = get_u16(out, ip + at).unwrap_or(0);
    put_u16(out, ip + at, new);
    let check = patched(get_u16(out, ip + 16).unwrap_or(0), old, new);
    put_u16(out, ip + 16, check);
}

/// The packets of a `syn_flood` component.
pub struct SynFlood {
    template: [u8; 40],
    placement: Placement,
    rng: Rng,
}

impl SynFlood {
    /// SYNs of one worker.
    pub fn new(worker: u8, component: u8, placement: &Placement, rng: Rng) -> Self {
        let ends = FlowAddresses { v6: false, worker, component, slot: 0, client_port: 0, target_port: TCP_PORT };
        let mut template = [0; 40];
        let fields = TcpFields { flags: flag::SYN, window: 1024, ..TcpFields::default() };
        write_tcp(&mut template, ends, &fields, 0, 0);
        Self { template, placement: placement.clone(), rng }
    }

    /// Sends a SYN from `100.64.0.0/10` and any port: the template with its changed words patched.
    #[inline]
    pub fn send(&mut self, link: &mut Link<'_>) -> Slot {
        if !link.ring.fits(40) {
            return Slot::Full;
        }
        let mut packet = self.make();
        // Half of all ports belong to each of two workers: a few draws do.
        for _ in 0..64 {
            if self.placement.owns(&packet) {
                break;
            }
            packet = self.make();
        }
        let sent = link.ring.push(&packet, link.due_ns, 0);
        link.counters.packets += u64::from(sent);
        link.counters.bytes += if sent { packet.len() as u64 } else { 0 };
        Slot::one(sent)
    }

    fn make(&mut self) -> [u8; 40] {
        let random = self.rng.next_u64();
        let source = 0x6440_0000 | (random as u32 & 0x003f_ffff);
        let port = 1024 | (random >> 32) as u16;
        let seq = (random >> 28) as u32;
        let mut packet = self.template;
        let words = [
            (12, (source >> 16) as u16, true),
            (14, source as u16, true),
            (20, port, false),
            (24, (seq >> 16) as u16, false),
            (26, seq as u16, false),
        ];
        for (at, new, in_ip) in words {
            let old = get_u16(&packet, at).unwrap_or(0);
            put_u16(&mut packet, at, new);
            for check_at in if in_ip { &[10, 36][..] } else { &[36][..] } {
                let check = patched(get_u16(&packet, *check_at).unwrap_or(0), old, new);
                put_u16(&mut packet, *check_at, check);
            }
        }
        packet
    }
}

#[cfg(test)]
mod tests {
    use t2s_core::checksum::Kernel;
    use t2s_core::wire::{self, ip::Ip, tcp::Tcp, udp::Udp};

    use super::*;
    use crate::device_ring::ring;
    use crate::generator::link::Counters;
    use crate::generator::packets::{Pattern, checksums_hold};

    /// Whether the core's codecs would let the packet through to a flow.
    fn is_well_formed(packet: &[u8]) -> bool {
        let Ok(ip) = Ip::parse(packet) else { return false };
        let whole = packet.get(..ip.total as usize);
        let Some(whole) = whole.filter(|whole| wire::verify_transport(Kernel::auto(), &ip, whole)) else {
            return false;
        };
        let upper = &whole[usize::from(ip.payload)..];
        match ip.protocol {
            protocol::TCP => Tcp::parse(upper).is_ok(),
            protocol::UDP => Udp::parse(upper).is_ok(),
            _ => false,
        }
    }

    #[test]
    fn every_way_but_the_stateful_ones_is_refused_by_the_codecs() {
        let mut rng = Rng::new(5, 5);
        for way in 0..WAYS {
            let v6 = matches!(way, 15..=18);
            let ends = FlowAddresses { v6, worker: 0, component: 1, slot: 2, client_port: 3000, target_port: TCP_PORT };
            for _ in 0..100 {
                let mut out = [0; MAX_PACKET];
                let len = corrupt(way, ends, &mut rng, &mut out);
                let stateful = matches!(way, 8..=11);
                assert!(stateful || !is_well_formed(&out[..len]), "way {way}: {:02x?}", &out[..len]);
            }
        }
    }

    #[test]
    fn floods_are_valid_syns_from_nobody() {
        let (mut tx, mut rx) = ring(8192);
        let pattern = Pattern::new();
        let mut counters = Counters::default();
        let mut flood = SynFlood::new(0, 3, &Placement::everywhere(), Rng::new(1, 2));
        for _ in 0..50 {
            let mut link = Link { ring: &mut tx, now_ns: 0, due_ns: 0, pattern: &pattern, counters: &mut counters };
            assert_eq!(flood.send(&mut link), Slot::Sent(1));
        }
        tx.publish();
        let mut sources = std::collections::HashSet::new();
        while let Some(record) = rx.pop() {
            assert!(checksums_hold(record.bytes) && is_well_formed(record.bytes));
            assert_eq!(crate::generator::packets::parse_reply(record.bytes, 0), None);
            sources.insert(record.bytes[12..22].to_vec());
        }
        assert_eq!((sources.len(), counters.packets), (50, 50));
    }
}
