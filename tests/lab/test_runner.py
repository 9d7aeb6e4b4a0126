"""The order of a run, what is kept of it, and what an interrupt leaves."""

import json
from pathlib import Path

import polars as pl
import pytest

import t2s
from fake_lab import FakeLab, fake_labs
from t2s._core import Histogram
from t2s.errors import LabError
from t2s.lab import ablation, storage
from t2s.lab.load_file import load_scenarios
from t2s.lab.machine import stolen_ms
from t2s.lab.report import render
from t2s.lab.results import Results
from t2s.lab.runner import Observer, Runner, Variant, plan, rss_growth, run_scenarios
from t2s.lab.scenario import Scenario, Settings, Udp

FILE = load_scenarios(Path(__file__).parents[2] / "scenarios.toml")


def short(**run):
    return FILE.with_run(**({"rounds": 2, "load_seconds": 0.5, "soak_seconds": 1.0} | run))


def test_rounds_are_interleaved_and_shuffled_by_the_seed():
    steps = plan(short(rounds=3))
    measured = [step for step in steps if step.phase == "load" and step.scenario != "soak_mixed"]
    orders = [[step.scenario for step in measured if step.round == number] for number in range(3)]
    assert [sorted(order) for order in orders] == [sorted(orders[0])] * 3
    assert len(orders[0]) == 7
    assert orders[0] != orders[1]
    assert [step.round for step in measured] == sorted(step.round for step in measured)
    assert steps == plan(short(rounds=3))
    assert steps != plan(short(rounds=3, seed=2))


def test_self_tests_come_first_and_the_soak_last_and_once():
    steps = plan(short())
    assert [step.phase for step in steps[:8]] == ["generator_selftest"] * 8
    last = steps[-1]
    assert (last.scenario, last.phase, last.spec["seconds"]) == ("soak_mixed", "load", 1.0)
    assert sum(step.scenario == "soak_mixed" and step.phase == "load" for step in steps) == 1
    assert sum(step.scenario == "soak_mixed" and step.phase == "capacity" for step in steps) == 2


def test_the_baseline_runs_for_a_moment_right_before_each_round():
    steps = plan(short(rounds=4, paired_baseline_seconds=0.1))
    for at, step in enumerate(steps):
        if step.phase == "load" and step.scenario not in {"high_pps_small_pkt", "soak_mixed"}:
            probe = steps[at - 1]
            assert (probe.scenario, probe.phase, probe.round) == (step.scenario, "paired_baseline", step.round)
            assert (probe.spec["scenario"], probe.spec["phase"]) == ("high_pps_small_pkt", "load")
            assert probe.spec["seconds"] == 0.1
    assert not any(step.scenario == "high_pps_small_pkt" for step in steps if step.phase == "paired_baseline")
    assert not any(step.phase == "paired_baseline" for step in plan(short(paired_baseline_seconds=0.0)))
    variants = [Variant(), Variant("off", Settings(pool_cache=0))]
    assert not any(step.phase in {"paired_baseline", "soak_probe"} for step in plan(short(), variants))


def test_a_soak_is_sampled_in_each_round_beside_the_baseline():
    steps = plan(short(rounds=3, paired_baseline_seconds=0.1, soak_probe_seconds=0.4))
    samples = [(at, step) for at, step in enumerate(steps) if step.phase == "soak_probe"]
    assert [step.round for _, step in samples] == [0, 1, 2]
    for at, step in samples:
        assert (step.scenario, step.spec["phase"], step.spec["seconds"]) == ("soak_mixed", "load", 0.4)
        assert "slice_seconds" not in step.spec
        assert (steps[at - 1].scenario, steps[at - 1].phase, steps[at - 1].round) == (
            "soak_mixed",
            "paired_baseline",
            step.round,
        )
    for without in (short(soak_probe_seconds=0.0), short(paired_baseline_seconds=0.0)):
        assert not any(
            step.phase in {"soak_probe", "paired_baseline"} and step.scenario == "soak_mixed" for step in plan(without)
        )


def test_capacity_is_measured_in_so_many_rounds():
    for wanted, rounds in ((1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])):
        steps = plan(short(rounds=5, capacity_rounds=wanted))
        found = [step.round for step in steps if (step.scenario, step.phase) == ("dns_flood", "capacity")]
        assert found == rounds, wanted
    results = run_scenarios(short(rounds=5, capacity_rounds=2), make_lab=fake_labs())
    assert len(results.values("dns_flood", "capacity_pps")) == 2
    assert len(results.values("dns_flood", "latency_p99_ns")) == 5


def test_variants_get_the_same_packets_in_the_same_round():
    steps = plan(short(), [Variant(), Variant("off", Settings(pool_cache=0))])
    by_key = {(s.scenario, s.phase, s.round, s.variant): s.spec for s in steps}
    for (scenario, phase, number, variant), spec in by_key.items():
        if variant == "off":
            twin = by_key[scenario, phase, number, ""]
            assert spec["seed"] == twin["seed"]
            assert spec["settings"] == twin["settings"] | {"pool_cache": 0}


