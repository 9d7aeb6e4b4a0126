"""The measuring rig: its statistics and targets on made-up samples, and one tiny run of the whole in namespaces."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rig import engine, measures, network, process, rivals, run, spread, table, targets
from rig.process import RigError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "rivals" / "tunnels.py"


def sample(measure, name, round_=1, error=None, settled=True, **numbers):
    return run.Sample(round_, measure, name, numbers, error, busy=1.0, stolen=0.0, settled=settled)


def rate(name, *values):
    """Return samples of one bulk measure, a value a round; None is a round that failed."""
    return [
        sample("up1", name, at, error="no way")
        if value is None
        else sample("up1", name, at, bytes_per_s=value, starved=0.0)
        for at, value in enumerate(values, start=1)
    ]


def test_a_spread_has_median_and_span():
    assert spread.spread([3, 1, 2]) == spread.Spread(2, 1, 3, 3)
    assert spread.spread([4, 1, 2, 3]).median == 2.5
    assert spread.spread([]) is None


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_a_median_lies_within_its_span(values):
    seen = spread.spread(values)
    assert seen.low <= seen.median <= seen.high
    assert seen.rounds == len(values)
    at_most = sum(value <= seen.median for value in values)
    at_least = sum(value >= seen.median for value in values)
    assert 2 * at_most >= len(values) <= 2 * at_least


def test_ratios_pair_values_of_the_same_round():
    assert spread.ratios({1: 4, 2: 9, 3: 5}, {1: 2, 2: 3, 4: 1}) == {1: 2, 2: 3}
    assert spread.ratios({1: 4}, {1: 0}) == {}


def test_the_best_is_taken_round_by_round():
    columns = [{1: 5, 2: 1}, {1: 3, 2: 4, 3: 7}]
    assert spread.best(columns, ">=") == {1: 5, 2: 4, 3: 7}
    assert spread.best(columns, "<=") == {1: 3, 2: 1, 3: 7}


@pytest.mark.parametrize(
    ("values", "side", "word"),
    [
        ([3, 4, 5], ">=", "met"),
        ([1, 2, 2.9], ">=", "not met"),
        ([2, 4, 5], ">=", "met?"),
        ([1, 2, 4], ">=", "not met?"),
        ([3], "<=", "met"),
        ([3.1], "<=", "not met"),
        ([], ">=", "not measured"),
    ],
)
def test_a_verdict_says_when_rounds_disagree(values, side, word):
    assert spread.verdict(spread.spread(values), side, 3) == word


@pytest.fixture
def outcome():
    """Two rounds of three engines; the rival that is better in one round is not in the other."""
    samples = [
        *rate("ceiling", 10e8, 20e8, None),
        *rate("t2s", 9e8, 12e8, 30e8),
        *rate("tun2proxy", 1e8, 4e8, None),
        *rate("tun2socks", 3e8, 2e8, None),
    ]
    return run.Outcome(samples, {"t2s": 0, "tun2proxy": 2})


def seen_of(outcome, against):
    [target] = [
        target
        for target in targets.all_targets()
        if (target.measure, target.metric, target.against) == ("up1", "bytes_per_s", against)
    ]
    return targets.values(outcome, target, "t2s")


def test_targets_compare_within_rounds(outcome):
    assert seen_of(outcome, "ceiling") == pytest.approx({1: 0.9, 2: 0.6})
    assert seen_of(outcome, "rival") == pytest.approx({1: 3, 2: 3})


def test_a_target_without_samples_is_not_measured(outcome):
    verdicts = {row.target.text: row.verdict for row in targets.rows(outcome, "t2s", ["up1", "crr8"])}
    assert verdicts["up1: rate over the better rival's"] == "met"
    assert verdicts["up1: rate over the ceiling's"] == "met?"
    assert verdicts["crr8: rate over the ceiling's"] == "not measured"
    assert not any(text.startswith("down") for text in verdicts)


def test_every_target_names_a_measure_and_a_number_that_exist():
    names = {measure.name for measure in measures.all_measures()}
    assert names
    for target in targets.all_targets():
        assert target.measure in names
        assert target.metric in table.UNITS
        assert (target.base in names) == (target.against == "measure")


def test_tables_show_medians_ratios_and_failures(outcome):
    text = table.results(outcome, ["ceiling", "t2s"], ["up1"])
    assert "12 (8 to 16)" in text
    assert "9.6 (7.2 to 24) = 0.75 x" in text
    assert "without a byte" not in text, "all of them are zero"
    lengths = {len(line) for line in text.splitlines()}
    assert len(lengths) == 1
    said = table.failures(outcome, {"other": "no such module"})
    assert "other: not here. no such module" in said
    assert "tun2proxy: ended by itself 2 times" in said
    assert "tun2proxy, up1: failed 1 times: no way" in said


class Held:
    """Streams that one engine's instance holds until it is stopped; stands for both sides."""

    def __init__(self, holder):
        self.holder = holder
        self.stopped = []

    def instance(self, name):
        return SimpleNamespace(name=name, stop=lambda: self.stopped.append(name))

    def wait(self):
        return self.holder is None or self.holder in self.stopped


