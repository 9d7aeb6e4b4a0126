"""Thresholds and what became of them: PASS, FAIL, or INCONCLUSIVE with its reason.

A threshold's `fail_if` is evaluated on 10,000 bootstrap resamples of the rounds at once, one row each, so that any
expression works. FAIL when it holds in at least 97.5 % of them, PASS when in at most 2.5 %, else the rounds do not
decide it. The scenario and the baseline are resampled by the same draw, since round by round they were measured side
by side; where the file has the baseline run right before each round (`paired_baseline_seconds`), those paired baselines
count. Of a single comparison between such pairs it is the median difference of its sides that decides, each taken
within its round: on a machine that has two states, medians of each side may come from different ones. A soak's
percentiles are compared by its probes, which are such pairs; without them (`soak_probe_seconds`) its slices are
compared with all paired baselines by the `middle` of both. Facts (maxima, counts, live bytes) have no interval: they
hold or they do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from t2s.lab import expression
from t2s.lab.columns import COLUMNS, Value, over_rounds
from t2s.lab.expression import Expression, baseline_name
from t2s.lab.outcome import Evaluation, Status, Verdict
from t2s.lab.statistics import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Interval,
    median_coverage,
    middle,
    ratio_interval,
    resampled_medians,
    resampled_middles,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import polars as pl

    from t2s.lab.results import Results
    from t2s.lab.scenario import Threshold

TAIL = (1 - CONFIDENCE) / 2

OWN_INTERVALS = {
    "rss_growth_percent_per_hour": ("rss_slope_low_percent_per_hour", "rss_slope_high_percent_per_hour"),
}
"""Columns that come with an interval of their own, from within each run."""

NO_ROUND = "no valid round"
"""The reason where every round was invalid."""

STEAL_MS = 1.0
"""Time taken by the hypervisor in one phase from which it is named, milliseconds."""
DISTURBED = 0.05
"""Share of packets that stalls delayed above which a verdict says so; about 0.01 is usual on a virtual machine."""
TAIL_OF_P99 = 0.01
"""Share of samples above a 99th percentile."""

DRIFT = 2.0
"""How many times the percentile of its probes a soak may have in its last third; machine noise is below this."""
DRIFT_SLICES = 3
"""Slices of such a third at least: one alone may be what a stall has spoilt."""

OFF_CPU_NS = 2e6
"""Off-CPU time in one iteration from which the machine is named, nanoseconds: longer than a scheduler's usual slice."""


def evaluate(results: Results) -> Evaluation:
    """Evaluate every threshold of the file on the results' unchanged variant."""
    measured = [
        name for name in results.scenarios() if any(p.scenario == name and p.phase == "load" for p in results.phases)
    ]
    verdicts = [
        judge(results, name, threshold)
        for name in measured
        for threshold in results.file.threshold
        if threshold.applies_to(name)
    ]
    missing = tuple(scenario.name for scenario in results.file.scenario if scenario.name not in measured)
    machine = {name: tuple(_machine(results, name)) for name in measured}
    return Evaluation(
        tuple(verdicts), missing, results.interrupted, {name: did for name, did in machine.items() if did}
    )


def judge(results: Results, scenario: str, threshold: Threshold) -> Verdict:
    """Evaluate one threshold on one scenario."""
    fail_if = expression.parse(threshold.fail_if, COLUMNS)
    frame, rounds = resampled(results, scenario, fail_if)
    pairs = _pairs(results, scenario, fail_if)
    share = _share(frame, fail_if) if pairs is None else pairs.share()
    measured, limit, ratio = _sides(results, scenario, fail_if, frame, rounds)
    if pairs is not None:
        ratio = ratio_interval(pairs.left, pairs.right)
    reasons: list[str] = []
    if share is None:
        status = Status.INCONCLUSIVE
        reasons[:0] = _missing(results, scenario, fail_if)
    elif share >= 1 - TAIL:
        status = Status.FAIL
    elif share <= TAIL:
        status = Status.PASS
    else:
        status = Status.INCONCLUSIVE
        reasons.insert(0, f"the rounds disagree: it held in {share:.0%} of the resamples of {_rounds(rounds)}")
    if status is Status.FAIL and (cause := _stolen(results, scenario, fail_if, measured, limit)):
        status = Status.INCONCLUSIVE
        reasons.insert(0, cause)
    if status is Status.PASS and (drift := _drift(results, scenario, fail_if)):
        status = Status.INCONCLUSIVE
        reasons.insert(0, drift)
    if status is Status.INCONCLUSIVE and threshold.pass_if is not None:
        pass_if = expression.parse(threshold.pass_if, COLUMNS)
        settled, _ = resampled(results, scenario, pass_if)
        if (_share(settled, pass_if) or 0.0) >= 1 - TAIL:
            status = Status.PASS
            reasons.insert(0, f"settled by {threshold.pass_reason or f'`{threshold.pass_if}`'}")
    return Verdict(scenario, threshold, status, share, measured, limit, ratio, rounds, tuple(reasons))


