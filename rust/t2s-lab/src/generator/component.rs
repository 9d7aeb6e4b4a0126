//! One component of the load: whichever kind it is, it can be set up, send the packet that is due, read replies, drain.

use std::sync::Arc;

use crate::generator::churn::Churn;
use crate::generator::client::{Event, Shape};
use crate::generator::clients::Clients;
use crate::generator::datagrams::{Datagrams, Queries, Replies};
use crate::generator::link::Link;
use crate::generator::malformed::{Malformed, SynFlood};
use crate::generator::packets::{Pattern, PayloadSums, Reply};
use crate::generator::placement::Placement;
use crate::generator::requests::Requests;
use crate::generator::rng::Rng;
use crate::generator::slot::Slot;
use crate::generator::stream::Stream;
use crate::measure::recorder::Recorder;
use crate::spec::{self, PhaseSpec};

/// Client addresses over which connections of a churn component spread, so that ports return late.
const CHURN_SLOTS: usize = 4;

/// A component of one generator.
pub enum Component {
    /// Long TCP flows.
    Stream(Box<Stream>),
    /// Short TCP connections.
    Churn(Box<Churn>),
    /// Requests over long TCP flows.
    Requests(Box<Requests>),
    /// UDP.
    Datagrams(Datagrams),
    /// DNS.
    Queries(Queries),
    /// Packets to be refused.
    Malformed(Malformed),
    /// SYN flood.
    SynFlood(SynFlood),
}

/// Port of the targets of TCP components.
pub const TCP_PORT: u16 = 443;

/// The part of `total` that falls to one of `workers`.
pub fn part(total: u32, worker: u32, workers: u32) -> usize {
    (total / workers + u32::from(worker < total % workers)) as usize
}

impl Component {
    /// The share of component `index` of `spec` that the generator of `worker` sends.
    pub fn new(
        spec: &PhaseSpec,
        index: usize,
        worker: u32,
        pattern: &Pattern,
        ports: &Arc<[u16]>,
        placement: &Placement,
    ) -> Self {
        let stream = u64::from(worker) << 32 | (index as u64) << 8;
        let rng = |n| Rng::new(spec.seed, stream | n);
        let (worker_id, component) = (worker as u8, index as u8);
        let resets = spec.components[index].upstream().resets();
        let shape = |segment: u32| Shape {
            worker: worker_id,
            component,
            target_port: TCP_PORT,
            mss: [spec.settings.mtu - 40, spec.settings.mtu - 60],
            segment,
            sums: PayloadSums::new(pattern, segment as usize),
            resets,
        };
        let clients = |count: u32, segment, v6_ratio, spare| {
            let count = part(count, worker, spec.workers);
            Clients::new(shape(segment), count, v6_ratio, spare, ports, placement.clone(), rng(1))
        };
        match &spec.components[index] {
            spec::Component::TcpStream(c) => {
                let clients = clients(c.flows, c.segment_bytes, c.v6_ratio, 1);
                Self::Stream(Box::new(Stream::new(c.clone(), clients, rng(2))))
            }
            spec::Component::TcpChurn(c) => {
                let clients = clients(c.concurrent, c.segment_bytes, c.v6_ratio, CHURN_SLOTS);
                Self::Churn(Box::new(Churn::new(c.clone(), clients, rng(2))))
            }
            spec::Component::TcpRequest(c) => {
                let clients = clients(c.flows, c.request_bytes, c.v6_ratio, 1);
                Self::Requests(Box::new(Requests::new(c.clone(), clients)))
            }
            spec::Component::Udp(c) => {
                let count = part(c.flows, worker, spec.workers);
                Self::Datagrams(Datagrams::new(c, count, worker_id, component, pattern, ports, placement, rng(2)))
            }
            spec::Component::Dns(c) => Self::Queries(Queries::new(c, worker_id, component, ports, placement, rng(2))),
            spec::Component::Malformed(_) => Self::Malformed(Malformed::new(worker_id, component, placement, rng(2))),
            spec::Component::SynFlood(_) => Self::SynFlood(SynFlood::new(worker_id, component, placement, rng(2))),
        }
    }

    /// Whether this generator has nothing to do for the component (fewer flows than workers).
    pub fn is_empty(&mut self) -> bool {
        match self {
            Self::Stream(c) => c.clients().flows.is_empty(),
            Self::Churn(c) => c.clients().flows.is_empty(),
            Self::Requests(c) => c.clients().flows.is_empty(),
            Self::Datagrams(c) => c.is_empty(),
            Self::Queries(_) | Self::Malformed(_) | Self::SynFlood(_) => false,
        }
    }

