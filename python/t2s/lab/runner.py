"""Runs a matrix: which phase when, by which specification, and what to keep of it.

Promises: rounds are interleaved over scenarios in a seeded, shuffled order, so that machine noise spreads evenly; an
interrupt ends cleanly and keeps every phase that was measured. Measures nothing itself but what surrounds a phase.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from t2s import _core
from t2s.errors import LabError, T2sError
from t2s.lab.load_file import load_scenarios
from t2s.lab.machine import describe, runnable_threads, stolen_ms
from t2s.lab.phase_spec import phase_spec, seed_of
from t2s.lab.results import Decode, PhaseResult, Results
from t2s.lab.scenario import PhaseName, Scenario, ScenarioFile, Settings, StepName
from t2s.lab.statistics import slope_interval
from t2s.lab.verdict import evaluate

TICK_SECONDS = 0.25
"""Time between two looks at a running phase; a signal waits no longer than this."""

DRAIN_SECONDS = 60.0
"""Time beyond its own that a phase may take to set up, drain and stop before it is called hung."""

GROWTH_SECONDS = 900.0
"""Shortest load phase whose memory growth an hour is judged: below 15 min its error alone is above 1 %/h."""

SLOPE_SECONDS = 30.0
"""Shortest load phase whose slope is computed at all; its bootstrap takes a good part of a second."""

NULL_ROUND = -1
"""Round number of the generator's self-test, which has no rounds."""


class Lab(Protocol):
    """One phase in the compiled lab, as `t2s._core.Lab`."""

    def start(self) -> None:
        """Start the phase's threads."""

    def progress(self) -> Mapping[str, float]:
        """Return elapsed, seconds, offered, forwarded, pps."""

    def wait(self, timeout_s: float) -> bool:
        """Wait without the GIL; true when the phase is over."""

    def stop(self) -> None:
        """End the phase early."""

    def result(self) -> str:
        """Return the phase's result as JSON."""


MakeLab = Callable[[str], Lab]


@dataclass(frozen=True, slots=True)
class Variant:
    """A change of settings that is run beside the unchanged file."""

    name: str = ""
    settings: Settings = dataclasses.field(default_factory=Settings)
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One phase to run."""

    scenario: str
    phase: StepName
    round: int
    variant: str
    spec: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """Time that the phase takes by itself, set-up and drain left out."""
        return float(self.spec["seconds"]) + float(self.spec["warmup_seconds"])


class Observer:
    """Is told what happens; this one does nothing with it."""

    def begin(self, steps: Sequence[Step]) -> None:
        """Take note of the whole plan."""

    def phase_begins(self, step: Step) -> None:
        """Take note of a phase that starts."""

    def tick(self, step: Step, progress: Mapping[str, float]) -> None:
        """Take note of a running phase's progress."""

    def phase_ends(self, step: Step, tree: Mapping[str, Any] | None) -> None:
        """Take note of a phase's result; None when it gave none."""

    def end(self) -> None:
        """Clean up; called in any case."""


def plan(file: ScenarioFile, variants: Sequence[Variant] = (Variant(),), *, self_test: bool = True) -> list[Step]:
    """Return all phases in the order in which they are run.

    First the generator's self-tests, then the rounds: in each, all scenarios and variants in a shuffled order, load
    before capacity, and a probe of the baseline before each load. Of a soak's load there is a probe too; the whole of
    it, the longest phase, comes last and once.
    """
    steps: list[Step] = []

    def step(scenario: Scenario, phase: PhaseName, number: int, variant: Variant) -> Step:
        spec = phase_spec(file, scenario, phase, number, variant.settings)
        if variant.workers is not None:
            spec["workers"] = variant.workers
        if phase == "capacity" and spec.get("driver") == "pcap":
            spec["speed"] = "max"
        return Step(scenario.name, phase, number, variant.name, spec)

    def paired_baseline(scenario: Scenario, number: int) -> list[Step]:
        baseline = file.named(file.baseline)
        if not file.run.paired_baseline_seconds or scenario is baseline or baseline.soak or len(variants) > 1:
            return []
        spec = {**step(baseline, "load", number, variants[0]).spec, "seconds": file.run.paired_baseline_seconds}
        return [Step(scenario.name, "paired_baseline", number, variants[0].name, spec)]

    def sample(soak: Scenario, number: int) -> list[Step]:
        probe = paired_baseline(soak, number)
        if not probe or not file.run.soak_probe_seconds or (soak.driver or file.run.driver) != "memory":
            return []
        spec = {**step(soak, "load", number, variants[0]).spec, "seconds": file.run.soak_probe_seconds}
        del spec["slice_seconds"]
        return [*probe, Step(soak.name, "soak_probe", number, variants[0].name, spec)]

    if self_test:
        generated = [s for s in file.scenario if (s.driver or file.run.driver) == "memory"]
        steps += [step(scenario, "generator_selftest", NULL_ROUND, variants[0]) for scenario in generated]
    for number in range(file.run.rounds):
        pairs = [(scenario, variant) for scenario in file.scenario for variant in variants]
        random.Random(seed_of(file.run.seed, "order", number)).shuffle(pairs)  # noqa: S311 - an order, no secret
        for scenario, variant in pairs:
            if scenario.soak:
                steps += sample(scenario, number)
            else:
                steps += [*paired_baseline(scenario, number), step(scenario, "load", number, variant)]
            if _has_capacity(number, file.run.rounds, file.run.capacity_rounds):
                steps.append(step(scenario, "capacity", number, variant))
    for scenario in file.scenario:
        if scenario.soak:
            steps += [step(scenario, "load", 0, variant) for variant in variants]
    return steps


