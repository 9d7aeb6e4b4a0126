//! Replays of hand-made captures; a real one is replayed in the Python tests, against an independent reader.

use std::io::Cursor;
use std::net::{IpAddr, SocketAddr};

use pcap_file::DataLink;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use t2s_core::buf::{Pool, PoolConfig};
use t2s_core::checksum::Kernel;
use t2s_core::config::{Config, Secrets};
use t2s_core::stack::CloseReason;
use t2s_core::wire::ip::IpRepr;
use t2s_core::wire::tcp::{Flags, Options, SeqNumber, TcpRepr};
use t2s_core::wire::{fill_transport_checksum, protocol};

use super::*;

/// Both ends of a captured connection, with sequence numbers close to the wrap.
struct FlowAddresses {
    client: SocketAddr,
    server: SocketAddr,
}

const CLIENT_ISN: SeqNumber = SeqNumber(0xffff_ff00);
const SERVER_ISN: SeqNumber = SeqNumber(0x7fff_ff00);

impl FlowAddresses {
    fn packet(&self, up: bool, flags: Flags, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
        let (from, to) = if up { (self.client, self.server) } else { (self.server, self.client) };
        let (mine, theirs) = if up { (CLIENT_ISN, SERVER_ISN) } else { (SERVER_ISN, CLIENT_ISN) };
        let mut options = Options::NONE;
        if flags.syn() {
            options.mss = Some(1460);
        }
        let repr = TcpRepr {
            src_port: from.port(),
            dst_port: to.port(),
            seq: mine + seq,
            ack: if flags.ack() { theirs + ack } else { SeqNumber(0) },
            flags,
            window: 60_000,
            options,
        };
        let mut segment = vec![0; repr.header_len()];
        repr.emit(&mut segment);
        segment.extend_from_slice(payload);
        whole(from.ip(), to.ip(), &mut segment)
    }
}

fn whole(src: IpAddr, dst: IpAddr, segment: &mut [u8]) -> Vec<u8> {
    fill_transport_checksum(Kernel::auto(), src, dst, protocol::TCP, segment);
    let repr = IpRepr {
        src,
        dst,
        protocol: protocol::TCP,
        ttl: 64,
        ecn: 0,
        payload_len: segment.len() as u32,
        id: 0,
        dont_fragment: true,
    };
    let mut packet = vec![0; repr.header_len()];
    repr.emit(&mut packet);
    packet.extend_from_slice(segment);
    packet
}

