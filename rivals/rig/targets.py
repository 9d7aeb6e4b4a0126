"""What `t2s run` must show, as data, and whether the samples show it.

A target compares a number of one measure with a limit: by itself, as a ratio to the ceiling, to the best rival of each
round, or to the same number of another measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rig.engine import CEILING
from rig.measures import IDLE_FLOWS, MTU, OPEN_RATE, SMALL_MTU
from rig.spread import Rounds, Side, Spread, best, ratios, spread, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rig.run import Outcome

BULK = ("up1", "up8", "down1", "down8")
"""The four bulk measures."""
RIVALS = ("tun2proxy", "tun2socks")
"""The engines that count as rivals."""
KEPT_MB = 1.0
"""Given back: no more than this above idle, MB; a quarter of what the flows may use."""


@dataclass(frozen=True)
class Target:
    """One thing to show."""

    text: str
    measure: str
    metric: str
    side: Side
    limit: float
    against: Literal["itself", "ceiling", "rival", "measure"] = "itself"
    base: str = ""
    """The other measure, where one is compared with."""


@dataclass(frozen=True)
class Row:
    """A target with what was seen."""

    target: Target
    seen: Spread | None
    verdict: str


def all_targets() -> list[Target]:
    """Return all of them, in the order of the report."""
    made: list[Target] = []
    for name in BULK:
        made += [
            Target(f"{name}: rate over the better rival's", name, "bytes_per_s", ">=", 3.0, "rival"),
            Target(f"{name}: rate over the ceiling's", name, "bytes_per_s", ">=", 0.7, "ceiling"),
            Target(f"{name}: CPU per GB over the better rival's", name, "cpu_s_per_gb", "<=", 1.0, "rival"),
        ]
    for name in BULK:
        text = f"{name}: rate at MTU {SMALL_MTU} over that at {MTU}"
        made.append(Target(text, f"{name}@{SMALL_MTU}", "bytes_per_s", ">=", 0.9, "measure", name))
    for name in ("up512", "down512"):
        made += [
            Target(f"{name}: streams without a byte", name, "starved", "<=", 0),
            Target(f"{name}: streams that were refused", name, "refused", "<=", 0),
        ]
    for name, limit in (("rr1", 0.95), ("rr8", 0.75)):
        made += [
            Target(f"{name}: rate over the ceiling's", name, "per_s", ">=", limit, "ceiling"),
            Target(f"{name}: p99 over the ceiling's", name, "p99_us", "<=", 1.3, "ceiling"),
        ]
    at_rate = f"udp@{OPEN_RATE}"
    made += [
        *(Target(f"{name}: rate over the ceiling's", name, "per_s", ">=", 1.2, "ceiling") for name in ("crr1", "crr8")),
        Target("udp: rate over the better rival's", "udp", "per_s", ">=", 1.5, "rival"),
        Target(f"udp: lost at {OPEN_RATE}/s", at_rate, "lost", "<=", 0),
        Target("udp: CPU per datagram over the better rival's", at_rate, "cpu_us_per_datagram", "<=", 1.0, "rival"),
        Target("memory: idle, MB", "memory", "idle_mb", "<=", 40),
        Target(f"memory: more with {IDLE_FLOWS} idle flows, MB", "memory", "more_mb", "<=", 4),
        Target("memory: still more 10 s after closing them, MB", "memory", "kept_mb", "<=", KEPT_MB),
        Target("start to first byte, ms", "start", "start_ms", "<=", 300),
    ]
    return made


def values(outcome: Outcome, target: Target, engine: str, rivals: Sequence[str] = RIVALS) -> Rounds:
    """Return what a target looks at, by round."""
    own = outcome.column(target.measure, target.metric, engine)
    match target.against:
        case "itself":
            return own
        case "ceiling":
            return ratios(own, outcome.column(target.measure, target.metric, CEILING))
        case "measure":
            return ratios(own, outcome.column(target.base, target.metric, engine))
        case "rival":
            columns = [outcome.column(target.measure, target.metric, name) for name in rivals]
            return ratios(own, best(columns, target.side))


def rows(outcome: Outcome, engine: str, measures: Sequence[str]) -> list[Row]:
    """Return the targets of these measures with what was seen of an engine."""
    found = []
    for target in all_targets():
        if target.measure in measures:
            seen = spread(values(outcome, target, engine).values())
            found.append(Row(target, seen, verdict(seen, target.side, target.limit)))
    return found
