"""`t2s exec`: one command in a network namespace of its own, whose only way out is a tunnel.

A child makes the namespaces and opens the TUN device inside, hands its descriptor to this process, which runs the
tunnel outside of them, and then becomes the command. Names are resolved through the tunnel too: the command sees a
resolv.conf of its own, and no socket of a caching resolver. Files and their sockets (D-Bus, Docker) are shared with
the rest of the machine; root inside is root outside.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from t2s._core import ConfigError, T2sError, TunnelError, open_tun
from t2s.tunnel import namespace
from t2s.tunnel.api import Tunnel
from t2s.tunnel.route_settings import ADDRESSES
from t2s.tunnel.routes import add_address, add_default_route, families, kernel, reported_refusals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from t2s.tunnel.api import TunnelConfig

DNS_SERVER = "9.9.9.9"
"""Resolver that the command asks where none is set: Quad9, which keeps no addresses. With fake addresses, the usual
case, the tunnel answers in its place, and nobody asks it."""
NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes for commands that cannot be started, as shells have them."""
RESOLVERS = tuple(map(Path, ("/run/systemd/resolve", "/run/nscd", "/var/run/nscd", "/run/avahi-daemon")))
"""Folders with sockets of resolvers that would answer outside of the tunnel."""
POLL_S = 0.2
"""Log lines wait at most this long, seconds."""
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_SI_USER = 0  # asm-generic/siginfo.h: sent by a process; what a terminal sends the command gets by itself
_MESSAGE_BYTES = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What to run, and how it resolves names."""

    argv: Sequence[str]
    dns_server: str


def run(command: Command, config: TunnelConfig, log: Callable[[list[tuple[str, str]]], None]) -> int:
    """Run a command behind a tunnel; return its exit code, or 128 and the signal's number.

    Raises `TunnelError`, with the one thing to change, where namespaces or the device cannot be had.
    """
    namespace.check_device()
    signals = {*_FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        ours, theirs = socket.socketpair()
        with ours:
            with _resolv_conf(command.dns_server) as resolv_conf:
                child = os.fork()
                if child == 0:
                    ours.close()
                    _become(command.argv, theirs, config, resolv_conf, before)
                theirs.close()
                received = socket.recv_fds(ours, _MESSAGE_BYTES, 1)
            try:
                return _serve(child, ours, _device(received[0], received[1]), config, log)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child, 0)
                raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _device(text: bytes, descriptors: list[int]) -> tuple[int, int]:
    """Read the child's answer: the device's descriptor and MTU."""
    answer: dict[str, Any] = json.loads(text) if text else {"error": "exec: the namespace's process has died"}
    if "error" in answer:
        raise (ConfigError if answer.get("input") else TunnelError)(answer["error"])
    return descriptors[0], int(answer["mtu"])


def _serve(
    child: int,
    pipe: socket.socket,
    device: tuple[int, int],
    config: TunnelConfig,
    log: Callable[[list[tuple[str, str]]], None],
) -> int:
    """Run the tunnel until the command has ended."""
    fd, mtu = device
    try:
        # The user stays: whoever gives up the command's user can no longer send it signals.
        inside = replace(config, tun=None, tun_fd=fd, mtu=mtu, queues=1, dns=config.dns or dns_mode(config), user=None)
        if inside.dns == "fake-ip":
            # Whichever resolver the command asks, the tunnel answers.
            inside = replace(inside, dns_hijack=True)
        tunnel = Tunnel(inside)
    finally:
        os.close(fd)
    with tunnel:
        pipe.sendall(b"go")
        failed = False
        while (code := _ended(child)) is None:
            received = signal.sigtimedwait({*_FORWARDED, signal.SIGCHLD}, POLL_S)
            if received is not None and received.si_signo != signal.SIGCHLD and received.si_code <= _SI_USER:
                os.kill(child, received.si_signo)
            log(tunnel.lines())
            if not failed:
                failed = _failed(tunnel, log)
    log(tunnel.lines())
    return code


def _ended(child: int) -> int | None:
    """Return the exit code once there is one."""
    process, status = os.waitpid(child, os.WNOHANG)
    if process == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _failed(tunnel: Tunnel, log: Callable[[list[tuple[str, str]]], None]) -> bool:
    """Tell when the tunnel has ended by itself; the command goes on, without a way out."""
    try:
        return tunnel.wait(0)
    except T2sError as error:
        log([("error", f"the command has no way out any more: {error}")])
        return True


@contextlib.contextmanager
def _resolv_conf(server: str) -> Iterator[Path]:
    """Write the command's resolv.conf; its mount keeps it when the file is gone."""
    with tempfile.NamedTemporaryFile("w", prefix="t2s-resolv-", encoding="ascii") as file:
        file.write(f"# written by t2s exec\nnameserver {server}\n")
        file.flush()
        path = Path(file.name)
        path.chmod(0o644)
        yield path


