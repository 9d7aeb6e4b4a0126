//! The composer end to end: hand-made packets in, requests and packets out, nothing left behind.

mod datagrams;
mod path_mtu;

use core::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::buf::{Buf, Pool, PoolConfig};
use crate::config::{DnsCheck, Offload, SynAck};
use crate::stats::DropReason;
use crate::time::{MILLIS, SECONDS};
use crate::wire::icmp::{Echo, Icmp, IcmpError, emit_echo};
use crate::wire::ip::{Ip, IpRepr};
use crate::wire::tcp::{Flags, Options, SeqNumber, Tcp, TcpRepr};
use crate::wire::udp::{Udp, UdpRepr};
use crate::wire::{fill_transport_checksum, protocol, virtio};

const CLIENT: &str = "10.0.0.2:40000";
const SERVER: &str = "192.0.2.7:80";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A stack with its pool, and a clock that tests move.
struct Bench {
    pool: Pool,
    map: Arc<WorkerMap>,
    stack: Stack,
    now: Instant,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        change(&mut config);
        let pool = Pool::new(PoolConfig::default());
        let map = Arc::new(WorkerMap::new(&config, 1, 1));
        let now = Instant::from_millis(1_000);
        let stack = Stack::for_worker(config, &pool, &map, 0, now);
        Self { pool, map, stack, now }
    }

    fn buf(&mut self, bytes: &[u8]) -> Buf {
        self.stack.pool().alloc_copy(bytes, 0).unwrap()
    }

    fn feed(&mut self, bytes: &[u8]) -> Disposition {
        let buf = self.buf(bytes);
        self.stack.handle_packet(self.now, Packet::plain(buf))
    }

    fn requests(&mut self) -> Vec<Request> {
        core::iter::from_fn(|| self.stack.poll_request(self.now)).collect()
    }

    fn packets(&mut self) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while let Some(transmit) = self.stack.poll_transmit(self.now) {
            let mut bytes = vec![0; transmit.len()];
            assert_eq!(transmit.copy_to(&mut bytes), Some(transmit.len()));
            out.push(bytes);
        }
        out
    }

    fn one_segment(&mut self) -> (Tcp, Vec<u8>) {
        let packets = self.packets();
        assert_eq!(packets.len(), 1, "one packet expected, got {packets:02x?}");
        parse_tcp(&packets[0])
    }

    fn pass(&mut self, nanos: u64) {
        self.now = self.now.plus(nanos);
        self.stack.handle_timeout(self.now);
    }

    /// SYN, upstream, SYN-ACK, ACK.
    fn open(&mut self, client: &str, server: &str) -> (FlowId, Client) {
        self.open_as(Client::new(client, server))
    }

    fn open_as(&mut self, mut peer: Client) -> (FlowId, Client) {
        self.feed(&peer.syn());
        let [Request::Connect { flow, client, target }] = self.requests()[..] else { panic!("no connect") };
        assert_eq!((client, target), (peer.here, peer.there));
        assert!(self.packets().is_empty(), "the SYN-ACK waits for the upstream");
        self.stack.connected(self.now, flow);
        let (segment, _) = self.one_segment();
        assert!(segment.flags.contains(Flags::SYN.with(Flags::ACK)));
        assert_eq!(segment.ack, peer.seq);
        peer.ack = segment.seq + 1;
        self.feed(&peer.segment(Flags::ACK, b""));
        assert!(self.packets().is_empty());
        (flow, peer)
    }

    fn assert_empty(&mut self) {
        assert!(self.packets().is_empty());
        let stats = self.stack.stats();
        assert_eq!((stats.flows, stats.pending, stats.sessions, stats.timers), (0, 0, 0, 0), "{stats:?}");
        assert_eq!((stats.buffered, stats.reassembly_bytes, stats.fragment_bytes), (0, 0, 0));
        assert_eq!(self.map.len(), 0);
        assert_eq!(self.pool.stats().live_buffers, 0);
    }

    fn shut_down(&mut self) {
        self.stack.shutdown(self.now);
        self.requests();
        self.packets();
        self.requests();
        self.assert_empty();
    }
}

/// The client's end of one connection, just enough of it.
struct Client {
    here: SocketAddr,
    there: SocketAddr,
    seq: SeqNumber,
    ack: SeqNumber,
    mss: Option<u16>,
}

