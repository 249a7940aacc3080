"""Small figures that several questions need: shares, quantiles, means that still add up, and how grave a share is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.results import Severity

NEGLIGIBLE: Final = 0.01
"""A finding below this share of the step is info, whatever it is about."""


def share(part: int, whole: int) -> float | None:
    """Return part ÷ whole, both in the same unit; None when there is no whole to be a share of."""
    return part / whole if whole else None


def quantile_ns(values: pl.Series, q: float) -> int | None:
    """Return the q-quantile (0..1) of integer ns, None without values.

    Linear interpolation between the two nearest order statistics (Hyndman and Fan, type 7), rounded to whole ns.
    """
    found = values.cast(pl.Float64).quantile(q, interpolation="linear")
    return None if found is None else round(found)


def apportion(parts: Sequence[int], count: int) -> list[int]:
    """Divide each part by `count` into integers whose sum is that of the parts divided by `count`, rounded down.

    The ns lost by rounding each part down go to the parts with the largest remainders, the first of equals.
    """
    whole = [part // count for part in parts]
    missing = sum(parts) // count - sum(whole)
    order = sorted(range(len(parts)), key=lambda i: (-(parts[i] % count), i))
    for i in order[:missing]:
        whole[i] += 1
    return whole


def severity(part: float | None, warning: float, critical: float) -> Severity:
    """Return how grave a share of the step is: info below NEGLIGIBLE or below `warning`, and when it is not known."""
    if part is None or part < max(warning, NEGLIGIBLE):
        return "info"
    return "critical" if part >= critical else "warning"


def milliseconds(ns: float) -> str:
    """Return ns as text in ms with three significant digits, for sentences: `12.3 ms`."""
    value = ns / 1e6
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3  # noqa: PLR2004 - decades
    return f"{value:.{digits}f} ms"


def percent(value: float | None) -> str:
    """Return a share as text in percent, for sentences: `12.3 %`; `unknown` for None."""
    return "unknown" if value is None else f"{100 * value:.1f} %"
