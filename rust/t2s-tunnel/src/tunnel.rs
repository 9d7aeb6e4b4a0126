//! A tunnel: its device, its workers, and the handle that starts, watches and stops them.
//!
//! It promises: several tunnels live in one process; after [`Tunnel::stop`] (or the handle's end) every client and
//! every upstream has been told (FIN or RST), and no thread or descriptor is left. It refuses to touch addresses and
//! routes: that is its caller's.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use t2s_core::buf::{Pool, PoolConfig};
use t2s_core::config::{Offload, Secrets};
use t2s_core::stack::{Stack, WorkerMap};
use t2s_core::time::Instant;

use crate::config::{ConfigError, SocksPipelining, TunnelConfig};
use crate::dial::endpoint::SharedEndpoint;
use crate::dial::{Credentials, ProxyEndpoint};
use crate::dns_settings::DnsSettings;
use crate::log::{Level, Logger, Sink};
use crate::privilege::{self, PrivilegeError, RunAs};
use crate::proxy_probe;
use crate::rates::Rates;
use crate::resolver::Resolver;
use crate::tun::{Device, OpenError};
use crate::worker::{Command, FOREIGN, FlowRow, Peer, Shared, TunnelStats, Worker, WorkerParts, WorkerStats};
use t2s_sys::clock::monotonic_nanos;
use t2s_sys::event::Waker;
use t2s_sys::memory::MAPPED;

/// Pool beyond the payload budget, bytes a worker: packets in flight, scratch buffers, magazines.
const POOL_SLACK: usize = 64 * 1024 * 1024;
/// Time a worker has to answer a question; it answers within an iteration unless the machine is in trouble.
const ANSWER: Duration = Duration::from_secs(2);

