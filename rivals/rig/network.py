"""Two network namespaces, one wire: the client's, where tunnels run, and the server's, with proxy and services.

Each tunnel has an address of the server for itself, which the client reaches through that tunnel's device alone. So all
of them run at once, and only the one that is measured works.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rig import process
from rig.process import RigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLIENT_WIRE, SERVER_WIRE = "10.211.0.1", "10.211.0.2"
"""Both ends of the wire."""
LINE_S = 10.0
"""A wire with a length gets so long to appear."""
TARGETS = 24
"""Addresses that the server can have for tunnels."""
SETTINGS = {
    # Connections are opened by the ten thousand; ports must not run out.
    "net.ipv4.ip_local_port_range": "10000 65535",
    "net.ipv4.tcp_tw_reuse": "1",
    # No router solicitations into the devices: the tunnels shall see the load alone.
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv6.conf.default.disable_ipv6": "1",
}
"""Of both namespaces."""
CONGESTION = ("cubic", "reno")
"""Congestion control of both namespaces, the first that the machine allows there: Linux's own default, or its kin.

A machine whose own is BBR would time every sender by a pacing timer, the ceiling's too; `--congestion bbr` does that.
"""


@dataclass(frozen=True)
class Network:
    """The names of both namespaces."""

    client: str
    server: str

    @staticmethod
    def target(number: int) -> str:
        """Return the address of the server for a tunnel."""
        if not 1 <= number <= TARGETS:
            raise RigError(f"there are {TARGETS} targets, not {number}")
        return f"198.51.100.{number}"

    def has_device(self, name: str) -> bool:
        """Whether the client has a device of this name."""
        return run(["ip", "-n", self.client, "link", "show", name]).returncode == 0

    def route(self, device: str, mtu: int, number: int, batch: Path) -> None:
        """Lead the way to a target into a device."""
        batch.write_text(commands(device, mtu, number), encoding="utf-8")
        checked(["ip", "-n", self.client, "-batch", str(batch)])


def commands(device: str, mtu: int, number: int) -> str:
    """Return the lines for `ip -batch` that give a device its address and the way to a target."""
    return (
        f"address flush dev {device}\n"
        f"address add 10.212.{number}.1/24 dev {device}\n"
        f"link set {device} mtu {mtu} up\n"
        f"route replace {Network.target(number)}/32 dev {device} src 10.212.{number}.1\n"
    )


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a short command."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)


def checked(command: Sequence[str]) -> str:
    """Run a short command that must succeed."""
    done = run(command)
    if done.returncode:
        raise RigError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def congestion(wanted: str | None) -> str:
    """Return the congestion control that the namespaces get."""
    allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text(encoding="utf-8").split()
    if wanted is None:
        return next((name for name in CONGESTION if name in allowed), allowed[0])
    if wanted not in allowed:
        raise RigError(
            f"congestion control {wanted!r} is not allowed in a namespace here; there are {', '.join(allowed)}"
        )
    return wanted


@contextmanager
def network(rtt_ms: float, control: str, folder: Path) -> Iterator[Network]:
    """Make both namespaces, that far from each other; they go at the end, with all that is in them."""
    settings = {**SETTINGS, "net.ipv4.tcp_congestion_control": control}
    made = Network(f"t2s-rig-client-{os.getpid()}", f"t2s-rig-server-{os.getpid()}")
    with ExitStack() as stack:
        for name in (made.client, made.server):
            checked(["ip", "netns", "add", name])
            stack.callback(run, ["ip", "netns", "delete", name])
            for key, value in settings.items():
                checked(["ip", "netns", "exec", name, "sysctl", "-qw", f"{key}={value}"])
            checked(["ip", "-n", name, "link", "set", "lo", "up"])
        if rtt_ms:
            command = [sys.executable, str(Path(__file__).with_name("line.py")), made.client, made.server, str(rtt_ms)]
            log = folder / "line.log"
            line = stack.enter_context(process.running(made.client, command, log))
            there = lambda: made.has_device("wire") and "wire" in run(["ip", "-n", made.server, "link"]).stdout  # noqa: E731
            process.until(there, line, log, "the line did not start", LINE_S)
        else:
            pair = ["link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", made.server]
            checked(["ip", "-n", made.client, *pair])
        for name, address in ((made.client, CLIENT_WIRE), (made.server, SERVER_WIRE)):
            checked(["ip", "-n", name, "address", "add", f"{address}/24", "dev", "wire"])
            checked(["ip", "-n", name, "link", "set", "wire", "up"])
        for number in range(1, TARGETS + 1):
            checked(["ip", "-n", made.server, "address", "add", f"{made.target(number)}/32", "dev", "lo"])
        yield made
