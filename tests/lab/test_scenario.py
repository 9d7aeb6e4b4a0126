"""Scenario files: everything wrong is said at once, with its place; everything right is read as written."""

import json
import tomllib
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2s._core import Lab
from t2s.errors import ExpressionError, ScenarioError
from t2s.lab.expression import parse
from t2s.lab.load_file import load_scenarios, parse_scenarios
from t2s.lab.phase_spec import phase_spec, seed_of
from t2s.lab.scenario import (
    Run,
    Scenario,
    ScenarioFile,
    Settings,
    TcpStream,
)
from t2s.toml_lines import key_lines

SHIPPED = Path(__file__).parents[2] / "scenarios.toml"

GOOD = """
schema = 1
[run]
seed = 7
[settings]
mtu = 1400
[[scenario]]
name = "base"
rate_pps = 1000
components = [
  { kind = "tcp_stream", flows = 4, segment_bytes = 100 },
  { kind = "udp", upstream = { mode = "echo" } },
]
capacity = { seconds = 3.0, settings = { pool_cache = 8 } }
[[threshold]]
name = "p99"
title = "p99"
fail_if = "latency_p99_ns > 2 * baseline.latency_p99_ns"
"""


def problems(text, overrides=None):
    with pytest.raises(ScenarioError) as caught:
        parse_scenarios(text, overrides, source="x.toml")
    return [str(problem) for problem in caught.value.problems]


def test_the_shipped_file_has_the_eight_scenarios_and_six_thresholds():
    file = load_scenarios(SHIPPED)
    names = [scenario.name for scenario in file.scenario]
    assert names == [
        "high_pps_small_pkt",
        "fragmented_tcp",
        "concurrent_sessions",
        "rapid_churn",
        "dns_flood",
        "slow_upstream_sim",
        "mixed_worst_case",
        "soak_mixed",
    ]
    assert file.baseline == "high_pps_small_pkt"
    assert [threshold.name for threshold in file.threshold] == [
        "cpu_sustained",
        "rss_growth",
        "p99",
        "goodput",
        "event_loop",
        "integrity",
    ]
    for scenario in file.scenario:
        assert scenario.rate_pps >= scenario.reference.pps, "no less than the reference's rate"
        assert scenario.meaning


def test_the_shipped_file_states_the_defaults_of_the_five_optimizations():
    raw = tomllib.loads(SHIPPED.read_text(encoding="utf-8"))
    defaults = Settings().model_dump()
    assert raw["settings"] == {key: defaults[key] for key in raw["settings"]}
    assert len(raw["settings"]) == 5


def test_each_problem_is_told_with_line_key_and_nearest_key():
    found = problems("""schema = 1
[run]
rouns = 3
seed = "x"
[settings]
checksum = "avx3"
[[scenario]]
name = "a"
rate_pps = -1
components = [
  { kind = "tcp_stream", segmnt_bytes = 100, flows = 0 },
  { kind = "tcp_stram" },
  { kind = "udp", upstream = { mod = "echo" } },
]
[[scenario]]
name = "a"
speed = "fast"
[[threshold]]
name = "p"
title = "p"
fail_if = "latency_p9_ns > 2"
scope = ["b"]
""")
    for expected in (
        'x.toml:3: run.rouns: unknown key; did you mean "rounds"?',
        "x.toml:4: run.seed: input should be a valid integer, not 'x'",
        "x.toml:6: settings.checksum: 'avx3' is none of",
        "x.toml:9: scenario.a.rate_pps: input should be greater than 0, not -1",
        'x.toml:11: scenario.a.components.0.segmnt_bytes: unknown key; did you mean "segment_bytes"?',
        "x.toml:11: scenario.a.components.0.flows: input should be greater than or equal to 1, not 0",
        'did you mean "tcp_stream"?',
        'x.toml:13: scenario.a.components.2.upstream.mod: unknown key; did you mean "mode"?',
        "x.toml:15: scenario.a: needs `rate_pps`",
        "x.toml:15: scenario.a: needs `components`",
        'x.toml:16: scenario.a.name: a second scenario named "a"',
        "x.toml:17: scenario.a.speed: 'fast' is none of 'recorded' or 'max'",
        'x.toml:21: threshold.p.fail_if: no column "latency_p9_ns"; did you mean "latency_p99_ns"?',
        'x.toml:22: threshold.p.scope.0: no scenario "b"',
    ):
        assert any(line.startswith(expected) or expected in line for line in found), expected
    assert not any("at least 1 item" in line for line in found), "a list with a bad element is not called empty"


