"""Innermost ranges against brute force; names of emit_nvtx."""

from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from tracetool.nvtx import innermost, nest, torch_names

SPAN = {"thread": pl.Int64, "start_ns": pl.Int64, "end_ns": pl.Int64, "domain": pl.Int64}
POINT = {"thread": pl.Int64, "at_ns": pl.Int64}


def ranges(*rows: tuple[int, int, int, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SPAN, orient="row")


def brute(rows: list[tuple[int, int, int, int]], thread: int, at: int) -> tuple[int, int] | None:
    """Return (start, end) of the innermost range: the latest start, of equals the shortest."""
    inside = [(start, -end) for t, start, end, _ in rows if t == thread and start <= at < end]
    return (max(inside)[0], -max(inside)[1]) if inside else None


@st.composite
def stacks(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Ranges that nest on each (thread, domain); domains may cross."""
    made: list[tuple[int, int, int, int]] = []

    def fill(thread: int, domain: int, low: int, high: int, depth: int) -> None:
        at = low
        while at < high and depth < 4 and draw(st.booleans()):
            start = draw(st.integers(at, high))
            end = draw(st.integers(start, high))
            made.append((thread, start, end, domain))
            fill(thread, domain, start, end, depth + 1)
            at = max(end, at + 1)

    for thread in (1, 2):
        for domain in draw(st.sampled_from([(0,), (0, 1)])):
            fill(thread, domain, 0, 30, 0)
    return draw(st.permutations(made))


@settings(deadline=None)
@given(stacks(), st.lists(st.tuples(st.integers(1, 3), st.integers(0, 31)), max_size=20))
def test_innermost_is_what_a_look_at_every_range_finds(
    rows: list[tuple[int, int, int, int]], points: list[tuple[int, int]]
) -> None:
    found = innermost(ranges(*rows), pl.DataFrame(points, schema=POINT, orient="row"))
    spans = [None if row is None else rows[row][1:3] for row in found.to_list()]
    assert spans == [brute(rows, thread, at) for thread, at in points]


def test_a_range_holds_its_start_and_not_its_end() -> None:
    found = innermost(ranges((1, 10, 20, 0)), pl.DataFrame({"thread": [1, 1, 1], "at_ns": [9, 10, 20]}))
    assert found.to_list() == [None, 0, None]


def test_nest_names_the_enclosing_range_and_skips_empty_ones() -> None:
    found = nest(ranges((1, 0, 100, 0), (1, 10, 10, 0), (1, 0, 50, 0), (1, 50, 100, 0), (2, 5, 6, 0)))
    assert found["parent"].to_list() == [None, None, 0, 0, None]
    assert found["depth"].to_list() == [0, None, 1, 1, 0]


def test_names_of_operators_and_user_ranges_are_told_apart() -> None:
    names = [
        "aten::mul, seq = 46743, op_id = 995924",
        "aten::addmm, seq = 3, op_id = 9, sizes = [[8], [4, 2], [2, 8], []], input_op_ids = [(7,0)]",
        "MyFunction, seq = 4, op_id = 1",
        "autograd::engine::evaluate_function: MmBackward0, op_id = 5",
        "record_param_comms, op_id = 991143",
        "nccl:all_to_all, op_id = 991144",
        "FSDP::pre_forward (blocks.0), op_id = 3",
        "forward, step",
        "aten::copy_",
    ]
    found = torch_names(pl.Series(names))
    assert found["name"].to_list() == [
        "aten::mul", "aten::addmm", "MyFunction", "autograd::engine::evaluate_function: MmBackward0",
        "record_param_comms", "nccl:all_to_all", "FSDP::pre_forward (blocks.0)", "forward, step", "aten::copy_",
    ]  # fmt: skip
    assert found["is_op"].to_list() == [True, True, True, True, True, False, False, False, False]
    assert found["sequence"].to_list() == [46743, 3, 4, *[None] * 6]
    assert found["input_dims"].to_list() == [None, "[[8], [4, 2], [2, 8], []]", *[None] * 7]