def test_a_run_has_a_row_a_round_and_all_columns():
    results = run_scenarios(short(), make_lab=fake_labs())
    assert results.rounds.height == 8 * 2
    assert results.summary.height == 8
    first = results.summary.row(0, named=True)
    assert first["scenario"] == "high_pps_small_pkt"
    assert first["latency_p99_ns"] == results.histogram("high_pps_small_pkt", "latency").percentile(99.0)
    assert first["buffers_allocated"] == first["buffers_freed"] > 0
    assert first["null_pps"] == 8e6
    assert first["generator_bound"] is None
    assert not results.interrupted


def test_a_weak_generator_is_labelled():
    def change(spec, tree):
        if spec["phase"] == "generator_selftest":
            tree["offered"] = int(1.5 * spec["rate_pps"] * spec["seconds"])

    results = run_scenarios(short(), make_lab=fake_labs(change))
    assert set(results.summary["generator_bound"]) == {"load and capacity"}


def test_histograms_are_merged_never_averaged():
    results = run_scenarios(short(), make_lab=fake_labs())
    merged = results.histogram("dns_flood", "latency")
    parts = [Histogram.decode(tree["latency"]["hdr"]) for tree in results.trees("dns_flood", "load")]
    assert merged.count == sum(part.count for part in parts)
    assert merged.max == max(part.max for part in parts)


class InterruptedLab(FakeLab):
    """The user presses Ctrl-C in the fifth phase that is waited for."""

    left = 0

    def wait(self, timeout_s):  # noqa: ARG002 - the real one takes it
        if self.stopped:
            return True
        type(self).left -= 1
        if type(self).left == 0:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("at", [1, 9, 10, 30])
def test_an_interrupt_keeps_what_was_measured(at):
    class Lab(InterruptedLab):
        left = at

    class Ends(Observer):
        ended = 0

        def end(self):
            self.ended += 1

    observer = Ends()
    results = Runner(short(), make_lab=Lab, observer=observer).run()
    steps = plan(short())
    assert results.interrupted
    assert observer.ended == 1
    kept = at if steps[at - 1].phase == "load" else at - 1
    assert len(results.phases) == kept
    assert results.verdicts.overall.exit_code == 3
    assert "interrupted" in render(results)


def test_a_lab_that_fails_is_told_with_its_phase():
    class Broken(FakeLab):
        def result(self):
            raise LabError("no thread")

    with pytest.raises(LabError, match="high_pps_small_pkt, generator_selftest phase: no thread"):
        run_scenarios(short(), make_lab=Broken)

    class Garbage(FakeLab):
        def result(self):
            return "{"

    with pytest.raises(LabError, match="no JSON"):
        run_scenarios(short(), make_lab=Garbage)


def test_results_survive_the_disk(tmp_path):
    results = run_scenarios(short(), make_lab=fake_labs())
    report = render(results)
    written = storage.save(results, tmp_path / "out", report)
    assert {path.name for path in written} == {
        "report.md",
        "results.json",
        "rounds.parquet",
        "summary.parquet",
        "histograms.parquet",
        "stages.parquet",
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)
    again = storage.read(tmp_path / "out")
    assert isinstance(again, Results)
    assert again.rounds.equals(results.rounds)
    assert render(again) == report
    metadata = pl.read_parquet_metadata(tmp_path / "out" / "rounds.parquet")
    assert json.loads(metadata["t2s.environment"]) == results.environment
    assert json.loads(metadata["t2s.run"])["rounds"] == 2
    histograms = pl.read_parquet(tmp_path / "out" / "histograms.parquet")
    assert Histogram.decode(histograms["hdr"][0]).count == histograms["count"][0]
    with pytest.raises(LabError, match=r"results\.json"):
        storage.read(tmp_path)


def test_scenarios_made_in_python_run_without_a_file():
    scenario = Scenario(name="mine", rate_pps=1_000.0, components=(Udp(kind="udp", flows=4),))
    results = t2s.run_scenarios(scenario, rounds=2, load_seconds=0.2, make_lab=fake_labs())
    assert results.rounds["scenario"].to_list() == ["mine", "mine"]
    assert results.verdicts.verdicts == ()


def test_growth_of_memory_needs_time_to_be_known():
    def tree(seconds):
        return {"rss": {"samples": [[at * 1_000, 1_000_000 + 10 * at] for at in range(seconds)]}}

    short_run, long_run = rss_growth(tree(100)), rss_growth(tree(1_000))
    assert short_run["percent"] is None
    assert short_run["slope"] == pytest.approx(3.6, rel=0.01)
    assert long_run["percent"] == pytest.approx(3.6, rel=0.01)
    assert rss_growth({})["slope"] is None
    assert stolen_ms() >= 0


def test_an_ablation_finds_what_an_optimization_is_worth():
    def change(spec, tree):
        if spec["phase"] == "capacity" and spec["settings"]["checksum"] == "scalar":
            tree["forwarded"] = tree["forwarded"] // 2

    file = ablation.prepared(FILE, quick=True).only(["dns_flood", "fragmented_tcp"], keep_baseline=False)
    results = Runner(file, variants=ablation.variants(1), make_lab=fake_labs(change)).run()
    found = {w.optimization.name: w for w in ablation.worth(results) if not w.scenario}
    assert set(found) == {"flow_shards", "pool_cache", "checksum", "reassembly", "watchdog"}
    assert found["checksum"].capacity.low > 1.8
    assert found["pool_cache"].capacity.low < 1.1
    page = ablation.render(results, "t2s ablate")
    assert page.count("\n| SIMD checksum |") == 3
