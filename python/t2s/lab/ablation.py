"""What each of the five optimizations is worth: the same matrix with one of them off at a time, in one run.

Variants are interleaved with the unchanged core within each round and get the same packets, so each figure is a paired
ratio with its interval: unchanged over switched off, above 1 where the optimization helps.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.table import Table

from t2s.errors import LabError
from t2s.lab import formatting
from t2s.lab.runner import Variant
from t2s.lab.scenario import ScenarioFile, Settings
from t2s.lab.statistics import Interval, median_interval
from t2s.lab.verdict import rounds_note

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from t2s.lab.results import Results


@dataclass(frozen=True, slots=True)
class Optimization:
    """One switchable optimization."""

    name: str
    title: str
    off: Settings
    evidence: str
    """Column of the capacity phase that shows what it is for, with and without it."""
    evidence_title: str


OPTIMIZATIONS = (
    Optimization(
        "flow_shards", "sharded flow map", Settings(flow_shards=1), "capacity_lock_wait_ns", "waited for locks, ns"
    ),
    Optimization(
        "pool_cache", "per-thread freelists", Settings(pool_cache=0), "capacity_lock_wait_ns", "waited for locks, ns"
    ),
    Optimization(
        "checksum", "SIMD checksum", Settings(checksum="scalar"), "capacity_cpu_ns_per_packet", "CPU ns a packet"
    ),
    Optimization(
        "reassembly",
        "bounded reassembly",
        Settings(reassembly="unbounded"),
        "capacity_reassembly_peak_bytes",
        "most bytes held",
    ),
    Optimization("watchdog", "event loop watchdog", Settings(watchdog=False), "capacity_loop_stalls", "stalls counted"),
)
"""The reference's five, in its order of priority's settings."""

ROUNDS, WARMUP_SECONDS, LOAD_SECONDS, CAPACITY_SECONDS = 5, 0.15, 0.6, 0.5
"""Length of an ablation: six variants share the time, so each phase is shorter than in a bench."""

QUICK_ROUNDS, QUICK_WARMUP_SECONDS, QUICK_LOAD_SECONDS, QUICK_CAPACITY_SECONDS = 3, 0.05, 0.2, 0.2


def prepared(file: ScenarioFile, *, quick: bool) -> ScenarioFile:
    """Return the file as an ablation runs it: shorter phases, the soak as a scenario like the others."""
    rounds, warmup, load, capacity = (
        (QUICK_ROUNDS, QUICK_WARMUP_SECONDS, QUICK_LOAD_SECONDS, QUICK_CAPACITY_SECONDS)
        if quick
        else (ROUNDS, WARMUP_SECONDS, LOAD_SECONDS, CAPACITY_SECONDS)
    )
    scenarios = tuple(scenario.model_copy(update={"soak": False}) for scenario in file.scenario)
    shorter = file.with_run(rounds=rounds, warmup_seconds=warmup, load_seconds=load, capacity_seconds=capacity)
    return shorter.model_copy(update={"scenario": scenarios, "threshold": ()})


TWO_WORKERS = "two_workers"
"""The unchanged core with two workers: one worker has one shard anyway, so shards are compared with this."""


def variants(workers: int) -> list[Variant]:
    """Return the unchanged core and the five variants; shards need two workers to be worth anything."""
    found = [Variant()]
    if workers == 1:
        found.append(Variant(TWO_WORKERS, workers=2))
    return found + [
        Variant(f"no_{item.name}", item.off, 2 if workers == 1 and item.name == "flow_shards" else None)
        for item in OPTIMIZATIONS
    ]


def _base(results: Results, item: Optimization) -> str:
    """Return the variant that a switched-off one is compared with."""
    return TWO_WORKERS if item.name == "flow_shards" and results.file.run.workers == 1 else ""


@dataclass(frozen=True, slots=True)
class Worth:
    """What one optimization is worth, for one scenario or for all of them (`scenario` empty)."""

    optimization: Optimization
    scenario: str
    capacity: Interval | None
    """Capacity PPS, on over off."""
    cpu: Interval | None
    """CPU time a packet at capacity, off over on."""
    p99: Interval | None
    """Latency p99 of the load phase, off over on."""
    evidence_on: float | None
    evidence_off: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return it flat, for JSON."""
        intervals = {"capacity": self.capacity, "cpu": self.cpu, "latency_p99": self.p99}
        return {
            "optimization": self.optimization.name,
            "scenario": self.scenario or "all",
            **{
                name: None if value is None else [value.low, value.point, value.high]
                for name, value in intervals.items()
            },
            "evidence": self.optimization.evidence,
            "evidence_on": self.evidence_on,
            "evidence_off": self.evidence_off,
        }


def worth(results: Results) -> list[Worth]:
    """Return what each optimization is worth: first over all scenarios, then for each."""
    found: list[Worth] = []
    for item in OPTIMIZATIONS:
        each = [_one(results, item, name) for name in results.scenarios()]
        found += [_all(results, item, each), *each]
    return found


def _logs(results: Results, scenario: str, item: Optimization, column: str, *, inverse: bool) -> dict[int, float]:
    """Return log ratios by round: on over off, or the other way round for what should be small."""
    on = results.values(scenario, column, _base(results, item))
    off = results.values(scenario, column, f"no_{item.name}")
    sign = -1 if inverse else 1
    return {r: sign * math.log(on[r] / off[r]) for r in on if r in off and on[r] > 0 and off[r] > 0}


