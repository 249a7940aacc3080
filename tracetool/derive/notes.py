"""Rows of table `quality`: what had to be repaired, left out or assumed, each with a sentence for the reader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracetool.tables import frame

if TYPE_CHECKING:
    from collections.abc import Iterable

    import polars as pl


@dataclass(frozen=True)
class Note:
    """One row of table `quality`, the rank left out."""

    topic: str
    count: int
    ns: int | None
    note: str


def quality(rank: int, notes: Iterable[Note]) -> pl.DataFrame:
    """Return table `quality` of a rank, notes in the order given."""
    rows = list(notes)
    return frame(
        "quality",
        {
            "rank": [rank] * len(rows),
            "topic": [row.topic for row in rows],
            "count": [row.count for row in rows],
            "ns": [row.ns for row in rows],
            "note": [row.note for row in rows],
        },
    )


def many(count: int, one: str, several: str | None = None) -> str:
    """Return a count with its noun: 1 range, 2 ranges, 1,204 ranges."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def span(ns: int) -> str:
    """Return a duration in ms, as the sentences say it; exact figures stand in the column ns."""
    return f"{ns / 1e6:,.3f} ms"
