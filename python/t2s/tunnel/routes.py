"""Routes and rules that lead a network namespace's traffic into a tunnel: what is put in place, and how it goes again.

Everything bears the same mark of ownership (table, protocol number, range of priorities), so that leftovers are found
without a file. Rules of either family, by priority:

| +0 | marked by the tunnel's own sockets | goto +9: as if nothing of this were there |
| +1 | replies of ssh servers, by port    | goto +9 |
| +2 | to the operator's address          | goto +9 |
| +3 | to what is excluded                | goto +9 |
| +4 | main table but its default route   | local networks stay local |
| +5 | all else                           | the tunnel's table |
| +6 | what the tunnel does not take      | unreachable; up to +8, see `_filters` |
| +9 | nothing                            | where the jumps land |

The tunnel's table has a default route into the device for each family that is carried. What is behind it lets nothing
leak when a family is not carried, a socket is bound to another interface, or the device goes away. pyroute2 is
imported when it is first needed.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2s._core import TunnelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from t2s.tunnel.route_settings import Address, Interface, RouteSettings
    from t2s.tunnel.ssh_sessions import SshSessions

TABLE = 0x7432
"""Number of the tunnel's routing table, above the 255 that programs number by hand."""
PRIORITY = 7432
"""Priority of the first rule: before the main table's (32766), behind what others put first."""
PROTOCOL = 116
"""Who put a rule, route or address in place (`linux/rtnetlink.h`, `RTPROT_*`; 116 is nobody's there)."""
TUNNEL, NOWHERE, END = PRIORITY + 5, PRIORITY + 6, PRIORITY + 9
"""Priorities of the rules that lead into the tunnel, and nowhere, and of the last one."""
LINK_ONLY = {socket.AF_INET: ("224.0.0.0/4", "255.255.255.255/32"), socket.AF_INET6: ()}
"""What no tunnel can carry and local services need; IPv6 multicast is in the kernel's own local table."""
WIDE = {socket.AF_INET: 7, socket.AF_INET6: 3}
"""A prefix of at most this length, other than the default route's, is half of somebody's default route."""

LOCK = "\0t2s-routes"
"""Abstract socket that the owner of the routes holds: one for each network namespace, gone with its owner."""

ANSWER_S = 2.0
"""Time for the owner to say who it is, seconds."""

PASSES = 5
"""Looks for what is left, since what goes by itself meanwhile can hide the rest."""
SHOWN = 5
"""Connections that are named in one message."""

_GOTO, _NOP, _UNREACHABLE = 2, 3, 7  # linux/fib_rules.h `FR_ACT_*`
_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL}
_NODAD, _NO_PREFIX_ROUTE = 0x02, 0x200  # linux/if_addr.h `IFA_F_*`
_MAIN = 254
_STRICT, _LOOSE = 1, 2


def kernel() -> Any:
    """Open a way to the kernel's routing, as a context."""
    try:
        from pyroute2.iproute.linux import IPRoute  # noqa: PLC0415 - only those who want routes pay for it
    except ImportError as error:
        raise TunnelError(f"routes need the package pyroute2: {error}") from None
    return IPRoute()


def take_lock() -> socket.socket:
    """Become the owner of this namespace's routes; raises `TunnelError` when somebody is."""
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(LOCK)
        lock.listen(16)
    except OSError:
        lock.close()
        holder = owner()
        who = f"process {holder.process}" if holder and holder.process else "a process that cannot be seen from here"
        raise TunnelError(f"routes: {who} leads traffic into a tunnel here already; `t2s down` ends it") from None
    return lock


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has the routes of this network namespace."""

    process: int
    """The guard; 0 for one of another PID namespace."""
    user: int
    """Its user."""
    tunnel: int
    """The tunnel's process, as the guard says; 0 when it does not say."""


def owner() -> Owner | None:
    """Return who owns this namespace's routes, or None for nobody, or nobody who answers."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_S)
        try:
            probe.connect(LOCK)
        except OSError:  # refused, or a stranger who has the name and takes no calls
            return None
        process, user, _ = struct.unpack("=iII", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            text = probe.recv(16)
        except OSError:  # it is busy, or about to go
            text = b""
        return Owner(process, user, int(text) if text.isdigit() else 0)


def install(ipr: Any, device: str, settings: RouteSettings, sessions: SshSessions) -> list[str]:
    """Lead all traffic into a device; return what is worth a warning.

    Raises `TunnelError`, with nothing left in place, when the kernel refuses or a connection that came in from outside
    would lose its way.
    """
    try:
        with reported_refusals():
            return _install(ipr, device, settings, sessions)
    except BaseException:
        remove(ipr)
        raise


@contextmanager
def reported_refusals() -> Iterator[None]:
    """Turn the kernel's refusals into errors of t2s."""
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - as in `kernel`

    try:
        yield
    except NetlinkError as error:
        raise TunnelError(f"routes: the kernel refuses: {os.strerror(error.code)} (it takes CAP_NET_ADMIN)") from error


