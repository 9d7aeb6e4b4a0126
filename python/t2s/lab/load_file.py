"""Reads a scenario file, with what `--set` changes in it.

Promises: a file either loads completely or is refused with *all* its problems, each with file, line, key path and the
nearest valid key. Beside what the models of `scenario` refuse, those are names that do not exist or stand twice, and
components that the settings cannot carry.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from t2s.errors import ScenarioError
from t2s.lab.diagnostics import Diagnostic, problems_of
from t2s.lab.scenario import Run, ScenarioFile, Settings
from t2s.suggest import suggest
from t2s.toml_lines import KeyPath, key_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADERS = 72
"""IPv6 and TCP headers with timestamps (RFC 8200, RFC 7323), bytes: the larger of both families bounds a payload."""


def load_scenarios(path: str | Path, overrides: Mapping[str, str] | None = None) -> ScenarioFile:
    """Load a scenario file; `overrides` are `key path -> TOML value` as `--set` gives them.

    Raises:
        ScenarioError: with every problem of the file and the overrides.

    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ScenarioError(problems_of([Diagnostic((), f"cannot be read: {reason}")], str(path), {})) from None
    return parse_scenarios(text, overrides, source=str(path), folder=path.parent)


def parse_scenarios(
    text: str, overrides: Mapping[str, str] | None = None, *, source: str = "<text>", folder: Path | None = None
) -> ScenarioFile:
    """Load a scenario file from its text; see `load_scenarios`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(problems_of([Diagnostic.toml(error)], source, {})) from None
    lines = key_lines(text)
    origins, found = _set_all(raw, overrides or {})
    if folder is not None:
        found += _resolve_captures(raw, folder)
    file: ScenarioFile | None = None
    try:
        file = ScenarioFile.model_validate(raw)
    except ValidationError as error:
        found += Diagnostic.pydantic(error, raw, ScenarioFile)
    found += _cross_checks(raw)
    if found or file is None:
        raise ScenarioError(problems_of(found, source, lines, raw, origins))
    return file


def _set_all(raw: dict[str, Any], overrides: Mapping[str, str]) -> tuple[dict[KeyPath, str], list[Diagnostic]]:
    """Write `--set` values into the raw tree; a bare key means a setting, else a key of `[run]`.

    Returns the option behind each key path that it wrote, and the problems.
    """
    origins: dict[KeyPath, str] = {}
    found: list[Diagnostic] = []
    for key, text in overrides.items():
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        parts = key.split(".")
        if len(parts) == 1:
            known = [*Settings.model_fields, *Run.model_fields]
            near = difflib.get_close_matches(key, known, n=1) or [""]
            parts.insert(0, "run" if near[0] in Run.model_fields else "settings")
        path: KeyPath = ()
        node: Any = raw
        for part in parts[:-1]:
            step, node = _step(node, part)
            path = (*path, step)
        path = (*path, parts[-1])
        origins[path] = f"--set {key}={text}"
        if isinstance(node, dict):
            node[parts[-1]] = value
        else:
            found.append(Diagnostic(path, f"no table {'.'.join(parts[:-1])} to set a key in"))
    return origins, found


def _step(node: Any, part: str) -> tuple[str | int, Any]:
    """Go one key down; an element of an array is named by its `name` or its index."""
    if isinstance(node, dict):
        return part, node.setdefault(part, {})
    for index, item in enumerate(node if isinstance(node, list) else ()):
        if str(index) == part or (isinstance(item, dict) and item.get("name") == part):
            return index, item
    return part, None


def _tables(raw: Mapping[str, Any], key: str) -> list[tuple[int, dict[str, Any]]]:
    items = raw.get(key)
    return [(i, item) for i, item in enumerate(items) if isinstance(item, dict)] if isinstance(items, list) else []


def _cross_checks(raw: Mapping[str, Any]) -> list[Diagnostic]:
    """Find what no single key shows; on the raw tree, so that it works beside other problems."""
    found: list[Diagnostic] = []
    names: list[str] = []
    for table in ("scenario", "threshold"):
        seen: set[str] = set()
        for index, item in _tables(raw, table):
            name = item.get("name")
            if isinstance(name, str):
                if name in seen:
                    found.append(Diagnostic((table, index, "name"), f'a second {table} named "{name}"'))
                seen.add(name)
        if table == "scenario":
            names = sorted(seen)
    run = raw.get("run")
    run = run if isinstance(run, dict) else {}
    baseline = run.get("baseline")
    if run.get("soak_probe_seconds") and not run.get("paired_baseline_seconds"):
        found.append(
            Diagnostic(("run", "soak_probe_seconds"), "needs `paired_baseline_seconds`: probes are compared with it")
        )
    if isinstance(baseline, str) and baseline not in names:
        found.append(Diagnostic(("run", "baseline"), f'no scenario "{baseline}"{suggest(baseline, names)}'))
    for index, item in _tables(raw, "threshold"):
        scope = item.get("scope")
        for at, name in enumerate(scope) if isinstance(scope, list) else ():
            if isinstance(name, str) and name not in names:
                found.append(
                    Diagnostic(("threshold", index, "scope", at), f'no scenario "{name}"{suggest(name, names)}')
                )
    for index, item in _tables(raw, "scenario"):
        found += _scenario_checks(raw, ("scenario", index), item, run.get("driver"))
    return found


def _scenario_checks(
    raw: Mapping[str, Any], path: KeyPath, item: dict[str, Any], run_driver: object
) -> list[Diagnostic]:
    found: list[Diagnostic] = []
    driver = item.get("driver", run_driver or "memory")
    if driver == "pcap":
        if "capture" not in item:
            found.append(Diagnostic(path, 'the pcap driver needs `capture = "file.pcap"`'))
    elif driver == "memory":
        found.extend(Diagnostic(path, f"needs `{key}`") for key in ("rate_pps", "components") if not item.get(key))
        found.extend(
            Diagnostic((*path, key), "only for the pcap driver") for key in ("capture", "speed") if key in item
        )
    phases = [((), item), *((("load",), item.get("load")), (("capacity",), item.get("capacity")))]
    for prefix, phase in phases:
        if not isinstance(phase, dict):
            continue
        settings = Settings().model_dump()
        for table in (raw.get("settings"), item.get("settings"), phase.get("settings")):
            settings |= table if isinstance(table, dict) else {}
        found += _component_checks((*path, *prefix, "components"), phase.get("components"), settings)
    return found


def _component_checks(path: KeyPath, items: object, settings: Mapping[str, Any]) -> list[Diagnostic]:
    """Find components that the settings cannot carry: segments above the MTU, more flows than the table holds."""
    found: list[Diagnostic] = []
    flows = {"max_tcp_flows": 0, "max_udp_sessions": 0}
    for index, item in enumerate(items) if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        kind, mtu, size = item.get("kind"), settings.get("mtu"), item.get("segment_bytes")
        whole = not settings.get("offload")
        if whole and isinstance(size, int) and isinstance(mtu, int) and HEADERS + size > mtu:
            found.append(
                Diagnostic(
                    (*path, index, "segment_bytes"),
                    f"{size} bytes and {HEADERS} of headers do not fit the MTU of {mtu}",
                )
            )
        key = "max_udp_sessions" if kind == "udp" else "max_tcp_flows"
        count = item.get("concurrent" if kind == "tcp_churn" else "flows")
        flows[key] += count if isinstance(count, int) else 0
    for key, count in flows.items():
        limit = settings.get(key)
        if isinstance(limit, int) and count > limit:
            found.append(Diagnostic(path, f"{count} flows, but `{key}` is {limit}"))
    return found


def _resolve_captures(raw: dict[str, Any], folder: Path) -> list[Diagnostic]:
    """Resolve captures against the file's folder, and find those that are not there."""
    found: list[Diagnostic] = []
    for index, item in _tables(raw, "scenario"):
        capture = item.get("capture")
        if isinstance(capture, str):
            item["capture"] = str((folder / capture).resolve())
            if not (folder / capture).is_file():
                found.append(Diagnostic(("scenario", index, "capture"), f"no file {folder / capture}"))
    return found
