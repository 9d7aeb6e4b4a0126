"""What `--auto-route` is told, checked before anything is put in place; `routes` does what is said here."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from t2s._core import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

Families = Literal["both", "ipv4", "ipv6"]
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

FWMARK = 0x7432
"""Firewall mark of the tunnel's sockets where none is set: "t2", so that it is nobody's first choice."""
ADDRESSES = ("10.255.116.50/32", "fdfe:7432::1/128")
"""The device's addresses where none are set: single ones, so that no network of the machine is hidden by them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteSettings:
    """What `--auto-route` is told."""

    fwmark: int
    exclude: tuple[Network, ...] = ()
    addresses: tuple[Interface, ...] = ()
    families: Families = "both"
    force: bool = False

    @classmethod
    def read(
        cls, *, fwmark: int | None, exclude: Sequence[str], addresses: Sequence[str], families: Families, force: bool
    ) -> RouteSettings:
        """Check words; raises `ConfigError` for what is no network, no address, or no mark."""
        if fwmark == 0:
            raise ConfigError("fwmark: 0 is what unmarked traffic has; auto_route needs another")
        given = [_parse("address", text, ipaddress.ip_interface) for text in addresses]
        for version in (4, 6):
            own = [item for item in given if item.version == version]
            if len(own) > 1:
                raise ConfigError(f"address: {own[0]} and {own[1]} are both IPv{version}; one of each family")
            if not own:
                given.append(ipaddress.ip_interface(ADDRESSES[version == 6]))
        return cls(
            fwmark=FWMARK if fwmark is None else fwmark,
            exclude=tuple(_parse("route_exclude", text, ipaddress.ip_network) for text in exclude),
            addresses=tuple(given),
            families=families,
            force=force,
        )

    def carries(self, family: int) -> bool:
        """Whether a family goes through the tunnel; the other one goes nowhere."""
        return self.families in {"both", "ipv4" if family == socket.AF_INET else "ipv6"}


def is_here(proxy: str) -> bool:
    """Whether a proxy's URL names this very machine, by one of its addresses."""
    try:
        host = urlsplit(proxy).hostname or ""
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return False  # a name, or no URL, which is the core's to judge
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False  # only an address of its own can be bound
    return True


def _parse(key: str, text: str, parse: Any) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
