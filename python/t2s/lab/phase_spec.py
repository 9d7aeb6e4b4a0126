"""The specification of one phase, as the compiled lab takes it: every value written out, and its own seed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2s.lab.scenario import PhaseName, Scenario, ScenarioFile, Settings

SOAK_SLICES = 1_000
"""Slices of a soak at most: a day in parts of a minute and a half."""


def seed_of(base: int, *parts: str | int) -> int:
    """Derive a seed below 2^48 from the run's seed and what it is for; the same parts give the same seed."""
    text = "/".join(str(part) for part in (base, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


def phase_spec(
    file: ScenarioFile, scenario: Scenario, phase: PhaseName, round_number: int, settings: Settings | None = None
) -> dict[str, Any]:
    """Return the specification of one phase as the compiled lab takes it.

    Precedence of settings: the `settings` argument, the phase's, the scenario's, the file's.
    """
    run, own = file.run, scenario.phase(phase)
    default_seconds = {
        "load": run.load_seconds,
        "capacity": run.capacity_seconds,
        "generator_selftest": run.generator_selftest_seconds,
    }[phase]
    soak = scenario.soak and phase == "load"
    if soak:
        default_seconds = run.soak_seconds
    merged = own.settings.over(scenario.settings.over(file.settings))
    if settings is not None:
        merged = settings.over(merged)
    components = own.components if own.components is not None else scenario.components
    spec: dict[str, Any] = {
        "scenario": scenario.name,
        "phase": phase,
        # The same packets in each variant of a round, so that pairs differ in one thing only.
        "seed": seed_of(run.seed, scenario.name, round_number),
        "seconds": own.seconds or default_seconds,
        "warmup_seconds": run.warmup_seconds if own.warmup_seconds is None else own.warmup_seconds,
        "workers": run.workers,
        "pin": run.pin,
        "settings": merged.model_dump(),
        "rate_pps": scenario.rate_pps or 0.0,
        "components": [component.model_dump() for component in components],
    }
    if soak:
        # One long phase is judged like rounds: its slices are as long as a round, or longer where there would be many.
        spec["slice_seconds"] = max(run.load_seconds, spec["seconds"] / SOAK_SLICES)
    if (scenario.driver or run.driver) == "pcap":
        spec["driver"] = "pcap"
        spec["path"] = scenario.capture
        spec["speed"] = scenario.speed if scenario.speed is not None else "recorded"
    return spec
