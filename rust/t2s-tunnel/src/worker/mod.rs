//! One worker: a thread, a TUN queue, a stack, and the sockets of its flows.
//!
//! An iteration of the loop: wait for readiness; read packets into the stack; do what the stack requests (dial, write
//! to upstreams, close); read from upstreams; run timers; write packets. Each step has a budget, so that an iteration
//! ends soon and every flow has its share of it; what is left over makes the next wait a mere look.
//!
//! On the packet path it takes no lock that another thread could hold for long and allocates from its pool alone. All
//! descriptors are edge-triggered: what is ready is remembered here until a call answers `EAGAIN` or comes back short,
//! so that a flow costs one `epoll_ctl` in its life.

mod busy_poll;
mod datagrams;
mod device;
mod dns;
mod dns_over_tcp;
mod histogram;
mod preconnect;
mod reply_address;
mod stats;
mod streams;
mod token;
mod trim;
mod watchdog;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError};

use t2s_core::buf::Buf;
use t2s_core::stack::{Packet, Request, Stack};
use t2s_core::stats::DropReason;
use t2s_core::time::{Instant, MICROS, MILLIS};

use crate::config::TunnelConfig;
use crate::dial::ProxyEndpoint;
use crate::dial::endpoint::SharedEndpoint;
use crate::log::{Level, Logger};
use crate::resolver::Resolver;
use crate::tun::Queue;
use t2s_sys::clock::monotonic_nanos;
use t2s_sys::epoll::{Epoll, Events, Interest};
use t2s_sys::event::Waker;
use t2s_sys::sched;

use busy_poll::BusyPoll;
use datagrams::Datagrams;
use dns_over_tcp::DnsOverTcp;
pub use histogram::Histogram;
use preconnect::PreconnectPool;
pub use stats::{FlowRow, TunnelStats, WorkerStats};
use streams::Streams;
use token::{Kind, Token};
use trim::{Trim, TrimTimer};
use watchdog::LoopWatchdog;

/// Events of one wait.
const EVENTS: usize = 512;
/// Timers run in one iteration: some 1 µs with what they send, no more than a few packets take.
const TIMERS: usize = 4;
/// Room in front of payload: virtio, IPv6 and TCP headers with all options fit.
const HEADROOM: usize = 128;
/// A whole super-segment with its headers, bytes: the largest packet that a device hands over.
const FRAME_MAX: usize = 67_584 - HEADROOM;
/// Wait before the pool is asked again after it was exhausted.
const STARVED: u64 = 2 * MILLIS;
/// Time without work after which memory is given back.
const TRIM_EVERY: u64 = 1_000 * MILLIS;
/// Time after which it is given back although some work goes on: three times within the 10 s that a burst may leave
/// traces.
const TRIM_LATEST: u64 = 3_000 * MILLIS;
/// Packets that may wait for another worker.
pub(crate) const FOREIGN: usize = 1_024;

/// What other threads ask of a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// A copy of its counters.
    Stats(Sender<WorkerStats>),
    /// A row for each of its TCP flows and UDP sessions.
    Flows(Sender<Vec<FlowRow>>),
    /// End: at once when `shutdown_timeout` is 0, else when the flows are done or the time is up (nanoseconds).
    Stop {
        /// Nanoseconds that flows have left to end by themselves.
        shutdown_timeout: u64,
    },
}

/// A worker as its fellows see it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) packets: SyncSender<Packet>,
    pub(crate) waker: Arc<Waker>,
}

/// What all workers of a tunnel share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: TunnelConfig,
    pub(crate) endpoint: SharedEndpoint,
    pub(crate) logger: Logger,
    /// How often the proxy could not be reached.
    pub(crate) unreachable: AtomicU64,
    /// Wakes the thread that keeps the endpoint up to date.
    pub(crate) proxy_probe: Waker,
    /// The proxy's capabilities are to be looked at again.
    pub(crate) probe_pending: AtomicBool,
    /// The tunnel stops.
    pub(crate) stopping: AtomicBool,
    /// That thread is in the system's resolver, which cannot be interrupted.
    pub(crate) resolving: AtomicBool,
    /// It was said that the proxy carries no UDP.
    pub(crate) udp_refusal_told: AtomicBool,
    /// Answers queries, and knows what fake addresses stand for.
    pub(crate) resolver: Resolver,
}

