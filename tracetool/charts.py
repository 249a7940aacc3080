"""Charts as SVG drawn here, as a PNG heat map, or as data for the timeline canvas.

Positions across are percentages, so that pictures follow the page's width while text keeps its size; colours are SVG
attributes, so that they survive a viewer that blocks styles. Bars are rows of a table: the label stands before its bar,
the number behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from markupsafe import Markup

from tracetool.heatmap import SHADES, data_uri, limits, shades
from tracetool.lanes import pack
from tracetool.palette import colours, fill, ink
from tracetool.units import ABSENT, Scale, cell, clean, figure, heading, scale, short, unit_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tracetool.results import Chart

MAX_ROWS: Final = 64
MAX_DOTS: Final = 2_000
MAX_POINTS: Final = 4_000
MAX_SLICES: Final = 3_000
PLOT_HEIGHT: Final = 260
LABEL_FROM_PERCENT: Final = 5.5
LETTER_PERCENT: Final = 0.78
"""Width of a letter in the large bar at the page's full width."""
DASHES: Final = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4", "4 1")
_ROW: Final = 16
_FEW_DECADES: Final = 2
"""Logarithmic axes with fewer whole decades also get ticks at 2 and 5."""
_NOTHING: Final = Markup()


@dataclass(frozen=True)
class Drawing:
    """A chart ready for the page: `kind` says which partial shows it."""

    kind: str
    title: str
    note: str
    body: Markup = _NOTHING
    legend: Sequence[tuple[str, str]] = ()
    """Pairs (words, SVG fill)."""
    data: dict[str, Any] = field(default_factory=dict)
    """Block of the timeline canvas."""
    notes: Sequence[str] = ()
    """What the picture leaves out."""
    longest: str = ""
    """Column by which the table beside the picture is cut."""


def draw(chart: Chart, table: pl.DataFrame | None, shortest_ns: int = 0) -> Drawing:
    """Draw one chart of one table; a chart that cannot be drawn becomes a sentence, never an empty picture."""
    problem = _problem(chart, table)
    if table is None or problem:
        return Drawing("text", clean(chart.title), "", notes=(problem,))
    if chart.kind == "timeline":
        packed = pack(chart, table, shortest_ns)
        legend = _legend(dict.fromkeys(str(name[2]) for name in packed.data["names"]))
        return Drawing(
            "timeline", clean(chart.title), clean(chart.note), legend=legend, data=packed.data, notes=packed.notes,
            longest=chart.y[0],
        )  # fmt: skip
    chart = replace(chart, unit=_unit(chart))
    body, legend, notes = _KINDS[chart.kind](chart, table)
    return Drawing(chart.kind, clean(chart.title), clean(chart.note), body, legend, notes=notes)


def _unit(chart: Chart) -> str:
    """Return the unit of y: a plain count is finer told by the column's own name."""
    return unit_of(chart.y[0]) or chart.unit if chart.unit == "count" else chart.unit


def _problem(chart: Chart, table: pl.DataFrame | None) -> str:
    if table is None:
        return f"There is no table {clean(chart.table)} to draw."
    text = str(chart.options.get("text", ""))
    named = [chart.label, chart.x, *chart.y, chart.series, chart.size, text]
    missing = [column for column in named if column and column not in table.columns]
    if missing:
        return f"Table {clean(chart.table)} has no column {clean(', '.join(missing))} to draw."
    needed = {"heat": ("label", "x"), "gantt": ("label", "x"), "timeline": ("label", "x"), "scatter": ("x",),
              "line": ("x",), "stack": ("label",), "bars": ("label",), "waterfall": ("label",)}  # fmt: skip
    unsaid = [part for part in needed.get(chart.kind, ()) if not getattr(chart, part)]
    if unsaid or len(chart.y) < (3 if chart.kind == "bullet" else 1):
        return f"The chart does not say its {', '.join([*unsaid, 'y'])}."
    return "" if table.height else "Nothing to draw: the table has no row."


Made = tuple[Markup, list[tuple[str, str]], list[str]]


def _legend(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(heading(name), fill(name, colour)) for name, colour in colours(names).items()]


def _capped(chart: Chart, table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    most = int(chart.options.get("max_rows", MAX_ROWS))
    if table.height <= most:
        return table, []
    return table.head(most), [f"{most} of {table.height} rows drawn."]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}".rstrip("0").rstrip(".") + "%" if whole else "0%"


def _numbers(table: pl.DataFrame, column: str) -> list[float]:
    """Return a column as finite floats, NaN where it has no value."""
    values = table[column].cast(pl.Float64, strict=False).to_list()
    return [math.nan if value is None or not math.isfinite(value) else float(value) for value in values]


