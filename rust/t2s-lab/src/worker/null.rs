//! The null device: a peer that keeps no state and only acknowledges. Its speed is the generator's own, so a scenario
//! whose capacity comes near it measured the generator.

use crate::device_ring::{Consumer, Producer};
use crate::generator::link::{FLAG_MARK, Mark};
use crate::generator::packets::{flag, fold, get_u16, patched, protocol, put_u16, split_ip, sum_of};

/// Packets taken in one iteration.
const BUDGET: u32 = 64;

/// Largest reply to a segment: IPv6 and TCP headers with the options of a SYN.
const MAX_REPLY: usize = 40 + 32;

/// The device, for one generator.
#[derive(Debug, Default)]
pub struct NullDevice {
    /// Packets taken, cumulative.
    pub packets: u64,
    /// UDP is sent back.
    echo: bool,
}

impl NullDevice {
    /// A device that echoes UDP or swallows it.
    pub fn new(echo: bool) -> Self {
        Self { packets: 0, echo }
    }

    /// Takes what is there; whether there was something, and a mark if one was met (which ends the iteration).
    pub fn iterate(&mut self, packets: &mut Consumer, replies: &mut Producer) -> (bool, Option<Mark>) {
        let (mut taken, mut mark) = (0, None);
        while taken < BUDGET && replies.fits(crate::spec::MAX_PAYLOAD as usize + 535) {
            let Some(record) = packets.pop() else { break };
            taken += 1;
            if record.flags & FLAG_MARK != 0 {
                mark = Mark::from_due(record.due_ns);
                break;
            }
            self.packets += 1;
            self.answer(record.bytes, replies);
        }
        packets.release();
        replies.publish();
        (taken > 0, mark)
    }

    fn answer(&self, packet: &[u8], replies: &mut Producer) {
        let Some((v6, protocol, upper)) = split_ip(packet) else { return };
        // What is not the first fragment has no transport header (IPv6 ones are of another protocol here).
        if !v6 && get_u16(packet, 6).is_some_and(|field| field & 0x1fff != 0) {
            return;
        }
        match protocol {
            protocol::TCP => {
                if let Some(len) = acknowledgement_len(upper, v6)
                    && let Some(out) = replies.reserve(MAX_REPLY)
                {
                    acknowledge(packet, v6, upper, out, len);
                    replies.commit(len, 0, 0);
                }
            }
            protocol::UDP if self.echo => {
                if let Some(out) = replies.reserve(packet.len()) {
                    out.copy_from_slice(packet);
                    turn_around(out, v6);
                    mark_response(&mut out[if v6 { 40 } else { 20 }..]);
                    replies.commit(packet.len(), 0, 0);
                }
            }
            _ => {}
        }
    }
}

/// Length of the reply to a segment; `None` for one that is not answered.
fn acknowledgement_len(tcp: &[u8], v6: bool) -> Option<usize> {
    let header: &[u8] = tcp.get(..20)?;
    let flags = header[13];
    let payload = tcp.len().checked_sub(usize::from(header[12] >> 4) * 4)?;
    let ip = if v6 { 40 } else { 20 };
    if flags & flag::RST != 0 || (payload == 0 && flags & (flag::SYN | flag::FIN) == 0) {
        return None;
    }
    Some(ip + if flags & flag::SYN != 0 { 32 } else { 20 })
}

/// Exchanges addresses and ports, which leaves every checksum as it is.
fn turn_around(out: &mut [u8], v6: bool) {
    let (at, len, ip) = if v6 { (8, 16, 40) } else { (12, 4, 20) };
    let (source, target) = out[at..at + 2 * len].split_at_mut(len);
    source.swap_with_slice(target);
    if let [a, b, c, d, ..] = &mut out[ip..] {
        std::mem::swap(a, c);
        std::mem::swap(b, d);
    }
}

/// Makes a DNS query a response, as its client expects (RFC 1035, section 4.1.1: the QR bit).
fn mark_response(udp: &mut [u8]) {
    const FLAGS: usize = 8 + 2;
    let (Some(old), Some(check)) = (get_u16(udp, FLAGS), get_u16(udp, 6)) else { return };
    if get_u16(udp, 0) == Some(crate::generator::datagrams::DNS_PORT) {
        put_u16(udp, FLAGS, old | 0x8000);
        put_u16(udp, 6, patched(check, old, old | 0x8000));
    }
}

/// Writes SYN-ACK, ACK or FIN-ACK for a segment, `len` bytes; all from the segment itself.
fn acknowledge(packet: &[u8], v6: bool, tcp: &[u8], out: &mut [u8], len: usize) {
    let ip = if v6 { 40 } else { 20 };
    let reply_flags = flag::ACK | tcp[13] & (flag::SYN | flag::FIN);
    let syn = tcp[13] & flag::SYN != 0;
    let payload = tcp.len() - usize::from(tcp[12] >> 4) * 4;
    let consumed = payload as u32 + u32::from(tcp[13] & (flag::SYN | flag::FIN) != 0);
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let out = &mut out[..len];
    out[..ip + 4].copy_from_slice(&packet[..ip + 4]);
    turn_around(out, v6);
    if v6 {
        put_u16(out, 4, (len - ip) as u16);
    } else {
        let (old, new) = (get_u16(out, 2).unwrap_or(0), len as u16);
        let check = get_u16(out, 10).unwrap_or(0);
        put_u16(out, 2, new);
        put_u16(out, 10, patched(check, old, new));
    }
    // A SYN acknowledges nothing, so its own sequence starts at 0; afterwards the peer says which byte it expects.
    out[ip + 4..ip + 8].copy_from_slice(&tcp[8..12]);
    out[ip + 8..ip + 12].copy_from_slice(&seq.wrapping_add(consumed).to_be_bytes());
    out[ip + 12] = ((len - ip) as u8 / 4) << 4;
    out[ip + 13] = reply_flags;
    out[ip + 14..ip + 20].copy_from_slice(&[0xff, 0xff, 0, 0, 0, 0]);
    if syn {
        out[ip + 20..ip + 32].copy_from_slice(&[2, 4, 5, 0xb4, 1, 3, 3, 7, 1, 1, 4, 2]);
    }
    let addresses = if v6 { 8..40 } else { 12..20 };
    let pseudo = sum_of(&out[addresses]) + u32::from(protocol::TCP) + (len - ip) as u32;
    let check = !fold(pseudo + sum_of(&out[ip..]));
    put_u16(out, ip + 16, check);
}
