//! `FlowMap`: five-tuples to numbers.

use std::net::IpAddr;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use t2s_core::config::Secrets;
use t2s_core::flow::{FlowKey, FlowMapConfig, ShardStats};
use t2s_core::time::Instant;
use t2s_sys::clock::monotonic_nanos;

use crate::errors::{ConfigError, OrRaise};

/// A five-tuple as Python writes it: source address and port, destination address and port, IP protocol number.
type Tuple = (IpAddr, u16, IpAddr, u16, u8);

fn key_of((src, src_port, dst, dst_port, protocol): Tuple) -> FlowKey {
    FlowKey::new(src, src_port, dst, dst_port, protocol)
}

fn tuple_of(key: &FlowKey) -> Tuple {
    (key.src(), key.src_port(), key.dst(), key.dst_port(), key.protocol())
}

/// A bounded map from five-tuples to numbers, in shards with a lock each, hashed with a secret key.
///
/// A key is `(source, source_port, destination, destination_port, protocol)`: addresses as text or `ipaddress` objects,
/// the protocol as IP's number (6 TCP, 17 UDP). A value is an integer from 0 to 2**64 - 1. `capacity` is the bound over
/// all shards (the core's own default when `None`), each of which takes its equal part. `seed` fixes the
/// hash's key, which is random without it.
/// All methods may be called from any thread.
///
/// >>> from t2s import FlowMap
/// >>> flows = FlowMap(capacity=1000, shards=2)
/// >>> key = ("10.0.0.1", 40000, "192.0.2.1", 443, 6)
/// >>> flows.insert(key, 7, now_ns=0)
/// >>> flows.get(key), key in flows, len(flows)
/// (7, True, 1)
/// >>> flows.remove(key), flows.get(key)
/// (7, None)
#[pyclass(frozen, module = "t2s")]
pub(crate) struct FlowMap(t2s_core::flow::FlowMap<u64>);

#[pymethods]
impl FlowMap {
    #[new]
    #[pyo3(signature = (capacity = None, shards = 1, *, seed = None))]
    fn new(capacity: Option<usize>, shards: usize, seed: Option<u64>) -> PyResult<Self> {
        let capacity = capacity.unwrap_or(FlowMapConfig::default().capacity);
        // A slot takes some 60 bytes, all reserved at once; 2^28 flows are 16 GB, more than any tunnel has.
        if capacity == 0 || capacity > 1 << 28 || shards == 0 || shards > capacity {
            return Err(ConfigError::new_err(format!(
                "capacity={capacity}, shards={shards}: wanted 1 <= shards <= capacity <= {}",
                1 << 28
            )));
        }
        let hash_key = seed.map_or_else(Secrets::random, Secrets::fixed).flow_hash;
        let config = FlowMapConfig { shards, capacity, hash_key, clock: monotonic_nanos };
        Ok(Self(t2s_core::flow::FlowMap::new(config)))
    }

    /// Map `key` to `value` and mark it as used at `now_ns`; return the value that it replaced, if any.
    ///
    /// Raises `TableFull` for a new key when its shard is full; the map is then as it was.
    #[pyo3(signature = (key, value, *, now_ns = 0))]
    fn insert(&self, key: Tuple, value: u64, now_ns: u64) -> PyResult<Option<u64>> {
        let key = key_of(key);
        let hash = self.0.hash(&key);
        self.0.lock(self.0.shard_of(hash)).insert(hash, key, value, Instant::from_nanos(now_ns)).or_raise()
    }

    /// Return the value of `key`, or `None`.
    fn get(&self, key: Tuple) -> Option<u64> {
        let key = key_of(key);
        let hash = self.0.hash(&key);
        self.0.lock(self.0.shard_of(hash)).get(hash, &key).copied()
    }

    /// Mark `key` as used at `now_ns`; return its value, or `None`.
    fn touch(&self, key: Tuple, now_ns: u64) -> Option<u64> {
        let key = key_of(key);
        let hash = self.0.hash(&key);
        self.0.lock(self.0.shard_of(hash)).touch(hash, &key, Instant::from_nanos(now_ns)).copied()
    }

    /// Remove `key`; return its value, or `None`.
    fn remove(&self, key: Tuple) -> Option<u64> {
        let key = key_of(key);
        let hash = self.0.hash(&key);
        self.0.lock(self.0.shard_of(hash)).remove(hash, &key)
    }

    /// Remove what was last used before `older_than_ns`; return its `(key, value)` pairs, ordered by key.
    ///
    /// `budget` bounds the slots visited in each shard; the next call goes on where this one ended.
    #[pyo3(signature = (older_than_ns, budget = 4096))]
    fn expire(&self, py: Python<'_>, older_than_ns: u64, budget: usize) -> Vec<(Tuple, u64)> {
        py.detach(|| {
            let mut gone = Vec::new();
            for shard in 0..self.0.shards() {
                let older_than = Instant::from_nanos(older_than_ns);
                self.0.remove_expired(shard, older_than, budget, |key, value| gone.push((key, value)));
            }
            gone.sort_unstable_by_key(|&(key, _)| key);
            gone.into_iter().map(|(key, value)| (tuple_of(&key), value)).collect()
        })
    }

    /// Return all `(key, value)` pairs, ordered by key.
    fn snapshot(&self, py: Python<'_>) -> Vec<(Tuple, u64)> {
        py.detach(|| self.0.snapshot().into_iter().map(|(key, value)| (tuple_of(&key), value)).collect())
    }

    /// Return the counters of all shards together, and in `per_shard` those of each.
    ///
    /// `len` and `peak` count flows, `lookups` operations, `refused` insertions at the bound; `lock_wait_ns` is time
    /// spent waiting for a shard's lock.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.0.stats();
        let dict = shard_dict(py, &stats.total)?;
        let each = stats.per_shard.iter().map(|shard| shard_dict(py, shard)).collect::<PyResult<Vec<_>>>()?;
        dict.set_item("per_shard", each)?;
        Ok(dict)
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __contains__(&self, key: Tuple) -> bool {
        self.get(key).is_some()
    }
}

fn shard_dict<'py>(py: Python<'py>, stats: &ShardStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("len", stats.len)?;
    dict.set_item("peak", stats.peak)?;
    dict.set_item("lookups", stats.lookups)?;
    dict.set_item("refused", stats.refused)?;
    dict.set_item("lock_wait_ns", stats.lock_wait_ns)?;
    Ok(dict)
}
