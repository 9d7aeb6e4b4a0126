//! The flow map that the workers of one driver share, sized for their stacks.
//!
//! Promises: a stack below its cap of flows is never refused a place here. A flow that was evicted keeps its place
//! until its last segment has left, so each worker has room for some of these beyond its cap.

use super::flows::EVICT_SLACK;
use super::owner;
use crate::config::Config;
use crate::flow::{FlowMap, FlowMapConfig, FlowMapStats};

/// See the module.
#[derive(Debug)]
pub struct WorkerMap {
    pub(super) map: FlowMap<u32>,
    workers: usize,
}

impl WorkerMap {
    /// A map for `workers` stacks that are all made with `config`: its cap of flows, its hash key and its clock count.
    ///
    /// `shards` is 1 for a single lock, which all workers share, or 0 for a shard a worker. Any other number is rounded
    /// up to a multiple of `workers`, so that each shard has one owner.
    pub fn new(config: &Config, workers: usize, shards: usize) -> Self {
        let workers = workers.max(1);
        let shards = match shards {
            0 => workers,
            1 => 1,
            _ => shards.next_multiple_of(workers),
        };
        // All flows of a worker may fall into one of its shards. Room that is not used costs no memory.
        let room = (config.max_tcp_flows as usize).saturating_add(EVICT_SLACK);
        let capacity = room.saturating_mul(shards.max(workers));
        let hash_key = config.secrets.flow_hash;
        Self { map: FlowMap::new(FlowMapConfig { shards, capacity, hash_key, clock: config.clock }), workers }
    }

    /// Stacks that share this map.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The worker that owns the flow of `packet`; worker 0 for what has no flow (fragments, ICMP, garbage).
    ///
    /// The same rule as the stack's own: TCP by both ends, UDP by the client's end (its sessions are
    /// endpoint-independent, RFC 4787).
    pub fn owner_of(&self, packet: &[u8]) -> usize {
        owner::owner_of(&self.map, self.workers, packet)
    }

    /// The map itself, to look at it or to hold its locks.
    pub fn flow_map(&self) -> &FlowMap<u32> {
        &self.map
    }

    /// Flows held, over all shards.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether no flow is held.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The counters of the map.
    pub fn stats(&self) -> FlowMapStats {
        self.map.stats()
    }
}
