//! One phase from start to result: threads, windows, drain.
//!
//! A control thread makes the workers and generators (a pair each), says when the warm-up begins, samples while they
//! run, and puts the result together. Nothing of a phase outlives it: threads are joined, the pool and the flow map
//! belong to the phase.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use t2s_core::buf::{Pool, PoolConfig};
use t2s_core::stack::WorkerMap;

use crate::control::Control;
use crate::core_config::config_of;
use crate::device_ring::{Consumer, Producer, ring};
use crate::generator::link::Mark;
use crate::generator::placement::Placement;
use crate::generator::{Generator, Window};
use crate::lockstep::{self, run_lockstep};
use crate::measure::clock::{self, now_ns};
use crate::measure::sampler::{Gauge, Sampler, open_files};
use crate::measure::stall::{GeneratorStallDetector, LastStall};
use crate::replay::{CaptureError, CaptureSpec, run_capture};
use crate::result::{PhaseResult, Progress};
use crate::spec::{Driver, FaultName, Phase, PhaseSpec, SpecError, UpstreamMode};
use crate::summary::{GeneratorReport, Parts, summarize};
use crate::worker::fault::Faulty;
use crate::worker::harness::{Harness, Plain};
use crate::worker::null::NullDevice;
use crate::worker::{Report, Worker};
use t2s_sys::clock::thread_cpu_nanos;
use t2s_sys::heap::thread_heap;
use t2s_sys::memory::MAPPED;
use t2s_sys::sched;

/// Bytes of the ring towards the worker: some 6,000 small packets or 340 full ones; it stays in a second-level cache.
const DEVICE_RING: usize = 512 * 1024;

/// The same when packets are larger than an MTU.
const DEVICE_RING_OFFLOAD: usize = 4 * 1024 * 1024;

/// Bytes of the ring back; must hold several super-segments, since the worker asks for packets only while one fits.
const REPLY_RING: usize = 1024 * 1024;

/// Time between the last generator's set-up and the begin of the warm-up, nanoseconds.
const START_DELAY: u64 = 2_000_000;

/// Time between two readings of a thread's own CPU clock for others to see, nanoseconds.
const PUBLISH: u64 = 10_000_000;

/// Sleep of the control thread between two looks while nothing is measured, nanoseconds.
const POLL_INTERVAL: u64 = 10_000_000;

/// Empty polls without a yield, nanoseconds: threads that have a CPU to themselves, and threads that share one.
const SPIN_LIMIT: [u64; 2] = [200_000, 20_000];

/// Why a phase has no result.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The spec cannot run.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// `start` was called twice.
    #[error("this phase was started before; make a new lab for another run")]
    AlreadyStarted,
    /// `result` before the end.
    #[error("this phase has not ended yet; wait for it first")]
    NotDone,
    /// A thread could not be made.
    #[error("a thread of the lab did not start: {0}")]
    Thread(#[from] std::io::Error),
    /// The capture cannot be read.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A thread ended by a panic.
    #[error("the {0} thread of the lab panicked")]
    Panicked(String),
}

/// One phase of one scenario. All methods may be called from any thread.
pub struct Lab {
    shared: Arc<Shared>,
    control: Mutex<Option<JoinHandle<()>>>,
    /// When progress was asked for last, nanoseconds, and packets until then.
    last_look: Mutex<(u64, u64)>,
}

/// What a phase runs on.
enum Job {
    /// Generated load.
    Memory(Arc<PhaseSpec>),
    /// A capture.
    Capture(CaptureSpec),
}

impl Job {
    /// The key `driver` tells the two apart; generated load may leave it out.
    fn from_json(text: &str) -> Result<Self, SpecError> {
        let spec: serde_json::Value = serde_json::from_str(text)?;
        match spec.get("driver").and_then(serde_json::Value::as_str) {
            None | Some("memory" | "lockstep") => PhaseSpec::from_json(text).map(|spec| Self::Memory(Arc::new(spec))),
            Some(_) => CaptureSpec::from_json(text).map(Self::Capture),
        }
    }

    fn workers(&self) -> u32 {
        match self {
            Self::Memory(spec) => spec.workers,
            Self::Capture(_) => 1,
        }
    }

    /// Warm-up and measured time, seconds.
    fn seconds(&self) -> f64 {
        match self {
            Self::Memory(spec) => spec.warmup_seconds + spec.seconds,
            Self::Capture(spec) => spec.warmup_seconds + spec.seconds,
        }
    }
}

