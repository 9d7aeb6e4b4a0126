"""Keeps results: `results.json` whole, Parquet tables with the environment in their metadata, the report.

A file is written beside its place and moved there, so that a reader never meets half of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from t2s import _core
from t2s.errors import LabError
from t2s.lab.columns import COLUMNS
from t2s.lab.results import PhaseResult, Results
from t2s.lab.scenario import ScenarioFile
from t2s.lab.verdict import evaluate

FORMAT = 1
"""Version of `results.json`."""


def document(results: Results) -> dict[str, Any]:
    """Return everything as one JSON tree: environment, file, phases with histograms, summary, verdicts."""
    evaluation = results.verdicts
    return {
        "format": FORMAT,
        "environment": results.environment,
        "interrupted": results.interrupted,
        "file": results.file.model_dump(mode="json", by_alias=True),
        "columns": {
            column.name: {"unit": column.unit, "over": column.aggregate.value, "meaning": column.meaning}
            for column in COLUMNS.values()
        },
        "summary": results.summary.to_dicts(),
        "verdicts": [
            {
                "scenario": verdict.scenario,
                "threshold": verdict.threshold.name,
                "status": verdict.status.value,
                "fail_share": verdict.fail_share,
                "measured": verdict.measured,
                "limit": verdict.limit,
                "ratio": None
                if verdict.ratio is None
                else [verdict.ratio.low, verdict.ratio.point, verdict.ratio.high],
                "rounds": verdict.rounds,
                "reasons": list(verdict.reasons),
            }
            for verdict in evaluation.verdicts
        ],
        "machine": {name: list(did) for name, did in evaluation.machine.items()},
        "status": {name: evaluation.status(name).value for name in results.scenarios() if evaluation.of(name)},
        "overall": evaluation.overall.value,
        "phases": [
            {
                "scenario": p.scenario,
                "phase": p.phase,
                "round": p.round,
                "variant": p.variant,
                "spec": dict(p.spec),
                "result": dict(p.tree),
            }
            for p in results.phases
        ],
    }


def save(results: Results, folder: str | Path, report: str) -> list[Path]:
    """Write all files of a run into a folder and return their paths.

    Raises:
        LabError: the folder cannot be written.

    """
    folder = Path(folder)
    metadata = {
        "t2s.environment": json.dumps(results.environment),
        "t2s.run": results.file.run.model_dump_json(),
        "t2s.columns": json.dumps({column.name: column.unit for column in COLUMNS.values()}),
    }
    frames = {
        "rounds": results.rounds,
        "summary": results.summary,
        "histograms": histograms(results),
        "stages": stages(results),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [
            _replace(folder / "report.md", lambda path: path.write_text(report, encoding="utf-8")),
            _replace(
                folder / "results.json",
                lambda path: path.write_text(json.dumps(document(results), indent=1), encoding="utf-8"),
            ),
        ]
        for name, frame in frames.items():
            written.append(
                _replace(
                    folder / f"{name}.parquet",
                    lambda path, f=frame: f.write_parquet(  # type: ignore[misc]
                        path, metadata=metadata
                    ),
                )
            )
    except OSError as error:
        raise LabError(f"cannot write to {folder}: {error.strerror or error}") from error
    return written


def read(folder: str | Path) -> Results:
    """Read the results that `save` wrote.

    Raises:
        LabError: there are none, or of another format.

    """
    path = Path(folder) / "results.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise LabError(f"{path}: {error}") from error
    if tree.get("format") != FORMAT:
        raise LabError(f"{path}: format {tree.get('format')!r}, this t2s reads {FORMAT}")
    phases = [
        PhaseResult(p["scenario"], p["phase"], p["round"], p["variant"], p["spec"], p["result"]) for p in tree["phases"]
    ]
    file = ScenarioFile.model_validate(tree["file"])
    return Results(file, phases, tree["environment"], evaluate, tree["interrupted"], _core.Histogram.decode)


def histograms(results: Results) -> Any:
    """Return all HDR histograms: one row a phase and kind, base64 of the V2 encoding."""
    import polars as pl  # noqa: PLC0415 - heavy, and the tunnel never needs it

    rows = [
        {
            "variant": p.variant,
            "scenario": p.scenario,
            "phase": p.phase,
            "round": p.round,
            "kind": kind,
            "count": p.tree[kind].get("count"),
            "hdr": p.tree[kind]["hdr"],
        }
        for p in results.phases
        for kind in ("latency", "undisturbed", "service_time", "upstream_wait")
        if isinstance(p.tree.get(kind), Mapping) and p.tree[kind].get("hdr")
    ]
    schema = {
        "variant": pl.String,
        "scenario": pl.String,
        "phase": pl.String,
        "round": pl.Int64,
        "kind": pl.String,
        "count": pl.Int64,
        "hdr": pl.String,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def stages(results: Results) -> Any:
    """Return all stage times: one row a phase and stage."""
    import polars as pl  # noqa: PLC0415 - heavy, and the tunnel never needs it

    rows = [
        {
            "variant": p.variant,
            "scenario": p.scenario,
            "phase": p.phase,
            "round": p.round,
            "stage": name,
            "ns": stage.get("ns"),
            "samples": stage.get("samples"),
        }
        for p in results.phases
        for name, stage in (p.tree.get("stages") or {}).items()
    ]
    schema = {
        "variant": pl.String,
        "scenario": pl.String,
        "phase": pl.String,
        "round": pl.Int64,
        "stage": pl.String,
        "ns": pl.Int64,
        "samples": pl.Int64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def _replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Write beside the path, then move."""
    part = path.with_name(f".{path.name}.part")
    write(part)
    part.replace(path)
    return path
