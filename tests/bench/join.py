"""The join at scale, on stored tables: CPU time per row and the memory of the main process.

    python tests/bench/join.py [ranks] [communications a rank] [workers]

Rows: 256 ranks × 100,000 communications (the default) and 1,024 × 2,000. Tensor-parallel groups of 8 inside a host
carry nine of ten, data-parallel groups across hosts the rest; hosts of 8 ranks with clocks of their own; sequence
numbers are not recorded. Only what the join itself reads is made: comms and process_groups of every rank.
Target: 60 CPU seconds per 10 million rows over all processes, and less than 1 GB in the main process.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from tracetool import engine, store
from tracetool.join.groups import SEEN_SCHEMA
from tracetool.joinmap import join
from tracetool.settings import Settings
from tracetool.store import Store, StoredRank
from tracetool.tables import conform, frame

PER_HOST = 8
STEPS = 10
NEARLY_ALL = 9
"""Communications of a tensor-parallel group to one of a data-parallel group."""
GAP_NS = 30_000
NO_SOURCES = pl.DataFrame(schema={"path": pl.String, "ranks": pl.List(pl.Int32)})
BASE = 1_700_000_000_000_000_000


def write(root: Path, ranks: int, rows: int) -> tuple[list[StoredRank], pl.DataFrame, pl.DataFrame]:
    """Write the stored tables of every rank; return handles, what each rank uses, and table `ranks`."""
    random = np.random.default_rng(3)
    order = np.arange(rows, dtype=np.int64)
    is_dp = order % (NEARLY_ALL + 1) == NEARLY_ALL
    ends = (order + 1) * GAP_NS
    offset = random.integers(-(10**6), 10**6, ranks // PER_HOST + 1)
    drift = random.uniform(-2e-5, 2e-5, ranks // PER_HOST + 1)
    handles, seen = [], []
    for rank in range(ranks):
        host = rank // PER_HOST
        groups = {
            "tp": list(range(host * PER_HOST, host * PER_HOST + PER_HOST)),
            "dp": list(range(rank % PER_HOST, ranks, PER_HOST)),
        }
        names = {"tp": f"tp{host}", "dp": f"dp{rank % PER_HOST}"}
        dur = random.integers(5_000, 20_000, rows)
        seen_end = ends + random.integers(0, 2_000, rows)
        shown = seen_end + offset[host] + np.round(drift[host] * seen_end).astype(np.int64) + 10**9
        table = pl.DataFrame(
            {
                "event": order,
                "start_ns": shown - dur,
                "dur_ns": dur,
                "dp": is_dp,
                "step": (order * STEPS // rows).astype(np.int32),
            }
        ).with_columns(
            rank=pl.lit(rank, pl.Int32),
            op=pl.lit("all_reduce"),
            group=pl.when("dp").then(pl.lit(names["dp"])).otherwise(pl.lit(names["tp"])),
            group_size=pl.when("dp").then(len(groups["dp"])).otherwise(PER_HOST),
            bytes=pl.when("dp").then(1 << 24).otherwise(1 << 22).cast(pl.Int64),
            track=pl.lit(0, pl.Int32),
            name=pl.lit("ncclDevKernel_AllReduce_Sum_bf16_RING_LL"),
        )  # fmt: skip
        listed = frame(
            "process_groups",
            {
                "rank": [rank] * 2,
                "group": [names["tp"], names["dp"]],
                "desc": ["mesh_tp", "mesh_dp"],
                "ranks": [groups["tp"], groups["dp"]],
                "size": [PER_HOST, len(groups["dp"])],
            },
        )
        base, derived = root / f"r{rank}", root / f"r{rank}" / "d"
        store.write_tables(base, {"process_groups": listed})
        store.write_tables(derived, {"comms": conform("comms", table)})
        handles.append(StoredRank(rank, (str(base),), str(derived)))
        seen += [
            (rank, names[key], f"mesh_{key}", groups[key], len(groups[key]), "all_reduce", "backward", 1)
            for key in ("tp", "dp")
        ]
    identities = frame(
        "ranks",
        {
            "rank": list(range(ranks)),
            "format": ["kineto"] * ranks,
            "base_unix_ns": [BASE] * ranks,
            "host": [f"node{rank // PER_HOST:03d}" for rank in range(ranks)],
        },
    )
    return handles, pl.DataFrame(seen, schema=SEEN_SCHEMA, orient="row"), identities


def measured(ranks: int, rows: int, workers: int) -> None:
    """Make the tables, join them, and print one row."""
    with tempfile.TemporaryDirectory() as folder:
        handles, seen, identities = write(Path(folder), ranks, rows)
        made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        before, start = _cpu_s(), time.perf_counter()
        with Store(None) as opened, engine.executor(f"processes:{workers}", jobs=ranks, work_bytes=1 << 40) as pool:
            found = join(
                handles, seen, identities, Settings(), opened, sources=NO_SOURCES, pool=pool, progress=lambda *_: None
            )
        cpu, wall = _cpu_s() - before, time.perf_counter() - start
        main = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    matched = int(found.tables["collective_sums"]["members"].sum())
    if matched != ranks * rows:
        raise SystemExit(f"{matched} of {ranks * rows} communications matched")
    print(  # noqa: T201 - a bench prints
        f"{ranks} ranks × {rows}: {cpu:.0f} CPU s ({cpu / (ranks * rows) * 1e7:.0f} per 10 M rows), {wall:.0f} s with "
        f"{workers} workers; main process {main:.0f} MB ({made:.0f} MB before the join), largest worker {worker:.0f} MB"
    )


def _cpu_s() -> float:
    mine, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + others.ru_utime + others.ru_stime


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    ranks, rows, workers = (*given, *(256, 100_000, 2)[len(given) :])
    measured(ranks, rows, workers)
