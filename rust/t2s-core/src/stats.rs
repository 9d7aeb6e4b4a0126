//! Names of everything that can be refused, and counters that their owner alone writes.

/// Declares an enum of reasons with stable `snake_case` names and an array of counters over it.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident, $counts:ident { $($(#[$vmeta:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant,)* }

        impl $name {
            /// All reasons, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name, as it stands in results and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        #[doc = concat!("A counter for each [`", stringify!($name), "`].")]
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $counts([u64; $name::ALL.len()]);

        impl Default for $counts {
            fn default() -> Self {
                Self([0; $name::ALL.len()])
            }
        }

        impl $counts {
            /// Counts one.
            #[inline]
            pub fn add(&mut self, reason: $name) {
                self.0[reason as usize] += 1;
            }

            /// Counts `n`.
            #[inline]
            pub fn add_n(&mut self, reason: $name, n: u64) {
                self.0[reason as usize] += n;
            }

            /// The count of one reason.
            pub fn get(&self, reason: $name) -> u64 {
                self.0[reason as usize]
            }

            /// The sum over all reasons.
            pub fn total(&self) -> u64 {
                self.0.iter().sum()
            }

            /// Adds another set of counters to this one.
            pub fn merge(&mut self, other: &Self) {
                for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
                    *mine += theirs;
                }
            }

            /// Each reason with its count.
            pub fn iter(&self) -> impl Iterator<Item = ($name, u64)> + '_ {
                $name::ALL.iter().map(|&reason| (reason, self.get(reason)))
            }
        }
    };
}

reasons! {
    /// Why a packet (or a part of its payload) had no effect.
    DropReason, DropCounts {
        /// Shorter than its headers say, or than a header must be.
        Truncated => "truncated",
        /// IP version neither 4 nor 6.
        BadVersion => "bad_version",
        /// A length field that contradicts another.
        BadLength => "bad_length",
        /// IPv4 header checksum.
        IpChecksum => "ip_checksum",
        /// An address that cannot be a source or destination here (RFC 1122, section 3.2.1.3).
        BadAddress => "bad_address",
        /// IPv4 options or IPv6 extension headers that do not parse, or too many of them.
        BadExtension => "bad_extension",
        /// A transport protocol that a proxy cannot carry.
        Unsupported => "unsupported_protocol",
        /// TCP checksum.
        TcpChecksum => "tcp_checksum",
        /// TCP header length, options or flag combination.
        TcpMalformed => "tcp_malformed",
        /// UDP checksum.
        UdpChecksum => "udp_checksum",
        /// UDP length or port 0.
        UdpMalformed => "udp_malformed",
        /// ICMP checksum or length.
        IcmpMalformed => "icmp_malformed",
        /// ICMP of a type that is not answered.
        IcmpIgnored => "icmp_ignored",
        /// A DNS message that does not parse.
        DnsMalformed => "dns_malformed",
        /// Virtio-net header that contradicts its packet.
        BadOffload => "bad_offload",
        /// Not a SYN, and no such flow (answered with RST).
        TcpNoFlow => "tcp_no_flow",
        /// Outside the receive window.
        TcpOutOfWindow => "tcp_out_of_window",
        /// Wholly received before.
        TcpDuplicate => "tcp_duplicate",
        /// Acknowledges what was never sent, or other blind-attack shapes (RFC 5961).
        TcpChallenged => "tcp_challenged",
        /// PAWS (RFC 7323, section 5).
        TcpPaws => "tcp_paws",
        /// Data for a flow whose reader is gone.
        TcpClosed => "tcp_closed",
        /// Out-of-order data beyond a cap.
        ReassemblyFull => "reassembly_full",
        /// A fragment beyond a cap.
        FragmentFull => "fragment_full",
        /// A fragment that overlaps another (RFC 5722), or a duplicate with other bounds.
        FragmentOverlap => "fragment_overlap",
        /// A fragment that is too small, too far, or unaligned.
        FragmentBad => "fragment_bad",
        /// Fragments whose datagram never became whole.
        FragmentTimeout => "fragment_timeout",
        /// No room for another flow or session.
        FlowTableFull => "flow_table_full",
        /// Too many flows wait for their upstream.
        PendingFull => "pending_full",
        /// The pool is at its ceiling.
        PoolExhausted => "pool_exhausted",
        /// A datagram queue is full.
        UdpQueueFull => "udp_queue_full",
        /// UDP that the upstream cannot carry.
        UdpRefused => "udp_refused",
        /// Larger than the device or the protocol can take.
        TooBig => "too_big",
        /// The packet belongs to another worker and its inbox is full.
        InboxFull => "inbox_full",
    }
}

/// A stage of the packet path whose time is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Header checks.
    Parse,
    /// Checksum verification and generation.
    Checksum,
    /// Flow map.
    Lookup,
    /// Buffer allocation and release.
    Pool,
    /// Out-of-order queues and fragments.
    Reassembly,
    /// TCP state machine.
    Tcp,
    /// UDP, ICMP and DNS.
    Datagram,
    /// Building packets.
    Transmit,
}

impl Stage {
    /// All stages, in the order a packet meets them.
    pub const ALL: &'static [Self] = &[
        Self::Parse,
        Self::Checksum,
        Self::Lookup,
        Self::Pool,
        Self::Reassembly,
        Self::Tcp,
        Self::Datagram,
        Self::Transmit,
    ];

    /// The stable name, as it stands in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Checksum => "checksum",
            Self::Lookup => "lookup",
            Self::Pool => "pool",
            Self::Reassembly => "reassembly",
            Self::Tcp => "tcp",
            Self::Datagram => "datagram",
            Self::Transmit => "transmit",
        }
    }
}

/// Sampled nanoseconds by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Sum of sampled times, nanoseconds, indexed by `Stage as usize`.
    pub nanos: [u64; Stage::ALL.len()],
    /// Times that were added up there. Each holds one reading of the clock, which whoever reports them subtracts.
    pub marks: [u64; Stage::ALL.len()],
    /// Packets that were sampled.
    pub packets: u64,
}

impl StageTimes {
    /// Adds nanoseconds to a stage.
    #[inline]
    pub fn add(&mut self, stage: Stage, nanos: u64) {
        self.nanos[stage as usize] += nanos;
        self.marks[stage as usize] += 1;
    }
}
