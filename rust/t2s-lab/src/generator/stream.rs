//! Long TCP flows whose sender reorders, repeats, overlaps and fragments on purpose.

use crate::generator::client::{Event, State};
use crate::generator::clients::Clients;
use crate::generator::link::Link;
use crate::generator::rng::Rng;
use crate::generator::slot::Slot;
use crate::spec::TcpStream;

/// Flows looked at for one packet before the component counts as blocked.
const TRIES: usize = 64;

/// Connections in the opening at once, while the flows are set up: half of what a SYN backlog holds by default.
const OPENING: usize = 512;

/// Segments that overtake a held one: 1 to 3, 2 on average.
const MAX_OVERTAKERS: u32 = 3;

/// The flows of a `tcp_stream` component.
pub struct Stream {
    spec: TcpStream,
    clients: Clients,
    /// Chance that a segment is held back, so that `reorder` of all segments arrive ahead of an earlier one.
    hold: f64,
    cursor: usize,
    /// Flows whose first connect was answered, by establishment or refusal.
    attempted: usize,
    /// Connects without an answer.
    opening: usize,
    fragment_id: u32,
    rng: Rng,
    scratch: Vec<u8>,
}

impl Stream {
    /// A component of its own share of flows.
    pub fn new(spec: TcpStream, clients: Clients, rng: Rng) -> Self {
        // A held segment makes 2 early ones on average: of `q` holds a segment, 2q / (1 + 2q) arrive early.
        let reorder = spec.reorder.min(0.6);
        let hold = reorder / (2.0 * (1.0 - reorder));
        Self { spec, clients, hold, cursor: 0, attempted: 0, opening: 0, fragment_id: 0, rng, scratch: Vec::new() }
    }

    /// The connections.
    pub fn clients(&mut self) -> &mut Clients {
        &mut self.clients
    }

    /// Opens flows; true when each was answered once.
    pub fn set_up(&mut self, link: &mut Link<'_>) -> bool {
        let all = self.clients.flows.len();
        // Other components may still be at it when this one is done: no flow is opened twice.
        while self.attempted < all && self.cursor < all && self.opening < OPENING {
            if !self.clients.open(self.cursor, link) {
                break;
            }
            self.cursor += 1;
            self.opening += 1;
        }
        let done = self.attempted >= all;
        if done {
            self.cursor = 0;
        }
        done
    }

    /// Takes note of an answered connect.
    pub fn note(&mut self, event: Event) {
        if matches!(event, Event::Opened | Event::Refused | Event::Aborted) {
            self.attempted += 1;
            self.opening = self.opening.saturating_sub(1);
        }
    }

    /// Sends the packet that is due: the next flow's next segment, or what disorder asks for.
    pub fn send(&mut self, link: &mut Link<'_>) -> Slot {
        for _ in 0..TRIES.min(self.clients.flows.len()) {
            let at = self.cursor;
            let slot = match self.clients.flows[at].state() {
                State::SynSent => Slot::Blocked,
                State::Closed if self.clients.open(at, link) => Slot::Sent(1),
                State::Closed => Slot::Full,
                State::Open => self.send_on(at, link),
            };
            if slot != Slot::Full {
                self.cursor = if at + 1 >= self.clients.flows.len() { 0 } else { at + 1 };
            }
            if slot != Slot::Blocked {
                return slot;
            }
        }
        Slot::Blocked
    }

    fn send_on(&mut self, at: usize, link: &mut Link<'_>) -> Slot {
        let Clients { shape, flows, .. } = &mut self.clients;
        let (flow, len) = (&mut flows[at], shape.segment);
        if flow.held() == Some(0) {
            return Slot::one(flow.send_held(shape, link));
        }
        if !flow.has_window(2 * len) {
            if flow.held().is_some() {
                return Slot::one(flow.send_held(shape, link));
            }
            if !flow.has_window(len) {
                flow.note_blocked(link);
                return Slot::Blocked;
            }
        }
        let has_more = flow.sent() >= len;
        if has_more && self.rng.chance(self.spec.duplicate) {
            return Slot::one(flow.send_duplicate(shape, link, len));
        }
        if has_more && len > 1 && flow.held().is_none() && self.rng.chance(self.spec.overlap) {
            return Slot::one(flow.send_overlap(shape, link, len, len / 2));
        }
        if flow.held().is_none() && flow.has_window(2 * len) && self.rng.chance(self.hold) {
            let overtakers = 1 + self.rng.below(MAX_OVERTAKERS) as u8;
            return Slot::one(flow.send_ahead(shape, link, len, overtakers));
        }
        if self.rng.chance(self.spec.ip_fragment) {
            self.fragment_id = self.fragment_id.wrapping_add(1);
            let swapped = self.rng.chance(0.25);
            if let Some(sent) = flow.send_fragmented(shape, link, len, self.fragment_id, swapped, &mut self.scratch) {
                return if sent == 0 { Slot::Full } else { Slot::Sent(sent) };
            }
        }
        Slot::one(flow.send(shape, link, len))
    }

    /// Ends all flows; true when none is left.
    pub fn drain(&mut self, give_up: bool, link: &mut Link<'_>) -> bool {
        let mut left = 0;
        for at in 0..self.clients.flows.len() {
            left += usize::from(!self.clients.drain(at, give_up, link));
        }
        left == 0
    }
}
