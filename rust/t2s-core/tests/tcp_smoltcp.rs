//! The TCP terminator against smoltcp as the client, over a simulated network, in virtual time.
//!
//! Every run is drawn from one seed: sizes, MTU, windows, options, loss, duplication, reordering and delay in both
//! directions, the pace of both readers and how the connection ends. Every byte is checked on both sides; on the wire,
//! that no segment leaves the client's window, that our window's edge never moves left by a whole unit, and that
//! super-segments are cut in whole packets. At the end no timer, buffer or byte of a budget is left.
//!
//! A failure names its seed; `T2S_SEED` is not read from the environment: put it into `one_seed`.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::iface::{Config as IfaceConfig, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp as client_tcp;
use smoltcp::time::{Duration, Instant as ClientInstant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use t2s_core::buf::{Pool, PoolCache, PoolConfig};
use t2s_core::checksum::Kernel;
use t2s_core::config::{AcceptMode, Congestion, ReassemblyMode, StreamLimits, TcpConfig};
use t2s_core::reassembly::Budget;
use t2s_core::stats::DropCounts;
use t2s_core::tcp::{BufferBudget, CloseReason, Ctx, Events, OutSegment, Refusal, SegmentLimits, State, Tcb, TcpStats};
use t2s_core::time::{Instant, MICROS, MILLIS, SECONDS};
use t2s_core::wire::tcp::Options;
use t2s_core::wire::{Flags, Ip, IpRepr, SeqNumber, Tcp, TcpRepr, fill_transport_checksum, protocol, verify_transport};

/// Virtual time after which a run has hung, nanoseconds.
const LONGEST: u64 = 4_000 * SECONDS;

thread_local! {
    /// The client's timestamp clock, milliseconds: smoltcp asks for a plain function.
    static CLIENT_CLOCK: Cell<u32> = const { Cell::new(0) };
}

/// `SplitMix64` (Steele, Lea, Flood 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Byte `at` of the stream in direction `salt`.
fn byte(salt: u8, at: usize) -> u8 {
    let x = (at as u32).wrapping_mul(0x9e37_79b1) ^ u32::from(salt);
    (x >> 24) as u8 ^ (x >> 11) as u8
}

/// How the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Both sides end when they have sent everything: half-close in both directions, in any order.
    Both,
    /// The client ends first; the upstream waits for its FIN.
    ClientFirst,
    /// The upstream ends first; the client waits for its FIN.
    UpstreamFirst,
    /// The client resets after this many bytes received.
    ClientAborts,
    /// The client is never heard again from some time on.
    ClientVanishes,
    /// The upstream aborts after this many bytes.
    UpstreamAborts,
    /// The upstream refuses the connection.
    Refused,
    /// The upstream stops reading.
    ReaderGone,
}

#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    v6: bool,
    mtu: usize,
    ending: Ending,
    up: usize,
    down: usize,
    /// Percent of packets.
    loss: u64,
    duplicate: u64,
    reorder: u64,
    delay: u64,
    jitter: u64,
    client_rx: usize,
    client_tx: usize,
    sack: bool,
    timestamps: bool,
    tso: bool,
    gro: bool,
    /// Pauses of the readers, nanoseconds; 0: as fast as possible.
    client_pause: u64,
    upstream_pause: u64,
    /// A long pause of the client's reader in the middle.
    client_stall: u64,
    connect_delay: u64,
    config: TcpConfig,
    isn: u32,
}

