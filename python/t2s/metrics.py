"""Counters of tunnels as Prometheus metrics: base units, `t2s_` in front, a label `device` on each.

A collector asks its tunnels at each scrape and keeps nothing in between. It promises to export every counter of
`Tunnel.stats`: those that `COUNTERS` and its neighbours do not know, because the core is newer, come as untyped metrics
under their own names. A cause or reason that has not occurred yet has no series.

>>> from prometheus_client import CollectorRegistry, generate_latest
>>> from t2s import Tunnel
>>> from t2s.metrics import register
>>> registry = CollectorRegistry()
>>> with Tunnel("direct://", tun="t2s0") as tunnel:  # doctest: +SKIP
...     collector = register(tunnel, registry=registry)
...     page = generate_latest(registry)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client.core import (
    REGISTRY,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    UntypedMetricFamily,
)
from prometheus_client.registry import Collector

from t2s._core import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric


__all__ = ["TunnelCollector", "register"]

NANOS = 1e-9
"""Seconds in a nanosecond."""

COUNTERS: dict[str, tuple[str, str, dict[str, str], float]] = {
    # key of `Tunnel.stats`: metric, what it says, labels, factor to the base unit
    "packets_in": ("packets", "IP packets of the device; super-segments count once.", {"direction": "in"}, 1),
    "packets_out": ("packets", "", {"direction": "out"}, 1),
    "packet_bytes_in": ("packet_bytes", "Bytes of IP packets of the device.", {"direction": "in"}, 1),
    "packet_bytes_out": ("packet_bytes", "", {"direction": "out"}, 1),
    "bytes_up": ("payload_bytes", "TCP payload that upstreams took (up) or gave (down).", {"direction": "up"}, 1),
    "bytes_down": ("payload_bytes", "", {"direction": "down"}, 1),
    "flows_opened": ("flows_opened", "TCP flows opened.", {}, 1),
    "flows_refused": ("flows_refused", "TCP flows whose upstream refused.", {}, 1),
    "flows_evicted": ("flows_evicted", "TCP flows that made room for others.", {}, 1),
    "sessions_opened": ("udp_sessions_opened", "UDP sessions opened.", {}, 1),
    "sessions_evicted": ("udp_sessions_evicted", "UDP sessions that made room for others.", {}, 1),
    "datagrams_up": ("datagrams", "Datagrams to (up) and from (down) upstreams.", {"direction": "up"}, 1),
    "datagrams_down": ("datagrams", "", {"direction": "down"}, 1),
    "datagrams_lost": ("datagrams_lost", "Datagrams lost at upstreams.", {}, 1),
    "dns_queries": ("dns_queries", "DNS queries seen.", {}, 1),
    "dns_answered": ("dns_answered", "DNS queries answered by the tunnel itself.", {}, 1),
    "dns_streams_refused": ("dns_streams_refused", "TCP connections to the tunnel's own name server, refused.", {}, 1),
    "fake_evicted": ("dns_fake_names_evicted", "Names that lost their fake addresses to others.", {}, 1),
    "fake_unknown": ("dns_fake_unknown", "Connections and datagrams to fake addresses without a name.", {}, 1),
    "dns_over_tcp_queries": ("dns_over_tcp_queries", "DNS queries carried over TCP.", {}, 1),
    "dns_over_tcp_answered": ("dns_over_tcp_answered", "DNS queries carried over TCP and answered.", {}, 1),
    "icmp_echoes": ("icmp_echoes", "Echo requests answered.", {}, 1),
    "icmp_errors": ("icmp_errors", "ICMP errors sent.", {}, 1),
    "dials": ("dials", "TCP flows that wanted a connection, dialled or preconnected.", {}, 1),
    "preconnects": ("preconnects", "Connections to the proxy made before a flow or session needs one.", {}, 1),
    "preconnects_used": ("preconnects_used", "Preconnects that a flow or session has used.", {}, 1),
    "preconnect_retries": (
        "preconnect_retries",
        "Preconnects that ended as a request was on the way, and were dialled again.",
        {},
        1,
    ),
    "dials_done": ("dials_done", "Connections made for TCP flows.", {}, 1),
    "upstream_resets": ("upstream_resets", "Upstreams that broke while bytes flowed.", {}, 1),
    "device_reads": ("device_calls", "Reads from and writes to the device.", {"call": "read"}, 1),
    "device_writes": ("device_calls", "", {"call": "write"}, 1),
    "device_errors": ("device_errors", "Writes that the device refused.", {}, 1),
    "offload_disabled": ("offload_disabled", "Times that the device's offload was disabled.", {}, 1),
    "upstream_reads": ("upstream_calls", "Reads from and writes to upstream streams.", {"call": "read"}, 1),
    "upstream_writes": ("upstream_calls", "", {"call": "write"}, 1),
    "datagram_calls": ("datagram_calls", "Calls that read or wrote datagrams.", {}, 1),
    "retransmits": ("retransmits", "Retransmissions towards clients.", {}, 1),
    "loop_stalls": ("event_loop_stalls", "Event-loop iterations above the limit.", {}, 1),
    "pool_buffers_allocated": ("pool_buffers_allocated", "Buffers handed out by the pool.", {}, 1),
    "pool_buffers_freed": ("pool_buffers_freed", "Buffers that came back.", {}, 1),
    "pool_grow_stalls": ("pool_grow_stalls", "Allocations that grew the pool, and waited for it.", {}, 1),
    "pool_preallocated_slabs": ("pool_preallocated_slabs", "Slabs by which the pool grew when nothing waited.", {}, 1),
    "pool_refused": ("pool_refused", "Allocations refused.", {}, 1),
    "pool_lock_wait_ns": ("pool_lock_wait_seconds", "Time that threads waited for the pool's locks.", {}, NANOS),
}
GAUGES: dict[str, tuple[str, str, float]] = {
    "uptime_s": ("uptime_seconds", "Time since the start.", 1),
    "workers": ("workers", "Workers that answered.", 1),
    "flows": ("flows", "TCP flows now.", 1),
    "flows_peak": ("flows_peak", "The most TCP flows at once, summed over workers.", 1),
    "pending": ("flows_pending", "TCP flows that wait for the proxy now.", 1),
    "sessions": ("udp_sessions", "UDP sessions now.", 1),
    "fake_names": ("dns_fake_names", "Names that have fake addresses now.", 1),
    "buffered": ("buffered_bytes", "Payload queued now, both directions.", 1),
    "reassembly_bytes": ("reassembly_bytes", "Payload in out-of-order queues now.", 1),
    "timers": ("timers", "Timers armed now.", 1),
    "iteration_max_ns": ("event_loop_iteration_max_seconds", "The longest event-loop iteration.", NANOS),
    "pool_bytes": ("pool_bytes", "Bytes that the pool holds.", 1),
    "pool_live_bytes": ("pool_live_bytes", "Bytes of buffers in use.", 1),
}
BY_NAME: dict[str, tuple[str, str, str]] = {
    "flows_closed": ("flows_closed", "TCP flows ended.", "reason"),
    "packets_dropped": ("packets_dropped", "Packets without effect.", "reason"),
}
HISTOGRAMS: dict[str, tuple[str, str, dict[str, str]]] = {
    "connect_times": ("handshake_seconds", "From dialling to a phase's end, over TCP flows.", {"phase": "connect"}),
    "reply_times": ("handshake_seconds", "", {"phase": "reply"}),
    "first_byte_times": ("handshake_seconds", "", {"phase": "first_byte"}),
    "iteration_times": ("event_loop_iteration_seconds", "Event-loop iterations.", {}),
}
FAILURES = "dial_failures"
"""The key whose names are causes, with a SOCKS5 reply code in some of them."""
INHERITED = "inherited"
"""The label of a device that tells no name."""
DERIVED = {"dial_mean_ns", "iterations"}
"""Keys that a histogram's sum and count say already."""


