"""Lengths in percent and columns as floats."""

from __future__ import annotations

import math

import polars as pl

from tracetool.drawing.svg import numbers, percent


def test_lengths_are_short_and_never_divide_by_nothing() -> None:
    assert [percent(1, 3), percent(1, 2), percent(0, 5), percent(1, 0)] == ["33.33%", "50%", "0%", "0%"]


def test_what_is_no_number_is_nan() -> None:
    found = numbers(pl.DataFrame({"a": [1.5, None, math.inf]}), "a")
    assert found[0] == 1.5
    assert all(math.isnan(value) for value in found[1:])
