"""`FragmentReassembler` and `fragment`: any cut, order and repetition gives the datagram back once, within the caps."""

import itertools
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, defragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6

from t2s import FragmentReassembler, MemoryPool, PacketError, PoolExhausted, checksum, fragment

CLIENT = {4: "10.0.0.1", 6: "fd00::1"}
SERVER = {4: "192.0.2.1", 6: "2001:db8::1"}
VERSIONS = st.sampled_from([4, 6])
UDP_PROTOCOL = 17


def ip_packet(version, payload, *, protocol=UDP_PROTOCOL, ident=0, offset=None, more=False):
    """An IP packet, written here from the RFCs; a fragment when `offset` is given."""
    src, dst = ip_address(CLIENT[version]).packed, ip_address(SERVER[version]).packed
    if version == 4:
        flags = 0 if offset is None else offset // 8 | more << 13
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), ident, flags, 64, protocol, 0, src, dst)
        return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload
    extension = b""
    if offset is not None:
        extension = struct.pack("!BBHI", protocol, 0, offset | more, ident)
        protocol = 44
    header = struct.pack("!IHBB16s16s", 6 << 28, len(extension) + len(payload), protocol, 64, src, dst)
    return header + extension + payload


def payload_of(packet):
    return packet[20:] if packet[0] >> 4 == 4 else packet[40:]


