//! The way in: a packet is parsed once, verified, joined from fragments, and handed to its flow.

use core::net::IpAddr;

use super::api::{Disposition, Packet, Request};
use super::flows::Flow;
use super::owner::worker_of;
use super::{Held, Inner};
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

/// A locked shard: the one that is held, or the one asked for instead of it.
pub(super) fn shard<'h, 'm>(
    map: &'m FlowMap<u32>,
    held: &'h mut Held<'m>,
    hash: u64,
) -> &'h mut crate::flow::ShardGuard<'m, u32> {
    let wanted = map.shard_of(hash);
    if held.as_ref().is_none_or(|(shard, _)| *shard != wanted) {
        // The old guard goes first: a thread never holds two shards, so there is no order to get wrong.
        *held = None;
        *held = Some((wanted, map.lock(wanted)));
    }
    match held {
        Some((_, guard)) => guard,
        None => unreachable!("set just above"),
    }
}

/// A TCP segment between the steps of a batch: checked, then looked up, then delivered.
///
/// Each step runs over the whole batch before the next begins. The cache misses of a step (map, then flow) do not depend
/// on each other, so the CPU overlaps them; one packet after another would wait for each in turn.
#[derive(Debug)]
pub(super) struct Looked {
    packet: Packet,
    segment: Tcp,
    key: FlowKey,
    hash: u64,
    found: Option<u32>,
    sampled: bool,
}

/// What the first step made of a packet.
pub(super) enum Look {
    Segment(Looked),
    Done(Disposition),
}

impl Inner {
    /// First step: checks a packet. Everything but TCP is done with it.
    #[inline]
    pub(super) fn look(&mut self, now: Instant, packet: Packet, map: &FlowMap<u32>) -> Look {
        self.stats.packets_in += 1;
        self.stats.bytes_in += packet.buf.len() as u64;
        self.probe.begin();
        let look = self.parsed(now, packet, map);
        self.probe.end();
        look
    }

