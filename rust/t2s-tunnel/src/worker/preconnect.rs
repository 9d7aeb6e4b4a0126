//! Connections to the proxy that are made ahead of the flows that will use them.
//!
//! To dial costs a flow one round trip to the proxy, two or three more where the proxy wants to be greeted apart. While
//! flows open in quick succession, as for a web page, some connections stand ready: as many as were dialled within the
//! last second, [`TunnelConfig::preconnect`](crate::config::TunnelConfig) at most, and none where it was fewer than
//! two. They wait for [`PRECONNECT_TTL`]; a proxy sees a few connections that end without a request.
//!
//! A proxy may end them first. One that has ended is not taken, and its fellows, which are as old, go with it. Where
//! the proxy's end crosses the request, the flow is dialled anew: if nothing was answered and not much time has passed,
//! since a proxy may hang up for reasons of the target too. Such a target is then asked for twice.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use t2s_core::time::{Instant, MILLIS, SECONDS};

use super::Worker;
use super::token::{Kind, Token};
use crate::dial::{ConnectError, Connector, ProxyEndpoint, Scheme, Target};
use t2s_sys::epoll::{Event, Interest};

/// How long a connection waits for a flow, nanoseconds: less than most proxies wait for a greeting.
const PRECONNECT_TTL: u64 = 2 * SECONDS;
/// How long none is made after one has failed, nanoseconds.
const PAUSE: u64 = SECONDS;
/// How long after a connection was taken its end may still have crossed the request, nanoseconds.
const CROSSING: u64 = 500 * MILLIS;
/// Half of the time over which dials are counted, nanoseconds.
const SPAN: u64 = 500 * MILLIS;
/// Dials within that time from which connections are made pool.
const BUSY: usize = 2;

/// A connection that stands ready, or will.
struct Preconnected {
    fd: OwnedFd,
    attempt: Connector,
    generation: u32,
    since: Instant,
    /// It waits for its target, as far as is known; stands in [`PreconnectPool::ready`].
    ready: bool,
}

/// Those of a worker.
pub(super) struct PreconnectPool {
    /// As many as there may be.
    spares: Vec<Option<Preconnected>>,
    /// Places of those that are ready, the oldest first.
    ready: VecDeque<u32>,
    standing: usize,
    generation: u32,
    demand: Demand,
    paused_until: Instant,
    /// The endpoint that they were made by.
    endpoint: Option<Arc<ProxyEndpoint>>,
}

