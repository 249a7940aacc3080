"""What every SVG picture needs: positions in percent and columns as plain floats."""

from __future__ import annotations

import math

import polars as pl
from markupsafe import Markup

Made = tuple[Markup, list[tuple[str, str]], list[str]]
"""A drawing: its body, its legend of (words, fill), and what it leaves out."""


def percent(part: float, whole: float) -> str:
    """Return part ÷ whole as an SVG length in percent."""
    return f"{100 * part / whole:.2f}".rstrip("0").rstrip(".") + "%" if whole else "0%"


def numbers(table: pl.DataFrame, column: str) -> list[float]:
    """Return a column as finite floats, NaN where it has no value."""
    values = table[column].cast(pl.Float64, strict=False).to_list()
    return [math.nan if value is None or not math.isfinite(value) else float(value) for value in values]