def test_impossible_combinations():
    text = GOOD.replace("segment_bytes = 100", "segment_bytes = 1400")
    assert problems(text) == [
        "x.toml:11: scenario.base.components.0.segment_bytes: 1400 bytes and 72 of headers do not fit the MTU of 1400"
    ]
    parse_scenarios(text.replace("mtu = 1400", "mtu = 1400\noffload = true"))
    assert any("4 flows, but `max_tcp_flows` is 3" in line for line in problems(GOOD, {"max_tcp_flows": "3"}))


def test_syntax_errors_and_missing_files_have_a_place():
    assert problems("schema = 1\n[run\n")[0].startswith("x.toml:2: not TOML: ")
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_scenarios("/nonexistent/scenarios.toml")
    assert any(line.startswith("x.toml:1: schema: 2 is none of 1") for line in problems("schema = 2\n"))


def test_set_changes_settings_run_and_scenarios():
    overrides = {"pool_cache": "0", "rounds": "9", "checksum": "scalar", "scenario.base.rate_pps": "5e3"}
    file = parse_scenarios(GOOD, overrides)
    assert (file.settings.pool_cache, file.run.rounds, file.settings.checksum) == (0, 9, "scalar")
    assert file.named("base").rate_pps == 5_000.0


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("rounds", "0", "--set rounds=0: input should be greater than or equal to 1"),
        ("poolcache", "1", '--set poolcache=1: unknown key; did you mean "pool_cache"?'),
        ("scenario.nope.rate_pps", "1", "no table scenario.nope"),
        ("scenario.base.components.0.flows", "many", "input should be a valid integer, not 'many'"),
    ],
)
def test_a_bad_set_is_told_as_an_option(key, value, told):
    found = problems(GOOD, {key: value})
    assert any(line.startswith("command line: --set") and told in line for line in found), found


