//! The shard of the flow map that a batch holds locked.
//!
//! Promises: a cursor holds at most one shard, so that there is no order of locks to get wrong; the one it holds stays
//! locked until another is asked for, or the cursor ends.

use crate::flow::{FlowMap, ShardGuard};

/// See the module.
pub(super) struct ShardCursor<'m> {
    map: &'m FlowMap<u32>,
    held: Option<(usize, ShardGuard<'m, u32>)>,
}

impl<'m> ShardCursor<'m> {
    /// Holds nothing yet.
    pub(super) fn new(map: &'m FlowMap<u32>) -> Self {
        Self { map, held: None }
    }

    /// The shard of a hash, locked.
    #[inline]
    pub(super) fn shard(&mut self, hash: u64) -> &mut ShardGuard<'m, u32> {
        let wanted = self.map.shard_of(hash);
        if self.held.as_ref().is_none_or(|(shard, _)| *shard != wanted) {
            // The old guard goes first: a thread never holds two shards.
            self.held = None;
        }
        let (_, guard) = self.held.get_or_insert_with(|| (wanted, self.map.lock(wanted)));
        guard
    }
}
