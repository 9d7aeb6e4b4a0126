//! What a run is drawn from: one seed gives sizes, options, the link, the paces and the ending.

use t2s_core::config::{CongestionControl, SynAck, TcpConfig};
use t2s_core::time::{MICROS, MILLIS, SECONDS};

/// `SplitMix64` (Steele, Lea, Flood 2014).
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(super) fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Byte `at` of the stream in direction `salt`.
pub(super) fn byte(salt: u8, at: usize) -> u8 {
    let x = (at as u32).wrapping_mul(0x9e37_79b1) ^ u32::from(salt);
    (x >> 24) as u8 ^ (x >> 11) as u8
}

/// How the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Both sides end when they have sent everything: half-close in both directions, in any order.
    Both,
    /// The client ends first; the upstream waits for its FIN.
    ClientFirst,
    /// The upstream ends first; the client waits for its FIN.
    UpstreamFirst,
    /// The client resets after this many bytes received.
    ClientAborts,
    /// The client is never heard again from some time on.
    ClientVanishes,
    /// The upstream aborts after this many bytes.
    UpstreamAborts,
    /// The upstream refuses the connection.
    Refused,
    /// The upstream stops reading.
    ReaderGone,
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) v6: bool,
    pub(super) mtu: usize,
    pub(super) ending: Ending,
    pub(super) up: usize,
    pub(super) down: usize,
    /// Percent of packets.
    pub(super) loss: u64,
    pub(super) duplicate: u64,
    pub(super) reorder: u64,
    pub(super) delay: u64,
    pub(super) jitter: u64,
    pub(super) client_rx: usize,
    pub(super) client_tx: usize,
    pub(super) sack: bool,
    pub(super) timestamps: bool,
    pub(super) tso: bool,
    pub(super) gro: bool,
    /// Pauses of the readers, nanoseconds; 0: as fast as possible.
    pub(super) client_pause: u64,
    pub(super) upstream_pause: u64,
    /// A long pause of the client's reader in the middle.
    pub(super) client_stall: u64,
    pub(super) connect_delay: u64,
    pub(super) config: TcpConfig,
    pub(super) isn: u32,
}

impl Plan {
    pub(super) fn draw(seed: u64, ending: Ending) -> Self {
        let mut rng = Rng(seed);
        let v6 = rng.chance(30);
        let rough = rng.chance(60);
        let tiny = rng.chance(15);
        let size = |rng: &mut Rng| match rng.below(5) {
            0 => 0,
            1 => rng.range(1, 2_000) as usize,
            _ if tiny => rng.range(1, 10_000) as usize,
            _ => rng.range(1, 300_000) as usize,
        };
        let buffer = |rng: &mut Rng| {
            if tiny { rng.range(40, 600) as usize } else { rng.pick(&[2_000, 8_192, 65_535, 200_000, 500_000]) }
        };
        let recv_window_min = if tiny { rng.range(100, 3_000) as u32 } else { rng.pick(&[4_000, 65_536, 131_072]) };
        let config = TcpConfig {
            syn_ack: rng.pick(&[SynAck::AfterConnect, SynAck::Immediate]),
            congestion: rng.pick(&[CongestionControl::Cubic, CongestionControl::NewReno]),
            recv_window_min,
            recv_window_max: recv_window_min.max(rng.pick(&[5_000, 65_535, 1_000_000, 4_194_304])),
            send_buffer_min: rng.pick(&[2_000, 16_384, 131_072]),
            send_buffer_max: 1_048_576,
            keepalive_idle: 100 * SECONDS,
            keepalive_interval: 10 * SECONDS,
            keepalive_probes: 3,
            retransmit_limit: 30,
            connect_timeout: 100 * SECONDS,
            // Longer than any stall below.
            fin_wait2: 1_000 * SECONDS,
            ..TcpConfig::default()
        };
        Self {
            seed,
            v6,
            mtu: if v6 { rng.pick(&[1_280, 1_500, 9_000]) } else { rng.pick(&[576, 1_500, 8_500]) },
            ending,
            // A reader that goes away leaves something unread.
            up: size(&mut rng).max(if ending == Ending::ReaderGone { 2 } else { 0 }),
            down: size(&mut rng),
            loss: if rough { rng.below(12) } else { 0 },
            duplicate: if rough { rng.below(8) } else { 0 },
            reorder: if rough { rng.below(20) } else { 0 },
            delay: rng.pick(&[20 * MICROS, MILLIS, 20 * MILLIS, 100 * MILLIS]),
            jitter: rng.pick(&[10 * MICROS, 3 * MILLIS, 30 * MILLIS]),
            client_rx: buffer(&mut rng),
            client_tx: buffer(&mut rng),
            sack: rng.chance(70),
            timestamps: rng.chance(60),
            tso: rng.chance(60),
            gro: rng.chance(50),
            client_pause: if rng.chance(25) { rng.range(1, 50) * MILLIS } else { 0 },
            upstream_pause: if rng.chance(25) { rng.range(1, 50) * MILLIS } else { 0 },
            client_stall: if rng.chance(15) { rng.range(1, 200) * SECONDS } else { 0 },
            connect_delay: rng.pick(&[0, 10 * MILLIS, 3 * SECONDS]),
            config,
            isn: rng.next() as u32,
        }
    }
}