@pytest.mark.parametrize(
    ("holder", "blameless", "stopped"),
    [(None, True, []), ("own", False, ["own"]), ("other", True, ["own", "own", "other"])],
)
def test_whoever_holds_streams_is_stopped_and_only_its_own_measure_is_blamed(holder, blameless, stopped):
    held = Held(holder)
    own, other = held.instance("own"), held.instance("other")
    assert run.streams_gone(held, [own, other], own) is blameless
    assert held.stopped == stopped


def test_what_an_engine_leaves_behind_is_said():
    left = run.Outcome([sample("up512", "slow", settled=False), sample("up512", "quick")])
    assert left.unsettled() == {("slow", "up512"): 1}
    assert "slow: 1 times" in table.failures(left, {})


def test_sockets_are_counted_as_the_kernel_tells_them():
    text = "sockets: used 25\nTCP: inuse 3 orphan 0 tw 5 alloc 4 mem 196\nUDP: inuse 1 mem 7\n"
    assert (process.sockstat(text, "inuse"), process.sockstat(text, "mem")) == (3, 196)
    with pytest.raises(RigError):
        process.sockstat("sockets: used 25\n", "mem")


def test_builds_are_compared_with_the_first(outcome):
    outcome.samples += rate("new", 18e8, 24e8, 15e8)
    assert "2 (0.5 to 2)" in table.versus(outcome, "t2s", ["new"], ["up1"])


def test_engines_get_the_same_device_and_mtu():
    for style in ("t2s", "tun2proxy", "tun2socks"):
        words = " ".join(engine.Engine("x", ("program",), style).arguments("dev7", 1500))
        assert "dev7" in words
        assert "1500" in words
        assert engine.PROXY in words
    with pytest.raises(RigError):
        engine.Engine("ceiling", None, "ceiling").arguments("dev7", 1500)


def test_further_flags_come_last():
    words = engine.Engine("x", ("t2s", "--queues", "2"), "t2s").arguments("dev7", 1500)
    assert words[:2] == ["t2s", "run"]
    assert words[-2:] == ["--queues", "2"]


def test_unknown_engines_and_targets_are_refused():
    with pytest.raises(RigError, match="unknown engine 'socks'"):
        engine.engines(["socks"], Path("t2s"), {})
    with pytest.raises(RigError):
        network.Network.target(network.TARGETS + 1)
    with pytest.raises(RigError, match="congestion control 'vegan' is not allowed"):
        network.congestion("vegan")


