"""The tables that a run ends with in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from t2s.lab.formatting import UNKNOWN, count, share, short, size
from t2s.lab.outcome import Status
from t2s.lab.verdict import NO_ROUND, busy_note, rounds_note

if TYPE_CHECKING:
    from t2s.lab.results import Results

_COLOURS = {Status.PASS: "green", Status.FAIL: "red", Status.INCONCLUSIVE: "yellow"}


def summary(results: Results) -> RenderableType:
    """Return the scenario table: load phase first, capacity after it."""
    table = Table(title="Load phase at the stated rate, and capacity", title_justify="left")
    names = (
        "Scenario",
        "PPS",
        "p50 ns",
        "p99 ns",
        "undisturbed p99",
        "service time p50",
        "service time p99",
        "Goodput",
        "CPU",
        "ns/packet",
        "Heap",
        "Loop on-CPU max ns",
        "Capacity PPS",
        "vs ref.",
    )
    for name in names:
        table.add_column(name, justify="left" if name == "Scenario" else "right", no_wrap=True)
    for row in results.summary.to_dicts():
        if row["variant"]:
            continue
        reference = results.file.named(row["scenario"]).reference.pps
        capacity = row["capacity_pps"]
        gain = UNKNOWN if capacity is None or reference is None else f"{capacity / reference:.0f}x"
        cpu = None if row["cpu_percent"] is None else row["cpu_percent"] / 100
        bound = "*" if "capacity" in (row["generator_bound"] or "") else ""
        table.add_row(
            row["scenario"],
            count(row["pps"]),
            count(row["latency_p50_ns"]),
            count(row["latency_p99_ns"]),
            count(row["undisturbed_latency_p99_ns"]),
            count(row["service_time_p50_ns"]),
            count(row["service_time_p99_ns"]),
            share(row["goodput_ratio"]),
            share(cpu),
            short(row["cpu_ns_per_packet"]),
            size(row["heap_bytes"]),
            count(row["loop_on_cpu_max_ns"]),
            count(capacity) + bound,
            gain,
        )
    note = Text("* generator_bound: the generator alone does less than twice as much", style="dim")
    return Group(table, note)


def thresholds(results: Results) -> RenderableType:
    """Return the threshold table with the verdict of each scenario, and the reasons below it."""
    table = Table(title=f"Thresholds (baseline = {results.file.baseline})", title_justify="left")
    table.add_column("Scenario", no_wrap=True)
    for threshold in results.file.threshold:
        table.add_column(threshold.title)
    table.add_column("Status")
    reasons: list[Text] = []
    for scenario in results.scenarios():
        verdicts = {verdict.threshold.name: verdict for verdict in results.verdicts.of(scenario)}
        if not verdicts:
            continue
        cells: list[Text] = []
        for threshold in results.file.threshold:
            verdict = verdicts.get(threshold.name)
            if verdict is None:
                cells.append(Text("N/A", style="dim"))
                continue
            cells.append(Text(verdict.cell, style=_COLOURS[verdict.status]))
        status = results.verdicts.status(scenario)
        reasons += _reasons(results, scenario)
        table.add_row(scenario, *cells, Text(status.value, style=f"bold {_COLOURS[status]}"))
    return Group(table, *reasons)


def _reasons(results: Results, scenario: str) -> list[Text]:
    """Return a line for each threshold that did not pass, and one for what the machine did meanwhile."""
    told = [verdict for verdict in results.verdicts.of(scenario) if verdict.status is not Status.PASS]
    if not told:
        return []
    if len(told) > 1 and all(verdict.reasons == (NO_ROUND,) for verdict in told):
        lines = [Text(f"{Status.INCONCLUSIVE.value}  {scenario}: {NO_ROUND}", style=_COLOURS[Status.INCONCLUSIVE])]
    else:
        lines = []
        for verdict in told:
            values = f"{short(verdict.measured, 5)} against {short(verdict.limit, 5)}"
            sentence = "; ".join([f"{scenario}, {verdict.threshold.title}: {values}", *verdict.reasons])
            lines.append(Text(f"{verdict.status.value}  {sentence}", style=_COLOURS[verdict.status]))
    machine = results.verdicts.machine.get(scenario)
    if machine:
        lines.append(Text(f"{scenario}: {'; '.join(machine)}", style="dim"))
    return lines


def outcome(results: Results) -> RenderableType:
    """Return the last line: the verdict of the run."""
    evaluation = results.verdicts
    counts = ", ".join(f"{number} {status.value}" for status, number in evaluation.counts.items() if number)
    text = f"{evaluation.overall.value}: {counts or 'nothing was judged'}"
    if results.interrupted:
        text += "; interrupted, and what was measured until then is kept"
    notes = [note for note in (rounds_note(results.file.run.rounds), busy_note(results)) if note]
    lines = [Text(note, style="yellow") for note in notes]
    return Group(Text(text, style=f"bold {_COLOURS[evaluation.overall]}"), *lines)
