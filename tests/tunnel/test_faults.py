"""`t2s run` when something is wrong: proxies that lie, hang or die, clients that vanish, networks that lose, floods.

What takes a minute by its nature runs in namespaces of its own beside all other tests of this file.
"""

import json
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import faulty
import peers
import talk
import world
from world import FAULTY, PORT, T2S, TALK_PORT, TARGETS, WIRE, socks, until

pytestmark = world.needs()
needs_nft = world.wants("nft", "tc")

V4, V6 = TARGETS.values()
MINUTE = 65
QUIET = ["--connect-timeout", "2"]
DOWNLOAD = UPLOAD = 20_000_000
IDLE_BYTES = 50_000_000

LOSS = """
chain out {{
    type filter hook output priority 0
    oifname "{device}" numgen random mod 100 < 5 meta priority set 1:20
    oifname "{device}" numgen random mod 100 < 2 counter drop
}}
chain in {{
    type filter hook input priority 0
    iifname "{device}" numgen random mod 100 < 2 counter drop
}}
"""
SILENCE = """
chain out {{
    type filter hook output priority 0
    oifname "{device}" drop
}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with world.make(tmp_path_factory.mktemp("faults")) as made:
        made.serve("faulty", [sys.executable, str(Path(faulty.__file__)), WIRE["server"], str(FAULTY)], "ready")
        yield made


@pytest.fixture(scope="module", autouse=True)
def minute(tmp_path_factory):
    """Start what takes a minute, so that it has nearly passed when the last test asks."""
    with world.make(tmp_path_factory.mktemp("minute")) as made, ExitStack() as stack:
        tunnel = stack.enter_context(made.tunnel("t2s-minute", ends=False))
        asked = {
            name: stack.enter_context(made.asking(name, host, TALK_PORT, size, MINUTE))
            for name, host, size in (
                ("client_ends_first", V4, 70_000),
                ("server_ends_first", V6, 80_000),
                ("zero_window", V4, IDLE_BYTES),
            )
        }
        yield tunnel, asked


@pytest.fixture(scope="module")
def by_target(place):
    with place.tunnel("t2s-target", *QUIET, proxy=socks("by_target")) as tunnel:
        yield tunnel


@pytest.mark.parametrize(
    ("port", "v4", "v6"),
    [
        (9_001, "ECONNREFUSED", "ECONNREFUSED"),
        (9_002, "EHOSTUNREACH", "EACCES"),
        (9_003, "ENETUNREACH", "ENETUNREACH"),
        (9_004, "EHOSTUNREACH", "EHOSTUNREACH"),
        (9_005, "ECONNREFUSED", "ECONNREFUSED"),
        (9_006, "TimeoutError", "TimeoutError"),
        (9_007, "ECONNREFUSED", "ECONNREFUSED"),
        (9_008, "ECONNREFUSED", "ECONNREFUSED"),
        (9_099, "ECONNREFUSED", "ECONNREFUSED"),
        (faulty.HANGS, "TimeoutError", "TimeoutError"),
        (faulty.CLOSES, "ECONNREFUSED", "ECONNREFUSED"),
        (faulty.HALF, "ECONNREFUSED", "ECONNREFUSED"),
        (faulty.GARBAGE, "ECONNREFUSED", "ECONNREFUSED"),
    ],
)
def test_what_the_proxy_says_is_what_the_client_sees(place, by_target, port, v4, v6):
    assert by_target.child.poll() is None
    assert place.ask("reach", V4, port, 2.5) == v4
    assert place.ask("reach", V6, port, 2.5) == v6


def test_the_causes_are_counted(place, by_target):
    """Each answer of the proxy that is no yes, by its name; a hanging proxy as a timeout."""
    assert place.ask("reach", V4, 9_005) == "ECONNREFUSED"
    by_target.until(lambda now: now["dial_failures"].get("socks_05_refused", 0) > 0, "the refusal is not counted")
    assert place.ask("reach", V4, faulty.HANGS, 1) == "TimeoutError"
    by_target.until(lambda now: now["flows_closed"]["connect_timeout"] > 0, "the timeout is not counted")


@pytest.mark.parametrize("host", TARGETS.values())
def test_an_answer_byte_by_byte_is_an_answer(place, by_target, host):
    assert by_target.child.poll() is None
    assert place.ask("sink", host, faulty.DRIBBLES) == [len("drop by drop"), "end"]


def test_a_proxy_that_ends_in_the_middle_is_told_as_it_was(place, by_target):
    """An end is an end after the last byte, a reset is a reset."""
    assert by_target.child.poll() is None
    assert place.ask("sink", V4, faulty.CUT) == [faulty.CUT_AFTER, "end"]
    got, how = place.ask("sink", V4, faulty.RESETS)
    assert (got <= faulty.CUT_AFTER, how) == (True, "ConnectionResetError")


@pytest.mark.parametrize(
    ("kind", "seen", "cause"),
    [
        ("silent", "TimeoutError", None),
        ("http", "ECONNREFUSED", "protocol"),
        ("closes", "ECONNREFUSED", "closed"),
        ("password", "EHOSTUNREACH", "credentials"),
    ],
)
def test_a_proxy_that_is_none(place, kind, seen, cause):
    with place.tunnel("t2s-none", *QUIET, proxy=socks(kind)) as tunnel:
        assert place.ask("reach", V4, PORT, 2.5) == seen
        if cause is not None:
            tunnel.until(lambda now: now["dial_failures"].get(cause, 0) > 0, f"{cause} is not counted")


def test_a_proxy_that_is_not_there_yet(place):
    """Its port is closed, then it comes, dies under load, and comes again: each time the clients see just that."""
    address = f"{WIRE['server']}:1085"
    command = [*T2S, "proxy", "--listen", address, "--user", "alice"]
    with place.tunnel("t2s-late", proxy=f"socks5://{address}") as tunnel:
        assert place.ask("reach", V4, PORT) == "ECONNREFUSED"
        for name in ("late", "later"):
            child = place.serve(name, command, "listening at")
            assert place.ask("reach", V4, PORT) == "connected"
            with place.asking("download", V4, PORT, 10**12) as load:
                tunnel.until(lambda now: now["flows"] > 0, "no flow")
                child.kill()
                child.wait(5)
                load.wait(10)
            assert place.ask("reach", V4, PORT) == "ECONNREFUSED"


def test_a_proxy_that_wants_no_password_gets_none(place):
    """Whoever has credentials for it all the same; in one segment they are all that could be offered."""
    with place.tunnel("t2s-open", proxy=socks("open_to_all")) as tunnel:
        until(lambda: "in one segment: no" in tunnel.text(), "not found out", tunnel.log)
        assert place.ask("reach", V4, PORT) == "connected"
        assert tunnel.stats()["dial_failures"] == {}


def test_a_proxy_without_udp_refuses_datagrams_and_says_so_once(place):
    with place.tunnel("t2s-noudp", proxy=socks("no_udp")) as tunnel:
        until(lambda: "UDP: no" in tunnel.text(), "not found out", tunnel.log)
        assert [place.ask("refused_udp", host, PORT) for host in (V4, V6)] == ["ConnectionRefusedError"] * 2
        assert place.ask("reach", V4, PORT) == "connected"
        assert tunnel.text().count("datagrams are refused") == 1, tunnel.text()


def test_a_relay_that_is_dead_costs_datagrams_and_nothing_else(place):
    with place.tunnel("t2s-relay", proxy=socks("dead_relay")) as tunnel:
        assert place.ask("udp", V4, PORT, 100) == []
        assert place.ask("reach", V4, PORT) == "connected"
        tunnel.until(lambda now: now["sessions_opened"] > 0 and now["sessions"] == 0, "the session stays")


def test_a_proxy_that_reads_no_more_stops_the_client_and_holds_little(place):
    """The client is stopped by its window, no memory beyond the flow's own is held, and its reset frees it all."""
    most = 8 << 20
    with (
        place.tunnel("t2s-stalls", proxy=socks("by_target")) as tunnel,
        place.asking("push", V4, faulty.STALLS) as client,
    ):
        told = client.stdout.readline()
        assert told, client.stderr.read()
        assert int(told) > 100_000
        held = tunnel.stats()["buffered"]
        assert 0 < held <= most, held
        client.stdin.close()
        tunnel.until(lambda now: now["flows_closed"]["client_reset"] == 1, "the reset was not seen")


