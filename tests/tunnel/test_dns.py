"""DNS through the tunnel, in two network namespaces of its own.

client: TUN device with the default route, `t2s run` - veth - server: `t2s proxy`, an HTTP proxy, HTTP and UDP echo, a
name server. Names exist in the server's hosts file alone, so that only a proxy can resolve them. Needs root, `ip` and
/dev/net/tun, else skips and says why.
"""

import ipaddress
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import dns_peers
import peers
from netns import PEERS, T2S, ip, missing, process, until

CLIENT, SERVER = f"t2s-dns-c-{os.getpid()}", f"t2s-dns-s-{os.getpid()}"
TARGETS = ["198.51.100.1", "2001:db8:5::1"]
NAME_SERVER = "198.51.100.53"
NOBODY = ["192.0.2.99", "192.0.2.98"]
SOCKS, HTTP = "socks5://10.205.0.2:1080", "http://10.205.0.2:8080"
PORT = "8000"
SIZE = 1_000_000
HOSTS = f"""127.0.0.1 localhost
{TARGETS[0]} www.t2s.test both.t2s.test {"long." * 30}t2s.test
{TARGETS[1]} six.t2s.test
"""
LONG = f"{'long.' * 30}t2s.test"
DNS_PEERS = [sys.executable, str(Path(dns_peers.__file__))]
V4, V6 = ipaddress.ip_network("198.18.0.0/15"), ipaddress.ip_network("fc00::/18")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def client(script, command, *arguments):
    """Run a client in its namespace and return what it says."""
    full = ["ip", "netns", "exec", CLIENT, *script, command, *map(str, arguments)]
    done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def dns(command, *arguments):
    return client(DNS_PEERS, command, *arguments)


def fetch(host):
    return client(PEERS, "download", host, PORT, SIZE) == peers.digest(SIZE)


@contextmanager
def tunnel(folder, proxy, *flags):
    """Run `t2s run` in the client's namespace, with everything but the way to the proxy led into it."""
    log = folder / "tunnel.log"
    with process(CLIENT, [*T2S, "run", "--proxy", proxy, "--tun", "t2s0", *flags], log) as child:
        show = ["ip", "-n", CLIENT, "link", "show", "t2s0"]
        until(
            lambda: child.poll() is not None or not subprocess.run(show, capture_output=True, check=False).returncode,
            "no device",
            log,
        )
        assert child.poll() is None, log.read_text(encoding="utf-8")
        ip("-n", CLIENT, "address", "add", "10.206.0.1/24", "dev", "t2s0")
        ip("-n", CLIENT, "address", "add", "fd00:206::1/64", "dev", "t2s0", "nodad")
        ip("-n", CLIENT, "link", "set", "t2s0", "up")
        ip("-n", CLIENT, "route", "replace", "default", "dev", "t2s0")
        ip("-n", CLIENT, "-6", "route", "replace", "default", "dev", "t2s0")
        yield log
        assert child.poll() is None, log.read_text(encoding="utf-8")
        child.terminate()
        assert child.wait(8) == 0, log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Make both namespaces, with proxies and servers; the client's resolver is the tunnel's."""
    folder = tmp_path_factory.mktemp("dns")
    files = {CLIENT: {"resolv.conf": "nameserver 198.18.0.1\noptions timeout:2 attempts:3\n"}}
    files[SERVER] = {"hosts": HOSTS, "resolv.conf": "nameserver 127.0.0.1\n"}
    with ExitStack() as stack:
        for name, texts in files.items():
            done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False, timeout=10)
            if done.returncode:
                pytest.skip(f"cannot make network namespaces: {done.stderr.strip()}")
            stack.callback(ip, "netns", "delete", name)
            place = Path("/etc/netns") / name
            stack.callback(shutil.rmtree, place)
            place.mkdir(parents=True)
            for file, text in texts.items():
                (place / file).write_text(text, encoding="utf-8")
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", CLIENT, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", SERVER)
        for name, end in ((CLIENT, 1), (SERVER, 2)):
            ip("-n", name, "address", "add", f"10.205.0.{end}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
        for address in (*TARGETS, NAME_SERVER):
            ip("-n", SERVER, "address", "add", address, "dev", "lo")
        commands = {
            "serve": ([*PEERS, "serve", PORT, *TARGETS], "ready"),
            "names": ([*DNS_PEERS, "name_server", NAME_SERVER, "10.205.0.2"], "ready"),
            "http": ([*DNS_PEERS, "http_proxy", "10.205.0.2", "8080"], "ready"),
            "socks": ([*T2S, "proxy", "--listen", "10.205.0.2:1080"], "listening at"),
        }
        for name, (command, sign) in commands.items():
            log = folder / f"{name}.log"
            stack.enter_context(process(SERVER, command, log))
            until(lambda log=log, sign=sign: sign in log.read_text(encoding="utf-8"), f"{name} did not start", log)
        yield folder


@pytest.fixture
def fake(world):
    """Run a tunnel with fake addresses."""
    with tunnel(world, SOCKS, "--dns", "fake-ip", "--dns-server", NAME_SERVER) as log:
        yield log


def addresses_of(name):
    """Return the two fake addresses that the system's resolver finds."""
    found = dns("resolve", name)
    assert len(found) == 2, found
    v4, v6 = sorted(map(ipaddress.ip_address, found), key=lambda address: address.version)
    assert v4 in V4
    assert v6 in V6
    return str(v4), str(v6)


