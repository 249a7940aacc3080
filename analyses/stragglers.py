"""Who makes the others wait, why, and what it costs.

Own work of a rank in a step: self_ns, the time in which a compute kernel runs (never the length of a collective: those
who wait show long ones), and host_ns, the time in which the GPU is dry because the host had launched nothing (it counts
to the step of the launch that ends it). Peers: ranks that do the same work (same pipeline stage, over data, tensor and
context parallel groups). A straggler exceeds the median of its peers by more than 5 %, in self time or, mostly by its
host, in own work, in more than half of its steps (persistence: the share of steps). A rank without peers is not judged,
and a heavy stage is no straggler.

cause: device (the same kernels, as many, longer by one factor), work (more or larger work: operators take, or
communications carry, more), host (same kernels, larger gaps), link (its way out of the host moves data slower than its
peers'), unknown.
lateness_ns: mean over its matched communications of start − median start in the group, on aligned clocks.
caused_wait_ns: what others waited, per step, in communications that it was the last to reach. Both spread over all who
share its fate (a tensor or pipeline neighbour of a slow rank is late too): they name nobody.

T: mean time of a step in the replay of all ranks (tracetool/join/job.py); replay_error = T ÷ measured − 1.
Idealised: compute of each phase and step, the host's time between launches, and slow links at the median of the peers;
of a rank that is given more work, its transfers too. A group or link: its transfers at the median of the peers; a
stage: its compute at the mean of the stages; a kind of operation: compute at the median of the peers, transfers at that
of their kind. cost_ns = T − T(that rank, stage, kind of operation, group or link idealised), per step; cost_after_ns:
the same once all costlier ones are idealised. slowdown = T ÷ T(all stragglers and slow links idealised).
slowdown_paper = S of arXiv 2505.05713: T ÷ T(compute at the means, transfers at the medians of their kinds over all
ranks, stages included), so a heavy stage counts in it. Beyond an error of 5 %, or with more than 5 % of communication
time unmatched, costs and slowdowns are null; so is the cost of a link or group without peers.

Source: definitions after arXiv 2505.05713 and NVIDIA's nvidia-resiliency-ext; peers and causes are tracetool's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from tracetool.accusations import Known, of_ranks, of_stages
from tracetool.errors import TracetoolError
from tracetool.figures import milliseconds, percent, share
from tracetool.join.blame import LIMIT, Columns, Verdict, matrix, verdicts
from tracetool.join.costs import GROUPS, LINKS, OP_TYPES, Costs
from tracetool.join.job import Job, places
from tracetool.join.price import step_time_ns
from tracetool.join.segments import COMM
from tracetool.join.whatif import Links, WhatIf, links, published_slowdown
from tracetool.ownwork import own_work
from tracetool.results import Chart, Headline, Result, Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.join.blame import Matrix
    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Stragglers"
NEEDS: Final = ("gpu", "comm")
INSTEAD: Final = "recorded"

_WORTH_SHOWING: Final = 0.001
"""Share of the step below which a rank's cost is not drawn."""
RANKS: Final = (
    "rank", "stage", "self_ns", "peers_self_ns", "host_ns", "excess", "lateness_ns", "caused_wait_ns", "cost_ns",
    "cost_after_ns", "persistence", "cause", "evidence",
)  # fmt: skip


def per_rank(rank: RankView, _facts: Tables, _settings: Settings) -> Tables:
    """Return what the rank does itself."""
    return own_work(rank)


def analyze(parts: Tables, run: RunView, _settings: Settings) -> Result:
    """Compare the ranks with their peers, name who stands out, and replay what each costs."""
    work = parts["work"].sort("rank", "step", nulls_last=True)
    if not work.height:
        return Result(status="skipped", reason="no step holds any GPU activity; `--steps none` takes the whole trace.")
    groups = run.joined.get("groups")
    ranks = work["rank"].unique().sort().to_list()
    if len(ranks) < 2 or groups is None:  # noqa: PLR2004 - alone
        return Result(
            status="skipped",
            reason="one rank alone cannot be compared with its peers. Give tracetool the traces of all ranks, or of "
            "some data-parallel peers of one pipeline stage.",
        )
    job, trouble = _job(run)
    placed = job.places if job else places(ranks, groups)
    peers = dict(placed.select("rank", "peers").iter_rows())
    own = matrix(work, peers)
    found = verdicts(own, work, parts["kernels"], peers)
    judged = any(v.persistence is not None for v in found)
    case = _Case(run, work, own, found, placed=placed, job=job)
    return case.result(trouble, judged=judged)


