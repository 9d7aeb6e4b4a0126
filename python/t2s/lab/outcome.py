"""Outcomes: PASS, FAIL or INCONCLUSIVE, of a threshold, of a scenario, and of a run. `verdict` decides on them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from t2s.lab.scenario import Threshold
    from t2s.lab.statistics import Interval


class Status(Enum):
    """Outcome of a threshold, of a scenario, or of a run."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"

    @staticmethod
    def worst(statuses: Iterable[Status]) -> Status:
        """FAIL outweighs INCONCLUSIVE outweighs PASS; of nothing, nothing is known."""
        found = set(statuses)
        if Status.FAIL in found:
            return Status.FAIL
        return Status.PASS if found == {Status.PASS} else Status.INCONCLUSIVE

    @property
    def exit_code(self) -> int:
        """Exit code of `t2s bench`."""
        return {Status.PASS: 0, Status.FAIL: 1, Status.INCONCLUSIVE: 3}[self]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One threshold on one scenario."""

    scenario: str
    threshold: Threshold
    status: Status
    fail_share: float | None
    """Share of resamples in which `fail_if` held; None when it could not be evaluated."""
    measured: float | None
    """Left side of `fail_if`, when it is one comparison."""
    limit: float | None
    """Right side of it."""
    ratio: Interval | None
    """Measured over limit, with its interval over rounds."""
    rounds: int
    reasons: tuple[str, ...]

    @property
    def cell(self) -> str:
        """The cell of the threshold table, in the reference's words."""
        return {Status.PASS: "NO", Status.FAIL: "YES", Status.INCONCLUSIVE: "?"}[self.status]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All verdicts of a run."""

    verdicts: tuple[Verdict, ...]
    incomplete: tuple[str, ...]
    """Scenarios that were to be run but have no load phase."""
    interrupted: bool
    """Whether the run was cut short."""
    machine: Mapping[str, tuple[str, ...]]
    """What the machine, not the core, did to each scenario."""

    def of(self, scenario: str) -> list[Verdict]:
        """Return the verdicts of a scenario, in the order of the file's thresholds."""
        return [verdict for verdict in self.verdicts if verdict.scenario == scenario]

    def status(self, scenario: str) -> Status:
        """Return the status of a scenario."""
        return Status.worst(verdict.status for verdict in self.of(scenario))

    @property
    def overall(self) -> Status:
        """Return the status of the run; what was not measured cannot pass."""
        statuses = [verdict.status for verdict in self.verdicts]
        if self.incomplete or self.interrupted:
            statuses.append(Status.INCONCLUSIVE)
        return Status.worst(statuses)

    @property
    def counts(self) -> dict[Status, int]:
        """Scenarios by status."""
        names = dict.fromkeys([*(verdict.scenario for verdict in self.verdicts), *self.incomplete])
        found = [Status.INCONCLUSIVE if name in self.incomplete else self.status(name) for name in names]
        return {status: found.count(status) for status in Status}