_FIGURES = (("capacity_pps", False), ("capacity_cpu_ns_per_packet", True), ("latency_p99_ns", True))


def _one(results: Results, item: Optimization, scenario: str) -> Worth:
    figures = []
    for column, inverse in _FIGURES:
        logs = list(_logs(results, scenario, item, column, inverse=inverse).values())
        figures.append(median_interval(logs).map(math.exp) if logs else None)
    row = {r["variant"]: r for r in results.summary.to_dicts() if r["scenario"] == scenario}
    on, off = (row.get(name, {}).get(item.evidence) for name in (_base(results, item), f"no_{item.name}"))
    return Worth(item, scenario, figures[0], figures[1], figures[2], on, off)


def _all(results: Results, item: Optimization, each: Sequence[Worth]) -> Worth:
    """Sum up over scenarios: the geometric mean of a round is one value, and rounds make the interval."""
    figures: list[Interval | None] = []
    for column, inverse in _FIGURES:
        by_scenario = [_logs(results, name, item, column, inverse=inverse) for name in results.scenarios()]
        by_scenario = [logs for logs in by_scenario if logs]
        rounds = set.intersection(*(set(logs) for logs in by_scenario)) if by_scenario else set()
        means = [mean(logs[r] for logs in by_scenario) for r in sorted(rounds)]
        figures.append(median_interval(means).map(math.exp) if means else None)
    on, off = (
        [value for w in each if (value := getattr(w, name)) is not None] for name in ("evidence_on", "evidence_off")
    )
    whole = max if "peak" in item.evidence else mean if "per_packet" in item.evidence else sum
    return Worth(item, "", figures[0], figures[1], figures[2], whole(on) if on else None, whole(off) if off else None)


def terminal(results: Results) -> Table:
    """Return the table for the terminal: over all scenarios, and the scenario that gains most."""
    table = Table(title="What each optimization is worth: on / off, above 1.00 where it helps", title_justify="left")
    for name in (
        "Optimization",
        "Switched off by",
        "Capacity",
        "CPU a packet",
        "p99",
        "Evidence",
        "on",
        "off",
        "most in",
    ):
        table.add_column(name)
    for cells in _cells(results):
        table.add_row(*cells)
    return table


def _cells(results: Results) -> list[list[str]]:
    everything = worth(results)
    rows = []
    for item in OPTIMIZATIONS:
        whole, *each = [w for w in everything if w.optimization is item]
        best = max((w for w in each if w.capacity is not None), key=lambda w: w.capacity.point, default=None)  # type: ignore[union-attr]
        ((key, value),) = item.off.model_dump(exclude_unset=True).items()
        workers = ", two workers" if _base(results, item) else ""
        rows.append(
            [
                item.title,
                f"{key} = {json.dumps(value)}{workers}",
                formatting.ratio(whole.capacity),
                formatting.ratio(whole.cpu),
                formatting.ratio(whole.p99),
                item.evidence_title,
                formatting.short(whole.evidence_on),
                formatting.short(whole.evidence_off),
                f"{best.scenario} {formatting.ratio(best.capacity)}" if best is not None else formatting.UNKNOWN,
            ]
        )
    return rows


def render(results: Results, command: str) -> str:
    """Return the ablation as Markdown."""
    header = [
        "Optimization",
        "Switched off by",
        "Capacity PPS",
        "CPU a packet",
        "latency p99",
        "Evidence",
        "on",
        "off",
        "most in",
    ]
    each = [
        [
            w.optimization.title,
            w.scenario,
            formatting.ratio(w.capacity),
            formatting.ratio(w.cpu),
            formatting.ratio(w.p99),
            formatting.short(w.evidence_on),
            formatting.short(w.evidence_off),
        ]
        for w in worth(results)
        if w.scenario
    ]
    by_scenario = ["Optimization", "Scenario", "Capacity PPS", "CPU a packet", "latency p99", "on", "off"]
    environment = "\n".join(f"- {key}: {value}" for key, value in results.environment.items() if value is not None)
    return f"""# What each optimization is worth

`{command}`: the matrix with each optimization off in turn, interleaved in one run, the same packets in each variant
of a round. Ratios are on over off for capacity and off over on for times, so above 1.00 the optimization helps; 95 %
bootstrap intervals of the median over rounds. {rounds_note(results.file.run.rounds)}

{formatting.table(header, _cells(results), left=2)}

## By scenario

{formatting.table(by_scenario, each, left=2)}

## Environment
{environment}
"""


def save(results: Results, folder: Path, command: str) -> None:
    """Write `ablation.md`, `ablation.json` and the rounds' table.

    Raises:
        LabError: the folder cannot be written.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ablation.md").write_text(render(results, command), encoding="utf-8")
        tree = {"environment": results.environment, "worth": [w.as_dict() for w in worth(results)]}
        (folder / "ablation.json").write_text(json.dumps(tree, indent=1), encoding="utf-8")
        results.rounds.write_parquet(
            folder / "ablation.parquet", metadata={"t2s.environment": json.dumps(results.environment)}
        )
    except OSError as error:
        raise LabError(f"cannot write to {folder}: {error.strerror or error}") from error
