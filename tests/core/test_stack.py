"""`Stack` from Python: a client made of scapy packets on one side, a scripted upstream on the other."""

import itertools
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror, defragment, icmptypes
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6

from t2s import ConfigError, MemoryPool, PoolExhausted, Request, Stack

CLIENT = {4: "10.0.0.1", 6: "fd00::1"}
SERVER = {4: "192.0.2.1", 6: "2001:db8::1"}
MILLIS = 1_000_000
WRAP = 1 << 32


def layer(version):
    return (IP if version == 4 else IPv6)(src=CLIENT[version], dst=SERVER[version])


def parsed(packet):
    """The packet as scapy reads it; its checksums and lengths must be what scapy would write."""
    got = (IP if packet[0] >> 4 == 4 else IPv6)(packet)
    again = got.copy()
    for part in itertools.takewhile(lambda part: not part.name.endswith(" in ICMP"), again.iterpayloads()):
        for field in ("chksum", "cksum", "len", "plen"):
            if field in getattr(part, "fields", {}):
                delattr(part, field)
    assert bytes(again) == packet, "checksums and lengths"
    return got


class Client:
    """One TCP client: keeps its numbers, sends what it is told, collects what comes."""

    def __init__(self, stack, version=4, port=40_000, isn=1000, mss=1460):
        self.stack, self.version, self.port, self.isn = stack, version, port, isn
        self.next, self.ack, self.received, self.finished = isn, 0, b"", False
        self.flags, self.flow, self.options = [], None, [("MSS", mss)]

    def segment(self, flags, payload=b"", seq=None, options=()):
        tcp = TCP(
            sport=self.port,
            dport=443,
            flags=flags,
            window=65_535,
            ack=self.ack % WRAP,
            options=list(options),
            seq=(self.next if seq is None else seq) % WRAP,
        )
        return bytes(layer(self.version) / tcp / payload)

    def send(self, flags, payload=b"", seq=None, options=()):
        return self.stack.feed(self.segment(flags, payload, seq, options))

    def listen(self):
        """Take the stack's packets, in order as it sends them; acknowledge what is new."""
        for packet in map(parsed, self.stack.take()):
            tcp = packet[TCP]
            assert (tcp.sport, tcp.dport) == (443, self.port)
            self.flags.append(str(tcp.flags))
            data = bytes(tcp.payload)[: packet.len - 20 - 4 * tcp.dataofs if self.version == 4 else None]
            if "S" in tcp.flags:
                self.ack = tcp.seq + 1
            elif data or "F" in tcp.flags:
                assert tcp.seq == self.ack % WRAP
                self.received += data
                self.ack = (self.ack + len(data) + ("F" in tcp.flags)) % WRAP
                self.finished |= "F" in tcp.flags
                self.send("A")

    def connect(self):
        assert self.send("S", options=self.options) is None
        [request] = self.stack.requests()
        assert isinstance(request, Request.Connect)
        assert request.client == (ip_address(CLIENT[self.version]), self.port)
        assert request.target == (ip_address(SERVER[self.version]), 443)
        assert self.stack.take() == [], "the SYN-ACK waits for the upstream"
        self.flow = request.flow
        self.stack.connected(self.flow)
        self.next += 1
        self.listen()
        assert self.flags == ["SA"]
        assert self.send("A") is None
        return self

    def upload(self, data):
        for at in range(0, len(data), 1000):
            assert self.send("PA", data[at : at + 1000]) is None
            self.next += len(data[at : at + 1000])


def receive_all(stack, flow):
    return b"".join(iter(lambda: stack.receive(flow, 700), b""))


@pytest.mark.parametrize("version", [4, 6])
def test_a_flow_from_handshake_to_time_wait(version):
    pool = MemoryPool()
    stack = Stack(pool=pool)
    client = Client(stack, version).connect()
    up, down = bytes(range(256)) * 20, bytes(reversed(range(256))) * 40

    client.upload(up)
    assert Request.Readable(client.flow) in stack.requests()
    assert receive_all(stack, client.flow) == up
    assert stack.send(client.flow, down) == len(down)
    while len(client.received) < len(down):
        client.listen()
    assert client.received == down
    [info] = stack.flows()
    assert (info["state"], info["bytes_up"]) == ("established", len(up))

    client.send("FA")
    client.next += 1
    assert Request.Finish(client.flow) in stack.requests()
    assert stack.send(client.flow, b"still open this way") == 19
    client.listen()
    stack.finish(client.flow)
    client.listen()
    assert (client.received, client.finished) == (down + b"still open this way", True)
    assert Request.Closed(client.flow, "finished") in stack.requests()
    assert stack.stats()["tcp"]["retransmits"] == 0
    assert_empty(stack, pool)


