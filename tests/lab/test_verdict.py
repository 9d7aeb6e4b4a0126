"""Verdicts, their intervals and reasons; causes are named where a fault was put in, and nowhere else."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_lab import fake_labs
from t2s.errors import ScenarioError
from t2s.lab import analysis
from t2s.lab.columns import COLUMNS, Aggregate, sustained
from t2s.lab.load_file import parse_scenarios
from t2s.lab.outcome import Status
from t2s.lab.phase_spec import seed_of
from t2s.lab.runner import run_scenarios
from t2s.lab.statistics import (
    median_coverage,
    median_interval,
    rank_interval,
    ratio_interval,
    slope_interval,
    smallest_visible_effect,
    theil_sen,
)

FILE = """
schema = 1
[run]
rounds = 5
load_seconds = 2.0
[[scenario]]
name = "base"
rate_pps = 1000
components = [{ kind = "udp" }]
[[scenario]]
name = "other"
rate_pps = 1000
components = [{ kind = "udp" }]
[[threshold]]
name = "rule"
title = "rule"
"""


def measured(rule, change=None, **run):
    return run_scenarios(parse_scenarios(FILE + rule), make_lab=fake_labs(change), **run)


def verdict(rule, change=None, scenario="other", **run):
    return measured(rule, change, **run).verdicts.of(scenario)[0]


def with_soak(run=""):
    """Return the file with a scenario that is a soak, the baseline beside each round, and more keys of `[run]`."""
    scenario = '[[scenario]]\nname = "soak"\nsoak = true\nrate_pps = 1000\ncomponents = [{ kind = "udp" }]\n'
    text = FILE.replace("[[scenario]]", f"paired_baseline_seconds = 0.1\n{run}\n[[scenario]]", 1)
    return text.replace("[[threshold]]", scenario + "[[threshold]]", 1)


def scale(factor, *path, scenario="other", phase="load"):
    """Multiply one number of a scenario's results."""

    def change(spec, tree):
        if spec["scenario"] == scenario and spec["phase"] == phase:
            node = tree
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] *= factor

    return change


P99 = 'fail_if = "latency_p99_ns > 2 * baseline.latency_p99_ns"'


def test_equals_pass_and_three_times_as_much_fails():
    assert verdict(P99).status is Status.PASS
    found = verdict(P99, scale(3, "latency", "p99"))
    assert found.status is Status.FAIL
    assert found.ratio.low > 1
    assert found.rounds == 5


def test_rounds_that_disagree_are_inconclusive():
    def change(spec, tree):
        if spec["scenario"] == "other" and spec["phase"] == "load":
            tree["latency"]["p99"] *= random.Random(spec["seed"]).choice([1, 4])

    found = verdict(P99, change, rounds=6)
    assert found.status is Status.INCONCLUSIVE
    assert "rounds disagree" in found.reasons[0]
    assert 0.025 < found.fail_share < 0.975


def test_rounds_are_judged_within_their_own_noise():
    """Half of the rounds are slow for baseline and scenario alike: each is below the limit of its own pair."""

    rounds = {seed_of(1, name, number): number for name in ("base", "other") for number in range(9)}

    def change(spec, tree):
        slow = 3 if rounds.get(spec["seed"], 0) % 2 else 1
        tree["latency"]["p99"] = slow * (1_500 if spec["scenario"] == "other" else 1_000)

    found = verdict(P99, change, rounds=9)
    assert found.status is Status.PASS
    assert found.ratio.point == pytest.approx(0.75)
    assert found.ratio.high == pytest.approx(0.75)


def test_the_baseline_beside_a_round_is_what_the_round_is_held_against():
    """The baseline's own rounds were measured in a slow minute, those beside the scenario in its own."""

    def change(spec, tree):
        beside = spec["scenario"] == "base" and spec["seconds"] == 0.1
        tree["latency"]["p99"] = 3_000 if spec["scenario"] == "other" else 1_000 if beside else 9_000

    assert verdict(P99, change).status is Status.PASS
    text = FILE.replace("[[scenario]]", "paired_baseline_seconds = 0.1\n[[scenario]]", 1) + P99
    results = run_scenarios(parse_scenarios(text), make_lab=fake_labs(change))
    found = next(v for v in results.verdicts.verdicts if v.scenario == "other")
    assert found.status is Status.FAIL
    assert (found.measured, found.limit) == (3_000, 2_000)
    assert len(results.paired_baseline("other", "latency_p99_ns")) == results.file.run.rounds
    assert results.values("base", "latency_p99_ns")[0] == 9_000


