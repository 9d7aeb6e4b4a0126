use std::hint::black_box;
use std::time::Instant;
use t2s_core::buf::*;
fn min(name: &str, per: u64, mut f: impl FnMut()) {
    let mut best = u128::MAX;
    for _ in 0..400 {
        let t = Instant::now();
        f();
        best = best.min(t.elapsed().as_nanos());
    }
    println!("{name}: {:.2} ns", best as f64 / per as f64);
}
fn main() {
    for c in [64u16, 0] {
        let pool = Pool::new(PoolConfig { cache: c, ..PoolConfig::default() });
        let mut cache = pool.cache();
        min("pair", 10000, || {
            for _ in 0..10000 {
                let b = cache.alloc(black_box(1600), 128).unwrap();
                cache.free(black_box(b));
            }
        });
        min("pair ref", 10000, || {
            for _ in 0..10000 {
                let mut b = cache.alloc(black_box(1600), 128).unwrap();
                black_box(&mut b);
                cache.free(b);
            }
        });
        let mut held = Vec::with_capacity(64);
        min("burst64", 6400, || {
            for _ in 0..100 {
                for _ in 0..64 {
                    held.push(cache.alloc(black_box(1600), 128).unwrap());
                }
                for b in held.drain(..) {
                    cache.free(b)
                }
            }
        });
    }
    min("malloc", 10000, || {
        for _ in 0..10000 {
            drop(black_box(Vec::<u8>::with_capacity(black_box(2048))));
        }
    });
}
