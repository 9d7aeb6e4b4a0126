"""What the measurements say about causes: hotspots, differences to the baseline, priorities.

Promises: every sentence made from these rests on measured stage times or counts of this very run, and a cause is named
only when it differs from the baseline in the same direction in every round and is large enough to matter. Otherwise the
cause is not established, and that is what is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from t2s.lab.outcome import Status, Verdict
from t2s.lab.statistics import Interval, median_interval, smallest_visible_effect

if TYPE_CHECKING:
    from t2s.lab.results import Results
    from t2s.lab.scenario import PhaseName

Tree = Mapping[str, Any]

UNATTRIBUTED = "unattributed"
"""The row for CPU time that no stage accounts for."""

WHOLES = frozenset({"core"})
"""Parts of the loop that sampled stages divide further; counting both would count twice."""

MATERIAL = 0.10
"""Share of the baseline's whole cost below which a difference is not called a cause: A/A runs stay below it."""

AFFECTED = 0.10
"""Share of a packet's time from which a scenario counts as affected by a stage."""


@dataclass(frozen=True, slots=True)
class Hotspot:
    """One stage of the packet path, over all scenarios."""

    rank: int
    stage: str
    ns_per_packet: Interval
    share: Interval
    """Of the engine's CPU time a packet."""
    by_scenario: Mapping[str, float]
    """Share in each scenario."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A measured difference to the baseline."""

    name: str
    kind: str
    """`stage`, `core`, `machine` or `loss`."""
    unit: str
    effect: Interval
    baseline: float
    explained: float | None
    """Share of the failed quantity's gap, where both are times."""


@dataclass(frozen=True, slots=True)
class Priority:
    """What an improvement could be worth."""

    stage: str
    share: float
    ceiling: float
    """Amdahl: how much faster a packet would be if the stage cost nothing."""
    affected: Sequence[str]


def stage_ns(tree: Tree) -> dict[str, float]:
    """Return nanoseconds a packet by stage.

    A sampled stage is a sum over `samples` packets; stages that the loop measures in full are a sum over all packets.
    """
    stages = tree.get("stages") or {}
    return {
        name: stage["ns"] / stage["samples"]
        for name, stage in stages.items()
        if stage.get("samples") and stage.get("ns") and name not in WHOLES
    }


def cost_by_round(results: Results, scenario: str, phase: PhaseName, variant: str = "") -> list[dict[str, float]]:
    """Return, for each round, nanoseconds a packet by stage, with what no stage accounts for."""
    rounds = []
    for tree in results.trees(scenario, phase, variant):
        costs = stage_ns(tree)
        whole = (tree.get("cpu") or {}).get("ns_per_packet")
        if costs and whole:
            costs[UNATTRIBUTED] = max(0.0, whole - sum(costs.values()))
        if costs:
            rounds.append(costs)
    return rounds


def hotspots(results: Results, phase: PhaseName = "capacity") -> list[Hotspot]:
    """Rank stages by their share of a packet's CPU time, the scenarios counting alike; equals share a rank."""
    by_scenario = {name: cost_by_round(results, name, phase) for name in results.scenarios()}
    by_scenario = {name: rounds for name, rounds in by_scenario.items() if rounds}
    if not by_scenario:
        return [] if phase == "load" else hotspots(results, "load")
    count = min(len(rounds) for rounds in by_scenario.values())
    stages = dict.fromkeys(stage for rounds in by_scenario.values() for costs in rounds for stage in costs)
    found: list[tuple[str, Interval, Interval, dict[str, float]]] = []
    for stage in stages:
        costs = [mean(rounds[r].get(stage, 0.0) for rounds in by_scenario.values()) for r in range(count)]
        shares = [mean(_share(rounds[r], stage) for rounds in by_scenario.values()) for r in range(count)]
        each = {name: median(_share(costs, stage) for costs in rounds) for name, rounds in by_scenario.items()}
        found.append((stage, median_interval(costs), median_interval(shares), each))
    found.sort(key=lambda item: (item[0] == UNATTRIBUTED, -item[2].point))
    ranked: list[Hotspot] = []
    for place, (stage, cost, share, each) in enumerate(found, 1):
        before = ranked[-1] if ranked else None
        rank = before.rank if before is not None and before.share.overlaps(share) else place
        ranked.append(Hotspot(rank, stage, cost, share, each))
    return ranked