@pytest.mark.parametrize(("spoilt", "status"), [(4, Status.PASS), (36, Status.FAIL)])
def test_a_soak_is_judged_by_its_slices(spoilt, status):
    """A stall spoils the slices it falls into; the percentile of the whole phase would be its alone."""
    ordinary = {}

    def change(spec, tree):
        if spec["scenario"] == "base":
            ordinary["p99"] = tree["latency"]["p99"]
        elif spec["phase"] == "load":
            assert spec["slice_seconds"] == 2.0
            worst = 40 * ordinary["p99"]
            tree["latency"]["p99"] = worst
            tree["latency_slices"] = [{"p99": worst if at < spoilt else ordinary["p99"]} for at in range(40)]

    soak = FILE.replace('name = "other"', 'name = "other"\nsoak = true').replace(
        "[[scenario]]", "soak_seconds = 80.0\n[[scenario]]", 1
    )
    results = run_scenarios(parse_scenarios(soak + P99), make_lab=fake_labs(change))
    assert results.verdicts.of("other")[0].status is status
    assert len(results.values("other", "latency_p99_ns")) == 40


@pytest.mark.parametrize(("factor", "status"), [(1.0, Status.PASS), (1.6, Status.FAIL)])
def test_a_soak_is_held_against_probes_in_all_states_of_the_machine(factor, status):
    """The machine is half as slow again in half of the probes, and in three quarters of the soak."""
    probes = 0

    def change(spec, tree):
        nonlocal probes
        if spec["scenario"] == "base" and spec["seconds"] == 0.1:
            probes += 1
            tree["latency"]["p99"] = 1_000 if probes % 2 else 1_500
        elif spec["scenario"] == "soak" and spec["phase"] == "load":
            slices = [1_400 if at % 4 == 0 else 2_050 for at in range(40)]
            tree["latency_slices"] = [{"p99": factor * value} for value in slices]

    text = with_soak("soak_seconds = 80.0") + P99
    results = run_scenarios(parse_scenarios(text), make_lab=fake_labs(change), rounds=31)
    found = results.verdicts.of("soak")[0]
    assert found.status is status
    # 31 probes, of which the middle has 10 fast ones and 9 slow ones; of 40 slices 2 and 22.
    assert found.limit == pytest.approx(2 * (10 * 1_000 + 9 * 1_500) / 19)
    assert found.measured == pytest.approx(factor * (2 * 1_400 + 22 * 2_050) / 24)


def test_a_round_is_held_against_the_baseline_before_and_after_it():
    """The machine gets faster: half of what it was in the middle of each round."""
    begun = []

    def change(spec, tree):
        beside = spec["scenario"] == "base" and spec["seconds"] == 0.1
        if beside:
            begun.append(spec)
        tree["latency"]["p99"] = 1_000 if spec["scenario"] == "other" else 1_600 / 4 ** len(begun)

    text = FILE.replace("[[scenario]]", "paired_baseline_seconds = 0.1\n[[scenario]]", 1) + P99
    results = run_scenarios(parse_scenarios(text), make_lab=fake_labs(change))
    found = results.paired_baseline("other", "latency_p99_ns")
    assert [found[at] for at in range(5)] == [200.0, 50.0, 12.5, 3.125, 1.5625]


def test_a_soak_is_held_against_all_moments_of_the_baseline():
    """The baseline's own rounds fell into fast seconds of the machine."""

    def change(spec, tree):
        beside = spec["scenario"] == "base" and spec["seconds"] == 0.1
        tree["latency"]["p99"] = 1_500 if spec["scenario"] == "soak" else 1_000 if beside else 500

    text = with_soak()
    results = run_scenarios(parse_scenarios(text + P99), make_lab=fake_labs(change))
    assert not results.paired_baseline("soak", "latency_p99_ns")
    assert list(results.baseline_probes("latency_p99_ns").values()) == [1_000] * 5
    assert results.verdicts.of("soak")[0].limit == 2_000


