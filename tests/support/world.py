"""Two network namespaces with a tunnel between them, and the check that ends each of its lives.

client: TUN device, `t2s run` - veth - server: proxies, and servers at addresses that the client reaches through the TUN
device alone. `World.tunnel` ends with that check: no flow, no session, no live buffer, no socket, exit code 0. Every
wait has an end, and what fails shows the tunnel's log. `missing` says what keeps all this from running here.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import faulty
import netns
from netns import PEERS, T2S, TARGETS, ip, process

WIRE = {"client": "10.203.0.1", "server": "10.203.0.2"}
NOWHERE = {"v4": "198.51.100.9", "v6": "2001:db8:5::9"}
"""Addresses to which the server's namespace knows no way."""
PROXY = f"{WIRE['server']}:1080"
PORT, TALK_PORT, CLOSED_PORT = "8000", "8001", "9"
FAULTY = 1_090
"""Port of the first proxy with a fault; they follow each other in the order of `faulty.KINDS`."""
PASSWORD = "open sesame"
STARTED_S = 15
ENDED_S = 15

STANDARD = {"0", "1", "2"}
OWN = Counter({"anon_inode": 2})
"""Descriptors of a tunnel: its probe's event and epoll."""
EACH = Counter({"anon_inode": 2, "/dev/net/tun": 1})
"""Descriptors of a worker: its queue, event and epoll."""

numbers = itertools.count()


def missing(*commands):
    """Return what keeps these tests from running here: `ip`, root, the device, or one of these commands."""
    for command in commands:
        if shutil.which(command) is None:
            return f"needs the command `{command}`"
    return netns.missing()


def wants(*commands):
    """Skip a test with the reason where it cannot run."""
    reason = missing(*commands)
    return pytest.mark.skipif(reason is not None, reason=str(reason))


def needs(*commands):
    """Mark tests as root's, and skip them with the reason where they cannot run."""
    return [pytest.mark.root, wants(*commands)]


def socks(kind):
    """Return the URL of a proxy with a fault."""
    return f"socks5://{WIRE['server']}:{FAULTY + faulty.KINDS.index(kind)}"


def until(condition, what, log, seconds=STARTED_S):
    """Wait until something holds; fail with the log when it does not. `what` may be a function that says what is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    pytest.fail(f"{what() if callable(what) else what}: {log.read_text(encoding='utf-8')}")


class Running:
    """A `t2s run` in the client's namespace."""

    def __init__(self, name, child, log, stats_file):
        self.name, self.child, self.log, self.stats_file = name, child, log, stats_file

    def text(self):
        return self.log.read_text(encoding="utf-8")

    def stats(self):
        """Return its counters, at most 0.2 seconds old."""
        return json.loads(self.stats_file.read_text(encoding="utf-8"))

    def descriptors(self):
        """Count its descriptors by kind."""
        kinds = Counter()
        for entry in Path(f"/proc/{self.child.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                kinds[str(entry.readlink()).split(":")[0]] += entry.name not in STANDARD
        return kinds

    def until(self, condition, what, seconds=STARTED_S):
        """Wait until its counters are as wanted."""
        until(lambda: condition(self.stats()), lambda: f"{what}: {self.stats()}", self.log, seconds)

    def resident(self):
        """Return its resident memory, KiB."""
        status = Path(f"/proc/{self.child.pid}/status").read_text(encoding="ascii")
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))

    def settled(self):
        """Wait until no flow, session, live buffer or socket is left."""

        def left():
            now = self.stats()
            keys = ("flows", "pending", "sessions", "buffered", "reassembly_bytes", "pool_live_bytes")
            held = {key: now[key] for key in keys if now[key]}
            return held, self.descriptors() - OWN - Counter({kind: now["workers"] * n for kind, n in EACH.items()})

        until(lambda: not any(left()), lambda: f"{self.name} keeps {left()}", self.log, ENDED_S)

    def end(self):
        """End it in peace and look at what it leaves."""
        assert self.child.poll() is None, self.text()
        self.settled()
        self.child.send_signal(signal.SIGTERM)
        assert self.child.wait(8) == 0, self.text()
        last = self.stats()
        assert (last["flows"], last["sessions"], last["pool_live_bytes"], last["timers"]) == (0, 0, 0, 0), last
        assert PASSWORD not in self.text()