def priorities(ranking: Sequence[Hotspot]) -> list[Priority]:
    """Order stages by what removing them could gain, over all scenarios that they weigh on."""
    found = [
        Priority(
            spot.stage,
            spot.share.point,
            1 / (1 - min(spot.share.point, 0.99)),
            [name for name, share in spot.by_scenario.items() if share >= AFFECTED],
        )
        for spot in ranking
    ]
    return sorted(found, key=lambda item: (item.stage == UNATTRIBUTED, -item.share * max(1, len(item.affected))))


def causes(results: Results, verdict: Verdict) -> list[Finding]:
    """Return what differs from the baseline where a threshold failed, the largest first; empty: not established."""
    if verdict.status is not Status.FAIL:
        return []
    needed = verdict.threshold.fail_if
    if "loop_" in needed:
        return _loop_findings(results, verdict.scenario)
    if "goodput" in needed or "loss" in needed or "lost" in needed:
        return _loss_findings(results, verdict.scenario)
    if "rss_" in needed or "live_bytes" in needed:
        return _leftovers(results, verdict.scenario)
    return _time_findings(
        results, verdict.scenario, "p99" if "latency_" in needed or "undisturbed_" in needed else "mean"
    )


def visible_effects(results: Results) -> dict[str, float]:
    """Return the smallest ratio that this run's rounds can tell from none, by column."""
    found: dict[str, float] = {}
    for column in (
        "undisturbed_latency_p99_ns",
        "latency_p99_ns",
        "service_time_p99_ns",
        "cpu_ns_per_packet",
        "capacity_pps",
    ):
        groups = [list(results.values(name, column).values()) for name in results.scenarios()]
        effect = smallest_visible_effect(groups, max((len(group) for group in groups), default=0))
        if effect is not None:
            found[column] = effect
    return found


def _share(costs: Mapping[str, float], stage: str) -> float:
    whole = sum(costs.values())
    return costs.get(stage, 0.0) / whole if whole else 0.0


def _number(*path: str) -> Callable[[Tree], float | None]:
    def get(tree: Tree) -> float | None:
        node: Any = tree
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return float(node) if isinstance(node, int | float) else None

    return get


def _per_packet(*path: str) -> Callable[[Tree], float | None]:
    number = _number(*path)

    def get(tree: Tree) -> float | None:
        value, packets = number(tree), tree.get("offered")
        return value / packets if value is not None and packets else None

    return get


_CORE: tuple[tuple[str, Callable[[Tree], float | None]], ...] = (
    ("waiting for the pool's lock", _per_packet("pool", "lock_wait_ns")),
    ("waiting for a flow map shard", _per_packet("flow_map", "lock_wait_ns")),
)
"""Times of the core beside the stages, nanoseconds a packet."""

_TAIL: tuple[tuple[str, str, Callable[[Tree], float | None]], ...] = (
    ("the core's own time a packet (service time p99)", "core", _number("service_time", "p99")),
    ("event loop iterations (p99 of their length)", "core", _number("loop", "hist", "p99")),
    ("longest time a worker was off the CPU", "machine", _number("loop", "max_off_cpu_ns")),
    ("latest departure of a packet in the generator", "machine", _number("generator", "behind_ns_max")),
)
"""What stretches a tail, nanoseconds."""


def _paired(results: Results, scenario: str, get: Callable[[Tree], float | None]) -> tuple[list[float], float] | None:
    """Return a quantity's differences to the baseline round by round, and its median in the baseline."""
    own = [get(tree) for tree in results.trees(scenario, "load")]
    base = [get(tree) for tree in results.trees(results.file.baseline, "load")]
    mine, theirs = ([value for value in values if value is not None] for values in (own, base))
    if not mine or not theirs:
        return None
    if len(mine) != len(theirs):
        # A soak has one round: it is held against each of the baseline's.
        mine = [median(mine)] * len(theirs)
    return [a - b for a, b in zip(mine, theirs, strict=True)], median(theirs)