impl Client {
    fn new(here: &str, there: &str) -> Self {
        Self { here: at(here), there: at(there), seq: SeqNumber(7_000), ack: SeqNumber(0), mss: Some(1460) }
    }

    fn syn(&mut self) -> Vec<u8> {
        let packet = self.segment(Flags::SYN, b"");
        self.seq += 1;
        packet
    }

    fn segment(&self, flags: Flags, payload: &[u8]) -> Vec<u8> {
        let mut options = Options::NONE;
        if flags.syn() {
            options.mss = self.mss;
        }
        let repr = TcpRepr {
            src_port: self.here.port(),
            dst_port: self.there.port(),
            seq: self.seq,
            ack: self.ack,
            flags,
            window: 65_535,
            options,
        };
        let mut segment = vec![0; repr.header_len()];
        repr.emit(&mut segment);
        segment.extend_from_slice(payload);
        ip_packet(self.here.ip(), self.there.ip(), protocol::TCP, &segment)
    }

    fn send(&mut self, payload: &[u8]) -> Vec<u8> {
        let packet = self.segment(Flags::ACK.with(Flags::PSH), payload);
        self.seq += payload.len() as u32;
        packet
    }
}

fn ip_packet(src: IpAddr, dst: IpAddr, upper: u8, segment: &[u8]) -> Vec<u8> {
    let repr = IpRepr {
        src,
        dst,
        protocol: upper,
        ttl: 64,
        ecn: 0,
        payload_len: segment.len() as u32,
        id: 1,
        dont_fragment: true,
    };
    let mut packet = vec![0; repr.header_len()];
    repr.emit(&mut packet);
    let start = packet.len();
    packet.extend_from_slice(segment);
    if segment.len() >= 20 || upper != protocol::TCP && segment.len() >= 8 {
        fill_transport_checksum(Config::default().checksum, src, dst, upper, &mut packet[start..]);
    }
    packet
}

fn udp_packet(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0; 8];
    UdpRepr { src_port: at(src).port(), dst_port: at(dst).port(), payload_len: payload.len() as u16 }
        .emit(&mut segment);
    segment.extend_from_slice(payload);
    ip_packet(at(src).ip(), at(dst).ip(), protocol::UDP, &segment)
}

fn parse_tcp(packet: &[u8]) -> (Tcp, Vec<u8>) {
    let ip = Ip::parse(packet).unwrap();
    assert_eq!(ip.protocol, protocol::TCP);
    assert!(crate::wire::verify_transport(Config::default().checksum, &ip, packet), "checksum");
    let segment = &packet[usize::from(ip.payload)..];
    let tcp = Tcp::parse(segment).unwrap();
    (tcp, segment[usize::from(tcp.header_len)..].to_vec())
}

fn read_all(bench: &mut Bench, flow: FlowId) -> Vec<u8> {
    let bytes: Vec<u8> = bench.stack.readable(flow).flatten().copied().collect();
    bench.stack.consume(bench.now, flow, bytes.len());
    bytes
}

#[test]
fn a_connection_lives_and_ends_without_remains() {
    for (client, server) in [(CLIENT, SERVER), ("[fd00::2]:40000", "[2001:db8::7]:443")] {
        let mut bench = Bench::new(|_| {});
        let (flow, mut peer) = bench.open(client, server);
        bench.feed(&peer.send(b"GET / HTTP/1.0\r\n\r\n"));
        assert_eq!(bench.requests(), [Request::Readable(flow)]);
        assert_eq!(read_all(&mut bench, flow), b"GET / HTTP/1.0\r\n\r\n");

        let answer = bench.buf(b"HTTP/1.0 200 OK\r\n\r\n");
        assert!(bench.stack.upstream_data(bench.now, flow, answer).is_ok());
        bench.stack.upstream_eof(bench.now, flow);
        let packets = bench.packets();
        let mut got = Vec::new();
        let mut finished = false;
        for packet in &packets {
            let (segment, payload) = parse_tcp(packet);
            peer.ack = segment.seq + segment.sequence_len(payload.len() as u32);
            got.extend(payload);
            finished |= segment.flags.fin();
        }
        assert_eq!(got, b"HTTP/1.0 200 OK\r\n\r\n");
        assert!(finished);
        bench.feed(&peer.segment(Flags::ACK, b""));
        bench.feed(&peer.segment(Flags::ACK.with(Flags::FIN), b""));
        assert!(bench.requests().contains(&Request::Finish(flow)));
        let (segment, _) = bench.one_segment();
        assert_eq!(segment.ack, peer.seq + 1);
        bench.pass(10 * SECONDS);
        assert_eq!(bench.requests(), [Request::Closed(flow, CloseReason::Finished)]);
        assert!(!bench.stack.is_open(flow));
        bench.assert_empty();
    }
}

