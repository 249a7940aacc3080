"""Host-bound time by cause, synchronising calls, launch latency, queue depth."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inmemory import MemoryRank, ask, gpu, rows, steps

from tracetool.settings import Settings

if TYPE_CHECKING:
    from tracetool.results import Result

budget = import_module("tracetool.analyses.budget")
host = import_module("tracetool.analyses.host")

Range = tuple[int, int, int, str, str]
FIRST: Range = (0, -20, -10, "runtime", "cudaLaunchKernel")
SECOND: Range = (0, 160, 170, "runtime", "cudaLaunchKernel")


def rank_of(cpu: list[Range], activities: list[tuple[int, int, int]], phase: str | None = None) -> MemoryRank:
    """Return a rank from CPU ranges (track, start, end, category, name) and activities (start, dur, launch's row).

    Ranges get `phase` unless they are API calls; parents are the innermost ranges of the same track.
    """
    cpu = sorted(cpu, key=lambda c: (c[1], -c[2]))
    launch_of = {c: i for i, c in enumerate(cpu)}
    table = gpu(*((s, d, "compute", cpu[i][1], cpu[i][2]) for s, d, i in activities))
    table = table.with_columns(launch=pl.Series([i for _, _, i in sorted(activities)], dtype=pl.Int64))
    events = [(i, c[0], c[1], c[2] - c[1], c[3], c[4]) for i, c in enumerate(cpu)]
    links = []
    for i, c in enumerate(cpu):
        around = [j for j, o in enumerate(cpu) if j < i and o[0] == c[0] and o[1] <= c[1] and c[2] <= o[2]]
        links.append((i, around[-1] if around else None, None if c[3] == "runtime" else phase))
    assert len(launch_of) == len(cpu)
    end = max(s + d for s, d, _ in activities)
    return MemoryRank(
        0,
        {
            "gpu": table,
            "events": rows("events", 0, ("event", "track", "start_ns", "dur_ns", "category", "name"), *events),
            "links": rows("links", 0, ("event", "parent", "phase"), *links),
            "steps": steps((1, 0, end)),
        },
    )


def dry(*cpu: Range, phase: str | None = None) -> Result:
    """Two activities, [0, 100) and [180, 200): the GPU is dry from 100, host-bound up to 170."""
    every = sorted([FIRST, SECOND, *cpu], key=lambda c: (c[1], -c[2]))
    return ask(host, [rank_of(every, [(0, 100, every.index(FIRST)), (180, 20, every.index(SECOND))], phase)])


def causes(result: Result) -> dict[str, int]:
    return {cause: ns for cause, ns in result.tables["causes"].select("cause", "ns").iter_rows() if ns}


@pytest.mark.parametrize(
    ("cpu", "phase", "expected"),
    [
        pytest.param((), None, {"python": 60, "launch_call": 10}, id="nothing recorded"),
        pytest.param(
            ((0, 90, 140, "cpu_op", "aten::mm"),),
            None,
            {"operator": 40, "python": 20, "launch_call": 10},
            id="operator",
        ),
        pytest.param(
            ((0, 90, 140, "cpu_op", "next"),),
            "dataloader",
            {"dataloader": 40, "python": 20, "launch_call": 10},
            id="loader",
        ),
        pytest.param(
            ((0, 90, 140, "annotation", "save"),),
            "checkpoint",
            {"checkpoint": 40, "python": 20, "launch_call": 10},
            id="checkpoint",
        ),
        pytest.param(
            ((5, 110, 120, "annotation", "Python GC"),),
            None,
            {"garbage_collection": 10, "python": 50, "launch_call": 10},
            id="collector on any thread",
        ),
        pytest.param(
            ((9, 100, 130, "overhead", "Buffer Flush"),),
            None,
            {"profiler": 30, "python": 30, "launch_call": 10},
            id="profiler",
        ),
        pytest.param(((0, 20, 105, "runtime", "cudaDeviceSynchronize"),), None, {"sync": 70}, id="synchronised"),
        pytest.param(
            ((0, 20, 60, "runtime", "cudaDeviceSynchronize"),), None, {"sync": 70}, id="within the skew of the clocks"
        ),
        pytest.param(
            ((3, 20, 105, "runtime", "cudaDeviceSynchronize"),),
            None,
            {"python": 60, "launch_call": 10},
            id="a thread that launches nothing",
        ),
        pytest.param(
            ((0, 110, 120, "runtime", "cudaMalloc"),),
            None,
            {"allocation": 10, "python": 50, "launch_call": 10},
            id="allocation",
        ),
        pytest.param(
            ((0, 90, 150, "annotation", "ProfilerStep#3"),),
            None,
            {"python": 60, "launch_call": 10},
            id="a range around everything tells nothing",
        ),
    ],
)
def test_each_instant_has_one_cause(cpu: tuple[Range, ...], phase: str | None, expected: dict[str, int]) -> None:
    result = dry(*cpu, phase=phase)
    assert causes(result) == expected
    assert result.tables["per_rank_step"]["host_bound_ns"].to_list() == [70]
    assert result.metrics["host_bound_share"] == 70 / 200


def test_a_call_that_returned_long_before_emptied_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SKEW_NS", 30)
    assert "sync" not in causes(dry((0, 20, 60, "runtime", "cudaDeviceSynchronize")))


def test_synchronising_calls_are_listed_with_their_callers() -> None:
    op = (0, 10, 110, "cpu_op", "aten::item")
    result = dry(op, (0, 20, 105, "runtime", "cudaStreamSynchronize"))
    assert result.tables["sync_calls"].rows() == [("cudaStreamSynchronize", "aten::item", 1, 85, 70, 1)]
    (finding,) = result.findings
    assert (finding.id, finding.severity) == ("host.sync", "critical")
    assert "aten::item" in finding.detail
    assert finding.saving.rows() == [(0, 1, 100, 70)]


def test_a_finding_is_as_grave_as_on_the_rank_that_loses_most() -> None:
    loader: Range = (0, 100, 155, "cpu_op", "next")
    every = sorted([FIRST, SECOND, loader], key=lambda c: (c[1], -c[2]))
    slow = rank_of(every, [(0, 100, 0), (180, 20, every.index(SECOND))], "dataloader")
    busy = [rank_of([FIRST], [(0, 200, 0)]).tables for _ in range(9)]
    others = [
        MemoryRank(r, {n: t.with_columns(rank=pl.lit(r, pl.Int32)) for n, t in tables.items()})
        for r, tables in enumerate(busy, 1)
    ]
    finding = next(f for f in ask(host, [slow, *others]).findings if f.id == "host.dataloader")
    assert finding.severity == "critical"
    assert "On average 2.8 % of a rank's step" in finding.detail
    assert finding.where.ranks == (0,)
    assert "27.5 % on rank 0" in finding.detail


def test_latency_with_and_without_a_queue() -> None:
    result = dry()
    assert result.metrics["dry_launch_latency_ns_p50"] == 20
    assert result.metrics["launch_latency_ns_p99"] == 20


def test_the_queue_is_weighted_by_time() -> None:
    calls = [FIRST, (0, 10, 15, "runtime", "cudaLaunchKernel"), (0, 20, 25, "runtime", "cudaLaunchKernel")]
    result = ask(host, [rank_of(calls, [(0, 100, 0), (100, 50, 1), (150, 50, 2)])])
    assert result.metrics["queue_depth_mean"] == (90 + 130) / 200
    queue = result.tables["queue"]
    assert (queue["depth_mean"] * queue["dur_ns"]).sum() == pytest.approx(90 + 130)
    assert queue["dur_ns"].sum() == 200


def test_a_gpu_that_is_always_busy_has_no_finding() -> None:
    calls = [FIRST, (0, 10, 15, "runtime", "cudaLaunchKernel")]
    result = ask(host, [rank_of(calls, [(0, 100, 0), (100, 50, 1)])])
    assert not result.findings
    assert result.metrics["host_bound_share"] == 0.0
    assert result.metrics["dry_launch_latency_ns_p50"] is None


def test_profiler_settings_are_noted() -> None:
    rank = rank_of([FIRST], [(0, 100, 0)])
    assert any("with_stack" in note for note in ask(host, [rank], with_stack=True).notes)


def test_no_step_is_skipped() -> None:
    rank = rank_of([FIRST], [(0, 100, 0)])
    tables = {name: table for name, table in rank.tables.items() if name != "steps"}
    assert ask(host, [MemoryRank(0, tables)], Settings()).status == "skipped"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8), st.lists(st.integers(-5, 60), max_size=5)
)
def test_the_integral_of_depth_equals_counting(spans: list[tuple[int, int]], at: list[int]) -> None:
    spans = [(min(s), max(s)) for s in spans]
    waiting = pl.DataFrame(spans, schema={"start_ns": pl.Int64, "end_ns": pl.Int64}, orient="row")
    found = host.integral(waiting, np.array(at, dtype=np.int64))
    assert found.tolist() == [sum(max(0, min(t, e) - s) for s, e in spans) for t in at]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 15), st.integers(0, 10)), min_size=1, max_size=6), st.data()
)
def test_causes_sum_to_the_budget(drawn: list[tuple[int, int, int]], data: st.DataObject) -> None:
    calls = [(0, s - back, s - back + 1 + i % 3, "runtime", f"launch {i}") for i, (s, _, back) in enumerate(drawn)]
    name = st.sampled_from(["cudaDeviceSynchronize", "cudaFree", "gc", "aten::add"])
    extra = data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 60), st.integers(1, 20), name), max_size=4))
    others = [(t, s, s + d, "cpu_op" if n == "aten::add" else "runtime", n) for t, s, d, n in set(extra)]
    every: list[Range] = sorted([*calls, *others], key=lambda c: (c[1], -c[2]))
    rank = rank_of(every, [(s, d, every.index(c)) for (s, d, _), c in zip(drawn, calls, strict=True)])
    found, expected = ask(host, [rank]), ask(budget, [rank])
    rows_of = found.tables["per_rank_step"]
    assert rows_of["host_bound_ns"].to_list() == expected.tables["per_rank_step"]["host_bound_ns"].to_list()
    assert (
        rows_of.select(pl.sum_horizontal(pl.exclude("rank", "step", "host_bound_ns"))).to_series().to_list()
        == rows_of["host_bound_ns"].to_list()
    )
