"""Budget, overlap, kernels and host on public traces: the figures of their README, to the ns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import tracetool
from tracetool.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracetool.run import Run

QWEN = "Qwen_Qwen1.5-0.5B-Chat__1016005.json.gz"
# span, compute, comm, copy, comm ∩ compute, exposed comm, exposed copy, idle; GPU events, kernels, no launch
FIGURES = {
    "hta/nccl_data.json.gz": (
        660551005, 115655847, 46876493, 7317025, 39559468, 2284699, 503050991, 3774, 2700, 0,
    ),
    "hta/df_index_resolver.json.gz": (
        1732965000, 620516000, 357343000, 0, 357343000, 22754000, 732352000, 22290, 19370, 0,
    ),
    "hta/trace_filter/sampled_rank-0.json.gz": (
        1222847000, 210320000, 396199000, 59216000, 336983000, 353000, 675191000, 1204, 1154, 0,
    ),
    "hta/trace_filter/sampled_rank-1.json.gz": (
        1231186000, 271973000, 379053000, 75530000, 303523000, 4554000, 651136000, 1154, 1104, 0,
    ),
    "hta/mi250_minitoy_train_ROCm6_2_kineto.json.gz": (8911887, 110881, 0, 0, 0, 38161, 8762845, 16, 14, 0),
    "hta/backward_thread.json": (45000, 45000, 0, 0, 0, 0, 0, 1, 1, 0),
    "hta/event_sync_trace.json.gz": (263000, 49000, 0, 0, 0, 2000, 212000, 5, 4, 0),
    "tracelens/mi300/resnet_act_checkpoint.json.gz": (
        86567708, 25739303, 71516523, 15891299, 55625224, 2637529, 2565652, 3653, 2995, 968,
    ),
    f"tracelens/h100/{QWEN}": (49652832, 45432698, 0, 0, 0, 214602, 4005532, 1707, 1465, 509),
    f"tracelens/mi300/{QWEN}": (47085800, 43062042, 0, 0, 0, 760, 4022998, 1517, 1516, 463),
    "tracelens/inference/sglang_Qwen3-8B_prefilldecode.json.gz": (
        987288887, 492768906, 0, 0, 0, 37971, 494482010, 534, 527, 0,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FIGURES)
def opened(request: pytest.FixtureRequest, shared: Path) -> Iterator[tuple[str, Run]]:
    with tracetool.open_run(
        shared / "kineto" / request.param, Settings(ignore_steps=True), engine="serial", cache="off"
    ) as run:
        yield request.param, run


def test_the_budget_equals_plain_interval_arithmetic(opened: tuple[str, Run]) -> None:
    name, run = opened
    result = run.results["budget"]
    (row,) = result.tables["per_rank_step"].to_dicts()
    span, compute, comm, overlap, exposed, copies, idle, _, _, orphans = FIGURES[name]
    assert row["window_ns"] == span
    assert row["compute_ns"] == compute
    assert row["comm_total_ns"] == comm
    assert row["overlap_ns"] == overlap
    assert row["exposed_total_ns"] == exposed
    assert row["exposed_comm_ns"] + row["sync_wait_ns"] + row["pipeline_bubble_ns"] == exposed
    assert row["memcpy_ns"] == copies
    assert row["host_bound_ns"] + row["idle_ns"] == idle
    assert result.metrics["orphans"] == orphans


def test_overlap_agrees_with_the_budget(opened: tuple[str, Run]) -> None:
    name, run = opened
    result = run.results["overlap"]
    _, _, comm, overlap, exposed, *_ = FIGURES[name]
    if not comm:
        assert result.status == "skipped"
        assert result.reason
        return
    whole = result.tables["per_rank_step"].row(0, named=True)
    assert (whole["role"], whole["comm_ns"], whole["overlap_ns"], whole["exposed_ns"]) == (
        "all",
        comm,
        overlap,
        exposed,
    )


def test_every_activity_is_counted(opened: tuple[str, Run]) -> None:
    name, run = opened
    *_, activities, kernels, _ = FIGURES[name]
    for question in ("kernels", "timeline"):
        assert run.results[question].metrics["activities"] == activities
    assert run.results["kernels"].metrics["kernels"] == kernels


def test_causes_sum_to_host_bound(opened: tuple[str, Run]) -> None:
    _, run = opened
    bound = run.results["budget"].tables["per_rank_step"]["host_bound_ns"].to_list()
    assert run.results["host"].tables["per_rank_step"]["host_bound_ns"].to_list() == bound


def test_phases_say_something_true(opened: tuple[str, Run]) -> None:
    _, run = opened
    result = run.results["phases"]
    assert result.status == "ok", result.reason
    window = int(run.results["budget"].tables["per_rank_step"]["window_ns"].sum())
    gpu = result.tables["parts"]["gpu_ns"]
    assert gpu.null_count() == 0
    assert 0 < int(gpu.sum()) <= 2 * window


@pytest.mark.parametrize(
    ("rank", "total", "longest", "shortest"), [(0, 195327, 62783, 11727), (1, 168027, 57924, 8370)]
)
def test_the_top_kernel_is_that_of_another_tool(
    shared: Path, rank: int, total: int, longest: int, shortest: int
) -> None:
    # HolisticTraceAnalysis 0.5.0 on the first step of these files, µs
    path = shared / "kineto" / "hta" / "trace_filter" / f"sampled_rank-{rank}.json.gz"
    with tracetool.open_run(path, Settings(steps=(551,)), engine="serial", cache="off") as run:
        table = run.results["kernels"].tables["kernels"]
        comm = table.filter(table["kind"] == "comm")
        assert comm["name"].n_unique() == 1
        assert comm["count"].sum() == 5
        assert comm["total_ns"].sum() == 1000 * total
        assert (comm["max_ns"].max(), comm["min_ns"].min()) == (1000 * longest, 1000 * shortest)


def test_a_trace_of_the_cpu_alone_says_what_it_can(shared: Path) -> None:
    with tracetool.open_run(shared / "kineto" / "hta" / "cpu_only", engine="serial", cache="off") as run:
        assert run.results["budget"].status == "skipped"
        assert "ProfilerActivity.CUDA" in run.results["budget"].reason
        phases = run.results["phases"]
        assert phases.status == "ok"
        assert phases.tables["phases"]["gpu_ns"].null_count() == phases.tables["phases"].height
        assert int(phases.tables["annotations"]["cpu_ns"].sum()) > 0


def test_memory_of_a_real_trace(shared: Path) -> None:
    path = shared / "kineto" / "hta" / "df_index_resolver.json.gz"
    with tracetool.open_run(path, engine="serial", cache="off") as run:
        result = run.results["memory"]
        assert result.metrics["peak_reserved_bytes"] == 12_782_141_440
        assert result.tables["devices"]["records"].sum() == 28_010