/// What a worker is made of.
pub(crate) struct WorkerParts {
    pub(crate) index: usize,
    pub(crate) stack: Stack,
    pub(crate) queue: Queue,
    pub(crate) waker: Arc<Waker>,
    pub(crate) commands: Receiver<Command>,
    pub(crate) packets: Receiver<Packet>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) shared: Arc<Shared>,
}

/// One worker of a tunnel.
pub(crate) struct Worker {
    index: usize,
    stack: Stack,
    queue: Queue,
    epoll: Epoll,
    waker: Arc<Waker>,
    commands: Receiver<Command>,
    packets: Receiver<Packet>,
    peers: Vec<Peer>,
    shared: Arc<Shared>,
    /// The endpoint as this worker last saw it, and its version.
    endpoint: Arc<ProxyEndpoint>,
    endpoint_version: u64,
    streams: Streams,
    preconnects: PreconnectPool,
    datagrams: Datagrams,
    dns_over_tcp: DnsOverTcp,
    batch: Vec<Packet>,
    /// The buffer that the next read goes into.
    scratch: Option<Buf>,
    /// The device has packets.
    device_ready: bool,
    /// Something was left over: the next wait is a mere look.
    unfinished: bool,
    /// The pool was empty: rest a little.
    starved: bool,
    /// Writes of super-segments that the device has refused.
    offload_disabled: bool,
    /// When to stop although flows are left.
    stop_at: Option<Instant>,
    stats: WorkerStats,
    watchdog: LoopWatchdog,
    trim_timer: TrimTimer,
    busy_poll: BusyPoll,
    now: Instant,
}

fn clock() -> Instant {
    Instant::from_nanos(monotonic_nanos())
}

