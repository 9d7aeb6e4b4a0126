//! What was sent and what arrived, counted at both ends and never by the core.
//!
//! Streams: both ends know what byte stands where (the pattern, from an offset that the flow's addresses give), so each
//! byte is compared, and a digest over `(flow, bytes)` of all flows that ended in order says whether every single one
//! has its length. Datagrams carry a sequence number, from which all other bytes follow. Promises: one wrong byte
//! anywhere is counted; bounded memory; what is compared costs the order of a copy out of the cache.

pub mod datagram;
pub mod sequence;
pub mod stream;

pub use sequence::{SequenceCounts, SequenceTracker};
pub use stream::{Damage, StreamTotals};

/// The finalizer of `SplitMix64`: every bit of the result depends on every bit of `z`.
#[inline]
pub const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
