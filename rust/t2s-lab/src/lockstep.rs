//! Generator, link, core and upstream in one thread and in virtual time: the same seed gives the same result to the
//! byte.
//!
//! Nothing reads a clock of the machine, and each step is as long as the one before, so what the result says of
//! packets, bytes, buffers and allocations is exact, on any machine. Times are virtual: they say in which step
//! something happened, not how fast the core is. What is lost, delayed and overtaken on the link follows from the seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use t2s_core::buf::{Pool, PoolConfig};
use t2s_core::stack::WorkerMap;
use t2s_core::time::no_clock;
use t2s_sys::heap::thread_heap;
use t2s_sys::memory::MAPPED;

use crate::control::Control;
use crate::core_config::config_of;
use crate::device_ring::{Consumer, Producer, ring};
use crate::generator::Generator;
use crate::generator::link::FLAG_MARK;
use crate::generator::placement::Placement;
use crate::generator::rng::Rng;
use crate::measure::clock::ClockFacts;
use crate::measure::sampler::{Gauge, Sampler};
use crate::result::{LockstepResult, PhaseResult};
use crate::spec::{LinkSpec, PhaseSpec};
use crate::summary::{GeneratorReport, Parts, summarize};
use crate::truth::mix;
use crate::worker::Worker;
use crate::worker::fault::Faulty;
use crate::worker::harness::Harness;

/// A step of virtual time, nanoseconds: less than what counts as a stall.
const STEP: u64 = 2_000;

/// Virtual time at the begin, nanoseconds; anything but 0, which means "never" here and there.
const BEGIN: u64 = 1_000_000_000;

/// How much later than others a packet comes that they overtake, nanoseconds.
const OVERTAKEN: u64 = 300_000;

/// Bytes of the rings.
const RING: usize = 1 << 22;

/// Virtual time after which a phase ends without having drained, nanoseconds beyond its own.
const PATIENCE: u64 = 150_000_000_000;

/// A hash of `bytes` that goes on from `before`: eight of them at a time.
pub fn digest(bytes: &[u8], before: u64) -> u64 {
    let mut hash = mix(before ^ bytes.len() as u64);
    for word in bytes.chunks(8) {
        let mut eight = [0; 8];
        eight[..word.len()].copy_from_slice(word);
        hash = mix(hash ^ u64::from_le_bytes(eight));
    }
    hash
}

/// One packet on its way, ordered by when it arrives, and among equals by when it left.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    at: u64,
    order: u64,
    due_ns: u64,
    flags: u32,
    bytes: Box<[u8]>,
}

/// One direction of the link.
struct Direction {
    spec: LinkSpec,
    rng: Rng,
    flying: BinaryHeap<Reverse<Flying>>,
    order: u64,
    /// Nothing arrives before this: a mark is behind all that left before it.
    floor: u64,
    packets: u64,
    lost: u64,
    reordered: u64,
    digest: u64,
}

impl Direction {
    fn new(spec: LinkSpec, seed: u64, stream: u64) -> Self {
        let rng = Rng::new(seed, stream);
        Self { spec, rng, flying: BinaryHeap::new(), order: 0, floor: 0, packets: 0, lost: 0, reordered: 0, digest: 0 }
    }

    /// Takes what was sent, and hands over what has arrived.
    fn carry(&mut self, now: u64, from: &mut Consumer, to: &mut Producer) {
        while let Some(record) = from.pop() {
            let mark = record.flags & FLAG_MARK != 0;
            let mut at = now + self.spec.delay_us * 1_000;
            if mark {
                at = self.flying.iter().map(|Reverse(flying)| flying.at).fold(at, u64::max);
                self.floor = at;
            } else {
                self.packets += 1;
                self.digest = digest(record.bytes, self.digest);
                if self.rng.chance(self.spec.loss) {
                    self.lost += 1;
                    continue;
                }
                if self.rng.chance(self.spec.reorder) {
                    self.reordered += 1;
                    at += OVERTAKEN;
                }
            }
            let at = at.max(self.floor);
            let bytes = record.bytes.into();
            self.order += 1;
            let order = self.order;
            self.flying.push(Reverse(Flying { at, order, due_ns: record.due_ns, flags: record.flags, bytes }));
        }
        from.release();
        while let Some(Reverse(flying)) = self.flying.peek() {
            if flying.at > now || !to.push(&flying.bytes, flying.due_ns, flying.flags) {
                break;
            }
            self.flying.pop();
        }
        to.publish();
    }
}

