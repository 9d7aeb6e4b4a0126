//! What a client must see instead of where its datagrams really went: it wrote to a fake address, or asked another
//! server than the one that answers, and takes an answer only from there.
//!
//! A relay says of a datagram which address it is from (RFC 1928, section 7), seldom by name. An address is taken for a
//! name's when the client wrote to exactly one name at that port, and not to the address itself; from then on it stays
//! that name's. Where two names could be meant, the one that has not been heard of yet is, if that is only one; else
//! the datagram comes from its real address, as it does from strangers (full cone).
//!
//! It promises: bounded memory for each session, whose oldest entries make room; the work for one datagram is a look
//! through a few entries.

use std::collections::VecDeque;
use std::net::SocketAddr;

/// Names that one session may write to; more than a page with calls and trackers has.
const NAMED: usize = 64;
/// Real addresses of one name: a proxy that resolves a name anew for each datagram goes around in its addresses.
const REAL: usize = 4;
/// Addresses that were written to as they are.
const PLAIN: usize = 32;
/// Queries in flight from one socket; resolvers use a fresh socket for almost each.
const ASKED: usize = 64;

/// A name that was written to.
#[derive(Debug)]
struct Named {
    fake: SocketAddr,
    host: Box<str>,
    /// The version of all names when this one was looked up.
    version: u64,
    /// Where it has answered from.
    real: Vec<SocketAddr>,
}

/// A query that went to another server.
#[derive(Clone, Copy, Debug)]
struct Asked {
    id: [u8; 2],
    server: SocketAddr,
    seen: SocketAddr,
}

/// What the client of one session must see.
#[derive(Debug, Default)]
pub(super) struct ReplyAddressMap {
    /// Oldest first.
    named: VecDeque<Named>,
    plain: VecDeque<SocketAddr>,
    asked: VecDeque<Asked>,
}

/// Makes room for one more.
fn shift<T>(entries: &mut VecDeque<T>, most: usize) {
    if entries.len() >= most {
        entries.pop_front();
    }
}

impl ReplyAddressMap {
    /// The name of a fake address, if it was learned and no name has lost its address since.
    pub(super) fn host(&self, fake: SocketAddr, version: u64) -> Option<&str> {
        let named = self.named.iter().find(|named| named.fake == fake && named.version == version)?;
        Some(&named.host)
    }

    /// The name that a fake address was last written to by.
    pub(super) fn name_of(&self, fake: SocketAddr) -> Option<&str> {
        self.named.iter().find(|named| named.fake == fake).map(|named| &*named.host)
    }

    /// The client writes to `fake`, which stands for `host`.
    pub(super) fn learn(&mut self, fake: SocketAddr, host: Box<str>, version: u64) {
        let known = self.named.iter().position(|named| named.fake == fake);
        let old = known.and_then(|index| self.named.remove(index));
        // Of another name that had this address, nothing is true any more.
        let real = old.filter(|old| old.host == host).map(|old| old.real).unwrap_or_default();
        shift(&mut self.named, NAMED);
        self.named.push_back(Named { fake, host, version, real });
    }

    /// The client writes to an address that is what it seems.
    pub(super) fn write_to(&mut self, target: SocketAddr) {
        if !self.plain.contains(&target) {
            shift(&mut self.plain, PLAIN);
            self.plain.push_back(target);
        }
    }

    /// The client asks `seen`, and the query goes to `server`.
    pub(super) fn ask(&mut self, query: &[u8], server: SocketAddr, seen: SocketAddr) {
        if let Some(&id) = query.first_chunk() {
            shift(&mut self.asked, ASKED);
            self.asked.push_back(Asked { id, server, seen });
        }
    }

    /// What a datagram that the relay calls by a name seems to come from; `None` for a name that nobody wrote to.
    pub(super) fn of_name(&self, name: &[u8], port: u16) -> Option<SocketAddr> {
        let same = |named: &&Named| named.fake.port() == port && named.host.as_bytes().eq_ignore_ascii_case(name);
        self.named.iter().rev().find(same).map(|named| named.fake)
    }

    /// What a datagram from an address seems to come from.
    pub(super) fn of_address(&mut self, from: SocketAddr, payload: &[u8]) -> SocketAddr {
        let from = SocketAddr::new(from.ip(), from.port());
        let answers = |asked: &Asked| asked.server == from && payload.starts_with(&asked.id);
        if let Some(index) = self.asked.iter().rposition(answers)
            && let Some(asked) = self.asked.remove(index)
        {
            return asked.seen;
        }
        if let Some(named) = self.named.iter().find(|named| named.real.contains(&from)) {
            return named.fake;
        }
        if self.plain.contains(&from) {
            return from;
        }
        let here = |named: &Named| named.fake.port() == from.port();
        let unheard = |named: &Named| here(named) && named.real.is_empty();
        let index = only(&self.named, here).or_else(|| only(&self.named, unheard));
        match index.and_then(|index| self.named.get_mut(index)) {
            Some(named) => {
                if named.real.len() >= REAL {
                    named.real.remove(0);
                }
                named.real.push(from);
                named.fake
            }
            None => from,
        }
    }
}

