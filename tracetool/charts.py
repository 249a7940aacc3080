"""Charts as SVG drawn here, as a PNG heat map, or as data for the timeline canvas.

Positions across are percentages, so that pictures follow the page's width while text keeps its size; colours are SVG
attributes, so that they survive a viewer that blocks styles. Bars are rows of a table: the label stands before its bar,
the number behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from markupsafe import Markup

from tracetool.drawing.heatmap import SHADES, data_uri, limits, shades
from tracetool.drawing.lanes import pack
from tracetool.drawing.palette import colours, fill, ink
from tracetool.drawing.plots import line, scatter
from tracetool.drawing.svg import Made, numbers, percent
from tracetool.drawing.waitgraph import graph
from tracetool.units import ABSENT, cell, clean, figure, heading, short, unit_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tracetool.results import Chart

MAX_ROWS: Final = 64
MAX_SLICES: Final = 20_000
SLICES_WITH_WORDS: Final = 2_400
"""More slices than these are too thin for words: each lane's slices of a kind become one path."""
LABEL_FROM_PERCENT: Final = 5.5
LETTER_PERCENT: Final = 0.78
"""Width of a letter in the large bar at the page's full width."""
_ROW: Final = 16
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
    detail = str(chart.options.get("detail", ""))
    named = [chart.label, chart.x, *chart.y, chart.series, chart.size, text, detail]
    missing = [column for column in named if column and column not in table.columns]
    if missing:
        return f"Table {clean(chart.table)} has no column {clean(', '.join(missing))} to draw."
    needed = {"heat": ("label", "x"), "gantt": ("label", "x"), "timeline": ("label", "x"), "scatter": ("x",),
              "line": ("x",), "stack": ("label",), "bars": ("label",), "waterfall": ("label",),
              "graph": ("label", "x", "series", "size")}  # fmt: skip
    unsaid = [part for part in needed.get(chart.kind, ()) if not getattr(chart, part)]
    if unsaid or len(chart.y) < (3 if chart.kind == "bullet" else 1):
        return f"The chart does not say its {', '.join([*unsaid, 'y'])}."
    return "" if table.height else "Nothing to draw: the table has no row."


def _legend(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(heading(name), fill(name, colour)) for name, colour in colours(names).items()]


def _capped(chart: Chart, table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    most = int(chart.options.get("max_rows", MAX_ROWS))
    if table.height <= most:
        return table, []
    return table.head(most), [f"{most} of {table.height} rows drawn."]


def _rect(x: float, width: float, whole: float, paint: str, title: str, *, height: int = _ROW, y: int = 0) -> Markup:
    top = Markup(' y="{}"').format(y) if y else ""
    return Markup('<rect x="{}"{} width="{}" height="{}" fill="{}"><title>{}</title></rect>').format(
        percent(x, whole), top, percent(width, whole), height, paint, title
    )


def _svg(body: Markup, height: int, label: str = "") -> Markup:
    if label:
        return Markup('<svg width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(height, label, body)
    return Markup('<svg width="100%" height="{}" aria-hidden="true">{}</svg>').format(height, body)


def _bar_table(rows: Iterable[tuple[str | tuple[str, str], Markup, str]], title: str) -> Markup:
    """Return rows of (label, svg, number) as a table that still reads as one when no style applies.

    A label of two parts (an operator and its shape) is set in two lines where the page is narrow.
    """
    lines = []
    for label, bar, number in rows:
        parts = (label,) if isinstance(label, str) else label
        words = short(parts[0], 36)
        if len(parts) > 1:
            words = Markup("<span>{}</span> <span>{}</span>").format(short(parts[0], 28), short(parts[1], 26))
        lines.append(
            Markup('<tr><th scope="row" title="{}">{}</th><td width="100%">{}</td><td class="n">{}</td></tr>').format(
                clean(" ".join(parts)), words, bar, number
            )
        )
    return Markup('<table class="bars" width="100%" aria-label="{}">{}</table>').format(title, Markup("").join(lines))


def _labels(chart: Chart, table: pl.DataFrame) -> list[str]:
    prefix = f"{chart.label} " if table[chart.label].dtype.is_integer() else ""
    return [f"{prefix}{cell(value)}" for value in table[chart.label].to_list()]


def _stack(chart: Chart, table: pl.DataFrame) -> Made:
    tints = colours(chart.y)
    if table.height == 1:
        return _hero(chart, table, tints), [], []
    shown, notes = _capped(chart, table)
    columns = {name: numbers(shown, name) for name in chart.y}
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
    sizes = {name: numbers(table, name)[0] for name in chart.y}
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
            ).format(percent(at, whole), percent(share, 1), paint, said, label)
        )
        at += size
    drawn = _svg(Markup("").join(bar), 48, clean(chart.title))
    return Markup('<div class="hero">{}</div><table class="parts">{}</table>').format(drawn, Markup("").join(rows))


