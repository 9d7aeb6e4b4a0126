"""The metrics of a running tunnel, whose device is a pair of sockets: no rights needed, no packet leaves this host."""

import http.client
import ipaddress
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

import t2s
from socks import CODES, device, socks
from t2s import ConfigError, Tunnel, TunnelError, metrics
from t2s.cli import app
from t2s.tunnel.metrics_server import CLIENTS, MetricsServer
from t2s.tunnel.settings import load

CLIENT, TARGET = "10.0.0.2", "192.0.2.1"


def packet(protocol, upper):
    """Put an IPv4 header with its checksum in front."""
    parts = (0x45, 0, 20 + len(upper), 1, 0, 64, protocol, 0, socket.inet_aton(CLIENT), socket.inet_aton(TARGET))
    header = bytearray(struct.pack("!BBHHHBBH4s4s", *parts))
    header[10:12] = t2s.checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + upper


def tcp(port, source, flags, seq, *, ack=0, payload=b""):
    upper = bytearray(struct.pack("!HHIIBBHHH", source, port, seq, ack, 5 << 4, flags, 65_535, 0, 0) + payload)
    pseudo = socket.inet_aton(CLIENT) + socket.inet_aton(TARGET) + struct.pack("!HH", 6, len(upper))
    upper[16:18] = t2s.checksum(pseudo + bytes(upper)).to_bytes(2, "big")
    return packet(6, bytes(upper))


def udp(port, source, payload):
    return packet(17, struct.pack("!HHHH", source, port, 8 + len(payload), 0) + payload)


def eventually(question, holds):
    """Ask until the answer holds, for five seconds; return the last one."""
    end = time.monotonic() + 5
    while not holds(answer := question()) and time.monotonic() < end:
        time.sleep(0.01)
    return answer


@contextmanager
def running(**settings):
    """Run a tunnel with one open flow, one that was refused, one UDP session and one packet that is none."""
    ours, theirs = device()
    with socks() as proxy, ours, theirs, Tunnel(proxy, tun_fd=theirs.fileno(), **settings) as tunnel:
        ours.settimeout(5)
        ours.send(b"\x00 no packet at all, though long enough to be looked at")
        ours.send(tcp(CODES + 5, 4_000, 0x02, 100))
        assert ours.recv(2_000)[33] & 0x04, "refused with a reset"
        ours.send(tcp(443, 4_001, 0x02, 100))
        answer = ours.recv(2_000)
        assert answer[33] == 0x12, "accepted"
        sequence = int.from_bytes(answer[24:28], "big") + 1
        ours.send(tcp(443, 4_001, 0x18, 101, ack=sequence, payload=b"hello"))
        ours.send(udp(5_000, 4_002, b"12345678"))
        assert eventually(tunnel.stats, lambda now: now["bytes_down"] >= 5 and now["sessions"] == 1)["flows"] == 1
        yield tunnel
    assert (tunnel.stats()["pool_live_bytes"], tunnel.stats()["flows"]) == (0, 0)


def page(tunnel):
    registry = CollectorRegistry()
    collector = metrics.register(tunnel, registry=registry)
    text = generate_latest(registry).decode()
    registry.unregister(collector)
    return text


