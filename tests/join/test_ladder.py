"""The ladder: published bubbles exactly, the published op tables' windows, causes that add up and blame rightly."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from tracetool.join.ladder import CAUSES, alike, even_window, ladder, rungs, slow, stage_work
from tracetool.join.schedule import gpipe, interleaved, one_f_one_b, zero_bubble
from tracetool.join.slotwork import added
from tracetool.join.windows import SLOT_SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.join.schedule import Order


def share(orders: list[Order], chunks: int, length: dict[str, float]) -> Fraction:
    stages = len(orders)
    virtual = [[stage + chunk * stages for chunk in range(chunks)] for stage in range(stages)]
    window = Fraction(even_window(orders, virtual, length))
    busy = sum(Fraction(length[kind]) for order in orders for kind, _, _ in order)
    return 1 - busy / (stages * window)


@pytest.mark.parametrize(("p", "m"), [(4, 4), (4, 8), (8, 32), (2, 3), (16, 64)])
def test_known_schedules_have_exactly_the_published_bubble(p: int, m: int) -> None:
    ideal = Fraction(p - 1, m + p - 1)
    length = {"F": 3.0, "B": 7.0}
    assert share([one_f_one_b(p, s, m) for s in range(p)], 1, length) == ideal
    assert share([gpipe(m)] * p, 1, length) == ideal
    thirds = {"F": 1.0, "B": 1.0, "W": 1.0}
    assert share([zero_bubble(p, s, m) for s in range(p)], 1, thirds) == Fraction(p - 1, 3 * m + p - 1)


@pytest.mark.parametrize(("p", "m", "v"), [(4, 4, 2), (4, 8, 2), (8, 32, 2), (2, 4, 4)])
def test_interleaving_has_exactly_the_published_bubble(p: int, m: int, v: int) -> None:
    found = share([interleaved(p, s, m, v) for s in range(p)], v, {"F": 3.0, "B": 7.0})
    assert found == Fraction(p - 1, v * m + p - 1)


def of_table(path: Path) -> pl.DataFrame:
    """Return the compute of an op table as slots: seconds become ns from the start of the step."""
    none = pl.lit(None)
    kind = pl.col("optype").cast(pl.String)
    start, dur = pl.col("start_ts").cast(pl.Float64), pl.col("duration").cast(pl.Float64)
    slots = (
        pl.read_parquet(path)
        .filter(kind.is_in(["forward-compute", "backward-compute"]))
        .with_columns(
            replica="dp_rank",
            iteration="step",
            virtual="stage",
            chunk=pl.lit(0),
            kind=pl.when(kind == "forward-compute").then(pl.lit("F")).otherwise(pl.lit("B")),
            microbatch="mb_id",
            start_ns=(start * 1e9).round(),
            end_ns=((start + dur) * 1e9).round(),
            **dict.fromkeys(("piece", "sent_ns", "transfer_ns", "serial"), none),
        )
        .select(pl.col(name).cast(dtype) for name, dtype in SLOT_SCHEMA.items())
    )
    return added(slots, None)


PUBLISHED = {
    "ST": {0: (1.710, 2.009, 2.0024, 1.9976, 2.0026, 0.5133), 1: (1.710, 2.009, 2.0119, 2.0060, 2.0111, 0.5153)},
    "AR": {
        0: (21.2931, 21.8902, 45.4456, 45.4795, 45.6003, 0.4305),
        1: (21.2931, 21.8902, 21.9506, 21.9403, 21.9888, 0.1148),
        2: (21.2931, 21.8902, 21.7943, 21.7857, 21.8328, 0.1124),
        3: (21.2931, 21.8902, 21.8350, 21.8290, 21.8772, 0.1125),
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_op_tables_give_the_reference_windows(shared: Path, name: str) -> None:
    slots = of_table(shared / "stragglers" / f"trace-{name}.parquet")
    (together,) = alike(slots)
    rows = rungs(together)
    busy = slots.group_by("replica", "iteration").agg(busy=(pl.col("end_ns") - pl.col("start_ns")).sum())
    means = (
        rows.join(busy, on=["replica", "iteration"])
        .with_columns(share=1 - pl.col("busy") / (4 * pl.col("measured_ns")))
        .group_by("replica")
        .mean()
    )
    for row in means.iter_rows(named=True):
        *windows, wanted = PUBLISHED[name][row["replica"]]
        found = [row[f"{rung}_ns"] / 1e9 for rung in ("even", "stages", "ranks", "real", "measured")]
        assert found == pytest.approx(windows, rel=3e-4)
        assert row["share"] == pytest.approx(wanted, abs=6e-5)


def simulated(slow: dict[int, float], heavy: dict[int, float], transfer: int = 0) -> pl.DataFrame:
    """Return two replicas of 1F1B, 3 stages, 5 micro-batches; factors by rank (replica * 3 + stage) and by stage."""
    rows: list[dict[str, Any]] = []
    for replica in range(2):
        free = [0] * 3
        done: dict[tuple[str, int, int], int] = {}
        left = [list(one_f_one_b(3, stage, 5)) for stage in range(3)]
        while any(left):
            for stage, mine in enumerate(left):
                while mine:
                    kind, i, _ = mine[0]
                    source = ("F", i, stage - 1) if kind == "F" else ("B", i, stage + 1)
                    if source[2] in (-1, 3):
                        sent = 0
                    elif source in done:
                        sent = done[source] + transfer
                    else:
                        break
                    length = {"F": 100, "B": 200}[kind]
                    length = round(length * slow.get(replica * 3 + stage, 1) * heavy.get(stage, 1))
                    begin = max(free[stage], sent)
                    free[stage] = done[kind, i, stage] = begin + length
                    rows.append(
                        {
                            "replica": replica, "rank": replica * 3 + stage, "step": 1, "iteration": 1, "stage": stage,
                            "chunk": 0, "virtual": stage, "kind": kind, "microbatch": i, "start_ns": begin,
                            "end_ns": free[stage], "sent_ns": sent, "transfer_ns": transfer, "serial": False,
                        }
                    )  # fmt: skip
                    mine.pop(0)
    return added(pl.DataFrame(rows, schema=SLOT_SCHEMA), None)


def causes(slots: pl.DataFrame) -> dict[str, int]:
    rows = pl.concat([rungs(part) for part in alike(slots)])
    busy = int((slots["end_ns"] - slots["start_ns"]).sum())
    bubble = int(3 * rows["measured_ns"].sum()) - busy
    found = ladder(rows, bubble)
    assert found["cause"].to_list() == [*CAUSES, "total"]
    assert found["ns"][:-1].sum() == found["ns"][-1] == bubble
    return {cause: ns for cause, ns in found.select("cause", "ns").iter_rows() if ns}


def test_an_even_pipeline_has_the_schedule_alone() -> None:
    # window (5 + 2)·300 on 3 stages of 2 replicas, 5·300 of it busy
    assert causes(simulated({}, {})) == {"schedule": 3600, "total": 3600}


def test_transfers_are_their_own_cause() -> None:
    found = causes(simulated({}, {}, transfer=10))
    assert found["schedule"] == 3600
    assert set(found) == {"schedule", "transfer", "total"}


def test_a_heavy_stage_is_an_imbalance_and_a_slow_rank_is_not() -> None:
    heavy = causes(simulated({}, {2: 1.5}))
    assert heavy["stage_imbalance"] > 2000
    assert "slow_rank" not in heavy
    rows = [simulated({4: 1.5}, {}), simulated({}, {}).with_columns(replica=pl.col("replica") + 2)]
    for slots in (pl.concat(rows), rows[0]):  # of four replicas, and of two
        found = causes(slots)
        assert found["slow_rank"] > 1000
        assert "stage_imbalance" not in found


def test_waiting_for_a_slow_rank_inside_the_stage_is_not_the_stages_own_work() -> None:
    """Two tensor-parallel ranks a stage: rank 4 computes longer, rank 1 waits for it in every slot."""
    slots = simulated({1: 1.5, 4: 1.5}, {})
    dur, at = pl.col("end_ns") - pl.col("start_ns"), pl.col("stage") == 1
    told = slots.with_columns(
        wait_ns=pl.when(at & (pl.col("replica") == 0)).then(dur // 3).otherwise(0),
        work_ns=pl.when(at & (pl.col("replica") == 0)).then(dur - dur // 3).otherwise(dur),
    )
    assert causes(slots)["stage_imbalance"] > 1000  # nothing tells them apart
    found = causes(told)
    assert found["slow_rank"] > 1000
    assert "stage_imbalance" not in found
    (together,) = alike(told)
    assert slow(together).tolist() == [[False, False], [False, True], [False, False]]
    work = dict(stage_work([together]).iter_rows())
    assert work == pytest.approx({0: 1500, 1: 1500, 2: 1500}, abs=5)


def test_steps_without_numbers_or_with_missing_slots_are_left_out() -> None:
    slots = simulated({}, {})
    assert alike(slots.with_columns(microbatch=pl.lit(None, pl.Int32))) == []
    short = slots.filter((pl.col("replica") == 0) | (pl.col("microbatch") < 4))
    assert [part.columns["replica"].to_list() for part in alike(short)] == [[0]]
