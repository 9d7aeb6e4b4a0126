//! TCP headers (RFC 9293, section 3.1) with the options maximum segment size, window scale and timestamps (RFC 7323),
//! SACK permitted and SACK (RFC 2018).
//!
//! Refuses: headers longer than the segment, options that do not parse, port 0, and flag combinations that no state
//! can accept. Unknown options are skipped (RFC 9293, MUST-6). The checksum is [`super::verify_transport`]'s.

use core::fmt;
use core::ops::{Add, AddAssign, BitOr, BitOrAssign, Sub};

use super::{be16, be32};
use crate::stats::DropReason;

/// Bytes of the header without options.
pub const TCP_HEADER: usize = 20;
/// Bytes of the longest header: the data offset counts 15 words.
pub const TCP_HEADER_MAX: usize = 60;
/// The largest shift of a window (RFC 7323, section 2.3); larger ones are taken as this.
pub const WINDOW_SCALE_MAX: u8 = 14;
/// SACK blocks that fit into the option space (RFC 2018, section 3).
pub const SACK_BLOCKS_MAX: usize = 4;

/// A sequence number; comparisons are modulo 2^32 (RFC 9293, section 3.4) and hold for distances below 2^31, which is
/// why there is no `Ord`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SeqNumber(pub u32);

impl SeqNumber {
    /// Before `other`.
    #[inline]
    pub const fn lt(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Before or at `other`.
    #[inline]
    pub const fn le(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) as i32 <= 0
    }

    /// After `other`.
    #[inline]
    pub const fn gt(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) as i32 > 0
    }

    /// After or at `other`.
    #[inline]
    pub const fn ge(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) as i32 >= 0
    }

    /// The later of two.
    #[inline]
    #[must_use]
    pub const fn max(self, other: Self) -> Self {
        if self.gt(other) { self } else { other }
    }

    /// The earlier of two.
    #[inline]
    #[must_use]
    pub const fn min(self, other: Self) -> Self {
        if self.lt(other) { self } else { other }
    }

    /// Whether it lies in `start..start + len`.
    #[inline]
    pub const fn in_window(self, start: Self, len: u32) -> bool {
        self.0.wrapping_sub(start.0) < len
    }
}

impl fmt::Display for SeqNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Add<u32> for SeqNumber {
    type Output = Self;

    #[inline]
    fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

impl AddAssign<u32> for SeqNumber {
    #[inline]
    fn add_assign(&mut self, n: u32) {
        *self = *self + n;
    }
}

impl Sub<u32> for SeqNumber {
    type Output = Self;

    #[inline]
    fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }
}

impl Sub for SeqNumber {
    type Output = i32;

    /// The distance from `other`, negative if before it.
    #[inline]
    fn sub(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }
}

/// The control bits (RFC 9293, section 3.1; RFC 3168 for `ECE` and `CWR`).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    /// No bit.
    pub const NONE: Self = Self(0);
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronize sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// Congestion was experienced.
    pub const ECE: Self = Self(0x40);
    /// The congestion window was reduced.
    pub const CWR: Self = Self(0x80);

    /// Whether all bits of `other` are set.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any bit of `other` is set.
    #[inline]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// FIN is set.
    #[inline]
    pub const fn fin(self) -> bool {
        self.contains(Self::FIN)
    }

    /// SYN is set.
    #[inline]
    pub const fn syn(self) -> bool {
        self.contains(Self::SYN)
    }

    /// RST is set.
    #[inline]
    pub const fn rst(self) -> bool {
        self.contains(Self::RST)
    }

    /// PSH is set.
    #[inline]
    pub const fn psh(self) -> bool {
        self.contains(Self::PSH)
    }

    /// ACK is set.
    #[inline]
    pub const fn ack(self) -> bool {
        self.contains(Self::ACK)
    }

    /// Both sets; [`BitOr`] for constants.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

impl BitOrAssign for Flags {
    #[inline]
    fn bitor_assign(&mut self, other: Self) {
        *self = self.with(other);
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let set = names.iter().enumerate().filter(|(bit, _)| self.0 & (1 << bit) != 0);
        f.write_str(&set.map(|(_, name)| *name).collect::<Vec<_>>().join("|"))
    }
}

/// Up to four SACK blocks `(left, right)`: the bytes `left..right` are there.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SackBlocks {
    blocks: [(SeqNumber, SeqNumber); SACK_BLOCKS_MAX],
    /// Invariant: at most [`SACK_BLOCKS_MAX`]; blocks beyond are zero.
    len: u8,
}

impl SackBlocks {
    /// No block.
    pub const EMPTY: Self = Self { blocks: [(SeqNumber(0), SeqNumber(0)); SACK_BLOCKS_MAX], len: 0 };

    /// Adds a block; false if there is no room.
    #[inline]
    pub fn push(&mut self, left: SeqNumber, right: SeqNumber) -> bool {
        match self.blocks.get_mut(usize::from(self.len)) {
            Some(block) => {
                *block = (left, right);
                self.len += 1;
                true
            }
            None => false,
        }
    }

