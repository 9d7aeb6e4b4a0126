//! Path MTU discovery, with a router on the client's side that the test plays.

use super::*;
use crate::wire::icmp::build_error;

/// What a router between us and the client says of `packet`: a link takes `mtu` bytes. `total` is what it quotes as the
/// packet's length.
fn too_big(packet: &[u8], mtu: u32) -> Vec<u8> {
    let ip = Ip::parse(packet).unwrap();
    let router = if ip.is_v4() { at("10.0.0.254:1").ip() } else { at("[fd00::fe]:1").ip() };
    let mut out = vec![0; 1_280];
    let error = IcmpError::TooBig { mtu };
    let len = build_error(Config::default().checksum, &ip, packet, Some(router), error, &mut out).unwrap();
    out.truncate(len);
    out
}

const PAIRS: [(&str, &str, usize); 2] = [(CLIENT, SERVER, 40), ("[fd00::2]:40000", "[2001:db8::7]:80", 60)];

#[test]
fn a_link_of_1400_bytes_gets_what_it_takes() {
    for (client, server, headers) in PAIRS {
        let mut bench = Bench::new(|_| {});
        let (flow, mut peer) = bench.open(client, server);
        let data: Vec<u8> = (0..100_000_u32).map(|byte| byte as u8).collect();
        for part in data.chunks(50_000) {
            let sent = bench.buf(part);
            assert!(bench.stack.upstream_data(bench.now, flow, sent).is_ok());
        }
        let mut got = Vec::new();
        let mut refused = 0;
        for _ in 0..1_000 {
            for packet in bench.packets() {
                if packet.len() > 1_400 {
                    refused += 1;
                    assert_eq!(bench.feed(&too_big(&packet, 1_400)), Disposition::Accepted, "{refused}");
                    continue;
                }
                let (segment, payload) = parse_tcp(&packet);
                if segment.seq == peer.ack {
                    peer.ack += payload.len() as u32;
                    got.extend(payload);
                }
            }
            let ack = peer.segment(Flags::ACK, b"");
            bench.feed(&ack);
            if got.len() == data.len() {
                break;
            }
        }
        assert!(got == data, "{} bytes came", got.len());
        assert!((1..=10).contains(&refused), "only the first flight was too big: {refused}");
        assert_eq!(bench.stack.stats().tcp.timeouts, 0, "without waiting for the timer");
        // The next flow of this client starts with the right size, another client's does not.
        bench.requests();
        for (next, longest) in [(40_001, 1_400), (40_002, 1_500)] {
            let mut client = at(client);
            client.set_port(next);
            if longest == 1_500 {
                client.set_ip(if client.is_ipv4() { at("10.0.0.9:1").ip() } else { at("[fd00::9]:1").ip() });
            }
            let (flow, _) = bench.open(&client.to_string(), server);
            let sent = bench.buf(&data[..5_000]);
            assert!(bench.stack.upstream_data(bench.now, flow, sent).is_ok());
            assert_eq!(bench.packets().iter().map(Vec::len).max(), Some(longest), "{headers}");
        }
        bench.shut_down();
    }
}