def test_a_client_that_resets_is_gone_at_once(place):
    with place.tunnel("t2s-reset") as tunnel:
        for host in TARGETS.values():
            place.ask("reset", host, TALK_PORT)
        tunnel.until(lambda now: now["flows_closed"]["client_reset"] == 2, "not reset")


@needs_nft
def test_clients_that_fall_silent_are_given_up(place):
    """Neither the one that was sent to nor the one that was not says a word any more, not even in answer to the RST."""
    with place.tunnel("t2s-silent", "--tcp-idle-timeout", "3") as tunnel, ExitStack() as silence:
        with place.holding("hold", V4, TALK_PORT), place.holding("hold", V4, TALK_PORT, IDLE_BYTES):
            tunnel.until(lambda now: now["flows"] == 2, "no flows")
            silence.enter_context(place.rules(place.client, SILENCE.format(device="t2s-silent")))
        tunnel.until(lambda now: now["flows_closed"]["idle"] == 2, "not given up")


@pytest.fixture(scope="module", params=["auto", "off"])
def lossy(place, request):
    """Run a tunnel whose device loses packets both ways, and holds some of the client's back, so that others pass."""
    name = f"t2s-lossy-{request.param}"
    with place.tunnel(name, "--offload", request.param) as tunnel:
        place.run(place.client, "tc", "qdisc", "add", "dev", name, "root", "handle", "1:", "htb", "default", "10")
        for number, rate in (("10", "10gbit"), ("20", "50mbit")):
            leaf = ["parent", "1:", "classid", f"1:{number}", "htb", "rate", rate, "quantum", "60000"]
            place.run(place.client, "tc", "class", "add", "dev", name, *leaf)
        with place.rules(place.client, LOSS.format(device=name)):
            yield tunnel
            listed = place.run(place.client, "nft", "list", "table", "inet", "faults")
            assert listed.count("counter packets") == 2, listed
            assert "counter packets 0 " not in listed, listed
        assert tunnel.stats()["retransmits"] > 0


