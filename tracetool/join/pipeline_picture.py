"""One step of a pipeline as a picture: slots of every stage, what the bubbles are made of, and the ideal beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from tracetool.join.ladder import Slots, values

if TYPE_CHECKING:
    from collections.abc import Sequence

_KIND_WORDS: Final = {"F": "forward", "B": "backward", "W": "weight gradient"}
_GAP_WORDS: Final = {
    "p2p_wait": "bubble", "p2p_transfer": "transfer", "cross_stage": "across stages", "host_bound": "host bound",
    "idle": "idle for another reason",
}  # fmt: skip


def picture(slots: pl.DataFrame, gaps: pl.DataFrame | None, numbered: Sequence[Slots]) -> dict[str, pl.DataFrame]:
    """Return the slots of the drawn step, and everything to draw of it: slots, bubbles by cause, the ideal schedule.

    Drawn is the replica with the longest windows, and of its steps the median one.
    """
    lengths = slots.group_by("replica", "iteration").agg(ns=pl.col("end_ns").max() - pl.col("start_ns").min())
    slowest = lengths.group_by("replica").agg(pl.col("ns").mean()).sort("ns", "replica", descending=[True, False])
    replica = int(slowest["replica"][0])
    steps = lengths.filter(pl.col("replica") == replica).sort("ns", "iteration")
    iteration = int(steps["iteration"][(steps.height - 1) // 2])
    chosen = (pl.col("replica") == replica) & (pl.col("iteration") == iteration)
    mine = slots.filter(chosen).sort("stage", "start_ns", "end_ns", "kind")
    first = mine["start_ns"].min()
    shown = mine.select(
        *("rank", "step", "stage", "chunk", "virtual"),
        pl.col("kind").replace_strict(_KIND_WORDS, return_dtype=pl.String).alias("kind"),
        "microbatch",
        pl.col("start_ns") - first,
        (pl.col("end_ns") - pl.col("start_ns")).alias("dur_ns"),
        "transfer_ns",
    )
    text = pl.col("microbatch").cast(pl.String).fill_null("")
    pieces = [shown.select("stage", "start_ns", "dur_ns", what="kind", text=text, ideal=pl.lit(False))]
    if gaps is not None:
        what = pl.col("part").replace_strict(_GAP_WORDS, return_dtype=pl.String)
        pieces.append(
            gaps.filter(chosen).select("stage", "start_ns", "dur_ns", what=what, text=pl.lit(""), ideal=pl.lit(False))
        )
    ideal = _ideal_slots(numbered, replica, iteration)
    if ideal is not None:
        pieces.append(ideal.with_columns(ideal=pl.lit(True)))
    lane = pl.when("ideal").then(pl.format("ideal {}", "stage")).otherwise(pl.format("stage {}", "stage"))
    drawn = pl.concat(pieces).sort("ideal", "stage", "start_ns", "dur_ns", "what")
    return {
        "slots": shown,
        "drawn": drawn.select(lane=lane, start_ns="start_ns", dur_ns="dur_ns", what="what", text="text"),
    }


def _ideal_slots(numbered: Sequence[Slots], replica: int, iteration: int) -> pl.DataFrame | None:
    """Return the drawn step's order with every stage at the mean and free transfers; None when it is not numbered."""
    for part in numbered:
        here = ((part.columns["replica"] == replica) & (part.columns["iteration"] == iteration)).to_numpy()
        if here.any():
            value = values(part)["even"][:, np.flatnonzero(here)[:1]]
            begins = part.plan.times(value).start[:, 0]
            return part.plan.nodes.select(
                "stage",
                start_ns=pl.Series(np.rint(begins).astype(np.int64)),
                dur_ns=pl.Series(np.rint(value[:, 0]).astype(np.int64)),
                what=pl.col("kind").replace_strict(_KIND_WORDS, return_dtype=pl.String),
                text=pl.col("microbatch").cast(pl.String),
            )
    return None