def _install(ipr: Any, device: str, settings: RouteSettings, sessions: SshSessions) -> list[str]:
    found = ipr.link_lookup(ifname=device)
    if not found:
        raise TunnelError(f"routes: this network namespace has no interface {device!r}")
    index: int = found[0]
    warnings: list[str] = []
    before = _ways(ipr, sessions.unprotected)
    _check_addresses(ipr, index, settings.addresses)
    filters = _filters(device)
    strict = 1 + filters["all"] if _STRICT in filters.values() and settings.carries(socket.AF_INET) else 0
    if any(filters.values()) and not settings.carries(socket.AF_INET):
        warnings.append(
            "routes: IPv4 is not carried, so that rp_filter drops the answers of an IPv4 proxy that is not local; set "
            "it to 0, or name an IPv6 proxy"
        )
    for family in families():
        warnings += _wide_routes(ipr, family)
        if settings.carries(family) and add_address(ipr, index, device, family, settings.addresses):
            add_default_route(ipr, index, family, table=TABLE, proto=PROTOCOL)
        for rule in _rules(family, settings, sessions, strict):
            ipr.rule("add", family=family, protocol=PROTOCOL, **rule)
    if strict:
        _filter(_LOOSE)
    after = _ways(ipr, sessions.unprotected)
    cut = sorted({str(item) for item in sessions.unprotected if before[item.peer] != after[item.peer]})
    cut += [str(item) for item in sessions.forwarded]
    if not cut:
        return warnings
    shown = ", ".join(cut[:SHOWN]) + (f" and {len(cut) - SHOWN} more" if len(cut) > SHOWN else "")
    if not settings.force:
        raise TunnelError(
            f"routes: these connections would be cut: {shown}. Keep them with --route-exclude and the far ends' "
            "networks, or give --force to go on without them"
        )
    return [*warnings, f"routes: cut, as --force says: {shown}"]


def families() -> Iterator[socket.AddressFamily]:
    """Name the families that this kernel speaks."""
    yield socket.AF_INET
    if Path("/proc/net/if_inet6").exists():
        yield socket.AF_INET6


def _rules(family: int, settings: RouteSettings, sessions: SshSessions, strict: int) -> Iterator[dict[str, Any]]:
    """Name the rules of a family; what leads into the tunnel comes last, when all exceptions stand."""
    version = 4 if family == socket.AF_INET else 6
    jump = {"action": _GOTO, "goto": END}
    yield {"priority": END, "action": _NOP}
    yield {"priority": PRIORITY, "fwmark": settings.fwmark, **jump}
    for port in sessions.ports:
        yield {"priority": PRIORITY + 1, "ip_proto": socket.IPPROTO_TCP, "sport_range": f"{port}:{port}", **jump}
    for peer in sessions.operators:
        if peer.version == version:
            yield {"priority": PRIORITY + 2, "dst": str(peer), "dst_len": peer.max_prefixlen, **jump}
    for network in (*map(ipaddress.ip_network, LINK_ONLY[socket.AddressFamily(family)]), *settings.exclude):
        if network.version == version:
            wanted = {"dst": str(network.network_address), "dst_len": network.prefixlen} if network.prefixlen else {}
            yield {"priority": PRIORITY + 3, **wanted, **jump}
    yield {"priority": PRIORITY + 4, "table": _MAIN, "suppress_prefixlen": 0}
    yield {"priority": TUNNEL, "table": TABLE}
    yield {"priority": NOWHERE + strict, "action": _UNREACHABLE}


def add_address(ipr: Any, index: int, device: str, family: int, addresses: Iterable[Interface]) -> bool:
    """Give the device its address of a family; return False where the family is switched off for it."""
    if family == socket.AF_INET6 and _sysctl(f"ipv6/conf/{device}/disable_ipv6") == 1:
        return False
    own = next(item for item in addresses if item.version == (4 if family == socket.AF_INET else 6))
    flags = _NODAD if family == socket.AF_INET6 else 0
    if own.network.prefixlen == own.max_prefixlen:
        flags |= _NO_PREFIX_ROUTE
    ipr.addr("replace", index=index, address=str(own.ip), prefixlen=own.network.prefixlen, flags=flags, proto=PROTOCOL)
    return True


def add_default_route(ipr: Any, index: int, family: int, **more: int) -> None:
    """Lead what has no other way into the device."""
    ipr.route("add", family=family, oif=index, dst="0.0.0.0/0" if family == socket.AF_INET else "::/0", **more)


