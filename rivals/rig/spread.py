"""Statistics for few rounds: medians with the span of all rounds, and ratios of values that were measured together.

Pure. A ratio is taken within a round, where both sides saw the same machine, and the median comes last. The span of `n`
rounds holds the true median with probability 1 - 2^(1-n) (`t2s.lab.statistics.median_coverage`); an interval that
claims more than its rounds allow is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Side = Literal[">=", "<="]
"""On which side of a limit a value shall lie."""
Rounds = dict[int, float]
"""A value a round; a round without one is not in it."""


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the least and the greatest of them."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Iterable[float]) -> Spread | None:
    """Return the spread of some values; None without any."""
    known = sorted(values)
    return Spread(float(median(known)), known[0], known[-1], len(known)) if known else None


def ratios(above: Mapping[int, float], below: Mapping[int, float]) -> Rounds:
    """Return the ratio of each round that has both values; a zero below has none."""
    return {at: value / below[at] for at, value in above.items() if below.get(at, 0) > 0}


def best(columns: Iterable[Mapping[int, float]], side: Side) -> Rounds:
    """Return the best value of each round: the greatest where more is better (`>=`), else the least."""
    pick = max if side == ">=" else min
    found: dict[int, list[float]] = {}
    for column in columns:
        for at, value in column.items():
            found.setdefault(at, []).append(value)
    return {at: pick(values) for at, values in found.items()}


def holds(value: float, side: Side, limit: float) -> bool:
    """Whether a value lies on its side of a limit."""
    return value >= limit if side == ">=" else value <= limit


def verdict(seen: Spread | None, side: Side, limit: float) -> str:
    """Return `met` or `not met` by the median, with `?` when the rounds do not agree; `not measured` without any."""
    if seen is None:
        return "not measured"
    word = "met" if holds(seen.median, side, limit) else "not met"
    agree = holds(seen.low, side, limit) == holds(seen.high, side, limit)
    return word if agree else f"{word}?"
