//! The words a stack and its driver speak: packets in, requests and packets out.

use core::fmt;
use core::net::SocketAddr;

use crate::buf::Buf;
use crate::named::named;
use crate::stats::{DropCounts, StageTimes};
use crate::tcp::{self, State, TcpStats};
use crate::wire::virtio::VirtioNetHdr;

/// An IP packet as the device gave it.
#[derive(Debug)]
pub struct Packet {
    /// The packet from its IP header on; bytes behind the IP length are padding.
    pub buf: Buf,
    /// The device vouches for the transport checksum (`VIRTIO_NET_HDR_F_DATA_VALID` or `F_NEEDS_CSUM`).
    pub checksum_trusted: bool,
    /// Payload bytes of each segment of a super-packet; 0 when the packet is a plain one.
    pub gso_size: u16,
}

impl Packet {
    /// A plain packet whose checksums nobody has looked at.
    pub fn plain(buf: Buf) -> Self {
        Self { buf, checksum_trusted: false, gso_size: 0 }
    }
}

/// Names one TCP flow of one stack for as long as it lives; a stale name is refused, never mistaken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl FlowId {
    /// The id as one number, for tables of the driver.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The id that [`FlowId::to_bits`] came from.
    pub const fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }

    /// A small number that no other *live* flow of this stack has; reused after the flow's end.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

impl fmt::Debug for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flow {}.{}", self.index, self.generation)
    }
}

/// Why a flow has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// Both sides finished.
    Finished,
    /// The client reset it.
    ClientReset,
    /// The upstream refused, reset or never answered.
    Upstream,
    /// The client stopped acknowledging (RFC 9293, section 3.8.3).
    RetransmitLimit,
    /// Keepalive probes stayed unanswered.
    Keepalive,
    /// Nothing moved for the idle timeout.
    Idle,
    /// The upstream did not answer in the connect timeout.
    ConnectTimeout,
    /// Another flow needed its place.
    Evicted,
    /// The stack shuts down.
    Shutdown,
    /// The client broke the protocol.
    Protocol,
    /// The client sent bytes after the upstream had stopped reading.
    ReaderGone,
}

impl From<tcp::CloseReason> for CloseReason {
    fn from(reason: tcp::CloseReason) -> Self {
        match reason {
            tcp::CloseReason::Finished => Self::Finished,
            tcp::CloseReason::PeerReset => Self::ClientReset,
            tcp::CloseReason::Aborted | tcp::CloseReason::Refused => Self::Upstream,
            tcp::CloseReason::ConnectTimeout => Self::ConnectTimeout,
            tcp::CloseReason::RetransmitTimeout => Self::RetransmitLimit,
            tcp::CloseReason::KeepaliveTimeout => Self::Keepalive,
            tcp::CloseReason::IdleTimeout | tcp::CloseReason::FinWait2Timeout => Self::Idle,
            tcp::CloseReason::ReaderGone => Self::ReaderGone,
            tcp::CloseReason::Protocol => Self::Protocol,
        }
    }
}

impl CloseReason {
    /// All reasons, in declaration order.
    pub const ALL: &'static [Self] = &[
        Self::Finished,
        Self::ClientReset,
        Self::Upstream,
        Self::RetransmitLimit,
        Self::Keepalive,
        Self::Idle,
        Self::ConnectTimeout,
        Self::Evicted,
        Self::Shutdown,
        Self::Protocol,
        Self::ReaderGone,
    ];

    /// The stable name, as it stands in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ClientReset => "client_reset",
            Self::Upstream => "upstream",
            Self::RetransmitLimit => "retransmit_limit",
            Self::Keepalive => "keepalive",
            Self::Idle => "idle",
            Self::ConnectTimeout => "connect_timeout",
            Self::Evicted => "evicted",
            Self::Shutdown => "shutdown",
            Self::Protocol => "protocol",
            Self::ReaderGone => "reader_gone",
        }
    }
}

named! {
    /// What the upstream said instead of "connected", and so what the client is told (the wire's truth).
    Refusal is a "refusal" {
        /// Connection refused: RST (SOCKS5 reply 05).
        Refused = "refused",
        /// Host unreachable: ICMP (SOCKS5 reply 04).
        HostUnreachable = "host_unreachable",
        /// Network unreachable: ICMP (SOCKS5 reply 03).
        NetUnreachable = "net_unreachable",
        /// Not allowed by the rule set: ICMP administratively prohibited (SOCKS5 reply 02).
        Prohibited = "prohibited",
        /// No answer: silence.
        Timeout = "timeout",
        /// Any other failure: RST.
        Failed = "failed",
    }
}

/// What the driver is asked to do. Exhaustive on purpose: a request that a driver does not know would be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A client wants to reach `target`; answer with `connected` or `refused`.
    Connect {
        /// The new flow.
        flow: FlowId,
        /// The client's end.
        client: SocketAddr,
        /// Where the client wants to go.
        target: SocketAddr,
    },
    /// New in-order bytes stand in `readable(flow)`.
    Readable(FlowId),
    /// `room(flow)` is positive again after it was exhausted.
    Writable(FlowId),
    /// The client has sent its FIN and all its bytes stand in `readable(flow)`: shut the upstream's write side after
    /// them.
    Finish(FlowId),
    /// The flow is gone; its id means nothing any more. Close the upstream (reset it unless `Finished`).
    Closed(FlowId, CloseReason),
    /// A client socket sent its first datagram.
    UdpOpen {
        /// The new session.
        session: crate::udp::SessionId,
        /// The client's end; all its destinations share the session (endpoint-independent mapping, RFC 4787).
        client: SocketAddr,
    },
    /// Datagrams wait in `pop_datagram(session)`.
    Datagrams(crate::udp::SessionId),
    /// The session is gone.
    UdpClosed(crate::udp::SessionId),
}