def test_a_pcap_scenario_needs_a_capture_that_exists(tmp_path):
    text = 'schema = 1\n[[scenario]]\nname = "a"\ndriver = "pcap"\n'
    path = tmp_path / "s.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match="needs `capture"):
        load_scenarios(path)
    path.write_text(text + 'capture = "a.pcap"\nspeed = 2.0\n', encoding="utf-8")
    with pytest.raises(ScenarioError, match="no file"):
        load_scenarios(path)
    (tmp_path / "a.pcap").touch()
    file = load_scenarios(path)
    spec = phase_spec(file, file.scenario[0], "load", 0)
    assert (spec["driver"], spec["path"], spec["speed"]) == ("pcap", str(tmp_path / "a.pcap"), 2.0)


def test_specs_layer_settings_and_phases():
    file = parse_scenarios(GOOD)
    base = file.named("base")
    load, capacity = (phase_spec(file, base, phase, 2) for phase in ("load", "capacity"))
    assert load["seconds"] == Run().load_seconds
    assert capacity["seconds"] == 3.0
    assert (load["settings"]["pool_cache"], capacity["settings"]["pool_cache"]) == (64, 8)
    assert phase_spec(file, base, "capacity", 2, Settings(pool_cache=0))["settings"]["pool_cache"] == 0
    assert load["settings"]["mtu"] == 1400
    assert set(load["settings"]) == set(Settings.model_fields), "the compiled lab is told every value"
    assert load["seed"] == capacity["seed"] == seed_of(7, "base", 2)
    assert load["seed"] != phase_spec(file, base, "load", 3)["seed"]
    assert load["components"][0]["kind"] == "tcp_stream"


def test_the_compiled_lab_takes_every_shipped_phase():
    file = load_scenarios(SHIPPED)
    for scenario in file.scenario:
        for phase in ("load", "capacity", "generator_selftest"):
            Lab(json.dumps(phase_spec(file, scenario, phase, 0)))


def test_only_keeps_the_baseline_and_names_the_nearest():
    file = load_scenarios(SHIPPED)
    assert [s.name for s in file.only(["dns_flood"]).scenario] == ["high_pps_small_pkt", "dns_flood"]
    with pytest.raises(ScenarioError, match='did you mean "dns_flood"'):
        file.only(["dns_flod"])


def test_quick_is_shorter():
    file = load_scenarios(SHIPPED)
    assert file.quickened().run.load_seconds < file.run.load_seconds
    assert file.quickened().run.seed == file.run.seed


def test_scenarios_made_in_python():
    scenario = Scenario(name="mine", rate_pps=10.0, components=(TcpStream(kind="tcp_stream"),))
    file = ScenarioFile.of(scenario, rounds=2)
    assert file.baseline == "mine"
    with pytest.raises(ScenarioError, match='did you mean "rounds"'):
        file.with_run(ronds=2)


# Expressions


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a +", "not an expression"),
        ("a", "gives a number where a truth is needed"),
        ("a > 1 and b", "`b` is not a truth"),
        ("not a", "`a` is not a truth"),
        ("a > (b > 1)", "is not a number"),
        ("open('x') > 1", "not known here"),
        ("a.b > 1", "not known here"),
        ("baseline.x > 1", 'no column "x"'),
        ("__import__ > 1", 'no column "__import__"'),
        ("abs(a, b) > 1", "`abs` takes 1 to 1"),
        ("max(a) > 1", "`max` takes 2 to 8"),
        ("a ** 9 > 1", "not known here"),
        ("a > 1e300", "beyond"),
        ("a > 'x'", "not known here"),
        ("[x for x in a] > 1", "not known here"),
        ("(" * 2000, "longer than"),
        ("(" * 400 + "a" + ")" * 400 + " > 1", "cannot be parsed|too many nested"),
    ],
)
def test_expressions_that_are_refused(text, told):
    with pytest.raises(ExpressionError, match=told):
        parse(text, {"a", "b"})


def test_expressions_are_evaluated():
    frame = pl.DataFrame({"a": [1.0, 5.0, None], "b": [2.0, 2.0, 2.0], "baseline.a": [1.0, 2.0, 3.0]})
    for text, expected in {
        "a > b": [False, True, None],
        "a > 2 * baseline.a": [False, True, None],
        "0 < a <= 5": [True, True, None],
        "not a > 1 or b == 2": [True, True, True],
        "abs(-a) - 1 >= 4": [False, True, None],
        "max(a, b) == 5 and min(a, b) == 2": [False, True, None],
        "-a < +b / 2 and True": [True, True, None],
    }.items():
        got = frame.select(parse(text, {"a", "b"}).to_polars().alias("x"))["x"].to_list()
        assert got == expected, text


# Lines


@given(st.text())
def test_any_text_is_refused_or_read(text):
    try:
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return
    key_lines(text)


KEYS = st.text("abc", min_size=1, max_size=3)


def written(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[ # first\n" + "".join(f"{written(item)},\n" for item in value) + "]"
    return "{" + ", ".join(f"{key} = {written(item).replace(chr(10), ' ')}" for key, item in value.items()) + "}"


def paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


@given(
    st.dictionaries(KEYS, st.integers() | st.text('ab"\\#]}\n', max_size=5) | st.lists(st.integers()), max_size=4),
    st.lists(
        st.dictionaries(KEYS, st.integers() | st.lists(st.text("a#[", max_size=3), max_size=3), max_size=3), max_size=3
    ),
)
def test_every_key_of_a_document_has_its_line(table, tables):
    text = "# begin\n[t]\n" + "".join(f"{key} = {written(value)}\n" for key, value in table.items())
    for item in tables:
        text += "\n[[array]]\n" + "".join(f"{key}={written(value)} # end\n" for key, value in item.items())
    document = tomllib.loads(text)
    lines = key_lines(text)
    rows = text.splitlines()
    for path in paths(document):
        if not path:
            continue
        assert path in lines
        if isinstance(path[-1], str):
            assert path[-1] in rows[lines[path] - 1]