@needs_nft
@pytest.mark.parametrize("version", TARGETS)
class TestLoss:
    def test_a_download_arrives_whole(self, place, lossy, version):
        assert lossy.child.poll() is None
        assert place.ask("download", TARGETS[version], PORT, DOWNLOAD) == peers.digest(DOWNLOAD)

    def test_an_upload_arrives_whole(self, place, lossy, version):
        assert lossy.child.poll() is None
        assert place.ask("upload", TARGETS[version], PORT, UPLOAD) == peers.digest(UPLOAD)

    def test_datagrams_come_back(self, place, lossy, version):
        assert lossy.child.poll() is None
        assert place.ask("udp", TARGETS[version], PORT, 1, 1_400, 20_000) == [1, 1_400, 20_000]


@needs_nft
def test_loss_between_tunnel_and_proxy_is_only_slow(place):
    """The kernel's TCP repairs it; handshakes and associations survive it too."""
    with place.tunnel("t2s-wire"), place.rules(place.server, LOSS.format(device="wire")):
        assert place.ask("download", V4, PORT, DOWNLOAD) == peers.digest(DOWNLOAD)
        assert place.ask("upload", V6, PORT, UPLOAD) == peers.digest(UPLOAD)
        assert place.ask("udp", V4, PORT, 1, 1_400) == [1, 1_400]


def test_kill_9_and_a_new_start_with_the_same_name(place):
    for _ in range(2):
        with (
            place.tunnel("t2s-killed", "--queues", 2, ends=False) as tunnel,
            place.asking("download", V4, PORT, 10**12),
        ):
            tunnel.until(lambda now: now["flows"] > 0, "no flow")
            tunnel.child.send_signal(signal.SIGKILL)
            assert tunnel.child.wait(5) == -signal.SIGKILL
    with place.tunnel("t2s-killed", "--queues", 2):
        assert place.ask("download", V6, PORT, DOWNLOAD) == peers.digest(DOWNLOAD)


def test_at_the_limit_the_flow_that_was_idle_longest_makes_room(place):
    limit = 20
    with (
        place.tunnel("t2s-limit", "--max-tcp-flows", limit) as tunnel,
        place.holding("row", V4, TALK_PORT, limit) as row,
    ):
        tunnel.until(lambda now: now["flows"] == limit, "not all are open")
        assert place.ask("reach", V6, PORT) == "connected"
        assert json.loads(row.stdout.readline()) == [0]
        tunnel.until(lambda now: now["flows_evicted"] == 1, "not counted")
        # Until the oldest had been idle for long enough, the newcomer's SYNs were dropped, and counted.
        assert tunnel.stats()["packets_dropped"]["flow_table_full"] > 0


def test_at_the_limit_the_oldest_session_makes_room(place):
    with place.tunnel("t2s-sessions", "--max-udp-sessions", 4) as tunnel:
        assert place.ask("sessions", V4, PORT, 10) == 10
        tunnel.until(lambda now: now["sessions_evicted"] == 6 and now["sessions"] <= 4, "not counted")


def test_a_flood_of_syns_is_bounded_and_passes(place):
    limit, count = 64, 5_000
    flags = ["--connect-timeout", 3, "--max-pending-connects", limit]
    with place.tunnel("t2s-flood", *flags, proxy=socks("by_target")) as tunnel:
        until(lambda: "UDP: unknown" in tunnel.text(), "the proxy is not known yet", tunnel.log)
        place.ask("flood", "10.204.0.1", V4, faulty.HANGS, count)
        tunnel.until(lambda now: now["packets_dropped"].get("pending_full", 0) > 0, "nothing was refused")
        assert 0 < tunnel.stats()["pending"] <= limit
        tunnel.until(lambda now: now["flows"] == 0, "flows stay")
        now = tunnel.stats()
        assert now["flows_peak"] <= limit
        assert place.ask("reach", V4, PORT) == "connected"


def test_a_minute_of_silence_breaks_nothing(minute):
    """A closed window, and either side's half of a connection that has ended in the other direction."""
    tunnel, asked = minute
    told = {}
    for name, child in asked.items():
        said, complained = child.communicate(timeout=MINUTE + 30)
        assert child.returncode == 0, f"{name}: {complained}{tunnel.text()}"
        told[name] = json.loads(said)
    assert told == {
        "client_ends_first": 70_000,
        "server_ends_first": [80_000, 80_000],
        "zero_window": [0, talk.digest(IDLE_BYTES)],
    }
    tunnel.until(lambda now: now["flows"] == 0, "flows stay")
    now = tunnel.stats()
    assert now["flows_closed"]["finished"] == now["flows_opened"], now
    tunnel.end()
