"""Arrays to nullable columns and back."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from derive.build import base, event

from tracetool.derive.columns import Events, masked, nullable, numbers, words
from tracetool.errors import TracetoolError
from tracetool.tables import KINDS, Kind


def test_minus_one_becomes_null() -> None:
    assert nullable(np.array([3, -1, 0])).to_list() == [3, None, 0]
    assert nullable(np.array([3]), pl.Int32).dtype == pl.Int32
    assert nullable(np.array([], np.int64)).to_list() == []


def test_masked_keeps_negative_numbers() -> None:
    assert masked(np.array([-1, -2, 5]), np.array([True, False, True])).to_list() == [-1, None, 5]


def test_words_of_a_closed_vocabulary() -> None:
    column = words(np.array([1, -1, 0, 1]), KINDS, Kind)
    assert column.to_list() == ["comm", None, "compute", "comm"]
    assert column.dtype == Kind


def test_numbers_tell_null_from_zero() -> None:
    values, known = numbers(pl.DataFrame({"x": [0, None, -4]}), "x")
    assert known.tolist() == [True, False, True]
    assert values[known].tolist() == [0, -4]


def test_events_by_category() -> None:
    events = Events.of(
        base([event("cpu_op", "a", 0, 3), event("kernel", "b", 1, 2), event("instant", "c", 5, 5)])["events"]
    )
    assert events.are("kernel", "instant").tolist() == [False, True, True]
    assert events.end.tolist() == [3, 2, 5]
    assert events.names(np.array([1])).to_list() == ["b"]


def test_events_must_be_numbered_in_order() -> None:
    table = base([event("cpu_op", "a", 0, 3), event("cpu_op", "b", 1, 2)])["events"]
    with pytest.raises(TracetoolError, match="numbered in order"):
        Events.of(table.with_columns(pl.col("event") + 1))
