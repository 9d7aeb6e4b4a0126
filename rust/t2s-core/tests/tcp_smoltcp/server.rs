//! The terminator's end: one flow, its upstream, and what must hold for everything that it sends.

use std::net::IpAddr;

use t2s_core::buf::{Pool, PoolCache, PoolConfig};
use t2s_core::checksum::Kernel;
use t2s_core::config::{Reassembly, StreamLimits};
use t2s_core::reassembly::Budget;
use t2s_core::stats::DropCounts;
use t2s_core::tcp::{BufferBudget, CloseReason, Ctx, Events, OutSegment, Refusal, SegmentLimits, Tcb, TcpStats};
use t2s_core::time::Instant;
use t2s_core::wire::tcp::Options;
use t2s_core::wire::{Flags, Ip, IpRepr, SeqNumber, Tcp, TcpRepr, fill_transport_checksum, protocol, verify_transport};

use super::plan::{Ending, Plan, Rng, byte};

/// The terminator's side: what the stack and the upstream do, for one flow.
pub(super) struct Server {
    pool: Pool,
    cache: PoolCache,
    budget: Budget,
    memory: BufferBudget,
    pub(super) counts: DropCounts,
    pub(super) stats: TcpStats,
    stream: StreamLimits,
    pub(super) tcb: Option<Tcb>,
    /// Upstream's answer is due then.
    connect_at: Option<u64>,
    pub(super) closed: Option<CloseReason>,
    /// Segments for a flow that is gone are answered with RST, as the stack does.
    resets: Vec<OutSegment>,
    events: Events,
    pub(super) received: usize,
    pushed: usize,
    pub(super) peer_fin: bool,
    eof: bool,
    next_read: u64,
    /// Right edges: the client's as delivered to us, ours as sent.
    client_edge: Option<SeqNumber>,
    our_edge: Option<SeqNumber>,
    client_shift: u8,
    our_shift: u8,
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
}

macro_rules! ctx {
    ($server:expr, $plan:expr, $now:expr) => {
        Ctx {
            now: Instant::from_nanos($now),
            config: &$plan.config,
            stream: &$server.stream,
            mode: Reassembly::Bounded,
            pool: &mut $server.cache,
            budget: &mut $server.budget,
            memory: &mut $server.memory,
            counts: &mut $server.counts,
            tcp: &mut $server.stats,
        }
    };
}

impl Server {
    pub(super) fn new(local: (IpAddr, u16), remote: (IpAddr, u16)) -> Self {
        let pool = Pool::new(PoolConfig::default());
        let cache = pool.cache();
        let stream = StreamLimits { flow_bytes: 256 * 1024, flow_segments: 256, total_bytes: 1024 * 1024 };
        Self {
            pool,
            cache,
            budget: Budget::new(stream.total_bytes),
            memory: BufferBudget::new(64 << 20),
            counts: DropCounts::default(),
            stats: TcpStats::default(),
            stream,
            tcb: None,
            connect_at: None,
            closed: None,
            resets: Vec::new(),
            events: Events::NONE,
            received: 0,
            pushed: 0,
            peer_fin: false,
            eof: false,
            next_read: 0,
            client_edge: None,
            our_edge: None,
            client_shift: 0,
            our_shift: 0,
            local,
            remote,
        }
    }

    fn limits(plan: &Plan) -> SegmentLimits {
        let headers = if plan.v6 { 60 } else { 40 };
        let tso_max = if plan.tso { 65_535 - headers - 40 } else { 0 };
        SegmentLimits { mss: (plan.mtu - headers) as u16, tso_max, slices: 16 }
    }

