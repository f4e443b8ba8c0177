"""Numbers of docs/performance.md: three digits at most, with the unit that fits."""

from __future__ import annotations

import math

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def number(x: float) -> str:
    """Returns three digits at most, without an exponent, and "," between thousands."""
    if x == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(x)))
    rounded = round(x, digits)
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:.3g}"


def _unit(seconds: float) -> tuple[float, str]:
    return next((pair for pair in _UNITS if seconds >= 0.9995 * pair[0]), _UNITS[-1])


def time(seconds: float) -> str:
    """Returns a time with its unit, such as "14.1 s"."""
    size, unit = _unit(seconds)
    return f"{number(seconds / size)} {unit}"


def span(middle: float, lower: float, upper: float) -> str:
    """Returns a time with its quartiles in the same unit, such as "14.1 s (14-14.3)"."""
    size, unit = _unit(middle)
    return f"{number(middle / size)} {unit} ({number(lower / size)}-{number(upper / size)})"


def memory(size: float) -> str:
    """Returns bytes in MB, or in GB from 1000 MB on."""
    return f"{number(size / 1e9)} GB" if size >= 0.9995e9 else f"{number(size / 1e6)} MB"
