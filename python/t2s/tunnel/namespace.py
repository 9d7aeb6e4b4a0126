"""A process's own namespaces: the system calls that Python 3.11 does not have, and what to change where they fail.

It promises: after `enter` the calling process is alone in a network namespace with nothing in it but a loopback
interface, and sees files mounted by itself alone; without root it has a user namespace of its own, in which it keeps
its user and group. It refuses, with the one thing to change, where the kernel or its settings do not allow that.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from t2s._core import TunnelError

_NEWNS, _NEWUSER, _NEWNET = 0x00020000, 0x10000000, 0x40000000  # linux/sched.h `CLONE_*`
_BIND, _REC, _PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h `MS_*`

DEVICE = Path("/dev/net/tun")
"""The TUN driver's file."""
SWITCHES = (
    ("user.max_user_namespaces", "0", "1024"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)
"""Kernel settings that forbid namespaces to users: name, the value that forbids, one that does not."""


def enter(*, user: bool) -> None:
    """Move the calling process into namespaces of its own, `user` says whether into one of users too.

    Raises `TunnelError` that names what forbids it.
    """
    owner, group = os.geteuid(), os.getegid()
    try:
        try:
            _unshare(_NEWNS | _NEWNET | (_NEWUSER if user else 0))
        except PermissionError:
            if user:
                raise
            user = True  # root of a container, who needs a user namespace like everybody
            _unshare(_NEWNS | _NEWNET | _NEWUSER)
        if user:
            # The kernel lets a process map itself alone, and its group only when it cannot drop groups any more.
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{owner} {owner} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
        _mount(None, Path("/"), None, _REC | _PRIVATE)
    except OSError as error:
        raise TunnelError(forbidden(error)) from error


def forbidden(error: OSError, proc: Path = Path("/proc")) -> str:
    """Say what keeps this process from having namespaces, and the one thing to change."""
    for name, bad, good in SWITCHES:
        try:
            value = (proc / "sys" / name.replace(".", "/")).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if value == bad:
            return f"exec: this kernel forbids namespaces to users; as root: sysctl -w {name}={good}"
    if error.errno == errno.ENOSPC:
        return "exec: too many namespaces; as root: raise user.max_user_namespaces and user.max_net_namespaces"
    if error.errno == errno.EINVAL:
        return "exec: this kernel was built without user or network namespaces"
    return (
        f"exec: cannot make namespaces ({error.strerror}): something around this process forbids it, such as a "
        "container's seccomp profile; run it as root, or allow `unshare` there"
    )


def check_device() -> None:
    """Raise `TunnelError` with the one thing to change unless the TUN driver's file can be used."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise TunnelError(unusable(error)) from None


def unusable(error: OSError) -> str:
    """Say what makes the TUN driver's file usable."""
    match error.errno:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return f"exec: there is no {DEVICE}; as root: modprobe tun"
        case errno.EACCES:
            return f"exec: this user must not open {DEVICE}; as root: chmod 0666 {DEVICE}"
        case errno.EPERM:
            return f"exec: the device cgroup forbids {DEVICE}; allow the container the device (--device {DEVICE})"
    return f"exec: cannot open {DEVICE}: {error.strerror}"


def cover(target: Path, source: Path | None) -> None:
    """Cover a file with another one, or a folder with an empty one where there is no source."""
    if source is None:
        _mount("tmpfs", target, "tmpfs", 0)
    else:
        _mount(str(source), target, None, _BIND)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _unshare(flags: int) -> None:
    if _libc().unshare(ctypes.c_int(flags)) != 0:
        raise _failure()


def _mount(source: str | None, target: Path, kind: str | None, flags: int) -> None:
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    if _libc().mount(*map(ctypes.c_char_p, arguments), ctypes.c_ulong(flags), None) != 0:
        raise _failure()


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
