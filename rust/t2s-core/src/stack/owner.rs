//! Which worker a packet belongs to, for devices that steer packets to workers.

use crate::flow::{FlowKey, FlowMap};
use crate::wire::ip::Ip;
use crate::wire::protocol;

/// See [`WorkerMap::owner_of`](super::WorkerMap::owner_of).
pub(super) fn owner_of(map: &FlowMap<u32>, workers: usize, packet: &[u8]) -> usize {
    if workers <= 1 {
        return 0;
    }
    let Ok(ip) = Ip::parse(packet) else { return 0 };
    if ip.fragment.is_some() {
        return 0;
    }
    let Some(ports) = packet.get(ip.payload as usize..ip.payload as usize + 4) else { return 0 };
    let source = u16::from_be_bytes([ports[0], ports[1]]);
    let target = u16::from_be_bytes([ports[2], ports[3]]);
    let key = match ip.protocol {
        protocol::TCP => FlowKey::new(ip.src, source, ip.dst, target, protocol::TCP),
        protocol::UDP => session_key(ip.src, source),
        _ => return 0,
    };
    worker_of(map, workers, map.hash(&key))
}

/// The key that decides a UDP session's worker.
pub(super) fn session_key(client: core::net::IpAddr, port: u16) -> FlowKey {
    FlowKey::new(client, port, core::net::IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED), 0, protocol::UDP)
}

/// The worker that owns a hash: the owner of its shard, or, when all share one shard, an even part of the hashes.
#[inline]
pub(super) fn worker_of(map: &FlowMap<u32>, workers: usize, hash: u64) -> usize {
    match workers {
        1 => 0,
        _ if map.shards() > 1 => map.shard_of(hash) % workers,
        // Bits that neither the table's tags (top) nor its buckets (bottom) use most.
        _ => (hash >> 32) as usize % workers,
    }
}
