"""Parts of training and annotations: GPU time by the launched-in rule, CPU time as unions."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inmemory import MemoryRank, ask, gpu, rows, run_view

from tracetool.settings import Settings

if TYPE_CHECKING:
    from tracetool.results import Result

phases = import_module("tracetool.analyses.phases")

EVENTS = ("event", "track", "start_ns", "dur_ns", "category", "name")
LINKS = ("event", "parent", "step", "phase")


def cpu(*events: tuple[Any, ...]) -> dict[str, pl.DataFrame]:
    """Return events and links from (track, start, dur, category, name, parent, step, phase), sorted by start."""
    assert [e[1] for e in events] == sorted(e[1] for e in events)
    return {
        "events": rows("events", 0, EVENTS, *((i, *e[:5]) for i, e in enumerate(events))),
        "links": rows("links", 0, LINKS, *((i, *e[5:]) for i, e in enumerate(events))),
    }


def launched(*activities: tuple[int, int, int, int | None, str | None]) -> pl.DataFrame:
    """Return table gpu from (start, dur, launch start, step, phase)."""
    kept = [
        (i, 0, s, d, "compute", "k", i, at, at + 1, step, phase) for i, (s, d, at, step, phase) in enumerate(activities)
    ]
    columns = ("event", "track", "start_ns", "dur_ns", "kind", "name", "launch", "launch_start_ns", "launch_end_ns")
    return rows("gpu", 0, (*columns, "step", "phase"), *kept)


def window(*steps: tuple[int | None, int, int, int | None, int | None]) -> pl.DataFrame:
    columns = ("step", "start_ns", "end_ns", "range_start_ns", "range_end_ns")
    return rows("steps", 0, columns, *steps, open_end=False, basis="gpu")


def table(tables: dict[str, pl.DataFrame], settings: Settings | None = None) -> list[tuple[Any, ...]]:
    result: Result = ask(phases, [MemoryRank(0, tables)], settings)
    return result.tables["phases"].select("phase", "step", "gpu_ns", "cpu_ns").rows()


def test_parts_have_unions_of_what_they_launched_and_of_their_ranges() -> None:
    tables = cpu(
        (0, 0, 10, "cpu_op", "aten::mm", None, 1, "forward"),
        (0, 2, 5, "runtime", "cudaLaunchKernel", 0, 1, "forward"),
        (0, 20, 5, "cpu_op", "aten::add", None, 1, "forward"),
        (1, 22, 10, "cpu_op", "autograd::engine::evaluate_function: MmBackward0", None, 1, "backward"),
    )
    tables["gpu"] = launched((30, 10, 3, 1, "forward"), (35, 10, 4, 1, "forward"), (50, 10, 23, 1, "backward"))
    tables["steps"] = window((1, 30, 60, 0, 40))
    result = ask(phases, [MemoryRank(0, tables)])
    assert result.tables["phases"].rows() == [
        ("forward", 0, 1, 15, 15, "phase", 2),
        ("backward", 0, 1, 10, 10, "phase", 1),
    ]
    assert tuple(result.tables["phases"].columns) == phases.PHASES
    assert result.metrics["forward_gpu_share"] == 0.5
    assert result.metrics["forward_cpu_ns_per_step"] == 15
    assert result.metrics["optimizer_gpu_share"] is None
    assert result.metrics["optimizer_cpu_ns_per_step"] is None
    assert any("optimizer" in note for note in result.notes)


def test_recompute_is_taken_out_of_the_backward_around_it() -> None:
    tables = cpu(
        (1, 0, 100, "cpu_op", "autograd::engine::evaluate_function: CheckpointFunctionBackward", None, 1, "backward"),
        (1, 10, 30, "cpu_op", "aten::mm", 0, 1, "recompute"),
        (1, 12, 5, "runtime", "cudaLaunchKernel", 1, 1, "recompute"),
    )
    assert table(tables) == [("backward", 1, None, 70), ("recompute", 1, None, 30)]


def test_gpu_work_belongs_to_an_annotation_by_its_launch_on_any_thread() -> None:
    tables = cpu(
        (0, 0, 100, "annotation", "my range", None, None, "other"),
        (1, 50, 5, "runtime", "cudaLaunchKernel", None, None, "other"),
        (0, 200, 10, "annotation", "my range", None, None, "other"),
    )
    tables["gpu"] = launched((150, 10, 50, None, "other"), (155, 15, 100, None, "other"), (300, 7, 205, None, "other"))
    assert table(tables) == [("my range", None, 17, 110)]


def test_step_ranges_are_no_annotations() -> None:
    tables = cpu(
        (0, 0, 50, "annotation", "ProfilerStep#3", None, 3, "other"),
        (0, 60, 50, "annotation", "iteration 4", None, 4, "other"),
        (0, 70, 10, "annotation", "execute_context_1(8)_generation_0(0)", 1, 4, "forward"),
    )
    tables["steps"] = window((4, 0, 9, 60, 110))
    assert [row for row in table(tables) if row[0] != "forward"] == [
        ("execute_context_1(8)_generation_0(0)", 4, None, 10)
    ]


def test_chosen_steps_only() -> None:
    tables = cpu(
        (0, 0, 5, "annotation", "a", None, 1, "other"),
        (0, 10, 7, "annotation", "a", None, 2, "other"),
        (0, 20, 7, "annotation", "a", None, None, "other"),
    )
    assert table(tables, Settings(steps=(2,))) == [("a", 2, None, 7)]
    assert len(table(tables)) == 3


def test_a_long_list_of_annotations_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "MAX_NAMES", 2)
    events = [(0, 10 * i, i + 1, "annotation", f"range {i}", None, None, "other") for i in range(5)]
    result = ask(phases, [MemoryRank(0, cpu(*events))])
    assert result.tables["phases"]["phase"].to_list() == ["range 4", "range 3"]
    assert any("2 annotation names" in note for note in result.notes)


def test_on_the_cpu_alone_gpu_time_is_null() -> None:
    result = ask(phases, [MemoryRank(0, cpu((0, 0, 5, "cpu_op", "aten::mm", None, None, "forward")))])
    assert result.tables["phases"]["gpu_ns"].to_list() == [None]
    assert result.metrics["forward_gpu_share"] is None
    assert result.charts[0].y == ("cpu_ns",)


def test_nothing_recognised_is_skipped_with_advice() -> None:
    result = ask(phases, [MemoryRank(0, {"gpu": gpu((0, 1, "compute"))})])
    assert result.status == "skipped"
    assert "record_function" in result.reason


def test_the_view_of_an_empty_run_breaks_nothing() -> None:
    parts = phases.per_rank(MemoryRank(0, {}), {}, Settings())
    assert phases.analyze(parts, run_view([]), Settings()).status == "skipped"


SPAN = st.tuples(st.sampled_from("ab"), st.integers(0, 1), st.integers(0, 40), st.integers(0, 20))
LAUNCHED = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 10))


@pytest.mark.parametrize("at_once", [1, 10, 10**6])
@settings(deadline=None)
@given(st.lists(SPAN, max_size=6), st.lists(LAUNCHED, max_size=6))
def test_equal_to_counting_every_nanosecond(
    at_once: int, spans: list[tuple[str, int, int, int]], activities: list[tuple[int, int, int]]
) -> None:
    spans.sort(key=lambda s: s[0])
    ranges = pl.DataFrame(
        {
            "phase": pl.Series([s[0] for s in spans], dtype=pl.String),
            "step": pl.Series([s[1] for s in spans], dtype=pl.Int32),
            "start_ns": pl.Series([s[2] for s in spans], dtype=pl.Int64),
            "end_ns": pl.Series([s[2] + s[3] for s in spans], dtype=pl.Int64),
        }
    )
    given_gpu = pl.DataFrame(
        {
            "launch_start_ns": pl.Series([a[0] for a in activities], dtype=pl.Int64),
            "start_ns": pl.Series([a[1] for a in activities], dtype=pl.Int64),
            "end_ns": pl.Series([a[1] + a[2] for a in activities], dtype=pl.Int64),
            "step": pl.Series([0] * len(activities), dtype=pl.Int32),
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "PAIRS_AT_ONCE", at_once)
        found = {(p, s): ns for _, p, s, ns in phases.gpu_of_ranges(ranges, given_gpu).iter_rows()}
    for name in "ab":
        for step in (0, 1):
            mine = [(s, s + d) for n, k, s, d in spans if (n, k) == (name, step)]
            inside = [a for a in activities if any(s <= a[0] < e for s, e in mine)]
            expected = sum(any(s <= t < s + d for _, s, d in inside) for t in range(80))
            assert found.get((name, step), 0) == expected


def test_annotations_that_nest_are_shown_by_path() -> None:
    tables = cpu(
        (0, 0, 100, "annotation", "ProfilerStep#1", None, 1, None),
        (0, 5, 90, "annotation", "forward", 0, 1, None),
        (0, 10, 20, "annotation", "layer 0", 1, 1, None),
        (0, 12, 5, "cpu_op", "aten::mm", 2, 1, None),
        (0, 13, 2, "annotation", "gemm", 3, 1, None),
        (0, 14, 1, "runtime", "cudaLaunchKernel", 4, 1, None),
        (0, 40, 20, "annotation", "layer 1", 1, 1, None),
        (0, 45, 1, "runtime", "cudaLaunchKernel", 6, 1, None),
        (1, 46, 1, "runtime", "cudaLaunchKernel", None, 1, None),
        (0, 50, 1, "runtime", "cudaLaunchKernel", 6, 1, None),
        (0, 70, 10, "annotation", "layer 0", 1, 1, None),
    )
    columns = ("event", "track", "start_ns", "dur_ns", "kind", "name", "launch", "launch_start_ns", "launch_end_ns")
    work = [(5, 100, 10, 14), (7, 120, 5, 45), (8, 130, 8, 46), (9, 150, 10, 50)]
    values = [(i, 9, start, dur, "compute", "k", launch, at, at + 1) for i, (launch, start, dur, at) in enumerate(work)]
    tables["gpu"] = rows("gpu", 0, columns, *values)
    tables["steps"] = window((1, 100, 160, 0, 100))
    result = ask(phases, [MemoryRank(0, tables)])
    assert result.tables["paths"].drop("ranks").rows() == [
        # the other thread's kernel counts in gpu_ns, not in the projection; the gap between kernels the other way
        ("forward", 0, 1, 33, 90, 60, 3),
        ("forward / layer 1", 1, 1, 23, 20, 40, 2),
        ("forward / layer 0", 1, 2, 10, 30, 10, 1),
        ("forward / layer 0 / gemm", 2, 1, 10, 2, 10, 1),
    ]


def test_annotations_side_by_side_need_no_paths() -> None:
    tables = cpu((0, 0, 10, "annotation", "a", None, None, None), (0, 20, 10, "annotation", "b", None, None, None))
    assert "paths" not in ask(phases, [MemoryRank(0, tables)]).tables


def test_paths_are_cut_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "MAX_PATHS", 2)
    inner = [(0, 10 * k, k, "annotation", f"inner {k}", 0, None, None) for k in range(1, 5)]
    result = ask(phases, [MemoryRank(0, cpu((0, 0, 100, "annotation", "outer", None, None, None), *inner))])
    assert result.tables["paths"]["path"].to_list() == ["outer", "outer / inner 4"]
    assert result.tables["paths"]["gpu_ns"].to_list() == [None, None]
    assert any("only the 2 paths" in note for note in result.notes)
