"""What a fix is worth: turns the saving rows of findings into prices, and ranks findings by them.

Only this module prices a finding. By `replay`: the rows are taken out of the run where they were spent (join/saving),
all ranks are replayed, and the price is by how much the mean step gets shorter. That holds where the replay of the run
as it was is off by at most 5 % and the rows name work, transfers or host time. Rows that are themselves the answer of a
replay (of a pipeline's slots in another order, say, which the replay of all ranks cannot put anew) are taken as they
are, under the same limit of that replay's error. Else the price is a `bound`: in one step the ranks work side by side,
so a fix shortens the step by at most the largest sum that any one rank would save in it; the price is the mean of that
over the steps of the run (steps in which nothing is saved count as 0).
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.errors import TracetoolError
from tracetool.join.job import ERROR_LIMIT, Job
from tracetool.join.saving import without

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracetool.results import Finding

INFO_BELOW: Final = 0.01
"""A finding worth less than this share of the step is for information only."""
_HIDE_EACH_OTHER: Final = ("stragglers",)
"""Analyses whose findings are about ranks side by side: the slowest hides the others."""
_SEVERITY_ORDER: Final = {"critical": 0, "warning": 1, "info": 2}


def price(
    findings: Sequence[Finding], steps: pl.DataFrame, joined: Mapping[str, pl.DataFrame] | None = None
) -> tuple[Finding, ...]:
    """Return the findings priced and ranked: by what they recover, then severity, then id.

    `steps` is table `steps` of all ranks; `joined` are the tables of the join, None: bounds only. A finding with no
    saving rows keeps null prices: a critical one, such as a hang, stands before all others, the rest behind the priced
    ones. One that is worth little only because a costlier one of its analysis hides it keeps its severity.
    """
    step_ns = step_time_ns(steps)
    count = max(1, steps["step"].n_unique()) if steps.height else 1
    open_ = any(finding.saving.height and not _is_replayed(finding) for finding in findings)
    job = _job(joined) if joined and open_ else None
    alone = [_replayed(finding, job, steps) for finding in findings]
    hidden = _hidden(findings, alone, job, steps) if job is not None else {}
    priced = [
        _priced(finding, step_ns, count, replayed, hidden.get(finding.id, 0))
        for finding, replayed in zip(findings, alone, strict=True)
    ]
    return tuple(
        sorted(
            priced,
            key=lambda f: (
                f.severity != "critical" or f.recoverable_ns_per_step is not None,
                f.severity == "info" and f.confidence == "low",
                -(f.recoverable_ns_per_step or 0),
                _SEVERITY_ORDER[f.severity],
                f.id,
            ),
        )
    )


def step_time_ns(steps: pl.DataFrame) -> int | None:
    """Return the run's step time: the median over ranks of the mean window, last open-ended steps left out.

    None when there is no step. With a single step per rank that one counts although its end is open.
    """
    if not steps.height:
        return None
    closed = steps.filter(~pl.col("open_end"))
    used = closed if closed.height else steps
    means = used.group_by("rank").agg(ns=(pl.col("end_ns") - pl.col("start_ns")).mean())
    median = means["ns"].median()
    return round(median) if isinstance(median, int | float) else None


def _job(joined: Mapping[str, pl.DataFrame]) -> Job | None:
    """Return the job to replay; None where there is none, or its replay is not to be trusted."""
    try:
        job = Job.of(joined)
    except TracetoolError:  # communications that contradict each other: `stragglers` says so
        return None
    return job if job is not None and job.trusted else None


def _replayed(finding: Finding, job: Job | None, steps: pl.DataFrame) -> int | None:
    """Return by how much the mean step gets shorter, ns; None where a replay cannot tell."""
    values = without(job, finding.saving, steps) if job is not None and finding.saving.height else None
    return None if job is None or values is None else max(0, round(job.time_ns() - job.time_ns(values)))


def _hidden(findings: Sequence[Finding], alone: Sequence[int | None], job: Job, steps: pl.DataFrame) -> dict[str, int]:
    """Return by finding what it would save once the costlier findings of its analysis are mended, ns a step."""
    answer = {}
    worth = {finding.id: ns for finding, ns in zip(findings, alone, strict=True) if ns is not None}
    known = sorted((f for f in findings if f.id in worth), key=lambda f: (f.analysis, -worth[f.id], f.id))
    for analysis, mine in itertools.groupby(known, key=lambda f: f.analysis):
        several = list(mine)
        if analysis not in _HIDE_EACH_OTHER or len(several) < 2:  # noqa: PLR2004 - nothing to hide behind
            continue
        values, before = None, job.time_ns()
        for finding in several:
            values = without(job, finding.saving, steps, values) or values
            now = job.time_ns(values)
            answer[finding.id] = max(0, round(before - now))
            before = now
    return answer


def _is_replayed(finding: Finding) -> bool:
    """Say whether the finding's rows are the answer of a replay that is to be trusted."""
    return finding.replay_error is not None and finding.replay_error <= ERROR_LIMIT


def _priced(finding: Finding, step_ns: int | None, steps: int, replayed: int | None, hidden: int) -> Finding:
    if not finding.saving.height:
        return finding
    per_rank = finding.saving.group_by("step", "rank").agg(pl.col("ns").sum())
    per_step = per_rank.group_by("step").agg(pl.col("ns").max())
    recoverable = int(per_step["ns"].sum()) // steps if replayed is None else replayed
    share = recoverable / step_ns if step_ns else None
    small = share is not None and step_ns is not None and max(share, hidden / step_ns) < INFO_BELOW
    return replace(
        finding,
        severity="info" if small else finding.severity,
        recoverable_ns_per_step=recoverable,
        recoverable_share=share,
        price_basis="bound" if replayed is None and not _is_replayed(finding) else "replay",
    )
