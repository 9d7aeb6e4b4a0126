"""`t2s run --auto-route`, `t2s down` and `--user`: what is led where, and that all of it goes again.

The first part needs nothing; the second runs in two network namespaces of its own and needs root.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import pytest

import netns
import peers
from netns import CLIENT_END, OTHERS, PEERS, PORT, PROXY, T2S, TARGETS, ip, process, says, until, watching
from t2s import ConfigError, Tunnel, TunnelError
from t2s.tunnel import route_settings, routes
from t2s.tunnel.route_guard import RouteGuard
from t2s.tunnel.route_settings import RouteSettings, is_here
from t2s.tunnel.settings import load
from t2s.tunnel.ssh_sessions import Connection, SshSessions, scan

CLIENT, SERVER = f"t2s-rc-{os.getpid()}", f"t2s-rs-{os.getpid()}"
NONE = {"fwmark": None, "exclude": (), "addresses": (), "families": "both", "force": False}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"fwmark": 0}, "fwmark: 0"),
        ({"exclude": ["10.0.0.1/8"]}, "route_exclude: 10.0.0.1/8 has host bits set"),
        ({"exclude": ["example.org"]}, "route_exclude: 'example.org'"),
        ({"addresses": ["10.0.0.300"]}, "address: '10.0.0.300'"),
        ({"addresses": ["10.0.0.1", "10.0.0.2/30"]}, "are both IPv4"),
    ],
)
def test_routes_that_cannot_be(keys, told):
    with pytest.raises(ConfigError, match=told):
        RouteSettings.read(**(NONE | keys))


def test_an_address_replaces_the_default_of_its_family():
    settings = RouteSettings.read(**(NONE | {"addresses": ["10.7.0.1/30"]}))
    assert sorted(map(str, settings.addresses)) == ["10.7.0.1/30", route_settings.ADDRESSES[1]]
    assert (settings.fwmark, settings.carries(socket.AF_INET6)) == (route_settings.FWMARK, True)
    assert not RouteSettings.read(**(NONE | {"families": "ipv4"})).carries(socket.AF_INET6)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_rules_end_in_the_tunnel_after_all_exceptions(family):
    settings = RouteSettings.read(**(NONE | {"exclude": ["10.0.0.0/8", "2001:db8::/32"]}))
    sessions = SshSessions(ports=(22,), operators=(ip_address("192.0.2.7"), ip_address("2001:db8::7")))
    rules = list(routes._rules(family, settings, sessions, 2))
    assert (rules[-2]["table"], rules[0]["action"]) == (routes.TABLE, routes._NOP)
    assert (rules[-1]["action"], rules[-1]["priority"]) == (routes._UNREACHABLE, routes.NOWHERE + 2)
    order = [rule["priority"] for rule in rules[1:]]
    assert order == sorted(order)
    jumps = [rule for rule in rules if rule.get("action") == routes._GOTO]
    assert {rule["goto"] for rule in jumps} == {rules[0]["priority"]}
    own = {"192.0.2.7", "10.0.0.0"} if family == socket.AF_INET else {"2001:db8::7", "2001:db8::"}
    assert own <= {rule["dst"] for rule in jumps if "dst" in rule}
    assert [rule["fwmark"] for rule in jumps if "fwmark" in rule] == [route_settings.FWMARK]


def test_settings_of_routes(tmp_path):
    file = tmp_path / "t2s.toml"
    file.write_text('proxy = "direct://"\nauto_route = true\nroute_exclude = ["10.0.0.0/8"]\n', encoding="utf-8")
    found = load({}, file, {})
    assert (found.tunnel.fwmark, [str(item) for item in found.routes.exclude]) == (
        route_settings.FWMARK,
        ["10.0.0.0/8"],
    )
    assert load({"fwmark": 5}, file, {}).tunnel.fwmark == 5
    found = load({"auto_route": False}, file, {})
    assert (found.routes, found.tunnel.fwmark) == (None, None)
    needless = {"route_exclude": ["10.0.0.0/8"], "address": ["10.0.0.1"], "families": "ipv4", "force": True}
    for key, value in needless.items():
        with pytest.raises(ConfigError, match=f"{key}: needs auto_route"):
            load({"proxy": "direct://", key: value}, None, {})
    with pytest.raises(ConfigError, match='did you mean "ipv6"'):
        load({"proxy": "direct://", "auto_route": True, "families": "ipv5"}, None, {})
    for proxy in ("socks5://127.0.0.1:9050", "socks5://a:b@localhost", "http://0.0.0.0:8080"):
        with pytest.raises(ConfigError, match="the proxy is on this machine"):
            load({"proxy": proxy, "auto_route": True}, None, {})
        given = {"proxy": proxy, "auto_route": True, "route_exclude": ["192.0.2.0/24"]}
        assert load(given, None, {}).routes is not None
    assert not any(map(is_here, ("direct://", "socks5://192.0.2.1:1080", "socks5://proxy.example:1080")))
    file.write_text('proxy = "direct://"\nroute_exclude = [10]\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=":2: route_exclude: must be a list of strings"):
        load({}, file, {})


def entry(proc, process, comm, *, parent=0, sockets=(), environ=b""):
    folder = proc / str(process)
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text(f"{comm}\n", encoding="utf-8")
    (folder / "stat").write_text(f"{process} (a) b)) S {parent} 0 0", encoding="utf-8")
    (folder / "environ").write_bytes(environ)
    for number, inode in enumerate(sockets):
        (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")


def tcp(*rows):
    """Write connections as /proc/net/tcp of a little-endian machine has them."""
    lines = ["head"]
    for number, (local, port, peer, peer_port, state, inode) in enumerate(rows):
        ends = [
            "".join(raw[at : at + 4][::-1].hex() for at in range(0, len(raw), 4)).upper() + f":{end:04X}"
            for raw, end in ((ip_address(local).packed, port), (ip_address(peer).packed, peer_port))
        ]
        lines.append(f" {number}: {ends[0]} {ends[1]} {state} 0:0 0:0 0 0 0 {inode} 1")
    return "\n".join(lines) + "\n"


@pytest.mark.skipif(sys.byteorder != "little", reason="the sample is a little-endian machine's")
def test_connections_that_came_in_are_found(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(
        tcp(
            ("0.0.0.0", 22, "0.0.0.0", 0, "0A", 1),
            ("0.0.0.0", 80, "0.0.0.0", 0, "0A", 2),
            ("10.0.0.1", 22, "192.0.2.7", 5000, "01", 3),
            ("10.0.0.1", 80, "192.0.2.8", 5001, "01", 4),
            ("10.0.0.1", 80, "127.0.0.1", 5002, "01", 5),
            ("10.0.0.1", 40000, "192.0.2.9", 443, "01", 6),  # went out
            ("10.0.0.1", 80, "192.0.2.10", 5003, "06", 7),  # is over
        ),
        encoding="ascii",
    )
    (tmp_path / "net" / "tcp6").write_text(
        tcp(("::", 80, "::", 0, "0A", 8), ("::ffff:10.0.0.1", 80, "::ffff:192.0.2.11", 5004, "01", 9)), encoding="ascii"
    )
    entry(tmp_path, 100, "sshd", sockets=(1, 3))
    entry(tmp_path, 101, "nginx", sockets=(2, 4))
    entry(tmp_path, 200, "init", environ=b"A=1\0SSH_CONNECTION=2001:db8::9 6000 2001:db8::1 2222\0")
    entry(tmp_path, 300, "sh", parent=200, environ=b"SSH_CONNECTION=nonsense\0")
    found = scan(tmp_path, 300)
    assert found.ports == (22,)
    assert found.operators == (ip_address("2001:db8::9"),)
    assert [str(item) for item in found.unprotected] == ["192.0.2.8 to port 80", "192.0.2.11 to port 80"]
    entry(tmp_path, 400, "sh", environ=b"SSH_CONNECTION=127.0.0.1 5002 10.0.0.1 80\0")
    assert scan(tmp_path, 400).forwarded == (Connection(ip_address("127.0.0.1"), 5002, 80, 5),)


def test_the_rules_into_the_tunnel_go_before_the_exceptions():
    class Kernel:
        def __init__(self):
            self.left = [
                (4, routes.PROTOCOL),
                *((routes.PRIORITY + at, routes.PROTOCOL) for at in (9, 0, 1, 2, 3, 4, 5, 6)),
            ]
            self.gone = []

        def get_rules(self, family):
            assert family
            for at, protocol in self.left:
                values = {"FRA_PRIORITY": at, "FRA_PROTOCOL": protocol}
                yield SimpleNamespace(get_attr=values.get)

        def flush_rules(self, *, family, protocol, priority):
            assert (bool(family), protocol) == (True, routes.PROTOCOL)
            self.left.remove((priority, protocol))
            self.gone.append(priority - routes.PRIORITY)

        def get_routes(self, **_filter):
            return []

        def get_addr(self):
            return []

    kernel = Kernel()
    assert routes.remove(kernel) == 8
    assert kernel.gone == [6, 5, 4, 3, 2, 1, 0, 9], "the jumps lead somewhere as long as they stand"
    assert kernel.left == [(4, routes.PROTOCOL)]


def test_an_owner_who_takes_no_calls_is_told(monkeypatch):
    monkeypatch.setattr(routes, "LOCK", f"\0t2s-routes-test-{os.getpid()}")
    monkeypatch.setattr(routes, "ANSWER_S", 0.1)
    assert routes.owner() is None
    with socket.socket(socket.AF_UNIX) as stranger, socket.socket(socket.AF_UNIX) as caller:
        stranger.bind(routes.LOCK)
        stranger.listen(0)
        caller.connect(routes.LOCK)
        with pytest.raises(TunnelError, match="a process that cannot be seen from here"):
            routes.take_lock()


def test_the_guards_answers():
    def answer(write):
        ours, theirs = socket.socketpair()
        process = os.fork()
        if process == 0:
            ours.close()
            write(theirs)
            os._exit(0)
        theirs.close()
        guard = RouteGuard(ours, process)
        try:
            return guard.install("t2s0")
        finally:
            guard._reap()

    long = ["x" * 1_000] * 1_000
    assert answer(lambda pipe: pipe.sendall(json.dumps({"lines": long}).encode() + b"\n")) == long
    with pytest.raises(TunnelError, match="no way"):
        answer(lambda pipe: pipe.sendall(b'{"error": "no way"}\n'))
    # Dead before, in the middle of, or without an answer, with what it was told unread.
    for write in (socket.socket.close, lambda pipe: pipe.sendall(b'{"li'), lambda _: time.sleep(0.2)):
        with pytest.raises(TunnelError, match="the route guard has died"):
            answer(write)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# The second part: in namespaces.

in_namespaces = [pytest.mark.root, pytest.mark.skipif(netns.missing() is not None, reason=str(netns.missing()))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with netns.world(CLIENT, SERVER, tmp_path_factory.mktemp("routes")) as folder:
        (folder / "credentials").write_text("alice:open sesame\n", encoding="utf-8")
        (folder / "credentials").chmod(0o600)
        yield folder


SETTINGS = (
    "from t2s.tunnel.route_settings import RouteSettings; settings = RouteSettings.read("
    + ", ".join(f"{key}={value!r}" for key, value in NONE.items())
    + ")\n"
)
BETWEEN = {
    "killed with an answer unread": SETTINGS
    + """
