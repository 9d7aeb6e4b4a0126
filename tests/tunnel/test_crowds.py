"""`t2s run` under crowds: thousands of flows at once, twenty thousand one after the other, mice beside an elephant."""

import pytest

import world
from world import PORT, TALK_PORT, TARGETS

pytestmark = world.needs()

V4, V6 = TARGETS.values()
CROWD, CHURN, MICE = 2_000, 20_000, 200
KEPT_KIB = 4 * 1_024
"""What may stay resident after all of it, beside the start: tables and arenas that the allocator keeps."""
SLOWEST_S = 20.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with world.make(tmp_path_factory.mktemp("crowds")) as made:
        yield made


@pytest.mark.parametrize("queues", [1, 2])
def test_crowds_are_served_and_leave_no_memory_behind(place, queues):
    """All at once, then one after the other; memory comes back although nobody asks for it."""
    with place.tunnel("t2s-crowd", "--queues", queues) as tunnel:
        assert place.ask("crowd", V4, TALK_PORT, 50) == 50
        tunnel.settled()
        start, pool = tunnel.resident(), tunnel.stats()["pool_bytes"]
        assert place.ask("crowd", V6, TALK_PORT, CROWD, timeout=100) == CROWD
        assert tunnel.stats()["flows_peak"] >= CROWD
        if queues == 1:
            assert place.ask("churn", V4, TALK_PORT, CHURN, 50, timeout=100) == CHURN
            tunnel.until(lambda now: now["flows_closed"]["finished"] >= CHURN + CROWD, "they did not finish")
        tunnel.settled()
        tunnel.until(lambda now: now["pool_bytes"] <= pool, f"the pool keeps more than {pool}")
        world.until(lambda: tunnel.resident() <= start + KEPT_KIB, lambda: f"{start} → {tunnel.resident()}", tunnel.log)


@pytest.mark.parametrize("host", TARGETS.values())
def test_an_elephant_starves_no_mouse(place, host):
    with place.tunnel("t2s-mice") as tunnel, place.asking("download", V4, PORT, 10**12) as elephant:
        tunnel.until(lambda now: now["bytes_down"] > 10**7, "no elephant")
        before = tunnel.stats()["bytes_down"]
        served, slowest = place.ask("mice", host, TALK_PORT, MICE, 20, 1_000, timeout=100)
        assert served == MICE
        assert slowest < SLOWEST_S
        assert elephant.poll() is None
        assert tunnel.stats()["bytes_down"] > before + MICE * 20 * 1_000, "the elephant went on"
        elephant.kill()