#[test]
fn an_error_that_quotes_nothing_on_its_way_changes_nothing() {
    for (client, server, _) in PAIRS {
        let mut bench = Bench::new(|_| {});
        let (flow, mut peer) = bench.open(client, server);
        let sent = bench.buf(&[7; 5_000]);
        assert!(bench.stack.upstream_data(bench.now, flow, sent).is_ok());
        let packets = bench.packets();
        let first = &packets[0];
        let ip = Ip::parse(first).unwrap();
        let start = usize::from(ip.payload);
        let other = |change: &dyn Fn(&mut [u8])| {
            let mut packet = first.clone();
            change(&mut packet[start..]);
            packet
        };
        let bad = [
            // Blind guesses: another port, another sequence number.
            too_big(&other(&|tcp| tcp[3] ^= 1), 1_400),
            too_big(&other(&|tcp| tcp[4] ^= 0x40), 1_400),
            too_big(&other(&|tcp| tcp[7] = tcp[7].wrapping_sub(1)), 1_400),
            // A size that what was sent does not exceed, and one below what each link takes.
            too_big(first, 1_500),
            too_big(first, 9_000),
            too_big(&udp_packet(server, client, &[0; 1_400]), 1_400),
        ];
        for error in bad {
            assert_eq!(bench.feed(&error), Disposition::Dropped(DropReason::IcmpIgnored));
        }
        // About a packet of somebody else, or cut short.
        let error = too_big(first, 1_400);
        let mut foreign = Ip::parse(&error).map(|ip| usize::from(ip.payload)).unwrap();
        foreign += 8 + if ip.is_v4() { 12 } else { 8 };
        let mut alien = error.clone();
        alien[foreign + 1] ^= 1;
        let outer = Ip::parse(&error).unwrap();
        let at_icmp = usize::from(outer.payload);
        fill_transport_checksum(
            Config::default().checksum,
            outer.src,
            outer.dst,
            outer.protocol,
            &mut alien[at_icmp..],
        );
        assert_eq!(bench.feed(&alien), Disposition::Dropped(DropReason::IcmpMalformed));
        assert!(bench.packets().is_empty());
        // What was acknowledged is not on its way.
        peer.ack += 5_000;
        let ack = peer.segment(Flags::ACK, b"");
        bench.feed(&ack);
        assert_eq!(bench.feed(&error), Disposition::Dropped(DropReason::IcmpIgnored));
        let sent = bench.buf(&[7; 3_000]);
        assert!(bench.stack.upstream_data(bench.now, flow, sent).is_ok());
        assert_eq!(bench.packets().iter().map(Vec::len).max(), Some(1_500));
        bench.shut_down();
    }
}

#[test]
fn an_old_router_that_tells_no_size_is_understood() {
    let mut bench = Bench::new(|_| {});
    let (flow, _) = bench.open(CLIENT, SERVER);
    let sent = bench.buf(&[7; 5_000]);
    assert!(bench.stack.upstream_data(bench.now, flow, sent).is_ok());
    let packets = bench.packets();
    assert_eq!(bench.feed(&too_big(&packets[0], 0)), Disposition::Accepted);
    let next = bench.packets();
    assert_eq!(next.iter().map(Vec::len).max(), Some(1_492), "RFC 1191, section 7.1");
    assert_eq!(bench.feed(&too_big(&next[0], 0)), Disposition::Accepted);
    assert_eq!(bench.packets().iter().map(Vec::len).max(), Some(1_006));
    bench.shut_down();
}

#[test]
fn replies_of_udp_and_echo_fit_the_path() {
    let offload = Offload { uso: true, tx_checksum: true, ..Offload::default() };
    for (client, server) in [("10.0.0.2:5000", "192.0.2.7:9"), ("[fd00::2]:5000", "[2001:db8::7]:9")] {
        let mut bench = Bench::new(|config| config.offload = offload);
        bench.feed(&udp_packet(client, server, b"quic?"));
        let [Request::UdpOpen { session, .. }, _] = bench.requests()[..] else { panic!() };
        let reply = |bench: &mut Bench, len: usize, size: u16| {
            let payload = bench.buf(&vec![7; len]);
            if size == 0 {
                bench.stack.datagram(bench.now, session, at(server), payload);
            } else {
                bench.stack.datagram_run(bench.now, session, at(server), payload, size);
            }
            bench.packets()
        };
        let whole = reply(&mut bench, 1_400, 0);
        assert_eq!(whole.len(), 1);
        assert_eq!(bench.feed(&too_big(&whole[0], 1_300)), Disposition::Accepted);
        let parts = reply(&mut bench, 1_400, 0);
        assert_eq!(parts.len(), 2);
        assert!(parts.iter().all(|part| part.len() <= 1_300 && Ip::parse(part).unwrap().fragment.is_some()));
        // A run that the device would cut into datagrams which do not fit.
        let parts = reply(&mut bench, 2_800, 1_400);
        assert_eq!(parts.len(), 4);
        assert!(parts.iter().all(|part| part.len() <= 1_300));
        assert_eq!(reply(&mut bench, 2_400, 1_200).len(), 1, "and one that does");
        assert_eq!(bench.stack.stats().datagrams_down, 1 + 1 + 2 + 2);
        // After ten minutes the full size is tried again.
        bench.now = bench.now.plus(601 * SECONDS);
        assert_eq!(reply(&mut bench, 1_400, 0).len(), 1);
        bench.shut_down();
    }
}
