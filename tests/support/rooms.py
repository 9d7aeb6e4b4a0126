"""A network namespace for a test that needs one, and processes in it; all of it is gone at the end."""

import itertools
import os
import subprocess
import time
from contextlib import contextmanager

import pytest

import netns
from netns import ip

STARTED_S = 8
NUMBERS = itertools.count()


class Room:
    """One namespace."""

    def __init__(self, name):
        self.name = name

    def ip(self, *arguments):
        return ip("-n", self.name, *arguments)

    def has_device(self, name):
        command = ["ip", "-n", self.name, "link", "show", name]
        return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0

    def process(self, command, log, **settings):
        return netns.process(self.name, command, log, **settings)

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
