//! Where connections, datagrams and queries go when the tunnel has a name server of its own.

use std::net::SocketAddr;

use t2s_core::buf::Buf;
use t2s_core::socks5::AddressRef;
use t2s_core::socks5::udp_header::{self, DOMAIN_HEADER_MAX};
use t2s_core::stack::Refusal;
use t2s_core::stats::DropReason;
use t2s_core::udp::SessionId;

use super::{HEADROOM, Worker};
use crate::dial::{Scheme, Target};
use crate::dns_settings::DNS;
use crate::log::Level;
use crate::resolver::{ANSWER_MAX, Answer};

impl Worker {
    /// What is dialled for a connection to `target`: a fake address by its name, a query of ours to the server of the
    /// settings, everything else as it is.
    ///
    /// Fake addresses are told over UDP alone: their answers are short, and a client that finds the port closed stays
    /// with UDP.
    pub(super) fn stream_target(&mut self, target: SocketAddr) -> Result<Target, Refusal> {
        let resolver = &self.shared.resolver;
        if resolver.is_ours(target) {
            return match resolver.server() {
                Some(server) if !resolver.has_names() => Ok(Target::Ip(server)),
                _ => {
                    self.stats.dns_streams_refused += 1;
                    Err(Refusal::Refused)
                }
            };
        }
        self.named(target).ok_or(Refusal::HostUnreachable)
    }

    /// A fake address as a name, and any other as it is; `None`, counted, for one that has no name.
    fn named(&mut self, target: SocketAddr) -> Option<Target> {
        let resolver = &self.shared.resolver;
        if !resolver.is_fake(target.ip()) {
            return Some(Target::Ip(target));
        }
        let Some(host) = resolver.host_of(target.ip()) else {
            self.stats.fake_unknown += 1;
            self.log(Level::Debug, format_args!("{target} has no name (any more)"));
            return None;
        };
        self.log(Level::Debug, format_args!("{target} is {host}"));
        Some(Target::Domain(host, target.port()))
    }

    /// Whether a query does not travel as a datagram, given that others go over TCP.
    pub(super) fn ends_here(&self, target: SocketAddr, over_tcp: bool) -> bool {
        let resolver = &self.shared.resolver;
        if over_tcp {
            return true;
        }
        // Without a proxy a session's socket has the family of its client, which the server may not have.
        let strange = self.endpoint.scheme == Scheme::Direct
            && resolver.server().is_some_and(|server| server.is_ipv4() != target.is_ipv4());
        (resolver.has_names() || strange) && resolver.is_ours(target)
    }

    /// Answers a query here, or carries it over TCP.
    pub(super) fn take_query(&mut self, id: SessionId, target: SocketAddr, query: Buf) {
        self.stats.dns_queries += 1;
        let resolver = &self.shared.resolver;
        if !resolver.is_ours(target) {
            return match self.named(target) {
                Some(name) => self.look_up(id, target, &name, query),
                None => self.refuse_datagram(id, target, query),
            };
        }
        if !resolver.has_names() {
            // The settings are refused without a server.
            let server = resolver.server().unwrap_or(target);
            return self.look_up(id, target, &Target::Ip(server), query);
        }
        let Some(mut answer) = self.stack.alloc(ANSWER_MAX, HEADROOM) else {
            self.stats.datagrams_lost += 1;
            return self.stack.free(query);
        };
        let len = match self.shared.resolver.answer(query.as_slice(), &self.endpoint.addresses, answer.spare_mut()) {
            Answer::Reply(len) => Some(len),
            Answer::Malformed(len) => {
                self.stats.drops.add(DropReason::DnsMalformed);
                len
            }
            Answer::Forward(server) => {
                self.stack.free(answer);
                return self.look_up(id, target, &Target::Ip(server), query);
            }
        };
        self.stack.free(query);
        match len {
            Some(len) => {
                answer.grow(len);
                self.stats.dns_answered += 1;
                self.stack.datagram(self.now, id, target, answer);
            }
            None => self.stack.free(answer),
        }
    }