def test_names_are_dialled_by_name(fake):
    said = "name server at 198.18.0.1, fc00::1"
    until(lambda: said in fake.read_text(encoding="utf-8"), "the log does not tell where to ask", fake)
    assert fetch("www.t2s.test")
    assert fetch("six.t2s.test"), "an IPv4 client of a name that has an IPv6 address alone"
    for address in addresses_of("both.t2s.test"):
        assert fetch(address)
    assert client(PEERS, "connect", "none.t2s.test", PORT) == "OSError", "the proxy knows no such name"
    assert fetch(TARGETS[0]), "an address that is not fake"


@pytest.mark.parametrize("name", ["www.t2s.test", "six.t2s.test", LONG])
def test_datagrams_go_by_name_and_come_back_from_the_fake_address(fake, name):
    assert fake.exists()
    for address in addresses_of(name):
        sizes = [1, 1_400, 8_000]
        assert client(PEERS, "udp", address, PORT, *sizes) == sizes
    assert client(PEERS, "udp", TARGETS[0], PORT, 9) == [9]


def test_questions_of_other_kinds(fake):
    assert fake.exists()
    v4, _ = addresses_of("www.t2s.test")
    assert dns("ask", "198.18.0.1", "www.t2s.test", "A") == [0, v4]
    assert dns("ask", "fc00::1", "WWW.t2s.TEST", "A") == [0, v4]
    assert dns("ask", "198.18.0.1", ipaddress.ip_address(v4).reverse_pointer, "PTR") == [0, "www.t2s.test"]
    assert dns("ask", "198.18.0.1", "1.0.18.198.in-addr.arpa", "PTR") == [3]
    assert dns("ask", "198.18.0.1", "www.t2s.test", "TXT") == [0, dns_peers.TEXT.decode()]
    assert dns("ask", "198.18.0.1", "www.t2s.test", "HTTPS") == [0]
    assert dns("garbage", "198.18.0.1") == 1
    # Without hijacking other servers are asked as ever.
    assert dns("ask", NAME_SERVER, "www.t2s.test", "A") == [0, dns_peers.ADDRESS]
    assert dns("ask_stream", NAME_SERVER, "www.t2s.test", "A") == [0, dns_peers.ADDRESS]
    assert dns("ask_stream", "198.18.0.1", "www.t2s.test", "A") == "ConnectionRefusedError"


def test_fake_addresses_without_a_name_lead_nowhere(fake):
    assert fake.exists()
    for address in ("198.18.77.77", "198.19.255.255", "fc00::77:77", "198.18.0.1"):
        assert client(PEERS, "connect", address, PORT) == "OSError", address
        assert dns("send_to_nobody", address, PORT) == "ConnectionRefusedError", address


def test_a_hijacker_answers_for_everybody(world):
    with tunnel(world, SOCKS, "--dns", "fake-ip", "--dns-hijack", "--fake-ip-v6", "off"):
        code, address = dns("ask", NOBODY[0], "www.t2s.test", "A")
        assert (code, ipaddress.ip_address(address) in V4) == (0, True)
        assert dns("ask", NAME_SERVER, "www.t2s.test", "A") == [0, address]
        assert dns("ask", NOBODY[0], "www.t2s.test", "AAAA") == [0]
        assert dns("ask", NOBODY[0], "www.t2s.test", "TXT") == [0]
        assert dns("ask_stream", NOBODY[0], "www.t2s.test", "A") == "ConnectionRefusedError"
        assert fetch(address)


@pytest.mark.parametrize("mode", ["direct", "over-tcp"])
def test_queries_travel_to_who_was_asked(world, mode):
    with tunnel(world, SOCKS, "--dns", mode):
        assert dns("ask", NAME_SERVER, "www.t2s.test", "A") == [0, dns_peers.ADDRESS]