def test_a_soak_that_is_sampled_is_held_against_the_moments_beside_its_samples():
    """The machine is slow in most of the soak, and fast in the rounds."""

    def change(spec, tree):
        beside = spec["scenario"] == "base" and spec["seconds"] == 0.1
        sample = spec["scenario"] == "soak" and spec["seconds"] == 0.2
        tree["latency"]["p99"] = 1_000 if beside else 1_700 if sample else 500
        if "slice_seconds" in spec:
            tree["latency_slices"] = [{"p99": 2_500 if at < 30 else 900} for at in range(40)]

    text = with_soak("soak_probe_seconds = 0.2\nsoak_seconds = 80.0")
    results = run_scenarios(parse_scenarios(text + P99), make_lab=fake_labs(change))
    found = results.verdicts.of("soak")[0]
    assert (found.status, found.measured, found.limit, found.rounds) == (Status.PASS, 1_700, 2_000, 5)
    assert list(results.soak_probes("soak", "latency_p99_ns").values()) == [1_700] * 5
    assert not results.soak_probes("soak", "goodput_ratio"), "that is about the whole of it"
    assert len(results.values("soak", "latency_p99_ns")) == 40
    alone = run_scenarios(parse_scenarios(text + 'fail_if = "latency_p99_ns > 2_000"'), make_lab=fake_labs(change))
    assert alone.verdicts.of("soak")[0].status is Status.FAIL, "by itself it is judged by its slices"


@pytest.mark.parametrize(
    ("rounds", "spoilt", "late", "status"),
    [
        (6, 0, 1_000, Status.PASS),
        (6, 3, 1_000, Status.PASS),
        (6, 0, 2_500, Status.INCONCLUSIVE),
        (6, 4, 1_000, Status.FAIL),
        (2, 0, 1_000, Status.FAIL),
    ],
)
def test_samples_decide_if_there_are_enough_and_the_soak_gets_no_slower(rounds, spoilt, late, status):
    """Without samples the slices decide, most of which are at 2,600."""

    def change(spec, tree):
        tree["latency"]["p99"] = 1_000
        if spec["seconds"] == 0.2:
            nonlocal spoilt
            tree["invalid"] = "spoilt" if spoilt > 0 else None
            spoilt -= 1
        if "slice_seconds" in spec:
            tree["latency_slices"] = [{"p99": 2_600 if at < 30 else late} for at in range(40)]

    text = with_soak("soak_probe_seconds = 0.2\nsoak_seconds = 80.0")
    found = run_scenarios(parse_scenarios(text + P99), make_lab=fake_labs(change), rounds=rounds).verdicts.of("soak")[0]
    assert found.status is status
    drift = "`latency_p99_ns` of the last third of the soak is 2.5 times that of its samples"
    assert (drift in found.reasons) == (status is Status.INCONCLUSIVE)


def test_a_fact_of_one_round_is_enough():
    first = []

    def change(spec, tree):
        if spec["scenario"] == "other" and spec["phase"] == "load" and not first:
            first.append(spec)
            tree["loop"]["max_on_cpu_ns"] = 11_000_000

    found = verdict('fail_if = "loop_on_cpu_max_ns > 10_000_000"', change)
    assert found.status is Status.FAIL
    assert found.measured == 11_000_000


def test_a_failure_that_the_hypervisor_explains_is_inconclusive(steal):
    seconds = 2.0
    change = scale(3, "latency", "p99")
    assert verdict(P99, change).status is Status.FAIL
    steal["ms"] = 2 * 0.02 * seconds * 1e3
    found = verdict(P99, change)
    assert found.status is Status.INCONCLUSIVE
    assert "hypervisor" in found.reasons[0]
    loop = 'fail_if = "loop_on_cpu_max_ns > 10_000_000"'

    def slow(spec, tree):
        if spec["scenario"] == "other" and spec["phase"] == "load":
            tree["loop"]["max_on_cpu_ns"] = 15_000_000

    assert verdict(loop, slow).status is Status.INCONCLUSIVE
    steal["ms"] = 2 * 3.0
    assert verdict(loop, slow).status is Status.FAIL, "3 ms do not explain 5 ms"


def test_a_generator_that_fell_behind_is_the_machines_fault():
    def change(spec, tree):
        if spec["scenario"] == "other" and spec["phase"] == "load":
            tree["offered"] = tree["intended"] * 0.9
            tree["latency"]["p99"] *= 10

    found = measured(P99, change).verdicts
    assert found.of("other")[0].status is Status.INCONCLUSIVE
    assert found.of("other")[0].reasons == ("no valid round",)
    assert found.machine["other"][0] == "5 rounds left out: the generator offered 90.0% of what was intended"


def test_many_disturbed_packets_are_named():
    def change(spec, tree):
        if spec["scenario"] == "other" and spec["phase"] == "load":
            tree["undisturbed"]["count"] = int(0.8 * tree["latency"]["count"])

    machine = measured(
        'fail_if = "undisturbed_latency_p99_ns > 2 * baseline.undisturbed_latency_p99_ns"', change
    ).verdicts.machine
    assert (
        "stalls of the machine delayed 20% of the packets, which `undisturbed_latency_*` leaves out" in machine["other"]
    )
    assert not any("stalls" in reason for reason in machine.get("base", ()))


