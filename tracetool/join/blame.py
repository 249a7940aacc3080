"""Who is slower than its peers, how often, and why: decided on small tables of own work by rank and step.

Own work of a rank-step is *self* (compute covers it) plus *host* (the GPU is dry because the host had launched
nothing). Waiting is neither. A rank is a straggler when, in more than half of its steps, its self time or its own work
exceeds the median of its peers by more than LIMIT; the second counts as the host's when most of the excess is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from tracetool.join.replay import Floats

LIMIT: Final = 0.05
"""Excess over the median of the peers from which on a rank is a straggler."""
_MOSTLY: Final = 0.5
_SAME: Final = 0.02
"""Amounts of work (elements, bytes, kernels) this close are the same."""
_UNIFORM: Final = 0.35
"""How far a kernel's slowdown may be from the rank's, as a share of it, and still count as the same factor."""
_NEARLY_ALL: Final = 0.8
_SMALL: Final = 0.005
"""Kernels below this share of the time say nothing about the factor."""

Columns = dict[str, pl.DataType | type[pl.DataType]]

WORK: Final[Columns] = {
    "rank": pl.Int32,
    "step": pl.Int32,
    "self_ns": pl.Int64,
    "host_ns": pl.Int64,
    "at_ns": pl.Int64,
    "host_at_ns": pl.Int64,
    "elements": pl.Int64,
    "bytes": pl.Int64,
}
"""Own work, one row a rank-step. at_ns, host_at_ns: where the longest compute and the longest host gap begin; elements:
of the inputs of all operators, null without shapes; bytes: of all its communications."""


class Matrix(NamedTuple):
    """Own work as (ranks, steps) arrays, NaN where a rank lacks a step, and the excess over the peers."""

    ranks: list[int]
    steps: list[int | None]
    self_ns: Floats
    host_ns: Floats
    self_peers: Floats
    """Median of the peers, itself left out; NaN without peers."""
    host_peers: Floats
    own_peers: Floats

    @property
    def self_excess(self) -> Floats:
        """Share by which self time exceeds the peers'."""
        return self.self_ns / np.where(self.self_peers > 0, self.self_peers, np.nan) - 1

    @property
    def own_excess(self) -> Floats:
        """Share by which self and host time exceed the peers'."""
        own = self.self_ns + self.host_ns
        return own / np.where(self.own_peers > 0, self.own_peers, np.nan) - 1


def matrix(work: pl.DataFrame, peers: dict[int, int]) -> Matrix:
    """Return own work by rank and step; `peers`: the number of each rank's set of peers."""
    ranks = work["rank"].unique().sort().to_list()
    steps = work["step"].unique().sort(nulls_last=True).to_list()
    place = {rank: at for at, rank in enumerate(ranks)}
    number = {step: at for at, step in enumerate(steps)}
    self_ns = np.full((len(ranks), len(steps)), np.nan)
    host_ns = self_ns.copy()
    for rank, step, own, host in work.select("rank", "step", "self_ns", "host_ns").iter_rows():
        self_ns[place[rank], number[step]] = own
        host_ns[place[rank], number[step]] = host
    groups = np.array([peers.get(rank, -1 - rank) for rank in ranks])
    return Matrix(
        ranks,
        steps,
        self_ns,
        host_ns,
        others(self_ns, groups),
        others(host_ns, groups),
        others(self_ns + host_ns, groups),
    )


def others(measure: Floats, groups: Floats) -> Floats:
    """Return for each row the median over the other rows of its group, column by column; NaN where there are none."""
    answer = np.full(measure.shape, np.nan)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        ordered = np.sort(measure[members], axis=0)  # NaN last
        count = np.sum(np.isfinite(ordered), axis=0)
        for member in members:
            mine = measure[member]
            for column in np.flatnonzero(np.isfinite(mine) & (count > 1)):
                known = ordered[: count[column], column]
                at = int(np.searchsorted(known, mine[column]))
                rest = count[column] - 1
                low, high = (rest - 1) // 2, rest // 2
                # the row's own value is passed over
                answer[member, column] = (known[low + (low >= at)] + known[high + (high >= at)]) / 2
    return answer


class Verdict(NamedTuple):
    """What holds for one rank: how far above its peers, in which share of its steps, and why (None: no straggler)."""

    rank: int
    excess: float | None
    persistence: float | None
    cause: str | None
    evidence: str


