"""Writes the flight-recorder dumps of a simulated job, as torch 2.2 to 2.13 would, for NCCL or gloo.

Before torch 2.4 records name their group by the rank's own number of it; torch 2.2 writes a bare list. Gloo never says
that an operation completed, lists no members once there are subgroups, and records no send or receive, though its
counters count those.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator_hangs.torch_pickle import dumps

if TYPE_CHECKING:
    from pathlib import Path

    from simulator_hangs.job import Job, Record

BASE_NS = 1_760_000_000_000_000_000
TICK_NS = 50_000
TIMEOUT_MS = 600_000


@dataclass(frozen=True)
class Style:
    """How the dumps are written."""

    version: str = "2.10"
    only_active: bool = False
    buffer: int = 2000
    frames: bool = True
    as_json: bool = False
    lost: tuple[int, ...] = ()
    """Ranks whose dump got lost although they lived."""
    gloo: bool = False
    later_ns: int = 0
    """How much later than usual the job ran."""


def write(job: Job, folder: Path, style: Style) -> None:
    """Write one dump a living rank; files are as old as a timeout after the hang, or at once for a healthy job."""
    now = (
        style.later_ns
        + BASE_NS
        + job.ticks * TICK_NS
        + (TIMEOUT_MS * 1_000_000 if job.config.fault != "healthy" else 0)
        + 10**9
    )
    for rank in sorted(job.alive - set(style.lost)):
        content = dump(job, rank, style)
        path = folder / f"nccl_trace_rank_{rank}{'.json' if style.as_json else ''}"
        path.write_bytes(json.dumps(content).encode() if style.as_json else dumps(content))
        os.utime(path, ns=(now, now))


def dump(job: Job, rank: int, style: Style) -> dict[str, object] | list[object]:
    """Return the content of one rank's dump."""
    content = _dump(job, rank, style)
    if style.version in _OLD:
        entries = [_old(entry, style.version) for entry in content["entries"]]  # type: ignore[attr-defined] # built below
        if style.version == "none":
            return list(entries)
        content = {"version": "1.4", "pg_config": content["pg_config"], "entries": entries}
    if style.version == "2.1":
        del content["pg_status"]
    return _texts(content) if style.as_json else content


def _dump(job: Job, rank: int, style: Style) -> dict[str, object]:
    mine = [number for number, group in enumerate(job.groups) if rank in group.ranks]
    # a rank numbers its own groups in the order of their creation, with gaps for groups of other backends
    local = {number: place + place // 2 for place, number in enumerate(mine)}
    all_records = [record for record in job.records[rank] if not (style.gloo and record.op.is_p2p)]
    records = list(enumerate(all_records))[-style.buffer :]
    if style.only_active:
        records = [(place, record) for place, record in records if record.completed is None]
    nameless = {"": {"name": "", "desc": "", "ranks": str(list(job.groups[0].ranks) if len(job.groups) == 1 else [])}}
    return {
        "version": style.version,
        "pg_config": nameless
        if style.gloo
        else {
            job.groups[number].name: {
                "name": job.groups[number].name,
                "desc": job.groups[number].desc,
                "ranks": str(list(job.groups[number].ranks)),
            }
            for number in mine
        },
        "comm_lib_version" if style.version == "2.10" else "nccl_version": "2.27.3",
        "pg_status": {
            str(local[number]): {
                "last_enqueued_collective": _last(job.records[rank], number, done=False),
                "last_started_collective": -1,
                "last_completed_collective": _last(job.records[rank], number, done=True),
            }
            for number in mine
        },
        "entries": [_entry(job, rank, numbered, local, style) for numbered in records],
    }


_OLD = ("none", "1.4")


def _old(entry: dict[str, object], version: str) -> dict[str, object]:
    """Return a record as torch 2.2 or 2.3 wrote it."""
    left_out = {
        "process_group",
        "collective_seq_id",
        "p2p_seq_id",
        "is_p2p",
        "input_dtypes",
        "output_dtypes",
        "timeout_ms",
    }
    if version == "none":
        left_out |= {"record_id", "op_id", "time_created_ns"}
        left_out |= {"time_discovered_started_ns", "time_discovered_completed_ns"}
    old = {key: value for key, value in entry.items() if key not in left_out}
    old["seq_id"] = entry["p2p_seq_id"] if entry["is_p2p"] else entry["collective_seq_id"]
    if version == "none":
        old["time_created_us"] = entry["time_created_ns"] // 1000  # type: ignore[operator] # an integer
    return old


def _last(records: list[Record], group: int, *, done: bool) -> int:
    """Return a counter as torch keeps it: of whatever came last, collectives and sends alike."""
    last = -1
    for record in records:
        if record.op.group == group and (record.completed is not None or not done):
            last = record.p2p_seq if record.op.is_p2p else record.seq
    return last


def _entry(job: Job, rank: int, numbered: tuple[int, Record], local: dict[int, int], style: Style) -> dict[str, object]:
    place, record = numbered
    op, group = record.op, job.groups[record.op.group]
    called = "all_reduce" if style.gloo and op.op == "_reduce_scatter_base" else op.op
    name = f"{'gloo' if style.gloo else 'nccl'}:{called}"
    if op.peer is not None:
        arrow = "->" if op.op == "send" else "<-"
        name += f" {group.ranks.index(rank)}{arrow}{group.ranks.index(op.peer)}"
    sizes = [list(op.sizes)]
    wide = [[op.sizes[0] * len(group.ranks), *op.sizes[1:]]]
    done = record.completed is not None
    frames = [
        {"name": op.op, "filename": "/opt/lib/torch/distributed/distributed_c10d.py", "line": 3245},
        {"name": "train_step", "filename": "/job/train.py", "line": 40 + len(op.op)},
    ]
    at = style.later_ns + BASE_NS + record.created * TICK_NS
    return {
        **({"frames": frames} if style.frames else {}),
        "record_id": place,
        "pg_id": local[op.group],
        "process_group": (group.name, group.desc),
        "collective_seq_id": record.seq,
        "p2p_seq_id": record.p2p_seq,
        "op_id": record.seq + record.p2p_seq,
        "profiling_name": name,
        "time_created_ns": at,
        "input_sizes": wide if op.op == "_reduce_scatter_base" else sizes,
        "input_dtypes": [op.dtype],
        "output_sizes": wide if op.op == "_all_gather_base" else sizes,
        "output_dtypes": [op.dtype],
        "state": "completed" if done and not style.gloo else "scheduled",
        "time_discovered_started_ns": None,
        "time_discovered_completed_ns": None
        if style.gloo or not done
        else style.later_ns + BASE_NS + (record.completed or 0) * TICK_NS + 10**8,
        "retired": done,
        "timeout_ms": TIMEOUT_MS,
        "is_p2p": op.is_p2p,
    }


def _texts(content: dict[str, object]) -> dict[str, object]:
    """Return the content as JSON dumps have it: counters as text, unknown times as 0, no empty list of records."""
    entries = [
        {
            key: 0 if value is None else list(value) if isinstance(value, tuple) else value
            for key, value in entry.items()
        }
        for entry in content["entries"]  # type: ignore[attr-defined] # built above
    ]
    status = {
        key: {name: str(value) for name, value in counters.items()}
        for key, counters in content.get("pg_status", {}).items()  # type: ignore[attr-defined] # built above
    }
    rest = {key: value for key, value in content.items() if key not in {"entries", "pg_status"}}
    return {**rest, "pg_status": status, "nccl_comm_state": {}, **({"entries": entries} if entries else {})}