    /// A batch of packets from the network.
    pub(super) fn handle_packets(&mut self, plan: &Plan, now: u64, packets: Vec<Vec<u8>>) {
        let mut batch: Vec<(Tcp, Vec<u8>)> = Vec::new();
        for packet in packets {
            let ip = Ip::parse(&packet).expect("smoltcp sends valid IP");
            assert!(verify_transport(Kernel::auto(), &ip, &packet), "checksum of the client");
            let segment = &packet[usize::from(ip.payload)..ip.total as usize];
            let mut tcp = Tcp::parse(segment).expect("smoltcp sends valid TCP");
            if !plan.sack {
                tcp.options.sack_permitted = false;
            }
            let payload = segment[usize::from(tcp.header_len)..].to_vec();
            // Receive offload: what continues the segment before it becomes one with it.
            if let Some((last, bytes)) = batch.last_mut() {
                let next = last.seq + bytes.len() as u32;
                let plain = |tcp: &Tcp| tcp.flags.without(Flags::PSH) == Flags::ACK && tcp.options.sack.is_empty();
                let fits = bytes.len() + payload.len() < 60_000;
                if plan.gro
                    && plain(last)
                    && plain(&tcp)
                    && next == tcp.seq
                    && last.ack == tcp.ack
                    && fits
                    && !payload.is_empty()
                    && !bytes.is_empty()
                {
                    bytes.extend_from_slice(&payload);
                    last.window = tcp.window;
                    last.options.timestamp = tcp.options.timestamp;
                    continue;
                }
            }
            batch.push((tcp, payload));
        }
        for (tcp, payload) in batch {
            self.handle_segment(plan, now, &tcp, &payload);
        }
    }

    fn handle_segment(&mut self, plan: &Plan, now: u64, tcp: &Tcp, payload: &[u8]) {
        if self.tcb.is_none() {
            if self.closed.is_none() && tcp.flags.syn() {
                let mss = (plan.mtu - if plan.v6 { 60 } else { 40 }) as u16;
                let tcb = Tcb::accept(&mut ctx!(self, plan, now), tcp, SeqNumber(plan.isn), mss, !plan.v6);
                self.tcb = Some(tcb);
                self.connect_at = Some(now + plan.connect_delay);
                self.client_shift = tcp.options.window_scale.unwrap_or(0);
            } else if self.closed.is_some() && tcp.flags.ack() && !tcp.flags.rst() {
                let repr = TcpRepr {
                    src_port: 0,
                    dst_port: 0,
                    seq: tcp.ack,
                    ack: SeqNumber(0),
                    flags: Flags::RST,
                    window: 0,
                    options: Options::NONE,
                };
                self.resets.push(OutSegment { repr, payload_offset: 0, payload_len: 0, gso_size: None });
            }
            return;
        }
        if tcp.flags.ack() {
            let edge = tcp.ack + (u32::from(tcp.window) << self.client_shift);
            self.client_edge = Some(self.client_edge.map_or(edge, |old| old.max(edge)));
        }
        let mut buf = self.cache.alloc(64 + payload.len(), 64).expect("room");
        buf.reset(64);
        assert_eq!(buf.append(payload), payload.len());
        let tcb = self.tcb.as_mut().expect("checked above");
        tcb.handle_segment(&mut ctx!(self, plan, now), tcp, buf);
    }

    /// What is due by now.
    pub(super) fn handle_timeout(&mut self, plan: &Plan, now: u64) {
        let Some(tcb) = &mut self.tcb else { return };
        if tcb.deadline().is_some_and(|(at, _)| at.nanos() <= now) {
            tcb.handle_timeout(&mut ctx!(self, plan, now));
            assert!(tcb.deadline().is_none_or(|(at, _)| at.nanos() > now), "a due timer stays due");
        }
    }

