//! IPv4 options, IPv6 extension headers, fragments, addresses, lengths.

use core::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use super::super::ip::{Fragment, Ip, MAX_EXTENSIONS, fill_v4_header_checksum};
use super::{IpAddr, IpRepr, ip_repr, packet, protocol, v4, v6};
use crate::stats::DropReason;

/// An IPv4 header with options before `payload`.
fn with_options(options: &[u8], payload: &[u8]) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let mut out = packet(v4(protocol::UDP, 0), &[options, payload].concat());
    out[0] = 0x40 | (5 + options.len() / 4) as u8;
    fill_v4_header_checksum(&mut out);
    out
}

/// An IPv6 packet whose header names `first`, before these bytes.
fn extended(first: u8, rest: &[&[u8]]) -> Vec<u8> {
    packet(v6(first, 0), &rest.concat())
}

#[test]
fn v4_options_are_skipped_and_malformed_ones_refused() {
    let parsed = Ip::parse(&with_options(&[1, 1, 0x94, 4, 0, 0, 0, 0xff], b"data")).unwrap();
    assert_eq!((parsed.payload, parsed.total), (28, 32));
    for (options, reason) in [
        ([0x94, 5, 0, 0], DropReason::BadExtension), // beyond the header
        ([1, 1, 1, 7], DropReason::BadExtension),    // no length
        ([7, 0, 0, 0], DropReason::BadExtension),
        ([7, 1, 0, 0], DropReason::BadExtension),
        ([131, 4, 4, 0], DropReason::BadExtension), // source routes
        ([137, 4, 4, 0], DropReason::BadExtension),
    ] {
        assert_eq!(Ip::parse(&with_options(&options, b"data")), Err(reason), "{options:?}");
    }
    let mut broken = with_options(&[1, 1, 1, 1], b"data");
    broken[21] = 0;
    assert_eq!(Ip::parse(&broken), Err(DropReason::IpChecksum));
}

#[test]
fn v4_lengths_and_versions() {
    let good = packet(v4(protocol::UDP, 0), b"12345678");
    assert_eq!(Ip::parse(&[]), Err(DropReason::Truncated));
    for version in (0..16).filter(|version| ![4, 6].contains(version)) {
        let mut bad = good.clone();
        bad[0] = version << 4 | 5;
        assert_eq!(Ip::parse(&bad), Err(DropReason::BadVersion));
    }
    for (at, value, reason) in [
        (0, 0x44, DropReason::BadLength),  // header of 16 bytes
        (0, 0x4f, DropReason::Truncated),  // header of 60 bytes
        (3, 19, DropReason::BadLength),    // total below the header
        (3, 29, DropReason::Truncated),    // total above the packet
        (3, 0, DropReason::BadLength),     // jumbo by omission
        (12, 0, DropReason::BadAddress),   // source in 0/8
        (12, 127, DropReason::BadAddress), // loopback
        (12, 230, DropReason::BadAddress), // multicast
        (16, 127, DropReason::BadAddress),
        (16, 0, DropReason::BadAddress),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        fill_v4_header_checksum(&mut bad);
        assert_eq!(Ip::parse(&bad), Err(reason), "{at} {value:#x}");
    }
    let broadcast = IpRepr { src: IpAddr::V4(Ipv4Addr::BROADCAST), ..v4(17, 0) };
    assert_eq!(Ip::parse(&packet(broadcast, b"")), Err(DropReason::BadAddress));
    let padded = [good.clone(), vec![0; 18]].concat();
    assert_eq!(Ip::parse(&padded), Ip::parse(&good));
}

#[test]
fn v4_of_the_largest_length() {
    let super_packet = packet(v4(protocol::TCP, 0), &vec![0x5a; 65_515]);
    let parsed = Ip::parse(&super_packet).unwrap();
    assert_eq!((parsed.total, parsed.payload_len()), (65_535, 65_515));
    let super_packet = packet(v6(protocol::TCP, 0), &vec![0x5a; 65_535]);
    assert_eq!(Ip::parse(&super_packet).unwrap().total, 65_575);
}