def _rect(x: float, width: float, whole: float, paint: str, title: str, *, height: int = _ROW, y: int = 0) -> Markup:
    top = Markup(' y="{}"').format(y) if y else ""
    return Markup('<rect x="{}"{} width="{}" height="{}" fill="{}"><title>{}</title></rect>').format(
        _percent(x, whole), top, _percent(width, whole), height, paint, title
    )


def _svg(body: Markup, height: int, label: str = "") -> Markup:
    if label:
        return Markup('<svg width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(height, label, body)
    return Markup('<svg width="100%" height="{}" aria-hidden="true">{}</svg>').format(height, body)


def _bar_table(rows: Iterable[tuple[str, Markup, str]], title: str) -> Markup:
    """Return rows of (label, svg, number) as a table that still reads as one when no style applies."""
    lines = Markup("").join(
        Markup('<tr><th scope="row" title="{}">{}</th><td width="100%">{}</td><td class="n">{}</td></tr>').format(
            clean(label), short(label, 36), bar, number
        )
        for label, bar, number in rows
    )
    return Markup('<table class="bars" width="100%" aria-label="{}">{}</table>').format(title, lines)


def _labels(chart: Chart, table: pl.DataFrame) -> list[str]:
    prefix = f"{chart.label} " if table[chart.label].dtype.is_integer() else ""
    return [f"{prefix}{cell(value)}" for value in table[chart.label].to_list()]


def _stack(chart: Chart, table: pl.DataFrame) -> Made:
    tints = colours(chart.y)
    if table.height == 1:
        return _hero(chart, table, tints), [], []
    shown, notes = _capped(chart, table)
    columns = {name: _numbers(shown, name) for name in chart.y}
    totals = [sum(v for v in row if not math.isnan(v)) for row in zip(*columns.values(), strict=True)]
    widest = max(totals, default=0.0)
    rows = []
    for number, label in enumerate(_labels(chart, shown)):
        at, parts = 0.0, []
        for name, values in columns.items():
            size = values[number]
            if size > 0:
                said = f"{heading(name)} {figure(size, chart.unit)}"
                parts.append(_rect(at, size, widest, fill(name, tints[name]), said))
                at += size
        rows.append((label, _svg(Markup("").join(parts), _ROW), figure(totals[number], chart.unit)))
    return _bar_table(rows, clean(chart.title)), _legend(chart.y), notes


def _hero(chart: Chart, table: pl.DataFrame, tints: dict[str, str]) -> Markup:
    """Return the one large bar with its parts named in it where they fit, and all of them in a table below."""
    sizes = {name: _numbers(table, name)[0] for name in chart.y}
    whole = sum(size for size in sizes.values() if size > 0)
    at, bar, rows = 0.0, [], []
    for name, size in sizes.items():
        paint, words = fill(name, tints[name]), heading(name)
        share = size / whole if whole and size > 0 else 0.0
        rows.append(
            Markup(
                '<tr><th scope="row"><svg width="12" height="12" aria-hidden="true"><rect width="12" height="12" '
                'rx="2" fill="{}"/></svg> {}</th><td class="n">{}</td><td class="n">{}</td></tr>'
            ).format(
                paint, words,
                ABSENT if math.isnan(size) else figure(share, "share"),
                ABSENT if math.isnan(size) else figure(size, chart.unit),
            )
        )  # fmt: skip
        if share <= 0:
            continue
        said = f"{words} {figure(share, 'share')}, {figure(size, chart.unit)}"
        label = Markup("")
        if 100 * share >= LABEL_FROM_PERCENT:
            fits = 100 * share >= 1.5 + LETTER_PERCENT * len(words)
            label = Markup(
                '<text x="8" y="19" fill="{0}" font-size="13" font-weight="600">{1}</text>'
                '<text x="8" y="37" fill="{0}" font-size="13">{2}</text>'
            ).format(ink(tints[name]), words if fits else "", figure(share, "share"))
        bar.append(
            Markup(
                '<svg x="{}" width="{}" height="48"><rect width="100%" height="48" fill="{}"><title>{}</title></rect>'
                "{}</svg>"
            ).format(_percent(at, whole), _percent(share, 1), paint, said, label)
        )
        at += size
    drawn = _svg(Markup("").join(bar), 48, clean(chart.title))
    return Markup('<div class="hero">{}</div><table class="parts">{}</table>').format(drawn, Markup("").join(rows))


def _bars(chart: Chart, table: pl.DataFrame) -> Made:
    shown, notes = _capped(chart, table)
    tints = colours(chart.y[:1])
    paint = tints[chart.y[0]]
    values = _numbers(shown, chart.y[0])
    wholes = _numbers(shown, chart.y[1]) if len(chart.y) > 1 else []
    widest = max((v for v in [*values, *wholes] if not math.isnan(v)), default=0.0)
    rows = []
    for number, label in enumerate(_labels(chart, shown)):
        value, parts = values[number], []
        said = ABSENT if math.isnan(value) else figure(value, chart.unit)
        if wholes and wholes[number] > 0:
            of = f"of {figure(wholes[number], chart.unit)}"
            parts.append(
                Markup('<rect width="{}" height="{}" fill="{}" fill-opacity="0.3"><title>{}</title></rect>').format(
                    _percent(wholes[number], widest), _ROW, paint, of
                )
            )
            said = f"{said} {of}"
        if value > 0:
            parts.append(_rect(0, value, widest, paint, said))
        rows.append((label, _svg(Markup("").join(parts), _ROW), said))
    legend = [(f"{heading(chart.y[0])}; pale: {heading(chart.y[1])}", paint)] if wholes else []
    return _bar_table(rows, clean(chart.title)), legend, notes


def _waterfall(chart: Chart, table: pl.DataFrame) -> Made:
    shown, notes = _capped(chart, table)
    values = [0.0 if math.isnan(v) else v for v in _numbers(shown, chart.y[0])]
    edges = np.concatenate([[0.0], np.cumsum(values[:-1])])
    low, high = min(0.0, float(edges.min()), values[-1]), max(0.0, float(edges.max()), values[-1])
    up, down, total = colours(("up", "down", "total")).values()
    rows = []
    for number, label in enumerate(_labels(chart, shown)):
        last = number == len(values) - 1
        start = 0.0 if last else float(edges[number])
        end = values[-1] if last else float(edges[number + 1])
        paint = total if last else up if end >= start else down
        bar = _rect(min(start, end) - low, abs(end - start), high - low, paint, figure(values[number], chart.unit))
        rows.append((label, _svg(bar, _ROW), figure(values[number], chart.unit)))
    return _bar_table(rows, clean(chart.title)), [], notes


def _bullet(chart: Chart, table: pl.DataFrame) -> Made:
    value, low, high = (_numbers(table, column)[0] for column in chart.y[:3])
    top = max((v for v in (value, high) if not math.isnan(v)), default=0.0) * 1.25
    parts = [Markup('<rect y="8" width="100%" height="12" fill="#808080" fill-opacity="0.2"/>')]
    if not (math.isnan(low) or math.isnan(high)):
        ends = f"{figure(low, chart.unit)} to {figure(high, chart.unit)}"
        parts.append(
            Markup('<rect x="{}" y="2" width="{}" height="24" fill="#009988" fill-opacity="0.4"><title>{}</title>'
                   "</rect>").format(_percent(low, top), _percent(high - low, top), ends)
        )  # fmt: skip
    if not math.isnan(value):
        parts.append(_rect(0, value, top, "#3366aa", figure(value, chart.unit), height=12, y=8))
    said = f"{clean(chart.title)}: {figure(value, chart.unit)}, range {figure(low, chart.unit)} to "
    said += figure(high, chart.unit)
    words = Markup('<p class="note">{}</p>').format(said)
    return _svg(Markup("").join(parts), 28, said) + words, [], []


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
                _percent(share, 1), PLOT_HEIGHT + 18, anchor, _tick(tick, wording, log=x.log)
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


def _scatter(chart: Chart, table: pl.DataFrame) -> Made:
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
    xs, ys = _numbers(usable, chart.x), _numbers(usable, chart.y[0])
    sizes = _numbers(usable, chart.size) if chart.size else [1.0] * len(xs)
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
            .format(_percent(x.at(a), 1), PLOT_HEIGHT * (1 - y.at(b)), radius, tints[key],
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
                _percent(x.at(x1), 1), PLOT_HEIGHT * (1 - y.at(y1)), _percent(x.at(x2), 1),
                PLOT_HEIGHT * (1 - y.at(y2)), "100%" if flat else _percent(x.at(x1) * 0.5 + x.at(x2) * 0.5, 1),
                PLOT_HEIGHT * (1 - (y.at(y1) + y.at(y2)) / 2) - 8, "end", words,
            )
        )  # fmt: skip
    return Markup("").join(made)


