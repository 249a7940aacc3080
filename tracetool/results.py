"""What an analysis answers: Result, Finding, Chart. Plain data; the report prints it and computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Status = Literal["ok", "skipped", "error"]
Severity = Literal["critical", "warning", "info"]
Confidence = Literal["high", "medium", "low"]
PriceBasis = Literal["replay", "bound"]
Value = float | int | str | None

SAVING_SCHEMA = {"rank": pl.Int32, "step": pl.Int32, "at_ns": pl.Int64, "ns": pl.Int64}


@dataclass(frozen=True)
class Headline:
    """One key figure for the first screen.

    `unit` is one of: share (0..1, shown in percent), ns, bytes, count, tflops, gbs, ratio, text.
    Lower `order` stands further left; 0-9 belong to mfu, 10-19 to step time, 20-29 to budget, the rest is free.
    """

    label: str
    value: Value
    unit: str
    order: int
    note: str = ""
    """Half a sentence below the figure: the range it covers, its convention, why it is null."""


@dataclass(frozen=True)
class Where:
    """What a finding points at. A finding about a stage leaves `ranks` empty."""

    ranks: tuple[int, ...] = ()
    stages: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    window_ns: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Finding:
    """Something worth doing, with what it would save and how sure that is.

    An analysis fills everything but the last three fields; only the core prices a finding.
    """

    id: str
    """Stable key such as `exposed_comm.dp`; unique within a run."""
    analysis: str
    severity: Severity
    title: str
    """One line that names the cause."""
    detail: str
    """The evidence in one or two sentences with numbers."""
    advice: str
    """The next action, as an imperative."""
    confidence: Confidence
    confidence_why: str
    saving: pl.DataFrame
    """SAVING_SCHEMA: what a fix would save, ns, at which time of which step of which rank; may be empty.

    rank null: the step as a whole gets shorter by ns, which then is no rank's own time.
    """
    evidence: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Pairs (table of the same Result, row numbers)."""
    where: Where = field(default_factory=Where)
    replay_error: float | None = None
    """Error of the replay whose answer `saving` is, as a share; None: `saving` is measured time."""
    recoverable_ns_per_step: int | None = None
    recoverable_share: float | None = None
    price_basis: PriceBasis | None = None


ChartKind = Literal["stack", "bars", "heat", "scatter", "line", "gantt", "timeline", "waterfall", "bullet", "graph"]


@dataclass(frozen=True)
class Chart:
    """A picture of one table of the Result; it names columns and computes nothing.

    stack      a horizontal bar a row: `label` names the row, each column of `y` is a part, the parts sum to the bar.
    bars       a horizontal bar a row: `y[0]` is the length, `y[1]`, if given, the pale whole it is a part of;
               options text=<column> adds a second part to the label.
    heat       `x` column, `label` row, `y[0]` the value; drawn as PNG beside its table.
    scatter    `x`, `y[0]`, dot area `size`, colour `series`; options log=True; roofs come in options.
    line       `x`, one line a column of `y`, or a line a value of `series`.
    gantt      `label` lane, `x` start_ns, `y[0]` dur_ns, `series` colour key, options text=<column> for labels.
    timeline   like gantt, drawn on a canvas, zoomable.
    waterfall  `label` part, `y[0]` signed length; the last row is the total.
    bullet     `y[0]` value against `y[1]`..`y[2]` range, one row.
    graph      a box a row: `x` its number, `y[0]` the list of boxes it leads to, `label` and `size` who is in it,
               `series` its role (culprit, waits, inside, no dump, free, more), options text=<column>, detail=<column>.
    """

    kind: ChartKind
    title: str
    table: str
    label: str = ""
    x: str = ""
    y: tuple[str, ...] = ()
    series: str = ""
    size: str = ""
    unit: str = "ns"
    """Unit of `y`: ns, share, bytes, count, tflops, gbs, ratio."""
    note: str = ""
    """What the picture shows, in one sentence; also its description for screen readers."""
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Known keys: first_screen (bool), log (bool), max_rows (int), text (column), detail (column), x_unit."""


@dataclass(frozen=True, eq=False)
class Result:
    """The answer to one question.

    `metrics` is flat, unit in the name; a value that cannot be had is None and `notes` says why.
    `tables` become lists of rows in the JSON document, in the order given; sort them by a full key first.
    """

    status: Status = "ok"
    reason: str = ""
    """Why the status is not ok; for skipped also the exact profiler option to use next time."""
    headline: Sequence[Headline] = ()
    metrics: Mapping[str, Value | tuple[int, ...]] = field(default_factory=dict)
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    findings: Sequence[Finding] = ()
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    """What was missing, dropped, assumed or capped, next to the numbers it touches; a sentence each."""


def skipped(reason: str) -> Result:
    """Return a Result that says why the question could not be asked."""
    return Result(status="skipped", reason=reason)


def no_saving() -> pl.DataFrame:
    """Return an empty saving table, for findings that cannot be priced."""
    return pl.DataFrame(schema=SAVING_SCHEMA)
