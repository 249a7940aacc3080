"""The report as plain text: Markdown, the terminal, and single results as table, CSV or Markdown."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import polars as pl
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracetool.document import quality_topics
from tracetool.errors import UsageError
from tracetool.grid import Grid, grid
from tracetool.outline import (
    Picture,
    Section,
    facts,
    first_screen,
    gain,
    gain_share,
    headline_text,
    headlines,
    missing_ranks,
    name,
    quality_notes,
    quality_word,
    sections,
    verdict,
)
from tracetool.units import ABSENT, clean, figure, heading, ranges, unit_of

if TYPE_CHECKING:
    from tracetool.document import Report
    from tracetool.results import Finding, Result

MARKDOWN_ROWS = 30
TERMINAL_NOTES = 4
TERMINAL_ROWS = 40
_TERMINAL_FINDINGS = 8
_SEVERITY_STYLE = {"critical": "bold red", "warning": "yellow", "info": "dim"}
_BAR_WIDTH = 30


def stacks(report: Report) -> list[Picture]:
    """Return the bars of the first screen: the one kind of picture that plain text shows."""
    return [picture for picture in first_screen(report) if picture.chart.kind == "stack"]


def parts(picture: Picture) -> list[tuple[str, str, str, float]]:
    """Return the parts of the first row of a stack: words, length with unit, percent of the row, share of the row."""
    row = picture.table.row(0, named=True) if picture.table.height else {}
    sizes = {column: row.get(column) for column in picture.chart.y}
    whole = sum(size for size in sizes.values() if size is not None)
    return [
        (
            heading(column),
            figure(size, picture.chart.unit),
            figure(size / whole if size is not None and whole else None, "share"),
            size / whole if size is not None and whole else 0.0,
        )
        for column, size in sizes.items()
    ]


# ---- Markdown ----


def render_markdown(report: Report) -> str:
    """Return the report as Markdown: the first screen, every section with its tables cut to a few rows."""
    lines = [f"# {_md(name(report))}", "", _md(" · ".join(facts(report))), ""]
    lines += [f"**{_md(''.join(piece.text for piece in verdict(report)))}**", ""]
    heads = headlines(report)
    if heads:
        lines += ["| Key figure | Value | |", "| --- | ---: | --- |"]
        lines += [f"| {_md(head.label)} | {_md(headline_text(head))} | {_md(head.note)} |" for head, _ in heads]
        lines.append("")
    for picture in stacks(report):
        lines += [f"## {_md(picture.chart.title)}", "", _md(picture.chart.note), ""]
        lines += ["| Part | Share | Time |", "| --- | ---: | ---: |"]
        lines += [f"| {_md(words)} | {share} | {size} |" for words, size, share, _ in parts(picture)]
        lines.append("")
    lines += ["## Findings", ""]
    lines += [line for finding in report.findings for line in _finding_lines(finding)] or ["No finding.", ""]
    for section in sections(report):
        lines += _section_lines(section)
    lines += ["## Data quality", ""]
    lines += [f"{word}: {note}." for word, note in [quality_word(report)]] + [""]
    absent = missing_ranks(report)
    if absent:
        lines += [f"Ranks of the job that were not traced: {', '.join(absent)}.", ""]
    lines += [f"- {_md(note)}" for note in report.run.notes] + ([""] if report.run.notes else [])
    for table in (report.run.sources, quality_topics(report.run)):
        if table.height:
            lines += [*_md_table(grid(table, MARKDOWN_ROWS)), ""]
    lines += ["## Provenance", "", f"- tracetool {_md(report.version)}", f"- command: {_md(report.command)}", ""]
    return "\n".join(lines)


def _finding_lines(finding: Finding) -> list[str]:
    amount = ", ".join(text for text in (gain(finding), gain_share(finding)) if text)
    lines = [f"### {_md(finding.title)}", ""]
    lines += [f"*{finding.severity}, {finding.confidence} confidence{f', {_md(amount)}' if amount else ''}*", ""]
    lines += [_md(finding.detail), "", f"Next: {_md(finding.advice)}", ""]
    return lines


def _section_lines(section: Section) -> list[str]:
    result = section.result
    lines = [f"## {_md(section.title)}", ""]
    if result.status != "ok":
        return [*lines, f"{result.status}: {_md(result.reason)}", ""]
    lines += [line for note in result.notes for line in (_md(note), "")]
    for table, frame in result.tables.items():
        lines += [f"**{_md(table)}**", "", *_md_table(grid(frame, MARKDOWN_ROWS)), ""]
    return lines


def _md_table(shown: Grid) -> list[str]:
    lines = ["| " + " | ".join(_md(head.text()) for head in shown.headings) + " |"]
    lines.append("| " + " | ".join("---:" if head.numeric else "---" for head in shown.headings) + " |")
    lines += ["| " + " | ".join(_md(text) for text in row) + " |" for row in shown.rows]
    if len(shown.rows) < shown.total:
        lines += ["", f"{len(shown.rows)} of {shown.total} rows; all in the JSON document."]
    return lines


def _md(text: str) -> str:
    """Return text that Markdown shows as it is: names from a trace make no link, tag, emphasis or new cell."""
    text = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!~])", r"\\\1", text)


# ---- terminal ----


def render_terminal(report: Report, *, color: bool, width: int) -> str:
    """Return the summary for a terminal `width` columns wide: verdict, key figures, budget, findings, data quality."""
    out = io.StringIO()
    console = Console(
        file=out, width=max(40, width), force_terminal=color, no_color=not color, highlight=False,
        color_system="standard" if color else None, legacy_windows=False,
    )  # fmt: skip
    console.print(Text(name(report), style="bold"))
    console.print(Text(" · ".join(facts(report)), style="dim"))
    console.print()
    console.print(Text("".join(piece.text for piece in verdict(report))))
    console.print()
    heads = headlines(report)
    if heads:
        figures = _borderless()
        for head, _ in heads:
            figures.add_row(clean(head.label), Text(headline_text(head), style="bold"), Text(clean(head.note), "dim"))
        console.print(figures)
        console.print()
    for picture in stacks(report):
        console.print(Text(clean(picture.chart.title), style="bold"))
        bars = _borderless()
        for words, size, percent, share in parts(picture):
            bars.add_row(words, percent, size, Text("█" * round(share * _BAR_WIDTH), style="blue"))
        console.print(bars)
        console.print()
    _terminal_findings(console, report)
    word, note = quality_word(report)
    console.print(Text.assemble("Data quality: ", (word, "bold"), f", {note}"))
    said = quality_notes(report)
    for note in said[:TERMINAL_NOTES]:
        console.print(Text(f"  {note}"))
    if len(said) > TERMINAL_NOTES:
        console.print(Text(f"  … and {len(said) - TERMINAL_NOTES} more in the report"))
    skipped = [section for section in sections(report) if section.result.status == "skipped"]
    if len(skipped) == len(report.results):
        for section in skipped:
            console.print(Text(f"{section.title}: {clean(section.result.reason)}", style="dim"))
    elif skipped:
        console.print(Text(f"Not answered: {', '.join(section.title for section in skipped)}", style="dim"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _terminal_findings(console: Console, report: Report) -> None:
    for finding in report.findings[:_TERMINAL_FINDINGS]:
        head = Text(clean(finding.title), style="bold")
        if amount := gain(finding):
            head = Text.assemble((f"{amount}  ", "bold green"), head)
        head.append(f"  {finding.severity}", style=_SEVERITY_STYLE[finding.severity])
        head.append(f", {finding.confidence} confidence", style="dim")
        console.print(head)
        console.print(Padding(Text(clean(finding.detail)), (0, 0, 0, 2)))
        console.print(Padding(Text(f"Next: {clean(finding.advice)}"), (0, 0, 1, 2)))
    left = len(report.findings) - _TERMINAL_FINDINGS
    if left > 0:
        console.print(Text(f"{left} more findings in the report", style="dim"))
        console.print()


def _borderless() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column()
    return table


# ---- single results ----


def render_results(report: Report, fmt: str, *, width: int) -> str:
    """Return every result of a report as text; `fmt` is table, csv or md. Raises UsageError for another."""
    return "\n".join(
        render_result(section.result, fmt, name=section.name, title=section.title, width=width)
        for section in sections(report)
    )


def render_table(result: Result, fmt: str) -> str:
    """Return one result's metrics and tables as text; see `render_result`."""
    return render_result(result, fmt, name="", title="", width=100)


