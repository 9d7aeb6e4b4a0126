//! The lab's address plan: an address says which worker, component and client slot it belongs to.
//!
//! Clients are `10.(64+worker).component.(1+slot)` and `fd00:7432:73:worker::component:(1+slot)`; targets are
//! `198.18.component.1` (RFC 2544, appendix C.2.2) and `2001:2:0:component::1` (RFC 5180, section 8). So a reply names
//! its sender without a table, and the simulated upstream knows its behaviour from the target. Floods come from
//! `100.64.0.0/10`, where no client lives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::truth::mix;

/// Workers that the plan can name.
pub const MAX_WORKERS: u32 = 64;

/// Client addresses of one component, family and worker.
pub const MAX_SLOTS: usize = 250;

/// One client endpoint and its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowAddresses {
    /// IPv6 or IPv4.
    pub v6: bool,
    /// The worker whose generator sends this.
    pub worker: u8,
    /// Index of the component.
    pub component: u8,
    /// Which of the component's client addresses.
    pub slot: u8,
    /// Port of the client.
    pub client_port: u16,
    /// Port of the target.
    pub target_port: u16,
}

impl FlowAddresses {
    /// The client's IPv4 address.
    #[inline]
    pub const fn client_v4(self) -> [u8; 4] {
        [10, 64 + self.worker, self.component, 1 + self.slot]
    }

    /// The target's IPv4 address.
    #[inline]
    pub const fn target_v4(self) -> [u8; 4] {
        [198, 18, self.component, 1]
    }

    /// The client's IPv6 address.
    #[inline]
    pub const fn client_v6(self) -> [u8; 16] {
        [0xfd, 0, 0x74, 0x32, 0, 0x73, 0, self.worker, 0, 0, 0, 0, 0, self.component, 0, 1 + self.slot]
    }

    /// The target's IPv6 address.
    #[inline]
    pub const fn target_v6(self) -> [u8; 16] {
        [0x20, 1, 0, 2, 0, 0, 0, self.component, 0, 0, 0, 0, 0, 0, 0, 1]
    }

    /// The client's address.
    pub fn client(self) -> IpAddr {
        if self.v6 { Ipv6Addr::from(self.client_v6()).into() } else { Ipv4Addr::from(self.client_v4()).into() }
    }

    /// The target's address.
    pub fn target(self) -> IpAddr {
        if self.v6 { Ipv6Addr::from(self.target_v6()).into() } else { Ipv4Addr::from(self.target_v4()).into() }
    }

    /// Ones-complement sum of both addresses, not folded: the constant part of every checksum of this flow.
    #[inline]
    pub const fn address_sum(self) -> u32 {
        let (worker, component, slot) = (self.worker as u32, self.component as u32, self.slot as u32);
        if self.v6 {
            0xfd00 + 0x7432 + 0x0073 + worker + component + (1 + slot) + 0x2001 + 0x0002 + component + 1
        } else {
            0x0a40 + worker + (component << 8) + 1 + slot + 0xc612 + (component << 8) + 1
        }
    }
}

impl FlowAddresses {
    /// A number for the flow, which both ends can tell: from its lowest bits the pattern of its bytes starts.
    #[inline]
    pub const fn key(self) -> u64 {
        let place = u64::from_be_bytes([
            self.v6 as u8,
            self.worker,
            self.component,
            self.slot,
            (self.client_port >> 8) as u8,
            self.client_port as u8,
            0,
            0,
        ]);
        mix(place)
    }
}

/// The number of the flow of this client's end, [`FlowAddresses::key`]; `None` for an address that no client has.
pub fn key_of(client: SocketAddr) -> Option<u64> {
    let (v6, worker, component, host) = match client.ip() {
        IpAddr::V4(address) => {
            let [10, worker @ 64..128, component, host @ 1..=255] = address.octets() else { return None };
            (false, worker - 64, component, host)
        }
        IpAddr::V6(address) => {
            let [0xfd, 0, 0x74, 0x32, 0, 0x73, 0, worker, 0, 0, 0, 0, 0, component, 0, host @ 1..=255] =
                address.octets()
            else {
                return None;
            };
            (true, worker, component, host)
        }
    };
    let slot = host - 1;
    Some(FlowAddresses { v6, worker, component, slot, client_port: client.port(), target_port: 0 }.key())
}

/// The component that a target address belongs to.
pub fn component_of(target: IpAddr) -> Option<usize> {
    match target {
        IpAddr::V4(address) => match address.octets() {
            [198, 18, component, 1] => Some(usize::from(component)),
            _ => None,
        },
        IpAddr::V6(address) => match address.segments() {
            [0x2001, 2, 0, component, 0, 0, 0, 1] => Some(usize::from(component)),
            _ => None,
        },
    }
}

/// Component and slot of a client address, if it is one of this worker's.
#[inline]
pub fn client_of(address: &[u8], worker: u8) -> Option<(u8, u8)> {
    match *address {
        [10, w, component, host] if w == 64 + worker && host > 0 => Some((component, host - 1)),
        [0xfd, 0, 0x74, 0x32, 0, 0x73, 0, w, 0, 0, 0, 0, 0, component, 0, host] if w == worker && host > 0 => {
            Some((component, host - 1))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive_sum(bytes: &[u8]) -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum()
    }

    #[test]
    fn addresses_name_their_owner_and_sum_right() {
        for (v6, worker, component, slot) in
            [(false, 0, 0, 0), (true, 0, 0, 0), (false, 63, 63, 249), (true, 63, 63, 249)]
        {
            let ends = FlowAddresses { v6, worker, component, slot, client_port: 1, target_port: 2 };
            assert_eq!(component_of(ends.target()), Some(usize::from(component)));
            let (client, sum) = if v6 {
                (ends.client_v6().to_vec(), naive_sum(&ends.client_v6()) + naive_sum(&ends.target_v6()))
            } else {
                (ends.client_v4().to_vec(), naive_sum(&ends.client_v4()) + naive_sum(&ends.target_v4()))
            };
            assert_eq!(client_of(&client, worker), Some((component, slot)));
            assert_eq!(client_of(&client, worker ^ 1), None);
            assert_eq!(ends.address_sum(), sum);
            assert_eq!(key_of(SocketAddr::new(ends.client(), 1)), Some(ends.key()));
            assert_ne!(key_of(SocketAddr::new(ends.client(), 2)), Some(ends.key()));
        }
        assert_eq!(component_of("8.8.8.8".parse().unwrap()), None);
        assert_eq!(client_of(&[100, 64, 0, 1], 0), None);
        assert_eq!(key_of("100.64.0.1:9".parse().unwrap()), None);
    }
}