fn capture(packets: &[Vec<u8>]) -> Capture {
    let header = PcapHeader { datalink: DataLink::RAW, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
    for (index, packet) in packets.iter().enumerate() {
        let at = std::time::Duration::from_millis(1_700_000_000_000 + index as u64);
        writer.write_packet(&PcapPacket::new(at, packet.len() as u32, packet)).unwrap();
    }
    Capture::read(Cursor::new(writer.into_writer())).unwrap()
}

fn run(capture: &Capture) -> Replay {
    let pool = Pool::new(PoolConfig::default());
    let options = ReplayOptions {
        config: Config { secrets: Secrets::fixed(1), ..Config::default() },
        pace: Pace::Max,
        keep: true,
    };
    let replay = replay(capture, &options, &pool, &mut Silent);
    assert_eq!((replay.corrupt, replay.live_bytes), (0, 0));
    replay
}

const ACK: Flags = Flags::ACK;
const FIN_ACK: Flags = Flags(0x11);
const SYN_ACK: Flags = Flags(0x12);

#[test]
fn a_captured_connection_runs_again() {
    for ends in [
        FlowAddresses { client: "10.0.0.2:4000".parse().unwrap(), server: "192.0.2.1:80".parse().unwrap() },
        FlowAddresses { client: "[fd00::2]:4000".parse().unwrap(), server: "[2001:db8::1]:80".parse().unwrap() },
    ] {
        let sent: Vec<u8> = (0..3_000u32).map(|i| (i * 7) as u8).collect();
        let answer = vec![5; 40_000];
        let mut packets = vec![
            ends.packet(true, Flags::SYN, 0, 0, b""),
            ends.packet(false, SYN_ACK, 0, 1, b""),
            ends.packet(true, ACK, 1, 1, b""),
            // Out of order, with a duplicate and an overlap.
            ends.packet(true, ACK, 1_001, 1, &sent[1_000..2_000]),
            ends.packet(true, ACK, 1, 1, &sent[..1_000]),
            ends.packet(true, ACK, 501, 1, &sent[500..1_500]),
            ends.packet(true, ACK, 2_001, 1, &sent[2_000..]),
        ];
        for (index, part) in answer.chunks(1_460).enumerate() {
            packets.push(ends.packet(false, ACK, 1 + 1_460 * index as u32, 3_001, part));
        }
        // One acknowledgement for all: the live stack needs several round trips for as many bytes.
        packets.push(ends.packet(true, ACK, 3_001, 40_001, b""));
        packets.push(ends.packet(false, FIN_ACK, 40_001, 3_001, b""));
        packets.push(ends.packet(true, FIN_ACK, 3_001, 40_002, b""));
        packets.push(ends.packet(false, ACK, 40_002, 3_002, b""));
        let replay = run(&capture(&packets));
        let flow = &replay.flows[0];
        assert_eq!(flow.stream, sent);
        assert_eq!((flow.bytes_down, flow.missing, flow.finished), (40_000, 0, true));
        assert_eq!(flow.closed, Some(CloseReason::Finished));
        assert!(replay.synthetic_acks > 0);
        assert_eq!(replay.lowered_acks, 0);
    }
}

#[test]
fn a_refused_port_is_refused_again() {
    let ends = FlowAddresses { client: "10.0.0.2:4000".parse().unwrap(), server: "192.0.2.1:81".parse().unwrap() };
    let packets = [ends.packet(true, Flags::SYN, 0, 0, b""), ends.packet(false, Flags(0x14), 0, 1, b"")];
    let replay = run(&capture(&packets));
    assert_eq!(replay.flows[0].closed, Some(CloseReason::Upstream));
    assert_eq!(replay.replies, 1);
}

#[test]
fn what_the_capture_missed_is_made_up_and_what_it_joined_midway_is_left_out() {
    let ends = FlowAddresses { client: "10.0.0.2:4000".parse().unwrap(), server: "192.0.2.1:80".parse().unwrap() };
    let midway = FlowAddresses { client: "10.0.0.2:4001".parse().unwrap(), server: "192.0.2.1:80".parse().unwrap() };
    let packets = [
        midway.packet(true, ACK, 9, 9, b"midway"),
        ends.packet(true, Flags::SYN, 0, 0, b""),
        ends.packet(false, SYN_ACK, 0, 1, b""),
        ends.packet(true, ACK, 1, 1, b"GET"),
        // 1,000 bytes of the server are not in the capture, but were acknowledged.
        ends.packet(true, ACK, 4, 1_001, b"more"),
        ends.packet(true, Flags(0x14), 8, 1_001, b""),
    ];
    let replay = run(&capture(&packets));
    assert_eq!(replay.midway, 1);
    let flow = &replay.flows[0];
    assert_eq!((flow.stream.as_slice(), flow.missing), (&b"GETmore"[..], 1_000));
    assert_eq!(flow.closed, Some(CloseReason::ClientReset));
}

#[test]
fn what_a_sender_left_to_its_device_is_completed() {
    /// Spoils a packet as it looks before the device has had it: header length, header checksum, transport checksum.
    type Left = fn(&mut [u8], usize);
    let v4: [(&str, Left); 5] = [
        ("nothing", |_, _| {}),
        ("header checksum", |packet, _| packet[10..12].fill(0)),
        ("length", |packet, _| {
            packet[2..4].fill(0);
            t2s_core::wire::ip::fill_v4_header_checksum(packet);
        }),
        ("length and header checksum", |packet, _| {
            packet[2..4].fill(0);
            packet[10..12].fill(0);
        }),
        ("transport checksum", |packet, at| packet[at + 16..at + 18].fill(0)),
    ];
    let v6: [(&str, Left); 2] = [
        ("length", |packet, _| packet[4..6].fill(0)),
        ("transport checksum", |packet, at| packet[at + 16..at + 18].fill(0)),
    ];
    for (client, server, header, cases) in
        [("10.0.0.2:4000", "192.0.2.1:80", 20, &v4[..]), ("[fd00::2]:4000", "[2001:db8::1]:80", 40, &v6[..])]
    {
        let ends = FlowAddresses { client: client.parse().unwrap(), server: server.parse().unwrap() };
        for (name, leave_out) in cases {
            let mut packets = [
                ends.packet(true, Flags::SYN, 0, 0, b""),
                ends.packet(false, SYN_ACK, 0, 1, b""),
                ends.packet(true, ACK, 1, 1, b""),
                ends.packet(true, ACK, 1, 1, &[7; 3_000]),
            ];
            for packet in &mut packets {
                leave_out(packet, header);
            }
            let replay = run(&capture(&packets));
            assert_eq!(replay.flows.first().map(|flow| flow.stream.len()), Some(3_000), "{client}: {name}");
        }
        // What is wrong otherwise was wrong on the wire.
        let mut packets = [ends.packet(true, Flags::SYN, 0, 0, b""), ends.packet(false, SYN_ACK, 0, 1, b"")];
        packets[0][header + 17] ^= 1;
        assert_eq!(run(&capture(&packets)).accepted, 0);
    }
}