    /// The upstream's part: connect, read, write, end.
    pub(super) fn run_upstream(&mut self, plan: &Plan, rng: &mut Rng, now: u64) {
        let Some(mut tcb) = self.tcb.take() else { return };
        if self.connect_at.is_some_and(|at| at <= now) {
            self.connect_at = None;
            if plan.ending == Ending::Refused {
                tcb.refused(&mut ctx!(self, plan, now), Refusal::Reset);
            } else {
                tcb.connected(&mut ctx!(self, plan, now));
            }
        }
        if plan.ending == Ending::ReaderGone && self.received >= plan.up / 2 {
            tcb.reader_gone(&mut ctx!(self, plan, now));
        }
        if self.next_read <= now && tcb.readable_len() > 0 && self.connect_at.is_none() {
            let take = if plan.upstream_pause > 0 {
                self.next_read = now + plan.upstream_pause;
                rng.range(1, tcb.readable_len() as u64) as usize
            } else {
                tcb.readable_len()
            };
            let take = if plan.ending == Ending::ReaderGone { take.min(plan.up / 2 - self.received) } else { take };
            let mut left = take;
            for slice in tcb.readable() {
                for &found in &slice[..slice.len().min(left)] {
                    assert_eq!(found, byte(1, self.received), "seed {}: byte {} up", plan.seed, self.received);
                    self.received += 1;
                }
                left -= slice.len().min(left);
            }
            assert_eq!(left, 0, "readable_len and readable agree");
            tcb.consume(&mut ctx!(self, plan, now), take);
        }
        self.absorb_events(&mut tcb);
        if self.connect_at.is_none() {
            while self.pushed < plan.down {
                let room = tcb.upstream_room(&plan.config, &self.memory);
                if room == 0 {
                    break;
                }
                let len = room.min(plan.down - self.pushed).min(rng.range(1, 66_000) as usize);
                let mut buf = self.cache.alloc(128 + len, 128).expect("room");
                buf.reset(128);
                let bytes: Vec<u8> = (0..len).map(|at| byte(2, self.pushed + at)).collect();
                assert_eq!(buf.append(&bytes), len);
                tcb.push(&mut ctx!(self, plan, now), buf);
                self.pushed += len;
            }
            if plan.ending == Ending::UpstreamAborts && self.pushed == plan.down {
                tcb.abort(&mut ctx!(self, plan, now));
            }
            let may_end = match plan.ending {
                Ending::ClientFirst | Ending::ClientAborts => self.peer_fin,
                Ending::Both | Ending::UpstreamFirst => true,
                Ending::ClientVanishes | Ending::UpstreamAborts | Ending::Refused | Ending::ReaderGone => false,
            };
            if may_end && self.pushed == plan.down && !self.eof {
                self.eof = true;
                tcb.upstream_eof(&mut ctx!(self, plan, now));
            }
        }
        self.tcb = Some(tcb);
    }

    fn absorb_events(&mut self, tcb: &mut Tcb) {
        let events = tcb.take_events();
        if events.contains(Events::PEER_FIN) {
            self.peer_fin = true;
        }
        if events.contains(Events::CLOSED) {
            assert!(self.closed.is_none(), "closed once");
            self.closed = tcb.close_reason();
            assert!(self.closed.is_some(), "a closed flow has its reason");
        }
        if events.contains(Events::RESET) {
            self.events = Events::RESET;
        }
    }

