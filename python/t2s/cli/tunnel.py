"""`t2s run` and `t2s proxy`.

Exit codes: 0 ended by a signal, 1 the tunnel or proxy could not start or failed, 2 bad input. The first SIGINT or
SIGTERM lets open flows finish for `--shutdown-timeout`; the second ends the process at once.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path  # noqa: TC003 - typer reads the annotations at run time
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self

import typer

from t2s._core import ConfigError, T2sError
from t2s.cli.exit_codes import BAD_INPUT, FAILED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

    from t2s.tunnel.api import Tunnel
    from t2s.tunnel.route_guard import RouteGuard
    from t2s.tunnel.settings import RunSettings

POLL_S = 0.1
"""Log lines wait at most this long, seconds."""


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(run)
    app.command()(proxy)


def run(
    proxy: Annotated[
        str | None,
        typer.Option(help="socks5://[user[:password]@]host[:port], http://… or direct://; default: T2S_PROXY."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file whose keys are these flags; default: none.")] = None,
    credentials_file: Annotated[
        str | None, typer.Option(help="File whose first line is user:password; default: none.")
    ] = None,
    tun: Annotated[
        str | None, typer.Option(help="Interface name, or a pattern such as t2s%d; default: the kernel chooses.")
    ] = None,
    tun_fd: Annotated[
        int | None, typer.Option(help="TUN descriptor that this process inherited; default: open one.")
    ] = None,
    mtu: Annotated[
        int | None, typer.Option(help="MTU of the interface, bytes; default: 8500 with offload, 1500 without.")
    ] = None,
    queues: Annotated[
        int | None, typer.Option(help="Queues of the device, each with a worker thread; default: 1.")
    ] = None,
    offload: Annotated[str | None, typer.Option(help="Offload of the device: auto or off; default: auto.")] = None,
    up: Annotated[bool | None, typer.Option("--up/--no-up", help="Set the interface up; default: up.")] = None,
    user: Annotated[str | None, typer.Option(help="User to become once the device is open; default: stay.")] = None,
    fwmark: Annotated[
        int | None, typer.Option(help="Firewall mark of sockets towards the proxy; default: none.")
    ] = None,
    dns: Annotated[
        str | None, typer.Option(help="How DNS travels: direct, over-tcp or fake-ip; default: direct.")
    ] = None,
    fake_ip_v4: Annotated[
        str | None, typer.Option(metavar="RANGE", help="Range of fake IPv4 addresses, or off; default: 198.18.0.0/15.")
    ] = None,
    fake_ip_v6: Annotated[
        str | None, typer.Option(metavar="RANGE", help="Range of fake IPv6 addresses, or off; default: fc00::/18.")
    ] = None,
    dns_listen: Annotated[
        str | None, typer.Option(help="Addresses a,b of its name server; default: none, or the first fake ones.")
    ] = None,
    dns_hijack: Annotated[
        bool | None,
        typer.Option("--dns-hijack/--no-dns-hijack", help="Be the name server at every address; default: no."),
    ] = None,
    dns_server: Annotated[
        str | None, typer.Option(help="Resolver for queries that it does not answer itself; default: none.")
    ] = None,
    syn_ack: Annotated[
        str | None, typer.Option(help="When a SYN is answered: after-connect or immediate; default: after-connect.")
    ] = None,
    congestion: Annotated[
        str | None, typer.Option(help="Congestion control to clients: cubic or newreno; default: cubic.")
    ] = None,
    socks_pipelining: Annotated[
        str | None, typer.Option(help="SOCKS5 handshake in one segment: auto, on or off; default: auto.")
    ] = None,
    icmp_echo: Annotated[
        bool | None, typer.Option("--icmp-echo/--no-icmp-echo", help="Answer ICMP echo requests; default: yes.")
    ] = None,
    max_tcp_flows: Annotated[int | None, typer.Option(help="TCP flows at once; default: 65536.")] = None,
    max_pending_connects: Annotated[
        int | None, typer.Option(help="TCP flows that wait for the proxy at once; default: 4096.")
    ] = None,
    max_udp_sessions: Annotated[int | None, typer.Option(help="UDP sessions at once; default: 16384.")] = None,
    connect_timeout: Annotated[
        int | None, typer.Option(help="Time for the proxy to answer a connect, seconds; default: 30.")
    ] = None,
    preconnect: Annotated[
        int | None, typer.Option(help="Proxy connections a worker makes in advance; 0: none; default: 8.")
    ] = None,
    tcp_idle_timeout: Annotated[
        int | None, typer.Option(help="TCP flow without traffic, seconds; 0: no limit; default: 7200.")
    ] = None,
    udp_idle_timeout: Annotated[
        int | None, typer.Option(help="UDP session without traffic, seconds; default: 120.")
    ] = None,
    memory_budget_mib: Annotated[
        int | None, typer.Option(help="Payload held for all flows, MiB; default: 256.")
    ] = None,
    checksum: Annotated[
        str | None, typer.Option(help="Kernel: auto, scalar, swar, avx2, avx512 or neon; default: auto.")
    ] = None,
    busy_poll_us: Annotated[
        int | None, typer.Option(help="Poll before sleeping, microseconds; 0: never; default: 75.")
    ] = None,
    loop_stall_ms: Annotated[
        int | None, typer.Option(help="Iteration that counts as a stall, milliseconds; 0: none; default: 10.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="Lines: off, error, warn, info or debug; default: info.")
    ] = None,
    stats_interval: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Time between lines of counters, seconds; default: no lines."),
    ] = None,
    stats_file: Annotated[
        str | None,
        typer.Option(help="File for all counters as JSON, at --stats-interval; default: none."),
    ] = None,
    shutdown_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time for open flows after a signal, seconds; default: 2.")
    ] = None,
    auto_route: Annotated[
        bool | None,
        typer.Option(
            "--auto-route/--no-auto-route", help="Route all traffic of this host into the tunnel; default: no."
        ),
    ] = None,
    route_exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="With --auto-route: network that stays outside; repeatable; default: none."),
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR", help="With --auto-route: the device's address, one of a family; default: its own."
        ),
    ] = None,
    families: Annotated[
        str | None, typer.Option(help="With --auto-route: both, ipv4 or ipv6, the other blocked; default: both.")
    ] = None,
    force: Annotated[
        bool | None,
        typer.Option("--force", help="With --auto-route: even if it cuts connections to this host; default: no."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="Serve Prometheus metrics there, on loopback without an address; default: no.",
        ),
    ] = None,
) -> None:
    """Carry the traffic of a TUN device through a SOCKS5 or HTTP proxy, until SIGINT or SIGTERM."""
    flags = {key: value for key, value in locals().items() if value is not None and key != "config"}
    from t2s.tunnel.api import Tunnel
    from t2s.tunnel.settings import load

    try:
        settings = load(flags, config, os.environ)
        guard = _route_guard(settings)
        if settings.metrics:
            # Now: another user may not be allowed to read the interpreter's folders.
            from t2s.tunnel import metrics_server  # noqa: F401 - for what it loads
        tunnel = Tunnel(settings.tunnel)
    except T2sError as error:
        _refuse(error)
    try:
        with guard or nullcontext(), tunnel, _Signals() as signals, _metrics(settings, tunnel):
            _save(tunnel.stats(), settings.stats_file)
            if guard:
                log([("warn", warning) for warning in guard.install(tunnel.name)])
                log([("info", f"routes: all traffic goes into {tunnel.name}")])
            _watch(tunnel, settings, signals, lambda: load(flags, config, os.environ))
            log(tunnel.lines())
            tunnel.stop(settings.shutdown_timeout)
            _keep(tunnel.stats(), settings.stats_file)
    except T2sError as error:
        log(tunnel.lines())
        _refuse(error)
    log(tunnel.lines())


def proxy(
    listen: Annotated[
        str, typer.Option(help="Address and port to listen at; port 0: the kernel chooses.")
    ] = "127.0.0.1:1080",
    user: Annotated[str | None, typer.Option(help="User name that clients must give; default: none.")] = None,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="T2S_PROXY_PASSWORD",
            help="Password that clients must give, better in the environment; default: none.",
        ),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="Lines: off, error, warn, info or debug; default: info.")
    ] = None,
) -> None:
    """Serve SOCKS5 (CONNECT and UDP ASSOCIATE), for trying things out, until SIGINT or SIGTERM."""
    from t2s.tunnel.api import LogLevel, Proxy, check

    try:
        check("log_level", log_level, LogLevel | None)
        server = Proxy(listen, username=user, password=password, log_level=log_level)  # type: ignore[arg-type]
    except T2sError as error:
        _refuse(error)
    with server, _Signals() as signals:
        if user is None and not server.address[0].is_loopback:
            typer.echo("warn: without --user this proxy serves everybody who reaches it", err=True)
        while not signals.ended:
            log(server.lines())
            time.sleep(POLL_S)
    log(server.lines())


def _route_guard(settings: RunSettings) -> RouteGuard | None:
    """Start the process that has the routes, before the tunnel has threads and gives its rights up."""
    if settings.routes is None:
        return None
    from t2s.tunnel.route_guard import RouteGuard

    return RouteGuard.start(settings.routes)


@contextmanager
def _metrics(settings: RunSettings, tunnel: Tunnel) -> Iterator[None]:
    """Serve metrics where the settings say so; what that needs is loaded only then."""
    if settings.metrics is None:
        yield
        return
    from ipaddress import ip_address

    from t2s.tunnel.metrics_server import MetricsServer

    with MetricsServer(*settings.metrics, tunnel) as server:
        typer.echo(f"info: metrics at {server.url}", err=True)
        if not ip_address(settings.metrics[0]).is_loopback:
            typer.echo("warn: everybody who reaches this address reads these metrics", err=True)
        yield


class _Signals:
    """Remembers the first SIGINT or SIGTERM and leaves the second to the kernel; remembers SIGHUP."""

    def __init__(self) -> None:
        self.ended = False
        self.reload = False

    def __enter__(self) -> Self:
        """Listen."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)
        signal.signal(signal.SIGHUP, self._reload)
        return self

    def __exit__(self, *_exception: object) -> None:
        """Leave the handlers: the process is about to end."""

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self.ended = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        self.reload = True


