"""The report: every section of the reference report, from what this run measured.

Nothing here is judged or measured; sections are functions from results to Markdown, in the order of the page.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from t2s._core import Lab
from t2s.lab import analysis, formatting
from t2s.lab.columns import COLUMNS
from t2s.lab.formatting import UNKNOWN, count, share, short, size, table, time
from t2s.lab.outcome import Status, Verdict
from t2s.lab.statistics import CONFIDENCE, RESAMPLES, Interval, rank_interval
from t2s.lab.verdict import busy_note, rounds_note

if TYPE_CHECKING:
    from t2s.lab.analysis import Finding
    from t2s.lab.results import Results

FULL_SOAK_SECONDS = 86_400
"""The full soak: 24 hours."""

Row = dict[str, Any]


def render(results: Results, command: str = "t2s bench scenarios.toml") -> str:
    """Return the whole report as Markdown; `command` is what was typed, for the reader who repeats it."""
    sections = [
        "# t2s performance report",
        _verdict(results),
        _status(results, command),
        _environment(results),
        _summary(results),
        _capacity(results),
        _reference(results),
        _hotspots(results),
        _memory(results),
        _throughput(results),
        _thresholds(results),
        _verdict_details(results),
        _root_causes(results),
        _priorities(results),
        _visible(results),
        ANDROID,
        _soak(command),
        WORDS,
    ]
    return "\n\n".join(section.rstrip() for section in sections if section) + "\n"


def _rows(results: Results) -> list[Row]:
    return [row for row in results.summary.to_dicts() if row["variant"] == ""]


def _verdict(results: Results) -> str:
    evaluation = results.verdicts
    counts = evaluation.counts
    told = ", ".join(f"{counts[status]} {status.value}" for status in Status if counts[status])
    reference = [scenario.reference.status for scenario in results.file.scenario if scenario.reference.status]
    compared = f" (the reference: {reference.count('PASS')} of {len(reference)} PASS)" if reference else ""
    lines = [f"**{evaluation.overall.value}**: {told or 'nothing was judged'}{compared}."]
    if results.interrupted:
        lines.append("The run was interrupted; what was measured until then is below.")
    if busy := busy_note(results):
        lines.append(f"{busy[0].upper()}{busy[1:]}.")
    if evaluation.incomplete:
        lines.append(f"Not measured: {', '.join(evaluation.incomplete)}.")
    return " ".join(lines)


def _status(results: Results, command: str) -> str:
    run = results.file.run
    names = ("generator_selftest", "load", "capacity", "paired_baseline", "soak_probe")
    phases = {name: [p for p in results.phases if p.phase == name] for name in names}
    seconds = {name: sum(p.tree.get("seconds") or 0.0 for p in found) for name, found in phases.items()}
    soaks = [p for p in phases["load"] if results.file.named(p.scenario).soak]
    soak = ", ".join(f"{p.scenario} {p.tree.get('seconds') or 0:.0f} s" for p in soaks) or "not run"
    drivers = sorted({p.spec.get("driver", "memory") for p in results.phases})
    return f"""## Execution status