struct Shared {
    job: Job,
    signals: Control,
    workers: Box<[Gauge]>,
    generators: Box<[Gauge]>,
    started: AtomicBool,
    outcome: Mutex<Option<Result<String, LabError>>>,
    ended: Condvar,
}

impl Shared {
    fn outcome(&self) -> MutexGuard<'_, Option<Result<String, LabError>>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lab {
    /// Checks the spec (JSON) and prepares; nothing runs yet.
    pub fn new(spec_json: &str) -> Result<Self, LabError> {
        let job = Job::from_json(spec_json)?;
        let gauges = || (0..job.workers()).map(|_| Gauge::default()).collect();
        let shared = Shared {
            workers: gauges(),
            generators: gauges(),
            job,
            signals: Control::default(),
            started: AtomicBool::new(false),
            outcome: Mutex::new(None),
            ended: Condvar::new(),
        };
        Ok(Self { shared: Arc::new(shared), control: Mutex::new(None), last_look: Mutex::new((0, 0)) })
    }

    /// Starts the threads and returns at once.
    pub fn start(&self) -> Result<(), LabError> {
        if self.shared.started.swap(true, Ordering::AcqRel) {
            return Err(LabError::AlreadyStarted);
        }
        let shared = Arc::clone(&self.shared);
        let handle = thread::Builder::new().name("t2s-lab".to_owned()).spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&shared)))
                .unwrap_or_else(|_| Err(LabError::Panicked("control".to_owned())));
            *shared.outcome() = Some(outcome);
            shared.ended.notify_all();
        })?;
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        Ok(())
    }

    /// Where the phase is. `elapsed` is 0 while flows are set up.
    pub fn progress(&self) -> Progress {
        let seconds = self.shared.job.seconds();
        let epoch = self.shared.signals.epoch.load(Ordering::Relaxed);
        let now = now_ns();
        let elapsed = if epoch == 0 { 0.0 } else { now.saturating_sub(epoch) as f64 / 1e9 };
        let sum = |gauges: &[Gauge]| gauges.iter().map(|gauge| gauge.packets.load(Ordering::Relaxed)).sum::<u64>();
        let (offered, forwarded) = (sum(&self.shared.generators), sum(&self.shared.workers));
        let mut last = self.last_look.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, before) = std::mem::replace(&mut *last, (now, forwarded));
        let pps = if since == 0 { 0.0 } else { (forwarded - before) as f64 * 1e9 / (now - since).max(1) as f64 };
        Progress { elapsed: elapsed.min(seconds), seconds, offered, forwarded, pps }
    }

    /// Waits up to `timeout` for the end; true when it has ended. A phase that was not started never ends.
    pub fn wait(&self, timeout: Duration) -> bool {
        let guard = self.shared.outcome();
        let waited = self.shared.ended.wait_timeout_while(guard, timeout, |outcome| outcome.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_some()
    }

    /// Asks the phase to end now; it still drains, and its result covers what was measured.
    pub fn stop(&self) {
        self.shared.signals.stop.store(true, Ordering::Relaxed);
    }

    /// The result as JSON, after the end. An error of the phase is handed out once; later calls say
    /// [`LabError::NotDone`].
    pub fn result(&self) -> Result<String, LabError> {
        let mut outcome = self.shared.outcome();
        if let Some(Ok(result)) = &*outcome {
            return Ok(result.clone());
        }
        outcome.take().unwrap_or(Err(LabError::NotDone))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop();
        let handle = self.control.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle {
            // The control thread catches its own panics and stores them as the outcome.
            let _ = handle.join();
        }
    }
}

/// The pool and the flow map of a phase.
fn shared_parts(spec: &PhaseSpec) -> (Pool, Arc<WorkerMap>) {
    let settings = &spec.settings;
    let pool = Pool::new(PoolConfig {
        ceiling_bytes: (settings.pool_ceiling_mib as usize) << 20,
        cache: settings.pool_cache,
        memory: &MAPPED,
        clock: now_ns,
    });
    let map = WorkerMap::new(&config_of(spec), spec.workers as usize, settings.flow_shards as usize);
    (pool, Arc::new(map))
}

