//! DNS queries that travel over TCP (RFC 7766), through the proxy: to the server that the client asked, or to the one
//! of the settings, whose answers then seem to come from the one that the client asked.
//!
//! One connection a server carries the queries of all clients, each under a number of its own. It promises: bounded
//! servers, queries and bytes; a query without an answer is forgotten in time; an answer that is longer than its client
//! can take as a datagram comes truncated (RFC 2181, section 9), so that the client asks again over TCP.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use t2s_core::buf::Buf;
use t2s_core::time::{Instant, SECONDS};
use t2s_core::udp::SessionId;

use super::token::{Kind, Token};
use super::{HEADROOM, Worker};
use crate::dial::{Connector, Progress, Target};
use t2s_sys::epoll::{Event, Interest};
use t2s_sys::socket;

/// Servers at once; a client has two or three.
const SERVERS: usize = 64;
/// Queries at once for one server.
const QUERIES: usize = 4_096;
/// Bytes that may wait for one server.
const OUT_MAX: usize = 256 * 1024;
/// Time for an answer; resolvers ask again after 5 s and give up after 10.
const QUERY_TIMEOUT: u64 = 10 * SECONDS;
/// Time that a connection without queries stays (RFC 7766, section 6.2.3: some seconds).
const IDLE: u64 = 10 * SECONDS;
/// Length of a DNS header.
const HEADER: usize = 12;
/// What a client without EDNS takes as a datagram (RFC 1035, section 4.2.1).
const PLAIN_MAX: usize = 512;

/// A query on its way.
#[derive(Clone, Copy, Debug)]
struct Query {
    session: SessionId,
    /// The server that the client asked.
    server: SocketAddr,
    /// The client's own number.
    id: [u8; 2],
    /// The longest answer that the client takes.
    limit: usize,
    asked: Instant,
}

#[derive(Debug)]
enum Phase {
    Dialing(Box<Connector>),
    Open,
}

/// A connection to a name server.
#[derive(Debug)]
struct Server {
    target: Target,
    generation: u32,
    fd: OwnedFd,
    phase: Phase,
    /// Queries that wait to be written.
    out: Vec<u8>,
    /// The beginning of an answer.
    input: Vec<u8>,
    queries: HashMap<u16, Query>,
    next_id: u16,
    used: Instant,
}

/// All connections to name servers of a worker.
#[derive(Debug, Default)]
pub(super) struct DnsOverTcp {
    servers: Vec<Option<Server>>,
    generation: u32,
    /// When to look for what is overdue.
    due: Option<Instant>,
}

impl DnsOverTcp {
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.due
    }

    fn find(&self, target: &Target) -> Option<usize> {
        self.servers.iter().position(|slot| slot.as_ref().is_some_and(|server| server.target == *target))
    }
}

impl Worker {
    /// Carries one query of a client, which was sent to `asked`, to `target`.
    pub(super) fn look_up(&mut self, session: SessionId, asked: SocketAddr, target: &Target, query: Buf) {
        self.stats.dns_over_tcp_queries += 1;
        let index = self.dns_over_tcp.find(target).or_else(|| self.open_lookup(target));
        let server = index.and_then(|index| self.dns_over_tcp.servers[index].as_mut());
        if let (Some(index), Some(server)) = (index, server) {
            if server.enqueue(self.now, session, asked, query.as_slice()) {
                self.dns_over_tcp.due.get_or_insert(self.now.plus(SECONDS));
                self.advance_lookup(index);
            } else {
                self.stats.datagrams_lost += 1;
            }
        } else {
            self.stats.datagrams_lost += 1;
        }
        self.stack.free(query);
    }