- Command: `{command}`
- Driver: {", ".join(drivers) or UNKNOWN}; workers: {run.workers}, threads {"pinned" if run.pin else "not pinned"}; \
seed {run.seed}; {run.rounds} rounds, interleaved over the scenarios in a shuffled order.
- Load phases: {len(phases["load"])}, {seconds["load"]:.0f} s measured. Capacity phases: {len(phases["capacity"])}, \
{seconds["capacity"]:.0f} s. Self-tests of the generator: {len(phases["generator_selftest"])}. \
Paired baselines: {len(phases["paired_baseline"])}, soak probes: {len(phases["soak_probe"])}.
- Soak: {soak}{"" if not soaks else f"; the full {FULL_SOAK_SECONDS:,} s command is below"}.
- Android profiling: needs a device; the commands are below."""


def _environment(results: Results) -> str:
    lines = [f"- {key.replace('_', ' ')}: {value}" for key, value in results.environment.items() if value is not None]
    return "## Environment\n" + "\n".join(lines)


def _summary(results: Results) -> str:
    header = [
        "Scenario",
        "p50 ns",
        "p95 ns",
        "p99 ns",
        "p99.9 ns",
        "max ns",
        "Quiet p99 ns",
        "PPS",
        "Mbps",
        "Goodput Mbps",
        "Goodput",
        "Conn/s",
        "Lost",
        "Reassembly bytes",
        "Alloc misses",
        "Event loop max ns",
        "on-CPU max ns",
        "CPU",
        "ns/packet",
        "Status",
    ]
    rows = []
    for row in _rows(results):
        histogram = results.histogram(row["scenario"], "latency")
        thin = histogram is not None and rank_interval(histogram.count, 0.999) is None
        rows.append(
            [
                row["scenario"],
                count(row["latency_p50_ns"]),
                count(row["latency_p95_ns"]),
                count(row["latency_p99_ns"]),
                UNKNOWN if thin else count(row["latency_p999_ns"]),
                count(row["latency_max_ns"]),
                count(row["undisturbed_latency_p99_ns"]),
                count(row["pps"]),
                short(row["mbit_per_s"], 4),
                short(row["goodput_mbit_per_s"], 4),
                share(row["goodput_ratio"]),
                count(row["connections_per_s"]),
                count(row["lost"]),
                count(row["reassembly_bytes"]),
                count(row["pool_grow_stalls"]),
                count(row["loop_iteration_max_ns"]),
                count(row["loop_on_cpu_max_ns"]),
                share((row["cpu_percent"] or 0) / 100),
                short(row["cpu_ns_per_packet"]),
                _scenario_status(results, row["scenario"]),
            ]
        )
    service = [
        [
            row["scenario"],
            *(count(row[f"service_time_{q}_ns"]) for q in ("p50", "p95", "p99", "p999", "max")),
            count(row["upstream_wait_p50_ns"]),
            count(row["upstream_wait_p99_ns"]),
        ]
        for row in _rows(results)
    ]
    tails = _tails(results)
    meanings = "\n".join(f"- `{s.name}`: {s.meaning}" for s in results.file.scenario if s.meaning)
    return f"""## Scenario summary table
Load phase, at the stated rate. Latency runs from a packet's due time to its effect; quantiles are of the \
histograms of all rounds merged. Quiet leaves out the packets that a stall of the machine delayed.

{table(header, rows)}

Service time (from dequeue to effect), and the simulated upstream's own delay, which is not charged to the core:

{table(["Scenario", "p50 ns", "p95 ns", "p99 ns", "p99.9 ns", "max ns", "upstream p50 ns", "upstream p99 ns"], service)}
{tails}
{meanings}"""


def _tails(results: Results) -> str:
    """Give the rank intervals of p99.9 where enough samples lie beyond it."""
    rows = []
    for row in _rows(results):
        histogram = results.histogram(row["scenario"], "latency")
        bounds = rank_interval(histogram.count, 0.999) if histogram is not None else None
        if histogram is not None and bounds is not None:
            low, high = (histogram.percentile(100 * bound) for bound in bounds)
            rows.append(
                [row["scenario"], count(histogram.count), count(low), count(row["latency_p999_ns"]), count(high)]
            )
    if not rows:
        return ""
    return (
        "\n95 % rank interval of latency p99.9:\n\n"
        + table(["Scenario", "samples", "low ns", "p99.9 ns", "high ns"], rows)
        + "\n"
    )


def _scenario_status(results: Results, scenario: str) -> str:
    return results.verdicts.status(scenario).value if results.verdicts.of(scenario) else UNKNOWN


def _capacity(results: Results) -> str:
    rows = []
    for row in _rows(results):
        if row["capacity_pps"] is None:
            continue
        values = list(results.values(row["scenario"], "capacity_pps").values())
        reference = results.file.named(row["scenario"]).reference.pps
        rows.append(
            [
                row["scenario"],
                count(row["capacity_pps"]),
                f"{count(min(values))} .. {count(max(values))}",
                UNKNOWN if reference is None else f"{row['capacity_pps'] / reference:.1f}x",
                short(row["capacity_goodput_mbit_per_s"], 4),
                count(row["capacity_connections_per_s"]),
                short(row["capacity_cpu_ns_per_packet"]),
                share(row["capacity_loss_ratio"]),
                count(row["null_pps"]),
                row["generator_bound"] or "",
            ]
        )
    if not rows:
        return ""
    header = [
        "Scenario",
        "PPS",
        "rounds",
        "of the reference",
        "Goodput Mbps",
        "Conn/s",
        "ns/packet",
        "Lost",
        "generator alone PPS",
        "generator_bound",
    ]
    return f"""## Capacity
