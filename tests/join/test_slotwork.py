"""What a rank did inside its slots: compute, matrix products and waiting, each counted once."""

from __future__ import annotations

import polars as pl
from inmemory import rows

from tracetool.join.slotwork import SCHEMA, added, inside

SLOTS = rows("slots", 3, ("iteration", "piece", "kind", "microbatch", "start_ns", "end_ns", "launch_start_ns",
                          "launch_end_ns", "kernels", "source"),
             (1, 0, "F", 0, 0, 100, 0, 50, 2, "launch"), (1, 1, "B", 0, 100, 300, 0, 50, 2, "launch"))  # fmt: skip


def spans(*rows_: tuple[int, int, str]) -> pl.DataFrame:
    schema = {"start_ns": pl.Int64, "end_ns": pl.Int64, "name": pl.String}
    return pl.DataFrame(list(rows_), schema=schema, orient="row")


def test_waiting_counts_where_nothing_computes_and_products_by_their_names() -> None:
    compute = spans((0, 40, "sm90_gemm_bf16"), (30, 60, "vectorized_elementwise"), (100, 150, "nvjet_hsh_128x256"),
                    (150, 170, "flash_fwd_kernel<gemm traits>"), (200, 300, "triton_tem_fused_mm_0"))  # fmt: skip
    waiting = spans((50, 90, ""), (160, 190, ""))
    found = inside(SLOTS, compute, waiting)
    assert found.schema == SCHEMA
    assert found.sort("piece").drop("rank", "iteration", "piece", "kind").rows() == [
        (0, 60, 30, 40),
        (100, 170, 20, 150),
    ]


def test_slots_of_ranks_that_told_nothing_have_nulls() -> None:
    slots = SLOTS.select("rank", "iteration", "piece", "kind")
    other = slots.with_columns(rank=pl.lit(4, pl.Int32))
    found = added(pl.concat([slots, other]), inside(SLOTS, spans(), spans()))
    assert found["work_ns"].to_list() == [0, 0, None, None]
    assert added(slots, None)["wait_ns"].to_list() == [None, None]