def _bars(chart: Chart, table: pl.DataFrame) -> Made:
    shown, notes = _capped(chart, table)
    tints = colours(chart.y[:1])
    paint = tints[chart.y[0]]
    values = numbers(shown, chart.y[0])
    wholes = numbers(shown, chart.y[1]) if len(chart.y) > 1 else []
    widest = max((v for v in [*values, *wholes] if not math.isnan(v)), default=0.0)
    rows = []
    labels: list[str | tuple[str, str]] = [*_labels(chart, shown)]
    if "text" in chart.options:
        texts = shown[str(chart.options["text"])].to_list()
        labels = [(label, cell(text)) for label, text in zip(_labels(chart, shown), texts, strict=True)]
    for number, label in enumerate(labels):
        value, parts = values[number], []
        said = ABSENT if math.isnan(value) else figure(value, chart.unit)
        if wholes and wholes[number] > 0:
            of = f"of {figure(wholes[number], chart.unit)}"
            parts.append(
                Markup('<rect width="{}" height="{}" fill="{}" fill-opacity="0.3"><title>{}</title></rect>').format(
                    percent(wholes[number], widest), _ROW, paint, of
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
    values = [0.0 if math.isnan(v) else v for v in numbers(shown, chart.y[0])]
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
    value, low, high = (numbers(table, column)[0] for column in chart.y[:3])
    top = max((v for v in (value, high) if not math.isnan(v)), default=0.0) * 1.25
    parts = [Markup('<rect y="8" width="100%" height="12" fill="#808080" fill-opacity="0.2"/>')]
    if not (math.isnan(low) or math.isnan(high)):
        ends = f"{figure(low, chart.unit)} to {figure(high, chart.unit)}"
        parts.append(
            Markup('<rect x="{}" y="2" width="{}" height="24" fill="#009988" fill-opacity="0.4"><title>{}</title>'
                   "</rect>").format(percent(low, top), percent(high - low, top), ends)
        )  # fmt: skip
    if not math.isnan(value):
        parts.append(_rect(0, value, top, "#3366aa", figure(value, chart.unit), height=12, y=8))
    said = f"{clean(chart.title)}: {figure(value, chart.unit)}, range {figure(low, chart.unit)} to "
    said += figure(high, chart.unit)
    words = Markup('<p class="note">{}</p>').format(said)
    return _svg(Markup("").join(parts), 28, said) + words, [], []


def _gantt(chart: Chart, table: pl.DataFrame) -> Made:
    length = chart.y[0]
    usable = table.filter(pl.col(chart.x).is_not_null() & pl.col(length).is_not_null())
    notes = []
    if usable.height > MAX_SLICES:
        notes.append(f"The {MAX_SLICES} longest of {usable.height} slices drawn.")
        usable = usable.filter(pl.col(length).rank("ordinal", descending=True) <= MAX_SLICES)
    if not usable.height:
        return Markup("<p>No slice has a start and a duration.</p>"), [], notes
    first = min(numbers(usable, chart.x))
    ends = [start + dur for start, dur in zip(numbers(usable, chart.x), numbers(usable, length), strict=True)]
    span = max(ends) - first
    keys = sorted({cell(v) for v in usable[chart.series].to_list()}) if chart.series else [""]
    tints = colours(keys)
    text = str(chart.options.get("text", ""))
    lanes = list(usable.group_by([chart.label], maintain_order=True))
    most = int(chart.options.get("max_rows", MAX_ROWS))
    if len(lanes) > most:
        notes.append(f"{most} of {len(lanes)} rows drawn.")
    dense = usable.height > SLICES_WITH_WORDS
    if dense:
        notes.append(f"{usable.height:,} slices are too thin to be labelled; the table holds each.")
    rows = []
    for (_lane,), part in lanes[:most]:
        label = _labels(chart, part.head(1))[0]
        starts, durs = numbers(part, chart.x), numbers(part, length)
        series = [cell(v) for v in part[chart.series].to_list()] if chart.series else [""] * len(starts)
        texts = [cell(v) for v in part[text].to_list()] if text else [""] * len(starts)
        if dense:
            bars = [_thin([(a - first, d) for a, d, s in zip(starts, durs, series, strict=True) if s == key], span,
                          fill(key, tints[key]), key) for key in keys]  # fmt: skip
            rows.append((label, _svg(Markup("").join(bars), 18), ""))
            continue
        bars = []
        for start, dur, key, words in zip(starts, durs, series, texts, strict=True):
            said = " ".join(word for word in (key, words, figure(dur, chart.unit)) if word)
            bars.append(_rect(start - first, dur, span, fill(key, tints[key]), said, height=18))
            if words and span and dur / span * 100 >= 1.2 * len(words):
                bars.append(
                    Markup(
                        '<text x="{}" y="13" text-anchor="middle" font-size="11" class="in" fill="{}">{}</text>'
                    ).format(percent(start - first + dur / 2, span), ink(tints[key]), words)
                )
        rows.append((label, _svg(Markup("").join(bars), 18), ""))
    ends_text = Markup(
        '<text x="0" y="12" font-size="12" fill="currentColor">0</text>'
        '<text x="100%" y="12" font-size="12" text-anchor="end" fill="currentColor">{}</text>'
    ).format(figure(span, chart.unit))
    rows.append(("", _svg(ends_text, 16), ""))
    legend = [(heading(key), fill(key, tints[key])) for key in keys if key]
    return _bar_table(rows, clean(chart.title)), legend, notes


_THIN_UNITS: Final = 20_000
"""Units across the page in which thin slices are drawn."""


def _thin(slices: Sequence[tuple[float, float]], span: float, paint: str, title: str) -> Markup:
    """Return slices (start, dur) of one kind on one lane as one path; hatched ones as rectangles, not to stretch it."""
    if not slices or not span:
        return _NOTHING
    if paint.startswith("url"):
        return Markup("").join(_rect(start, dur, span, paint, title, height=18) for start, dur in slices)
    scale = _THIN_UNITS / span
    spans = [
        (round(start * scale), max(1, round((start + dur) * scale) - round(start * scale))) for start, dur in slices
    ]
    drawn = "".join(f"M{x},0h{width}v18h-{width}z" for x, width in spans)
    return Markup(
        '<svg width="100%" height="18" viewBox="0 0 {} 18" preserveAspectRatio="none">'
        '<path d="{}" fill="{}"><title>{}</title></path></svg>'
    ).format(_THIN_UNITS, drawn, paint, title)


_FIXED: Final = (1, 2, 5, 10)
"""Limits of the shades of a heat map whose option `least` says from where on a value matters, as multiples of it."""
_NAMED_ROWS: Final = 8
"""Rows of a heat map that are named below it, those with the largest values: too thin to be labelled each."""


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
    cells[rows, across] = np.array(numbers(table, value))
    least = float(chart.options.get("least", 0.0))
    fixed = tuple(least * times for times in _FIXED) if least else ()
    edges = limits(cells, fixed)
    if not edges:
        what = f"reaches {figure(least, chart.unit)}" if fixed else "lies more than 2 % above the median"
        return Markup("<p>Nothing stands out: no value {}.</p>").format(what), [], []
    height = max(48, min(420, 12 * len(labels)))
    notes = ["Grey: no value."] if np.isnan(cells).any() else []
    legend = [
        (f"{figure(low, chart.unit)} to {figure(high, chart.unit)}", shade)
        for shade, low, high in zip(SHADES, edges[:-1], edges[1:], strict=False)
    ]
    if fixed:
        legend[-1] = (f"{figure(fixed[-1], chart.unit)} and more", SHADES[len(fixed) - 1])
    highest = np.max(cells, axis=1, initial=-np.inf, where=np.isfinite(cells))
    outstanding = sorted(np.flatnonzero(highest >= edges[0]).tolist(), key=lambda row: -highest[row])
    names = ", ".join(cell(labels[row]) for row in sorted(outstanding[:_NAMED_ROWS]))
    more = " and others" if len(outstanding) > _NAMED_ROWS else ""
    notes.insert(0, f"Coloured: {heading(chart.label)} {names}{more}.")
    said = f"{clean(chart.title)}. {clean(chart.note)} The table beside it holds the numbers."
    picture = Markup(
        '<table class="heat" role="presentation" width="100%"><tr><td class="y">{0} {1}<br>to<br>{2}</td>'
        '<td width="100%"><img src="{3}" alt="{4}" width="100%" height="{5}"></td></tr>'
        '<tr><td></td><td class="x"><span>{6} {7}</span> <span>to {8}</span></td></tr></table>'
    ).format(
        heading(chart.label), cell(labels[0]), cell(labels[-1]), data_uri(shades(cells, fixed)), said, height,
        heading(chart.x), cell(columns[0]), cell(columns[-1]),
    )  # fmt: skip
    return picture, legend, notes


_KINDS: Final[dict[str, Callable[[Chart, pl.DataFrame], Made]]] = {
    "stack": _stack,
    "bars": _bars,
    "heat": _heat,
    "scatter": scatter,
    "line": line,
    "gantt": _gantt,
    "waterfall": _waterfall,
    "bullet": _bullet,
    "graph": graph,
}
