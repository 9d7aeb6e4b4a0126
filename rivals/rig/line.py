"""A wire with a length: `python line.py CLIENT SERVER RTT_MS` joins two namespaces, each packet delayed by half of it.

A device named `wire` appears in both, and goes with this process. It stands in for netem, which not every kernel has;
Python forwards some ten thousand packets a second, enough for requests at a distance, too few for bulk.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

from pyroute2 import netns

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET_MAX = 65_536
"""Bytes of one read."""
QUEUE_MAX = 10_000
"""Packets under way in one direction; more are dropped, as a wire's queue does."""
BATCH = 64
"""Packets taken from one side before the other has its turn."""


def device(namespace: str) -> int:
    """Open the device in a namespace, which stays this process's."""
    netns.setns(namespace)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"wire", IFF_TUN | IFF_NO_PI))
    return fd


def relay(ends: tuple[int, int], delay_ns: int) -> None:
    """Forward for ever."""
    ways: tuple[deque[tuple[int, bytes]], ...] = (deque(), deque())
    while True:
        due = min((way[0][0] for way in ways if way), default=None)
        rest = None if due is None else max(0, due - time.monotonic_ns()) / 1e9
        ready, _, _ = select.select(ends, (), (), rest)
        for source, way in zip(ends, ways, strict=True):
            if source in ready:
                read(source, way, delay_ns)
        now = time.monotonic_ns()
        for target, way in zip(reversed(ends), ways, strict=True):
            while way and way[0][0] <= now:
                _, packet = way.popleft()
                try:
                    os.write(target, packet)
                except OSError:
                    # The other end is down, or full: a wire loses what does not fit.
                    continue


def read(source: int, way: deque[tuple[int, bytes]], delay_ns: int) -> None:
    """Take what is there, to be handed on after the delay."""
    for _ in range(BATCH):
        try:
            packet = os.read(source, PACKET_MAX)
        except OSError:
            return
        if len(way) < QUEUE_MAX:
            way.append((time.monotonic_ns() + delay_ns, packet))


if __name__ == "__main__":
    client, server, rtt_ms = sys.argv[1:]
    relay((device(client), device(server)), int(float(rtt_ms) * 1e6 / 2))
