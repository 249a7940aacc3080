"""Slots of a pipeline as one rank shows them: forward and backward of each micro-batch.

A slot is the GPU work that one piece of the schedule launched; it lasts from the first compute kernel's start to the
last one's end. Work belongs to a piece by when it was launched, on whatever thread, never by when it ran.

*Annotated*: the kernels launched while a range of torch.distributed.pipelining was open: `PP:{stage}{F|B|I|W}{i}`,
`PP:(…;…)OVERLAP_F_B` (a forward and a backward in one range, told apart by their phase), or `Forward {i}` and
`Backward {i}` of GPipe. I, the gradient of the input, is a backward as B is; W is the gradient of the weights.

*By launches*: where nothing is annotated, compute kernels in order of their launch are cut at every send or receive of
the pipeline and wherever forward and backward (the main and the autograd thread) change. Forward work after the last
backward of a step, and the optimizer's, belongs to no slot. The k-th forward and the k-th backward are numbered k:
these are candidates, which only the other stages can confirm. Sends and receives that the autograd thread launches too
(ring attention) are none of the pipeline's, nor are those of groups named after context or expert parallelism.

Names: torch/distributed/pipelining/schedules.py of torch 2.4-2.15; NVTX ranges of Megatron-LM
(megatron/core/pipeline_parallel/schedules.py, core 0.12) and DualPipe tell the schedule and nothing else.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import polars as pl

from tracetool.derive.names import Names
from tracetool.tables import conform, empty

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracetool.derive.columns import Events

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

_ACTION: Final = re.compile(r"^PP:(\d+)(F|I|B|W)(\d+)$", re.ASCII)
_OVERLAP: Final = re.compile(r"^PP:\((.+)\)OVERLAP_F_B$", re.ASCII)
_PART: Final = re.compile(r"^(\d+)(F|I|B|W)(\d+)$", re.ASCII)
_GPIPE: Final = re.compile(r"^(Forward|Backward) (\d+)$", re.ASCII)
_ANNOTATION: Final = r"^PP:(?:\d+(?:F|I|B|W)\d+|\(.+\)OVERLAP_F_B)$|^(?:Forward|Backward) \d+$"
_KIND: Final = {"F": "F", "I": "B", "B": "B", "W": "W", "Forward": "F", "Backward": "B"}
_HINTS: Final = (
    (r"(?:^|\.)schedules\.forward_backward_pipelining_with_interleaving\.", "interleaved_1f1b"),
    (r"^(?:attn|mlp|dispatch|combine)\([FBW]\)$", "dualpipe"),
)
_OTHER_GROUPS: Final = r"(?i)context|expert|ring|(?:^|[^a-z])(?:cp|ep)(?:$|[^a-z])"
_MOST_NUMBER: Final = 1_000_000
"""Larger stages and micro-batches than any job has: such a range is not taken for one of the pipeline's."""


class Piece(NamedTuple):
    """One slot that a range's name announces; stage None: the name does not tell it."""

    kind: str
    microbatch: int
    stage: int | None


def pieces(name: str) -> tuple[Piece, ...]:
    """Return the slots that the name of a range announces; none for any other name."""
    found = _ACTION.match(name)
    if found:
        return _believed((Piece(_KIND[found[2]], int(found[3][:9]), int(found[1][:9])),))
    found = _GPIPE.match(name)
    if found:
        return _believed((Piece(_KIND[found[1]], int(found[2][:9]), None),))
    found = _OVERLAP.match(name)
    if not found:
        return ()
    parts = [_PART.match(part) for part in found[1].split(";")]
    whole = [Piece(_KIND[p[2]], int(p[3][:9]), int(p[1][:9])) for p in parts if p]
    return _believed(tuple(whole)) if len(whole) == len(parts) else ()


def _believed(found: tuple[Piece, ...]) -> tuple[Piece, ...]:
    return found if all(max(p.microbatch, p.stage or 0) < _MOST_NUMBER for p in found) else ()


def slots(gpu: pl.DataFrame, comms: pl.DataFrame, events: Events, on_cpu: Bools) -> pl.DataFrame:
    """Return table `slots` of a rank, sorted by (start_ns, end_ns, launch_start_ns); empty without a pipeline.

    `gpu` and `comms` are the tables of those names, `on_cpu` says which events stand on CPU threads.
    """
    rows = np.flatnonzero(on_cpu & events.are("annotation"))
    names = Names.of(events.names(rows))
    marked = names.has(_ANNOTATION)
    work = (
        gpu.filter((pl.col("kind") == "compute") & pl.col("launch_start_ns").is_not_null())
        .with_columns(end_ns=pl.col("start_ns") + pl.col("dur_ns"), phase=pl.col("phase").cast(pl.String))
        .select("event", "start_ns", "end_ns", "launch_start_ns", "step", "phase")
    )
    found = _annotated(work, events, rows[marked]) if marked.any() else pl.DataFrame()
    if not found.height:
        found = _by_launches(work, gpu, comms)
    if not found.height:
        return empty("slots")
    if found["step"].null_count() < found.height:
        # work launched before the first or after the last range of a trace with steps is of no step
        found = found.filter(pl.col("step").is_not_null()).with_columns(iteration=pl.col("step"))
    hint = next((word for pattern, word in _HINTS if names.has(pattern).any()), None)
    return conform(
        "slots",
        found.with_columns(rank=pl.lit(gpu["rank"][0]), schedule_hint=pl.lit(hint, pl.String)).sort(
            "start_ns", "end_ns", "launch_start_ns"
        ),
    )


