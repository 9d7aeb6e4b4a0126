//! The way in: a packet is parsed once, verified, joined from fragments, and handed to its flow.

use core::net::IpAddr;

use super::Inner;
use super::api::{Disposition, Packet, Request};
use super::cursor::ShardCursor;
use super::flows::Flow;
use super::owner::worker_of;
use crate::config::Config;
use crate::flow::{FlowKey, FlowMap};
use crate::fragment::Outcome;
use crate::stats::{DropReason, Stage};
use crate::tcp::Tcb;
use crate::time::Instant;
use crate::wire::icmp::IcmpError;
use crate::wire::ip::Ip;
use crate::wire::tcp::{Flags, SeqNumber, Tcp};
use crate::wire::{self, protocol};

/// Bytes of a flow's slot that nearly each segment touches.
const HOT: usize = 320;

/// A TCP segment between the steps of a batch: checked, then looked up, then delivered.
///
/// Each step runs over the whole batch before the next begins. The cache misses of a step (map, then flow) do not
/// depend on each other, so the CPU overlaps them; one packet after another would wait for each in turn.
#[derive(Debug)]
pub(super) struct PendingSegment {
    packet: Packet,
    segment: Tcp,
    key: FlowKey,
    hash: u64,
    found: Option<u32>,
    sampled: bool,
}

/// A SYN that starts a flow.
struct Syn<'a> {
    segment: &'a Tcp,
    key: FlowKey,
    hash: u64,
    /// The smallest initial sequence number that cannot be confused with a predecessor's.
    least: Option<SeqNumber>,
}

/// What the first step made of a packet.
pub(super) enum Parsed {
    Segment(PendingSegment),
    Done(Disposition),
}

impl Inner {
    /// First step: checks a packet. Everything but TCP is done with it.
    #[inline]
    pub(super) fn parse(&mut self, now: Instant, packet: Packet, map: &FlowMap<u32>) -> Parsed {
        self.stats.packets_in += 1;
        self.stats.bytes_in += packet.buf.len() as u64;
        self.probe.begin();
        let parsed = self.parse_packet(now, packet, map);
        self.probe.end();
        parsed
    }

    /// Second step: finds the flow.
    #[inline]
    pub(super) fn lookup(&mut self, pending: &mut PendingSegment, cursor: &mut ShardCursor<'_>) {
        self.probe.resume(pending.sampled);
        let shard = cursor.shard(pending.hash);
        // Map and table number flows alike as long as they have come and gone together: then the flow is on its way
        // before the map's entry, which says for sure, has arrived.
        if let Some(place) = shard.guess(pending.hash) {
            self.flows.prefetch(place, HOT);
        }
        pending.found = shard.get(pending.hash, &pending.key).copied();
        self.probe.mark(Stage::Lookup);
        self.probe.end();
    }

    /// Gets the flows of a batch under way to the cache.
    #[inline]
    pub(super) fn warm(&self, batch: &[PendingSegment]) {
        if !batch.is_empty() {
            let flows = batch.iter().filter_map(|pending| self.flows.at(pending.found?));
            core::hint::black_box(flows.fold(0, |sum, flow| sum ^ flow.warm()));
        }
    }

    /// Third step: hands the segment to its flow. `fresh` says that the second step's answer still holds.
    #[inline]
    pub(super) fn deliver(
        &mut self,
        now: Instant,
        mut pending: PendingSegment,
        fresh: bool,
        cursor: &mut ShardCursor<'_>,
    ) -> Disposition {
        if !fresh {
            pending.found = cursor.shard(pending.hash).get(pending.hash, &pending.key).copied();
        }
        self.probe.resume(pending.sampled);
        let disposition = self.deliver_segment(now, pending, cursor);
        self.probe.mark(Stage::Tcp);
        self.probe.end();
        disposition
    }

    /// Drops a packet: its buffer goes back, its reason is counted.
    #[inline]
    pub(super) fn refuse(&mut self, packet: Packet, reason: DropReason) -> Disposition {
        self.pool.free(packet.buf);
        self.stats.drops.add(reason);
        Disposition::Dropped(reason)
    }

