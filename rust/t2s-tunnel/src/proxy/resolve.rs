//! The names that the client of an association writes to: what waits until they are resolved, and what they came to.
//!
//! It resolves nothing itself: names that are asked for come out of [`Names::take_wanted`], answers go into
//! [`Names::resolved`]. It promises: each name is asked for once at a time; names, and datagrams that wait for them,
//! are bounded. What finds no room is lost, as datagrams are.

use std::net::{IpAddr, SocketAddr};

/// Names that one client writes to at once.
const NAMES: usize = 64;
/// Datagrams that wait for one name: a resolver answers before a client sends many more.
const WAITING: usize = 8;
/// How long an answer holds, nanoseconds: the system's resolver does not tell, and servers of names move seldom.
const HOLDS: u64 = 30_000_000_000;

/// A datagram: the port that it goes to, and its payload.
pub(super) type Datagram = (u16, Vec<u8>);

enum State {
    /// It is being resolved.
    Asked(Vec<Datagram>),
    /// Its address, until when (nanoseconds).
    Known(IpAddr, u64),
}

/// The names of one association.
#[derive(Default)]
pub(super) struct Names {
    /// Oldest first.
    entries: Vec<(String, State)>,
    wanted: Vec<String>,
}

impl Names {
    /// Where a datagram for a name goes now; one for a name that is not known yet is kept.
    pub(super) fn endpoint(&mut self, now: u64, name: &[u8], port: u16, payload: &[u8]) -> Option<SocketAddr> {
        let name = std::str::from_utf8(name).ok()?;
        self.entries.retain(|(_, state)| !matches!(state, State::Known(_, until) if *until <= now));
        match self.entries.iter_mut().find(|(known, _)| known == name) {
            Some((_, State::Known(address, _))) => Some(SocketAddr::new(*address, port)),
            Some((_, State::Asked(waiting))) => {
                if waiting.len() < WAITING {
                    waiting.push((port, payload.to_vec()));
                }
                None
            }
            None => {
                if self.entries.len() >= NAMES {
                    // Those that are being resolved stay, so that their answers find them.
                    let known = self.entries.iter().position(|(_, state)| matches!(state, State::Known(..)))?;
                    self.entries.remove(known);
                }
                self.wanted.push(name.to_owned());
                self.entries.push((name.to_owned(), State::Asked(vec![(port, payload.to_vec())])));
                None
            }
        }
    }

    /// The names that are to be resolved now.
    pub(super) fn take_wanted(&mut self) -> Vec<String> {
        std::mem::take(&mut self.wanted)
    }

    /// A name was resolved, or has no address; answers the datagrams that have waited for it.
    pub(super) fn resolved(&mut self, now: u64, name: &str, address: Option<IpAddr>) -> Vec<Datagram> {
        let asked = |(known, state): &(String, State)| known == name && matches!(state, State::Asked(_));
        let Some(index) = self.entries.iter().position(asked) else { return Vec::new() };
        let (name, state) = self.entries.remove(index);
        if let Some(address) = address {
            self.entries.push((name, State::Known(address, now.saturating_add(HOLDS))));
        }
        match state {
            State::Asked(waiting) if address.is_some() => waiting,
            State::Asked(_) | State::Known(..) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_name_is_asked_for_once_and_holds_for_a_while() {
        let mut names = Names::default();
        for n in 0..20 {
            assert_eq!(names.endpoint(0, b"a.example", n, &[n as u8]), None);
        }
        assert_eq!(names.take_wanted(), ["a.example"]);
        assert!(names.take_wanted().is_empty());
        let waited = names.resolved(1, "a.example", Some(HERE));
        assert_eq!((waited.len(), &waited[1]), (WAITING, &(1, vec![1])));
        assert_eq!(names.endpoint(HOLDS, b"a.example", 9, b""), Some(SocketAddr::new(HERE, 9)));
        assert_eq!(names.endpoint(HOLDS + 1, b"a.example", 9, b""), None);
        assert_eq!(names.take_wanted(), ["a.example"]);
    }

    #[test]
    fn names_without_address_are_forgotten_with_what_waited() {
        let mut names = Names::default();
        assert_eq!(names.endpoint(0, b"a.example", 1, b""), None);
        assert!(names.resolved(0, "a.example", None).is_empty());
        assert!(names.entries.is_empty());
        assert!(names.resolved(0, "b.example", Some(HERE)).is_empty());
        assert_eq!(names.endpoint(0, b"\xff", 1, b""), None);
        assert!(names.entries.is_empty());
    }

    #[test]
    fn names_are_bounded() {
        let mut names = Names::default();
        for n in 0..1_000 {
            assert_eq!(names.endpoint(0, format!("n{n}").as_bytes(), 1, b""), None);
        }
        assert_eq!((names.entries.len(), names.take_wanted().len()), (NAMES, NAMES));
        names.resolved(0, "n5", Some(HERE));
        assert_eq!(names.endpoint(0, b"new", 1, b""), None);
        assert_eq!((names.entries.len(), names.take_wanted()), (NAMES, vec!["new".to_owned()]));
    }
}
