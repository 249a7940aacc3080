"""When each thread works on which part of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from tracetool import intervals

if TYPE_CHECKING:
    from collections.abc import Sequence


def changes(cpu: pl.DataFrame) -> pl.DataFrame:
    """Return the events whose phase is not that of the event around them: every edge of a part is one of these.

    `cpu` holds all events of a rank in stored order, with start_ns, dur_ns, phase and parent (the row of the event
    around). Adds end_ns and above, the phase of that event; phases become text.
    """
    above = pl.col("phase").gather(pl.col("parent"))
    few = cpu.with_columns(above=above).filter(pl.col("phase").ne_missing(pl.col("above")))
    return few.with_columns(pl.col("phase", "above").cast(pl.String), end_ns=pl.col("start_ns") + pl.col("dur_ns"))


def edges(cpu: pl.DataFrame, parts: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the outermost ranges of each part, and the ranges of other phases right inside ranges of a part.

    `cpu` has what `changes` returns, or more events, with track and step. Both results have phase (of the part), step,
    track, start_ns, end_ns.
    """
    keys = ["phase", "step", "track", *intervals.ENDS]
    changes = cpu.filter(pl.col("phase").ne_missing(pl.col("above")))
    outermost = changes.filter(pl.col("phase").is_in(parts)).select(keys)
    inside = changes.filter(pl.col("above").is_in(parts)).with_columns(phase=pl.col("above")).select(keys)
    return outermost, inside


def spans(cpu: pl.DataFrame, parts: Sequence[str]) -> pl.DataFrame:
    """Return when each thread works on each part: islands (phase, step, track, start_ns, end_ns).

    A part inside another one (recompute inside backward) is taken out of the outer one; `cpu` as for `edges`.
    """
    outermost, inside = edges(cpu, parts)
    return intervals.subtract(outermost, inside, ["phase", "step", "track"])
