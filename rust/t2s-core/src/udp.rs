//! UDP sessions: one mapping a client address and port, whatever it speaks to (RFC 4787, REQ-1: endpoint-independent
//! mapping; REQ-8: endpoint-independent filtering, since the session does not ask where a datagram comes from).
//!
//! Promises: lookup, refresh, expiry and eviction take constant time; a session that was closed is never reached by an
//! old [`SessionId`]; datagrams leave a session in the order they came; with all queues at their working size nothing
//! is allocated. At the cap the session that has been idle longest makes room for a new one. Only traffic from the
//! client need refresh a mapping (REQ-6); replies may, and here do.
//!
//! Refuses: datagrams beyond a session's queue or beyond the bytes that all queues may hold
//! ([`DropReason::UdpQueueFull`]), and any session when the cap is 0 ([`DropReason::FlowTableFull`]).
//!
//! This is a table, not a protocol: opening the upstream and sending is the caller's.

use core::net::SocketAddr;

use ahash::RandomState;

use crate::buf::{Buf, PoolCache};
use crate::config::UdpConfig;
use crate::index::Index;
use crate::lru::LruList;
use crate::stats::DropReason;
use crate::time::Instant;

#[cfg(test)]
mod tests;

/// The port whose sessions may be short-lived (RFC 4787, REQ-5 b, with the IANA port of DNS).
const DNS_PORT: u16 = 53;
/// Sessions for which room is reserved at once: as many as one client address has ports. A larger table grows.
const RESERVED_MAX: u32 = 1 << 16;

/// Slots that [`Sessions::prepare`] adds at once: about a page of memory.
const PREPARED: u32 = 32;
/// No entry: the end of a list.
const NONE: u32 = u32::MAX;

/// Names a session; stale after the session closed, and then refused everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId {
    index: u32,
    generation: u32,
}

impl SessionId {
    /// The id as one number, for callers that must pass it through a `u64` (event tokens).
    pub const fn to_u64(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The inverse of [`SessionId::to_u64`]; an invented number names no session, or one that is there.
    pub const fn from_u64(token: u64) -> Self {
        Self { index: token as u32, generation: (token >> 32) as u32 }
    }
}

/// A session that ended.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Its id, stale from now on.
    pub id: SessionId,
    /// Its client.
    pub client: SocketAddr,
    /// Datagrams that still waited and were freed.
    pub dropped: u16,
}

/// A search for a client's session, begun by [`Sessions::seek`] of the same table.
#[must_use]
#[derive(Clone, Copy, Debug)]
pub struct Sought {
    client: SocketAddr,
    hash: u64,
}

/// What [`Sessions::open`] did.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The client's session.
    pub id: SessionId,
    /// Whether it is new (the caller then opens an upstream).
    pub fresh: bool,
    /// The session that had to go for it.
    pub evicted: Option<Closed>,
}

/// One session, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its id.
    pub id: SessionId,
    /// The client's end.
    pub client: SocketAddr,
    /// Where its first datagram went; later ones may go elsewhere.
    pub target: SocketAddr,
    /// Payload bytes taken from the client.
    pub bytes_up: u64,
    /// Payload bytes sent to the client.
    pub bytes_down: u64,
    /// When it was opened.
    pub opened_at: Instant,
    /// When a datagram last went either way.
    pub last_used: Instant,
}

/// What the table did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Sessions opened.
    pub opened: u64,
    /// Sessions that made room for others at the cap.
    pub evicted: u64,
    /// Sessions that were idle too long.
    pub expired: u64,
    /// Datagrams queued.
    pub queued: u64,
    /// Datagrams refused.
    pub refused: u64,
    /// The most bytes of buffers that ever waited at once.
    pub bytes_peak: u64,
}

/// Lists of sessions in order of last use; each has one timeout, so its first is the next to expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Only ever spoke to port 53.
    Dns = 0,
    /// All others.
    Any = 1,
}

/// A queue through the waiting datagrams.
#[derive(Clone, Copy, Debug)]
struct Queue {
    first: u32,
    last: u32,
    len: u16,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    /// `None`: the slot is free.
    client: Option<SocketAddr>,
    class: Class,
    last_used: Instant,
    queue: Queue,
    /// Where the first datagram went; `None` with `client`.
    target: Option<SocketAddr>,
    bytes_up: u64,
    bytes_down: u64,
    opened_at: Instant,
}

#[derive(Debug)]
struct Waiting {
    /// `None`: the place is free, and `next` links the free ones.
    datagram: Option<(SocketAddr, Buf)>,
    next: u32,
}

