//! `replay`: a capture through the packet core.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use t2s_core::buf::{Pool, PoolConfig};
use t2s_core::config::{Config, Secrets};
use t2s_lab::replay::{Capture, Observer, Pace, ReplayOptions};

use crate::errors::{ConfigError, OrRaise};
use crate::request::{End, end_of};
use crate::stack::stats_dict;

/// One TCP connection of a capture, as replayed.
#[pyclass(frozen, get_all, module = "t2s")]
pub(crate) struct ReplayFlow {
    /// The client's end, `(address, port)`.
    client: End,
    /// The server's end.
    server: End,
    /// The bytes that the core delivered upstream; empty when they were not kept.
    stream: Py<PyBytes>,
    /// How many they were.
    bytes_up: u64,
    /// Bytes that the captured server sent and the core took for the client.
    bytes_down: u64,
    /// Of these, bytes that the capture missed; they were replayed as zeros.
    missing: u64,
    /// Whether the client's FIN was delivered.
    finished: bool,
    /// How it ended in the core, in a stable name; `None` if it was open at the end.
    closed: Option<&'static str>,
}

/// What a replay did.
#[pyclass(frozen, get_all, module = "t2s")]
pub(crate) struct Replay {
    /// TCP connections, in the order of their SYNs.
    flows: Vec<Py<ReplayFlow>>,
    /// Datagrams that were delivered upstream, in order: `(client, target, payload)`.
    datagrams: Vec<(End, End, Py<PyBytes>)>,
    /// Client packets replayed.
    packets: u64,
    /// Of these, accepted by the core.
    accepted: u64,
    /// Packets that the core sent to the client.
    replies: u64,
    /// Of these, broken ones: 0 unless the core has a bug.
    corrupt: u64,
    /// Acknowledgements made up because the core needed more round trips than the captured server.
    synthetic_acks: u64,
    /// Acknowledgements of bytes that the core had not sent, lowered to what it had.
    lowered_acks: u64,
    /// TCP packets left out because the capture joined their connection midway.
    midway: u64,
    /// Packets left out because they are neither from nor to a client.
    other: u64,
    /// Counters of the core, as `Stack.stats` gives them.
    stats: Py<PyDict>,
    /// Bytes of pool buffers alive after the core's shutdown: 0 unless it leaks.
    live_bytes: u64,
}

/// Ends a replay when Python has a signal to handle.
struct Signals {
    countdown: u32,
    raised: Option<PyErr>,
}

/// Steps between two looks at signals.
const SIGNAL_STEPS: u32 = 1_024;

impl Observer for Signals {
    fn begin(&mut self, _due: Option<u64>) {}

    fn end(&mut self, _accepted: bool) {}

    fn stopped(&mut self) -> bool {
        self.countdown -= 1;
        if self.countdown == 0 {
            self.countdown = SIGNAL_STEPS;
            // The method's own name is not general enough over lifetimes to compile.
            #[allow(clippy::redundant_closure_for_method_calls)]
            let signals = Python::attach(|py| py.check_signals());
            self.raised = signals.err();
        }
        self.raised.is_some()
    }
}

/// Replay the client packets of a pcap or pcapng file through the packet core.
///
/// The captured servers' streams come from a simulated upstream; acknowledgement numbers are mapped to what the core
/// really sent, so every TCP byte passes the terminator. `speed` is a factor on the recorded times, or `None` for as
/// fast as the core can; the core's own clock is the capture's in either case. With `keep` the delivered bytes and
/// datagrams are kept. `mtu` in bytes; `seed` fixes all keys. Raises `DecodeError` for what is no capture,
/// `ConfigError` for a speed that is none. The interpreter lock is released meanwhile.
///
/// >>> from t2s import DecodeError, replay
/// >>> try:
/// ...     replay("/dev/null")
/// ... except DecodeError:
/// ...     print("no capture")
/// no capture
#[pyfunction]
#[pyo3(signature = (path, *, speed = None, keep = true, mtu = 1500, seed = 0))]
pub(crate) fn replay(
    py: Python<'_>,
    path: PathBuf,
    speed: Option<f64>,
    keep: bool,
    mtu: u16,
    seed: u64,
) -> PyResult<Replay> {
    let pace = match speed {
        None => Pace::Max,
        Some(factor) if factor.is_finite() && factor > 0.0 => Pace::Times(factor),
        Some(factor) => return Err(ConfigError::new_err(format!("speed={factor}: must be a factor above 0"))),
    };
    let config = Config { mtu, secrets: Secrets::fixed(seed), ..Config::default() };
    let mut signals = Signals { countdown: SIGNAL_STEPS, raised: None };
    let done = py.detach(|| {
        let capture = Capture::open(&path)?;
        let pool = Pool::new(PoolConfig::default());
        Ok::<_, t2s_lab::replay::CaptureError>(t2s_lab::replay::replay(
            &capture,
            &ReplayOptions { config, pace, keep },
            &pool,
            &mut signals,
        ))
    });
    let done = done.or_raise()?;
    if let Some(raised) = signals.raised {
        return Err(raised);
    }
    let flows = done.flows.iter().map(|flow| {
        Py::new(
            py,
            ReplayFlow {
                client: end_of(flow.client),
                server: end_of(flow.server),
                stream: PyBytes::new(py, &flow.stream).unbind(),
                bytes_up: flow.bytes_up,
                bytes_down: flow.bytes_down,
                missing: flow.missing,
                finished: flow.finished,
                closed: flow.closed.map(t2s_core::stack::CloseReason::name),
            },
        )
    });
    let datagrams = done.datagrams.iter().map(|datagram| {
        (end_of(datagram.client), end_of(datagram.target), PyBytes::new(py, &datagram.payload).unbind())
    });
    Ok(Replay {
        flows: flows.collect::<PyResult<_>>()?,
        datagrams: datagrams.collect(),
        packets: done.packets,
        accepted: done.accepted,
        replies: done.replies,
        corrupt: done.corrupt,
        synthetic_acks: done.synthetic_acks,
        lowered_acks: done.lowered_acks,
        midway: done.midway,
        other: done.other,
        stats: stats_dict(py, &done.stats)?.unbind(),
        live_bytes: done.live_bytes,
    })
}