    /// Second step: finds the flow.
    #[inline]
    pub(super) fn look_up<'m>(&mut self, looked: &mut Looked, map: &'m FlowMap<u32>, held: &mut Held<'m>) {
        self.probe.resume(looked.sampled);
        let shard = shard(map, held, looked.hash);
        // Map and table number flows alike as long as they have come and gone together: then the flow is on its way
        // before the map's entry, which says for sure, has arrived.
        if let Some(place) = shard.guess(looked.hash) {
            self.flows.prefetch(place, HOT);
        }
        looked.found = shard.get(looked.hash, &looked.key).copied();
        self.probe.mark(Stage::Lookup);
        self.probe.end();
    }

    /// Gets the flows of a batch under way to the cache.
    #[inline]
    pub(super) fn warm(&self, batch: &[Looked]) {
        if !batch.is_empty() {
            let flows = batch.iter().filter_map(|looked| self.flows.at(looked.found?));
            core::hint::black_box(flows.fold(0, |sum, flow| sum ^ flow.warm()));
        }
    }

    /// Third step: hands the segment to its flow. `fresh` says that the second step's answer still holds.
    #[inline]
    pub(super) fn deliver<'m>(
        &mut self,
        now: Instant,
        mut looked: Looked,
        fresh: bool,
        map: &'m FlowMap<u32>,
        held: &mut Held<'m>,
    ) -> Disposition {
        if !fresh {
            looked.found = shard(map, held, looked.hash).get(looked.hash, &looked.key).copied();
        }
        self.probe.resume(looked.sampled);
        let disposition = self.delivered(now, looked, map, held);
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

    fn parsed(&mut self, now: Instant, mut packet: Packet, map: &FlowMap<u32>) -> Look {
        let mut ip = match Ip::parse(packet.buf.as_slice()) {
            Ok(ip) => ip,
            Err(reason) => return Look::Done(self.misformed(now, packet, reason)),
        };
        self.probe.mark(Stage::Parse);
        if ip.fragment.is_some() {
            let outcome = self.fragments.handle(now, packet.buf, &ip, &mut self.pool);
            self.probe.mark(Stage::Reassembly);
            match outcome {
                Outcome::Pending => return Look::Done(Disposition::Accepted),
                Outcome::Dropped(reason) => {
                    self.stats.drops.add(reason);
                    return Look::Done(Disposition::Dropped(reason));
                }
                Outcome::Complete(whole) => packet = Packet::plain(whole),
            }
            ip = match Ip::parse(packet.buf.as_slice()) {
                Ok(ip) if ip.fragment.is_none() => ip,
                Ok(_) => return Look::Done(self.refuse(packet, DropReason::FragmentBad)),
                Err(reason) => return Look::Done(self.misformed(now, packet, reason)),
            };
        }
        packet.buf.truncate(ip.total as usize);
        Look::Done(match ip.protocol {
            protocol::TCP => return self.look_segment(packet, &ip, map),
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
    fn look_segment(&mut self, mut packet: Packet, ip: &Ip, map: &FlowMap<u32>) -> Look {
        let bytes = packet.buf.as_slice();
        let segment = match Tcp::parse(&bytes[usize::from(ip.payload)..]) {
            Ok(segment) => segment,
            Err(reason) => return Look::Done(self.refuse(packet, reason)),
        };
        let key = FlowKey::new(ip.src, segment.src_port, ip.dst, segment.dst_port, protocol::TCP);
        let hash = map.hash(&key);
        map.prefetch(hash);
        self.probe.mark(Stage::Parse);
        if !packet.checksum_trusted && !wire::verify_transport(self.config.checksum, ip, bytes) {
            return Look::Done(self.refuse(packet, DropReason::TcpChecksum));
        }
        self.probe.mark(Stage::Checksum);
        let owner = worker_of(map, self.workers, hash);
        if owner != self.worker {
            // The checksum has been looked at; the owner need not do so again.
            packet.checksum_trusted = true;
            self.foreign.push_back((owner, packet));
            return Look::Done(Disposition::Foreign);
        }
        packet.buf.advance(usize::from(ip.payload) + usize::from(segment.header_len));
        let sampled = self.probe.is_on();
        Look::Segment(Looked { packet, segment, key, hash, found: None, sampled })
    }

    #[inline]
    fn delivered<'m>(
        &mut self,
        now: Instant,
        looked: Looked,
        map: &'m FlowMap<u32>,
        held: &mut Held<'m>,
    ) -> Disposition {
        let Looked { packet, segment, key, hash, found, .. } = looked;
        let index = match found {
            Some(index) if !self.starts_anew(index, &segment) => index,
            Some(index) => {
                let least = self.flows.at(index).map(|flow| flow.tcb.next_isn());
                self.bury_one(index, shard(map, held, hash));
                return self.opened(now, packet, &segment, key, hash, least, shard(map, held, hash));
            }
            None if starts_flow(segment.flags) => {
                return self.opened(now, packet, &segment, key, hash, None, shard(map, held, hash));
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
        starts_flow(segment.flags) && self.flows.at(index).is_none_or(|flow| flow.over || flow.tcb.may_reopen(segment))
    }

    #[expect(clippy::too_many_arguments, reason = "what the lookup has found, handed on")]
    fn opened(
        &mut self,
        now: Instant,
        packet: Packet,
        syn: &Tcp,
        key: FlowKey,
        hash: u64,
        least: Option<SeqNumber>,
        guard: &mut crate::flow::ShardGuard<'_, u32>,
    ) -> Disposition {
        match self.open(now, syn, key, hash, least, guard) {
            Ok(index) => {
                self.pool.free(packet.buf);
                self.touch(index);
                Disposition::Accepted
            }
            Err(reason) => self.refuse(packet, reason),
        }
    }

    /// Makes a flow for a SYN and asks for its upstream. `least` is the smallest initial sequence number that cannot be
    /// confused with a predecessor's.
    fn open(
        &mut self,
        now: Instant,
        syn: &Tcp,
        key: FlowKey,
        hash: u64,
        least: Option<SeqNumber>,
        guard: &mut crate::flow::ShardGuard<'_, u32>,
    ) -> Result<u32, DropReason> {
        if syn.src_port == 0 || syn.dst_port == 0 {
            return Err(DropReason::TcpMalformed);
        }
        if self.stats.pending >= u64::from(self.config.max_pending_connects) {
            return Err(DropReason::PendingFull);
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

/// Payload of a super-segment as Linux fills it, in whole segments: its 65,536 bytes less what it keeps for headers (320).
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
