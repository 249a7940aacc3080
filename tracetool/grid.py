"""Tables of results as cells of text: units in the headings, one scale a column, rows capped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from tracetool.units import ABSENT, cell, grouped, heading, scale, unit_of

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Heading:
    """The head of one column: its name in the JSON document, in words, its unit, and whether it holds numbers."""

    column: str
    words: str
    unit: str
    numeric: bool

    def text(self) -> str:
        """Return the words with the unit."""
        return f"{self.words}, {self.unit}" if self.unit else self.words


@dataclass(frozen=True)
class Grid:
    """A table as text. `total` rows there are, `rows` are shown."""

    headings: Sequence[Heading]
    rows: Sequence[Sequence[str]]
    total: int


def grid(table: pl.DataFrame, cap: int | None = None, longest: str = "") -> Grid:
    """Return the first `cap` rows of a table as text, or the rows with the largest values of the column `longest`."""
    shown = table
    if cap is not None and table.height > cap:
        shown = table.sort(longest, descending=True, nulls_last=True, maintain_order=True) if longest else table
        shown = shown.head(cap)
    headings, columns = [], []
    for column in shown.columns:
        head, texts = _column(shown[column])
        headings.append(head)
        columns.append(texts)
    return Grid(headings, list(zip(*columns, strict=True)), table.height)


def _column(values: pl.Series) -> tuple[Heading, list[str]]:
    if not values.dtype.is_numeric():
        return Heading(values.name, heading(values.name), "", numeric=False), [
            cell(value) for value in values.to_list()
        ]
    unit = unit_of(values.name)
    if values.dtype.is_float():
        values = pl.select(pl.when(values.is_finite()).then(values).alias(values.name)).to_series()
    chosen = scale(values.to_list(), unit)
    texts = [ABSENT if value is None else chosen.number(value) for value in values.to_list()]
    if not unit and values.dtype.is_integer():
        texts = [ABSENT if value is None else grouped(value, 0) for value in values.to_list()]
    return Heading(values.name, heading(values.name), chosen.unit, numeric=True), texts
