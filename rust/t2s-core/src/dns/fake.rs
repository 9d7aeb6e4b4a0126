//! Made-up addresses for names: a query is answered at once from a private range, and a connection to such an address
//! is dialled by name through the proxy.
//!
//! Promises: a name keeps its addresses, IPv4 and IPv6 in step, for as long as the range has room; then the name that
//! was used longest ago loses them. Memory is bounded by the ranges and [`NAMES_MAX`]. Reserved addresses are given to
//! nobody. Refuses: ranges without room for a single name.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ahash::RandomState;
use hashbrown::HashTable;

use super::Name;
use crate::lru::LruList;

/// Most names at once, however large the ranges are: a /16, about 4 MB of names.
const NAMES_MAX: u32 = 65_536;

/// A range of addresses: the bits of `base` below `prefix` do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeRange<A> {
    /// An address of the range.
    pub base: A,
    /// Bits that all its addresses have in common.
    pub prefix: u8,
}

/// A checked range.
#[derive(Clone, Copy, Debug)]
struct Range {
    /// The first address of the range, as a number; it is given to nobody.
    first: u128,
    /// Bits that tell its addresses apart.
    mask: u128,
    /// Names that it has room for.
    room: u32,
}

impl Range {
    /// `None` if there is no room, or the prefix is not one. The first address (the network) and the last (in IPv4
    /// the broadcast address) are left out.
    fn new(base: u128, prefix: u8, bits: u8) -> Option<Self> {
        let host = bits.checked_sub(prefix)?;
        let mask = u128::MAX.checked_shr(128 - u32::from(host)).unwrap_or(0);
        let room = mask.saturating_sub(1).min(u128::from(NAMES_MAX)) as u32;
        (room > 0).then_some(Self { first: base & !mask, mask, room })
    }

    fn contains(&self, address: u128) -> bool {
        address & !self.mask == self.first
    }

    fn place(&self, address: u128) -> Option<u32> {
        let offset = address.checked_sub(self.first)?.checked_sub(1)?;
        u32::try_from(offset).ok().filter(|&place| place < self.room)
    }

    fn address(&self, place: u32) -> u128 {
        self.first + 1 + u128::from(place)
    }
}

/// One or two ranges of fake addresses.
#[derive(Clone, Copy, Debug)]
pub struct FakeRanges {
    v4: Option<Range>,
    v6: Option<Range>,
}

impl FakeRanges {
    /// Ranges of one or both families. `None` if neither is given, or one has no room.
    pub fn new(v4: Option<FakeRange<Ipv4Addr>>, v6: Option<FakeRange<Ipv6Addr>>) -> Option<Self> {
        let v4 = match v4 {
            Some(range) => Some(Range::new(u128::from(u32::from(range.base)), range.prefix, 32)?),
            None => None,
        };
        let v6 = match v6 {
            Some(range) => Some(Range::new(u128::from(range.base), range.prefix, 128)?),
            None => None,
        };
        (v4.is_some() || v6.is_some()).then_some(Self { v4, v6 })
    }

    /// Whether an address lies in one of the ranges: a connection to one that [`FakePool::resolve`] does not know must
    /// fail, not be dialled.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.is_some_and(|range| range.contains(u128::from(u32::from(address)))),
            IpAddr::V6(address) => self.v6.is_some_and(|range| range.contains(u128::from(address))),
        }
    }

    /// The first address of each range that may be given to somebody.
    pub fn first(&self) -> impl Iterator<Item = IpAddr> {
        let (v4, v6) = self.addresses(0);
        v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6))
    }

    /// Places that all ranges have: a name has the same one in both.
    fn room(&self) -> u32 {
        self.v4.iter().chain(&self.v6).map(|range| range.room).min().unwrap_or(0)
    }

    fn addresses(&self, place: u32) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let v4 = self.v4.map(|range| Ipv4Addr::from(range.address(place) as u32));
        let v6 = self.v6.map(|range| Ipv6Addr::from(range.address(place)));
        (v4, v6)
    }

    fn place(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => self.v4?.place(u128::from(u32::from(address))),
            IpAddr::V6(address) => self.v6?.place(u128::from(address)),
        }
    }
}

