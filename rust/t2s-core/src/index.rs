//! An index with open addressing: from hashes to numbered places, for a table that keeps keys and values itself.
//!
//! A slot is one word: 32 bits of the hash, and the place. Slots are probed one after the other, eight to a cache line,
//! and the hash bits do what control bytes do elsewhere: the table's own memory is touched only when they agree. A
//! removal moves the following slots back (the hash bits say how far), so there are no tombstones, and nothing is ever
//! cleaned up. That is why it is not `hashbrown`: its deletions leave tombstones, which under steady churn gather at
//! any load until a rehash of everything stalls a packet.
//!
//! Promises: with no more places than room was made for, nothing is allocated and nothing moved as a whole; beyond, the
//! index doubles. Room touches no memory until it is used.
//!
//! Knows nothing of keys: whether a place is the one looked for is the caller's to say.

use crate::prefetch::prefetch_to_write;

/// An empty slot; others hold `hash bits << 32 | place + 1`.
const EMPTY: u64 = 0;

/// See the module. Places are below `u32::MAX`, and each is in it at most once.
#[derive(Debug)]
pub(crate) struct Index {
    /// A power of two, of which at most two thirds are in use: every probe meets an empty one.
    slots: Box<[u64]>,
    len: usize,
}

/// The hash bits that a slot keeps: the lower ones, so that callers may spend the upper ones on something else.
#[inline]
fn bits(hash: u64) -> u32 {
    hash as u32
}

#[inline]
fn slot_bits(slot: u64) -> u32 {
    (slot >> 32) as u32
}

/// The place that a slot names; the slot is not empty.
#[inline]
fn slot_place(slot: u64) -> u32 {
    slot as u32 - 1
}

/// Where an index has its slots. After the index has grown it names memory of the past, which a hint may.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    at: usize,
    mask: usize,
}

impl Site {
    /// Gets the slot that a search for `hash` begins with under way to the cache.
    #[inline]
    pub(crate) fn prefetch(self, hash: u64) {
        let slot = self.at.wrapping_add((bits(hash) as usize & self.mask) * size_of::<u64>());
        prefetch_to_write(core::ptr::without_provenance(slot), size_of::<u64>());
    }
}

impl Index {
    /// An empty index with room for `places` (at most 2^31: beyond, it grows when they come).
    pub(crate) fn with_room(places: usize) -> Self {
        let places = places.min(1 << 31);
        // Zeroed by the system: no page is touched yet.
        Self { slots: vec![EMPTY; (places + places / 2 + 1).next_power_of_two()].into_boxed_slice(), len: 0 }
    }

