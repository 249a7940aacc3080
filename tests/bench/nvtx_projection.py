"""NVTX ranges to GPU work at scale: 5 M ranges × 2 M launches on 4 threads.

    python tests/bench/nvtx_projection.py [ranges] [launches]

Two rows: the sweep that the Nsight parser labels NCCL kernels with, and the tree that a rank's derivation builds (it
links every launch to its ranges). Reference for such a sweep on 2 cores: 4.53 s and 1.49 GB; interval joins took over
20 minutes or ran out of memory at similar sizes.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import polars as pl

from tracetool.derive import tree
from tracetool.nvtx import innermost

THREADS = 4
CHILDREN = 9
"""Ranges in each outermost range: a chain of 4 and five leaves."""
LONG_NS = 100_000


def made(ranges: int, launches: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return ranges that nest up to 5 deep and launches, most of them inside."""
    random = np.random.default_rng(7)
    outer = np.arange(ranges // (CHILDREN + 1), dtype=np.int64)
    base = outer // THREADS * LONG_NS
    thread = outer % THREADS
    starts, ends = [base], [base + LONG_NS - 1_000]
    for level in range(1, 5):
        starts.append(base + level * 1_000)
        ends.append(base + 40_000 - level * 1_000)
    for leaf in range(CHILDREN - 4):
        starts.append(base + 45_000 + leaf * 10_000)
        ends.append(starts[-1] + 8_000)
    table = pl.DataFrame(
        {
            "thread": np.tile(thread, CHILDREN + 1),
            "start_ns": np.concatenate(starts),
            "end_ns": np.concatenate(ends),
        }
    )
    last = int(base[-1]) + LONG_NS
    points = pl.DataFrame(
        {"thread": random.integers(0, THREADS, launches), "at_ns": random.integers(0, last, launches)}
    )
    return table, points


def by_tree(table: pl.DataFrame, points: pl.DataFrame) -> int:
    """Link launches of 1 ns as the derivation of a rank does, and return how many lie in a range."""
    calls = points.select("thread", start_ns="at_ns", end_ns=pl.col("at_ns") + 1, level=pl.lit(1, pl.Int64))
    both = pl.concat([table.with_columns(level=pl.lit(0, pl.Int64)), calls])
    both = both.sort("start_ns", pl.col("start_ns") - pl.col("end_ns"), maintain_order=True)
    thread, start, end, level = (both[name].to_numpy() for name in ("thread", "start_ns", "end_ns", "level"))
    called = level == 1
    return int((tree.parents(thread, start, end, level, called)[called] >= 0).sum())


def main() -> None:
    """Print seconds and the peak of memory so far, method by method."""
    ranges, launches = (int(word) for word in (*sys.argv[1:], "5000000", "2000000")[:2])
    table, points = made(ranges, launches)
    for name, method in (("sweep", lambda *t: innermost(*t).count()), ("tree", by_tree)):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        found = method(table, points)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sys.stdout.write(
            f"{name}: {ranges:,} ranges × {launches:,} launches: {seconds:.2f} s, peak {peak / 1e6:.2f} GB "
            f"({before / 1e6:.2f} GB before), {found:,} launches inside a range\n"
        )


if __name__ == "__main__":
    main()
