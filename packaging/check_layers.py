"""Check what the compiler cannot say: which crate may use which, and which files may hold `unsafe` code.

Run by `make lint`. The first rule is the table below, the second the table "Unsafe code" of ARCHITECTURE.md.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAY_USE = {
    "t2s-core": set(),
    "t2s-sys": {"t2s-core"},
    "t2s-tunnel": {"t2s-core", "t2s-sys"},
    "t2s-lab": {"t2s-core", "t2s-sys"},
    "t2s-py": {"t2s-core", "t2s-sys", "t2s-tunnel", "t2s-lab"},
    "t2s-peer": {"t2s-sys"},
}
"""Crates of this workspace, and those of them that each may depend on."""


def crates() -> dict[str, set[str]]:
    """Return each crate of the workspace with those that it depends on, tests included."""
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    names = {package["name"] for package in metadata["packages"]}
    return {
        package["name"]: {used["name"] for used in package["dependencies"]} & names for package in metadata["packages"]
    }


def unsafe_files() -> set[str]:
    """Return the Rust files that allow `unsafe` code."""
    sources = [path for folder in ("rust", "rivals") for path in (ROOT / folder).rglob("*.rs")]
    allowed = re.compile(r"^#!?\[(allow|expect)\([^]]*unsafe_code", re.MULTILINE)
    return {str(path.relative_to(ROOT)) for path in sources if allowed.search(path.read_text())}


def named_files() -> list[str]:
    """Return the files and folders in the table of unsafe code, from the top of the checkout."""
    section = (ROOT / "ARCHITECTURE.md").read_text().split("## Unsafe code")[1]
    named = []
    for row in re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE):
        folder = ""
        for path in re.findall(r"`([^`]+)`", row):
            folder = path[: path.rindex("/") + 1] if "/" in path else folder
            named.append("rust/" + (path if "/" in path else folder + path))
    return named


def main() -> int:
    """Print what is wrong and return 1, or return 0."""
    wrong = []
    found = crates()
    if found.keys() != MAY_USE.keys():
        wrong.append(f"crates {sorted(found)}: MAY_USE of this script names {sorted(MAY_USE)}")
    for name, used in found.items():
        wrong += [f"{name} must not depend on {other}" for other in sorted(used - MAY_USE.get(name, set()))]
    named = named_files()
    files = unsafe_files()
    if not files or not named:
        wrong.append("found no file with unsafe code, or no table of them: is this script still right?")
    wrong += [
        f"{path}: unsafe code, but ARCHITECTURE.md does not name the file"
        for path in sorted(files)
        if not any(path.startswith(name) for name in named)
    ]
    wrong += [
        f"ARCHITECTURE.md names {name}, which allows no unsafe code"
        for name in named
        if not any(path.startswith(name) for path in files)
    ]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