impl Plan {
    fn draw(seed: u64, ending: Ending) -> Self {
        let mut rng = Rng(seed);
        let v6 = rng.chance(30);
        let rough = rng.chance(60);
        let tiny = rng.chance(15);
        let size = |rng: &mut Rng| match rng.below(5) {
            0 => 0,
            1 => rng.range(1, 2_000) as usize,
            _ if tiny => rng.range(1, 10_000) as usize,
            _ => rng.range(1, 300_000) as usize,
        };
        let buffer = |rng: &mut Rng| {
            if tiny { rng.range(40, 600) as usize } else { rng.pick(&[2_000, 8_192, 65_535, 200_000, 500_000]) }
        };
        let recv_window_min = if tiny { rng.range(100, 3_000) as u32 } else { rng.pick(&[4_000, 65_536, 131_072]) };
        let config = TcpConfig {
            accept: rng.pick(&[AcceptMode::Deferred, AcceptMode::Early]),
            congestion: rng.pick(&[Congestion::Cubic, Congestion::NewReno]),
            recv_window_min,
            recv_window_max: recv_window_min.max(rng.pick(&[5_000, 65_535, 1_000_000, 4_194_304])),
            send_buffer_min: rng.pick(&[2_000, 16_384, 131_072]),
            send_buffer_max: 1_048_576,
            keepalive_idle: 100 * SECONDS,
            keepalive_interval: 10 * SECONDS,
            keepalive_probes: 3,
            retransmit_limit: 30,
            connect_timeout: 100 * SECONDS,
            // Longer than any stall below.
            fin_wait2: 1_000 * SECONDS,
            ..TcpConfig::default()
        };
        Self {
            seed,
            v6,
            mtu: if v6 { rng.pick(&[1_280, 1_500, 9_000]) } else { rng.pick(&[576, 1_500, 8_500]) },
            ending,
            // A reader that goes away leaves something unread.
            up: size(&mut rng).max(if ending == Ending::ReaderGone { 2 } else { 0 }),
            down: size(&mut rng),
            loss: if rough { rng.below(12) } else { 0 },
            duplicate: if rough { rng.below(8) } else { 0 },
            reorder: if rough { rng.below(20) } else { 0 },
            delay: rng.pick(&[20 * MICROS, MILLIS, 20 * MILLIS, 100 * MILLIS]),
            jitter: rng.pick(&[10 * MICROS, 3 * MILLIS, 30 * MILLIS]),
            client_rx: buffer(&mut rng),
            client_tx: buffer(&mut rng),
            sack: rng.chance(70),
            timestamps: rng.chance(60),
            tso: rng.chance(60),
            gro: rng.chance(50),
            client_pause: if rng.chance(25) { rng.range(1, 50) * MILLIS } else { 0 },
            upstream_pause: if rng.chance(25) { rng.range(1, 50) * MILLIS } else { 0 },
            client_stall: if rng.chance(15) { rng.range(1, 200) * SECONDS } else { 0 },
            connect_delay: rng.pick(&[0, 10 * MILLIS, 3 * SECONDS]),
            config,
            isn: rng.next() as u32,
        }
    }
}

/// The client's device.
struct Link {
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Vec<u8>>,
    mtu: usize,
}

struct Rx(Vec<u8>);

struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: ClientInstant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.rx.pop_front()?), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: ClientInstant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

/// Packets under way: by arrival time, then by order of sending.
#[derive(Default)]
struct Network {
    packets: BTreeMap<(u64, u64), (bool, Vec<u8>)>,
    sent: u64,
    cut: bool,
}

impl Network {
    fn send(&mut self, plan: &Plan, rng: &mut Rng, now: u64, to_client: bool, packet: &[u8]) {
        if self.cut || rng.chance(plan.loss) {
            return;
        }
        let copies = 1 + u64::from(rng.chance(plan.duplicate));
        for _ in 0..copies {
            let late = if rng.chance(plan.reorder) { rng.below(plan.jitter) } else { 0 };
            self.sent += 1;
            self.packets.insert((now + plan.delay + late, self.sent), (to_client, packet.to_vec()));
        }
    }
}

/// The terminator's side: what the stack and the upstream do, for one flow.
struct Server {
    pool: Pool,
    cache: PoolCache,
    budget: Budget,
    memory: BufferBudget,
    counts: DropCounts,
    stats: TcpStats,
    stream: StreamLimits,
    tcb: Option<Tcb>,
    /// Upstream's answer is due then.
    connect_at: Option<u64>,
    closed: Option<CloseReason>,
    /// Segments for a flow that is gone are answered with RST, as the stack does.
    resets: Vec<OutSegment>,
    events: Events,
    received: usize,
    pushed: usize,
    peer_fin: bool,
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
            mode: ReassemblyMode::Bounded,
            pool: &mut $server.cache,
            budget: &mut $server.budget,
            memory: &mut $server.memory,
            counts: &mut $server.counts,
            tcp: &mut $server.stats,
        }
    };
}

