"""Own work of one rank: compute, host gaps and shapes by step."""

from __future__ import annotations

import polars as pl
from inmemory import MemoryRank, gpu, rows, steps

from tracetool.ownwork import own_work


def test_own_work_is_compute_and_what_the_host_left_dry() -> None:
    # compute 0-10 and 30-40 (launched at 22-24), a communication 10-20: dry 20-24 by the host, then latency
    table = gpu((0, 10, "compute"), (10, 10, "comm"), (30, 10, "compute", 22, 24), (40, 5, "compute", 25, 26))
    tables = {
        "gpu": table.with_columns(step=pl.lit(3, pl.Int32)),
        "steps": steps((3, 0, 45)),
        "comms": rows("comms", 0, ("event", "bytes"), (1, 64), (1, 36), op="all_reduce", start_ns=10, dur_ns=10,
                      track=0, name="n", step=3),
    }  # fmt: skip
    parts = own_work(MemoryRank(0, tables))
    assert parts["work"].rows() == [(0, 3, 25, 4, 30, 20, None, 100)]
    assert parts["kernels"].rows() == [(0, "compute_kernel", 3, 25)]


def test_elements_are_counted_by_step_from_shapes() -> None:
    table = gpu((0, 10, "compute"), (10, 10, "compute"), (20, 10, "compute")).with_columns(
        step=pl.Series([1, 1, 2], dtype=pl.Int32), op=pl.Series([7, 8, 7], dtype=pl.Int64)
    )
    shapes = rows("op_shapes", 0, ("event", "input_dims"), (7, "[[2, 3], [], [4]]"), (8, "[[[5, 2], [1]], [10]]"))
    tables = {"gpu": table, "op_shapes": shapes, "steps": steps((1, 0, 20), (2, 20, 30))}
    parts = own_work(MemoryRank(0, tables))
    assert parts["work"].select("step", "elements").rows() == [(1, 10 + 21), (2, 10)]


def test_a_gap_counts_to_the_step_that_it_delays() -> None:
    # range of step 1 from 0, first launch at 30; step 2 is launched at 80 although the GPU was dry from 50 on
    table = gpu((35, 15, "compute", 30, 32), (90, 10, "compute", 80, 85)).with_columns(
        step=pl.Series([1, 2], dtype=pl.Int32)
    )
    windows = steps((1, 35, 90), (2, 90, 100)).with_columns(range_start_ns=pl.Series([0, 70]))
    parts = own_work(MemoryRank(0, {"gpu": table, "steps": windows}))
    columns = ("step", "self_ns", "host_ns", "at_ns", "host_at_ns")
    assert parts["work"].select(columns).rows() == [(1, 15, 32, 35, 0), (2, 10, 35, 90, 50)]
