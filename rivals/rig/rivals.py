"""The other tun2socks programs: fetched from their registries and built when first wanted, kept in a cache, never ours.

The cache is `$XDG_CACHE_HOME/t2s/rivals` (`~/.cache/t2s/rivals`); delete it to fetch newer versions. What cannot be had
leaves a sentence that says why, in the cache too, so that a run does not try again and again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

BUILD_S = 1_800
"""A rival gets so long to be fetched and built, seconds."""


@dataclass(frozen=True)
class Rival:
    """How to get a program."""

    name: str
    program: str
    source: str
    tool: str

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return cache() / self.name

    @property
    def path(self) -> Path:
        """The program."""
        return self.folder / "bin" / self.program

    def command(self) -> list[str]:
        """Return what fetches and builds it, run in its folder."""
        if self.tool == "cargo":
            return ["cargo", "install", "--quiet", "--locked", "--root", str(self.folder), self.source]
        module, version = self.source.split("@")
        # What its own build sets, so that it can say what it is.
        stamp = ["-ldflags", f"-X {module}/internal/version.Version={version}"]
        return ["go", "build", "-mod=mod", *stamp, "-o", str(self.path), module]

    def prepare(self) -> None:
        """Write what the command wants to find in its folder.

        `go install` asks for the list of a module's versions even when it is told one, and some proxies serve a
        version and no list; a module that requires just that version needs none.
        """
        (self.folder / "bin").mkdir(parents=True, exist_ok=True)
        if self.tool == "go":
            requires = self.source.replace("@", " ")
            (self.folder / "go.mod").write_text(f"module rival\n\ngo 1.24\n\nrequire {requires}\n", encoding="utf-8")


TUN2PROXY = Rival("tun2proxy", "tun2proxy-bin", "tun2proxy", "cargo")
TUN2SOCKS = Rival("tun2socks", "tun2socks", "github.com/xjasonlyu/tun2socks/v2@v2.6.0", "go")


def cache() -> Path:
    """Return the folder of the rivals."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "t2s" / "rivals"


def fetch(rival: Rival) -> str | None:
    """Make sure that a rival is in the cache; return why it is not."""
    if rival.path.exists():
        return None
    why = rival.folder / "why-not"
    if why.exists():
        return why.read_text(encoding="utf-8")
    path = f"{os.environ.get('PATH', '')}:{Path.home() / '.cargo' / 'bin'}:/usr/local/go/bin"
    tool = shutil.which(rival.tool, path=path)
    if tool is None:
        return f"`{rival.tool}`, which builds it, is not installed"
    rival.prepare()
    command = rival.command()
    # The settings of our own build (lint levels, a pinned target folder) are not the rival's.
    environment = {key: value for key, value in os.environ.items() if key not in {"RUSTFLAGS", "CARGO_TARGET_DIR"}}
    try:
        done = subprocess.run(
            [tool, *command[1:]],
            env={**environment, "CGO_ENABLED": "0", "PATH": path},
            cwd=rival.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_S,
        )
    except subprocess.TimeoutExpired:
        return f"not built within {BUILD_S} s"
    if rival.path.exists():
        return None
    lines = done.stderr.strip().splitlines()
    reason = f"`{' '.join(command[:2])} {rival.source}`: {lines[-1].strip() if lines else 'it made no program'}"
    why.write_text(reason, encoding="utf-8")
    return reason


def version(path: Path) -> str:
    """Return what a program says about its version."""
    for flag in ("--version", "-version"):
        said = subprocess.run([str(path), flag], capture_output=True, text=True, check=False, timeout=10)
        if said.returncode == 0 and said.stdout.strip():
            return said.stdout.strip().splitlines()[0]
    return "unknown"
