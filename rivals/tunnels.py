"""Measure `t2s run` beside other tun2socks programs and beside a client without any: `make rivals`, as root.

All engines run at once in one network namespace, each with a device and a target address of its own, and are measured
in turns; see docs/measurements.md for the words.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from rig import engine, measures, network, peer, table, targets
from rig import run as runner
from rig.process import RigError, Signals
from t2s.lab.statistics import median_coverage

ENGINES = "ceiling,t2s,tun2proxy,tun2socks"
"""All of them."""
DESCRIPTORS = 65_536
"""Files that the load and the engines may have open; they inherit it."""
ENDED = 1
"""Exit code of a run that was ended by a signal, or refused."""
QUICK_SECONDS, WARMUP_SECONDS = 0.3, 0.3
"""Window of `--quick`; and what passes before any window."""


def main(
    out: Annotated[Path | None, typer.Option(help="Folder for results.json and results.md.")] = None,
    engines: Annotated[str, typer.Option(help="Which engines, with commas between them.")] = ENGINES,
    only: Annotated[str | None, typer.Option(help="Which groups or measures: bulk, mtu, streams, rr, up1 …")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long each load is measured.")] = 2.0,
    quick: Annotated[bool, typer.Option("--quick", help="One short round: does it work at all?")] = False,
    server: Annotated[str, typer.Option(help="The SOCKS5 server: t2s, microsocks or dante.")] = "t2s",
    rtt_ms: Annotated[float, typer.Option(min=0, max=1_000, help="Distance to the server, for rr and crr.")] = 0.0,
    congestion: Annotated[str | None, typer.Option(help="TCP's congestion control; cubic, or else reno.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order; printed when not given.")] = None,
    t2s: Annotated[Path | None, typer.Option(help="The `t2s` to measure; the one beside this Python.")] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=T2S [FLAG]...", help="One more build, or the same with flags of `t2s run`."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Sample bulk loads of t2s with perf, into --out.")] = False,
) -> None:
    """Measure tunnels side by side."""
    try:
        if quick:
            rounds, seconds = 1, min(seconds, QUICK_SECONDS)
        seed = random.SystemRandom().randrange(10_000) if seed is None else seed
        _check(profile, out, server)
        chosen = _choose(only)
        program = (t2s or Path(sys.executable).parent / "t2s").absolute()
        more = dict(_builds(also or []))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        typer.echo("getting the engines ready (a rival is built the first time: minutes)", err=True)
        found, missing = engine.engines([name.strip() for name in engines.split(",")], program, more)
        with tempfile.TemporaryDirectory(prefix="t2s-rig-") as scratch:
            plan = runner.Plan(
                engines=found,
                measures=chosen,
                rounds=rounds,
                seconds=seconds,
                warmup=WARMUP_SECONDS,
                seed=seed,
                server=server,
                t2s=program,
                folder=_logs(out) if out is not None else Path(scratch),
                profile=profile,
                rtt_ms=rtt_ms,
                congestion=network.congestion(congestion),
            )
            typer.echo(f"seed {seed}, {len(chosen)} measures, {rounds} rounds of {seconds:g} s", err=True)
            began = time.monotonic()
            # Whoever ends the run gets rid of its namespaces and engines too.
            with Signals(ENDED):
                outcome = runner.run(plan, lambda text: typer.echo(text, err=True))
    except RigError as error:
        _refuse(str(error))
    text = report(plan, outcome, missing, list(more))
    typer.echo(text)
    typer.echo(f"took {time.monotonic() - began:.0f} s", err=True)
    if out is not None:
        rows = targets.rows(outcome, "t2s", [made.name for made in plan.measures])
        whole = {
            "settings": _settings(plan),
            "missing": missing,
            "targets": [asdict(row) for row in rows],
            **outcome.to_json(),
        }
        (out / "results.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
        (out / "results.md").write_text(text + "\n", encoding="utf-8")


def report(plan: runner.Plan, outcome: runner.Outcome, missing: dict[str, str], more: list[str]) -> str:
    """Return the report of a run."""
    names, tried = [made.name for made in plan.engines], [made.name for made in plan.measures]
    versions = ", ".join(f"{made.name}: {made.version}" for made in plan.engines if made.version)
    busiest = max((sample.stolen for sample in outcome.samples), default=0.0)
    distance = f", {plan.rtt_ms:g} ms away" if plan.rtt_ms else ""
    head = (
        f"{plan.rounds} rounds of {plan.seconds:g} s, seed {plan.seed}, SOCKS5 server {plan.server}{distance}, "
        f"congestion control {plan.congestion}; {versions}.\n"
        f"Commit {_commit()}, {os.cpu_count()} CPUs, Linux {platform.release()}.\n"
        f"The hypervisor took at most {busiest:.0%} of a measure.\n"
        f"{_reading(plan.rounds)}"
    )
    parts = [head, table.results(outcome, names, tried)]
    if "t2s" in names:
        parts.append(table.targets(targets.rows(outcome, "t2s", tried)))
    if more and "t2s" in names:
        parts.append(table.versus(outcome, "t2s", more, tried))
    parts.append(table.failures(outcome, missing))
    return "\n\n".join(part for part in parts if part)


def _reading(rounds: int) -> str:
    """Say how a cell is read."""
    if rounds == 1:
        return "One round: nothing is known of its spread. Behind a number stands its ratio to the ceiling."
    return (
        f"Medians, with the span of the rounds, which holds the true median in {median_coverage(rounds):.0%} of runs;"
        " behind it the ratio to the ceiling, of the same rounds."
    )


def _check(profile: bool, out: Path | None, server: str) -> None:
    """Refuse what cannot work here, and raise the limit of open files."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        raise RigError("the rig makes network namespaces and devices: it needs root on Linux")
    for tool in ("ip", "ss", "sysctl"):
        if shutil.which(tool) is None:
            raise RigError(f"the rig needs the command `{tool}`")
    if not Path("/dev/net/tun").exists():
        raise RigError("the rig needs /dev/net/tun")
    if server not in {"t2s", "microsocks", "dante"}:
        raise RigError(f"unknown server {server!r}; there are t2s, microsocks, dante")
    if profile and (out is None or shutil.which("perf") is None):
        raise RigError("--profile needs --out, and `perf` installed")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _choose(only: str | None) -> list[measures.Measure]:
    """Return the measures that were asked for."""
    known = measures.all_measures()
    if only is None:
        return known
    words = {word.strip() for word in only.split(",")}
    unknown = words - {measure.name for measure in known} - {measure.group for measure in known}
    if unknown:
        groups = ", ".join(dict.fromkeys(measure.group for measure in known))
        names = ", ".join(measure.name for measure in known)
        raise RigError(f"unknown measure {min(unknown)!r}; groups: {groups}; measures: {names}")
    return [measure for measure in known if words & {measure.name, measure.group}]


def _logs(out: Path) -> Path:
    """Return the folder for what the processes say."""
    folder = out.absolute() / "logs"
    folder.mkdir(exist_ok=True)
    return folder


def _builds(also: list[str]) -> list[tuple[str, list[str]]]:
    """Return further builds of t2s, with their flags."""
    found = []
    for text in also:
        name, equals, command = text.partition("=")
        if not equals or not name or not command.strip():
            raise RigError(f"--also {text!r}: it is NAME=T2S [FLAG]...")
        found.append((name, shlex.split(command)))
    return found


def _settings(plan: runner.Plan) -> dict[str, object]:
    return {
        "engines": {made.name: made.version for made in plan.engines},
        "measures": [made.name for made in plan.measures],
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "warmup": plan.warmup,
        "seed": plan.seed,
        "server": plan.server,
        "rtt_ms": plan.rtt_ms,
        "pid": os.getpid(),
        "commit": _commit(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "congestion": plan.congestion,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str:
    """Return the commit of this checkout, `+` for changes in it."""
    command = ["git", "-C", str(peer.ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _refuse(text: str) -> NoReturn:
    typer.echo(f"error: {text}", err=True)
    raise typer.Exit(ENDED)


if __name__ == "__main__":
    typer.run(main)
