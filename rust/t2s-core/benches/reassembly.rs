//! Out-of-order data, fragments, UDP sessions and DNS messages on the packet path. Stream reassembly stands beside a map
//! of owned byte vectors, which is how it is often written. Targets: at a million packets a second, a fifth of them out
//! of order, reassembly must be lost in the noise (well below 100 ns a held segment).

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use t2s_core::buf::{Buf, Pool, PoolCache, PoolConfig};
use t2s_core::config::{Config, Reassembly};
use t2s_core::dns::{Message, Name};
use t2s_core::fragment::{self, FragmentReassembler, Outcome};
use t2s_core::reassembly::{Budget, Insert, StreamReassembler};
use t2s_core::time::Instant;
use t2s_core::udp::Sessions;
use t2s_core::wire::{Ip, IpRepr, SeqNumber};

/// Payload of a segment, bytes.
const SEGMENT: u32 = 1_400;

fn pool() -> PoolCache {
    Pool::new(PoolConfig::default()).cache()
}

fn segment(pool: &mut PoolCache, len: usize) -> Buf {
    let mut buf = pool.alloc(len, 0).expect("the pool is large");
    buf.grow(len);
    buf
}

/// Segments `1..=count` arrive in the order of `order`, then 0 in order; all is delivered.
fn episode(
    queue: &mut StreamReassembler,
    budget: &mut Budget,
    pool: &mut PoolCache,
    next: &mut SeqNumber,
    order: &[u32],
) {
    let limits = Config::default().stream;
    for &index in order {
        let buf = segment(pool, SEGMENT as usize);
        match queue.insert(*next, *next + index * SEGMENT, buf, &limits, Reassembly::Bounded, budget) {
            Insert::Stored { new_bytes } => assert_eq!(new_bytes, SEGMENT),
            Insert::Duplicate(_) | Insert::Refused(..) => panic!("fits, and is new"),
        }
        black_box(queue.sack_blocks(3).count());
    }
    *next += SEGMENT;
    let mut delivered = 0;
    while let Some(buf) = queue.pop(*next, budget) {
        *next += buf.len() as u32;
        delivered += 1;
        pool.free(buf);
    }
    assert_eq!(delivered, order.len());
}

fn naive(queue: &mut BTreeMap<u64, Vec<u8>>, data: &[u8], next: &mut u64, order: &[u32]) {
    for &index in order {
        queue.insert(*next + u64::from(index * SEGMENT), data.to_vec());
    }
    *next += u64::from(SEGMENT);
    while let Some(data) = queue.remove(next) {
        *next += black_box(data).len() as u64;
    }
}

fn streams(c: &mut Criterion) {
    let mut group = c.benchmark_group("reassembly");
    let orders: [(&str, Vec<u32>); 4] = [
        ("one_swap", vec![1]),
        ("behind_one_loss/100", (1..=100).collect()),
        ("backwards/100", (1..=100).rev().collect()),
        ("every_second_first/100", (1..=100).filter(|n| n % 2 == 0).chain((1..=100).filter(|n| n % 2 == 1)).collect()),
    ];
    for (name, order) in &orders {
        group.throughput(Throughput::Elements(order.len() as u64));
        let (mut queue, mut budget, mut pool) = (StreamReassembler::new(), Budget::new(16 << 20), pool());
        let mut next = SeqNumber(0xffff_0000);
        group.bench_function(format!("t2s/{name}"), |b| {
            b.iter(|| episode(&mut queue, &mut budget, &mut pool, &mut next, order));
        });
        assert_eq!(budget.used(), 0);
        let (mut queue, data, mut next) = (BTreeMap::new(), vec![0; SEGMENT as usize], 0);
        group.bench_function(format!("map_of_vecs/{name}"), |b| b.iter(|| naive(&mut queue, &data, &mut next, order)));
    }
    group.finish();
}

fn fragments(c: &mut Criterion) {
    let mut group = c.benchmark_group("fragment");
    let config = Config::default();
    let host = |n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n));
    let repr = IpRepr {
        src: host(1),
        dst: host(2),
        protocol: 17,
        ttl: 64,
        ecn: 0,
        payload_len: 0,
        id: 0,
        dont_fragment: false,
    };
    for len in [2_000usize, 65_000] {
        let payload = vec![0; len];
        let parts: Vec<Vec<u8>> = fragment::fragment(&repr, &payload, 1_500, 7)
            .expect("fits")
            .map(|part| [part.header(), part.payload].concat())
            .collect();
        let mut table = FragmentReassembler::new(config.fragment, config.reassembly, [1, 2, 3, 4]);
        let mut pool = pool();
        group.throughput(Throughput::Elements(parts.len() as u64));
        group.bench_function(format!("datagram/{len}"), |b| {
            b.iter(|| {
                for part in &parts {
                    let buf = pool.alloc_copy(part, 0).expect("the pool is large");
                    let ip = Ip::parse(buf.as_slice()).expect("valid");
                    match table.handle(Instant::ZERO, buf, &ip, &mut pool) {
                        Outcome::Pending => {}
                        Outcome::Complete(whole) => pool.free(whole),
                        Outcome::Dropped(reason) => panic!("{reason:?}"),
                    }
                }
            });
        });
        assert_eq!(table.stats().bytes, 0);
    }
    group.finish();
}

fn sessions(c: &mut Criterion) {
    let mut group = c.benchmark_group("udp");
    let mut pool = pool();
    let client = |n: u32| SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | n >> 4)), 1_024 + n as u16 % 16);
    let target = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 53);
    let mut table = Sessions::new(Config::default().udp, 16_384, [1, 2, 3, 4]);
    for n in 0..16_384 {
        let _ = table.open(Instant::ZERO, table.seek(client(n)), target, &mut pool).expect("room");
    }
    let mut n = 0u32;
    group.bench_function("lookup_push_pop/16384", |b| {
        b.iter(|| {
            n = n.wrapping_mul(5).wrapping_add(1) % 16_384;
            let id = table.open(Instant::ZERO, table.seek(client(n)), target, &mut pool).expect("is there").id;
            let buf = segment(&mut pool, 64);
            assert!(table.push(Instant::ZERO, id, target, buf).is_ok());
            let (_, buf) = table.pop(id).expect("just pushed");
            pool.free(buf);
        });
    });
    let mut fresh = 0x10_0000;
    group.bench_function("open_evict/16384", |b| {
        b.iter(|| {
            fresh += 1;
            black_box(table.open(Instant::ZERO, table.seek(client(fresh)), target, &mut pool).expect("evicts")).evicted
        });
    });
    group.finish();
}

fn messages(c: &mut Criterion) {
    let mut query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    query.extend(Name::from_text("www.some-name.example.org").expect("good").as_bytes());
    query.extend([0, 1, 0, 1]);
    c.bench_function("dns/parse_query", |b| b.iter(|| Message::parse(black_box(&query)).expect("good").is_query()));
    c.bench_function("dns/query_key", |b| b.iter(|| Message::parse(black_box(&query)).expect("good").key()));
}

criterion_group!(benches, streams, fragments, sessions, messages);
criterion_main!(benches);
