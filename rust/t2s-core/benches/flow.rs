//! The flow map: lookups over a million flows, churn, and how two threads scale with a shard each and with one shard.
//! Targets: a lookup in at most 100 ns; two threads at least 1.8 times one.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use t2s_core::flow::{FlowKey, FlowMap, FlowMapConfig};
use t2s_core::time::Instant as Now;

/// Flows of the target.
const FLOWS: usize = 1_000_000;
/// Packets of one batch, under one lock.
const BATCH: usize = 64;

fn clock() -> u64 {
    use std::sync::OnceLock;
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// A step of the splitmix64 generator: the order of packets is random, but the same in every run.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn key(n: usize) -> FlowKey {
    let n = n as u32;
    let (src, dst) = if n.is_multiple_of(4) {
        let net = 0xfd00_u128 << 112;
        (IpAddr::V6(Ipv6Addr::from_bits(net | 1)), IpAddr::V6(Ipv6Addr::from_bits(net | u128::from(n))))
    } else {
        (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), IpAddr::V4(Ipv4Addr::from_bits(0x5000_0000 | n >> 4)))
    };
    FlowKey::new(src, (n & 0xffff) as u16, dst, 443, 6)
}

/// A map with `flows` flows and, for each shard, its keys in random order.
fn filled(shards: usize, flows: usize) -> (FlowMap<u32>, Vec<Vec<FlowKey>>) {
    let map = FlowMap::new(FlowMapConfig { shards, capacity: flows + flows / 16, hash_key: [1, 2, 3, 4], clock });
    let mut keys = vec![Vec::new(); shards];
    for n in 0..flows {
        let key = key(n);
        let hash = map.hash(&key);
        let shard = map.shard_of(hash);
        map.lock(shard).insert(hash, key, n as u32, Now::ZERO).expect("below the bound");
        keys[shard].push(key);
    }
    let mut seed = 7;
    for keys in &mut keys {
        for i in (1..keys.len()).rev() {
            keys.swap(i, (random(&mut seed) % (i as u64 + 1)) as usize);
        }
    }
    (map, keys)
}

/// Looks up a batch under one lock, as a worker does: hashes first, then the table.
#[inline]
fn lookup_batch(map: &FlowMap<u32>, shard: usize, keys: &[FlowKey]) -> u64 {
    let guard = map.lock(shard);
    let mut hashes = [0; BATCH];
    for (hash, key) in hashes.iter_mut().zip(keys) {
        *hash = map.hash(key);
    }
    hashes.iter().zip(keys).map(|(&hash, key)| guard.get(hash, key).copied().map_or(0, u64::from)).sum()
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow/lookup");
    group.throughput(Throughput::Elements(BATCH as u64));
    for flows in [1_000, 65_536, FLOWS] {
        let (map, keys) = filled(1, flows);
        let mut batches = keys[0].chunks_exact(BATCH).cycle();
        group.bench_function(format!("{flows}/batch_of_{BATCH}"), |b| {
            b.iter(|| lookup_batch(&map, 0, batches.next().expect("a cycle does not end")));
        });
    }
    group.finish();
}

fn churn(c: &mut Criterion) {
    let (map, keys) = filled(1, FLOWS);
    let mut fresh = FLOWS;
    let mut old = keys[0].iter();
    c.bench_function("flow/churn/insert_and_remove", |b| {
        b.iter(|| {
            let key = key(fresh);
            fresh += 1;
            let hash = map.hash(&key);
            let mut guard = map.lock(0);
            guard.insert(hash, key, 0, Now::ZERO).expect("below the bound");
            let gone = old.next().copied().unwrap_or(key);
            guard.remove(map.hash(&gone), &gone)
        });
    });
}

/// Nanoseconds that this thread ran on a CPU (Linux), so that a busy machine does not hide how threads scale; elsewhere
/// the wall clock. The kernel updates it at its ticks: good for intervals of a second, not of a microsecond.
fn on_cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    stat.and_then(|stat| stat.split(' ').next()?.parse().ok()).unwrap_or_else(clock)
}

/// Lookups a second of CPU time that each of `threads` threads does, over the keys of its own shard (or all over the
/// same one), summed.
fn rate(map: &FlowMap<u32>, keys: &[Vec<FlowKey>], threads: usize) -> f64 {
    let start = Barrier::new(threads);
    let rates: Vec<f64> = std::thread::scope(|scope| {
        let spawn = |thread: usize| {
            let start = &start;
            scope.spawn(move || {
                let shard = thread % map.shards();
                let mut batches = keys[shard].chunks_exact(BATCH).cycle().skip(thread * 1_000);
                start.wait();
                let (since, ran) = (Instant::now(), on_cpu());
                let mut done = 0_u64;
                while since.elapsed() < Duration::from_secs(1) {
                    for batch in batches.by_ref().take(16) {
                        black_box(lookup_batch(map, shard, batch));
                        done += batch.len() as u64;
                    }
                }
                done as f64 * 1e9 / (on_cpu() - ran) as f64
            })
        };
        let threads: Vec<_> = (0..threads).map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    });
    rates.iter().sum()
}

/// The best of many passes over a slice of the keys: a lookup when nothing else runs on the core meanwhile.
fn undisturbed() {
    for flows in [1_000, 65_536, FLOWS] {
        let (map, keys) = filled(1, flows);
        let mut best = Duration::MAX;
        let mut slices = keys[0].chunks_exact(15 * BATCH).cycle();
        for _ in 0..5_000 {
            let slice = slices.next().expect("a cycle does not end");
            let since = Instant::now();
            slice.chunks_exact(BATCH).for_each(|batch| {
                black_box(lookup_batch(&map, 0, batch));
            });
            best = best.min(since.elapsed());
        }
        println!("flow/best/lookup/{flows}: {:.1} ns at best", best.as_nanos() as f64 / (15 * BATCH) as f64);
    }
}

fn scaling() {
    for shards in [2, 1] {
        let (map, keys) = filled(shards, FLOWS);
        let one = rate(&map, &keys, 1);
        let two = rate(&map, &keys, 2);
        println!(
            "flow/threads/shards={shards}: one {:.2} M lookups/s on CPU, two {:.2} M/s: {:.2}x, lock_wait {} ms",
            one / 1e6,
            two / 1e6,
            two / one,
            map.stats().total.lock_wait_ns / 1_000_000
        );
    }
}

criterion_group!(benches, lookups, churn);

fn main() {
    benches();
    undisturbed();
    scaling();
    Criterion::default().configure_from_args().final_summary();
}
