//! UDP, DNS and ICMP through the composer.

use super::*;

#[test]
fn datagrams_go_both_ways_and_sessions_expire() {
    for (client, server) in [("10.0.0.2:5000", "192.0.2.7:9"), ("[fd00::2]:5000", "[2001:db8::7]:9")] {
        let mut bench = Bench::new(|_| {});
        assert_eq!(bench.feed(&udp_packet(client, server, b"ping")), Disposition::Accepted);
        let requests = bench.requests();
        let [Request::UdpOpen { session, client: from }, Request::Datagrams(_)] = requests[..] else { panic!() };
        assert_eq!(from, at(client));
        let (target, payload) = bench.stack.pop_datagram(session).unwrap();
        assert_eq!((target, payload.as_slice()), (at(server), &b"ping"[..]));
        bench.stack.free(payload);
        // The answer may come from anywhere, and may be larger than the MTU.
        let big: Vec<u8> = (0..4_000u32).map(|i| i as u8).collect();
        for size in [4, 4_000] {
            let reply = bench.buf(&big[..size]);
            bench.stack.datagram(bench.now, session, at(server), reply);
            let packets = bench.packets();
            assert_eq!(packets.len(), if size == 4 { 1 } else { 3 });
            if size == 4 {
                let ip = Ip::parse(&packets[0]).unwrap();
                assert!(crate::wire::verify_transport(Config::default().checksum, &ip, &packets[0]));
                let udp = Udp::parse(&packets[0][usize::from(ip.payload)..]).unwrap();
                assert_eq!((udp.src_port, udp.dst_port), (9, 5000));
            }
        }
        bench.pass(121 * SECONDS);
        assert_eq!(bench.requests(), [Request::UdpClosed(session)]);
        bench.assert_empty();
    }
}

#[test]
fn a_datagram_in_fragments_arrives_whole_and_once() {
    let mut bench = Bench::new(|_| {});
    // What the stack sends in fragments, a stack joins again.
    bench.feed(&udp_packet("10.0.0.2:5000", "192.0.2.7:9", b"x"));
    let [Request::UdpOpen { session, .. }, _] = bench.requests()[..] else { panic!() };
    let (_, payload) = bench.stack.pop_datagram(session).unwrap();
    bench.stack.free(payload);
    let big: Vec<u8> = (0..9_000u32).map(|i| (i * 7) as u8).collect();
    let reply = bench.buf(&big);
    bench.stack.datagram(bench.now, session, at("192.0.2.7:9"), reply);
    let mut fragments = bench.packets();
    assert!(fragments.len() > 6);
    fragments.swap(1, 4);
    for fragment in &fragments {
        assert_eq!(bench.feed(fragment), Disposition::Accepted);
    }
    let requests = bench.requests();
    let [Request::UdpOpen { session, client }, Request::Datagrams(_)] = requests[..] else { panic!("{requests:?}") };
    assert_eq!(client, at("192.0.2.7:9"));
    let (target, payload) = bench.stack.pop_datagram(session).unwrap();
    assert_eq!(target, at("10.0.0.2:5000"));
    assert_eq!(payload.as_slice(), &big[..]);
    bench.stack.free(payload);
    bench.shut_down();
}

#[test]
fn a_super_datagram_is_cut() {
    let mut bench = Bench::new(|_| {});
    let buf = bench.buf(&udp_packet("10.0.0.2:5000", "192.0.2.7:9", &[7; 2_500]));
    bench.stack.handle_packet(bench.now, Packet { buf, checksum_trusted: true, gso_size: 1_000 });
    let [Request::UdpOpen { session, .. }, _] = bench.requests()[..] else { panic!() };
    let mut sizes = Vec::new();
    while let Some((_, payload)) = bench.stack.pop_datagram(session) {
        sizes.push(payload.len());
        assert!(payload.headroom() >= crate::socks5::udp_header::HEADER_MAX);
        bench.stack.free(payload);
    }
    assert_eq!(sizes, [1_000, 1_000, 500]);
    bench.shut_down();
}

