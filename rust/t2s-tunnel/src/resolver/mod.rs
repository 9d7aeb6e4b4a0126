//! The tunnel's own name server: fake addresses for names, and the names for fake addresses.
//!
//! It is one for all workers. The names stand behind a mutex that is taken for a query, for a connect to an address in
//! a fake range, and for a session's first datagram to one (or its next, after a name has lost its address): never for
//! a packet of what is open already. [`Resolver::is_ours`] and [`Resolver::is_fake`] take no lock.
//!
//! It promises: an A or AAAA question for a name is answered with an address of a fake range and nothing real leaks
//! beside it; the resolver's own addresses are given to no name, and none to the proxy's name, which the tunnel itself
//! may ask for; memory is the pool's, bounded. It refuses: names that no host has (no addresses), classes other than
//! IN, and messages that do not parse (format error, if there is a header).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::dns_settings::{DNS, DnsSettings};
use t2s_core::dns::{Class, FakePool, Kind, Message, Name, ResponseCode, respond, respond_malformed, respond_name};

/// How long clients may keep a fake address, seconds. One that they keep longer than the pool does (the tunnel was
/// restarted, the name has made room) leads to nobody, while asking again costs no way to anywhere.
const FAKE_TTL: u32 = 5;
/// Room that every answer fits into (see [`respond`]).
pub(crate) const ANSWER_MAX: usize = 512;

/// Addresses of the proxy that are told: as many as fit behind any question.
const PROXY_MAX: usize = 8;

/// What becomes of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// So many bytes of an answer.
    Reply(usize),
    /// It is to be asked there, over TCP.
    Forward(SocketAddr),
    /// It is none; so many bytes of a format error.
    Malformed(Option<usize>),
}

/// The name server of a tunnel.
#[derive(Debug)]
pub(crate) struct Resolver {
    plan: DnsSettings,
    pool: Option<Mutex<FakePool>>,
    /// How many names have lost their addresses: while it stays the same, what a name was told stays true.
    version: AtomicU64,
}

impl Resolver {
    /// A resolver without names, hashed under `hash_key`.
    pub(crate) fn new(plan: DnsSettings, hash_key: [u64; 4]) -> Self {
        let pool = plan.ranges.and_then(|ranges| FakePool::new(ranges, &plan.own, hash_key));
        Self { plan, pool: pool.map(Mutex::new), version: AtomicU64::new(0) }
    }

    /// Whether what was sent to `target` is for the resolver.
    #[inline]
    pub(crate) fn is_ours(&self, target: SocketAddr) -> bool {
        target.port() == DNS && (self.plan.hijack || self.plan.own.contains(&target.ip()))
    }

    /// Whether an address lies in a fake range.
    #[inline]
    pub(crate) fn is_fake(&self, address: IpAddr) -> bool {
        self.plan.ranges.is_some_and(|ranges| ranges.contains(address))
    }

    /// Whether there are fake addresses.
    #[inline]
    pub(crate) fn has_names(&self) -> bool {
        self.pool.is_some()
    }

    /// The server for what is ours and has no answer here.
    pub(crate) fn server(&self) -> Option<SocketAddr> {
        self.plan.server
    }

    /// The addresses at which the resolver is asked.
    pub(crate) fn own(&self) -> &[IpAddr] {
        &self.plan.own
    }

    /// Changes when a name loses its addresses.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The name that a fake address stands for, as a proxy is told it. Counts as use.
    pub(crate) fn host_of(&self, address: IpAddr) -> Option<String> {
        self.names()?.resolve(address)?.host()
    }

    /// Names that have addresses, and names that have lost theirs.
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.names().map_or((0, 0), |pool| (pool.len() as u64, pool.evicted()))
    }

    /// Answers a query that is ours into `out`, which has [`ANSWER_MAX`] bytes. `proxy` is where the proxy is.
    pub(crate) fn answer(&self, query: &[u8], proxy: &[SocketAddr], out: &mut [u8]) -> Answer {
        let Ok(message) = Message::parse(query) else { return Answer::Malformed(respond_malformed(query, out)) };
        if message.is_response() {
            return Answer::Malformed(None);
        }
        let (name, kind) = (message.name(), message.kind());
        let written = |len: Option<usize>| len.map_or(Answer::Malformed(None), Answer::Reply);
        let reply =
            |out: &mut [u8], code, addresses: &[IpAddr]| written(respond(&message, code, addresses, FAKE_TTL, out));
        if !message.is_query() {
            return reply(out, ResponseCode::NOT_IMPLEMENTED, &[]);
        }
        if message.class() != Class::IN {
            return reply(out, ResponseCode::REFUSED, &[]);
        }
        match kind {
            Kind::A | Kind::AAAA if is_localhost(&name) => {
                // RFC 6761, section 6.3: the client's own host, not the proxy's.
                let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                reply(out, ResponseCode::NO_ERROR, &loopback)
            }
            Kind::A | Kind::AAAA if self.plan.proxy == Some(name) => {
                let addresses: Vec<IpAddr> = proxy.iter().take(PROXY_MAX).map(SocketAddr::ip).collect();
                reply(out, ResponseCode::NO_ERROR, &addresses)
            }
            Kind::A | Kind::AAAA if name.host().is_some() => {
                let (v4, v6) = self.assign(&name);
                let (v4, v6) = (v4.map(IpAddr::V4), v6.map(IpAddr::V6));
                let addresses: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
                reply(out, ResponseCode::NO_ERROR, &addresses)
            }
            // Hints and "whatever there is" hold real addresses: there are none.
            Kind::A | Kind::AAAA | Kind::SVCB | Kind::HTTPS | Kind::ANY => reply(out, ResponseCode::NO_ERROR, &[]),
            Kind::PTR if name.reverse().is_some_and(|address| self.is_fake(address)) => {
                let known = name.reverse().and_then(|address| self.names()?.resolve(address));
                match known {
                    Some(known) => written(respond_name(&message, &known, FAKE_TTL, out)),
                    None => reply(out, ResponseCode::NAME_ERROR, &[]),
                }
            }
            _ => match self.plan.server {
                Some(server) => Answer::Forward(server),
                None => reply(out, ResponseCode::NO_ERROR, &[]),
            },
        }
    }

    fn assign(&self, name: &Name) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let Some(mut pool) = self.names() else { return (None, None) };
        let addresses = pool.assign(name);
        // While the lock is held: whoever sees the old version has seen the old name too.
        self.version.store(pool.evicted(), Ordering::Release);
        addresses
    }

    fn names(&self) -> Option<MutexGuard<'_, FakePool>> {
        Some(self.pool.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether a name is `localhost` or lies under it.
fn is_localhost(name: &Name) -> bool {
    name.labels().last().is_some_and(|label| label == b"localhost")
}

#[cfg(test)]
mod tests;
