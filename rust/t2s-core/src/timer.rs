//! A hierarchical timer wheel, one per worker: 1 ms ticks, everything O(1).
//!
//! Eight levels of 64 slots cover every tick that an [`Instant`] can name. A timer lies at the level of the highest
//! 6-bit digit in which its tick differs from the wheel's; it moves to a lower level when the wheel reaches its slot,
//! at most seven times in its life. Bitmaps of occupied slots let the wheel jump over hours without visiting ticks.
//!
//! Promises: a timer never fires before its deadline, and fires at the first call at or after the end of the deadline's
//! tick; timers of one tick fire in the order in which they came to its slot; a handler that re-arms its timer for now
//! gets the next tick, so expiring always ends. A slot of a higher level may hold many timers: a caller whose
//! iterations must stay short bounds how many of them move in one call, and the wheel waits for the rest. Memory is 32
//! bytes a timer at the peak number of timers, which the caller's own tables bound; slots of ended timers are used
//! again.

use crate::time::{Instant, MILLIS};

/// Ticks of one level, as bits of the tick number.
const BITS: u32 = 6;
/// Slots of a level.
const SLOTS: usize = 1 << BITS;
/// Levels: 8 x 6 bits hold `u64::MAX` nanoseconds in milliseconds (45 bits).
const LEVELS: usize = 8;
/// The list of timers that became due on their way down from a higher level, behind the slots of all levels.
const DUE: usize = LEVELS * SLOTS;
/// No timer.
const NIL: u32 = u32::MAX;

/// Names one timer until it fires or is cancelled; stale ones are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId {
    index: u32,
    generation: u32,
}

impl TimerId {
    /// Names no timer.
    pub const NONE: Self = Self { index: NIL, generation: 0 };
}

/// A timer, or a vacant place (then `list` is `VACANT`, and `next` leads to the next vacant one).
#[derive(Clone, Copy)]
struct Timer {
    tick: u64,
    token: u32,
    generation: u32,
    /// Neighbours in the list of the slot, `NIL` at its ends.
    next: u32,
    prev: u32,
    list: u16,
}

/// `Timer::list` of a vacant place.
const VACANT: u16 = u16::MAX;

/// The wheel.
pub struct Wheel {
    /// The tick that the wheel has reached: every timer beyond `DUE` has a later one.
    now: u64,
    timers: Vec<Timer>,
    vacant: u32,
    armed: u32,
    /// The list that is being taken from: a slot of the lowest level whose tick has come, or `DUE`.
    due: usize,
    /// The slot of a higher level that the wheel has reached and whose timers are on their way down, while some are
    /// left. Its bit in `occupied` is cleared, and no timer comes to it meanwhile.
    falling: Option<usize>,
    /// First and last timer of each slot's list. (A circular list would do without the last, but appending would touch
    /// the first one, which came a while ago and has left the cache.)
    heads: [u32; DUE + 1],
    tails: [u32; DUE + 1],
    /// Occupied slots of each level, a bit each.
    occupied: [u64; LEVELS],
}

