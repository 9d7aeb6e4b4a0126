//! What came of one slot of the schedule.

/// What came of a packet that was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// This many packets were sent.
    Sent(u32),
    /// The peer's window, or a connect without answer, forbids it.
    Blocked,
    /// The device ring is full: the packet is late.
    Full,
}

impl Slot {
    /// One packet, or a full ring.
    #[inline]
    pub fn one(sent: bool) -> Self {
        if sent { Self::Sent(1) } else { Self::Full }
    }
}
