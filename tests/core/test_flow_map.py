"""`FlowMap` against a dict: bounds, expiry, order of listings, threads."""

import threading
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from t2s import ConfigError, FlowMap, TableFull

KEYS = st.tuples(
    st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]),
    st.integers(1, 20),
    st.sampled_from(["192.0.2.1", "2001:db8::1"]),
    st.sampled_from([53, 443]),
    st.sampled_from([6, 17]),
)


def exact(key):
    return (ip_address(key[0]), key[1], ip_address(key[2]), *key[3:])


@given(
    src=st.ip_addresses().filter(lambda address: not (address.version == 6 and address.ipv4_mapped)),
    dst=st.ip_addresses().filter(lambda address: not (address.version == 6 and address.ipv4_mapped)),
    ports=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    protocol=st.integers(0, 255),
    value=st.integers(0, 2**64 - 1),
)
def test_a_key_comes_back_as_it_went_in(src, dst, ports, protocol, value):
    flows, key = FlowMap(capacity=4), (src, ports[0], dst, ports[1], protocol)
    assert flows.insert(key, value) is None
    assert flows.snapshot() == [(key, value)]
    assert flows.get((str(src), ports[0], str(dst), ports[1], protocol)) == value


def test_beyond_the_bound_nothing_changes():
    flows = FlowMap(capacity=64, shards=1)
    for port in range(64):
        flows.insert(("10.0.0.1", port, "192.0.2.1", 443, 6), port)
    before = flows.snapshot()
    with pytest.raises(TableFull):
        flows.insert(("10.0.0.1", 64, "192.0.2.1", 443, 6), 64)
    assert flows.insert(("10.0.0.1", 3, "192.0.2.1", 443, 6), 3) == 3
    assert flows.snapshot() == before
    assert (flows.stats()["refused"], flows.stats()["peak"]) == (1, 64)


def test_listings_are_ordered():
    flows = FlowMap(capacity=10_000, shards=3)
    for port in (*range(1, 3000, 7), *range(2, 3000, 7)):
        flows.insert((IPv6Address("fd00::1"), port, IPv4Address("192.0.2.1"), 443, 6), port)
    ports = [key[1] for key, _ in flows.snapshot()]
    assert ports == sorted(ports)
    assert sum(shard["len"] for shard in flows.stats()["per_shard"]) == len(flows) == len(ports)


@pytest.mark.parametrize(
    "settings", [{"capacity": 0}, {"shards": 0}, {"capacity": 2, "shards": 3}, {"capacity": 1 << 40}]
)
def test_impossible_settings(settings):
    with pytest.raises(ConfigError, match="capacity="):
        FlowMap(**settings)


@pytest.mark.parametrize(
    "key", [("nonsense", 1, "10.0.0.1", 2, 6), ("10.0.0.1", -1, "10.0.0.1", 2, 6), ("10.0.0.1", 1)]
)
def test_what_is_no_key(key):
    with pytest.raises((ValueError, TypeError, OverflowError)):
        FlowMap().get(key)


def test_threads_share_a_map():
    flows = FlowMap(capacity=8_000, shards=2)

    def work(worker):
        for port in range(1000):
            flows.insert((f"10.0.0.{worker}", port, "192.0.2.1", 443, 6), worker * 1000 + port)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(value for _, value in flows.snapshot()) == list(range(4000))


class Twin(RuleBasedStateMachine):
    """Any order of operations leaves what a dict would hold."""

    @initialize(shards=st.sampled_from([1, 2, 5]), seed=st.integers(0, 2**64 - 1))
    def make(self, shards, seed):
        self.flows = FlowMap(capacity=1000, shards=shards, seed=seed)
        self.twin = {}

    @rule(key=KEYS, value=st.integers(0, 2**64 - 1), now=st.integers(0, 100))
    def insert(self, key, value, now):
        old = self.twin.get(exact(key))
        assert self.flows.insert(key, value, now_ns=now) == (old[0] if old else None)
        self.twin[exact(key)] = (value, now)

    @rule(key=KEYS)
    def remove(self, key):
        old = self.twin.pop(exact(key), None)
        assert self.flows.remove(key) == (old[0] if old else None)

    @rule(key=KEYS, now=st.integers(0, 100))
    def touch(self, key, now):
        old = self.twin.get(exact(key))
        assert self.flows.touch(key, now) == (old[0] if old else None)
        if old:
            self.twin[exact(key)] = (old[0], now)

    @rule(older_than=st.integers(0, 101))
    def expire(self, older_than):
        gone = {key: value for key, (value, used) in self.twin.items() if used < older_than}
        assert dict(self.flows.expire(older_than, budget=1 << 20)) == gone
        for key in gone:
            del self.twin[key]

    @invariant()
    def same(self):
        if hasattr(self, "flows"):
            assert len(self.flows) == len(self.twin)
            assert dict(self.flows.snapshot()) == {key: value for key, (value, _) in self.twin.items()}


TestTwin = Twin.TestCase
TestTwin.settings = settings(max_examples=40)