class Counted(Protocol):
    """What is asked of a tunnel; `t2s.Tunnel` has it."""

    @property
    def name(self) -> str:
        """The device's name."""

    @property
    def running(self) -> bool:
        """Whether packets are still carried."""

    def stats(self) -> Mapping[str, Any]:
        """Return all counters."""


class TunnelCollector(Collector):
    """The metrics of some tunnels; one registry takes one of these, since its metrics have one name each."""

    def __init__(self, *tunnels: Counted) -> None:
        self._tunnels = tunnels

    def describe(self) -> Iterable[Metric]:
        """Name what is always there, so that registering asks no tunnel."""
        return _Families([]).all()

    def collect(self) -> Iterable[Metric]:
        """Ask the tunnels."""
        families = _Families(["device"])
        for device, tunnel in zip(labels_of([tunnel.name for tunnel in self._tunnels]), self._tunnels, strict=True):
            families.add(device, tunnel.stats(), running=tunnel.running)
        return families.all()


def register(*tunnels: Counted, registry: CollectorRegistry = REGISTRY) -> TunnelCollector:
    """Add the metrics of tunnels to a registry; `registry.unregister` takes what this returns.

    Pass all tunnels of a registry in one call: a second call raises prometheus_client's `DuplicateTimeseries`.
    """
    collector = TunnelCollector(*tunnels)
    registry.register(collector)
    return collector


