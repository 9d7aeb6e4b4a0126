"""The columns of the results table: name, unit, meaning, where the value stands, and how rounds are summed up.

This is the one list of what a threshold may name. Columns of the load phase have no prefix; those of the capacity phase
begin with `capacity_`. A value that a phase did not give is null, never zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Any

Tree = Mapping[str, Any]
"""The JSON tree of one phase's result, or a part of it."""

Value = float | int | None
Getter = Callable[[Tree], Value]

SUSTAINED_WINDOWS = 10
"""Windows (of one second, or a shorter round) that "sustained" asks for: the reference's rule looks at 10 s of load."""

BITS_PER_MBIT = 1e6


class Aggregate(Enum):
    """How the values of several rounds become one."""

    MEDIAN = "median"
    """An estimate: each round is a sample of the same quantity, so it has an interval."""
    MAX = "max"
    """A fact about the worst round: it happened or it did not, so it has no interval."""
    MIN = "min"
    """A fact about the best round."""
    SUM = "sum"
    """A count over all rounds."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its getter reads the load phase's tree, or the capacity phase's for a `capacity_` name."""

    name: str
    unit: str
    aggregate: Aggregate
    meaning: str
    get: Getter
    merged: str | None = None
    """`histogram:quantile` for a column whose summary comes from the merged histogram of all rounds."""

    @property
    def is_estimate(self) -> bool:
        """Whether the column has an interval over rounds."""
        return self.aggregate is Aggregate.MEDIAN


def at(path: str) -> Getter:
    """Read a number at a dotted path; null when a part is missing."""
    keys = path.split(".")

    def get(tree: Tree) -> Value:
        node: Any = tree
        for key in keys:
            if not isinstance(node, Mapping) or node.get(key) is None:
                return None
            node = node[key]
        return node if isinstance(node, int | float) and not isinstance(node, bool) else None

    return get


def total(*paths: str) -> Getter:
    """Sum numbers at several paths; null when none is there."""
    getters = [at(path) for path in paths]

    def get(tree: Tree) -> Value:
        found = [value for getter in getters if (value := getter(tree)) is not None]
        return sum(found) if found else None

    return get


def ratio(above: str, below: str, scale: float = 1.0) -> Getter:
    """Divide two numbers; null when one is missing or the divisor is 0."""
    numerator, denominator = at(above), at(below)

    def get(tree: Tree) -> Value:
        top, bottom = numerator(tree), denominator(tree)
        return None if top is None or not bottom else scale * top / bottom

    return get


def sustained(windows: Sequence[float], length: int = SUSTAINED_WINDOWS) -> float | None:
    """Return the level that every one of `length` windows in a row reached at least once in the run.

    Shorter series ask it of all their windows: `cpu > 85 %` in every window that there is.

    >>> sustained([90, 20, 90])
    20
    """
    if not windows:
        return None
    span = min(length, len(windows))
    return max(min(windows[start : start + span]) for start in range(len(windows) - span + 1))


def _cpu_sustained(tree: Tree) -> Value:
    cpu = tree.get("cpu")
    if not isinstance(cpu, Mapping):
        return None
    windows = [float(window) for window in cpu.get("windows") or ()]
    return sustained(windows) if windows else at("percent")(cpu)


def _stalls(tree: Tree) -> Value:
    loop = tree.get("loop")
    return len(loop.get("stalls") or ()) if isinstance(loop, Mapping) else None


def _rss_last(tree: Tree) -> Value:
    rss = tree.get("rss")
    samples = rss.get("samples") if isinstance(rss, Mapping) else None
    return int(samples[-1][1]) if samples else None


def _disturbed(tree: Tree) -> Value:
    every, undisturbed = at("latency.count")(tree), at("undisturbed.count")(tree)
    return None if not every or undisturbed is None else 1 - undisturbed / every


def _latency_columns() -> list[Column]:
    meanings = {
        "latency": "from a packet's due time to its effect, corrected for coordinated omission",
        "undisturbed_latency": "latency of the packets that no stall of the machine delayed",
        "service_time": "from dequeue to effect",
        "reply_latency": "from the due time of a request or datagram to its reply at the client",
        "upstream_wait": "the simulated upstream's own delay, not charged to the core",
    }
    quantiles = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "p999": 0.999}
    columns: list[Column] = []
    for kind, meaning in meanings.items():
        path = "undisturbed" if kind == "undisturbed_latency" else kind
        for short, quantile in quantiles.items():
            columns.append(
                Column(
                    f"{kind}_{short}_ns", "ns", Aggregate.MEDIAN, meaning, at(f"{path}.{short}"), f"{path}:{quantile}"
                )
            )
        columns.append(Column(f"{kind}_max_ns", "ns", Aggregate.MAX, meaning, at(f"{path}.max"), f"{path}:1.0"))
    return columns


