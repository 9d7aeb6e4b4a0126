//! Bytes from an enemy: nothing panics, and what is accepted keeps its promises.

use proptest::prelude::*;

use super::super::icmp::{Icmp, IcmpError, Quote, build_error, reply_to_echo};
use super::super::ip::{fill_v4_header_checksum, parameter_problem};
use super::super::{Ip, Tcp, Udp, VirtioNetHdr, protocol, upper_layer, verify_transport};
use super::{packet, tcp_packet, tcp_repr, v4, v6};
use crate::checksum::Kernel;

/// Everything that a stack would do with a packet.
fn swallow(bytes: &[u8]) {
    for v4 in [false, true] {
        if let Some(quote) = Quote::parse(v4, bytes) {
            assert_eq!((quote.src.is_ipv4(), quote.dst.is_ipv4()), (v4, v4));
        }
    }
    if let Some((ip, error)) = parameter_problem(bytes) {
        assert!(usize::from(ip.payload) <= ip.total as usize && ip.total as usize <= bytes.len());
        let IcmpError::ParameterProblem { pointer, .. } = error else { panic!("{error:?}") };
        assert!(pointer < ip.total);
    }
    let Ok(ip) = Ip::parse(bytes) else { return };
    assert!(usize::from(ip.payload) <= ip.total as usize && ip.total as usize <= bytes.len());
    assert_eq!(ip.src.is_ipv4(), ip.dst.is_ipv4());
    if let Some(fragment) = ip.fragment {
        assert!(fragment.unfragmentable <= ip.payload && fragment.next_header_at < fragment.unfragmentable);
        assert_eq!(fragment.offset % 8, 0);
    }
    let segment = upper_layer(&ip, bytes).expect("the header's promise");
    assert_eq!(segment.len(), ip.payload_len());
    for kernel in Kernel::available() {
        assert_eq!(verify_transport(kernel, &ip, bytes), verify_transport(Kernel::SCALAR, &ip, bytes));
    }
    if let Ok(tcp) = Tcp::parse(segment) {
        assert!((20..=60).contains(&tcp.header_len) && usize::from(tcp.header_len) <= segment.len());
        assert!(tcp.options.window_scale.is_none_or(|shift| shift <= 14));
    }
    if let Ok(udp) = Udp::parse(segment) {
        assert!(usize::from(udp.len) <= segment.len() && udp.payload_len() + 8 == usize::from(udp.len));
    }
    let _ = Icmp::parse(&ip, segment);
    let _ = reply_to_echo(ip.is_v4(), &mut segment.to_vec());
    let mut out = [0; 1500];
    if let Some(len) = build_error(Kernel::auto(), &ip, bytes, None, IcmpError::PortUnreachable, &mut out) {
        // Only a destination that is itself no source makes the error a packet that nobody would accept.
        let error = Ip::parse(&out[..len]);
        assert!(error.is_ok_and(|error| verify_transport(Kernel::auto(), &error, &out[..len])));
    }
    if let Ok((header, _)) = VirtioNetHdr::decode(bytes) {
        let _ = header.check(&ip);
        let _ = { header }.complete_checksum(Kernel::auto(), &mut bytes.to_vec());
    }
}

/// Random bytes behind a header that is right, so that they are looked at.
fn behind_headers(protocol_number: u8, rest: &[u8]) {
    swallow(&packet(v4(protocol_number, 0), rest));
    swallow(&packet(v6(protocol_number, 0), rest));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        swallow(&bytes);
        let _ = Tcp::parse(&bytes);
        let _ = Udp::parse(&bytes);
    }

    #[test]
    fn random_bytes_behind_right_headers(
        protocol_number in prop::sample::select(vec![0u8, 1, 6, 17, 43, 44, 58, 59, 60]),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        behind_headers(protocol_number, &rest);
    }

    #[test]
    fn random_chains(headers in prop::collection::vec((prop::sample::select(vec![0u8, 43, 44, 60, 17]), 0u8..3, any::<[u8; 6]>()), 1..12)) {
        let mut chain = Vec::new();
        for (next, len, bytes) in &headers {
            chain.extend([*next, *len]);
            chain.extend(bytes);
            chain.extend(vec![0; usize::from(*len) * 8]);
        }
        behind_headers(headers[0].0, &chain);
    }

    #[test]
    fn v4_headers_of_any_length(first in 0x40u8..0x50, mut bytes in prop::collection::vec(any::<u8>(), 20..120)) {
        bytes[0] = first;
        let len = (bytes.len() as u16).to_be_bytes();
        bytes[2..4].copy_from_slice(&len);
        fill_v4_header_checksum(&mut bytes);
        swallow(&bytes);
    }

    #[test]
    fn changed_and_cut_packets(tcp in tcp_repr(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in any::<prop::sample::Index>()) {
        for repr in [v4(protocol::TCP, 0), v6(protocol::TCP, 0)] {
            let mut bytes = tcp_packet(repr, &tcp, b"some payload");
            for (at, value) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            swallow(&bytes[..=cut.index(bytes.len())]);
            if repr.src.is_ipv4() {
                fill_v4_header_checksum(&mut bytes);
            }
            swallow(&bytes);
        }
    }
}
