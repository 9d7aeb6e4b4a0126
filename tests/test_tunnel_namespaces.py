"""`t2s run` with real traffic, in two network namespaces of its own.

client: TUN device, `t2s run` - veth - server: `t2s proxy` with a password, HTTP and UDP echo at addresses that the
client reaches through the TUN device alone. Needs root, `ip` and /dev/net/tun, else skips and says why.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import peers

CLIENT, SERVER = f"t2s-client-{os.getpid()}", f"t2s-server-{os.getpid()}"
TARGETS = {"v4": "198.51.100.1", "v6": "2001:db8:5::1"}
PROXY = "10.203.0.2:1080"
PORT, CLOSED_PORT = "8000", "9"
DOWNLOAD, UPLOAD = 20_000_000, 10_000_000
DATAGRAMS = [1, 100, 1_400, 4_000, 8_000]
STARTED_S = 8
T2S = [sys.executable, "-c", "from t2s.cli import main; main()"]
PEERS = [sys.executable, str(Path(peers.__file__))]


def missing():
    """Return what keeps these tests from running here."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux"
    if shutil.which("ip") is None:
        return "needs the command `ip` (iproute2)"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"needs /dev/net/tun: {error.strerror}"
    return None


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@contextmanager
def process(namespace, command, log, env=None):
    """Run a command in a namespace; at the end it is gone, whatever happened."""
    with log.open("w", encoding="utf-8") as out:
        child = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command], stdout=out, stderr=out, env={**os.environ, **(env or {})}
        )
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(5)


def until(condition, what, log):
    """Wait until something holds; fail with the log when it does not."""
    end = time.monotonic() + STARTED_S
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    pytest.fail(f"{what}: {log.read_text(encoding='utf-8')}")


def has_device(name):
    done = subprocess.run(["ip", "-n", CLIENT, "link", "show", name], capture_output=True, check=False, timeout=10)
    return done.returncode == 0


@contextmanager
def tunnel(name, folder, *arguments):
    """Run `t2s run` in the client's namespace and give its device addresses and routes."""
    credentials, log = folder / "credentials", folder / f"{name}.log"
    credentials.write_text("alice:open sesame\n", encoding="utf-8")
    flags = ["--proxy", f"socks5://{PROXY}", "--credentials-file", str(credentials), "--tun", name]
    with process(CLIENT, [*T2S, "run", *flags, *arguments], log) as child:
        until(lambda: has_device(name) or child.poll() is not None, "no device", log)
        assert child.poll() is None, log.read_text(encoding="utf-8")
        ip("-n", CLIENT, "address", "add", "10.204.0.1/24", "dev", name)
        ip("-n", CLIENT, "address", "add", "fd00:204::1/64", "dev", name, "nodad")
        ip("-n", CLIENT, "link", "set", name, "up")
        ip("-n", CLIENT, "route", "replace", f"{TARGETS['v4']}/32", "dev", name)
        ip("-n", CLIENT, "-6", "route", "replace", f"{TARGETS['v6']}/128", "dev", name)
        yield child, log


