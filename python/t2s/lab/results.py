"""What was measured: every phase's tree as the compiled lab gave it, and the frames made from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from t2s._core import Lab
from t2s.lab.columns import COLUMNS, Value, metrics, over_rounds

if TYPE_CHECKING:
    import polars as pl

    from t2s.lab.outcome import Evaluation
    from t2s.lab.scenario import PhaseName, ScenarioFile, StepName

Row = dict[str, Any]

KEPT_SECONDS = 10.0
"""Measured time from which a load phase that was ended early is kept: ten 1 s windows of CPU, as "sustained" asks."""

GENERATOR_MARGIN = 2.0
"""The generator must do this many times what is asked of the core, else a row is labelled `generator_bound`."""

GROWTH_ROUNDS = 4
"""Rounds from which a heap that rises in each round is no accident: four random values are in order once in 24."""

SAMPLES_MIN = 3
"""Rounds with a valid sample from which samples speak for a soak."""

MOMENTS_FROM = 1_000_000
"""Number of the first of the baseline's probes where they stand for themselves: beyond the most rounds of a file."""

IDENTITY = ("variant", "scenario", "round", "driver", "workers", "seed", "valid", "capacity_valid", "invalid")
"""Columns of the rounds' frame before the metrics."""


class Histogram(Protocol):
    """An HDR histogram of nanoseconds, as `t2s._core.Histogram`."""

    def merge(self, other: Any) -> None:
        """Add another's counts."""

    def percentile(self, percentile: float) -> int:
        """Return the value at a percentile from 0 to 100."""

    @property
    def count(self) -> int:
        """Recorded values."""

    def encode(self) -> str:
        """Return the base64 of the V2 format."""


Decode = Callable[[str], Histogram]


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """One phase that was run."""

    scenario: str
    phase: StepName
    round: int
    variant: str
    spec: Mapping[str, Any]
    tree: Mapping[str, Any]

    @property
    def invalid(self) -> str | None:
        """Why this phase says nothing about the core; None when it does."""
        told = self.tree.get("invalid")
        if told and not self._is_kept():
            return str(told)
        intended, offered = self.tree.get("intended") or 0, self.tree.get("offered") or 0
        if self.spec.get("phase") == "load" and intended and offered < Lab.OFFERED_RATIO_MIN * intended:
            return f"the generator offered {offered / intended:.1%} of what was intended"
        return None

    def _is_kept(self) -> bool:
        """Whether this is a load phase that the user ended, and long enough to say something."""
        return bool(self.tree.get("interrupted")) and (self.tree.get("seconds") or 0.0) >= KEPT_SECONDS


Evaluate = Callable[["Results"], "Evaluation"]