class World:
    """Both namespaces, with what stands in them."""

    def __init__(self, folder, stack):
        self.folder, self.stack = folder, stack
        self.client, self.server = (f"t2s-{end}-{os.getpid()}-{next(numbers)}" for end in ("client", "server"))
        for name in (self.client, self.server):
            done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False, timeout=10)
            if done.returncode:
                pytest.skip(f"cannot make network namespaces: {done.stderr.strip()}")
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
            # Churn leaves a port in TIME-WAIT for a minute for each connection.
            self.run(name, "sh", "-c", "echo 2000 65000 > /proc/sys/net/ipv4/ip_local_port_range")
        ip("-n", self.client, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", self.server)
        for name, address in ((self.client, WIRE["client"]), (self.server, WIRE["server"])):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", name, "address", "add", f"fd00:203::{address[-1]}/64", "dev", "wire", "nodad")
            ip("-n", name, "link", "set", "wire", "up")
        ip("-n", self.server, "address", "add", f"{TARGETS['v4']}/32", "dev", "lo")
        ip("-n", self.server, "address", "add", f"{TARGETS['v6']}/128", "dev", "lo", "nodad")
        (folder / "credentials").write_text(f"alice:{PASSWORD}\n", encoding="utf-8")
        ip("-n", self.server, "route", "add", "unreachable", f"{NOWHERE['v4']}/32")
        ip("-n", self.server, "-6", "route", "add", "unreachable", f"{NOWHERE['v6']}/128")
        self.serve("serve", [*PEERS, "serve", PORT, *TARGETS.values()], "ready")
        self.serve("talk", [*PEERS, "talk", TALK_PORT, *TARGETS.values()], "ready")
        self.serve("proxy", [*T2S, "proxy", "--listen", PROXY, "--user", "alice"], "listening at")

    def serve(self, name, command, sign):
        """Run a server in the server's namespace until this world ends; it is there once its log says so."""
        log = self.folder / f"{name}.log"
        child = self.stack.enter_context(process(self.server, command, log, {"T2S_PROXY_PASSWORD": PASSWORD}))
        until(lambda: sign in log.read_text(encoding="utf-8"), f"{name} did not start", log)
        assert child.poll() is None, log.read_text(encoding="utf-8")
        return child

    def start(self, name, command, port):
        """Run a server that says nothing; it is there once it listens at a port of the server's namespace."""
        self.serve(name, command, "")
        log = self.folder / f"{name}.log"
        listening = ["ss", "-Hltn", f"sport = {port}"]
        until(lambda: self.run(self.server, *listening), f"{name} does not listen", log)

    @staticmethod
    def run(namespace, *command, stdin=None, timeout=30):
        """Run a command in a namespace and return what it says."""
        full = ["ip", "netns", "exec", namespace, *map(str, command)]
        done = subprocess.run(full, input=stdin, capture_output=True, text=True, check=False, timeout=timeout)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def ask(self, command, *arguments, timeout=60):
        """Run one of `peers` as a client and return what it says."""
        return json.loads(self.run(self.client, *PEERS, command, *arguments, timeout=timeout))

    @contextmanager
    def asking(self, command, *arguments):
        """Run one of `peers` as a client beside other things; ends it if it still runs."""
        full = ["ip", "netns", "exec", self.client, *PEERS, command, *map(str, arguments)]
        with subprocess.Popen(
            full, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            try:
                yield child
            finally:
                child.kill()

    @contextmanager
    def holding(self, command, *arguments):
        """Run a client of `peers` that says when it holds what it was told to; then kill it without a word."""
        with self.asking(command, *arguments) as child:
            assert child.stdout.readline() == "holding\n", child.stderr.read()
            yield child

    @contextmanager
    def rules(self, namespace, text):
        """Put nftables rules, the chains of one table, into a namespace for a while."""
        self.run(namespace, "nft", "-f", "-", stdin=f"table inet faults {{\n{text}\n}}\n")
        try:
            yield
        finally:
            self.run(namespace, "nft", "delete", "table", "inet", "faults")

    def has_device(self, name):
        command = ["ip", "-n", self.client, "link", "show", name]
        return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0

    def route(self, name):
        """Give a device addresses, and the routes to all targets."""
        ip("-n", self.client, "address", "add", "10.204.0.1/24", "dev", name)
        ip("-n", self.client, "address", "add", "fd00:204::1/64", "dev", name, "nodad")
        ip("-n", self.client, "link", "set", name, "up")
        ip("-n", self.client, "route", "replace", "198.51.100.0/24", "dev", name)
        ip("-n", self.client, "-6", "route", "replace", "2001:db8:5::/64", "dev", name)

    @contextmanager
    def tunnel(self, name, *arguments, proxy=f"socks5://{PROXY}", login=True, ends=True):
        """Run `t2s run`; unless the test ends it itself (`ends=False`), its end is looked at."""
        log, stats_file = self.folder / f"{name}.log", self.folder / f"{name}.json"
        stats_file.unlink(missing_ok=True)
        flags = ["--proxy", proxy, "--tun", name, "--stats-interval", "0.2", "--stats-file", str(stats_file)]
        if login:
            flags += ["--credentials-file", str(self.folder / "credentials")]
        flags += ["--udp-idle-timeout", "2"]
        with process(self.client, [*T2S, "run", *flags, *map(str, arguments)], log, spoken=False) as child:
            this = Running(name, child, log, stats_file)
            until(lambda: stats_file.exists() or child.poll() is not None, "no device", log)
            assert child.poll() is None, this.text()
            self.route(name)
            yield this
            if ends:
                this.end()
        assert not self.has_device(name)


@contextmanager
def make(folder):
    """Make a world; at the end nothing is left of it."""
    with ExitStack() as stack:
        yield World(folder, stack)
