//! Echo and errors.

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr};

use super::super::icmp::{
    ERROR_MAX_V4, ERROR_MAX_V6, Echo, ICMP_HEADER, Icmp, IcmpError, build_error, emit_echo, reply_to_echo,
};
use super::super::ip::{fill_v4_header_checksum, parameter_problem};
use super::super::{Ip, upper_layer, verify_transport};
use super::{IpAddr, IpRepr, ip_repr, packet, protocol, v4, v6};
use crate::checksum::Kernel;

const ERRORS: [IcmpError; 9] = [
    IcmpError::NetUnreachable,
    IcmpError::HostUnreachable,
    IcmpError::PortUnreachable,
    IcmpError::ProtocolUnreachable,
    IcmpError::Prohibited,
    IcmpError::ParameterProblem { code: 0, pointer: 40 },
    IcmpError::TooBig { mtu: 1400 },
    IcmpError::TimeExceeded { code: 0 },
    IcmpError::TimeExceeded { code: 1 },
];

/// The error about a packet, as bytes.
fn error_about(original: &[u8], error: IcmpError) -> Option<Vec<u8>> {
    let mut out = vec![0xa5; 2048];
    let ip = Ip::parse(original).unwrap();
    build_error(Kernel::auto(), &ip, original, None, error, &mut out).map(|len| out[..len].to_vec())
}

fn parse(bytes: &[u8]) -> Icmp {
    let ip = Ip::parse(bytes).unwrap();
    assert!(verify_transport(Kernel::auto(), &ip, bytes));
    Icmp::parse(&ip, upper_layer(&ip, bytes).unwrap()).unwrap()
}

#[test]
fn errors_say_what_happened_and_quote() {
    for (repr, limit) in [(v4(protocol::UDP, 0), ERROR_MAX_V4), (v6(protocol::UDP, 0), ERROR_MAX_V6)] {
        for len in [0, 1, 7, 8, 100, 3000] {
            let original = packet(repr, &vec![0x5a; len]);
            for error in ERRORS {
                let bytes = error_about(&original, error).unwrap();
                assert_eq!(parse(&bytes), Icmp::Error { error });
                let ip = Ip::parse(&bytes).unwrap();
                assert_eq!((ip.src, ip.dst, ip.total as usize), (repr.dst, repr.src, bytes.len()));
                let quote = &bytes[usize::from(ip.payload) + ICMP_HEADER..];
                assert_eq!(quote, &original[..original.len().min(limit - usize::from(ip.payload) - ICMP_HEADER)]);
            }
        }
    }
}

#[test]
fn smoltcp_reads_the_errors() {
    let original = packet(v4(protocol::UDP, 0), &[0x5a; 40]);
    let bytes = error_about(&original, IcmpError::PortUnreachable).unwrap();
    let repr = Icmpv4Repr::parse(&Icmpv4Packet::new_checked(&bytes[20..]).unwrap(), &ChecksumCapabilities::default());
    let Ok(Icmpv4Repr::DstUnreachable { reason, header, .. }) = repr else { panic!("{repr:?}") };
    assert_eq!((reason, IpAddr::V4(header.dst_addr)), (Icmpv4DstUnreachable::PortUnreachable, v4(0, 0).dst));

    let original = packet(v6(protocol::UDP, 0), &[0x5a; 40]);
    let (src, dst) = ("2001:db8::2".parse().unwrap(), "2001:db8::1".parse().unwrap());
    let bytes = error_about(&original, IcmpError::HostUnreachable).unwrap();
    let oracle = Icmpv6Packet::new_checked(&bytes[40..]).unwrap();
    let repr = Icmpv6Repr::parse(&src, &dst, &oracle, &ChecksumCapabilities::default());
    let Ok(Icmpv6Repr::DstUnreachable { reason, .. }) = repr else { panic!("{repr:?}") };
    assert_eq!(reason, Icmpv6DstUnreachable::AddrUnreachable);
    let bytes = error_about(&original, IcmpError::TooBig { mtu: 1280 }).unwrap();
    let oracle = Icmpv6Packet::new_checked(&bytes[40..]).unwrap();
    let repr = Icmpv6Repr::parse(&src, &dst, &oracle, &ChecksumCapabilities::default());
    assert!(matches!(repr, Ok(Icmpv6Repr::PktTooBig { mtu: 1280, .. })), "{repr:?}");
}

