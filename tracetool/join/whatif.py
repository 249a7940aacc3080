"""What a change would be worth: replays of a job with some of its values changed, each with what it assumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import polars as pl

from tracetool import slowlinks
from tracetool.join.segments import COMM, COMPUTE, PHASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.join.job import Job, Values
    from tracetool.join.replay import Floats, Ints


class Links(NamedTuple):
    """Communicators of a job beside their peers (slowlinks.compare), and what brings slow ones to the peers' time."""

    table: pl.DataFrame
    """Columns of slowlinks.compare's links, plus ranks and host_names."""
    culprits: tuple[slowlinks.Culprit, ...]
    number: Ints
    """Row of `table` of every node; −1: none."""
    factor: Floats
    """By row of `table`: transfer × factor is the peers' median; 1 where it has no peers."""


def links(job: Job, host_of: dict[int, str]) -> Links:
    """Return the communicators of a job, slow ones marked, by the transfers that the replay uses."""
    matched = job.nodes["instance"].is_not_null().to_numpy()
    comm = np.flatnonzero((job.kind == COMM) & job.told & matched)
    nodes = job.nodes[comm].select("group_id", "instance", "op", "bytes", "step", "value_ns", "rank")
    key = ["group_id", "instance"]
    p2p = pl.col("op").is_in(["send", "recv", "send_recv"])
    low = pl.when(p2p).then(pl.col("rank").min().over(key))
    high = pl.when(p2p).then(pl.col("rank").max().over(key))
    placed = nodes.with_columns(
        op=pl.when(p2p).then(pl.lit("send_recv")).otherwise("op"), low_rank=low, high_rank=high
    ).join(job.groups.select("group_id", "role", "size", "ranks"), on="group_id", how="left", maintain_order="left")
    names = placed.select(*slowlinks.LINK).unique().sort(slowlinks.LINK)
    spread = [
        sorted({host_of.get(r, "") for r in ([a, b] if a is not None else ranks)})
        for a, b, ranks in names.join(job.groups, on="group_id", how="left", maintain_order="left")
        .select("low_rank", "high_rank", "ranks")
        .iter_rows()
    ]
    names = names.with_columns(host_names=pl.Series(spread, dtype=pl.List(pl.String)))
    instances = (
        placed.join(names, on=slowlinks.LINK, how="left", maintain_order="left", nulls_equal=True)
        .with_columns(
            hosts=pl.col("host_names").list.len().cast(pl.Int64),
            size=pl.when(pl.col("low_rank").is_not_null()).then(2).otherwise("size"),
        )
        .group_by(*slowlinks.LINK, "instance")
        .agg(
            *(pl.col(name).first() for name in ("role", "op", "size", "hosts", "step")),
            pl.col("bytes").max(),
            transfer=pl.col("value_ns").max(),
        )
    )
    cells = (
        instances.filter((pl.col("transfer") > 0) & pl.col("bytes").is_not_null() & (pl.col("op") != "barrier"))
        .group_by(*slowlinks.LINK, *slowlinks.KIND, "step")
        .agg(
            instances=pl.len().cast(pl.Int64),
            transfer_ns=pl.col("transfer").sum(),
            transfer_p50_ns=pl.col("transfer").median().cast(pl.Int64),
            transfer_min_ns=pl.col("transfer").min(),
        )
        .sort(pl.all())
    )
    table, _ = slowlinks.compare(cells)
    table = table.join(names, on=slowlinks.LINK, how="left", maintain_order="left", nulls_equal=True).join(
        job.groups.select("group_id", "group", members="ranks"), on="group_id", how="left", maintain_order="left"
    )
    pair = pl.concat_list("low_rank", "high_rank").cast(pl.List(pl.Int32))
    table = table.with_columns(ranks=pl.when(pl.col("low_rank").is_not_null()).then(pair).otherwise("members"))
    rows = table.with_row_index("row").select(*slowlinks.LINK, "row")
    number = np.full(len(job.kind), -1, np.int64)
    row = placed.join(rows, on=slowlinks.LINK, how="left", maintain_order="left", nulls_equal=True)["row"]
    number[comm] = row.cast(pl.Int64).fill_null(-1).to_numpy()
    places = [
        slowlinks.Place(frozenset(ranks), frozenset(hosts), slow)
        for ranks, hosts, slow in table.select("ranks", "host_names", "slow").iter_rows()
    ]
    factor = table.select((1 / pl.col("ratio")).fill_null(1.0)).to_series().to_numpy()
    return Links(table, tuple(slowlinks.locate(places)), number, factor)


def with_links_idealised(job: Job, found: Links, rows: Sequence[int], values: Values | None = None) -> Values:
    """Return values with the transfers of some rows of `found.table` at their peers' median."""
    factor = np.ones(len(found.factor) + 1)
    factor[list(rows)] = found.factor[list(rows)]
    return job.with_transfers(factor[found.number], values)


class WhatIf(NamedTuple):
    """A change, what it assumes, and the time of a step it would give."""

    change: str
    assumes: str
    step_ns: float


FASTER: Final = 2.0


