//! The whole path of a packet through the stack, without threads and devices: small TCP segments over few and many
//! flows, small datagrams, and sessions and connections that open and end. The client's side costs a copy and a
//! checksum update.

mod packets;

use std::hint::black_box;
use std::net::SocketAddr;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use t2s_core::buf::{Pool, PoolConfig};
use t2s_core::checksum::update_u32;
use t2s_core::config::Config;
use t2s_core::stack::{Packet, Request, Stack};
use t2s_core::time::Instant;
use t2s_core::wire::protocol;
use t2s_core::wire::tcp::{Flags, Options, SeqNumber, Tcp};
use t2s_core::wire::udp::UdpRepr;

use packets::{client, index_of, packet, server, tcp};

/// Packets of one turn of a worker's loop.
const BATCH: usize = 64;

struct Bench {
    stack: Stack,
    now: Instant,
    batch: Vec<Packet>,
}

impl Bench {
    fn new() -> Self {
        let config = Config { max_pending_connects: 1 << 20, max_tcp_flows: 1 << 17, ..Config::default() };
        let pool = Pool::new(PoolConfig::default());
        let now = Instant::from_millis(1);
        let stack = Stack::new(config, &pool, now);
        Self { stack, now, batch: Vec::with_capacity(BATCH) }
    }

    fn add(&mut self, packet: &[u8]) {
        let buf = self.stack.pool().alloc_copy(packet, 0).expect("below the ceiling");
        self.batch.push(Packet::plain(buf));
    }

    /// One turn: packets in, everything readable to a sink, packets out. Returns packets out.
    fn turn(&mut self, mut seen: impl FnMut(&[u8])) -> usize {
        self.now = self.now.plus(64_000);
        self.stack.handle_timeout(self.now);
        self.stack.handle_batch(self.now, &mut self.batch);
        while let Some(request) = self.stack.poll_request(self.now) {
            match request {
                Request::Connect { flow, .. } => self.stack.connected(self.now, flow),
                Request::Readable(flow) => {
                    let len = self.stack.readable(flow).map(|slice| black_box(slice).len()).sum();
                    self.stack.consume(self.now, flow, len);
                }
                Request::Datagrams(session) => {
                    while let Some((target, payload)) = self.stack.pop_datagram(session) {
                        black_box((target, payload.as_slice()));
                        self.stack.free(payload);
                    }
                }
                _ => {}
            }
        }
        let mut out = 0;
        while let Some(transmit) = self.stack.poll_transmit(self.now) {
            seen(transmit.header);
            out += 1;
        }
        out
    }
}

fn segment(client: SocketAddr, flags: Flags, seq: u32, ack: SeqNumber, payload: &[u8]) -> Vec<u8> {
    tcp(client, flags, seq, ack, Options { mss: Some(1_460), ..Options::NONE }, payload)
}

fn datagram(client: SocketAddr) -> Vec<u8> {
    let mut out = vec![0; 8];
    UdpRepr { src_port: client.port(), dst_port: server().port(), payload_len: 6 }.emit(&mut out);
    out.extend_from_slice(b"abcdef");
    packet(client, protocol::UDP, out)
}

/// Advances the sequence number of a packet in place (RFC 1624).
fn advance(packet: &mut [u8], by: u32) {
    let field = |packet: &[u8], at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().expect("four bytes"));
    let old = field(packet, 24);
    let new = old.wrapping_add(by);
    packet[24..28].copy_from_slice(&new.to_be_bytes());
    let check = u16::from_be_bytes([packet[36], packet[37]]);
    packet[36..38].copy_from_slice(&update_u32(check, old, new).to_be_bytes());
}

