"""Stragglers in the sample runs, and how own work and shapes are counted on one rank."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import polars as pl
import pytest
from inmemory import MemoryRank, ask, gpu, rows, steps

from tracetool.run import open_run
from tracetool.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result

stragglers = import_module("tracetool.analyses.stragglers")
NAMES = {"rank", "self_ns", "lateness_ns", "caused_wait_ns", "cost_ns", "persistence", "cause"}


def sample(repository: Path, name: str) -> Result:
    with open_run(repository / "sample_traces" / name, engine="serial", cache="off") as run:
        result: Result = run.results["stragglers"]
    return result


def test_the_healthy_sample_names_nobody(repository: Path) -> None:
    result = sample(repository, "healthy")
    assert set(result.tables["ranks"].columns) >= NAMES
    assert {"slowdown", "slowdown_paper", "replay_error", "worst_rank"} <= set(result.metrics)
    assert result.metrics["worst_rank"] is None
    assert result.tables["ranks"]["cause"].null_count() == 8
    assert result.findings == []
    assert result.tables["ranks"]["cost_ns"].abs().max() < 50_000  # type: ignore[operator] # a number


def test_the_troubled_sample_names_its_two_and_nobody_else(repository: Path) -> None:
    result = sample(repository, "troubled")
    causes = dict(result.tables["ranks"].select("rank", "cause").drop_nulls().iter_rows())
    assert causes == {2: "host", 5: "device"}
    assert abs(result.metrics["replay_error"]) < 0.001  # type: ignore[arg-type] # a number
    cost = {row[0]: row[1:] for row in result.tables["ranks"].select("rank", "cost_ns", "cost_after_ns").iter_rows()}
    # rank 2's lateness hides behind rank 5 while that is slow
    assert cost[2][0] == pytest.approx(0, abs=10_000)
    assert cost[2][1] == pytest.approx(5_940_000, rel=0.02)
    assert cost[5][0] == pytest.approx(3_920_000, rel=0.02)
    assert [finding.where.ranks for finding in result.findings] == [(2,), (5,)]


def test_own_work_is_compute_and_what_the_host_left_dry() -> None:
    # compute 0-10 and 30-40 (launched at 22-24), a communication 10-20: dry 20-24 by the host, then latency
    table = gpu((0, 10, "compute"), (10, 10, "comm"), (30, 10, "compute", 22, 24), (40, 5, "compute", 25, 26))
    tables = {
        "gpu": table.with_columns(step=pl.lit(3, pl.Int32)),
        "steps": steps((3, 0, 45)),
        "comms": rows("comms", 0, ("event", "bytes"), (1, 64), (1, 36), op="all_reduce", start_ns=10, dur_ns=10,
                      track=0, name="n", step=3),
    }  # fmt: skip
    parts = stragglers.per_rank(MemoryRank(0, tables), {}, Settings())
    assert parts["work"].rows() == [(0, 3, 25, 4, 30, 20, None, 100)]
    assert parts["kernels"].rows() == [(0, "compute_kernel", 3, 25)]


def test_elements_are_counted_by_step_from_shapes() -> None:
    table = gpu((0, 10, "compute"), (10, 10, "compute"), (20, 10, "compute")).with_columns(
        step=pl.Series([1, 1, 2], dtype=pl.Int32), op=pl.Series([7, 8, 7], dtype=pl.Int64)
    )
    shapes = rows("op_shapes", 0, ("event", "input_dims"), (7, "[[2, 3], [], [4]]"), (8, "[[[5, 2], [1]], [10]]"))
    parts = stragglers.per_rank(
        MemoryRank(0, {"gpu": table, "op_shapes": shapes, "steps": steps((1, 0, 20), (2, 20, 30))}), {}, Settings()
    )
    assert parts["work"].select("step", "elements").rows() == [(1, 10 + 21), (2, 10)]


def test_one_rank_alone_is_not_compared() -> None:
    rank = MemoryRank(0, {"gpu": gpu((0, 10, "compute")), "steps": steps((1, 0, 10))})
    result = ask(stragglers, [rank])
    assert result.status == "skipped"
    assert "peers" in result.reason