def usual(job: Job, stragglers: Values) -> list[WhatIf]:
    """Return the what-ifs that hold for any job; `stragglers`: values with all stragglers and slow links idealised."""
    found = [
        WhatIf(
            "no stragglers",
            "compute, host and links of the named ranks and slow links are as their peers'",
            job.time_ns(stragglers),
        ),
        WhatIf(
            f"communication {FASTER:g} times faster",
            "every transfer takes half its time, latency included; work and order stay",
            job.time_ns(job.with_transfers(1 / FASTER)),
        ),
        WhatIf(
            "perfect overlap",
            "transfers take no time; what they order still waits for its partners",
            job.time_ns(job.with_transfers(0.0)),
        ),
        WhatIf(
            "no host gaps",
            "everything is launched as soon as the host has what it waited for; work and order stay",
            job.time_ns(job.without_host()),
        ),
        WhatIf(
            "no jitter",
            "the same work takes the same time in every step and on every peer, but for what a rank is slower",
            job.time_ns(_without_jitter(job)),
        ),
    ]
    if job.places["stage"].n_unique() > 1:
        found.append(
            WhatIf(
                "balanced stages",
                "every pipeline stage has the mean of the stages' compute; transfers and order stay",
                job.time_ns(job.with_stages_balanced()),
            )
        )
    return found


def _without_jitter(job: Job) -> Values:
    """Return values with the same work taking the same time: each piece of compute at its usual time.

    Pieces are what a rank computes of one phase between two communications. Usual: the median over the steps of the
    rank and its peers, times by how much the rank is slower than they are. Pieces that not all peers have in all steps
    are brought to the rank's median of their phase over steps.
    """
    mine = np.flatnonzero((job.kind == COMPUTE) & (job.step >= 0))
    by_node = np.ones(len(job.kind))
    if not len(mine):
        return job.values
    rank, step, phase = job.rank[mine], job.step[mine], job.phase[mine]
    piece = _comms_before(job)[mine] * (len(PHASES) + 1) + phase
    work = np.zeros((len(job.ranks), len(job.steps), int(piece.max()) + 1))
    np.add.at(work, (rank, step, piece), job.values.value[mine])
    own = np.median(job.compute_ns, axis=1)
    ideal = _ratio(own[:, None], job.compute_ns)[rank, step, phase]
    peers = job.places["peers"].to_numpy()
    for number in np.unique(peers):
        alike = np.flatnonzero(peers == number)
        typical = np.median(own[alike], axis=0)
        slower = _ratio(own[alike], np.broadcast_to(typical, own[alike].shape))
        # by how much each rank is slower, at the phase of every piece
        of_piece = slower[:, np.arange(work.shape[2]) % (len(PHASES) + 1)]
        same = work[alike] / of_piece[:, None]
        usual_ns = np.median(same, axis=(0, 1))
        everywhere = np.min(work[alike], axis=(0, 1)) > 0
        place = np.searchsorted(alike, rank)
        here = np.flatnonzero(np.isin(rank, alike))
        here = here[everywhere[piece[here]]]
        wanted = usual_ns[piece[here]] * of_piece[place[here], piece[here]]
        ideal[here] = wanted / work[rank[here], step[here], piece[here]]
    by_node[mine] = ideal
    return job.with_compute(by_node)


def _comms_before(job: Job) -> Ints:
    """Return for every node how many communications its rank launched in that step before it."""
    launch = job.nodes["launch_ns"].to_numpy()
    comm = job.kind == COMM
    order = np.lexsort((np.arange(len(launch)), ~comm, launch, job.step, job.rank))
    count = np.cumsum(comm[order])
    first = np.append(True, (np.diff(job.rank[order]) != 0) | (np.diff(job.step[order]) != 0))
    before = np.maximum.accumulate(np.where(first, count - comm[order], 0))
    answer = np.empty(len(launch), np.int64)
    answer[order] = count - before
    return answer


def _ratio(wanted: Floats, own: Floats) -> Floats:
    """Return wanted ÷ own; 1 where nothing was done."""
    return np.where(own > 0, wanted, 1.0) / np.where(own > 0, own, 1.0)


def published_slowdown(job: Job) -> float:
    """Return S of arXiv 2505.05713: T ÷ T with compute at the means and transfers at the medians of their kinds.

    The mean runs over all ranks and steps, other stages included; compute is taken by phase, transfers by operation,
    role and size of their group, and bytes.
    """
    mean = job.compute_ns.mean(axis=(0, 1), keepdims=True)
    factor = np.where(job.compute_ns > 0, mean / np.where(job.compute_ns > 0, job.compute_ns, 1.0), 1.0)
    mine = (job.kind == COMPUTE) & (job.step >= 0)
    by_node = np.ones(len(job.kind))
    by_node[mine] = factor[job.rank[mine], job.step[mine], job.phase[mine]]
    ideal = job.with_compute(by_node)
    typical = (
        job.nodes.select("group_id", "op", "bytes", value=pl.Series(ideal.value))
        .join(job.groups.select("group_id", "role", "size"), on="group_id", how="left", maintain_order="left")
        .select(pl.col("value").median().over("role", "op", "size", "bytes"))
        .to_series()
        .to_numpy()
    )
    moved = (job.kind == COMM) & job.told
    return job.time_ns() / job.time_ns(ideal._replace(value=np.where(moved, typical, ideal.value)))