#[test]
fn no_error_about_errors_groups_and_later_fragments() {
    let about = |repr, payload: &[u8]| error_about(&packet(repr, payload), IcmpError::PortUnreachable);
    for kind in [3, 4, 5, 11, 12, 99] {
        assert_eq!(about(v4(protocol::ICMP, 0), &[kind, 0, 0, 0, 0, 0, 0, 0]), None);
    }
    assert!(about(v4(protocol::ICMP, 0), &[8, 0, 0, 0, 0, 0, 0, 0]).is_some());
    for kind in [1, 2, 3, 4, 127] {
        assert_eq!(about(v6(protocol::ICMPV6, 0), &[kind, 0, 0, 0, 0, 0, 0, 0]), None);
    }
    assert!(about(v6(protocol::ICMPV6, 0), &[128, 0, 0, 0, 0, 0, 0, 0]).is_some());
    assert_eq!(about(v4(protocol::ICMP, 0), &[]), None);
    assert_eq!(about(IpRepr { dst: "224.0.0.251".parse().unwrap(), ..v4(17, 0) }, &[0; 8]), None);
    assert_eq!(about(IpRepr { dst: "255.255.255.255".parse().unwrap(), ..v4(17, 0) }, &[0; 8]), None);
    assert_eq!(about(IpRepr { dst: "ff02::fb".parse().unwrap(), ..v6(17, 0) }, &[0; 8]), None);
    let mut fragment = packet(v4(protocol::UDP, 0), &[0; 16]);
    fragment[6..8].copy_from_slice(&[0, 1]);
    fill_v4_header_checksum(&mut fragment);
    assert_eq!(error_about(&fragment, IcmpError::TimeExceeded { code: 1 }), None);
    fragment[6..8].copy_from_slice(&[0x20, 0]);
    fill_v4_header_checksum(&mut fragment);
    assert!(error_about(&fragment, IcmpError::TimeExceeded { code: 1 }).is_some());
}

/// What the stack says about a packet of extension headers: the code and pointer of a parameter problem, or `None`.
fn told(first: u8, extensions: &[&[u8]], dst: &str) -> Option<(u8, u32)> {
    let repr = IpRepr { dst: dst.parse().unwrap(), ..v6(first, 0) };
    let original = packet(repr, &extensions.concat());
    let mut out = [0; 2048];
    let (ip, error) = match Ip::parse(&original) {
        Ok(ip) => (ip, IcmpError::ProtocolUnreachable),
        Err(_) => parameter_problem(&original)?,
    };
    let len = build_error(Kernel::auto(), &ip, &original, None, error, &mut out)?;
    let ip = Ip::parse(&out[..len]).unwrap();
    assert!(verify_transport(Kernel::auto(), &ip, &out[..len]));
    let message = upper_layer(&ip, &out[..len]).unwrap();
    assert_eq!((message[0], &message[8..]), (4, &original[..original.len().min(ERROR_MAX_V6 - 48)]));
    Some((message[1], u32::from_be_bytes(message[4..8].try_into().unwrap())))
}