/// The names that have fake addresses.
#[derive(Debug)]
pub struct FakePool {
    ranges: FakeRanges,
    room: u32,
    hasher: RandomState,
    by_name: HashTable<u32>,
    /// Names by place, in wire form; empty for a reserved place.
    names: Vec<Box<[u8]>>,
    /// Places that are given to no name.
    reserved: Vec<u32>,
    /// In order of last use; reserved places never enter.
    used: LruList,
    evicted: u64,
}

impl FakePool {
    /// A pool over ranges, hashed under `hash_key`, that gives the addresses of `reserved` to nobody. `None` if there
    /// is no room for a name beside them.
    pub fn new(ranges: FakeRanges, reserved: &[IpAddr], hash_key: [u64; 4]) -> Option<Self> {
        let room = ranges.room();
        let mut reserved: Vec<u32> =
            reserved.iter().filter_map(|&address| ranges.place(address)).filter(|&place| place < room).collect();
        reserved.sort_unstable();
        reserved.dedup();
        if reserved.len() >= room as usize {
            return None;
        }
        let [a, b, c, d] = hash_key;
        Some(Self {
            ranges,
            room,
            hasher: RandomState::with_seeds(a, b, c, d),
            by_name: HashTable::new(),
            names: Vec::new(),
            reserved,
            used: LruList::default(),
            evicted: 0,
        })
    }