/// Runs a phase on the calling thread.
pub fn run_lockstep(spec: &PhaseSpec, control: &Control, gauges: &[Gauge]) -> PhaseResult {
    let heap_before = thread_heap();
    let (mut result, held) = run(spec, control, gauges);
    // Virtual time has no clock of the machine behind it.
    result.clock = ClockFacts { source: "virtual", quantum_ns: STEP, cost_ps: 0 };
    result.heap.left_bytes =
        thread_heap().zip(heap_before).zip(held).map(|((now, before), held)| now.since(before).bytes - held);
    result
}

/// The result, and the bytes that it holds itself.
fn run(spec: &PhaseSpec, control: &Control, gauges: &[Gauge]) -> (PhaseResult, Option<i64>) {
    let mut own = spec.clone();
    // What reads the machine's clocks has nothing to say here.
    (own.settings.watchdog, own.settings.sample_every) = (false, 0);
    let spec = &own;
    let pool = Pool::new(PoolConfig {
        ceiling_bytes: (spec.settings.pool_ceiling_mib as usize) << 20,
        cache: spec.settings.pool_cache,
        memory: &MAPPED,
        clock: no_clock,
    });
    let mut config = config_of(spec);
    config.clock = no_clock;
    let map = Arc::new(WorkerMap::new(&config, 1, spec.settings.flow_shards as usize));
    let mut harness = Faulty::<true>::new(spec.fault, spec.seed, Arc::default());
    let mut now = BEGIN;
    harness.set_clock(now);
    let mut worker = Worker::new(spec, config, &pool, &map, 0, Arc::default(), harness);
    let mut paused = thread_heap();
    let mut generator = Generator::new(spec, 0, &Placement::everywhere());
    let (mut sent, mut on_link) = ring(RING);
    let (mut to_core, mut device) = ring(RING);
    let (mut out, mut from_core) = ring(RING);
    let (mut to_client, mut replies) = ring(RING);
    let link = spec.link.unwrap_or_default();
    let mut up = Direction::new(link, spec.seed, 0x11);
    let mut down = Direction::new(link, spec.seed, 0x22);
    let last = BEGIN + ((spec.warmup_seconds + spec.seconds) * 1e9) as u64 + PATIENCE;
    let mut steps = 0;
    loop {
        now += STEP;
        steps += 1;
        worker.harness.set_clock(now);
        generator.iterate(now, &mut sent, &mut replies, control);
        if control.ready.load(Ordering::Relaxed) == 1 && control.epoch.load(Ordering::Relaxed) == 0 {
            control.epoch.store(now, Ordering::Relaxed);
        }
        up.carry(now, &mut on_link, &mut to_core);
        worker.exclude_heap(paused);
        let ended = worker.iterate(now, &mut device, &mut out).ended;
        paused = thread_heap();
        down.carry(now, &mut from_core, &mut to_client);
        if steps % 1_024 == 0 {
            gauges[0].packets.store(worker.packets(), Ordering::Relaxed);
        }
        if ended || now > last || control.abort.load(Ordering::Relaxed) {
            break;
        }
    }
    worker.exclude_heap(paused);
    let report = worker.finish(now, &mut out);
    let reports = [Some(Box::new(report))];
    let generators = [GeneratorReport { window: generator.window(), exchange: generator.exchange(), cpu_share: 0.0 }];
    drop(generator);
    let sampler = Sampler::new(u64::MAX, u64::MAX);
    let parts = Parts {
        spec,
        sampler: &sampler,
        workers: &reports,
        generators: &generators,
        pool: pool.stats(),
        fds: (0, 0),
        link_lost: up.lost + down.lost,
    };
    let before = thread_heap();
    let mut result = summarize(&parts, map.len() as u64);
    result.lockstep = Some(LockstepResult {
        steps,
        packets_up: up.packets,
        packets_down: down.packets,
        packets_digest: format!("{:016x}", digest(&down.digest.to_le_bytes(), up.digest)),
        link_lost_up: up.lost,
        link_lost_down: down.lost,
        link_reordered: up.reordered + down.reordered,
    });
    let held = thread_heap().zip(before).map(|(now, before)| now.since(before).bytes);
    (result, held)
}

#[cfg(test)]
mod tests;
