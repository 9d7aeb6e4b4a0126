"""The settings of `t2s run`: command line, environment and TOML file, in this order of weight.

Every flag is a key of the file in the same words (`--log-level` is `log_level`). The proxy may come from `T2S_PROXY`.
Its credentials come, first found first taken, from `--credentials-file`, from `T2S_USERNAME` and `T2S_PASSWORD`, from
the file's `credentials_file` or its `username` and `password`, or from the URL. No message repeats them.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from t2s._core import ConfigError
from t2s.suggest import suggest
from t2s.toml_lines import key_lines
from t2s.tunnel.api import TunnelConfig, check
from t2s.tunnel.route_settings import Families, RouteSettings, is_here

if TYPE_CHECKING:
    from collections.abc import Mapping

SHUTDOWN_TIMEOUT_S = 2.0
"""Time for open flows after a signal, seconds: enough to finish a request, short enough to wait for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """What `t2s run` does: the tunnel, and how its command behaves."""

    tunnel: TunnelConfig
    stats_interval: float | None = None
    """A line of counters every so many seconds."""
    stats_file: Path | None = None
    """Where all counters stand as JSON: from the start, as often as `stats_interval` says, and at the end."""
    shutdown_timeout: float = SHUTDOWN_TIMEOUT_S
    """Time for open flows after a signal, seconds."""
    routes: RouteSettings | None = None
    """Lead all traffic into the tunnel."""
    metrics: tuple[str, int] | None = None
    """Address and port of the Prometheus metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _CommandKeys:
    """Keys of the command itself, beside the tunnel's."""

    credentials_file: str | None = None
    stats_interval: float | None = None
    stats_file: str | None = None
    shutdown_timeout: float | None = None
    auto_route: bool | None = None
    route_exclude: list[str] | None = None
    address: list[str] | None = None
    families: Families | None = None
    force: bool | None = None
    metrics: str | int | None = None


def keys() -> list[str]:
    """Name every key of `t2s run`."""
    return [item.name for of in (TunnelConfig, _CommandKeys) for item in dataclasses.fields(of)]


def load(flags: Mapping[str, Any], file: Path | None, environ: Mapping[str, str]) -> RunSettings:
    """Put the settings together; raises `ConfigError` for whatever is wrong with them."""
    from_file = read_file(file) if file is not None else {}
    merged = {**from_file, **flags}
    if "proxy" not in flags and environ.get("T2S_PROXY"):
        merged["proxy"] = environ["T2S_PROXY"]
    if "proxy" not in merged:
        raise ConfigError("no proxy: give --proxy, `proxy` in the file of --config, or T2S_PROXY")
    merged |= _credentials(flags, from_file, environ)
    own = {item.name: merged.pop(item.name, None) for item in dataclasses.fields(_CommandKeys)}
    for key in ("stats_interval", "shutdown_timeout"):
        value = own[key]
        if value is not None and not (value > 0 if key == "stats_interval" else value >= 0):
            raise ConfigError(
                f"{key}: must be {'above' if key == 'stats_interval' else 'at least'} 0 seconds, not {value}"
            )
    routes = _routes(own, merged)
    return RunSettings(
        tunnel=TunnelConfig.from_mapping(merged),
        routes=routes,
        stats_interval=own["stats_interval"],
        stats_file=None if own["stats_file"] is None else Path(own["stats_file"]),
        shutdown_timeout=SHUTDOWN_TIMEOUT_S if own["shutdown_timeout"] is None else own["shutdown_timeout"],
        metrics=None if own["metrics"] is None else listen_address("metrics", own["metrics"]),
    )


def _routes(own: Mapping[str, Any], tunnel: dict[str, Any]) -> RouteSettings | None:
    """Take what is said of routes, and give the tunnel's sockets a mark when there are any."""
    if not own["auto_route"]:
        for key in ("route_exclude", "address", "families", "force"):
            if own[key] and own["auto_route"] is None:
                raise ConfigError(f"{key}: needs auto_route")
        return None
    check("fwmark", tunnel.get("fwmark"), int | None)
    check("families", own["families"], Families | None)
    routes = RouteSettings.read(
        fwmark=tunnel.get("fwmark"),
        exclude=own["route_exclude"] or (),
        addresses=own["address"] or (),
        families=own["families"] or "both",
        force=bool(own["force"]),
    )
    if is_here(str(tunnel.get("proxy"))) and not (routes.exclude or routes.force):
        raise ConfigError(
            "auto_route: the proxy is on this machine, so that what it sends would enter the tunnel again; give "
            "--route-exclude with the network that it sends to, or --force when it marks its own sockets"
        )
    tunnel["fwmark"] = routes.fwmark
    return routes


def listen_address(key: str, text: str | int) -> tuple[str, int]:
    """Read `[ADDRESS:]PORT`; without an address it is this host's alone.

    >>> listen_address("metrics", "9100"), listen_address("metrics", "[::1]:9100")
    (('127.0.0.1', 9100), ('::1', 9100))
    >>> listen_address("metrics", ":9100")
    Traceback (most recent call last):
        ...
    t2s.ConfigError: metrics: ':9100' is no address; write PORT, 127.0.0.1:PORT, [::1]:PORT, or 0.0.0.0:PORT for all
    """
    host, colon, port = str(text).rpartition(":")
    host = "127.0.0.1" if not colon or host == "localhost" else host
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        number = int(port) if port.isascii() and port.isdigit() else -1
    except ValueError:
        number = -1
    if not 0 <= number <= 65_535 or bracketed != (address.version == 6):
        raise ConfigError(
            f"{key}: {text!r} is no address; write PORT, 127.0.0.1:PORT, [::1]:PORT, or 0.0.0.0:PORT for all"
        )
    return str(address), number


def read_file(file: Path) -> dict[str, Any]:
    """Read a TOML file; every problem names its line, and an unknown key the nearest that exists."""
    try:
        text = file.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    lines = key_lines(text)
    hints = get_type_hints(TunnelConfig) | get_type_hints(_CommandKeys)
    found: dict[str, Any] = {}
    for written, value in tree.items():
        key, place = written.replace("-", "_"), f"{file}:{lines.get((written,), 1)}"
        if key not in hints:
            raise ConfigError(f"{place}: {written}: unknown key{suggest(key, hints)}")
        if key in found:
            raise ConfigError(f"{place}: {written}: stands there twice")
        try:
            check(key, value, hints[key])
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
        found[key] = value
    return found


def _credentials(flags: Mapping[str, Any], file: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Take user name and password from the weightiest place that has them."""
    if path := flags.get("credentials_file"):
        return _read_credentials(Path(path))
    user, password = environ.get("T2S_USERNAME"), environ.get("T2S_PASSWORD")
    if user is None and password is None and (path := file.get("credentials_file")):
        return _read_credentials(Path(path))
    found = {"username": user or file.get("username"), "password": password or file.get("password")}
    return {key: value for key, value in found.items() if value is not None}


def _read_credentials(path: Path) -> dict[str, str]:
    """Read `user:password`, the first line of a file."""
    try:
        line = next(iter(path.read_text(encoding="utf-8").splitlines()), "")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"credentials_file: {path}: {reason}") from None
    user, colon, password = line.partition(":")
    if not user or not colon:
        raise ConfigError(f"credentials_file: {path}: its first line must be user:password")
    return {"username": user, "password": password}
