"""`t2s run` and the connections to the proxy that it makes ahead of flows, while these open in quick succession."""

import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import faulty
import world
from world import FAULTY, PORT, TALK_PORT, TARGETS, WIRE, socks

pytestmark = world.needs()

FLOWS = 200
V4, V6 = TARGETS.values()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with world.make(tmp_path_factory.mktemp("ahead")) as made:
        made.serve("faulty", [sys.executable, str(Path(faulty.__file__)), WIRE["server"], str(FAULTY)], "ready")
        yield made


@pytest.mark.parametrize(
    ("pipeline", "proxy"),
    [("on", None), ("off", None), ("on", "open_to_all"), ("off", "open_to_all"), ("off", "by_target")],
)
def test_flows_in_quick_succession_find_a_connection_ready(place, pipeline, proxy):
    """Asked for at once or greeted apart, with a password or without; what no flow has taken ends by itself."""
    name = f"t2s-{pipeline}-{(proxy or 'own')[:4]}"
    # In one segment a password is all that can be offered, and that proxy wants none.
    where = {} if proxy is None else {"proxy": socks(proxy), "login": (pipeline, proxy) != ("on", "open_to_all")}
    with place.tunnel(name, "--socks-pipelining", pipeline, **where) as tunnel:
        for host in (V4, V6):
            assert place.ask("churn", host, TALK_PORT, FLOWS, 4) == FLOWS
        tunnel.until(lambda now: now["flows_closed"].get("finished", 0) == 2 * FLOWS, "they did not finish")
        now = tunnel.stats()
        assert now["dials"] == 2 * FLOWS
        assert FLOWS / 2 < now["preconnects_used"] <= now["preconnects"]
        assert now["dial_failures"] == {}
        assert tunnel.descriptors()["socket"] <= 8
        tunnel.settled()


def test_sessions_find_one_too(place):
    with place.tunnel("t2s-udp") as tunnel:
        assert place.ask("sessions", V4, PORT, 20) == 20
        tunnel.until(lambda now: now["sessions_opened"] == 20, "not counted")
        now = tunnel.stats()
        assert 0 < now["preconnects_used"] <= now["preconnects"]
        assert now["dial_failures"] == {}


def test_none_is_made_where_none_is_wanted(place):
    with place.tunnel("t2s-none", "--preconnect", 0) as tunnel:
        assert place.ask("churn", V4, TALK_PORT, FLOWS, 4) == FLOWS
        tunnel.until(lambda now: now["flows_closed"].get("finished", 0) == FLOWS, "they did not finish")
        assert (tunnel.stats()["preconnects"], tunnel.descriptors()["socket"]) == (0, 0)


def test_a_lone_flow_makes_none(place):
    with place.tunnel("t2s-lone") as tunnel:
        assert place.ask("reach", V4, PORT) == "connected"
        tunnel.until(lambda now: now["dials"] == 1, "not counted")
        assert tunnel.stats()["preconnects"] == 0


@pytest.fixture(params=["on", "off"])
def rush(place, request):
    """Return a function that runs a tunnel through a faulty proxy after flows in quick succession, and a moment."""

    @contextmanager
    def run(kind):
        name = f"t2s-{kind}-{request.param}"
        with place.tunnel(name, "--socks-pipelining", request.param, proxy=socks(kind), login=False) as tunnel:
            assert place.ask("churn", V4, TALK_PORT, FLOWS, 8) == FLOWS
            tunnel.until(lambda now: now["preconnects"] > now["preconnects_used"] > 0, "none stands ready")
            time.sleep(2 * faulty.MOMENT_S)
            yield tunnel

    return run


def test_a_proxy_that_hangs_up_on_the_silent_harms_no_flow(place, rush):
    with rush("hasty") as tunnel:
        taken = tunnel.stats()["preconnects_used"]
        assert place.ask("reach", V4, PORT) == "connected"
        tunnel.until(lambda now: now["dials"] == FLOWS + 1, "not counted")
        now = tunnel.stats()
        assert (now["preconnects_used"], now["preconnect_retries"], now["dial_failures"]) == (taken, 0, {})


@pytest.mark.parametrize("what", ["flow", "session"])
def test_a_request_that_crosses_the_end_of_its_connection_is_sent_again(place, rush, what):
    with rush("sulky") as tunnel:
        if what == "flow":
            assert place.ask("reach", V4, PORT) == "connected"
        else:
            assert place.ask("refused_udp", V4, PORT) == "ConnectionRefusedError"
        tunnel.until(lambda now: now["preconnect_retries"] == 1, "not dialled again")
        assert "closed" not in tunnel.stats()["dial_failures"]