    fn parse_packet(&mut self, now: Instant, mut packet: Packet, map: &FlowMap<u32>) -> Parsed {
        let mut ip = match Ip::parse(packet.buf.as_slice()) {
            Ok(ip) => ip,
            Err(reason) => return Parsed::Done(self.misformed(now, packet, reason)),
        };
        self.probe.mark(Stage::Parse);
        if ip.fragment.is_some() {
            let outcome = self.fragments.handle(now, packet.buf, &ip, &mut self.pool);
            self.probe.mark(Stage::Reassembly);
            match outcome {
                Outcome::Pending => return Parsed::Done(Disposition::Accepted),
                Outcome::Dropped(reason) => {
                    self.stats.drops.add(reason);
                    return Parsed::Done(Disposition::Dropped(reason));
                }
                Outcome::Complete(whole) => packet = Packet::plain(whole),
            }
            ip = match Ip::parse(packet.buf.as_slice()) {
                Ok(ip) if ip.fragment.is_none() => ip,
                Ok(_) => return Parsed::Done(self.refuse(packet, DropReason::FragmentBad)),
                Err(reason) => return Parsed::Done(self.misformed(now, packet, reason)),
            };
        }
        packet.buf.truncate(ip.total as usize);
        Parsed::Done(match ip.protocol {
            protocol::TCP => return self.parse_segment(packet, &ip, map),
            protocol::UDP => self.udp_packet(now, packet, &ip, map),
            protocol::ICMP if ip.src.is_ipv4() => self.icmp_packet(now, packet, &ip, map),
            protocol::ICMPV6 if ip.src.is_ipv6() => self.icmp_packet(now, packet, &ip, map),
            _ => {
                self.send_error(now, &ip, packet.buf.as_slice(), IcmpError::ProtocolUnreachable);
                self.refuse(packet, DropReason::Unsupported)
            }
        })
    }

    #[inline]
    fn parse_segment(&mut self, mut packet: Packet, ip: &Ip, map: &FlowMap<u32>) -> Parsed {
        let bytes = packet.buf.as_slice();
        let segment = match Tcp::parse(&bytes[usize::from(ip.payload)..]) {
            Ok(segment) => segment,
            Err(reason) => return Parsed::Done(self.refuse(packet, reason)),
        };
        let key = FlowKey::new(ip.src, segment.src_port, ip.dst, segment.dst_port, protocol::TCP);
        let hash = map.hash(&key);
        map.prefetch(hash);
        self.probe.mark(Stage::Parse);
        if !packet.checksum_trusted && !wire::verify_transport(self.config.checksum, ip, bytes) {
            return Parsed::Done(self.refuse(packet, DropReason::TcpChecksum));
        }
        self.probe.mark(Stage::Checksum);
        let owner = worker_of(map, self.workers, hash);
        if owner != self.worker {
            // The checksum has been looked at; the owner need not do so again.
            packet.checksum_trusted = true;
            self.foreign.push_back((owner, packet));
            return Parsed::Done(Disposition::Foreign);
        }
        packet.buf.advance(usize::from(ip.payload) + usize::from(segment.header_len));
        let sampled = self.probe.is_on();
        Parsed::Segment(PendingSegment { packet, segment, key, hash, found: None, sampled })
    }

    #[inline]
    fn deliver_segment(&mut self, now: Instant, pending: PendingSegment, cursor: &mut ShardCursor<'_>) -> Disposition {
        let PendingSegment { packet, segment, key, hash, found, .. } = pending;
        let index = match found {
            Some(index) if !self.starts_anew(index, &segment) => index,
            Some(index) => {
                let least = self.flows.at(index).map(|flow| flow.tcb.next_isn());
                self.reap_one(index, cursor);
                return self.accept(now, packet, &Syn { segment: &segment, key, hash, least }, cursor);
            }
            None if starts_flow(segment.flags) => {
                return self.accept(now, packet, &Syn { segment: &segment, key, hash, least: None }, cursor);
            }
            None => {
                self.reset_stranger(&key, &segment, packet.buf.len());
                return self.refuse(packet, DropReason::TcpNoFlow);
            }
        };
        let Inner { flows, config, pool, budget, memory, stats, .. } = self;
        let Some(flow) = flows.at_mut(index) else {
            // The map names only live flows; a stale entry would be a defect, not the client's fault.
            debug_assert!(false, "flow map entry without a flow");
            return self.refuse(packet, DropReason::TcpNoFlow);
        };
        flow.last_active = now;
        let mut ctx = super::flows::context(now, config, pool, budget, memory, stats);
        flow.tcb.handle_segment(&mut ctx, &segment, packet.buf);
        self.touch(index);
        Disposition::Accepted
    }

    /// Whether a segment for a flow that is over, or as good as over, is the SYN of its successor
    /// (RFC 9293, section 3.10.7.4, TIME-WAIT; RFC 6191).
    fn starts_anew(&self, index: u32, segment: &Tcp) -> bool {
        starts_flow(segment.flags)
            && self.flows.at(index).is_none_or(|flow| !flow.life.is_alive() || flow.tcb.may_reopen(segment))
    }

    /// Opens a flow for a SYN, or drops it.
    fn accept(&mut self, now: Instant, packet: Packet, syn: &Syn<'_>, cursor: &mut ShardCursor<'_>) -> Disposition {
        match self.open(now, syn, cursor) {
            Ok(index) => {
                self.pool.free(packet.buf);
                self.touch(index);
                Disposition::Accepted
            }
            Err(reason) => self.refuse(packet, reason),
        }
    }

