"""`StreamReassembler`: whatever the network does, the bytes delivered are the bytes sent, once, within the caps."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from t2s import MemoryPool, StreamReassembler

WRAP = 1 << 32
ISN = st.one_of(st.integers(0, WRAP - 1), st.integers(WRAP - 3000, WRAP - 1))


@st.composite
def deliveries(draw, longest=1500):
    """A stream, and segments of it that cover it all: split, reordered, repeated, overlapping."""
    data = draw(st.binary(min_size=1, max_size=longest))
    cuts = sorted([*draw(st.lists(st.integers(0, len(data)), max_size=12, unique=True)), 0, len(data)])
    segments = [(start, end - start) for start, end in itertools.pairwise(cuts) if end > start]
    extra = st.tuples(st.integers(0, len(data) - 1), st.integers(1, 400))
    segments += [(start, min(length, len(data) - start)) for start, length in draw(st.lists(extra, max_size=12))]
    segments += draw(st.lists(st.sampled_from(segments), max_size=4))
    return data, draw(st.permutations(segments))


@given(case=deliveries(), isn=ISN)
def test_delivered_is_sent_once_and_as_early_as_can_be(case, isn):
    data, segments = case
    stream, out, seen = StreamReassembler(next_seq=isn), b"", set()
    for start, length in segments:
        before = len(seen)
        seen.update(range(start, start + length))
        assert stream.insert((isn + start) % WRAP, data[start : start + length]) == len(seen) - before
        out += stream.pop()
        # Early drain: all that is contiguous is out, at once, and the stream never steps back.
        contiguous = next(at for at in range(len(data) + 1) if at not in seen)
        assert out == data[:contiguous]
        assert stream.next_seq == (isn + contiguous) % WRAP
        assert stream.held_bytes == len(seen) - contiguous
    assert out == data
    assert (stream.held_bytes, stream.segments, stream.stats()["bytes_used"]) == (0, 0, 0)


@given(
    case=deliveries(),
    isn=ISN,
    flow_bytes=st.integers(0, 1500),
    flow_segments=st.integers(0, 8),
    total_bytes=st.integers(0, 8192),
)
def test_caps_are_never_exceeded_and_refusals_change_nothing(case, isn, flow_bytes, flow_segments, total_bytes):
    data, segments = case
    pool = MemoryPool()
    stream = StreamReassembler(
        next_seq=isn, flow_bytes=flow_bytes, flow_segments=flow_segments, total_bytes=total_bytes, pool=pool
    )
    out = b""
    for start, length in segments:
        before = (stream.held_bytes, stream.segments, sum(stream.stats()["drops"].values()))
        new = stream.insert((isn + start) % WRAP, data[start : start + length])
        stats = stream.stats()
        if sum(stats["drops"].values()) > before[2]:
            assert (new, stream.held_bytes, stream.segments) == (0, *before[:2])
            assert set(stats["drops"]) <= {"reassembly_full"}
        assert stream.held_bytes <= flow_bytes
        assert stream.segments <= flow_segments
        assert stats["bytes_used"] <= stats["bytes_peak"] <= total_bytes
        out += stream.pop()
        assert out == data[: len(out)]
    # What was refused comes again, in order, as a sender would; only a cap below one segment can keep it out.
    if flow_bytes >= len(data) and flow_segments > 0 and total_bytes >= 4096:
        stream.clear()
        assert stream.insert(stream.next_seq, data[len(out) :]) == len(data) - len(out)
        assert out + stream.pop() == data
    stream.clear()
    assert pool.stats()["live_bytes"] == 0


@given(
    isn=ISN,
    segments=st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=120)), max_size=20),
)
def test_of_contradicting_bytes_the_first_wins(isn, segments):
    stream, twin, out = StreamReassembler(next_seq=isn), {}, b""
    for start, data in segments:
        for at, byte in enumerate(data, start):
            if at >= len(out):
                twin.setdefault(at, byte)
        stream.insert((isn + start) % WRAP, data)
        out += stream.pop()
    expected = bytearray()
    while len(expected) in twin:
        expected.append(twin[len(expected)])
    assert out == bytes(expected)


@given(isn=ISN, blocks=st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True))
def test_sack_blocks_tell_what_is_held(isn, blocks):
    stream = StreamReassembler(next_seq=isn)
    for block in blocks:
        stream.insert((isn + 100 * block) % WRAP, bytes(50))
    expected = [((isn + 100 * block) % WRAP, (isn + 100 * block + 50) % WRAP) for block in reversed(blocks)]
    assert stream.sack_blocks() == expected
    assert stream.sack_blocks(1) == expected[:1]


def test_data_beyond_any_window_is_refused():
    stream = StreamReassembler(next_seq=0)
    assert stream.insert(1 << 30, b"far") == 0
    assert stream.stats()["drops"] == {"tcp_out_of_window": 1}
    assert stream.insert(WRAP - 3, b"old") == 0
    assert stream.stats()["drops"] == {"tcp_out_of_window": 1}


def test_unbounded_takes_what_bounded_refuses():
    for bounded, taken in ((True, 0), (False, 1)):
        stream = StreamReassembler(flow_bytes=100, flow_segments=1, total_bytes=256, bounded=bounded)
        for segment in range(50):
            stream.insert(1000 + 10 * segment, b"1234")
        assert stream.segments == (50 if taken else 1)
