"""Turns what a scenario file got wrong into sentences with file, line, key path and the nearest valid key."""

from __future__ import annotations

import re
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from t2s.errors import Problem
from t2s.suggest import suggest
from t2s.toml_lines import KeyPath, nearest_line

if TYPE_CHECKING:
    import tomllib
    from collections.abc import Iterable, Mapping

_SENTENCES = {
    "missing": "is missing",
    "union_tag_not_found": "needs a `kind`",
}
"""Sentences for pydantic's error types that say it in fewer words."""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A problem at a key path of the raw tree; array elements by index."""

    path: KeyPath
    message: str
    line: int | None = None

    @classmethod
    def toml(cls, error: tomllib.TOMLDecodeError) -> Self:
        """Take line and sentence from a syntax error."""
        text = str(error)
        place = re.search(r"\(at line (\d+), column \d+\)", text)
        line = int(place.group(1)) if place else None
        return cls((), f"not TOML: {text.removesuffix(place.group(0)).strip() if place else text}", line)

    @classmethod
    def pydantic(cls, error: ValidationError, raw: Any, model: type[BaseModel]) -> list[Self]:
        """Translate all errors of a validation; `raw` is the tree that was validated against `model`."""
        found: dict[tuple[KeyPath, str], Self] = {}
        for item in error.errors(include_url=False):
            path = _without_tags(item["loc"], raw)
            if item["type"] == "too_short" and item["input"]:
                continue  # it has elements, and each of their own problems is listed
            match item["type"]:
                case "extra_forbidden":
                    fields = _fields(model, item["loc"][:-1])
                    message = f"unknown key{suggest(str(path[-1]), fields)}"
                case "value_error":
                    message = str(item["ctx"]["error"]) if "ctx" in item else item["msg"]
                case "literal_error" | "union_tag_invalid":
                    allowed = item["ctx"].get("expected") or item["ctx"].get("expected_tags", "")
                    options = re.findall(r"'([^']*)'", allowed)
                    given = item["input"].get("kind") if isinstance(item["input"], dict) else item["input"]
                    message = f"{given!r} is none of {allowed}{suggest(str(given), options)}"
                case kind:
                    message = _SENTENCES.get(kind, f"{item['msg'][0].lower()}{item['msg'][1:]}{_given(item['input'])}")
            found.setdefault((path, message), cls(path, message))
        return list(found.values())


def problems_of(
    found: Iterable[Diagnostic],
    source: str,
    lines: Mapping[KeyPath, int],
    raw: Any = None,
    origins: Mapping[KeyPath, str] | None = None,
) -> tuple[Problem, ...]:
    """Give each problem its line, or the command line as its source, in the order of the file.

    `origins` names the option that wrote a key, for keys that do not come from the file.
    """
    problems = []
    for item in found:
        origin = next((text for path, text in (origins or {}).items() if item.path[: len(path)] == path), None)
        if origin is not None:
            problems.append(Problem("command line", None, origin, item.message))
        else:
            line = item.line if item.line is not None else nearest_line(lines, item.path)
            problems.append(Problem(source, line, _spelled(item.path, raw), item.message))
    return tuple(sorted(problems, key=lambda problem: (problem.source != source, problem.line or 0)))


def _spelled(path: KeyPath, raw: Any) -> str:
    """Spell a key path as `--set` takes it: array elements by name where they have one."""
    parts: list[str] = []
    node = raw
    for part in path:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = None
        name = node.get("name") if isinstance(part, int) and isinstance(node, dict) else None
        parts.append(name if isinstance(name, str) else str(part))
    return ".".join(parts)


def _without_tags(location: KeyPath, raw: Any) -> KeyPath:
    """Drop the parts of pydantic's location that are union members, not keys of the file."""
    path: list[str | int] = []
    node = raw
    for at, part in enumerate(location):
        last = at == len(location) - 1
        if isinstance(node, dict):
            if part in node:
                node = node[part]
            elif not last or node.get("kind") == part:
                continue
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif node is not None:
            continue  # a union's member name below a scalar
        path.append(part)
    return tuple(path)


def _fields(model: type[BaseModel], location: KeyPath) -> list[str]:
    """Return the keys that the model at a location knows."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        members = _models(current)
        owner = next((m for m in members if part in _keys(m)), None)
        if owner is not None:
            name = next(name for name, field in owner.model_fields.items() if part in (name, field.alias))
            current = owner.model_fields[name].annotation
            continue
        tagged = [m for m in members if part in get_args(getattr(m.model_fields.get("kind"), "annotation", None))]
        current = tagged[0] if tagged else current
    return [key for member in _models(current) for key in _keys(member)]


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside a type form."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, tuple, None) or get_args(annotation):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _given(value: object) -> str:
    return f", not {value!r}" if isinstance(value, str | int | float | bool) else ""
