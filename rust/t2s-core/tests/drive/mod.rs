//! Turns arbitrary bytes into a life of a [`Stack`]: raw packets, well-formed segments of a few clients with damaged
//! numbers, datagrams, fragments, upstream calls and time; and checks what must hold at each step and at the end.
//!
//! Shared by the fuzz target and the random test, so that a crash found by one is repeated by the other.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use t2s_core::buf::{HEAP, Pool, PoolConfig};
use t2s_core::checksum::Kernel;
use t2s_core::config::{Config, CongestionControl, DnsCheck, FragmentLimits, Reassembly, StreamLimits, SynAck};
use t2s_core::fragment;
use t2s_core::stack::{EVICT_SLACK, FlowId, Packet, Refusal, Request, Stack, StackStats};
use t2s_core::time::{Instant, MILLIS, SECONDS, no_clock};
use t2s_core::udp::SessionId;
use t2s_core::wire::ip::{Ip, IpRepr};
use t2s_core::wire::tcp::{Flags, Options, SackBlocks, SeqNumber, Tcp, TcpRepr};
use t2s_core::wire::udp::UdpRepr;
use t2s_core::wire::{fill_transport_checksum, protocol, verify_transport};

/// Clients of each family, a port each: few enough to meet again, more than the flows that the stack may hold.
const CLIENTS: u8 = 6;
/// Bytes that the pool may hold: small enough to be exhausted.
const CEILING: usize = 8 << 20;

/// Bytes read as choices; zeros when they are used up.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// What one client knows of its connection.
#[derive(Clone, Copy)]
struct Client {
    /// What it sends next, what it has received, and what of its own was acknowledged.
    next: SeqNumber,
    ack: SeqNumber,
    acked: SeqNumber,
}

struct Driver {
    stack: Stack,
    pool: Pool,
    now: Instant,
    clients: [Client; 2 * CLIENTS as usize],
    flows: Vec<FlowId>,
    sessions: Vec<SessionId>,
}

/// Runs one life; returns the counters at its end.
///
/// # Panics
/// When the stack breaks a promise.
pub(crate) fn drive(data: &[u8]) -> StackStats {
    let mut choices = Choices(data);
    let mut driver = Driver::new(choices.byte());
    while !choices.0.is_empty() {
        driver.step(&mut choices);
    }
    driver.finish()
}

impl Driver {
    fn new(shape: u8) -> Self {
        let pick = |bit: u8| shape & (1 << bit) != 0;
        let mut config = Config {
            mtu: if pick(0) { 1280 } else { 1500 },
            reassembly: if pick(1) { Reassembly::Unbounded } else { Reassembly::Bounded },
            dns: if pick(2) { DnsCheck::Strict } else { DnsCheck::Off },
            stream: StreamLimits { flow_bytes: 8192, flow_segments: 8, total_bytes: 32 * 1024 },
            fragment: FragmentLimits { total_bytes: 32 * 1024, datagrams: 4, fragments: 8, age: 5 * SECONDS },
            max_tcp_flows: 8,
            max_pending_connects: 4,
            max_udp_sessions: 4,
            buffer_budget: 512 * 1024,
            ..Config::default()
        };
        config.tcp.syn_ack = if pick(3) { SynAck::Immediate } else { SynAck::AfterConnect };
        config.tcp.congestion = if pick(4) { CongestionControl::NewReno } else { CongestionControl::Cubic };
        config.tcp.keepalive_idle = if pick(5) { 10 * SECONDS } else { 0 };
        config.offload.tso = pick(6);
        config.offload.tx_checksum = pick(6);
        let pool = Pool::new(PoolConfig { ceiling_bytes: CEILING, cache: 8, memory: &HEAP, clock: no_clock });
        let now = Instant::from_millis(1);
        let isn = SeqNumber(u32::MAX - 1000);
        let client = Client { next: isn, ack: SeqNumber(0), acked: isn };
        let stack = Stack::new(config, &pool, now);
        Self { stack, pool, now, clients: [client; 2 * CLIENTS as usize], flows: Vec::new(), sessions: Vec::new() }
    }

