//! The open-loop generator of one worker: packets on their due times, replies answered, everything closed at the end.
//!
//! Without threads and clock of its own: `iterate` is called with the time, so a test can drive it in lockstep. In the
//! load phase packets are due by one schedule, and what is due next is built ahead. A packet that cannot leave because
//! the device ring is full stays due (it is late, and its latency says so); one that the peer's window forbids is not
//! intended where back-pressure is the point, and late otherwise. In the capacity phase components take turns by weight
//! as fast as ring and windows allow.

pub mod address;
pub mod churn;
pub mod client;
pub mod clients;
pub mod component;
pub mod datagrams;
pub mod link;
pub mod malformed;
pub mod packets;
pub mod placement;
pub mod requests;
pub mod rng;
pub mod schedule;
pub mod slot;
pub mod stream;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use crate::control::Control;
use crate::device_ring::{Consumer, Producer};
use crate::generator::client::Event;
use crate::generator::clients::shuffled_ports;
use crate::generator::component::Component;
use crate::generator::link::{Counters, FLAG_MARK, FLAG_PARTIAL_CHECKSUM, Link, Mark};
use crate::generator::packets::{Pattern, checksums_hold, parse_reply};
use crate::generator::placement::Placement;
use crate::generator::rng::Rng;
use crate::generator::schedule::Schedule;
use crate::generator::slot::Slot;
use crate::measure::recorder::Recorder;
use crate::spec::{Phase, PhaseSpec};
use crate::truth::SequenceCounts;

/// Packets that one iteration sends at most, so that replies are read in between.
const SEND_BUDGET: u32 = 64;

/// Replies that one iteration reads at most.
const READ_BUDGET: u32 = 256;

/// The same in the load phase, where packets have due times: what is due must not wait for a burst of replies.
const READ_BUDGET_OPEN: u32 = 4;

/// Flows of each component whose timers one iteration looks at (it takes about a microsecond, so 50,000 flows pass in
/// 50 ms), and those of one component in turn while there is time in the load phase.
const SWEEP: usize = 16;
const SWEEP_OPEN: usize = 4;

/// In the load phase packets are built this long before they are due and leave on their due times, so that latency does
/// not hold the time of building them; nanoseconds, more than reading replies and building a packet or two take.
const AHEAD: u64 = 4_000;

/// In the load phase a client answers this long after a reply was read, if no packet is due soon: its own work is not
/// charged to the core, like that of building a packet; nanoseconds.
const TURNAROUND: u64 = 1_000;

/// Packets that are built ahead at most before replies are read again.
const BUILT: usize = 8;

/// Set-up that takes longer than this goes on into the warm-up, nanoseconds.
const SET_UP_LIMIT: u64 = 10_000_000_000;

/// Time for flows to close by themselves at the end, nanoseconds; what is left then is reset.
const DRAIN_LIMIT: u64 = 3_000_000_000;

/// The same behind a link that loses packets, where a flow may need several timeouts; the time is virtual.
const DRAIN_LIMIT_LINK: u64 = 60_000_000_000;

/// Time for resets to arrive after that, nanoseconds.
const GIVE_UP_LIMIT: u64 = 500_000_000;

/// Time between two passes over all flows in the drain, nanoseconds.
const DRAIN_PASS: u64 = 1_000_000;

/// One reply in this many has all its checksums verified.
const VERIFY_EVERY: u64 = 64;

/// In the capacity phase a component that cannot send holds up the others for this long, so that the mix keeps its
/// shares; nanoseconds.
const BLOCK_TIMEOUT: u64 = 1_000_000;

/// Where a generator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    SetUp { since: u64 },
    Ready,
    Run,
    Drain { since: u64, next_pass: u64 },
    End,
    Done,
}

struct Entry {
    component: Component,
    /// Blocked packets are not intended.
    limited: bool,
    /// Takes by weight in the capacity phase: the smallest goes next.
    pass: f64,
    stride: f64,
    /// Since when it has been blocked in the capacity phase.
    blocked_since: u64,
}

/// What the measured window of one generator counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Counts of the window.
    pub counters: Counters,
    /// Packets that were to be sent.
    pub intended: u64,
    /// Latest that a packet left after its due time, nanoseconds.
    pub behind_max: u64,
    /// Payload sent before the window.
    pub payload_before: u64,
    /// Begin and end, nanoseconds of the lab's clock.
    pub span: (u64, u64),
    /// All counts from the first packet to the end of the drain.
    pub total: Counters,
}

