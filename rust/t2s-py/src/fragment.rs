//! `FragmentReassembler` and `fragment`: IP fragments in, IP fragments out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use t2s_core::config::{Config, FragmentLimits, Reassembly, Secrets};
use t2s_core::fragment::{self as core_fragment, Outcome};
use t2s_core::stats::DropCounts;
use t2s_core::time::Instant;
use t2s_core::wire::Ip;
use t2s_core::wire::ip::IpRepr;

use crate::bytes::{Lent, join};
use crate::errors::{IntoPyErr, OrRaise};
use crate::pool::{MemoryPool, SharedPool};
use crate::stream::drops_dict;

/// Datagrams put together again from IP fragments, IPv4 (RFC 791, 815) and IPv6 (RFC 8200, section 4.5).
///
/// Bounds, each the core's own default when `None`: `total_bytes` of buffers, `datagrams` at once, `fragments` of one,
/// and `age_ns`. `bounded=False` leaves only the age, as the lab's ablation does. `seed` fixes the key of the table's
/// hash, which is random without it. Buffers come from `pool`, or from one of its own.
///
/// >>> from t2s import FragmentReassembler, fragment
/// >>> packet = bytes.fromhex("45000bd4000100004011a3160a000001c0000201") + bytes(3008)
/// >>> first, second, third = fragment(packet, mtu=1500, ident=7)
/// >>> parts = FragmentReassembler()
/// >>> parts.handle(second), parts.handle(first)
/// (None, None)
/// >>> parts.handle(third)[20:] == packet[20:]
/// True
#[pyclass(frozen, module = "t2s")]
pub(crate) struct FragmentReassembler {
    state: Mutex<State>,
    pool: Arc<SharedPool>,
}

struct State {
    table: t2s_core::fragment::FragmentReassembler,
    drops: DropCounts,
}

