//! Reassembly of IPv4 and IPv6 datagrams, each into one pooled buffer.
//!
//! Promises: a datagram comes out once, when its last missing fragment came in, as one IP packet without a trace of
//! fragmentation; fragments may come in any order and more than once; bytes of buffers, datagrams, fragments of a
//! datagram and age stay within [`FragmentLimits`]; a datagram costs its fragments' memory until it is whole, never
//! that of the largest one possible. When datagrams or bytes run out, the oldest incomplete datagram goes: under a
//! flood of fragments that never complete, those that do (their parts come back to back) still get through.
//!
//! Refuses: empty fragments, ones not a multiple of 8 bytes long except the last, ends beyond 65,535 bytes (the "ping
//! of death"), first fragments without the whole transport header and TCP fragments that could overwrite it (RFC 1858,
//! RFC 7112), overlaps (RFC 5722; later fragments of the same datagram then meet its tombstone, until it is too old),
//! parts beyond the end that another fragment declared, mixtures of congestion marks that RFC 3168, section 5.3,
//! forbids.

use core::net::IpAddr;

use ahash::RandomState;

use crate::buf::{Buf, PoolCache};
use crate::config::{FragmentLimits, Reassembly};
use crate::index::Index;
use crate::lru::LruList;
use crate::stats::{DropCounts, DropReason};
use crate::time::Instant;
use crate::wire::ip::{FRAGMENT_HEADER, Fragment, IPV4_HEADER, IPV6_HEADER, fill_v4_header_checksum};
use crate::wire::{Ip, protocol};

#[cfg(test)]
mod tests;

/// Largest value of IPv4's total length and IPv6's payload length fields, bytes.
const LENGTH_MAX: u32 = 65_535;
/// A fragment in a buffer this many times its size is copied to a smaller one, so that small fragments cannot hold
/// large buffers.
const WASTE: usize = 4;

/// What became of a packet.
#[must_use]
#[derive(Debug)]
pub enum Outcome {
    /// Held (or an exact duplicate, and freed); its datagram is not whole yet.
    Pending,
    /// A whole packet: the datagram that this fragment completed, or the packet itself if it is no fragment. Its
    /// transport checksum has not been verified.
    Complete(Buf),
    /// Refused and freed.
    Dropped(DropReason),
}

/// What the table holds and did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentStats {
    /// Bytes of buffers held.
    pub bytes: u64,
    /// The most that [`Self::bytes`] ever was.
    pub bytes_peak: u64,
    /// Payload bytes of fragments ever held.
    pub bytes_total: u64,
    /// Datagrams in reassembly, tombstones included.
    pub datagrams: usize,
    /// Datagrams that became whole.
    pub completed: u64,
    /// Exact duplicates ignored (RFC 8200, section 4.5).
    pub duplicates: u64,
    /// Datagrams given up incomplete: too old, evicted, or poisoned.
    pub abandoned: u64,
}

/// What fragments of one datagram have in common (RFC 791, section 3.2; RFC 8200, section 4.5, where the protocol is
/// the first fragment's alone).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    id: u32,
    /// 0 in IPv6.
    protocol: u8,
}

/// One held fragment, its whole packet.
#[derive(Debug)]
struct Piece {
    /// Where its payload belongs, and where that ends; end is at most [`LENGTH_MAX`].
    start: u32,
    end: u32,
    /// Where its payload stands in the buffer.
    payload: u16,
    buf: Buf,
}

/// A datagram in reassembly, or a free place.
#[derive(Debug)]
struct Datagram {
    /// `None`: the place is free, and everything below is empty.
    key: Option<Key>,
    deadline: Instant,
    /// Set: poisoned; holds nothing, and every further fragment is refused for this reason.
    dead: Option<DropReason>,
    /// Sorted, without overlap.
    pieces: Vec<Piece>,
    /// Payload bytes of the pieces.
    received: u32,
    /// Bytes of the pieces' buffers.
    footprint: u64,
    /// End of the last fragment, once it is known.
    total: Option<u32>,
    /// Congestion marks seen: bit `n` for codepoint `n`.
    marks: u8,
}

