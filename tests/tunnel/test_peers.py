"""`t2s run` beside programs that are not ours: dante, microsocks, curl and iperf3; and 1 GB each way."""

import hashlib
import json
import subprocess

import pytest

import peers
import world
from world import PORT, TALK_PORT, TARGETS, WIRE

pytestmark = world.needs()

GIGABYTE = 1_000_000_000
IPERF_PORT = 5_201
PROXIES = {
    "t2s": (f"socks5://{world.PROXY}", None),
    "microsocks": (f"socks5://{WIRE['server']}:1081", "microsocks"),
    "dante": (f"socks5://{WIRE['server']}:1082", "danted"),
}
DANTE = f"""
logoutput: stderr
internal: {WIRE["server"]} port = 1082
external: wire
socksmethod: none
clientmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0/0 to: 0/0 log: error }}
socks pass {{ from: 0/0 to: 0/0 log: error }}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with world.make(tmp_path_factory.mktemp("peers")) as made:
        yield made


@pytest.fixture(scope="module")
def digest():
    return peers.digest(GIGABYTE)


@pytest.fixture(scope="module")
def tunnel(place):
    with place.tunnel("t2s-peers") as tunnel:
        yield tunnel


@pytest.mark.parametrize("version", TARGETS)
def test_a_gigabyte_comes_down_whole(place, tunnel, digest, version):
    assert tunnel.child.poll() is None
    assert place.ask("download", TARGETS[version], PORT, GIGABYTE, timeout=120) == digest


@pytest.mark.parametrize("version", TARGETS)
def test_a_gigabyte_goes_up_whole(place, tunnel, digest, version):
    assert tunnel.child.poll() is None
    assert place.ask("upload", TARGETS[version], PORT, GIGABYTE, timeout=120) == digest


@world.wants("curl")
@pytest.mark.parametrize("url", [f"http://{TARGETS['v4']}:{PORT}", f"http://[{TARGETS['v6']}]:{PORT}"])
def test_curl_reads_and_writes_a_tenth(place, tunnel, url, tmp_path):
    assert tunnel.child.poll() is None
    size = GIGABYTE // 10
    got = hashlib.sha256()
    command = ["ip", "netns", "exec", place.client, "curl", "-sSg", "--max-time", "60"]
    with subprocess.Popen([*command, f"{url}/{size}"], stdout=subprocess.PIPE) as curl:
        for part in iter(lambda: curl.stdout.read(1 << 20), b""):
            got.update(part)
    assert (curl.returncode, got.hexdigest()) == (0, peers.digest(size))
    file = tmp_path / "body"
    with file.open("wb") as out:
        for part in peers.body(size):
            out.write(part)
    told = place.run(*[place.client, *command[4:], "--data-binary", f"@{file}", "-H", "Expect:", url], timeout=70)
    assert told == got.hexdigest()


@pytest.fixture(scope="module")
def iperf(place):
    """Run iperf3's server."""
    place.serve("iperf3", ["iperf3", "-s", "-p", str(IPERF_PORT), "--forceflush"], "listening")
    return place


def through(place, name):
    """Start a proxy, unless it is the one that runs anyway, and return its URL."""
    url, command = PROXIES[name]
    log = place.folder / f"{name}.log"
    if log.exists():
        return url
    if command == "microsocks":
        place.start(
            name, ["microsocks", "-i", WIRE["server"], "-p", "1081", "-u", "alice", "-P", world.PASSWORD], 1_081
        )
    elif command == "danted":
        config = place.folder / "danted.conf"
        config.write_text(DANTE, encoding="utf-8")
        place.start(name, ["danted", "-f", str(config)], 1_082)
    return url


@world.wants("iperf3")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=world.wants(*[command] if command else [])) for name, (_, command) in PROXIES.items()],
)
def test_iperf3_and_friends_through(place, iperf, name):
    """Both directions, eight streams, and UDP where the proxy carries it; a refused port stays refused."""
    with place.tunnel(f"t2s-{name}", proxy=through(place, name), login=name != "dante") as tunnel:
        for host in TARGETS.values():
            for flags in ([], ["-R"]):
                command = ["iperf3", "-J", "-c", host, "-p", IPERF_PORT, "-t", 1, "-P", 8, *flags]
                report = json.loads(iperf.run(place.client, *command, timeout=30))
                assert "error" not in report, report["error"]
                served = [stream["receiver"]["bytes"] > 0 for stream in report["end"]["streams"]]
                assert served == [True] * 8, report["end"]["streams"]
            assert place.ask("reach", host, world.CLOSED_PORT) == "ECONNREFUSED"
            assert place.ask("mice", host, TALK_PORT, 100, 5, 1_000)[0] == 100
            if name != "microsocks":  # which ends both directions with either
                assert place.ask("client_ends_first", host, TALK_PORT, 100_000, 0) == 100_000
        if "UDP: yes" in tunnel.text():
            sizes = [1, 1_000, 8_000]
            assert place.ask("udp", TARGETS["v4"], PORT, *sizes) == sizes
        else:
            assert name == "microsocks", tunnel.text()
            assert place.ask("refused_udp", TARGETS["v4"], PORT) == "ConnectionRefusedError"