def test_growth_that_a_short_run_cannot_know_is_settled_by_equality():
    rule = """fail_if = "rss_growth_percent_per_hour > 1"
pass_if = "live_bytes == 0 and heap_growth_bytes == 0"
pass_reason = "equality" """
    found = verdict(rule)
    assert found.status is Status.PASS
    assert found.reasons[0] == "settled by equality"
    assert verdict(rule.split("\n", 1)[0]).status is Status.INCONCLUSIVE

    def leak(_spec, tree):
        tree["pool"]["live_bytes_after_drain"] = 2048

    found = verdict(rule, leak)
    assert found.status is Status.INCONCLUSIVE
    assert "too short" in found.reasons[0]


def test_growth_is_judged_after_a_quarter_of_an_hour():
    def change(spec, tree):
        if spec["phase"] == "load":
            slope = 0.05 if spec["scenario"] == "other" else 0.0
            start = 100 << 20
            tree["rss"]["samples"] = [[at * 10_000, start * (1 + slope * at / 360)] for at in range(120)]

    rule = 'fail_if = "rss_growth_percent_per_hour > 1"'
    assert verdict(rule, change).status is Status.FAIL
    assert verdict(rule, change, scenario="base").status is Status.PASS


def test_a_heap_that_rises_in_each_of_five_rounds_has_grown():
    peaks = iter(range(1_000, 100_000, 1_000))

    def change(spec, tree):
        if spec["phase"] == "load" and spec["scenario"] == "other":
            tree["pool"]["heap_peak_bytes"] = next(peaks)

    results = measured('fail_if = "heap_growth_bytes > 0"', change)
    assert results.verdicts.status("other") is Status.FAIL
    assert results.verdicts.status("base") is Status.PASS


@pytest.mark.parametrize("grown", ["pool_grow_stalls_after_warmup", "preallocated_slabs_after_warmup"])
def test_a_heap_that_rises_in_few_rounds_is_unknown_if_it_grew_after_warm_up(grown):
    def rising(steady):
        peaks = iter((20_000, 30_000))

        def change(spec, tree):
            if spec["phase"] == "load" and spec["scenario"] == "other":
                tree["pool"] |= {"heap_peak_bytes": next(peaks), grown: steady}

        return measured('fail_if = "heap_growth_bytes > 0"', change, rounds=2).verdicts.status("other")

    assert rising(1) is Status.INCONCLUSIVE
    assert rising(0) is Status.PASS


def test_the_run_is_as_good_as_its_worst_scenario_and_no_better_than_complete():
    results = measured(P99, scale(3, "latency", "p99"))
    assert results.verdicts.overall is Status.FAIL
    assert results.verdicts.overall.exit_code == 1
    assert results.verdicts.counts == {Status.PASS: 1, Status.FAIL: 1, Status.INCONCLUSIVE: 0}
    assert Status.worst([]) is Status.INCONCLUSIVE


def test_scope_limits_a_threshold():
    results = measured(P99 + '\nscope = ["other"]')
    assert results.verdicts.of("base") == []
    assert len(results.verdicts.of("other")) == 1


def test_every_column_can_be_named():
    rule = " or ".join(f"{name} < -1 or baseline.{name} < -1" for name in list(COLUMNS)[:9])
    assert verdict(f'fail_if = "{rule}"').status is Status.PASS
    with pytest.raises(ScenarioError, match='did you mean "latency_p99_ns"'):
        parse_scenarios(FILE + 'fail_if = "latency_p9_ns > 1"')


# Causes


def slow_stage(spec, tree):
    if spec["scenario"] == "other":
        tree["stages"]["reassembly"]["ns"] += 400_000
        tree["cpu"]["ns_per_packet"] += 400
        for kind in ("latency", "service_time"):
            tree[kind]["p99"] *= 4
            tree[kind]["mean"] += 400


def test_a_fault_that_was_put_in_is_named():
    results = measured(P99, slow_stage)
    found = analysis.causes(results, results.verdicts.of("other")[0])
    stages = [finding for finding in found if finding.kind == "stage"]
    assert [finding.name for finding in stages] == ["reassembly"]
    assert 350 < stages[0].effect.point < 450
    assert results.verdicts.of("base")[0].status is Status.PASS


def test_equals_have_no_cause():
    results = measured('fail_if = "latency_p99_ns > 0"')
    failed = results.verdicts.of("other")[0]
    assert failed.status is Status.FAIL
    assert analysis.causes(results, failed) == []


