"""Which ranks a finding is about: those that lose most, unless that is all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from tracetool.results import Where

if TYPE_CHECKING:
    from tracetool.registry import RunView


def concerned(saving: pl.DataFrame, ranks: int) -> Where:
    """Return the ranks that lose at least half of what the worst loses; none named when those are all `ranks`.

    `saving` has columns rank (null: no rank's own) and ns.
    """
    lost = saving.drop_nulls("rank").group_by("rank").agg(pl.col("ns").sum()).filter(pl.col("ns") > 0)
    most = lost.filter(2 * pl.col("ns") >= pl.col("ns").max())["rank"].sort().to_list()
    return Where(ranks=tuple(most)) if len(most) < ranks else Where()


def all_recorded(run: RunView) -> bool:
    """Say whether the run is known to hold every rank of the job, so that recording more cannot help."""
    return run.world_size is not None and run.ranks["rank"].n_unique() >= run.world_size
