"""What is measured: a client without a tunnel (the ceiling), `t2s run`, and the rivals; and one that runs.

Each engine gets the same: one device, one MTU, one proxy. Flags beyond that are only what an engine needs to take part
at all, with the reason beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rig import process, rivals
from rig.network import SERVER_WIRE, Network
from rig.process import RigError

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

CEILING = "ceiling"
"""The name of the engine that is none: the client speaks SOCKS5 itself."""
PROXY = f"{SERVER_WIRE}:1080"
"""The one SOCKS5 server."""
PORT = 7000
"""First port of the services."""
STARTED_S = 15.0
"""An engine gets so long to have its device."""


@dataclass(frozen=True)
class Engine:
    """A program to measure; `command` is None for the ceiling."""

    name: str
    command: tuple[str, ...] | None
    style: str
    version: str = ""

    def arguments(self, device: str, mtu: int) -> list[str]:
        """Return the command line for a device."""
        program = list(self.command or ())
        url = f"socks5://{PROXY}"
        if self.style == "t2s":
            head, extra = program[:1], program[1:]
            return [*head, "run", "--proxy", url, "--tun", device, "--mtu", str(mtu), "--queues", "1", *extra]
        if self.style == "tun2proxy":
            # Without an MSS option in its SYN-ACK a Linux client falls back to segments of 536 bytes; and its default
            # of 200 sessions would fail the many-streams rows for a reason that is not speed.
            more = ["--tcp-mss", str(mtu - 40), "--max-sessions", "8192", "--verbosity", "error"]
            return [*program, "--proxy", url, "--tun", device, "--mtu", str(mtu), *more]
        if self.style == "tun2socks":
            more = ["-mtu", str(mtu), "-loglevel", "error"]
            return [*program, "-device", f"tun://{device}", "-proxy", url, "-interface", "wire", *more]
        raise RigError(f"{self.name} has no command line")


@dataclass
class Instance:
    """An engine that runs: its device, its target, its process."""

    engine: Engine
    network: Network
    number: int
    mtu: int
    folder: Path
    child: subprocess.Popen[str] | None = None
    deaths: int = field(default=0)

    @property
    def device(self) -> str:
        """The name of its device."""
        return f"rig{self.number}"

    @property
    def log(self) -> Path:
        """What the process says."""
        return self.folder / f"{self.engine.name}-{self.number}.log"

    @property
    def way(self) -> list[str]:
        """What tells the load tool how to get to this instance's target."""
        to = ["--to", f"{Network.target(self.number)}:{PORT}"]
        return [*to, "--socks", PROXY] if self.engine.command is None else to

    @property
    def pid(self) -> int | None:
        """The process; none for the ceiling."""
        return self.child.pid if self.child else None

    def ensure(self) -> None:
        """Start it unless it runs; one that ended by itself is started again, and that is counted."""
        if self.engine.command is None:
            return
        if self.child is not None and self.child.poll() is None:
            return
        if self.child is not None:
            self.deaths += 1
        arguments = self.engine.arguments(self.device, self.mtu)
        self.child = process.start(self.network.client, arguments, self.log)
        there = lambda: self.network.has_device(self.device)  # noqa: E731 - one line, used once
        process.until(there, self.child, self.log, f"{self.engine.name} has no device", STARTED_S)
        self.network.route(self.device, self.mtu, self.number, self.folder / f"{self.device}.batch")

    def stop(self) -> None:
        """End it."""
        if self.child is not None:
            process.end(self.child)
            self.child = None


def engines(names: list[str], t2s: Path, also: dict[str, list[str]]) -> tuple[list[Engine], dict[str, str]]:
    """Return the engines of these names, and why those are missing that cannot be had."""
    found: list[Engine] = []
    missing: dict[str, str] = {}
    for name in [*names, *also]:
        if name == CEILING:
            found.append(Engine(name, None, CEILING))
        elif name == "t2s":
            found.append(Engine(name, (str(t2s),), "t2s", str(t2s)))
        elif name in also:
            found.append(Engine(name, tuple(also[name]), "t2s", " ".join(also[name])))
        elif name in {"tun2proxy", "tun2socks"}:
            rival = rivals.TUN2PROXY if name == "tun2proxy" else rivals.TUN2SOCKS
            why = rivals.fetch(rival)
            if why is None:
                found.append(Engine(name, (str(rival.path),), name, rivals.version(rival.path)))
            else:
                missing[name] = why
        else:
            raise RigError(f"unknown engine {name!r}; there are ceiling, t2s, tun2proxy, tun2socks")
    return found, missing