def test_a_stall_is_named_by_the_stage_of_its_alarm():
    def change(spec, tree):
        if spec["scenario"] == "other" and spec["phase"] == "load":
            tree["loop"]["max_on_cpu_ns"] = 30_000_000
            tree["loop"]["stalls"] = [{"at_ms": 5, "stage": "upstream", "wall_ns": 31_000_000, "off_cpu_ns": 1_000_000}]

    results = measured('fail_if = "loop_on_cpu_max_ns > 10_000_000"', change)
    found = analysis.causes(results, results.verdicts.of("other")[0])
    assert found[0].name == "upstream (5 stalls)"
    assert found[0].kind == "stage"


def test_losses_are_named_by_reason():
    def change(spec, tree):
        if spec["scenario"] == "other":
            tree["payload_forwarded"] *= 0.5
            tree["lost_by_reason"] = {"pool_exhausted": tree["offered"] // 2}

    results = measured('fail_if = "goodput_ratio < 0.9 * baseline.goodput_ratio"', change)
    found = analysis.causes(results, results.verdicts.of("other")[0])
    assert [(finding.name, finding.kind) for finding in found] == [("pool_exhausted", "loss")]


def test_hotspots_rank_by_share_and_end_with_what_is_not_attributed():
    ranking = analysis.hotspots(measured(P99))
    assert ranking[0].stage == "tcp"
    assert ranking[-1].stage == analysis.UNATTRIBUTED
    assert math.isclose(sum(spot.share.point for spot in ranking), 1.0, abs_tol=0.05)
    assert [spot.rank for spot in ranking[:-1]] == sorted(spot.rank for spot in ranking[:-1])
    first = analysis.priorities(ranking)[0]
    assert first.stage == "tcp"
    assert math.isclose(first.ceiling, 1 / (1 - first.share))


# Statistics


def test_intervals_hold_their_median():
    draw = random.Random(1)
    held = 0
    for _ in range(100):
        found = median_interval([draw.gauss(10, 1) for _ in range(10)])
        assert found.low <= found.point <= found.high
        held += found.low <= 10 <= found.high
    assert held >= 88


def test_ratios_are_paired():
    base = [100.0, 200.0, 50.0, 400.0, 80.0]
    found = ratio_interval([1.1 * value for value in base], base)
    assert math.isclose(found.low, 1.1)
    assert math.isclose(found.high, 1.1)
    assert ratio_interval([1.0], [0.0]) is None
    assert ratio_interval([], []) is None


def test_coverage_of_few_rounds():
    assert median_coverage(1) == 0.0
    assert median_coverage(5) == 0.9375
    assert median_coverage(6) > 0.95


def test_a_thin_tail_has_no_rank_interval():
    assert rank_interval(10_000, 0.999) is None
    low, high = rank_interval(1_000_000, 0.999)
    assert low < 0.999 < high


def test_slopes_survive_outliers():
    points = [(float(x), 2.0 * x + 1) for x in range(30)]
    points[7] = (7.0, 1_000.0)
    assert math.isclose(theil_sen(points), 2.0, rel_tol=0.05)
    found = slope_interval(points)
    assert found.low <= 2.0 <= found.high
    assert slope_interval(points[:5]) is None


def test_the_smallest_visible_effect_grows_with_noise():
    draw = random.Random(2)
    quiet, loud = ([[draw.lognormvariate(0, sigma) for _ in range(5)] for _ in range(8)] for sigma in (0.01, 0.2))
    assert 1.0 < smallest_visible_effect(quiet, 5) < 1.05 < smallest_visible_effect(loud, 5)
    assert smallest_visible_effect(quiet, 2) is None


@given(st.lists(st.floats(0, 100), max_size=40))
def test_sustained_is_the_best_of_the_worst(windows):
    level = sustained(windows)
    if not windows:
        assert level is None
        return
    spans = [windows[at : at + 10] for at in range(max(1, len(windows) - 9))]
    assert level == max(min(span) for span in spans)


def test_columns_say_how_rounds_become_one():
    assert COLUMNS["latency_p99_ns"].aggregate is Aggregate.MEDIAN
    disturbed = COLUMNS["disturbed_ratio"].get
    assert disturbed({"latency": {"count": 200}, "undisturbed": {"count": 150}}) == 0.25
    assert disturbed({"latency": {"count": 0}, "undisturbed": {"count": 0}}) is None
    assert disturbed({"latency": {"count": 200}}) is None
    assert COLUMNS["latency_p99_ns"].merged == "latency:0.99"
    assert all(column.unit and column.meaning for column in COLUMNS.values())
