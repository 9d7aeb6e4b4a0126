"""Settings of all tests: hypothesis runs the same examples in each run, and prints how to repeat a failure."""

import pytest
from hypothesis import settings

settings.register_profile("t2s", deadline=None, derandomize=True, print_blob=True, max_examples=200)
settings.load_profile("t2s")


@pytest.fixture(autouse=True)
def steal(monkeypatch):
    """Keep the real hypervisor out of verdicts: a phase loses `steal["ms"]` milliseconds, 0 unless a test says more."""
    taken = {"ms": 0.0, "sum": 0.0}

    def stolen_ms():
        taken["sum"] += taken["ms"] / 2  # read before and after each phase
        return taken["sum"]

    monkeypatch.setattr("t2s.lab.runner.stolen_ms", stolen_ms)
    return taken