class _Families:
    """Metrics by name, each once, filled tunnel by tunnel."""

    def __init__(self, always: list[str]) -> None:
        self._always = always
        self._found: dict[str, Any] = {}
        info = InfoMetricFamily("t2s_build", "The version of t2s.")
        info.add_metric([], {"version": __version__})
        self._found["t2s_build"] = info
        self._family(GaugeMetricFamily, "up", "Whether packets are carried.", {})
        for name, text, labels, _ in COUNTERS.values():
            self._family(CounterMetricFamily, name, text, labels)
        for name, text, _ in GAUGES.values():
            self._family(GaugeMetricFamily, name, text, {})
        for name, text, label in BY_NAME.values():
            self._family(CounterMetricFamily, name, text, {label: ""})
        self._family(CounterMetricFamily, FAILURES, "Connections that failed.", {"cause": "", "socks_code": ""})
        for name, text, labels in HISTOGRAMS.values():
            self._family(HistogramMetricFamily, name, text, labels)

    def all(self) -> Iterable[Metric]:
        return self._found.values()

    def _family(self, kind: type[Any], name: str, text: str, labels: Mapping[str, str]) -> Any:
        if name not in self._found:
            self._found[name] = kind(f"t2s_{name}", text, labels=[*self._always, *labels])
        return self._found[name]

    def add(self, device: str, stats: Mapping[str, Any], *, running: bool) -> None:
        """Add what one tunnel has counted."""
        self._found["up"].add_metric([device], float(running))
        for key, value in stats.items():
            if key in COUNTERS:
                name, _, labels, factor = COUNTERS[key]
                self._found[name].add_metric([device, *labels.values()], value * factor)
            elif key in GAUGES:
                name, _, factor = GAUGES[key]
                self._found[name].add_metric([device], value * factor)
            elif key in BY_NAME:
                for of, count in value.items():
                    self._found[BY_NAME[key][0]].add_metric([device, of], count)
            elif key == FAILURES:
                for name, count in value.items():
                    self._found[FAILURES].add_metric([device, *cause(name)], count)
            elif key in HISTOGRAMS:
                name, _, labels = HISTOGRAMS[key]
                buckets = cumulative(value["buckets"])
                self._found[name].add_metric([device, *labels.values()], buckets, value["sum_ns"] * NANOS)
            elif key not in DERIVED and isinstance(value, int | float):
                self._family(UntypedMetricFamily, key, f"{key} of Tunnel.stats.", {}).add_metric([device], value)


def labels_of(names: list[str]) -> list[str]:
    """Give each device a label that no other has; descriptors from elsewhere may have no name.

    >>> labels_of(["t2s0", "", ""])
    ['t2s0', 'inherited', 'inherited-2']
    """
    found: list[str] = []
    for name in names:
        label, count = name or INHERITED, 1
        while label in found:
            count += 1
            label = f"{name or INHERITED}-{count}"
        found.append(label)
    return found


def cause(name: str) -> tuple[str, str]:
    """Split a failure's name into cause and SOCKS5 reply code; no code where the proxy gave none.

    >>> cause("socks_05_refused"), cause("socks_other"), cause("proxy_unreachable")
    (('refused', '5'), ('other', 'other'), ('proxy_unreachable', ''))
    """
    if name == "socks_other":
        return "other", "other"
    found = re.fullmatch(r"socks_(\d+)_(\w+)", name)
    return (found[2], str(int(found[1]))) if found else (name, "")


def cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    """Turn counts by power of two of microseconds into Prometheus' buckets, bounds in seconds.

    >>> cumulative([5, 2, 1])
    [('1e-06', 5), ('2e-06', 7), ('+Inf', 8)]
    """
    total = 0
    found: list[tuple[str, float]] = []
    for power, count in enumerate(buckets):
        total += count
        bound = "+Inf" if power == len(buckets) - 1 else repr(2**power / 1e6)
        found.append((bound, total))
    return found
