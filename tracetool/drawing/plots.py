"""Plots with two axes: dots under roofs, and lines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import polars as pl
from markupsafe import Markup

from tracetool.drawing.palette import colours
from tracetool.drawing.svg import Made, numbers, percent
from tracetool.units import Scale, cell, clean, figure, heading, scale, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracetool.results import Chart

_FEW_DECADES: Final = 2
"""Logarithmic axes with fewer whole decades also get ticks at 2 and 5."""
MAX_DOTS: Final = 2_000
MAX_POINTS: Final = 4_000
PLOT_HEIGHT: Final = 260
DASHES: Final = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4", "4 1")


def _ticks(low: float, high: float, *, log: bool, most: int = 6) -> list[float]:
    """Return round numbers between two ends: decades on a logarithmic axis, else steps of 1, 2 or 5."""
    if log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        if last - first < _FEW_DECADES:
            fine = [10.0**power * factor for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
            return [tick for tick in fine if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        every = max(1, math.ceil((last - first + 1) / most))
        return [10.0**power for power in range(first, last + 1, every)]
    if high <= low:
        return [low]
    rough = (high - low) / (most - 1)
    base = 10 ** math.floor(math.log10(rough))
    step = next(base * factor for factor in (1, 2, 5, 10) if base * factor >= rough * (1 - 1e-9))
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    def at(self, value: float) -> float:
        """Return where a value lies, 0..1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _rounded(value: float, *, down: bool) -> float:
    """Return the nearest of 1, 2, 5 times a power of ten below or above a positive value."""
    base = 10.0 ** math.floor(math.log10(value))
    steps = [base * factor for factor in (1, 2, 5, 10)]
    return max(s for s in steps if s <= value * (1 + 1e-9)) if down else min(s for s in steps if s >= value)


def _axis(values: Sequence[float], *, log: bool, zero: bool = False) -> _Axis:
    low, high = min(values), max(values)
    if log:
        low, high = _rounded(low / 1.15, down=True), _rounded(high * 1.15, down=False)
        return _Axis(low, high if high > low else low * 10, log=True)
    low = min(0.0, low) if zero else low
    pad = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return _Axis(low if zero and low == 0 else low - pad, high + pad, log=False)


def _tick_scale(ticks: Sequence[float], unit: str) -> Scale:
    chosen = scale(ticks, unit)
    finest = min((abs(t / chosen.divisor) for t in ticks if t), default=1.0)
    step = min((abs(b - a) / chosen.divisor for a, b in pairwise(ticks)), default=finest)
    digits = max(0, min(6, -math.floor(math.log10(min(step, finest) + 1e-12) + 1e-9)))
    return Scale(chosen.divisor, digits, chosen.unit)


def _tick(value: float, wording: Scale, *, log: bool) -> str:
    """Return a tick's label: decades as they are, else with the decimals of the whole axis."""
    return f"{value / wording.divisor:.12g}" if log else wording.number(value)


