"""The machine behind a result: what it and the build are, for reports and metadata, and what it does to a phase."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Return what a reader needs to compare two results: CPU, cores, memory, kernel, versions, load at start."""
    return {
        "t2s": package_version("t2s"),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_mib": _memory_mib(),
        "virtual_machine": "hypervisor" in _cpu_info().get("flags", "").split(),
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "governor": _line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clock_source": _line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "python": sys.version.split()[0],
        "polars": package_version("polars"),
    }


def stolen_ms() -> float:
    """Return the time that the hypervisor took from all CPUs since boot, milliseconds; 0 where nobody says."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        return 1000 * int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def runnable_threads() -> int:
    """Return how many other threads of the machine want a CPU right now; 0 where nobody says."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        return max(0, next(int(line.split()[1]) for line in lines if line.startswith("procs_running")) - 1)
    except (OSError, StopIteration, ValueError):
        return 0


def package_version(name: str) -> str | None:
    """Return an installed distribution's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_info() -> dict[str, str]:
    """Return the first CPU's fields of `/proc/cpuinfo`."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_model() -> str:
    return _cpu_info().get("model name") or platform.processor() or "unknown"


def _memory_mib() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    except (ValueError, OSError):
        return None


def _line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
