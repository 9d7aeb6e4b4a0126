"""Captures through the packet core, against what scapy reads in the same file."""

from __future__ import annotations

from collections import defaultdict
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP, UDP, defragment
from scapy.layers.inet6 import IPv6
from scapy.utils import rdpcap, wrpcap, wrpcapng

import t2s

if TYPE_CHECKING:
    from scapy.packet import Packet

CAPTURE = Path(__file__).parents[1] / "data" / "real-traffic.pcap"
CLIENTS = {"198.18.0.1", "fc00::1"}
DNS = 53

End = tuple[str, int]


def _ends(packet: Packet, layer: type[Packet]) -> tuple[End, End]:
    ip = packet[IPv6] if IPv6 in packet else packet[IP]
    return (str(ip.src), packet[layer].sport), (str(ip.dst), packet[layer].dport)


def _payload(packet: Packet, layer: type[Packet]) -> bytes:
    """Return the payload without padding: scapy keeps that apart."""
    return bytes(packet[layer].payload.original) if packet[layer].payload else b""


def _streams(packets: list[Packet]) -> dict[tuple[End, End], bytes]:
    """Return each connection's client stream, put together from sequence numbers alone."""
    isn: dict[tuple[End, End], int] = {}
    parts: defaultdict[tuple[End, End], dict[int, bytes]] = defaultdict(dict)
    for packet in packets:
        if TCP not in packet:
            continue
        ends = _ends(packet, TCP)
        if ends[0][0] not in CLIENTS:
            continue
        tcp = packet[TCP]
        if "S" in tcp.flags:
            isn[ends] = tcp.seq
        offset = (tcp.seq - isn[ends] - 1) % 2**32
        data = _payload(packet, TCP)
        if data and len(data) > len(parts[ends].get(offset, b"")):
            parts[ends][offset] = data
    streams = {}
    for ends in isn:
        stream = bytearray()
        for offset, data in sorted(parts[ends].items()):
            assert offset <= len(stream), "the capture has a hole"
            stream[offset : offset + len(data)] = data
        streams[ends] = bytes(stream)
    return streams


@pytest.fixture(scope="module")
def packets() -> list[Packet]:
    return list(rdpcap(str(CAPTURE)))


@pytest.fixture(scope="module")
def replay() -> t2s.Replay:
    return t2s.replay(CAPTURE)


def test_every_tcp_stream_is_delivered_as_captured(packets: list[Packet], replay: t2s.Replay) -> None:
    expected = _streams(packets)
    assert len(expected) > 20
    assert sum(map(len, expected.values())) > 2_000
    delivered = {((str(f.client[0]), f.client[1]), (str(f.server[0]), f.server[1])): f.stream for f in replay.flows}
    assert delivered == expected


def test_every_server_stream_reaches_the_client(packets: list[Packet], replay: t2s.Replay) -> None:
    captured: defaultdict[tuple[End, End], dict[int, int]] = defaultdict(dict)
    for packet in packets:
        if TCP in packet and (data := _payload(packet, TCP)):
            sender, receiver = _ends(packet, TCP)
            if receiver[0] in CLIENTS:
                captured[receiver, sender][packet[TCP].seq] = len(data)
    for flow in replay.flows:
        ends = ((str(flow.client[0]), flow.client[1]), (str(flow.server[0]), flow.server[1]))
        if flow.closed == "finished":
            assert flow.bytes_down == sum(captured[ends].values()), ends
        assert flow.missing == 0


def test_every_datagram_is_delivered_as_captured(packets: list[Packet], replay: t2s.Replay) -> None:
    # scapy puts IPv4 fragments together; the capture has no IPv6 ones.
    whole = [IP(bytes(p[IP])) for p in defragment([p for p in packets if IP in p])]
    whole += [p for p in packets if IPv6 in p]
    from_clients = [p for p in whole if UDP in p and _ends(p, UDP)[0][0] in CLIENTS]
    sent = [(*_ends(p, UDP), bytes(p[UDP].payload)) for p in from_clients]
    got = [((str(c[0]), c[1]), (str(t[0]), t[1]), payload) for c, t, payload in replay.datagrams]
    assert len(sent) > 500
    assert max(len(payload) for *_, payload in sent) == 4_000
    assert sum(target[1] == DNS for _, target, _ in sent) >= 20
    assert sorted(got) == sorted(sent)


def test_nothing_is_broken_lost_or_left(replay: t2s.Replay) -> None:
    assert (replay.corrupt, replay.live_bytes, replay.lowered_acks, replay.midway) == (0, 0, 0, 0)
    assert replay.packets > 1_400
    # What has no effect has a name: packets from unspecified or to group addresses, and repeated segments.
    drops = {reason: count for reason, count in replay.stats["drops"].items() if count}
    assert drops.keys() <= {"bad_address", "tcp_duplicate", "icmp_ignored"}
    assert sum(drops.values()) <= 10
    assert {flow.closed for flow in replay.flows} <= {"finished", "client_reset", "upstream"}


def test_speed_does_not_change_the_result(tmp_path: Path, packets: list[Packet], replay: t2s.Replay) -> None:
    short = tmp_path / "short.pcap"
    first = packets[0].time
    wrpcap(str(short), [p for p in packets if p.time - first < 2], linktype=101)
    fast = t2s.replay(short)
    paced = t2s.replay(short, speed=20.0)
    assert [f.stream for f in fast.flows] == [f.stream for f in paced.flows]
    assert fast.datagrams == paced.datagrams
    assert fast.stats == paced.stats
    assert not t2s.replay(short, keep=False).flows[0].stream
    assert ip_address(replay.flows[0].client[0]) == ip_address("198.18.0.1")


def test_pcapng_is_read_too(tmp_path: Path, packets: list[Packet]) -> None:
    # scapy writes pcapng with Ethernet or raw frames, by the first packet's layer.
    file = tmp_path / "same.pcapng"
    wrpcapng(str(file), packets[:400])
    old = tmp_path / "same.pcap"
    wrpcap(str(old), packets[:400], linktype=101)
    assert [f.stream for f in t2s.replay(file).flows] == [f.stream for f in t2s.replay(old).flows]


def test_bad_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        t2s.replay(tmp_path / "none.pcap")
    junk = tmp_path / "junk.pcap"
    junk.write_bytes(b"this is not a capture, whatever its name says")
    with pytest.raises(t2s.DecodeError, match="pcap"):
        t2s.replay(junk)
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(CAPTURE.read_bytes()[:5_000])
    with pytest.raises(t2s.DecodeError):
        t2s.replay(cut)
    for speed in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(t2s.ConfigError, match="speed"):
            t2s.replay(CAPTURE, speed=speed)