/// The datagrams in reassembly of one worker.
#[derive(Debug)]
pub struct FragmentReassembler {
    limits: FragmentLimits,
    bounded: bool,
    hasher: RandomState,
    by_key: Index,
    datagrams: Vec<Datagram>,
    free: Vec<u32>,
    /// By age, which is the order of deadlines too.
    age: LruList,
    stats: FragmentStats,
    lost: DropCounts,
}

impl FragmentReassembler {
    /// An empty table, hashed under `hash_key`. With [`Reassembly::Unbounded`] only age is limited.
    pub fn new(limits: FragmentLimits, mode: Reassembly, hash_key: [u64; 4]) -> Self {
        let [a, b, c, d] = hash_key;
        Self {
            limits,
            bounded: mode == Reassembly::Bounded,
            hasher: RandomState::with_seeds(a, b, c, d),
            by_key: Index::with_room(0),
            datagrams: Vec::new(),
            free: Vec::new(),
            age: LruList::default(),
            stats: FragmentStats::default(),
            lost: DropCounts::default(),
        }
    }

    /// What is held and what happened so far.
    pub fn stats(&self) -> FragmentStats {
        FragmentStats { datagrams: self.by_key.len(), ..self.stats }
    }

    /// Fragments that were held ([`Outcome::Pending`]) and then given up, by reason, since the start. A fragment that
    /// came back as [`Outcome::Dropped`] is not among them.
    pub fn lost(&self) -> &DropCounts {
        &self.lost
    }

    /// Takes a packet of which `ip` was parsed.
    pub fn handle(&mut self, now: Instant, mut packet: Buf, ip: &Ip, pool: &mut PoolCache) -> Outcome {
        let Some(fragment) = ip.fragment else { return Outcome::Complete(packet) };
        if let Err(reason) = check(&packet, ip, &fragment) {
            pool.free(packet);
            return Outcome::Dropped(reason);
        }
        packet.truncate(ip.total as usize);
        let key = Key { src: ip.src, dst: ip.dst, id: fragment.id, protocol: if ip.is_v4() { ip.protocol } else { 0 } };
        let place = match self.find(&key) {
            Some(place) => place,
            None => match self.open(now, key, pool) {
                Ok(place) => place,
                Err(reason) => {
                    pool.free(packet);
                    return Outcome::Dropped(reason);
                }
            },
        };
        match self.hold(place, packet, ip, &fragment, pool) {
            Ok(false) => Outcome::Pending,
            Ok(true) => self.complete(place, ip.is_v4(), pool),
            Err(reason) => Outcome::Dropped(reason),
        }
    }

    /// Gives up what is too old. Answers the first fragment of a datagram of which that came, so that its sender can be
    /// told; call until `None`.
    #[must_use]
    pub fn handle_timeout(&mut self, now: Instant, pool: &mut PoolCache) -> Option<Buf> {
        while let Some(place) = self.age.first()
            && let Some(datagram) = self.datagrams.get_mut(place as usize).filter(|it| it.deadline <= now)
        {
            let first = datagram.take_first();
            if let Some(first) = &first {
                self.stats.bytes -= first.capacity() as u64;
                self.lost.add(DropReason::FragmentTimeout);
            }
            self.give_up(place, DropReason::FragmentTimeout, pool);
            if first.is_some() {
                return first;
            }
        }
        None
    }

