//! A list of table slots, least recently used first: constant time, and no allocation once every place was used.
//!
//! Promises: a place stands in the list at most once; entering at the end, leaving from anywhere and looking at the
//! front are O(1). Knows nothing of what the places hold.

/// No place: the end of a list, or not in it.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    member: bool,
}

/// A list of places (indices of a table), oldest first.
#[derive(Debug)]
pub(crate) struct LruList {
    links: Vec<Link>,
    first: u32,
    last: u32,
}

impl Default for LruList {
    fn default() -> Self {
        Self { links: Vec::new(), first: NONE, last: NONE }
    }
}

impl LruList {
    /// The place that entered first.
    pub(crate) fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// The place that entered after `place`.
    pub(crate) fn after(&self, place: u32) -> Option<u32> {
        self.links.get(place as usize).filter(|link| link.member && link.next != NONE).map(|link| link.next)
    }

    /// Whether `place` is in the list.
    #[cfg(test)]
    pub(crate) fn contains(&self, place: u32) -> bool {
        self.links.get(place as usize).is_some_and(|link| link.member)
    }

    /// Puts `place` at the end, wherever it was before. `u32::MAX` is not a place.
    #[inline]
    pub(crate) fn push(&mut self, place: u32) {
        if self.last == place && place != NONE {
            return;
        }
        self.remove(place);
        let index = place as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, Link { previous: NONE, next: NONE, member: false });
        }
        self.links[index] = Link { previous: self.last, next: NONE, member: true };
        match self.links.get_mut(self.last as usize) {
            Some(last) => last.next = place,
            None => self.first = place,
        }
        self.last = place;
    }

    /// Takes `place` out, if it is in.
    #[inline]
    pub(crate) fn remove(&mut self, place: u32) {
        let Some(link) = self.links.get_mut(place as usize).filter(|link| link.member) else { return };
        link.member = false;
        let Link { previous, next, .. } = *link;
        match self.links.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => self.first = next,
        }
        match self.links.get_mut(next as usize) {
            Some(next) => next.previous = previous,
            None => self.last = previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn same_as_a_deque(steps in prop::collection::vec((0u32..12, any::<bool>()), 0..200)) {
            let (mut list, mut twin) = (LruList::default(), VecDeque::new());
            for (place, enter) in steps {
                twin.retain(|&other| other != place);
                if enter {
                    list.push(place);
                    twin.push_back(place);
                } else {
                    list.remove(place);
                }
                let mut seen = Vec::new();
                let mut at = list.first();
                while let Some(place) = at {
                    seen.push(place);
                    at = list.after(place);
                }
                prop_assert_eq!(seen, twin.iter().copied().collect::<Vec<_>>());
                prop_assert!((0..12).all(|place| list.contains(place) == twin.contains(&place)));
            }
        }
    }
}