impl FragmentReassembler {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl FragmentReassembler {
    #[new]
    #[pyo3(signature = (
        *, total_bytes = None, datagrams = None, fragments = None, age_ns = None, bounded = true, seed = None, pool = None
    ))]
    #[allow(clippy::too_many_arguments)] // each is a keyword in Python
    fn new(
        total_bytes: Option<u64>,
        datagrams: Option<u16>,
        fragments: Option<u16>,
        age_ns: Option<u64>,
        bounded: bool,
        seed: Option<u64>,
        pool: Option<&Bound<'_, MemoryPool>>,
    ) -> Self {
        let default = Config::default().fragment;
        let limits = FragmentLimits {
            total_bytes: total_bytes.unwrap_or(default.total_bytes),
            datagrams: datagrams.unwrap_or(default.datagrams),
            fragments: fragments.unwrap_or(default.fragments),
            age: age_ns.unwrap_or(default.age),
        };
        let mode = if bounded { Reassembly::Bounded } else { Reassembly::Unbounded };
        let table = t2s_core::fragment::FragmentReassembler::new(
            limits,
            mode,
            seed.map_or_else(Secrets::random, Secrets::fixed).flow_hash,
        );
        Self { state: Mutex::new(State { table, drops: DropCounts::default() }), pool: MemoryPool::shared(pool) }
    }

    /// Take an IP packet; return the whole datagram that it completes, or `None` while fragments are missing.
    ///
    /// A packet that is no fragment comes back as it is. A whole datagram is one IP packet without a trace of
    /// fragmentation; its transport checksum is not verified. Raises `PacketError`, its message the reason, for a
    /// packet that does not parse or a fragment that is refused; `PoolExhausted` when there is no buffer for it.
    #[pyo3(signature = (packet, now_ns = 0))]
    fn handle<'py>(&self, py: Python<'py>, packet: Lent, now_ns: u64) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let packet = packet.read(py, |bytes| self.pool.cache().alloc_copy(bytes, 0)).or_raise()?;
        let outcome = match Ip::parse(packet.as_slice()) {
            Ok(ip) => {
                let mut state = self.lock();
                let now = Instant::from_nanos(now_ns);
                let outcome = state.table.handle(now, packet, &ip, &mut self.pool.cache());
                if let Outcome::Dropped(reason) = outcome {
                    state.drops.add(reason);
                }
                outcome
            }
            Err(reason) => {
                self.pool.cache().free(packet);
                self.lock().drops.add(reason);
                Outcome::Dropped(reason)
            }
        };
        match outcome {
            Outcome::Pending => Ok(None),
            Outcome::Dropped(reason) => Err(reason.into_py_err()),
            Outcome::Complete(whole) => {
                let bytes = join(py, std::iter::once(whole.as_slice()));
                self.pool.cache().free(whole);
                bytes.map(Some)
            }
        }
    }

    /// Give up datagrams that are too old at `now_ns`.
    fn expire(&self, now_ns: u64) {
        let (mut state, mut cache) = (self.lock(), self.pool.cache());
        while let Some(first) = state.table.handle_timeout(Instant::from_nanos(now_ns), &mut cache) {
            cache.free(first);
        }
    }

    /// Give up everything.
    fn clear(&self) {
        self.lock().table.clear(&mut self.pool.cache());
    }

    /// When the next datagram will be too old, nanoseconds; `None` when there is none.
    #[getter]
    fn next_timeout_ns(&self) -> Option<u64> {
        self.lock().table.next_timeout().map(Instant::nanos)
    }

    /// Return counters: `bytes` and `bytes_peak` of buffers, `bytes_total` of payload ever held, `datagrams` now,
    /// `completed`, `duplicates`, `abandoned`, and `drops`, fragments refused or given up by reason.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (stats, drops) = {
            let State { table, drops } = &*self.lock();
            let mut drops = drops.clone();
            drops.merge(table.lost());
            (table.stats(), drops)
        };
        let dict = PyDict::new(py);
        dict.set_item("bytes", stats.bytes)?;
        dict.set_item("bytes_peak", stats.bytes_peak)?;
        dict.set_item("bytes_total", stats.bytes_total)?;
        dict.set_item("datagrams", stats.datagrams)?;
        dict.set_item("completed", stats.completed)?;
        dict.set_item("duplicates", stats.duplicates)?;
        dict.set_item("abandoned", stats.abandoned)?;
        dict.set_item("drops", drops_dict(py, &drops)?)?;
        Ok(dict)
    }
}

/// Return the fragments of at most `mtu` bytes that a whole IP packet is cut into, first to last.
///
/// A packet that fits comes back alone, its header made anew: options and extension headers are not carried over.
/// `ident` must differ between datagrams under way at the same time (RFC 6864). Raises `PacketError`, its message the
/// reason, for what is no whole IP packet, and for an `mtu` below 68 (IPv4) or 1,280 (IPv6).
#[pyfunction]
#[pyo3(signature = (packet, mtu, *, ident = 0))]
pub(crate) fn fragment(py: Python<'_>, packet: Lent, mtu: u16, ident: u32) -> PyResult<Vec<Bound<'_, PyBytes>>> {
    let pieces = packet.read(py, |bytes| {
        let ip = Ip::parse(bytes)?;
        if ip.fragment.is_some() {
            return Err(t2s_core::stats::DropReason::FragmentBad);
        }
        // Within the packet: both ends were checked by the parser.
        let payload = bytes.get(usize::from(ip.payload)..ip.total as usize).unwrap_or_default();
        let repr = IpRepr {
            src: ip.src,
            dst: ip.dst,
            protocol: ip.protocol,
            ttl: ip.ttl,
            ecn: ip.ecn,
            payload_len: payload.len() as u32,
            id: ident as u16,
            dont_fragment: false,
        };
        let cut = core_fragment::fragment(&repr, payload, mtu, ident)?;
        Ok(cut.map(|piece| [piece.header(), piece.payload].concat()).collect::<Vec<_>>())
    });
    pieces.or_raise()?.iter().map(|piece| join(py, std::iter::once(piece.as_slice()))).collect()
}
