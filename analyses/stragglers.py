"""Who makes the others wait, why, and what it costs.

Own work of a rank in a step: self_ns, the time in which a compute kernel runs (never the length of a collective: those
who wait show long ones), and host_ns, the time in which the GPU is dry because the host had launched nothing. Peers:
ranks that do the same work (same pipeline stage, over data, tensor and context parallel groups). A straggler exceeds
the median of its peers by more than 5 %, in self time or, mostly by its host, in own work, in more than half of its
steps (persistence: the share of steps). A rank without peers is not judged, and a heavy stage is no straggler.

cause: device (the same kernels, as many, longer by one factor), work (more or larger work: operators take, or
communications carry, more), host (same kernels, larger gaps), link (its way out of the host moves data slower than its
peers'), unknown.
lateness_ns: mean over its matched communications of start − median start in the group, on aligned clocks.
caused_wait_ns: what others waited, per step, in communications that it was the last to reach. Both spread over all who
share its fate (a tensor or pipeline neighbour of a slow rank is late too): they name nobody.

T: mean time of a step in the replay of all ranks (tracetool/join/job.py); replay_error = T ÷ measured − 1.
Idealised: compute of each phase and step, the host's time between launches, and slow links at the median of the peers.
cost_ns = T − T(that rank, stage, operation or link idealised), per step; cost_after_ns: the same once all costlier
ones are idealised. slowdown = T ÷ T(all stragglers and slow links idealised). slowdown_paper = S of arXiv 2505.05713:
T ÷ T(compute at the means, transfers at the medians of their kinds over all ranks, stages included), so a heavy stage
counts in it. Beyond an error of 5 %, or with more than 5 % of communication time unmatched, costs and slowdowns are
null.

Source: definitions after arXiv 2505.05713 and NVIDIA's nvidia-resiliency-ext; peers and causes are tracetool's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from tracetool import intervals
from tracetool.errors import TracetoolError
from tracetool.figures import milliseconds, percent, severity, share
from tracetool.join.blame import LIMIT, WORK, Columns, Verdict, matrix, verdicts
from tracetool.join.job import Job, places
from tracetool.join.price import step_time_ns
from tracetool.join.segments import COMM, COMPUTE, PHASES
from tracetool.join.whatif import Links, WhatIf, links, published_slowdown, usual, with_links_idealised
from tracetool.results import SAVING_SCHEMA, Chart, Finding, Headline, Result, Value, Where

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.join.blame import Matrix
    from tracetool.join.job import Values
    from tracetool.registry import RankView, RunView
    from tracetool.results import Confidence
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Stragglers"
NEEDS: Final = ("gpu", "comm")

RANKS: Final = (
    "rank", "stage", "self_ns", "peers_self_ns", "host_ns", "excess", "lateness_ns", "caused_wait_ns", "cost_ns",
    "cost_after_ns", "persistence", "cause", "evidence",
)  # fmt: skip
_KERNELS_KEPT: Final = 400
_COSTED: Final = 64
"""Ranks whose cost is replayed each; of more, those above their peers most."""
_ADVICE: Final = {
    "device": "Read the device's clocks, temperature and power against its peers' (nvidia-smi -q -d "
    "CLOCK,PERFORMANCE,ECC), move the job off it and run a GEMM benchmark there.",
    "work": "Balance what the ranks are given: pack sequences to equal length, balance experts, look at what this rank "
    "alone computes.",
    "host": "See question host for this rank: data loader, garbage collection, synchronising calls; pin its process to "
    "cores and look for other load on its host.",
    "link": "Compare this rank's NIC with a healthy one (ibstat, ethtool, PCIe width) and run nccl-tests over it.",
    "unknown": "Record this rank and a peer with record_shapes=True and compare their kernels.",
}


def per_rank(rank: RankView, _facts: Tables, _settings: Settings) -> Tables:
    """Return `work` (blame.WORK, a row a step) and `kernels` (name, count, ns of the compute that took longest)."""
    windows = rank.table("steps", ["rank", "step", "start_ns", "end_ns"]).sort("start_ns", "end_ns")
    columns = ["event", "start_ns", "dur_ns", "kind", "name", "launch_start_ns", "launch_end_ns", "step", "op"]
    gpu = (
        rank.table("gpu", columns)
        .with_columns(end_ns=pl.col("start_ns") + pl.col("dur_ns"))
        .sort(["start_ns", "dur_ns", "event"], descending=[False, True, False])
    )
    compute = gpu.filter(pl.col("kind") == "compute")
    dry = pl.col("end_ns").cum_max().shift(1)
    gaps = (
        gpu.select("start_ns", "launch_start_ns", "launch_end_ns", dry=dry)
        .filter((pl.col("start_ns") > pl.col("dry")) & (pl.col("launch_start_ns") > pl.col("dry")))
        .select(pl.col("dry").alias("start_ns"), end_ns=pl.min_horizontal("start_ns", "launch_end_ns"))
    )
    comms = rank.table("comms", ["step", "bytes"]).group_by("step").agg(pl.col("bytes").sum())
    work = (
        windows.with_columns(
            self_ns=intervals.covered(windows, compute.select("start_ns", "end_ns")),
            host_ns=intervals.covered(windows, gaps),
        )
        .join(_longest(windows, compute.select("start_ns", "end_ns"), "at_ns"), on="step", how="left", nulls_equal=True)
        .join(_longest(windows, gaps, "host_at_ns"), on="step", how="left", nulls_equal=True)
        .join(comms, on="step", how="left", nulls_equal=True)
        .join(_elements(rank, compute), on="step", how="left", nulls_equal=True)
        .with_columns(pl.col("bytes").fill_null(0))
        .sort("start_ns")
        .select(pl.col(name).cast(dtype) for name, dtype in WORK.items())
    )
    kernels = (
        compute.group_by(pl.col("name").cast(pl.String))
        .agg(count=pl.len().cast(pl.Int64), ns=pl.col("dur_ns").sum())
        .sort("ns", "name", descending=[True, False])
        .head(_KERNELS_KEPT)
        .select(pl.lit(rank.rank, pl.Int32).alias("rank"), "name", "count", "ns")
    )
    return {"work": work, "kernels": kernels}


def _longest(windows: pl.DataFrame, spans: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return where the longest island of the spans begins in each window, by step."""
    cut = intervals.cover(windows.select("start_ns", "end_ns"), [spans]).filter(pl.col("layer") == 0)
    first = cut.sort(pl.col("end_ns") - pl.col("start_ns"), "start_ns", descending=[True, False]).unique(
        "window", keep="first", maintain_order=True
    )
    numbered = windows.select("step").with_row_index("window")
    return first.join(numbered, on="window").select("step", pl.col("start_ns").alias(name)).sort("step")