def resampled(results: Results, scenario: str, needed: Expression) -> tuple[pl.DataFrame, int]:
    """Return the frame that an expression is evaluated on, a row a resample, and the rounds behind it.

    Facts and columns without a value stand as constants; a frame of facts alone has the same rows, all alike.
    """
    import polars as pl  # noqa: PLC0415 - heavy, and the tunnel never needs it

    baseline = results.file.baseline
    own = {name: _of_scenario(results, scenario, name, needed) for name in needed.columns}
    base = {name: _of_baseline(results, scenario, name) for name in needed.baseline_columns}
    paired = _paired_rounds([*own.values(), *base.values()])
    resample = resampled_middles if _is_mixed(results, scenario, needed) else resampled_medians
    series: list[pl.Series] = []
    rounds = [len(paired)] if paired else []
    for values, names, prefix, stream in ((own, needed.columns, False, 0), (base, needed.baseline_columns, True, 1)):
        for name in sorted(names):
            label = baseline_name(name) if prefix else name
            found = [values[name][r] for r in paired] if paired else list(values[name].values())
            column = COLUMNS[name]
            if not found or not column.is_estimate:
                # A fact about the worst round is about all rounds, paired or not.
                constant = over_rounds(column.aggregate, list(values[name].values()))
                series.append(pl.repeat(constant, RESAMPLES, dtype=pl.Float64, eager=True).alias(label))
                rounds.append(len(values[name]))
            else:
                drawn = resample(found, 0 if paired or scenario == baseline else stream)
                series.append((drawn + _own_noise(results, scenario, name)).alias(label))
                rounds.append(len(found))
    frame = pl.DataFrame(series) if series else pl.DataFrame({"": [0.0]})
    return frame, min(rounds, default=0)


def _of_baseline(results: Results, scenario: str, column: str) -> dict[int, float]:
    """Return the baseline's values that a scenario's are held against, by round.

    What has no paired baseline, a soak's one long phase, is held against all probes of the run.
    """
    if not COLUMNS[column].is_estimate:
        return results.values(results.file.baseline, column)
    alone = results.file.named(scenario).soak and not results.soak_probes(scenario, column)
    probes = results.baseline_probes(column) if alone else results.paired_baseline(scenario, column)
    return probes or results.values(results.file.baseline, column)


def _of_scenario(results: Results, scenario: str, column: str, needed: Expression) -> dict[int, float]:
    """Return a scenario's own values, by round; of a soak against the baseline its samples, if it has any."""
    samples = results.soak_probes(scenario, column) if needed.baseline_columns else {}
    return samples or results.values(scenario, column)


def _drift(results: Results, scenario: str, needed: Expression) -> str | None:
    """Say that a soak that was judged by its samples, short ones of a fresh core, has become slower than they were."""
    for name in sorted(needed.columns if needed.baseline_columns else ()):
        samples, slices = results.soak_probes(scenario, name), list(results.values(scenario, name).values())
        third = len(slices) // 3
        if samples and third >= DRIFT_SLICES:
            factor = middle(slices[-third:]) / median(samples.values())
            if factor > DRIFT:
                return f"`{name}` of the last third of the soak is {factor:.1f} times that of its samples"
    return None