    /// When something will be too old.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        Some(self.datagrams.get(self.age.first()? as usize)?.deadline)
    }

    /// Gives up everything (at the end of the worker).
    pub fn clear(&mut self, pool: &mut PoolCache) {
        while let Some(place) = self.age.first() {
            self.give_up(place, DropReason::FragmentTimeout, pool);
        }
    }

    fn find(&self, key: &Key) -> Option<u32> {
        let is_it = |place: u32| self.datagrams.get(place as usize).is_some_and(|it| it.key.as_ref() == Some(key));
        self.by_key.find(self.hasher.hash_one(key), is_it)
    }

    /// A place for a new datagram; the oldest goes if there is none.
    fn open(&mut self, now: Instant, key: Key, pool: &mut PoolCache) -> Result<u32, DropReason> {
        if self.bounded && self.by_key.len() >= usize::from(self.limits.datagrams) {
            let Some(oldest) = self.age.first() else { return Err(DropReason::FragmentFull) };
            self.give_up(oldest, DropReason::FragmentFull, pool);
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.datagrams.push(Datagram {
                key: None,
                deadline: Instant::ZERO,
                dead: None,
                pieces: Vec::new(),
                received: 0,
                footprint: 0,
                total: None,
                marks: 0,
            });
            self.datagrams.len() as u32 - 1
        });
        let Some(datagram) = self.datagrams.get_mut(place as usize) else { return Err(DropReason::FragmentFull) };
        datagram.key = Some(key);
        datagram.deadline = now.plus(self.limits.age);
        self.by_key.insert(self.hasher.hash_one(key), place);
        self.age.push(place);
        Ok(place)
    }

    /// Adds a checked fragment to its datagram; whether that is whole now. The packet is kept or freed.
    fn hold(
        &mut self,
        place: u32,
        packet: Buf,
        ip: &Ip,
        fragment: &Fragment,
        pool: &mut PoolCache,
    ) -> Result<bool, DropReason> {
        let (start, end) = (fragment.offset, fragment.offset + ip.payload_len() as u32);
        // `place` comes from the table.
        let Some(datagram) = self.datagrams.get(place as usize) else { return Err(DropReason::FragmentBad) };
        let verdict = match datagram.dead {
            Some(reason) => Err((reason, false)),
            None => datagram.fit(&packet, ip, start, end, fragment.more),
        };
        let at = match verdict {
            Ok(Some(at)) => at,
            Ok(None) => {
                self.stats.duplicates += 1;
                pool.free(packet);
                return Ok(false);
            }
            Err((reason, poison)) => {
                pool.free(packet);
                if poison {
                    self.poison(place, reason, pool);
                }
                return Err(reason);
            }
        };
        if self.bounded && datagram.pieces.len() >= usize::from(self.limits.fragments) {
            pool.free(packet);
            self.poison(place, DropReason::FragmentFull, pool);
            return Err(DropReason::FragmentFull);
        }
        let packet = compact(packet, pool);
        let footprint = packet.capacity() as u64;
        if self.bounded && !self.make_room(footprint, place, pool) {
            pool.free(packet);
            return Err(DropReason::FragmentFull);
        }

        let Some(datagram) = self.datagrams.get_mut(place as usize) else { return Err(DropReason::FragmentBad) };
        datagram.pieces.insert(at, Piece { start, end, payload: ip.payload, buf: packet });
        datagram.received += end - start;
        datagram.footprint += footprint;
        datagram.marks |= 1 << (ip.ecn & 3);
        if !fragment.more {
            datagram.total = Some(end);
        }
        let whole = datagram.total == Some(datagram.received);
        self.stats.bytes += footprint;
        self.stats.bytes_peak = self.stats.bytes_peak.max(self.stats.bytes);
        self.stats.bytes_total += u64::from(end - start);
        Ok(whole)
    }

    /// Gives up the oldest datagrams except `keep` until `footprint` more bytes fit; whether they do.
    fn make_room(&mut self, footprint: u64, keep: u32, pool: &mut PoolCache) -> bool {
        let mut next = self.age.first();
        while self.stats.bytes + footprint > self.limits.total_bytes {
            let Some(place) = next else { return false };
            next = self.age.after(place);
            if place != keep && self.datagrams.get(place as usize).is_some_and(|it| it.footprint > 0) {
                self.give_up(place, DropReason::FragmentFull, pool);
            }
        }
        true
    }

    /// Makes the packet of a whole datagram.
    fn complete(&mut self, place: u32, v4: bool, pool: &mut PoolCache) -> Outcome {
        let built = match self.datagrams.get(place as usize) {
            Some(datagram) => datagram.build(v4, pool),
            None => Err(DropReason::FragmentBad),
        };
        match built {
            Ok(packet) => {
                self.stats.completed += 1;
                self.empty(place, pool);
                self.close(place);
                Outcome::Complete(packet)
            }
            Err(reason) => {
                // The fragment at hand is the caller's to count, the others ours.
                let held = self.empty(place, pool);
                self.lost.add_n(reason, held.saturating_sub(1));
                self.stats.abandoned += 1;
                self.close(place);
                Outcome::Dropped(reason)
            }
        }
    }

    /// Frees what a datagram holds and leaves a tombstone, so that its other fragments are refused too (RFC 5722).
    fn poison(&mut self, place: u32, reason: DropReason, pool: &mut PoolCache) {
        let held = self.empty(place, pool);
        self.lost.add_n(reason, held);
        self.stats.abandoned += 1;
        if let Some(datagram) = self.datagrams.get_mut(place as usize) {
            datagram.dead = Some(reason);
        }
    }

    /// Frees a datagram and its place.
    fn give_up(&mut self, place: u32, reason: DropReason, pool: &mut PoolCache) {
        if self.datagrams.get(place as usize).is_some_and(|it| it.dead.is_none()) {
            self.stats.abandoned += 1;
        }
        let held = self.empty(place, pool);
        self.lost.add_n(reason, held);
        self.close(place);
    }

    /// Frees what a datagram holds; how many fragments that were.
    fn empty(&mut self, place: u32, pool: &mut PoolCache) -> u64 {
        let Some(datagram) = self.datagrams.get_mut(place as usize) else { return 0 };
        let held = datagram.pieces.len() as u64;
        for piece in datagram.pieces.drain(..) {
            pool.free(piece.buf);
        }
        self.stats.bytes -= datagram.footprint;
        datagram.footprint = 0;
        datagram.received = 0;
        datagram.total = None;
        datagram.marks = 0;
        held
    }

    /// Frees an emptied place.
    fn close(&mut self, place: u32) {
        self.age.remove(place);
        let Some(datagram) = self.datagrams.get_mut(place as usize) else { return };
        datagram.dead = None;
        if let Some(key) = datagram.key.take()
            && self.by_key.remove(self.hasher.hash_one(key), |other| other == place).is_some()
        {
            self.free.push(place);
        }
    }
}

