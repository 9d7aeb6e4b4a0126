//! From the upstreams of UDP sessions to their clients: batched reads, and runs of equal datagrams written as one.
//!
//! A device with USO takes datagrams of one length and origin as one super-datagram, for the price of a single write.
//! So what one session receives in an iteration is joined as far as it matches, in the order of arrival, and never
//! waits for more. Without USO each datagram leaves by itself.

use std::io;
use std::net::SocketAddr;

use t2s_core::buf::{Buf, CLASSES};
use t2s_core::udp::SessionId;

use super::super::{FRAME_MAX, HEADROOM, Worker};
use super::{RUN_BYTES, Via};
use t2s_sys::datagram::{self, Incoming};

/// Messages of one batched read: each may hold a run of datagrams.
const RECEIVE: usize = 8;
/// Batched reads of one session in a row before others have their turn.
const READS: usize = 4;
/// A datagram up to this long is copied out of its large buffer.
const COPY_MAX: usize = CLASSES[CLASSES.len() - 2] - HEADROOM;
/// Datagrams of a run: what the kernel's own senders are held to (`UDP_MAX_SEGMENTS`).
const RUN: usize = 64;

/// Datagrams that leave for a client as one.
#[derive(Debug)]
pub(super) struct Run {
    from: SocketAddr,
    /// Length of each but the last, bytes.
    size: usize,
    count: usize,
    /// Nothing may follow: the last one was shorter.
    closed: bool,
    buf: Buf,
}

impl Run {
    /// Whether a datagram may stand behind the others.
    fn fits(&self, from: SocketAddr, len: usize) -> bool {
        let matches = !self.closed && self.from == from && len > 0 && len <= self.size;
        matches && self.count < RUN && self.buf.len() + len <= RUN_BYTES
    }
}

impl Worker {
    /// Reads from datagram sockets that are ready, in turn.
    pub(in crate::worker) fn receive_datagrams(&mut self) {
        for _ in 0..self.datagrams.ready.len() {
            if self.starved {
                return;
            }
            let Some(id) = self.datagrams.ready.pop_front() else { return };
            let Some(session) = self.datagrams.get(id) else { continue };
            session.queued = false;
            self.receive_session(id);
            self.leave(id);
            self.datagrams.queue(id);
        }
    }

    fn receive_session(&mut self, id: SessionId) {
        for _ in 0..READS {
            while self.datagrams.rooms.len() < RECEIVE {
                match self.stack.alloc(FRAME_MAX, HEADROOM) {
                    Some(buf) => self.datagrams.rooms.push(buf),
                    None if self.datagrams.rooms.is_empty() => {
                        self.starved = true;
                        return;
                    }
                    None => break,
                }
            }
            let mut rooms = std::mem::take(&mut self.datagrams.rooms);
            let received = self.receive_into(id, &mut rooms);
            rooms.retain(|buf| buf.capacity() >= FRAME_MAX);
            self.datagrams.rooms = rooms;
            if received < RECEIVE {
                return;
            }
        }
    }

