"""The report has every section of the reference report, from measured figures."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from fake_lab import STAGES, fake_labs
from t2s.lab import formatting, tables
from t2s.lab.load_file import load_scenarios
from t2s.lab.report import render
from t2s.lab.runner import run_scenarios
from t2s.lab.statistics import Interval

FILE = load_scenarios(Path(__file__).parents[2] / "scenarios.toml").with_run(rounds=3, load_seconds=0.5)

SECTIONS = [
    "Execution status",
    "Environment",
    "Scenario summary table",
    "Capacity",
    "Beside the reference",
    "CPU hotspot ranking",
    "Memory growth and allocator pressure summary",
    "Throughput trend",
    "Regression threshold evaluation (baseline = high_pps_small_pkt)",
    "Verdicts and their reasons",
    "Root-cause analysis for failed thresholds",
    "Optimization priority list",
    "Smallest visible effect",
    "Android profiling commands (to run on real device)",
    "Full 24h soak command",
    "Terminology",
]
THRESHOLDS = (
    "| Scenario | CPU>85% sustained | RSS growth >1%/h | p99 >2x baseline | Goodput <90% baseline | "
    "Event-loop >10ms | Integrity faults | Status |"
)


def slow_reassembly(spec, tree):
    if spec["scenario"] == "fragmented_tcp":
        tree["stages"]["reassembly"]["ns"] += 500_000
        tree["latency"]["p99"] *= 5
        tree["undisturbed"]["p99"] *= 5
        tree["service_time"]["mean"] += 500


@pytest.fixture(scope="module")
def results():
    return run_scenarios(FILE, make_lab=fake_labs(slow_reassembly))


@pytest.fixture(scope="module")
def page(results):
    return render(results, "t2s bench scenarios.toml --quick")


def section(page, title):
    return page.split(f"## {title}\n")[1].split("\n## ")[0]


def test_all_sections_stand_in_order(page):
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == SECTIONS


def test_every_scenario_is_in_every_table(page):
    for title in ("Scenario summary table", "Capacity", "Beside the reference", SECTIONS[8]):
        for scenario in FILE.scenario:
            assert f"| {scenario.name} |" in section(page, title), (title, scenario.name)


def test_the_threshold_table_has_the_references_columns(page):
    table = section(page, SECTIONS[8])
    assert THRESHOLDS in table
    assert "| fragmented_tcp | NO | NO* | YES | NO | NO | NO | FAIL |" in table
    assert "| dns_flood | NO | NO* | NO | NO | NO | NO | PASS |" in table


def test_tables_are_even(page):
    for block in re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE):
        assert len({row.replace("\\|", "").count("|") for row in block.splitlines()}) == 1


def test_hotspots_come_from_measured_stages(page):
    ranking = section(page, "CPU hotspot ranking")
    for stage in (*STAGES, "unattributed"):
        assert f"| {stage} |" in ranking


def test_causes_are_measured(page):
    causes = section(page, "Root-cause analysis for failed thresholds")
    assert "- fragmented_tcp, p99 >2x baseline: " in causes
    assert "stage reassembly: +" in causes
    assert causes.count("\n- ") == 1


def test_a_failure_without_a_difference_has_no_cause():
    def change(spec, tree):
        if spec["scenario"] == "dns_flood" and spec["phase"] == "load":
            tree["cpu"]["windows"] = [99.0, 99.0]

    page = render(run_scenarios(FILE, make_lab=fake_labs(change), only=["dns_flood"]))
    assert "dns_flood, CPU>85% sustained: cause not established" in page


def test_commands_can_be_pasted(page):
    assert "t2s bench scenarios.toml --soak-seconds 86400 --out results-24h" in page
    assert "simpleperf record" in page
    assert "perfetto" in page


def test_thin_tails_are_blank(page):
    rows = [row for row in section(page, "Scenario summary table").splitlines() if row.startswith("| dns_flood |")]
    assert rows[0].split("|")[5].strip() == formatting.UNKNOWN, "6,000 samples leave 6 beyond p99.9"


def test_terminal_tables(results):
    console = Console(width=240, record=True, file=io.StringIO())
    for part in (tables.summary, tables.thresholds, tables.outcome):
        console.print(part(results))
    text = console.export_text()
    assert "FAIL: 7 PASS, 1 FAIL" in text
    assert "FAIL  fragmented_tcp, p99 >2x baseline" in text


def test_numbers():
    assert formatting.count(None) == formatting.UNKNOWN
    assert formatting.size(3 << 30) == "3.0 GiB"
    assert formatting.size(12) == "12 B"
    assert formatting.time(12) == "12 ns"
    assert formatting.ratio(Interval(1, 2, 3, 4)) == "2.00 [1.00, 3.00]"
    assert formatting.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
