"""NVTX ranges to GPU work at scale: 5 M ranges × 2 M launches on 4 threads.

    python tests/bench/nvtx_projection.py [ranges] [launches]

Three rows: the sweep that the Nsight parser labels NCCL kernels with, the tree that a rank's derivation builds (it
links every launch to its ranges), and the span of GPU work of every range, as nsys projects it. Each is measured at a
quarter, a half and all of the size: CPU seconds should double. Reference for such a sweep on 2 quiet cores: 4.53 s and
1.49 GB; interval joins took over 20 minutes or ran out of memory at similar sizes.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import polars as pl

from tracetool.derive import tree
from tracetool.nvtx import innermost
from tracetool.rangepaths import projections

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


def by_projection(table: pl.DataFrame, points: pl.DataFrame) -> int:
    """Project kernels of 1 µs onto the ranges they were launched in, and return how many ranges launched any."""
    work = points.select(launch_track="thread", launch_start_ns="at_ns", start_ns=pl.col("at_ns") + 500)
    spans = projections(table.rename({"thread": "track"}), work.with_columns(end_ns=pl.col("start_ns") + 1_000))
    return spans["projected_ns"].count()


def main() -> None:
    """Print seconds and the peak of memory so far, method by method, small sizes first."""
    whole = [int(word) for word in sys.argv[1:3]] or [5_000_000, 2_000_000]
    methods = {"sweep": lambda *t: innermost(*t).count(), "tree": by_tree, "projection": by_projection}
    for part in (4, 2, 1):
        ranges, launches = (size // part for size in whole)
        table, points = made(ranges, launches)
        for name, method in methods.items():
            start, cpu = time.perf_counter(), time.process_time()
            found = method(table, points)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            sys.stdout.write(
                f"{name}: {ranges:,} ranges × {launches:,} launches: {seconds:.2f} s, CPU {cpu:.2f} s, "
                f"peak so far {peak / 1e6:.2f} GB, {found:,} found\n"
            )


if __name__ == "__main__":
    main()
