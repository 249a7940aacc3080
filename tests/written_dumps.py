"""Small jobs written by hand: a dump a rank, from a few records, and the verdict on them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hang_harness import diagnose, read
from simulator_hangs.torch_pickle import dumps

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result

BASE = 1_760_000_000_000_000_000
SECOND = 10**9


@dataclass
class Dump:
    """One rank's dump: group name → (description, ranks), records, and counters by the rank's own group number."""

    groups: dict[str, tuple[str, list[int]]] = field(default_factory=lambda: {"0": ("default_pg", [0, 1, 2, 3])})
    entries: list[dict[str, object]] = field(default_factory=list)
    status: dict[str, tuple[int, int]] = field(default_factory=dict)


def op(seq: int, name: str = "nccl:all_reduce", **changes: object) -> dict[str, object]:
    """Return a record in flight; `done=True` makes it a completed one."""
    done = bool(changes.pop("done", False))
    told: dict[str, object] = {
        "record_id": seq, "pg_id": 0, "process_group": ("0", "default_pg"), "collective_seq_id": seq, "p2p_seq_id": 0,
        "profiling_name": name, "time_created_ns": BASE + seq * SECOND, "op_id": seq,
        "input_sizes": [[4, 8]], "input_dtypes": ["Float"], "output_sizes": [[4, 8]], "output_dtypes": ["Float"],
        "state": "completed" if done else "scheduled", "time_discovered_started_ns": None,
        "time_discovered_completed_ns": BASE + (seq + 1) * SECOND if done else None, "retired": done,
        "timeout_ms": 600_000, "is_p2p": False,
    }  # fmt: skip
    return told | changes


def write(folder: Path, job: dict[int, Dump], *, after_s: int = 700) -> None:
    """Write the job's dumps, `after_s` seconds after the first launch."""
    for rank, dump in job.items():
        path = folder / f"nccl_trace_rank_{rank}"
        content = {
            "version": "2.10",
            "pg_config": {
                name: {"name": name, "desc": desc, "ranks": str(ranks)} for name, (desc, ranks) in dump.groups.items()
            },
            "pg_status": {
                local: {
                    "last_enqueued_collective": enqueued,
                    "last_started_collective": -1,
                    "last_completed_collective": completed,
                }
                for local, (enqueued, completed) in dump.status.items()
            },
            "entries": dump.entries,
        }
        path.write_bytes(dumps(content))
        at = BASE + after_s * SECOND
        os.utime(path, ns=(at, at))


def verdict(folder: Path, job: dict[int, Dump], *, after_s: int = 700) -> Result:
    write(folder, job, after_s=after_s)
    return diagnose(read(folder))


def blamed(result: Result) -> tuple[object, object]:
    return result.metrics["cause"], result.metrics["culprits"]