    fn open_lookup(&mut self, target: &Target) -> Option<usize> {
        let free = self.dns_over_tcp.servers.iter().position(Option::is_none);
        let index = match free {
            Some(index) => index,
            None if self.dns_over_tcp.servers.len() < SERVERS => {
                self.dns_over_tcp.servers.push(None);
                self.dns_over_tcp.servers.len() - 1
            }
            None => return None,
        };
        let (fd, attempt) = match Connector::connect(&self.endpoint, self.shared.config.fwmark, target) {
            Ok(started) => started,
            Err(failure) => {
                self.stats.refused(&failure);
                return None;
            }
        };
        self.dns_over_tcp.generation = self.dns_over_tcp.generation.wrapping_add(1);
        let generation = self.dns_over_tcp.generation;
        let token = Token::new(Kind::DnsOverTcp, index as u32, generation);
        self.epoll.add(&fd, Interest::EDGES, token.bits()).ok()?;
        self.dns_over_tcp.servers[index] = Some(Server {
            target: target.clone(),
            generation,
            fd,
            phase: Phase::Dialing(Box::new(attempt)),
            out: Vec::new(),
            input: Vec::new(),
            queries: HashMap::new(),
            next_id: 0,
            used: self.now,
        });
        Some(index)
    }

    /// Something happened to a connection to a name server.
    pub(super) fn lookup_event(&mut self, token: Token, _event: Event) {
        let known = self.dns_over_tcp.servers.get(token.index()).and_then(Option::as_ref);
        if known.is_some_and(|server| token.is_generation(server.generation)) {
            self.advance_lookup(token.index());
        }
    }

    /// Takes a connection as far as it goes now.
    fn advance_lookup(&mut self, index: usize) {
        let Some(server) = self.dns_over_tcp.servers.get_mut(index).and_then(Option::as_mut) else { return };
        let alive = server.advance();
        // Answers that came before the end of a connection still count.
        while let Some((query, answer)) = server.next_answer() {
            if let Some(mut buf) = self.stack.alloc(answer.len(), HEADROOM) {
                buf.append(&answer);
                self.stats.dns_over_tcp_answered += 1;
                self.stack.datagram(self.now, query.session, query.server, buf);
            }
        }
        if !alive {
            self.stats.datagrams_lost += server.queries.len() as u64;
            self.dns_over_tcp.servers[index] = None;
        }
    }

    /// Forgets queries that were never answered and closes connections that nobody uses.
    pub(super) fn lookup_timeouts(&mut self) {
        if self.dns_over_tcp.due.is_none_or(|due| due > self.now) {
            return;
        }
        for slot in &mut self.dns_over_tcp.servers {
            let Some(server) = slot else { continue };
            let before = server.queries.len();
            server.queries.retain(|_, query| self.now.since(query.asked) < QUERY_TIMEOUT);
            self.stats.datagrams_lost += (before - server.queries.len()) as u64;
            let hung = server.queries.is_empty() && before > 0;
            if hung || (server.queries.is_empty() && self.now.since(server.used) >= IDLE) {
                *slot = None;
            }
        }
        let live = self.dns_over_tcp.servers.iter().any(Option::is_some);
        self.dns_over_tcp.due = live.then(|| self.now.plus(SECONDS));
    }
}

impl Server {
    /// Puts a query in line; false when it is none, or there is no room.
    fn enqueue(&mut self, now: Instant, session: SessionId, server: SocketAddr, query: &[u8]) -> bool {
        let (Some(header), Ok(len)) = (query.first_chunk::<HEADER>(), u16::try_from(query.len())) else { return false };
        if self.queries.len() >= QUERIES || self.out.len() + query.len() + 2 > OUT_MAX {
            return false;
        }
        while self.queries.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let limit = datagram_limit(query);
        self.queries.insert(self.next_id, Query { session, server, id: [header[0], header[1]], limit, asked: now });
        self.out.extend_from_slice(&len.to_be_bytes());
        self.out.extend_from_slice(&self.next_id.to_be_bytes());
        self.out.extend_from_slice(&query[2..]);
        self.next_id = self.next_id.wrapping_add(1);
        self.used = now;
        true
    }