/// The whole phase, on the control thread.
fn run(shared: &Arc<Shared>) -> Result<String, LabError> {
    now_ns(); // Calibrates the clock before anything depends on it.
    clock::cost_ns();
    let mut result = match &shared.job {
        Job::Memory(spec) if spec.driver == Driver::Lockstep => run_lockstep(spec, &shared.signals, &shared.workers),
        Job::Memory(spec) => run_memory(shared, spec)?,
        Job::Capture(spec) => run_capture(spec, &shared.signals, &shared.workers)?,
    };
    if shared.signals.stop.load(Ordering::Relaxed) {
        result.invalid = Some("stopped before its end".to_owned());
    }
    if result.lockstep.is_some() {
        let text = serde_json::to_string(&result).map_err(SpecError::from)?;
        result.result_digest = Some(format!("{:016x}", lockstep::digest(text.as_bytes(), 0)));
    }
    Ok(serde_json::to_string(&result).map_err(SpecError::from)?)
}

fn run_memory(shared: &Arc<Shared>, spec: &Arc<PhaseSpec>) -> Result<PhaseResult, LabError> {
    let of_a_thread = heap_of_a_thread()?;
    let heap_of_threads = Arc::new(AtomicI64::new(0));
    let (heap_before, fds_before) = (thread_heap(), open_files());
    let (pool, map) = shared_parts(spec);
    let cpus = if spec.pin { sched::allowed_cpus()? } else { Vec::new() };
    let available = thread::available_parallelism().map_or(1, usize::from);
    let spin_limit = SPIN_LIMIT[usize::from(2 * spec.workers as usize > available)];
    let mut workers = Vec::new();
    let mut generators = Vec::new();
    let spawned = (0..spec.workers as usize).try_for_each(|index| {
        let large = crate::worker::largest_packet(&spec.components) > usize::from(spec.settings.mtu);
        let (tx, device) = ring(if large { DEVICE_RING_OFFLOAD } else { DEVICE_RING });
        let (out, rx) = ring(REPLY_RING);
        // The worker gets the last CPUs: interrupts and everything else tend to be on the first.
        let pin = |offset: usize| {
            let count = cpus.len();
            (count > 0).then(|| cpus[(2 * count - 1 - (2 * index + offset) % count) % count])
        };
        let (pool, map) = (pool.clone(), Arc::clone(&map));
        let stall = Arc::new(LastStall::default());
        let stall_detector = GeneratorStallDetector::new(Arc::clone(&stall));
        let placement = Placement::among(&map, index);
        let slot = |cpu| ThreadSlot {
            shared: Arc::clone(shared),
            spec: Arc::clone(spec),
            index,
            cpu,
            spin_limit,
            heap: Arc::clone(&heap_of_threads),
        };
        let (of_worker, of_generator) = (slot(pin(0)), slot(pin(1)));
        let name = format!("t2s-worker-{index}");
        workers.push(spawn(name, &heap_of_threads, move || work(&of_worker, &pool, &map, stall, device, out))?);
        let name = format!("t2s-load-{index}");
        let body = move || generate(&of_generator, &placement, stall_detector, tx, rx);
        generators.push(spawn(name, &heap_of_threads, body)?);
        Ok::<(), LabError>(())
    });
    if spawned.is_err() {
        shared.signals.abort.store(true, Ordering::Relaxed);
    }
    let sampler = watch(shared, spec, &workers, &generators);
    let reports: Vec<_> = workers.into_iter().map(join).collect();
    let windows: Vec<_> = generators.into_iter().map(join).collect();
    spawned?;
    let workers = reports.into_iter().collect::<Result<Vec<_>, _>>()?;
    let generators = windows.into_iter().collect::<Result<Vec<_>, _>>()?;
    // Buffers that threads had cached are back by now, and live bytes are exact.
    let parts = Parts {
        spec,
        sampler: &sampler,
        workers: &workers,
        generators: &generators,
        pool: pool.stats(),
        fds: (fds_before, open_files()),
        link_lost: 0,
    };
    let holds_locks = spec.fault.is_some_and(|fault| fault.name == FaultName::Lock);
    let threads = if holds_locks { 3 } else { 2 };
    let before = thread_heap();
    let mut result = summarize(&parts, map.len() as u64);
    let held = thread_heap().zip(before).map(|(now, before)| now.since(before).bytes);
    drop((workers, generators, sampler, cpus, pool, map));
    result.heap.left_bytes = thread_heap()
        .zip(heap_before)
        .zip(held)
        .map(|((now, before), held)| {
            let threads = heap_of_threads.load(Ordering::Acquire) - i64::from(threads * spec.workers) * of_a_thread;
            now.since(before).bytes - held + threads
        })
        .filter(|_| spec.phase != Phase::GeneratorSelftest);
    Ok(result)
}

pub(crate) type Thread<T> = (String, JoinHandle<T>);