def _has_capacity(number: int, rounds: int, capacity_rounds: int | None) -> bool:
    """Whether a round is one of those with a capacity phase: the first, and then evenly."""
    wanted = rounds if capacity_rounds is None else min(capacity_rounds, rounds)
    return number * wanted % rounds < wanted


class Runner:
    """Runs a plan, phase by phase."""

    def __init__(
        self,
        file: ScenarioFile,
        *,
        variants: Sequence[Variant] = (Variant(),),
        make_lab: MakeLab | None = None,
        decode: Decode | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.file = file
        self.steps = plan(file, variants)
        self.observer = observer or Observer()
        self.make_lab: MakeLab = make_lab or _core.Lab
        self.decode: Decode = decode or _core.Histogram.decode

    def run(self) -> Results:
        """Run all phases; an interrupt ends the run and keeps what was measured.

        Raises:
            LabError: a phase could not run.

        """
        results = Results(self.file, [], describe(), evaluate, decode=self.decode)
        self.observer.begin(self.steps)
        # A collection in the middle of a phase would hold the interpreter, and with it a core, for milliseconds.
        gc.collect()
        gc.disable()
        try:
            for step in self.steps:
                tree = self._phase(step)
                if tree is not None:
                    results.phases.append(
                        PhaseResult(step.scenario, step.phase, step.round, step.variant, step.spec, tree)
                    )
                if tree is None or tree.get("interrupted"):
                    results.interrupted = True
                    break
        except KeyboardInterrupt:
            results.interrupted = True
        finally:
            gc.enable()
            self.observer.end()
        return results

    def _phase(self, step: Step) -> dict[str, Any] | None:
        """Run one phase; None, or a tree with `interrupted`, when the user ended it."""
        self.observer.phase_begins(step)
        tree: dict[str, Any] | None = None
        steal, others, interrupted = stolen_ms(), runnable_threads(), False
        try:
            lab = self.make_lab(json.dumps(step.spec))
            interrupted = self._watch(step, lab)
            # Half a soak is worth keeping; half a second of capacity is not.
            if not interrupted or step.phase == "load":
                tree = _tree(lab.result(), step)
                tree["machine"] = {"steal_ms": stolen_ms() - steal, "runnable_threads": others}
                tree["rss_growth"] = rss_growth(tree)
                tree["interrupted"] = interrupted
        except T2sError as error:
            if not interrupted:
                raise LabError(f"{step.scenario}, {step.phase} phase: {error}") from error
        finally:
            self.observer.phase_ends(step, tree)
        return tree

    def _watch(self, step: Step, lab: Lab) -> bool:
        """Wait for a phase to end; true when the user ended it."""
        lab.start()
        deadline = time.monotonic() + step.seconds + DRAIN_SECONDS
        try:
            while not lab.wait(TICK_SECONDS):
                self.observer.tick(step, lab.progress())
                if time.monotonic() > deadline:
                    lab.stop()
                    raise LabError(f"did not end within {DRAIN_SECONDS:.0f} s of its time")
        except KeyboardInterrupt:
            lab.stop()
            # It still drains, and has its result only then; a second interrupt does not wait for it.
            while not lab.wait(TICK_SECONDS) and time.monotonic() < deadline:
                pass
            return True
        return False


def run_scenarios(
    source: str | Path | ScenarioFile | Scenario | Sequence[Scenario],
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    overrides: Mapping[str, str] | None = None,
    observer: Observer | None = None,
    make_lab: MakeLab | None = None,
    decode: Decode | None = None,
    **run: Any,
) -> Results:
    """Run a scenario file, or scenarios made in Python, and return what was measured.

    Args:
        source: path of a scenario file, a loaded file, or one or more `Scenario`.
        quick: shorten the run as the file's `[quick]` says.
        only: names of scenarios to run; the baseline is always kept.
        overrides: `key path -> TOML value`, as `--set` takes them; for a path only.
        observer: is told about progress.
        make_lab: a stand-in for the compiled lab, for tests.
        decode: a stand-in for the compiled histogram, for tests.
        **run: fields of `[run]`, such as `rounds=3` or `load_seconds=1.0`.

    Raises:
        ScenarioError: the file has problems.
        LabError: a phase could not run.

    """
    if isinstance(source, Scenario):
        file = ScenarioFile.of(source)
    elif isinstance(source, ScenarioFile):
        file = source
    elif isinstance(source, str | Path):
        file = load_scenarios(source, overrides)
    else:
        file = ScenarioFile.of(*source)
    if quick:
        file = file.quickened()
    if run:
        file = file.with_run(**run)
    if only:
        file = file.only(only)
    return Runner(file, make_lab=make_lab, decode=decode, observer=observer).run()


def rss_growth(tree: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the growth of resident memory in percent an hour: `slope` with `low` and `high`, and `percent`.

    `percent` is what thresholds judge; it is None below `GROWTH_SECONDS`.
    """
    samples = (tree.get("rss") or {}).get("samples") or []
    unknown: dict[str, float | None] = {"percent": None, "slope": None, "low": None, "high": None}
    if not samples or not samples[0][1] or samples[-1][0] - samples[0][0] < 1000 * SLOPE_SECONDS:
        return unknown
    hours = [(at / 3.6e6, float(size)) for at, size in samples]
    found = slope_interval(hours)
    if found is None:
        return unknown
    share = found.map(lambda slope: 100 * slope / samples[0][1])
    known = hours[-1][0] - hours[0][0] >= GROWTH_SECONDS / 3600
    return {"percent": share.point if known else None, "slope": share.point, "low": share.low, "high": share.high}


def _tree(text: str, step: Step) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise LabError(f"the result is no JSON: {error}") from error
    if not isinstance(tree, dict) or tree.get("phase") != step.spec["phase"]:
        raise LabError("the result is not of this phase")
    return tree
