"""The load tool (`rivals/peer`): building it, serving with it, running it in the client's namespace."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rig.process import RigError, within

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rig.network import Network

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
SLACK_S = 60.0
"""A load may take so much longer than it was asked to, seconds: connects, drains, a slow tunnel."""


def build() -> Path:
    """Build the load tool and return it."""
    cargo = shutil.which("cargo") or str(Path.home() / ".cargo" / "bin" / "cargo")
    command = [cargo, "build", "--release", "--locked", "--quiet", "--package", "t2s-peer"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RigError("the load tool is built with `cargo`, which is not installed") from None
    if done.returncode:
        raise RigError(f"the load tool cannot be built:\n{done.stderr.strip()}")
    target = json.loads(
        subprocess.run(
            [cargo, "metadata", "--format-version", "1", "--no-deps", "--offline"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )["target_directory"]
    return Path(target) / "release" / "t2s-peer"


def serve(peer: Path, addresses: Iterable[str], port: int) -> list[str]:
    """Return the command line of the services."""
    return [str(peer), "serve", "--listen", ",".join(addresses), "--port", str(port)]


def load(network: Network, peer: Path, mode: str, arguments: list[str], seconds: float) -> dict[str, Any]:
    """Run a load and return what it says."""
    command = within(network.client, [str(peer), mode, *arguments])
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + SLACK_S)
    except subprocess.TimeoutExpired:
        raise RigError(f"{mode} did not end within {seconds + SLACK_S:.0f} s") from None
    if done.returncode:
        raise RigError(done.stderr.strip()[-300:] or f"{mode} ended with code {done.returncode}")
    return parsed(done.stdout)


def parsed(said: str) -> dict[str, Any]:
    """Return the one line of JSON that the load tool says."""
    try:
        result: dict[str, Any] = json.loads(said)
    except ValueError:
        raise RigError(f"the load tool said {said[:200]!r}") from None
    return result
