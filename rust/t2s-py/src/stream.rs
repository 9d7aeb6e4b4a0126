//! `StreamReassembler`: one TCP stream put back in order.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use t2s_core::buf::Buf;
use t2s_core::config::{Config, Reassembly, StreamLimits};
use t2s_core::reassembly::{Budget, Insert};
use t2s_core::stats::DropCounts;
use t2s_core::wire::tcp::SeqNumber;

use crate::bytes::{Lent, join};
use crate::errors::OrRaise;
use crate::pool::{MemoryPool, SharedPool};

/// What changes: the queue, what it may hold, and where the stream stands.
struct State {
    queue: t2s_core::reassembly::StreamReassembler,
    budget: Budget,
    next: SeqNumber,
    drops: DropCounts,
}

/// One TCP stream put back in order: segments in any order, repeated or overlapping, come out as the bytes sent.
///
/// `next_seq` is the sequence number of the first byte. Out-of-order data is held within bounds: `flow_bytes` of
/// payload, `flow_segments`, and `total_bytes` of buffers; each is the core's own default when `None`. Of overlapping
/// segments the first to arrive wins. `bounded=False` takes the bounds off, as the lab's ablation does. Buffers come
/// from `pool`, or from one of its own.
///
/// >>> from t2s import StreamReassembler
/// >>> stream = StreamReassembler(next_seq=1000)
/// >>> stream.insert(1006, b"world"), stream.pop()
/// (5, b'')
/// >>> stream.insert(1000, b"hello "), stream.pop()
/// (6, b'hello world')
/// >>> stream.next_seq
/// 1011
#[pyclass(frozen, module = "t2s")]
pub(crate) struct StreamReassembler {
    state: Mutex<State>,
    limits: StreamLimits,
    mode: Reassembly,
    pool: Arc<SharedPool>,
}

impl StreamReassembler {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees what a call made useless.
    fn reclaim(&self, budget: &mut Budget) {
        let mut cache = self.pool.cache();
        while let Some(buf) = budget.reclaim() {
            cache.free(buf);
        }
    }
}

#[pymethods]
impl StreamReassembler {
    #[new]
    #[pyo3(signature = (
        next_seq = 0, *, flow_bytes = None, flow_segments = None, total_bytes = None, bounded = true, pool = None
    ))]
    fn new(
        next_seq: u32,
        flow_bytes: Option<u32>,
        flow_segments: Option<u16>,
        total_bytes: Option<u64>,
        bounded: bool,
        pool: Option<&Bound<'_, MemoryPool>>,
    ) -> Self {
        let default = Config::default().stream;
        let limits = StreamLimits {
            flow_bytes: flow_bytes.unwrap_or(default.flow_bytes),
            flow_segments: flow_segments.unwrap_or(default.flow_segments),
            total_bytes: total_bytes.unwrap_or(default.total_bytes),
        };
        let state = State {
            queue: t2s_core::reassembly::StreamReassembler::new(),
            budget: Budget::new(limits.total_bytes),
            next: SeqNumber(next_seq),
            drops: DropCounts::default(),
        };
        let mode = if bounded { Reassembly::Bounded } else { Reassembly::Unbounded };
        Self { state: Mutex::new(state), limits, mode, pool: MemoryPool::shared(pool) }
    }

    /// Hold `data`, whose first byte has sequence number `seq`; return how many of its bytes were new.
    ///
    /// 0 means that all were received before, or that the segment was refused, which changes nothing and counts under
    /// its reason in `stats()`. Raises `PoolExhausted` when there is no buffer for it.
    fn insert(&self, py: Python<'_>, seq: u32, data: Lent) -> PyResult<u32> {
        let buf = data.read(py, |bytes| self.pool.cache().alloc_copy(bytes, 0)).or_raise()?;
        let mut state = self.lock();
        let State { queue, budget, next, drops } = &mut *state;
        let stored = match queue.insert(*next, SeqNumber(seq), buf, &self.limits, self.mode, budget) {
            Insert::Stored { new_bytes } => new_bytes,
            Insert::Duplicate(buf) => {
                self.pool.cache().free(buf);
                0
            }
            Insert::Refused(buf, reason) => {
                drops.add(reason);
                self.pool.cache().free(buf);
                0
            }
        };
        self.reclaim(budget);
        Ok(stored)
    }

    /// Take all bytes that continue the stream now, and move `next_seq` past them; empty when the next one is missing.
    fn pop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let mut ready = Vec::new();
        {
            let mut state = self.lock();
            let State { queue, budget, next, .. } = &mut *state;
            while let Some(buf) = queue.pop(*next, budget) {
                *next += buf.len() as u32;
                ready.push(buf);
            }
            self.reclaim(budget);
        }
        let taken = join(py, ready.iter().map(Buf::as_slice));
        let mut cache = self.pool.cache();
        for buf in ready {
            cache.free(buf);
        }
        taken
    }

    /// Return up to `most` blocks of held data as `(first, one after the last)`, the latest change first (RFC 2018,
    /// section 4).
    #[pyo3(signature = (most = 4))]
    fn sack_blocks(&self, most: usize) -> Vec<(u32, u32)> {
        self.lock().queue.sack_blocks(most).map(|(left, right)| (left.0, right.0)).collect()
    }

    /// Drop everything that is held out of order.
    fn clear(&self) {
        let mut state = self.lock();
        let State { queue, budget, .. } = &mut *state;
        queue.clear(budget);
        self.reclaim(budget);
    }

    /// Sequence number of the next byte that the stream waits for.
    #[getter]
    fn next_seq(&self) -> u32 {
        self.lock().next.0
    }

    /// Payload bytes held out of order.
    #[getter]
    fn held_bytes(&self) -> u32 {
        self.lock().queue.held_bytes()
    }

    /// Segments held out of order.
    #[getter]
    fn segments(&self) -> usize {
        self.lock().queue.segments()
    }

    /// Return counters: `bytes_used`, `bytes_peak` and `bytes_limit` of buffers, `bytes_total` of payload ever held,
    /// and `drops`, refusals by reason.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (used, peak, limit, total, drops) = {
            let State { budget, drops, .. } = &*self.lock();
            (budget.used(), budget.peak(), budget.limit(), budget.total_in(), drops.clone())
        };
        let dict = PyDict::new(py);
        dict.set_item("bytes_used", used)?;
        dict.set_item("bytes_peak", peak)?;
        dict.set_item("bytes_limit", limit)?;
        dict.set_item("bytes_total", total)?;
        dict.set_item("drops", drops_dict(py, &drops)?)?;
        Ok(dict)
    }
}

/// Refusals that happened, by reason.
pub(crate) fn drops_dict<'py>(py: Python<'py>, drops: &DropCounts) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (reason, count) in drops.iter().filter(|&(_, count)| count > 0) {
        dict.set_item(reason.name(), count)?;
    }
    Ok(dict)
}
