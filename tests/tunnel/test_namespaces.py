"""`t2s run` with real traffic through `t2s proxy`: offload, MTUs, queues; its signals; the Python face."""

import signal
import subprocess
import sys
import time

import pytest

import peers
import world
from world import CLOSED_PORT, NOWHERE, PASSWORD, PORT, PROXY, TARGETS, until

DOWNLOAD, UPLOAD = 20_000_000, 10_000_000
DATAGRAMS = [1, 100, 1_400, 4_000, 8_000, 30_000, 60_000]
ROUNDS = [
    (1_280, "auto", 1),
    (1_280, "off", 2),
    (1_500, "auto", 2),
    (1_500, "off", 1),
    (8_500, "auto", 1),
    (8_500, "off", 2),
    (65_535, "auto", 2),
    (65_535, "off", 1),
]

pytestmark = world.needs()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with world.make(tmp_path_factory.mktemp("tunnel")) as made:
        yield made


@pytest.fixture(scope="module", params=ROUNDS, ids=lambda settings: "-".join(map(str, settings)))
def running(place, request):
    """Run a tunnel for several tests, with each MTU, with and without offload, with one queue and two."""
    mtu, offload, queues = request.param
    with place.tunnel(f"t2s-{mtu}-{offload}", "--offload", offload, "--mtu", mtu, "--queues", queues) as running:
        yield running


@pytest.mark.parametrize("version", TARGETS)
def test_a_download_arrives_whole(place, running, version):
    assert running.child.poll() is None
    assert place.ask("download", TARGETS[version], PORT, DOWNLOAD) == peers.digest(DOWNLOAD)


@pytest.mark.parametrize("version", TARGETS)
def test_an_upload_arrives_whole(place, running, version):
    assert running.child.poll() is None
    assert place.ask("upload", TARGETS[version], PORT, UPLOAD) == peers.digest(UPLOAD)


@pytest.mark.parametrize("version", TARGETS)
def test_datagrams_come_back(place, running, version):
    assert running.child.poll() is None
    assert place.ask("udp", TARGETS[version], PORT, *DATAGRAMS) == DATAGRAMS


@pytest.mark.parametrize("version", TARGETS)
def test_a_refused_port_is_refused(place, running, version):
    assert running.child.poll() is None
    assert place.ask("reach", TARGETS[version], CLOSED_PORT) == "ECONNREFUSED"


@pytest.mark.parametrize("version", TARGETS)
def test_an_unreachable_host_is_unreachable(place, running, version):
    assert running.child.poll() is None
    assert place.ask("reach", NOWHERE[version], PORT) == "EHOSTUNREACH"


@pytest.mark.parametrize(("timeout", "signals", "code"), [("0.2", 1, 0), ("60", 2, -signal.SIGTERM)])
def test_signals_end_it_under_load_and_leave_no_device(place, timeout, signals, code):
    """One signal resets what the shutdown timeout does not end; two end the process at once."""
    flags = ["--shutdown-timeout", timeout, "--queues", 2]
    with (
        place.tunnel("t2s-signal", *flags, ends=False) as tunnel,
        place.asking("download", TARGETS["v4"], PORT, 10**12) as load,
        place.asking("crowd", TARGETS["v6"], world.TALK_PORT, 100),
    ):
        tunnel.until(lambda now: now["flows"] > 0 and now["bytes_down"] > 10**7, "no flow in the counters")
        for _ in range(signals):
            tunnel.child.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert tunnel.child.wait(5) == code, tunnel.text()
        assert not place.has_device("t2s-signal")
        if signals == 1:
            assert load.wait(5) != 0, "its connection was reset"
            last = tunnel.stats()
            assert (last["flows"], last["sessions"], last["pool_live_bytes"]) == (0, 0, 0), last


def test_a_wrong_password_connects_nobody(place):
    credentials = place.folder / "credentials"
    with place.tunnel("t2s-wrong") as tunnel:
        credentials.write_text("alice:wrong\n", encoding="utf-8")
        tunnel.child.send_signal(signal.SIGHUP)
        until(lambda: "reloaded" in tunnel.text(), "not reloaded", tunnel.log)
        assert place.ask("reach", TARGETS["v4"], PORT) != "connected"
        credentials.write_text(f"alice:{PASSWORD}\n", encoding="utf-8")
        tunnel.child.send_signal(signal.SIGHUP)
        until(lambda: tunnel.text().count("reloaded") == 2, "not reloaded", tunnel.log)
        assert place.ask("reach", TARGETS["v4"], PORT) == "connected"


def test_tunnels_of_one_process_leave_nothing_behind(place):
    """Two tunnels at once, twice, through the Python face: flows as a frame, and no thread or descriptor left."""
    code = f"""
import os, socket, subprocess, threading, time, t2s, polars
polars.DataFrame(dict(a=[1]))
def count():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
settings = dict(username="alice", password="{PASSWORD}")
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
    assert a.stats()["pool_live_bytes"] == 0
    for _ in range(50):  # a joined thread stands in /proc for a moment longer
        if count() == before:
            break
        time.sleep(0.01)
    before = before or count()
    assert count() == before, (count(), before)
print("[]")
"""
    done = subprocess.run(
        ["ip", "netns", "exec", place.client, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