impl Server {
    fn new(local: (IpAddr, u16), remote: (IpAddr, u16)) -> Self {
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
    fn handle_packets(&mut self, plan: &Plan, now: u64, packets: Vec<Vec<u8>>) {
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
                let tcb = Tcb::accept(&mut ctx!(self, plan, now), tcp, SeqNumber(plan.isn), mss);
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

    /// The upstream's part: connect, read, write, end.
    fn run_upstream(&mut self, plan: &Plan, rng: &mut Rng, now: u64) {
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
    fn transmit(&mut self, plan: &Plan, now: u64) -> Vec<Vec<u8>> {
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

    fn next_time(&self, plan: &Plan) -> u64 {
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
    fn check_empty(&mut self, plan: &Plan) {
        assert!(self.tcb.is_none(), "seed {}: flow left", plan.seed);
        self.cache.flush();
        let stats = self.pool.stats();
        assert_eq!(stats.buffers_live, 0, "seed {}: buffers left", plan.seed);
        assert_eq!(stats.bytes_live, 0);
        assert_eq!(self.budget.used(), 0, "seed {}: out-of-order bytes left", plan.seed);
        assert_eq!(self.memory.used(), 0, "seed {}: queued bytes left", plan.seed);
    }
}

/// The client's application.
struct Client {
    handle: SocketHandle,
    sent: usize,
    received: usize,
    next_read: u64,
    stalled: bool,
    closed: bool,
    aborted: bool,
}

impl Client {
    fn run(&mut self, plan: &Plan, socket: &mut client_tcp::Socket<'_>, rng: &mut Rng, now: u64) -> bool {
        let mut worked = false;
        if socket.can_send() && self.sent < plan.up {
            let len = (plan.up - self.sent).min(20_000);
            let bytes: Vec<u8> = (0..len).map(|at| byte(1, self.sent + at)).collect();
            let taken = socket.send_slice(&bytes).expect("can_send");
            self.sent += taken;
            worked |= taken > 0;
        }
        if plan.client_stall > 0 && !self.stalled && self.received > plan.down / 2 {
            self.stalled = true;
            self.next_read = now + plan.client_stall;
        }
        // smoltcp forgets unread bytes when its TIME-WAIT ends.
        let last_chance = socket.state() == client_tcp::State::TimeWait;
        if socket.can_recv() && (self.next_read <= now || last_chance) {
            let most = if plan.client_pause > 0 { rng.range(1, 30_000) as usize } else { usize::MAX };
            let at = self.received;
            let taken = socket
                .recv(|bytes| {
                    let len = bytes.len().min(most);
                    for (index, &found) in bytes[..len].iter().enumerate() {
                        assert_eq!(found, byte(2, at + index), "seed {}: byte {} down", plan.seed, at + index);
                    }
                    (len, len)
                })
                .expect("can_recv");
            self.received += taken;
            if plan.client_pause > 0 {
                self.next_read = now + plan.client_pause;
            }
            worked |= taken > 0;
        }
        let may_close = match plan.ending {
            Ending::UpstreamFirst => !socket.may_recv() && socket.state() != client_tcp::State::SynSent,
            Ending::Both | Ending::ClientFirst => true,
            Ending::ClientAborts
            | Ending::ClientVanishes
            | Ending::UpstreamAborts
            | Ending::Refused
            | Ending::ReaderGone => false,
        };
        let connected = socket.may_send();
        if may_close && connected && self.sent == plan.up && !self.closed {
            self.closed = true;
            socket.close();
            worked = true;
        }
        let aborts = plan.ending == Ending::ClientAborts && self.received >= plan.down / 2;
        if aborts && connected && self.sent >= plan.up / 2 && !self.aborted {
            self.aborted = true;
            socket.abort();
            worked = true;
        }
        worked
    }
}

fn run(plan: &Plan) {
    let mut rng = Rng(plan.seed ^ 0xa5a5_5a5a);
    let (local, remote): (IpAddr, IpAddr) = if plan.v6 {
        (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into())
    } else {
        (Ipv4Addr::new(192, 168, 69, 1).into(), Ipv4Addr::new(192, 168, 69, 2).into())
    };
    let mut server = Server::new((local, 80), (remote, 49_152));
    let mut link = Link { rx: VecDeque::new(), tx: Vec::new(), mtu: plan.mtu };
    let mut config = IfaceConfig::new(HardwareAddress::Ip);
    config.random_seed = plan.seed;
    let mut iface = Interface::new(config, &mut link, ClientInstant::ZERO);
    let address: IpAddress = remote.into();
    iface.update_ip_addrs(|list| list.push(IpCidr::new(address, if plan.v6 { 64 } else { 24 })).expect("room"));
    let mut socket = client_tcp::Socket::new(
        client_tcp::SocketBuffer::new(vec![0; plan.client_rx]),
        client_tcp::SocketBuffer::new(vec![0; plan.client_tx]),
    );
    if plan.timestamps {
        socket.set_tsval_generator(Some(|| CLIENT_CLOCK.get()));
    }
    socket.set_nagle_enabled(plan.seed.is_multiple_of(2));
    socket.set_ack_delay((!plan.seed.is_multiple_of(3)).then(|| Duration::from_millis(10)));
    let server_address: IpAddress = local.into();
    socket.connect(iface.context(), IpEndpoint::new(server_address, 80), 49_152).expect("a fresh socket connects");
    let mut sockets = SocketSet::new(Vec::new());
    let handle = sockets.add(socket);
    let mut client =
        Client { handle, sent: 0, received: 0, next_read: 0, stalled: false, closed: false, aborted: false };
    let mut network = Network::default();
    let mut now = 1_000_000_u64;
    let mut accepted = false;
    let mut steps = 0_u64;
    loop {
        steps += 1;
        assert!(steps < 2_000_000, "seed {}: too many steps: {plan:?}", plan.seed);
        assert!(now < LONGEST, "seed {}: hung: {plan:?}\n{:?} {:?}", plan.seed, server.stats, server.counts);
        CLIENT_CLOCK.set((now / MILLIS) as u32);
        // Arrivals.
        let mut arrived = Vec::new();
        while let Some(entry) = network.packets.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (to_client, packet) = entry.remove();
            if to_client {
                link.rx.push_back(packet);
            } else {
                arrived.push(packet);
            }
        }
        // Client. smoltcp counts microseconds.
        let client_now = ClientInstant::from_micros((now / MICROS) as i64);
        loop {
            let polled = iface.poll(client_now, &mut link, &mut sockets);
            let worked = client.run(plan, sockets.get_mut(client.handle), &mut rng, now);
            if !worked && polled == PollResult::None {
                break;
            }
        }
        for packet in std::mem::take(&mut link.tx) {
            network.send(plan, &mut rng, now, false, &packet);
        }
        // Server.
        server.handle_packets(plan, now, arrived);
        if let Some(mut tcb) = server.tcb.take() {
            if tcb.deadline().is_some_and(|(at, _)| at.nanos() <= now) {
                tcb.handle_timeout(&mut ctx!(server, plan, now));
                assert!(tcb.deadline().is_none_or(|(at, _)| at.nanos() > now), "a due timer stays due");
            }
            server.tcb = Some(tcb);
        }
        server.run_upstream(plan, &mut rng, now);
        for packet in server.transmit(plan, now) {
            network.send(plan, &mut rng, now, true, &packet);
        }
        accepted |= server.tcb.as_ref().is_some_and(|tcb| tcb.state() != State::SynPending);
        if plan.ending == Ending::ClientVanishes && accepted && client.received >= plan.down / 2 && now > 2 * SECONDS {
            network.cut = true;
        }
        // The end: both sides done, nothing under way.
        let socket = sockets.get::<client_tcp::Socket<'_>>(client.handle);
        let client_done = matches!(
            socket.state(),
            client_tcp::State::Closed | client_tcp::State::TimeWait | client_tcp::State::Listen
        );
        // Without our side a client may be left waiting for what it will never get: after a vanish, or a lost RST.
        let orderly = matches!(plan.ending, Ending::Both | Ending::ClientFirst | Ending::UpstreamFirst);
        let client_done = client_done && !socket.can_recv();
        if server.closed.is_some() && (client_done || !orderly) {
            break;
        }
        // Next event.
        let client_next = iface
            .poll_at(client_now, &sockets)
            .map_or(u64::MAX, |at| at.total_micros().max(0) as u64 * MICROS)
            .max(now + MICROS);
        let readable = sockets.get::<client_tcp::Socket<'_>>(client.handle).can_recv();
        let reader = if readable { client.next_read.max(now + MICROS) } else { u64::MAX };
        let network_next = network.packets.first_key_value().map_or(u64::MAX, |(key, _)| key.0);
        let next = client_next.min(reader).min(network_next).min(server.next_time(plan));
        assert!(
            next != u64::MAX,
            "seed {}: nothing to wait for: {plan:?}\n{:?} {:?}",
            plan.seed,
            server.stats,
            server.counts
        );
        now = next.max(now + 1);
    }
    let reason = server.closed.expect("the loop ends so");
    let context =
        format!("seed {}: {reason:?} after {now} ns: {plan:?}\n{:?}\n{:?}", plan.seed, server.stats, server.counts);
    match plan.ending {
        Ending::Both | Ending::ClientFirst | Ending::UpstreamFirst => {
            assert_eq!(reason, CloseReason::Finished, "{context}");
            assert_eq!(server.received, plan.up, "{context}");
            assert_eq!(client.received, plan.down, "{context}");
            assert!(server.peer_fin, "{context}");
        }
        Ending::ClientAborts => assert!(
            matches!(reason, CloseReason::PeerReset | CloseReason::RetransmitTimeout | CloseReason::KeepaliveTimeout),
            "{context}"
        ),
        Ending::ClientVanishes => {
            assert!(matches!(reason, CloseReason::KeepaliveTimeout | CloseReason::RetransmitTimeout), "{context}");
        }
        Ending::UpstreamAborts => assert_eq!(reason, CloseReason::Aborted, "{context}"),
        Ending::Refused => assert_eq!(reason, CloseReason::Refused, "{context}"),
        Ending::ReaderGone => assert!(
            matches!(reason, CloseReason::ReaderGone | CloseReason::KeepaliveTimeout | CloseReason::PeerReset),
            "{context}"
        ),
    }
    server.check_empty(plan);
}

fn seeds(ending: Ending, count: u64) {
    for seed in 0..count {
        run(&Plan::draw(seed * 1_000_003 + ending as u64, ending));
    }
}

#[test]
fn both_ends_close_when_done() {
    seeds(Ending::Both, 150);
}

#[test]
fn client_closes_first() {
    seeds(Ending::ClientFirst, 100);
}

#[test]
fn upstream_closes_first() {
    seeds(Ending::UpstreamFirst, 100);
}

#[test]
fn client_resets() {
    seeds(Ending::ClientAborts, 50);
}

#[test]
fn client_vanishes() {
    seeds(Ending::ClientVanishes, 50);
}

#[test]
fn upstream_aborts() {
    seeds(Ending::UpstreamAborts, 50);
}

#[test]
fn upstream_refuses() {
    seeds(Ending::Refused, 30);
}

#[test]
fn reader_goes_away() {
    seeds(Ending::ReaderGone, 50);
}

/// The place to repeat a failure.
#[test]
fn one_seed() {
    run(&Plan::draw(172_000_517, Ending::ClientFirst));
}
