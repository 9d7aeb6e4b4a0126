//! Short TCP connections: connect, a few segments, close or reset, and again.

use std::collections::VecDeque;

use crate::generator::client::{Event, State};
use crate::generator::clients::Clients;
use crate::generator::link::Link;
use crate::generator::rng::Rng;
use crate::generator::slot::Slot;
use crate::spec::TcpChurn;

/// The connections of a `tcp_churn` component.
pub struct Churn {
    spec: TcpChurn,
    clients: Clients,
    /// Connections that can send now, the one that has waited longest first.
    ready: VecDeque<u32>,
    /// Whether a connection stands in `ready`; no connection stands there twice.
    queued: Vec<bool>,
    draining: bool,
    rng: Rng,
}

/// What a connection did with its turn.
enum Step {
    /// Sent, and can send more.
    Again,
    /// Sent, and waits for the core.
    Waits,
    /// Cannot send now.
    Blocked,
    /// The ring is full.
    Full,
}

impl Churn {
    /// A component of its own share of connections.
    pub fn new(spec: TcpChurn, clients: Clients, rng: Rng) -> Self {
        let count = clients.flows.len();
        let mut ready = VecDeque::with_capacity(count);
        ready.extend(0..count as u32);
        Self { spec, clients, ready, queued: vec![true; count], draining: false, rng }
    }

    /// The connections.
    pub fn clients(&mut self) -> &mut Clients {
        &mut self.clients
    }

    /// Takes note of a change: an opened connection may send, an ended one may be opened again.
    pub fn note(&mut self, at: usize, event: Event) {
        if event == Event::None || self.draining {
            return;
        }
        if event == Event::Opened {
            self.clients.flows[at].todo = self.spec.segments as u16;
        }
        if !self.queued[at] {
            self.queued[at] = true;
            self.ready.push_back(at as u32);
        }
    }

    /// Sends the packet that is due: the next step of the connection that has waited longest.
    pub fn send(&mut self, link: &mut Link<'_>) -> Slot {
        /// Connections looked at for one packet before the component counts as blocked.
        const TRIES: usize = 8;
        for _ in 0..self.ready.len().min(TRIES) {
            let Some(at) = self.ready.pop_front() else { break };
            match self.step(at as usize, link) {
                Step::Full => {
                    self.ready.push_front(at);
                    return Slot::Full;
                }
                Step::Again => {
                    self.ready.push_back(at);
                    return Slot::Sent(1);
                }
                Step::Waits => {
                    self.queued[at as usize] = false;
                    return Slot::Sent(1);
                }
                Step::Blocked => self.ready.push_back(at),
            }
        }
        Slot::Blocked
    }

    fn step(&mut self, at: usize, link: &mut Link<'_>) -> Step {
        let Clients { shape, flows, .. } = &mut self.clients;
        let flow = &mut flows[at];
        match flow.state() {
            State::Closed => {
                if self.clients.open(at, link) {
                    Step::Waits
                } else {
                    Step::Full
                }
            }
            State::SynSent => Step::Blocked,
            State::Open if flow.todo > 0 => {
                if !flow.has_window(shape.segment) {
                    flow.note_blocked(link);
                    return Step::Blocked;
                }
                if !flow.send(shape, link, shape.segment) {
                    return Step::Full;
                }
                flow.todo -= 1;
                Step::Again
            }
            State::Open if self.rng.chance(self.spec.reset_ratio) => {
                // What was not acknowledged is withdrawn: the core must throw it away (RFC 9293, section 3.10.7.4).
                let withdrawn = u64::from(flow.unacknowledged());
                if self.clients.reset(at, link) {
                    link.counters.payload = link.counters.payload.saturating_sub(withdrawn);
                    Step::Again
                } else {
                    Step::Full
                }
            }
            State::Open => {
                if flow.finish(shape, link) {
                    Step::Waits
                } else {
                    Step::Full
                }
            }
        }
    }

    /// Ends all connections; true when none is left.
    pub fn drain(&mut self, give_up: bool, link: &mut Link<'_>) -> bool {
        self.draining = true;
        let mut left = 0;
        for at in 0..self.clients.flows.len() {
            left += usize::from(!self.clients.drain(at, give_up, link));
        }
        left == 0
    }
}
