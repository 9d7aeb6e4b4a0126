//! What a client needs to send: the device ring, the time, the counters.

use crate::device_ring::Producer;
use crate::generator::packets::Pattern;
use crate::truth::{Damage, StreamTotals};

/// Record flag: not a packet but a mark between two phases of a run, whose number is in the low bits.
pub const FLAG_MARK: u32 = 1;

/// Record flag: the transport checksum covers the pseudo-header only; the device would complete it.
pub const FLAG_PARTIAL_CHECKSUM: u32 = 2;

/// Record flags from this bit on: segment payload of a super-segment, bytes.
pub const FLAG_GSO_SHIFT: u32 = 16;

/// Marks in the device ring. They travel in order with the packets, so the worker's counts split exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Mark {
    /// The measured window begins.
    Begin = 1,
    /// It ends, and with it all limits of the simulated upstream.
    Drain = 2,
    /// The generator has closed all its flows.
    End = 3,
}

impl Mark {
    /// Sends the mark; false while the ring is full.
    pub fn send(self, ring: &mut Producer) -> bool {
        let sent = ring.push(&[], self as u64, FLAG_MARK);
        ring.publish();
        sent
    }

    /// Reads a mark from the due time of its record.
    pub fn from_due(due_ns: u64) -> Option<Self> {
        [Self::Begin, Self::Drain, Self::End].into_iter().find(|&mark| mark as u64 == due_ns)
    }
}

/// Cumulative counts of one generator; windows are differences of two copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets sent.
    pub packets: u64,
    /// Bytes of them, IP headers included.
    pub bytes: u64,
    /// Packets among them that no schedule asked for: acknowledgements and retransmissions.
    pub reactions: u64,
    /// Payload bytes of valid packets, each byte once.
    pub payload: u64,
    /// Packets due while the peer's window was closed by design.
    pub window_blocked: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// RST segments received.
    pub resets_received: u64,
    /// Packets received.
    pub received: u64,
    /// Packets received that the core should not have sent.
    pub corrupt: u64,
    /// Connections established.
    pub opened: u64,
    /// Connections that had been established and ended.
    pub closed: u64,
    /// Connections refused.
    pub refused: u64,
    /// Connections given up after too many retransmissions.
    pub aborted: u64,
    /// Connections that were reset although their upstream does not do that.
    pub reset: u64,
    /// Requests for the peer's window after it had been closed for long.
    pub window_probes: u64,
    /// Segments received once more: retransmissions of the core, none of which this device makes necessary.
    pub repeated: u64,
    /// Segments received ahead of one that had not come.
    pub gaps: u64,
    /// Payload bytes received in order, each byte once.
    pub payload_received: u64,
    /// What ended flows have sent; of the whole phase, as the next two are.
    pub up: StreamTotals,
    /// What they have received.
    pub down: StreamTotals,
    /// Bytes received that the upstream has not sent there.
    pub damage: Damage,
}

/// The way out of a generator for the time of one packet or one iteration.
pub struct Link<'a> {
    /// The device.
    pub ring: &'a mut Producer,
    /// The time of this iteration, nanoseconds.
    pub now_ns: u64,
    /// When what is sent now was due; equal to `now_ns` for reactions.
    pub due_ns: u64,
    /// The payload.
    pub pattern: &'a Pattern,
    /// The counts.
    pub counters: &'a mut Counters,
}

impl Link<'_> {
    /// Milliseconds of the clock, wrapping: the clients' timers and timestamps.
    #[inline]
    pub fn now_ms(&self) -> u32 {
        (self.now_ns / 1_000_000) as u32
    }

    /// Sends a packet of up to `len` bytes that `write` fills, `write` returning its length; false while the ring is
    /// full. `gso_size` is the payload of a segment when the packet is a super-segment, else 0.
    #[inline]
    pub fn send_with(&mut self, len: usize, gso_size: u16, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let Some(room) = self.ring.reserve(len) else { return false };
        let written = write(room);
        self.ring.commit(written, self.due_ns, u32::from(gso_size) << FLAG_GSO_SHIFT);
        self.counters.packets += 1;
        self.counters.bytes += written as u64;
        true
    }
}