impl Datagram {
    /// Takes the piece at offset 0 out, if it is there.
    fn take_first(&mut self) -> Option<Buf> {
        if self.pieces.first()?.start != 0 {
            return None;
        }
        let first = self.pieces.remove(0);
        self.received -= first.end - first.start;
        self.footprint -= first.buf.capacity() as u64;
        Some(first.buf)
    }

    /// Where a fragment belongs among the pieces; `None` for an exact duplicate. An error says whether it poisons the
    /// datagram.
    fn fit(
        &self,
        packet: &Buf,
        ip: &Ip,
        start: u32,
        end: u32,
        more: bool,
    ) -> Result<Option<usize>, (DropReason, bool)> {
        let at = self.pieces.partition_point(|piece| piece.start < start);
        if let Some(next) = self.pieces.get(at) {
            if next.start == start && next.end == end {
                let same = packet.as_slice().get(usize::from(ip.payload)..) == next.bytes();
                let same_end = more == (self.total != Some(end));
                return if same && same_end { Ok(None) } else { Err((DropReason::FragmentOverlap, true)) };
            }
            if next.start < end {
                return Err((DropReason::FragmentOverlap, true));
            }
        }
        let before = at.checked_sub(1).and_then(|index| self.pieces.get(index));
        if before.is_some_and(|before| before.end > start) {
            return Err((DropReason::FragmentOverlap, true));
        }
        let beyond = match self.total {
            // Behind the last fragment, or another last one.
            Some(total) => end > total || !more,
            None => !more && self.pieces.last().is_some_and(|last| last.end > end),
        };
        if beyond {
            return Err((DropReason::FragmentBad, true));
        }
        // RFC 3168, section 5.3: "congestion experienced" next to "not ECN-capable" is a mark that somebody forged.
        let marks = self.marks | 1 << (ip.ecn & 3);
        if marks & 0b1001 == 0b1001 {
            return Err((DropReason::FragmentBad, true));
        }
        Ok(Some(at))
    }

