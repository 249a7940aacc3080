"""What every form of the report says, in which order: sections, verdict, gains. Words only, no markup."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tracetool.document import quality_topics, run_facts
from tracetool.units import absent, clean, figure, ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from tracetool.document import Report
    from tracetool.results import Chart, Finding, Headline, Result

NEGLIGIBLE: Final = 0.01
_LAST: Final = 1_000
_RANK: Final = {"ok": 0, "error": 1, "skipped": 2}


@dataclass(frozen=True, eq=False)
class Section:
    """One question and its answer."""

    name: str
    title: str
    result: Result
    definition: str


@dataclass(frozen=True)
class Piece:
    """A stretch of a sentence; `anchor`, where set, is the id of what it speaks of."""

    text: str
    anchor: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """The chart of the first screen and the table it draws."""

    section: Section
    chart: Chart
    table: pl.DataFrame


def sections(report: Report) -> list[Section]:
    """Return the sections in order: answered ones by their first headline, then failed, then skipped ones."""
    made = [
        Section(name, clean(report.titles.get(name, name)), result, report.definitions.get(name, ""))
        for name, result in report.results.items()
    ]
    return sorted(made, key=lambda section: (_RANK[section.result.status], _first(section.result), section.name))


def _first(result: Result) -> int:
    return min((head.order for head in result.headline), default=_LAST)


def headlines(report: Report) -> list[tuple[Headline, str]]:
    """Return all key figures with the name of their section, leftmost first."""
    found = [(head, section.name) for section in sections(report) for head in section.result.headline]
    return sorted(found, key=lambda pair: pair[0].order)


def first_screen(report: Report) -> list[Picture]:
    """Return the charts that ask to stand on the first screen and can be drawn."""
    return [
        Picture(section, chart, section.result.tables[chart.table])
        for section in sections(report)
        for chart in section.result.charts
        if chart.options.get("first_screen") and chart.table in section.result.tables
    ]


def anchor(finding: Finding, findings: Sequence[Finding]) -> str:
    """Return the id of a finding on the page: its place in the ranking, so that it is unique and a valid id."""
    return f"finding-{findings.index(finding) + 1}"


def gain(finding: Finding) -> str:
    """Return what a fix would save per step, `up to` where that is a bound; "" when it was not priced."""
    if finding.recoverable_ns_per_step is None:
        return ""
    time = figure(finding.recoverable_ns_per_step, "ns")
    return f"up to {time}" if finding.price_basis == "bound" else time


def gain_share(finding: Finding) -> str:
    """Return the gain as a share of the step, in words; "" when it was not priced."""
    return "" if finding.recoverable_share is None else f"{figure(finding.recoverable_share, 'share')} of the step"


def matters(finding: Finding) -> bool:
    """Say whether a finding belongs in the verdict: more than info, or worth at least 1 % of the step."""
    return finding.severity != "info" or (finding.recoverable_share or 0.0) >= NEGLIGIBLE


def verdict(report: Report) -> list[Piece]:
    """Return the verdict: the two largest causes, or that there is nothing to find, or that nothing could be told."""
    answered = [section for section in sections(report) if section.result.status == "ok"]
    if not answered:
        return [Piece("None of the questions could be answered from these traces; each says why below.")]
    worth = [finding for finding in report.findings if matters(finding)]
    # what deserves a warning is a cause; the rest may be its symptom
    causes = sorted(worth, key=lambda finding: finding.severity == "info")[:2]
    unasked = len(report.results) - len(answered)
    known = [head for head, _ in headlines(report) if head.value is not None]
    if not causes and known and not report.run.features.get("events", (0,)):
        about = f" ({clean(known[0].note)})" if known[0].note else ""
        pieces = [Piece(f"{clean(known[0].label)}: {headline_text(known[0])}{about}.")]
    elif not causes and not report.run.features.get("gpu", (0,)):
        word, said = quality_word(report)
        where = f"what could be read ({said})" if word == "Damaged" else "the traces"
        pieces = [Piece(f"There is no GPU activity in {where}, so where the step time went cannot be told.")]
    elif not causes:
        pieces = [Piece("Nothing above 1 % of the step stands out.")]
    else:
        priced = any(cause.recoverable_ns_per_step is not None for cause in causes)
        pieces = [Piece("Largest cause of lost time: " if priced else "Most serious: ")]
        for number, cause in enumerate(causes):
            if number:
                pieces.append(Piece(". Second: "))
            pieces.append(Piece(clean(cause.title).rstrip("."), anchor(cause, report.findings)))
            if cause.recoverable_ns_per_step and (amount := gain(cause)):
                share = gain_share(cause)
                pieces.append(Piece(f" ({amount}{f', {share}' if share else ''})"))
        pieces.append(Piece("."))
    if unasked:
        asked = f" {unasked} of {len(report.results)} questions could not be answered from these traces."
        pieces.append(Piece(asked))
    return pieces


def headline_text(head: Headline) -> str:
    """Return a key figure as text with its unit."""
    return figure(head.value, head.unit)


def title(report: Report) -> str:
    """Return the title of the document: the answer first, then the run."""
    known = [head for head, _ in headlines(report) if head.value is not None]
    answer = f"{clean(known[0].label)} {headline_text(known[0])} · " if known else ""
    return f"{answer}{name(report)} · tracetool"


def name(report: Report) -> str:
    """Return the run's name: the last part of its path."""
    return clean(report.run.path.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or report.run.path)