How much the core forwards at all; `generator_bound` marks what the generator alone does less than twice.

{table(header, rows)}"""


def _reference(results: Results) -> str:
    pairs = [
        ("PPS", "pps", "pps"),
        ("p50 ns", "latency_p50_ns", "latency_p50_ns"),
        ("p99 ns", "latency_p99_ns", "latency_p99_ns"),
        ("p99.9 ns", "latency_p999_ns", "latency_p999_ns"),
        ("event loop max ns", "loop_iteration_max_ns", "loop_iteration_max_ns"),
        ("lock wait ns", "lock_wait_ns", "lock_wait_ns"),
    ]
    rows = []
    for row in _rows(results):
        reference = results.file.named(row["scenario"]).reference
        if reference.pps is None:
            continue
        cells = [f"{count(row[ours])} / {count(getattr(reference, theirs))}" for _, ours, theirs in pairs]
        rows.append(
            [row["scenario"], *cells, f"{_scenario_status(results, row['scenario'])} / {reference.status or UNKNOWN}"]
        )
    if not rows:
        return ""
    return f"""## Beside the reference
Each cell: this run / the reference report. The reference's machine was another one, and its load was synthetic.

{table(["Scenario", *(name for name, _, _ in pairs), "status"], rows)}"""


def _hotspots(results: Results) -> str:
    ranking = analysis.hotspots(results)
    if not ranking:
        return "## CPU hotspot ranking\nNo stage times were measured (`sample_every = 0`)."
    rows = [
        [
            str(spot.rank),
            spot.stage,
            _interval(spot.ns_per_packet, short),
            _interval(spot.share, share),
            ", ".join(
                f"{name} {share(value, 0)}"
                for name, value in sorted(spot.by_scenario.items(), key=lambda item: -item[1])[:3]
            ),
        ]
        for spot in ranking
    ]
    return f"""## CPU hotspot ranking
Sampled stage times of the capacity phases (the load phases where there are none), the scenarios counting alike; \
stages whose intervals overlap share a rank. `{analysis.UNATTRIBUTED}` is engine CPU time that no stage accounts for.

{table(["Rank", "Stage", "ns/packet", "Share", "most in"], rows, left=2)}"""


def _interval(value: Interval, write: Any) -> str:
    return f"{write(value.point)} [{write(value.low)}, {write(value.high)}]"


def _memory(results: Results) -> str:
    lines = []
    for row in _rows(results):
        if row["buffers_allocated"] is None:
            continue
        stalls = row["pool_grow_stalls"] / row["buffers_allocated"] if row["buffers_allocated"] else 0.0
        growth = (
            f"{row['rss_slope_percent_per_hour']:+.2f} %/h "
            f"[{row['rss_slope_low_percent_per_hour']:+.2f}, {row['rss_slope_high_percent_per_hour']:+.2f}]"
            if row["rss_slope_percent_per_hour"] is not None
            else "too short to tell"
        )
        lines.append(
            f"- {row['scenario']}: buffers allocated={count(row['buffers_allocated'])}, "
            f"freed={count(row['buffers_freed'])}, "
            f"pool_grow_stalls={count(row['pool_grow_stalls'])} ({100 * stalls:.6f}%), "
            f"after warm-up {count(row['pool_grow_stalls_after_warmup'])}, "
            f"preallocated slabs {count(row['preallocated_slabs'])}, "
            f"heap_bytes={size(row['heap_bytes'])} (peak {size(row['heap_peak_bytes'])}), "
            f"live_bytes after drain={count(row['live_bytes'])}, lock_wait_ns={count(row['lock_wait_ns'])}, "
            f"reassembly peak {size(row['reassembly_peak_bytes'])} of {size(row['reassembly_cap_bytes'])}, "
            f"RSS {size(row['rss_bytes'])}, growth {growth}."
        )
    return "## Memory growth and allocator pressure summary\n" + ("\n".join(lines) or "Nothing was measured.")


def _throughput(results: Results) -> str:
    rows = [row for row in _rows(results) if row["pps"] is not None]
    if not rows:
        return "## Throughput trend\nNothing was measured."
    soaks = {s.name for s in results.file.scenario if s.soak}
    matrix = [row for row in rows if row["scenario"] not in soaks]
    lines = []
    if matrix:
        pps = [row["pps"] for row in matrix]
        lines.append(f"- Matrix PPS range: {count(min(pps))} .. {count(max(pps))}.")
    lines += [f"- Soak PPS: {count(row['pps'])}." for row in rows if row["scenario"] in soaks]
    for row in matrix:
        values = list(results.values(row["scenario"], "pps").values())
        lines.append(f"- {row['scenario']}, PPS by round: {', '.join(count(value) for value in values)}.")
    return "## Throughput trend\n" + "\n".join(lines)


def _thresholds(results: Results) -> str:
    thresholds = results.file.threshold
    if not thresholds:
        return "## Regression threshold evaluation\nThe file has no thresholds."
    rows = []
    for scenario in results.scenarios():
        verdicts = {verdict.threshold.name: verdict for verdict in results.verdicts.of(scenario)}
        if verdicts:
            cells = [_cell(verdicts.get(threshold.name)) for threshold in thresholds]
            rows.append([scenario, *cells, results.verdicts.status(scenario).value])
    header = ["Scenario", *(threshold.title for threshold in thresholds), "Status"]
    settled = [t for t in thresholds if t.pass_if is not None]
    notes = "\n".join(f"- NO*: {t.title}: settled by {t.pass_reason or t.pass_if}." for t in settled)
    return f"""## Regression threshold evaluation (baseline = {results.file.baseline})