impl Worker {
    /// A worker that is ready to run.
    pub(crate) fn new(parts: WorkerParts) -> io::Result<Self> {
        let WorkerParts { index, stack, queue, waker, commands, packets, peers, shared } = parts;
        let epoll = Epoll::new()?;
        epoll.add(&queue, Interest::EDGE_IN, Token::new(Kind::Device, 0, 0).bits())?;
        epoll.add(&*waker, Interest::EDGE_IN, Token::new(Kind::Waker, 0, 0).bits())?;
        let endpoint = shared.endpoint.get();
        let limit = u64::from(shared.config.loop_stall_ms) * MILLIS;
        // Whoever polls needs a CPU for it that the ends of the flows do not want.
        let spare = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > shared.config.queues.into());
        let busy_poll = if spare { u64::from(shared.config.busy_poll_us) * MICROS } else { 0 };
        let preconnects = PreconnectPool::new(shared.config.preconnect);
        Ok(Self {
            index,
            stack,
            queue,
            epoll,
            waker,
            commands,
            packets,
            peers,
            shared,
            endpoint,
            endpoint_version: 0,
            streams: Streams::default(),
            preconnects,
            datagrams: Datagrams::default(),
            dns_over_tcp: DnsOverTcp::default(),
            batch: Vec::with_capacity(device::PACKETS),
            scratch: None,
            device_ready: true,
            unfinished: true,
            starved: false,
            offload_disabled: false,
            stop_at: None,
            stats: WorkerStats::default(),
            watchdog: LoopWatchdog::new(limit),
            trim_timer: TrimTimer::default(),
            busy_poll: BusyPoll::new(busy_poll),
            now: clock(),
        })
    }

    /// Runs until told to stop, or until the device is gone.
    pub(crate) fn run(mut self) -> (io::Result<()>, WorkerStats) {
        let mut events = Events::with_capacity(EVENTS);
        // The first look at the device takes a buffer, and needs no event.
        self.trim_timer.worked(self.now.nanos());
        let outcome = loop {
            if let Err(error) = self.iterate(&mut events) {
                break Err(error);
            }
            if self.stop_at.is_some_and(|at| at <= self.now || self.stack.stats().flows == 0) {
                break Ok(());
            }
        };
        self.finish();
        (outcome, self.snapshot())
    }

    fn iterate(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = self.timeout();
        if timeout == Some(0) {
            self.epoll.wait(events, timeout)?;
        } else {
            self.wait(events, timeout)?;
        }
        self.now = clock();
        // A question from another thread alone is no work that leaves memory behind.
        let worked = events.iter().any(|event| Token::from_bits(event.token).kind() != Some(Kind::Waker));
        self.watchdog.start(self.now.nanos());
        if worked {
            self.trim_timer.worked(self.now.nanos());
        }
        // Here, so that nobody who changes the endpoint must wake the workers: what comes next dials by the new one.
        self.shared.endpoint.refresh(&mut self.endpoint_version, &mut self.endpoint);
        self.unfinished = false;
        self.starved = false;
        for event in events.iter() {
            let token = Token::from_bits(event.token);
            match token.kind() {
                Some(Kind::Device) => self.device_ready = true,
                Some(Kind::Waker) => self.drain_inbox(),
                Some(Kind::Stream) => self.stream_event(token, event),
                Some(Kind::Control) => self.control_event(token, event),
                Some(Kind::Relay) => self.relay_event(token, event),
                Some(Kind::DnsOverTcp) => self.lookup_event(token, event),
                Some(Kind::Preconnect) => self.preconnect_event(token, event),
                None => {}
            }
        }
        self.watchdog.phase("device");
        if self.device_ready {
            self.read_device()?;
        }
        self.watchdog.phase("requests");
        self.handle_requests();
        self.watchdog.phase("upstreams");
        self.receive_streams();
        self.receive_datagrams();
        self.watchdog.phase("timers");
        self.now = clock();
        if self.stack.next_timeout().is_some_and(|at| at <= self.now) {
            self.stack.handle_some_timeouts(self.now, TIMERS);
        }
        self.lookup_timeouts();
        self.handle_requests();
        self.watchdog.phase("transmit");
        self.transmit()?;
        self.handle_requests();
        self.maintain_preconnects();
        self.stack.prepare();
        if let Some(alarm) = self.watchdog.end(monotonic_nanos()) {
            self.stats.loop_stalls += 1;
            self.log(Level::Warn, format_args!("event loop of worker {} took long: {alarm}", self.index));
        }
        Ok(())
    }

    /// Waits for an event, at first by looking again and again where that has paid off lately.
    fn wait(&mut self, events: &mut Events, timeout: Option<u64>) -> io::Result<()> {
        self.watchdog.wait();
        let began = clock();
        let poll = self.busy_poll.poll().min(timeout.unwrap_or(u64::MAX));
        if poll > 0 {
            loop {
                self.epoll.wait(events, Some(0))?;
                if !events.is_empty() || clock().since(began) >= poll {
                    break;
                }
                sched::yield_now();
            }
        }
        if poll == 0 || events.is_empty() {
            self.epoll.wait(events, timeout)?;
        }
        self.busy_poll.learn(clock().since(began), !events.is_empty());
        Ok(())
    }

    /// How long the next wait may last, nanoseconds.
    fn timeout(&mut self) -> Option<u64> {
        if self.device_ready || self.unfinished {
            return Some(0);
        }
        if self.starved || self.streams.has_ready() || self.datagrams.has_ready() {
            return Some(if self.starved { STARVED } else { 0 });
        }
        let now = clock();
        let mut next = self.stack.next_timeout();
        let mut sooner = |at: Option<Instant>| next = [next, at].into_iter().flatten().min();
        sooner(self.dns_over_tcp.next_timeout());
        sooner(self.preconnects.next_timeout());
        sooner(self.stop_at);
        // Something was cached since the last rest: come back, when it is quiet, to give it back.
        let trim = self.trim_timer.poll(now.nanos(), TRIM_EVERY, TRIM_LATEST);
        match trim {
            Trim::Now { last: true } | Trim::Never => {}
            // The next one comes by itself: nothing else may ever wake this worker.
            Trim::Now { last: false } => sooner(Some(now.plus(TRIM_EVERY))),
            Trim::At(at) => sooner(Some(Instant::from_nanos(at))),
        }
        if let Trim::Now { last } = trim {
            self.trim();
            if last {
                t2s_sys::memory::trim_heap();
            }
        }
        next.map(|at| at.since(now))
    }

    fn trim(&mut self) {
        if let Some(buf) = self.scratch.take() {
            self.stack.free(buf);
        }
        for buf in self.datagrams.drain_rooms() {
            self.stack.free(buf);
        }
        self.streams.trim();
        self.stack.trim();
        self.stack.pool().give_back();
    }

    /// A large buffer to read into, or nothing while the pool is empty.
    fn scratch(&mut self) -> Option<Buf> {
        let buf = self.scratch.take().or_else(|| self.stack.alloc(FRAME_MAX, HEADROOM));
        if buf.is_none() {
            self.starved = true;
        }
        buf
    }

    /// Keeps a buffer for the next read.
    fn keep(&mut self, mut buf: Buf) {
        if self.scratch.is_none() && buf.capacity() >= FRAME_MAX {
            buf.reset(HEADROOM);
            self.scratch = Some(buf);
        } else {
            self.stack.free(buf);
        }
    }

    /// Gives packets of other workers to their owners.
    fn forward(&mut self) {
        let mut woken = 0_u64;
        while let Some((owner, packet)) = self.stack.poll_foreign() {
            let Some(peer) = self.peers.get(owner) else { continue };
            match peer.packets.try_send(packet) {
                Ok(()) => woken |= 1 << (owner % 64),
                Err(TrySendError::Full(packet) | TrySendError::Disconnected(packet)) => {
                    self.stats.drops.add(DropReason::InboxFull);
                    self.stack.free(packet.buf);
                }
            }
        }
        if woken != 0 {
            for (owner, peer) in self.peers.iter().enumerate() {
                if woken & 1 << (owner % 64) != 0 {
                    peer.waker.wake();
                }
            }
        }
    }

    /// Reads what other threads have sent.
    fn drain_inbox(&mut self) {
        self.waker.clear();
        for _ in 0..FOREIGN {
            let Ok(packet) = self.packets.try_recv() else { break };
            self.batch.push(packet);
        }
        if !self.batch.is_empty() {
            self.trim_timer.worked(self.now.nanos());
            let mut batch = std::mem::take(&mut self.batch);
            self.stack.handle_batch(self.now, &mut batch);
            self.batch = batch;
        }
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stats(answer) => {
                    let _ = answer.send(self.snapshot());
                }
                Command::Flows(answer) => {
                    let _ = answer.send(self.flow_rows());
                }
                Command::Stop { shutdown_timeout } => self.stop_at = Some(self.now.plus(shutdown_timeout)),
            }
        }
    }

    /// Does what the stack requests.
    fn handle_requests(&mut self) {
        while let Some(request) = self.stack.poll_request(self.now) {
            match request {
                Request::Connect { flow, client: _, target } => self.open_stream(flow, target),
                Request::Readable(flow) => self.send_stream(flow),
                Request::Writable(flow) => self.unpark_stream(flow),
                Request::Finish(flow) => self.finish_stream(flow),
                Request::Closed(flow, reason) => self.close_stream(flow, reason),
                Request::UdpOpen { session, client } => self.open_session(session, client),
                Request::Datagrams(session) => self.send_datagrams(session),
                Request::UdpClosed(session) => self.close_session(session),
            }
        }
    }

    /// The end: a reset to every client and every upstream, then all descriptors close.
    fn finish(&mut self) {
        self.now = clock();
        self.stack.shutdown(self.now);
        for _ in 0..64 {
            self.unfinished = false;
            self.handle_requests();
            if self.transmit().is_err() || !self.unfinished {
                break;
            }
        }
        // A device that takes nothing any more must not keep the resets, or the buffers they refer to.
        while self.stack.poll_transmit(self.now).is_some() {}
        self.handle_requests();
        for mut packet in self.batch.drain(..).chain(self.packets.try_iter()) {
            packet.buf.truncate(0);
            self.stack.free(packet.buf);
        }
        self.trim();
    }

    fn log(&self, level: Level, line: std::fmt::Arguments<'_>) {
        self.shared.logger.say(level, line);
    }

    /// Tells the probe thread that the proxy could not be reached.
    fn report_unreachable(&self) {
        self.shared.unreachable.fetch_add(1, Ordering::Relaxed);
        self.shared.proxy_probe.wake();
    }
}
