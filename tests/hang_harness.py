"""Runs the hang analysis on files or tables without an ingest: parse, assign, reduce."""

from __future__ import annotations

import importlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from tracetool.registry import ParseOptions, RunView
from tracetool.settings import Settings
from tracetool.tables import empty, frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tracetool.results import Result
    from tracetool.tables import Tables

hangs: Any = importlib.import_module("tracetool.analyses.hangs")


@dataclass(frozen=True)
class Rank:
    """One rank's tables, as an ingest would hand them out."""

    rank: int
    tables: Mapping[str, pl.DataFrame]

    def table(self, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        found = self.tables.get(name, empty(name))
        return found if columns is None else found.select(columns)


def parser(name: str) -> Any:  # noqa: ANN401 - plug-ins are found by folder, a checker cannot see them
    """Return a parser's module."""
    return importlib.import_module(f"tracetool.parsers.{name}")


def diagnose(sources: Iterable[Tables], settings: Settings | None = None) -> Result:
    """Reduce parsed sources to the Result of `hangs`."""
    settings = settings or Settings()
    by_rank: dict[int, dict[str, list[pl.DataFrame]]] = defaultdict(lambda: defaultdict(list))
    files = []
    for tables in sources:
        ranks = tables["ranks"]["rank"].to_list()
        for name, table in tables.items():
            if name != "sources" and "rank" in table.columns:
                for rank in ranks:
                    by_rank[rank][name].append(table.filter(pl.col("rank") == rank))
        files.append(tables["sources"].with_columns(ranks=pl.lit(ranks, dtype=pl.List(pl.Int32))))
    views = [
        Rank(rank, {name: pl.concat(parts) for name, parts in tables.items()})
        for rank, tables in sorted(by_rank.items())
    ]
    return reduce(views, pl.concat(files), settings)


def reduce(views: Sequence[Rank], files: pl.DataFrame, settings: Settings) -> Result:
    """Run per_rank and analyze."""
    parts: dict[str, list[pl.DataFrame]] = defaultdict(list)
    for view in views:
        for name, table in hangs.per_rank(view, {}, settings).items():
            parts[name].append(table)
    ranks = pl.concat([view.table("ranks").head(1) for view in views]) if views else empty("ranks")
    run = RunView(
        path="run",
        ranks=ranks,
        sources=files,
        steps=empty("steps"),
        quality=empty("quality"),
        world_size=settings.world_size or (int(size) if (size := ranks["world_size"].max()) else None),  # type: ignore[arg-type] # polars types max() as any literal
        features={"in_flight": tuple(view.rank for view in views)},
        joined={},
    )
    return cast("Result", hangs.analyze({name: pl.concat(tables) for name, tables in parts.items()}, run, settings))


def read(folder: Path, name: str = "") -> list[Tables]:
    """Parse every recognised file of a folder, which the run's sources call `name`."""
    found = []
    parsers = [parser("nccl_flight_recorder"), parser("nccl_log")]
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        head = path.read_bytes()[:65_536]
        shown = f"{name}/{path.name}" if name else path.name
        found += [one.parse(path, ParseOptions(shown)) for one in parsers if one.sniff(path, head)]
    return found


def no_file() -> pl.DataFrame:
    """Return an empty table of sources."""
    return frame("sources", {}).with_columns(ranks=pl.lit(None, dtype=pl.List(pl.Int32)))
