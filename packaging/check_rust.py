"""Say in one sentence that Rust is missing or too old, before anything else fails less clearly."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path


def oldest() -> tuple[int, int]:
    """Return the oldest Rust that the workspace builds with, as it states itself."""
    text = (Path(__file__).resolve().parent.parent / "Cargo.toml").read_text(encoding="utf-8")
    found = re.search(r'^rust-version\s*=\s*"(\d+)\.(\d+)', text, re.MULTILINE)
    if found is None:
        raise SystemExit("Cargo.toml states no rust-version")
    return int(found[1]), int(found[2])


def check_rust() -> None:
    """End the process with one sentence unless a Rust that is new enough is on PATH."""
    major, minor = oldest()
    advice = f"t2s is built with stable Rust {major}.{minor} or newer: install it (https://rustup.rs), then try again"
    cargo, rustc = shutil.which("cargo"), shutil.which("rustc")
    if cargo is None or rustc is None:
        raise SystemExit(f"{advice} (no `{'rustc' if cargo else 'cargo'}` on PATH).")
    said = subprocess.run([rustc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"rustc (\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < (major, minor):
        raise SystemExit(f"{advice} (this is `{said.strip() or rustc}`).")


if __name__ == "__main__":
    check_rust()
