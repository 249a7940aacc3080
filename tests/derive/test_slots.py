"""Slots of one rank: every spelling of a range, the launch order without ranges, and what belongs to no slot."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from derive.build import AUTOGRAD, base, event, launched

from tracetool.derive.rank import derive
from tracetool.derive.slots import Piece, pieces
from tracetool.settings import Settings

NCCL = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"


def slots(rows: list[dict[str, Any]], *columns: str) -> list[tuple[Any, ...]]:
    found = derive(base(rows), Settings())["slots"]
    return found.select(*(columns or ("kind", "microbatch", "start_ns", "end_ns"))).rows()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("PP:0F1", (Piece("F", 1, 0),)),
        ("PP:13B2", (Piece("B", 2, 13),)),
        ("PP:3I2", (Piece("B", 2, 3),)),
        ("PP:3W12", (Piece("W", 12, 3),)),
        ("PP:(0F8;7B2)OVERLAP_F_B", (Piece("F", 8, 0), Piece("B", 2, 7))),
        ("PP:(0F8;7I2)OVERLAP_F_B", (Piece("F", 8, 0), Piece("B", 2, 7))),
        ("Forward 3", (Piece("F", 3, None),)),
        ("Backward 0", (Piece("B", 0, None),)),
        ("PP:1UNSHARD", ()),
        ("PP:1RESHARD", ()),
        ("PP:2SEND_F0", ()),
        ("PP:2RECV_B0", ()),
        ("PP:2WAIT_SEND_F0", ()),
        ("PP:0REDUCE_GRAD", ()),
        ("PP:0WAIT_REDUCE_GRAD0", ()),
        ("PP:(0F8;7X2)OVERLAP_F_B", ()),
        ("PP:0F", ()),
        ("PP:0F99999999999", ()),
        ("Forward", ()),
        ("my PP:0F1", ()),
    ],
)
def test_names_of_ranges(name: str, wanted: tuple[Piece, ...]) -> None:
    assert pieces(name) == wanted


def test_a_range_owns_what_was_launched_in_it_on_any_thread_whenever_it_ran() -> None:
    rows = [
        event("annotation", "PP:0F0", 0, 10),
        event("annotation", "PP:0B0", 10, 20),
        *launched(1, 1, 100, 130),
        *launched(2, 5, 130, 150),
        *launched(3, 12, 160, 190, thread=AUTOGRAD),
        *launched(4, 25, 200, 210),
    ]
    assert slots(rows, "kind", "microbatch", "stage", "start_ns", "end_ns", "kernels", "source") == [
        ("F", 0, 0, 100, 150, 2, "pp"),
        ("B", 0, 0, 160, 190, 1, "pp"),
    ]


def test_overlapped_slots_are_told_apart_by_their_phase() -> None:
    rows = [
        event("annotation", "PP:(0F4;3B1)OVERLAP_F_B", 0, 40),
        event("cpu_op", "aten::mm", 1, 5),
        *launched(1, 2, 100, 130),
        event("cpu_op", "autograd::engine::evaluate_function: MmBackward0", 10, 20, track=AUTOGRAD),
        *launched(2, 12, 130, 180, thread=AUTOGRAD),
    ]
    assert slots(rows, "kind", "microbatch", "stage", "piece", "start_ns", "end_ns") == [
        ("F", 4, 0, 0, 100, 130),
        ("B", 1, 3, 0, 130, 180),
    ]


def step(at: int) -> list[dict[str, Any]]:
    """Return two micro-batches of a stage in the middle, launched without any range, and the optimizer."""
    number = iter(range(at, at + 1000))

    def forward(t: int) -> list[dict[str, Any]]:
        return [event("cpu_op", "aten::mm", t, t + 4), *launched(next(number), t + 1, t + 100, t + 110)]

    def backward(t: int) -> list[dict[str, Any]]:
        engine = "autograd::engine::evaluate_function: MmBackward0"
        return [
            event("cpu_op", engine, t, t + 4, track=AUTOGRAD),
            *launched(next(number), t + 1, t + 100, t + 110, thread=AUTOGRAD),
        ]

    def transfer(t: int) -> list[dict[str, Any]]:
        return launched(next(number), t, t + 90, t + 100, name=NCCL, track=8)

    return [
        *transfer(at), *forward(at + 10), *transfer(at + 20), *transfer(at + 21), *forward(at + 30), *transfer(at + 40),
        *transfer(at + 41), *backward(at + 50), *transfer(at + 60), *transfer(at + 61), *backward(at + 70),
        event("annotation", "Optimizer.step#AdamW.step", at + 80, at + 90),
        *launched(next(number), at + 81, at + 190, at + 199),
    ]  # fmt: skip


def test_without_ranges_launches_are_cut_at_sends_and_where_the_thread_changes() -> None:
    columns = ("iteration", "kind", "microbatch", "start_ns", "end_ns", "source")
    assert slots([*step(0), *step(1000)], *columns) == [
        (0, "F", 0, 110, 120, "launch"),
        (0, "F", 1, 130, 140, "launch"),
        (0, "B", 0, 150, 160, "launch"),
        (0, "B", 1, 170, 180, "launch"),
        (1, "F", 0, 1110, 1120, "launch"),
        (1, "F", 1, 1130, 1140, "launch"),
        (1, "B", 0, 1150, 1160, "launch"),
        (1, "B", 1, 1170, 1180, "launch"),
    ]


def test_steps_number_the_iterations() -> None:
    ranges = [event("annotation", "ProfilerStep#7", 0, 1000), event("annotation", "ProfilerStep#8", 1000, 2000)]
    assert {row[:2] for row in slots([*step(0), *step(1000), *ranges], "step", "iteration")} == {(7, 7), (8, 8)}


def test_work_after_the_last_backward_of_a_step_is_no_forward() -> None:
    late = [event("cpu_op", "aten::mul", 195, 199), *launched(900, 196, 299, 300)]
    assert slots([*step(0), *late]) == slots(step(0))


def test_without_sends_and_ranges_there_are_no_slots() -> None:
    assert slots([row for row in step(0) if row["name"] != NCCL]) == []


def test_sends_that_backward_launches_too_are_ring_attention_not_a_pipeline() -> None:
    ring = [
        event("cpu_op", "autograd::engine::evaluate_function: RingBackward", 52, 54, track=AUTOGRAD),
        *launched(900, 53, 300, 310, name=NCCL, track=8, thread=AUTOGRAD),
    ]
    assert slots([*step(0), *ring]) == []


def test_sends_of_a_group_named_after_context_parallelism_cut_nothing() -> None:
    rows = step(0)
    named = [
        {**row, "op": "send", "group": "3", "group_desc": "mesh_cp"} if row["name"] == NCCL else row for row in rows
    ]
    assert slots(named) == []


def test_other_ranges_may_name_the_schedule() -> None:
    nvtx = "megatron.core.pipeline_parallel.schedules.forward_backward_pipelining_with_interleaving.warmup"
    found = derive(base([*step(0), event("annotation", nvtx, 0, 3)]), Settings())["slots"]
    assert found["schedule_hint"].unique().to_list() == ["interleaved_1f1b"]
    assert derive(base(step(0)), Settings())["slots"].filter(pl.col("schedule_hint").is_not_null()).height == 0
