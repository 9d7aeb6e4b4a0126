//! The connections of one TCP component: flows, the ports that lead to them, owed acknowledgements, timers.

use std::sync::Arc;

use crate::generator::address::{FlowAddresses, MAX_SLOTS};
use crate::generator::client::{Event, Flow, Shape, State};
use crate::generator::link::Link;
use crate::generator::packets::{Reply, Upper};
use crate::generator::placement::Placement;
use crate::generator::rng::Rng;

/// Lowest client port (RFC 4814, section 4.2: 1024 to 65535, pseudorandom).
const FIRST_PORT: u16 = 1024;

/// Smallest segment payload with which a component uses timestamps, bytes.
const TIMESTAMPS_FROM: u32 = 64;

/// All client ports in a pseudorandom order (RFC 4814), shared by everything that draws ports.
pub fn shuffled_ports(rng: &mut Rng) -> Arc<[u16]> {
    let mut ports: Vec<u16> = (FIRST_PORT..=u16::MAX).collect();
    rng.shuffle(&mut ports);
    ports.into()
}

/// Draws endpoints of one family: every port of a slot in shuffled order, then the next slot, round and round.
#[derive(Clone)]
pub struct PortCursor {
    ports: Arc<[u16]>,
    next: usize,
    slots: usize,
}

impl PortCursor {
    /// A cursor over this many slots, 1 to [`MAX_SLOTS`].
    pub fn new(ports: Arc<[u16]>, slots: usize) -> Self {
        Self { ports, next: 0, slots: slots.clamp(1, MAX_SLOTS) }
    }

    /// The next endpoint, used or not.
    #[inline]
    pub fn draw(&mut self) -> (u8, u16) {
        let at = self.next;
        self.next = if at + 1 == self.ports.len() * self.slots { 0 } else { at + 1 };
        ((at / self.ports.len()) as u8, self.ports[at % self.ports.len()])
    }
}

/// The connections of one TCP component.
pub struct Clients {
    /// What they share.
    pub shape: Shape,
    /// The connections; an index is an identity.
    pub flows: Vec<Flow>,
    /// Flow of each port, a table for each slot and family (`2 * slot + v6`); [`NOBODY`] for none.
    lookup: Vec<Option<Box<[u32]>>>,
    cursors: [PortCursor; 2],
    placement: Placement,
    owed: Vec<u32>,
    sweep: usize,
    rng: Rng,
}

const NOBODY: u32 = u32::MAX;

/// Ports tried before a draw is given up; with one worker in 64 owning a port, 2^-100 is the chance to need more.
const DRAWS: u32 = 4_096;

impl Clients {
    /// `count` connections, `v6_ratio` of them over IPv6, every second one with timestamps if segments are large enough
    /// for 12 bytes of option not to be most of a packet.
    pub fn new(
        shape: Shape,
        count: usize,
        v6_ratio: f64,
        spare_slots: usize,
        ports: &Arc<[u16]>,
        placement: Placement,
        mut rng: Rng,
    ) -> Self {
        let timestamps = shape.segment >= TIMESTAMPS_FROM;
        let flow = |at: usize, rng: &mut Rng| Flow::new(rng.chance(v6_ratio), timestamps && at.is_multiple_of(2));
        let flows: Vec<Flow> = (0..count).map(|at| flow(at, &mut rng)).collect();
        // Half of the ports may belong to other workers; spare slots keep ports from being used again too soon.
        let slots = count / (ports.len() / 2) + spare_slots;
        Self {
            shape,
            owed: Vec::with_capacity(count),
            flows,
            lookup: (0..2 * slots.clamp(1, MAX_SLOTS)).map(|_| None).collect(),
            cursors: [PortCursor::new(Arc::clone(ports), slots), PortCursor::new(Arc::clone(ports), slots)],
            placement,
            sweep: 0,
            rng,
        }
    }

    /// Opens a flow that is closed; false while the ring is full or no port is free.
    pub fn open(&mut self, at: usize, link: &mut Link<'_>) -> bool {
        let v6 = self.flows[at].v6();
        let before = self.cursors[usize::from(v6)].next;
        let Some((slot, port)) = self.free_endpoint(v6) else { return false };
        let iss = self.rng.next_u32();
        if !self.flows[at].open(&self.shape, link, slot, port, iss) {
            self.cursors[usize::from(v6)].next = before;
            return false;
        }
        *self.entry(v6, slot, port) = at as u32;
        true
    }

    fn free_endpoint(&mut self, v6: bool) -> Option<(u8, u16)> {
        for _ in 0..DRAWS {
            let (slot, client_port) = self.cursors[usize::from(v6)].draw();
            let Shape { worker, component, target_port, .. } = self.shape;
            let ends = FlowAddresses { v6, worker, component, slot, client_port, target_port };
            if *self.entry(v6, slot, client_port) == NOBODY && self.placement.owns_tcp(ends) {
                return Some((slot, client_port));
            }
        }
        None
    }