def test_a_rival_that_cannot_be_had_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rival = rivals.Rival("other", "other", "other", "t2s-no-such-tool")
    assert rivals.fetch(rival) == "`t2s-no-such-tool`, which builds it, is not installed"
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "go").write_text("#!/bin/sh\necho called >> calls\necho no such module >&2\nexit 1\n", encoding="utf-8")
    (tools / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    rival = rivals.Rival("other", "other", "example.org/other@v1.2.3", "go")
    for _ in range(2):
        assert rivals.fetch(rival) == "`go build example.org/other@v1.2.3`: no such module"
    assert "require example.org/other v1.2.3\n" in (rival.folder / "go.mod").read_text(encoding="utf-8")
    assert (rival.folder / "calls").read_text(encoding="utf-8") == "called\n", "the second time it is known"
    rival.path.write_text("", encoding="utf-8")
    assert rivals.fetch(rival) is None


def missing():
    """Return what keeps the rig from running here."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux"
    for tool in ("ip", "ss", "sysctl", "cargo"):
        if shutil.which(tool) is None:
            return f"needs the command `{tool}`"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"needs /dev/net/tun: {error.strerror}"
    probe = f"t2s-rig-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False, timeout=20).returncode:
        return "cannot make network namespaces"
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True, check=False, timeout=20)
    return None


def rig(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=600
    )


def room(process):
    """Return the network namespace that a process lives in."""
    try:
        return (process / "ns" / "net").stat().st_ino
    except OSError:
        return None


def namespaces():
    said = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True, timeout=20).stdout
    return [line.split()[0] for line in said.splitlines()]


@pytest.mark.root
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
class TestWhole:
    def test_a_quick_run_measures_and_leaves_nothing(self, tmp_path):
        only = ["up8", "down1@1500", "rr1", "crr8", "udp", "start"]
        flags = ["--quick", "--seconds", "0.1", "--engines", "ceiling,t2s", "--only", ",".join(only)]
        done = rig(*flags, "--seed", "7", "--out", str(tmp_path))
        assert done.returncode == 0, done.stderr
        whole = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
        assert whole["settings"]["seed"] == 7
        assert whole["missing"] == {}
        verdicts = {row["target"]["text"]: row["verdict"] for row in whole["targets"]}
        assert verdicts["rr1: rate over the ceiling's"] in {"met", "not met"}
        seen = {(sample["measure"], sample["engine"]): sample for sample in whole["samples"]}
        wanted = {(name, who) for name in [*only, "udp@20000"] for who in ("ceiling", "t2s")} - {("start", "ceiling")}
        assert set(seen) == wanted
        for sample in seen.values():
            assert sample["error"] is None, sample
            assert any(value > 0 for value in sample["numbers"].values()), sample
        assert seen["up8", "t2s"]["numbers"]["refused"] == 0
        assert "cpu_s_per_gb" not in seen["up8", "ceiling"]["numbers"], "the ceiling has no engine"
        assert (tmp_path / "results.md").read_text(encoding="utf-8").strip() == done.stdout.strip()
        own = {f"t2s-rig-{side}-{whole['settings']['pid']}" for side in ("client", "server")}
        assert not own & set(namespaces())

    def test_a_wire_can_have_a_length(self, tmp_path):
        flags = ["--engines", "ceiling,t2s", "--only", "rr1", "--rounds", "1", "--seconds", "0.3", "--rtt-ms", "20"]
        done = rig(*flags, "--out", str(tmp_path))
        assert done.returncode == 0, done.stderr
        whole = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
        assert [sample["error"] for sample in whole["samples"]] == [None, None]
        assert all(sample["numbers"]["p50_us"] >= 20_000 for sample in whole["samples"])
        assert not {f"t2s-rig-{side}-{whole['settings']['pid']}" for side in ("client", "server")} & set(namespaces())

    @pytest.mark.parametrize("after", [0.0, 0.02, 0.3])
    def test_a_run_that_is_ended_leaves_nothing(self, tmp_path, after):
        """Neither namespace nor process, also when the signal comes while engines are being started."""
        flags = ["--engines", "ceiling,t2s", "--only", "rr1", "--seconds", "600", "--out", str(tmp_path)]
        with subprocess.Popen([sys.executable, str(SCRIPT), *flags], stderr=subprocess.PIPE) as child:
            names = {f"t2s-rig-client-{child.pid}", f"t2s-rig-server-{child.pid}"}
            log = tmp_path / "logs" / "services.log"
            end = time.monotonic() + 300
            while not (log.exists() and "ready" in log.read_text(encoding="utf-8")) and time.monotonic() < end:
                time.sleep(0.05)
            assert names <= set(namespaces())
            rooms = {Path(f"/run/netns/{name}").stat().st_ino for name in names}
            time.sleep(after)
            child.terminate()
            child.communicate(timeout=60)
        assert child.returncode == 1
        assert not names & set(namespaces())
        assert not {room(process) for process in Path("/proc").glob("[0-9]*")} & rooms

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--only", "bluk"], "unknown measure 'bluk'"),
            (["--server", "squid"], "unknown server 'squid'"),
            (["--also", "new"], "it is NAME=T2S"),
            (["--profile"], "--profile needs --out"),
        ],
    )
    def test_bad_input_is_refused(self, flags, said):
        done = rig("--quick", "--engines", "ceiling", *flags)
        assert done.returncode == 1
        assert said in done.stderr
