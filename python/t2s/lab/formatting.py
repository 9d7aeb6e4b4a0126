"""Numbers as people read them in tables: few digits, thousands apart, a dash for what is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2s.lab.statistics import Interval

UNKNOWN = "-"
"""Stands where nothing was measured or could be known."""


def count(value: float | None) -> str:
    """Write a count with thousands apart.

    >>> count(1234567.0)
    '1,234,567'
    """
    return UNKNOWN if value is None else f"{value:,.0f}"


def short(value: float | None, digits: int = 3) -> str:
    """Write a number with so many significant digits, large ones with thousands apart.

    >>> short(0.012345), short(98765.4), short(0.0)
    ('0.0123', '98,765', '0')
    """
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:,.{digits}g}"


def share(value: float | None, digits: int = 1) -> str:
    """Write a ratio as percent.

    >>> share(0.9876)
    '98.8 %'
    """
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %"


def size(value: float | None) -> str:
    """Write bytes in the unit that fits.

    >>> size(5 * 2**20)
    '5.0 MiB'
    """
    if value is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def time(nanos: float | None) -> str:
    """Write a time in the unit that fits.

    >>> time(1500), time(2.5e6)
    ('1.50 µs', '2.50 ms')
    """
    if nanos is None:
        return UNKNOWN
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if abs(nanos) >= scale:
            return f"{nanos / scale:.2f} {unit}"
    return f"{nanos:.3g} ns"


def ratio(value: Interval | None) -> str:
    """Write a ratio with its interval.

    >>> from t2s.lab.statistics import Interval
    >>> ratio(Interval(1.0, 1.25, 1.5, 5))
    '1.25 [1.00, 1.50]'
    """
    return UNKNOWN if value is None else f"{value.point:.2f} [{value.low:.2f}, {value.high:.2f}]"


def table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Lay out a Markdown table whose first `left` columns are text, the others numbers."""
    rule = ["---" if at < left else "---:" for at in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))