{table(header, rows, left=len(header))}

YES: the threshold is crossed. NO: it is not. ?: the rounds do not decide it.
{notes}"""


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "N/A"
    settled = verdict.status is Status.PASS and (verdict.fail_share is None or verdict.fail_share > 0.5)
    undecided = verdict.status is Status.PASS and any(reason.startswith("settled") for reason in verdict.reasons)
    return verdict.cell + ("*" if settled or undecided else "")


def _verdict_details(results: Results) -> str:
    rows = [
        [
            verdict.scenario,
            verdict.threshold.title,
            verdict.status.value,
            short(verdict.measured, 5),
            short(verdict.limit, 5),
            formatting.ratio(verdict.ratio),
            str(verdict.rounds),
            "; ".join(verdict.reasons),
        ]
        for verdict in results.verdicts.verdicts
    ]
    if not rows:
        return ""
    header = ["Scenario", "Threshold", "Verdict", "measured", "limit", "measured / limit", "rounds", "reasons"]
    note = rounds_note(results.file.run.rounds)
    return f"""## Verdicts and their reasons
Paired values of the rounds, {RESAMPLES:,} bootstrap resamples with a fixed seed, {CONFIDENCE:.0%} intervals of the \
median; maxima and counts are facts and have none. Percentiles of a soak are compared with the baseline by its samples \
in the rounds, where there are any; its row in the tables above is the whole of it. {note}

