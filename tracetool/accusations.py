"""Findings on the ranks and stages that make the others wait: what is said of each, how surely, and what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import polars as pl

from tracetool.figures import milliseconds, percent, severity
from tracetool.join.blame import LIMIT
from tracetool.results import SAVING_SCHEMA, Finding, Where

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.join.blame import Matrix, Verdict
    from tracetool.results import Confidence

_WORDS: Final = {
    "device": "the device computes slower",
    "work": "it has more to do",
    "host": "its host launches late",
    "link": "its way out of the host is slow",
    "unknown": "why is not clear",
}
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


class Known(NamedTuple):
    """What the findings are made of."""

    work: pl.DataFrame
    """blame.WORK."""
    own: Matrix
    found: Sequence[Verdict]
    places: pl.DataFrame
    """rank, stage, peers."""
    step_ns: int | None


def of_ranks(known: Known, ranks: pl.DataFrame) -> list[Finding]:
    """Return a finding a named rank. `ranks`: that table of the result, a row a verdict."""
    place = {rank: at for at, rank in enumerate(known.own.ranks)}
    peers = dict(known.places.select("rank", pl.len().over("peers") - 1).iter_rows())
    found = []
    for number, verdict in enumerate(known.found):
        if verdict.cause is None:
            continue
        rank, at = verdict.rank, place[verdict.rank]
        row = ranks.row(number, named=True)
        excess = np.maximum(0.0, (known.own.self_ns + known.own.host_ns - known.own.own_peers)[at])
        bound = float(np.nanmean(excess)) if np.isfinite(excess).any() else 0.0
        costs = [ns for ns in (row["cost_ns"], row["cost_after_ns"]) if ns is not None]
        part = max([0, *costs] if costs else [bound]) / known.step_ns if known.step_ns else None
        count = peers.get(rank, 0)
        found.append(
            Finding(
                id=f"stragglers.rank-{rank}",
                analysis="stragglers",
                severity=severity(part, 0.01, 0.10),
                title=f"Rank {rank} is slower than its peers: {_WORDS[verdict.cause]}",
                detail=_detail(verdict, row),
                advice=_ADVICE[verdict.cause],
                confidence=_confidence(verdict, count),
                confidence_why=f"above its {count} peer{'s' if count != 1 else ''} in "
                f"{percent(verdict.persistence)} of steps; {verdict.evidence}",
                saving=_saving(known, verdict, at),
                evidence=(("ranks", (number,)),),
                where=Where(ranks=(rank,)),
            )
        )
    return found


def _detail(verdict: Verdict, row: dict[str, Any]) -> str:
    own = f"{milliseconds(row['self_ns'])} of compute a step" if row["self_ns"] is not None else ""
    peers = f" against {milliseconds(row['peers_self_ns'])} of its peers" if row["peers_self_ns"] is not None else ""
    host = f"; its host leaves the GPU dry for {milliseconds(row['host_ns'])}" if verdict.cause == "host" else ""
    cost = ""
    if row["cost_ns"] is not None:
        cost = f" Idealised alone it saves {milliseconds(max(0, row['cost_ns']))} a step"
        after = row["cost_after_ns"]
        cost += f", {milliseconds(max(0, after))} once the costlier ones are." if after is not None else "."
    return f"{own}{peers}{host}.{cost}"


def _saving(known: Known, verdict: Verdict, at: int) -> pl.DataFrame:
    """Return what its excess over the peers is, step by step, where it is longest."""
    own = known.own
    device = verdict.cause in {"device", "work", "unknown"}
    excess = (own.self_ns - own.self_peers if device else own.host_ns - own.host_peers)[at]
    rows = known.work.filter(pl.col("rank") == verdict.rank).select(
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


def _confidence(verdict: Verdict, peers: int) -> Confidence:
    if verdict.cause == "unknown" or (verdict.persistence or 0) < 0.75:  # noqa: PLR2004 - most of its steps, not nearly all
        return "low"
    return "high" if peers > 1 else "medium"


def of_stages(known: Known, stages: pl.DataFrame) -> list[Finding]:
    """Return the finding on the heaviest stage, where one is heavier than the mean by more than the limit."""
    heavy = stages.filter(pl.col("of_mean") > 1 + LIMIT).sort("of_mean", "stage", descending=[True, False])
    if not heavy.height or stages.height < 2:  # noqa: PLR2004 - no other stage
        return []
    row = heavy.row(0, named=True)
    number = row["stage"]
    members = known.places.filter(pl.col("stage") == number)["rank"].to_list()
    mean = float(row["self_ns"]) / row["of_mean"]
    saving = known.work.filter(pl.col("rank").is_in(members) & pl.col("at_ns").is_not_null()).select(
        "rank", "step", "at_ns", ns=(pl.col("self_ns") - round(mean)).clip(0)
    )
    worth = row["cost_ns"] if row["cost_ns"] is not None else row["self_ns"] - mean
    compared = known.places.select((pl.len().over("stage") > 1).all()).item()
    return [
        Finding(
            id=f"stragglers.stage-{number}",
            analysis="stragglers",
            severity=severity(worth / known.step_ns if known.step_ns else None, 0.02, 0.15),
            title=f"Pipeline stage {number} computes {row['of_mean']:.2f} times as long as the mean stage",
            detail=f"{milliseconds(row['self_ns'])} a step against {milliseconds(mean)} on the mean of "
            f"{stages.height} stages; the others wait for it.",
            advice="Move layers from this stage to lighter ones, or split the embedding and the output layer off.",
            confidence="medium" if compared else "low",
            confidence_why="all its ranks are alike"
            if compared
            else "with one rank a stage, a slow rank and a heavy stage look the same",
            saving=saving.filter(pl.col("ns") > 0).select(
                pl.col(name).cast(dtype) for name, dtype in SAVING_SCHEMA.items()
            ),
            evidence=(("stages", (stages["stage"].to_list().index(number),)),),
            where=Where(stages=(number,)),
        )
    ]
