"""What each rank, stage, kind of operation, group and link of a job costs, by replay: T − T(with it idealised).

The words are those of tracetool/join/job.py. Without a replay to be trusted no cost is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from tracetool.join.segments import COMM, COMPUTE, PHASES
from tracetool.join.whatif import WhatIf, usual, with_links_idealised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.join.blame import Columns, Verdict
    from tracetool.join.job import Job, Values
    from tracetool.join.whatif import Links

_COSTED: Final = 64
"""Ranks whose cost is replayed each; of more, those above their peers most."""


class Costs:
    """The replays of one job with its stragglers; ns a step."""

    def __init__(self, job: Job, links: Links, found: Sequence[Verdict]) -> None:
        self.job, self.links = job, links
        self.named = [verdict for verdict in found if verdict.cause is not None]
        self.of_ranks, self.after = self._of_ranks(found) if job.trusted else ({}, {})
        """By rank: its cost by itself; of the named ones, once all costlier ones are idealised."""

    def _idealised(self, verdict: Verdict, values: Values | None = None) -> Values:
        values = self.job.with_ranks_idealised([self.job.ranks.index(verdict.rank)], values)
        if verdict.cause != "link":
            return values
        culprits = (c for c in self.links.culprits if c.kind == "nic" and c.ranks == (verdict.rank,))
        return with_links_idealised(self.job, self.links, [n for c in culprits for n in c.members], values)

    def _of_ranks(self, found: Sequence[Verdict]) -> tuple[dict[int, int], dict[int, int]]:
        whole = self.job.time_ns()
        known = [v for v in found if v.rank in self.job.ranks]
        if len(known) > _COSTED:
            named = {v.rank for v in self.named}
            known.sort(key=lambda v: (v.rank not in named, -(v.excess or 0.0), v.rank))
            known = known[: max(_COSTED, len(named))]
        alone = {v.rank: round(whole - self.job.time_ns(self._idealised(v))) for v in known}
        after: dict[int, int] = {}
        values: Values | None = None
        before = whole
        for verdict in sorted(self.named, key=lambda v: (-alone.get(v.rank, 0), v.rank)):
            values = self._idealised(verdict, values)
            now = self.job.time_ns(values)
            after[verdict.rank] = round(before - now)
            before = now
        return dict(sorted(alone.items())), after

    def what_ifs(self) -> list[WhatIf]:
        """Return the changes that hold for the whole job; the first is `no stragglers`."""
        if not self.job.trusted:
            return []
        values = self.job.with_ranks_idealised([self.job.ranks.index(v.rank) for v in self.named])
        slow = np.flatnonzero(self.links.table["slow"].to_numpy()).tolist()
        return usual(self.job, with_links_idealised(self.job, self.links, slow, values))

    def of_stage(self, number: int) -> int | None:
        """Return T − T(compute of this stage at the mean over the stages), by phase and step."""
        job = self.job
        if not job.trusted or job.places["stage"].n_unique() < 2:  # noqa: PLR2004 - no other stage
            return None
        stage = job.places["stage"].to_numpy()
        balanced, mine = job.with_stages_balanced(), stage[job.rank] == number
        value = np.where(mine, balanced.value, job.values.value)
        before = np.where(mine[job.node], balanced.before, job.values.before)
        return round(job.time_ns() - job.time_ns(job.values._replace(value=value, before=before)))

    def op_types(self) -> pl.DataFrame:
        """Return compute by phase and communication by role and operation: time a step, and the cost of its scatter.

        Idealised: compute of the phase at the peers' median on every rank; transfers at the median of their kind.
        """
        job = self.job
        whole = job.time_ns()
        steps, rows = len(job.steps), []
        factor = job.compute_factor
        for phase, name in enumerate((*PHASES, "other")):
            mine = (job.kind == COMPUTE) & (job.step >= 0) & (job.phase == phase)
            if not mine.any():
                continue
            by_node = np.ones(len(job.kind))
            by_node[mine] = factor[job.rank[mine], job.step[mine], phase]
            cost = round(whole - job.time_ns(job.with_compute(by_node))) if job.trusted else None
            rows.append((f"compute {name}", round(job.values.value[mine].sum() / steps / len(job.ranks)), cost))
        comm = job.nodes.join(
            job.groups.select("group_id", "role", "size"), on="group_id", how="left", maintain_order="left"
        )
        typical = comm["value_ns"].to_numpy().astype(float)
        medians = comm.select(pl.col("value_ns").median().over("role", "op", "size", "bytes")).to_series().to_numpy()
        # what slots brought together belongs to the pipeline, though no group was matched
        labels = comm.select(pl.format("{} {}", pl.col("role").fill_null("pp"), pl.col("op").fill_null("unknown")))
        label = labels.to_series().to_numpy()
        moved = (job.kind == COMM) & job.told
        for name in sorted(set(label[moved].tolist())):
            mine = moved & (label == name)
            values = job.values._replace(value=np.where(mine, medians, job.values.value))
            cost = round(whole - job.time_ns(values)) if job.trusted else None
            rows.append((name, round(typical[mine].sum() / steps / len(job.ranks)), cost))
        return pl.DataFrame(rows, schema=OP_TYPES, orient="row")

    def of_links(self) -> pl.DataFrame:
        """Return the slow links, what they lose and cost."""
        rows = []
        steps = len(self.job.steps)
        for number, row in enumerate(self.links.table.iter_rows(named=True)):
            if row["slow"]:
                cost = None
                if self.job.trusted:
                    ideal = with_links_idealised(self.job, self.links, [number])
                    cost = round(self.job.time_ns() - self.job.time_ns(ideal))
                lost = (row["compared_ns"] - row["expected_ns"]) // steps
                rows.append((row["group"], row["ranks"], row["role"], row["ratio"], lost, cost))
        return pl.DataFrame(rows, schema=LINKS, orient="row").sort("lost_ns", "group", descending=[True, False])


OP_TYPES: Final[Columns] = {"op_type": pl.String, "ns": pl.Int64, "cost_ns": pl.Int64}
LINKS: Final[Columns] = {
    "group": pl.String, "ranks": pl.List(pl.Int32), "role": pl.String, "ratio": pl.Float64, "lost_ns": pl.Int64,
    "cost_ns": pl.Int64,
}  # fmt: skip