    /// The blocks in the order of the option.
    #[inline]
    pub fn as_slice(&self) -> &[(SeqNumber, SeqNumber)] {
        self.blocks.get(..usize::from(self.len)).unwrap_or(&self.blocks)
    }

    /// Number of blocks.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is no block.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl FromIterator<(SeqNumber, SeqNumber)> for SackBlocks {
    /// The first [`SACK_BLOCKS_MAX`] blocks.
    fn from_iter<I: IntoIterator<Item = (SeqNumber, SeqNumber)>>(blocks: I) -> Self {
        let mut out = Self::EMPTY;
        for (left, right) in blocks.into_iter().take(SACK_BLOCKS_MAX) {
            out.push(left, right);
        }
        out
    }
}

impl fmt::Debug for SackBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice().iter().map(|(left, right)| left.0..right.0)).finish()
    }
}

/// The options that are understood. Those that only count on a SYN are parsed wherever they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size, bytes of payload.
    pub mss: Option<u16>,
    /// Shift of all later windows, at most [`WINDOW_SCALE_MAX`].
    pub window_scale: Option<u8>,
    /// SACK may be sent.
    pub sack_permitted: bool,
    /// Timestamp value and echo reply.
    pub timestamp: Option<(u32, u32)>,
    /// What the peer holds beyond the acknowledgment.
    pub sack: SackBlocks,
}

impl Options {
    /// No option.
    pub const NONE: Self =
        Self { mss: None, window_scale: None, sack_permitted: false, timestamp: None, sack: SackBlocks::EMPTY };
}

const KIND_END: u8 = 0;
const KIND_NOP: u8 = 1;
const KIND_MSS: u8 = 2;
const KIND_WINDOW_SCALE: u8 = 3;
const KIND_SACK_PERMITTED: u8 = 4;
const KIND_SACK: u8 = 5;
const KIND_TIMESTAMP: u8 = 8;

/// A checked TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port; not 0.
    pub src_port: u16,
    /// Destination port; not 0.
    pub dst_port: u16,
    /// Sequence number of the first byte, or of the SYN.
    pub seq: SeqNumber,
    /// The next byte expected by the sender, if `ACK` is set.
    pub ack: SeqNumber,
    /// Control bits.
    pub flags: Flags,
    /// The window as it stands in the header, not scaled.
    pub window: u16,
    /// Bytes of the header with its options: offset of the payload.
    pub header_len: u8,
    /// Options.
    pub options: Options,
}

impl Tcp {
    /// Checks the header of a segment, which must end where the IP packet ends.
    #[inline]
    pub fn parse(segment: &[u8]) -> Result<Self, DropReason> {
        let Some(header) = segment.first_chunk::<TCP_HEADER>() else { return Err(DropReason::TcpMalformed) };
        let header_len = header[12] >> 4 << 2;
        let mut tcp = Self {
            src_port: be16(header, 0),
            dst_port: be16(header, 2),
            seq: SeqNumber(be32(header, 4)),
            ack: SeqNumber(be32(header, 8)),
            flags: Flags(header[13]),
            window: be16(header, 14),
            header_len,
            options: Options::NONE,
        };
        if tcp.src_port == 0 || tcp.dst_port == 0 || !flags_possible(tcp.flags) {
            return Err(DropReason::TcpMalformed);
        }
        if usize::from(header_len) != TCP_HEADER {
            let Some(options) = segment.get(TCP_HEADER..usize::from(header_len)) else {
                return Err(DropReason::TcpMalformed);
            };
            match options.first_chunk::<12>() {
                // RFC 7323, appendix A: the layout of every segment of an established flow.
                Some(layout) if options.len() == 12 && layout[..4] == [KIND_NOP, KIND_NOP, KIND_TIMESTAMP, 10] => {
                    tcp.options.timestamp = Some((be32(layout, 4), be32(layout, 8)));
                }
                _ => tcp.options = parse_options(options)?,
            }
        }
        Ok(tcp)
    }

    /// Sequence numbers that the segment takes, given the bytes of its payload.
    #[inline]
    pub const fn sequence_len(&self, payload: u32) -> u32 {
        payload + self.flags.syn() as u32 + self.flags.fin() as u32
    }
}

/// Refuses what no state accepts: SYN with FIN or RST, and segments with none of SYN, RST and ACK (RFC 9293, section
/// 3.10.7: dropped in every state).
#[inline]
const fn flags_possible(flags: Flags) -> bool {
    if flags.syn() {
        !flags.intersects(Flags::FIN.with(Flags::RST))
    } else {
        flags.intersects(Flags::ACK.with(Flags::RST))
    }
}