def _elements(rank: RankView, compute: pl.DataFrame) -> pl.DataFrame:
    """Return the elements of the inputs of all operators that launched compute, by step; null without shapes."""
    ops = compute.filter(pl.col("op").is_not_null()).select("op", "step").unique()
    shapes = rank.table("op_shapes", ["event", "input_dims"]).filter(pl.col("input_dims").is_not_null())
    if not shapes.height or not ops.height:
        return pl.DataFrame(schema={"step": pl.Int32, "elements": pl.Int64})
    texts = shapes.select(pl.col("input_dims").cast(pl.String)).unique()
    # innermost brackets are tensors: their elements are the product of the numbers in them
    tensors = (
        texts.with_columns(tensor=pl.col("input_dims").str.extract_all(r"\[(\d[\d, ]*)\]"))
        .explode("tensor", empty_as_null=True, keep_nulls=False)
        .with_columns(
            elements=pl.col("tensor")
            .str.extract_all(r"\d+")
            .list.eval(pl.element().cast(pl.Float64, strict=False))
            .list.eval(pl.element().product())
            .list.first()
        )
        .group_by("input_dims")
        .agg(pl.col("elements").sum())
    )
    return (
        ops.join(shapes.with_columns(pl.col("input_dims").cast(pl.String)), left_on="op", right_on="event")
        .join(tensors, on="input_dims", how="left")
        .group_by("step")
        .agg(elements=pl.col("elements").fill_null(0.0).sum().round().cast(pl.Int64))
        .sort("step")
    )


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
        self.trusted = job is not None and job.trusted
        self.stage = dict(placed.select("rank", "stage").iter_rows())
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
        self.costs, self.after = self._costs()

    # ---- replay ----

    def _idealised(self, verdict: Verdict, values: Values | None = None) -> Values:
        assert self.job is not None  # noqa: S101 - only asked with a job
        values = self.job.with_ranks_idealised([self.job.ranks.index(verdict.rank)], values)
        return self._links_of(verdict.rank, values) if verdict.cause == "link" else values

    def _links_of(self, rank: int, values: Values) -> Values:
        assert self.job is not None and self.links is not None  # noqa: S101, PT018 - only asked with a job
        rows = [n for c in self.links.culprits if c.kind == "nic" and c.ranks == (rank,) for n in c.members]
        return with_links_idealised(self.job, self.links, rows, values)

    def _costs(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return the cost of ranks by itself, and of the named ones once all costlier ones are idealised; ns a step."""
        if not self.trusted or self.job is None:
            return {}, {}
        whole = self.job.time_ns()
        known = [v for v in self.found if v.rank in self.job.ranks]
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

    def _without_all(self) -> Values:
        assert self.job is not None and self.links is not None  # noqa: S101, PT018 - only asked with a job
        values = self.job.with_ranks_idealised([self.job.ranks.index(v.rank) for v in self.named])
        slow = np.flatnonzero(self.links.table["slow"].to_numpy()).tolist()
        return with_links_idealised(self.job, self.links, slow, values)

    def _what_ifs(self) -> list[WhatIf]:
        return usual(self.job, self._without_all()) if self.trusted and self.job else []

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
                    "cost_ns": self.costs.get(rank),
                    "cost_after_ns": self.after.get(rank),
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
        numbers = sorted({stage for rank, stage in self.stage.items() if rank in by_rank})
        own = {rank: _mean(self.own.self_ns[place]) or 0 for rank, place in by_rank.items()}
        # of two ranks the faster one is the measure: a slow rank is no heavy stage
        of_stage = {s: [own[r] for r, t in self.stage.items() if t == s and r in own] for s in numbers}
        typical = {s: float(np.quantile(ns, 0.5, method="lower")) for s, ns in of_stage.items()}
        mean = sum(typical.values()) / len(typical)
        for number in numbers:
            cost = self._stage_cost(number) if self.trusted else None
            members = [rank for rank, stage in self.stage.items() if stage == number]
            rows.append(
                (number, len(members), round(typical[number]), share(round(typical[number]), round(mean)), cost)
            )
        schema: Columns = {
            "stage": pl.Int32, "ranks": pl.Int64, "self_ns": pl.Int64, "of_mean": pl.Float64, "cost_ns": pl.Int64,
        }  # fmt: skip
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _stage_cost(self, number: int) -> int | None:
        """Return T − T(compute of this stage at the mean over the stages), by phase and step."""
        job = self.job
        if job is None or job.places["stage"].n_unique() < 2:  # noqa: PLR2004 - no other stage
            return None
        stage = job.places["stage"].to_numpy()
        balanced, mine = job.with_stages_balanced(), stage[job.rank] == number
        value = np.where(mine, balanced.value, job.values.value)
        before = np.where(mine[job.node], balanced.before, job.values.before)
        return round(job.time_ns() - job.time_ns(job.values._replace(value=value, before=before)))

    def _op_types(self) -> pl.DataFrame:
        """Return compute by phase and communication by role and operation: time a step, and the cost of its scatter.

        Idealised: compute of the phase at the peers' median on every rank; transfers at the median of their kind.
        """
        schema: Columns = {"op_type": pl.String, "ns": pl.Int64, "cost_ns": pl.Int64}
        job = self.job
        if job is None:
            return pl.DataFrame(schema=schema)
        whole = job.time_ns()
        steps, rows = len(job.steps), []
        factor = job.compute_factor
        for phase, name in enumerate((*PHASES, "other")):
            mine = (job.kind == COMPUTE) & (job.step >= 0) & (job.phase == phase)
            if not mine.any():
                continue
            by_node = np.ones(len(job.kind))
            by_node[mine] = factor[job.rank[mine], job.step[mine], phase]
            cost = round(whole - job.time_ns(job.with_compute(by_node))) if self.trusted else None
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
            cost = round(whole - job.time_ns(values)) if self.trusted else None
            rows.append((name, round(typical[mine].sum() / steps / len(job.ranks)), cost))
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _links(self) -> pl.DataFrame:
        schema: Columns = {
            "group": pl.String, "ranks": pl.List(pl.Int32), "role": pl.String, "ratio": pl.Float64, "lost_ns": pl.Int64,
            "cost_ns": pl.Int64,
        }  # fmt: skip
        if self.links is None or self.job is None:
            return pl.DataFrame(schema=schema)
        rows = []
        steps = len(self.job.steps)
        for number, row in enumerate(self.links.table.iter_rows(named=True)):
            if row["slow"]:
                cost = None
                if self.trusted:
                    ideal = with_links_idealised(self.job, self.links, [number])
                    cost = round(self.job.time_ns() - self.job.time_ns(ideal))
                lost = (row["compared_ns"] - row["expected_ns"]) // steps
                rows.append((row["group"], row["ranks"], row["role"], row["ratio"], lost, cost))
        return pl.DataFrame(rows, schema=schema, orient="row").sort("lost_ns", "group", descending=[True, False])

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
        changes = self._what_ifs()
        whole = self.job.time_ns() if self.job else None
        slowdown = whole / changes[0].step_ns if changes and whole else None
        worst = max(
            self.named,
            key=lambda v: (max(self.costs.get(v.rank, 0), self.after.get(v.rank, 0)), v.excess or 0.0, -v.rank),
            default=None,
        )
        metrics: dict[str, Value] = {
            "slowdown": slowdown,
            "slowdown_paper": published_slowdown(self.job) if self.trusted and self.job else None,
            "replay_error": self.job.error if self.job else None,
            "worst_rank": worst.rank if worst else None,
            "stragglers": len(self.named) if judged else None,
            "slow_links": int(self.links.table["slow"].sum()) if self.links else None,
            "replayed_step_ns": round(whole) if whole else None,
            "unmatched_share": self.job.untold if self.job else None,
        }
        tables = {
            "ranks": ranks,
            "stages": self._stages(),
            "op_types": self._op_types(),
            "links": self._links(),
            "what_ifs": _what_if_table(changes, whole),
            "per_rank_step": self._heat(),
        }
        return Result(
            metrics=metrics,
            headline=self._headline(metrics, judged=judged),
            tables=tables,
            charts=_charts(tables),
            findings=[*self._findings(ranks), *self._stage_findings(tables["stages"])],
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
            )
        alone = [v.rank for v in self.found if v.persistence is None]
        if judged and alone:
            notes.append(f"{len(alone)} ranks have no peers and were not judged.")
        if self.trusted and len(self.costs) < len(self.found):
            notes.append(f"Costs were replayed for the {len(self.costs)} ranks furthest above their peers.")
        return notes

    def _findings(self, ranks: pl.DataFrame) -> list[Finding]:
        step_ns = step_time_ns(self.run.steps)
        place = {rank: at for at, rank in enumerate(self.own.ranks)}
        found = []
        for row, verdict in enumerate(self.found):
            if verdict.cause is None:
                continue
            rank, at = verdict.rank, place[verdict.rank]
            worth = max(self.costs.get(rank, 0), self.after.get(rank, 0)) if self.costs else None
            excess = np.maximum(0.0, (self.own.self_ns + self.own.host_ns - self.own.own_peers)[at])
            bound = float(np.nanmean(excess)) if np.isfinite(excess).any() else 0.0
            part = (bound if worth is None else worth) / step_ns if step_ns else None
            peers = sum(1 for other in self.found if self._peers(other.rank) == self._peers(rank)) - 1
            found.append(
                Finding(
                    id=f"stragglers.rank-{rank}",
                    analysis="stragglers",
                    severity=severity(part, 0.01, 0.10),
                    title=f"Rank {rank} is slower than its peers: {_WORDS[verdict.cause]}",
                    detail=self._detail(verdict, ranks.row(row, named=True)),
                    advice=_ADVICE[verdict.cause],
                    confidence=_confidence(verdict, peers),
                    confidence_why=f"above its {peers} peer{'s' if peers != 1 else ''} in "
                    f"{percent(verdict.persistence)} of steps; {verdict.evidence}",
                    saving=self._saving(verdict, at),
                    evidence=(("ranks", (row,)),),
                    where=Where(ranks=(rank,)),
                )
            )
        return found

    def _peers(self, rank: int) -> Any:  # noqa: ANN401 - a cell of places
        return self.placed.filter(pl.col("rank") == rank)["peers"].to_list()

    def _detail(self, verdict: Verdict, row: dict[str, Any]) -> str:
        own = f"{milliseconds(row['self_ns'])} of compute a step" if row["self_ns"] is not None else ""
        peers = (
            f" against {milliseconds(row['peers_self_ns'])} of its peers" if row["peers_self_ns"] is not None else ""
        )
        host = f"; its host leaves the GPU dry for {milliseconds(row['host_ns'])}" if verdict.cause == "host" else ""
        cost = ""
        if row["cost_ns"] is not None:
            cost = f" Idealised alone it saves {milliseconds(max(0, row['cost_ns']))} a step"
            after = row["cost_after_ns"]
            cost += f", {milliseconds(max(0, after))} once the costlier ones are." if after is not None else "."
        return f"{own}{peers}{host}.{cost}"

    def _saving(self, verdict: Verdict, at: int) -> pl.DataFrame:
        """Return what its excess over the peers is, step by step, where it is longest."""
        own = self.own
        device = verdict.cause in {"device", "work", "unknown"}
        excess = (own.self_ns - own.self_peers if device else own.host_ns - own.host_peers)[at]
        rows = self.work.filter(pl.col("rank") == verdict.rank).select(
            "rank", "step", at_ns=pl.coalesce("at_ns" if device else "host_at_ns", "at_ns")
        )
        ns = [
            round(excess[own.steps.index(step)]) if np.isfinite(excess[own.steps.index(step)]) else 0
            for step in rows["step"]
        ]
        return (
            rows.with_columns(ns=pl.Series(ns, dtype=pl.Int64))
            .filter((pl.col("ns") > 0) & pl.col("at_ns").is_not_null())
            .select(pl.col(name).cast(dtype) for name, dtype in SAVING_SCHEMA.items())
        )

    def _stage_findings(self, stages: pl.DataFrame) -> list[Finding]:
        """Return the finding on the heaviest stage, where one is heavier than the mean by more than the limit."""
        heavy = stages.filter(pl.col("of_mean") > 1 + LIMIT).sort("of_mean", "stage", descending=[True, False])
        if not heavy.height or stages.height < 2:  # noqa: PLR2004 - no other stage
            return []
        row = heavy.row(0, named=True)
        number = row["stage"]
        members = [rank for rank, stage in self.stage.items() if stage == number]
        mean = float(row["self_ns"]) / row["of_mean"]
        saving = self.work.filter(pl.col("rank").is_in(members) & pl.col("at_ns").is_not_null()).select(
            "rank", "step", "at_ns", ns=(pl.col("self_ns") - round(mean)).clip(0)
        )
        step_ns = step_time_ns(self.run.steps)
        worth = row["cost_ns"] if row["cost_ns"] is not None else row["self_ns"] - mean
        compared = all(len(_same_stage(self.stage, s)) > 1 for s in self.stage.values())
        return [
            Finding(
                id=f"stragglers.stage-{number}",
                analysis="stragglers",
                severity=severity(worth / step_ns if step_ns else None, 0.02, 0.15),
                title=f"Pipeline stage {number} computes {row['of_mean']:.2f} times as long as the mean stage",
                detail=f"{milliseconds(row['self_ns'])} a step against {milliseconds(mean)} on the mean of "
                f"{stages.height} stages; the others wait for it.",
                advice="Move layers from this stage to lighter ones, or split the embedding and the output layer off.",
                confidence="medium" if compared else "low",
                confidence_why="all its ranks are alike" if compared
                else "with one rank a stage, a slow rank and a heavy stage look the same",
                saving=saving.filter(pl.col("ns") > 0).select(
                    pl.col(name).cast(dtype) for name, dtype in SAVING_SCHEMA.items()
                ),
                evidence=(("stages", (stages["stage"].to_list().index(number),)),),
                where=Where(stages=(number,)),
            )
        ]  # fmt: skip


_WORDS: Final = {
    "device": "the device computes slower",
    "work": "it has more to do",
    "host": "its host launches late",
    "link": "its way out of the host is slow",
    "unknown": "why is not clear",
}


def _same_stage(stage: dict[int, int], number: int) -> list[int]:
    return [rank for rank, mine in stage.items() if mine == number]


def _confidence(verdict: Verdict, peers: int) -> Confidence:
    if verdict.cause == "unknown" or (verdict.persistence or 0) < 0.75:  # noqa: PLR2004 - most of its steps, not nearly all
        return "low"
    return "high" if peers > 1 else "medium"


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


def _charts(tables: dict[str, pl.DataFrame]) -> list[Chart]:
    charts = [
        Chart(
            "heat", "Own work against the peers, by rank and step", "per_rank_step", label="rank", x="step",
            y=("own_excess",), unit="share",
            note="By how much compute and host gaps of a rank exceed the median of its peers in each step.",
        ),
    ]  # fmt: skip
    if tables["ranks"]["cost_ns"].null_count() < tables["ranks"].height:
        charts.append(
            Chart(
                "bars", "What each rank costs", "ranks", label="rank", y=("cost_ns",),
                note="Time of a step that would be saved if this rank alone were as its peers are.",
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