def _is_mixed(results: Results, scenario: str, needed: Expression) -> bool:
    """Whether an expression holds a soak's slices against the baseline of other times."""
    soak = results.file.named(scenario).soak and bool(needed.baseline_columns)
    return soak and not any(results.soak_probes(scenario, name) for name in needed.columns)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Both sides of a comparison, round by round."""

    left: list[float]
    sign: str
    right: list[float]

    def share(self) -> float:
        """Return the share of resamples in which the comparison holds for the median difference."""
        drawn = resampled_medians([a - b for a, b in zip(self.left, self.right, strict=True)])
        holds = {">": drawn > 0, ">=": drawn >= 0, "<": drawn < 0, "<=": drawn <= 0, "==": drawn == 0, "!=": drawn != 0}
        return float(holds[self.sign].cast(int).mean())  # type: ignore[arg-type]


def _pairs(results: Results, scenario: str, fail_if: Expression) -> _Pairs | None:
    """Return the sides of a single comparison that holds the baseline's estimates against a scenario's, round by round.

    None for any other expression, and where the two were not measured in the same rounds.
    """
    import polars as pl  # noqa: PLC0415 - heavy, and the tunnel never needs it

    split = fail_if.comparison()
    names = {*fail_if.columns, *fail_if.baseline_columns}
    judged = all(COLUMNS[name].is_estimate and name not in OWN_INTERVALS for name in names)
    if split is None or not judged or not fail_if.columns or not fail_if.baseline_columns:
        return None
    values = {name: _of_scenario(results, scenario, name, fail_if) for name in fail_if.columns}
    values |= {baseline_name(name): _of_baseline(results, scenario, name) for name in fail_if.baseline_columns}
    rounds = _paired_rounds(list(values.values()))
    if not rounds:
        return None
    frame = pl.DataFrame({name: [found[r] for r in rounds] for name, found in values.items()})
    left, sign, right = split
    sides = frame.select(
        left.to_polars().cast(pl.Float64).alias("left"), right.to_polars().cast(pl.Float64).alias("right")
    )
    if sides.null_count().sum_horizontal().item():
        return None
    return _Pairs(sides["left"].to_list(), sign, sides["right"].to_list())


def _paired_rounds(columns: list[dict[int, float]]) -> list[int]:
    """Return the rounds in which every column has a value, if they are all rounds of at least one; else none."""
    filled = [set(column) for column in columns if column]
    if not filled or len(filled) < len(columns):
        return []
    common = set.intersection(*filled)
    # A soak has one long round: pairing it with one round of the baseline would throw the others away.
    return sorted(common) if len(common) > 1 or all(len(rounds) == 1 for rounds in filled) else []


def _own_noise(results: Results, scenario: str, column: str) -> pl.Series | float:
    """Return the spread that a column's own interval stands for, as a normal deviate a resample."""
    import random  # noqa: PLC0415 - beside its only use

    import polars as pl  # noqa: PLC0415 - heavy, and the tunnel never needs it

    if column not in OWN_INTERVALS:
        return 0.0
    low, high = (results.values(scenario, name) for name in OWN_INTERVALS[column])
    widths = [high[r] - low[r] for r in low if r in high]
    if not widths:
        return 0.0
    draw = random.Random(SEED)  # noqa: S311 - resampling, no secret
    sigma = sum(widths) / len(widths) / (2 * 1.96)
    return pl.Series([draw.gauss(0.0, sigma) for _ in range(RESAMPLES)], dtype=pl.Float64)


def _share(frame: pl.DataFrame, truth: Expression) -> float | None:
    """Return the share of resamples in which an expression holds; None when it is unknown."""
    outcome = frame.select(truth.to_polars().alias("outcome")).to_series()
    return None if outcome.null_count() else float(outcome.cast(int).mean())  # type: ignore[arg-type]


def _sides(
    results: Results, scenario: str, fail_if: Expression, frame: pl.DataFrame, rounds: int
) -> tuple[float | None, float | None, Interval | None]:
    """Return both sides of a single comparison as measured, and their ratio over the resamples."""
    import polars as pl  # noqa: PLC0415 - heavy, and the tunnel never needs it

    split = fail_if.comparison()
    if split is None:
        return None, None, None
    left, _, right = split
    mixed = _is_mixed(results, scenario, fail_if)

    def value(name: str, rounds: dict[int, float]) -> Value:
        if mixed and COLUMNS[name].is_estimate and rounds:
            return middle(list(rounds.values()))
        return over_rounds(COLUMNS[name].aggregate, list(rounds.values()))

    own = {name: [value(name, _of_scenario(results, scenario, name, fail_if))] for name in fail_if.columns}
    base = {
        baseline_name(name): [value(name, _of_baseline(results, scenario, name))] for name in fail_if.baseline_columns
    }
    point = pl.DataFrame({**own, **base, "": [0.0]})
    measured, limit = (point.select(side.to_polars().cast(pl.Float64).alias("v")).item(0, 0) for side in (left, right))
    ratio = None
    if measured is not None and limit:
        drawn = frame.select((left.to_polars() / right.to_polars()).cast(pl.Float64).alias("v")).to_series()
        if drawn.null_count() == 0 and len(drawn) and bool(drawn.is_finite().all()):
            low, high = (float(drawn.quantile(at) or 0.0) for at in (TAIL, 1 - TAIL))
            ratio = Interval(low, measured / limit, high, rounds)
    return measured, limit, ratio


