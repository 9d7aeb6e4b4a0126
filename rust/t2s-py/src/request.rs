//! `Request`: what a stack asks of its driver, as a class a kind.

use std::net::{IpAddr, SocketAddr};

use pyo3::prelude::*;
use t2s_core::stack::Request as CoreRequest;

/// An address and a port.
pub(crate) type End = (IpAddr, u16);

pub(crate) fn end_of(address: SocketAddr) -> End {
    (address.ip(), address.port())
}

pub(crate) fn address_of((ip, port): End) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// What a `Stack` asks of its driver; take them with `Stack.requests` and tell them apart with `match`.
///
/// A flow (TCP) or session (UDP) is named by a number that no later one has. Ends are `(address, port)`.
///
/// >>> from t2s import Request
/// >>> match Request.Finish(flow=3):
/// ...     case Request.Finish(flow):
/// ...         print("no more bytes from the client of flow", flow)
/// no more bytes from the client of flow 3
#[pyclass(frozen, eq, module = "t2s")]
#[derive(Clone, PartialEq)]
pub(crate) enum Request {
    /// A client wants to reach `target`: answer with `Stack.connected` or `Stack.refused`.
    Connect {
        /// The new flow.
        flow: u64,
        /// The client's end.
        client: End,
        /// Where the client wants to go.
        target: End,
    },
    /// New bytes in order: take them with `Stack.receive`.
    Readable {
        /// The flow.
        flow: u64,
    },
    /// `Stack.send` takes bytes again, after it had taken less than it was given.
    Writable {
        /// The flow.
        flow: u64,
    },
    /// The client will send nothing more; what it sent before can still be received.
    Finish {
        /// The flow.
        flow: u64,
    },
    /// The flow is gone, its number means nothing any more.
    Closed {
        /// The flow that was.
        flow: u64,
        /// Why, in a stable name: `"finished"`, `"client_reset"`, …
        reason: String,
    },
    /// A client's socket sent its first datagram.
    UdpOpen {
        /// The new session, shared by all destinations of that socket.
        session: u64,
        /// The client's end.
        client: End,
    },
    /// Datagrams wait: take them with `Stack.receive_datagrams`.
    Datagrams {
        /// The session.
        session: u64,
    },
    /// The session is gone, its number means nothing any more.
    UdpClosed {
        /// The session that was.
        session: u64,
    },
}

impl From<CoreRequest> for Request {
    fn from(request: CoreRequest) -> Self {
        match request {
            CoreRequest::Connect { flow, client, target } => {
                Self::Connect { flow: flow.to_bits(), client: end_of(client), target: end_of(target) }
            }
            CoreRequest::Readable(flow) => Self::Readable { flow: flow.to_bits() },
            CoreRequest::Writable(flow) => Self::Writable { flow: flow.to_bits() },
            CoreRequest::Finish(flow) => Self::Finish { flow: flow.to_bits() },
            CoreRequest::Closed(flow, reason) => {
                Self::Closed { flow: flow.to_bits(), reason: reason.name().to_owned() }
            }
            CoreRequest::UdpOpen { session, client } => {
                Self::UdpOpen { session: session.to_u64(), client: end_of(client) }
            }
            CoreRequest::Datagrams(session) => Self::Datagrams { session: session.to_u64() },
            CoreRequest::UdpClosed(session) => Self::UdpClosed { session: session.to_u64() },
        }
    }
}

#[pymethods]
impl Request {
    fn __repr__(&self) -> String {
        match self {
            Self::Connect { flow, client, target } => {
                format!("Request.Connect(flow={flow}, client={}, target={})", shown(client), shown(target))
            }
            Self::Readable { flow } => format!("Request.Readable(flow={flow})"),
            Self::Writable { flow } => format!("Request.Writable(flow={flow})"),
            Self::Finish { flow } => format!("Request.Finish(flow={flow})"),
            Self::Closed { flow, reason } => format!("Request.Closed(flow={flow}, reason='{reason}')"),
            Self::UdpOpen { session, client } => {
                format!("Request.UdpOpen(session={session}, client={})", shown(client))
            }
            Self::Datagrams { session } => format!("Request.Datagrams(session={session})"),
            Self::UdpClosed { session } => format!("Request.UdpClosed(session={session})"),
        }
    }
}

/// An end as Python would take it.
fn shown((ip, port): &End) -> String {
    format!("('{ip}', {port})")
}
