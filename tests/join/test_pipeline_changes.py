"""Changes by replay: what the formulas say for even stages, and only what the schedule admits."""

from __future__ import annotations

import polars as pl
import pytest

from tracetool.join.ladder import alike, planned
from tracetool.join.pipeline_changes import ASSUMES, of_run
from tracetool.join.schedule import gpipe, interleaved, one_f_one_b
from tracetool.join.slotwork import added
from tracetool.join.windows import SLOT_SCHEMA

STAGES, MICROBATCHES, F, B = 4, 8, 100.0, 200.0


def even(orders: list[tuple[tuple[str, int, int], ...]], chunks: int = 1) -> pl.DataFrame:
    """Return the slots of one step of an even pipeline with free transfers."""
    plan = planned(orders, [[s + c * STAGES for c in range(chunks)] for s in range(STAGES)])
    value = plan.nodes["kind"].replace_strict({"F": F / chunks, "B": B / chunks}, return_dtype=pl.Float64).to_numpy()
    times = plan.times(value[:, None])
    slots = plan.nodes.with_columns(
        replica=pl.lit(0), rank="stage", step=pl.lit(1), iteration=pl.lit(1), chunk=pl.col("virtual") // STAGES,
        start_ns=pl.Series(times.start[:, 0]), end_ns=pl.Series(times.end[:, 0]), sent_ns=pl.lit(None),
        transfer_ns=pl.lit(None), serial=pl.lit(None), piece=pl.lit(None),
    ).select(pl.col(name).cast(dtype) for name, dtype in SLOT_SCHEMA.items())  # fmt: skip
    return added(slots, None)


def savings(slots: pl.DataFrame, schedule: str, chunks: int = 1) -> dict[str, int]:
    found = of_run(alike(slots), schedule, MICROBATCHES, chunks)
    assert (found["window_ns"] - found["changed_ns"] == found["saving_ns"]).all()
    return dict(found.select("change", "saving_ns").iter_rows())


def test_an_even_1f1b_gains_what_the_formulas_say() -> None:
    found = savings(even([one_f_one_b(STAGES, s, MICROBATCHES) for s in range(STAGES)]), "1f1b")
    bubble = (STAGES - 1) * (F + B)
    assert found == {
        "balanced_stages": 0,
        "twice_microbatches": bubble / 2,
        "interleaving": bubble / 2,
        # with F, I and W of 100 each the bubble of ZB-H1 is (p − 1) slots of 100
        "zero_bubble": bubble - (STAGES - 1) * F,
    }
    assert set(found) == set(ASSUMES)


def test_weight_gradients_take_as_long_as_the_products_of_the_forward() -> None:
    slots = even([one_f_one_b(STAGES, s, MICROBATCHES) for s in range(STAGES)])
    half = savings(slots.with_columns(products_ns=pl.lit(100)), "1f1b")["zero_bubble"]
    less = savings(slots.with_columns(products_ns=pl.lit(40)), "1f1b")["zero_bubble"]
    none = savings(slots.with_columns(products_ns=pl.lit(0)), "1f1b")["zero_bubble"]
    assert half == none == (STAGES - 1) * B
    # nothing to fill the bubble with but 40 a stage
    assert less == (STAGES - 1) * 2 * 40


def test_gpipe_gains_the_same_and_interleaving_admits_only_more_micro_batches() -> None:
    assert savings(even([gpipe(MICROBATCHES)] * STAGES), "gpipe")["interleaving"] == (STAGES - 1) * (F + B) / 2
    orders = [interleaved(STAGES, s, MICROBATCHES, 2) for s in range(STAGES)]
    assert savings(even(orders, 2), "interleaved_1f1b", 2) == {
        "balanced_stages": 0,
        "twice_microbatches": pytest.approx((STAGES - 1) * (F + B) / 4),
    }


def test_a_heavy_stage_gains_by_balance() -> None:
    slots = even([one_f_one_b(STAGES, s, MICROBATCHES) for s in range(STAGES)])
    # stretched in time: the heavy last stage twice as long, everything else waits for it
    heavy = slots.with_columns(
        end_ns=pl.when(pl.col("stage") == 3).then(2 * pl.col("end_ns") - pl.col("start_ns")).otherwise("end_ns")
    )
    assert savings(heavy, "1f1b")["balanced_stages"] > 5 * (F + B)


def test_an_unknown_schedule_admits_balance_alone() -> None:
    slots = even([one_f_one_b(STAGES, s, MICROBATCHES) for s in range(STAGES)])
    assert set(savings(slots, "unknown")) == {"balanced_stages"}
    assert of_run([], "1f1b", 4, 1).height == 0
