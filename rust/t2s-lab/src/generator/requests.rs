//! Requests and responses over long TCP flows: one request a flow at a time, answered with many bytes or few. Small
//! responses show the way there and back, large ones load the core's sender.

use crate::generator::client::{Event, State};
use crate::generator::clients::Clients;
use crate::generator::link::Link;
use crate::generator::packets::Reply;
use crate::generator::slot::Slot;
use crate::measure::recorder::Recorder;
use crate::spec::TcpRequest;

/// Connections in the opening at once, while the flows are set up: half of what a SYN backlog holds by default.
const OPENING: usize = 512;

/// Flows looked at for one request before the component counts as blocked.
const TRIES: usize = 64;

/// A request without its whole response.
#[derive(Clone, Copy, Default)]
struct Asked {
    /// When it was due; 0 = there is none.
    due: u64,
    /// Bytes that the flow has received once the response is there.
    until: u32,
}

/// The flows of a `tcp_request` component.
pub struct Requests {
    spec: TcpRequest,
    clients: Clients,
    asked: Vec<Asked>,
    cursor: usize,
    attempted: usize,
    opening: usize,
    /// From the due time of a request in the window until the last byte of its response was read.
    pub latency: Recorder,
    window: (u64, u64),
}

impl Requests {
    /// A component of its own share of flows.
    pub fn new(spec: TcpRequest, clients: Clients) -> Self {
        let asked = vec![Asked::default(); clients.flows.len()];
        Self {
            spec,
            clients,
            asked,
            cursor: 0,
            attempted: 0,
            opening: 0,
            latency: Recorder::new(),
            window: (u64::MAX, u64::MAX),
        }
    }

    /// The connections.
    pub fn clients(&mut self) -> &mut Clients {
        &mut self.clients
    }

    /// Requests that are due from `begin` on, and before `end`, are those of the measured window.
    pub fn measure(&mut self, begin: Option<u64>, end: Option<u64>) {
        self.window = (begin.unwrap_or(self.window.0), end.unwrap_or(self.window.1));
    }

    /// Opens flows; true when each was answered once.
    pub fn set_up(&mut self, link: &mut Link<'_>) -> bool {
        let all = self.clients.flows.len();
        while self.cursor < all && self.opening < OPENING && self.clients.open(self.cursor, link) {
            self.cursor += 1;
            self.opening += 1;
        }
        self.attempted >= all
    }

    /// Takes note of a change: what was asked of a flow that has ended is never answered.
    pub fn note(&mut self, at: usize, event: Event) {
        if matches!(event, Event::Opened | Event::Refused | Event::Aborted) {
            self.attempted += 1;
            self.opening = self.opening.saturating_sub(1);
        }
        if event != Event::None {
            self.asked[at] = Asked::default();
        }
    }

    /// Reads a reply; it may complete a response.
    pub fn handle(&mut self, reply: &Reply<'_>, link: &mut Link<'_>) {
        let Some((at, event)) = self.clients.handle(reply, link) else { return };
        self.note(at, event);
        let Asked { due, until } = self.asked[at];
        if due > 0 && self.clients.flows[at].received().wrapping_sub(until) as i32 >= 0 {
            self.asked[at] = Asked::default();
            if self.window.0 <= due && due < self.window.1 {
                self.latency.record(link.now_ns.saturating_sub(due));
            }
        }
    }

    /// Sends the request that is due on the next flow that has none.
    pub fn send(&mut self, link: &mut Link<'_>) -> Slot {
        let all = self.clients.flows.len();
        for _ in 0..TRIES.min(all) {
            // The set-up has left the cursor behind the last flow.
            let at = self.cursor % all;
            let slot = match self.clients.flows[at].state() {
                State::SynSent => Slot::Blocked,
                State::Closed => Slot::one(self.clients.open(at, link)),
                State::Open => self.ask(at, link),
            };
            if slot != Slot::Full {
                self.cursor = (at + 1) % all;
            }
            if slot != Slot::Blocked {
                return slot;
            }
        }
        Slot::Blocked
    }

    fn ask(&mut self, at: usize, link: &mut Link<'_>) -> Slot {
        let Clients { shape, flows, .. } = &mut self.clients;
        let flow = &mut flows[at];
        if self.asked[at].due > 0 || !flow.has_window(shape.segment) {
            return Slot::Blocked;
        }
        if !flow.send(shape, link, shape.segment) {
            return Slot::Full;
        }
        let until = flow.received().wrapping_add(self.spec.upstream.reply_bytes);
        self.asked[at] = Asked { due: link.due_ns.max(1), until };
        Slot::Sent(1)
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