def facts(report: Report) -> list[str]:
    """Return what stands under the title: ranks, devices, steps, formats, time of recording, completeness."""
    known = run_facts(report.run)
    ranks = known["ranks"]
    world = known["world_size"]
    devices = ", ".join(clean(device) for device in known["devices"]) or "device not recorded"
    of_world = f" of {world}" if world else ""
    found = [f"{devices}", f"{len(ranks)}{of_world} {'rank' if len(ranks) == 1 and not world else 'ranks'} traced"]
    if known["steps"]:
        found.append(f"steps {', '.join(ranges(known['steps'])[:4])}")
    else:
        found.append("no step ranges")
    if known["formats"]:
        found.append(", ".join(clean(form) for form in known["formats"]))
    if known["recorded_unix_ns"] is not None:
        at = dt.datetime.fromtimestamp(known["recorded_unix_ns"] // 1_000_000_000, tz=dt.UTC)
        found.append(f"recorded {at:%Y-%m-%d %H:%M} UTC")
    return found


def missing_ranks(report: Report) -> list[str]:
    """Return the ranks of the job that no source holds, collapsed; empty when the size of the job is unknown."""
    return absent(report.run.ranks["rank"].to_list(), report.run.world_size or 0)


def quality_notes(report: Report) -> list[str]:
    """Return every sentence on the quality of the data: of the run, of its files, of what was derived."""
    of_files = [
        f"{clean(path)}: {clean(note)}"
        for path, notes in report.run.sources.select("path", "notes").iter_rows()
        for note in notes or ()
    ]
    topics = [clean(note) for note in quality_topics(report.run)["note"].to_list()]
    return [*(clean(note) for note in report.run.notes), *of_files, *topics]


def quality_word(report: Report) -> tuple[str, str]:
    """Return how far the data can be trusted, in a word and half a sentence."""
    sources = report.run.sources
    cut = sources.height - int(sources["complete"].fill_null(True).sum())
    absent = missing_ranks(report)
    if cut:
        return "Damaged", f"{cut} of {sources.height} files read in part"
    if absent:
        world = report.run.world_size or 0
        return "Partial", f"{report.run.ranks.height} of {world} ranks traced"
    notes = len(quality_notes(report))
    return "Complete", f"{notes} note{'' if notes == 1 else 's'}" if notes else "nothing dropped or repaired"