/// Why a tunnel did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The device.
    #[error(transparent)]
    Device(#[from] OpenError),
    /// The proxy's name.
    #[error("cannot resolve the proxy {host}: {error}")]
    Resolve {
        /// The name.
        host: String,
        /// The resolver's answer.
        error: io::Error,
    },
    /// The user that the process was to become.
    #[error(transparent)]
    Privilege(#[from] PrivilegeError),
    /// Descriptors, threads, randomness.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// Why a tunnel ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The device failed or was removed.
    #[error("worker {worker}: the device failed: {error}")]
    Device {
        /// The worker that saw it.
        worker: usize,
        /// What it saw.
        error: io::Error,
    },
    /// A defect.
    #[error("worker {0} panicked; this is a defect of t2s")]
    Panic(usize),
}

/// How a worker has ended.
type Ending = (io::Result<()>, WorkerStats);

#[derive(Debug)]
struct Handle {
    commands: Sender<Command>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<Ending>>,
    /// Its counters at its end.
    last: Option<WorkerStats>,
}

/// Workers that still run, and the bell that rings when one ends.
#[derive(Debug)]
struct Running {
    count: Mutex<usize>,
    bell: Condvar,
}

/// Counts a worker out, however it ends.
struct Leave(Arc<Running>);

impl Drop for Leave {
    fn drop(&mut self) {
        *lock(&self.0.count) -= 1;
        self.0.bell.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running tunnel.
#[derive(Debug)]
pub struct Tunnel {
    name: String,
    mtu: u16,
    offload: Offload,
    shared: Arc<Shared>,
    pool: Pool,
    handles: Mutex<Vec<Handle>>,
    proxy_probe: Mutex<Option<JoinHandle<()>>>,
    running: Arc<Running>,
    failure: Mutex<Option<RunError>>,
    rates: Mutex<Rates>,
    started: u64,
}

impl Tunnel {
    /// Opens the device, resolves the proxy's name, and starts the workers. Lines of the log go to `sink`.
    pub fn start(config: TunnelConfig, sink: Sink) -> Result<Self, StartError> {
        config.check()?;
        let url = config.proxy_url().map_err(ConfigError::from)?;
        let kernel = config.kernel()?;
        let plan = DnsSettings::new(&config)?;
        let run_as = config.user.as_deref().map(RunAs::find).transpose()?;
        let mut endpoint =
            ProxyEndpoint::resolve(&url).map_err(|error| StartError::Resolve { host: url.host.to_string(), error })?;
        endpoint.pipelined = config.socks_pipelining == SocksPipelining::On;
        let logger = Logger::new(config.log_level, sink);
        let device = Device::open(&config.device())?;
        if let Some(run_as) = run_as {
            // Before any thread starts: capabilities are a thread's own, and passed on to the threads that it starts.
            privilege::drop_privileges(&run_as, config.fwmark)?;
        }
        let workers = device.queues.len();
        let stack_config = config.stack(device.mtu, device.offload, Secrets::random(), kernel);
        let pool = Pool::new(PoolConfig {
            ceiling_bytes: config.memory_budget_mib as usize * 1024 * 1024 + workers * POOL_SLACK,
            memory: &MAPPED,
            clock: monotonic_nanos,
            ..PoolConfig::default()
        });
        let map = Arc::new(WorkerMap::new(&stack_config, workers, 0));
        let shared = Arc::new(Shared {
            endpoint: SharedEndpoint::new(endpoint),
            logger,
            unreachable: AtomicU64::new(0),
            proxy_probe: Waker::new()?,
            probe_pending: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            resolving: AtomicBool::new(false),
            udp_refusal_told: AtomicBool::new(false),
            resolver: Resolver::new(plan, Secrets::random().flow_hash),
            config,
        });
        shared.logger.say(
            Level::Info,
            format_args!(
                "{}: mtu {}, {workers} queue(s), offload: tso {}, uso {}; upstream {url}",
                device.name, device.mtu, device.offload.tso, device.offload.uso
            ),
        );
        if shared.resolver.has_names() {
            let own: Vec<String> = shared.resolver.own().iter().map(ToString::to_string).collect();
            shared
                .logger
                .say(Level::Info, format_args!("dns: fake addresses, from the name server at {}", own.join(", ")));
        }
        let (mut peers, mut inboxes) = (Vec::with_capacity(workers), Vec::with_capacity(workers));
        for _ in 0..workers {
            let (packets, inbox) = mpsc::sync_channel(FOREIGN);
            peers.push(Peer { packets, waker: Arc::new(Waker::new()?) });
            inboxes.push(inbox);
        }
        let this = Self {
            name: device.name,
            mtu: device.mtu,
            offload: device.offload,
            pool,
            handles: Mutex::new(Vec::with_capacity(workers)),
            proxy_probe: Mutex::new(None),
            running: Arc::new(Running { count: Mutex::new(0), bell: Condvar::new() }),
            failure: Mutex::new(None),
            rates: Mutex::default(),
            started: monotonic_nanos(),
            shared,
        };
        // From here on `this` stops, when it goes, what has started.
        for (index, (queue, packets)) in device.queues.into_iter().zip(inboxes).enumerate() {
            let now = Instant::from_nanos(monotonic_nanos());
            let stack = Stack::for_worker(stack_config.clone(), &this.pool, &map, index, now);
            let (commands, mailbox) = mpsc::channel();
            let waker = Arc::clone(&peers[index].waker);
            let worker = Worker::new(WorkerParts {
                index,
                stack,
                queue,
                waker: Arc::clone(&waker),
                commands: mailbox,
                packets,
                peers: peers.clone(),
                shared: Arc::clone(&this.shared),
            })?;
            *lock(&this.running.count) += 1;
            let leave = Leave(Arc::clone(&this.running));
            let confined = Arc::clone(&this.shared);
            let thread = std::thread::Builder::new().name(format!("t2s-worker-{index}")).spawn(move || {
                let _leave = leave;
                // What is wrong with it is the same in each thread, and told by the probe's.
                let _ = privilege::drop_capabilities(confined.config.fwmark);
                worker.run()
            })?;
            lock(&this.handles).push(Handle { commands, waker, thread: Some(thread), last: None });
        }
        let shared = Arc::clone(&this.shared);
        let probe = std::thread::Builder::new().name("t2s-probe".into()).spawn(move || {
            // A mark that cannot be set fails each connection by itself, so that here it is only told.
            if let Err(error) = privilege::drop_capabilities(shared.config.fwmark) {
                shared.logger.say(Level::Warn, format_args!("{error}"));
            }
            if let Err(error) = proxy_probe::run(&shared, &url) {
                shared
                    .logger
                    .say(Level::Warn, format_args!("the proxy's endpoint is no longer kept up to date: {error}"));
            }
        })?;
        *lock(&this.proxy_probe) = Some(probe);
        Ok(this)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's MTU, bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The offload that the device has granted.
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Asks every worker, and waits for the answers. Workers that have ended answer with what they left behind.
    fn ask<T>(&self, question: impl Fn(Sender<T>) -> Command, left: impl Fn(&WorkerStats) -> Option<T>) -> Vec<T> {
        let mut answers = Vec::new();
        let mut pending = Vec::new();
        for handle in lock(&self.handles).iter() {
            if let Some(last) = &handle.last {
                answers.extend(left(last));
                continue;
            }
            let (answer, inbox) = mpsc::channel();
            if handle.commands.send(question(answer)).is_ok() {
                handle.waker.wake();
                pending.push(inbox);
            }
        }
        for inbox in pending {
            answers.extend(inbox.recv_timeout(ANSWER).ok());
        }
        answers
    }

    /// Counters, summed over workers.
    pub fn stats(&self) -> TunnelStats {
        let workers = self.ask(Command::Stats, |last| Some(last.clone()));
        let uptime = monotonic_nanos().saturating_sub(self.started) as f64 / 1e9;
        let (fake_names, fake_evicted) = self.shared.resolver.counts();
        TunnelStats { fake_names, fake_evicted, ..TunnelStats::sum(&workers, &self.pool.stats(), uptime) }
    }

    /// A row for each TCP flow and each UDP session.
    ///
    /// Its rates are means since the question before (the first time: since the flow's start); questions that follow
    /// each other within half a second hear the same.
    pub fn flows(&self) -> Vec<FlowRow> {
        let mut rows: Vec<FlowRow> = self.ask(Command::Flows, |_| None).into_iter().flatten().collect();
        lock(&self.rates).fill(&mut rows);
        rows
    }

    /// Changes the proxy's credentials (for connections from now on) and the log's threshold.
    pub fn reload(&self, credentials: Option<Credentials>, level: Option<Level>) {
        if let Some(level) = level {
            self.shared.logger.set_level(level);
        }
        if credentials.is_some() {
            self.shared.endpoint.update(|endpoint| {
                endpoint.credentials = credentials;
                endpoint.pipelined = self.shared.config.socks_pipelining == SocksPipelining::On;
            });
            self.shared.probe_pending.store(true, Ordering::Release);
            self.shared.proxy_probe.wake();
        }
    }

    /// Stops: new connections are refused at once, flows that are left after `shutdown_timeout` are reset. Returns when every
    /// thread has ended. Stopping twice is harmless.
    pub fn stop(&self, shutdown_timeout: Duration) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.proxy_probe.wake();
        let shutdown_timeout = u64::try_from(shutdown_timeout.as_nanos()).unwrap_or(u64::MAX);
        for handle in lock(&self.handles).iter() {
            if handle.last.is_none() && handle.commands.send(Command::Stop { shutdown_timeout }).is_ok() {
                handle.waker.wake();
            }
        }
        self.wait(None);
        self.reap();
        if let Some(proxy_probe) = lock(&self.proxy_probe).take()
            // The system's resolver cannot be interrupted; then the thread ends by itself a little later.
            && !self.shared.resolving.load(Ordering::Acquire)
        {
            let _ = proxy_probe.join();
        }
    }

    /// Waits until all workers have ended, at most `timeout`; answers whether they have.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let count = lock(&self.running.count);
        if let Some(timeout) = timeout {
            let waited = self.running.bell.wait_timeout_while(count, timeout, |count| *count > 0);
            return *waited.unwrap_or_else(PoisonError::into_inner).0 == 0;
        }
        drop(self.running.bell.wait_while(count, |count| *count > 0).unwrap_or_else(PoisonError::into_inner));
        true
    }

    /// Whether a worker still runs.
    pub fn is_running(&self) -> bool {
        *lock(&self.running.count) > 0
    }

    /// Why the tunnel ended by itself, if it did; answered once.
    pub fn take_failure(&self) -> Option<RunError> {
        if !self.is_running() {
            self.reap();
        }
        lock(&self.failure).take()
    }

    /// Collects workers that have ended.
    fn reap(&self) {
        for (index, handle) in lock(&self.handles).iter_mut().enumerate() {
            let Some(thread) = handle.thread.take() else { continue };
            let error = if let Ok((outcome, last)) = thread.join() {
                handle.last = Some(last);
                outcome.err().map(|error| RunError::Device { worker: index, error })
            } else {
                handle.last = Some(WorkerStats::default());
                Some(RunError::Panic(index))
            };
            if let Some(error) = error {
                self.shared.logger.say(Level::Error, format_args!("{error}"));
                lock(&self.failure).get_or_insert(error);
            }
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn bad_settings_open_nothing() {
        let quiet: Sink = Arc::new(|_, _| {});
        let config = TunnelConfig { proxy: "gopher://x".into(), ..TunnelConfig::default() };
        assert!(matches!(Tunnel::start(config, Arc::clone(&quiet)), Err(StartError::Config(_))));
        let config = TunnelConfig { proxy: "socks5://name.invalid".into(), ..TunnelConfig::default() };
        assert!(matches!(Tunnel::start(config, quiet), Err(StartError::Resolve { .. })));
    }
}