_FAULTS = "wrong, doubled or lost without reason, by what both ends say: anything but 0 is a fault of the core"

LOAD_COLUMNS: tuple[Column, ...] = (
    Column("seconds", "s", Aggregate.SUM, "measured time of the load phase", at("seconds")),
    Column("intended", "packets", Aggregate.SUM, "what the scenario asked for", at("intended")),
    Column("offered", "packets", Aggregate.SUM, "what the generator really sent", at("offered")),
    Column("forwarded", "packets", Aggregate.SUM, "offered less what the core dropped", at("forwarded")),
    Column("lost", "packets", Aggregate.SUM, "unsent, or sent by one end and not received by the other", at("lost")),
    Column("unsent", "packets", Aggregate.SUM, "intended, but the core took too few to send them", at("unsent")),
    Column("dropped", "packets", Aggregate.SUM, "dropped by the core's own count, by named reasons", at("dropped")),
    Column(
        "unaccounted", "packets", Aggregate.SUM, "lost without a reason that the core names", at("truth.unaccounted")
    ),
    Column("integrity_faults", "faults", Aggregate.SUM, _FAULTS, at("truth.faults")),
    Column(
        "corrupted_bytes",
        "bytes",
        Aggregate.SUM,
        "stream bytes that arrived with another value, both directions",
        total("truth.streams_up.corrupted_bytes", "truth.streams_down.corrupted_bytes"),
    ),
    Column(
        "duplicated_bytes",
        "bytes",
        Aggregate.SUM,
        "stream bytes that arrived twice, both directions",
        total("truth.streams_up.duplicated_bytes", "truth.streams_down.duplicated_bytes"),
    ),
    Column(
        "corrupted_datagrams",
        "datagrams",
        Aggregate.SUM,
        "datagrams that arrived with other content, both directions",
        total("truth.datagrams_up.corrupted", "truth.datagrams_down.corrupted"),
    ),
    Column(
        "duplicated_datagrams",
        "datagrams",
        Aggregate.SUM,
        "datagrams that arrived twice, both directions",
        total("truth.datagrams_up.duplicated", "truth.datagrams_down.duplicated"),
    ),
    Column(
        "reordered_datagrams",
        "datagrams",
        Aggregate.SUM,
        "datagrams that arrived after a later one, both directions",
        total("truth.datagrams_up.reordered", "truth.datagrams_down.reordered"),
    ),
    Column("retransmits", "segments", Aggregate.SUM, "sent again by the clients", at("generator.retransmits")),
    Column("aborted_connections", "connections", Aggregate.SUM, "given up by the clients", at("generator.aborted")),
    Column(
        "reset_connections",
        "connections",
        Aggregate.SUM,
        "reset by the core or upstream",
        at("generator.reset_by_peer"),
    ),
    Column("offered_ratio", "ratio", Aggregate.MEDIAN, "offered / intended", ratio("offered", "intended")),
    Column("loss_ratio", "ratio", Aggregate.MEDIAN, "lost / offered", ratio("lost", "offered")),
    *_latency_columns(),
    Column(
        "disturbed_ratio",
        "ratio",
        Aggregate.MEDIAN,
        "packets that a stall of the machine delayed: the generator was away, or the core's thread was put off its CPU",
        _disturbed,
    ),
    Column("pps", "packets/s", Aggregate.MEDIAN, "forwarded a second", ratio("forwarded", "seconds")),
    Column("offered_pps", "packets/s", Aggregate.MEDIAN, "offered a second", ratio("offered", "seconds")),
    Column(
        "mbit_per_s",
        "Mbit/s",
        Aggregate.MEDIAN,
        "bits of whole IP packets offered",
        ratio("bytes_offered", "seconds", 8 / BITS_PER_MBIT),
    ),
    Column(
        "goodput_mbit_per_s",
        "Mbit/s",
        Aggregate.MEDIAN,
        "payload bits forwarded in the measured time",
        ratio("payload_window", "seconds", 8 / BITS_PER_MBIT),
    ),
    Column(
        "goodput_ratio",
        "ratio",
        Aggregate.MEDIAN,
        "payload forwarded, drain included / payload offered",
        ratio("payload_forwarded", "payload_offered"),
    ),
    Column(
        "connections_per_s",
        "1/s",
        Aggregate.MEDIAN,
        "connections opened a second",
        ratio("connections_opened", "seconds"),
    ),
    Column(
        "connections_refused", "connections", Aggregate.SUM, "refused, as the upstream said", at("connections_refused")
    ),
    Column(
        "reassembly_bytes", "bytes", Aggregate.SUM, "bytes that went through reassembly", at("reassembly.bytes_total")
    ),
    Column("reassembly_peak_bytes", "bytes", Aggregate.MAX, "most bytes held at once", at("reassembly.bytes_peak")),
    Column("reassembly_cap_bytes", "bytes", Aggregate.MAX, "the cap on bytes held", at("reassembly.cap")),
    Column(
        "fragment_peak_bytes",
        "bytes",
        Aggregate.MAX,
        "most bytes of IP fragments held",
        at("reassembly.fragment_bytes_peak"),
    ),
    Column("fragment_cap_bytes", "bytes", Aggregate.MAX, "the cap on fragments held", at("reassembly.fragment_cap")),
    Column(
        "reassembly_after_drain_bytes", "bytes", Aggregate.MAX, "held after drain", at("reassembly.bytes_after_drain")
    ),
    Column("buffers_allocated", "buffers", Aggregate.SUM, "buffers taken from the pool", at("pool.buffers_allocated")),
    Column("buffers_freed", "buffers", Aggregate.SUM, "buffers given back", at("pool.buffers_freed")),
    Column(
        "pool_grow_stalls",
        "buffers",
        Aggregate.SUM,
        "allocations that waited for the heap to grow",
        at("pool.pool_grow_stalls"),
    ),
    Column(
        "pool_grow_stalls_after_warmup",
        "buffers",
        Aggregate.MAX,
        "the same, after warm-up",
        at("pool.pool_grow_stalls_after_warmup"),
    ),
    Column(
        "preallocated_slabs",
        "slabs",
        Aggregate.SUM,
        "heap growth that nothing waited for",
        at("pool.preallocated_slabs"),
    ),
    Column(
        "preallocated_slabs_after_warmup",
        "slabs",
        Aggregate.MAX,
        "the same, after warm-up",
        at("pool.preallocated_slabs_after_warmup"),
    ),
    Column("pool_refused", "buffers", Aggregate.SUM, "allocations refused at the ceiling", at("pool.refused")),
    Column("heap_bytes", "bytes", Aggregate.MAX, "memory the pool holds", at("pool.heap_bytes")),
    Column("heap_peak_bytes", "bytes", Aggregate.MAX, "most memory the pool held", at("pool.heap_peak_bytes")),
    Column(
        "live_bytes", "bytes", Aggregate.MAX, "buffers still handed out after drain", at("pool.live_bytes_after_drain")
    ),
    Column("live_flows", "flows", Aggregate.MAX, "flows left after drain", at("flow_map.flows_after_drain")),
    Column("heap_left_bytes", "bytes", Aggregate.MAX, "heap outside the pool left after drain", at("heap.left_bytes")),
    Column("fds_left", "descriptors", Aggregate.MAX, "descriptors left after drain", at("fds_left")),
    Column("live_timers", "timers", Aggregate.MAX, "timers armed after drain", at("timers_after_drain")),
    Column("flows_peak", "flows", Aggregate.MAX, "most flows at once", at("flow_map.flows_peak")),
    Column("flow_map_refused", "flows", Aggregate.SUM, "flows refused at the cap", at("flow_map.refused")),
    Column("pool_lock_wait_ns", "ns", Aggregate.SUM, "waited for the pool's depot", at("pool.lock_wait_ns")),
    Column("flow_lock_wait_ns", "ns", Aggregate.SUM, "waited for a shard of the flow map", at("flow_map.lock_wait_ns")),
    Column("lock_wait_ns", "ns", Aggregate.SUM, "both", total("pool.lock_wait_ns", "flow_map.lock_wait_ns")),
    Column(
        "loop_iteration_max_ns",
        "ns",
        Aggregate.MAX,
        "longest event loop iteration, wake to next wait",
        at("loop.max_wall_ns"),
    ),
    Column("loop_on_cpu_max_ns", "ns", Aggregate.MAX, "its longest on-CPU time", at("loop.max_on_cpu_ns")),
    Column(
        "loop_off_cpu_max_ns",
        "ns",
        Aggregate.MAX,
        "its longest off-CPU time (the machine's)",
        at("loop.max_off_cpu_ns"),
    ),
    Column("loop_stalls", "iterations", Aggregate.SUM, "iterations above the limit of the watchdog", _stalls),
    Column(
        "cpu_percent", "%", Aggregate.MEDIAN, "CPU of the engine's threads, idle polling left out", at("cpu.percent")
    ),
    Column(
        "cpu_sustained_percent",
        "%",
        Aggregate.MIN,
        "the level that each window (1 s at most) reached, 10 in a row",
        _cpu_sustained,
    ),
    Column("cpu_ns_per_packet", "ns", Aggregate.MEDIAN, "engine CPU time a packet", at("cpu.ns_per_packet")),
    Column("rss_bytes", "bytes", Aggregate.MAX, "resident memory of the process at the end", _rss_last),
    Column(
        "rss_growth_percent_per_hour",
        "%/h",
        Aggregate.MEDIAN,
        "Theil-Sen slope of resident memory; null below 15 minutes, where it says nothing",
        at("rss_growth.percent"),
    ),
    Column(
        "rss_slope_percent_per_hour", "%/h", Aggregate.MEDIAN, "the same slope, however short", at("rss_growth.slope")
    ),
    Column(
        "rss_slope_low_percent_per_hour", "%/h", Aggregate.MEDIAN, "its 95 % interval, low end", at("rss_growth.low")
    ),
    Column(
        "rss_slope_high_percent_per_hour", "%/h", Aggregate.MEDIAN, "its 95 % interval, high end", at("rss_growth.high")
    ),
    Column(
        "heap_growth_bytes", "bytes", Aggregate.MAX, "growth of the pool's heap from round to round", at("heap_growth")
    ),
    Column(
        "runnable_threads",
        "threads",
        Aggregate.MEDIAN,
        "others that wanted a CPU as the phase began",
        at("machine.runnable_threads"),
    ),
    Column("steal_ms", "ms", Aggregate.MAX, "time the hypervisor took away", at("machine.steal_ms")),
)
"""Columns read from the load phase."""

