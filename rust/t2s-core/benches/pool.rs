//! The pool: an alloc+free pair by class, bursts, against the depot's lock alone and the global allocator; then two
//! threads that hand buffers over. Target: a pair in at most 10 ns, and no waiting for a lock.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group};
use t2s_core::buf::{Pool, PoolCache, PoolConfig};

/// Packets of one turn of a worker's loop.
const BURST: usize = 64;

fn clock() -> u64 {
    use std::sync::OnceLock;
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

fn pool(cache: u16) -> Pool {
    Pool::new(PoolConfig { cache, clock, ..PoolConfig::default() })
}

fn pairs(c: &mut Criterion) {
    let mut group = c.benchmark_group("pool/pair");
    for len in [200, 1_600, 9_200, 65_700] {
        let pool = pool(64);
        let mut cache = pool.cache();
        group.bench_function(format!("magazines/{len}"), |b| b.iter(|| pair(&mut cache, len)));
        let stats = pool.stats();
        assert!(stats.grow_stalls <= 1, "misses in warm-up only (none if the filter left this one out)");
        assert_eq!((stats.live_bytes, stats.lock_wait_ns), (0, 0));
    }
    let locked = pool(0);
    let mut cache = locked.cache();
    group.bench_function("depot_lock/1600", |b| b.iter(|| pair(&mut cache, 1_600)));
    group.bench_function("global_allocator/1600", |b| {
        b.iter(|| drop(black_box(Vec::<u8>::with_capacity(black_box(2_048)))));
    });
    group.finish();
}

fn pair(cache: &mut PoolCache, len: usize) {
    let buf = cache.alloc(black_box(len), 128).expect("below the ceiling");
    cache.free(black_box(buf));
}

/// A worker's turn: many buffers out, then all back; longer than two magazines, so the depot takes part.
fn bursts(c: &mut Criterion) {
    let mut group = c.benchmark_group("pool/burst");
    for (name, size, n) in [("magazines", 64, BURST), ("magazines", 64, 4_096), ("depot_lock", 0, BURST)] {
        let pool = pool(size);
        let mut cache = pool.cache();
        let mut held = Vec::with_capacity(n);
        group.throughput(criterion::Throughput::Elements(n as u64));
        group.bench_function(format!("{name}/{n}"), |b| {
            b.iter(|| {
                held.extend((0..n).map(|_| cache.alloc(1_600, 128).expect("below the ceiling")));
                held.drain(..).for_each(|buf| cache.free(buf));
            });
        });
        assert_eq!(pool.stats().live_bytes, 0);
    }
    group.finish();
}

/// The best of many short windows: what an operation costs when nothing else runs on the core meanwhile.
fn best(name: &str, per_window: u32, mut window: impl FnMut()) {
    let mut best = Duration::MAX;
    for _ in 0..2_000 {
        let since = Instant::now();
        window();
        best = best.min(since.elapsed());
    }
    println!("{name}: {:.2} ns at best", best.as_nanos() as f64 / f64::from(per_window));
}

fn undisturbed() {
    for (name, size) in [("magazines", 64), ("depot_lock", 0)] {
        let pool = pool(size);
        let mut cache = pool.cache();
        best(&format!("pool/best/pair/{name}"), 1_000, || (0..1_000).for_each(|_| pair(&mut cache, 1_600)));
        let mut held = Vec::with_capacity(BURST);
        best(&format!("pool/best/burst/{name}"), 1_024, || {
            for _ in 0..1_024 / BURST {
                held.extend((0..BURST).map(|_| cache.alloc(1_600, 128).expect("below the ceiling")));
                held.drain(..).for_each(|buf| cache.free(buf));
            }
        });
    }
    best("pool/best/pair/global_allocator", 1_000, || {
        (0..1_000).for_each(|_| drop(black_box(Vec::<u8>::with_capacity(black_box(2_048)))));
    });
}

/// Two threads at once: each for itself, and one that allocates what the other frees.
fn threads() {
    const PAIRS: u64 = 4_000_000;
    for (name, size) in [("magazines", 64), ("depot_lock", 0)] {
        let pool = pool(size);
        let took = two(|| {
            let mut cache = pool.cache();
            (0..PAIRS).for_each(|_| pair(&mut cache, 1_600));
        });
        report(&format!("pool/threads/{name}"), took, PAIRS, &pool);

        let pool = self::pool(size);
        let since = Instant::now();
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel::<Vec<_>>(64);
            let (pool, batches) = (&pool, PAIRS / 8 / BURST as u64);
            scope.spawn(move || {
                let mut cache = pool.cache();
                for _ in 0..batches {
                    let batch = (0..BURST).map(|_| cache.alloc(1_600, 128).expect("below the ceiling")).collect();
                    sender.send(batch).expect("the other thread lives");
                }
            });
            scope.spawn(move || {
                let mut cache = pool.cache();
                receiver.into_iter().flatten().for_each(|buf| cache.free(buf));
            });
        });
        report(&format!("pool/handover/{name}"), since.elapsed(), PAIRS / 8, &pool);
    }
}

fn two(work: impl Fn() + Sync) -> Duration {
    let since = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(&work);
        scope.spawn(&work);
    });
    since.elapsed()
}

fn report(name: &str, took: Duration, pairs: u64, pool: &Pool) {
    let stats = pool.stats();
    assert_eq!(stats.live_bytes, 0);
    println!(
        "{name}: {:.1} ns a pair and thread, lock_wait {} us, {} misses, {} exchanges",
        took.as_nanos() as f64 / pairs as f64,
        stats.lock_wait_ns / 1_000,
        stats.grow_stalls,
        stats.depot_exchanges
    );
}

criterion_group!(benches, pairs, bursts);

fn main() {
    benches();
    undisturbed();
    threads();
    Criterion::default().configure_from_args().final_summary();
}
