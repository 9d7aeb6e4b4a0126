"""A test double of the compiled lab: results as the real one writes them, from a seeded model instead of packets."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

from t2s._core import Histogram

STAGES = {
    "parse": 20.0,
    "checksum": 30.0,
    "lookup": 25.0,
    "pool": 10.0,
    "reassembly": 5.0,
    "tcp": 80.0,
    "transmit": 30.0,
}
SERVICE_NS = 400.0
TIMES = 20
SHAPE = [math.exp(NormalDist(0.0, 0.4).inv_cdf((at + 0.5) / 100)) for at in range(100)]
"""Quantiles of a log-normal distribution, each recorded `TIMES` times."""

Change = Callable[[dict[str, Any], dict[str, Any]], None]


class FakeLab:
    """Ends at once; `change(spec, tree)` may alter a phase's result before it is handed out."""

    def __init__(self, spec_json: str, change: Change | None = None) -> None:
        self.spec = json.loads(spec_json)
        self.change = change
        self.stopped = False

    def start(self) -> None:
        pass

    def progress(self) -> dict[str, float]:
        return {"elapsed": 0.0, "seconds": self.spec["seconds"], "offered": 0, "forwarded": 0, "pps": 0.0}

    def wait(self, timeout_s: float) -> bool:  # noqa: ARG002 - the real one takes it
        return True

    def stop(self) -> None:
        self.stopped = True

    def result(self) -> str:
        tree = model(self.spec)
        if self.change is not None:
            self.change(self.spec, tree)
        return json.dumps(tree)


def truth() -> dict[str, Any]:
    """Return what both ends say of a phase without a fault."""
    streams = {"lost_bytes": 0, "corrupted_bytes": 0, "duplicated_bytes": 0}
    datagrams = {"lost": 0, "corrupted": 0, "duplicated": 0, "reordered": 0}
    return {
        "streams_up": dict(streams),
        "streams_down": dict(streams),
        "datagrams_up": dict(datagrams),
        "datagrams_down": dict(datagrams),
        "lost_packets": 0,
        "unaccounted": 0,
        "faults": 0,
    }


def fake_labs(change: Change | None = None) -> Callable[[str], FakeLab]:
    return lambda spec_json: FakeLab(spec_json, change)


def distribution(middle: float) -> dict[str, Any]:
    histogram = Histogram()
    for factor in SHAPE:
        histogram.record(max(1, int(factor * middle)), TIMES)
    quantiles = {"p50": 50, "p95": 95, "p99": 99, "p999": 99.9}
    return {
        "count": histogram.count,
        "mean": histogram.mean,
        **{name: histogram.percentile(percent) for name, percent in quantiles.items()},
        "max": histogram.max,
        "hdr": histogram.encode(),
    }


def model(spec: dict[str, Any]) -> dict[str, Any]:
    """A phase in which all is well, with a few percent of noise."""
    draw = random.Random(f"{spec['seed']}/{spec['phase']}")
    noise = lambda: draw.gauss(1.0, 0.02)  # noqa: E731
    seconds = spec["seconds"]
    rate = {"load": spec["rate_pps"], "capacity": 2e6 * noise(), "generator_selftest": 8e6}[spec["phase"]]
    offered = int(rate * seconds)
    stages = {name: {"ns": int(1_000 * cost * noise()), "samples": 1_000} for name, cost in STAGES.items()}
    return {
        "scenario": spec["scenario"],
        "phase": spec["phase"],
        "seed": spec["seed"],
        "seconds": seconds,
        "workers": spec["workers"],
        "intended": offered,
        "offered": offered,
        "forwarded": offered,
        "dropped": 0,
        "unsent": 0,
        "lost": 0,
        "lost_by_reason": {},
        "truth": truth(),
        "heap": {"left_bytes": 0},
        "fds_left": 0,
        "invalid": None,
        "latency": distribution(3_000 * noise()),
        "undisturbed": distribution(2_900 * noise()),
        "service_time": distribution(SERVICE_NS * noise()),
        "upstream_wait": None,
        "bytes_offered": offered * 140,
        "payload_offered": offered * 100,
        "payload_forwarded": offered * 100,
        "payload_window": offered * 100,
        "connections_opened": 100,
        "connections_closed": 100,
        "connections_refused": 0,
        "pool": {
            "buffers_allocated": offered,
            "buffers_freed": offered,
            "pool_grow_stalls": 5,
            "pool_grow_stalls_after_warmup": 0,
            "preallocated_slabs": 3,
            "preallocated_slabs_after_warmup": 0,
            "heap_bytes": 10_240,
            "heap_peak_bytes": 10_240,
            "live_bytes_after_drain": 0,
            "lock_wait_ns": 0,
            "refused": 0,
        },
        "flow_map": {"lock_wait_ns": 0, "flows_peak": 1_024, "flows_after_drain": 0, "refused": 0},
        "reassembly": {
            "bytes_total": 0,
            "bytes_peak": 0,
            "cap": 1 << 24,
            "fragment_bytes_peak": 0,
            "fragment_cap": 1 << 22,
            "bytes_after_drain": 0,
        },
        "loop": {
            "iterations": 1_000,
            "max_wall_ns": 900_000,
            "max_on_cpu_ns": int(100_000 * noise()),
            "max_off_cpu_ns": 800_000,
            "stalls": [],
            "hist": distribution(2_000 * noise()),
        },
        "cpu": {
            "engine_ns": int(220 * offered),
            "idle_poll_ns": 0,
            "percent": 10.0 * noise(),
            "windows": [10.0 * noise() for _ in range(int(seconds))],
            "ns_per_packet": 220.0 * noise(),
        },
        "rss": {"samples": [[at * 100, 50_000_000] for at in range(int(seconds * 10))]},
        "stages": stages,
        "drops": {},
        "generator": {
            "offered_pps": rate,
            "cpu_percent": 50.0,
            "retransmits": 0,
            "resets_received": 0,
            "behind_ns_max": int(20_000 * noise()),
        },
        "timers_after_drain": 0,
    }