/// Starts a thread that adds to `heap` what it has allocated and not freed.
pub(crate) fn spawn<T: Send + 'static>(
    name: String,
    heap: &Arc<AtomicI64>,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<Thread<T>, LabError> {
    let heap = Arc::clone(heap);
    // In a box of its own, the body is freed where that is counted, and all threads are of one size.
    let body: Box<dyn FnOnce() -> T + Send> = Box::new(body);
    let counted = move || {
        let before = thread_heap();
        let outcome = body();
        if let Some((now, before)) = thread_heap().zip(before) {
            heap.fetch_add(now.since(before).bytes, Ordering::AcqRel);
        }
        outcome
    };
    Ok((name.clone(), thread::Builder::new().name(name).spawn(counted)?))
}

/// What a thread frees once it no longer counts: what the standard library needs to run one. Bytes, 0 without counts.
fn heap_of_a_thread() -> Result<i64, LabError> {
    let heap = Arc::new(AtomicI64::new(0));
    let before = thread_heap();
    join(spawn("t2s-worker-0".to_owned(), &heap, || ())?)?;
    let control = thread_heap().zip(before).map_or(0, |(now, before)| now.since(before).bytes);
    Ok(control + heap.load(Ordering::Acquire))
}

fn join<T>((name, handle): Thread<T>) -> Result<T, LabError> {
    handle.join().map_err(|_| LabError::Panicked(name))
}

/// Gives the start signal and samples until all threads have ended.
fn watch<A, B>(shared: &Shared, spec: &PhaseSpec, workers: &[Thread<A>], generators: &[Thread<B>]) -> Sampler {
    let signals = &shared.signals;
    let mut sampler = Sampler::new(u64::MAX, u64::MAX);
    let mut last = now_ns();
    loop {
        let all_done = workers.iter().all(|(_, handle)| handle.is_finished())
            && generators.iter().all(|(_, handle)| handle.is_finished());
        if all_done {
            return sampler;
        }
        // A generator that ended early, or a worker that did, was not asked to: the other one would wait for ever.
        let died = |finished: bool, gauge: &Gauge| finished && gauge.flows.load(Ordering::Relaxed) != DONE;
        if workers.iter().zip(&shared.workers).any(|((_, handle), gauge)| died(handle.is_finished(), gauge))
            || generators.iter().zip(&shared.generators).any(|((_, handle), gauge)| died(handle.is_finished(), gauge))
        {
            signals.abort.store(true, Ordering::Relaxed);
        }
        if signals.epoch.load(Ordering::Relaxed) == 0 && signals.ready.load(Ordering::Acquire) == spec.workers {
            let epoch = now_ns() + START_DELAY;
            let begin = epoch + (spec.warmup_seconds * 1e9) as u64;
            sampler = Sampler::new(begin, begin + (spec.seconds * 1e9) as u64);
            signals.epoch.store(epoch, Ordering::Release);
        }
        let rest = sampler.rest(now_ns(), POLL_INTERVAL);
        thread::sleep(Duration::from_nanos(rest));
        let now = now_ns();
        let overslept = (now - last).saturating_sub(rest);
        last = now;
        sampler.look(now, overslept, &shared.workers);
    }
}

/// Value of [`Gauge::flows`] that says that a thread has ended in order.
const DONE: u64 = u64::MAX;

/// A thread's place: what it shares, which CPU it has.
struct ThreadSlot {
    shared: Arc<Shared>,
    spec: Arc<PhaseSpec>,
    index: usize,
    cpu: Option<usize>,
    spin_limit: u64,
    /// What threads leave on the heap.
    heap: Arc<AtomicI64>,
}

/// Polls without work: spins, and yields now and then so that others can run.
struct Idle {
    spin_limit: u64,
    since: u64,
}

impl Idle {
    #[inline]
    fn wait(&mut self, now: u64) {
        if self.since == 0 {
            self.since = now;
        } else if now.saturating_sub(self.since) > self.spin_limit {
            self.since = 0;
            sched::yield_now();
        }
        std::hint::spin_loop();
    }
}

impl ThreadSlot {
    fn attach(&self) -> Idle {
        if let Some(cpu) = self.cpu {
            // Without permission to pin, the run goes on unpinned: it is noisier, not wrong.
            let _ = sched::pin_to(cpu);
            // Threads that poll are the first to lose a CPU to whatever wakes up. Likewise without permission.
            let _ = sched::prefer_this_thread();
        }
        Idle { spin_limit: self.spin_limit, since: 0 }
    }

