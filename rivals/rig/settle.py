"""The pause between two measures: streams that an engine has not let go must not be paid for by the next one.

TCP's memory is one for all namespaces; when it is short, the kernel delays everybody. So a measure is over when socket
buffers have drained, or when the sockets that are left are not the rig's: no waiting for other load on the machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rig import network, process

if TYPE_CHECKING:
    from rig.network import Network

QUIET_PAGES = 20_000
"""With fewer pages in socket buffers (80 MB) no load is under way, and TCP is far from the limits of any machine."""
QUIET_SOCKETS = 16
"""So many sockets of the server more than at the start are no load: what engines keep open for themselves."""
QUIET_S = 5.0
"""Streams get so long to go."""
POLL_S = 0.05
"""How often they are looked at; a look starts a process."""


@dataclass(frozen=True)
class Settling:
    """What the server's namespace looked like before any load."""

    network: Network
    sockets: int

    @staticmethod
    def of(net: Network) -> Settling:
        """Look at a network without load."""
        return Settling(net, own_sockets(net))

    def wait(self) -> bool:
        """Wait until the rig's streams are gone; return whether they are."""
        due = time.monotonic() + QUIET_S
        while process.tcp_pages() > QUIET_PAGES and own_sockets(self.network) > self.sockets + QUIET_SOCKETS:
            if time.monotonic() > due:
                return False
            time.sleep(POLL_S)
        return True


def own_sockets(net: Network) -> int:
    """Return how many TCP sockets the server's namespace has."""
    said = network.checked(["ip", "netns", "exec", net.server, "cat", "/proc/net/sockstat"])
    return process.sockstat(said, "inuse")