def _wording(chart: Chart) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the units and the words of both axes."""
    return (str(chart.options.get("x_unit", "")), chart.unit), (heading(chart.x), heading(chart.y[0]))


def _frame(x: _Axis, y: _Axis, units: tuple[str, str], words: tuple[str, str]) -> Markup:
    """Return grid lines and tick labels; labels of y stand left of the plot, in the gutter."""
    parts = []
    ticks = _ticks(y.low, y.high, log=y.log)
    wording = _tick_scale(ticks, units[1])
    for tick in ticks:
        at = PLOT_HEIGHT * (1 - y.at(tick))
        parts.append(
            Markup(
                '<line x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}" stroke="currentColor" stroke-opacity="0.15"/>'
                '<text x="-8" y="{1:.1f}" text-anchor="end" font-size="12" fill="currentColor">{2}</text>'
            ).format(at, at + 4, _tick(tick, wording, log=y.log))
        )
    parts.append(
        Markup('<text x="-56" y="-10" font-size="12" fill="currentColor">{}</text>').format(
            f"{words[1]}, {wording.unit}" if wording.unit else words[1]
        )
    )
    ticks = _ticks(x.low, x.high, log=x.log)
    wording = _tick_scale(ticks, units[0])
    for tick in ticks:
        share = x.at(tick)
        anchor = "start" if share < 0.03 else "end" if share > 0.97 else "middle"  # noqa: PLR2004 - the plot's ends
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="{}" font-size="12" fill="currentColor">{}</text>').format(
                percent(share, 1), PLOT_HEIGHT + 18, anchor, _tick(tick, wording, log=x.log)
            )
        )
    parts.append(
        Markup('<text x="100%" y="{}" text-anchor="end" font-size="12" fill="currentColor">{}</text>').format(
            PLOT_HEIGHT + 36, f"{words[0]}, {wording.unit}" if wording.unit else words[0]
        )
    )
    return Markup("").join(parts)


def _plot(body: Markup, label: str) -> Markup:
    """Return a plot beside a gutter that keeps the labels of y, with or without styles."""
    return Markup(
        '<table class="plot" role="presentation" width="100%"><tr><td width="60"></td><td>'
        '<svg width="100%" height="{}" overflow="visible" role="img" aria-label="{}"><svg y="28" width="100%" '
        'height="{}" overflow="visible">{}</svg></svg></td></tr></table>'
    ).format(PLOT_HEIGHT + 72, label, PLOT_HEIGHT, body)


def scatter(chart: Chart, table: pl.DataFrame) -> Made:
    """Draw dots, their area the size column, under the roofs the options name."""
    log = bool(chart.options.get("log", False))
    usable = table.filter(pl.col(chart.x).is_not_null() & pl.col(chart.y[0]).is_not_null())
    if log:
        usable = usable.filter((pl.col(chart.x) > 0) & (pl.col(chart.y[0]) > 0))
    notes = [] if usable.height == table.height else [f"{table.height - usable.height} rows without a place not drawn."]
    if chart.size:
        usable = usable.sort(chart.size, descending=True, nulls_last=True, maintain_order=True)
    if usable.height > MAX_DOTS:
        notes.append(f"{MAX_DOTS} of {usable.height} dots drawn.")
        usable = usable.head(MAX_DOTS)
    if not usable.height:
        return Markup("<p>No row has both coordinates.</p>"), [], notes
    xs, ys = numbers(usable, chart.x), numbers(usable, chart.y[0])
    sizes = numbers(usable, chart.size) if chart.size else [1.0] * len(xs)
    largest = max((v for v in sizes if not math.isnan(v)), default=1.0) or 1.0
    keys = [cell(v) for v in usable[chart.series].to_list()] if chart.series else [""] * len(xs)
    tints = colours(sorted(set(keys)))
    names = [short(cell(v)) for v in usable[chart.label].to_list()] if chart.label else keys
    roofs = {key: float(value) for key, value in chart.options.items() if key in {"roof_tflops", "roof_gbs"}}
    x = _axis(xs, log=log)
    y = _axis([*ys, *([roofs["roof_tflops"]] if "roof_tflops" in roofs else [])], log=log)
    parts = [_frame(x, y, *_wording(chart))]
    for a, b, size, key, name in zip(xs, ys, sizes, keys, names, strict=True):
        radius = 3 + 11 * math.sqrt(max(0.0, 0.0 if math.isnan(size) else size) / largest)
        parts.append(
            Markup('<circle cx="{}" cy="{:.1f}" r="{:.1f}" fill="{}" fill-opacity="0.75"><title>{}</title></circle>')
            .format(percent(x.at(a), 1), PLOT_HEIGHT * (1 - y.at(b)), radius, tints[key],
                    f"{name}: {figure(b, chart.unit)} at {heading(chart.x)} {figure(a, 'text')}")
        )  # fmt: skip
    parts.append(_roofs(x, y, roofs))
    legend = [(name, colour) for name, colour in tints.items() if name]
    return _plot(Markup("").join(parts), f"{clean(chart.title)}. {clean(chart.note)}"), legend, notes


def _roofs(x: _Axis, y: _Axis, roofs: dict[str, float]) -> Markup:
    """Return the roofline: memory bandwidth (GB/s) rising to the peak (TFLOP/s)."""
    peak, bandwidth = roofs.get("roof_tflops"), roofs.get("roof_gbs")
    lines = []
    knee = 1000 * peak / bandwidth if peak and bandwidth else x.low
    if bandwidth:
        start, end = max(x.low, 1000 * y.low / bandwidth), min(x.high, knee if peak else 1000 * y.high / bandwidth)
        if start < end:
            lines.append((start, bandwidth * start / 1000, end, bandwidth * end / 1000, f"{bandwidth:g} GB/s"))
    if peak and max(knee, x.low) < x.high:
        lines.append((max(knee, x.low), peak, x.high, peak, f"{peak:g} TFLOP/s"))
    made = []
    for x1, y1, x2, y2, words in lines:
        flat = y1 == y2
        made.append(
            Markup(
                '<line x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}" stroke="currentColor" stroke-width="1.5"/>'
                '<text x="{}" y="{:.1f}" text-anchor="{}" font-size="12" fill="currentColor">{}</text>'
            ).format(
                percent(x.at(x1), 1), PLOT_HEIGHT * (1 - y.at(y1)), percent(x.at(x2), 1),
                PLOT_HEIGHT * (1 - y.at(y2)), "100%" if flat else percent(x.at(x1) * 0.5 + x.at(x2) * 0.5, 1),
                PLOT_HEIGHT * (1 - (y.at(y1) + y.at(y2)) / 2) - 8, "end", words,
            )
        )  # fmt: skip
    return Markup("").join(made)


def line(chart: Chart, table: pl.DataFrame) -> Made:
    """Draw a line for each column of y or each value of the series, broken where a value is absent."""
    shown = table.head(MAX_POINTS)
    notes = [f"{MAX_POINTS} of {table.height} points drawn."] if table.height > MAX_POINTS else []
    lines: dict[str, tuple[list[float], list[float]]] = {}
    if chart.series:
        for (key,), part in shown.group_by([chart.series], maintain_order=True):
            lines[cell(key)] = (numbers(part, chart.x), numbers(part, chart.y[0]))
    else:
        lines = {name: (numbers(shown, chart.x), numbers(shown, name)) for name in chart.y}
    xs = [v for points, _ in lines.values() for v in points if not math.isnan(v)]
    ys = [v for _, points in lines.values() for v in points if not math.isnan(v)]
    if not xs or not ys:
        return Markup("<p>No row has both coordinates.</p>"), [], notes
    log = bool(chart.options.get("log", False)) and min(ys) > 0
    x, y = _axis(xs, log=False), _axis(ys, log=log, zero=True)
    tints = colours(lines)
    parts = []
    for number, (name, (a, b)) in enumerate(lines.items()):
        runs: list[list[str]] = [[]]
        for u, v in zip(a, b, strict=True):
            if math.isnan(u) or math.isnan(v):
                runs.append([])
            else:
                runs[-1].append(f"{1000 * x.at(u):.1f},{PLOT_HEIGHT * (1 - y.at(v)):.1f}")
        dash = DASHES[number % len(DASHES)]
        parts += [
            Markup(
                '<polyline points="{}" fill="none" stroke="{}" stroke-width="2"{} stroke-linejoin="round" '
                'vector-effect="non-scaling-stroke"><title>{}</title></polyline>'
            ).format(
                " ".join(points),
                tints[name],
                Markup(' stroke-dasharray="{}"').format(dash) if dash else "",
                heading(name),
            )
            for points in runs
            if points
        ]
    frame = _frame(x, y, *_wording(chart))
    inner = Markup('<svg width="100%" height="{0}" viewBox="0 0 1000 {0}" preserveAspectRatio="none">{1}</svg>').format(
        PLOT_HEIGHT, Markup("").join(parts)
    )
    return _plot(frame + inner, f"{clean(chart.title)}. {clean(chart.note)}"), list(_named(tints)), notes


def _named(tints: dict[str, str]) -> Iterable[tuple[str, str]]:
    return ((heading(name), colour) for name, colour in tints.items())