import os, signal, time
from t2s import open_tun
from t2s.tunnel.route_guard import RouteGuard
reading, writing = os.pipe()
tunnel = os.fork()
if tunnel == 0:
    guard = RouteGuard.start(settings)
    guard._pipe.sendall(open_tun("t2s0")[1].encode())
    os.write(writing, str(guard._process).encode())
    signal.pause()
guard = int(os.read(reading, 20))
end = time.monotonic() + 10
while os.system("ip -6 rule | grep -q unreachable"):
    assert time.monotonic() < end
time.sleep(0.3)  # for the answer
os.kill(tunnel, signal.SIGKILL)
os.waitpid(tunnel, 0)
while os.path.exists(f"/proc/{guard}"):
    assert time.monotonic() < end
    time.sleep(0.02)
print("done")
""",
    "device gone meanwhile": SETTINGS
    + """
import os
from t2s import open_tun
from t2s.tunnel import route_settings, routes
from t2s.tunnel.ssh_sessions import SshSessions
fd, name, _ = open_tun("t2s0")
with routes.kernel() as ipr:
    routes.install(ipr, name, settings, SshSessions())
    class Kernel:
        device = fd
        def __getattr__(self, key):
            return getattr(ipr, key)
        def get_addr(self):
            held = list(ipr.get_addr())
            if self.device is not None:
                os.close(self.device)
                self.device = None
            return held
    assert routes.remove(Kernel()) > 10
