"""What is measured: each measure loads one running engine once and returns numbers by name.

CPU is that of the engine's process alone (user and kernel, what the kernel does in its name included), over the whole
load with its warm-up and its end, divided by all that the load moved. The ceiling has no such process.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rig import peer, process
from rig.network import Network, commands
from rig.process import RigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rig.engine import Instance

MTU, SMALL_MTU = 8500, 1500
"""The MTU of all measures, and the one that must not matter."""
REQUEST = 1_024
"""Bytes of a request and of its answer."""
DATAGRAM = 128
"""Bytes of a datagram's payload: small, so that its cost is per datagram."""
OPEN_RATE = 20_000
"""Datagrams a second of the open loop."""
IDLE_FLOWS = 1_000
"""Connections that are open and silent."""
MANY_STREAMS = 512
"""Streams at once that shall all be served."""
MANY_LONGER = 2.5
"""Their window is so much longer: each one gets a 512th of it."""
GIVEN_BACK_S = 10.0
"""So long after closing them memory is looked at again, seconds."""
SETTLED_S = 2.0
"""A process that just started is idle after this, seconds."""
START_S = 20.0
"""Nothing starts slower, seconds."""
MB = 1e6
"""Bytes of a megabyte."""

Numbers = dict[str, float]


@dataclass(frozen=True)
class Context:
    """What all measures share."""

    network: Network
    peer: Path
    seconds: float
    warmup: float
    folder: Path
    profile: bool = False

    @property
    def window(self) -> list[str]:
        """The times of a load."""
        return ["--warmup", str(self.warmup), "--seconds", str(self.seconds)]

    def load(self, instance: Instance, mode: str, *arguments: str) -> tuple[dict[str, Any], float | None]:
        """Run a load; return what it says, and the CPU seconds that the engine used meanwhile."""
        before = process.cpu_seconds(instance.pid) if instance.pid else None
        said = peer.load(self.network, self.peer, mode, [*instance.way, *arguments], self.seconds + self.warmup)
        if instance.child is not None and instance.child.poll() is not None:
            raise RigError(f"{instance.engine.name} ended by itself: {process.tail(instance.log)}")
        used = process.cpu_seconds(instance.pid) - before if instance.pid and before is not None else None
        return said, used


@dataclass(frozen=True)
class Measure:
    """A measure: its name, the group that `--only` names, the MTU, and what it does."""

    name: str
    group: str
    take: Callable[[Context, Instance], Numbers]
    mtu: int = MTU
    fresh: bool = False
    """Whether it starts an engine of its own, which the ceiling has none of."""
    rounds_max: int | None = None
    """In how many rounds it runs at most: what hardly varies need not be repeated."""


def bulk(direction: str, streams: int, longer: float = 1.0) -> Callable[[Context, Instance], Numbers]:
    """Return a measure of many bytes in one direction, in a window that may be longer than others."""

    def take(context: Context, instance: Instance) -> Numbers:
        context = replace(context, seconds=context.seconds * longer)
        arguments = ["--direction", direction, "--streams", str(streams), *context.window]
        with profiled(context, instance, f"{direction}{streams}"):
            said, used = context.load(instance, "bulk", *arguments)
        numbers = {name: float(said[name]) for name in ("bytes_per_s", "refused", "starved", "unconfirmed")}
        numbers["least_share"] = said["least_bytes"] / max(1, said["most_bytes"])
        if used is not None and said["total_bytes"] > 0:
            numbers["cpu_s_per_gb"] = used / (said["total_bytes"] / 1e9)
        return numbers

    return take


def exchange(mode: str, *arguments: str) -> Callable[[Context, Instance], Numbers]:
    """Return a measure of requests and their answers."""

    def take(context: Context, instance: Instance) -> Numbers:
        said, used = context.load(instance, mode, *arguments, "--bytes", str(REQUEST), *context.window)
        numbers = {"per_s": said["per_s"], "failures": float(said["failures"])}
        numbers |= {name: said["latency"][name] for name in ("p50_us", "p99_us")}
        if used is not None:
            whole = said["per_s"] * (context.seconds + context.warmup)
            numbers["cpu_us_each"] = used * 1e6 / whole
        return numbers

    return take


def datagrams_at_most(context: Context, instance: Instance) -> Numbers:
    """Measure how many echoes come back at most."""
    shape = ["--flows", "4", "--window", "16", "--bytes", str(DATAGRAM)]
    said, used = context.load(instance, "udp-closed", *shape, *context.window)
    numbers = {"per_s": said["per_s"], "lost_share": said["lost"] / said["sent"]}
    if used is not None:
        numbers["cpu_us_per_datagram"] = used * 1e6 / (said["sent"] + said["back"])
    return numbers


