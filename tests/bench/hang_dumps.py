"""A hung job's dumps at scale: 1,024 ranks × 2,000 records, parsed, reduced and diagnosed in one process.

    python tests/bench/hang_dumps.py [ranks] [records] [frames]

Prints CPU seconds of each part. The aim is 60 s in all; tests/bench/README.md has what was measured.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("POLARS_MAX_THREADS", "1")  # as in a worker

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hang_harness import Rank, hangs, parser
from simulator_hangs.torch_pickle import dumps

from tracetool.registry import ParseOptions, RunView
from tracetool.settings import Settings
from tracetool.tables import empty

GROUPS = 13
IN_FLIGHT = 10
BASE_NS = 1_758_580_156_069_309_184


def record(number: int, frames: int, *, done: bool) -> dict[str, object]:
    """Return one record as torch 2.9 writes it."""
    created = BASE_NS + number * 1_000
    return {
        "frames": [{"name": f"f{n}", "filename": f"/opt/lib/python/f{n}.py", "line": 100 + n} for n in range(frames)],
        "record_id": 192_000 + number,
        "pg_id": number % GROUPS,
        "process_group": (str(number % GROUPS), f"GROUP{number % GROUPS}"),
        "thread_name": "python3",
        "thread_id": "23437663053504",
        "collective_seq_id": 87_000 + number // GROUPS,
        "p2p_seq_id": 0,
        "op_id": 87_000 + number // GROUPS,
        "profiling_name": "nccl:_all_gather_base",
        "time_created_ns": created,
        "input_sizes": [[2048, 1, 5120]],
        "input_dtypes": ["BFloat16"],
        "output_sizes": [[8192, 1, 5120]],
        "output_dtypes": ["BFloat16"],
        "state": "completed" if done else "scheduled",
        "time_discovered_started_ns": None,
        "time_discovered_completed_ns": created if done else None,
        "retired": done,
        "timeout_ms": 600_000,
        "is_p2p": False,
    }


def main(ranks: int, records: int, frames: int) -> None:
    """Measure and print."""
    told = [record(n, frames, done=n < records - IN_FLIGHT) for n in range(records)]
    config = {str(n): {"name": str(n), "desc": f"GROUP{n}", "ranks": str(list(range(ranks)))} for n in range(GROUPS)}
    top = {"version": "2.10", "pg_config": config, "comm_lib_version": "2.27.3", "pg_status": {}}
    usual = dumps({**top, "entries": told})
    late = dumps({**top, "entries": told[:-IN_FLIGHT]})
    spent: dict[str, float] = defaultdict(float)
    parts: dict[str, list[pl.DataFrame]] = defaultdict(list)
    who, files = [], []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(ranks):
            path = Path(folder, f"nccl_trace_rank_{rank}")
            path.write_bytes(late if rank == ranks // 2 else usual)
            start = time.process_time()
            tables = parser("nccl_flight_recorder").parse(path, ParseOptions(path.name))
            parsed = time.process_time()
            for name, table in hangs.per_rank(Rank(rank, tables), {}, Settings()).items():
                parts[name].append(table)
            spent["parse"] += parsed - start
            spent["per rank"] += time.process_time() - parsed
            who.append(tables["ranks"])
            files.append(tables["sources"])
            path.unlink()
    start = time.process_time()
    run = RunView("run", pl.concat(who), pl.concat(files), empty("steps"), empty("quality"), ranks, {}, {})
    result = hangs.analyze({name: pl.concat(tables) for name, tables in parts.items()}, run, Settings())
    spent["analyze"] = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    lines = [f"{name:10s} {seconds:7.2f} CPU s" for name, seconds in spent.items()]
    lines += [f"{'all':10s} {sum(spent.values()):7.2f} CPU s, peak {peak:.2f} GB", str(result.metrics["culprits"])]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [1024, 2000, 0][len(given) :]))