/// The UDP sessions of one worker.
#[derive(Debug)]
pub struct Sessions {
    config: UdpConfig,
    capacity: u32,
    hasher: RandomState,
    /// Client to slot; keys stand in the slots.
    by_client: Index,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    /// In order of last use, indexed by [`Class`].
    used: [LruList; 2],
    waiting: Vec<Waiting>,
    free_waiting: u32,
    bytes: u64,
    stats: SessionStats,
}

impl Sessions {
    /// A table of at most `capacity` sessions, hashed under `hash_key`. Room for them is reserved here, up to
    /// [`RESERVED_MAX`], so that no packet pays for growth; of reserved memory only what is used becomes resident.
    pub fn new(config: UdpConfig, capacity: u32, hash_key: [u64; 4]) -> Self {
        let [a, b, c, d] = hash_key;
        let reserved = capacity.min(RESERVED_MAX) as usize;
        Self {
            config,
            // The last index means "none".
            capacity: capacity.min(NONE - 1),
            hasher: RandomState::with_seeds(a, b, c, d),
            by_client: Index::with_room(reserved),
            slots: Vec::with_capacity(reserved),
            free_slots: Vec::new(),
            used: [LruList::default(), LruList::default()],
            waiting: Vec::new(),
            free_waiting: NONE,
            bytes: 0,
            stats: SessionStats::default(),
        }
    }

    /// Sessions that are open.
    pub fn len(&self) -> usize {
        self.by_client.len()
    }

    /// Whether no session is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of buffers that wait over all sessions.
    pub fn queued_bytes(&self) -> u64 {
        self.bytes
    }

    /// What happened so far.
    pub fn stats(&self) -> SessionStats {
        self.stats
    }

    /// The client of a session; `None` for a stale id.
    pub fn client(&self, id: SessionId) -> Option<SocketAddr> {
        self.slot(id)?.client
    }

    /// Datagrams that wait for the session's upstream; 0 for a stale id.
    pub fn queued(&self, id: SessionId) -> u16 {
        self.slot(id).map_or(0, |slot| slot.queue.len)
    }