impl PreconnectPool {
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
            endpoint: None,
        }
    }

    /// When to look again.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        if self.standing == 0 {
            return None;
        }
        self.spares.iter().flatten().map(|spare| spare.since.plus(PRECONNECT_TTL)).min()
    }

    fn remove(&mut self, place: usize) -> Option<Preconnected> {
        let spare = self.spares.get_mut(place)?.take()?;
        self.standing -= 1;
        if spare.ready {
            self.ready.retain(|&other| other as usize != place);
        }
        Some(spare)
    }

    /// The proxy has ended one: the others will hardly fare better, and none is made for a while.
    pub(super) fn abandon(&mut self, now: Instant) {
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
            if self.spares[place].as_ref().is_some_and(|spare| spare.since.plus(PRECONNECT_TTL) <= now) {
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

/// Whether a failed connection, made ahead and taken at `taken`, had ended before the proxy knew what it was for, as
/// far as can be told.
pub(super) fn has_crossed(attempt: &Connector, failure: &ConnectError, now: Instant, taken: Instant) -> bool {
    let ended = matches!(failure, ConnectError::Closed | ConnectError::Proxy(..));
    ended && !attempt.is_heard() && now.since(taken) <= CROSSING
}

impl Worker {
    /// A connection for a flow, towards `target`: one that stands ready, if any does. It goes by `token` from now on.
    pub(super) fn take_preconnect(&mut self, target: &Target, token: Token) -> Option<(OwnedFd, Connector)> {
        self.preconnects.demand.dialled(self.now);
        let made_by = self.preconnects.endpoint.as_ref();
        if !made_by.is_some_and(|made_by| Arc::ptr_eq(made_by, &self.endpoint)) {
            return None;
        }
        let (place, greeted) = self.find_preconnect()?;
        let Preconnected { fd, mut attempt, .. } = self.preconnects.remove(place)?;
        attempt.aim(&self.endpoint, target).ok()?;
        let registered = if greeted {
            self.epoll.modify(&fd, Interest::EDGES, token.bits())
        } else {
            self.epoll.add(&fd, Interest::EDGES, token.bits())
        };
        registered.ok()?;
        self.stats.preconnects_used += 1;
        Some((fd, attempt))
    }

    /// The place of the oldest that is ready, and whether it was greeted.
    fn find_preconnect(&mut self) -> Option<(usize, bool)> {
        for at in 0..self.preconnects.ready.len() {
            let place = self.preconnects.ready[at] as usize;
            let spare = self.preconnects.spares.get_mut(place)?.as_mut()?;
            if spare.attempt.greets_before_target() {
                return Some((place, true));
            }
            match spare.attempt.prepare(&spare.fd) {
                Ok(true) => return Some((place, false)),
                Ok(false) => {}
                Err(_) => {
                    self.preconnects.abandon(self.now);
                    return None;
                }
            }
        }
        None
    }

    /// Something happened to a connection that no flow has taken yet.
    pub(super) fn preconnect_event(&mut self, token: Token, event: Event) {
        let place = token.index();
        let Some(spare) = self.preconnects.spares.get_mut(place).and_then(Option::as_mut) else { return };
        if !token.is_generation(spare.generation) {
            return;
        }
        // Of one that is ready nothing is to be heard but its end.
        let progress = if event.ended() || spare.ready && event.readable() {
            Err(ConnectError::Closed)
        } else {
            spare.attempt.prepare(spare.fd.as_fd())
        };
        match progress {
            Ok(true) if !spare.ready => {
                spare.ready = true;
                self.preconnects.ready.push_back(place as u32);
            }
            Ok(_) => {}
            Err(_) => self.preconnects.abandon(self.now),
        }
    }

    /// Sees that as many connections stand ready as lately were wanted; to be called when nobody waits.
    pub(super) fn maintain_preconnects(&mut self) {
        let ours = self.preconnects.endpoint.as_ref().is_some_and(|made_by| Arc::ptr_eq(made_by, &self.endpoint));
        if self.stop_at.is_some() || !ours {
            self.preconnects.clear();
            self.preconnects.endpoint = Some(Arc::clone(&self.endpoint));
        }
        self.preconnects.expire(self.now);
        while self.stop_at.is_none() && self.preconnects.wants(self.now) {
            if self.preconnect().is_none() {
                self.preconnects.paused_until = self.now.plus(PAUSE);
            }
        }
    }

    fn preconnect(&mut self) -> Option<()> {
        if self.endpoint.scheme == Scheme::Direct {
            return None;
        }
        let place = self.preconnects.spares.iter().position(Option::is_none)?;
        let (fd, attempt) = Connector::preconnect(&self.endpoint, self.shared.config.fwmark).ok()?;
        self.preconnects.generation = self.preconnects.generation.wrapping_add(1);
        let generation = self.preconnects.generation;
        // With nothing to be heard before the target is there, it costs no event: what became of it is seen when it is
        // taken.
        let ready = !attempt.greets_before_target();
        if ready {
            self.preconnects.ready.push_back(place as u32);
        } else {
            self.epoll.add(&fd, Interest::EDGES, Token::new(Kind::Preconnect, place as u32, generation).bits()).ok()?;
        }
        self.preconnects.spares[place] = Some(Preconnected { fd, attempt, generation, since: self.now, ready });
        self.preconnects.standing += 1;
        self.stats.preconnects += 1;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_were_dialled_within_a_second() {
        let mut pool = PreconnectPool::new(4);
        let at = |millis: u64| Instant::from_millis(10_000 + millis);
        pool.demand.dialled(at(0));
        assert!(!pool.wants(at(0)), "one connection is no succession");
        pool.demand.dialled(at(10));
        assert!(pool.wants(at(10)));
        pool.standing = 2;
        assert!(!pool.wants(at(10)));
        for _ in 0..10 {
            pool.demand.dialled(at(20));
        }
        pool.standing = 3;
        assert!(pool.wants(at(600)), "of the span before this");
        pool.standing = 4;
        assert!(!pool.wants(at(600)), "no more than allowed");
        pool.standing = 0;
        assert!(!pool.wants(at(1_000)));
        assert_eq!(pool.demand.recent(at(1_000)), 0);
    }

    #[test]
    fn none_where_none_is_allowed() {
        let mut pool = PreconnectPool::new(0);
        for _ in 0..10 {
            pool.demand.dialled(Instant::from_millis(5));
        }
        assert!(!pool.wants(Instant::from_millis(5)));
        assert_eq!(pool.next_timeout(), None);
    }
}