def _check_addresses(ipr: Any, index: int, addresses: Iterable[Interface]) -> None:
    wanted = {item.ip for item in addresses}
    for held in ipr.get_addr():
        text = held.get_attr("IFA_LOCAL") or held.get_attr("IFA_ADDRESS")
        if held["index"] != index and ipaddress.ip_address(text) in wanted:
            raise TunnelError(f"routes: another interface has the address {text}; choose another with --address")


def _wide_routes(ipr: Any, family: int) -> Iterator[str]:
    """Warn of default routes in disguise: half the address space is not local, and stays out of the tunnel."""
    for route in ipr.get_routes(family=family, table=_MAIN):
        if 0 < route["dst_len"] <= WIDE[socket.AddressFamily(family)]:
            network = ipaddress.ip_network(f"{route.get_attr('RTA_DST')}/{route['dst_len']}")
            if network.is_multicast:
                continue
            yield f"routes: the main table has a route to {network}, which stays outside the tunnel"


def _ways(ipr: Any, connections: Iterable[Any]) -> dict[Address, Any]:
    """Ask the kernel for the way to each peer: interface and next hop, or None where there is none."""
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - as in `kernel`

    ways: dict[Address, Any] = {}
    for peer in {item.peer for item in connections}:
        try:
            route = next(iter(ipr.route("get", dst=str(peer))))
            ways[peer] = route.get_attr("RTA_OIF"), route.get_attr("RTA_GATEWAY")
        except NetlinkError:
            ways[peer] = None
    return ways


def _filters(device: str) -> dict[str, int]:
    """Return how strictly interfaces filter by the reverse path, by name; `all` is what holds for each at least.

    A strict filter looks the way back up without the mark, finds the tunnel, and would drop what comes in elsewhere. It
    is made loose for all interfaces, since one value changes then and comes back. What it was lives in the priority of
    the rule to nowhere, +6 and one more than it, as it must be known after the death of whoever changed it.
    """
    common = _sysctl("ipv4/conf/all/rp_filter") or 0
    names = [entry.name for entry in Path("/proc/sys/net/ipv4/conf").iterdir() if entry.name not in {device, "lo"}]
    return {name: max(common, _sysctl(f"ipv4/conf/{name}/rp_filter") or 0) for name in names}


def _filter(value: int) -> None:
    """Set the reverse-path filter of all interfaces."""
    try:
        Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text(f"{value}\n", encoding="ascii")
    except OSError as error:
        raise TunnelError(
            f"routes: net.ipv4.conf.all.rp_filter must be {value} and cannot be set: {error.strerror}"
        ) from None


def _sysctl(name: str) -> int | None:
    try:
        return int((Path("/proc/sys/net") / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def remove(ipr: Any) -> int:
    """Remove whatever `install` has put in place, now or in another life; return how many things that were.

    The rules go first, so that traffic has its old way back before anything else changes. Nobody else's rule, route or
    address is touched.
    """
    with reported_refusals():
        found = _remove(ipr)
        for _ in range(PASSES):
            if not found or not _remove(ipr):
                return found
    raise TunnelError("routes: something is left, or comes back; `t2s down` tries again")


def _remove(ipr: Any) -> int:
    removed = 0
    for family in families():
        rules = [rule for rule in ipr.get_rules(family=family) if rule.get_attr("FRA_PROTOCOL") == PROTOCOL]
        own = [at for rule in rules if PRIORITY <= (at := rule.get_attr("FRA_PRIORITY") or 0) <= END]
        # From the last one on, so that the exceptions stand as long as something leads into the tunnel.
        for at in sorted(set(own), key=lambda at: (at == END, -at)):
            # Unless somebody else has changed the setting since.
            if family == socket.AF_INET and NOWHERE < at < END and _sysctl("ipv4/conf/all/rp_filter") == _LOOSE:
                _filter(at - NOWHERE - 1)
            with _may_be_gone():
                ipr.flush_rules(family=family, protocol=PROTOCOL, priority=at)
        removed += len(own)
    for family in families():
        routes = [route for route in ipr.get_routes(family=family, table=TABLE) if route["proto"] == PROTOCOL]
        if routes:
            with _may_be_gone():
                ipr.flush_routes(family=family, table=TABLE, proto=PROTOCOL)
        removed += len(routes)
    # A device that goes takes its addresses along; one that stays, since others made it, must lose ours.
    for held in list(ipr.get_addr()):
        if held.get_attr("IFA_PROTO") == PROTOCOL:
            text = held.get_attr("IFA_LOCAL") or held.get_attr("IFA_ADDRESS")
            with _may_be_gone():
                ipr.addr("del", index=held["index"], address=text, prefixlen=held["prefixlen"])
            removed += 1
    return removed


@contextmanager
def _may_be_gone() -> Iterator[None]:
    """Let a device that goes at the same time, as after `kill -9`, take along what is being removed."""
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - as in `kernel`

    try:
        yield
    except NetlinkError as error:
        if error.code not in _GONE:
            raise
