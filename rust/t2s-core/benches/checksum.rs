//! All checksum kernels beside `memcpy`, the `internet-checksum` crate, and the loop of RFC 1071 as the compiler
//! vectorizes it (the `scalar` kernel is that loop at 16 bits a turn).
//!
//! Every answer is checked before anything is timed. After criterion's figures a table of ratios is measured with all
//! contestants interleaved, so that noise of the machine meets all of them. Targets: 8x scalar at 1500 B, 2x at 64 B;
//! 2x the crate at 1500 B; at 64 KiB no slower than half of `memcpy`.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput};
use t2s_core::checksum::{Kernel, Sum};

const SIZES: [usize; 6] = [20, 64, 256, 1500, 9000, 65_536];

fn main() {
    for size in SIZES {
        check(size);
    }
    let mut criterion = Criterion::default().configure_from_args();
    figures(&mut criterion);
    criterion.final_summary();
    if std::env::args().any(|arg| arg == "--bench") {
        ratios();
    }
}

/// Source and destination. Half a page apart modulo pages, as pool buffers of different flows may be, because some CPUs
/// take stores for the sources of loads that have equal low address bits.
struct Buffers {
    bytes: Vec<u8>,
    src: usize,
    dst: usize,
    size: usize,
}

impl Buffers {
    fn new(size: usize) -> Self {
        let room = size.next_multiple_of(4096);
        let bytes = bytes(2 * room + 2 * 4096);
        let src = bytes.as_ptr().align_offset(4096);
        Self { bytes, src, dst: src + room + 2048, size }
    }

    fn src(&self) -> &[u8] {
        black_box(&self.bytes[self.src..self.src + self.size])
    }

    fn both(&mut self) -> (&mut [u8], &[u8]) {
        let (src, dst) = self.bytes[self.src..].split_at_mut(self.dst - self.src);
        (black_box(&mut dst[..self.size]), black_box(&src[..self.size]))
    }
}

/// A contestant's loop: buffers and how many times; gives the checksum.
type Loop = Box<dyn Fn(&mut Buffers, u64) -> u16>;

/// A contestant: a name, and a loop that does it so many times and gives the checksum (0 for `memcpy`). The loop is
/// inside, so that the call through a pointer is not measured.
type Contestant = (String, Loop);

fn repeat(once: impl Fn(&mut Buffers) -> u16 + 'static) -> Loop {
    Box::new(move |buffers, times| (0..times).fold(0, |_, _| black_box(once(buffers))))
}

fn contestants() -> Vec<Contestant> {
    let mut all: Vec<Contestant> = Vec::new();
    for kernel in Kernel::available() {
        let name = kernel.name().to_owned();
        all.push((name, repeat(move |buffers| kernel.sum(buffers.src(), Sum::ZERO).finish())));
    }
    all.push(("rfc1071-vectorized".into(), repeat(|buffers| rfc_1071(buffers.src()))));
    all.push((
        "internet-checksum-crate".into(),
        repeat(|buffers| u16::from_be_bytes(internet_checksum::checksum(buffers.src()))),
    ));
    let kernel = Kernel::auto();
    all.push((
        format!("copy+{}", kernel.name()),
        repeat(move |buffers| {
            let (dst, src) = buffers.both();
            kernel.copy_and_sum(dst, src, Sum::ZERO).finish()
        }),
    ));
    all.push((
        "memcpy".into(),
        repeat(|buffers| {
            let (dst, src) = buffers.both();
            dst.copy_from_slice(src);
            0
        }),
    ));
    all
}

fn check(size: usize) {
    for len in [size, size - 1] {
        for (name, run) in contestants() {
            let mut buffers = Buffers::new(len);
            let answer = run(&mut buffers, 1);
            if name != "memcpy" {
                assert_eq!(answer, rfc_1071(buffers.src()), "{name} {len}");
            }
            if name == "memcpy" || name.starts_with("copy+") {
                let (dst, src) = buffers.both();
                assert_eq!(dst, src, "{name} {len}");
            }
        }
    }
}

fn figures(criterion: &mut Criterion) {
    for size in SIZES {
        let mut group = criterion.benchmark_group(format!("checksum/{size}"));
        group.throughput(Throughput::Bytes(size as u64));
        let mut buffers = Buffers::new(size);
        for (name, run) in contestants() {
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter_custom(|times| {
                    let start = Instant::now();
                    run(&mut buffers, times);
                    start.elapsed()
                });
            });
        }
        group.finish();
    }
}

/// Prints nanoseconds a call, the least of many interleaved rounds, and how many times faster than each the best kernel
/// is.
fn ratios() {
    const ROUNDS: usize = 200;
    let auto = Kernel::auto().name();
    println!("\nns a call (least of {ROUNDS} rounds), and time relative to {auto}");
    for size in SIZES {
        let all = contestants();
        let mut buffers = Buffers::new(size);
        let mut best = vec![f64::MAX; all.len()];
        let calls = (200_000 / size as u64).clamp(20, 2_000);
        for _ in 0..ROUNDS {
            for ((_, run), best) in all.iter().zip(&mut best) {
                let start = Instant::now();
                run(&mut buffers, calls);
                *best = best.min(start.elapsed().as_nanos() as f64 / calls as f64);
            }
        }
        let reference = all.iter().position(|(name, _)| name == auto).map_or(f64::NAN, |at| best[at]);
        println!("{size} B");
        for ((name, _), ns) in all.iter().zip(&best) {
            println!("  {name:<24}{ns:>10.1} ns{:>8.2}x", ns / reference);
        }
    }
}

/// Bytes without a pattern that a sum could hide.
fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

/// The example code of RFC 1071, section 4.1.
fn rfc_1071(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    let mut words = data.chunks_exact(2);
    for word in words.by_ref() {
        sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        sum += u32::from(u16::from_be_bytes([*last, 0]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