    /// Every open session, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = SessionInfo> + '_ {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            Some(SessionInfo {
                id: SessionId { index: index as u32, generation: slot.generation },
                client: slot.client?,
                target: slot.target?,
                bytes_up: slot.bytes_up,
                bytes_down: slot.bytes_down,
                opened_at: slot.opened_at,
                last_used: slot.last_used,
            })
        })
    }

    /// The session of a client, if it has one. Does not count as use.
    #[inline]
    pub fn lookup(&self, client: SocketAddr) -> Option<SessionId> {
        let client = plain(client);
        self.find(self.hasher.hash_one(client), client)
    }

    /// Begins the search for a client's session: what it looks at first is on its way to the cache.
    #[inline]
    pub fn seek(&self, client: SocketAddr) -> Sought {
        let client = plain(client);
        let hash = self.hasher.hash_one(client);
        self.by_client.site().prefetch(hash);
        Sought { client, hash }
    }

    /// The session of a client, opened if it has none; at the cap the session that was idle longest is closed for it.
    ///
    /// A new session starts as one that speaks to `target`'s port (which decides its timeout); nothing is queued yet.
    pub fn open(
        &mut self,
        now: Instant,
        sought: Sought,
        target: SocketAddr,
        pool: &mut PoolCache,
    ) -> Result<Opened, DropReason> {
        let Sought { client, hash } = sought;
        debug_assert_eq!(hash, self.hasher.hash_one(client), "sought in this table");
        if let Some(id) = self.find(hash, client) {
            return Ok(Opened { id, fresh: false, evicted: None });
        }
        if self.capacity == 0 {
            return Err(DropReason::FlowTableFull);
        }
        let mut evicted = None;
        if self.by_client.len() >= self.capacity as usize
            && let Some(id) = self.longest_idle()
        {
            self.stats.evicted += 1;
            evicted = self.close(id, pool);
        }
        let index = self.take_slot();
        let class = if target.port() == DNS_PORT { Class::Dns } else { Class::Any };
        let Some(slot) = self.slots.get_mut(index as usize) else { return Err(DropReason::FlowTableFull) };
        slot.client = Some(client);
        slot.class = class;
        slot.last_used = now;
        slot.target = Some(target);
        (slot.bytes_up, slot.bytes_down, slot.opened_at) = (0, 0, now);
        let id = SessionId { index, generation: slot.generation };
        self.used[class as usize].push(index);
        self.by_client.insert(hash, index);
        self.stats.opened += 1;
        Ok(Opened { id, fresh: true, evicted })
    }

    /// Queues a datagram for the session's upstream, and counts as use. Refused: a stale id
    /// ([`DropReason::UdpRefused`]), a full queue ([`DropReason::UdpQueueFull`]); the buffer comes back.
    pub fn push(
        &mut self,
        now: Instant,
        id: SessionId,
        target: SocketAddr,
        payload: Buf,
    ) -> Result<(), (Buf, DropReason)> {
        let footprint = payload.capacity() as u64;
        let (limit, bytes) = (self.config.queue, self.bytes + footprint);
        let Some(slot) = self.slot(id) else {
            self.stats.refused += 1;
            return Err((payload, DropReason::UdpRefused));
        };
        if slot.queue.len >= limit || bytes > self.config.queued_bytes {
            self.stats.refused += 1;
            return Err((payload, DropReason::UdpQueueFull));
        }
        let class = if target.port() == DNS_PORT { slot.class } else { Class::Any };
        self.refresh(now, id.index, class);
        let len = payload.len() as u64;
        let place = self.take_waiting(target, payload);
        let Some(slot) = self.slots.get_mut(id.index as usize) else { return Ok(()) };
        slot.bytes_up += len;
        let last = core::mem::replace(&mut slot.queue.last, place);
        slot.queue.len += 1;
        if last == NONE {
            slot.queue.first = place;
        } else if let Some(last) = self.waiting.get_mut(last as usize) {
            last.next = place;
        }
        self.bytes = bytes;
        self.stats.queued += 1;
        self.stats.bytes_peak = self.stats.bytes_peak.max(bytes);
        Ok(())
    }

    /// Takes the datagram that has waited longest in a session, with the address that it goes to.
    pub fn pop(&mut self, id: SessionId) -> Option<(SocketAddr, Buf)> {
        self.slot(id)?;
        let slot = self.slots.get_mut(id.index as usize)?;
        let place = slot.queue.first;
        let waiting = self.waiting.get_mut(place as usize)?;
        let datagram = waiting.datagram.take()?;
        slot.queue.first = core::mem::replace(&mut waiting.next, self.free_waiting);
        self.free_waiting = place;
        slot.queue.len -= 1;
        if slot.queue.first == NONE {
            slot.queue.last = NONE;
        }
        self.bytes -= datagram.1.capacity() as u64;
        Some(datagram)
    }

    /// Puts a datagram back in front of a session's queue (the upstream was not ready for it). Not refused for a full
    /// queue, since it just came from there; a stale id gives the buffer back.
    pub fn unpop(&mut self, id: SessionId, target: SocketAddr, payload: Buf) -> Result<(), Buf> {
        if self.slot(id).is_none() {
            return Err(payload);
        }
        self.bytes += payload.capacity() as u64;
        let place = self.take_waiting(target, payload);
        if let (Some(slot), Some(waiting)) =
            (self.slots.get_mut(id.index as usize), self.waiting.get_mut(place as usize))
        {
            waiting.next = core::mem::replace(&mut slot.queue.first, place);
            if slot.queue.last == NONE {
                slot.queue.last = place;
            }
            slot.queue.len = slot.queue.len.saturating_add(1);
        }
        Ok(())
    }

    /// A reply of `bytes` goes to the client of a session, which counts as use; whether the session is there.
    pub fn touch(&mut self, now: Instant, id: SessionId, bytes: usize) -> bool {
        if self.slot(id).is_none() {
            return false;
        }
        let Some(slot) = self.slots.get_mut(id.index as usize) else { return false };
        slot.bytes_down += bytes as u64;
        let class = slot.class;
        self.refresh(now, id.index, class);
        true
    }

    /// Closes a session and frees what waits in it; `None` for a stale id.
    pub fn close(&mut self, id: SessionId, pool: &mut PoolCache) -> Option<Closed> {
        let (client, class) = self.slot(id).and_then(|slot| Some((slot.client?, slot.class)))?;
        let mut dropped = 0;
        while let Some((_, buf)) = self.pop(id) {
            pool.free(buf);
            dropped += 1;
        }
        self.used[class as usize].remove(id.index);
        let hash = self.hasher.hash_one(client);
        self.by_client.remove(hash, |index| index == id.index);
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.client, slot.target) = (None, None);
        slot.generation = slot.generation.wrapping_add(1);
        self.free_slots.push(id.index);
        Some(Closed { id, client, dropped })
    }

    /// When the next session will have been idle too long.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let deadline = |class: Class| Some(self.head(class)?.1.plus(self.timeout(class)));
        [Class::Dns, Class::Any].into_iter().filter_map(deadline).min()
    }

    /// Closes one session that has been idle too long; call until `None`.
    pub fn expire(&mut self, now: Instant, pool: &mut PoolCache) -> Option<Closed> {
        for class in [Class::Dns, Class::Any] {
            if let Some((id, last_used)) = self.head(class)
                && now >= last_used.plus(self.timeout(class))
            {
                self.stats.expired += 1;
                return self.close(id, pool);
            }
        }
        None
    }

    /// Closes any one session (at the end of the worker); call until `None`.
    pub fn close_any(&mut self, pool: &mut PoolCache) -> Option<Closed> {
        let id = self.longest_idle()?;
        self.close(id, pool)
    }

    fn slot(&self, id: SessionId) -> Option<&Slot> {
        self.slots.get(id.index as usize).filter(|slot| slot.generation == id.generation && slot.client.is_some())
    }

    /// The session of a client (without parts that do not identify it) under its hash.
    #[inline]
    fn find(&self, hash: u64, client: SocketAddr) -> Option<SessionId> {
        let is_client = |index: u32| self.slots.get(index as usize).is_some_and(|slot| slot.client == Some(client));
        let index = self.by_client.find(hash, is_client)?;
        Some(SessionId { index, generation: self.slots.get(index as usize)?.generation })
    }

    fn timeout(&self, class: Class) -> u64 {
        match class {
            Class::Dns => self.config.dns_idle_timeout,
            Class::Any => self.config.idle_timeout,
        }
    }

    /// The least recently used session of a class, with the time of its last use.
    fn head(&self, class: Class) -> Option<(SessionId, Instant)> {
        let index = self.used[class as usize].first()?;
        let slot = self.slots.get(index as usize)?;
        Some((SessionId { index, generation: slot.generation }, slot.last_used))
    }

    fn longest_idle(&self) -> Option<SessionId> {
        [Class::Dns, Class::Any]
            .into_iter()
            .filter_map(|class| self.head(class))
            .min_by_key(|&(_, last_used)| last_used)
            .map(|(id, _)| id)
    }

    /// Makes a session the most recently used one of a class.
    #[inline]
    fn refresh(&mut self, now: Instant, index: u32, class: Class) {
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        // A list is in order of last use only as long as time does not run backwards.
        slot.last_used = slot.last_used.max(now);
        if slot.class != class {
            self.used[slot.class as usize].remove(index);
            slot.class = class;
        }
        self.used[class as usize].push(index);
    }

    /// For when nothing waits. At the cap, fetches what the next new session will close; below it, gets a few slots
    /// ready if none is and the table is in use, so that the first touch of their memory is not a packet's, and tells
    /// that it did.
    pub fn prepare(&mut self) -> bool {
        if self.by_client.len() >= self.capacity as usize {
            // Its slot comes by being asked for its client.
            if let Some(client) = self.longest_idle().and_then(|id| self.client(id)) {
                let _ = self.seek(client);
            }
            false
        } else if self.free_slots.is_empty() && !self.is_empty() && self.slots.len() < self.capacity as usize {
            let first = self.slots.len() as u32;
            for index in first..(first + PREPARED).min(self.capacity) {
                self.add_slot();
                self.free_slots.push(index);
            }
            true
        } else {
            false
        }
    }

    /// A free slot, the table's memory grown if there is none.
    fn take_slot(&mut self) -> u32 {
        if let Some(index) = self.free_slots.pop() {
            return index;
        }
        self.add_slot();
        self.slots.len() as u32 - 1
    }

    fn add_slot(&mut self) {
        self.slots.push(Slot {
            generation: 0,
            client: None,
            class: Class::Any,
            last_used: Instant::ZERO,
            queue: Queue { first: NONE, last: NONE, len: 0 },
            target: None,
            bytes_up: 0,
            bytes_down: 0,
            opened_at: Instant::ZERO,
        });
    }

    /// A place for a datagram, the last of its queue.
    fn take_waiting(&mut self, target: SocketAddr, payload: Buf) -> u32 {
        let place = self.free_waiting;
        if let Some(waiting) = self.waiting.get_mut(place as usize) {
            self.free_waiting = core::mem::replace(&mut waiting.next, NONE);
            waiting.datagram = Some((target, payload));
            return place;
        }
        self.waiting.push(Waiting { datagram: Some((target, payload)), next: NONE });
        self.waiting.len() as u32 - 1
    }
}

/// An address without the parts that do not identify a client (IPv6 flow label and scope).
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}
