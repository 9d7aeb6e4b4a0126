//! ICMP at the end of the tunnel: echo requests answered in place, errors sent at a bounded rate.
//!
//! Promises: an echo reply reuses the request's buffer and touches its headers only (the checksums are updated, not
//! computed anew), whatever its length; errors never exceed the configured rate (RFC 4443, section 2.4 f; RFC 1812,
//! section 4.3.2.8). Refuses: echo requests to groups (RFC 1122, section 3.2.2.6, allows silence), fragments, and
//! errors about packets that must not cause one ([`build_error`]).

use core::net::IpAddr;

use crate::buf::Buf;
use crate::checksum::Kernel;
use crate::stats::DropReason;
use crate::time::{Instant, SECONDS};
use crate::wire::Ip;
use crate::wire::icmp::{IcmpError, build_error, reply_to_echo};
use crate::wire::ip::{IPV4_HEADER, IPV6_HEADER, fill_v4_header_checksum};

/// Time to live of replies (the value that RFC 1700 recommends).
const REPLY_TTL: u8 = 64;
/// Errors that may be sent in one go after a quiet time, as a share of a second's worth: enough for a burst of refused
/// datagrams, too few to flood.
const BURST_DIVISOR: u64 = 10;

/// Iterations an echo request (a whole IP packet with a verified checksum, of which `ip` was parsed) into its reply.
///
/// IPv4 options and IPv6 extension headers of the request are left out of the reply: its header moves up to the message
/// and the buffer's front moves with it; padding behind the packet goes too.
///
/// Refused, with the packet unchanged: [`DropReason::IcmpIgnored`] for a group's address, a fragment, or another type;
/// [`DropReason::IcmpMalformed`] for a short message.
pub fn echo_reply(ip: &Ip, packet: &mut Buf) -> Result<(), DropReason> {
    if !ip.dst_is_unicast() || ip.fragment.is_some() {
        return Err(DropReason::IcmpIgnored);
    }
    let (total, payload) = (ip.total as usize, usize::from(ip.payload));
    let header_len = if ip.is_v4() { IPV4_HEADER } else { IPV6_HEADER };
    let start = payload.checked_sub(header_len).ok_or(DropReason::BadLength)?;
    let bytes = packet.as_mut_slice().get_mut(..total).ok_or(DropReason::Truncated)?;
    let message = bytes.get_mut(payload..).ok_or(DropReason::Truncated)?;
    reply_to_echo(ip.is_v4(), message)?;
    let message_len = message.len();

    bytes.copy_within(..header_len, start);
    let Some(header) = bytes.get_mut(start..payload) else { return Err(DropReason::Truncated) };
    match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            header[0] = 0x45;
            // Congestion is not signalled on a reply (RFC 3168, section 6.1.1, is about TCP alone).
            header[1] &= !3;
            header[2..4].copy_from_slice(&((header_len + message_len) as u16).to_be_bytes());
            header[8] = REPLY_TTL;
            header[12..16].copy_from_slice(&dst.octets());
            header[16..20].copy_from_slice(&src.octets());
            fill_v4_header_checksum(header);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            header[1] &= 0xcf;
            header[4..6].copy_from_slice(&(message_len as u16).to_be_bytes());
            header[6] = ip.protocol;
            header[7] = REPLY_TTL;
            header[8..24].copy_from_slice(&dst.octets());
            header[24..40].copy_from_slice(&src.octets());
        }
        // `Ip::parse` never mixes families.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Err(DropReason::BadAddress),
    }
    packet.truncate(total);
    packet.advance(start);
    Ok(())
}

/// A rate limit: tokens come at a constant rate and are saved up to a burst.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    /// Nanoseconds a token takes to come; 0: no token ever.
    interval: u64,
    /// Time credit at most, nanoseconds.
    burst: u64,
    /// Time credit, nanoseconds, as of `then`.
    credit: u64,
    then: Instant,
}

impl TokenBucket {
    /// A full bucket that gives `per_second` tokens a second and saves at most `burst` (at least one).
    pub fn new(per_second: u32, burst: u64, now: Instant) -> Self {
        let interval = if per_second == 0 { 0 } else { (SECONDS / u64::from(per_second)).max(1) };
        let burst = interval.saturating_mul(burst.max(1));
        Self { interval, burst, credit: burst, then: now }
    }