@st.composite
def cut_datagrams(draw, version=VERSIONS, most=1200):
    """A datagram and its fragments, cut at any multiples of 8."""
    version = draw(version)
    payload = draw(st.binary(min_size=17, max_size=most))
    cuts = draw(st.lists(st.integers(1, (len(payload) - 1) // 8), min_size=1, max_size=10, unique=True))
    edges = [0, *sorted(8 * cut for cut in cuts), len(payload)]
    ident = draw(st.integers(0, 0xFFFF))
    parts = [
        ip_packet(version, payload[start:end], ident=ident, offset=start, more=end < len(payload))
        for start, end in itertools.pairwise(edges)
    ]
    return version, payload, parts


@given(case=cut_datagrams(), data=st.data())
def test_any_order_and_repetition_gives_the_datagram_once(case, data):
    version, payload, parts = case
    pool = MemoryPool()
    table = FragmentReassembler(pool=pool)
    repeated = data.draw(st.lists(st.sampled_from(parts), max_size=5))
    arrivals = data.draw(st.permutations(parts + repeated))
    missing, whole = set(parts), []
    for part in arrivals:
        before = bool(missing)
        missing.discard(part)
        got = table.handle(part)
        if before and not missing:
            # The last missing part completes it; what repeats afterwards begins another one, never to be whole.
            whole.append(got)
            break
        assert got is None
    assert whole == [ip_packet(version, payload)] or version == 4
    assert payload_of(whole[0]) == payload
    assert table.stats()["completed"] == 1
    assert (table.stats()["bytes"], table.stats()["datagrams"], pool.stats()["live_bytes"]) == (0, 0, 0)


@given(case=cut_datagrams(), data=st.data())
def test_an_overlap_ends_its_datagram(case, data):
    version, payload, parts = case
    ident = int.from_bytes(parts[0][4:6] if version == 4 else parts[0][44:48], "big")
    *early, last = data.draw(st.permutations(range(len(parts))))
    # A forged fragment over some byte of one that is held, while another is still missing.
    victim = data.draw(st.sampled_from(early))
    edges = list(itertools.accumulate((len(part) - (20 if version == 4 else 48) for part in parts), initial=0))
    inside = data.draw(st.integers(edges[victim] // 8, (edges[victim + 1] - 1) // 8)) * 8
    start = data.draw(st.integers(0, inside // 8)) * 8
    end = inside + 8 * data.draw(st.integers(1, 8))
    forged = ip_packet(
        version,
        bytes(byte ^ 0xFF for byte in payload[start:end].ljust(end - start)),
        ident=ident,
        offset=start,
        more=True,
    )
    pool = MemoryPool()
    table = FragmentReassembler(pool=pool)
    for part in early:
        assert table.handle(parts[part]) is None
    for part in (forged, parts[last], *data.draw(st.permutations(parts))):
        with pytest.raises(PacketError, match=r"fragment_overlap|fragment_bad"):
            table.handle(part)
    assert (table.stats()["completed"], table.stats()["bytes"], pool.stats()["live_bytes"]) == (0, 0, 0)


@given(
    cases=st.lists(cut_datagrams(most=400), min_size=1, max_size=8),
    total_bytes=st.integers(0, 4096),
    datagrams=st.integers(0, 4),
    fragments=st.integers(1, 5),
    data=st.data(),
)
def test_caps_are_never_exceeded(cases, total_bytes, datagrams, fragments, data):
    pool = MemoryPool()
    table = FragmentReassembler(total_bytes=total_bytes, datagrams=datagrams, fragments=fragments, pool=pool)
    sent = {ip_packet(version, payload)[-len(payload) :] for version, payload, _ in cases}
    for part in data.draw(st.permutations([part for _, _, parts in cases for part in parts])):
        try:
            whole = table.handle(part)
        except PacketError:
            whole = None
        assert whole is None or payload_of(whole) in sent
        stats = table.stats()
        assert stats["bytes"] <= stats["bytes_peak"] <= total_bytes
        assert stats["datagrams"] <= datagrams
        assert pool.stats()["live_bytes"] == stats["bytes"]
    table.clear()
    assert pool.stats()["live_bytes"] == 0


@given(version=VERSIONS, payload=st.binary(min_size=8, max_size=9000), mtu=st.integers(1280, 9000), data=st.data())
def test_cut_and_put_together_again(version, payload, mtu, data):
    packet = ip_packet(version, payload)
    parts = fragment(packet, mtu, ident=0xBEEF)
    assert all(len(part) <= mtu for part in parts)
    table = FragmentReassembler()
    whole = [packet for part in data.draw(st.permutations(parts)) if (packet := table.handle(part))]
    assert [payload_of(packet) for packet in whole] == [payload]


@pytest.mark.parametrize("size", [1, 8, 1472, 1473, 4000, 65_000])
def test_scapy_puts_our_fragments_together(size):
    inner = UDP(sport=1, dport=2) / bytes(size)
    parts = fragment(bytes(IP(src=CLIENT[4], dst=SERVER[4]) / inner), 1500, ident=9)
    whole = defragment([IP(part) for part in parts])
    assert [bytes(packet.payload) for packet in whole] == [bytes(IP(src=CLIENT[4], dst=SERVER[4]) / inner)[20:]]
    six = bytes(IPv6(src=CLIENT[6], dst=SERVER[6]) / inner)
    parts = fragment(six, 1500, ident=9)
    if len(parts) > 1:
        assert IPv6ExtHdrFragment in IPv6(parts[0])
        assert bytes(defragment6([IPv6(part) for part in parts]))[40:] == six[40:]


def test_we_put_scapys_fragments_together():
    packet = IP(bytes(IP(src=CLIENT[4], dst=SERVER[4], id=77) / UDP(sport=1, dport=2) / (bytes(range(256)) * 20)))
    table = FragmentReassembler()
    whole = [done for part in packet.fragment(fragsize=504) if (done := table.handle(bytes(part)))]
    assert [done[20:] for done in whole] == [bytes(packet)[20:]]


def test_age_ends_what_never_completes():
    table = FragmentReassembler(age_ns=1000)
    table.handle(ip_packet(4, bytes(16), ident=1, offset=0, more=True), now_ns=500)
    assert table.next_timeout_ns == 1500
    table.expire(1499)
    assert table.stats()["datagrams"] == 1
    table.expire(1500)
    assert (table.stats()["datagrams"], table.stats()["bytes"], table.next_timeout_ns) == (0, 0, None)
    assert table.stats()["drops"] == {"fragment_timeout": 1}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("payload", "offset", "more"),
    [(bytes(4), 0, True), (bytes(13), 0, True), (b"", 8, True), (bytes(16), 65_528, False), (bytes(4), 0, False)],
    ids=["tiny first", "no multiple of 8", "empty", "ping of death", "half a header"],
)
def test_what_is_refused_leaves_nothing(version, payload, offset, more):
    pool = MemoryPool()
    table = FragmentReassembler(pool=pool)
    if (offset, more) == (0, False) and version == 4:
        return  # offset 0 and no more fragments: not a fragment in IPv4
    if (offset, more) == (0, False):
        assert table.handle(ip_packet(version, payload, offset=offset, more=more)) is not None  # RFC 6946
        return
    with pytest.raises(PacketError, match=r"fragment_bad|truncated|bad_length"):
        table.handle(ip_packet(version, payload, ident=5, offset=offset, more=more))
    assert (table.stats()["bytes"], pool.stats()["live_bytes"]) == (0, 0)
    assert sum(table.stats()["drops"].values()) == 1


@pytest.mark.parametrize("packet", [b"", b"\x45", bytes(20), b"\x60" + bytes(10), b"\x00" * 40])
def test_what_is_no_packet(packet):
    with pytest.raises(PacketError):
        FragmentReassembler().handle(packet)
    with pytest.raises(PacketError):
        fragment(packet, 1500)


def test_limits_of_cutting():
    packet = ip_packet(6, bytes(3000))
    with pytest.raises(PacketError, match="too_big"):
        fragment(packet, 1279)
    with pytest.raises(PacketError, match="fragment_bad"):
        fragment(fragment(packet, 1280)[0], 1280)
    with pytest.raises(PoolExhausted):
        FragmentReassembler().handle(bytes(1 << 17))
