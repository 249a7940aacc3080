"""Between tables and arrays: the columns of `events` that derivation works on, and nullable columns back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from tracetool import tables
from tracetool.errors import TracetoolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

CODE = {category: code for code, category in enumerate(tables.CATEGORIES)}
"""Category → the number `Events.category` holds for it."""


@dataclass(frozen=True)
class Events:
    """Columns of `events` of one rank as arrays; row = event id."""

    frame: pl.DataFrame
    start: Ints
    end: Ints
    track: Ints
    category: NDArray[np.uint8]

    @classmethod
    def of(cls, events: pl.DataFrame) -> Events:
        """Take the columns out of table `events`; raises TracetoolError when it is not in the promised order."""
        start = events["start_ns"].to_numpy()
        if not np.array_equal(events["event"].to_numpy(), np.arange(events.height)) or (start[1:] < start[:-1]).any():
            raise TracetoolError(
                "events: rows are not numbered in order of start_ns; the parser that made them must sort them"
            )
        return cls(
            events,
            start,
            start + events["dur_ns"].to_numpy(),
            events["track"].to_numpy().astype(np.int64),
            events["category"].to_physical().to_numpy().astype(np.uint8),
        )

    def are(self, *categories: str) -> Bools:
        """Return for each event whether it is of one of the categories."""
        member = np.zeros(len(tables.CATEGORIES), np.bool_)
        member[[CODE[category] for category in categories]] = True
        return member[self.category]

    def names(self, rows: Ints) -> pl.Series:
        """Return the names of the given events."""
        return self.frame["name"].gather(rows)


def numbers(frame: pl.DataFrame, column: str) -> tuple[Ints, Bools]:
    """Return a nullable integer column as values and where there is one."""
    series = frame[column]
    return series.fill_null(0).cast(pl.Int64).to_numpy(), series.is_not_null().to_numpy()


def nullable(values: Ints, dtype: type[pl.DataType] = pl.Int64) -> pl.Series:
    """Return an integer column in which -1 has become null."""
    series = pl.Series("", values)
    return series.set(series < 0, None).cast(dtype)


def masked(values: Ints, known: Bools, dtype: type[pl.DataType] = pl.Int64) -> pl.Series:
    """Return an integer column that is null where `known` is false; for numbers that may be negative."""
    series = pl.Series("", values)
    return series.set(pl.Series(~known), None).cast(dtype)


def words(codes: Ints, vocabulary: Sequence[str], dtype: pl.Enum) -> pl.Series:
    """Return a column of a closed vocabulary from indices into it; -1 becomes null."""
    return pl.Series("", list(vocabulary), dtype=dtype).gather(nullable(codes, pl.UInt32))
