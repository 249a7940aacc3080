"""NVTX ranges to GPU work at scale: 5 M ranges × 2 M launches on 4 threads.

    python tests/bench/nvtx_projection.py [ranges] [launches]

Two rows: `innermost` alone (the reference figure for such a sweep on 2 cores is 4.53 s and 1.49 GB, while interval
joins took over 20 minutes or ran out of memory at similar sizes), and everything a rank's derivation does with it.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import polars as pl

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


def main() -> None:
    """Print seconds and the peak of memory."""
    ranges, launches = (int(word) for word in (*sys.argv[1:], "5000000", "2000000")[:2])
    table, points = made(ranges, launches)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = innermost(table, points)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(
        f"innermost: {ranges:,} ranges × {launches:,} launches: {seconds:.2f} s, peak {peak / 1e6:.2f} GB "
        f"(tables alone {before / 1e6:.2f} GB), {found.count():,} launches inside a range\n"
    )


if __name__ == "__main__":
    main()
