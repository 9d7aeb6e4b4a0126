//! `MemoryPool`: bounded, size-classed memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use t2s_core::buf::{CLASSES, HEAP, Pool, PoolCache, PoolConfig};
use t2s_sys::clock::monotonic_nanos;

use crate::buffer::Buffer;
use crate::bytes::Lent;
use crate::errors::OrRaise;

/// A pool and one cache of it, for all threads that call through Python.
pub(crate) struct SharedPool {
    pool: Pool,
    cache: Mutex<PoolCache>,
}

impl SharedPool {
    /// A pool with slabs of the heap and a ceiling in bytes.
    pub(crate) fn new(ceiling_bytes: usize, cache: u16) -> Self {
        let pool = Pool::new(PoolConfig { ceiling_bytes, cache, memory: &HEAP, clock: monotonic_nanos });
        let cache = Mutex::new(pool.cache());
        Self { pool, cache }
    }

    /// One with the core's own defaults.
    pub(crate) fn private() -> Self {
        let default = PoolConfig::default();
        Self::new(default.ceiling_bytes, default.cache)
    }

    /// The pool behind the cache.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The cache, for one operation.
    pub(crate) fn cache(&self) -> MutexGuard<'_, PoolCache> {
        // The cache's own methods do not panic half-way, so a panic elsewhere takes nothing from it.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool's counters as a dict.
    pub(crate) fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.pool.stats();
        let dict = PyDict::new(py);
        dict.set_item("buffers_allocated", stats.buffers_allocated)?;
        dict.set_item("buffers_freed", stats.buffers_freed)?;
        dict.set_item("grow_stalls", stats.grow_stalls)?;
        dict.set_item("refused", stats.refused)?;
        dict.set_item("heap_bytes", stats.heap_bytes)?;
        dict.set_item("heap_peak_bytes", stats.heap_peak_bytes)?;
        dict.set_item("live_bytes", stats.live_bytes)?;
        dict.set_item("live_buffers", stats.live_buffers)?;
        dict.set_item("lock_wait_ns", stats.lock_wait_ns)?;
        dict.set_item("depot_exchanges", stats.depot_exchanges)?;
        Ok(dict)
    }
}

/// Size-classed buffers below a hard ceiling, with a cache of `cache` buffers a class in front of a shared depot.
///
/// `ceiling_bytes` bounds the heap, slabs of free buffers included. `cache=0` makes each operation take the depot's
/// lock. Either is the core's own default when `None`. All methods may be called from any thread.
///
/// >>> from t2s import MemoryPool
/// >>> pool = MemoryPool(ceiling_bytes=1 << 20)
/// >>> buffer = pool.alloc(1500)
/// >>> len(buffer), buffer.capacity, pool.stats()["live_bytes"]
/// (1500, 2048, 2048)
/// >>> memoryview(buffer)[:5] = b"hello"
/// >>> bytes(buffer)[:5]
/// b'hello'
/// >>> buffer.free()
/// >>> pool.stats()["live_bytes"]
/// 0
#[pyclass(frozen, module = "t2s")]
pub(crate) struct MemoryPool(Arc<SharedPool>);

impl MemoryPool {
    /// The pool that a caller handed in, or a new one.
    pub(crate) fn shared(pool: Option<&Bound<'_, Self>>) -> Arc<SharedPool> {
        pool.map_or_else(|| Arc::new(SharedPool::private()), |pool| Arc::clone(&pool.get().0))
    }
}

#[pymethods]
impl MemoryPool {
    #[new]
    #[pyo3(signature = (ceiling_bytes = None, cache = None))]
    fn new(ceiling_bytes: Option<usize>, cache: Option<u16>) -> Self {
        let default = PoolConfig::default();
        Self(Arc::new(SharedPool::new(ceiling_bytes.unwrap_or(default.ceiling_bytes), cache.unwrap_or(default.cache))))
    }

    /// Return a buffer of `size` bytes, with `headroom` bytes in front that `Buffer.prepend` can take.
    ///
    /// Its bytes are zero, or what an earlier user left. Raises `PoolExhausted` at the ceiling, or when size and
    /// headroom together exceed the largest class.
    #[pyo3(signature = (size, headroom = 0))]
    fn alloc(&self, size: usize, headroom: usize) -> PyResult<Buffer> {
        let mut buf = self.0.cache().alloc(size.saturating_add(headroom), headroom).or_raise()?;
        if !buf.set_len(size) {
            return Err(t2s_core::buf::PoolExhausted).or_raise();
        }
        Ok(Buffer::new(buf, &self.0))
    }

    /// Return a buffer that holds a copy of `data`, behind `headroom` bytes.
    ///
    /// Raises `PoolExhausted` as `alloc` does.
    #[pyo3(signature = (data, headroom = 0))]
    fn alloc_copy(&self, py: Python<'_>, data: Lent, headroom: usize) -> PyResult<Buffer> {
        let buf = data.read(py, |bytes| self.0.cache().alloc_copy(bytes, headroom)).or_raise()?;
        Ok(Buffer::new(buf, &self.0))
    }

    /// Return the counters of the pool, by name, since it was made.
    ///
    /// `buffers_allocated` and `buffers_freed` count operations, `grow_stalls` those that grew the heap, `refused` those at the ceiling;
    /// `heap_bytes` and `heap_peak_bytes` are slabs, `live_bytes` and `live_buffers` what is handed out now;
    /// `lock_wait_ns` is time spent waiting for the depot, `depot_exchanges` the visits to it.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.0.stats(py)
    }

    /// Give memory that stayed unused over the last two calls back to the system.
    fn give_back(&self) {
        self.0.cache().flush();
        self.0.pool.give_back();
    }

    /// Capacities of the size classes, bytes.
    #[classattr]
    #[pyo3(name = "CLASSES")]
    fn classes() -> (usize, usize, usize, usize) {
        let [tiny, small, jumbo, whole] = CLASSES;
        (tiny, small, jumbo, whole)
    }
}