    fn step(&mut self, choices: &mut Choices<'_>) {
        match choices.byte() % 16 {
            0 => {
                let len = usize::from(choices.byte());
                let packet = choices.take(len).to_vec();
                self.feed(&packet);
            }
            1..=6 => self.segment(choices),
            7 | 8 => self.datagram(choices),
            9 => self.upstream(choices),
            10 => self.upstream_data(choices),
            11 => self.read(choices),
            12 => self.answer_datagrams(choices),
            13 => {
                self.now = self.now.plus(u64::from(choices.word() >> 2) * MILLIS);
                self.stack.handle_timeout(self.now);
            }
            14 => self.requests(),
            _ => self.transmit(),
        }
        self.check();
    }

    fn feed(&mut self, packet: &[u8]) {
        if let Some(mut buf) = self.stack.alloc(packet.len(), 0) {
            buf.append(packet);
            let _ = self.stack.handle_packet(self.now, Packet::plain(buf));
        }
    }

    /// Feeds an IP packet, whole or in fragments.
    fn feed_ip(&mut self, repr: &IpRepr, segment: &[u8], mtu: u16, id: u32, order: u8) {
        let Ok(fragments) = fragment::fragment(repr, segment, mtu, id) else { return };
        let mut packets: Vec<_> = fragments.map(|piece| [piece.header(), piece.payload].concat()).collect();
        if order & 1 != 0 {
            packets.reverse();
        }
        if order & 2 != 0 && packets.len() > 1 {
            packets.pop();
        }
        for packet in &packets {
            self.feed(packet);
        }
    }

    /// A well-formed segment of a client, its numbers near or far from what the connection expects.
    fn segment(&mut self, choices: &mut Choices<'_>) {
        let (who, flags, shape) = (choices.byte() % (2 * CLIENTS), choices.byte(), choices.byte());
        let flags = match flags % 16 {
            0..=2 => Flags::SYN.0,
            3..=9 => Flags::ACK.0,
            10 | 11 => Flags::ACK.0 | Flags::PSH.0,
            12 => Flags::ACK.0 | Flags::FIN.0,
            13 => Flags::RST.0,
            14 => Flags::RST.0 | Flags::ACK.0,
            _ => flags >> 4,
        };
        let syn = flags & Flags::SYN.0 != 0;
        let client = self.clients[usize::from(who)];
        let seq = match shape & 3 {
            0 => client.next,
            1 => client.acked,
            2 => client.next + u32::from(choices.word()),
            _ => client.next - u32::from(choices.word()),
        };
        let ack = match shape >> 2 & 3 {
            0..=2 => client.ack,
            _ => client.ack - u32::from(choices.word()) + 100,
        };
        let mut options = Options::NONE;
        if syn {
            options.mss = Some(choices.word());
            options.window_scale = (shape & 0x10 != 0).then_some(shape >> 4 & 7);
            options.sack_permitted = shape & 0x20 != 0;
        } else if shape & 0x10 != 0 {
            let left = client.ack + u32::from(choices.byte());
            let mut sack = SackBlocks::EMPTY;
            sack.push(left, left + u32::from(choices.word()));
            options.sack = sack;
        }
        if shape & 0x40 != 0 {
            options.timestamp = Some((u32::from(choices.word()), u32::from(choices.word())));
        }
        // Data in a SYN is legal and rare.
        let most = if syn && shape != 0x1f { 0 } else { usize::from(choices.byte()) * 8 };
        let payload = vec![choices.byte(); most];
        let repr = TcpRepr {
            src_port: 1000 + u16::from(who % CLIENTS),
            dst_port: 443,
            seq,
            ack: if flags & Flags::ACK.0 == 0 { SeqNumber(0) } else { ack },
            flags: Flags(flags),
            window: if shape & 0x80 != 0 { choices.word() } else { 0xffff },
            options,
        };
        let mut segment = vec![0; repr.header_len() + payload.len()];
        let (header, body) = segment.split_at_mut(repr.header_len());
        repr.emit(header);
        body.copy_from_slice(&payload);
        if matches!(shape & 3, 0) || syn {
            let controls = u32::from(flags & Flags::SYN.0 != 0) + u32::from(flags & Flags::FIN.0 != 0);
            self.clients[usize::from(who)].next = seq + payload.len() as u32 + controls;
        }
        let (src, dst) = ends(who >= CLIENTS);
        fill_transport_checksum(Kernel::auto(), src, dst, protocol::TCP, &mut segment);
        let repr = ip_repr(src, dst, protocol::TCP, segment.len());
        let mtu = if shape & 0x0c == 0x0c { 1280 } else { 65_535 };
        self.feed_ip(&repr, &segment, mtu, u32::from(shape), shape >> 6);
        // Most of the time the driver keeps up, as drivers do.
        if shape & 0x0c != 4 {
            self.requests();
            self.transmit();
        }
    }

