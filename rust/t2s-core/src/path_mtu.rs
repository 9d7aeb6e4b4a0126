//! What the paths to clients carry: the results of path MTU discovery (RFC 1191, RFC 8201), by client address.
//!
//! Promises: what a path carries never exceeds the device's MTU and never falls below the least that hosts accept; what
//! was learned is forgotten after ten minutes, since paths change (RFC 1191, section 6.3; RFC 8201, section 4); the
//! table is bounded. Refuses sizes that no link of the family has: a message with one is a mistake or a lie.
//!
//! Whether a message may be believed is the caller's matter: it knows what was sent.

use core::net::IpAddr;
use std::collections::BTreeMap;

use crate::time::{Instant, SECONDS};

/// Clients whose path is remembered.
const CAPACITY: usize = 1_024;
/// How long, nanoseconds.
pub(crate) const LIFETIME: u64 = 600 * SECONDS;
/// Least path MTU that is believed, bytes: each IPv6 link carries 1,280 (RFC 8200, section 5). For IPv4 it is what
/// Linux takes (`min_pmtu`); links below hardly exist, and a smaller size would cost more headers than payload.
const LEAST_V4: u16 = 552;
const LEAST_V6: u16 = 1_280;
/// Sizes to try when a router does not tell one (RFC 1191, section 7.1), bytes.
const PLATEAUS: [u16; 9] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 576, 552];

/// The path MTU to try when `size` bytes, a packet of `client`'s family, were too big for a link that takes `mtu`; 0
/// when the router did not say (RFC 1191, section 5). `None` if that makes no sense.
pub(crate) fn believable(client: IpAddr, mtu: u32, size: u32) -> Option<u16> {
    let least = if client.is_ipv4() { LEAST_V4 } else { LEAST_V6 };
    if mtu == 0 && client.is_ipv4() {
        return PLATEAUS.into_iter().find(|&plateau| u32::from(plateau) < size);
    }
    // The packet that was too big must have been bigger (RFC 5927, section 7.2).
    let mtu = u16::try_from(mtu).ok().filter(|&mtu| u32::from(mtu) < size)?;
    // Below the least an IPv6 node need not go (RFC 8201, section 4: such a message is discarded); an IPv4 router may
    // say less, and then the least is what we try.
    if client.is_ipv4() { Some(mtu.max(least)) } else { (mtu >= least).then_some(mtu) }
}

/// What is known of the paths to clients.
#[derive(Debug, Default)]
pub(crate) struct PathMtus {
    known: BTreeMap<IpAddr, (u16, Instant)>,
}

impl PathMtus {
    /// The path's MTU, where it is less than the device's.
    #[inline]
    pub(crate) fn get(&self, now: Instant, client: IpAddr) -> Option<u16> {
        if self.known.is_empty() {
            return None;
        }
        self.known.get(&client).filter(|(_, until)| *until > now).map(|(mtu, _)| *mtu)
    }

    /// Remembers that the path to `client` carries `mtu` bytes.
    pub(crate) fn learn(&mut self, now: Instant, client: IpAddr, mtu: u16) {
        if self.known.len() >= CAPACITY && !self.known.contains_key(&client) {
            self.known.retain(|_, (_, until)| *until > now);
            let oldest = self.known.iter().min_by_key(|(_, (_, until))| *until).map(|(client, _)| *client);
            if let Some(oldest) = oldest.filter(|_| self.known.len() >= CAPACITY) {
                self.known.remove(&oldest);
            }
        }
        let mtu = self.get(now, client).map_or(mtu, |known| known.min(mtu));
        self.known.insert(client, (mtu, now.plus(LIFETIME)));
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));

    #[test]
    fn only_sizes_that_make_sense_are_believed() {
        assert_eq!(believable(V4, 1_400, 1_500), Some(1_400));
        assert_eq!(believable(V4, 1_500, 1_500), None, "what went through was not too big");
        assert_eq!(believable(V4, 296, 1_500), Some(LEAST_V4));
        assert_eq!(believable(V4, 70_000, 1_500), None);
        assert_eq!(believable(V6, 1_280, 1_500), Some(1_280));
        assert_eq!(believable(V6, 1_279, 1_500), None);
        assert_eq!(believable(V6, 0, 1_500), None);
        // RFC 1191, section 7.1: the next plateau below what was sent.
        for (size, next) in [(1_500, 1_492), (1_492, 1_006), (65_535, 32_000), (553, 552)] {
            assert_eq!(believable(V4, 0, size), Some(next));
        }
        assert_eq!(believable(V4, 0, 552), None);
    }

    #[test]
    fn what_was_learned_is_bounded_in_time_and_number() {
        let mut paths = PathMtus::default();
        let at = |seconds: u64| Instant::from_millis(seconds * 1_000);
        paths.learn(at(0), V4, 1_400);
        paths.learn(at(1), V4, 1_450);
        assert_eq!(paths.get(at(600), V4), Some(1_400), "two routers: the smaller link counts");
        assert_eq!((paths.get(at(0), V6), paths.get(at(601), V4)), (None, None));
        paths.learn(at(700), V4, 1_450);
        assert_eq!(paths.get(at(700), V4), Some(1_450), "the old limit is over");
        for host in 0..3_000_u32 {
            paths.learn(at(701), IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + host)), 1_400);
            assert!(paths.known.len() <= CAPACITY);
        }
        assert_eq!(paths.get(at(701), V4), None, "the oldest made room");
        assert_eq!(paths.get(at(701), IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + 2_999))), Some(1_400));
    }
}