def _stolen(
    results: Results, scenario: str, fail_if: Expression, measured: float | None, limit: float | None
) -> str | None:
    """Say why a failed threshold on times may be the hypervisor's doing; None when it cannot be.

    A guest's clocks, the CPU time of its threads among them, run on while the hypervisor has its CPU. A 99th percentile
    rests on the slowest 1 %: once the hypervisor took as much of the time, that tail is its own. A single longest turn
    is explained by less, if what was taken covers what is above the limit.
    """
    steal, seconds = (results.values(scenario, name) for name in ("steal_ms", "seconds"))
    shares = [steal[r] / (1e3 * seconds[r]) for r in steal if seconds.get(r)]
    if not shares:
        return None
    taken, share = max(steal.values()), sum(shares) / len(shares)
    if fail_if.columns & {"latency_p99_ns", "service_time_p99_ns"} and share >= TAIL_OF_P99:
        return f"the hypervisor took {share:.1%} of the time, as much as the tail that a 99th percentile rests on"
    over = (measured or 0.0) - (limit or 0.0)
    if fail_if.columns & {"loop_on_cpu_max_ns", "loop_wall_max_ns"} and limit and taken * 1e6 >= over > 0:
        return f"the hypervisor took {taken:.0f} ms, which a guest's thread clocks count as its own"
    return None


def _missing(results: Results, scenario: str, needed: Expression) -> list[str]:
    """Name the columns without a value."""
    if not any(row["valid"] for row in results.rows() if (row["variant"], row["scenario"]) == ("", scenario)):
        return [NO_ROUND]
    reasons = []
    for name in sorted(needed.columns):
        if not results.values(scenario, name):
            short = name == "rss_growth_percent_per_hour"
            reasons.append("the run is too short to know the growth an hour" if short else f"no value of `{name}`")
    reasons += [
        f"no value of the baseline's `{name}`"
        for name in sorted(needed.baseline_columns)
        if not results.values(results.file.baseline, name)
    ]
    return reasons


def _machine(results: Results, scenario: str) -> Iterable[str]:
    """Name what the machine, not the core, did to this scenario's rounds."""
    row = results.summary.filter((results.summary["scenario"] == scenario) & (results.summary["variant"] == ""))
    if row.is_empty():
        return
    facts = row.row(0, named=True)
    if facts["invalid_rounds"]:
        causes = {p.invalid for p in results.phases if p.scenario == scenario and p.phase == "load" and p.invalid}
        # One example of each kind: the same sentence with other figures says nothing new.
        kinds = {re.sub(r"[\d.,]+", "#", cause): cause for cause in sorted(causes, reverse=True)}
        yield f"{_rounds(facts['invalid_rounds'])} left out: {'; '.join(kinds.values())}"
    if facts["generator_bound"]:
        yield f"generator_bound in {facts['generator_bound']}"
    if (facts["loop_off_cpu_max_ns"] or 0) > OFF_CPU_NS:
        yield f"the machine took a worker off the CPU for {facts['loop_off_cpu_max_ns'] / 1e6:.1f} ms"
    if (facts["disturbed_ratio"] or 0) > DISTURBED:
        yield (
            f"stalls of the machine delayed {facts['disturbed_ratio']:.0%} of the packets, "
            "which `undisturbed_latency_*` leaves out"
        )
    if (facts["runnable_threads"] or 0) >= 1:
        yield f"{facts['runnable_threads']:.0f} other threads wanted a CPU"
    if (facts["steal_ms"] or 0) > STEAL_MS:
        yield f"the hypervisor took {facts['steal_ms']:.0f} ms"


def busy_note(results: Results) -> str:
    """Say that other processes disturbed the run; empty when few did."""
    others = results.summary["runnable_threads"].drop_nulls().to_list()
    busy = sum(1 for number in others if number >= 1)
    if 2 * busy <= len(others):
        return ""
    return "the machine was busy with other processes: latencies, also the baseline's, are theirs as much as the core's"


def _rounds(number: int) -> str:
    return f"{number} round{'' if number == 1 else 's'}"


def rounds_note(rounds: int) -> str:
    """Say how much an interval over so few rounds can promise; empty when it is enough."""
    coverage = median_coverage(rounds)
    if coverage >= CONFIDENCE:
        return ""
    return f"{_rounds(rounds)}: an interval over them holds the true median at most {coverage:.0%} of the time"
