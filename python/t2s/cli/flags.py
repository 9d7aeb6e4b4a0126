"""The flags of a command, read from its signature without typer's parser.

Typer builds an adapter for each parameter before it parses one, and loads pydantic to do so: 12 MB and some 100 ms that
a tunnel would carry through its whole life. Here the command lines that tunnels are started with are read from the same
signature. It promises to answer only what typer would; whatever it is not sure of (help, errors, spellings seldom used)
it leaves to typer, so that there is one grammar and one wording.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from typer.models import OptionInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NUMBER = {int: re.compile(r"[0-9]{1,18}"), float: re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?")}
"""Spellings of numbers that nobody reads in two ways."""
_MEANINGS = ("envvar", "parser", "click_type", "callback", "count", "min", "max")
"""What gives an option a meaning beyond its type."""


def parse(command: Callable[..., object], argv: Sequence[str]) -> dict[str, Any] | None:
    """Read `argv` as flags of `command`; None leaves them to typer.

    >>> Text, Number = Annotated[str | None, OptionInfo()], Annotated[int, OptionInfo()]
    >>> def greet(name: Text = None, times: Number = 1) -> None: ...
    >>> parse(greet, ["--name", "Ada", "--times=2"])
    {'name': 'Ada', 'times': 2}
    >>> parse(greet, ["--nmae", "Ada"])
    """
    flags = _flags(command)
    if flags is None:
        return None
    found: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if word not in flags:
            return None
        key, kind, given, many = flags[word]
        if given is None:
            if not equals:
                if not rest or rest[0].startswith("-"):
                    return None
                value = rest.pop(0)
            if kind in _NUMBER and not _NUMBER[kind].fullmatch(value):
                return None
            given = kind(value)
        elif equals:
            return None
        if many:
            found.setdefault(key, []).append(given)
        elif key in found:
            return None
        else:
            found[key] = given
    return found


_Flag = tuple[str, Any, bool | None, bool]
"""Parameter, type of its value, value of a flag that takes none, and whether it may be repeated."""


def _flags(command: Callable[..., object]) -> dict[str, _Flag] | None:
    """Name every flag of a command; None when one of them is of a kind that only typer knows."""
    found: dict[str, _Flag] = {}
    for key, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if get_origin(parameter.annotation) is not Annotated:
            return None
        hint, option = get_args(parameter.annotation)[:2]
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
        if get_origin(hint) is list:
            kinds = [hint]
        if not isinstance(option, OptionInfo) or len(kinds) != 1:
            return None
        if any(getattr(option, meaning, None) not in {None, False} for meaning in _MEANINGS):
            return None
        [kind] = kinds
        many = get_origin(kind) is list
        if many:
            [kind] = get_args(kind)
        if kind not in {str, int, float, bool, Path}:
            return None
        # In an annotation the names stand where the default would.
        names = [name for name in (option.default, *(option.param_decls or ())) if isinstance(name, str)]
        dashed = f"--{key.replace('_', '-')}"
        if kind is not bool:
            found.update(dict.fromkeys(names or [dashed], (key, kind, None, many)))
            continue
        for name in names or [f"{dashed}/{dashed.replace('--', '--no-', 1)}"]:
            on, _, off = name.partition("/")
            found[on] = (key, bool, True, False)
            if off:
                found[off] = (key, bool, False, False)
    return found