#[test]
fn a_parameter_problem_points_at_what_is_not_understood() {
    // Destination options and hop-by-hop options with padding, a routing header, an atomic fragment header; each names
    // what follows it.
    let options = |next: u8, option: [u8; 4]| [next, 0, option[0], option[1], option[2], option[3], 1, 0];
    let pad = |next| options(next, [1, 2, 0, 0]);
    let rest = [0x5a; 20];
    let unknown = |kind| options(17, [kind, 2, 0, 0]);
    let one = "2001:db8::1";
    let group = "ff02::5";
    // RFC 8200, sections 4, 4.1, 4.2, 4.4, 4.7; RFC 4443, section 3.4.
    assert_eq!(told(132, &[&rest], one), Some((1, 6)));
    assert_eq!(told(60, &[&pad(132), &rest], one), Some((1, 40)));
    assert_eq!(told(0, &[&pad(60), &pad(132), &rest], one), Some((1, 48)));
    assert_eq!(told(44, &[&[60, 0, 0, 0, 0, 0, 0, 9], &pad(132), &rest], one), Some((1, 48)));
    assert_eq!(told(59, &[], one), None);
    assert_eq!(told(59, &[&rest], one), None);
    assert_eq!(told(60, &[&pad(59)], one), None);
    assert_eq!(told(60, &[&pad(0), &pad(17), &rest], one), Some((1, 40)), "hop-by-hop options come first or never");
    assert_eq!(told(60, &[&unknown(0x40), &rest], one), None, "discard in silence");
    assert_eq!(told(60, &[&unknown(0x80), &rest], one), Some((2, 42)));
    assert_eq!(told(60, &[&unknown(0xc2), &rest], one), Some((2, 42)));
    assert_eq!(told(0, &[&pad(60), &unknown(0x80), &rest], one), Some((2, 50)));
    assert_eq!(told(60, &[&options(17, [1, 0, 0x80, 0]), &rest], one), Some((2, 44)));
    assert_eq!(told(60, &[&unknown(0x80), &rest], group), None);
    assert_eq!(told(60, &[&unknown(0xc0), &rest], group), None);
    assert_eq!(
        told(60, &[&options(17, [5, 200, 0, 0]), &rest], one),
        Some((0, 43)),
        "an option longer than its header"
    );
    assert_eq!(told(43, &[&[17, 0, 0, 1, 0, 0, 0, 0], &rest], one), Some((0, 42)), "segments left");
    // Not about an ICMPv6 error, though it stands behind the problem; about a request it may be.
    let icmp = |kind| [&unknown(0x80)[1..], &[kind; 8]].concat();
    assert_eq!(told(60, &[&[58], &icmp(1)], one), None);
    assert_eq!(told(60, &[&[58], &icmp(128)], one), Some((2, 42)));
}

#[test]
fn errors_need_room() {
    let original = packet(v4(protocol::UDP, 0), &[0x5a; 40]);
    let ip = Ip::parse(&original).unwrap();
    let build = |room: usize, from| {
        build_error(Kernel::auto(), &ip, &original, from, IcmpError::HostUnreachable, &mut vec![0; room])
    };
    assert!((0..20 + 8 + 28).all(|room| build(room, None).is_none()));
    assert_eq!((build(56, None), build(88, None), build(2000, None)), (Some(56), Some(88), Some(88)));
    assert_eq!(build(2000, Some("2001:db8::1".parse().unwrap())), None);
}

#[test]
fn reply_that_is_all_zero_keeps_a_checksum() {
    let mut message = vec![0; 12];
    let (src, dst) = (v4(0, 0).src, v4(0, 0).dst);
    emit_echo(Kernel::auto(), src, dst, false, Echo { ident: 0, sequence: 0 }, &mut message);
    reply_to_echo(true, &mut message).unwrap();
    assert_eq!(message[..4], [0, 0, 0xff, 0xff]);
    assert!(matches!(parse(&packet(v4(protocol::ICMP, 0), &message)), Icmp::EchoReply(_)));
    assert!(reply_to_echo(true, &mut message).is_err());
}

proptest! {
    #[test]
    fn echo_round_trip(repr in ip_repr(0, 0), ident in any::<u16>(), sequence in any::<u16>(), data in prop::collection::vec(any::<u8>(), 0..64)) {
        let v4 = repr.src.is_ipv4();
        let repr = IpRepr { protocol: repr.icmp_protocol(), ..repr };
        let echo = Echo { ident, sequence };
        let mut message = [&[0; ICMP_HEADER][..], &data].concat();
        emit_echo(Kernel::auto(), repr.src, repr.dst, false, echo, &mut message);
        prop_assert_eq!(parse(&packet(repr, &message)), Icmp::EchoRequest(echo));
        let back = IpRepr { src: repr.dst, dst: repr.src, ..repr };
        reply_to_echo(v4, &mut message).unwrap();
        prop_assert_eq!(parse(&packet(back, &message)), Icmp::EchoReply(echo));
        prop_assert_eq!(&message[ICMP_HEADER..], &data[..]);
        let mut full = [&[0; ICMP_HEADER][..], &data].concat();
        emit_echo(Kernel::auto(), back.src, back.dst, true, echo, &mut full);
        prop_assert_eq!(message, full);
    }
}
