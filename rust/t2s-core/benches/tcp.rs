//! The TCP terminator: what a segment costs, `handle_segment` and `poll_segment` together, on one flow (in the cache)
//! and over 50,000 flows in turn (out of it). Target: an acknowledgement well below 100 ns on one flow.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use t2s_core::buf::{Buf, Pool, PoolCache, PoolConfig};
use t2s_core::config::{Reassembly, StreamLimits, SynAck, TcpConfig};
use t2s_core::reassembly::Budget;
use t2s_core::stats::DropCounts;
use t2s_core::tcp::{BufferBudget, Ctx, SegmentLimits, Tcb, TcpStats};
use t2s_core::time::{Instant, MICROS};
use t2s_core::wire::tcp::{Options, SackBlocks};
use t2s_core::wire::{Flags, SeqNumber, Tcp};

const LIMITS: SegmentLimits = SegmentLimits { mss: 1_460, tso_max: 65_000, slices: 16 };
const ISS: SeqNumber = SeqNumber(1);
const IRS: SeqNumber = SeqNumber(1);

struct Worker {
    now: Instant,
    config: TcpConfig,
    stream: StreamLimits,
    cache: PoolCache,
    budget: Budget,
    memory: BufferBudget,
    counts: DropCounts,
    stats: TcpStats,
}

impl Worker {
    fn new(pool: &Pool) -> Self {
        Self {
            now: Instant::from_millis(1_000),
            config: TcpConfig { syn_ack: SynAck::Immediate, ..TcpConfig::default() },
            stream: StreamLimits { flow_bytes: 1 << 19, flow_segments: 256, total_bytes: 1 << 24 },
            cache: pool.cache(),
            budget: Budget::new(1 << 24),
            memory: BufferBudget::new(1 << 30),
            counts: DropCounts::default(),
            stats: TcpStats::default(),
        }
    }

    fn with<R>(&mut self, body: impl FnOnce(&mut Ctx<'_>) -> R) -> R {
        body(&mut Ctx {
            now: self.now,
            config: &self.config,
            stream: &self.stream,
            mode: Reassembly::Bounded,
            pool: &mut self.cache,
            budget: &mut self.budget,
            memory: &mut self.memory,
            counts: &mut self.counts,
            tcp: &mut self.stats,
        })
    }

    /// A buffer with `len` bytes of payload behind headroom, as a device or socket would have filled it.
    fn filled(&mut self, len: usize) -> Buf {
        let mut buf = self.cache.alloc(128 + len, 128).expect("room");
        buf.grow(len);
        assert_eq!(buf.len(), len);
        buf
    }

    fn flow(&mut self) -> Flow {
        let options = Options {
            mss: Some(1_460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamp: Some((1, 0)),
            sack: SackBlocks::EMPTY,
        };
        let syn = Tcp {
            src_port: 1,
            dst_port: 2,
            seq: IRS,
            ack: SeqNumber(0),
            flags: Flags::SYN,
            window: 65_535,
            header_len: 40,
            options,
        };
        let mut tcb = self.with(|ctx| Tcb::accept(ctx, &syn, ISS, 1_460, true));
        self.with(|ctx| tcb.connected(ctx));
        self.with(|ctx| tcb.poll_segment(ctx, &LIMITS)).expect("SYN-ACK");
        let mut flow = Flow { tcb, seq: IRS + 1, ack: ISS + 1 };
        let empty = self.cache.alloc(64, 64).expect("room");
        flow.receive(self, empty);
        flow
    }
}

struct Flow {
    tcb: Tcb,
    seq: SeqNumber,
    ack: SeqNumber,
}

impl Flow {
    fn receive(&mut self, worker: &mut Worker, payload: Buf) {
        let segment = Tcp {
            src_port: 1,
            dst_port: 2,
            seq: self.seq,
            ack: self.ack,
            flags: Flags::ACK,
            window: 4_096,
            header_len: 32,
            options: Options { timestamp: Some((2, 0)), ..Options::NONE },
        };
        self.seq += payload.len() as u32;
        worker.with(|ctx| self.tcb.handle_segment(ctx, black_box(&segment), payload));
    }

    /// A data segment from the client; the upstream takes it at once.
    fn upload(&mut self, worker: &mut Worker, len: usize) {
        let buf = worker.filled(len);
        self.receive(worker, buf);
        worker.with(|ctx| self.tcb.consume(ctx, len));
        black_box(worker.with(|ctx| self.tcb.poll_segment(ctx, &LIMITS)));
        black_box(self.tcb.take_events());
    }

    /// Data of the upstream goes out, and its acknowledgement comes back.
    fn download(&mut self, worker: &mut Worker, len: usize) {
        let buf = worker.filled(len);
        worker.with(|ctx| self.tcb.push(ctx, buf));
        while let Some(segment) = worker.with(|ctx| self.tcb.poll_segment(ctx, &LIMITS)) {
            self.ack += segment.payload_len as u32;
        }
        let empty = worker.cache.alloc(0, 0).expect("room");
        self.receive(worker, empty);
        black_box(worker.with(|ctx| self.tcb.poll_segment(ctx, &LIMITS)));
        black_box(self.tcb.take_events());
    }
}

fn segments(c: &mut Criterion) {
    let pool = Pool::new(PoolConfig { ceiling_bytes: 1 << 30, ..PoolConfig::default() });
    let mut worker = Worker::new(&pool);
    for flows in [1_usize, 50_000] {
        let mut all: Vec<Flow> = (0..flows).map(|_| worker.flow()).collect();
        let mut group = c.benchmark_group(format!("tcp/{flows}_flows"));
        let mut at = 0;
        let mut next = || {
            // Not in the order of memory.
            at = (at + 7_919) % flows;
            at
        };
        group.bench_function("upload_64_bytes", |b| {
            b.iter(|| {
                worker.now = worker.now.plus(MICROS);
                all[next()].upload(&mut worker, 64);
            });
        });
        group.bench_function("download_1448_bytes_and_ack", |b| {
            b.iter(|| {
                worker.now = worker.now.plus(MICROS);
                all[next()].download(&mut worker, 1_448);
            });
        });
        group.finish();
        assert!(worker.stats.predicted > worker.stats.segments_in / 10 * 9, "the fast path is taken");
        for flow in all {
            flow.tcb.release(&mut worker.cache, &mut worker.budget, &mut worker.memory);
        }
    }
    assert_eq!(pool.stats().live_bytes, 0);
}

criterion_group!(benches, segments);
criterion_main!(benches);