#[test]
fn every_changed_byte_of_a_v4_header_is_noticed() {
    let good = packet(v4(protocol::UDP, 0), b"12345678");
    for at in 1..20 {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(Ip::parse(&bad).is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn v6_addresses_that_never_stand_on_a_wire() {
    let mapped = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped();
    let multicast = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    for addr in [Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST, mapped, multicast] {
        let src = packet(IpRepr { src: IpAddr::V6(addr), ..v6(17, 0) }, b"");
        assert_eq!(Ip::parse(&src), Err(DropReason::BadAddress), "{addr}");
        let dst = packet(IpRepr { dst: IpAddr::V6(addr), ..v6(17, 0) }, b"");
        let want = if addr == multicast { Ok(false) } else { Err(DropReason::BadAddress) };
        assert_eq!(Ip::parse(&dst).map(|ip| ip.dst_is_unicast()), want, "{addr}");
    }
}

#[test]
fn v6_extension_headers_are_walked() {
    let hop = [60, 0, 5, 2, 0, 0, 1, 0]; // router alert, PadN
    let destination = [43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let routing = [44, 0, 4, 0, 0, 0, 0, 0]; // no segments left
    let atomic = [17, 0, 0, 0, 1, 2, 3, 4]; // RFC 6946
    let parsed = Ip::parse(&extended(0, &[&hop, &destination, &routing, &atomic, b"datagram"])).unwrap();
    assert_eq!((parsed.protocol, parsed.payload, parsed.payload_len()), (17, 80, 8));
    assert_eq!(parsed.fragment, None);
}

#[test]
fn v6_fragments_name_their_place() {
    let hop = [44, 0, 1, 4, 0, 0, 0, 0];
    let fragment = [17, 0, 0x05, 0xa9, 0xde, 0xad, 0xbe, 0xef];
    let parsed = Ip::parse(&extended(0, &[&hop, &fragment, b"payload!"])).unwrap();
    let want = Fragment { id: 0xdead_beef, offset: 0x5a8, more: true, unfragmentable: 48, next_header_at: 40 };
    assert_eq!((parsed.fragment, parsed.protocol, parsed.payload), (Some(want), 17, 56));
    // An extension header behind the fragment header belongs to the datagram, not to the fragment.
    let first = Ip::parse(&extended(44, &[&[60, 0, 0, 1, 0, 0, 0, 1], &[17, 0, 1, 4, 0, 0, 0, 0]])).unwrap();
    assert_eq!((first.protocol, first.payload), (60, 48));
    assert_eq!(first.fragment.map(|fragment| (fragment.unfragmentable, fragment.next_header_at)), Some((40, 6)));
}

#[test]
fn v6_extension_headers_that_are_refused() {
    let pad = [17, 0, 1, 4, 0, 0, 0, 0];
    let then_pad = [0, 0, 1, 4, 0, 0, 0, 0];
    let cases: &[(u8, &[u8], &[u8], DropReason)] = &[
        (0, &then_pad, &pad, DropReason::BadExtension),  // second hop-by-hop
        (60, &then_pad, &pad, DropReason::BadExtension), // hop-by-hop not first
        (43, &[17, 0, 4, 1, 0, 0, 0, 0], b"", DropReason::BadExtension), // a segment left
        (0, &[17, 0, 0xc2, 4, 0, 1, 0, 0], b"", DropReason::BadExtension), // jumbo payload
        (60, &[17, 0, 0x80, 4, 0, 0, 0, 0], b"", DropReason::BadExtension), // unknown, to be discarded
        (60, &[17, 0, 1, 5, 0, 0, 0, 0], b"", DropReason::BadExtension), // option beyond the header
        (60, &[17, 0, 1, 3, 0, 0, 0, 1], b"", DropReason::BadExtension), // no length
        (60, &[17, 1, 1, 4, 0, 0, 0, 0], b"", DropReason::Truncated),
        (44, &[17, 0, 0, 0, 0, 0, 0], b"", DropReason::Truncated),
        (43, b"", b"", DropReason::Truncated),
    ];
    for (first, head, rest, reason) in cases {
        assert_eq!(Ip::parse(&extended(*first, &[head, rest])), Err(*reason), "{first} {head:?}");
    }
    // An unknown option that may be skipped.
    assert!(Ip::parse(&extended(60, &[&[17, 0, 0x3e, 4, 0, 0, 0, 0]])).is_ok());
}

#[test]
fn v6_chains_and_options_are_bounded() {
    let next = [60, 0, 1, 4, 0, 0, 0, 0];
    let last = [17, 0, 1, 4, 0, 0, 0, 0];
    let chain = |n: usize| extended(60, &[&next.repeat(n - 1), &last]);
    assert!(Ip::parse(&chain(MAX_EXTENSIONS)).is_ok());
    assert_eq!(Ip::parse(&chain(MAX_EXTENSIONS + 1)), Err(DropReason::BadExtension));
    let padding = [&[17u8, 255][..], &[0; 2046]].concat();
    assert_eq!(Ip::parse(&extended(60, &[&padding])), Err(DropReason::BadExtension));
}

#[test]
fn v4_fragments() {
    let mut out = packet(v4(protocol::UDP, 0), b"12345678");
    for (field, want) in [(0x4000u16, None), (0x2000, Some((0, true))), (0x1fff, Some((65_528, false)))] {
        out[6..8].copy_from_slice(&field.to_be_bytes());
        fill_v4_header_checksum(&mut out);
        let fragment = Ip::parse(&out).unwrap().fragment;
        assert_eq!(fragment.map(|fragment| (fragment.offset, fragment.more)), want);
        assert!(fragment.is_none_or(|fragment| (fragment.id, fragment.unfragmentable) == (7, 20)));
    }
}

proptest! {
    #[test]
    fn round_trip_and_smoltcp_agrees(repr in ip_repr(protocol::UDP, 64), payload in any::<[u8; 32]>()) {
        let bytes = packet(repr, &payload);
        let ip = Ip::parse(&bytes).unwrap();
        prop_assert_eq!((ip.src, ip.dst, ip.protocol, ip.ttl, ip.ecn), (repr.src, repr.dst, 17, repr.ttl, repr.ecn));
        prop_assert_eq!((usize::from(ip.payload), ip.total as usize), (repr.header_len(), bytes.len()));
        if ip.is_v4() {
            let oracle = Ipv4Packet::new_checked(&bytes).unwrap();
            prop_assert!(oracle.verify_checksum());
            prop_assert_eq!(IpAddr::V4(oracle.src_addr()), ip.src);
            prop_assert_eq!(IpAddr::V4(oracle.dst_addr()), ip.dst);
            prop_assert_eq!((oracle.hop_limit(), oracle.ecn(), oracle.ident()), (ip.ttl, ip.ecn, repr.id));
            prop_assert_eq!((oracle.dont_frag(), oracle.more_frags(), oracle.frag_offset()), (repr.dont_fragment, false, 0));
            prop_assert_eq!(oracle.payload(), &payload);
        } else {
            let oracle = Ipv6Packet::new_checked(&bytes).unwrap();
            prop_assert_eq!(IpAddr::V6(oracle.src_addr()), ip.src);
            prop_assert_eq!(IpAddr::V6(oracle.dst_addr()), ip.dst);
            prop_assert_eq!((oracle.hop_limit(), oracle.traffic_class()), (ip.ttl, ip.ecn));
            prop_assert_eq!(oracle.payload(), &payload);
        }
        for len in 0..bytes.len() {
            prop_assert_eq!(Ip::parse(&bytes[..len]), Err(DropReason::Truncated));
        }
    }
}