    /// The addresses of a name, which gets some if it has none; `None` for a family without a range. Counts as use.
    pub fn assign(&mut self, name: &Name) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let place = self.place(name);
        self.used.push(place);
        self.ranges.addresses(place)
    }

    /// The name that an address was made up for, if it still is. Counts as use.
    pub fn resolve(&mut self, address: IpAddr) -> Option<Name> {
        let place = self.ranges.place(address)?;
        let bytes = self.names.get(place as usize).filter(|bytes| !bytes.is_empty())?;
        let name = Name::from_bytes(bytes);
        self.used.push(place);
        Some(name)
    }

    /// The ranges.
    pub fn ranges(&self) -> FakeRanges {
        self.ranges
    }

    /// Names that have addresses.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether no name has addresses.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Names that lost their addresses to others.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The place of a name; the least recently used name's, if it has none and all are taken.
    fn place(&mut self, name: &Name) -> u32 {
        let bytes = name.as_bytes();
        let hash = self.hasher.hash_one(bytes);
        let named = |names: &[Box<[u8]>], place: u32| names.get(place as usize).is_some_and(|it| **it == *bytes);
        if let Some(&place) = self.by_name.find(hash, |&place| named(&self.names, place)) {
            return place;
        }
        while self.reserved.contains(&(self.names.len() as u32)) {
            self.names.push(Box::default());
        }
        let place = if self.names.len() < self.room as usize {
            self.names.push(bytes.into());
            self.names.len() as u32 - 1
        } else {
            // All places are taken, and at least one is not reserved: the order is not empty.
            let place = self.used.first().unwrap_or(0);
            if let Some(old) = self.names.get_mut(place as usize) {
                let old_hash = self.hasher.hash_one(&**old);
                if let Ok(entry) = self.by_name.find_entry(old_hash, |&other| other == place) {
                    let _ = entry.remove();
                }
                *old = bytes.into();
            }
            self.evicted += 1;
            place
        };
        let (hasher, names) = (&self.hasher, &self.names);
        self.by_name.insert_unique(hash, place, |&place| {
            hasher.hash_one(names.get(place as usize).map(|name| &**name).unwrap_or_default())
        });
        place
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const KEY: [u64; 4] = [1, 2, 3, 4];
    const V4: FakeRange<Ipv4Addr> = FakeRange { base: Ipv4Addr::new(198, 18, 0, 9), prefix: 29 };
    const V6: FakeRange<Ipv6Addr> = FakeRange { base: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5), prefix: 64 };

    fn name(n: u32) -> Name {
        Name::from_text(&format!("n{n}.example")).expect("good")
    }

    #[test]
    fn addresses_of_both_families_in_step() {
        let ranges = FakeRanges::new(Some(V4), Some(V6)).expect("ranges");
        let mut pool = FakePool::new(ranges, &[], KEY).expect("room");
        let (v4, v6) = pool.assign(&name(0));
        assert_eq!(v4, Some(Ipv4Addr::new(198, 18, 0, 9)));
        assert_eq!(v6, Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)));
        assert_eq!(pool.assign(&name(1)).0, Some(Ipv4Addr::new(198, 18, 0, 10)));
        assert_eq!(pool.assign(&name(0)), (v4, v6));
        assert_eq!(pool.resolve(IpAddr::V6(v6.expect("a range"))), Some(name(0)));
        // The network and the broadcast address belong to the range, though nobody has them.
        for (host, inside) in [(7, false), (8, true), (9, true), (14, true), (15, true), (16, false)] {
            let address = IpAddr::V4(Ipv4Addr::new(198, 18, 0, host));
            assert_eq!(pool.ranges().contains(address), inside, "{host}");
            assert_eq!(pool.resolve(address).is_some(), (9..=10).contains(&host), "{host}");
        }
        // Only a part of a large range is in use; all of it is fake.
        assert!(ranges.contains("fd00::1:2:3:4".parse().expect("an address")));
        assert!(!ranges.contains("fd00:0:0:1::".parse().expect("an address")));
    }

    #[test]
    fn reserved_addresses_are_given_to_nobody() {
        let ranges = FakeRanges::new(Some(V4), Some(V6)).expect("ranges");
        let first: Vec<IpAddr> = ranges.first().collect();
        assert_eq!(first, ["198.18.0.9", "fd00::1"].map(|text| text.parse::<IpAddr>().expect("an address")));
        let others = ["198.18.0.12", "192.0.2.1", "fd00::6"].map(|text| text.parse().expect("an address"));
        let reserved = [&first[..], &others].concat();
        let mut pool = FakePool::new(ranges, &reserved, KEY).expect("room");
        for n in 0..100 {
            let (v4, v6) = pool.assign(&name(n));
            let given = [v4.map(IpAddr::V4), v6.map(IpAddr::V6)];
            assert!(given.iter().flatten().all(|address| !reserved.contains(address)), "{given:?}");
            assert_eq!(pool.len(), (n as usize + 1).min(3));
            assert!(reserved.iter().all(|&address| pool.resolve(address).is_none()));
        }
        assert_eq!(pool.evicted(), 97);
        let all: Vec<IpAddr> = (9..15).map(|host| IpAddr::V4(Ipv4Addr::new(198, 18, 0, host))).collect();
        assert!(FakePool::new(ranges, &all[1..], KEY).is_some());
        assert!(FakePool::new(ranges, &all, KEY).is_none());
    }

    #[test]
    fn impossible_ranges_are_refused() {
        assert!(FakeRanges::new(None, None).is_none());
        for prefix in [31, 32, 33, 200] {
            assert!(FakeRanges::new(Some(FakeRange { prefix, ..V4 }), None).is_none(), "{prefix}");
        }
        assert!(FakeRanges::new(Some(FakeRange { prefix: 0, ..V4 }), Some(FakeRange { prefix: 0, ..V6 })).is_some());
    }

    proptest! {
        /// Against a list in order of last use.
        #[test]
        fn same_as_the_twin(steps in prop::collection::vec((0u32..12, any::<bool>()), 0..150)) {
            let ranges = FakeRanges::new(Some(V4), None).expect("a range");
            let mut pool = FakePool::new(ranges, &[], KEY).expect("room");
            let mut twin: VecDeque<(u32, Ipv4Addr)> = VecDeque::new();
            for (n, assign) in steps {
                let known = twin.iter().position(|&(other, _)| other == n);
                if assign {
                    let address = pool.assign(&name(n)).0.expect("a range");
                    match known.and_then(|index| twin.remove(index)) {
                        Some((_, kept)) => prop_assert_eq!(kept, address),
                        None if twin.len() == 6 => {
                            prop_assert_eq!(twin.pop_front().map(|(_, freed)| freed), Some(address));
                        }
                        None => prop_assert!(twin.iter().all(|&(_, taken)| taken != address)),
                    }
                    twin.push_back((n, address));
                } else if let Some(used) = known.and_then(|index| twin.remove(index)) {
                    prop_assert_eq!(pool.resolve(IpAddr::V4(used.1)), Some(name(n)));
                    twin.push_back(used);
                }
                prop_assert_eq!(pool.len(), twin.len());
            }
        }
    }
}