    /// Makes a flow for a SYN and asks for its upstream.
    fn open(&mut self, now: Instant, syn: &Syn<'_>, cursor: &mut ShardCursor<'_>) -> Result<u32, DropReason> {
        let &Syn { segment: syn, key, hash, least } = syn;
        if syn.src_port == 0 || syn.dst_port == 0 {
            return Err(DropReason::TcpMalformed);
        }
        if self.stats.pending >= u64::from(self.config.max_pending_connects) {
            return Err(DropReason::PendingFull);
        }
        let guard = cursor.shard(hash);
        // Looked at before somebody is ended for this flow's sake, which would cost two connections.
        if self.flows.is_full() || guard.is_full() {
            return Err(DropReason::FlowTableFull);
        }
        if self.flows.len() >= self.config.max_tcp_flows as usize && !self.evict(now) {
            return Err(DropReason::FlowTableFull);
        }
        let mss = local_mss(&self.config, key.src());
        let isn = self.initial_sequence(now, &key);
        let isn = least.map_or(isn, |least| least.max(isn));
        let Inner { flows, config, pool, budget, memory, stats, .. } = self;
        let mut ctx = super::flows::context(now, config, pool, budget, memory, stats);
        let tcb = Tcb::accept(&mut ctx, syn, isn, mss, key.src().is_ipv4());
        let Some(id) = flows.insert_with(|_| Flow::new(tcb, key, hash, now)) else {
            return Err(DropReason::FlowTableFull);
        };
        if guard.insert(hash, key, id.index, now).is_err() {
            if let Some(flow) = self.flows.remove(id.index) {
                flow.tcb.release(&mut self.pool, &mut self.budget, &mut self.memory);
            }
            return Err(DropReason::FlowTableFull);
        }
        self.changes = self.changes.wrapping_add(1);
        self.limit_flow(now, id.index);
        self.stats.pending += 1;
        self.stats.flows_opened += 1;
        self.stats.flows_peak = self.stats.flows_peak.max(self.flows.len() as u64);
        self.requests.push_back(Request::Connect { flow: id, client: key.source(), target: key.destination() });
        Ok(id.index)
    }
}

/// Whether these flags ask for a new connection.
fn starts_flow(flags: Flags) -> bool {
    flags.syn() && !flags.intersects(Flags::ACK.with(Flags::RST).with(Flags::FIN))
}

/// Payload of a super-segment as Linux fills it, in whole segments: its 65,536 bytes less what it keeps for headers
/// (320).
const SUPER_SEGMENT: u16 = 65_000;

/// The MSS that a client is told (RFC 9293, section 3.7.1): the MTU less both headers, or a little less where more then
/// goes into a super-segment.
fn local_mss(config: &Config, client: IpAddr) -> u16 {
    let headers = if client.is_ipv4() { 40 } else { 60 };
    // RFC 9293, section 3.7.1: 536 is what every host must take; smaller MTUs exist, but not below IPv4's 68.
    let mss = config.mtu.saturating_sub(headers).max(8);
    if config.offload.tso { filling(mss) } else { mss }
}

/// An MSS of which whole segments fill a super-segment. Seven of the 8,460 bytes of an MTU of 8,500 leave a tenth of it
/// empty, in both directions; eight of 8,125 do not. Where that is not worth a sixteenth, the MSS stays what it is.
fn filling(mss: u16) -> u16 {
    let whole = SUPER_SEGMENT / mss;
    let smaller = SUPER_SEGMENT / (whole + 1);
    let payload = |count: u16, mss: u16| u32::from(count) * u32::from(mss);
    if whole > 0 && payload(whole + 1, smaller) > payload(whole, mss) / 16 * 17 { smaller } else { mss }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Offload;

    #[test]
    fn segments_fill_a_super_segment() {
        for (mss, told) in [(8, 8), (536, 536), (1_460, 1_460), (8_460, 8_125), (8_960, 8_960), (16_344, 16_250)] {
            assert_eq!(filling(mss), told);
        }
        for mss in 8..=u16::MAX {
            let told = filling(mss);
            assert!(told <= mss && (told == mss || SUPER_SEGMENT % told < SUPER_SEGMENT / 100), "{mss}: {told}");
        }
    }

    #[test]
    fn without_offload_the_mss_is_what_the_mtu_leaves() {
        let [v4, v6] = [IpAddr::from([10, 0, 0, 2]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2])];
        let config = Config { mtu: 8_500, ..Config::default() };
        assert_eq!([v4, v6].map(|client| local_mss(&config, client)), [8_460, 8_440]);
        let config = Config { offload: Offload { tso: true, ..Offload::default() }, ..config };
        assert_eq!([v4, v6].map(|client| local_mss(&config, client)), [8_125, 8_125]);
        assert_eq!(local_mss(&Config { mtu: 10, ..config }, v4), 8);
    }
}