def render_result(result: Result, fmt: str, *, name: str, title: str, width: int) -> str:
    """Return one result as text: `table` cut to the terminal, `csv` and `md` for other programs.

    CSV holds every row of every table, raw numbers, each table after a line `# analysis.table`.
    """
    if fmt == "csv":
        return _csv(result, name)
    if fmt == "md":
        return "\n".join(_section_lines(Section(name, title or name, result, "")))
    if fmt != "table":
        raise UsageError(f"no format {fmt!r}; there are table, csv, md and json")
    return _terminal_result(result, title or name, width)


def _csv(result: Result, name: str) -> str:
    if result.status != "ok":
        return f"# {name} {result.status}: {clean(result.reason)}\n"
    blocks = []
    for table, frame in result.tables.items():
        nested = [column for column, dtype in frame.schema.items() if dtype.is_nested()]
        flat = frame.with_columns(
            pl.Series(column, [" ".join(map(str, value)) if isinstance(value, list) else str(value) if value else None
                               for value in frame[column].to_list()], dtype=pl.String)
            for column in nested
        )  # fmt: skip
        blocks.append(f"# {name}.{table}\n{flat.write_csv()}")
    return "\n".join(blocks)


def _terminal_result(result: Result, title: str, width: int) -> str:
    out = io.StringIO()
    console = Console(file=out, width=max(40, width), no_color=True, color_system=None, highlight=False)
    console.print(Text(title))
    if result.status != "ok":
        console.print(Text(f"{result.status}: {clean(result.reason)}"))
    metrics = _borderless()
    for metric, value in result.metrics.items():
        metrics.add_row(Text(clean(metric)), Text(_metric(metric, value)), "")
    if result.metrics:
        console.print(metrics)
    for note in result.notes:
        console.print(Text(clean(note)))
    for table, frame in result.tables.items():
        shown = grid(frame, TERMINAL_ROWS)
        drawn = Table(title=Text(clean(table)), box=None, pad_edge=False, title_justify="left")
        for head in shown.headings:
            drawn.add_column(Text(head.text()), justify="right" if head.numeric else "left")
        for row in shown.rows:
            drawn.add_row(*(Text(text) for text in row))
        console.print()
        console.print(drawn)
        if len(shown.rows) < shown.total:
            console.print(Text(f"{len(shown.rows)} of {shown.total} rows; --format json has all"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _metric(metric: str, value: float | str | tuple[int, ...] | None) -> str:
    if isinstance(value, tuple):
        return ", ".join(ranges(value)) or ABSENT
    return figure(value, unit_of(metric) or "count")
