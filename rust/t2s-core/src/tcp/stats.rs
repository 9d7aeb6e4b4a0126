//! What the flows of a worker did, counted.

/// Counters of TCP events, written by the worker that owns the flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpStats {
    /// Flows made from a SYN.
    pub accepted: u64,
    /// Flows whose handshake completed.
    pub established: u64,
    /// Segments handed to a flow.
    pub segments_in: u64,
    /// Of these, taken by the fast path.
    pub predicted: u64,
    /// Payload bytes that came in sequence.
    pub bytes_in: u64,
    /// Segments (super-segments count once) sent.
    pub segments_out: u64,
    /// Payload bytes sent, retransmissions included.
    pub bytes_out: u64,
    /// Payload bytes that the client acknowledged.
    pub bytes_acked: u64,
    /// Segments sent that carry nothing but an acknowledgement.
    pub acks_out: u64,
    /// Segments that came out of order.
    pub out_of_order: u64,
    /// Segments retransmitted, for whatever reason.
    pub retransmits: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Entries into fast recovery.
    pub recoveries: u64,
    /// Duplicate acknowledgements received.
    pub duplicate_acks: u64,
    /// Challenge ACKs sent (RFC 5961).
    pub challenge_acks: u64,
    /// Zero-window probes sent.
    pub window_probes: u64,
    /// Keepalive probes sent.
    pub keepalive_probes: u64,
    /// RST segments sent.
    pub resets_out: u64,
    /// Flows ended by an acceptable RST.
    pub resets_in: u64,
}

impl TcpStats {
    /// Adds another worker's counters to these.
    pub fn merge(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.established += other.established;
        self.segments_in += other.segments_in;
        self.predicted += other.predicted;
        self.bytes_in += other.bytes_in;
        self.segments_out += other.segments_out;
        self.bytes_out += other.bytes_out;
        self.bytes_acked += other.bytes_acked;
        self.acks_out += other.acks_out;
        self.out_of_order += other.out_of_order;
        self.retransmits += other.retransmits;
        self.timeouts += other.timeouts;
        self.recoveries += other.recoveries;
        self.duplicate_acks += other.duplicate_acks;
        self.challenge_acks += other.challenge_acks;
        self.window_probes += other.window_probes;
        self.keepalive_probes += other.keepalive_probes;
        self.resets_out += other.resets_out;
        self.resets_in += other.resets_in;
    }
}
