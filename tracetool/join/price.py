"""What a fix is worth: turns the saving rows of findings into prices, and ranks findings by them.

Only this module prices a finding. Without a replay of the run the price is a bound: in one step the ranks work
side by side, so a fix shortens the step by at most the largest sum that any one rank would save in it; the price is
the mean of that over the steps of the run (steps in which nothing is saved count as 0).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.results import Finding

INFO_BELOW: Final = 0.01
"""A finding worth less than this share of the step is for information only."""
_SEVERITY_ORDER: Final = {"critical": 0, "warning": 1, "info": 2}


def price(findings: Sequence[Finding], steps: pl.DataFrame) -> tuple[Finding, ...]:
    """Return the findings priced and ranked: by what they recover, then severity, then id.

    `steps` is table `steps` of all ranks. A finding with no saving rows keeps null prices: a critical one, such as a
    hang, stands before all others, the rest behind the priced ones.
    """
    step_ns = step_time_ns(steps)
    count = max(1, steps["step"].n_unique()) if steps.height else 1
    priced = [_priced(finding, step_ns, count) for finding in findings]
    return tuple(
        sorted(
            priced,
            key=lambda f: (
                f.severity != "critical" or f.recoverable_ns_per_step is not None,
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


def _priced(finding: Finding, step_ns: int | None, steps: int) -> Finding:
    if not finding.saving.height:
        return finding
    per_rank = finding.saving.group_by("step", "rank").agg(pl.col("ns").sum())
    per_step = per_rank.group_by("step").agg(pl.col("ns").max())
    recoverable = int(per_step["ns"].sum()) // steps
    share = recoverable / step_ns if step_ns else None
    small = share is not None and share < INFO_BELOW
    return replace(
        finding,
        severity="info" if small else finding.severity,
        recoverable_ns_per_step=recoverable,
        recoverable_share=share,
        price_basis="bound",
    )