    fn datagram(&mut self, choices: &mut Choices<'_>) {
        let (shape, port, len) = (choices.byte(), choices.byte(), choices.word() % 4096);
        let payload = choices.take(usize::from(len).min(32));
        let padded = if shape & 1 != 0 { usize::from(len) } else { payload.len() };
        let mut segment = vec![0; 8 + padded];
        let dst_port = if shape & 2 != 0 { 53 } else { 7 };
        UdpRepr { src_port: u16::from(port % 8) + 1, dst_port, payload_len: padded as u16 }.emit(&mut segment);
        segment[8..8 + payload.len()].copy_from_slice(payload);
        let (src, dst) = ends(shape & 4 != 0);
        let upper = match (shape & 0x18, src.is_ipv4()) {
            (0x18, true) => protocol::ICMP,
            (0x18, false) => protocol::ICMPV6,
            _ => protocol::UDP,
        };
        fill_transport_checksum(Kernel::auto(), src, dst, upper, &mut segment);
        let mtu = if shape & 0x20 != 0 { 1280 } else { 9000 };
        self.feed_ip(&ip_repr(src, dst, upper, segment.len()), &segment, mtu, u32::from(port), shape >> 6);
    }

    fn flow(&self, choice: u8) -> FlowId {
        self.flows.get(usize::from(choice) % self.flows.len().max(1)).copied().unwrap_or(FlowId::from_bits(0))
    }

    fn upstream(&mut self, choices: &mut Choices<'_>) {
        let flow = self.flow(choices.byte());
        match choices.byte() % 12 {
            0..=3 => self.stack.connected(self.now, flow),
            4 => self.stack.refused(self.now, flow, Refusal::Refused),
            5 => self.stack.refused(self.now, flow, Refusal::HostUnreachable),
            6 => self.stack.refused(self.now, flow, Refusal::Timeout),
            7 => self.stack.refused(self.now, flow, Refusal::Prohibited),
            8 => self.stack.upstream_eof(self.now, flow),
            9 => self.stack.upstream_reset(self.now, flow),
            10 => self.stack.reader_gone(self.now, flow),
            _ => self.stack.trim(),
        }
    }

    fn upstream_data(&mut self, choices: &mut Choices<'_>) {
        let (flow, len) = (self.flow(choices.byte()), usize::from(choices.word()));
        let len = len.min(self.stack.room(flow));
        if len > 0
            && let Some(mut buf) = self.stack.alloc(len, 64)
        {
            buf.grow(len);
            if let Err(buf) = self.stack.upstream_data(self.now, flow, buf) {
                self.stack.free(buf);
            }
        }
    }

    fn read(&mut self, choices: &mut Choices<'_>) {
        let flow = self.flow(choices.byte());
        let readable: usize = self.stack.readable(flow).map(<[u8]>::len).sum();
        assert_eq!(readable, self.stack.readable_len(flow), "slices and length agree");
        self.stack.consume(self.now, flow, readable.min(usize::from(choices.word())));
    }

