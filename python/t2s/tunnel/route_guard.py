"""The process that puts routes in place and takes them away again, whatever becomes of the tunnel's own process.

It is forked before the tunnel starts threads and gives its rights up, keeps them, and waits at a pipe whose other end
only the tunnel's process has: the end of that process, by a signal that nobody can catch or otherwise, is the end of
the pipe, and then the routes go. It ignores what a terminal or a service manager sends to both.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from t2s._core import T2sError, TunnelError
from t2s.tunnel import routes

if TYPE_CHECKING:
    from t2s.tunnel.route_settings import RouteSettings
    from t2s.tunnel.ssh_sessions import SshSessions

DOWN_S = 10.0
"""Time for a tunnel to end when `t2s down` asks, seconds, beyond which its shutdown timeout should not go."""
START_S = 2.0
"""Time for the guard of a tunnel that was killed a moment ago to go, seconds."""
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)
_ANSWER_BYTES = 65_536


class RouteGuard:
    """The tunnel's end of the pipe; a context that ends with the routes removed."""

    def __init__(self, pipe: socket.socket, process: int) -> None:
        self._pipe = pipe
        self._process = process

    @classmethod
    def start(cls, settings: RouteSettings) -> Self:
        """Fork the guard, and let it remove what a dead tunnel has left.

        Raises `TunnelError` when somebody has routes here already, or the kernel refuses. Call it before any thread.
        """
        from t2s.tunnel.ssh_sessions import scan  # noqa: PLC0415 - only those who want routes pay for it

        sessions = scan()
        ours, theirs = socket.socketpair()
        tunnel, process = os.getpid(), os.fork()
        if process == 0:
            ours.close()
            _guard(theirs, tunnel, settings, sessions)
        theirs.close()
        guard = cls(ours, process)
        guard._answer()
        return guard

    def install(self, device: str) -> list[str]:
        """Lead all traffic into a device; return what is worth a warning."""
        with contextlib.suppress(OSError):  # that it has died is reported in place of its answer
            self._pipe.sendall(device.encode())
        return self._answer()

    def close(self) -> None:
        """Have the routes removed; raises `TunnelError` when that failed. Closing twice is harmless."""
        if self._pipe.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._pipe.shutdown(socket.SHUT_WR)
        try:
            self._answer()
        finally:
            self._reap()

    def _answer(self) -> list[str]:
        """Wait for an answer: lines, or an error, after which the guard is gone."""
        text = b""
        while not text.endswith(b"\n") and (part := _receive(self._pipe)):
            text += part
        if not text.endswith(b"\n"):
            self._reap()
            raise TunnelError("routes: the route guard has died; `t2s down` removes what it left")
        answer = json.loads(text)
        if "error" in answer:
            self._reap()
            raise TunnelError(answer["error"])
        return list(answer["lines"])

    def _reap(self) -> None:
        self._pipe.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process, 0)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Have the routes removed."""
        self.close()


def _guard(pipe: socket.socket, tunnel: int, settings: RouteSettings, sessions: SshSessions) -> NoReturn:
    """Be the route guard."""
    code = 1
    try:
        os.setsid()
        os.chdir("/")
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        with _lock_within(START_S) as lock, routes.kernel() as ipr:
            try:
                routes.remove(ipr)
                _send(pipe, lines=[])
                if device := _receive(pipe).decode():
                    _send(pipe, lines=routes.install(ipr, device, settings, sessions))
                    _wait(pipe, lock, tunnel)
            finally:
                routes.remove(ipr)
        _send(pipe, lines=[])
        code = 0
    except T2sError as error:
        _send(pipe, error=str(error))
    except BaseException as error:  # noqa: BLE001 - nobody is above this process; its parent has to know
        _send(pipe, error=f"routes: {type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _wait(pipe: socket.socket, lock: socket.socket, tunnel: int) -> None:
    """Wait for the end of the pipe, and tell those who ask whose routes these are."""
    while True:
        ready, _, _ = select.select([pipe, lock], [], [])
        if pipe in ready and not _receive(pipe):
            return
        if lock in ready:
            with lock.accept()[0] as asking, contextlib.suppress(OSError):  # it may have gone
                asking.send(str(tunnel).encode())


def _receive(pipe: socket.socket) -> bytes:
    """Return what the other end says; nothing when it has ended, which is an error where it had an answer unread."""
    try:
        return pipe.recv(_ANSWER_BYTES)
    except OSError:
        return b""


def _send(pipe: socket.socket, **answer: object) -> None:
    """Send a line."""
    with contextlib.suppress(OSError):  # nobody is there any more
        pipe.sendall(json.dumps(answer).encode() + b"\n")


def down() -> tuple[int | None, int]:
    """End the tunnel that has routes in this network namespace, and remove what dead ones have left.

    Returns the process that was ended, if any, and how many leftovers were removed.
    """
    holder, ended = routes.owner(), None
    if holder is not None:
        # Anybody can take the name; a process is not ended because a stranger says so.
        if holder.user != os.geteuid():
            raise TunnelError(
                f"down: process {holder.process} of user {holder.user} has the routes, which is not this user's tunnel"
            )
        # A guard whose parent is another one by now has lost its tunnel, and is about to go by itself.
        if holder.tunnel and _parent(holder.process) == holder.tunnel:
            ended = holder.tunnel
            with contextlib.suppress(ProcessLookupError):
                os.kill(ended, signal.SIGTERM)
    try:
        lock = _lock_within(DOWN_S)
    except TunnelError:
        if ended is None:
            raise
        raise TunnelError(
            f"down: the tunnel of process {ended} has not ended within {DOWN_S:.0f} s (it may wait for its "
            "--shutdown-timeout); `t2s down` once more ends it at once"
        ) from None
    with lock, routes.kernel() as ipr:
        return ended, routes.remove(ipr)


def _lock_within(seconds: float) -> socket.socket:
    """Become the owner once the one before has gone."""
    until = time.monotonic() + seconds
    while True:
        try:
            return routes.take_lock()
        except TunnelError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _parent(process: int) -> int | None:
    """Return a process's parent; None where it cannot be seen or is gone."""
    try:
        text = (Path("/proc") / str(process) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[1])