/// What became of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It had its effect, or waits with its bytes kept (out of order, fragment).
    Accepted,
    /// It had none; the reason is counted.
    Dropped(crate::stats::DropReason),
    /// It belongs to another worker and waits in `poll_foreign`.
    Foreign,
}

/// The most payload slices of one transmitted packet; a packet that would need more is made whole by copying.
pub const MAX_SLICES: usize = 8;

/// A packet for the device: write `virtio` (if the device wants it), `header`, then `payload` in order.
#[derive(Debug)]
pub struct Transmit<'a> {
    /// IP and transport headers (or a whole packet).
    pub header: &'a [u8],
    pub(super) slices: [&'a [u8]; MAX_SLICES],
    pub(super) count: usize,
    /// Offload wishes, meaningful when the device has offload.
    pub virtio: VirtioNetHdr,
}

impl<'a> Transmit<'a> {
    /// The payload, in order.
    pub fn payload(&self) -> &[&'a [u8]] {
        &self.slices[..self.count]
    }

    /// Bytes of the IP packet.
    pub fn len(&self) -> usize {
        self.header.len() + self.payload().iter().map(|slice| slice.len()).sum::<usize>()
    }

    /// Never true: a packet has a header.
    pub fn is_empty(&self) -> bool {
        self.header.is_empty()
    }

    /// Copies the packet to the front of `out` and returns its length; `None` when it does not fit.
    pub fn copy_to(&self, out: &mut [u8]) -> Option<usize> {
        let total = self.len();
        let out = out.get_mut(..total)?;
        let (head, mut rest) = out.split_at_mut(self.header.len());
        head.copy_from_slice(self.header);
        for slice in self.payload() {
            let (part, tail) = rest.split_at_mut(slice.len());
            part.copy_from_slice(slice);
            rest = tail;
        }
        Some(total)
    }
}

/// One TCP flow, for people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FlowInfo {
    /// Its id.
    pub id: FlowId,
    /// The client's end.
    pub client: SocketAddr,
    /// Where it goes.
    pub target: SocketAddr,
    /// Its TCP state.
    pub state: State,
    /// Bytes taken from the client.
    pub bytes_up: u64,
    /// Bytes acknowledged by the client.
    pub bytes_down: u64,
    /// Nanoseconds of the caller's clock at which the SYN came.
    pub opened_at: u64,
}

/// Counters of one stack; one thread writes them, anyone may read a copy.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StackStats {
    /// IP packets taken from the device.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// IP packets handed to the device.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Packets and parts of packets without effect, by reason.
    pub drops: DropCounts,
    /// Counters of the TCP terminator.
    pub tcp: TcpStats,
    /// TCP flows now, with those whose last segments have yet to leave.
    pub flows: u64,
    /// The most TCP flows at once.
    pub flows_peak: u64,
    /// Flows that wait for their upstream now.
    pub pending: u64,
    /// TCP flows opened.
    pub flows_opened: u64,
    /// TCP flows ended, by [`CloseReason`] in its order.
    pub flows_closed: [u64; CloseReason::ALL.len()],
    /// Flows whose upstream refused.
    pub flows_refused: u64,
    /// Flows that made room for others at the cap.
    pub flows_evicted: u64,
    /// UDP sessions now.
    pub sessions: u64,
    /// UDP sessions opened.
    pub sessions_opened: u64,
    /// UDP sessions that made room for others at the cap.
    pub sessions_evicted: u64,
    /// Datagrams from clients that were queued for their upstream.
    pub datagrams_up: u64,
    /// Datagrams handed to clients.
    pub datagrams_down: u64,
    /// Well-formed DNS queries among them.
    pub dns_queries: u64,
    /// Echo requests answered.
    pub icmp_echoes: u64,
    /// ICMP errors sent.
    pub icmp_errors: u64,
    /// Packets of the stack's own (ICMP, RST, datagrams) that found the queue to the device full.
    pub raw_dropped: u64,
    /// RST segments sent to packets without a flow.
    pub resets_sent: u64,
    /// Payload bytes that entered out-of-order queues.
    pub reassembly_bytes_total: u64,
    /// Payload bytes in out-of-order queues now.
    pub reassembly_bytes: u64,
    /// The most payload bytes in out-of-order queues at once.
    pub reassembly_bytes_peak: u64,
    /// Bytes in fragment reassembly now.
    pub fragment_bytes: u64,
    /// The most bytes in fragment reassembly at once.
    pub fragment_bytes_peak: u64,
    /// Bytes of fragments taken in.
    pub fragment_bytes_total: u64,
    /// Payload bytes queued for all flows, both directions.
    pub buffered: u64,
    /// Timers armed.
    pub timers: u64,
    /// Sampled stage times.
    pub stages: StageTimes,
}
