//! What an epoll registration refers to, in 64 bits.

/// What kind of descriptor became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The TUN queue.
    Device = 1,
    /// Other threads.
    Waker = 2,
    /// The upstream of a TCP flow.
    Stream = 3,
    /// The TCP connection that keeps a UDP association alive.
    Control = 4,
    /// The datagram socket of a UDP session.
    Relay = 5,
    /// A connection to a name server.
    DnsOverTcp = 6,
    /// A connection to the proxy that no flow has taken yet.
    Preconnect = 7,
}

/// Kind (4 bits), generation (28 bits) and index (32 bits): an event that was fetched before its descriptor was closed
/// is recognized as stale by its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(u64);

const GENERATION_MASK: u32 = (1 << 28) - 1;

impl Token {
    pub(super) const fn new(kind: Kind, index: u32, generation: u32) -> Self {
        Self((kind as u64) << 60 | ((generation & GENERATION_MASK) as u64) << 32 | index as u64)
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    pub(super) const fn kind(self) -> Option<Kind> {
        match self.0 >> 60 {
            1 => Some(Kind::Device),
            2 => Some(Kind::Waker),
            3 => Some(Kind::Stream),
            4 => Some(Kind::Control),
            5 => Some(Kind::Relay),
            6 => Some(Kind::DnsOverTcp),
            7 => Some(Kind::Preconnect),
            _ => None,
        }
    }

    pub(super) const fn index(self) -> usize {
        self.0 as u32 as usize
    }

    /// Whether the token was made with this generation.
    pub(super) const fn is_generation(self, generation: u32) -> bool {
        (self.0 >> 32) as u32 & GENERATION_MASK == generation & GENERATION_MASK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        for kind in
            [Kind::Device, Kind::Waker, Kind::Stream, Kind::Control, Kind::Relay, Kind::DnsOverTcp, Kind::Preconnect]
        {
            let token = Token::from_bits(Token::new(kind, u32::MAX, 0xf123_4567).bits());
            assert_eq!((token.kind(), token.index()), (Some(kind), u32::MAX as usize));
            assert!(token.is_generation(0x0123_4567) && !token.is_generation(0x0123_4568));
        }
        assert_eq!(Token::from_bits(0).kind(), None);
    }
}