    /// Takes a token; `false` if there is none.
    #[must_use]
    pub fn take(&mut self, now: Instant) -> bool {
        self.credit = self.credit.saturating_add(now.since(self.then)).min(self.burst);
        self.then = self.then.max(now);
        if self.interval == 0 || self.credit < self.interval {
            return false;
        }
        self.credit -= self.interval;
        true
    }
}

/// Builds ICMP errors, not more than the configured number a second.
#[derive(Clone, Debug)]
pub struct IcmpErrorLimiter {
    bucket: TokenBucket,
    sent: u64,
    limited: u64,
}

impl IcmpErrorLimiter {
    /// At most `per_second` errors a second ([`crate::config::Config::icmp_errors_per_second`]).
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self { bucket: TokenBucket::new(per_second, u64::from(per_second) / BURST_DIVISOR, now), sent: 0, limited: 0 }
    }

    /// Builds the whole IP packet of an error about `original` into `out` and returns its length; see
    /// [`build_error`], which says what must not cause an error. `None` then, or if the rate is used up.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "the arguments of build_error, and the time")]
    pub fn build(
        &mut self,
        now: Instant,
        kernel: Kernel,
        ip: &Ip,
        original: &[u8],
        from: Option<IpAddr>,
        error: IcmpError,
        out: &mut [u8],
    ) -> Option<usize> {
        let before = self.bucket;
        if !self.bucket.take(now) {
            self.limited += 1;
            return None;
        }
        let built = build_error(kernel, ip, original, from, error, out);
        match built {
            Some(_) => self.sent += 1,
            // Nothing is sent: the token stays.
            None => self.bucket = before,
        }
        built
    }

    /// Errors built.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Errors that the rate limit suppressed.
    pub fn limited(&self) -> u64 {
        self.limited
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::buf::{Pool, PoolCache, PoolConfig};
    use crate::wire::icmp::{Echo, Icmp, emit_echo};
    use crate::wire::{IpRepr, protocol, verify_transport};

    const ECHO: Echo = Echo { ident: 0x1234, sequence: 7 };

    fn cache() -> PoolCache {
        Pool::new(PoolConfig { ceiling_bytes: 16 << 20, ..PoolConfig::default() }).cache()
    }

    fn request(v6: bool, dst: Option<IpAddr>, data: &[u8]) -> Vec<u8> {
        let (src, to, protocol) = if v6 {
            let net = |host| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host));
            (net(1), net(2), protocol::ICMPV6)
        } else {
            let net = |host| IpAddr::V4(Ipv4Addr::new(10, 0, 0, host));
            (net(1), net(2), protocol::ICMP)
        };
        let dst = dst.unwrap_or(to);
        let payload_len = 8 + data.len() as u32;
        let repr = IpRepr { src, dst, protocol, ttl: 3, ecn: 3, payload_len, id: 99, dont_fragment: true };
        let mut packet = vec![0; repr.header_len() + payload_len as usize];
        repr.emit(&mut packet);
        let message = &mut packet[repr.header_len()..];
        message[8..].copy_from_slice(data);
        emit_echo(Kernel::auto(), src, dst, false, ECHO, message);
        packet
    }

    /// Puts an extension in front of the message: IPv4 no-operations, or IPv6 destination options.
    fn extend(mut packet: Vec<u8>) -> Vec<u8> {
        if packet[0] >> 4 == 4 {
            packet.splice(20..20, [1, 1, 1, 0]);
            packet[0] = 0x46;
            let len = packet.len() as u16;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            fill_v4_header_checksum(&mut packet);
        } else {
            packet.splice(40..40, [protocol::ICMPV6, 0, 1, 4, 0, 0, 0, 0]);
            packet[6] = 60;
            let len = packet.len() as u16 - 40;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
        }
        packet
    }

    proptest! {
        #[test]
        fn the_reply_is_a_valid_packet_with_the_same_data(
            v6 in any::<bool>(),
            extended in any::<bool>(),
            padding in 0usize..9,
            data in prop::collection::vec(any::<u8>(), 0..2_000),
        ) {
            let mut pool = cache();
            let mut packet = request(v6, None, &data);
            if extended {
                packet = extend(packet);
            }
            let ip = Ip::parse(&packet).expect("valid");
            packet.extend(vec![0xee; padding]);
            let mut buf = pool.alloc_copy(&packet, 0).expect("the pool is large");
            prop_assert_eq!(echo_reply(&ip, &mut buf), Ok(()));
            let reply = buf.as_slice();
            let back = Ip::parse(reply).expect("valid");
            prop_assert_eq!((back.src, back.dst, back.ttl, back.ecn), (ip.dst, ip.src, 64, 0));
            prop_assert_eq!(back.total as usize, reply.len());
            prop_assert!(verify_transport(Kernel::auto(), &back, reply));
            let message = &reply[usize::from(back.payload)..];
            prop_assert_eq!(Icmp::parse(&back, message), Ok(Icmp::EchoReply(ECHO)));
            prop_assert_eq!(&message[8..], &data[..]);
            pool.free(buf);
        }
    }

    #[test]
    fn replies_and_groups_are_left_alone() {
        let mut pool = cache();
        let groups = [
            (false, IpAddr::V4(Ipv4Addr::BROADCAST)),
            (false, IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1))),
            (true, IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1))),
        ];
        for (v6, group) in groups {
            let packet = request(v6, Some(group), &[1, 2, 3]);
            let mut buf = pool.alloc_copy(&packet, 0).expect("the pool is large");
            let ip = Ip::parse(&packet).expect("valid");
            assert_eq!(echo_reply(&ip, &mut buf), Err(DropReason::IcmpIgnored));
            assert_eq!(buf.as_slice(), packet);
        }
        for v6 in [false, true] {
            let packet = request(v6, None, &[1]);
            let ip = Ip::parse(&packet).expect("valid");
            let mut buf = pool.alloc_copy(&packet, 0).expect("the pool is large");
            assert_eq!(echo_reply(&ip, &mut buf), Ok(()));
            let reply = buf.as_slice().to_vec();
            let ip = Ip::parse(&reply).expect("valid");
            assert_eq!(echo_reply(&ip, &mut buf), Err(DropReason::IcmpMalformed));
            assert_eq!(buf.as_slice(), reply);
        }
    }

    #[test]
    fn tokens_come_at_their_rate() {
        let mut bucket = TokenBucket::new(10, 3, Instant::ZERO);
        let take = |bucket: &mut TokenBucket, millis: u64| bucket.take(Instant::from_millis(millis));
        assert_eq!([0, 0, 0, 0].map(|at| take(&mut bucket, at)), [true, true, true, false]);
        assert_eq!([99, 100, 150, 200].map(|at| take(&mut bucket, at)), [false, true, false, true]);
        // Saved up to the burst, not beyond; time that runs backwards gives nothing.
        assert_eq!([9_000, 9_000, 9_000, 9_000].map(|at| take(&mut bucket, at)), [true, true, true, false]);
        assert!(!take(&mut bucket, 0));
        assert!(take(&mut bucket, 9_100));
        let mut never = TokenBucket::new(0, 3, Instant::ZERO);
        assert!(!take(&mut never, 1_000_000));
    }

    #[test]
    fn errors_are_limited_and_what_causes_none_costs_none() {
        let mut errors = IcmpErrorLimiter::new(20, Instant::ZERO);
        let packet = request(false, None, &[0; 40]);
        let ip = Ip::parse(&packet).expect("valid");
        let group = request(false, Some(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1))), &[0; 40]);
        let group_ip = Ip::parse(&group).expect("valid");
        let mut out = [0; 600];
        let mut build = |errors: &mut IcmpErrorLimiter, ip: &Ip, packet: &[u8]| {
            errors.build(Instant::ZERO, Kernel::auto(), ip, packet, None, IcmpError::HostUnreachable, &mut out)
        };
        for _ in 0..5 {
            assert_eq!(build(&mut errors, &group_ip, &group), None);
        }
        assert_eq!((errors.sent(), errors.limited()), (0, 0));
        assert!(build(&mut errors, &ip, &packet).is_some());
        assert!(build(&mut errors, &ip, &packet).is_some());
        assert_eq!(build(&mut errors, &ip, &packet), None);
        assert_eq!((errors.sent(), errors.limited()), (2, 1));
    }
}