/// What a generator's numbered datagrams came to, over the whole phase.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// Datagrams sent that must arrive.
    pub sent: u64,
    /// Replies to them.
    pub replies: SequenceCounts,
    /// From the due time of what was sent in the window until its reply was read, for each component of the phase.
    pub latency: Vec<Option<Recorder>>,
    /// How the ways of replies differ from those before them.
    pub jitter: Recorder,
    /// Packets that were for no client.
    pub strangers: u64,
}

/// The generator of one worker.
pub struct Generator {
    entries: Vec<Entry>,
    /// When they are due, by index of `entries`.
    schedule: Schedule,
    /// Index into `entries` of each component, `usize::MAX` for one without flows here.
    by_component: Vec<usize>,
    pattern: Pattern,
    counters: Counters,
    stage: Stage,
    worker: u8,
    open_loop: bool,
    warmup_ns: u64,
    total_ns: u64,
    drain_limit: u64,
    epoch: u64,
    /// Due times of what is built and not published yet; nothing else may be written to the ring until then.
    built: VecDeque<u64>,
    /// Counts at the begin of the window, once it has begun.
    begun: Option<Counters>,
    window: Window,
    /// The component whose timers were looked at last.
    swept: usize,
    /// Room for flows that changed during a flush.
    ended: Vec<(usize, Event)>,
    /// Replies that belonged to nobody, which is what floods cause.
    pub strangers: u64,
}

impl Generator {
    /// The generator of `worker`; `placement` says which endpoints are its own.
    pub fn new(spec: &PhaseSpec, worker: u32, placement: &Placement) -> Self {
        let pattern = Pattern::new();
        let ports = shuffled_ports(&mut Rng::new(spec.seed, u64::from(worker) << 32 | 0xffff));
        let total_weight: f64 = spec.components.iter().map(crate::spec::Component::weight).sum();
        let mut by_component = vec![usize::MAX; spec.components.len()];
        let mut entries: Vec<Entry> = Vec::new();
        let mut weights = Vec::new();
        for (index, part) in spec.components.iter().enumerate() {
            let mut component = Component::new(spec, index, worker, &pattern, &ports, placement);
            if component.is_empty() {
                continue;
            }
            by_component[index] = entries.len();
            weights.push(part.weight());
            entries.push(Entry {
                component,
                limited: part.upstream().limits_the_sender(),
                pass: 0.0,
                stride: 1.0 / part.weight(),
                blocked_since: 0,
            });
        }
        // A component without flows here is another generator's.
        let rate = spec.rate_pps / f64::from(spec.workers) * weights.iter().sum::<f64>() / total_weight;
        let nanos = |seconds: f64| (seconds * 1e9) as u64;
        Self {
            entries,
            schedule: Schedule::new(rate, &weights),
            by_component,
            pattern,
            counters: Counters::default(),
            stage: Stage::SetUp { since: 0 },
            worker: worker as u8,
            open_loop: spec.phase == Phase::Load,
            warmup_ns: nanos(spec.warmup_seconds),
            total_ns: nanos(spec.warmup_seconds + spec.seconds),
            drain_limit: if spec.link.is_some() { DRAIN_LIMIT_LINK } else { DRAIN_LIMIT },
            epoch: 0,
            built: VecDeque::with_capacity(BUILT),
            begun: None,
            window: Window::default(),
            swept: 0,
            ended: Vec::with_capacity(1024),
            strangers: 0,
        }
    }

    /// Whether everything is closed and the end is marked.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Packets sent so far.
    pub fn offered(&self) -> u64 {
        self.counters.packets
    }

    /// What the window counted; whole after [`Generator::is_done`].
    pub fn window(&self) -> Window {
        Window { total: self.counters, ..self.window }
    }

    /// What the datagrams of all components came to; whole after [`Generator::is_done`].
    pub fn exchange(&self) -> Exchange {
        let mut exchange = Exchange { strangers: self.strangers, ..Exchange::default() };
        for (sent, replies) in self.entries.iter().filter_map(|entry| entry.component.exchange()) {
            exchange.sent += sent;
            exchange.replies.merge(&replies.tracker.counts);
            exchange.jitter.merge(&replies.jitter);
        }
        // By component of the phase, so that all generators have them in the same places.
        let latency = |&at: &usize| self.entries.get(at).and_then(|entry| entry.component.latency()).cloned();
        exchange.latency = self.by_component.iter().map(latency).collect();
        exchange
    }

