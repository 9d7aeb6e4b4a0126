"""The exceptions of the Python side; their root, `T2sError`, is the compiled core's.

`except t2s.T2sError` catches whatever t2s refuses, on either side.
"""

from __future__ import annotations

from dataclasses import dataclass

from t2s._core import LabError, T2sError

__all__ = ["ExpressionError", "LabError", "Problem", "ScenarioError", "T2sError"]


class ExpressionError(T2sError):
    """A threshold expression that does not parse, or names a column that does not exist."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a scenario file.

    `line` is None when the key came from the command line or is missing from the file altogether.
    """

    source: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        """Write it as compilers do: source, line, key path, sentence."""
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ScenarioError(T2sError):
    """A scenario file with problems; all of them, not only the first."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))