print("done")
""",
}


def put_in_place():
    """Return every rule and route of the client that is not the kernel's own or the test's."""
    return [
        line
        for family in ("-4", "-6")
        for listing in (("rule", "show"), ("route", "show", "table", "all"))
        for line in ip("-n", CLIENT, family, *listing).splitlines()
        if "proto 116" in line
    ]


def guard_of(child):
    [guard] = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text(encoding="ascii").split()
    return int(guard)


@contextmanager
def tunnel(folder, *arguments, proxy=f"socks5://{PROXY}", env=None):
    """Run `t2s run --auto-route` in the client's namespace."""
    log = folder / "run.log"
    flags = ["--proxy", proxy, "--credentials-file", str(folder / "credentials"), "--tun", "t2s0", "--auto-route"]
    with process(CLIENT, [*T2S, "run", *flags, "--shutdown-timeout", "0.1", *arguments], log, env) as child:
        until(
            lambda: child.poll() is not None or "all traffic goes" in log.read_text(encoding="utf-8"), "no routes", log
        )
        yield child, log


@contextmanager
def running(folder, *arguments, **more):
    """The same, and it must run, and leave nothing behind when it is told to end."""
    with tunnel(folder, *arguments, **more) as (child, log):
        assert child.poll() is None, log.read_text(encoding="utf-8")
        guard = guard_of(child)
        yield child, log
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            assert child.wait(10) == 0, log.read_text(encoding="utf-8")
            assert put_in_place() == []
            assert not Path(f"/proc/{guard}").exists()