def _time_findings(results: Results, scenario: str, quantile: str) -> list[Finding]:
    """Compare stage times a packet, and what stretches a tail, with the baseline's."""
    whole = _paired(results, scenario, _number("service_time", "mean")) or _paired(
        results, scenario, _number("cpu", "ns_per_packet")
    )
    gap = _paired(results, scenario, _number("latency", "p99"))
    found: list[Finding] = []
    stages = dict.fromkeys(stage for tree in results.trees(scenario, "load") for stage in stage_ns(tree))
    candidates: list[tuple[str, str, Callable[[Tree], float | None]]] = [
        (stage, "stage", _stage_getter(stage)) for stage in stages
    ]
    candidates += [(name, "core", get) for name, get in _CORE]
    scale = whole[1] if whole else 0.0
    for name, kind, get in candidates:
        finding = _finding(results, scenario, name, kind, get, scale, median(whole[0]) if whole else None)
        found += [finding] if finding else []
    if quantile == "p99" and gap is not None:
        for name, kind, get in _TAIL:
            finding = _finding(results, scenario, name, kind, get, gap[1], median(gap[0]))
            found += [finding] if finding else []
    return sorted(found, key=lambda item: -item.effect.point)


def _stage_getter(stage: str) -> Callable[[Tree], float | None]:
    return lambda tree: stage_ns(tree).get(stage, 0.0)


def _finding(  # noqa: PLR0917 - one call a candidate, in columns
    results: Results,
    scenario: str,
    name: str,
    kind: str,
    get: Callable[[Tree], float | None],
    scale: float,
    gap: float | None,
) -> Finding | None:
    """Return a difference that is there in every round and matters beside `scale`; None otherwise."""
    pair = _paired(results, scenario, get)
    if pair is None:
        return None
    effect = median_interval(pair[0])
    if min(pair[0]) <= 0 or effect.point < MATERIAL * scale:
        return None
    explained = effect.point / gap if gap and gap > 0 and math.isfinite(gap) else None
    return Finding(name, kind, "ns", effect, pair[1], explained)


def _loop_findings(results: Results, scenario: str) -> list[Finding]:
    """Group the watchdog's stalls by the stage that they stood in."""
    by_stage: dict[str, list[tuple[float, float]]] = {}
    for tree in results.trees(scenario, "load"):
        for stall in (tree.get("loop") or {}).get("stalls") or ():
            by_stage.setdefault(stall["stage"], []).append((stall["wall_ns"], stall["off_cpu_ns"]))
    found = []
    for stage, stalls in by_stage.items():
        on_cpu = max(wall - off for wall, off in stalls)
        off_cpu = max(off for _, off in stalls)
        kind = "stage" if on_cpu > off_cpu else "machine"
        worst = max(on_cpu, off_cpu)
        found.append(
            Finding(
                f"{stage} ({len(stalls)} stalls)", kind, "ns", Interval(worst, worst, worst, len(stalls)), 0.0, None
            )
        )
    return sorted(found, key=lambda item: -item.effect.point)


def _loss_findings(results: Results, scenario: str) -> list[Finding]:
    """Compare losses by reason, as shares of what was offered."""
    trees = results.trees(scenario, "load")
    reasons = dict.fromkeys(reason for tree in trees for reason in tree.get("lost_by_reason") or {})
    found = []
    for reason in reasons:
        pair = _paired(results, scenario, _loss_getter(reason))
        if pair is not None and min(pair[0]) > 0:
            found.append(Finding(reason, "loss", "of offered", median_interval(pair[0]), pair[1], None))
    return sorted(found, key=lambda item: -item.effect.point)


def _loss_getter(reason: str) -> Callable[[Tree], float | None]:
    def get(tree: Tree) -> float | None:
        offered = tree.get("offered")
        return (tree.get("lost_by_reason") or {}).get(reason, 0) / offered if offered else None

    return get


def _leftovers(results: Results, scenario: str) -> list[Finding]:
    """Name what was still held after the drain."""
    row = results.summary.filter((results.summary["scenario"] == scenario) & (results.summary["variant"] == ""))
    facts = row.row(0, named=True)
    names = {
        "live_bytes": "buffers not given back",
        "live_flows": "flows left",
        "live_timers": "timers left",
        "reassembly_after_drain_bytes": "bytes left in reassembly",
        "heap_growth_bytes": "growth of the pool's heap",
    }
    return [
        Finding(text, "core", "left", Interval(facts[name], facts[name], facts[name], facts["rounds"]), 0.0, None)
        for name, text in names.items()
        if facts[name]
    ]
