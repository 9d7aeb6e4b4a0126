//! TCP, UDP, transport checksums and the virtio-net header.

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, TcpControl, TcpPacket, TcpRepr as OracleTcp, UdpPacket};

use super::super::tcp::{Options, TCP_HEADER_MAX, Tcp, WINDOW_SCALE_MAX};
use super::super::udp::{UDP_HEADER, Udp, UdpRepr};
use super::super::virtio::{
    F_DATA_VALID, F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, VirtioNetHdr,
};
use super::super::{
    Flags, Ip, SeqNumber, TcpRepr, fill_pseudo_sum, fill_transport_checksum, fill_transport_checksum_parts,
    upper_layer, verify_transport,
};
use super::{IpAddr, ip_repr, packet, protocol, tcp_packet, tcp_repr, v4, v6};
use crate::checksum::Kernel;
use crate::stats::DropReason;

fn oracle_addr(addr: IpAddr) -> IpAddress {
    addr.into()
}

/// A template: an acknowledgment without options.
fn ack() -> TcpRepr {
    TcpRepr {
        src_port: 1000,
        dst_port: 443,
        seq: SeqNumber(1),
        ack: SeqNumber(2),
        flags: Flags::ACK,
        window: 4096,
        options: Options::NONE,
    }
}

/// The template with these bytes of options.
fn with_options(options: &[u8]) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let mut out = vec![0; 20];
    ack().emit(&mut out);
    out[12] = ((5 + options.len() / 4) << 4) as u8;
    out.extend(options);
    out
}

#[test]
fn sequence_numbers_wrap() {
    let (before, after) = (SeqNumber(0xffff_fff0), SeqNumber(0x10));
    assert!(before.lt(after) && before.le(after) && after.gt(before) && after.ge(after) && !after.lt(after));
    assert_eq!((before + 0x20, after - 0x20, after - before, before - after), (after, before, 0x20, -0x20));
    assert_eq!((before.max(after), before.min(after)), (after, before));
    assert!(after.in_window(before, 0x21) && !after.in_window(before, 0x20) && !before.in_window(after, 100));
}