def _line(chart: Chart, table: pl.DataFrame) -> Made:
    shown = table.head(MAX_POINTS)
    notes = [f"{MAX_POINTS} of {table.height} points drawn."] if table.height > MAX_POINTS else []
    lines: dict[str, tuple[list[float], list[float]]] = {}
    if chart.series:
        for (key,), part in shown.group_by([chart.series], maintain_order=True):
            lines[cell(key)] = (_numbers(part, chart.x), _numbers(part, chart.y[0]))
    else:
        lines = {name: (_numbers(shown, chart.x), _numbers(shown, name)) for name in chart.y}
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


def _gantt(chart: Chart, table: pl.DataFrame) -> Made:
    length = chart.y[0]
    usable = table.filter(pl.col(chart.x).is_not_null() & pl.col(length).is_not_null())
    notes = []
    if usable.height > MAX_SLICES:
        notes.append(f"The {MAX_SLICES} longest of {usable.height} slices drawn.")
        usable = usable.filter(pl.col(length).rank("ordinal", descending=True) <= MAX_SLICES)
    if not usable.height:
        return Markup("<p>No slice has a start and a duration.</p>"), [], notes
    first = min(_numbers(usable, chart.x))
    ends = [start + dur for start, dur in zip(_numbers(usable, chart.x), _numbers(usable, length), strict=True)]
    span = max(ends) - first
    keys = sorted({cell(v) for v in usable[chart.series].to_list()}) if chart.series else [""]
    tints = colours(keys)
    text = str(chart.options.get("text", ""))
    lanes = list(usable.group_by([chart.label], maintain_order=True))
    most = int(chart.options.get("max_rows", MAX_ROWS))
    if len(lanes) > most:
        notes.append(f"{most} of {len(lanes)} rows drawn.")
    rows = []
    for (_lane,), part in lanes[:most]:
        label = _labels(chart, part.head(1))[0]
        starts, durs = _numbers(part, chart.x), _numbers(part, length)
        series = [cell(v) for v in part[chart.series].to_list()] if chart.series else [""] * len(starts)
        texts = [cell(v) for v in part[text].to_list()] if text else [""] * len(starts)
        bars = []
        for start, dur, key, words in zip(starts, durs, series, texts, strict=True):
            said = " ".join(word for word in (key, words, figure(dur, chart.unit)) if word)
            bars.append(_rect(start - first, dur, span, fill(key, tints[key]), said, height=18))
            if words and span and dur / span * 100 >= 1.2 * len(words):
                bars.append(
                    Markup('<text x="{}" y="13" text-anchor="middle" font-size="11" fill="{}">{}</text>').format(
                        _percent(start - first + dur / 2, span), ink(tints[key]), words
                    )
                )
        rows.append((label, _svg(Markup("").join(bars), 18), ""))
    ends_text = Markup(
        '<text x="0" y="12" font-size="12" fill="currentColor">0</text>'
        '<text x="100%" y="12" font-size="12" text-anchor="end" fill="currentColor">{}</text>'
    ).format(figure(span, chart.unit))
    rows.append(("", _svg(ends_text, 16), ""))
    legend = [(heading(key), fill(key, tints[key])) for key in keys if key]
    return _bar_table(rows, clean(chart.title)), legend, notes