def _watch(tunnel: Tunnel, settings: RunSettings, signals: _Signals, again: Any) -> None:
    """Print lines and counters until a signal, or the tunnel's own end."""
    started = due = time.monotonic()
    before: Mapping[str, Any] | None = None
    while not signals.ended and not tunnel.wait(POLL_S):
        log(tunnel.lines())
        if signals.reload:
            signals.reload = False
            _reload(tunnel, again)
        now = time.monotonic()
        if settings.stats_interval is not None and now >= due + settings.stats_interval:
            counters = tunnel.stats()
            typer.echo(summary(counters, before, now - due, now - started))
            _keep(counters, settings.stats_file)
            before, due = counters, now


def _reload(tunnel: Tunnel, again: Any) -> None:
    """Take credentials and log level anew; whatever is wrong with them changes nothing."""
    try:
        fresh: RunSettings = again()
        config = fresh.tunnel
        tunnel.reload(username=config.username, password=config.password, log_level=config.log_level)
    except ConfigError as error:
        typer.echo(f"error: not reloaded: {error}", err=True)
    else:
        typer.echo("info: credentials and log level reloaded", err=True)


def _save(counters: Mapping[str, Any], file: Path | None) -> None:
    """Write counters to a file that readers never see half written."""
    if file is None:
        return
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(json.dumps(counters), encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise ConfigError(f"stats_file: {file}: {error.strerror}") from None


def _keep(counters: Mapping[str, Any], file: Path | None) -> None:
    """Save counters while the tunnel runs, which does not end because a disk is full."""
    try:
        _save(counters, file)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)


def summary(now: Mapping[str, Any], before: Mapping[str, Any] | None, elapsed: float, uptime: float) -> str:
    """Say counters in one line; rates are since the line before."""
    rates = []
    for key, word in (("bytes_up", "up"), ("bytes_down", "down")):
        rate = (now[key] - (before[key] if before else 0)) * 8 / elapsed / 1e6
        rates.append(f"{word} {now[key] / 1e6:.1f} MB ({rate:.1f} Mbit/s)")
    failures = sum(now["dial_failures"].values())
    return (
        f"{uptime:.0f} s: {now['flows']} flows ({now['flows_opened']} opened, {failures} not connected), "
        f"{now['sessions']} UDP sessions, {', '.join(rates)}, "
        f"datagrams up {now['datagrams_up']} down {now['datagrams_down']}, "
        f"{sum(now['packets_dropped'].values())} packets dropped"
    )


def log(lines: list[tuple[str, str]]) -> None:
    """Print lines of the log."""
    for level, text in lines:
        typer.echo(f"{level}: {text}", err=True)


def _refuse(error: T2sError) -> NoReturn:
    typer.echo(str(error), err=True)
    raise typer.Exit(BAD_INPUT if isinstance(error, ConfigError) else FAILED)