    /// Prepares what must stand before the first due packet; true when it stands.
    pub fn set_up(&mut self, link: &mut Link<'_>) -> bool {
        match self {
            Self::Stream(c) => c.set_up(link),
            Self::Requests(c) => c.set_up(link),
            Self::Churn(_) | Self::Datagrams(_) | Self::Queries(_) | Self::Malformed(_) | Self::SynFlood(_) => true,
        }
    }

    /// Sends the packet that is due.
    #[inline]
    pub fn send(&mut self, link: &mut Link<'_>) -> Slot {
        match self {
            Self::Stream(c) => c.send(link),
            Self::Churn(c) => c.send(link),
            Self::Requests(c) => c.send(link),
            Self::Datagrams(c) => c.send(link),
            Self::Queries(c) => c.send(link),
            Self::Malformed(c) => c.send(link),
            Self::SynFlood(c) => c.send(link),
        }
    }

    /// Reads a reply that is for this component.
    #[inline]
    pub fn handle(&mut self, reply: &Reply<'_>, link: &mut Link<'_>) {
        match self {
            Self::Stream(c) => {
                if let Some((_, event)) = c.clients().handle(reply, link) {
                    c.note(event);
                }
            }
            Self::Churn(c) => {
                if let Some((at, event)) = c.clients().handle(reply, link) {
                    c.note(at, event);
                }
            }
            Self::Requests(c) => c.handle(reply, link),
            Self::Datagrams(c) => c.handle(reply, link),
            Self::Queries(c) => c.handle(reply, link),
            Self::Malformed(_) | Self::SynFlood(_) => {}
        }
    }

    /// Sends what is owed. `ended` is room for flows that changed.
    pub fn flush(&mut self, link: &mut Link<'_>, ended: &mut Vec<(usize, Event)>) {
        if let Some(clients) = self.clients() {
            clients.flush(link, &mut |at, event| ended.push((at, event)));
            self.note_all(ended);
        }
    }

    /// Looks at the timers of the next `most` flows. `ended` is room for flows that changed.
    pub fn sweep(&mut self, link: &mut Link<'_>, most: usize, ended: &mut Vec<(usize, Event)>) {
        if let Some(clients) = self.clients() {
            clients.sweep(link, most, &mut |at, event| ended.push((at, event)));
            self.note_all(ended);
        }
    }

    fn clients(&mut self) -> Option<&mut Clients> {
        match self {
            Self::Stream(c) => Some(c.clients()),
            Self::Churn(c) => Some(c.clients()),
            Self::Requests(c) => Some(c.clients()),
            Self::Datagrams(_) | Self::Queries(_) | Self::Malformed(_) | Self::SynFlood(_) => None,
        }
    }

    fn note_all(&mut self, ended: &mut Vec<(usize, Event)>) {
        for (at, event) in ended.drain(..) {
            match self {
                Self::Stream(c) => c.note(event),
                Self::Churn(c) => c.note(at, event),
                Self::Requests(c) => c.note(at, event),
                Self::Datagrams(_) | Self::Queries(_) | Self::Malformed(_) | Self::SynFlood(_) => {}
            }
        }
    }

    /// Ends all flows; true when none is left.
    pub fn drain(&mut self, give_up: bool, link: &mut Link<'_>) -> bool {
        match self {
            Self::Stream(c) => c.drain(give_up, link),
            Self::Churn(c) => c.drain(give_up, link),
            Self::Requests(c) => c.drain(give_up, link),
            Self::Datagrams(c) => c.drain(give_up, link),
            Self::Queries(c) => c.drain(give_up, link),
            Self::Malformed(_) | Self::SynFlood(_) => true,
        }
    }

    /// Datagrams sent with a number, and what came back, for those kinds that have some.
    pub fn exchange(&self) -> Option<(u64, &Replies)> {
        match self {
            Self::Datagrams(c) => Some(c.exchange()),
            Self::Queries(c) => Some(c.exchange()),
            _ => None,
        }
    }

    /// From the due time of what was sent in the window until its reply was read, for those kinds that have replies.
    pub fn latency(&self) -> Option<&Recorder> {
        match self {
            Self::Requests(c) => Some(&c.latency),
            _ => self.exchange().map(|(_, replies)| &replies.latency),
        }
    }

    /// The measured window begins or ends now, for what is due from then on.
    pub fn measure(&mut self, begin: Option<u64>, end: Option<u64>) {
        match self {
            Self::Requests(c) => c.measure(begin, end),
            Self::Datagrams(c) => c.replies().measure(begin, end),
            Self::Queries(c) => c.replies().measure(begin, end),
            Self::Stream(_) | Self::Churn(_) | Self::Malformed(_) | Self::SynFlood(_) => {}
        }
    }
}