    /// When the next scheduled packet is due, nanoseconds of the lab's clock; `None` when none is scheduled.
    pub fn next_due(&self) -> Option<u64> {
        if self.stage != Stage::Run || !self.open_loop {
            return None;
        }
        Some(self.epoch + self.schedule.next()?.0)
    }

    /// Does what can be done now; true when there was something.
    pub fn iterate(&mut self, now: u64, ring: &mut Producer, replies: &mut Consumer, control: &Control) -> bool {
        let before = self.counters.packets;
        if self.send_built(now, ring) {
            return true;
        }
        // One reply after the other while there is time. What is due soon is built by now, or its sender waits for a
        // reply itself.
        let leisure = self.next_due().is_some_and(|due| due > now + TURNAROUND);
        let (due, most) = match (self.open_loop && self.stage == Stage::Run, leisure) {
            (true, true) => (now + TURNAROUND, 1),
            (true, false) => (now, READ_BUDGET_OPEN),
            (false, _) => (now, READ_BUDGET),
        };
        let received = self.read(now, due, most, ring, replies);
        self.answer(now, due, ring);
        if due == now {
            for index in 0..self.entries.len() {
                self.sweep(index, SWEEP, now, due, ring);
            }
        } else if self.counters.packets == before {
            // Timers are this client's own work too: a little of it at a time, so that what comes next leaves in time.
            self.swept = (self.swept + 1) % self.entries.len().max(1);
            self.sweep(self.swept, SWEEP_OPEN, now, due, ring);
        }
        if due > now && self.counters.packets != before {
            ring.cut();
            self.built.push_back(due);
            return true;
        }
        match self.stage {
            Stage::SetUp { since } => self.set_up(now, since, ring, control),
            Stage::Ready => self.wait_for_epoch(now, control),
            Stage::Run => self.run(now, ring, control),
            Stage::Drain { since, next_pass } => self.drain(now, since, next_pass, ring),
            Stage::End => {
                if Mark::End.send(ring) {
                    self.stage = Stage::Done;
                }
            }
            Stage::Done => {}
        }
        ring.publish();
        received > 0 || self.counters.packets != before
    }

    /// Reads at most so many replies; what they call for is due at `due`.
    fn read(&mut self, now: u64, due: u64, most: u32, ring: &mut Producer, replies: &mut Consumer) -> u32 {
        let mut read = 0;
        while read < most {
            let Some(record) = replies.pop() else { break };
            read += 1;
            self.counters.received += 1;
            let verify = self.counters.received.is_multiple_of(VERIFY_EVERY);
            if verify && record.flags & FLAG_PARTIAL_CHECKSUM == 0 && !checksums_hold(record.bytes) {
                self.counters.corrupt += 1;
            }
            let reply = parse_reply(record.bytes, self.worker);
            let at = reply.as_ref().and_then(|reply| self.by_component.get(usize::from(reply.component)));
            let (Some(reply), Some(entry)) = (reply, at.and_then(|&at| self.entries.get_mut(at))) else {
                self.strangers += 1;
                continue;
            };
            let (counters, pattern) = (&mut self.counters, &self.pattern);
            let mut link = Link { ring: &mut *ring, now_ns: now, due_ns: due, pattern, counters };
            entry.component.handle(&reply, &mut link);
        }
        replies.release();
        read
    }

    fn answer(&mut self, now: u64, due: u64, ring: &mut Producer) {
        for entry in &mut self.entries {
            let (counters, pattern) = (&mut self.counters, &self.pattern);
            let mut link = Link { ring: &mut *ring, now_ns: now, due_ns: due, pattern, counters };
            entry.component.flush(&mut link, &mut self.ended);
        }
    }

    /// Looks at some timers of a component.
    fn sweep(&mut self, index: usize, most: usize, now: u64, due: u64, ring: &mut Producer) {
        let (counters, pattern) = (&mut self.counters, &self.pattern);
        let mut link = Link { ring, now_ns: now, due_ns: due, pattern, counters };
        if let Some(entry) = self.entries.get_mut(index) {
            entry.component.sweep(&mut link, most, &mut self.ended);
        }
    }

