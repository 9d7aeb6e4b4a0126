"""Statistics for few rounds on a noisy machine: medians with bootstrap intervals, slopes, ranks.

Everything random has a fixed seed, so the same results give the same verdict. An interval over rounds is never better
than its rounds allow: `median_coverage` says how much of the truth `n` of them can hold at all.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import polars as pl

RESAMPLES = 10_000
"""Bootstrap resamples: the 2.5 % tail then rests on 250 of them."""

CONFIDENCE = 0.95
"""Nominal coverage of all intervals."""

SEED = 20_260_101
"""Seed of all resampling; any number does, as long as it stays."""

BEYOND = 100
"""Samples that must lie beyond a quantile before it is shown: p99.9 of 10,000 samples rests on 10 and says little."""

TRIMMED = 0.2
"""Share of the values that a `middle` leaves out at each end."""

SLOPE_POINTS = 40
"""Points a slope is fitted to; longer series are cut into as many blocks, each with its median."""

SLOPE_RESAMPLES = 400
"""Block bootstrap resamples of a slope; each costs all pairs of `SLOPE_POINTS` points."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval."""

    low: float
    point: float
    high: float
    rounds: int

    def overlaps(self, other: Interval) -> bool:
        """Whether two intervals share a value."""
        return self.low <= other.high and other.low <= self.high

    def map(self, function: Callable[[float], float]) -> Interval:
        """Apply an increasing function to all three values."""
        return Interval(function(self.low), function(self.point), function(self.high), self.rounds)


@lru_cache(maxsize=16)
def resample_indices(rounds: int, stream: int = 0) -> pl.Series:
    """Return `RESAMPLES * rounds` indices below `rounds`, flat; another `stream` is an independent draw."""
    import polars as pl  # noqa: PLC0415 - heavy, and the tunnel never needs it

    draw = random.Random(SEED + 1_000 * stream + rounds)  # noqa: S311 - resampling, no secret
    return pl.Series("index", draw.choices(range(rounds), k=RESAMPLES * rounds), dtype=pl.UInt32)


def resampled_medians(values: Sequence[float], stream: int = 0) -> pl.Series:
    """Return the median of each of `RESAMPLES` resamples of the values; equal lengths give equal draws."""
    import polars as pl  # noqa: PLC0415 - heavy, and the tunnel never needs it

    drawn = pl.Series("value", list(values), dtype=pl.Float64).gather(resample_indices(len(values), stream))
    return drawn.reshape((RESAMPLES, len(values))).arr.median()


def middle(values: Sequence[float]) -> float:
    """Return the mean of the values without the fifth at each end.

    For sets that were measured at different times on a machine with two states: the median of such a set is of the
    state that has a few more of the values, the mean of its middle moves evenly with their shares, and outliers move
    neither.

    >>> median([1, 1, 1, 1, 1, 2, 2, 2, 2, 90]), middle([1, 1, 1, 1, 1, 2, 2, 2, 2, 90])
    (1.5, 1.5)
    >>> median([1, 1, 1, 1, 2, 2, 2, 2, 2, 90]), round(middle([1, 1, 1, 1, 2, 2, 2, 2, 2, 90]), 2)
    (2.0, 1.67)
    """
    cut = int(TRIMMED * len(values))
    return fmean(sorted(values)[cut : len(values) - cut])