    /// Makes a datagram ready for its upstream: where it really goes, with the relay's header in front if it is
    /// `relayed`, and what it takes to tell the answer remembered. `None` when it goes nowhere, which is counted.
    pub(super) fn address(
        &mut self,
        id: SessionId,
        target: SocketAddr,
        mut payload: Buf,
        relayed: bool,
    ) -> Option<(SocketAddr, Buf)> {
        let mut to = target;
        if target.port() == DNS {
            self.stats.dns_queries += 1;
            if self.shared.resolver.is_ours(target)
                && let Some(server) = self.shared.resolver.server()
                && let Some(aliases) = self.datagrams.aliases(id)
            {
                aliases.ask(payload.as_slice(), server, target);
                to = server;
            }
        }
        if !relayed {
            return Some((to, payload));
        }
        if self.shared.resolver.is_fake(target.ip()) {
            return self.address_by_name(id, target, payload);
        }
        if self.shared.resolver.has_names()
            && let Some(aliases) = self.datagrams.aliases(id)
        {
            aliases.write_to(target);
        }
        if udp_header::prepend(&mut payload, to) {
            return Some((to, payload));
        }
        self.stats.datagrams_lost += 1;
        self.stack.free(payload);
        None
    }

    /// The same for a fake address.
    fn address_by_name(&mut self, id: SessionId, target: SocketAddr, mut payload: Buf) -> Option<(SocketAddr, Buf)> {
        let shared = &self.shared;
        let Some(aliases) = self.datagrams.aliases(id) else {
            self.stack.free(payload);
            return None;
        };
        // Before the name: when it changes in between, the next datagram looks again.
        let version = shared.resolver.version();
        if aliases.host(target, version).is_none() {
            let Some(host) = shared.resolver.host_of(target.ip()) else {
                self.stats.fake_unknown += 1;
                self.refuse_datagram(id, target, payload);
                return None;
            };
            aliases.learn(target, host.into(), version);
        }
        let host = aliases.host(target, version).unwrap_or_default();
        if udp_header::prepend_domain(&mut payload, host, target.port()) {
            return Some((target, payload));
        }
        // A name longer than the usual room in front.
        if let Some(mut roomy) = self.stack.alloc(payload.len(), DOMAIN_HEADER_MAX) {
            roomy.append(payload.as_slice());
            self.stack.free(std::mem::replace(&mut payload, roomy));
            if udp_header::prepend_domain(&mut payload, host, target.port()) {
                return Some((target, payload));
            }
        }
        self.stats.datagrams_lost += 1;
        self.stack.free(payload);
        None
    }

    /// Where a datagram seems to come from to the client, and the length of the relay's header in front of it. `from`
    /// is the sender of one that has no such header.
    pub(super) fn origin(
        &mut self,
        id: SessionId,
        from: Option<SocketAddr>,
        datagram: &[u8],
    ) -> Option<(SocketAddr, usize)> {
        let (address, header) = match from {
            Some(from) => (AddressRef::Ip(from), 0),
            None => udp_header::decode(datagram).ok()?,
        };
        let aliases = self.datagrams.known_aliases(id);
        let from = match (address, aliases) {
            (AddressRef::Ip(from), None) => from,
            (AddressRef::Ip(from), Some(aliases)) => aliases.of_address(from, &datagram[header..]),
            (AddressRef::Domain(name, port), Some(aliases)) => aliases.of_name(name, port)?,
            // A name that nobody wrote to.
            (AddressRef::Domain(..), None) => return None,
        };
        Some((from, header))
    }

    fn refuse_datagram(&mut self, id: SessionId, target: SocketAddr, payload: Buf) {
        self.stack.free(payload);
        self.stack.udp_unreachable(self.now, id, target);
    }
}