def client(command, *arguments):
    full = ["ip", "netns", "exec", CLIENT, *PEERS, command, *map(str, arguments)]
    done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def down():
    return subprocess.run(
        ["ip", "netns", "exec", CLIENT, *T2S, "down"], capture_output=True, text=True, check=False, timeout=30
    )


class TestInNamespaces:
    pytestmark = in_namespaces

    @pytest.mark.parametrize("proxy", [f"socks5://{PROXY}", "direct://"])
    def test_all_but_what_is_excluded_goes_through_the_tunnel(self, world, proxy):
        excluded = [flag for address in OTHERS.values() for flag in ("--route-exclude", address)]
        with (
            running(world, *excluded, proxy=proxy),
            watching(CLIENT, "t2s0", world / "tun.log") as into,
            watching(SERVER, "wire", world / "wire.log") as outside,
        ):
            for version in TARGETS:
                assert client("download", TARGETS[version], PORT, 300_000) == peers.digest(300_000)
                assert client("udp", TARGETS[version], PORT, 1, 1_400) == [1, 1_400]
                assert client("connect", OTHERS[version], PORT) == "connected"
            until(lambda: into() >= set(TARGETS.values()), "not into the tunnel", world / "tun.log")
            assert not into() & set(OTHERS.values())
            until(lambda: outside() >= set(OTHERS.values()), "not outside", world / "wire.log")
            # Without a proxy the tunnel's own packets go to the target, and not into the tunnel again.
            assert (outside() & set(TARGETS.values()) == set()) == proxy.startswith("socks5")

    def test_a_family_that_is_not_carried_goes_nowhere(self, world):
        with (
            running(world, "--families", "ipv4"),
            watching(SERVER, "wire", world / "wire.log") as outside,
        ):
            assert client("connect", TARGETS["v6"], PORT) == "OSError"  # no route to host, at once
            assert client("connect", TARGETS["v4"], PORT) == "connected"
            assert not outside() & {TARGETS["v6"], TARGETS["v4"]}
            assert client("connect", netns.SERVER_END6, PORT) == "ConnectionRefusedError", "local networks stay local"

    @pytest.mark.parametrize("families", ["both", "ipv4"])
    def test_an_ipv6_socket_that_is_bound_to_another_interface_leaks_nothing(self, world, families):
        code = (
            "import errno, socket; sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM);"
            "sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'wire');"
            f"print(errno.errorcode[sock.connect_ex(('{TARGETS['v6']}', 53))])"
        )
        with running(world, "--families", families):
            done = subprocess.run(
                ["ip", "netns", "exec", CLIENT, sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            assert done.stdout == "ENETUNREACH\n", done.stderr

    @pytest.mark.parametrize("remedy", ["guard", "down", "start"])
    def test_what_a_killed_tunnel_leaves_is_removed(self, world, remedy):
        ip("-n", CLIENT, "rule", "add", "to", "192.0.2.1", "table", "main", "priority", str(routes.PRIORITY + 3))
        try:
            with running(world) as (child, log):
                guard = guard_of(child)
                if remedy != "guard":
                    os.kill(guard, signal.SIGKILL)
                child.kill()
                child.wait(5)
                if remedy == "guard":
                    until(lambda: not put_in_place(), "the guard removes nothing", log)
            if remedy != "guard":
                assert put_in_place()
                assert client("connect", TARGETS["v4"], PORT) == "OSError", "what is left lets nothing leak"
            if remedy == "down":
                assert "leftover" in down().stdout
            if remedy == "start":
                with running(world):
                    assert client("connect", TARGETS["v4"], PORT) == "connected"
            assert put_in_place() == []
            assert client("connect", TARGETS["v4"], PORT) == "connected"
            assert "192.0.2.1" in ip("-n", CLIENT, "rule", "show"), "others' rules are left alone"
        finally:
            ip("-n", CLIENT, "rule", "del", "to", "192.0.2.1", "table", "main", "priority", str(routes.PRIORITY + 3))

    def test_a_start_waits_for_the_guard_of_a_tunnel_that_was_killed_just_now(self, world):
        with running(world) as (child, _):
            guard = guard_of(child)
            os.kill(guard, signal.SIGSTOP)
            child.kill()
            child.wait(5)
            later = threading.Timer(1.0, os.kill, (guard, signal.SIGCONT))
            later.start()
            with running(world):
                later.join()
                assert client("connect", TARGETS["v4"], PORT) == "connected"

    @pytest.mark.parametrize("case", ["killed with an answer unread", "device gone meanwhile"])
    def test_nothing_is_left_when_the_end_comes_in_between(self, world, case):
        done = subprocess.run(
            ["ip", "netns", "exec", CLIENT, sys.executable, "-c", BETWEEN[case]],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
        assert put_in_place() == []
        assert down().stdout == "removed 0 leftover rules, routes and addresses\n"
        assert world.exists()

    def test_a_tunnel_whose_guard_died_says_so(self, world):
        with running(world) as (child, log):
            os.kill(guard_of(child), signal.SIGKILL)
            assert client("connect", TARGETS["v4"], PORT) == "connected"
            child.send_signal(signal.SIGTERM)
            assert child.wait(10) == 1
            assert "the route guard has died" in log.read_text(encoding="utf-8")
        assert down().returncode == 0
        assert put_in_place() == []

    def test_ipv6_that_is_switched_off_is_no_hindrance(self, world):
        switch = ["ip", "netns", "exec", CLIENT, "sysctl", "-qw"]
        try:
            subprocess.run([*switch, "net.ipv6.conf.default.disable_ipv6=1"], check=True, timeout=10)
            with running(world):
                assert client("connect", TARGETS["v4"], PORT) == "connected"
                assert client("connect", TARGETS["v6"], PORT) == "OSError"
        finally:
            subprocess.run([*switch, "net.ipv6.conf.default.disable_ipv6=0"], check=True, timeout=10)

    def test_one_owner_at_a_time_and_down_ends_it(self, world):
        with running(world) as (child, log):
            second = subprocess.run(
                ["ip", "netns", "exec", CLIENT, *T2S, "run", "--proxy", "direct://", "--auto-route"],
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            assert second.returncode == 1
            assert "leads traffic into a tunnel here already" in second.stderr
            assert client("connect", TARGETS["v4"], PORT) == "connected"
            done = down()
            assert (done.returncode, done.stdout) == (0, f"ended the tunnel of process {child.pid}\n"), done.stderr
            assert child.wait(5) == 0, log.read_text(encoding="utf-8")
        assert put_in_place() == []
        assert down().stdout == "removed 0 leftover rules, routes and addresses\n"

    def test_a_stranger_with_the_owners_name_ends_nobody(self, world):
        code = (
            f"import os, socket; os.setuid(65534); lock = socket.socket(socket.AF_UNIX); lock.bind({routes.LOCK!r});"
            "lock.listen(); print('ready', flush=True); peer, _ = lock.accept();"
            "peer.send(str(os.getppid()).encode()); lock.accept()"
        )
        log = world / "stranger.log"
        with process(CLIENT, [sys.executable, "-c", code], log) as stranger:
            until(says(log, "ready"), "no stranger", log)
            done = down()
            assert done.returncode == 1
            assert f"process {stranger.pid} of user 65534 has the routes" in done.stderr
            assert stranger.poll() is None

    @contextmanager
    def connection(self, folder, name, port):
        """Hold a connection from far away into the client, to a server with that process name."""
        log = folder / "incoming.log"
        with process(CLIENT, [*netns.HELPERS, "incoming", name, port], log):
            until(says(log, "ready"), "no server", log)
            full = ["ip", "netns", "exec", SERVER, *netns.HELPERS, "operate", TARGETS["v4"], CLIENT_END, port]
            with subprocess.Popen(full, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as far:
                try:
                    assert far.stdout.readline() == "ready\n"
                    until(says(log, "accepted"), "no connection", log)

                    def alive(word):
                        far.stdin.write(f"{word}\n")
                        far.stdin.flush()
                        return far.stdout.readline() == f"{word}\n"

                    assert alive("before")
                    yield alive
                finally:
                    far.kill()

    def test_ssh_goes_on(self, world):
        with self.connection(world, "sshd", "2222") as alive, running(world):
            assert client("connect", TARGETS["v4"], PORT) == "connected"
            assert alive("while the tunnel runs")

    def test_the_operators_address_is_kept(self, world):
        env = {"SSH_CONNECTION": f"{TARGETS['v4']} 5000 {CLIENT_END} 22"}
        with running(world, env=env), watching(SERVER, "wire", world / "wire.log") as outside:
            assert client("connect", TARGETS["v4"], PORT) == "connected"
            until(lambda: TARGETS["v4"] in outside(), "not outside", world / "wire.log")

    def test_other_connections_are_not_cut_without_force(self, world):
        with self.connection(world, "server", "2223") as alive:
            with tunnel(world) as (child, log):
                assert child.wait(10) == 1
                assert f"would be cut: {TARGETS['v4']} to port 2223" in log.read_text(encoding="utf-8")
                assert put_in_place() == []
            assert alive("after the refusal")
            with running(world, "--route-exclude", f"{TARGETS['v4']}/32"):
                assert alive("while it is excluded")
            with running(world, "--force") as (_, log):
                until(says(log, f"cut, as --force says: {TARGETS['v4']} to port 2223"), "no warning", log)

    @pytest.mark.parametrize("killed", [False, True])
    def test_a_strict_reverse_path_filter_is_loosened_and_comes_back(self, world, killed):
        def filter_(value=None):
            text = [] if value is None else ["-w", f"net.ipv4.conf.all.rp_filter={value}"]
            full = ["ip", "netns", "exec", CLIENT, "sysctl", "-n", *(text or ["net.ipv4.conf.all.rp_filter"])]
            return subprocess.run(full, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

        before = filter_()
        filter_(1)
        try:
            with running(world, proxy="direct://") as (child, _):
                assert filter_() == "2"
                assert client("connect", TARGETS["v4"], PORT) == "connected"
                if killed:
                    os.kill(guard_of(child), signal.SIGKILL)
                    child.kill()
                    child.wait(5)
            if killed:
                assert filter_() == "2"
                assert down().returncode == 0
            assert filter_() == "1"
        finally:
            filter_(before)

    def test_root_is_given_up(self, world):
        def status(process, *keys):
            for thread in Path(f"/proc/{process}/task").iterdir():
                lines = dict(
                    line.split(":", 1) for line in (thread / "status").read_text(encoding="utf-8").splitlines()
                )
                yield [lines[key].split() for key in keys]

        with running(world, "--user", "nobody", "--queues", "2") as (child, log):
            seen = list(status(child.pid, "Uid", "CapPrm", "CapEff", "CapInh", "CapAmb", "NoNewPrivs"))
            assert len(seen) >= 4, "main, two workers and the probe"
            for user, permitted, effective, inheritable, ambient, barred in seen:
                assert (user, barred) == (["65534"] * 4, ["1"])
                # CAP_NET_RAW, for the mark.
                assert (permitted, effective) == (["0000000000002000"], ["0000000000002000"])
                assert (inheritable, ambient) == (["0" * 16], ["0" * 16])
            assert client("connect", TARGETS["v4"], PORT) == "connected"
            child.send_signal(signal.SIGHUP)
            until(says(log, "not reloaded: credentials_file:"), "the unreadable file is not told", log)
            assert client("connect", TARGETS["v4"], PORT) == "connected"

    def test_threads_that_carry_packets_have_no_capabilities_even_as_root(self, world):
        log = world / "plain.log"
        with process(CLIENT, [*T2S, "run", "--proxy", "direct://", "--tun", "t2s1"], log) as child:
            until(says(log, "t2s1: mtu"), "no tunnel", log)

            def confined():
                names = {}
                for thread in Path(f"/proc/{child.pid}/task").iterdir():
                    text = (thread / "status").read_text(encoding="utf-8")
                    names[(thread / "comm").read_text(encoding="utf-8").strip()] = "CapEff:\t0000000000000000" in text
                return names.get("t2s-worker-0") and names.get("t2s-probe")

            until(confined, "threads with capabilities", log)


def test_an_unknown_user_is_refused_before_anything_is_opened():
    with pytest.raises(ConfigError, match='no user "nobody-of-that-name"'):
        Tunnel("direct://", user="nobody-of-that-name", tun_fd=99_999)
