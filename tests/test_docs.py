"""The examples of README.md and docs/ run, and their links lead somewhere."""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from t2s import metrics
from t2s.cli import tunnel
from t2s.cli.flags import parse
from t2s.tunnel import settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_there_are_pages():
    assert {page.name for page in PAGES} >= {
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "python.md",
        "quickstart.md",
        "troubleshooting.md",
        "android.md",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples(page):
    failed, _ = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS, encoding="utf-8")
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["quickstart.md", "troubleshooting.md", "android.md"])
def test_flags_that_operators_are_told_exist(name):
    """Commands parse; flags and counters that are named in passing exist."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    for words in re.findall(r"^t2s run ([^#&\n]*)", text, re.MULTILINE):
        assert parse(tunnel.run, shlex.split(words)) is not None, words
    flags = {flag.replace("_", "-") for flag in list(settings.keys())}
    named = re.findall(r"(?<=`)--([a-z-]+)", text)
    assert named, "the walk found flags"
    known = flags | {"no-icmp-echo", "network", "cap-add", "device"}
    assert set(named) <= known
    metrics_of = {f"t2s_{name}" for name in known_metrics()}
    assert {re.sub(r"_(total|bucket)$", "", metric) for metric in re.findall(r"t2s_[a-z_]+", text)} <= metrics_of


def known_metrics():
    yield from ("up", "dial_failures")
    for table in (metrics.COUNTERS, metrics.GAUGES, metrics.BY_NAME, metrics.HISTOGRAMS):
        yield from (row[0] for row in table.values())


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"[`\n]make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert len(named) > 5
    assert named <= targets


def test_the_rust_that_is_named_is_the_one_that_is_wanted():
    wanted = re.search(r'^rust-version = "([\d.]+)"', (ROOT / "Cargo.toml").read_text(encoding="utf-8"), re.MULTILINE)[
        1
    ]
    for page in ("README.md", "CONTRIBUTING.md"):
        assert re.findall(r"Rust ≥ ([\d.]+\d)", (ROOT / page).read_text(encoding="utf-8")) == [wanted]


def test_unsafe_code_is_listed():
    listed = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## Unsafe code")[1]
    files = [
        path for path in (ROOT / "rust").rglob("*.rs") if "#![allow(unsafe_code)]" in path.read_text(encoding="utf-8")
    ]
    assert files
    for path in files:
        assert path.name in listed or f"{path.parent.relative_to(ROOT / 'rust')}/`" in listed, path