    /// Goes on with dialling, writing and reading; false when the connection has ended.
    fn advance(&mut self) -> bool {
        if let Phase::Dialing(attempt) = &mut self.phase {
            match attempt.advance(&self.fd) {
                Progress::Waiting => return true,
                Progress::Failed(_) => return false,
                Progress::Done(done) => {
                    self.input.extend_from_slice(&done.early_data);
                    self.phase = Phase::Open;
                }
            }
        }
        while !self.out.is_empty() {
            match socket::send(&self.fd, &self.out) {
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        let mut room = [0; 4_096];
        loop {
            match socket::recv(&self.fd, &mut room) {
                Ok(0) => return false,
                Ok(len) => self.input.extend_from_slice(&room[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            // A server that sends answers faster than they are asked for is none.
            if self.input.len() > OUT_MAX {
                return false;
            }
        }
    }

    /// The next whole answer to a query that somebody waits for.
    fn next_answer(&mut self) -> Option<(Query, Vec<u8>)> {
        loop {
            let len = usize::from(u16::from_be_bytes(*self.input.first_chunk()?));
            if self.input.len() < len + 2 {
                return None;
            }
            let mut answer: Vec<u8> = self.input.drain(..len + 2).skip(2).collect();
            let Some(&id) = answer.first_chunk::<2>().filter(|_| answer.len() >= HEADER) else { continue };
            let Some(query) = self.queries.remove(&u16::from_be_bytes(id)) else { continue };
            answer[..2].copy_from_slice(&query.id);
            truncate(&mut answer, query.limit);
            return Some((query, answer));
        }
    }
}

/// The end of the first question of a message, if it has exactly one (which is all that servers answer).
fn question_end(message: &[u8]) -> Option<usize> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => break,
            // A compressed name has nothing in front of it that it could refer to in a question.
            len if len > 63 => return None,
            len => at += 1 + usize::from(len),
        }
    }
    Some(at + 5).filter(|&end| end <= message.len())
}

/// The longest answer that the sender of a query takes as a datagram: what its EDNS record says (RFC 6891, section
/// 6.2.3), or 512 bytes.
fn datagram_limit(query: &[u8]) -> usize {
    let edns = question_end(query).and_then(|at| {
        // Root name, type 41; its class is the size. Queries carry no other records in front of it.
        let record = query.get(at..at + 5)?;
        (record[..3] == [0, 0, 41]).then(|| usize::from(u16::from_be_bytes([record[3], record[4]])))
    });
    edns.unwrap_or(PLAIN_MAX).max(PLAIN_MAX)
}

/// Shortens an answer that is too long to its question, with the truncation bit set.
fn truncate(answer: &mut Vec<u8>, limit: usize) {
    if answer.len() <= limit || answer.len() < HEADER {
        return;
    }
    let end = question_end(answer);
    answer.truncate(end.unwrap_or(HEADER));
    answer[2] |= 0x02;
    answer[4..6].copy_from_slice(&u16::from(end.is_some()).to_be_bytes());
    answer[6..12].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(edns: Option<u16>) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1];
        if let Some(size) = edns {
            message[11] = 1;
            message.extend_from_slice(&[0, 0, 41]);
            message.extend_from_slice(&size.to_be_bytes());
            message.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
        }
        message
    }

    #[test]
    fn the_client_says_how_much_it_takes() {
        assert_eq!(datagram_limit(&query(None)), 512);
        assert_eq!(datagram_limit(&query(Some(1_232))), 1_232);
        assert_eq!(datagram_limit(&query(Some(100))), 512);
        for len in 0..query(Some(4_096)).len() {
            assert!(datagram_limit(&query(Some(4_096))[..len]) >= 512);
        }
    }

    #[test]
    fn long_answers_are_truncated_to_their_question() {
        let mut answer = query(None);
        answer[7] = 9;
        answer.resize(600, 7);
        truncate(&mut answer, 512);
        assert_eq!((answer.len(), answer[2] & 2, answer[5], answer[7]), (22, 2, 1, 0));
        let mut short = query(None);
        truncate(&mut short, 512);
        assert_eq!(short, query(None));
        let mut garbage = vec![0xff; 600];
        truncate(&mut garbage, 512);
        assert_eq!((garbage.len(), garbage[5]), (HEADER, 0));
    }
}