    /// Everything that the flow has to say, cut into packets as the device would.
    pub(super) fn transmit(&mut self, plan: &Plan, now: u64) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for reset in std::mem::take(&mut self.resets) {
            self.packets(plan, &reset, &[], &mut out);
        }
        let Some(mut tcb) = self.tcb.take() else { return out };
        let limits = Self::limits(plan);
        let mut count = 0;
        while let Some(segment) = tcb.poll_segment(&mut ctx!(self, plan, now), &limits) {
            count += 1;
            assert!(count < 10_000, "seed {}: endless output", plan.seed);
            self.check_segment(plan, &tcb, &segment, &limits);
            let payload: Vec<u8> =
                tcb.payload(segment.payload_offset, segment.payload_len).flatten().copied().collect();
            assert!(tcb.payload(segment.payload_offset, segment.payload_len).count() <= limits.slices, "slices");
            assert_eq!(payload.len(), segment.payload_len);
            self.packets(plan, &segment, &payload, &mut out);
        }
        self.absorb_events(&mut tcb);
        if self.closed.is_some() {
            assert!(tcb.deadline().is_none(), "seed {}: a closed flow has a timer", plan.seed);
            tcb.release(&mut self.cache, &mut self.budget, &mut self.memory);
        } else {
            self.tcb = Some(tcb);
        }
        out
    }

    fn check_segment(&mut self, plan: &Plan, tcb: &Tcb, segment: &OutSegment, limits: &SegmentLimits) {
        let repr = &segment.repr;
        if repr.flags.rst() {
            return;
        }
        if repr.flags.syn() {
            self.our_shift = repr.options.window_scale.unwrap_or(0);
        } else {
            let unit = 1u32 << self.our_shift;
            let edge = repr.ack + (u32::from(repr.window) << self.our_shift);
            if let Some(old) = self.our_edge {
                assert!((edge + (unit - 1)).ge(old), "seed {}: window retracted by {}", plan.seed, old - edge);
            }
            self.our_edge = Some(self.our_edge.map_or(edge, |old| old.max(edge)));
        }
        if let (Some(edge), true) = (self.client_edge, segment.payload_len > 0) {
            // One byte beyond is a probe.
            let end = repr.seq + segment.payload_len as u32;
            let probe = segment.payload_len == 1;
            assert!(
                end.le(edge) || (probe && end.le(edge + 1)),
                "seed {}: beyond the client's window: {repr:?} {} {edge}",
                plan.seed,
                segment.payload_len
            );
        }
        match segment.gso_size {
            None => assert!(segment.payload_len <= usize::from(limits.mss), "longer than a packet"),
            Some(size) => {
                let size = usize::from(size);
                assert!(segment.payload_len > size && segment.payload_len <= limits.tso_max);
                let last = segment.payload_offset + segment.payload_len == tcb.send_len();
                // Holes of a scoreboard end where they end.
                let hole = self.stats.retransmits > 0;
                assert!(
                    last || hole || segment.payload_len.is_multiple_of(size),
                    "seed {}: ragged super-segment",
                    plan.seed
                );
            }
        }
    }

    /// Segmentation offload in software.
    fn packets(&self, plan: &Plan, segment: &OutSegment, payload: &[u8], out: &mut Vec<Vec<u8>>) {
        let size = segment.gso_size.map_or(payload.len().max(1), usize::from);
        let chunks = payload.len().div_ceil(size).max(1);
        for index in 0..chunks {
            let bytes = &payload[index * size..payload.len().min((index + 1) * size)];
            let mut repr = segment.repr;
            repr.src_port = self.local.1;
            repr.dst_port = self.remote.1;
            repr.seq += (index * size) as u32;
            if index + 1 < chunks {
                repr.flags = repr.flags.without(Flags::FIN | Flags::PSH);
            }
            let header = repr.header_len();
            let ip = IpRepr {
                src: self.local.0,
                dst: self.remote.0,
                protocol: protocol::TCP,
                ttl: 64,
                ecn: 0,
                payload_len: (header + bytes.len()) as u32,
                id: 0,
                dont_fragment: true,
            };
            let start = ip.header_len();
            let mut packet = vec![0; start + header + bytes.len()];
            assert!(packet.len() <= plan.mtu, "seed {}: {} bytes at MTU {}", plan.seed, packet.len(), plan.mtu);
            ip.emit(&mut packet);
            repr.emit(&mut packet[start..]);
            packet[start + header..].copy_from_slice(bytes);
            let (src, dst) = (self.local.0, self.remote.0);
            fill_transport_checksum(Kernel::auto(), src, dst, protocol::TCP, &mut packet[start..]);
            out.push(packet);
        }
    }

    pub(super) fn next_time(&self, plan: &Plan) -> u64 {
        let mut next = self.connect_at.unwrap_or(u64::MAX);
        if let Some(tcb) = &self.tcb {
            next = next.min(tcb.deadline().map_or(u64::MAX, |(at, _)| at.nanos()));
            let reading = plan.ending != Ending::ReaderGone || self.received < plan.up / 2;
            if tcb.readable_len() > 0 && self.connect_at.is_none() && reading {
                next = next.min(self.next_read);
            }
        }
        next
    }

    /// Nothing may be left when the flow is gone.
    pub(super) fn check_empty(&mut self, plan: &Plan) {
        assert!(self.tcb.is_none(), "seed {}: flow left", plan.seed);
        self.cache.flush();
        let stats = self.pool.stats();
        assert_eq!(stats.live_buffers, 0, "seed {}: buffers left", plan.seed);
        assert_eq!(stats.live_bytes, 0);
        assert_eq!(self.budget.used(), 0, "seed {}: out-of-order bytes left", plan.seed);
        assert_eq!(self.memory.used(), 0, "seed {}: queued bytes left", plan.seed);
    }
}
