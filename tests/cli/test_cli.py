"""The command line: every exit code, and that the light commands stay light."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fake_lab import FakeLab, fake_labs
from t2s.cli import app
from t2s.lab import runner

FILE = """
schema = 1
[run]
rounds = 2
load_seconds = 0.1
[quick]
rounds = 1
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
fail_if = "latency_p99_ns > 2 * baseline.latency_p99_ns"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture
def t2s(monkeypatch):
    """Run the command line on a stand-in for the compiled lab."""

    def run(*arguments, change=None, lab=None):
        monkeypatch.setattr(
            runner, "_core", SimpleNamespace(Lab=lab or fake_labs(change), Histogram=runner._core.Histogram)
        )
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def slower(spec, tree):
    if spec["scenario"] == "other":
        tree["latency"]["p99"] *= 5


def test_0_when_all_pass(t2s, file):
    result = t2s("bench", file)
    assert result.exit_code == 0, result.output
    assert "PASS: 2 PASS" in result.stdout


def test_1_when_a_threshold_failed(t2s, file):
    result = t2s("bench", file, change=slower)
    assert result.exit_code == 1
    assert "FAIL: 1 PASS, 1 FAIL" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "rouns=3"], 'did you mean "rounds"'),
        (["--set", "rounds"], "write KEY=VALUE"),
        (["--only", "othr"], 'did you mean "other"'),
        (["--rounds", "0"], "greater than or equal to 1"),
        (["--seconds", "x"], "--seconds"),
        (["--nonsense"], "nonsense"),
        (["--driver", "pcap"], "needs `capture"),
    ],
)
def test_2_for_bad_input(t2s, file, arguments, told):
    result = t2s("bench", file, *arguments)
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output


def test_2_for_a_bad_file_with_all_its_problems(t2s, file):
    file.write_text(FILE.replace("rounds = 2", "rounds = 0\nsed = 1"), encoding="utf-8")
    result = t2s("bench", file)
    assert result.exit_code == 2
    assert f"{file}:4: run.rounds" in result.output
    assert f"{file}:5: run.sed" in result.output
    assert t2s("bench", "/nonexistent.toml").exit_code == 2


def test_2_when_the_results_cannot_be_written(t2s, file):
    result = t2s("bench", file, "--out", file)
    assert result.exit_code == 2
    assert "cannot write" in result.output


def test_3_when_the_rounds_do_not_decide(t2s, file):
    def change(_spec, tree):
        tree["offered"] = tree["intended"] // 2

    result = t2s("bench", file, change=change)
    assert result.exit_code == 3
    assert "INCONCLUSIVE" in result.stdout
    assert "the generator offered" in result.stdout


def test_3_when_interrupted(t2s, file, tmp_path):
    class Lab(FakeLab):
        def wait(self, timeout_s):  # noqa: ARG002 - the real one takes it
            if self.spec["scenario"] == "other" and self.spec["phase"] == "load" and not self.stopped:
                raise KeyboardInterrupt
            return True

    result = t2s("bench", file, "--out", tmp_path / "out", lab=Lab)
    assert result.exit_code == 3, result.output
    assert "interrupted" in result.stdout
    assert (tmp_path / "out" / "report.md").exists()


def test_options_change_the_run(t2s, file):
    arguments = ["--json", "--quick", "--seconds", "0.3", "--workers", "2", "--set", "pool_cache=0", "--only", "other"]
    result = t2s("bench", file, *arguments)
    tree = json.loads(result.stdout)
    assert tree["overall"] == "PASS"
    assert tree["file"]["run"]["rounds"] == 1
    load = [phase for phase in tree["phases"] if phase["phase"] == "load"]
    assert {phase["spec"]["seconds"] for phase in load} == {0.3}
    assert {phase["spec"]["workers"] for phase in load} == {2}
    assert {phase["spec"]["settings"]["pool_cache"] for phase in load} == {0}


def test_the_packaged_file_stands_in_for_a_missing_one(t2s, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = t2s("bench", "scenarios.toml", "--quick", "--only", "dns_flood")
    assert result.exit_code == 0, result.output
    assert "dns_flood" in result.stdout


def test_ablate(t2s, file, tmp_path):
    result = t2s("ablate", file, "--quick", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "SIMD checksum" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ablation.md", "ablation.json", "ablation.parquet"}
    tree = json.loads(t2s("ablate", file, "--quick", "--json", "--only", "other").stdout)
    assert {worth["scenario"] for worth in tree["worth"]} == {"all", "other"}


def test_a_report_is_made_again_from_the_results(t2s, file, tmp_path):
    assert t2s("bench", file, "--out", tmp_path / "out", change=slower).exit_code == 1
    again = t2s("report", tmp_path / "out")
    assert again.exit_code == 1
    assert "## Scenario summary table" in again.stdout
    assert t2s("report", tmp_path).exit_code == 2


def test_columns_are_listed(t2s):
    result = t2s("columns")
    assert result.exit_code == 0
    assert "latency_p99_ns" in result.stdout


def test_the_command_line_is_light():
    code = "import sys, t2s.cli; print(sorted({'polars', 'pydantic', 'jinja2'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"
