"""`Histogram`: precision, merging, the text form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2s import ConfigError, DecodeError, Histogram

VALUES = st.lists(st.integers(1, 3_600_000_000_000), max_size=200)


def filled(values):
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(values=VALUES, percent=st.floats(0, 100))
def test_percentiles_are_within_three_digits(values, percent):
    histogram = filled(values)
    assert histogram.count == len(values)
    if not values:
        assert (histogram.percentile(percent), histogram.min, histogram.max, histogram.mean) == (0, 0, 0, 0)
        return
    rank = max(1, -(-percent * len(values) // 100))
    exact = sorted(values)[min(int(rank), len(values)) - 1]
    neighbours = [value for value in sorted(values) if value <= exact * 1.001 + 1]
    assert histogram.percentile(percent) <= neighbours[-1] * 1.001 + 1
    assert histogram.max == pytest.approx(max(values), rel=1e-3)
    assert histogram.min == pytest.approx(min(values), rel=1e-3)


@given(left=VALUES, right=VALUES)
def test_merging_is_counting_together(left, right):
    merged = filled(left)
    merged.merge(filled(right))
    assert merged == filled(left + right)


@given(values=VALUES)
def test_text_round_trip(values):
    histogram = filled(values)
    again = Histogram.decode(histogram.encode())
    assert again == histogram
    assert sum(count for _, count in again.buckets()) == len(values)


def test_merging_with_itself_doubles():
    histogram = filled([5, 7])
    histogram.merge(histogram)
    assert histogram.buckets() == [(5, 2), (7, 2)]


def test_values_beyond_the_bounds_count_at_them():
    histogram = Histogram(highest=1000, digits=3)
    histogram.record(0)
    histogram.record(5000, times=2)
    assert (histogram.count, histogram.min, histogram.max) == (3, 1, 1000)


@pytest.mark.parametrize("text", ["", "no base64!", "AAAA", "HISTFAAA" * 9])
def test_what_does_not_decode(text):
    with pytest.raises(DecodeError, match="not a histogram"):
        Histogram.decode(text)


def test_impossible_settings():
    with pytest.raises(ConfigError):
        Histogram(highest=1)
    with pytest.raises(ConfigError):
        Histogram(digits=9)
    with pytest.raises(ConfigError):
        Histogram().percentile(101)
    with pytest.raises(ConfigError):
        Histogram(highest=10).merge(filled([1_000_000]))
