"""What can be done about a pipeline's bubble: findings from its ladder, its stages and the changes to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from tracetool.figures import NEGLIGIBLE, milliseconds, percent, severity
from tracetool.join.ladder import CAUSES
from tracetool.results import SAVING_SCHEMA, Finding, Where, no_saving

if TYPE_CHECKING:
    from tracetool.tables import Tables

_ADVICE: Final = {
    "twice_microbatches": "Use more micro-batches a step, smaller ones if memory is short.",
    "interleaving": "Give every rank two chunks of the model (interleaved 1F1B).",
    "zero_bubble": "Use a schedule that puts weight gradients into the bubble (ZB1P, ZBV).",
}


class Seen(NamedTuple):
    """What findings are made of."""

    tables: Tables
    changed: pl.DataFrame | None
    """What changes save, step by step; None: the replay is too far off."""
    rows: pl.DataFrame
    slots: pl.DataFrame
    stages: int
    replicas: int
    step_ns: int
    bubble: float
    error: float | None
    """Of the replay that predicts the changes."""

    @property
    def shares(self) -> dict[str, float]:
        """Share of the window that each cause makes idle."""
        return dict(self.tables["ladder"].select("cause", "share_of_window").iter_rows())

    @property
    def heaviest(self) -> dict[str, Any]:
        """The stage with the most work."""
        return self.tables["stages"].sort("work_ns", "stage", descending=[True, False]).row(0, named=True)

    def saved_ns(self, change: str) -> int:
        """Return what a change saves of the mean step, ns; less than 0 where it makes it longer."""
        row = self.tables["changes"].filter(pl.col("change") == change)
        return int(row["saving_ns"][0]) if row.height else 0

    def saving(self, change: str) -> pl.DataFrame:
        """Return what a change saves of each step as SAVING_SCHEMA, rank null: it is the step's, not one rank's."""
        if self.changed is None:
            return no_saving()
        begins = self.rows.group_by("iteration").agg(pl.col("step").first(), pl.col("at_ns").min())
        mine = self.changed.filter(pl.col("change") == change)
        both = mine.join(begins, on="iteration", how="inner").sort("iteration")
        named = both.with_columns(ns="saving_ns", rank=pl.lit(None))
        return named.select(pl.col(name).cast(dtype) for name, dtype in SAVING_SCHEMA.items())

    def surplus(self, stage: int, ns: int) -> pl.DataFrame:
        """Return what the ranks of a stage do beyond the mean stage in each step as SAVING_SCHEMA: measured time."""
        mine = self.slots.filter((pl.col("stage") == stage) & pl.col("at_ns").is_not_null())
        named = mine.group_by("rank", "step").agg(pl.col("at_ns").min()).sort("rank", "step")
        return named.with_columns(ns=pl.lit(ns)).select(
            pl.col(name).cast(dtype) for name, dtype in SAVING_SCHEMA.items()
        )


def findings(seen: Seen) -> list[Finding]:
    """Return what can be done about the bubble. A schedule's own bubble is a choice, not a fault: for information."""
    return [found for found in (_imbalance(seen), _slow_rank(seen), _schedule(seen)) if found is not None]


def _imbalance(seen: Seen) -> Finding | None:
    parts, heavy = seen.shares, seen.heaviest
    replayed = seen.changed is not None
    saved = seen.saved_ns("balanced_stages") if replayed else heavy["surplus_ns"]
    if saved <= 0 or parts["stage_imbalance"] < max(NEGLIGIBLE / 2, parts["slow_rank"]):
        return None
    stage, alone = heavy["stage"], seen.replicas == 1
    also = {0: " (the first stage also embeds)", seen.stages - 1: " (the last stage also computes the loss)"}
    above = percent(heavy["of_mean"] - 1)
    return Finding(
        id="pipeline.stage_imbalance",
        analysis="pipeline",
        severity=severity(saved / seen.step_ns, 0.05, 0.25),
        title=f"Stage {stage} takes {above} longer than the mean stage: it has more work, or its rank is slow"
        if alone
        else f"Stage {stage} has {above} more work than the mean stage{also.get(stage, '')}",
        detail=f"It works {milliseconds(heavy['work_ns'])} a step, {milliseconds(heavy['surplus_ns'])} above the mean; "
        f"unequal stages make {percent(parts['stage_imbalance'])} of the window idle.",
        advice="Move layers from the longest stages to the shortest, and count embedding and loss as layers.",
        confidence="low" if alone else "high" if replayed else "medium",
        confidence_why="one replica: a slow rank would look the same"
        if alone
        else "the same on every replica" + (", replayed" if replayed else "; the replay is too far off to predict"),
        saving=seen.saving("balanced_stages") if replayed else seen.surplus(stage, saved),
        replay_error=seen.error if replayed else None,
        where=Where(stages=(stage,)),
        evidence=(("stages", (stage,)),),
    )


def _slow_rank(seen: Seen) -> Finding | None:
    part = seen.shares["slow_rank"]
    if part < NEGLIGIBLE or part <= seen.shares["stage_imbalance"]:
        return None
    return Finding(
        id="pipeline.slow_rank",
        analysis="pipeline",
        severity="info",
        title="A rank slower than the others of its stage holds up its pipeline",
        detail=f"It makes {percent(part)} of the window idle; stragglers names it.",
        advice="Find the rank in stragglers, and its cause there.",
        confidence="medium",
        confidence_why="ranks are compared with those of the same stage in the other replicas",
        saving=no_saving(),
        evidence=(("ladder", (CAUSES.index("slow_rank"),)),),
    )


def _schedule(seen: Seen) -> Finding | None:
    if seen.changed is None:
        return None
    table = seen.tables["changes"].with_row_index("row")
    others = table.filter((pl.col("change") != "balanced_stages") & (pl.col("saving_ns") > 0))
    if not others.height:
        return None
    best = others.row(0, named=True)
    return Finding(
        id="pipeline.schedule",
        analysis="pipeline",
        severity="info",
        title=f"The schedule leaves stages idle; {best['change'].replace('_', ' ')} would help most",
        detail=f"{percent(seen.bubble)} of the window is bubble, {percent(seen.shares['schedule'])} by the schedule "
        f"alone. Assumed: {best['assumes']}.",
        advice=_ADVICE[best["change"]],
        confidence="medium",
        confidence_why="replayed; what is assumed was not measured",
        saving=seen.saving(best["change"]),
        replay_error=seen.error,
        evidence=(("changes", (best["row"],)),),
    )
