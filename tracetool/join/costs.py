"""What each rank, stage, kind of operation, group and link of a job costs, by replay: T − T(with it idealised).

The words are those of tracetool/join/job.py. Without a replay to be trusted no cost is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

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
"""Ranks, links and groups whose cost is replayed each; of more, those furthest above (or from) their peers."""


class Costs:
    """The replays of one job with its stragglers; ns a step."""

    def __init__(self, job: Job, links: Links, found: Sequence[Verdict]) -> None:
        self.job, self.links = job, links
        self._by_rows: dict[tuple[int, ...], int] = {}
        self.named = [verdict for verdict in found if verdict.cause is not None]
        self.of_ranks, self.after = self._of_ranks(found) if job.trusted else ({}, {})
        """By rank: its cost by itself; of the named ones, once all costlier ones are idealised."""

    def _idealised(self, verdict: Verdict, values: Values | None = None) -> Values:
        """Return values with one rank as its peers are: compute, host, and what its cause is about."""
        place = [self.job.ranks.index(verdict.rank)]
        values = self.job.with_ranks_idealised(place, values)
        if verdict.cause == "work":
            return self.job.with_loads_idealised(place, values)
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
        place = self.job.ranks.index
        values = self.job.with_ranks_idealised([place(v.rank) for v in self.named])
        values = self.job.with_loads_idealised([place(v.rank) for v in self.named if v.cause == "work"], values)
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
        # of two groups the faster one is the measure
        usual_ns = pl.col("value_ns").quantile(0.5, interpolation="lower").over("role", "op", "size", "bytes")
        medians = comm.select(usual_ns).to_series().to_numpy()
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
        """Return every communicator (of sends and receives a pair of ranks) beside its peers, and what it costs.

        Idealised: its transfers at the median of the peers; null where it has none.
        """
        table = self.links.table.with_row_index("row")
        costly = self._costliest(table)
        rows = [
            (
                row["group"], row["ranks"], row["role"], row["ratio"], row["slow"], row["transfer_ns"] // self._steps,
                self._lost(row), self._of_rows((row["row"],)) if row["row"] in costly else None,
            )
            for row in table.iter_rows(named=True)
        ]  # fmt: skip
        found = pl.DataFrame(rows, schema=LINKS, orient="row")
        return found.sort("slow", "lost_ns", "group", "ranks", descending=[True, True, False, False], nulls_last=True)

    def of_groups(self) -> pl.DataFrame:
        """Return every process group that communicates: its transfers a step, and the cost of all its links."""
        table = self.links.table.with_row_index("row")
        by_group = table.group_by("group_id", maintain_order=True).agg(
            "row", pl.col("group", "role", "members").first(),
            pl.col("transfer_ns", "compared_ns", "expected_ns").sum(),
            pl.col("ratio").count().alias("compared"),
        )  # fmt: skip
        costly = {row["row"][0] for row in self._largest(by_group.filter(pl.col("compared") > 0))}
        rows = [
            (
                row["group"], row["members"], row["role"], row["transfer_ns"] // self._steps,
                row["compared_ns"] / row["expected_ns"] if row["compared"] else None,
                self._of_rows(tuple(row["row"])) if row["row"][0] in costly else None,
            )
            for row in by_group.iter_rows(named=True)
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=GROUPS, orient="row").sort("group", "ranks")

    @property
    def _steps(self) -> int:
        return len(self.job.steps)

    def _lost(self, row: dict[str, Any]) -> int | None:
        known = row["ratio"] is not None
        return int((row["compared_ns"] - row["expected_ns"]) // self._steps) if known else None

    def _largest(self, table: pl.DataFrame) -> list[dict[str, Any]]:
        """Return the rows whose cost is replayed: those furthest from their peers."""
        off = (pl.col("compared_ns") - pl.col("expected_ns")).abs()
        return (
            table.sort(off, descending=True, maintain_order=True).head(_COSTED).to_dicts() if self.job.trusted else []
        )

    def _costliest(self, table: pl.DataFrame) -> set[int]:
        known = table.filter(pl.col("ratio").is_not_null())
        slow = known.filter("slow")["row"].to_list() if self.job.trusted else []
        return {*slow, *(row["row"] for row in self._largest(known))}

    def _of_rows(self, rows: tuple[int, ...]) -> int:
        """Return the cost of some rows of the links' table together."""
        if rows not in self._by_rows:
            ideal = with_links_idealised(self.job, self.links, rows)
            self._by_rows[rows] = round(self.job.time_ns() - self.job.time_ns(ideal))
        return self._by_rows[rows]


OP_TYPES: Final[Columns] = {"op_type": pl.String, "ns": pl.Int64, "cost_ns": pl.Int64}
LINKS: Final[Columns] = {
    "group": pl.String, "ranks": pl.List(pl.Int32), "role": pl.String, "ratio": pl.Float64, "slow": pl.Boolean,
    "ns": pl.Int64, "lost_ns": pl.Int64, "cost_ns": pl.Int64,
}  # fmt: skip
GROUPS: Final[Columns] = {
    "group": pl.String, "ranks": pl.List(pl.Int32), "role": pl.String, "ns": pl.Int64, "ratio": pl.Float64,
    "cost_ns": pl.Int64,
}  # fmt: skip