#[test]
fn tcp_options_in_any_layout() {
    let timestamp = [8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let want = Options { timestamp: Some((1, 2)), ..Options::NONE };
    for layout in
        [[&[1, 1][..], &timestamp].concat(), [&timestamp[..], &[1, 1]].concat(), [&timestamp[..], &[0, 9]].concat()]
    {
        assert_eq!(Tcp::parse(&with_options(&layout)).unwrap().options, want, "{layout:?}");
    }
    // The common layout's first words with other options behind them.
    let longer = [&[1, 1][..], &timestamp, &[2, 4, 5, 0xb4]].concat();
    assert_eq!(Tcp::parse(&with_options(&longer)).unwrap().options, Options { mss: Some(1460), ..want });
    // Unknown kinds are skipped; larger shifts are taken as 14.
    let unknown = Tcp::parse(&with_options(&[254, 5, 1, 2, 3, 3, 3, 200])).unwrap();
    assert_eq!(unknown.options, Options { window_scale: Some(WINDOW_SCALE_MAX), ..Options::NONE });
}

#[test]
fn tcp_options_that_are_refused() {
    for options in [
        [2, 0, 0, 0],
        [2, 1, 0, 0],
        [2, 3, 0, 0],
        [2, 5, 0, 0],
        [3, 2, 0, 0],
        [4, 3, 0, 0],
        [5, 2, 0, 0],
        [5, 4, 0, 0],
        [8, 4, 0, 0],
        [99, 0, 0, 0],
        [99, 200, 0, 0],
        [1, 1, 1, 99],
    ] {
        assert_eq!(Tcp::parse(&with_options(&options)), Err(DropReason::TcpMalformed), "{options:?}");
    }
}

#[test]
fn tcp_headers_that_are_refused() {
    for flags in [Flags::NONE, Flags::FIN, Flags::PSH | Flags::URG, Flags::SYN | Flags::FIN, Flags::SYN | Flags::RST] {
        let mut out = vec![0; 20];
        TcpRepr { flags, ..ack() }.emit(&mut out);
        assert_eq!(Tcp::parse(&out), Err(DropReason::TcpMalformed), "{flags:?}");
    }
    let mut good = vec![0; 20];
    ack().emit(&mut good);
    assert!(Tcp::parse(&good).is_ok());
    for (at, value) in [(12, 0x40), (12, 0x60), (12, 0xf0)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(Tcp::parse(&bad), Err(DropReason::TcpMalformed));
    }
    for ports in [0..2, 2..4] {
        let mut bad = good.clone();
        bad[ports].fill(0);
        assert_eq!(Tcp::parse(&bad), Err(DropReason::TcpMalformed));
    }
}

#[test]
fn sack_blocks_give_way_to_other_options() {
    let options = Options {
        timestamp: Some((1, 2)),
        sack: (0..4).map(|n| (SeqNumber(n * 10), SeqNumber(n * 10 + 5))).collect(),
        ..Options::NONE
    };
    let repr = TcpRepr { options, ..ack() };
    let mut out = vec![0; TCP_HEADER_MAX];
    assert_eq!(repr.header_len(), 60);
    repr.emit(&mut out);
    let parsed = Tcp::parse(&out).unwrap().options.sack;
    assert_eq!(parsed.as_slice(), &options.sack.as_slice()[..3]);
}

#[test]
fn udp_lengths_and_ports() {
    let mut good = vec![0; 20];
    UdpRepr { src_port: 5, dst_port: 53, payload_len: 12 }.emit(&mut good);
    assert_eq!(Udp::parse(&good), Ok(Udp { src_port: 5, dst_port: 53, len: 20 }));
    assert_eq!(Udp::parse(&[&good[..], &[0; 4]].concat()).map(Udp::payload_len), Ok(12));
    for len in 0..good.len() {
        assert_eq!(Udp::parse(&good[..len]), Err(DropReason::UdpMalformed));
    }
    for (range, value) in [(0..2, 0u16), (2..4, 0), (4..6, 7), (4..6, 21), (4..6, 0)] {
        let mut bad = good.clone();
        bad[range].copy_from_slice(&value.to_be_bytes());
        assert_eq!(Udp::parse(&bad), Err(DropReason::UdpMalformed));
    }
}

#[test]
fn udp_without_checksum_is_for_v4_alone() {
    let mut segment = vec![0; UDP_HEADER + 3];
    UdpRepr { src_port: 5, dst_port: 53, payload_len: 3 }.emit(&mut segment);
    for (repr, want) in [(v4(protocol::UDP, 0), true), (v6(protocol::UDP, 0), false)] {
        let bytes = packet(repr, &segment);
        assert_eq!(verify_transport(Kernel::auto(), &Ip::parse(&bytes).unwrap(), &bytes), want);
    }
}

#[test]
fn udp_checksum_that_would_be_zero_is_written_as_ones() {
    // One word of payload makes the sum 0xffff for some value of that word.
    let mut seen = false;
    for word in 0..=u16::MAX {
        let mut segment = vec![0; UDP_HEADER + 2];
        UdpRepr { src_port: 5, dst_port: 53, payload_len: 2 }.emit(&mut segment);
        segment[8..].copy_from_slice(&word.to_be_bytes());
        let repr = v4(protocol::UDP, 0);
        fill_transport_checksum(Kernel::SWAR, repr.src, repr.dst, protocol::UDP, &mut segment);
        assert_ne!(&segment[6..8], &[0, 0]);
        if segment[6..8] == [0xff, 0xff] {
            seen = true;
            let bytes = packet(repr, &segment);
            assert!(verify_transport(Kernel::SWAR, &Ip::parse(&bytes).unwrap(), &bytes));
        }
    }
    assert!(seen);
}

#[test]
fn udp_checksum_ends_with_the_datagram() {
    let repr = v4(protocol::UDP, 0);
    let mut segment = vec![0; UDP_HEADER + 5];
    UdpRepr { src_port: 5, dst_port: 53, payload_len: 5 }.emit(&mut segment);
    fill_transport_checksum(Kernel::auto(), repr.src, repr.dst, protocol::UDP, &mut segment);
    let bytes = packet(repr, &[&segment[..], b"trailer"].concat());
    assert!(verify_transport(Kernel::auto(), &Ip::parse(&bytes).unwrap(), &bytes));
}

#[test]
fn virtio_headers_are_checked_against_their_packet() {
    let bytes = tcp_packet(v4(0, 0), &ack(), b"payload");
    let ip = Ip::parse(&bytes).unwrap();
    let six = tcp_packet(v6(0, 0), &ack(), b"payload");
    let ip6 = Ip::parse(&six).unwrap();
    let good = VirtioNetHdr {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 0xffff, // never trusted
        gso_size: 1460,
        csum_start: 20,
        csum_offset: 16,
    };
    assert_eq!(good.check(&ip), Ok(()));
    assert_eq!(VirtioNetHdr { gso_type: GSO_TCPV4 | GSO_ECN, ..good }.check(&ip), Ok(()));
    assert_eq!(VirtioNetHdr { gso_type: GSO_TCPV6, csum_start: 40, ..good }.check(&ip6), Ok(()));
    assert_eq!(VirtioNetHdr::default().check(&ip), Ok(()));
    for bad in [
        VirtioNetHdr { gso_type: GSO_TCPV6, ..good },
        VirtioNetHdr { gso_type: GSO_UDP, ..good },
        VirtioNetHdr { gso_type: GSO_UDP_L4, ..good },
        VirtioNetHdr { gso_type: 77, ..good },
        VirtioNetHdr { gso_size: 0, ..good },
        VirtioNetHdr { csum_start: 21, ..good },
        VirtioNetHdr { csum_start: 0xffff, csum_offset: 0xffff, ..good },
        VirtioNetHdr { csum_offset: 6, ..good },
    ] {
        assert_eq!(bad.check(&ip), Err(DropReason::BadOffload), "{bad:?}");
    }
    assert!(good.checksum_trusted() && VirtioNetHdr { flags: F_DATA_VALID, ..good }.checksum_trusted());
    assert!(!VirtioNetHdr { flags: 0, ..good }.checksum_trusted());
}

#[test]
fn virtio_completion_outside_the_packet_is_refused() {
    let mut header = VirtioNetHdr { flags: F_NEEDS_CSUM, csum_start: 90, csum_offset: 16, ..VirtioNetHdr::default() };
    assert_eq!(header.complete_checksum(Kernel::auto(), &mut [0; 100]), Err(DropReason::BadOffload));
    assert_eq!(header.flags, F_NEEDS_CSUM);
}

proptest! {
    #[test]
    fn tcp_round_trip_and_smoltcp_agrees(ip in ip_repr(6, 0), repr in tcp_repr(), payload in prop::collection::vec(any::<u8>(), 0..100)) {
        let bytes = tcp_packet(ip, &repr, &payload);
        let parsed_ip = Ip::parse(&bytes).unwrap();
        let segment = upper_layer(&parsed_ip, &bytes).unwrap();
        let tcp = Tcp::parse(segment).unwrap();
        prop_assert_eq!((tcp.src_port, tcp.dst_port, tcp.seq, tcp.ack), (repr.src_port, repr.dst_port, repr.seq, repr.ack));
        prop_assert_eq!((tcp.flags, tcp.window, usize::from(tcp.header_len)), (repr.flags, repr.window, repr.header_len()));
        let fitting = tcp.options.sack.len();
        prop_assert_eq!(tcp.options.sack.as_slice(), &repr.options.sack.as_slice()[..fitting]);
        prop_assert!(fitting == repr.options.sack.len() || repr.header_len() + 8 > TCP_HEADER_MAX - 4);
        prop_assert_eq!(Options { sack: repr.options.sack, ..tcp.options }, repr.options);
        prop_assert_eq!(&segment[usize::from(tcp.header_len)..], &payload[..]);

        let oracle = TcpPacket::new_checked(segment).unwrap();
        prop_assert!(oracle.verify_checksum(&oracle_addr(ip.src), &oracle_addr(ip.dst)));
        prop_assert_eq!((oracle.src_port(), oracle.dst_port(), oracle.window_len()), (tcp.src_port, tcp.dst_port, tcp.window));
        prop_assert_eq!((oracle.seq_number().0 as u32, oracle.ack_number().0 as u32), (tcp.seq.0, tcp.ack.0));
        prop_assert_eq!((oracle.syn(), oracle.ack(), oracle.fin()), (tcp.flags.syn(), tcp.flags.ack(), tcp.flags.fin()));
        prop_assert_eq!((oracle.rst(), oracle.psh()), (tcp.flags.rst(), tcp.flags.psh()));
        let control = OracleTcp::parse(&oracle, &oracle_addr(ip.src), &oracle_addr(ip.dst), &ChecksumCapabilities::default());
        if let Ok(control) = control {
            prop_assert_eq!(control.control == TcpControl::Syn, tcp.flags.syn());
            prop_assert_eq!(control.max_seg_size, tcp.options.mss);
            prop_assert_eq!(control.window_scale, tcp.options.window_scale);
            prop_assert_eq!(control.sack_permitted, tcp.options.sack_permitted);
            prop_assert_eq!(control.timestamp.map(|stamp| (stamp.tsval, stamp.tsecr)), tcp.options.timestamp);
        }

        for kernel in Kernel::available() {
            prop_assert!(verify_transport(kernel, &parsed_ip, &bytes));
        }
        for len in 0..segment.len() {
            if let Ok(cut) = Tcp::parse(&segment[..len]) {
                prop_assert!(len >= usize::from(cut.header_len) && cut == tcp);
            }
        }
    }

    #[test]
    fn any_flipped_bit_of_a_segment_is_noticed(ip in ip_repr(6, 0), repr in tcp_repr(), payload in any::<[u8; 9]>(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let mut bytes = tcp_packet(ip, &repr, &payload);
        let parsed = Ip::parse(&bytes).unwrap();
        let at = usize::from(parsed.payload) + at.index(parsed.payload_len());
        bytes[at] ^= 1u8 << bit;
        prop_assert!(!verify_transport(Kernel::auto(), &parsed, &bytes));
    }

    #[test]
    fn udp_round_trip_and_smoltcp_agrees(ip in ip_repr(17, 0), src_port in 1u16.., dst_port in 1u16.., payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let repr = UdpRepr { src_port, dst_port, payload_len: payload.len() as u16 };
        let mut segment = vec![0xa5; UDP_HEADER + payload.len()];
        repr.emit(&mut segment);
        segment[UDP_HEADER..].copy_from_slice(&payload);
        fill_transport_checksum(Kernel::auto(), ip.src, ip.dst, protocol::UDP, &mut segment);
        let oracle = UdpPacket::new_checked(&segment).unwrap();
        prop_assert!(oracle.verify_checksum(&oracle_addr(ip.src), &oracle_addr(ip.dst)));
        prop_assert_eq!((oracle.src_port(), oracle.dst_port(), oracle.payload()), (src_port, dst_port, &payload[..]));
        let bytes = packet(ip, &segment);
        prop_assert!(verify_transport(Kernel::auto(), &Ip::parse(&bytes).unwrap(), &bytes));
        prop_assert_eq!(Udp::parse(&segment), Ok(Udp { src_port, dst_port, len: segment.len() as u16 }));
    }

    #[test]
    fn parts_have_the_checksum_of_the_whole(ip in ip_repr(6, 0), repr in tcp_repr(), payload in prop::collection::vec(any::<u8>(), 0..300), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4)) {
        let whole = tcp_packet(ip, &repr, &payload);
        let mut header = vec![0; repr.header_len()];
        repr.emit(&mut header);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
        cuts.extend([0, payload.len()]);
        cuts.sort_unstable();
        let parts = cuts.windows(2).map(|cut| &payload[cut[0]..cut[1]]);
        fill_transport_checksum_parts(Kernel::auto(), ip.src, ip.dst, protocol::TCP, &mut header, parts);
        prop_assert_eq!(&header[..], &whole[ip.header_len()..][..header.len()]);
    }

    #[test]
    fn a_device_completes_the_pseudo_sum(ip in ip_repr(6, 0), repr in tcp_repr(), payload in any::<[u8; 33]>()) {
        let whole = tcp_packet(ip, &repr, &payload);
        let at = ip.header_len();
        let mut partial = whole.clone();
        let len = (whole.len() - at) as u32;
        fill_pseudo_sum(ip.src, ip.dst, protocol::TCP, len, &mut partial[at..]);
        let mut header = VirtioNetHdr { flags: F_NEEDS_CSUM, gso_type: GSO_NONE, csum_start: at as u16, csum_offset: 16, ..VirtioNetHdr::default() };
        prop_assert_eq!(header.check(&Ip::parse(&partial).unwrap()), Ok(()));
        header.complete_checksum(Kernel::auto(), &mut partial).unwrap();
        prop_assert_eq!(partial, whole);
        prop_assert_eq!(header.flags, 0);
    }

    #[test]
    fn virtio_round_trip(flags in any::<u8>(), gso_type in any::<u8>(), fields in any::<[u16; 4]>(), packet in prop::collection::vec(any::<u8>(), 0..50)) {
        let [hdr_len, gso_size, csum_start, csum_offset] = fields;
        let header = VirtioNetHdr { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset };
        let frame = [&header.encode()[..], &packet].concat();
        prop_assert_eq!(VirtioNetHdr::decode(&frame), Ok((header, &packet[..])));
        for len in 0..10 {
            prop_assert_eq!(VirtioNetHdr::decode(&frame[..len]), Err(DropReason::Truncated));
        }
    }
}