#[test]
fn a_client_that_announces_no_mss_gets_what_each_host_takes() {
    // RFC 9293, section 3.7.1: 536 for IPv4, 1,220 for IPv6.
    for (client, server, most) in [(CLIENT, SERVER, 536), ("[fd00::2]:40000", "[2001:db8::7]:80", 1_220)] {
        let mut bench = Bench::new(|_| {});
        let (flow, _) = bench.open_as(Client { mss: None, ..Client::new(client, server) });
        let data = bench.buf(&[7; 3_000]);
        assert!(bench.stack.upstream_data(bench.now, flow, data).is_ok());
        let longest = bench.packets().iter().map(|packet| parse_tcp(packet).1.len()).max();
        assert_eq!(longest, Some(most));
        bench.shut_down();
    }
}

#[test]
fn a_refusal_is_told_as_the_upstream_meant_it() {
    for (how, icmp) in [
        (Refusal::Refused, None),
        (Refusal::HostUnreachable, Some(IcmpError::HostUnreachable)),
        (Refusal::NetUnreachable, Some(IcmpError::NetUnreachable)),
        (Refusal::Prohibited, Some(IcmpError::Prohibited)),
    ] {
        let mut bench = Bench::new(|_| {});
        let mut peer = Client::new(CLIENT, SERVER);
        bench.feed(&peer.syn());
        let [Request::Connect { flow, .. }] = bench.requests()[..] else { panic!() };
        bench.stack.refused(bench.now, flow, how);
        let packets = bench.packets();
        assert_eq!(packets.len(), 1, "{how:?}");
        match icmp {
            None => {
                let (segment, _) = parse_tcp(&packets[0]);
                assert!(segment.flags.contains(Flags::RST.with(Flags::ACK)));
                assert_eq!(segment.ack, peer.seq);
            }
            Some(error) => {
                let ip = Ip::parse(&packets[0]).unwrap();
                let message = &packets[0][usize::from(ip.payload)..];
                assert_eq!(Icmp::parse(&ip, message), Ok(Icmp::Error { error }));
                // The quoted packet names the ports and the sequence number of the SYN.
                assert_eq!(&message[8 + 20 + 4..8 + 20 + 8], &7_000u32.to_be_bytes());
            }
        }
        assert_eq!(bench.requests(), [Request::Closed(flow, CloseReason::Upstream)]);
        bench.assert_empty();
    }
}

#[test]
fn a_timeout_of_the_upstream_is_silence() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Client::new(CLIENT, SERVER);
    bench.feed(&peer.syn());
    let [Request::Connect { flow, .. }] = bench.requests()[..] else { panic!() };
    bench.stack.refused(bench.now, flow, Refusal::Timeout);
    bench.assert_empty();
    // And so is an upstream that never answers.
    bench.feed(&Client::new(CLIENT, SERVER).syn());
    let [_, Request::Connect { flow, .. }] = bench.requests()[..] else { panic!() };
    bench.pass(31 * SECONDS);
    assert_eq!(bench.requests(), [Request::Closed(flow, CloseReason::ConnectTimeout)]);
    bench.assert_empty();
}

#[test]
fn early_accept_answers_at_once() {
    let mut bench = Bench::new(|config| config.tcp.syn_ack = SynAck::Immediate);
    let mut peer = Client::new(CLIENT, SERVER);
    bench.feed(&peer.syn());
    let (segment, _) = bench.one_segment();
    assert!(segment.flags.contains(Flags::SYN.with(Flags::ACK)));
    let [Request::Connect { flow, .. }] = bench.requests()[..] else { panic!() };
    peer.ack = segment.seq + 1;
    bench.feed(&peer.segment(Flags::ACK, b""));
    bench.stack.refused(bench.now, flow, Refusal::HostUnreachable);
    let (segment, _) = bench.one_segment();
    assert!(segment.flags.rst(), "an established connection is reset whatever the reason");
    bench.requests();
    bench.assert_empty();
}