    /// One batched read; answers how many messages came.
    fn receive_into(&mut self, id: SessionId, rooms: &mut [Buf]) -> usize {
        let Some(session) = self.datagrams.get(id) else { return 0 };
        let (Some(socket), relayed) = (&session.socket, matches!(session.via, Via::Relay)) else { return 0 };
        let mut told = [(0_usize, 0_u16, None, false); RECEIVE];
        let count = {
            let mut spares = rooms.iter_mut().map(|buf| {
                buf.reset(HEADROOM);
                buf.spare_mut()
            });
            let mut messages: [Incoming<'_>; RECEIVE] =
                std::array::from_fn(|_| Incoming::new(spares.next().unwrap_or_default()));
            self.stats.datagram_calls += 1;
            match datagram::receive(socket, &mut messages) {
                Ok(count) => {
                    for (told, message) in told.iter_mut().zip(&messages[..count]) {
                        let from = if relayed { None } else { message.from.socket_addr() };
                        *told = (message.len, message.segment, from, message.truncated);
                    }
                    count
                }
                Err(error) => {
                    match error.kind() {
                        io::ErrorKind::WouldBlock => session.readable = false,
                        // An ICMP error about a datagram of ours; the socket goes on.
                        _ => self.stats.datagrams_lost += 1,
                    }
                    return 0;
                }
            }
        };
        if count < RECEIVE {
            session.readable = false;
        }
        for (buf, &(len, segment, from, truncated)) in rooms.iter_mut().zip(&told[..count]) {
            if truncated {
                self.stats.datagrams_lost += 1;
                continue;
            }
            buf.grow(len);
            let segment = if segment == 0 { len.max(1) } else { segment.into() };
            if len > segment || len <= COPY_MAX {
                self.deliver_run(id, buf.as_slice(), segment, from);
            } else if let Some(empty) = self.stack.alloc(0, 0) {
                let whole = std::mem::replace(buf, empty);
                self.deliver_whole(id, whole, from);
            }
        }
        count
    }

    /// Hands datagrams that came back to back to the client.
    fn deliver_run(&mut self, id: SessionId, run: &[u8], segment: usize, from: Option<SocketAddr>) {
        let mut rest = run;
        loop {
            let (datagram, tail) = rest.split_at(segment.min(rest.len()));
            rest = tail;
            match self.origin(id, from, datagram) {
                Some((from, header)) => self.join(id, from, &datagram[header..]),
                None => self.stats.datagrams_lost += 1,
            }
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Puts a datagram behind those that wait to leave as one, or begins anew with it.
    fn join(&mut self, id: SessionId, from: SocketAddr, payload: &[u8]) {
        let mut run = match self.datagrams.run.take() {
            Some(run) if run.fits(from, payload.len()) => run,
            other => {
                self.datagrams.run = other;
                self.leave(id);
                let Some(mut buf) = self.stack.alloc(payload.len(), HEADROOM) else {
                    self.stats.datagrams_lost += 1;
                    return;
                };
                buf.append(payload);
                self.datagrams.run = Some(Run { from, size: payload.len(), count: 1, closed: false, buf });
                if !self.stack.takes_runs(payload.len()) {
                    self.leave(id);
                }
                return;
            }
        };
        if run.buf.tailroom() < payload.len() {
            // The first one lies in a buffer of its size.
            let Some(mut large) = self.stack.alloc(FRAME_MAX, HEADROOM) else {
                self.stats.datagrams_lost += 1;
                self.datagrams.run = Some(run);
                return;
            };
            large.append(run.buf.as_slice());
            self.stack.free(std::mem::replace(&mut run.buf, large));
        }
        run.buf.append(payload);
        run.count += 1;
        run.closed = payload.len() < run.size;
        self.datagrams.run = Some(run);
    }

    /// Hands what was joined to the stack.
    fn leave(&mut self, id: SessionId) {
        let Some(run) = self.datagrams.run.take() else { return };
        self.stats.datagrams_down += run.count as u64;
        if run.count == 1 {
            self.stack.datagram(self.now, id, run.from, run.buf);
        } else {
            self.stack.datagram_run(self.now, id, run.from, run.buf, run.size as u16);
        }
    }

    /// Hands a long datagram to the client in the buffer that it came in.
    fn deliver_whole(&mut self, id: SessionId, mut buf: Buf, from: Option<SocketAddr>) {
        if let Some((from, header)) = self.origin(id, from, buf.as_slice()) {
            self.leave(id);
            buf.advance(header);
            self.stats.datagrams_down += 1;
            self.stack.datagram(self.now, id, from, buf);
        } else {
            self.stats.datagrams_lost += 1;
            self.stack.free(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use t2s_core::buf::{Pool, PoolConfig};

    use super::*;

    #[test]
    fn a_run_takes_what_a_device_can_cut_apart_again() {
        let pool = Pool::new(PoolConfig::default());
        let mut cache = pool.cache();
        let (from, other) = ("192.0.2.1:9".parse().unwrap(), "192.0.2.2:9".parse().unwrap());
        let buf = cache.alloc_copy(&[0; 1_000], 0).unwrap();
        let mut run = Run { from, size: 1_000, count: 1, closed: false, buf };
        assert!(run.fits(from, 1_000) && run.fits(from, 1));
        assert!(!run.fits(other, 1_000), "it has one origin");
        assert!(!run.fits(from, 1_001) && !run.fits(from, 0), "it has one length");
        run.closed = true;
        assert!(!run.fits(from, 1_000), "the shorter one is the last");
        run.closed = false;
        run.count = RUN;
        assert!(!run.fits(from, 1_000));
        cache.free(run.buf);
    }
}
