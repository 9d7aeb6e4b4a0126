"""t2s: a tun2socks with a Rust packet core, and the performance lab that measures that very core.

The classes and functions here are the compiled core's own. What needs heavy libraries (the lab, with polars) is
imported when it is first asked for, so that `import t2s` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from t2s._core import (
    Buffer,
    ConfigError,
    DecodeError,
    FlowMap,
    FragmentReassembler,
    Histogram,
    Lab,
    LabError,
    MemoryPool,
    PacketError,
    PoolExhausted,
    Replay,
    ReplayFlow,
    Request,
    Stack,
    StreamReassembler,
    T2sError,
    TableFull,
    TunnelError,
    __version__,
    checksum,
    checksum_kernels,
    fragment,
    open_tun,
    replay,
)

if TYPE_CHECKING:
    from t2s.errors import ScenarioError
    from t2s.lab.load_file import load_scenarios
    from t2s.lab.results import Results
    from t2s.lab.runner import run_scenarios
    from t2s.lab.scenario import Scenario, ScenarioFile
    from t2s.tunnel.api import Proxy, Tunnel, TunnelConfig

__all__ = [
    "Buffer",
    "ConfigError",
    "DecodeError",
    "FlowMap",
    "FragmentReassembler",
    "Histogram",
    "Lab",
    "LabError",
    "MemoryPool",
    "PacketError",
    "PoolExhausted",
    "Proxy",
    "Replay",
    "ReplayFlow",
    "Request",
    "Results",
    "Scenario",
    "ScenarioError",
    "ScenarioFile",
    "Stack",
    "StreamReassembler",
    "T2sError",
    "TableFull",
    "Tunnel",
    "TunnelConfig",
    "TunnelError",
    "__version__",
    "checksum",
    "checksum_kernels",
    "fragment",
    "load_scenarios",
    "open_tun",
    "replay",
    "run_scenarios",
]

# Name here -> module that has it: imported on first use.
_LAZY: dict[str, str] = {
    "Proxy": "t2s.tunnel.api",
    "Results": "t2s.lab.results",
    "Scenario": "t2s.lab.scenario",
    "ScenarioError": "t2s.errors",
    "ScenarioFile": "t2s.lab.scenario",
    "Tunnel": "t2s.tunnel.api",
    "TunnelConfig": "t2s.tunnel.api",
    "load_scenarios": "t2s.lab.load_file",
    "run_scenarios": "t2s.lab.runner",
}


def __getattr__(name: str) -> Any:
    """Import what was left out at start."""
    if name not in _LAZY:
        raise AttributeError(f"module 't2s' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name all of the surface, imported or not."""
    return sorted(__all__)