impl Wheel {
    /// An empty wheel at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            now: now.millis(),
            timers: Vec::new(),
            vacant: NIL,
            armed: 0,
            due: DUE,
            falling: None,
            heads: [NIL; DUE + 1],
            tails: [NIL; DUE + 1],
            occupied: [0; LEVELS],
        }
    }

    /// Timers that are armed.
    pub fn len(&self) -> usize {
        self.armed as usize
    }

    /// Whether no timer is armed.
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// Arms a timer that hands `token` back at `deadline`, rounded up to the tick; a deadline in the past fires with
    /// the next tick.
    ///
    /// # Panics
    /// With 2^32 - 1 timers armed (128 GiB of them).
    pub fn insert(&mut self, token: u32, deadline: Instant) -> TimerId {
        let tick = deadline.nanos().div_ceil(MILLIS).max(self.now + 1);
        let index = if self.vacant == NIL {
            let index = self.timers.len() as u32;
            assert!(index != NIL, "a caller bounds its timers");
            self.timers.push(Timer { tick, token, generation: 0, next: NIL, prev: NIL, list: VACANT });
            index
        } else {
            let index = self.vacant;
            let timer = &mut self.timers[index as usize];
            self.vacant = timer.next;
            timer.tick = tick;
            timer.token = token;
            index
        };
        self.armed += 1;
        self.place(index, tick);
        TimerId { index, generation: self.timers[index as usize].generation }
    }

    /// Disarms a timer; false when it has fired or was cancelled before.
    pub fn cancel(&mut self, id: TimerId) -> bool {
        let armed = self
            .timers
            .get(id.index as usize)
            .is_some_and(|timer| timer.generation == id.generation && timer.list != VACANT);
        if armed {
            self.unlink(id.index);
            self.release(id.index);
        }
        armed
    }

    /// When to look again: never later than the earliest deadline's tick, exact within 64 ms of the wheel's time and a
    /// lower bound beyond. `None` when no timer is armed.
    #[inline]
    pub fn next(&self) -> Option<Instant> {
        if self.armed == 0 {
            return None;
        }
        if self.heads[self.due] != NIL || self.falling.is_some_and(|list| self.heads[list] != NIL) {
            return Some(Instant::from_millis(self.now));
        }
        self.next_slot().map(|(_, _, tick)| Instant::from_nanos(tick.saturating_mul(MILLIS)))
    }

    /// Takes one timer that is due at `now` and returns its token; call it until `None`.
    ///
    /// A timer cancelled between two calls does not fire.
    #[inline]
    pub fn pop_expired(&mut self, now: Instant) -> Option<u32> {
        let mut unbounded = usize::MAX;
        self.pop_expired_within(now, &mut unbounded)
    }

    /// Like [`Wheel::pop_expired`], but moves no more than `moves` timers to lower levels, and counts it down. When
    /// that is used up, `None` does not say that no other timer is due: [`Wheel::next`] then is not later than `now`.
    #[inline]
    pub fn pop_expired_within(&mut self, now: Instant, moves: &mut usize) -> Option<u32> {
        if self.heads[self.due] == NIL {
            self.advance(now.millis(), moves);
        }
        let index = self.heads[self.due];
        if index == NIL {
            return None;
        }
        let token = self.timers[index as usize].token;
        self.unlink(index);
        self.release(index);
        Some(token)
    }

    /// Hands every timer that is due at `now` to `fire`.
    pub fn expire(&mut self, now: Instant, fire: &mut impl FnMut(u32)) {
        while let Some(token) = self.pop_expired(now) {
            fire(token);
        }
    }

    /// The earliest occupied slot: level, slot and the tick at which it begins. Lower levels are always earlier.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let level = self.occupied.iter().position(|&slots| slots != 0)?;
        // All slots of a level lie in the same iteration as the wheel's time and after it, so the lowest bit is the
        // next.
        let slot = self.occupied[level].trailing_zeros() as usize;
        let shift = BITS * level as u32;
        let iteration = self.now >> shift >> BITS << BITS;
        Some((level, slot, (iteration | slot as u64) << shift))
    }

    /// Moves the wheel until timers are due, `tick` is reached or `moves` are used up.
    fn advance(&mut self, tick: u64, moves: &mut usize) {
        self.due = DUE;
        loop {
            if !self.fall(moves) || self.heads[DUE] != NIL {
                return;
            }
            let Some((level, slot, begins)) = self.next_slot().filter(|&(_, _, begins)| begins <= tick) else {
                self.now = self.now.max(tick);
                return;
            };
            self.now = begins;
            self.occupied[level] &= !(1 << slot);
            if level == 0 {
                // All of its timers are due, and stay where they are: touching each of a crowd would take long. No
                // other timer comes here meanwhile, since all that are armed from now on have a later tick.
                self.due = slot;
                return;
            }
            self.falling = Some(level * SLOTS + slot);
        }
    }

    /// Moves timers of the slot that the wheel has reached to where they belong now; whether all of them are there.
    fn fall(&mut self, moves: &mut usize) -> bool {
        let Some(list) = self.falling else { return true };
        while self.heads[list] != NIL {
            let Some(left) = moves.checked_sub(1) else { return false };
            *moves = left;
            let index = self.heads[list];
            self.unlink(index);
            self.place(index, self.timers[index as usize].tick);
        }
        self.falling = None;
        true
    }

    /// Links a timer where its tick belongs, seen from the wheel's time.
    fn place(&mut self, index: u32, tick: u64) {
        if tick <= self.now {
            self.link(index, DUE);
            return;
        }
        let digit = (tick ^ self.now).ilog2();
        let level = (digit / BITS) as usize;
        let slot = (tick >> (BITS * level as u32)) as usize & (SLOTS - 1);
        self.occupied[level] |= 1 << slot;
        self.link(index, level * SLOTS + slot);
    }

    /// Appends to a list.
    fn link(&mut self, index: u32, list: usize) {
        let last = std::mem::replace(&mut self.tails[list], index);
        if last == NIL {
            self.heads[list] = index;
        } else {
            self.timers[last as usize].next = index;
        }
        let timer = &mut self.timers[index as usize];
        timer.next = NIL;
        timer.prev = last;
        timer.list = list as u16;
    }

    fn unlink(&mut self, index: u32) {
        let Timer { next, prev, list, .. } = self.timers[index as usize];
        let list = list as usize;
        if prev == NIL {
            self.heads[list] = next;
        } else {
            self.timers[prev as usize].next = next;
        }
        if next == NIL {
            self.tails[list] = prev;
        } else {
            self.timers[next as usize].prev = prev;
        }
        if self.heads[list] == NIL && list < DUE {
            self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
        }
    }

    fn release(&mut self, index: u32) {
        let vacant = std::mem::replace(&mut self.vacant, index);
        let timer = &mut self.timers[index as usize];
        timer.generation = timer.generation.wrapping_add(1);
        timer.list = VACANT;
        timer.next = vacant;
        self.armed -= 1;
    }
}

