//! One flow in hand: rules of the RFCs one by one, and random segments in every state; a file a role,
//! as in `tcp`, `recovery` for `sack`, `congestion` and `acknowledge` together.
//!
//! The other end is the test itself. What only shows over a whole connection (delivery under loss) is tested against
//! smoltcp, in `tests/tcp_smoltcp/`.

#[macro_use]
mod bench;

mod accept;
mod path;
mod random;
mod receive;
mod recovery;
mod send;
mod states;
mod teardown;
mod timer;

use bench::Bench;

use super::*;
use crate::buf::{Pool, PoolConfig};
use crate::config::SynAck;
use crate::stats::DropReason;
use crate::time::{MILLIS, SECONDS};
use crate::wire::tcp::{Flags, Options, SackBlocks, Tcp};

/// Payload of a packet in most tests; the device's MSS has room for timestamps beside it.
const MSS: u16 = 1_000;
const ISS: SeqNumber = SeqNumber(0xffff_fe00);
const IRS: SeqNumber = SeqNumber(0x7fff_ff00);
const LIMITS: SegmentLimits = SegmentLimits { mss: MSS + 12, tso_max: 60_000, slices: 16 };
const PLAIN: SegmentLimits = SegmentLimits { mss: MSS + 12, tso_max: 0, slices: 16 };

#[test]
fn stays_small() {
    assert!(size_of::<Tcb>() <= 400, "{} bytes", size_of::<Tcb>());
    assert!(size_of::<OutSegment>() <= 128, "{} bytes", size_of::<OutSegment>());
}
