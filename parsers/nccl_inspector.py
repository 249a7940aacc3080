"""NCCL Inspector: one JSON line an operation, with its time and bandwidth.

Format: plugins/profiler/inspector/README.md of NVIDIA/nccl (2.28.3 and later), format v4.0; lines that carry only
`header` or `metadata` (announced for 4.3) set them for the lines that follow. `coll_sn` counts per communicator
*and* operation. The size is per rank: S of the bandwidth formulas is n times that for all_gather and
reduce_scatter. There is no global rank: a process has its rank of the largest communicator it was in. Operations
below 8 KiB and what fell out of a ring of 1024 are not recorded.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import orjson

from tracetool.commwords import operation
from tracetool.errors import UnreadableTrace
from tracetool.raw.rawfile import text_lines
from tracetool.tables import frame

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.registry import ParseOptions
    from tracetool.tables import Tables

FORMAT = "nccl_inspector"
READS_PLACE = True

_TIMES_RANKS: Final = ("all_gather", "reduce_scatter")
_LARGEST: Final = 1 << 62

Process = tuple[str, int]


def sniff(path: Path, head: bytes) -> bool:
    """Say whether these are Inspector lines."""
    if path.is_dir() or head.lstrip()[:1] != b"{":
        return False
    return b'"coll_perf"' in head or b'"p2p_perf"' in head or b'"inspector_output_format_version"' in head


def parse(path: Path, options: ParseOptions) -> Tables:
    """Read one file. Raises UnreadableTrace when no line of it is a record."""
    header: dict[str, object] = {}
    metadata: dict[str, object] = {}
    rows: list[tuple[Process, tuple[object, ...]]] = []
    sizes: dict[Process, dict[int, int]] = defaultdict(dict)
    groups: dict[tuple[Process, str], tuple[int | None, str | None]] = {}
    versions: set[str] = set()
    dropped = lines = 0
    for number, line in text_lines(path, options.display_path):
        lines = number
        if not line.strip():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            record = None
        if not isinstance(record, dict):
            dropped += 1
            continue
        header = _dict(record.get("header")) or header
        metadata = _dict(record.get("metadata")) or metadata
        versions.add(str(metadata.get("inspector_output_format_version", "unknown"))[:40])
        process = (str(metadata.get("hostname") or "?")[:200], _int(metadata.get("pid")) or 0)
        group, nranks, rank = str(header.get("id"))[:80], _int(header.get("n_ranks")), _int(header.get("rank"))
        if nranks and rank is not None and 0 <= rank < nranks < 1 << 24:
            sizes[process].setdefault(nranks, rank)
        told = [(kind, _dict(record.get(f"{kind}_perf"))) for kind in ("coll", "p2p")]
        for kind, perf in told:
            row = _row(kind, perf, group, nranks, number)
            if row:
                rows.append((process, row))
                name = header.get("comm_name")
                groups[process, group] = (nranks, str(name)[:200] if name else None)
            elif perf:
                dropped += 1
    if not rows:
        raise UnreadableTrace(options.display_path, f"none of its {lines} lines is a record of an operation")
    rank_of = {process: by_size[max(by_size)] for process, by_size in sizes.items()}
    return _tables(path, options, rows=rows, groups=groups, rank_of=rank_of, versions=versions, dropped=dropped)


def _row(kind: str, perf: dict[str, object], group: str, nranks: int | None, line: int) -> tuple[object, ...] | None:
    """Return the columns of one operation; None when it has no name or time."""
    name, sequence = perf.get(kind), _int(perf.get(f"{kind}_sn"))
    microseconds = _int(perf.get(f"{kind}_exec_time_us"))
    if not isinstance(name, str) or microseconds is None:
        return None
    op = operation(name)
    size = _int(perf.get(f"{kind}_msg_size_bytes"))
    if size is not None and op in _TIMES_RANKS:
        size = size * nranks if nranks else None
    times = _dict(perf.get("event_trace_ts"))
    start = _int(times.get(f"{kind}_start_ts"))
    p2p = kind == "p2p"
    return (
        line, group, None if p2p else sequence, sequence if p2p else None, p2p, op, name,
        _int(perf.get("peer")) if p2p else None, size if size is not None and size < _LARGEST else None,
        microseconds * 1000, start * 1000 if start else None,
    )  # fmt: skip


def _tables(
    path: Path,
    options: ParseOptions,
    *,
    rows: list[tuple[Process, tuple[object, ...]]],
    groups: dict[tuple[Process, str], tuple[int | None, str | None]],
    rank_of: dict[Process, int],
    versions: set[str],
    dropped: int,
) -> Tables:
    notes = [f"Format {', '.join(sorted(versions))}."]
    processes = sorted({process for process, _ in rows})
    if len(set(rank_of.values())) < len(rank_of):
        notes.append("Several processes have the same rank in their largest communicator: it was kept as written.")
    ranks = sorted({rank_of.get(process, -1) for process in processes})
    lost = sum(rank_of.get(process, -1) == -1 for process, _ in rows) if len(ranks) > 1 else 0
    ranks = [rank for rank in ranks if rank >= 0] or [-1]
    host_of = {rank_of.get(process, -1): process for process in reversed(processes)}
    columns = (
        "record", "group", "seq", "p2p_seq", "is_p2p", "op", "name", "peer", "bytes", "duration_ns", "created_unix_ns",
    )  # fmt: skip
    kept = [(rank, row) for process, row in rows if (rank := rank_of.get(process, -1)) in ranks]
    count = len(kept)
    collectives = frame(
        "collectives",
        {
            "rank": [rank for rank, _ in kept],
            "source": [options.display_path] * count,
            **{name: [row[place] for _, row in kept] for place, name in enumerate(columns)},
            "backend": ["nccl"] * count,
            "state": ["completed"] * count,
            "in_flight": [False] * count,
        },
    ).sort("rank", "record", maintain_order=True)
    keys = sorted({(rank_of.get(process, -1), group): value for (process, group), value in groups.items()}.items())
    keys = [item for item in keys if item[0][0] in ranks]
    return {
        "collectives": collectives,
        "process_groups": frame(
            "process_groups",
            {
                "rank": [rank for (rank, _), _ in keys],
                "group": [group for (_, group), _ in keys],
                "desc": [name for _, (_, name) in keys],
                "size": [size for _, (size, _) in keys],
            },
        ),
        "ranks": frame(
            "ranks",
            {
                "rank": ranks,
                "rank_source": ["metadata" if rank >= 0 else None for rank in ranks],
                "host": [host_of[rank][0] if rank in host_of else None for rank in ranks],
                "host_source": ["metadata" if rank in host_of else None for rank in ranks],
                "pid": [host_of[rank][1] or None if rank in host_of else None for rank in ranks],
                "backend": ["nccl"] * len(ranks),
                "format": [FORMAT] * len(ranks),
            },
        ),
        "sources": frame(
            "sources",
            {
                "path": [options.display_path],
                "format": [FORMAT],
                "bytes": [path.stat().st_size],
                "events": [collectives.height],
                "dropped": [dropped + lost],
                "repaired": [0],
                "complete": [dropped == 0],
                "notes": [[*notes, *([f"{dropped} lines are no records."] if dropped else [])]],
            },
        ),
    }


def _dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _int(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1 << 50:
        return None
    return round(value)
