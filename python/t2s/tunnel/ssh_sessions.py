"""Connections that came into this machine from outside, and which of them an operator may sit on.

Routes that lead all traffic into a tunnel would take the replies along. Ssh is found by its servers' sockets, and by
`SSH_CONNECTION` of this process and those that started it (sudo takes it from the nearest ones, and mosh has no TCP
connection left). Any other connection that came in is named too: which one the operator sits on cannot be known.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SSH_SERVERS = {"sshd", "sshd-session", "sshd-auth", "dropbear", "tinysshd"}
"""Names of processes (`/proc/PID/comm`) that hold an operator's connection."""
ANCESTORS = 64
"""Processes looked at between this one and the first; a deeper tree is a loop."""
_ESTABLISHED, _LISTEN = 0x01, 0x0A  # net/tcp_states.h


@dataclass(frozen=True, slots=True)
class Connection:
    """An established TCP connection of this network namespace."""

    peer: Address
    peer_port: int
    port: int
    inode: int

    def __str__(self) -> str:
        """Name it as an operator knows it."""
        return f"{self.peer} to port {self.port}"


@dataclass(frozen=True, slots=True)
class SshSessions:
    """What has to keep its way."""

    ports: tuple[int, ...] = ()
    """Ports of ssh servers, whose replies stay out of the tunnel."""
    operators: tuple[Address, ...] = ()
    """Addresses that operators come from."""
    unprotected: tuple[Connection, ...] = ()
    """Other connections from outside, which must not be rerouted without being told."""
    forwarded: tuple[Connection, ...] = ()
    """An operator's connections that come through a forwarder of this machine, so that their far end is unknown."""


def scan(proc: Path = Path("/proc"), process: int | None = None) -> SshSessions:
    """Scan for the sessions that there are now."""
    connections, listening = _connections(proc)
    inodes = _ssh_inodes(proc)
    arrived = [item for item in connections if item.port in listening]
    ports = {item.port for item in arrived if item.inode in inodes}
    ports |= {port for port, holders in listening.items() if holders & inodes}
    operators, forwarded = set(), []
    for peer, peer_port, port in _reported(proc, os.getpid() if process is None else process):
        live = [item for item in connections if (item.peer, item.peer_port, item.port) == (peer, peer_port, port)]
        if live:
            ports.add(port)
        if not peer.is_loopback:
            operators.add(peer)
        else:
            forwarded += live
    unprotected = [item for item in arrived if not _stays(item.peer) and item.port not in ports]
    return SshSessions(tuple(sorted(ports)), tuple(sorted(operators, key=str)), tuple(unprotected), tuple(forwarded))


def _stays(peer: Address) -> bool:
    """Whether no route matters: the peer is this machine, or on the link that its address names."""
    return peer.is_loopback or peer.is_link_local


def _connections(proc: Path) -> tuple[list[Connection], dict[int, set[int]]]:
    """Read established connections, and the ports that others can reach, with the sockets that listen there."""
    found: list[Connection] = []
    listening: dict[int, set[int]] = {}
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue  # a kernel without IPv6
        for line in lines:
            fields = line.split()
            state, (own, port), (peer, peer_port) = int(fields[3], 16), _end(fields[1]), _end(fields[2])
            if state == _LISTEN and not own.is_loopback:
                listening.setdefault(port, set()).add(int(fields[9]))
            elif state == _ESTABLISHED:
                found.append(Connection(peer, peer_port, port, int(fields[9])))
    return found, listening


def _end(text: str) -> tuple[Address, int]:
    """Read `address:port` as /proc/net/tcp has it: 32-bit words in this machine's byte order."""
    words, port = text.split(":")
    raw = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
    return _plain(ipaddress.ip_address(raw)), int(port, 16)


def _plain(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 socket wraps."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _ssh_inodes(proc: Path) -> set[int]:
    """Name the sockets that ssh servers hold; those of other users' servers only root sees."""
    inodes = set()
    for entry in proc.iterdir():
        try:
            if not entry.name.isdigit() or (entry / "comm").read_text(encoding="utf-8").strip() not in SSH_SERVERS:
                continue
            links = [os.readlink(link) for link in (entry / "fd").iterdir()]  # noqa: PTH115 - no path but a name
        except (OSError, UnicodeDecodeError):
            continue  # it has ended meanwhile
        inodes |= {int(link[8:-1]) for link in links if link.startswith("socket:[")}
    return inodes


def _reported(proc: Path, process: int) -> Iterator[tuple[Address, int, int]]:
    """Read `SSH_CONNECTION` of a process and of those that started it: peer, its port, this end's port."""
    for _ in range(ANCESTORS):
        if process <= 0:
            return
        try:
            environ = (proc / str(process) / "environ").read_bytes().split(b"\0")
            after_name = (proc / str(process) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        except OSError:
            return
        for entry in environ:
            name, _, value = entry.partition(b"=")
            if name == b"SSH_CONNECTION":
                parts = value.decode(errors="replace").split()
                try:
                    peer, peer_port, _, port = parts
                    yield _plain(ipaddress.ip_address(peer.partition("%")[0])), int(peer_port), int(port)
                except ValueError:
                    continue  # not sshd's
        process = int(after_name.split()[1])
