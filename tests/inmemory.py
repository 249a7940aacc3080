"""Ranks and runs made of small inline tables, to ask one analysis without files, parsers or a store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from tracetool.registry import RunView
from tracetool.settings import Settings
from tracetool.tables import empty, frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from tracetool.results import Result
    from tracetool.tables import Tables


@dataclass(frozen=True)
class MemoryRank:
    """One rank whose tables are in memory; `facts` are what the join would know about it."""

    rank: int
    tables: Tables
    facts: Tables = field(default_factory=dict)

    def table(self, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        found = self.tables.get(name, empty(name))
        return found if columns is None else found.select(columns)


def rows(table: str, rank: int, columns: Sequence[str], *values: Sequence[Any], **constants: Any) -> pl.DataFrame:  # noqa: ANN401 - cells of any type
    """Return a table of the data model from rows of the named columns; `constants` fill further columns."""
    given: dict[str, Any] = {name: [value[i] for value in values] for i, name in enumerate(columns)}
    given |= {name: [value] * len(values) for name, value in constants.items()}
    given.setdefault("rank", [rank] * len(values))
    return frame(table, given)


def gpu(*activities: Sequence[Any], rank: int = 0, **constants: Any) -> pl.DataFrame:  # noqa: ANN401 - cells of any type
    """Return table `gpu` from (start, dur, kind[, launch start, launch end[, name]]), sorted as the data model says."""
    padded = [(*a, *(None,) * (6 - len(a))) for a in activities]
    padded.sort(key=lambda a: (a[0], -a[1]))
    values = [
        (i, 0, start, dur, kind, name or f"{kind}_kernel", None if begin is None else 1000 + i, begin, end)
        for i, (start, dur, kind, begin, end, name) in enumerate(padded)
    ]
    columns = ("event", "track", "start_ns", "dur_ns", "kind", "name", "launch", "launch_start_ns", "launch_end_ns")
    return rows("gpu", rank, columns, *values).with_columns(
        pl.lit(value).cast(empty("gpu").schema[name]).alias(name) for name, value in constants.items()
    )


def steps(*windows: tuple[int | None, int, int], rank: int = 0, open_end: bool = True) -> pl.DataFrame:
    """Return table `steps` from (step, start, end); the last one has an open end unless told otherwise."""
    last = len(windows) - 1
    return frame(
        "steps",
        {
            "rank": [rank] * len(windows),
            "step": [w[0] for w in windows],
            "start_ns": [w[1] for w in windows],
            "end_ns": [w[2] for w in windows],
            "open_end": [open_end and i == last for i in range(len(windows))],
            "basis": ["gpu" if w[0] is not None else "window" for w in windows],
        },
    )


def run_view(ranks: Sequence[MemoryRank], **about: Any) -> RunView:  # noqa: ANN401 - columns of `ranks`
    """Return the view of a run of these ranks; `about` fills columns of table `ranks`."""

    def together(name: str) -> pl.DataFrame:
        return pl.concat([empty(name), *(r.tables[name] for r in ranks if name in r.tables)])

    numbers = [r.rank for r in ranks]
    given: Mapping[str, Any] = {"rank": numbers, "format": ["kineto"] * len(numbers)}
    return RunView(
        path="memory",
        ranks=frame("ranks", {**given, **{name: [value] * len(numbers) for name, value in about.items()}}),
        sources=empty("sources"),
        steps=together("steps"),
        quality=together("quality"),
        world_size=None,
        features={},
        joined={},
    )


def ask(analysis: ModuleType, ranks: Sequence[MemoryRank], settings: Settings | None = None, /, **about: Any) -> Result:  # noqa: ANN401 - see run_view
    """Put ranks through both halves of an analysis, as the core does."""
    settings = settings or Settings()
    answers = [analysis.per_rank(r, r.facts, settings) for r in ranks]
    names = sorted({name for answer in answers for name in answer})
    parts = {n: pl.concat([a[n] for a in answers if n in a], how="diagonal") for n in names}
    result: Result = analysis.analyze(parts, run_view(ranks, **about), settings)
    return result
