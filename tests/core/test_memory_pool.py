"""`MemoryPool` and `Buffer`: bounds, the buffer protocol, equality of what went out and what came back."""

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from t2s import Buffer, MemoryPool, PoolExhausted

LARGEST = MemoryPool.CLASSES[-1]


def test_a_buffer_is_read_and_written_in_place():
    buffer = MemoryPool().alloc(1500)
    view = memoryview(buffer)
    view[100:105] = b"bytes"
    assert (len(buffer), view.nbytes, view.readonly, bytes(buffer)[100:105]) == (1500, 1500, False, b"bytes")


def test_a_viewed_buffer_is_not_freed():
    buffer = MemoryPool().alloc(10, headroom=10)
    with memoryview(buffer), pytest.raises(BufferError, match="release them first"):
        buffer.free()
    with memoryview(buffer), pytest.raises(BufferError, match="release them first"):
        buffer.prepend(b"x")
    buffer.free()
    buffer.free()
    with pytest.raises(BufferError, match="given back"):
        memoryview(buffer)
    with pytest.raises(BufferError, match="given back"):
        len(buffer)
    assert repr(buffer) == "Buffer(freed)"


def test_a_view_keeps_its_buffer_and_its_pool():
    view = memoryview(MemoryPool().alloc_copy(b"still here"))
    assert view.tobytes() == b"still here"


def test_headroom_takes_headers():
    buffer = MemoryPool().alloc_copy(b"payload", headroom=8)
    buffer.prepend(b"header")
    assert (bytes(buffer), buffer.headroom) == (b"headerpayload", 2)
    with pytest.raises(BufferError, match="headroom of 2"):
        buffer.prepend(b"more")
    with pytest.raises(BufferError):
        buffer.prepend(buffer)


def test_what_is_forgotten_comes_back():
    pool = MemoryPool()
    for _ in range(100):
        pool.alloc(9000)
    stats = pool.stats()
    assert (stats["buffers_allocated"], stats["buffers_freed"], stats["live_bytes"], stats["live_buffers"]) == (
        100,
        100,
        0,
        0,
    )


def test_the_ceiling_refuses_and_counts():
    pool, held = MemoryPool(ceiling_bytes=4 << 20), []

    def fill():
        while True:
            held.append(pool.alloc(2048))

    with pytest.raises(PoolExhausted, match="ceiling"):
        fill()
    stats = pool.stats()
    assert stats["refused"] == 1
    assert stats["live_bytes"] == 2048 * len(held) <= stats["heap_bytes"] <= 4 << 20
    held.pop().free()
    pool.alloc(2048)


@pytest.mark.parametrize(("size", "headroom"), [(LARGEST + 1, 0), (1, LARGEST), (2**64 - 1, 2), (2**63, 2**63)])
def test_beyond_the_largest_class(size, headroom):
    with pytest.raises(PoolExhausted):
        MemoryPool().alloc(size, headroom)


def test_memory_is_given_back():
    pool = MemoryPool()
    held = [pool.alloc(60_000) for _ in range(200)]
    high = pool.stats()["heap_bytes"]
    for buffer in held:
        buffer.free()
    for _ in range(3):
        pool.give_back()
    assert pool.stats()["heap_bytes"] < high / 4


def test_threads_share_a_pool():
    pool = MemoryPool(cache=8)

    def work(seed):
        for step in range(2000):
            data = bytes([seed, step % 256]) * 50
            with pool.alloc_copy(data) as buffer:
                assert bytes(buffer) == data

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.stats()["live_bytes"] == 0
    assert pool.stats()["buffers_allocated"] == pool.stats()["buffers_freed"] == 8000


class Twin(RuleBasedStateMachine):
    """Any order of allocations and frees: no two live buffers share a byte, and the counters are the twin's."""

    @initialize(cache=st.sampled_from([0, 1, 64]))
    def make(self, cache):
        self.pool = MemoryPool(ceiling_bytes=16 << 20, cache=cache)
        self.held = []
        self.allocated = 0

    @rule(size=st.integers(0, 60_000), headroom=st.integers(0, 200), fill=st.integers(0, 255))
    def alloc(self, size, headroom, fill):
        buffer = self.pool.alloc(size, headroom)
        assert isinstance(buffer, Buffer)
        assert (len(buffer), buffer.headroom) == (size, headroom)
        memoryview(buffer)[:] = bytes([fill]) * size
        self.held.append((buffer, bytes([fill]) * size))
        self.allocated += 1

    @rule(data=st.data())
    def free(self, data):
        if self.held:
            buffer, content = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            assert bytes(buffer) == content
            buffer.free()

    @rule()
    def give_back(self):
        self.pool.give_back()

    @invariant()
    def counters(self):
        if not hasattr(self, "pool"):
            return
        stats = self.pool.stats()
        assert stats["live_bytes"] == sum(buffer.capacity for buffer, _ in self.held)
        assert (stats["live_buffers"], stats["buffers_allocated"]) == (len(self.held), self.allocated)
        assert stats["buffers_allocated"] - stats["buffers_freed"] == len(self.held)


TestTwin = Twin.TestCase
TestTwin.settings = settings(max_examples=40)