@pytest.mark.parametrize("mode", ["direct", "over-tcp"])
@pytest.mark.parametrize("proxy", [SOCKS, HTTP, "direct://"])
def test_hijacked_queries_go_to_the_server_and_seem_answered_by_who_was_asked(world, mode, proxy):
    server = "10.205.0.2" if proxy == "direct://" else NAME_SERVER
    with tunnel(world, proxy, "--dns", mode, "--dns-hijack", "--dns-server", server):
        for nobody in (NOBODY[0], "2001:db8:9::1"):
            assert dns("ask", nobody, "www.t2s.test", "A") == [0, dns_peers.ADDRESS]
        assert dns("ask_twice", *NOBODY, "www.t2s.test") == [[1, NOBODY[0]], [2, NOBODY[1]]]
        assert dns("ask_stream", NOBODY[0], "www.t2s.test", "TXT") == [0, dns_peers.TEXT.decode()]


def test_a_proxy_without_udp_is_told_names_too(world):
    with tunnel(world, HTTP, "--dns", "fake-ip"):
        assert fetch("www.t2s.test")
        assert f"www.t2s.test:{PORT}" in (world / "http.log").read_text(encoding="utf-8")
        v4, _ = addresses_of("www.t2s.test")
        assert dns("send_to_nobody", v4, PORT) == "ConnectionRefusedError"


def test_a_command_of_its_own_is_answered_by_the_tunnel(world):
    assert world.exists()
    execute = [*T2S, "exec", "--proxy", SOCKS, "--dns", "fake-ip", "--"]
    found = client([*execute, *DNS_PEERS], "resolve", "www.t2s.test")
    assert any(ipaddress.ip_address(address) in V4 for address in found), found
    assert client([*execute, *PEERS], "download", "www.t2s.test", PORT, SIZE) == peers.digest(SIZE)


@pytest.mark.parametrize("proxy", ["203.0.113.9:1080", "10.205.0.2:9"])
def test_a_proxy_that_is_not_there_refuses_datagrams(world, proxy):
    """The first address fails at once, the second a little later; neither is dialled again and again."""
    ip("-n", CLIENT, "route", "replace", "unreachable", "203.0.113.9/32")
    with tunnel(world, f"socks5://{proxy}", "--dns", "fake-ip"):
        for host in (TARGETS[0], addresses_of("www.t2s.test")[0]):
            assert dns("send_to_nobody", host, PORT) == "ConnectionRefusedError"


def test_counters_and_flows_tell_names_and_nothing_is_left(world):
    """From Python: the frame has the name, the pool of eight addresses turns over, and no buffer stays."""
    code = f"""
import os, socket, subprocess, sys, time, t2s, polars
sys.path.insert(0, {str(Path(dns_peers.__file__).parent)!r})
from dns_peers import ask
polars.DataFrame(dict(a=[1]))
def count():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
settings = dict(tun="py0", dns="fake-ip", fake_ip_v4="10.99.0.0/29", fake_ip_v6="off", dns_listen="10.99.0.6")
before = None
for _ in range(3):
    with t2s.Tunnel("{SOCKS}", **settings) as tunnel:
        for command in ("address add 10.206.9.1/24 dev py0", "route replace 10.99.0.0/29 dev py0"):
            subprocess.run(["ip", *command.split()], check=True)
        [code, address] = ask("10.99.0.6", "www.t2s.test", "A")
        with socket.create_connection((address, {PORT}), timeout=5), socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((address, {PORT}))
            sock.send(b"hello")
            assert sock.recv(10) == b"hello"
            rows = [row for row in tunnel.flows().to_dicts() if row["target_port"] == {PORT}]
            assert sorted(row["protocol"] for row in rows) == ["tcp", "udp"], rows
            assert all((row["target"], row["domain"]) == (address, "www.t2s.test") for row in rows), rows
        given = [ask("10.99.0.6", f"n{{n}}.t2s.test", "A")[1] for n in range(20)]
        assert len(set(given)) == 5 and "10.99.0.6" not in given, given
        try:
            socket.create_connection(("10.99.0.0", {PORT}), timeout=5)
            raise SystemExit("connected")
        except OSError:
            pass
        stats = tunnel.stats()
        wanted = dict(fake_names=5, fake_evicted=16, dns_streams_refused=0, dns_answered=stats["dns_queries"])
        assert {{key: stats[key] for key in wanted}} == wanted, stats
        assert stats["fake_unknown"] >= 1 and stats["dns_queries"] >= 21, stats
    stats = tunnel.stats()
    assert (stats["pool_live_bytes"], stats["flows"]) == (0, 0), stats
    for _ in range(50):  # a joined thread stands in /proc for a moment longer
        if count() == before:
            break
        time.sleep(0.01)
    before = before or count()
    assert count() == before, (count(), before)
"""
    done = subprocess.run(
        ["ip", "netns", "exec", CLIENT, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert world.exists()