@dataclass
class Results:
    """Everything one run measured."""

    file: ScenarioFile
    phases: list[PhaseResult]
    environment: dict[str, Any]
    evaluate: Evaluate = field(repr=False)
    """What makes verdicts of these results: `verdict.evaluate`, which is built upon them."""
    interrupted: bool = False
    decode: Decode | None = field(default=None, repr=False)

    @cached_property
    def rounds(self) -> pl.DataFrame:
        """One row a variant, scenario and round, with all columns of `t2s.lab.columns`."""
        import polars as pl  # noqa: PLC0415 - heavy, and the tunnel never needs it

        schema: dict[str, Any] = dict.fromkeys(IDENTITY, pl.String)
        schema |= {
            "round": pl.Int64,
            "workers": pl.Int64,
            "seed": pl.Int64,
            "valid": pl.Boolean,
            "capacity_valid": pl.Boolean,
        }
        schema |= dict.fromkeys(COLUMNS, pl.Float64)
        return pl.DataFrame(self.rows(), schema=schema, orient="row")

    @cached_property
    def summary(self) -> pl.DataFrame:
        """One row a variant and scenario: rounds summed up as each column says, quantiles from merged histograms."""
        import polars as pl  # noqa: PLC0415 - heavy, and the tunnel never needs it

        rows = [
            self._summary_row(variant, scenario) for variant in self.variants for scenario in self.scenarios(variant)
        ]
        schema: dict[str, Any] = {
            "variant": pl.String,
            "scenario": pl.String,
            "rounds": pl.Int64,
            "invalid_rounds": pl.Int64,
            "null_pps": pl.Float64,
            "generator_bound": pl.String,
            **dict.fromkeys(COLUMNS, pl.Float64),
        }
        return pl.DataFrame(rows, schema=schema, orient="row")

    @cached_property
    def verdicts(self) -> Evaluation:
        """The thresholds of the file, evaluated on the rounds of the unchanged variant."""
        return self.evaluate(self)

    @property
    def variants(self) -> list[str]:
        """Variants that were run, in order; one empty name unless this is an ablation."""
        return list(dict.fromkeys(phase.variant for phase in self.phases))

    def scenarios(self, variant: str = "") -> list[str]:
        """Scenarios with a measured load or capacity phase, in the order of the file."""
        measured = {"load", "capacity"}
        seen = {phase.scenario for phase in self.phases if phase.variant == variant and phase.phase in measured}
        return [scenario.name for scenario in self.file.scenario if scenario.name in seen]

    def trees(self, scenario: str, phase: PhaseName, variant: str = "") -> list[Mapping[str, Any]]:
        """Return the valid trees of a scenario's phase, in order of rounds."""
        return [
            p.tree
            for p in self._sorted()
            if (p.scenario, p.phase, p.variant) == (scenario, phase, variant) and p.invalid is None
        ]

    def rows(self) -> list[Row]:
        """Return the rows of `rounds` as dictionaries."""
        pairs: dict[tuple[str, str, int], dict[str, PhaseResult]] = {}
        for phase in self._sorted():
            if phase.phase in {"load", "capacity"}:
                pairs.setdefault((phase.variant, phase.scenario, phase.round), {})[phase.phase] = phase
        rows: list[Row] = []
        for (variant, scenario, number), found in pairs.items():
            load, capacity = found.get("load"), found.get("capacity")
            spec = (load or found["capacity"]).spec
            invalid = load.invalid if load else None
            rows.append(
                {
                    "variant": variant,
                    "scenario": scenario,
                    "round": number,
                    "driver": spec.get("driver", "memory"),
                    "workers": spec["workers"],
                    "seed": spec["seed"],
                    "valid": invalid is None,
                    "capacity_valid": capacity is not None and capacity.invalid is None,
                    "invalid": invalid,
                    **metrics(load.tree if load else None, capacity.tree if capacity else None),
                }
            )
        return _with_heap_growth(rows)

    def values(self, scenario: str, column: str, variant: str = "") -> dict[int, float]:
        """Return a column's values by round, valid rounds only.

        A soak has one round; its percentiles come by slice instead, under negative numbers, since no slice was measured
        beside another scenario's round.
        """
        if slices := self._slices(scenario, column, variant):
            return slices
        found = self._by_scenario.get((variant, scenario), ())
        return {row["round"]: row[column] for row in found if _counts(row, column) and row[column] is not None}

    def paired_baseline(self, scenario: str, column: str) -> dict[int, float]:
        """Return a column's values of the baseline by round of `scenario`, measured right before it; valid ones only.

        Between the probe before a round and the next one after it, by their geometric mean: a machine's state is a
        factor. Empty when the file wants no such probes.
        """
        values: dict[int, float] = {}
        last: int | None = None
        for name, number, row in self._baseline_probes:
            value = row[column]
            if last is not None and value is not None:
                values[last] = math.sqrt(values[last] * value)
            last = None
            if name == scenario and value is not None:
                values[number] = value
                last = number
        return values

    def soak_probes(self, scenario: str, column: str) -> dict[int, float]:
        """Return a percentile of a soak by round, of its probes beside the baseline; valid ones only.

        Empty for other columns, which are about the whole soak, and with samples of fewer than `SAMPLES_MIN` rounds or
        of less than half of them.
        """
        if not self._slices(scenario, column, ""):
            return {}
        found = {number: row[column] for number, row in self._soak_probes.get(scenario, {}).items()}
        valid = {number: value for number, value in found.items() if value is not None}
        return valid if len(valid) >= max(SAMPLES_MIN, self.file.run.rounds / 2) else {}

    def baseline_probes(self, column: str) -> dict[int, float]:
        """Return a column's values of all of the baseline's probes, numbered beyond all rounds; valid ones only."""
        values = [row[column] for _, _, row in self._baseline_probes]
        return dict(enumerate((value for value in values if value is not None), start=MOMENTS_FROM))

    @cached_property
    def _baseline_probes(self) -> list[tuple[str, int, Mapping[str, Value]]]:
        """The valid probes of the baseline, as they were run: for which scenario and round, and their columns."""
        found = [phase for phase in self.phases if phase.phase == "paired_baseline" and phase.invalid is None]
        return [(phase.scenario, phase.round, metrics(phase.tree, None)) for phase in found]

    @cached_property
    def _soak_probes(self) -> dict[str, dict[int, Mapping[str, Value]]]:
        """The valid probes of soaks: by scenario and round, their columns."""
        found: dict[str, dict[int, Mapping[str, Value]]] = {}
        for phase in self.phases:
            if phase.phase == "soak_probe" and phase.invalid is None:
                found.setdefault(phase.scenario, {})[phase.round] = metrics(phase.tree, None)
        return found

    def _slices(self, scenario: str, column: str, variant: str) -> dict[int, float]:
        kind, _, percentile = column.removesuffix("_ns").partition("_")
        values = [
            float(part[percentile])
            for tree in self.trees(scenario, "load", variant)
            for part in tree.get(f"{kind}_slices") or ()
            if percentile in part
        ]
        return {-1 - at: value for at, value in enumerate(values)}

    def histogram(self, scenario: str, kind: str, phase: PhaseName = "load", variant: str = "") -> Histogram | None:
        """Return the merged histogram of all valid rounds; None when there is none or no decoder."""
        encoded = [
            tree[kind]["hdr"] for tree in self.trees(scenario, phase, variant) if (tree.get(kind) or {}).get("hdr")
        ]
        if self.decode is None or not encoded:
            return None
        merged = self.decode(encoded[0])
        for text in encoded[1:]:
            merged.merge(self.decode(text))
        return merged

    def merged_quantile(self, scenario: str, spec: str, phase: PhaseName = "load", variant: str = "") -> float | None:
        """Return a quantile (`histogram:quantile`) of all rounds together."""
        kind, quantile = spec.split(":")
        key = (scenario, kind, phase, variant)
        if key not in self._histograms:
            self._histograms[key] = self.histogram(scenario, kind, phase, variant)
        histogram = self._histograms[key]
        return None if histogram is None else float(histogram.percentile(100 * float(quantile)))

    @cached_property
    def _histograms(self) -> dict[tuple[str, str, PhaseName, str], Histogram | None]:
        return {}

    @cached_property
    def _by_scenario(self) -> dict[tuple[str, str], list[Row]]:
        grouped: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows():
            grouped.setdefault((row["variant"], row["scenario"]), []).append(row)
        return grouped

    def _sorted(self) -> list[PhaseResult]:
        order = {scenario.name: at for at, scenario in enumerate(self.file.scenario)}
        variants = {variant: at for at, variant in enumerate(self.variants)}
        return sorted(self.phases, key=lambda p: (variants[p.variant], order[p.scenario], p.round))

    def _summary_row(self, variant: str, scenario: str) -> Row:
        rows = self._by_scenario.get((variant, scenario), [])
        valid = [row for row in rows if row["valid"]]
        row: Row = {
            "variant": variant,
            "scenario": scenario,
            "rounds": len(valid),
            "invalid_rounds": len(rows) - len(valid),
        }
        for column in COLUMNS.values():
            values = [r[column.name] for r in rows if _counts(r, column.name) and r[column.name] is not None]
            row[column.name] = over_rounds(column.aggregate, values)
            if column.merged is not None and values:
                phase: PhaseName = "capacity" if column.name.startswith("capacity_") else "load"
                quantile = self.merged_quantile(scenario, column.merged, phase, variant)
                row[column.name] = row[column.name] if quantile is None else quantile
        null = [p.tree for p in self.phases if p.scenario == scenario and p.phase == "generator_selftest"]
        row["null_pps"] = float(null[0]["offered"]) / null[0]["seconds"] if null and null[0].get("seconds") else None
        row["generator_bound"] = _generator_bound(row, self.file.named(scenario).rate_pps)
        return row


