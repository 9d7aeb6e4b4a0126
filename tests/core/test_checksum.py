"""Checksum kernels against a naive twin and scapy: each length 0..9001, each alignment 0..63."""

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

import t2s

LONGEST = 9001
DATA = random.Random(1071).randbytes(LONGEST + 64)
KERNELS = t2s.checksum_kernels()


def naive(data, initial=0):
    """RFC 1071, section 1, word by word."""
    total = initial
    for at in range(0, len(data) - 1, 2):
        total += data[at] << 8 | data[at + 1]
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def prefixes(data):
    """The naive checksum of each prefix of `data`, in one pass instead of a quadratic number of steps."""
    total, sums = 0, [0xFFFF]
    for at, byte in enumerate(data):
        total += byte if at % 2 else byte << 8
        folded = total
        while folded >> 16:
            folded = (folded & 0xFFFF) + (folded >> 16)
        sums.append(folded ^ 0xFFFF)
    return sums


def test_the_twin_is_the_loop():
    sums = prefixes(DATA[:300])
    assert [naive(DATA[:n]) for n in range(301)] == sums


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_length_at_every_alignment(kernel):
    view = memoryview(DATA)
    for start in range(8):
        expected = prefixes(DATA[start : start + LONGEST])
        got = [t2s.checksum(view[start : start + n], kernel) for n in range(LONGEST + 1)]
        assert got == expected, f"kernel {kernel}, alignment {start}"


@pytest.mark.parametrize("kernel", KERNELS)
def test_all_alignments_of_a_cache_line(kernel):
    view = memoryview(DATA)
    for start in range(64):
        for length in [*range(260), 1499, 1500, 4096, 8999, 9000, 9001]:
            piece = view[start : start + length]
            assert t2s.checksum(piece, kernel) == t2s.checksum(piece, "scalar")


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_length_against_scapy(kernel):
    view = memoryview(DATA)
    for length in range(LONGEST + 1):
        assert t2s.checksum(view[:length], kernel) == scapy_checksum(DATA[:length]), length


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_carries_at_their_most(kernel, byte):
    for length in (0, 1, 2, 3, 31, 32, 33, 1500, 65_535, 1 << 20):
        data = bytes([byte]) * length
        assert t2s.checksum(data, kernel) == naive(data)


@given(data=st.binary(max_size=200), initial=st.integers(0, 0xFFFF), kernel=st.sampled_from(["auto", *KERNELS]))
def test_partial_sums(data, initial, kernel):
    assert t2s.checksum(data, kernel, initial=initial) == naive(data, initial)


@given(data=st.binary(min_size=2, max_size=400).filter(lambda data: len(data) % 2 == 0))
def test_a_packet_with_its_checksum_sums_to_zero(data):
    assert t2s.checksum(data + t2s.checksum(data).to_bytes(2, "big")) in (0, 0xFFFF)


def test_any_buffer_is_read_where_it_lies():
    for lender in (DATA, bytearray(DATA), memoryview(DATA), memoryview(bytearray(DATA))[1:-1]):
        assert t2s.checksum(lender) == naive(bytes(lender))


def test_what_is_no_buffer_of_bytes_is_refused():
    with pytest.raises(BufferError, match="contiguous"):
        t2s.checksum(memoryview(DATA)[::2])
    with pytest.raises(TypeError):
        t2s.checksum("text")
    with pytest.raises(BufferError):
        t2s.checksum(memoryview(DATA[:64]).cast("I"))


def test_an_unknown_kernel_names_those_that_there_are():
    with pytest.raises(t2s.ConfigError, match="scalar"):
        t2s.checksum(b"", "mmx")


def test_other_threads_run_during_a_long_checksum():
    data, seen = bytes(64 << 20), []
    done = threading.Event()
    worker = threading.Thread(target=lambda: (t2s.checksum(data, "scalar"), done.set()))
    worker.start()
    while not done.is_set():
        seen.append(None)
    worker.join()
    assert seen
