"""What is shown while a run goes on: time left, the phase, live packets a second.

The display must not disturb what it shows: it has a thread of its own at the lowest priority, which draws twice a
second; the thread that waits for the phase only leaves figures for it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from t2s.lab.formatting import count
from t2s.lab.runner import Observer, Step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

FRAME_SECONDS = 0.5
"""Time between two drawings; each takes a few milliseconds of a core that the lab would like to have."""

LOWEST = 19
"""Nice value of the drawing thread: the scheduler gives a busy worker nearly all of a shared core."""

OVERHEAD_SECONDS = 0.1
"""First guess of the set-up and drain of a phase, until phases have shown theirs."""


class RichObserver(Observer):
    """Draws a bar on a terminal; elsewhere it prints a line for each finished round."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]} left"),
            TextColumn("{task.fields[pps]}"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self.steps: Sequence[Step] = ()
        self.done = 0
        self.done_seconds = 0.0
        self.overhead = OVERHEAD_SECONDS
        self.step: Step | None = None
        self.started = time.monotonic()
        self.pps: float | None = None
        self.ended = threading.Event()
        self.drawer: threading.Thread | None = None

    def begin(self, steps: Sequence[Step]) -> None:
        """Start drawing."""
        self.steps = steps
        self.started = time.monotonic()
        self.console.print(f"{len(steps)} phases, about {self._left():.0f} s")
        if self.console.is_terminal:
            self.bar.add_task("starting", total=1.0, left="", pps="")
            self.bar.start()
            self.drawer = threading.Thread(target=self._draw, name="t2s-progress", daemon=True)
            self.drawer.start()

    def phase_begins(self, step: Step) -> None:
        """Show the phase."""
        self.step, self.pps = step, None

    def tick(self, step: Step, progress: Mapping[str, float]) -> None:
        """Keep the live rate for the next drawing."""
        self.step, self.pps = step, progress.get("pps")

    def phase_ends(self, step: Step, tree: Mapping[str, Any] | None) -> None:
        """Count the phase as done; learn what phases take beyond their own time."""
        self.done += 1
        self.done_seconds += step.seconds
        self.overhead = max(0.0, (time.monotonic() - self.started - self.done_seconds) / self.done)
        if not self.console.is_terminal and tree is not None:
            seconds = tree.get("seconds") or 0.0
            pps = tree.get("forwarded", 0) / seconds if seconds else 0.0
            variant = f" {step.variant}" if step.variant else ""
            self.console.print(
                f"[{self.done}/{len(self.steps)}] {step.scenario}{variant} {step.phase}: {count(pps)} packets/s, "
                f"{self._left():.0f} s left"
            )

    def end(self) -> None:
        """Stop drawing and leave the terminal as it was."""
        self.ended.set()
        if self.drawer is not None:
            self.drawer.join()
            self.bar.stop()

    def _left(self) -> float:
        return sum(step.seconds + self.overhead for step in self.steps[self.done :])

    def _draw(self) -> None:
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        whole = self._left() or 1.0
        began = time.monotonic()
        while not self.ended.wait(FRAME_SECONDS):
            passed = time.monotonic() - began
            step = self.step
            label = "starting" if step is None else " ".join(filter(None, (step.scenario, step.variant, step.phase)))
            left = max(0.0, self._left() - self._into_phase())
            self.bar.update(
                self.bar.task_ids[0],
                description=label,
                completed=passed / (passed + left) if passed + left else whole,
                left=f"{left // 60:.0f}:{left % 60:02.0f}",
                pps="" if self.pps is None else f"{count(self.pps)} packets/s",
            )
            self.bar.refresh()

    def _into_phase(self) -> float:
        return max(0.0, time.monotonic() - self.started - self.done_seconds - self.done * self.overhead)
