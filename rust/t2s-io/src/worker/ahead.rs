//! Connections to the proxy that are made ahead of the flows that will use them.
//!
//! To dial costs a flow one round trip to the proxy, two or three more where the proxy wants to be greeted apart. While
//! flows open in quick succession, as for a web page, some connections stand ready: as many as were dialled within the
//! last second, [`TunnelConfig::connect_ahead`](crate::config::TunnelConfig) at most, and none where it was fewer than two.
//! They wait for [`PATIENCE`]; a proxy sees a few connections that end without a request.
//!
//! A proxy may end them first. One that has ended is not taken, and its fellows, which are as old, go with it. Where the
//! proxy's end crosses the request, the flow is dialled anew: if nothing was answered and not much time has passed, since a
//! proxy may hang up for reasons of the target too. Such a target is then asked for twice.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use t2s_core::time::{Instant, MILLIS, SECONDS};

use super::Worker;
use super::token::{Kind, Token};
use crate::dial::{Attempt, Failure, Route, Scheme, Target};
use crate::sys::epoll::{Event, Interest};

/// How long a connection waits for a flow, nanoseconds: less than most proxies wait for a greeting.
const PATIENCE: u64 = 2 * SECONDS;
/// How long none is made after one has failed, nanoseconds.
const PAUSE: u64 = SECONDS;
/// How long after a connection was taken its end may still have crossed the request, nanoseconds.
const CROSSING: u64 = 500 * MILLIS;
/// Half of the time over which dials are counted, nanoseconds.
const SPAN: u64 = 500 * MILLIS;
/// Dials within that time from which connections are made ahead.
const BUSY: usize = 2;

/// A connection that stands ready, or will.
struct Spare {
    fd: OwnedFd,
    attempt: Attempt,
    generation: u32,
    since: Instant,
    /// It waits for its target, as far as is known; stands in [`Ahead::ready`].
    ready: bool,
}

/// Those of a worker.
pub(super) struct Ahead {
    /// As many as there may be.
    spares: Vec<Option<Spare>>,
    /// Places of those that are ready, the oldest first.
    ready: VecDeque<u32>,
    standing: usize,
    generation: u32,
    demand: Demand,
    paused_until: Instant,
    /// The route that they were made by.
    route: Option<Arc<Route>>,
}

impl Ahead {
    /// Up to `most` connections.
    pub(super) fn new(most: u16) -> Self {
        let most = usize::from(most);
        Self {
            spares: std::iter::repeat_with(|| None).take(most).collect(),
            ready: VecDeque::with_capacity(most),
            standing: 0,
            generation: 0,
            demand: Demand::default(),
            paused_until: Instant::ZERO,
            route: None,
        }
    }

    /// When to look again.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        if self.standing == 0 {
            return None;
        }
        self.spares.iter().flatten().map(|spare| spare.since.plus(PATIENCE)).min()
    }

    fn remove(&mut self, place: usize) -> Option<Spare> {
        let spare = self.spares.get_mut(place)?.take()?;
        self.standing -= 1;
        if spare.ready {
            self.ready.retain(|&other| other as usize != place);
        }
        Some(spare)
    }

    /// The proxy has ended one: the others will hardly fare better, and none is made for a while.
    pub(super) fn give_up(&mut self, now: Instant) {
        self.clear();
        self.paused_until = now.plus(PAUSE);
    }

    fn clear(&mut self) {
        if self.standing > 0 {
            self.spares.fill_with(|| None);
            self.ready.clear();
            self.standing = 0;
        }
    }

    /// Whether one more is wanted.
    fn wants(&self, now: Instant) -> bool {
        let wanted = self.demand.recent(now);
        wanted >= BUSY && self.standing < wanted.min(self.spares.len()) && now >= self.paused_until
    }

    /// Ends those that have waited in vain.
    fn expire(&mut self, now: Instant) {
        for place in 0..if self.standing > 0 { self.spares.len() } else { 0 } {
            if self.spares[place].as_ref().is_some_and(|spare| spare.since.plus(PATIENCE) <= now) {
                self.remove(place);
            }
        }
    }
}

/// Dials of the last second, give or take half of one.
#[derive(Default)]
struct Demand {
    span: u64,
    now: usize,
    before: usize,
}

impl Demand {
    fn dialled(&mut self, now: Instant) {
        let span = now.nanos() / SPAN;
        if span != self.span {
            self.before = if span == self.span + 1 { self.now } else { 0 };
            self.now = 0;
            self.span = span;
        }
        self.now += 1;
    }

    fn recent(&self, now: Instant) -> usize {
        match (now.nanos() / SPAN).saturating_sub(self.span) {
            0 => self.now + self.before,
            1 => self.now,
            _ => 0,
        }
    }
}

/// Whether a failed connection, made ahead and taken at `taken`, had ended before the proxy knew what it was for, as far as
/// can be told.
pub(super) fn has_crossed(attempt: &Attempt, failure: &Failure, now: Instant, taken: Instant) -> bool {
    let ended = matches!(failure, Failure::Closed | Failure::Proxy(..));
    ended && !attempt.is_heard() && now.since(taken) <= CROSSING
}

