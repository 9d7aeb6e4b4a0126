"""The tables of a run, as Markdown; the terminal shows the same text.

A cell has the median of the rounds with their span and, behind it, the ratio to the ceiling of the same rounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rig.engine import CEILING
from rig.settle import QUIET_S
from rig.spread import Spread, ratios, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rig.run import Outcome
    from rig.targets import Row

UNITS = {
    "bytes_per_s": ("Gbit/s", 8e-9),
    "cpu_s_per_gb": ("CPU s/GB", 1.0),
    "starved": ("streams without a byte", 1.0),
    "refused": ("streams refused", 1.0),
    "unconfirmed": ("streams unconfirmed", 1.0),
    "least_share": ("slowest/fastest stream", 1.0),
    "per_s": ("1/s", 1.0),
    "failures": ("failures", 1.0),
    "p50_us": ("p50 µs", 1.0),
    "p99_us": ("p99 µs", 1.0),
    "cpu_us_each": ("CPU µs each", 1.0),
    "lost_share": ("lost, share", 1.0),
    "lost": ("lost", 1.0),
    "unsent": ("not sent", 1.0),
    "latest_send_us": ("latest send µs", 1.0),
    "cpu_us_per_datagram": ("CPU µs/datagram", 1.0),
    "start_ms": ("first byte ms", 1.0),
    "device_ms": ("device ms", 1.0),
    "idle_mb": ("idle MB", 1.0),
    "open": ("flows open", 1.0),
    "more_mb": ("more MB", 1.0),
    "kept_mb": ("kept MB", 1.0),
    "more_anonymous_mb": ("more, allocated MB", 1.0),
    "kept_anonymous_mb": ("kept, allocated MB", 1.0),
}
"""What the numbers are called, with the factor to that unit."""
QUIET = {"starved": 0, "refused": 0, "unconfirmed": 0, "failures": 0, "unsent": 0, "lost_share": 0, "least_share": 1}
"""Numbers that are not shown while all engines have this one."""
RATED = ("bytes_per_s", "per_s", "p50_us", "p99_us")
"""Numbers that are compared with the ceiling."""


def number(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:.3g}" if abs(value) < 1_000 else f"{value:,.0f}"


def span(seen: Spread | None, factor: float = 1.0) -> str:
    """Return a median with the span of its rounds."""
    if seen is None:
        return "-"
    middle, low, high = (number(value * factor) for value in (seen.median, seen.low, seen.high))
    return middle if low == high else f"{middle} ({low} to {high})"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table whose columns are as wide as they need to be."""
    cells = [list(head), *(list(line) for line in lines)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(head))]
    padded = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(padded)


def results(outcome: Outcome, engines: Sequence[str], measures: Sequence[str]) -> str:
    """Return what each engine did in each measure."""
    lines = []
    for measure in measures:
        for metric, (unit, factor) in UNITS.items():
            columns = [outcome.column(measure, metric, engine) for engine in engines]
            if all(value == QUIET.get(metric) for column in columns for value in column.values()):
                continue
            ceiling = outcome.column(measure, metric, CEILING)
            cells = []
            for engine, column in zip(engines, columns, strict=True):
                cell = span(spread(column.values()), factor)
                ratio = spread(ratios(column, ceiling).values())
                if metric in RATED and engine != CEILING and ratio is not None:
                    cell += f" = {number(ratio.median)} x"
                cells.append(cell)
            lines.append([measure, unit, *cells])
    return markdown(["measure", "unit", *engines], lines)


def targets(rows: Iterable[Row]) -> str:
    """Return the targets, and whether they are met."""
    lines = []
    for row in rows:
        sign = {">=": "≥", "<=": "≤"}[row.target.side]
        lines.append([row.target.text, f"{sign} {row.target.limit:g}", span(row.seen), row.verdict])
    return markdown(["target", "limit", "seen", "verdict"], lines)


def versus(outcome: Outcome, base: str, others: Sequence[str], measures: Sequence[str]) -> str:
    """Return the ratio of other builds to a base build, round by round."""
    lines = []
    for measure in measures:
        for metric, (unit, _) in UNITS.items():
            below = outcome.column(measure, metric, base)
            seen = [spread(ratios(outcome.column(measure, metric, other), below).values()) for other in others]
            if any(seen):
                lines.append([measure, unit, *map(span, seen)])
    return markdown(["measure", "unit", *(f"{other} over {base}" for other in others)], lines)


def failures(outcome: Outcome, missing: Mapping[str, str]) -> str:
    """Return what could not be measured, and why, and what engines left behind."""
    said = [f"- {name}: not here. {why}" for name, why in missing.items()]
    said += [
        f"- {engine}, {measure}: failed {len(whys)} times: {whys[-1]}"
        for (engine, measure), whys in outcome.errors().items()
    ]
    said += [f"- {engine}: ended by itself {count} times" for engine, count in outcome.deaths.items() if count]
    said += [
        f"- {engine}: {count} times {QUIET_S:g} s after {measure} its streams still filled TCP's memory; what"
        " has a process was started anew"
        for (engine, measure), count in outcome.unsettled().items()
    ]
    return "\n".join(said)