def _counts(row: Row, column: str) -> bool:
    """Whether the phase that a column was read from is valid in this round."""
    return bool(row["capacity_valid"] if column.startswith("capacity_") else row["valid"])


def _generator_bound(row: Row, rate_pps: float | None) -> str | None:
    """Name the phases in which the generator alone does less than twice what was asked of the core."""
    if row["null_pps"] is None:
        return None
    asked = {"load": rate_pps, "capacity": row["capacity_pps"]}
    bound = [phase for phase, pps in asked.items() if pps and row["null_pps"] < GENERATOR_MARGIN * pps]
    return " and ".join(bound) or None


def _with_heap_growth(rows: Iterable[Row]) -> list[Row]:
    """Fill in `heap_growth_bytes`, which says whether the pool's heap rose from round to round.

    Fewer than `GROWTH_ROUNDS` rounds that rise may do so by accident. They show that nothing grew when no round's
    heap did after warm-up, or when the short capacity phases needed as large a heap as the load phases ever had; else
    nothing is known (null).
    """
    grouped: dict[tuple[str, str], list[Row]] = {}
    everything = list(rows)
    for row in everything:
        grouped.setdefault((row["variant"], row["scenario"]), []).append(row)
    for group in grouped.values():
        peaks = [row["heap_peak_bytes"] for row in group if row["heap_peak_bytes"] is not None]
        if not peaks:
            continue
        growth: float | None = 0.0
        if all(later > earlier for earlier, later in pairwise(peaks)):
            steady = not any(
                row["pool_grow_stalls_after_warmup"] or row["preallocated_slabs_after_warmup"] for row in group
            )
            short = max(row["capacity_heap_peak_bytes"] or 0 for row in group)
            if len(peaks) >= GROWTH_ROUNDS:
                growth = peaks[-1] - peaks[0]
            elif not steady and max(peaks) > short:
                growth = None
        for row in group:
            if row["heap_peak_bytes"] is not None:
                row["heap_growth_bytes"] = growth
    return everything