#[test]
fn strangers_are_reset_and_broken_packets_change_nothing() {
    let mut bench = Bench::new(|_| {});
    let mut peer = Client::new(CLIENT, SERVER);
    peer.ack = SeqNumber(99);
    assert_eq!(bench.feed(&peer.segment(Flags::ACK, b"x")), Disposition::Dropped(DropReason::TcpNoFlow));
    let (segment, _) = bench.one_segment();
    assert_eq!((segment.flags, segment.seq), (Flags::RST, SeqNumber(99)));

    let (flow, mut peer) = bench.open(CLIENT, SERVER);
    let mut broken = peer.send(b"hello");
    let last = broken.len() - 1;
    broken[last] ^= 1;
    assert_eq!(bench.feed(&broken), Disposition::Dropped(DropReason::TcpChecksum));
    assert!(bench.requests().is_empty());
    assert_eq!(bench.stack.readable_len(flow), 0);
    broken[last] ^= 1;
    bench.feed(&broken);
    assert_eq!(read_all(&mut bench, flow), b"hello");
    bench.shut_down();
}

#[test]
fn the_client_learns_of_a_broken_upstream() {
    let mut bench = Bench::new(|_| {});
    let (flow, _) = bench.open(CLIENT, SERVER);
    bench.stack.upstream_reset(bench.now, flow);
    let (segment, _) = bench.one_segment();
    assert!(segment.flags.rst());
    assert_eq!(bench.requests(), [Request::Closed(flow, CloseReason::Upstream)]);
    bench.assert_empty();
    let late = bench.buf(b"late");
    let late = bench.stack.upstream_data(bench.now, flow, late).expect_err("a stale id is refused");
    bench.stack.free(late);
    bench.assert_empty();
}