def verdicts(own: Matrix, work: pl.DataFrame, kernels: pl.DataFrame, peers: dict[int, int]) -> list[Verdict]:
    """Return the verdict on every rank.

    `kernels`: rank, name, count, ns of compute kernels.
    """
    answer = []
    self_excess, own_excess = own.self_excess, own.own_excess
    for place, rank in enumerate(own.ranks):
        known = np.isfinite(own_excess[place])
        if not known.any():
            answer.append(Verdict(rank, None, None, None, "no peers to compare with"))
            continue
        slow = self_excess[place][known] > LIMIT
        host = own.host_ns[place][known] - own.host_peers[place][known]
        total = (own.self_ns + own.host_ns - own.own_peers)[place][known]
        late = (own_excess[place][known] > LIMIT) & (host > total / 2)
        excess = float(np.median(np.where(late & ~slow, own_excess[place][known], self_excess[place][known])))
        persistence = float(np.mean(slow | late))
        if persistence <= _MOSTLY:
            answer.append(Verdict(rank, excess, persistence, None, ""))
        elif np.count_nonzero(slow) >= np.count_nonzero(late & ~slow):
            cause, why = _work_or_device(rank, work, kernels, peers)
            answer.append(Verdict(rank, excess, persistence, cause, why))
        else:
            share = float(np.median(host / total))
            answer.append(
                Verdict(
                    rank,
                    excess,
                    persistence,
                    "host",
                    f"kernels take no longer than its peers', {100 * min(1.0, share):.0f} % of the excess are gaps in "
                    "which its host had launched nothing",
                )
            )
    return answer


def _work_or_device(rank: int, work: pl.DataFrame, kernels: pl.DataFrame, peers: dict[int, int]) -> tuple[str, str]:
    """Tell more work from a slow device: by what operators and communications carried, then by kernels."""
    mates = [other for other, number in peers.items() if number == peers.get(rank) and other != rank]
    for column, what in (("elements", "operators take"), ("bytes", "communications carry")):
        mine = work.filter(pl.col("rank") == rank)[column].sum()
        theirs = work.filter(pl.col("rank").is_in(mates)).group_by("rank").agg(pl.col(column).sum())[column].median()
        complete = work.filter(pl.col("rank").is_in([rank, *mates]))[column].null_count() == 0
        ratio = float(mine) / float(theirs) if complete and isinstance(theirs, int | float) and theirs > 0 else 0.0
        if ratio > 1 + _SAME:
            return "work", f"its {what} {ratio:.2f} times what its peers' do"
    mine_by = kernels.filter(pl.col("rank") == rank).select("name", "count", "ns")
    typical = (
        kernels.filter(pl.col("rank").is_in(mates))
        .group_by("name")
        .agg(typical_count=pl.col("count").median(), typical_ns=pl.col("ns").median())
    )
    both = mine_by.join(typical, on="name", how="inner").filter(pl.col("typical_ns") > 0).sort("name")
    total, usual = float(mine_by["ns"].sum()), float(both["typical_ns"].sum())
    if not both.height or usual <= 0:
        return "unknown", "its kernels and its peers' have no name in common"
    shared = float(both["ns"].sum()) / total if total else 0.0
    more = float((both["count"].cast(pl.Float64) / both["typical_count"] * both["typical_ns"]).sum()) / usual
    if shared < 1 - _SAME or more > 1 + _SAME:
        return "work", f"it runs {more:.2f} times the kernels of its peers, or others"
    factor = float(both["ns"].sum()) / usual
    large = both.filter(pl.col("typical_ns") >= _SMALL * usual)
    factors = large["ns"] / large["typical_ns"]
    alike = ((factors - factor).abs() <= _UNIFORM * max(factor - 1, 0.0)).cast(pl.Float64)
    if float(alike.mean() or 0.0) >= _NEARLY_ALL:  # type: ignore[arg-type] # a float column
        return "device", f"the same kernels, as many, {factor:.2f} times as long, nearly all by one factor"
    known = work.filter(pl.col("rank").is_in([rank, *mates]))["elements"].null_count() == 0
    if known:
        return "device", f"the same kernels on inputs of the same size, {factor:.2f} times as long"
    return "unknown", f"the same kernels, as many, {factor:.2f} times as long, but not all by one factor"