def _extent() -> list[pl.Expr]:
    """Return what a slot is made of: aggregations over its kernels, in order of their launch."""
    return [
        pl.col("start_ns").min(),
        pl.col("end_ns").max(),
        pl.col("launch_start_ns").min(),
        pl.col("launch_start_ns").max().alias("launch_end_ns"),
        pl.col("step").first(),
        pl.len().cast(pl.Int32).alias("kernels"),
    ]


# ---- annotated ----


def _annotated(work: pl.DataFrame, events: Events, rows: Ints) -> pl.DataFrame:
    """Return the slots that ranges announce; `rows` are the ranges' events."""
    texts = events.names(rows).cast(pl.String)
    told = {text: pieces(text) for text in texts.unique().to_list()}
    announced = np.array([bool(told[text]) for text in texts.to_list()], np.bool_)
    rows, texts = rows[announced], texts.filter(pl.Series(announced))
    start, end = events.start[rows], events.end[rows]
    reach = np.maximum.accumulate(end)
    # a range inside another one says the same work twice: the outer one counts
    outer = np.append(True, start[1:] >= reach[:-1]) if len(rows) else np.zeros(0, np.bool_)
    start, end, texts = start[outer], end[outer], texts.filter(pl.Series(outer))
    if not len(start):
        return pl.DataFrame()
    at = work["launch_start_ns"].to_numpy()
    place = np.searchsorted(start, at, side="right") - 1
    inside = (place >= 0) & (at < end[place])
    announcing = pl.DataFrame(
        [
            (piece, part, one.kind, one.microbatch, one.stage, len(told[text]))
            for piece, text in enumerate(texts.to_list())
            for part, one in enumerate(told[text])
        ],
        schema={
            "piece": pl.Int32, "part": pl.Int32, "kind": pl.String, "microbatch": pl.Int32, "stage": pl.Int32,
            "parts": pl.Int32,
        },
        orient="row",
    )  # fmt: skip
    mine = work.with_columns(piece=pl.Series(place, dtype=pl.Int32)).filter(pl.Series(inside))
    backward = pl.col("phase").is_in(["backward", "recompute"]).fill_null(False)
    both = (
        mine.join(announcing, on="piece", how="inner", maintain_order="left")
        .filter((pl.col("parts") == 1) | ((pl.col("kind") == "F") != backward))
        .sort("launch_start_ns", "event")
    )
    found = (
        both.group_by("piece", "part", maintain_order=True)
        .agg(pl.col("kind", "microbatch", "stage").first(), *_extent())
        .with_columns(source=pl.when(pl.col("stage").is_null()).then(pl.lit("gpipe")).otherwise(pl.lit("pp")))
        .sort("launch_start_ns", "piece", "part")
    )
    again = pl.int_range(pl.len(), dtype=pl.Int32).over("kind", "microbatch", "stage")
    return found.with_columns(iteration=again)


# ---- by launches ----


def _by_launches(work: pl.DataFrame, gpu: pl.DataFrame, comms: pl.DataFrame) -> pl.DataFrame:
    """Return candidates from what was launched in which order by whom; empty without sends and receives."""
    phase = pl.col("phase").cast(pl.String)
    sends = comms.filter(pl.col("op").cast(pl.String).is_in(["send", "recv", "send_recv"])).join(
        gpu.filter(pl.col("launch_start_ns").is_not_null()).select("event", "launch_start_ns", phase),
        on="event",
        how="inner",
        maintain_order="left",
    )
    named = pl.coalesce("group_desc", "group").cast(pl.String).str.contains(_OTHER_GROUPS).fill_null(False)
    in_backward = pl.col("phase").is_in(["backward", "recompute"]).fill_null(False)
    sends = sends.filter(~(in_backward.any() | named.any()).over(pl.col("group").cast(pl.String).fill_null("")))
    if not sends.height or not work.height:
        return pl.DataFrame()
    way = (
        pl.when(in_backward)
        .then(pl.lit("B"))
        .when(pl.col("phase").is_in(["forward", "other"]))
        .then(pl.lit("F"))
        .otherwise(pl.col("phase"))
    )
    cuts = sends.select("event", "launch_start_ns", kind=pl.lit("-"))
    line = pl.concat([work.with_columns(kind=way), cuts], how="diagonal").sort("launch_start_ns", "event")
    changes = (pl.col("kind") != pl.col("kind").shift(1)) | pl.col("step").ne_missing(pl.col("step").shift(1))
    updates = (pl.col("kind") == "optimizer") & (pl.col("kind").shift(1) != "optimizer").fill_null(True)
    parts = (
        line.with_columns(
            # a send stands in no step of its own: it must cut even between slots of one step
            piece=(changes | (pl.col("kind") == "-")).fill_null(True).cum_sum().cast(pl.Int32),
            update=updates.cum_sum().cast(pl.Int32),
        )
        .filter(pl.col("kind").is_in(["F", "B"]))
        .group_by("piece", maintain_order=True)
        .agg(pl.col("kind", "update").first(), *_extent())
        .with_columns(iteration=pl.coalesce("step", pl.col("update").rank("dense").cast(pl.Int32) - 1))
        .sort("launch_start_ns", "piece")
    )
    last_backward = pl.col("launch_start_ns").filter(pl.col("kind") == "B").max().over("iteration")
    kept = parts.filter(pl.col("launch_start_ns") <= last_backward).with_columns(
        iteration=pl.when(pl.col("step").is_null()).then(pl.col("iteration").rank("dense") - 1).otherwise("iteration")
    )
    return kept.with_columns(
        microbatch=pl.int_range(pl.len(), dtype=pl.Int32).over("iteration", "kind"), source=pl.lit("launch")
    )
