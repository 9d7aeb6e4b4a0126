"""The tunnel for Python: typed settings, `Tunnel`, and the small SOCKS5 server `Proxy`.

Settings are checked here as far as words and types go, so that an error names the nearest valid word; ranges and
defaults are the compiled core's. Nothing heavy is imported: only `Tunnel.flows` loads polars, when it is called.
"""

from __future__ import annotations

import dataclasses
import json
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from t2s import _core
from t2s._core import ConfigError
from t2s.suggest import suggest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address, IPv6Address

    import polars as pl

__all__ = ["LogLevel", "Proxy", "Tunnel", "TunnelConfig"]

LogLevel = Literal["off", "error", "warn", "info", "debug"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TunnelConfig:
    """Settings of a tunnel; what is None has the core's default, which `TunnelConfig.defaults` tells.

    Times are seconds, sizes as named. Raises `ConfigError` for a value of the wrong type or a word that is none.

    >>> TunnelConfig(proxy="direct://", offload="of")
    Traceback (most recent call last):
        ...
    t2s.ConfigError: offload: 'of' is none of auto, off; did you mean "off"?
    """

    proxy: str = field(repr=False)
    """`socks5://[user[:password]@]host[:port]`, `http://` with the same parts, or `direct://`."""
    username: str | None = None
    """User name for the proxy, instead of the one in the URL."""
    password: str | None = field(default=None, repr=False)
    """Password for the proxy, instead of the one in the URL."""
    fwmark: int | None = None
    """Firewall mark of all sockets towards the proxy, so that routing rules can keep them out of the tunnel."""
    tun: str | None = None
    """Name of the TUN interface, or a pattern such as `t2s%d`; the kernel chooses one otherwise."""
    tun_fd: int | None = None
    """A TUN descriptor that the caller has opened; it is copied."""
    mtu: int | None = None
    """MTU of the interface, 1280 to 65535 bytes; 8500 with offload and 1500 without."""
    queues: int | None = None
    """Queues of the device, each with a thread."""
    offload: Literal["auto", "off"] | None = None
    """Segmentation and checksum offload of the device."""
    up: bool | None = None
    """Set the interface up."""
    user: str | None = None
    """User that the process becomes once the device is open, with no capability but the one that `fwmark` needs."""
    syn_ack: Literal["after-connect", "immediate"] | None = None
    """Answer a client's handshake after the proxy has answered, or at once."""
    congestion: Literal["cubic", "newreno"] | None = None
    """Congestion control towards the client."""
    socks_pipelining: Literal["auto", "on", "off"] | None = None
    """Send the SOCKS5 greeting and request in one segment."""
    dns: Literal["direct", "over-tcp", "fake-ip"] | None = None
    """Carry DNS queries as datagrams like any other, or over TCP; or answer with fake addresses for names."""
    fake_ip_v4: str | None = None
    """The range of fake IPv4 addresses, or `off`."""
    fake_ip_v6: str | None = None
    """The range of fake IPv6 addresses, or `off`."""
    dns_listen: str | None = None
    """Addresses at which the tunnel is a name server, with commas between; with `fake-ip` the first of each range."""
    dns_hijack: bool | None = None
    """Take queries to every address for queries to the tunnel's own."""
    dns_server: str | None = None
    """Where queries to the tunnel's own address go that it does not answer: an IP address, or `address:port`."""
    icmp_echo: bool | None = None
    """Answer pings to any address."""
    max_tcp_flows: int | None = None
    """TCP flows at once."""
    max_pending_connects: int | None = None
    """TCP flows that wait for the proxy at once."""
    max_udp_sessions: int | None = None
    """UDP sessions at once."""
    connect_timeout: int | None = None
    """Time for the proxy to answer a connect."""
    preconnect: int | None = None
    """Connections to the proxy that each worker makes ahead at most, while flows open in quick succession; 0 none.

    A flow that finds one saves the round trip of dialling; where the proxy is greeted apart, also those."""
    tcp_idle_timeout: int | None = None
    """A TCP flow without traffic for this long is reset; 0 never."""
    udp_idle_timeout: int | None = None
    """A UDP session without traffic for this long ends."""
    memory_budget_mib: int | None = None
    """Payload that all flows together may hold in memory."""
    checksum: Literal["auto", "scalar", "swar", "avx2", "avx512", "neon"] | None = None
    """Checksum kernel."""
    busy_poll_us: int | None = None
    """Look for the next event so long before sleeping, while the last ones came as soon, microseconds; 0 never.

    Not done where the machine has no more CPUs than the device has queues."""
    loop_stall_ms: int | None = None
    """An event-loop iteration longer than this counts as a stall; 0 switches the watchdog off."""
    log_level: LogLevel | None = None
    """What is worth a line."""

    def __post_init__(self) -> None:
        """Refuse wrong types and words."""
        hints = get_type_hints(type(self))
        for item in dataclasses.fields(self):
            check(item.name, getattr(self, item.name), hints[item.name])
        if self.password is not None and self.username is None:
            raise ConfigError("password: needs a username")

    @classmethod
    def from_mapping(cls, keys: Mapping[str, Any]) -> Self:
        """Take settings by name; an unknown one raises `ConfigError` with the nearest that exists."""
        known = [item.name for item in dataclasses.fields(cls)]
        for key in keys:
            if key not in known:
                raise ConfigError(f"{key}: unknown key{suggest(key, known)}")
        if "proxy" not in keys:
            raise ConfigError("proxy: is missing")
        return cls(**keys)

    @staticmethod
    def defaults() -> dict[str, Any]:
        """Return the core's default of each setting but `password`.

        >>> TunnelConfig.defaults()["syn_ack"]
        'after-connect'
        """
        return _core.Tunnel.defaults()

    def to_json(self) -> str:
        """Write what is set as the core reads it, the password included."""
        given = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return json.dumps({key: value for key, value in given.items() if value is not None})


def check(key: str, value: object, hint: Any) -> None:
    """Raise `ConfigError` unless a value is one of the types or words of a hint; secrets are never repeated."""
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    allowed = [value for choice in choices if get_origin(choice) is Literal for value in get_args(choice)]
    kinds = [choice for choice in choices if isinstance(choice, type)]
    if type(value) is list and any(get_origin(choice) is list for choice in choices):
        if not all(type(item) is str for item in value):
            raise ConfigError(f"{key}: must be a list of strings, not {value!r}")
    elif allowed and isinstance(value, str):
        if value not in allowed:
            raise ConfigError(f"{key}: {value!r} is none of {', '.join(allowed)}{_suggestion(value, allowed)}")
    elif type(value) not in kinds and not (float in kinds and type(value) is int):
        wanted = (
            "one of " + ", ".join(allowed) if allowed else " or ".join(_NOUNS[kind] for kind in kinds if kind in _NOUNS)
        )
        shown = "" if key in {"proxy", "password"} else f", not {value!r}"
        raise ConfigError(f"{key}: must be {wanted}{shown}")


_NOUNS: dict[type, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def _suggestion(value: str, allowed: list[str]) -> str:
    hint = suggest(value, allowed)
    return hint if hint.startswith("; did") else ""


class Tunnel:
    """A running tunnel: what clients send into its TUN device leaves through the proxy of its settings.

    It runs from construction until `stop` or the end of its `with` block, and gives the interface neither addresses
    nor routes. Several live in one process. Raises `ConfigError` for settings that cannot be, and `TunnelError` for a
    device or proxy that cannot be had.

    >>> with Tunnel("direct://", tun="t2s0") as tunnel:  # doctest: +SKIP
    ...     tunnel.stats()["flows"]
    0
    """

    def __init__(self, config: TunnelConfig | str, **settings: Any) -> None:
        if isinstance(config, str):
            config = TunnelConfig.from_mapping({"proxy": config, **settings})
        elif settings:
            config = TunnelConfig.from_mapping(_given(config) | settings)
        self._core = _core.Tunnel(config.to_json())

    @property
    def name(self) -> str:
        """The interface's name."""
        return self._core.name

    @property
    def mtu(self) -> int:
        """The interface's MTU, bytes."""
        return self._core.mtu

    @property
    def offload(self) -> dict[str, bool]:
        """What the device granted: `rx_checksum`, `tx_checksum`, `tso`, `uso`."""
        return self._core.offload

    @property
    def running(self) -> bool:
        """Whether packets are still carried."""
        return self._core.running

    def stats(self) -> dict[str, Any]:
        """Return all counters by name, summed over workers."""
        return self._core.stats()

    def flows(self) -> pl.DataFrame:
        """Return a row for each TCP flow and each UDP session, which has no state and no phases.

        Columns: both ends (of a UDP session, where its first datagram went), state, payload bytes, `rate_up` and
        `rate_down` in bytes a second, and phase times in nanoseconds since the SYN, 0 for what has not happened yet.
        Rates are means since the call before, and since the flow's start at the first; calls within half a second of
        each other return the same rates.
        """
        import polars as pl  # noqa: PLC0415 - the tunnel itself needs none of it

        text, number, port = pl.String(), pl.Int64(), pl.UInt16()
        schema = pl.Schema(
            {
                "worker": number,
                "protocol": text,
                "client": text,
                "client_port": port,
                "target": text,
                "target_port": port,
                "domain": text,
                "state": text,
                "bytes_up": number,
                "bytes_down": number,
                "rate_up": pl.Float64(),
                "rate_down": pl.Float64(),
                "age_ns": number,
                "connect_ns": number,
                "reply_ns": number,
                "first_byte_ns": number,
            }
        )
        rows = []
        for row in self._core.flows():
            (client, client_port), (target, target_port) = row["client"], row["target"]
            ends = {
                "client": str(client),
                "client_port": client_port,
                "target": str(target),
                "target_port": target_port,
            }
            rows.append({**row, **ends})
        return pl.DataFrame(rows, schema=schema)

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of the log since the last call, as `(level, text)`; the newest 1,024 are kept."""
        return self._core.lines()

    def reload(
        self, *, username: str | None = None, password: str | None = None, log_level: LogLevel | None = None
    ) -> None:
        """Change the proxy's credentials, for connections from now on, and the log's threshold."""
        self._core.reload(username=username, password=password, log_level=log_level)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; return whether it has come. Raises `TunnelError` when the tunnel ended by itself."""
        return self._core.wait(timeout_s)

    def stop(self, shutdown_timeout_s: float = 0.0) -> None:
        """Stop: no new connections, and flows that are left after `shutdown_timeout_s` seconds are reset."""
        self._core.stop(shutdown_timeout_s)

    def __enter__(self) -> Self:
        """Return itself; it runs already."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop at once."""
        self.stop()


class Proxy:
    """A running SOCKS5 server with CONNECT and UDP ASSOCIATE, for trying things out; port 0 lets the kernel choose.

    >>> with Proxy("127.0.0.1:0", log_level="off") as proxy:
    ...     host, port = proxy.address
    """

    def __init__(
        self,
        listen: str | None = None,
        *,
        username: str | None = None,
        password: str | None = None,
        log_level: LogLevel | None = None,
    ) -> None:
        keys = {"listen": listen, "username": username, "password": password, "log_level": log_level}
        self._core = _core.Proxy(json.dumps({key: value for key, value in keys.items() if value is not None}))

    @property
    def address(self) -> tuple[IPv4Address | IPv6Address, int]:
        """Where it listens."""
        return self._core.address

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of the log since the last call, as `(level, text)`; the newest 1,024 are kept."""
        return self._core.lines()

    def stop(self) -> None:
        """End all connections and the server."""
        self._core.stop()

    def __enter__(self) -> Self:
        """Return itself; it runs already."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop."""
        self.stop()


def _given(config: TunnelConfig) -> dict[str, Any]:
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