def client(command, *arguments):
    """Run a client in its namespace and return what it says."""
    full = ["ip", "netns", "exec", CLIENT, *PEERS, command, *map(str, arguments)]
    done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Make both namespaces, with the proxy and the servers."""
    folder = tmp_path_factory.mktemp("tunnel")
    with ExitStack() as stack:
        for name in (CLIENT, SERVER):
            done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False, timeout=10)
            if done.returncode:
                pytest.skip(f"cannot make network namespaces: {done.stderr.strip()}")
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", CLIENT, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", SERVER)
        for name, end in ((CLIENT, 1), (SERVER, 2)):
            ip("-n", name, "address", "add", f"10.203.0.{end}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
        ip("-n", SERVER, "address", "add", f"{TARGETS['v4']}/32", "dev", "lo")
        ip("-n", SERVER, "address", "add", f"{TARGETS['v6']}/128", "dev", "lo", "nodad")
        commands = {
            "serve": ([*PEERS, "serve", PORT, *TARGETS.values()], "ready"),
            "proxy": ([*T2S, "proxy", "--listen", PROXY, "--user", "alice"], "listening at"),
        }
        for name, (command, sign) in commands.items():
            log = folder / f"{name}.log"
            stack.enter_context(process(SERVER, command, log, {"T2S_PROXY_PASSWORD": "open sesame"}))
            until(lambda log=log, sign=sign: sign in log.read_text(encoding="utf-8"), f"{name} did not start", log)
        yield folder


@pytest.fixture(scope="module", params=["auto", "off"])
def running(world, request):
    """Run a tunnel for several tests, with and without offload."""
    with tunnel(f"t2s-{request.param}", world, "--offload", request.param, "--mtu", "8500") as (child, log):
        yield child
        assert child.poll() is None, log.read_text(encoding="utf-8")
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 0, log.read_text(encoding="utf-8")
    assert not has_device(f"t2s-{request.param}")


@pytest.mark.parametrize("version", TARGETS)
def test_a_download_arrives_whole(running, version):
    assert running.poll() is None
    assert client("download", TARGETS[version], PORT, DOWNLOAD) == peers.digest(DOWNLOAD)


@pytest.mark.parametrize("version", TARGETS)
def test_an_upload_arrives_whole(running, version):
    assert running.poll() is None
    assert client("upload", TARGETS[version], PORT, UPLOAD) == peers.digest(UPLOAD)


@pytest.mark.parametrize("version", TARGETS)
def test_datagrams_come_back(running, version):
    assert running.poll() is None
    assert client("udp", TARGETS[version], PORT, *DATAGRAMS) == DATAGRAMS


@pytest.mark.parametrize("version", TARGETS)
def test_a_refused_port_is_refused(running, version):
    assert running.poll() is None
    assert client("connect", TARGETS[version], CLOSED_PORT) == "ConnectionRefusedError"


@contextmanager
def endless_download():
    """Run a client that downloads until its connection breaks."""
    full = ["ip", "netns", "exec", CLIENT, *PEERS, "download", TARGETS["v4"], PORT, str(10**12)]
    with subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as load:
        try:
            yield load
        finally:
            load.kill()


@pytest.mark.parametrize(("grace", "signals", "code"), [("0.2", 1, 0), ("60", 2, -signal.SIGTERM)])
def test_signals_end_it_under_load_and_leave_no_device(world, grace, signals, code):
    """One signal resets what the grace time does not end; two end the process at once."""
    flags = ["--grace", grace, "--stats", "0.2", "--queues", "2"]
    with tunnel("t2s-signal", world, *flags) as (child, log), endless_download() as load:
        until(lambda: " 1 flows (1 opened" in log.read_text(encoding="utf-8"), "no flow in the counters", log)
        for _ in range(signals):
            child.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert child.wait(5) == code, log.read_text(encoding="utf-8")
        assert not has_device("t2s-signal")
        if signals == 1:
            assert load.wait(5) != 0, "its connection was reset"
    assert "open sesame" not in log.read_text(encoding="utf-8")


def test_a_wrong_password_connects_nobody(world):
    with tunnel("t2s-wrong", world) as (child, log):
        (world / "credentials").write_text("alice:wrong\n", encoding="utf-8")
        child.send_signal(signal.SIGHUP)
        until(lambda: "reloaded" in log.read_text(encoding="utf-8"), "not reloaded", log)
        assert client("connect", TARGETS["v4"], PORT) != "connected"
        (world / "credentials").write_text("alice:open sesame\n", encoding="utf-8")
        child.send_signal(signal.SIGHUP)
        until(lambda: log.read_text(encoding="utf-8").count("reloaded") == 2, "not reloaded", log)
        assert client("connect", TARGETS["v4"], PORT) == "connected"


def test_tunnels_of_one_process_leave_nothing_behind(world):
    """Two tunnels at once, twice, through the Python face: flows as a frame, and no thread or descriptor left."""
    code = f"""
import os, socket, subprocess, threading, time, t2s, polars
polars.DataFrame(dict(a=[1]))
def count():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
settings = dict(username="alice", password="open sesame")
before = None
for _ in range(3):
    with t2s.Tunnel("socks5://{PROXY}", tun="py0", **settings) as a, t2s.Tunnel("direct://", tun="py1") as b:
        assert (a.name, b.name, a.running, a.mtu) == ("py0", "py1", True, 8500)
        for command in ("address add 10.204.9.1/24 dev py0", "route replace {TARGETS["v4"]}/32 dev py0"):
            subprocess.run(["ip", *command.split()], check=True)
        with socket.create_connection(("{TARGETS["v4"]}", {PORT}), timeout=5):
            [row] = a.flows().to_dicts()
            assert (row["target"], row["target_port"]) == ("{TARGETS["v4"]}", {PORT}), row
            assert row["reply_ns"] >= row["connect_ns"] > 0, row
            assert b.flows().height == 0
        assert a.stats()["dials_done"] == 1
        assert not a.wait(0.01)
    assert (a.running, a.wait(0)) == (False, True)
    assert a.stats()["pool_bytes_live"] == 0
    for _ in range(50):  # a joined thread stands in /proc for a moment longer
        if count() == before:
            break
        time.sleep(0.01)
    before = before or count()
    assert count() == before, (count(), before)
print("[]")
"""
    done = subprocess.run(
        ["ip", "netns", "exec", CLIENT, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert world.exists()
