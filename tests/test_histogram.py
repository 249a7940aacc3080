"""Histograms of durations and quantiles from them."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from tracetool.histogram import histogram, quantiles


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**7)), min_size=1, max_size=60))
def test_quantiles_equal_numpy(pairs: list[tuple[int, int]]) -> None:
    counted = pl.DataFrame(pairs, schema={"row": pl.UInt32, "dur_ns": pl.Int64}, orient="row")
    counted = counted.with_columns(count=pl.lit(1, pl.Int64))
    for row, p50, p99 in quantiles(counted, "row").iter_rows():
        values = np.array([d for r, d in pairs if r == row], dtype=np.float64)
        assert abs(p50 - np.quantile(values, 0.5)) <= 0.51
        assert abs(p99 - np.quantile(values, 0.99)) <= 0.51


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=200), st.integers(2, 40))
def test_a_histogram_keeps_its_size_and_its_error(values: list[int], limit: int) -> None:
    durations = pl.DataFrame({"key": [0] * len(values), "dur_ns": values})
    found, bits = histogram(durations, limit)
    assert found["count"].sum() == len(values)
    if not bits:
        assert sorted(set(values)) == found["dur_ns"].to_list()
        return
    assert found.height <= limit or bits == 4
    spread = np.repeat(found["dur_ns"].to_numpy(), found["count"].to_numpy())
    assert (np.abs(np.sort(np.array(values)) - spread) <= np.array(sorted(values)) * 2.0**-bits + 1).all()