/// All layouts but the two common ones.
#[inline(never)]
fn parse_options(mut rest: &[u8]) -> Result<Options, DropReason> {
    let mut options = Options::NONE;
    loop {
        let (kind, len) = match *rest {
            [] | [KIND_END, ..] => return Ok(options),
            [KIND_NOP, ..] => {
                rest = &rest[1..];
                continue;
            }
            [_] => return Err(DropReason::TcpMalformed),
            [kind, len, ..] => (kind, usize::from(len)),
        };
        if len < 2 || len > rest.len() {
            return Err(DropReason::TcpMalformed);
        }
        let (option, next) = rest.split_at(len);
        rest = next;
        match (kind, len) {
            (KIND_MSS, 4) => options.mss = Some(be16(option, 2)),
            (KIND_WINDOW_SCALE, 3) => options.window_scale = Some(option[2].min(WINDOW_SCALE_MAX)),
            (KIND_SACK_PERMITTED, 2) => options.sack_permitted = true,
            (KIND_TIMESTAMP, 10) => options.timestamp = Some((be32(option, 2), be32(option, 6))),
            (KIND_SACK, 10 | 18 | 26 | 34) => {
                let blocks = option[2..].chunks_exact(8);
                options.sack = blocks.map(|block| (SeqNumber(be32(block, 0)), SeqNumber(be32(block, 4)))).collect();
            }
            (KIND_MSS | KIND_WINDOW_SCALE | KIND_SACK_PERMITTED | KIND_TIMESTAMP | KIND_SACK, _) => {
                return Err(DropReason::TcpMalformed);
            }
            _ => {}
        }
    }
}

/// A TCP header to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpRepr {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: SeqNumber,
    /// Acknowledgment number; write 0 without `ACK`.
    pub ack: SeqNumber,
    /// Control bits.
    pub flags: Flags,
    /// Window, already scaled.
    pub window: u16,
    /// Options. SACK blocks beyond the option space (4, or 3 beside timestamps) are left out, the last first.
    pub options: Options,
}

impl TcpRepr {
    /// Bytes that [`TcpRepr::emit`] writes: a multiple of 4, at most [`TCP_HEADER_MAX`].
    #[inline]
    pub const fn header_len(&self) -> usize {
        let options = &self.options;
        let mut len = TCP_HEADER;
        if options.timestamp.is_some() {
            len += 12;
        }
        if options.mss.is_some() {
            len += 4;
        }
        if options.window_scale.is_some() {
            len += 4;
        }
        // Takes the place of the timestamp's two NOPs.
        if options.sack_permitted && options.timestamp.is_none() {
            len += 4;
        }
        let blocks = self.sack_blocks(len);
        if blocks > 0 { len + 4 + 8 * blocks } else { len }
    }

    /// SACK blocks that fit behind `len` bytes of header.
    #[inline]
    const fn sack_blocks(&self, len: usize) -> usize {
        let room = (TCP_HEADER_MAX - 4).saturating_sub(len) / 8;
        if self.options.sack.len() < room { self.options.sack.len() } else { room }
    }

    /// Writes the header to the start of `out`, checksum and urgent pointer 0.
    ///
    /// # Panics
    /// If `out` is shorter than [`TcpRepr::header_len`].
    #[inline]
    pub fn emit(&self, out: &mut [u8]) {
        let header_len = self.header_len();
        let out = &mut out[..header_len];
        out[0..2].copy_from_slice(&self.src_port.to_be_bytes());
        out[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        out[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        out[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        out[12] = (header_len as u8) << 2;
        out[13] = self.flags.0;
        out[14..16].copy_from_slice(&self.window.to_be_bytes());
        out[16..20].fill(0);
        if header_len > TCP_HEADER {
            self.emit_options(&mut out[TCP_HEADER..]);
        }
    }

    /// Writes the options in the order that Linux uses: MSS, SACK permitted with timestamps, window scale, SACK.
    #[inline]
    fn emit_options(&self, out: &mut [u8]) {
        let options = &self.options;
        let mut at = 0;
        let mut len = TCP_HEADER;
        if let Some(mss) = options.mss {
            let [high, low] = mss.to_be_bytes();
            at = put(out, at, [KIND_MSS, 4, high, low]);
            len += 4;
        }
        if let Some((value, echo)) = options.timestamp {
            let pad = if options.sack_permitted { [KIND_SACK_PERMITTED, 2] } else { [KIND_NOP; 2] };
            at = put(out, at, [pad[0], pad[1], KIND_TIMESTAMP, 10]);
            at = put(out, at, value.to_be_bytes());
            at = put(out, at, echo.to_be_bytes());
            len += 12;
        } else if options.sack_permitted {
            at = put(out, at, [KIND_NOP, KIND_NOP, KIND_SACK_PERMITTED, 2]);
            len += 4;
        }
        if let Some(shift) = options.window_scale {
            at = put(out, at, [KIND_NOP, KIND_WINDOW_SCALE, 3, shift]);
            len += 4;
        }
        let blocks = self.sack_blocks(len);
        if blocks > 0 {
            at = put(out, at, [KIND_NOP, KIND_NOP, KIND_SACK, 2 + 8 * blocks as u8]);
            for (left, right) in &options.sack.as_slice()[..blocks] {
                at = put(out, at, left.0.to_be_bytes());
                at = put(out, at, right.0.to_be_bytes());
            }
        }
        debug_assert_eq!(at, out.len());
    }
}

/// Writes `bytes` at `at`, which `header_len` has counted, and returns where they end.
#[inline(always)]
fn put<const N: usize>(out: &mut [u8], at: usize, bytes: [u8; N]) -> usize {
    out[at..at + N].copy_from_slice(&bytes);
    at + N
}
