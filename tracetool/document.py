"""The JSON document of a report: every number the page shows, under names that other programs may rely on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracetool.registry import RunView
    from tracetool.results import Finding, Result, Value

SCHEMA_VERSION: Final = 1
SAVING_ROWS: Final = 200
"""Rows of a finding's `saving` that the document holds; `saving_rows` tells how many there are."""

Document = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Report:
    """All that a report shows: the run, its results, the findings priced and ranked, and how it was made."""

    run: RunView
    results: Mapping[str, Result]
    findings: Sequence[Finding]
    titles: Mapping[str, str]
    """Name of an analysis → its TITLE."""
    definitions: Mapping[str, str]
    """Name of an analysis → its docstring: formula, units, source."""
    command: str
    version: str
    settings: Mapping[str, Value] = field(default_factory=dict)
    """Settings that differ from their defaults, for the record."""


def document(report: Report) -> Document:
    """Return the document: plain dicts, lists, numbers and text; NaN and infinity are null."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tracetool": {"version": report.version},
        "run": run_facts(report.run),
        "sources": rows(report.run.sources),
        "quality": rows(quality_topics(report.run)),
        "results": {
            name: _result(result, report.titles.get(name, name), name, report.findings)
            for name, result in report.results.items()
        },
        "findings": [_finding(finding) for finding in report.findings],
    }


def to_json(document: Document) -> bytes:
    """Return the document as compact UTF-8 JSON with a final newline; the same document gives the same bytes."""
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


def run_facts(run: RunView) -> Document:
    """Return what is known of the run as a whole: path, ranks, world size, steps, formats, devices, completeness."""
    ranks = [int(rank) for rank in run.ranks["rank"].to_list()]
    whole = run.world_size is None or len(ranks) >= run.world_size
    return {
        "path": run.path,
        "ranks": ranks,
        "world_size": run.world_size,
        "steps": run.steps["step"].drop_nulls().unique().sort().to_list(),
        "formats": sorted({str(name) for name in run.sources["format"].drop_nulls().to_list()}),
        "devices": sorted({str(name) for name in run.ranks["device_name"].drop_nulls().to_list()}),
        "complete": bool(whole and ranks and run.sources["complete"].fill_null(True).all()),
        "recorded_unix_ns": recorded_unix_ns(run),
        "notes": list(run.notes),
    }


def quality_topics(run: RunView) -> pl.DataFrame:
    """Return table `quality` with one row a topic: its ranks, summed counts and times, the words of one rank."""
    return (
        run.quality.sort("topic", "count", "rank", descending=[False, True, False])
        .group_by("topic", maintain_order=True)
        .agg(
            ranks=pl.col("rank").unique().sort(),
            count=pl.col("count").sum(),
            ns=pl.when(pl.col("ns").count() > 0).then(pl.col("ns").sum()),
            note=pl.col("note").first(),
        )
        .sort("topic")
    )


def recorded_unix_ns(run: RunView) -> int | None:
    """Return the Unix time of the first step's start, ns; None when no trace says its base time."""
    based = run.steps.join(run.ranks.select("rank", "base_unix_ns"), on="rank", how="inner")
    first = based.select((pl.col("start_ns") + pl.col("base_unix_ns")).min()).item()
    return None if first is None else int(first)


def rows(table: pl.DataFrame) -> list[Document]:
    """Return a table as a list of rows; floats that are no number become null, enums and categories text."""
    floats = [name for name, dtype in table.schema.items() if dtype in (pl.Float32, pl.Float64)]
    finite = table.with_columns(
        pl.when(pl.col(name).is_finite()).then(pl.col(name)).otherwise(None).alias(name) for name in floats
    )
    return finite.to_dicts()


def plain(value: object) -> object:
    """Return a metric as JSON can hold it: tuples as lists, a float that is no number as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def _result(result: Result, title: str, name: str, findings: Sequence[Finding]) -> Document:
    priced = {finding.id: finding for finding in findings if finding.analysis == name}
    return {
        "status": result.status,
        "reason": result.reason,
        "title": title,
        "headline": [[head.label, plain(head.value), head.unit, head.order] for head in result.headline],
        "headline_notes": [head.note for head in result.headline],
        "metrics": {metric: plain(value) for metric, value in result.metrics.items()},
        "tables": {table: rows(frame) for table, frame in result.tables.items()},
        "findings": [_finding(priced.get(finding.id, finding)) for finding in result.findings],
        "notes": list(result.notes),
    }


def _finding(finding: Finding) -> Document:
    window = finding.where.window_ns
    return {
        "id": finding.id,
        "analysis": finding.analysis,
        "severity": finding.severity,
        "title": finding.title,
        "detail": finding.detail,
        "recoverable_ns_per_step": finding.recoverable_ns_per_step,
        "recoverable_share": plain(finding.recoverable_share),
        "price_basis": finding.price_basis,
        "confidence": finding.confidence,
        "confidence_why": finding.confidence_why,
        "evidence": [{"table": table, "rows": list(numbers)} for table, numbers in finding.evidence],
        "where": {
            "ranks": list(finding.where.ranks),
            "stages": list(finding.where.stages),
            "steps": list(finding.where.steps),
            "window_ns": None if window is None else list(window),
        },
        "advice": finding.advice,
        "saving": rows(finding.saving.head(SAVING_ROWS)),
        "saving_rows": finding.saving.height,
    }