#[test]
fn super_segments_that_the_device_refuses_come_again_as_plain_packets() {
    let mut bench = Bench::new(|config| config.offload.tso = true);
    let (flow, mut peer) = bench.open(CLIENT, SERVER);
    let sent: Vec<u8> = (0..40_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let data = bench.buf(&sent);
    assert!(bench.stack.upstream_data(bench.now, flow, data).is_ok());
    assert!(bench.packets().iter().any(|packet| packet.len() > 1_500), "none was a super-segment");
    // All of them are lost: the device has answered EINVAL.
    bench.stack.drop_offload();
    let mut got = Vec::new();
    for _ in 0..100 {
        bench.pass(200 * MILLIS);
        for packet in bench.packets() {
            assert!(packet.len() <= 1_500);
            let (segment, payload) = parse_tcp(&packet);
            if segment.seq == peer.ack {
                peer.ack += payload.len() as u32;
                got.extend(payload);
            }
        }
        bench.feed(&peer.segment(Flags::ACK, b""));
    }
    assert_eq!(got, sent);
    bench.shut_down();
}

#[test]
fn a_flood_of_syns_is_bounded() {
    let mut bench = Bench::new(|config| {
        config.max_pending_connects = 100;
        config.max_tcp_flows = 150;
    });
    for port in 1..=500u16 {
        let mut peer = Client::new(CLIENT, SERVER);
        peer.here.set_port(port);
        bench.feed(&peer.syn());
    }
    let stats = bench.stack.stats();
    assert_eq!((stats.pending, stats.flows), (100, 100));
    assert_eq!(stats.drops.get(DropReason::PendingFull), 400);
    bench.shut_down();
}

#[test]
fn at_the_cap_the_idle_make_room() {
    let mut bench = Bench::new(|config| config.max_tcp_flows = 4);
    for port in 1..=4 {
        bench.open(&format!("10.0.0.2:{port}"), SERVER);
    }
    let mut fifth = Client::new("10.0.0.2:5", SERVER);
    assert_eq!(bench.feed(&fifth.syn()), Disposition::Dropped(DropReason::FlowTableFull));
    bench.pass(60 * SECONDS);
    fifth = Client::new("10.0.0.2:5", SERVER);
    assert_eq!(bench.feed(&fifth.syn()), Disposition::Accepted);
    let requests = bench.requests();
    assert!(
        matches!(requests[..], [Request::Closed(_, CloseReason::Evicted), Request::Connect { .. }]),
        "{requests:?}"
    );
    assert_eq!(bench.stack.stats().flows_evicted, 1);
    bench.shut_down();
}

#[test]
fn a_newcomer_gets_the_place_of_the_one_that_is_evicted_for_it() {
    const CAP: u16 = 300;
    let mut bench = Bench::new(|config| config.max_tcp_flows = u32::from(CAP));
    for port in 1..=CAP {
        bench.open(&format!("10.0.0.2:{port}"), SERVER);
    }
    bench.pass(60 * SECONDS);
    // More newcomers at once than the slack of the table holds: nobody is ended for one that is then refused.
    let mut batch: Vec<_> = (1..=CAP)
        .map(|port| {
            let syn = Client::new(&format!("10.0.0.3:{port}"), SERVER).syn();
            Packet::plain(bench.buf(&syn))
        })
        .collect();
    let accepted = bench.stack.handle_batch(bench.now, &mut batch);
    let requests = bench.requests();
    let evicted = requests.iter().filter(|request| matches!(request, Request::Closed(_, CloseReason::Evicted))).count();
    let connects = requests.iter().filter(|request| matches!(request, Request::Connect { .. })).count();
    assert_eq!((connects, evicted), (accepted, accepted));
    assert!(accepted > 100 && accepted <= flows::EVICT_SLACK, "{accepted}");
    bench.packets();
    assert_eq!(bench.stack.stats().flows, u64::from(CAP));
    bench.shut_down();
}

/// Flows that end in one tick, and entries of the transmit queue that were looked at for that.
fn steps_of_an_end_together(flows: u16) -> u64 {
    let mut bench = Bench::new(|config| config.max_pending_connects = 1 << 16);
    let open: Vec<_> = (0..flows).map(|n| bench.open(&format!("10.0.0.2:{}", 1_000 + n), SERVER)).collect();
    for (flow, _) in &open {
        bench.stack.upstream_eof(bench.now, *flow);
    }
    bench.packets();
    for (_, peer) in &open {
        let fin = Client { ack: peer.ack + 1, ..*peer };
        bench.feed(&fin.segment(Flags::FIN.with(Flags::ACK), b""));
    }
    // Their last acknowledgements wait for the device while TIME-WAIT ends.
    let before = bench.stack.inner.transmit.steps;
    bench.pass(60 * SECONDS);
    assert_eq!(bench.stack.stats().flows, 0);
    bench.assert_empty();
    bench.stack.inner.transmit.steps - before
}

#[test]
fn many_flows_that_end_together_cost_no_more_each_than_a_few() {
    let few = steps_of_an_end_together(500);
    let many = steps_of_an_end_together(8_000);
    assert!(many <= 16 * few.max(500) * 2, "{many} steps for 8,000 flows, {few} for 500");
}

#[test]
fn map_and_table_number_flows_alike() {
    let mut bench = Bench::new(|_| {});
    let mut open = Vec::new();
    for round in 0..6 {
        for flow in 0..40 {
            open.push(bench.open(&format!("10.0.0.{round}:{}", 1_000 + flow), SERVER).0);
        }
        for id in open.split_off(17 * round + 5) {
            bench.stack.upstream_reset(bench.now, id);
            bench.requests();
            bench.packets();
        }
        let map = &bench.map.map;
        for (key, index) in map.snapshot() {
            let hash = map.hash(&key);
            assert_eq!(
                map.lock(map.shard_of(hash)).guess(hash),
                Some(index),
                "the flow that is fetched is the right one"
            );
        }
        assert_eq!(map.len(), open.len());
    }
    bench.shut_down();
}

#[test]
fn a_crowd_of_timers_is_run_a_few_at_a_time() {
    let mut bench = Bench::new(|_| {});
    let most = TIMERS + 1;
    let flows = 3 * most + 4;
    for flow in 0..flows {
        let (id, mut client) = bench.open(&format!("10.0.0.2:{}", 1_000 + flow), SERVER);
        assert_eq!(bench.feed(&client.send(b"request")), Disposition::Accepted);
        bench.stack.consume(bench.now, id, 7);
        bench.requests();
        assert!(bench.packets().is_empty(), "acknowledgements are delayed");
    }
    bench.now = bench.now.plus(50 * MILLIS);
    let mut rounds = Vec::new();
    while bench.stack.next_timeout().is_some_and(|due| due <= bench.now) {
        bench.stack.handle_some_timeouts(bench.now, most);
        rounds.push(bench.packets().len());
    }
    assert_eq!(rounds.iter().sum::<usize>(), flows);
    assert!(rounds.iter().all(|&packets| packets <= most), "{rounds:?}");
    bench.shut_down();
}

#[test]
fn a_packet_of_another_workers_flow_is_handed_over() {
    let config = Config::default();
    let pool = Pool::new(PoolConfig::default());
    let map = Arc::new(WorkerMap::new(&config, 2, 0));
    let now = Instant::from_millis(1);
    let mut stacks = [0, 1].map(|worker| Stack::for_worker(config.clone(), &pool, &map, worker, now));
    for port in 1..=64u16 {
        let mut peer = Client::new(CLIENT, SERVER);
        peer.here.set_port(port);
        let packet = peer.syn();
        let owner = map.owner_of(&packet);
        let buf = stacks[0].pool().alloc_copy(&packet, 0).unwrap();
        let disposition = stacks[0].handle_packet(now, Packet::plain(buf));
        assert_eq!(disposition == Disposition::Foreign, owner == 1);
        if let Some((worker, packet)) = stacks[0].poll_foreign() {
            assert_eq!(stacks[worker].handle_packet(now, packet), Disposition::Accepted);
        }
    }
    let flows = stacks.each_ref().map(|stack| stack.stats().flows);
    assert_eq!(flows[0] + flows[1], 64);
    assert!(flows[0] > 8 && flows[1] > 8, "{flows:?}");
    for stack in &mut stacks {
        stack.shutdown(now);
        while stack.poll_transmit(now).is_some() {}
    }
    assert_eq!((map.len(), pool.stats().live_buffers), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes, in whatever order: no panic, no remains.
    #[test]
    fn garbage_leaves_nothing(
        packets in prop::collection::vec((0..6u8, 0..60_000u16, prop::collection::vec(any::<u8>(), 0..120)), 1..200),
        step in 0..200u64,
    ) {
        let mut bench = Bench::new(|config| config.max_pending_connects = 50);
        for (kind, word, bytes) in packets {
            let mut packet = match kind {
                0 => bytes.clone(),
                1 => ip_packet(at(CLIENT).ip(), at(SERVER).ip(), word as u8, &bytes),
                2 => udp_packet("10.0.0.2:7", "192.0.2.7:53", &bytes),
                _ => {
                    let mut peer = Client::new(CLIENT, SERVER);
                    peer.here.set_port(1 + word % 3);
                    peer.seq = SeqNumber(7_000 + u32::from(word) % 9);
                    peer.ack = bytes.first_chunk().map_or(SeqNumber(0), |b| SeqNumber(u32::from_be_bytes(*b)));
                    peer.segment(Flags(bytes.first().map_or(2, |b| b & 0x3f)), &bytes)
                }
            };
            if kind == 5 && packet.len() > 24 {
                let at = usize::from(word) % packet.len();
                packet[at] ^= 0x41;
            }
            bench.feed(&packet);
            for request in bench.requests() {
                match request {
                    Request::Connect { flow, .. } if word % 3 == 0 => bench.stack.refused(bench.now, flow, Refusal::Refused),
                    Request::Connect { flow, .. } => bench.stack.connected(bench.now, flow),
                    Request::Readable(flow) => drop(read_all(&mut bench, flow)),
                    _ => {}
                }
            }
            bench.pass(step * MILLIS);
            bench.packets();
        }
        bench.shut_down();
    }
}

#[test]
fn a_batch_is_the_same_as_its_packets_one_by_one() {
    // Two connections on the same ports within one batch: the lookups of the second find the first one's remains.
    for whole in [false, true] {
        let mut bench = Bench::new(|_| {});
        let (flow, mut peer) = bench.open(CLIENT, SERVER);
        let packets = [peer.send(b"one"), peer.segment(Flags::RST.with(Flags::ACK), b""), {
            peer.seq = SeqNumber(900_000);
            peer.syn()
        }];
        let mut batch: Vec<Packet> = packets.iter().map(|packet| Packet::plain(bench.buf(packet))).collect();
        if whole {
            assert_eq!(bench.stack.handle_batch(bench.now, &mut batch), 3);
        } else {
            for packet in batch {
                assert_eq!(bench.stack.handle_packet(bench.now, packet), Disposition::Accepted);
            }
        }
        let requests = bench.requests();
        let closed = requests.iter().position(|r| matches!(r, Request::Closed(id, _) if *id == flow)).unwrap();
        let opened =
            requests.iter().position(|r| matches!(r, Request::Connect { flow: id, .. } if *id != flow)).unwrap();
        assert!(closed < opened, "{requests:?}");
        assert_eq!(bench.stack.stats().flows, 1);
        bench.shut_down();
    }
}