/// Flows that are open, with a template of each one's next data packet.
fn open(flows: usize) -> (Bench, Vec<Vec<u8>>) {
    let mut bench = Bench::new();
    let mut isns = vec![SeqNumber(0); flows];
    for first in (0..flows).step_by(BATCH) {
        for index in first..flows.min(first + BATCH) {
            bench.add(&segment(client(index), Flags::SYN, 1_000, SeqNumber(0), b""));
        }
        bench.turn(|header| {
            let tcp = Tcp::parse(&header[20..]).expect("a SYN-ACK");
            isns[index_of(header[18], tcp.dst_port)] = tcp.seq;
        });
    }
    let packets = (0..flows)
        .map(|index| segment(client(index), Flags::ACK.with(Flags::PSH), 1_001, isns[index] + 1, b"abcdef"))
        .collect();
    (bench, packets)
}

/// A step of the splitmix64 generator: the order of packets is random, but the same in every run.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Small segments over flows that take turns: in the order of their slots, which the CPU foresees, and in a random one,
/// in which each packet finds its flow out of the cache.
fn segments(c: &mut Criterion) {
    let mut group = c.benchmark_group("stack/tcp_small");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (flows, cold) in [(64, false), (1_024, false), (50_000, false), (50_000, true), (100_000, true)] {
        let (mut bench, mut packets) = open(flows);
        if cold {
            let mut seed = 7;
            for i in (1..flows).rev() {
                packets.swap(i, (random(&mut seed) % (i as u64 + 1)) as usize);
            }
        }
        let mut next = 0;
        group.bench_function(format!("{flows}_flows{}", if cold { "_cold" } else { "" }), |b| {
            b.iter(|| {
                for _ in 0..BATCH {
                    bench.add(&packets[next]);
                    advance(&mut packets[next], 6);
                    next = (next + 1) % flows;
                }
                bench.turn(|_| {})
            });
        });
        assert_eq!(bench.stack.stats().drops.total(), 0);
    }
    group.finish();
}

/// Datagrams of as many clients as have room, and of clients of whom none has a session any more when its turn comes: at
/// the cap, one ends for each.
fn datagrams(c: &mut Criterion) {
    let cap = Config::default().max_udp_sessions as usize;
    for (group, name, clients) in
        [("stack/udp_small", "1024_sessions", 1_024), ("stack/udp_churn", "at_the_cap", 2 * cap)]
    {
        let mut group = c.benchmark_group(group);
        group.throughput(Throughput::Elements(BATCH as u64));
        let mut bench = Bench::new();
        let packets: Vec<_> = (0..clients).map(|index| datagram(client(index))).collect();
        let mut next = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                for _ in 0..BATCH {
                    bench.add(&packets[next]);
                    next = (next + 1) % packets.len();
                }
                bench.turn(|_| {})
            });
        });
        assert_eq!(bench.stack.stats().drops.total(), 0);
        group.finish();
    }
}

/// SYN, answer, RST: a connection costs two packets in and one out.
fn churn(c: &mut Criterion) {
    let mut group = c.benchmark_group("stack/connect_reset");
    group.throughput(Throughput::Elements(BATCH as u64 / 2));
    let mut bench = Bench::new();
    let pairs: Vec<_> = (0..4_096)
        .map(|index| {
            let syn = segment(client(index), Flags::SYN, 1_000, SeqNumber(0), b"");
            let reset = segment(client(index), Flags::RST, 1_001, SeqNumber(0), b"");
            (syn, reset)
        })
        .collect();
    let mut next = 0;
    group.bench_function("32_connections", |b| {
        b.iter(|| {
            for step in 0..BATCH / 2 {
                bench.add(&pairs[(next + step) % pairs.len()].0);
            }
            bench.turn(|_| {});
            for step in 0..BATCH / 2 {
                bench.add(&pairs[(next + step) % pairs.len()].1);
            }
            next += BATCH / 2;
            bench.turn(|_| {})
        });
    });
    assert_eq!(bench.stack.stats().flows, 0);
    group.finish();
}

criterion_group!(benches, segments, datagrams, churn);
criterion_main!(benches);
