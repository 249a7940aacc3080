"""A scripted post-mortem: why was this run slow, and whose fault was it? Prints Markdown to paste into a ticket.

    python sample_traces/postmortem.py RUN

It shows the three ways a script gets at a run: results (figures that are already computed), findings (what to fix),
and tables (polars LazyFrames of the data model, for the question nobody has built in yet).
"""

from __future__ import annotations

import sys

import polars as pl

import tracetool


def longest_gap(run: tracetool.Run, rank: int) -> tuple[int, str] | None:
    """Return the longest time in which nothing ran on a rank's GPU, ns, and the kernel that ended it."""
    gpu = run.table("gpu", rank=rank).select("start_ns", "dur_ns", "name").collect()
    reach = (gpu["start_ns"] + gpu["dur_ns"]).cum_max().shift(1)
    gaps = gpu.select(gap_ns=pl.col("start_ns") - reach, name=pl.col("name").cast(pl.String)).drop_nulls()
    if not gaps.height:
        return None
    gap_ns, name = gaps.sort("gap_ns", "name", descending=[True, False]).row(0)
    return gap_ns, name


def main() -> None:
    """Print the post-mortem of the run named on the command line."""
    run = tracetool.open_run(sys.argv[1])
    budget = run.results["budget"]
    step_ns = budget.metrics["step_ns_p50"]
    step = f"{step_ns / 1e6:.1f} ms" if isinstance(step_ns, int) else "unknown"
    print(f"# {run.view.path}: {len(run.ranks)} ranks, step time {step}\n")

    print("Where a step goes:\n")
    for metric, share in budget.metrics.items():
        if metric.endswith("_share") and isinstance(share, float) and share >= 0.01:  # noqa: PLR2004 - below is noise
            print(f"- {metric.removesuffix('_share')}: {share:.1%}")

    print("\nWhat to fix:\n")
    for finding in run.findings[:3]:
        gain = f"{(finding.recoverable_ns_per_step or 0) / 1e6:.1f} ms a step"
        print(f"- {finding.title} (up to {gain}, {finding.confidence} confidence). {finding.advice}")

    per_rank = budget.tables["per_rank_step"].group_by("rank").agg(pl.col("compute_ns", "host_bound_ns").mean())
    slowest = per_rank.sort("compute_ns", "rank", descending=[True, False]).row(0, named=True)
    others = per_rank.filter(pl.col("rank") != slowest["rank"])["compute_ns"].median()
    if isinstance(others, float) and others:
        factor = slowest["compute_ns"] / others
        print(f"\nRank {slowest['rank']} computes {factor:.2f} × as long as the median of the others.")
    late = per_rank.sort("host_bound_ns", "rank", descending=[True, False]).row(0, named=True)
    if gap := longest_gap(run, late["rank"]):
        gap_ns, name = gap
        print(f"Rank {late['rank']}'s GPU waits most for its host; longest: {gap_ns / 1e6:.1f} ms, before `{name}`.")


if __name__ == "__main__":
    main()
