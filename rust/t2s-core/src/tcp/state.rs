//! Where a flow stands, and why it ended.

/// Where a flow stands (RFC 9293, section 3.3.2).
///
/// LISTEN and SYN-SENT are missing, see the header of [`super`]. CLOSED means: nothing more happens, release it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// SYN-RECEIVED with the SYN-ACK withheld until the upstream has answered.
    SynPending,
    /// SYN-RECEIVED: SYN-ACK sent, not acknowledged.
    SynReceived,
    /// Both directions open.
    Established,
    /// The client has sent FIN; the upstream may go on.
    CloseWait,
    /// The upstream has ended; our FIN is queued or unacknowledged.
    FinWait1,
    /// Our FIN is acknowledged; the client may go on.
    FinWait2,
    /// Both have sent FIN, ours first or at the same time; ours is unacknowledged.
    Closing,
    /// Both have sent FIN, the client first; ours is queued or unacknowledged.
    LastAck,
    /// Both ended, ours first: waits for stray segments.
    TimeWait,
    /// Nothing left to do.
    Closed,
}

impl State {
    /// Whether the client may still send new bytes.
    pub const fn may_receive(self) -> bool {
        matches!(self, Self::SynReceived | Self::Established | Self::FinWait1 | Self::FinWait2)
    }

    /// Whether bytes of the upstream may still be taken.
    pub const fn may_send(self) -> bool {
        matches!(self, Self::SynPending | Self::SynReceived | Self::Established | Self::CloseWait)
    }

    /// The stable name, as it stands in flow tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynPending => "syn_pending",
            Self::SynReceived => "syn_received",
            Self::Established => "established",
            Self::CloseWait => "close_wait",
            Self::FinWait1 => "fin_wait1",
            Self::FinWait2 => "fin_wait2",
            Self::Closing => "closing",
            Self::LastAck => "last_ack",
            Self::TimeWait => "time_wait",
            Self::Closed => "closed",
        }
    }
}

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CloseReason {
    /// FIN in both directions, all acknowledged.
    Finished,
    /// The client sent RST.
    PeerReset,
    /// The upstream or the stack aborted it.
    Aborted,
    /// The upstream refused it before it was established.
    Refused,
    /// The upstream did not answer the connect in time.
    ConnectTimeout,
    /// The client did not acknowledge in spite of all retransmissions (RFC 9293, section 3.8.3: R2).
    RetransmitTimeout,
    /// Keepalive probes stayed unanswered.
    KeepaliveTimeout,
    /// No traffic for `TcpConfig::idle_timeout`, or bytes of a client that has finished were never taken.
    IdleTimeout,
    /// FIN-WAIT-2 without traffic, the upstream being gone.
    FinWait2Timeout,
    /// The client sent bytes after the upstream had stopped reading (RFC 1122, section 4.2.2.13).
    ReaderGone,
    /// The client refused the handshake's sequence numbers or sent a malformed one.
    Protocol,
}

impl CloseReason {
    /// The stable name, as it stands in results and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::PeerReset => "peer_reset",
            Self::Aborted => "aborted",
            Self::Refused => "refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::RetransmitTimeout => "retransmit_timeout",
            Self::KeepaliveTimeout => "keepalive_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::FinWait2Timeout => "fin_wait2_timeout",
            Self::ReaderGone => "reader_gone",
            Self::Protocol => "protocol",
        }
    }
}