def assert_empty(stack, pool):
    stack.take()
    stack.requests()
    stack.advance(stack.now_ns + 300_000 * MILLIS)
    stack.take()
    stack.requests()
    stats = stack.stats()
    assert (stats["flows"], stats["sessions"], stats["buffered"], stats["timers"]) == (0, 0, 0, 0)
    assert (stats["reassembly_bytes"], stats["fragment_bytes"], stack.next_timeout_ns) == (0, 0, None)
    assert pool.stats()["live_bytes"] == 0


@pytest.mark.parametrize(
    ("how", "reply"),
    [
        ("refused", "RA"),
        ("failed", "RA"),
        ("host_unreachable", (3, 1)),
        ("net_unreachable", (3, 0)),
        ("prohibited", (3, 13)),
        ("timeout", None),
    ],
)
def test_a_refusal_is_told_on_the_wire(how, reply):
    pool = MemoryPool()
    stack = Stack(pool=pool)
    client = Client(stack)
    client.send("S", options=client.options)
    [request] = stack.requests()
    stack.refused(request.flow, how)
    answers = [parsed(packet) for packet in stack.take()]
    if reply is None:
        assert answers == []
    elif isinstance(reply, str):
        assert [str(answer[TCP].flags) for answer in answers] == [reply]
        assert answers[0][TCP].ack == client.isn + 1
    else:
        assert [(answer[ICMP].type, answer[ICMP].code) for answer in answers] == [reply]
        assert (answers[0][IPerror].dst, answers[0][TCPerror].dport) == (SERVER[4], 443)
        assert (answers[0][TCPerror].sport, answers[0][TCPerror].seq) == (client.port, client.isn)
    assert_empty(stack, pool)
    assert stack.stats()["flows_refused"] == 1


def test_an_ipv6_refusal():
    stack = Stack()
    client = Client(stack, 6)
    client.send("S", options=client.options)
    [request] = stack.requests()
    stack.refused(request.flow, "host_unreachable")
    assert [parsed(packet)[ICMPv6DestUnreach].code for packet in stack.take()] == [3]