    fn set_up(&mut self, now: u64, since: u64, ring: &mut Producer, control: &Control) {
        if since == 0 {
            self.stage = Stage::SetUp { since: now };
        }
        let mut done = true;
        for entry in &mut self.entries {
            let (counters, pattern) = (&mut self.counters, &self.pattern);
            let mut link = Link { ring: &mut *ring, now_ns: now, due_ns: now, pattern, counters };
            done &= entry.component.set_up(&mut link);
        }
        let late = since > 0 && now.saturating_sub(since) > SET_UP_LIMIT;
        if done || late || control.stop.load(Ordering::Relaxed) {
            self.stage = Stage::Ready;
            control.ready.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn wait_for_epoch(&mut self, now: u64, control: &Control) {
        let epoch = control.epoch.load(Ordering::Acquire);
        if epoch != 0 && now >= epoch {
            self.epoch = epoch;
            self.stage = Stage::Run;
        }
    }

    fn run(&mut self, now: u64, ring: &mut Producer, control: &Control) {
        let elapsed = now.saturating_sub(self.epoch);
        if self.begun.is_none() && elapsed >= self.warmup_ns {
            if !Mark::Begin.send(ring) {
                return;
            }
            self.begun = Some(self.counters);
            self.entries.iter_mut().for_each(|entry| entry.component.measure(Some(now), None));
            self.window.span.0 = now;
            self.window.payload_before = self.counters.payload;
            self.window.intended = 0;
            self.window.behind_max = 0;
        }
        if elapsed >= self.total_ns || control.stop.load(Ordering::Relaxed) {
            if Mark::Drain.send(ring) {
                self.end_window(now, elapsed);
            }
            return;
        }
        if self.open_loop { self.send_due(now, elapsed, ring) } else { self.send_all(now, ring) }
    }

    fn end_window(&mut self, now: u64, elapsed: u64) {
        self.stage = Stage::Drain { since: now, next_pass: now };
        self.entries.iter_mut().for_each(|entry| entry.component.measure(None, Some(now)));
        let Some(begun) = self.begun else { return };
        self.window.span.1 = now;
        self.window.counters = self.counters.since(&begun);
        self.window.intended += self.window.counters.reactions;
        if self.open_loop {
            self.window.intended += self.schedule.overdue(elapsed.min(self.total_ns));
        } else {
            self.window.intended = self.window.counters.packets;
        }
    }

    fn send_due(&mut self, now: u64, elapsed: u64, ring: &mut Producer) {
        let mut budget = SEND_BUDGET;
        for index in 0..self.entries.len() {
            while budget > 0
                && let Some(due) = self.schedule.owed(index)
            {
                let Slot::Sent(packets) = self.send(index, now, due, ring) else { break };
                self.schedule.pay(index, packets.into());
                budget = budget.saturating_sub(packets);
            }
        }
        while budget > 0
            && let Some((due, index)) = self.schedule.next()
            && due <= elapsed
        {
            // In order: what is owed goes first.
            let blocked = self.schedule.owed(index).is_some();
            match if blocked { Slot::Blocked } else { self.send(index, now, due, ring) } {
                Slot::Sent(packets) => {
                    self.schedule.advance(index, packets.into());
                    budget = budget.saturating_sub(packets);
                }
                Slot::Blocked if self.entries[index].limited => {
                    self.schedule.advance(index, 1);
                    self.counters.window_blocked += 1;
                    budget -= 1;
                }
                Slot::Blocked => self.schedule.owe(index),
                Slot::Full => return,
            }
        }
    }

    /// Has a component send the packet that was due `due` nanoseconds after the epoch.
    fn send(&mut self, index: usize, now: u64, due: u64, ring: &mut Producer) -> Slot {
        let due_ns = self.epoch + due;
        let (counters, pattern) = (&mut self.counters, &self.pattern);
        let mut link = Link { ring, now_ns: now, due_ns, pattern, counters };
        let slot = self.entries[index].component.send(&mut link);
        if let Slot::Sent(packets) = slot {
            self.window.intended += u64::from(packets);
            self.window.behind_max = self.window.behind_max.max(now.saturating_sub(due_ns));
        }
        slot
    }

    /// Sends what was built ahead and is due, and builds what is due soon; true while something waits for its time.
    fn send_built(&mut self, now: u64, ring: &mut Producer) -> bool {
        let waited = !self.built.is_empty();
        while let Some(&due) = self.built.front() {
            if due > now {
                return true;
            }
            ring.publish_portion();
            self.built.pop_front();
            self.window.behind_max = self.window.behind_max.max(now - due);
        }
        // Not twice in a row: replies are read in between.
        if !waited && self.stage == Stage::Run && self.open_loop {
            while self.built.len() < BUILT && self.build_next(now, ring) {}
        }
        !self.built.is_empty()
    }

    /// Builds the packet that is due next, if that is soon.
    fn build_next(&mut self, now: u64, ring: &mut Producer) -> bool {
        let Some((after, index)) = self.schedule.next() else { return false };
        let due = self.epoch + after;
        let end = if self.begun.is_some() { self.total_ns } else { self.warmup_ns };
        if due <= now || due > now + AHEAD || after >= end || self.schedule.owed(index).is_some() {
            return false;
        }
        // What is blocked may be free when it is due.
        let Slot::Sent(packets) = self.send(index, now, after, ring) else { return false };
        ring.cut();
        self.schedule.advance(index, packets.into());
        self.built.push_back(due);
        true
    }

    fn send_all(&mut self, now: u64, ring: &mut Producer) {
        let mut budget = SEND_BUDGET;
        while budget > 0 {
            let Some(entry) = self.entries.iter_mut().min_by(|a, b| a.pass.total_cmp(&b.pass)) else { return };
            let (counters, pattern) = (&mut self.counters, &self.pattern);
            let mut link = Link { ring: &mut *ring, now_ns: now, due_ns: now, pattern, counters };
            match entry.component.send(&mut link) {
                Slot::Sent(packets) => {
                    entry.pass += entry.stride * f64::from(packets);
                    entry.blocked_since = 0;
                    budget = budget.saturating_sub(packets);
                }
                Slot::Blocked => {
                    if entry.blocked_since == 0 {
                        entry.blocked_since = now;
                    }
                    if !entry.limited && now - entry.blocked_since < BLOCK_TIMEOUT {
                        return;
                    }
                    entry.pass += entry.stride;
                    self.counters.window_blocked += 1;
                    budget -= 1;
                }
                Slot::Full => return,
            }
        }
    }

    fn drain(&mut self, now: u64, since: u64, next_pass: u64, ring: &mut Producer) {
        if now < next_pass {
            return;
        }
        let elapsed = now.saturating_sub(since);
        let limit = self.drain_limit;
        let mut closed = true;
        for entry in &mut self.entries {
            let (counters, pattern) = (&mut self.counters, &self.pattern);
            let mut link = Link { ring: &mut *ring, now_ns: now, due_ns: now, pattern, counters };
            closed &= entry.component.drain(elapsed > limit, &mut link);
        }
        self.stage = if closed || elapsed > limit + GIVE_UP_LIMIT {
            Stage::End
        } else {
            Stage::Drain { since, next_pass: now + DRAIN_PASS }
        };
    }
}

impl Counters {
    /// The difference to an earlier copy.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            packets: self.packets - earlier.packets,
            reactions: self.reactions - earlier.reactions,
            payload: self.payload.saturating_sub(earlier.payload),
            window_blocked: self.window_blocked - earlier.window_blocked,
            retransmits: self.retransmits - earlier.retransmits,
            resets_received: self.resets_received - earlier.resets_received,
            received: self.received - earlier.received,
            corrupt: self.corrupt - earlier.corrupt,
            bytes: self.bytes - earlier.bytes,
            opened: self.opened - earlier.opened,
            closed: self.closed - earlier.closed,
            refused: self.refused - earlier.refused,
            aborted: self.aborted - earlier.aborted,
            reset: self.reset - earlier.reset,
            window_probes: self.window_probes - earlier.window_probes,
            repeated: self.repeated - earlier.repeated,
            gaps: self.gaps - earlier.gaps,
            payload_received: self.payload_received - earlier.payload_received,
            up: self.up,
            down: self.down,
            damage: self.damage,
        }
    }
}

const _: () = assert!(FLAG_MARK == 1, "marks are told from packets by the lowest bit");

#[cfg(test)]
mod tests;
