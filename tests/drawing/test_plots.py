"""Axes: round numbers that enclose the data."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracetool.drawing.plots import _axis, _ticks


@settings(deadline=None)
@given(values=st.lists(st.floats(1e-6, 1e12), min_size=1, max_size=20), log=st.booleans())
def test_every_value_and_tick_lies_on_the_axis(values: list[float], *, log: bool) -> None:
    axis = _axis(values, log=log)
    ticks = _ticks(axis.low, axis.high, log=log)
    assert all(-1e-6 <= axis.at(value) <= 1 + 1e-6 for value in [*values, *ticks])
    assert 1 <= len(ticks) <= 12


def test_ticks_are_round() -> None:
    assert _ticks(0, 100, log=False) == [0, 20, 40, 60, 80, 100]
    assert _ticks(1, 1000, log=True) == pytest.approx([1, 10, 100, 1000])
    assert _ticks(200, 2000, log=True) == pytest.approx([200, 500, 1000, 2000])