    /// The whole packet: the first fragment's unfragmentable part, lengths and protocol put right, and all payload.
    fn build(&self, v4: bool, pool: &mut PoolCache) -> Result<Buf, DropReason> {
        let first = self.pieces.first().ok_or(DropReason::FragmentBad)?;
        let first_packet = first.buf.as_slice();
        // Parsed once before, when it came in.
        let fragment = Ip::parse(first_packet)?.fragment.ok_or(DropReason::FragmentBad)?;
        let header = first_packet.get(..usize::from(fragment.unfragmentable)).ok_or(DropReason::Truncated)?;
        let fixed = if v4 { 0 } else { IPV6_HEADER };
        let length = header.len() - fixed.min(header.len()) + self.received as usize;
        if length > LENGTH_MAX as usize {
            return Err(DropReason::FragmentBad);
        }
        let total = header.len() + self.received as usize;
        let mut packet = pool.alloc(total, 0).map_err(|_| DropReason::PoolExhausted)?;
        packet.append(header);
        for piece in &self.pieces {
            packet.append(piece.bytes().unwrap_or_default());
        }
        if packet.len() != total {
            pool.free(packet);
            return Err(DropReason::BadLength);
        }
        let congested = self.marks & 0b1000 != 0;
        let bytes = packet.as_mut_slice();
        let next_header = first_packet.get(usize::from(first.payload) - FRAGMENT_HEADER).copied();
        if v4 {
            bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            // Neither "more fragments" nor an offset; "don't fragment" was clear, or it would not be a fragment.
            bytes[6..8].fill(0);
            if congested {
                bytes[1] |= 3;
            }
            fill_v4_header_checksum(bytes);
        } else {
            bytes[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            if congested {
                bytes[1] |= 3 << 4;
            }
            if let (Some(field), Some(protocol)) = (bytes.get_mut(usize::from(fragment.next_header_at)), next_header) {
                *field = protocol;
            }
        }
        Ok(packet)
    }
}

impl Piece {
    /// Its payload.
    fn bytes(&self) -> Option<&[u8]> {
        self.buf.as_slice().get(usize::from(self.payload)..)
    }
}

/// Checks a fragment on its own.
fn check(packet: &Buf, ip: &Ip, fragment: &Fragment) -> Result<(), DropReason> {
    let payload = packet.as_slice().get(usize::from(ip.payload)..ip.total as usize).ok_or(DropReason::Truncated)?;
    let len = payload.len() as u32;
    if len == 0 || (fragment.more && !len.is_multiple_of(8)) {
        return Err(DropReason::FragmentBad);
    }
    let header = u32::from(fragment.unfragmentable) - if ip.is_v4() { 0 } else { IPV6_HEADER as u32 };
    if header + fragment.offset + len > LENGTH_MAX {
        return Err(DropReason::FragmentBad);
    }
    let whole = if fragment.offset == 0 {
        has_whole_header(ip.protocol, payload)
    } else {
        // RFC 1858, section 4: could only overwrite a part of the TCP header.
        ip.protocol != protocol::TCP || fragment.offset >= TCP_HEADER_MIN as u32
    };
    if whole { Ok(()) } else { Err(DropReason::FragmentBad) }
}

/// Bytes of a TCP header without options.
const TCP_HEADER_MIN: usize = 20;
/// Bytes of a UDP header, and of an ICMP header.
const SHORT_HEADER: usize = 8;

/// Whether a first fragment has everything up to the end of the transport header (RFC 1858; RFC 7112).
fn has_whole_header(mut next: u8, mut payload: &[u8]) -> bool {
    // Extension headers behind the fragment header (destination options, mostly); each is at least 8 bytes, and a
    // protocol that has none ends the loop.
    while matches!(next, 0 | 43 | 60) {
        let (Some(&kind), Some(&len)) = (payload.first(), payload.get(1)) else { return false };
        let Some(rest) = payload.get(usize::from(len) * 8 + 8..) else { return false };
        (next, payload) = (kind, rest);
    }
    match next {
        protocol::TCP => {
            let header = payload.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
            payload.len() >= header.max(TCP_HEADER_MIN)
        }
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 => payload.len() >= SHORT_HEADER,
        _ => true,
    }
}

/// The packet in a buffer that fits it, if its own is far too large.
fn compact(packet: Buf, pool: &mut PoolCache) -> Buf {
    if packet.capacity() / WASTE < packet.len() {
        return packet;
    }
    match pool.alloc_copy(packet.as_slice(), 0) {
        Ok(small) if small.capacity() < packet.capacity() => {
            pool.free(packet);
            small
        }
        Ok(same) => {
            pool.free(same);
            packet
        }
        // Worth trying only.
        Err(_) => packet,
    }
}

const _: () = assert!(IPV4_HEADER < IPV6_HEADER);
