"""Attainable time, what binds and the most another device saves, from small tables."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from tracetool import hardware
from tracetool.mfu.op_arguments import MASK
from tracetool.mfu.roofs import attainable, bounded_share, by_bound, by_shape, roofs_of, what_if

H100, A100 = hardware.find("NVIDIA H100 80GB HBM3"), hardware.find("NVIDIA A100-SXM4-80GB")
CALL: dict[str, Any] = {
    "rank": 0, "step": 1, "op": "aten::mm", "family": "matmul", "shape": "s", "dtype": "bf16", "peak_dtype": "bf16",
    "backward": False, "count": 1, "flops": 10**12, "moved_bytes": 10**6, "kernel_ns": 2_000_000, "flags": "",
}  # fmt: skip


def calls(*rows: dict[str, Any]) -> pl.DataFrame:
    types = {"rank": pl.Int32, "step": pl.Int32}
    return pl.DataFrame([{**CALL, **row} for row in rows]).with_columns(pl.col(n).cast(t) for n, t in types.items())


def timed(table: pl.DataFrame, devices: dict[int, hardware.Device | None], given: float | None = None) -> pl.DataFrame:
    return attainable(table, roofs_of(devices, table, given))


def test_each_rank_stands_under_its_own_roof() -> None:
    found = timed(calls({}, {"rank": 1}), {0: H100, 1: A100})
    assert found["attainable_ns"].to_list() == [round(1e12 / 989.4e12 * 1e9), round(1e12 / 312e12 * 1e9)]
    assert found["lost_ns"].to_list() == [2_000_000 - 1_010_714, 0]


def test_an_unknown_device_under_ranks_of_one_shape_leaves_it_without_a_verdict() -> None:
    shapes = by_shape(timed(calls({}, {"rank": 1}), {0: H100, 1: None}))
    assert shapes.select("count", "attainable_ns", "lost_ns").rows() == [(2, None, None)]
    assert by_bound(shapes)["kernel_ns"].sum() == 4_000_000


def test_a_given_peak_is_that_of_every_format() -> None:
    found = timed(calls({}, {"dtype": "fp8", "peak_dtype": "fp8"}), {0: H100}, 1000.0)
    assert found["attainable_ns"].to_list() == [1_000_000, 1_000_000]


@pytest.mark.parametrize(("flags", "ns", "bounded"), [("", 10, 0.0), (MASK, 10**6, 1 / 3), (MASK, 10**4, 0.0)])
def test_operators_whose_flops_are_upper_bounds_count_from_a_hundredth_of_the_time(
    flags: str, ns: int, bounded: float
) -> None:
    shapes = by_shape(timed(calls({}, {"shape": "t", "flags": flags, "kernel_ns": ns}), {0: H100}))
    assert bounded_share(shapes) == pytest.approx(bounded)


def test_the_floor_on_another_device() -> None:
    assert A100 is not None
    table = what_if(by_shape(timed(calls({}), {0: H100})), A100)
    assert table.select("floor_ns", "saved_at_most_ns").rows() == [(3_205_128, 0)]
