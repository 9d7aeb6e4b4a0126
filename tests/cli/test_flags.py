"""The short way through the flags of `t2s run` answers what typer would, or nothing."""

import functools
import inspect
import subprocess
import sys
from typing import Annotated, get_args

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.models import OptionInfo
from typer.testing import CliRunner

from t2s import TunnelConfig
from t2s.cli import exec as exec_
from t2s.cli import lab, tunnel
from t2s.cli.flags import parse
from t2s.tunnel.settings import SHUTDOWN_TIMEOUT_S


def typers(words):
    """Return what typer makes of the words: the parameters that are given, or None when it refuses."""
    seen = []

    @functools.wraps(tunnel.run)
    def record(**given):
        seen.append({key: value for key, value in given.items() if value is not None})

    app = typer.Typer(add_completion=False)
    app.command()(record)
    result = CliRunner().invoke(app, words)
    assert result.exit_code in {0, 2}, result.output
    return seen[0] if seen else None


SPELLED = [
    ["--proxy", "socks5://h", "--mtu", "1500", "--no-up", "--stats-interval=0.5", "--config", "a/b.toml"],
    ["--proxy="],
    ["--up", "--icmp-echo", "--queues", "007"],
]
LEFT_TO_TYPER = [
    ["--help"],
    ["--proxy"],
    ["--proxy", "--mtu"],
    ["--mtu", "0x10"],
    ["--mtu", "1_0"],
    ["--mtu", "-1"],
    ["--mtu", "٣"],
    ["--stats-interval", "1e3"],
    ["--up=1"],
    ["--mtu", "1", "--mtu", "2"],
    ["--prox", "x"],
    ["--", "x"],
    ["x"],
]


@pytest.mark.parametrize("words", SPELLED)
def test_what_is_plain_is_read(words):
    assert parse(tunnel.run, words) == typers(words) is not None


@pytest.mark.parametrize("words", LEFT_TO_TYPER)
def test_the_rest_is_left_to_typer(words):
    assert parse(tunnel.run, words) is None


NAMES = [f"--{name.replace('_', '-')}" for name in inspect.signature(tunnel.run).parameters] + ["--no-up", "--x"]
WORDS = st.sampled_from(["1", "1500", "0.5", "-1", "1e3", " 7", "7 ", "a b", "", "=", "auto", "+3", "٣", "00", "nan"])


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(st.sampled_from(NAMES), WORDS, st.builds("{}={}".format, st.sampled_from(NAMES), WORDS)), max_size=6
    )
)
def test_it_never_differs_from_typer(words):
    found = parse(tunnel.run, words)
    if found is not None:
        assert found == typers(words)


def test_kinds_that_it_does_not_know():
    for annotation in (
        int,
        Annotated[complex | None, typer.Option()],
        Annotated[int, typer.Option(min=1)],
        Annotated[str | None, typer.Option(envvar="X")],
        Annotated[str | None, typer.Argument()],
    ):

        def command(value=None):
            """Do nothing."""

        command.__annotations__ = {"value": annotation}
        assert parse(command, []) is None

    def many(value: Annotated[list[str] | None, typer.Option("--route-exclude", "-x")] = None):
        """Do nothing."""

    assert parse(many, ["-x", "a", "--route-exclude=b"]) == {"value": ["a", "b"]}


def test_the_tunnel_loads_no_heavy_library():
    """From the command line that tunnels are started with, to the core: a device that cannot be had."""
    code = """
import sys
sys.argv = ["t2s", "run", "--proxy", "direct://", "--tun-fd", "99999"]
from t2s.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 1, end.code
heavy = {"polars", "jinja2", "pydantic", "rich", "prometheus_client", "http", "ssl", "hashlib", "t2s.lab"}
print(sorted(heavy & set(sys.modules)), len(sys.modules) < 250)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[] True"


def options(command):
    """Yield the flags of a command: parameter and help."""
    for key, parameter in inspect.signature(command, eval_str=True).parameters.items():
        option = get_args(parameter.annotation)[1]
        if isinstance(option, OptionInfo):
            yield key, option.help


COMMANDS = [tunnel.run, tunnel.proxy, exec_.execute, lab.bench, lab.ablate]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_help_says_what_and_the_default_in_one_line(command):
    found = dict(options(command))
    assert found
    for key, text in found.items():
        assert text.endswith("."), key
        assert len(text) <= 90, key
        assert "default: " in text or key == "listen", key


def test_defaults_in_the_help_are_the_tunnels_own():
    words = {True: {"yes", "up"}, False: {"no"}}
    stated = {key: text.rsplit("default: ", 1)[1].removesuffix(".") for key, text in options(tunnel.run)}
    checked = 0
    for key, value in TunnelConfig.defaults().items():
        if key in stated and value not in {None, ""}:
            assert stated[key] in words.get(value, set()) | {str(value)}, key
            checked += 1
    assert checked > 20, "the walk found the defaults"
    assert stated["shutdown_timeout"] == f"{SHUTDOWN_TIMEOUT_S:g}"