/// The one entry of which something is true.
fn only(named: &VecDeque<Named>, is: impl Fn(&Named) -> bool) -> Option<usize> {
    let mut found = named.iter().enumerate().filter(|(_, named)| is(named)).map(|(index, _)| index);
    found.next().filter(|_| found.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_only_name_at_a_port_answers() {
        let mut aliases = ReplyAddressMap::default();
        aliases.learn(at("198.18.0.2:443"), "a.example".into(), 0);
        aliases.learn(at("198.18.0.3:80"), "b.example".into(), 0);
        assert_eq!(aliases.host(at("198.18.0.2:443"), 0), Some("a.example"));
        assert_eq!(aliases.host(at("198.18.0.2:80"), 0), None);
        assert_eq!(aliases.of_address(at("192.0.2.1:443"), b""), at("198.18.0.2:443"));
        assert_eq!(aliases.of_address(at("[2001:db8::1]:80"), b""), at("198.18.0.3:80"));
        assert_eq!(aliases.of_address(at("192.0.2.1:444"), b""), at("192.0.2.1:444"));
        assert_eq!(aliases.of_name(b"A.example", 443), Some(at("198.18.0.2:443")));
        assert_eq!(aliases.of_name(b"a.example", 80), None);
    }

    #[test]
    fn what_was_written_to_as_it_is_stays_so() {
        let mut aliases = ReplyAddressMap::default();
        aliases.learn(at("198.18.0.2:443"), "a.example".into(), 0);
        aliases.write_to(at("192.0.2.1:443"));
        assert_eq!(aliases.of_address(at("192.0.2.1:443"), b""), at("192.0.2.1:443"));
        for n in 0..=PLAIN as u16 {
            aliases.write_to(SocketAddr::new(at("192.0.2.2:1").ip(), 1_000 + n));
        }
        assert_eq!(aliases.plain.len(), PLAIN);
    }

    #[test]
    fn two_names_at_a_port_are_told_apart_once_one_is_known() {
        let mut aliases = ReplyAddressMap::default();
        aliases.learn(at("198.18.0.2:3478"), "a.example".into(), 0);
        assert_eq!(aliases.of_address(at("192.0.2.1:3478"), b""), at("198.18.0.2:3478"));
        aliases.learn(at("198.18.0.3:3478"), "b.example".into(), 0);
        assert_eq!(aliases.of_address(at("192.0.2.2:3478"), b""), at("198.18.0.3:3478"));
        assert_eq!(aliases.of_address(at("192.0.2.1:3478"), b""), at("198.18.0.2:3478"));
        // Both have been heard of: a third address is a stranger's.
        assert_eq!(aliases.of_address(at("192.0.2.3:3478"), b""), at("192.0.2.3:3478"));
        let mut both = ReplyAddressMap::default();
        both.learn(at("198.18.0.2:3478"), "a.example".into(), 0);
        both.learn(at("198.18.0.3:3478"), "b.example".into(), 0);
        assert_eq!(both.of_address(at("192.0.2.1:3478"), b""), at("192.0.2.1:3478"));
    }

    #[test]
    fn a_name_that_lost_its_address_is_looked_up_again() {
        let (mut aliases, fake) = (ReplyAddressMap::default(), at("198.18.0.2:443"));
        aliases.learn(fake, "a.example".into(), 0);
        assert_eq!(aliases.of_address(at("192.0.2.1:443"), b""), fake);
        assert_eq!(aliases.host(fake, 1), None);
        aliases.learn(fake, "a.example".into(), 1);
        assert_eq!((aliases.host(fake, 1), aliases.named[0].real.len()), (Some("a.example"), 1));
        aliases.learn(fake, "b.example".into(), 2);
        assert_eq!((aliases.host(fake, 2), aliases.named[0].real.len()), (Some("b.example"), 0));
    }

    #[test]
    fn answers_come_from_who_was_asked() {
        let (mut aliases, server) = (ReplyAddressMap::default(), at("9.9.9.9:53"));
        aliases.ask(b"\x00\x01...", server, at("10.0.0.1:53"));
        aliases.ask(b"\x00\x02...", server, at("10.0.0.2:53"));
        aliases.ask(b"", server, at("10.0.0.3:53"));
        assert_eq!(aliases.of_address(server, b"\x00\x02"), at("10.0.0.2:53"));
        assert_eq!(aliases.of_address(server, b"\x00\x01"), at("10.0.0.1:53"));
        assert_eq!(aliases.of_address(server, b"\x00\x01"), server);
        for n in 0..1_000_u16 {
            aliases.ask(&n.to_be_bytes(), server, at("10.0.0.1:53"));
        }
        assert_eq!(aliases.asked.len(), ASKED);
    }

    #[test]
    fn names_and_their_addresses_are_bounded() {
        let mut aliases = ReplyAddressMap::default();
        for n in 0..1_000_u16 {
            aliases.learn(SocketAddr::new(at("198.18.0.2:1").ip(), 1 + n), "a.example".into(), 0);
        }
        assert_eq!(aliases.named.len(), NAMED);
        for n in 0..100 {
            let from = SocketAddr::new([192, 0, 2, n].into(), 1_000);
            assert_eq!(aliases.of_address(from, b""), at("198.18.0.2:1000"));
        }
        assert!(aliases.named.iter().all(|named| named.real.len() <= REAL));
    }
}
