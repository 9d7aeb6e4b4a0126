"""The lab's commands: `t2s bench`, `t2s ablate`, `t2s report`, `t2s columns`.

Exit codes: 0 all passed, 1 a threshold failed, 2 bad input, 3 inconclusive.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from t2s.cli.exit_codes import BAD_INPUT
from t2s.errors import ScenarioError, T2sError

if TYPE_CHECKING:
    from rich.console import Console

    from t2s.lab.results import Results
    from t2s.lab.runner import Observer
    from t2s.lab.scenario import ScenarioFile

PACKAGED = Path(__file__).parents[1] / "scenarios.toml"
"""The scenario file that comes with the package."""


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (bench, ablate, report, columns):
        app.command()(command)


class Driver(StrEnum):
    """What feeds packets to the core."""

    memory = "memory"
    pcap = "pcap"


FileArgument = Annotated[Path, typer.Argument(help="Scenario file; the packaged one where there is none.")]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", help="Scenario to run, with the baseline; repeatable; default: all.")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Shorter phases and fewer rounds, as [quick] says; default: no.")
]
SecondsOption = Annotated[
    float | None, typer.Option("--seconds", help="Length of a load phase, seconds; default: as the file says.")
]
RoundsOption = Annotated[int | None, typer.Option("--rounds", help="Rounds a scenario; default: as the file says.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Worker threads; default: as the file says.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the file for this run; repeatable; default: none."
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder for report, JSON and tables; default: none.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables; default: no.")]
DriverOption = Annotated[
    Driver | None, typer.Option("--driver", help="Driver of scenarios that name none; default: as the file says.")
]


def bench(
    file: FileArgument = Path("scenarios.toml"),
    only: OnlyOption = None,
    quick: QuickOption = False,
    seconds: SecondsOption = None,
    rounds: RoundsOption = None,
    workers: WorkersOption = None,
    soak_seconds: Annotated[
        float | None, typer.Option("--soak-seconds", help="Length of the soak, seconds; default: as the file says.")
    ] = None,
    driver: DriverOption = None,
    change: SetOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the scenarios against the packet core and judge them by the file's thresholds."""
    from t2s.lab import report, storage, tables
    from t2s.lab.runner import Runner

    console = _console()
    scenarios = _load(file, change, driver)
    if quick:
        scenarios = scenarios.quickened()
    with _reported_errors():
        scenarios = scenarios.with_run(
            load_seconds=seconds, rounds=rounds, workers=workers, soak_seconds=soak_seconds
        ).only(only or [s.name for s in scenarios.scenario])
        results = Runner(scenarios, observer=_observer(console)).run()
        command = _command()
        if out is not None:
            storage.save(results, out, report.render(results, command))
    if as_json:
        _print_json(storage.document(results))
    else:
        stdout = _console(stderr=False)
        for part in (tables.summary, tables.thresholds, tables.outcome):
            stdout.print(part(results))
        if out is not None:
            stdout.print(f"written: {out / 'report.md'}, results.json and tables")
    raise typer.Exit(results.verdicts.overall.exit_code if scenarios.threshold else _complete(results))


def ablate(
    file: FileArgument = Path("scenarios.toml"),
    only: OnlyOption = None,
    quick: QuickOption = False,
    seconds: SecondsOption = None,
    rounds: RoundsOption = None,
    workers: WorkersOption = None,
    change: SetOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what each of the five optimizations is worth, by switching each off in turn."""
    from t2s.lab import ablation
    from t2s.lab.runner import Runner
    from t2s.lab.verdict import rounds_note

    console = _console()
    scenarios = ablation.prepared(_load(file, change, None), quick=quick)
    with _reported_errors():
        scenarios = scenarios.with_run(load_seconds=seconds, rounds=rounds, workers=workers)
        if only:
            scenarios = scenarios.only(only, keep_baseline=False)
        results = Runner(
            scenarios, variants=ablation.variants(scenarios.run.workers), observer=_observer(console)
        ).run()
        if out is not None:
            ablation.save(results, out, _command())
    if as_json:
        _print_json({"environment": results.environment, "worth": [w.as_dict() for w in ablation.worth(results)]})
    else:
        stdout = _console(stderr=False)
        stdout.print(ablation.terminal(results))
        stdout.print(rounds_note(scenarios.run.rounds))
    raise typer.Exit(_complete(results))


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `t2s bench --out DIR` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Print the report of a run again, with its verdicts made anew from what was measured."""
    from t2s.lab import report as page
    from t2s.lab import storage

    with _reported_errors():
        results = storage.read(folder)
    if as_json:
        _print_json(storage.document(results))
    else:
        typer.echo(page.render(results, f"t2s report {folder}"))
    raise typer.Exit(results.verdicts.overall.exit_code if results.file.threshold else _complete(results))


def columns() -> None:
    """List the columns of the results table, which thresholds may name."""
    from rich.table import Table

    from t2s.lab.columns import COLUMNS

    table = Table()
    for name in ("Column", "Unit", "Over rounds", "Meaning"):
        table.add_column(name)
    for column in COLUMNS.values():
        table.add_row(column.name, column.unit, column.aggregate.value, column.meaning)
    _console(stderr=False).print(table)


def _load(file: Path, changes: list[str] | None, driver: Driver | None) -> ScenarioFile:
    """Load the scenario file, or the packaged one where the default name does not exist."""
    from t2s.lab.load_file import load_scenarios

    overrides: dict[str, str] = {}
    for change in changes or ():
        key, sign, value = change.partition("=")
        if not sign or not key:
            _refuse(f"--set {change}: write KEY=VALUE")
        overrides[key.strip()] = value.strip()
    if driver is not None:
        overrides["run.driver"] = f'"{driver.value}"'
    if not file.exists() and file == Path("scenarios.toml"):
        file = PACKAGED
    with _reported_errors():
        return load_scenarios(file, overrides)


class _reported_errors:  # noqa: N801 - reads as a phrase after `with`
    """Turn refusals of t2s into sentences and the exit code for bad input."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Report a refusal, let everything else pass."""
        if isinstance(error, ScenarioError):
            _refuse(*(str(problem) for problem in error.problems))
        if isinstance(error, T2sError):
            _refuse(str(error))


def _refuse(*sentences: str) -> NoReturn:
    for sentence in sentences:
        typer.echo(sentence, err=True)
    raise typer.Exit(BAD_INPUT)


def _complete(results: Results) -> int:
    """Exit code where nothing is judged: 3 for a run that was cut short."""
    from t2s.lab.outcome import Status

    return (Status.INCONCLUSIVE if results.interrupted else Status.PASS).exit_code


def _console(*, stderr: bool = True) -> Console:
    """Return a console; tables that go into a file or a pipe are as wide as they need."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=240)


def _observer(console: Console) -> Observer:
    from t2s.lab.progress import RichObserver

    return RichObserver(console)


def _print_json(tree: object) -> None:
    import json

    json.dump(tree, sys.stdout, indent=1)
    sys.stdout.write("\n")


def _command() -> str:
    import shlex

    return shlex.join(["t2s", *sys.argv[1:]])