def _become(
    argv: Sequence[str], pipe: socket.socket, config: TunnelConfig, resolv_conf: Path, mask: set[int | signal.Signals]
) -> NoReturn:
    """Be the child: make the namespaces, hand the device over, and become the command."""
    code = 1
    try:
        fd, mtu = _settle(config, resolv_conf)
        socket.send_fds(pipe, [json.dumps({"mtu": mtu}).encode()], [fd])
        os.close(fd)
        if pipe.recv(2) == b"go":
            pipe.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = _execute(argv)
    except T2sError as error:
        pipe.sendall(json.dumps({"error": str(error), "input": isinstance(error, ConfigError)}).encode())
    except BaseException as error:  # noqa: BLE001 - nobody is above this process; its parent has to know
        pipe.sendall(json.dumps({"error": f"exec: {type(error).__name__}: {error}"}).encode())
    finally:
        os._exit(code)


def _execute(argv: Sequence[str]) -> int:
    """Become the command; return the exit code that says why not."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two; the command starts with neither
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], list(argv))  # noqa: S606 - to run what the user says is the point
    except OSError as error:
        print(f"t2s exec: {argv[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND if error.errno in {errno.ENOENT, errno.ENOTDIR} else NOT_EXECUTABLE


def _settle(config: TunnelConfig, resolv_conf: Path) -> tuple[int, int]:
    """Make the namespaces with the device, its addresses and routes, and the resolver's file."""
    namespace.enter(user=os.geteuid() != 0)
    # Without root the tunnel cannot log, outside, that the device is not here; another one must not have its name.
    fd, name, mtu = open_tun(f"t2s{os.getpid()}", mtu=config.mtu, offload=config.offload != "off")
    with kernel() as ipr, reported_refusals():
        ipr.link("set", index=ipr.link_lookup(ifname="lo")[0], state="up")
        [index] = ipr.link_lookup(ifname=name)
        for family in families():
            if add_address(ipr, index, name, family, map(ipaddress.ip_interface, ADDRESSES)):
                add_default_route(ipr, index, family)
    _resolve_here(resolv_conf)
    return fd, mtu


def _resolve_here(resolv_conf: Path) -> None:
    """Let the C library ask our resolver, and nobody behind a socket file."""
    target = Path("/etc/resolv.conf")
    linked = target.resolve()
    for folder in RESOLVERS:
        if not folder.is_dir() or folder.is_symlink() or folder.parent.is_symlink():
            continue
        namespace.cover(folder, None)
        if folder in linked.parents:
            linked.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(resolv_conf, linked)
    try:
        namespace.cover(target, resolv_conf)
    except OSError as error:
        raise TunnelError(f"exec: cannot replace {target}: {error.strerror}; make it a file that exists") from None


def dns_mode(config: TunnelConfig) -> Literal["fake-ip", "over-tcp"]:
    """Return how names are resolved where nothing is said: by the proxy; without one, or with a resolver, over TCP."""
    direct = config.proxy.startswith("direct:")
    return "over-tcp" if direct or config.dns_server is not None else "fake-ip"


def check_server(text: str | None) -> str:
    """Return the resolver's address; raises `ConfigError` for what is none."""
    try:
        return str(ipaddress.ip_address(text or DNS_SERVER))
    except ValueError as error:
        raise ConfigError(f"dns_server: {error}") from None