#[test]
fn a_run_of_datagrams_leaves_as_one_and_is_cut_as_it_was_joined() {
    for (client, server) in [("10.0.0.2:5000", "192.0.2.7:9"), ("[fd00::2]:5000", "[2001:db8::7]:9")] {
        let mut bench = Bench::new(|config| {
            config.offload = Offload { rx_checksum: true, tx_checksum: true, tso: true, uso: true };
        });
        bench.feed(&udp_packet(client, server, b"ping"));
        let [Request::UdpOpen { session, .. }, _] = bench.requests()[..] else { panic!() };
        let sent: Vec<u8> = (0..2_500u32).map(|i| (i * 3) as u8).collect();
        assert!(bench.stack.takes_runs(1_000) && !bench.stack.takes_runs(1_500) && !bench.stack.takes_runs(0));
        let run = bench.stack.alloc(sent.len(), 48).map(|mut run| {
            run.append(&sent);
            run
        });
        bench.stack.datagram_run(bench.now, session, at(server), run.unwrap(), 1_000);
        let packet = bench.stack.poll_transmit(bench.now).unwrap();
        let (header, bytes) = (packet.virtio, packet.header.to_vec());
        let ip = Ip::parse(&bytes).unwrap();
        assert_eq!(header.check(&ip), Ok(()));
        assert_eq!((header.gso_type, header.gso_size, header.flags), (virtio::GSO_UDP_L4, 1_000, virtio::F_NEEDS_CSUM));
        assert_eq!(usize::from(header.hdr_len), bytes.len() - sent.len());
        let udp = Udp::parse(&bytes[usize::from(ip.payload)..]).unwrap();
        assert_eq!((udp.src_port, udp.dst_port, usize::from(udp.len)), (9, 5_000, sent.len() + 8));
        assert_eq!(bytes[usize::from(ip.payload) + 8..], sent);
        assert_eq!(bench.stack.stats().datagrams_down, 3);
        // One that is no longer than a segment is an ordinary datagram.
        let single = bench.buf(&sent[..700]);
        bench.stack.datagram_run(bench.now, session, at(server), single, 1_000);
        assert_eq!(bench.stack.poll_transmit(bench.now).unwrap().virtio.gso_type, virtio::GSO_NONE);
        assert!(bench.stack.poll_transmit(bench.now).is_none());
        bench.stack.drop_offload();
        assert!(!bench.stack.takes_runs(1_000));
        bench.shut_down();
    }
}

#[test]
fn udp_that_cannot_be_carried_is_answered() {
    let mut bench = Bench::new(|_| {});
    bench.feed(&udp_packet("10.0.0.2:5000", "192.0.2.7:9", b"quic?"));
    let [Request::UdpOpen { session, .. }, _] = bench.requests()[..] else { panic!() };
    bench.stack.udp_unreachable(bench.now, session, at("192.0.2.7:9"));
    bench.stack.close_session(session);
    let packets = bench.packets();
    let ip = Ip::parse(&packets[0]).unwrap();
    let message = &packets[0][usize::from(ip.payload)..];
    assert_eq!(Icmp::parse(&ip, message), Ok(Icmp::Error { error: IcmpError::PortUnreachable }));
    bench.requests();
    bench.assert_empty();
}

#[test]
fn dns_is_checked_when_asked() {
    let mut bench = Bench::new(|config| config.dns = DnsCheck::Strict);
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01";
    assert_eq!(bench.feed(&udp_packet("10.0.0.2:5000", "192.0.2.7:53", query)), Disposition::Accepted);
    assert_eq!(
        bench.feed(&udp_packet("10.0.0.2:5001", "192.0.2.7:53", &query[..15])),
        Disposition::Dropped(DropReason::DnsMalformed)
    );
    assert_eq!(bench.stack.stats().dns_queries, 1);
    bench.shut_down();
}

