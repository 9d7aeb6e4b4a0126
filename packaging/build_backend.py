"""PEP 517 hooks: Maturin's own, behind a check that Rust is there.

Without it a missing compiler ends in a stack trace, or in a toolchain being fetched behind the user's back.
"""

from __future__ import annotations

from typing import Any

import maturin
from check_rust import check_rust

build_wheel = maturin.build_wheel
build_editable = maturin.build_editable
build_sdist = maturin.build_sdist
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_wheel


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Check for Rust, then require nothing more."""
    del config_settings
    check_rust()
    return []


get_requires_for_build_editable = get_requires_for_build_wheel
get_requires_for_build_sdist = get_requires_for_build_wheel
