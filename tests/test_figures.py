"""Small figures: shares, quantiles, means that add up, how grave a share is."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracetool import figures


def test_a_share_of_nothing_is_not_known() -> None:
    assert figures.share(1, 4) == 0.25
    assert figures.share(0, 0) is None


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=30), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_quantiles_are_those_of_numpy(values: list[int], q: float) -> None:
    found = figures.quantile_ns(pl.Series(values, dtype=pl.Int64), q)
    assert found is not None
    assert abs(found - float(np.quantile(np.array(values, dtype=np.float64), q))) <= 0.51


def test_no_values_have_no_quantile() -> None:
    assert figures.quantile_ns(pl.Series([], dtype=pl.Int64), 0.5) is None


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8), st.integers(1, 9))
def test_rounded_means_still_add_up(parts: list[int], count: int) -> None:
    means = figures.apportion(parts, count)
    assert sum(means) == sum(parts) // count
    assert all(abs(mean - part / count) < 1 for mean, part in zip(means, parts, strict=True))


@pytest.mark.parametrize(
    ("part", "expected"),
    [(None, "info"), (0.005, "info"), (0.04, "info"), (0.05, "warning"), (0.3, "warning"), (0.31, "critical")],
)
def test_how_grave_a_share_is(part: float | None, expected: str) -> None:
    assert figures.severity(part, 0.05, 0.31) == expected


def test_below_one_percent_is_info_whatever_the_limits() -> None:
    assert figures.severity(0.009, 0.0, 0.0) == "info"


@pytest.mark.parametrize(
    ("ns", "text"),
    [(1_234, "0.001 ms"), (1_234_567, "1.23 ms"), (12_345_678, "12.3 ms"), (123_456_789, "123 ms"), (0, "0.000 ms")],
)
def test_times_in_sentences(ns: int, text: str) -> None:
    assert figures.milliseconds(ns) == text


def test_shares_in_sentences() -> None:
    assert figures.percent(0.1234) == "12.3 %"
    assert figures.percent(None) == "unknown"