    /// Places in the index.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn mask(&self) -> usize {
        self.slots.len() - 1
    }

    /// The place under a hash that `is_it` agrees to.
    #[inline]
    pub(crate) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.probe(hash, is_it).map(|(_, place)| place)
    }

    /// The place that is likely found under a hash: the first whose hash bits agree. Looks at nothing but the slots.
    #[inline]
    pub(crate) fn guess(&self, hash: u64) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// Where the slots are, for hints; may be kept outside of the index's lock.
    #[inline]
    pub(crate) fn site(&self) -> Site {
        Site { at: self.slots.as_ptr().addr(), mask: self.mask() }
    }

    /// Puts in a place that is not there yet.
    #[inline]
    pub(crate) fn insert(&mut self, hash: u64, place: u32) {
        if (self.len + 1) * 3 > self.slots.len() * 2 {
            self.grow();
        }
        self.len += 1;
        self.fill(u64::from(bits(hash)) << 32 | u64::from(place + 1));
    }

    /// Takes out the place under a hash that `is_it` agrees to.
    #[inline]
    pub(crate) fn remove(&mut self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let (slot, place) = self.probe(hash, is_it)?;
        self.close_gap(slot);
        self.len -= 1;
        Some(place)
    }

    /// The slot and the place.
    #[inline]
    fn probe(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<(usize, u32)> {
        let bits = bits(hash);
        let mask = self.mask();
        let mut at = bits as usize & mask;
        // Ends: a third of the slots is empty.
        loop {
            let slot = self.slots[at];
            if slot == EMPTY {
                return None;
            }
            if slot_bits(slot) == bits {
                let place = slot_place(slot);
                if is_it(place) {
                    return Some((at, place));
                }
            }
            at = (at + 1) & mask;
        }
    }

    /// Writes a slot to the first empty one from its home on.
    #[inline]
    fn fill(&mut self, slot: u64) {
        let mask = self.mask();
        let mut at = slot_bits(slot) as usize & mask;
        while self.slots[at] != EMPTY {
            at = (at + 1) & mask;
        }
        self.slots[at] = slot;
    }

    /// Empties a slot and moves back those behind it that a probe would otherwise no longer reach.
    fn close_gap(&mut self, slot: usize) {
        let mask = self.mask();
        let mut gap = slot;
        let mut at = slot;
        loop {
            at = (at + 1) & mask;
            let slot = self.slots[at];
            if slot == EMPTY {
                break;
            }
            let home = slot_bits(slot) as usize & mask;
            // It may move if its home is not between the gap and where it stands.
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.slots[gap] = slot;
                gap = at;
            }
        }
        self.slots[gap] = EMPTY;
    }

    #[cold]
    fn grow(&mut self) {
        let doubled = vec![EMPTY; self.slots.len() * 2].into_boxed_slice();
        for slot in core::mem::replace(&mut self.slots, doubled) {
            if slot != EMPTY {
                self.fill(slot);
            }
        }
    }

    /// The longest way from a home to its slot; asserts that every place can be reached.
    #[cfg(test)]
    pub(crate) fn longest_probe(&self) -> usize {
        let mask = self.mask();
        let used = self.slots.iter().filter(|&&slot| slot != EMPTY).count();
        assert_eq!(used, self.len, "one slot a place");
        let probe = |(at, &slot): (usize, &u64)| {
            let home = slot_bits(slot) as usize & mask;
            let steps = at.wrapping_sub(home) & mask;
            assert!((0..steps).all(|step| self.slots[(home + step) & mask] != EMPTY), "no gap on the way");
            steps
        };
        self.slots.iter().enumerate().filter(|&(_, &slot)| slot != EMPTY).map(probe).max().unwrap_or(0)
    }

    /// Slots, for tests that nothing grows.
    #[cfg(test)]
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_room_that_was_made_is_enough() {
        for room in (0..40).chain([1_000, 5_461, 5_462]) {
            let mut index = Index::with_room(room);
            let slots = index.slots();
            for place in 0..room as u32 {
                index.insert(u64::from(place).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7, place);
            }
            assert_eq!((index.slots(), index.len()), (slots, room));
            assert!(slots <= 4 * room.max(1), "{slots} slots for {room}");
        }
    }

    proptest! {
        /// Hashes of few bits, at the end of the slots too: places share homes, and their runs overlap and go round.
        #[test]
        fn same_as_a_map(
            room in 0_usize..20,
            spread in prop::sample::select(vec![1_u64, 3, 0xffff_fffe, 0x1_0000_0001, 0x9e37_79b9_7f4a_7c15]),
            steps in prop::collection::vec((0_u32..40, any::<bool>()), 1..300),
        ) {
            let hash = |place: u32| u64::from(place / 3).wrapping_mul(spread);
            let (mut index, mut twin) = (Index::with_room(room), BTreeMap::new());
            for (place, insert) in steps {
                if insert {
                    if twin.insert(place, hash(place)).is_none() {
                        index.insert(hash(place), place);
                    }
                } else {
                    let removed = index.remove(hash(place), |other| other == place);
                    prop_assert_eq!(removed, twin.remove(&place).map(|_| place));
                }
                prop_assert_eq!(index.len(), twin.len());
                index.longest_probe();
                for place in 0..40 {
                    let found = index.find(hash(place), |other| other == place);
                    prop_assert_eq!(found, twin.contains_key(&place).then_some(place));
                }
                prop_assert_eq!(index.find(1 << 31, |_| true), None, "a hash that nobody has");
            }
        }
    }
}
