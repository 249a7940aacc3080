"""The HTML report: one file that carries everything it needs, under a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import jinja2
from markupsafe import Markup

from tracetool import outline
from tracetool.charts import Drawing, draw
from tracetool.document import SCHEMA_VERSION, quality_topics
from tracetool.drawing.palette import HATCH, VIOLET
from tracetool.grid import Grid, Heading, grid
from tracetool.units import ABSENT, clean, figure, heading, ranges, short, unit_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.document import Report
    from tracetool.results import Chart, Finding

TARGET_BYTES: Final = 1_000_000
"""Above this, tables show fewer rows."""
HARD_LIMIT_BYTES: Final = 5_000_000
"""Above this, short slices leave the timeline."""
CELLS: Final = 1_200
"""Cells of one table on the page; the JSON document has all rows."""
MOST_ROWS, FEWEST_ROWS = 200, 10
MOST_FINDINGS: Final = 8
LONG_FIGURE: Final = 14
_PROSE: Final = ("note", "notes", "reason", "detail", "line", "said", "assumes", "why", "evidence")
_FEWER_CELLS: Final = 300
_SLICE_ROWS: Final = 25
_THIN_NS: Final = 10_000
_THIN_TIMES: Final = 4
_THINNEST_NS: Final = 1_000_000_000


@dataclass(frozen=True)
class Page:
    """The finished page, and what it leaves out, in sentences for whoever asked for it."""

    html: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Limits:
    cells: int = CELLS
    shortest_ns: int = 0


def render_html(report: Report) -> str:
    """Return the report as one HTML file; the same report gives the same bytes."""
    return render_page(report).html


def render_page(report: Report) -> Page:
    """Return the HTML page with what had to be left out to keep it small.

    Up to TARGET_BYTES tables show up to CELLS cells. A larger page shows fewer rows; one above HARD_LIMIT_BYTES also
    leaves out ever longer slices of the timeline. Both are said on the page.
    """
    html = _render(report, _Limits(), ())
    if len(html.encode()) <= TARGET_BYTES:
        return Page(html, ())
    limits = _Limits(_FEWER_CELLS)
    html = _render(report, limits, ())
    notes: tuple[str, ...] = ()
    while len(html.encode()) > HARD_LIMIT_BYTES and limits.shortest_ns < _THINNEST_NS:
        limits = _Limits(_FEWER_CELLS, limits.shortest_ns * _THIN_TIMES or _THIN_NS)
        said = (
            f"To keep the page below {figure(HARD_LIMIT_BYTES, 'bytes')}, slices shorter than "
            f"{figure(limits.shortest_ns, 'ns')} are left out of the timeline; the JSON document has all."
        )
        notes = (said,)
        html = _render(report, limits, notes)
    return Page(html, notes)


def _render(report: Report, limits: _Limits, notes: Sequence[str]) -> str:
    style, script = _asset("report.css"), _asset("report.js")
    heads = outline.headlines(report)
    first = {id(picture.chart) for picture in outline.first_screen(report)}
    sections = [_section(section, limits, first) for section in outline.sections(report)]
    word, said = outline.quality_word(report)
    shown = _major(report.findings)
    return _environment().get_template("report.html").render(
        title=outline.title(report),
        name=outline.name(report),
        facts=outline.facts(report),
        verdict=outline.verdict(report),
        heads=[_head(head.label, outline.headline_text(head), head.note, section) for head, section in heads][:7],
        gain=_largest(report),
        quality=_head("Data quality", word, said, "data-quality"),
        pictures=[
            {"drawing": draw(picture.chart, picture.table), "section": picture.section.name}
            for picture in outline.first_screen(report)
        ],
        findings=[_finding(finding, report) for finding in report.findings[:shown]],
        minor=[_finding(finding, report) for finding in report.findings[shown:]],
        answered=[section for section in sections if section["status"] != "skipped"],
        skipped=[section for section in sections if section["status"] == "skipped"],
        missing=outline.missing_ranks(report),
        sources=_table("sources", grid(report.run.sources, MOST_ROWS), "quality"),
        kept=_table("quality", grid(quality_topics(report.run), MOST_ROWS), "quality"),
        left_out=notes,
        run_notes=[clean(_sentence(note)) for note in report.run.notes],
        command=clean(report.command),
        path=clean(report.run.path),
        version=report.version,
        schema_version=SCHEMA_VERSION,
        settings=[(clean(key), clean(str(value))) for key, value in sorted(report.settings.items())],
        hatch=Markup(
            '<pattern id="{}" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            '<rect width="6" height="6" fill="{}"/><rect width="2" height="6" fill="#fff" fill-opacity="0.45"/>'
            "</pattern>"
        ).format(HATCH, VIOLET),
        style=Markup(style),  # noqa: S704 - our own file, no input in it
        script=Markup(script),  # noqa: S704 - same
        policy=f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
    )  # fmt: skip


def _largest(report: Report) -> dict[str, str] | None:
    """Return the key figure of the largest single gain among those of some confidence; None when there is none."""
    priced = [
        finding
        for finding in report.findings
        if finding.recoverable_ns_per_step is not None and (finding.severity != "info" or finding.confidence != "low")
    ]
    if not priced:
        return None
    best = max(priced, key=lambda finding: finding.recoverable_ns_per_step or 0)
    return _head("Largest gain", outline.gain(best), f"{outline.gain_share(best)}; gains do not add up", "what-to-fix")


def _major(findings: Sequence[Finding]) -> int:
    """Return how many findings stand open: up to the last that matters, MOST_FINDINGS at most unless they are grave."""
    last = max((number for number, finding in enumerate(findings, 1) if outline.matters(finding)), default=0)
    grave = max((number for number, finding in enumerate(findings, 1) if finding.severity != "info"), default=0)
    return max(grave, min(last, MOST_FINDINGS))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _head(label: str, text: str, note: str, section: str) -> dict[str, str]:
    long = "long" if len(text) > LONG_FIGURE else ""
    return {"label": clean(label), "text": text, "long": long, "note": clean(note), "section": section}


def _finding(finding: Finding, report: Report) -> dict[str, Any]:
    where = finding.where
    return {
        "anchor": outline.anchor(finding, report.findings),
        "gain": outline.gain(finding),
        "share": outline.gain_share(finding),
        "title": clean(finding.title),
        "severity": finding.severity,
        "confidence": finding.confidence,
        "why": clean(finding.confidence_why),
        "detail": clean(finding.detail),
        "advice": clean(finding.advice),
        "section": finding.analysis,
        "evidence": clean(report.titles.get(finding.analysis, finding.analysis)),
        "ranks": ranges(where.ranks)[:12],
        "stages": ranges(where.stages)[:12],
        "steps": ranges(where.steps)[:12],
    }


def _section(section: outline.Section, limits: _Limits, first: set[int]) -> dict[str, Any]:
    result = section.result
    pictures: list[dict[str, Any]] = []
    drawn: set[str] = set()
    for chart in result.charts if result.status == "ok" else ():
        if id(chart) not in first:
            pictures.append(_picture(chart, section, limits, beside=chart.table not in drawn))
            drawn.add(chart.table)
    rest = [
        _table(name, grid(frame, _rows(frame.width, limits)), section.name)
        for name, frame in result.tables.items()
        if name not in drawn and result.status == "ok" and frame.height
    ]
    return {
        "name": section.name,
        "title": section.title,
        "status": result.status,
        "reason": _sentence(clean(result.reason)),
        "notes": [clean(note) for note in result.notes],
        "heads": [_head(head.label, outline.headline_text(head), head.note, "") for head in result.headline],
        "metrics": [(clean(name), heading(name), _metric(name, value)) for name, value in result.metrics.items()],
        "pictures": pictures,
        "tables": rest,
        "empty": [heading(name) for name, frame in result.tables.items() if not frame.height],
        "definition": _blocks(section.definition),
    }


def _picture(chart: Chart, section: outline.Section, limits: _Limits, *, beside: bool) -> dict[str, Any]:
    """Return a drawing, with its table unless that already stands beside an earlier one."""
    frame = section.result.tables.get(chart.table)
    drawing: Drawing = draw(chart, frame, limits.shortest_ns)
    table = None
    if beside and frame is not None and frame.height:
        rows = _SLICE_ROWS if drawing.longest else _rows(frame.width, limits)
        table = _table(chart.table, grid(frame, rows, drawing.longest), section.name)
        table["longest"] = drawing.longest
    return {"drawing": drawing, "table": table}


def _rows(columns: int, limits: _Limits) -> int:
    return max(FEWEST_ROWS, min(MOST_ROWS, limits.cells // max(1, columns)))


def _table(name: str, shown: Grid, section: str) -> dict[str, Any]:
    """Return a table for the page: each cell is (text, full name or "")."""
    return {
        "name": clean(name),
        "words": heading(name),
        "section": section,
        "headings": shown.headings,
        "rows": [[_cell(text, head) for text, head in zip(row, shown.headings, strict=True)] for row in shown.rows],
        "shown": len(shown.rows),
        "total": shown.total,
        "longest": "",
    }


def _cell(text: str, head: Heading) -> tuple[str, str, str]:
    """Return (text, full name where cut, class). Names are cut, sentences are not."""
    if head.numeric:
        return text, "", ""
    if head.column in _PROSE:
        return text, "", "t prose"
    cut = short(text)
    return cut, text if cut != text else "", "t"


def _metric(name: str, value: float | str | tuple[int, ...] | None) -> str:
    if isinstance(value, tuple):
        return ", ".join(ranges(value)) or ABSENT
    return figure(value, unit_of(name) or "count")


def _blocks(text: str) -> list[tuple[str, list[tuple[bool, str]]]]:
    """Return a docstring as paragraphs and preformatted blocks; each is pieces (is code, text)."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if not block.strip():
            continue
        shaped = any(re.match(r"(\s+|[-*] |\d+\. )", line) for line in block.split("\n"))
        body = block if shaped else " ".join(block.split())
        pieces = [(number % 2 == 1, piece) for number, piece in enumerate(re.split(r"``?", body)) if piece]
        blocks.append(("pre" if shaped else "p", pieces))
    return blocks


@cache
def _asset(name: str) -> str:
    return resources.files("tracetool.templates").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