def _heat(chart: Chart, table: pl.DataFrame) -> Made:
    value = chart.y[0]
    table = table.drop_nulls([chart.label, chart.x])
    if not table.height:
        return Markup("<p>No row has both a row and a column.</p>"), [], []
    labels = table[chart.label].unique().sort().to_list()
    columns = table[chart.x].unique().sort().to_list()
    row_of, column_of = {v: i for i, v in enumerate(labels)}, {v: i for i, v in enumerate(columns)}
    cells = np.full((len(labels), len(columns)), np.nan)
    rows = table[chart.label].replace_strict(row_of, return_dtype=pl.Int64).to_numpy()
    across = table[chart.x].replace_strict(column_of, return_dtype=pl.Int64).to_numpy()
    cells[rows, across] = np.array(_numbers(table, value))
    edges = limits(cells)
    if not edges:
        return Markup("<p>Nothing stands out: no value lies more than 2 % above the median.</p>"), [], []
    height = max(48, min(420, 12 * len(labels)))
    notes = ["Grey: no value."] if np.isnan(cells).any() else []
    legend = [
        (f"{figure(low, chart.unit)} to {figure(high, chart.unit)}", shade)
        for shade, low, high in zip(SHADES, edges[:-1], edges[1:], strict=False)
    ]
    said = f"{clean(chart.title)}. {clean(chart.note)} The table beside it holds the numbers."
    picture = Markup(
        '<table class="heat" role="presentation" width="100%"><tr><td class="y">{0} {1}<br>to<br>{2}</td>'
        '<td width="100%"><img src="{3}" alt="{4}" width="100%" height="{5}"></td></tr>'
        '<tr><td></td><td class="x"><span>{6} {7}</span> <span>to {8}</span></td></tr></table>'
    ).format(
        heading(chart.label), cell(labels[0]), cell(labels[-1]), data_uri(shades(cells)), said, height,
        heading(chart.x), cell(columns[0]), cell(columns[-1]),
    )  # fmt: skip
    return picture, legend, notes


_KINDS: Final[dict[str, Callable[[Chart, pl.DataFrame], Made]]] = {
    "stack": _stack,
    "bars": _bars,
    "heat": _heat,
    "scatter": _scatter,
    "line": _line,
    "gantt": _gantt,
    "waterfall": _waterfall,
    "bullet": _bullet,
}
