//! Codecs against smoltcp's as an independent oracle, round trips, truncation at every length, random bytes.

mod hostile;
mod icmp;
mod ip;
mod transport;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::tcp::Options;
use super::{Flags, IpRepr, SackBlocks, SeqNumber, TcpRepr, fill_transport_checksum, protocol};
use crate::checksum::Kernel;

/// Addresses that may stand on a wire, both of one family.
fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    let v4 = prop_oneof![(1u8..127, any::<[u8; 3]>()), (128u8..224, any::<[u8; 3]>())]
        .prop_map(|(first, rest)| IpAddr::V4(Ipv4Addr::new(first, rest[0], rest[1], rest[2])));
    let v6 = any::<[u8; 15]>().prop_map(|rest| {
        let mut octets = [0x20; 16];
        octets[1..].copy_from_slice(&rest);
        IpAddr::V6(Ipv6Addr::from(octets))
    });
    prop_oneof![(v4.clone(), v4), (v6.clone(), v6)]
}

/// A header to send over `payload` with any fields.
fn ip_repr(protocol: u8, payload_len: u32) -> impl Strategy<Value = IpRepr> {
    (addresses(), 1u8.., 0u8..4, any::<u16>(), any::<bool>()).prop_map(
        move |((src, dst), ttl, ecn, id, dont_fragment)| IpRepr {
            src,
            dst,
            protocol,
            ttl,
            ecn,
            payload_len,
            id,
            dont_fragment,
        },
    )
}

/// A TCP header with any options.
fn tcp_repr() -> impl Strategy<Value = TcpRepr> {
    let seq = any::<u32>().prop_map(SeqNumber);
    let flags = prop_oneof![
        Just(Flags::SYN),
        Just(Flags::SYN | Flags::ACK),
        Just(Flags::ACK),
        Just(Flags::ACK | Flags::PSH),
        Just(Flags::ACK | Flags::FIN),
        Just(Flags::RST),
        Just(Flags::ACK | Flags::ECE | Flags::CWR | Flags::URG)
    ];
    let blocks = prop::collection::vec((seq.clone(), seq.clone()), 0..=4);
    let options =
        (any::<Option<u16>>(), prop::option::of(0u8..=14), any::<bool>(), any::<Option<(u32, u32)>>(), blocks)
            .prop_map(|(mss, window_scale, sack_permitted, timestamp, blocks)| Options {
                mss,
                window_scale,
                sack_permitted,
                timestamp,
                sack: blocks.into_iter().collect::<SackBlocks>(),
            });
    (1u16.., 1u16.., seq.clone(), seq, flags, any::<u16>(), options).prop_map(
        |(src_port, dst_port, seq, ack, flags, window, options)| TcpRepr {
            src_port,
            dst_port,
            seq,
            ack,
            flags,
            window,
            options,
        },
    )
}

/// A whole TCP packet with right checksums.
fn tcp_packet(mut ip: IpRepr, tcp: &TcpRepr, payload: &[u8]) -> Vec<u8> {
    ip.protocol = protocol::TCP;
    ip.payload_len = (tcp.header_len() + payload.len()) as u32;
    let at = ip.header_len();
    let mut packet = vec![0xa5; at + ip.payload_len as usize];
    ip.emit(&mut packet);
    tcp.emit(&mut packet[at..]);
    packet[at + tcp.header_len()..].copy_from_slice(payload);
    fill_transport_checksum(Kernel::auto(), ip.src, ip.dst, protocol::TCP, &mut packet[at..]);
    packet
}

/// An IPv4 template: 192.0.2.1 to 198.51.100.2.
fn v4(protocol: u8, payload_len: u32) -> IpRepr {
    IpRepr {
        src: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        dst: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
        protocol,
        ttl: 64,
        ecn: 0,
        payload_len,
        id: 7,
        dont_fragment: true,
    }
}

/// An IPv6 template: `2001:db8::1` to `2001:db8::2`.
fn v6(protocol: u8, payload_len: u32) -> IpRepr {
    IpRepr {
        src: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        dst: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
        ..v4(protocol, payload_len)
    }
}

/// A packet of the template's header and these bytes.
fn packet(mut ip: IpRepr, payload: &[u8]) -> Vec<u8> {
    ip.payload_len = payload.len() as u32;
    let mut packet = vec![0; ip.header_len()];
    ip.emit(&mut packet);
    packet.extend(payload);
    packet
}