def resampled_middles(values: Sequence[float], stream: int = 0) -> pl.Series:
    """Return the `middle` of each of `RESAMPLES` resamples of the values; equal lengths give equal draws."""
    import polars as pl  # noqa: PLC0415 - heavy, and the tunnel never needs it

    cut = int(TRIMMED * len(values))
    drawn = pl.Series("value", list(values), dtype=pl.Float64).gather(resample_indices(len(values), stream))
    rows = drawn.reshape((RESAMPLES, len(values))).arr.to_list().list.sort()
    return rows.list.slice(cut, len(values) - 2 * cut).list.mean()


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the median of the values with its percentile bootstrap interval."""
    if not values:
        raise ValueError("no values")
    medians = resampled_medians(values).sort()
    tail = (1 - confidence) / 2
    low, high = (float(medians[round(at * (RESAMPLES - 1))]) for at in (tail, 1 - tail))
    return Interval(low, float(median(values)), high, len(values))


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """Return the median of paired ratios with its interval; None when a value is not positive, or none is there."""
    if not above or len(above) != len(below) or min(*above, *below) <= 0:
        return None
    logs = [math.log(top / bottom) for top, bottom in zip(above, below, strict=True)]
    return median_interval(logs).map(math.exp)


def median_coverage(rounds: int) -> float:
    """Return how often the span of all `rounds` values holds the true median: no interval of theirs does better.

    >>> median_coverage(6)
    0.96875
    """
    return 1 - 2.0 ** (1 - rounds) if rounds > 0 else 0.0


def rank_interval(count: int, quantile: float) -> tuple[float, float] | None:
    """Return the quantiles between which the true one lies (95 %); None with fewer than `BEYOND` samples beyond it."""
    if count * (1 - quantile) < BEYOND:
        return None
    spread = 1.96 * math.sqrt(quantile * (1 - quantile) / count)
    return max(0.0, quantile - spread), min(1.0, quantile + spread)


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """Return the median slope over all pairs of points with different x."""
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x1 != x2]
    if not slopes:
        raise ValueError("a slope needs two different x")
    return float(median(slopes))


def thinned(points: Sequence[tuple[float, float]], most: int = SLOPE_POINTS) -> list[tuple[float, float]]:
    """Cut a series into at most `most` blocks, each with the medians of its x and y."""
    if len(points) <= most:
        return list(points)
    edges = [len(points) * at // most for at in range(most + 1)]
    blocks = [points[start:end] for start, end in pairwise(edges)]
    return [(median(x for x, _ in block), median(y for _, y in block)) for block in blocks]


def slope_interval(points: Sequence[tuple[float, float]]) -> Interval | None:
    """Return the Theil-Sen slope with a block bootstrap interval of its residuals; None below 10 points.

    Memory moves in steps, so neighbours are alike: whole blocks of residuals are drawn, never single ones.
    """
    few = 10
    points = thinned(points)
    if len(points) < few or len({x for x, _ in points}) < few:
        return None
    slope = theil_sen(points)
    level = median(y - slope * x for x, y in points)
    residuals = [y - slope * x - level for x, y in points]
    length = max(2, round(len(points) ** (1 / 3)))
    draw = random.Random(SEED)  # noqa: S311 - resampling, no secret
    slopes: list[float] = []
    for _ in range(SLOPE_RESAMPLES):
        drawn: list[float] = []
        while len(drawn) < len(points):
            start = draw.randrange(len(points) - length + 1)
            drawn += residuals[start : start + length]
        slopes.append(theil_sen([(x, slope * x + r) for (x, _), r in zip(points, drawn, strict=False)]))
    slopes.sort()
    tail = (1 - CONFIDENCE) / 2
    low, high = (slopes[round(at * (SLOPE_RESAMPLES - 1))] for at in (tail, 1 - tail))
    return Interval(min(low, slope), slope, max(high, slope), len(points))


def smallest_visible_effect(groups: Sequence[Sequence[float]], rounds: int) -> float | None:
    """Return the smallest ratio that `rounds` paired rounds can tell from none, on this machine, in this run.

    Each group holds the rounds of one thing measured repeatedly, so it is A/A by construction: its values are divided
    by their median, all residuals are pooled, and two sets of `rounds` of them are drawn and compared again and again.
    95 % of those comparisons of equals stay below the returned ratio. None with fewer than 3 rounds or 6 residuals.
    """
    enough_rounds, enough_residuals, trials = 3, 6, 4_000
    usable = [group for group in groups if len(group) >= enough_rounds and min(group) > 0]
    residuals = [math.log(value / median(group)) for group in usable for value in group]
    if rounds < enough_rounds or len(residuals) < enough_residuals:
        return None
    draw = random.Random(SEED)  # noqa: S311 - resampling, no secret
    effects = sorted(
        abs(
            median(
                a - b for a, b in zip(draw.choices(residuals, k=rounds), draw.choices(residuals, k=rounds), strict=True)
            )
        )
        for _ in range(trials)
    )
    return math.exp(effects[round(CONFIDENCE * (trials - 1))])
