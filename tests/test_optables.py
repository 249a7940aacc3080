"""The adapter for published op tables: how a table is written down does not matter, and other shapes are read too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from optables import KEY, OpTable, build

if TYPE_CHECKING:
    from pathlib import Path

Row = tuple[int, int, str, int, int, float, float]
"""dp_rank, stage, optype, seq_id, mc, start, duration."""


def table(*rows: Row, step: int = 3) -> pl.DataFrame:
    columns = ("dp_rank", "stage", "optype", "seq_id", "mc", "start_ts", "duration")
    made = pl.DataFrame(rows, schema=list(columns), orient="row")
    return made.with_columns(step=pl.lit(step), rank=pl.col("stage") * 10 + pl.col("dp_rank"))


def slowdown(job: OpTable) -> float:
    return float(job.total(job.value).mean() / job.total(job.ideal()).mean())


@pytest.fixture(scope="module")
def heavy(shared: Path) -> pl.DataFrame:
    return pl.read_parquet(shared / "stragglers" / "trace-ST.parquet")


def test_order_of_rows_and_types_do_not_matter(heavy: pl.DataFrame) -> None:
    shuffled = heavy.sample(fraction=1.0, shuffle=True, seed=1).with_columns(
        pl.col("optype").cast(pl.String), pl.col("dp_rank", "stage", "rank", "seq_id").cast(pl.Int64)
    )
    assert build(shuffled).value.tolist() == build(heavy).value.tolist()
    assert slowdown(build(shuffled)) == slowdown(build(heavy))


def test_replicas_and_steps_may_have_other_numbers(heavy: pl.DataFrame) -> None:
    renamed = heavy.with_columns(
        dp_rank=5 - pl.col("dp_rank"), step=10_000 + 7 * pl.col("step"), stage=pl.col("stage") + 2
    )
    assert slowdown(build(renamed)) == pytest.approx(slowdown(build(heavy)), rel=1e-12)


def test_steps_do_not_touch_each_other(heavy: pl.DataFrame) -> None:
    whole = build(heavy)
    kept = sorted(heavy["step"].unique().to_list())
    half = build(heavy.filter(pl.col("step").is_in(kept[::2])))
    assert half.total(half.value).tolist() == whole.total(whole.value)[::2].tolist()
    assert half.measured.tolist() == whole.measured[::2].tolist()


def test_twice_the_time_is_twice_the_step(heavy: pl.DataFrame) -> None:
    times = pl.col("start_ts", "duration").cast(pl.Float64)
    once, twice = build(heavy.with_columns(times)), build(heavy.with_columns(times * 2))
    assert (once.value > 2 * -0.010).all()
    assert twice.total(np.maximum(once.value, 0) * 2).tolist() == (2 * once.total(np.maximum(once.value, 0))).tolist()


def test_one_replica_alone_and_fewer_steps(heavy: pl.DataFrame) -> None:
    alone = build(heavy.filter(pl.col("dp_rank") == 1))
    assert alone.nodes["dp_rank"].unique().to_list() == [1]
    assert 1.1 < slowdown(alone) < 1.3
    single = build(heavy.filter(pl.col("step") == heavy["step"].min()))
    assert single.value.shape[1] == 1


def test_a_step_that_lacks_an_operation_is_left_out(heavy: pl.DataFrame) -> None:
    first = heavy["step"].min()
    holed = heavy.filter(~((pl.col("step") == first) & (pl.col("optype").cast(pl.String) == "gc")))
    assert build(holed).value.shape[1] == build(heavy).value.shape[1] - 1
    lost = heavy.filter(pl.col("step") == first).with_columns(
        step=pl.when(pl.col("optype").cast(pl.String) == "gc").then(1).otherwise(2)
    )
    with pytest.raises(ValueError, match="no step"):
        build(lost)


def test_of_tensor_parallel_ranks_the_lowest_stands_for_all(heavy: pl.DataFrame) -> None:
    other = heavy.with_columns(rank=pl.col("rank") + 100, duration=pl.col("duration") * 3)
    assert slowdown(build(pl.concat([other, heavy]))) == slowdown(build(heavy))


@pytest.mark.parametrize("missing", ["params-all-gather", "optimizer", "gc", "layernorm-grads-all-reduce"])
def test_kinds_of_operations_may_be_missing(heavy: pl.DataFrame, missing: str) -> None:
    job = build(heavy.filter(pl.col("optype").cast(pl.String) != missing))
    assert missing not in job.nodes["optype"].to_list()
    assert 1.1 < slowdown(job) < 1.3


def test_one_stage_without_neighbours() -> None:
    job = build(
        table(
            (0, 0, "forward-compute", 0, 0, 0.0, 1.0), (0, 0, "forward-compute", 1, 0, 1.0, 1.5),
            (0, 0, "backward-compute", 0, 0, 2.5, 2.0), (0, 0, "optimizer", 0, -1, 5.0, 0.5),
        )
    )  # fmt: skip
    assert job.total(job.value).tolist() == [5.0]


def test_chunks_hand_over_from_the_last_stage_to_the_first() -> None:
    # one micro-batch through two chunks on two stages: 0 → 1 → 0 → 1, back the other way; transfers take 0.1
    rows: list[Row] = []
    at = 0.0
    sent = {"forward": [0, 0], "backward": [0, 0]}
    came = {"forward": [0, 0], "backward": [0, 0]}
    for way, route in (("forward", [(0, 0), (1, 0), (0, 1), (1, 1)]), ("backward", [(1, 1), (0, 1), (1, 0), (0, 0)])):
        for hop, (stage, chunk) in enumerate(route):
            rows.append((0, stage, f"{way}-compute", hop // 2, chunk, at, 1.0 + stage))
            at += 1.0 + stage
            if hop + 1 < len(route):
                target = route[hop + 1][0]
                rows.append((0, stage, f"{way}-send", sent[way][stage], -1, at, 0.1))
                rows.append((0, target, f"{way}-recv", came[way][target], -1, at - 0.5, 0.6))
                sent[way][stage] += 1
                came[way][target] += 1
                at += 0.1
    rows += [(0, stage, "optimizer", 0, -1, at, 0.5) for stage in range(2)]
    job = build(table(*rows))
    assert job.total(job.value).tolist() == pytest.approx([at + 0.5])
    slower = job.value + (
        job.nodes.select((pl.col("optype") == "backward-compute") & (pl.col("stage") == 1)).to_numpy()
    )
    assert job.total(slower).tolist() == pytest.approx([at + 2.5])
    assert job.nodes.columns[:4] == list(KEY)