def datagrams_at_rate(context: Context, instance: Instance) -> Numbers:
    """Measure what is lost at a rate that is held."""
    shape = ["--rate", str(OPEN_RATE), "--bytes", str(DATAGRAM), "--seconds", str(context.seconds)]
    said, used = context.load(instance, "udp-open", *shape)
    numbers = {name: float(said[name]) for name in ("lost", "unsent", "latest_send_us")}
    numbers |= {name: said["latency"][name] for name in ("p50_us", "p99_us") if said["latency"][name] is not None}
    if used is not None:
        numbers["cpu_us_per_datagram"] = used * 1e6 / (said["intended"] + said["back"])
    return numbers


def start(context: Context, instance: Instance) -> Numbers:
    """Measure how long a start takes, from exec to the first byte that came back."""
    instance.stop()
    batch = context.folder / f"{instance.device}.batch"
    batch.write_text(commands(instance.device, instance.mtu, instance.number), encoding="utf-8")
    arguments = [*instance.way, "--device", instance.device, "--batch", str(batch), "--within", str(START_S)]
    waiter = subprocess.Popen(
        process.within(context.network.client, [str(context.peer), "first", *arguments]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if waiter.stdout is None or waiter.stdout.readline().strip() != "ready":
            raise RigError("the load tool did not start")
        began = time.time()
        command = instance.engine.arguments(instance.device, instance.mtu)
        instance.child = process.start(context.network.client, command, instance.log)
        said, wrong = waiter.communicate(timeout=START_S + process.END_S)
    finally:
        waiter.kill()
        waiter.wait(process.END_S)
        instance.stop()
    if waiter.returncode:
        raise RigError(f"{wrong.strip()}; {process.tail(instance.log)}")
    at = peer.parsed(said)
    return {"start_ms": (at["answered_at"] - began) * 1e3, "device_ms": (at["device_at"] - began) * 1e3}


def memory(context: Context, instance: Instance) -> Numbers:
    """Measure resident memory: idle, with silent connections, and a while after they were closed."""
    instance.stop()
    instance.ensure()
    if instance.pid is None:
        raise RigError("the ceiling has no process")
    try:
        time.sleep(SETTLED_S)
        idle = process.resident(instance.pid)
        holder = subprocess.Popen(
            process.within(context.network.client, [str(context.peer), "idle", *instance.way, *_flows()]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            said = peer.parsed(holder.stdout.readline() if holder.stdout else "")
            time.sleep(SETTLED_S)
            full = process.resident(instance.pid)
            holder.communicate("close\n", timeout=process.END_S)
        finally:
            holder.kill()
            holder.wait(process.END_S)
        time.sleep(GIVEN_BACK_S)
        after = process.resident(instance.pid)
    finally:
        instance.stop()
    return {
        "idle_mb": idle.whole / MB,
        "open": float(said["open"]),
        "more_mb": (full.whole - idle.whole) / MB,
        "kept_mb": (after.whole - idle.whole) / MB,
        "more_anonymous_mb": (full.anonymous - idle.anonymous) / MB,
        "kept_anonymous_mb": (after.anonymous - idle.anonymous) / MB,
    }


def _flows() -> list[str]:
    return ["--connections", str(IDLE_FLOWS)]


class profiled:  # noqa: N801 - reads as what it does
    """Samples the engine with `perf` meanwhile, when that was asked for and `perf` is installed."""

    def __init__(self, context: Context, instance: Instance, name: str) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        if context.profile and instance.engine.style == "t2s" and instance.pid:
            out = context.folder / f"{instance.engine.name}-{name}-{instance.mtu}.perf"
            command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "-g", "-p", str(instance.pid), "-o"]
            self.child = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> None:
        """Go on."""

    def __exit__(self, *_exception: object) -> None:
        """Let it write its file."""
        if self.child is not None:
            self.child.terminate()
            self.child.wait(process.END_S)


def all_measures() -> list[Measure]:
    """Return every measure, in the order of the report."""
    made = []
    for mtu in (MTU, SMALL_MTU):
        for direction in ("up", "down"):
            for streams in (1, 8):
                name = f"{direction}{streams}" if mtu == MTU else f"{direction}{streams}@{mtu}"
                made.append(Measure(name, "bulk" if mtu == MTU else "mtu", bulk(direction, streams), mtu))
    for direction in ("up", "down"):
        take = bulk(direction, MANY_STREAMS, MANY_LONGER)
        made.append(Measure(f"{direction}{MANY_STREAMS}", "streams", take))
    made += [Measure(f"rr{count}", "rr", exchange("rr", "--connections", str(count))) for count in (1, 8)]
    # One worker waits for round trips, eight for CPUs.
    made.append(Measure("crr1", "crr", exchange("crr", "--workers", "1")))
    made.append(Measure("crr8", "crr", exchange("crr", "--workers", "8")))
    made.append(Measure("udp", "udp", datagrams_at_most))
    made.append(Measure(f"udp@{OPEN_RATE}", "udp", datagrams_at_rate))
    made.append(Measure("start", "start", start, fresh=True))
    made.append(Measure("memory", "memory", memory, fresh=True, rounds_max=3))
    return made