    fn answer_datagrams(&mut self, choices: &mut Choices<'_>) {
        let (which, shape) = (choices.byte(), choices.byte());
        let Some(&session) = self.sessions.get(usize::from(which) % self.sessions.len().max(1)) else { return };
        while let Some((target, payload)) = self.stack.pop_datagram(session) {
            match shape % 4 {
                0 => self.stack.datagram(self.now, session, target, payload),
                1 => {
                    self.stack.unpop_datagram(session, target, payload);
                    break;
                }
                2 => {
                    self.stack.free(payload);
                    self.stack.udp_unreachable(self.now, session, target);
                }
                _ => {
                    self.stack.free(payload);
                    let len = usize::from(choices.word());
                    if let Some(mut buf) = self.stack.alloc(len, 128) {
                        buf.grow(len);
                        let from = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9)), 9);
                        self.stack.datagram(self.now, session, from, buf);
                    }
                }
            }
        }
        if shape & 0x80 != 0 {
            self.stack.close_session(session);
        }
    }

    fn requests(&mut self) {
        while let Some(request) = self.stack.poll_request(self.now) {
            match request {
                Request::Connect { flow, .. } => {
                    self.flows.push(flow);
                    if flow.to_bits() % 4 != 3 {
                        self.stack.connected(self.now, flow);
                    }
                }
                Request::Closed(flow, _) => self.flows.retain(|&other| other != flow),
                Request::UdpOpen { session, .. } => self.sessions.push(session),
                Request::UdpClosed(session) => self.sessions.retain(|&other| other != session),
                Request::Readable(_) | Request::Writable(_) | Request::Finish(_) | Request::Datagrams(_) => {}
            }
        }
    }

    /// Everything that the stack sends is a valid packet; clients learn from it what to acknowledge.
    fn transmit(&mut self) {
        let offloaded = self.stack.config().offload.tx_checksum;
        let mut packet = vec![0; 70_000];
        while let Some(transmit) = self.stack.poll_transmit(self.now) {
            let len = transmit.copy_to(&mut packet).expect("no packet is larger than 65,575 bytes");
            let ip = Ip::parse(&packet[..len]).expect("what the stack sends parses");
            assert_eq!(ip.total as usize, len, "the length field is right");
            if ip.fragment.is_some() {
                continue;
            }
            assert!(offloaded || verify_transport(Kernel::auto(), &ip, &packet[..len]), "the checksum is right");
            if ip.protocol == protocol::TCP {
                let segment = &packet[usize::from(ip.payload)..len];
                let tcp = Tcp::parse(segment).expect("segments that the stack sends parse");
                let who = usize::from(tcp.dst_port - 1000) + if ip.dst.is_ipv6() { usize::from(CLIENTS) } else { 0 };
                if let Some(client) = self.clients.get_mut(who) {
                    let controls = u32::from(tcp.flags.0 & (Flags::SYN.0 | Flags::FIN.0) != 0);
                    let end = tcp.seq + (segment.len() - usize::from(tcp.header_len)) as u32 + controls;
                    client.acked = tcp.ack;
                    client.ack = if tcp.flags.0 & Flags::SYN.0 != 0 { end } else { client.ack.max(end) };
                }
            }
        }
    }

    /// The bounds hold at all times.
    fn check(&self) {
        let (stats, config) = (self.stack.stats(), self.stack.config());
        let most = u64::from(config.max_tcp_flows) + EVICT_SLACK as u64;
        assert!(stats.flows <= most, "{} flows", stats.flows);
        assert!(stats.sessions <= u64::from(config.max_udp_sessions), "{} sessions", stats.sessions);
        if config.reassembly == Reassembly::Bounded {
            assert!(stats.reassembly_bytes_peak <= config.stream.total_bytes, "stream reassembly");
            assert!(stats.fragment_bytes_peak <= config.fragment.total_bytes, "fragment reassembly");
        }
    }

    /// After a shutdown and a drain nothing is left.
    fn finish(mut self) -> StackStats {
        self.stack.shutdown(self.now);
        self.transmit();
        self.requests();
        self.transmit();
        let stats = self.stack.stats();
        assert_eq!((stats.flows, stats.sessions, stats.buffered), (0, 0, 0), "flows, sessions, bytes queued");
        assert_eq!((stats.reassembly_bytes, stats.fragment_bytes, stats.timers), (0, 0, 0), "reassembly, timers");
        drop(self.stack);
        assert_eq!(self.pool.stats().live_buffers, 0, "buffers");
        stats
    }
}

fn ends(six: bool) -> (IpAddr, IpAddr) {
    if six {
        (
            IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        )
    } else {
        (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)))
    }
}

fn ip_repr(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> IpRepr {
    IpRepr { src, dst, protocol, ttl: 64, ecn: 0, payload_len: len as u32, id: 0, dont_fragment: false }
}
