"""Processes of the rig: started in a namespace, ended by their own id, and what the kernel counts about them.

`ip netns exec` becomes the command that it starts, so that the id of the child is the command's own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""Resolution of the kernel's CPU times, seconds."""
POLL_S = 0.01
"""How often something is waited for."""
END_S = 5.0
"""A process that was asked to end gets so long."""


class RigError(Exception):
    """Something that keeps the rig from measuring."""


def within(namespace: str, command: Sequence[str]) -> list[str]:
    """Return the command line that runs a command in a namespace."""
    return ["ip", "netns", "exec", namespace, *command]


class Signals:
    """Ends the run by an exception when a signal says so, but not between a child's birth and its entry in the list.

    At the end of the block every child of `start` is ended, whatever came in between.
    """

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def __init__(self, code: int) -> None:
        self.code = code

    def __enter__(self) -> None:
        """Listen."""
        for number in self.numbers:
            signal.signal(number, self._come)

    def __exit__(self, *_exception: object) -> None:
        """End what still runs; another signal does not keep that from being done."""
        for number in self.numbers:
            signal.signal(number, signal.SIG_IGN)
        for child in _children:
            end(child)
        _children.clear()

    def _come(self, *_signal: object) -> None:
        if _starting:
            _postponed.append(self.code)
        else:
            sys.exit(self.code)


_children: list[subprocess.Popen[str]] = []
_starting: list[bool] = []
_postponed: list[int] = []


def start(namespace: str, command: Sequence[str], log: Path) -> subprocess.Popen[str]:
    """Start a command whose output goes to a file; a signal for the run waits until it is known."""
    _starting.append(True)
    try:
        with log.open("w", encoding="utf-8") as out:
            full = within(namespace, command)
            child = subprocess.Popen(full, stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True)
        _children[:] = [other for other in _children if other.poll() is None] + [child]
    finally:
        _starting.pop()
        if _postponed:
            sys.exit(_postponed.pop())
    return child


def end(child: subprocess.Popen[str]) -> None:
    """End a child, by force when asking is not enough."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(END_S)


@contextmanager
def running(namespace: str, command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command; at the end it is gone, whatever happened."""
    child = start(namespace, command, log)
    try:
        yield child
    finally:
        end(child)


def until(condition: Callable[[], bool], child: subprocess.Popen[str], log: Path, what: str, limit: float) -> None:
    """Wait until something holds; fail with the end of the log when it does not, or when the child ends."""
    due = time.monotonic() + limit
    while not condition():
        if child.poll() is not None or time.monotonic() > due:
            raise RigError(f"{what}: {tail(log)}")
        time.sleep(POLL_S)


def tail(log: Path, size: int = 400) -> str:
    """Return the last words of a log."""
    return log.read_text(encoding="utf-8", errors="replace")[-size:].strip() or "it said nothing"


def cpu_seconds(pid: int) -> float:
    """Return what a process has used, in user mode and in the kernel, with its threads that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    user, system = 11, 12  # utime and stime, counted from the field behind the name (proc(5): 14 and 15)
    return (int(fields[user]) + int(fields[system])) * TICK_S


@dataclass(frozen=True)
class Resident:
    """Resident memory of a process, bytes."""

    whole: int
    """All of it, shared pages of programs and libraries included."""
    anonymous: int
    """What it allocated itself."""


def resident(pid: int) -> Resident:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS:", "RssAnon:"))}
    return Resident(kib["VmRSS"] * 1024, kib["RssAnon"] * 1024)


def tcp_pages() -> int:
    """Return the pages that TCP sockets of all namespaces hold in their buffers."""
    return sockstat(Path("/proc/net/sockstat").read_text(encoding="utf-8"), "mem")


def sockstat(text: str, name: str) -> int:
    """Return a number of TCP from the text of `/proc/net/sockstat`."""
    for line in text.splitlines():
        words = line.split()
        if words[0] == "TCP:":
            return int(words[words.index(name) + 1])
    raise RigError("/proc/net/sockstat has no line for TCP")


def machine_ticks() -> tuple[int, int, int]:
    """Return ticks of all CPUs so far: in all, idle, taken by the hypervisor."""
    first = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, first.split()[1:9])
    return user + nice + system + idle + iowait + irq + softirq + steal, idle + iowait, steal