    fn aborted(&self) -> bool {
        self.shared.signals.abort.load(Ordering::Relaxed)
    }
}

/// The body of a worker's thread; `None` for the null device.
fn work(
    slot: &ThreadSlot,
    pool: &Pool,
    map: &Arc<WorkerMap>,
    generator: Arc<LastStall>,
    device: Consumer,
    out: Producer,
) -> Option<Box<Report>> {
    let spec = &slot.spec;
    let gauge = &slot.shared.workers[slot.index];
    let report = if spec.phase == Phase::GeneratorSelftest {
        null_device(slot, gauge, device, out);
        None
    } else {
        let config = config_of(spec);
        Some(Box::new(if spec.fault.is_some() {
            let fault = Faulty::<false>::new(spec.fault, spec.seed, Arc::clone(&slot.heap));
            drive(slot, gauge, Worker::new(spec, config, pool, map, slot.index, generator, fault), device, out)
        } else {
            drive(slot, gauge, Worker::new(spec, config, pool, map, slot.index, generator, Plain), device, out)
        }))
    };
    gauge.flows.store(DONE, Ordering::Relaxed);
    report
}

fn drive<H: Harness>(
    slot: &ThreadSlot,
    gauge: &Gauge,
    mut worker: Worker<H>,
    mut device: Consumer,
    mut out: Producer,
) -> Report {
    let mut idle = slot.attach();
    let mut publish_at = 0;
    loop {
        let now = now_ns();
        let iteration = worker.iterate(now, &mut device, &mut out);
        if iteration.worked {
            idle.since = 0;
        } else {
            idle.wait(now);
        }
        if now >= publish_at {
            publish_at = now + PUBLISH;
            gauge.cpu.store(thread_cpu_nanos(), Ordering::Relaxed);
            gauge.idle.store(worker.idle_ns(), Ordering::Relaxed);
            gauge.packets.store(worker.packets(), Ordering::Relaxed);
        }
        if iteration.ended || (slot.aborted() && !iteration.worked) {
            gauge.packets.store(worker.packets(), Ordering::Relaxed);
            return worker.finish(now, &mut out);
        }
    }
}

fn null_device(slot: &ThreadSlot, gauge: &Gauge, mut device: Consumer, mut out: Producer) {
    let mut idle = slot.attach();
    let echo = slot.spec.components.iter().any(|component| component.upstream().mode == UpstreamMode::Echo);
    let mut null = NullDevice::new(echo);
    loop {
        let (worked, mark) = null.iterate(&mut device, &mut out);
        let now = now_ns();
        if worked {
            idle.since = 0;
        } else {
            idle.wait(now);
        }
        gauge.packets.store(null.packets, Ordering::Relaxed);
        if mark == Some(Mark::End) || slot.aborted() {
            return;
        }
    }
}

/// The body of a generator's thread.
fn generate(
    slot: &ThreadSlot,
    placement: &Placement,
    mut stall_detector: GeneratorStallDetector,
    mut tx: Producer,
    mut rx: Consumer,
) -> GeneratorReport {
    let mut idle = slot.attach();
    let gauge = &slot.shared.generators[slot.index];
    let mut generator = Generator::new(&slot.spec, slot.index as u32, placement);
    let mut cpu_at = [None; 2];
    let mut publish_at = 0;
    while !generator.is_done() && !slot.aborted() {
        let now = now_ns();
        stall_detector.look(now, || generator.next_due());
        if generator.iterate(now, &mut tx, &mut rx, &slot.shared.signals) {
            idle.since = 0;
        } else {
            idle.wait(now);
        }
        if now >= publish_at {
            publish_at = now + PUBLISH;
            gauge.packets.store(generator.offered(), Ordering::Relaxed);
            let Window { span, .. } = generator.window();
            for (reading, reached) in cpu_at.iter_mut().zip([span.0 > 0, span.1 > 0]) {
                if reached && reading.is_none() {
                    *reading = Some((now, thread_cpu_nanos()));
                }
            }
        }
    }
    gauge.packets.store(generator.offered(), Ordering::Relaxed);
    let end = (now_ns(), thread_cpu_nanos());
    let (begin, end) = (cpu_at[0].unwrap_or(end), cpu_at[1].unwrap_or(end));
    let cpu_share = (end.1 - begin.1) as f64 / (end.0 - begin.0).max(1) as f64;
    gauge.flows.store(DONE, Ordering::Relaxed);
    GeneratorReport { window: generator.window(), exchange: generator.exchange(), cpu_share }
}

#[cfg(test)]
mod tests;