impl Worker {
    /// A connection for a flow, towards `target`: one that stands ready, if any does. It goes by `token` from now on.
    pub(super) fn take_ahead(&mut self, target: &Target, token: Token) -> Option<(OwnedFd, Attempt)> {
        self.ahead.demand.dialled(self.now);
        let made_by = self.ahead.route.as_ref();
        if !made_by.is_some_and(|made_by| Arc::ptr_eq(made_by, &self.route)) {
            return None;
        }
        let (place, greeted) = self.find_ahead()?;
        let Spare { fd, mut attempt, .. } = self.ahead.remove(place)?;
        attempt.aim(&self.route, target).ok()?;
        let registered = if greeted {
            self.epoll.modify(&fd, Interest::EDGES, token.bits())
        } else {
            self.epoll.add(&fd, Interest::EDGES, token.bits())
        };
        registered.ok()?;
        self.stats.taken_ahead += 1;
        Some((fd, attempt))
    }

    /// The place of the oldest that is ready, and whether it was greeted.
    fn find_ahead(&mut self) -> Option<(usize, bool)> {
        for at in 0..self.ahead.ready.len() {
            let place = self.ahead.ready[at] as usize;
            let spare = self.ahead.spares.get_mut(place)?.as_mut()?;
            if spare.attempt.greets_ahead() {
                return Some((place, true));
            }
            match spare.attempt.prepare(&spare.fd) {
                Ok(true) => return Some((place, false)),
                Ok(false) => {}
                Err(_) => {
                    self.ahead.give_up(self.now);
                    return None;
                }
            }
        }
        None
    }

    /// Something happened to a connection that no flow has taken yet.
    pub(super) fn ahead_event(&mut self, token: Token, event: Event) {
        let place = token.index();
        let Some(spare) = self.ahead.spares.get_mut(place).and_then(Option::as_mut) else { return };
        if !token.is_generation(spare.generation) {
            return;
        }
        // Of one that is ready nothing is to be heard but its end.
        let progress = if event.ended() || spare.ready && event.readable() {
            Err(Failure::Closed)
        } else {
            spare.attempt.prepare(spare.fd.as_fd())
        };
        match progress {
            Ok(true) if !spare.ready => {
                spare.ready = true;
                self.ahead.ready.push_back(place as u32);
            }
            Ok(_) => {}
            Err(_) => self.ahead.give_up(self.now),
        }
    }

    /// Sees that as many connections stand ready as lately were wanted; to be called when nobody waits.
    pub(super) fn look_ahead(&mut self) {
        let ours = self.ahead.route.as_ref().is_some_and(|made_by| Arc::ptr_eq(made_by, &self.route));
        if self.stop_at.is_some() || !ours {
            self.ahead.clear();
            self.ahead.route = Some(Arc::clone(&self.route));
        }
        self.ahead.expire(self.now);
        while self.stop_at.is_none() && self.ahead.wants(self.now) {
            if self.connect_ahead().is_none() {
                self.ahead.paused_until = self.now.plus(PAUSE);
            }
        }
    }

    fn connect_ahead(&mut self) -> Option<()> {
        if self.route.scheme == Scheme::Direct {
            return None;
        }
        let place = self.ahead.spares.iter().position(Option::is_none)?;
        let (fd, attempt) = Attempt::ahead(&self.route, self.shared.config.mark).ok()?;
        self.ahead.generation = self.ahead.generation.wrapping_add(1);
        let generation = self.ahead.generation;
        // With nothing to be heard before the target is there, it costs no event: what became of it is seen when it is taken.
        let ready = !attempt.greets_ahead();
        if ready {
            self.ahead.ready.push_back(place as u32);
        } else {
            self.epoll.add(&fd, Interest::EDGES, Token::new(Kind::Ahead, place as u32, generation).bits()).ok()?;
        }
        self.ahead.spares[place] = Some(Spare { fd, attempt, generation, since: self.now, ready });
        self.ahead.standing += 1;
        self.stats.dials_ahead += 1;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_were_dialled_within_a_second() {
        let mut ahead = Ahead::new(4);
        let at = |millis: u64| Instant::from_millis(10_000 + millis);
        ahead.demand.dialled(at(0));
        assert!(!ahead.wants(at(0)), "one connection is no succession");
        ahead.demand.dialled(at(10));
        assert!(ahead.wants(at(10)));
        ahead.standing = 2;
        assert!(!ahead.wants(at(10)));
        for _ in 0..10 {
            ahead.demand.dialled(at(20));
        }
        ahead.standing = 3;
        assert!(ahead.wants(at(600)), "of the span before this");
        ahead.standing = 4;
        assert!(!ahead.wants(at(600)), "no more than allowed");
        ahead.standing = 0;
        assert!(!ahead.wants(at(1_000)));
        assert_eq!(ahead.demand.recent(at(1_000)), 0);
    }

    #[test]
    fn none_where_none_is_allowed() {
        let mut ahead = Ahead::new(0);
        for _ in 0..10 {
            ahead.demand.dialled(Instant::from_millis(5));
        }
        assert!(!ahead.wants(Instant::from_millis(5)));
        assert_eq!(ahead.next_timeout(), None);
    }
}
