//! Which worker a client endpoint belongs to: the stack's own rule, so that each generator feeds only its own worker.

use std::sync::Arc;

use t2s_core::stack::WorkerMap;

use crate::generator::address::FlowAddresses;
use crate::generator::packets::{TcpFields, ip_header_len, write_tcp, write_udp};

/// Says what belongs to one worker.
#[derive(Clone)]
pub struct Placement(Option<Owner>);

#[derive(Clone)]
struct Owner {
    map: Arc<WorkerMap>,
    worker: usize,
}

impl Placement {
    /// For a single worker: everything is its own.
    pub fn everywhere() -> Self {
        Self(None)
    }

    /// For one of the workers that share `map`.
    pub fn among(map: &Arc<WorkerMap>, worker: usize) -> Self {
        Self((map.workers() > 1).then(|| Owner { map: Arc::clone(map), worker }))
    }

    /// Whether the flow of a packet is this worker's.
    #[inline]
    pub fn owns(&self, packet: &[u8]) -> bool {
        self.0.as_ref().is_none_or(|owner| owner.map.owner_of(packet) == owner.worker)
    }

    /// Whether a TCP flow is this worker's.
    pub fn owns_tcp(&self, ends: FlowAddresses) -> bool {
        let mut packet = [0; 60];
        let len = ip_header_len(ends.v6) + 20;
        self.0.is_none() || {
            write_tcp(&mut packet, ends, &TcpFields::default(), 0, 0);
            self.owns(&packet[..len])
        }
    }

    /// Whether a UDP session is this worker's.
    pub fn owns_udp(&self, ends: FlowAddresses) -> bool {
        let mut packet = [0; 48];
        let len = ip_header_len(ends.v6) + 8;
        self.0.is_none() || {
            write_udp(&mut packet, ends, 0, 0);
            self.owns(&packet[..len])
        }
    }
}

#[cfg(test)]
mod tests {
    use t2s_core::config::Config;

    use super::*;

    #[test]
    fn every_endpoint_has_one_owner() {
        let map = Arc::new(WorkerMap::new(&Config::default(), 2, 0));
        let owners = [0, 1].map(|worker| Placement::among(&map, worker));
        let mut counts = [0; 2];
        for port in 1024..2048 {
            let ends = FlowAddresses {
                v6: port % 2 == 0,
                worker: 0,
                component: 1,
                slot: 0,
                client_port: port,
                target_port: 443,
            };
            let tcp = owners.clone().map(|owner| owner.owns_tcp(ends));
            assert!(tcp[0] != tcp[1] && owners[0].owns_udp(ends) != owners[1].owns_udp(ends));
            counts[usize::from(tcp[1])] += 1;
        }
        assert!(counts[0] > 400 && counts[1] > 400, "{counts:?}");
        let ends = FlowAddresses { v6: false, worker: 0, component: 0, slot: 0, client_port: 1, target_port: 1 };
        assert!(
            Placement::everywhere().owns_tcp(ends)
                && Placement::among(&Arc::new(WorkerMap::new(&Config::default(), 1, 0)), 0).owns_udp(ends)
        );
    }
}
