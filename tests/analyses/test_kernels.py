"""Kernels by name, kind and phase: exact statistics over the calls of all ranks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from inmemory import MemoryRank, ask, gpu, steps

from tracetool.settings import Settings
from tracetool.tables import Phase, frame

if TYPE_CHECKING:
    from tracetool.results import Result

kernels = import_module("tracetool.analyses.kernels")


def named(name: str, *durations: int, start: int = 0, kind: str = "compute") -> list[tuple[Any, ...]]:
    return [(start + 1000 * i, dur, kind, None, None, name) for i, dur in enumerate(durations)]


def one(activities: list[Any], *windows: tuple[int, int, int], settings: Settings | None = None) -> Result:
    table = gpu(*activities)
    whole = (None, 0, max(a[0] + a[1] for a in activities))
    return ask(kernels, [MemoryRank(0, {"gpu": table, "steps": steps(*(windows or (whole,)))})], settings)


def test_statistics_are_of_the_calls_not_of_the_ranks() -> None:
    ranks = [
        MemoryRank(r, {"gpu": gpu(*named("gemm", *durations), rank=r), "steps": steps((None, 0, 9999), rank=r)})
        for r, durations in ((0, (10, 10, 10)), (1, (100,)))
    ]
    (row,) = ask(kernels, ranks).tables["kernels"].to_dicts()
    assert (row["count"], row["total_ns"], row["mean_ns"], row["p50_ns"]) == (4, 130, 32, 10)
    assert (row["p99_ns"], row["min_ns"], row["max_ns"], row["ranks"]) == (97, 10, 100, 2)
    assert row["share"] == 1.0


def test_kind_and_phase_split_a_name_and_most_time_comes_first() -> None:
    table = gpu(*named("k", 5, 7), *named("k", 20, start=5000, kind="comm")).with_columns(
        phase=pl.Series(["forward", "backward", None], dtype=Phase)
    )
    result = ask(kernels, [MemoryRank(0, {"gpu": table, "steps": steps((None, 0, 6000))})])
    found = result.tables["kernels"].select("kind", "phase", "count", "total_ns").rows()
    assert found == [("comm", None, 1, 20), ("compute", "backward", 1, 7), ("compute", "forward", 1, 5)]
    assert result.metrics["kernels"] == 3
    assert result.metrics["names"] == 1


def test_all_activity_counts_unless_steps_are_chosen() -> None:
    activities = named("a", 5, 5, 5)
    assert one(activities, (1, 1000, 1500)).metrics["activities"] == 3
    assert one(activities, (1, 1000, 1500), settings=Settings(steps=(1,))).metrics["activities"] == 1


def test_a_long_table_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MAX_ROWS", 2)
    result = one([*named("a", 30), *named("b", 20, start=100), *named("c", 50, start=200)])
    assert result.tables["kernels"]["name"].to_list() == ["c", "a"]
    assert any("1 more" in note and "20.0 %" in note for note in result.notes)


def test_full_precision_multiplications_are_a_finding() -> None:
    result = one(named("volta_sgemm_128x64_tn", 400), (1, 0, 1000))
    (finding,) = result.findings
    assert (finding.id, finding.severity) == ("kernels.full_precision", "critical")
    assert finding.saving.rows() == [(0, 1, 0, 200)]


def test_a_healthy_run_has_no_finding() -> None:
    assert not one(named("ampere_bf16_s16816gemm_bf16_128x64_tn", 400), (1, 0, 1000)).findings


def test_nothing_inside_the_chosen_steps_is_skipped() -> None:
    result = one(named("a", 5), (1, 500, 600), settings=Settings(steps=(1,)))
    assert result.status == "skipped"


def test_graphs_recorded_as_a_whole_are_a_finding_with_the_flag_to_use() -> None:
    table = gpu(*named("gemm", 100), *named("CUDA graph 5", 300, 100, start=2000))
    events = frame(
        "events",
        {
            "event": table["event"],
            "rank": [0] * 3,
            "track": [0] * 3,
            "start_ns": table["start_ns"],
            "dur_ns": table["dur_ns"],
            "category": ["kernel", "graph", "graph"],
            "name": table["name"],
        },
    )
    result = ask(kernels, [MemoryRank(0, {"gpu": table, "events": events, "steps": steps((None, 0, 9999))})])
    assert (result.metrics["graph_replays"], result.metrics["graph_share"]) == (2, 0.8)
    (finding,) = result.findings
    assert (finding.id, finding.severity, finding.saving.height) == ("kernels.graph_replays", "warning", 0)
    assert "--cuda-graph-trace=node" in finding.advice
    assert "MFU" in finding.detail
    assert finding.evidence == (("kernels", (0,)),)


def test_without_such_graphs_nothing_is_said_of_them() -> None:
    result = one(named("gemm", 100))
    assert (result.metrics["graph_replays"], result.metrics["graph_share"]) == (0, 0.0)
    assert result.findings == []


@pytest.mark.parametrize(
    "name",
    [
        "void multi_tensor_apply_kernel<TensorListMetadata<4>, FusedAdamMathFunctor<float, 4> >",
        "triton_poi_fused_add_mul_0",
        "void reduce_kernel<512, 1, ReduceOp<float, MeanOps<float>, func_wrapper_t<SumFunctor<float> > > >",
    ],
)
def test_kernels_that_are_fused_already_or_reduce_are_not_called_element_wise(name: str) -> None:
    assert not one(named(name, 900), (1, 0, 1000)).findings