def samples(text):
    """Parse a page: (name, labels without the device) -> value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "device"}
            found[sample.name, tuple(sorted(labels.items()))] = sample.value
    return found


def test_everything_that_is_counted_is_exported():
    with running() as tunnel:
        text, stats = page(tunnel), tunnel.stats()
    known = {
        *metrics.COUNTERS,
        *metrics.GAUGES,
        *metrics.BY_NAME,
        *metrics.HISTOGRAMS,
        *metrics.DERIVED,
        metrics.FAILURES,
    }
    assert len(known) > 40, "the walk found the tables"
    assert known <= set(stats), "every row is of a counter that exists"
    told = {name for name, _ in samples(text)}
    plain = {key for key, value in stats.items() if isinstance(value, int | float)} - known
    assert {f"t2s_{key}" for key in plain} <= told, "what the tables do not know comes under its own name"
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name


def test_figures_are_those_of_the_traffic():
    with running() as tunnel:
        told = samples(page(tunnel))
    assert told["t2s_up", ()] == 1
    assert told["t2s_flows", ()] == 1
    assert told["t2s_flows_opened_total", ()] == 2
    assert told["t2s_flows_refused_total", ()] == 1
    assert told["t2s_payload_bytes_total", (("direction", "up"),)] == 5
    assert told["t2s_payload_bytes_total", (("direction", "down"),)] == 5
    assert told["t2s_udp_sessions", ()] == 1
    assert told["t2s_dials_total", ()] == 2
    assert told["t2s_dial_failures_total", (("cause", "refused"), ("socks_code", "5"))] == 1
    assert told["t2s_packets_dropped_total", (("reason", "bad_version"),)] == 1
    assert told["t2s_pool_live_bytes", ()] >= 0
    assert told["t2s_build_info", (("version", t2s.__version__),)] == 1


def test_histograms_are_whole():
    with running() as tunnel:
        told = samples(page(tunnel))
    for name, labels, count in [
        ("t2s_handshake_seconds", (("phase", "connect"),), 2),
        ("t2s_handshake_seconds", (("phase", "reply"),), 1),
        ("t2s_handshake_seconds", (("phase", "first_byte"),), 1),
        ("t2s_event_loop_iteration_seconds", (), None),
    ]:
        buckets = {
            dict(of)["le"]: value
            for (sample, of), value in told.items()
            if sample == f"{name}_bucket" and set(labels) <= set(of)
        }
        counts = [buckets[bound] for bound in sorted(buckets, key=float)]
        assert len(counts) == 26
        assert counts == sorted(counts), "cumulative"
        assert counts[-1] == told[f"{name}_count", labels] == (count or counts[-1]) > 0
        total = told[f"{name}_sum", labels]
        assert 0 <= total < 5 * counts[-1]
        assert total <= sum(float(bound) * value for bound, value in _each(buckets) if value)


def _each(buckets):
    """Yield bound and count of each bucket by itself; nothing here takes longer than the last bound."""
    before = 0
    for bound in sorted(buckets, key=float):
        if buckets[bound] > before:
            yield (bound if bound != "+Inf" else "3600"), buckets[bound] - before
        before = buckets[bound]


def test_one_collector_has_several_tunnels():
    with running() as one:
        ours, theirs = device()
        with ours, theirs, Tunnel("direct://", tun_fd=theirs.fileno()) as other:
            registry = CollectorRegistry()
            metrics.register(one, other, registry=registry)
            [family] = [f for f in metrics.TunnelCollector(one, other).collect() if f.name == "t2s_flows"]
            told = {sample.labels["device"]: sample.value for sample in family.samples}
            assert told == {"inherited": 1, "inherited-2": 0}


def test_flows_are_a_frame_with_both_protocols():
    with running() as tunnel:
        first = tunnel.flows()
        again = tunnel.flows()
    flow, session = first.sort("protocol").to_dicts()
    assert (flow["protocol"], flow["client"], flow["client_port"]) == ("tcp", CLIENT, 4_001)
    assert (flow["target"], flow["target_port"], flow["state"]) == (TARGET, 443, "established")
    assert flow["bytes_up"] == 5
    assert flow["rate_up"] == pytest.approx(5e9 / flow["age_ns"])
    assert 0 < flow["connect_ns"] <= flow["reply_ns"] <= flow["first_byte_ns"] < flow["age_ns"]
    assert (session["protocol"], session["state"], session["bytes_up"]) == ("udp", None, 8)
    assert (session["target"], session["target_port"], session["client_port"]) == (TARGET, 5_000, 4_002)
    assert again.columns == first.columns


def get(host, port, path):
    with closing(http.client.HTTPConnection(host, port, timeout=5)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_server_serves_metrics_and_nothing_else(host):
    with running() as tunnel, MetricsServer(host, 0, tunnel) as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        status, text = get(host, port, "/metrics")
        assert status == 200
        assert samples(text)["t2s_flows", ()] == 1
        assert samples(text)["process_open_fds", ()] > 0
        assert get(host, port, "/")[0] == 404
        idle = [socket.create_connection((host, port), timeout=5) for _ in range(CLIENTS + 1)]
        try:
            assert idle[-1].recv(1) == b"", "one too many is sent away"
        finally:
            for connection in idle:
                connection.close()
        assert eventually(lambda: _status(host, port), lambda status: status == 200) == 200
        with pytest.raises(TunnelError, match=r"cannot serve metrics at .*Address already in use"):
            MetricsServer(host, port, tunnel)
    with pytest.raises(ConnectionRefusedError):
        get(host, port, "/metrics")


def _status(host, port):
    try:
        return get(host, port, "/metrics")[0]
    except (OSError, http.client.HTTPException):
        return None


@pytest.mark.parametrize("address", ["0", "0.0.0.0:0"])
def test_the_command_serves_them_and_stays_small(address):
    """From flag to page; an idle tunnel with metrics takes less than 40 MB; SIGTERM ends both."""
    ours, theirs = device()
    command = [sys.executable, "-c", "from t2s.cli import main; main()", "run", "--proxy", "direct://"]
    command += ["--tun-fd", str(theirs.fileno()), "--metrics", address]
    with (
        ours,
        theirs,
        subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True) as child,
    ):
        try:
            host, port = re.fullmatch(r"info: metrics at http://(.*):(\d+)/metrics\n", child.stderr.readline()).groups()
            if not ipaddress.ip_address(host).is_loopback:
                assert child.stderr.readline().startswith("warn: everybody who reaches")
            status, text = get("127.0.0.1", int(port), "/metrics")
            assert status == 200
            assert samples(text)["t2s_up", ()] == 1
            assert samples(text)["process_resident_memory_bytes", ()] < 40e6
            child.send_signal(signal.SIGTERM)
            assert child.wait(10) == 0
        finally:
            child.kill()
    with pytest.raises(ConnectionRefusedError):
        get("127.0.0.1", int(port), "/metrics")


def test_a_taken_port_ends_the_command_and_leaves_nothing():
    ours, theirs = device()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ["--proxy", "direct://", "--tun-fd", str(theirs.fileno()), "--metrics", str(port)]
        result = CliRunner().invoke(app, ["run", *flags])
        assert result.exit_code == 1
        assert f"cannot serve metrics at 127.0.0.1:{port}: Address already in use" in result.output


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("9100", ("127.0.0.1", 9100)),
        (9100, ("127.0.0.1", 9100)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("0.0.0.0:65535", ("0.0.0.0", 65_535)),
        ("[::]:0", ("::", 0)),
    ],
)
def test_addresses(value, found, tmp_path):
    file = tmp_path / "t2s.toml"
    file.write_text(f"proxy = 'direct://'\nmetrics = {value!r}\n", encoding="utf-8")
    assert load({"proxy": "direct://", "metrics": str(value)}, None, {}).metrics == found
    assert load({}, file, {}).metrics == found
    assert load({"proxy": "direct://"}, None, {}).metrics is None


@pytest.mark.parametrize(
    "value", ["", ":9100", "::1:9100", "name:1", "[127.0.0.1]:1", "65536", "-1", "1.2.3.4", "[::1]", "٣"]
)
def test_addresses_that_are_none(value):
    with pytest.raises(ConfigError, match=r"metrics: .* is no address"):
        load({"proxy": "direct://", "metrics": value}, None, {})