{table(header, rows, left=3)}
{_machine(results)}"""


def _machine(results: Results) -> str:
    told = [f"- {name}: {'; '.join(did)}." for name, did in results.verdicts.machine.items()]
    return "\nWhat the machine, not the core, did meanwhile:\n" + "\n".join(told) if told else ""


def _root_causes(results: Results) -> str:
    title = "## Root-cause analysis for failed thresholds"
    failed = [verdict for verdict in results.verdicts.verdicts if verdict.status is Status.FAIL]
    if not failed:
        return f"{title}\nNo threshold failed."
    parts = [title, "Differences to the baseline that were there in every round and are large enough to matter."]
    for verdict in failed:
        findings = analysis.causes(results, verdict)
        told = "; ".join(_told(finding) for finding in findings[:5])
        if not findings:
            told = (
                f"cause not established: nothing measured differs enough from the baseline. Next: "
                f"`t2s ablate --only {verdict.scenario}`"
            )
        parts.append(f"- {verdict.scenario}, {verdict.threshold.title}: {told}.")
    return "\n".join(parts)


def _told(finding: Finding) -> str:
    low, point, high = finding.effect.low, finding.effect.point, finding.effect.high
    if finding.kind == "loss":
        return f"{finding.name}: {share(point, 2)} of what was offered more than in the baseline"
    if finding.unit != "ns":
        return f"{finding.name}: {count(point)}"
    source = {"stage": "stage ", "machine": "the machine: ", "core": ""}[finding.kind]
    explained = f", {share(finding.explained, 0)} of the gap" if finding.explained else ""
    interval = f" [{time(low)}, {time(high)}]" if low != high else ""
    return f"{source}{finding.name}: +{time(point)}{interval} over the baseline's {time(finding.baseline)}{explained}"


def _priorities(results: Results) -> str:
    ranking = analysis.priorities(analysis.hotspots(results))
    if not ranking:
        return "## Optimization priority list\nNo stage times were measured."
    lines = []
    for place, item in enumerate(ranking, 1):
        where = (
            f"at least {share(analysis.AFFECTED, 0)} of {len(item.affected)} scenarios"
            if item.affected
            else f"below {share(analysis.AFFECTED, 0)} everywhere"
        )
        lines.append(
            f"{place}. {item.stage}: {share(item.share)} of a packet's time, {where}; "
            f"at best {item.ceiling:.2f}x if it cost nothing (Amdahl)."
        )
    return "## Optimization priority list\nBy measured share and scenarios affected.\n" + "\n".join(lines)


def _visible(results: Results) -> str:
    effects = analysis.visible_effects(results)
    if not effects:
        return "## Smallest visible effect\nToo few rounds to say."
    lines = [f"- {name}: {100 * (ratio - 1):.1f} % ({COLUMNS[name].meaning})" for name, ratio in effects.items()]
    return (
        "## Smallest visible effect\nRounds of one scenario are A/A. Comparing them with each other, 95 % of the "
        "differences between equals stay below:\n" + "\n".join(lines)
    )


ANDROID = """## Android profiling commands (to run on real device)
A release build needs `<profileable android:shell="true" />` in its manifest. 997 Hz is prime, so that a 1 ms loop \
does not alias.

```bash
PKG=com.example.vpn
adb shell simpleperf record -e cpu-clock -f 997 -g --trace-offcpu -p "$(adb shell pidof "$PKG")" --duration 60 \\
  -o /data/local/tmp/t2s.data
adb shell simpleperf report -i /data/local/tmp/t2s.data --children
adb pull /data/local/tmp/t2s.data .
adb shell perfetto -c - --txt -o /data/misc/perfetto-traces/t2s.perfetto-trace <<'CONFIG'
buffers { size_kb: 65536 }
duration_ms: 60000
data_sources { config { name: "linux.perf" perf_event_config {
  timebase { counter: SW_CPU_CLOCK frequency: 997 timestamp_clock: PERF_CLOCK_MONOTONIC }
  callstack_sampling { kernel_frames: true } } } }
data_sources { config { name: "linux.ftrace" ftrace_config {
  ftrace_events: "sched/sched_switch" ftrace_events: "sched/sched_waking" } } }
data_sources { config { name: "linux.process_stats" process_stats_config { proc_stats_poll_ms: 1000 } } }
CONFIG
adb pull /data/misc/perfetto-traces/t2s.perfetto-trace .
```"""


def _soak(command: str) -> str:
    words = shlex.split(command)
    file = next((word for word in words[2:] if word.endswith(".toml")), "scenarios.toml")
    return f"""## Full 24h soak command
```bash
t2s bench {shlex.quote(file)} --soak-seconds {FULL_SOAK_SECONDS} --out results-24h
```"""


WORDS = f"""## Terminology
Intended: what the scenario asked for, packets/s; where back-pressure is the point, what the peer's window allows. \
Offered: what the generator really sent; below {Lab.OFFERED_RATIO_MIN} of intended a round is invalid, not slow. \
Forwarded: offered less what the core dropped. Lost: unsent, or sent by one end and not received by the other. \
Effect: the core has done all that it can with the packet. Latency: from due time to effect. Service time: from \
dequeue to effect. Goodput: payload bytes forwarded, and as a ratio of those offered. Event loop iteration: \
from wake to next wait."""
