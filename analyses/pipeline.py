r"""How long the stages of a pipeline have nothing to do, why, and what would help.

W of a step and replica is [first forward start, last backward end) over its stages, on aligned clocks. bubble of a rank
= |W| − |W ∩ (compute ∪ copies ∪ collectives inside one stage: tp, dp, fsdp, ep, cp)|: a waiting send or receive is not
busy, nor is a collective that spans stages. bubble_share = mean over ranks and steps of bubble ÷ |W|; bubble_ratio =
the same to the ideal, share ÷ (1 − share). The bubble is cut into p2p_transfer (a send or receive moves data),
cross_stage (a collective over several stages runs), p2p_wait (a send or receive waits, or the next slot's input had not
been sent), host_bound (the host had not launched the next work) and idle, which sum to it to the ns; and into warm_up
(until the rank's first backward), cool_down (after its last forward) and steady between.

ideal_share is the floor of the schedule for equal stages and free transfers: GPipe and 1F1B (p − 1)/(m + p − 1),
interleaved (p − 1)/(v m + p − 1), ZB1P (p − 1)/(3 m + p − 1), ZBV 0; for others the observed order replayed with every
stage at the mean.

The ladder replays the observed order with ever more of the truth: every stage the mean (schedule), each its own median
(stage_imbalance), each rank its own median (slow_rank), every slot as it was (jitter), inputs as long on their way as
they were (transfer); host_and_rest is what is left. Parts may be negative and sum to the bubble of all ranks and steps
exactly. Changes are replayed too; each says what it assumes.

Slots are forward (F), backward (B) and weight gradient (W) of one micro-batch on one stage: from the ranges of
torch.distributed.pipelining, else from what was launched between sends and receives. Sources: GPipe arXiv 1811.06965,
1F1B and interleaving arXiv 2104.04473, zero bubble arXiv 2401.10241, replay arXiv 2505.05713.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from tracetool.dry import host_stretches, split
from tracetool.figures import percent
from tracetool.join import slotwork
from tracetool.join.idling import BUBBLE, PARTS, PHASES, cut, stage_collectives, sums
from tracetool.join.ladder import Slots, alike, ladder, rungs, stage_work
from tracetool.join.pipeline_changes import ASSUMES, of_run
from tracetool.join.pipeline_findings import Seen, findings
from tracetool.join.pipeline_picture import picture
from tracetool.join.price import step_time_ns
from tracetool.join.schedule import ideal_share
from tracetool.results import Chart, Headline, Result, Value, skipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Pipeline bubbles"
NEEDS: Final = ("gpu",)
GATES: Final = {"max-bubble": ("bubble_share", "max")}

PER_RANK_STEP: Final = (
    "rank", "step", "stage", "window_ns", "bubble_ns", *(f"{part}_ns" for part in PARTS),
    *(f"{phase}_bubble_ns" for phase in PHASES), "replica", "iteration",
)  # fmt: skip
DRAWN_PER_WINDOW: Final = 400
"""Bubbles shorter than this part of the window are not drawn."""
MOST_ERROR: Final = 0.05
"""Above this error of the replay nothing is predicted by it."""


def per_rank(rank: RankView, facts: Tables, _settings: Settings) -> Tables:
    """Return `rows` (one a step: the window's parts), `gaps` (to draw its bubble) and `inside` (slotwork.SCHEMA)."""
    windows = facts.get("windows")
    if windows is None or not windows.height:
        return {}
    columns = ["event", "start_ns", "dur_ns", "kind", "name", "launch_start_ns", "launch_end_ns", "step", "phase"]
    gpu = (
        rank.table("gpu", columns)
        .with_columns(end_ns=pl.col("start_ns") + pl.col("dur_ns"))
        .sort(["start_ns", "dur_ns", "event"], descending=[False, True, False])
    )
    named = rank.table("comms", ["event", "op", "group"]).with_columns(pl.col("op").cast(pl.String))
    comm = split(gpu.filter(pl.col("kind") == "comm"), facts.get("waits")).join(
        named, on="event", how="left", maintain_order="left"
    )
    if "role" not in comm.columns:
        comm = comm.with_columns(role=pl.lit(None, pl.String))
    slots = rank.table("slots")
    comm = stage_collectives(comm, slots.select("step", "iteration", "launch_start_ns", "launch_end_ns"))
    sends, compute = comm.filter("sends"), gpu.filter(pl.col("kind") == "compute")
    spans = {
        "compute": compute,
        "memcpy": gpu.filter(pl.col("kind").is_in(["memcpy", "memset"])),
        "stage_comm": comm.filter("inside"),
        "p2p_transfer": sends.with_columns(start_ns="moves_ns"),
        "cross_stage": comm.filter(~pl.col("inside") & ~pl.col("sends")),
        "waiting": sends.with_columns(end_ns="moves_ns"),
        "bubbles": facts.get("bubbles", gpu.clear()),
        "host": host_stretches(gpu),
    }
    pieces = cut(windows, spans)
    numbered = windows.with_row_index("window").select("window", "rank", "replica", "iteration", "stage", w="start_ns",
                                                       length=pl.col("end_ns") - pl.col("start_ns"))  # fmt: skip
    gaps = (
        pieces.filter(pl.col("part").is_in(BUBBLE))
        .join(numbered, on="window", how="inner", maintain_order="left")
        .with_columns(dur_ns=pl.col("end_ns") - pl.col("start_ns"), start_ns=pl.col("start_ns") - pl.col("w"))
        .filter(pl.col("dur_ns") * DRAWN_PER_WINDOW >= pl.col("length"))
        .select("rank", "replica", "iteration", "stage", "start_ns", "dur_ns", "part")
    )
    return {
        "rows": sums(windows, pieces).select(*PER_RANK_STEP, at_ns="start_ns"),
        "gaps": gaps,
        "inside": slotwork.inside(slots, compute, comm.filter("inside").with_columns(end_ns="moves_ns")),
    }


class _Pipe(NamedTuple):
    """What the run's pipelines have in common; None: they do not say, or disagree."""

    stages: int
    chunks: int | None
    microbatches: int | None
    schedule: str
    exact: bool
    why: str
    source: str
    replicas: int
    complete: bool
    agree: bool


def analyze(parts: Tables, run: RunView, _settings: Settings) -> Result:
    """Put the ranks' rows and the slots of all replicas together."""
    structure = run.joined.get("pipeline")
    told = run.joined["pipeline_told"]["note"].to_list() if "pipeline_told" in run.joined else []
    if structure is None:
        return skipped(
            "no pipeline group: no group of ranks exchanges activations by sends and receives, or the traces do not "
            "carry its name and ranks"
        )
    if not structure.height:
        return skipped(f"the pipeline's bubble is not measurable: {'; '.join(told)}")
    pipe = _pipe(structure)
    slots = slotwork.added(run.joined["pipeline_slots"], parts.get("inside"))
    rows = parts["rows"].sort("rank", "iteration", "at_ns") if "rows" in parts else None
    numbered = alike(slots)
    climbed = pl.concat([rungs(one) for one in numbered]) if numbered else None
    error = None if climbed is None or not pipe.complete else _error(climbed)
    bubble = None if rows is None else float((rows["bubble_ns"] / rows["window_ns"]).mean())  # type: ignore[arg-type]  # a mean of floats
    ideal = _ideal(pipe, climbed)
    step_ns = step_time_ns(run.steps)
    tables: dict[str, pl.DataFrame] = {
        "per_rank_step": (rows if rows is not None else _no_rows()).select(PER_RANK_STEP),
        "structure": structure,
        "stages": _stages(slots, numbered),
    }
    metrics: dict[str, Value] = {
        "stages": pipe.stages,
        "chunks": pipe.chunks,
        "microbatches": pipe.microbatches,
        "schedule": pipe.schedule,
        "schedule_confidence": "high" if pipe.exact else "low" if pipe.schedule == "unknown" else "medium",
        "bubble_share": bubble,
        "bubble_ratio": None if bubble is None or bubble >= 1 else bubble / (1 - bubble),
        "ideal_share": ideal,
        "replicas": pipe.replicas,
        "replay_error": error,
    }
    changed = None
    if rows is not None and climbed is not None and pipe.complete:
        tables["ladder"] = _ladder(climbed, rows)
        if error is not None and error <= MOST_ERROR and pipe.microbatches and pipe.chunks:
            changed = of_run(numbered, pipe.schedule, pipe.microbatches, pipe.chunks)
            tables["changes"] = _changes(changed, step_ns)
    drawn = picture(slots, parts.get("gaps"), numbered)
    tables |= drawn
    return Result(
        metrics=metrics,
        headline=_headline(metrics, pipe),
        tables=tables,
        charts=_charts(tables, pipe),
        findings=findings(Seen(tables, changed, rows, slots, pipe.stages, pipe.replicas, step_ns, bubble, error))
        if "ladder" in tables and rows is not None and step_ns and bubble is not None
        else (),
        notes=_notes(pipe, metrics, tables, told, rows),
    )


def _pipe(structure: pl.DataFrame) -> _Pipe:
    """Return what most replicas have in common."""
    shape = ["stages", "chunks", "microbatches", "schedule", "exact", "why", "source"]
    counted = structure.group_by(shape).len().sort("len", *shape, descending=[True] + [False] * len(shape))
    most = counted.select(shape).row(0, named=True)
    complete = bool(structure["complete"].all())
    return _Pipe(**most, replicas=structure.height, complete=complete, agree=counted.height == 1)


def _no_rows() -> pl.DataFrame:
    whole = {"rank": pl.Int32, "step": pl.Int32, "stage": pl.Int32, "replica": pl.Int32, "iteration": pl.Int32}
    return pl.DataFrame(schema={name: whole.get(name, pl.Int64) for name in PER_RANK_STEP})


def _error(climbed: pl.DataFrame) -> float:
    """Return by how much the replay of all that is known misses the measured windows, as a share."""
    measured, replayed = float(climbed["measured_ns"].sum()), float(climbed["moved_ns"].sum())
    return abs(replayed - measured) / measured if measured else 0.0


def _ideal(pipe: _Pipe, climbed: pl.DataFrame | None) -> float | None:
    """Return the schedule's own bubble: by formula, else by the replay with every stage at the mean."""
    if pipe.microbatches and pipe.chunks:
        found = ideal_share(pipe.schedule, pipe.stages, pipe.microbatches, pipe.chunks)
        if found is not None:
            return found
    if climbed is None or not pipe.complete:
        return None
    return float((climbed["even_idle_ns"] / (pipe.stages * climbed["even_ns"])).mean())  # type: ignore[arg-type]  # a mean of floats


def _stages(slots: pl.DataFrame, numbered: Sequence[Slots]) -> pl.DataFrame:
    """Return one row a stage: medians of its slots, its work a step, and how far that is from the mean stage."""
    ns = pl.col("end_ns") - pl.col("start_ns")
    kind = pl.col("kind")
    work = stage_work(numbered) if numbered else _unnumbered_work(slots.with_columns(ns=ns))
    medians = (
        slots.with_columns(ns=ns)
        .group_by("stage")
        .agg(
            ranks=pl.col("rank").unique().sort(),
            **{
                f"{word}_ns": pl.col("ns").filter(kind == letter).median().round().cast(pl.Int64)
                for letter, word in (("F", "forward"), ("B", "backward"), ("W", "weight"))
            },
        )
    )
    mean = pl.col("work_ns").mean().round().cast(pl.Int64)
    return (
        medians.join(work, on="stage")
        .sort("stage")
        .with_columns(surplus_ns=pl.col("work_ns") - mean, of_mean=pl.col("work_ns") / pl.col("work_ns").mean())
    )


def _unnumbered_work(slots: pl.DataFrame) -> pl.DataFrame:
    """Return stage and work_ns, the median over its ranks and steps, of slots that could not be numbered."""
    return (
        slots.group_by("stage", "replica", "iteration")
        .agg(work_ns=pl.col("ns").sum())
        .group_by("stage")
        .agg(work_ns=pl.col("work_ns").median().round().cast(pl.Int64))
    )


def _ladder(climbed: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the causes over all steps that could be replayed, and per step of a rank."""
    there = climbed.select("replica", "iteration").unique()
    mine = rows.join(there, on=["replica", "iteration"], how="semi")
    used = climbed.join(mine.select("replica", "iteration").unique(), on=["replica", "iteration"], how="semi")
    found = ladder(used, int(mine["bubble_ns"].sum()))
    window = int(mine["window_ns"].sum())
    return found.with_columns(
        mean_ns=(pl.col("ns") / max(1, mine.height)).round().cast(pl.Int64), share_of_window=pl.col("ns") / window
    )


def _changes(changed: pl.DataFrame, step_ns: int | None) -> pl.DataFrame:
    """Return one row a change: mean windows, saving, the step time it would give, and what that assumes."""
    means = changed.group_by("change").agg(pl.col(f"{name}_ns").mean().round().cast(pl.Int64) for name in
                                           ("window", "changed", "saving"))  # fmt: skip
    step = pl.lit(step_ns, pl.Int64)
    return means.sort("saving_ns", "change", descending=[True, False]).select(
        "change",
        "saving_ns",
        predicted_step_ns=step - pl.col("saving_ns"),
        saving_share=pl.col("saving_ns") / step,
        window_ns="window_ns",
        changed_window_ns="changed_ns",
        assumes=pl.col("change").replace_strict(ASSUMES, return_dtype=pl.String),
    )


def _headline(metrics: dict[str, Value], pipe: _Pipe) -> list[Headline]:
    shape = f"{pipe.schedule}, {pipe.stages} stages"
    if pipe.microbatches:
        shape += f", {pipe.microbatches} micro-batches"
    ideal = metrics["ideal_share"]
    floor = f"; the schedule's own floor is {percent(ideal)}" if isinstance(ideal, float) else ""
    if metrics["bubble_share"] is None:
        floor = "; needs the first stage or all of them"
    return [Headline("Pipeline bubble", metrics["bubble_share"], "share", 30, shape + floor)]


def _charts(tables: Tables, pipe: _Pipe) -> list[Chart]:
    charts = [
        Chart(
            "gantt", "One step of the pipeline and its ideal", "drawn", label="lane", x="start_ns", y=("dur_ns",),
            series="what", options={"text": "text", "max_rows": 64},
            note="Slots of the median step of the slowest replica, numbered by micro-batch, what the bubbles between "
            "them are made of, and below at the same scale the same order with every stage at the mean.",
        )
    ]  # fmt: skip
    if "ladder" in tables:
        charts.append(
            Chart(
                "waterfall", "Why the stages idle", "ladder", label="cause", y=("mean_ns",),
                note="Bubble of the mean step of a rank by cause; a negative part shortens it.",
            )
        )  # fmt: skip
    if pipe.stages > 1:
        charts.append(
            Chart(
                "bars", "Work of each stage", "stages", label="stage", y=("work_ns",),
                note="Slots of one step of a rank, summed; the longest stage sets the pace.",
            )
        )  # fmt: skip
    return charts


def _notes(
    pipe: _Pipe, metrics: dict[str, Value], tables: Tables, told: Sequence[str], rows: pl.DataFrame | None
) -> list[str]:
    notes = list(told)
    how = {
        "pp": "ranges of torch.distributed.pipelining",
        "gpipe": "the ranges of torch's GPipe schedule",
        "launch": "the order of launches between sends and receives, no range naming them",
    }[pipe.source]
    notes.append(f"Slots come from {how}. Schedule {pipe.schedule}: {pipe.why}.")
    if not pipe.agree:
        notes.append("Pipelines of the run differ in shape or schedule; that of most of them is named.")
    if rows is None:
        notes.append(
            "The bubble needs the window of the pipeline, which begins and ends on its first stage: trace that stage, "
            "or better all stages of one replica."
        )
    elif not pipe.complete:
        stages = sorted(set(rows["stage"].to_list()))
        notes.append(
            f"Only stages {', '.join(map(str, stages))} of {pipe.stages} were traced: the shares are theirs alone, and "
            "causes are not told."
        )
    if pipe.microbatches is None:
        notes.append(
            "Micro-batches, chunks and causes are not told: without annotations the order of slots fits no schedule "
            "whose numbering is certain."
        )
    error = metrics["replay_error"]
    if isinstance(error, float):
        notes.append(f"The replay misses the measured windows by {percent(error)}.")
        if error > MOST_ERROR:
            notes.append("That is too much to predict what a change would save.")
    if "ladder" in tables and pipe.replicas == 1:
        notes.append("With one replica a slow rank looks like a heavy stage: its stage has no peer to compare with.")
    return notes