def _job(run: RunView) -> tuple[Job | None, str]:
    """Return the job to replay, or None and why there is none."""
    try:
        job = Job.of(run.joined)
    except TracetoolError as error:
        return None, str(error)
    if job is None:
        return None, "no communications of several ranks could be joined"
    if job.trusted:
        return job, ""
    if abs(job.error) > LIMIT:
        return job, f"the replay is off by {percent(job.error)}, more than 5 %"
    return job, f"the partners of {percent(job.untold)} of communication time are not known"


class _Case:
    """What is known about one run, and the tables that follow from it."""

    def __init__(
        self,
        run: RunView,
        work: pl.DataFrame,
        own: Matrix,
        found: list[Verdict],
        *,
        placed: pl.DataFrame,
        job: Job | None,
    ) -> None:
        self.run, self.work, self.own, self.placed = run, work, own, placed
        self.job = job
        self.stage = dict(placed.select("rank", "stage").iter_rows())
        self.staged = placed["stage"].null_count() == 0
        host_of = dict(run.joined["clocks"].select("rank", "host").iter_rows()) if "clocks" in run.joined else {}
        self.links: Links | None = links(job, host_of) if job else None
        nics = {c.ranks[0] for c in (self.links.culprits if self.links else ()) if c.kind == "nic"}
        self.found = [
            v._replace(cause="link", evidence="all its slow communicators have it in common, no healthy one does")
            if v.cause is None and v.rank in nics
            else v
            for v in found
        ]
        self.named = [v for v in self.found if v.cause is not None]
        self.costs: Costs | None = Costs(job, self.links, self.found) if job and self.links else None
        self.cost_of = self.costs.of_ranks if self.costs else {}
        self.cost_after = self.costs.after if self.costs else {}

    # ---- tables ----

    def _ranks(self) -> pl.DataFrame:
        late, waits = self._lateness()
        rows = []
        for place, verdict in enumerate(self.found):
            rank = verdict.rank
            rows.append(
                {
                    "rank": rank,
                    "stage": self.stage.get(rank),
                    "self_ns": _mean(self.own.self_ns[place]),
                    "peers_self_ns": _mean(self.own.self_peers[place]),
                    "host_ns": _mean(self.own.host_ns[place]),
                    "excess": verdict.excess,
                    "lateness_ns": late.get(rank),
                    "caused_wait_ns": waits.get(rank),
                    "cost_ns": self.cost_of.get(rank),
                    "cost_after_ns": self.cost_after.get(rank),
                    "persistence": verdict.persistence,
                    "cause": verdict.cause,
                    "evidence": verdict.evidence,
                }
            )
        schema: Columns = {
            "rank": pl.Int32, "stage": pl.Int32, "excess": pl.Float64, "persistence": pl.Float64, "cause": pl.String,
            "evidence": pl.String,
        }  # fmt: skip
        return pl.DataFrame(rows, schema={name: schema.get(name, pl.Int64) for name in RANKS})

    def _lateness(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return mean lateness of each rank, and what others waited for it per step, ns; measured, aligned."""
        if self.job is None:
            return {}, {}
        nodes = self.job.nodes.filter(
            (pl.col("kind") == COMM) & pl.col("told") & pl.col("instance").is_not_null()
        ).select("rank", "group_id", "instance", "aligned_ns")
        key = ["group_id", "instance"]
        seen = nodes.with_columns(
            late=pl.col("aligned_ns") - pl.col("aligned_ns").median().over(key),
            last=pl.col("aligned_ns").max().over(key),
        ).with_columns(waited=pl.col("last") - pl.col("aligned_ns"))
        caused = seen.with_columns(total=pl.col("waited").sum().over(key)).filter(pl.col("waited") == 0)
        late = seen.group_by("rank").agg(pl.col("late").mean().round().cast(pl.Int64)).sort("rank")
        waits = caused.group_by("rank").agg(pl.col("total").sum() // len(self.job.steps)).sort("rank")
        return dict(late.iter_rows()), {**dict.fromkeys(late["rank"].to_list(), 0), **dict(waits.iter_rows())}

    def _stages(self) -> pl.DataFrame:
        rows = []
        by_rank = {rank: place for place, rank in enumerate(self.own.ranks)}
        numbers = sorted({stage for rank, stage in self.stage.items() if rank in by_rank and stage is not None})
        own = {rank: _mean(self.own.self_ns[place]) or 0 for rank, place in by_rank.items()}
        # of two ranks the faster one is the measure: a slow rank is no heavy stage
        of_stage = {s: [own[r] for r, t in self.stage.items() if t == s and r in own] for s in numbers}
        typical = {s: float(np.quantile(ns, 0.5, method="lower")) for s, ns in of_stage.items()}
        mean = sum(typical.values()) / len(typical) if typical else 0.0
        for number in numbers:
            cost = self.costs.of_stage(number) if self.costs else None
            members = [rank for rank, stage in self.stage.items() if stage == number]
            rows.append(
                (number, len(members), round(typical[number]), share(round(typical[number]), round(mean)), cost)
            )
        schema: Columns = {
            "stage": pl.Int32, "ranks": pl.Int64, "self_ns": pl.Int64, "of_mean": pl.Float64, "cost_ns": pl.Int64,
        }  # fmt: skip
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _heat(self) -> pl.DataFrame:
        self_excess, own_excess = self.own.self_excess, self.own.own_excess
        rows = []
        for rank, step, own, host in self.work.select("rank", "step", "self_ns", "host_ns").iter_rows():
            at = self.own.ranks.index(rank), self.own.steps.index(step)
            peer = self.own.self_peers[at]
            rows.append((rank, step, own, host, _or_none(peer), _share(self_excess[at]), _share(own_excess[at])))
        schema: Columns = {
            "rank": pl.Int32, "step": pl.Int32, "self_ns": pl.Int64, "host_ns": pl.Int64, "peers_self_ns": pl.Int64,
            "self_excess": pl.Float64, "own_excess": pl.Float64,
        }  # fmt: skip
        return pl.DataFrame(rows, schema=schema, orient="row")

    # ---- result ----

    def result(self, trouble: str, *, judged: bool) -> Result:
        ranks = self._ranks()
        changes = self.costs.what_ifs() if self.costs else []
        whole = self.job.time_ns() if self.job else None
        slowdown = whole / changes[0].step_ns if changes and whole else None
        worst = max(
            self.named,
            key=lambda v: (max(self.cost_of.get(v.rank, 0), self.cost_after.get(v.rank, 0)), v.excess or 0.0, -v.rank),
            default=None,
        )
        metrics: dict[str, Value] = {
            "slowdown": slowdown,
            "slowdown_paper": published_slowdown(self.job) if self.job and self.job.trusted else None,
            "replay_error": self.job.error if self.job else None,
            "worst_rank": worst.rank if worst else None,
            "stragglers": len(self.named) if judged else None,
            "slow_links": int(self.links.table["slow"].sum()) if self.links else None,
            "replayed_step_ns": round(whole) if whole else None,
            "unmatched_share": self.job.untold if self.job else None,
        }
        tables = {
            "ranks": ranks,
            "largest_costs": _largest(ranks, whole),
            "stages": self._stages(),
            "op_types": self.costs.op_types() if self.costs else pl.DataFrame(schema=OP_TYPES),
            "groups": self.costs.of_groups() if self.costs else pl.DataFrame(schema=GROUPS),
            "links": self.costs.of_links() if self.costs else pl.DataFrame(schema=LINKS),
            "what_ifs": _what_if_table(changes, whole),
            "per_rank_step": self._heat(),
        }
        known = Known(self.work, self.own, self.found, self.placed, step_time_ns(self.run.steps))
        return Result(
            metrics=metrics,
            headline=self._headline(metrics, judged=judged),
            tables=tables,
            charts=_charts(tables),
            findings=[
                *of_ranks(known, ranks),
                *(() if _stages_are_told(self.run) else of_stages(known, tables["stages"])),
            ],
            notes=self._notes(trouble, judged=judged),
        )

    def _headline(self, metrics: dict[str, Value], *, judged: bool) -> list[Headline]:
        if not judged:
            named: Value = None
            note = "no rank has peers to compare with"
        else:
            named = ", ".join(f"rank {v.rank} ({v.cause})" for v in self.named[:3]) or "none"
            named += ", …" if len(self.named) > 3 else ""  # noqa: PLR2004 - three fit
            note = f"of {len(self.found)} ranks, against their peers"
        error = metrics["replay_error"]
        told = (
            f"step as it is ÷ without stragglers; replay off by {100 * error:.2f} %" if isinstance(error, float) else ""
        )
        return [
            Headline("Stragglers", named, "text", 40, note),
            Headline("Slowdown by stragglers", metrics["slowdown"], "ratio", 41, told),
        ]

    def _notes(self, trouble: str, *, judged: bool) -> list[str]:
        notes = []
        if trouble:
            notes.append(f"No cost is given: {trouble}.")
        elif self.job:
            measured = milliseconds(float(self.job.measured_ns.mean()))
            notes.append(
                f"The replay gives a step of {milliseconds(self.job.time_ns())} where {measured} was measured "
                f"({100 * self.job.error:+.2f} %); {self.job.stream_waits}."
            )
        if not judged:
            notes.append(
                "No rank has a peer in its pipeline stage: a slow rank and a heavy stage cannot be told apart, and "
                "nobody is named."
                if self.staged
                else "No group of ranks that do the same work is known: a slow rank, a heavy stage and unequal work "
                "cannot be told apart, and nobody is named."
            )
        alone = [v.rank for v in self.found if v.persistence is None]
        if judged and alone:
            notes.append(f"{len(alone)} ranks have no peers and were not judged.")
        if self.cost_of and len(self.cost_of) < len(self.found):
            notes.append(f"Costs were replayed for the {len(self.cost_of)} ranks furthest above their peers.")
        return notes


def _mean(row: Any) -> int | None:  # noqa: ANN401 - an array of floats
    known = row[np.isfinite(row)]
    return round(float(known.mean())) if len(known) else None


def _or_none(value: float) -> int | None:
    return round(value) if np.isfinite(value) else None


def _share(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _what_if_table(changes: Sequence[WhatIf], whole: float | None) -> pl.DataFrame:
    schema: Columns = {
        "change": pl.String, "step_ns": pl.Int64, "saves_ns": pl.Int64, "speedup": pl.Float64, "assumes": pl.String,
    }  # fmt: skip
    rows = [
        (c.change, round(c.step_ns), round(whole - c.step_ns), whole / c.step_ns if c.step_ns else None, c.assumes)
        for c in changes
        if whole is not None
    ]
    return pl.DataFrame(rows, schema=schema, orient="row")


def _stages_are_told(run: RunView) -> bool:
    """Say whether question `pipeline` judges the stages: it knows their slots, and what moving layers would change."""
    replicas = run.joined.get("pipeline")
    if replicas is None or not replicas.height:
        return False
    return bool(replicas["complete"].all()) and not replicas["microbatches"].null_count()


def _largest(ranks: pl.DataFrame, whole: float | None) -> pl.DataFrame:
    """Return the ranks that cost most, named ones always: alone, or, of hidden ones, once the slower are mended."""
    worth = pl.max_horizontal("cost_ns", "cost_after_ns")
    return (
        ranks.filter(pl.col("cause").is_not_null() | (worth > _WORTH_SHOWING * (whole or 0.0)))
        .filter(worth.is_not_null())
        .select("rank", "cause", "cost_ns", "cost_after_ns", worth_ns=worth.clip(lower_bound=0))
        .sort("worth_ns", "rank", descending=[True, False])
    )


def _charts(tables: dict[str, pl.DataFrame]) -> list[Chart]:
    charts = [
        Chart(
            "heat", "Own work against the peers, by rank and step", "per_rank_step", label="rank", x="step",
            y=("own_excess",), unit="share", options={"least": LIMIT},
            note="By how much compute and host gaps of a rank exceed the median of its peers in each step.",
        ),
    ]  # fmt: skip
    if tables["largest_costs"].height:
        charts.append(
            Chart(
                "bars", "What ranks cost", "largest_costs", label="rank", y=("worth_ns",),
                note="Time of a step that would be saved if this rank alone were as its peers are; of one that a "
                "slower rank hides, once that is mended. Ranks that cost next to nothing are left out.",
                options={"max_rows": 32},
            )
        )  # fmt: skip
    if tables["what_ifs"].height:
        charts.append(
            Chart(
                "bars", "What if", "what_ifs", label="change", y=("step_ns",),
                note="Replayed time of a step under each change; what each assumes stands in the table.",
            )
        )  # fmt: skip
    return charts