CAPACITY_COLUMNS: tuple[Column, ...] = (
    Column(
        "capacity_pps",
        "packets/s",
        Aggregate.MEDIAN,
        "maximum forwarding rate (RFC 2285, 3.6.3)",
        ratio("forwarded", "seconds"),
    ),
    Column(
        "capacity_goodput_mbit_per_s",
        "Mbit/s",
        Aggregate.MEDIAN,
        "payload bits forwarded at capacity",
        ratio("payload_window", "seconds", 8 / BITS_PER_MBIT),
    ),
    Column(
        "capacity_connections_per_s",
        "1/s",
        Aggregate.MEDIAN,
        "connections a second at capacity",
        ratio("connections_opened", "seconds"),
    ),
    Column("capacity_cpu_ns_per_packet", "ns", Aggregate.MEDIAN, "engine CPU time a packet", at("cpu.ns_per_packet")),
    Column("capacity_loss_ratio", "ratio", Aggregate.MEDIAN, "lost / offered at capacity", ratio("lost", "offered")),
    Column(
        "capacity_service_time_p50_ns",
        "ns",
        Aggregate.MEDIAN,
        "from dequeue to effect",
        at("service_time.p50"),
        "service_time:0.5",
    ),
    Column(
        "capacity_service_time_p99_ns",
        "ns",
        Aggregate.MEDIAN,
        "from dequeue to effect",
        at("service_time.p99"),
        "service_time:0.99",
    ),
    Column(
        "capacity_pool_grow_stalls_after_warmup",
        "buffers",
        Aggregate.MAX,
        "misses after warm-up",
        at("pool.pool_grow_stalls_after_warmup"),
    ),
    Column(
        "capacity_lock_wait_ns",
        "ns",
        Aggregate.SUM,
        "waited for locks",
        total("pool.lock_wait_ns", "flow_map.lock_wait_ns"),
    ),
    Column(
        "capacity_reassembly_peak_bytes", "bytes", Aggregate.MAX, "most bytes held at once", at("reassembly.bytes_peak")
    ),
    Column("capacity_heap_peak_bytes", "bytes", Aggregate.MAX, "most memory the pool held", at("pool.heap_peak_bytes")),
    Column("capacity_integrity_faults", "faults", Aggregate.SUM, _FAULTS, at("truth.faults")),
    Column("capacity_live_bytes", "bytes", Aggregate.MAX, "buffers not given back", at("pool.live_bytes_after_drain")),
    Column("capacity_loop_stalls", "iterations", Aggregate.SUM, "iterations above the limit of the watchdog", _stalls),
    Column("capacity_loop_on_cpu_max_ns", "ns", Aggregate.MAX, "longest on-CPU iteration", at("loop.max_on_cpu_ns")),
)
"""Columns read from the capacity phase of the same round."""

COLUMNS: dict[str, Column] = {column.name: column for column in (*LOAD_COLUMNS, *CAPACITY_COLUMNS)}
"""All metric columns by name."""


def metrics(load: Tree | None, capacity: Tree | None) -> dict[str, Value]:
    """Return one row of metric columns from the trees of a round's two phases."""
    row: dict[str, Value] = {}
    for columns, tree in ((LOAD_COLUMNS, load), (CAPACITY_COLUMNS, capacity)):
        for column in columns:
            value = None if tree is None else column.get(tree)
            row[column.name] = None if value is None else float(value)
    return row


def over_rounds(how: Aggregate, values: Sequence[float]) -> Value:
    """Make one value of several rounds; null when there is none."""
    if not values:
        return None
    match how:
        case Aggregate.MEDIAN:
            return median(values)
        case Aggregate.MAX:
            return max(values)
        case Aggregate.MIN:
            return min(values)
        case Aggregate.SUM:
            return sum(values)