@settings(max_examples=100)
@given(
    data=st.binary(min_size=1, max_size=6000),
    isn=st.one_of(st.integers(0, WRAP - 1), st.integers(WRAP - 4000, WRAP - 1)),
    cuts=st.lists(st.integers(1, 5999), max_size=8),
    repeats=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_upload_in_any_order_arrives_once(data, isn, cuts, repeats, order):
    pool = MemoryPool()
    stack = Stack(pool=pool)
    client = Client(stack, isn=isn, mss=8000).connect()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    segments = list(itertools.pairwise(edges))
    segments += order.choices(segments, k=repeats)
    order.shuffle(segments)
    arrived = b""
    for start, end in segments:
        # Duplicates are dropped and counted, the rest is accepted.
        assert client.send("A", data[start:end], seq=client.next + start) in (
            None,
            "tcp_duplicate",
            "tcp_out_of_window",
        )
        arrived += receive_all(stack, client.flow)
        assert arrived == data[: len(arrived)]
    assert arrived == data
    stack.advance(stack.now_ns + 500 * MILLIS)
    assert parsed(stack.take()[-1])[TCP].ack == (client.next + len(data)) % WRAP
    stack.shutdown()
    assert_empty(stack, pool)


def test_back_pressure_reaches_the_client():
    stack = Stack()
    client = Client(stack).connect()
    sent = 0
    while sent < 4 << 20:
        client.send("A", bytes(1000))
        answers = [parsed(packet)[TCP] for packet in stack.take()]
        client.next += 1000
        sent += 1000
        if answers and answers[-1].window == 0:
            break
    assert sent < 4 << 20, "the window closes while nobody reads"
    assert len(receive_all(stack, client.flow)) >= sent - 1000
    stack.advance(stack.now_ns + 1000 * MILLIS)
    assert parsed(stack.take()[-1])[TCP].window > 0


def test_a_slow_client_stops_the_upstream():
    stack = Stack()
    client = Client(stack).connect()
    taken = stack.send(client.flow, bytes(16 << 20))
    assert 0 < taken < 16 << 20
    assert (stack.send(client.flow, b"x"), stack.room(client.flow)) == (0, 0)
    while len(client.received) < taken:
        client.listen()
    assert Request.Writable(client.flow) in stack.requests()
    assert stack.send(client.flow, b"x") == 1


def test_what_is_lost_comes_again():
    stack = Stack()
    client = Client(stack).connect()
    stack.send(client.flow, b"lost on the way")
    assert len(stack.take()) == 1
    stack.advance(stack.now_ns + 5_000 * MILLIS)
    client.listen()
    assert client.received == b"lost on the way"
    assert stack.stats()["tcp"]["retransmits"] >= 1


def test_a_reset_upstream_resets_the_client():
    pool = MemoryPool()
    stack = Stack(pool=pool)
    client = Client(stack).connect()
    stack.reset(client.flow)
    client.listen()
    assert client.flags[-1].startswith("R")
    assert Request.Closed(client.flow, "upstream") in stack.requests()
    assert stack.send(client.flow, b"too late") == 0
    assert stack.receive(client.flow) == b""
    stack.connected(client.flow)
    assert_empty(stack, pool)


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_both_ways(version):
    pool = MemoryPool()
    stack = Stack(pool=pool)
    stack.feed(bytes(layer(version) / UDP(sport=5000, dport=7) / b"ping"))
    opened, waiting = stack.requests()
    assert opened == Request.UdpOpen(opened.session, (ip_address(CLIENT[version]), 5000))
    assert waiting == Request.Datagrams(opened.session)
    assert stack.receive_datagrams(opened.session) == [((ip_address(SERVER[version]), 7), b"ping")]
    stack.send_datagram(opened.session, (SERVER[version], 7), b"pong")
    [reply] = map(parsed, stack.take())
    assert (reply[UDP].sport, reply[UDP].dport, bytes(reply[UDP].payload)) == (7, 5000, b"pong")
    stack.datagram_unreachable(opened.session, (SERVER[version], 7))
    assert len(stack.take()) == 1
    stack.close_session(opened.session)
    assert_empty(stack, pool)


def test_a_large_datagram_leaves_in_fragments():
    stack = Stack()
    stack.feed(bytes(layer(4) / UDP(sport=5000, dport=7) / b"x"))
    session = stack.requests()[0].session
    data = bytes(range(256)) * 20
    stack.send_datagram(session, (SERVER[4], 7), data)
    packets = stack.take()
    assert all(len(packet) <= 1500 for packet in packets)
    [whole] = defragment([IP(packet) for packet in packets])
    assert bytes(whole[UDP].payload) == data


def test_a_fragmented_datagram_arrives_whole():
    stack = Stack()
    packet = layer(4) / UDP(sport=5000, dport=7) / (bytes(range(256)) * 20)
    for part in IP(bytes(packet)).fragment(fragsize=1000):
        assert stack.feed(bytes(part)) is None
    session = stack.requests()[0].session
    assert [data for _, data in stack.receive_datagrams(session)] == [bytes(range(256)) * 20]


@pytest.mark.parametrize("kernel", ["scalar", "swar", "auto"])
def test_echo(kernel):
    stack = Stack(checksum=kernel)
    stack.feed(bytes(layer(4) / ICMP(id=7, seq=9) / b"data"))
    stack.feed(bytes(layer(6) / ICMPv6EchoRequest(id=7, seq=9, data=b"data")))
    four, six = map(parsed, stack.take())
    assert (icmptypes[four[ICMP].type], four[ICMP].id, four[ICMP].seq) == ("echo-reply", 7, 9)
    assert (six[ICMPv6EchoReply].id, six[ICMPv6EchoReply].data) == (7, b"data")
    assert (four.src, six.dst) == (SERVER[4], CLIENT[6])


def test_strict_dns():
    stack = Stack(dns="strict")
    query = bytes(DNS(rd=1, qd=DNSQR(qname="example.org")))
    assert stack.feed(bytes(layer(4) / UDP(sport=5000, dport=53) / query)) is None
    assert stack.feed(bytes(layer(4) / UDP(sport=5000, dport=53) / query[:10])) == "dns_malformed"
    assert stack.stats()["drops"] == {"dns_malformed": 1}
    assert stack.stats()["dns_queries"] == 1


@given(packets=st.lists(st.one_of(st.binary(max_size=120), st.binary(max_size=80).map(b"\x45".__add__)), max_size=20))
def test_arbitrary_bytes_are_dropped_by_name(packets):
    pool = MemoryPool()
    stack = Stack(pool=pool)
    reasons = [stack.feed(packet) for packet in packets]
    dropped = [reason for reason in reasons if reason]
    assert sum(stack.stats()["drops"].values()) == len(dropped)
    assert set(stack.stats()["drops"]) == set(dropped)
    assert stack.stats()["packets_in"] == len(packets)
    stack.shutdown()
    assert_empty(stack, pool)


@given(data=st.data())
def test_a_damaged_segment_changes_nothing(data):
    stack = Stack()
    client = Client(stack).connect()
    packet = bytearray(client.segment("PA", b"payload"))
    at = data.draw(st.integers(0, len(packet) - 1))
    packet[at] ^= data.draw(st.integers(1, 255))
    before = stack.flows()
    stack.feed(packet)
    assert stack.receive(client.flow) in (
        b"",
        b"payload",
    )  # the latter: a bit that no checksum covers, and no one reads
    assert stack.flows()[: len(before)] == before or stack.flows()[0]["bytes_up"] == 7


def test_a_batch_is_its_packets():
    one, many = Stack(), Stack()
    packets = [bytes(layer(4) / UDP(sport=port, dport=7) / b"x") for port in range(5000, 5050)]
    assert many.feed_batch([*packets, b"junk"]) == 50
    assert [one.feed(packet) for packet in packets] == [None] * 50
    assert one.requests() == many.requests()


def test_time_only_moves_forward():
    stack = Stack(now_ns=50)
    stack.feed(bytes(layer(4) / ICMP()), now_ns=70)
    stack.advance(60)
    assert stack.now_ns == 70
    assert stack.next_timeout_ns is None
    stack.feed(bytes(layer(4) / UDP(sport=1, dport=2) / b"x"))
    assert stack.next_timeout_ns > 70


def test_idle_flows_end():
    stack = Stack(idle_timeout_ns=1000 * MILLIS)
    client = Client(stack).connect()
    stack.requests()
    stack.advance(1500 * MILLIS)
    assert Request.Closed(client.flow, "idle") in stack.requests()


@pytest.mark.parametrize(
    "wrong",
    [
        {"mtu": 60},
        {"syn_ack": "late"},
        {"congestion": "vegas"},
        {"checksum": "mmx"},
        {"reassembly": ""},
        {"dns": "lax"},
    ],
)
def test_impossible_settings(wrong):
    with pytest.raises(ConfigError, match=r"choose one of|at least"):
        Stack(**wrong)
    with pytest.raises(ConfigError, match="choose one of"):
        Stack().refused(1, "politely")


def test_an_exhausted_pool_refuses():
    stack = Stack(pool=MemoryPool(ceiling_bytes=0))
    with pytest.raises(PoolExhausted):
        stack.feed(bytes(layer(4) / ICMP()))
    with pytest.raises(PoolExhausted):
        stack.feed_batch([bytes(100)])


def test_stacks_do_not_share_anything():
    first, second = Stack(), Stack()
    Client(first).connect()
    assert (len(first.flows()), len(second.flows())) == (1, 0)


def test_requests_match():
    match Request.Closed(5, "idle"):
        case Request.Closed(flow, reason):
            assert (flow, reason) == (5, "idle")
        case _:
            pytest.fail("no match")
    assert Request.Readable(1) != Request.Writable(1)


@pytest.mark.parametrize("key", ["max_tcp_flows", "max_udp_sessions"])
def test_a_table_without_end_is_refused(key: str) -> None:
    for value in (0, 2**24 + 1, 2**32 - 1):
        with pytest.raises(ConfigError, match=key):
            Stack(**{key: value})
