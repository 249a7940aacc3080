"""What a rank does inside the pipeline's window, cut into parts that sum to it to the ns.

Busy: compute, copies, collectives inside one stage. The rest is the bubble, and each instant of it goes to the first
that holds: a send or receive of the pipeline moves data (p2p_transfer); a collective that spans stages runs
(cross_stage); a send or receive waits, or the next slot's input had not been sent (p2p_wait); the host had not launched
the next work (host_bound); idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool import intervals

if TYPE_CHECKING:
    from tracetool.tables import Tables

PARTS: Final = ("compute", "memcpy", "stage_comm", "p2p_transfer", "cross_stage", "p2p_wait", "host_bound", "idle")
BUSY: Final = ("compute", "memcpy", "stage_comm")
BUBBLE: Final = PARTS[len(BUSY) :]
STAGE_ROLES: Final = ("dp", "fsdp", "tp", "sp", "ep", "cp")
_LAYERS: Final = (0, 1, 2, 3, 4, 5, 5, 6, 7)
"""Part of each layer of the cut: waiting kernels and dry bubbles are both p2p_wait; last, where none holds."""
PHASES: Final = ("warm_up", "steady", "cool_down")


def stage_collectives(comm: pl.DataFrame, slots: pl.DataFrame) -> pl.DataFrame:
    """Add to each communication `inside`: a collective of one stage, and `sends`: a send or receive of the pipeline.

    `comm`: role (null: not known), op, group (null: not recorded), step, phase, launch_start_ns; `slots`: step,
    iteration, launch_start_ns, launch_end_ns. What spans stages (gradient norm, tied embeddings) comes after the last
    slot of a step. So a collective of unknown role, or of one that was not recorded but taken for it, is taken to be
    inside its stage when the autograd thread launched it, or anyone before the last slot of its step was launched.
    """
    recorded = pl.col("group").is_not_null()
    known = pl.col("role").is_in(STAGE_ROLES).fill_null(False) & recorded
    undecided = pl.col("role").is_null() | (pl.col("role") == "other") | ~recorded
    launched = pl.coalesce("launch_start_ns", pl.lit(-1, pl.Int64))
    spans = slots.group_by("iteration").agg(
        pl.col("step").first(),
        start_ns=pl.col("launch_start_ns").min(),
        end_ns=pl.col("launch_end_ns").max() + 1,
    )
    within = intervals.covered(comm.select(start_ns=launched, end_ns=launched + 1), spans) > 0
    ends = spans.drop_nulls("step").select("step", last="end_ns").unique("step", keep="any")
    in_backward = pl.col("phase").cast(pl.String).is_in(["backward", "recompute"]).fill_null(False)
    p2p = pl.col("op").is_in(["send", "recv", "send_recv"]).fill_null(False)
    sends = (pl.col("role") == "pp").fill_null(False)
    early = (pl.col("launch_start_ns") < pl.col("last")).fill_null(False)
    return (
        comm.with_columns(within=within)
        .join(ends, on="step", how="left", maintain_order="left")
        .with_columns(
            inside=(known | (undecided & ~p2p & (pl.col("within") | early | in_backward))) & ~sends, sends=sends
        )
        .drop("within", "last")
    )


def cut(windows: pl.DataFrame, spans: Tables) -> pl.DataFrame:
    """Cut each window; return window (row number), start_ns, end_ns, part; sorted, and a partition of every window.

    `spans`: a span frame for each of compute, memcpy, stage_comm, p2p_transfer, cross_stage, waiting, bubbles, host.
    """
    order = ("compute", "memcpy", "stage_comm", "p2p_transfer", "cross_stage", "waiting", "bubbles", "host")
    return (
        intervals.cover(windows.select(*intervals.ENDS), [spans[name].select(*intervals.ENDS) for name in order])
        .with_columns(
            part=pl.col("layer").replace_strict(
                {layer if layer < len(_LAYERS) - 1 else -1: PARTS[part] for layer, part in enumerate(_LAYERS)},
                return_dtype=pl.String,
            )
        )
        .drop("layer")
    )


def sums(windows: pl.DataFrame, pieces: pl.DataFrame) -> pl.DataFrame:
    """Return the windows with window_ns, bubble_ns, the parts as <part>_ns, and the bubble of each phase.

    `windows`: start_ns, end_ns, first_backward_ns, last_forward_ns and any others; `pieces`: what `cut` returned.
    Warm-up ends with the first backward's start, cool-down begins with the last forward's end.
    """
    ns = pl.col("end_ns") - pl.col("start_ns")
    parts = pieces.group_by("window").agg(ns.filter(pl.col("part") == part).sum().alias(f"{part}_ns") for part in PARTS)
    first = pl.col("first_backward_ns").clip(pl.col("start_ns"), pl.col("end_ns"))
    last = pl.max_horizontal(first, pl.col("last_forward_ns").clip(pl.col("start_ns"), pl.col("end_ns")))
    edges = windows.select(a="start_ns", b=first, c=last, d="end_ns")
    bubble = pieces.filter(pl.col("part").is_in(BUBBLE))
    phases = {
        f"{name}_bubble_ns": intervals.covered(edges.select(start_ns=low, end_ns=high), bubble)
        for name, low, high in zip(PHASES, "abc", "bcd", strict=True)
    }
    return (
        windows.with_row_index("window")
        .join(parts.with_columns(pl.col("window").cast(pl.UInt32)), on="window", how="left", maintain_order="left")
        .with_columns(pl.col(f"{part}_ns").fill_null(0) for part in PARTS)
        .with_columns(window_ns=ns, bubble_ns=pl.sum_horizontal(f"{part}_ns" for part in BUBBLE), **phases)
        .drop("window")
    )
