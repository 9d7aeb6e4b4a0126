//! What a TUN device can be asked for (`linux/if_tun.h`), and the order in which it is asked.

use t2s_core::config::Offload;

/// `IFF_TUN`: IP packets.
pub(super) const IFF_TUN: i32 = 0x0001;
/// `IFF_TAP`: Ethernet frames.
pub(super) const IFF_TAP: i32 = 0x0002;
/// `IFF_MULTI_QUEUE`: several descriptors a device.
pub(super) const IFF_MULTI_QUEUE: i32 = 0x0100;
/// `IFF_NO_PI`: no packet-information header.
pub(super) const IFF_NO_PI: i32 = 0x1000;
/// `IFF_VNET_HDR`: a virtio-net header in front of each packet.
pub(super) const IFF_VNET_HDR: i32 = 0x4000;

/// Length of the legacy virtio-net header, bytes.
pub const VNET_HEADER: usize = 10;

/// `TUN_F_CSUM`: packets without transport checksum.
const CSUM: u32 = 0x01;
/// `TUN_F_TSO4`: TCP super-segments over IPv4.
const TSO4: u32 = 0x02;
/// `TUN_F_TSO6`: TCP super-segments over IPv6.
const TSO6: u32 = 0x04;
/// `TUN_F_TSO_ECN`: super-segments with ECN bits.
const TSO_ECN: u32 = 0x08;
/// `TUN_F_USO4`: UDP super-datagrams over IPv4 (Linux 6.2).
const USO4: u32 = 0x20;
/// `TUN_F_USO6`: UDP super-datagrams over IPv6 (Linux 6.2).
const USO6: u32 = 0x40;

/// The sets, richest first. TSO needs CSUM; USO needs both of its bits; ECN is refused by some old kernels.
const SETS: [u32; 5] =
    [CSUM | TSO4 | TSO6 | TSO_ECN | USO4 | USO6, CSUM | TSO4 | TSO6 | TSO_ECN, CSUM | TSO4 | TSO6, CSUM, 0];

/// Asks for one set after the other and answers what the first accepted one amounts to.
///
/// The negotiation is about packets that are read. Packets that are written may be unfinished whenever the header is
/// there; only USO depends on the kernel's age, which the answer tells.
pub(super) fn negotiate(mut accepts: impl FnMut(u32) -> bool) -> Offload {
    let granted = SETS.into_iter().find(|&set| accepts(set)).unwrap_or(0);
    Offload {
        rx_checksum: granted & CSUM != 0,
        tx_checksum: granted & CSUM != 0,
        tso: granted & TSO4 != 0 && granted & TSO6 != 0,
        uso: granted & USO4 != 0 && granted & USO6 != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_gets_the_richest_set_it_takes() {
        let all = negotiate(|_| true);
        assert!(all.rx_checksum && all.tx_checksum && all.tso && all.uso);
        let old = negotiate(|set| set & (USO4 | USO6) == 0);
        assert!(old.tso && !old.uso);
        let checksum_only = negotiate(|set| set & !CSUM == 0);
        assert!(checksum_only.rx_checksum && !checksum_only.tso);
        assert_eq!(negotiate(|_| false), Offload::default());
    }
}
