"""A network namespace for a test that needs one, and processes in it; all of it is gone at the end."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

STARTED_S = 8
T2S = [sys.executable, "-c", "from t2s.cli import main; main()"]
NUMBERS = itertools.count()


def missing():
    """Return what keeps a test with a namespace and a device from running here."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux"
    if shutil.which("ip") is None:
        return "needs the command `ip` (iproute2)"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"needs /dev/net/tun: {error.strerror}"
    return None


def ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


class Room:
    """One namespace."""

    def __init__(self, name):
        self.name = name

    def ip(self, *arguments):
        return ip("-n", self.name, *arguments)

    def has_device(self, name):
        command = ["ip", "-n", self.name, "link", "show", name]
        return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0

    @contextmanager
    def process(self, command, log, **settings):
        """Run a command here; at the end it is gone, whatever happened."""
        with log.open("w", encoding="utf-8") as out:
            full = ["ip", "netns", "exec", self.name, *command]
            child = subprocess.Popen(full, stdout=out, stderr=out, **settings)
            try:
                yield child
            finally:
                child.terminate()
                try:
                    child.wait(5)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait(5)

    @staticmethod
    def until(condition, what, log):
        """Wait until something holds; fail with the log when it does not."""
        end = time.monotonic() + STARTED_S
        while time.monotonic() < end:
            if condition():
                return
            time.sleep(0.02)
        pytest.fail(f"{what}: {log.read_text(encoding='utf-8')}")


@contextmanager
def room():
    """Make a namespace whose loopback is up."""
    name = f"t2s-room-{os.getpid()}-{next(NUMBERS)}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False, timeout=10)
    if done.returncode:
        pytest.skip(f"cannot make network namespaces: {done.stderr.strip()}")
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield Room(name)
    finally:
        ip("netns", "delete", name)
