"""Memory of the caching allocator: peaks, series, parts, growth."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inmemory import MemoryRank, ask, rows

from tracetool.settings import Settings

if TYPE_CHECKING:
    from tracetool.results import Result

memory = import_module("tracetool.analyses.memory")

GIB = 2**30


def rank_of(
    *records: tuple[int, int, int],
    steps: tuple[tuple[int, int, int], ...] = (),
    device: int = 0,
    cpu: tuple[Any, ...] = (),
) -> MemoryRank:
    """Return a rank from records (at, allocated, reserved), steps (step, range) and CPU ranges (start, end, phase)."""
    before = [0, *(r[1] for r in records)]
    values = [
        (at, name, value)
        for (at, allocated, reserved), last in zip(records, before, strict=False)
        for name, value in zip(memory._VALUES, (allocated, reserved, allocated - last), strict=True)  # noqa: SLF001 - names of the counters
    ]
    ranges = [(i, s, e - s) for i, (s, e, _) in enumerate(cpu)]
    of_steps = ("step", "range_start_ns", "range_end_ns")
    return MemoryRank(
        0,
        {
            "counters": rows("counters", 0, ("at_ns", "name", "value"), *values, track=0, device=device),
            "events": rows(
                "events", 0, ("event", "start_ns", "dur_ns"), *ranges, track=0, category="cpu_op", name="op"
            ),
            "links": rows("links", 0, ("event", "phase"), *((i, c[2]) for i, c in enumerate(cpu))),
            "steps": rows(
                "steps",
                0,
                of_steps,
                *steps,
                start_ns=0,
                end_ns=1,
                basis="gpu",
                open_end=False,
            ),
        },
    )


def one(*records: tuple[int, int, int], size: int | None = 80 * GIB, **about: Any) -> Result:  # noqa: ANN401 - see rank_of
    return ask(memory, [rank_of(*records, **about)], device_memory_bytes=size)


def test_peaks_of_the_run_and_of_each_step_hold_what_a_step_began_with() -> None:
    records = ((0, 7 * GIB, 10 * GIB), (150, 3 * GIB, 20 * GIB), (250, 5 * GIB, 20 * GIB))
    result = one(*records, steps=((1, 100, 190), (2, 200, 290)))
    assert result.metrics["peak_allocated_bytes"] == 7 * GIB
    assert result.metrics["peak_reserved_bytes"] == 20 * GIB
    assert result.metrics["peak_share_of_device"] == 0.25
    assert result.metrics["unused_share"] == 15 / 20
    columns = ("step", "peak_allocated_bytes", "peak_reserved_bytes", "end_allocated_bytes")
    assert result.tables["per_rank_step"].select(columns).rows() == [
        (1, 7 * GIB, 20 * GIB, 3 * GIB),
        (2, 5 * GIB, 20 * GIB, 5 * GIB),
    ]


def test_parts_have_their_own_peaks_and_changes() -> None:
    cpu = ((0, 100, "forward"), (200, 300, "backward"))
    result = one((10, 4, 8), (50, 9, 16), (150, 30, 32), (250, 5, 32), cpu=cpu)
    found = result.tables["parts"].select("part", "peak_allocated_bytes", "allocated_bytes", "freed_bytes").rows()
    assert found == [("forward", 9, 9, 0), ("backward", 5, 0, 25)]


def test_without_step_ranges_the_whole_trace_is_one() -> None:
    result = one((10, 4, 8), (50, 9, 16))
    assert result.tables["per_rank_step"].select("step", "peak_allocated_bytes").rows() == [(None, 9)]
    assert any("Growth needs" in note for note in result.notes)


def test_the_series_is_thin_and_keeps_the_peak() -> None:
    result = one(*((i, i % 977, 1000) for i in range(5000)))
    series = result.tables["series"]
    assert series.height <= memory.BINS
    assert series["allocated_bytes"].max() == 976
    for chart in result.charts:
        assert {*chart.y, chart.x or chart.label} <= set(result.tables[chart.table].columns)


def test_host_memory_alone_is_said_and_has_no_share_of_a_device() -> None:
    result = one((0, 100, 0), device=-1)
    assert result.metrics["peak_allocated_bytes"] == 100
    assert result.metrics["peak_share_of_device"] is None
    assert result.metrics["unused_share"] is None
    assert any("host only" in note for note in result.notes)


def test_a_device_of_unknown_size_has_no_share() -> None:
    result = one((0, 100, 200), size=None)
    assert result.metrics["peak_share_of_device"] is None
    assert any("not recorded" in note for note in result.notes)


def test_a_full_device_and_a_leak_are_warnings() -> None:
    steps = tuple((k, 100 * k, 100 * k + 90) for k in range(4))
    result = one(*((100 * k + 50, (70 + k) * GIB, 79 * GIB) for k in range(4)), steps=steps)
    assert [(f.id, f.severity) for f in result.findings] == [
        ("memory.near_limit", "warning"),
        ("memory.growth", "warning"),
    ]
    assert result.metrics["growth_bytes_per_step"] == GIB
    table, numbers = result.findings[0].evidence[0]
    assert result.tables[table][list(numbers)]["peak_share_of_device"].item() == 79 / 80


def test_a_healthy_run_has_no_finding() -> None:
    steps = tuple((k, 100 * k, 100 * k + 90) for k in range(4))
    assert not one(*((50 * k, (20 + k % 2) * GIB, 24 * GIB) for k in range(8)), steps=steps).findings


def test_records_without_values_are_skipped() -> None:
    tables = {"counters": rows("counters", 0, ("at_ns", "name", "value"), (0, "something_else", 1), track=0)}
    assert ask(memory, [MemoryRank(0, tables)], Settings()).status == "skipped"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.none() | st.integers(0, 9)), max_size=8),
    st.lists(st.integers(-3, 45), min_size=2, max_size=5, unique=True),
)
def test_peaks_equal_looking_at_every_instant(values: list[tuple[int, int | None]], edges: list[int]) -> None:
    values.sort(key=lambda v: v[0])
    edges.sort()
    at = np.array([v[0] for v in values], dtype=np.int64)
    found = memory.peaks(
        at, pl.Series([v[1] for v in values], dtype=pl.Int64), np.array(edges[:-1]), np.array(edges[1:])
    )
    for i, (start, end) in enumerate(pairwise(edges)):
        began = [v for t, v in values if t <= start][-1:]
        seen = [v for v in began + [v for t, v in values if start <= t < end] if v is not None]
        assert found[i] == (max(seen) if seen else None)


@pytest.mark.parametrize("when", [-5, 0, 3, 99])
def test_the_value_in_force(when: int) -> None:
    at, values = np.array([0, 3, 3], dtype=np.int64), pl.Series([1, 2, 4])
    found = memory._in_force(at, values, np.array([when], dtype=np.int64))  # noqa: SLF001 - its edges are worth a test
    assert found.to_list() == [{-5: None, 0: 1, 3: 4, 99: 4}[when]]