impl std::fmt::Debug for Wheel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wheel").field("now_ms", &self.now).field("armed", &self.armed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_timer_fires_at_its_tick_and_once() {
        let mut wheel = Wheel::new(Instant::from_millis(5));
        wheel.insert(7, Instant::from_nanos(6 * MILLIS + 1));
        assert_eq!(wheel.next(), Some(Instant::from_millis(7)));
        assert_eq!(wheel.pop_expired(Instant::from_nanos(7 * MILLIS - 1)), None);
        assert_eq!(wheel.pop_expired(Instant::from_millis(7)), Some(7));
        assert_eq!(wheel.pop_expired(Instant::from_millis(7)), None);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn timers_of_one_tick_fire_in_order() {
        let mut wheel = Wheel::new(Instant::ZERO);
        for token in 0..10 {
            wheel.insert(token, Instant::from_millis(30));
        }
        let mut fired = Vec::new();
        wheel.expire(Instant::from_millis(30), &mut |token| fired.push(token));
        assert_eq!(fired, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_cancelled_timer_stays_silent_and_its_id_stale() {
        let mut wheel = Wheel::new(Instant::ZERO);
        let first = wheel.insert(1, Instant::from_millis(3));
        let second = wheel.insert(2, Instant::from_millis(3));
        assert_eq!(wheel.pop_expired(Instant::from_millis(3)), Some(1));
        assert!(!wheel.cancel(first), "it has fired");
        assert!(wheel.cancel(second), "due but not taken yet");
        assert!(!wheel.cancel(second));
        assert_eq!((wheel.pop_expired(Instant::FAR), wheel.len()), (None, 0));
        let third = wheel.insert(3, Instant::from_millis(9));
        assert!(!wheel.cancel(first) && !wheel.cancel(second), "places are used again, ids are not");
        assert!(wheel.cancel(third) && wheel.is_empty());
    }

    #[test]
    fn rearming_for_now_waits_for_the_next_tick() {
        let mut wheel = Wheel::new(Instant::ZERO);
        let now = Instant::from_millis(1_000);
        wheel.insert(1, Instant::from_millis(10));
        let mut fired = 0;
        while let Some(token) = wheel.pop_expired(now) {
            fired += 1;
            assert!(fired < 10);
            wheel.insert(token, now);
        }
        assert_eq!(wheel.next(), Some(Instant::from_millis(1_001)));
        wheel.insert(2, Instant::ZERO);
        assert_eq!(wheel.pop_expired(now), None, "the past fires with the next tick");
        assert_eq!(wheel.pop_expired(Instant::from_millis(1_001)), Some(1));
        assert_eq!(wheel.pop_expired(Instant::from_millis(1_001)), Some(2));
    }

    #[test]
    fn far_deadlines_and_long_jumps() {
        let mut wheel = Wheel::new(Instant::from_millis(123));
        let far = wheel.insert(1, Instant::FAR);
        let year = 365 * 86_400_000;
        wheel.insert(2, Instant::from_millis(year));
        for day in 1..300 {
            assert_eq!(wheel.pop_expired(Instant::from_millis(day * 86_400_000)), None);
            assert!(wheel.next().is_some_and(|next| next <= Instant::from_millis(year)));
        }
        assert_eq!(wheel.pop_expired(Instant::from_millis(year - 1)), None);
        assert_eq!(wheel.pop_expired(Instant::from_millis(year)), Some(2));
        assert_eq!(wheel.pop_expired(Instant::from_nanos(u64::MAX / 2)), None);
        assert_eq!(wheel.pop_expired(Instant::ZERO), None, "a clock that goes back fires nothing");
        assert!(wheel.cancel(far));
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn places_of_ended_timers_are_used_again() {
        let mut wheel = Wheel::new(Instant::ZERO);
        for now in 0..10_000 {
            for token in 0..10 {
                wheel.insert(token, Instant::from_millis(now + u64::from(token) * 7));
            }
            wheel.expire(Instant::from_millis(now), &mut |_| ());
        }
        assert!(wheel.timers.len() < 800, "{}", wheel.timers.len());
        // Two to a cache line, on 32-bit machines too.
        assert!(size_of::<Timer>() <= 32);
    }

    #[test]
    fn a_crowd_moves_down_in_steps() {
        let mut wheel = Wheel::new(Instant::ZERO);
        let ids: Vec<_> =
            (0..100).map(|token| wheel.insert(token, Instant::from_millis(64 + u64::from(token)))).collect();
        let now = Instant::from_millis(64);
        let mut moves = 10;
        assert_eq!(wheel.pop_expired_within(now, &mut moves), Some(0), "the slot's first has nothing to wait for");
        assert_eq!((wheel.pop_expired_within(now, &mut moves), moves), (None, 0));
        assert_eq!(wheel.next(), Some(now), "there is more to do at once");
        assert!(wheel.cancel(ids[5]) && wheel.cancel(ids[50]), "moved or not");
        let early = wheel.insert(100, Instant::from_millis(66));
        assert_eq!(wheel.pop_expired_within(Instant::from_millis(70), &mut 0), None, "nothing passes those that wait");
        let mut fired = Vec::new();
        wheel.expire(Instant::from_millis(70), &mut |token| fired.push(token));
        assert_eq!(fired, [1, 2, 100, 3, 4, 6]);
        assert!(!wheel.cancel(early));
        assert_eq!(wheel.next(), Some(Instant::from_millis(71)));
        assert_eq!(wheel.len(), 92);
    }

    /// The twin: a plain list of ticks.
    #[derive(Default)]
    struct Naive {
        timers: Vec<(u64, u32)>,
    }

    impl Naive {
        fn due(&self, now: Instant) -> usize {
            self.timers.iter().filter(|&&(tick, _)| tick <= now.millis()).count()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Cancel(usize),
        Advance(u64),
        ToNext,
    }

    fn step() -> impl Strategy<Value = (Step, usize)> {
        // Around the borders of each level, in nanoseconds.
        let span = (0_u32..5, 0_u64..130, 0_u64..MILLIS)
            .prop_map(|(level, ticks, nanos)| (ticks << (BITS * level) >> 1) * MILLIS + nanos);
        let step = prop_oneof![
            4 => span.clone().prop_map(Step::Insert),
            2 => any::<usize>().prop_map(Step::Cancel),
            2 => span.prop_map(Step::Advance),
            2 => Just(Step::ToNext),
        ];
        // With how many timers that may move after it.
        (step, prop_oneof![0_usize..4, Just(usize::MAX)])
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 512 }, ..ProptestConfig::default() })]

        #[test]
        fn behaves_like_a_list(origin in 0_u64..1 << 50, steps in prop::collection::vec(step(), 1..300)) {
            let mut now = Instant::from_nanos(origin);
            let mut wheel = Wheel::new(now);
            let mut twin = Naive::default();
            let mut ids = Vec::new();
            let mut last = 0;
            for (token, (step, moves)) in (0..).zip(steps) {
                match step {
                    Step::Insert(after) => {
                        let deadline = now.plus(after);
                        let tick = deadline.nanos().div_ceil(MILLIS).max(wheel.now + 1);
                        ids.push((wheel.insert(token, deadline), token));
                        twin.timers.push((tick, token));
                    }
                    Step::Cancel(n) if !ids.is_empty() => {
                        let (id, token) = ids.swap_remove(n % ids.len());
                        let before = twin.timers.len();
                        twin.timers.retain(|&(_, other)| other != token);
                        prop_assert_eq!(wheel.cancel(id), twin.timers.len() < before);
                    }
                    Step::Cancel(_) => {}
                    Step::Advance(by) => now = now.plus(by),
                    Step::ToNext => now = now.max(wheel.next().unwrap_or(now)),
                }
                let mut left = moves;
                while let Some(token) = wheel.pop_expired_within(now, &mut left) {
                    let place = twin.timers.iter().position(|&(_, other)| other == token);
                    prop_assert!(place.is_some(), "{} has fired before or was cancelled", token);
                    let (tick, _) = twin.timers.swap_remove(place.expect("just checked"));
                    prop_assert!(tick <= now.millis(), "{} is not due", token);
                    prop_assert!(tick >= last, "ticks in order");
                    last = tick;
                }
                prop_assert!(wheel.now <= now.millis());
                prop_assert_eq!(wheel.len(), twin.timers.len());
                let earliest = twin.timers.iter().map(|&(tick, _)| tick).min();
                prop_assert_eq!(wheel.next().is_some(), earliest.is_some());
                let (Some(next), Some(earliest)) = (wheel.next(), earliest) else { continue };
                prop_assert!(next.millis() <= earliest);
                if next <= now {
                    prop_assert_eq!(left, 0, "only for want of moves is there more to do");
                } else {
                    prop_assert_eq!(twin.due(now), 0);
                    prop_assert!(earliest >= (now.millis() | 63) || next.millis() == earliest, "exact when near");
                }
            }
        }
    }
}