#[test]
fn echo_requests_are_answered() {
    for (client, server) in [(CLIENT, SERVER), ("[fd00::2]:1", "[2001:db8::7]:1")] {
        let mut bench = Bench::new(|_| {});
        let (src, dst) = (at(client).ip(), at(server).ip());
        let mut message = vec![0; 64];
        let echo = Echo { ident: 5, sequence: 6 };
        emit_echo(Config::default().checksum, src, dst, false, echo, &mut message);
        let upper = if src.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        assert_eq!(bench.feed(&ip_packet(src, dst, upper, &message)), Disposition::Accepted);
        let packets = bench.packets();
        let ip = Ip::parse(&packets[0]).unwrap();
        assert_eq!((ip.src, ip.dst), (dst, src));
        assert!(crate::wire::verify_transport(Config::default().checksum, &ip, &packets[0]));
        assert_eq!(Icmp::parse(&ip, &packets[0][usize::from(ip.payload)..]), Ok(Icmp::EchoReply(echo)));
        bench.assert_empty();
    }
}

#[test]
fn the_sender_of_a_datagram_that_stays_incomplete_is_told() {
    // RFC 1122, section 3.3.2; RFC 8200, section 4.5: when the first fragment came, and not otherwise.
    for (client, server) in [("10.0.0.2:5000", "192.0.2.7:9"), ("[fd00::2]:5000", "[2001:db8::7]:9")] {
        for skip in [0, 1] {
            let mut bench = Bench::new(|_| {});
            let whole = udp_packet(client, server, &[7; 3_000]);
            let header = if at(client).is_ipv4() { 20 } else { 40 };
            let repr = IpRepr {
                src: at(client).ip(),
                dst: at(server).ip(),
                protocol: protocol::UDP,
                ttl: 64,
                ecn: 0,
                payload_len: (whole.len() - header) as u32,
                id: 7,
                dont_fragment: false,
            };
            let part = crate::fragment::fragment(&repr, &whole[header..], 1_400, 7)
                .unwrap()
                .nth(skip)
                .map(|part| [part.header(), part.payload].concat())
                .unwrap();
            assert_eq!(bench.feed(&part), Disposition::Accepted);
            bench.pass(31 * SECONDS);
            let packets = bench.packets();
            assert_eq!(packets.len(), 1 - skip);
            for packet in packets {
                let ip = Ip::parse(&packet).unwrap();
                let message = &packet[usize::from(ip.payload)..];
                let error = IcmpError::TimeExceeded { code: 1 };
                assert_eq!(Icmp::parse(&ip, message), Ok(Icmp::Error { error }));
                assert!(part.starts_with(&message[8..]));
            }
            assert_eq!(bench.stack.stats().drops.get(DropReason::FragmentTimeout), 1);
            bench.assert_empty();
        }
    }
}

#[test]
fn what_is_wrong_with_an_extension_header_is_told() {
    let mut bench = Bench::new(|_| {});
    let (src, dst) = (at("[fd00::2]:1").ip(), at("[2001:db8::7]:1").ip());
    for (next, rest, told) in [
        (60, &[17, 0, 0x80, 4, 0, 0, 0, 0, 0, 0][..], Some((2, 42))),
        (60, &[17, 0, 0x40, 4, 0, 0, 0, 0, 0, 0], None),
        (60, &[132, 0, 1, 4, 0, 0, 0, 0, 0, 0], Some((1, 40))),
        (59, &[], None),
    ] {
        assert!(matches!(bench.feed(&ip_packet(src, dst, next, rest)), Disposition::Dropped(_)));
        let packets = bench.packets();
        let seen = packets.first().map(|packet| (packet[41], packet[47]));
        assert_eq!((packets.len(), seen), (usize::from(told.is_some()), told));
    }
    bench.assert_empty();
}
