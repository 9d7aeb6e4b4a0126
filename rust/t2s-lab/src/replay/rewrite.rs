//! Captured packets made to fit a live connection.

use t2s_core::checksum::{Kernel, Sum, pseudo_header, update_u32};
use t2s_core::wire::ip::{Ip, IpRepr, fill_v4_header_checksum};
use t2s_core::wire::tcp::{Flags, Options, SeqNumber, Tcp, TcpRepr};
use t2s_core::wire::{self, protocol};

/// Completes what the capturing machine left to its device, as its own packets show in a capture: the length of a
/// super-segment (0 in the header), the checksum of the IPv4 header (0), and that of the transport (0, or the sum of
/// the pseudo-header alone). Other wrong values stay wrong, they are part of what was sent.
pub(super) fn complete(packet: &mut [u8]) {
    complete_length(packet);
    complete_checksum(packet);
}

/// A super-segment ends where the capture's record ends.
fn complete_length(packet: &mut [u8]) {
    let len = packet.len();
    match packet.first().map(|first| first >> 4) {
        Some(4) if len > 20 => {
            let total = u16::try_from(len).ok().filter(|_| packet[2..4] == [0, 0]);
            if let Some(total) = total {
                let header = packet.get(..usize::from(packet[0] & 0xf) * 4).unwrap_or_default();
                let sum_was_right = Kernel::auto().sum(header, Sum::ZERO).is_valid();
                packet[2..4].copy_from_slice(&total.to_be_bytes());
                if sum_was_right {
                    fill_v4_header_checksum(packet);
                }
            }
            if packet[10..12] == [0, 0] {
                fill_v4_header_checksum(packet);
            }
        }
        // Only TCP has super-segments of more than 64 KiB, whose length IPv6 cannot tell.
        Some(6) if len > 40 && packet[4..7] == [0, 0, protocol::TCP] => {
            if let Ok(payload) = u16::try_from(len - 40) {
                packet[4..6].copy_from_slice(&payload.to_be_bytes());
            }
        }
        _ => {}
    }
}

fn complete_checksum(packet: &mut [u8]) {
    let kernel = Kernel::auto();
    let Ok(ip) = Ip::parse(packet) else { return };
    let at = match ip.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return,
    };
    if ip.fragment.is_some() || wire::verify_transport(kernel, &ip, packet) {
        return;
    }
    let Some(segment) = packet.get_mut(usize::from(ip.payload)..ip.total as usize) else { return };
    let Some(field) = segment.get(at..at + 2) else { return };
    let field = [field[0], field[1]];
    let partial = pseudo_header(ip.src, ip.dst, ip.protocol, segment.len() as u32).fold();
    if field == partial.to_be_bytes() || field == [0, 0] {
        wire::fill_transport_checksum(kernel, ip.src, ip.dst, ip.protocol, segment);
    }
}

/// Sets acknowledgement number, SACK edges and timestamp echo of a TCP packet, keeping its checksum as right or wrong
/// as it was.
pub(super) fn rewrite(packet: &mut [u8], ack: SeqNumber, shift: i32, echo: u32) {
    let Ok(ip) = Ip::parse(packet) else { return };
    let Some(segment) = packet.get_mut(usize::from(ip.payload)..ip.total as usize) else { return };
    let Ok(tcp) = Tcp::parse(segment) else { return };
    put_u32(segment, 8, ack.0);
    let end = usize::from(tcp.header_len);
    let mut at = 20;
    while at + 1 < end {
        match segment[at] {
            0 => break,
            1 => at += 1,
            kind => {
                let len = usize::from(segment[at + 1]);
                if len < 2 || at + len > end {
                    break;
                }
                match kind {
                    5 => {
                        for edge in (at + 2..at + len).step_by(4).filter(|edge| edge + 4 <= at + len) {
                            let old = get_u32(segment, edge);
                            put_u32(segment, edge, old.wrapping_add_signed(shift));
                        }
                    }
                    8 if len == 10 => put_u32(segment, at + 6, echo),
                    _ => {}
                }
                at += len;
            }
        }
    }
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

/// Writes a 32-bit field of a TCP segment and updates the checksum (RFC 1624).
///
/// Options need not be aligned to 16 bits: the field is then updated as the words that it touches.
fn put_u32(segment: &mut [u8], at: usize, value: u32) {
    let start = at & !1;
    let words = |segment: &[u8]| (get_u32(segment, start), get_u32(segment, start + 2));
    let odd = at != start;
    let before = words(segment);
    if let Some(field) = segment.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_be_bytes());
    } else {
        return;
    }
    let after = words(segment);
    let mut check = get_u32(segment, 16).to_be_bytes();
    let mut sum = u16::from_be_bytes([check[0], check[1]]);
    sum = update_u32(sum, before.0, after.0);
    if odd {
        sum = update_u32(sum, before.1 & 0xffff, after.1 & 0xffff);
    }
    check[..2].copy_from_slice(&sum.to_be_bytes());
    segment[16..18].copy_from_slice(&check[..2]);
}

/// The client's packet without payload and flags but ACK, acknowledging `ack`.
pub(super) fn pure_ack(packet: &[u8], ack: SeqNumber, echo: u32) -> Option<Vec<u8>> {
    let ip = Ip::parse(packet).ok()?;
    let tcp = Tcp::parse(packet.get(usize::from(ip.payload)..ip.total as usize)?).ok()?;
    let mut options = Options::NONE;
    options.timestamp = tcp.options.timestamp.map(|(value, _)| (value, echo));
    let repr = TcpRepr {
        src_port: tcp.src_port,
        dst_port: tcp.dst_port,
        seq: tcp.seq,
        ack,
        flags: Flags::ACK,
        window: tcp.window,
        options,
    };
    let ip = IpRepr {
        src: ip.src,
        dst: ip.dst,
        protocol: protocol::TCP,
        ttl: ip.ttl,
        ecn: 0,
        payload_len: repr.header_len() as u32,
        id: 0,
        dont_fragment: true,
    };
    let mut out = vec![0; ip.header_len() + repr.header_len()];
    let (head, tail) = out.split_at_mut(ip.header_len());
    ip.emit(head);
    repr.emit(tail);
    wire::fill_transport_checksum(Kernel::auto(), ip.src, ip.dst, protocol::TCP, tail);
    Some(out)
}