    fn entry(&mut self, v6: bool, slot: u8, port: u16) -> &mut u32 {
        let table = &mut self.lookup[2 * usize::from(slot) + usize::from(v6)];
        &mut table.get_or_insert_with(|| vec![NOBODY; 1 << 16].into_boxed_slice())[usize::from(port)]
    }

    /// The flow that a reply is for.
    #[inline]
    fn find(&self, reply: &Reply<'_>) -> Option<usize> {
        let table = self.lookup.get(2 * usize::from(reply.slot) + usize::from(reply.v6))?.as_ref()?;
        let at = table[usize::from(reply.client_port)];
        (at != NOBODY).then_some(at as usize)
    }

    /// A reply from the core: which flow changed, and how.
    #[inline]
    pub fn handle(&mut self, reply: &Reply<'_>, link: &mut Link<'_>) -> Option<(usize, Event)> {
        let Some(at) = self.find(reply) else {
            self.refuse_stranger(reply, link);
            return None;
        };
        let flow = &mut self.flows[at];
        let event = match &reply.upper {
            Upper::Tcp(segment, payload) => {
                let (event, owes) = flow.handle(&self.shape, link, segment, payload);
                if owes {
                    self.owed.push(at as u32);
                }
                event
            }
            Upper::Unreachable(_) => flow.handle_unreachable(),
            Upper::Udp(_) => {
                link.counters.corrupt += 1;
                Event::None
            }
        };
        self.settle(at, event, link);
        Some((at, event))
    }

    /// A segment to a port without a connection, for example a FIN that crossed our RST: answered with RST.
    fn refuse_stranger(&self, reply: &Reply<'_>, link: &mut Link<'_>) {
        let Upper::Tcp(segment, payload) = &reply.upper else { return };
        let mut stranger = Flow::new(reply.v6, false);
        stranger.place(reply.slot, reply.client_port);
        stranger.handle(&self.shape, link, segment, payload);
    }

    /// Counts an event and gives the port back if it ended the flow.
    fn settle(&mut self, at: usize, event: Event, link: &mut Link<'_>) {
        match event {
            Event::None => return,
            Event::Opened => {
                link.counters.opened += 1;
                return;
            }
            Event::Refused => link.counters.refused += 1,
            Event::Aborted | Event::Closed => {
                link.counters.closed += 1;
                link.counters.reset += u64::from(event == Event::Aborted && !self.shape.resets);
                self.flows[at].account(&self.shape, link);
            }
        }
        self.release(at);
    }

    fn release(&mut self, at: usize) {
        let (slot, port) = self.flows[at].endpoint();
        *self.entry(self.flows[at].v6(), slot, port) = NOBODY;
    }

    /// Resets a flow; false while the ring is full.
    pub fn reset(&mut self, at: usize, link: &mut Link<'_>) -> bool {
        let sent = self.flows[at].reset(&self.shape, link);
        if sent {
            self.settle(at, Event::Closed, link);
        }
        sent
    }

    /// Sends the acknowledgements that are owed, as far as the ring has room. `changed` is called for each flow that
    /// ended.
    pub fn flush(&mut self, link: &mut Link<'_>, changed: &mut impl FnMut(usize, Event)) {
        while let Some(&at) = self.owed.last() {
            let Some(event) = self.flows[at as usize].acknowledge(&self.shape, link) else { break };
            self.owed.pop();
            if event != Event::None {
                self.settle(at as usize, event, link);
                changed(at as usize, event);
            }
        }
    }

    /// Looks at the timers of the next `most` flows. `changed` is called for each flow that ended.
    pub fn sweep(&mut self, link: &mut Link<'_>, most: usize, changed: &mut impl FnMut(usize, Event)) {
        for _ in 0..most.min(self.flows.len()) {
            self.sweep = if self.sweep + 1 >= self.flows.len() { 0 } else { self.sweep + 1 };
            let at = self.sweep;
            let event = self.flows[at].check_timer(&self.shape, link);
            if event != Event::None {
                self.settle(at, event, link);
                changed(at, event);
            }
        }
    }

    /// Moves flow `at` towards its end in the drain: held segments leave, everything is acknowledged, then FIN. True
    /// when it is closed.
    pub fn drain(&mut self, at: usize, give_up: bool, link: &mut Link<'_>) -> bool {
        let flow = &mut self.flows[at];
        match flow.state() {
            State::Closed => return true,
            State::SynSent if give_up => {
                // Nobody answers; a client that goes away says nothing.
                self.release(at);
                self.flows[at] = Flow::new(self.flows[at].v6(), false);
                return true;
            }
            State::SynSent => return false,
            State::Open => {}
        }
        if give_up {
            return self.reset(at, link);
        }
        if flow.held().is_some() {
            flow.send_held(&self.shape, link);
        } else if !flow.has_finished() && flow.has_window(1) {
            flow.finish(&self.shape, link);
        }
        false
    }
}
