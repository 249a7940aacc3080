"""NCCL_DEBUG lines and PyTorch watchdog lines in the logs of a job.

Formats: NCCL's `src/debug.cc`, `src/enqueue.cc`, `src/init.cc` and `src/transport/` (2.4 to 2.30, RCCL alike) and
`torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp` (torch 2.2 to 2.13). Lines are searched, not matched from their
start: launchers put prefixes before them, and two writers may share a line. One file may hold many ranks.

A process (host, pid) gets its rank from the largest communicator it initialised, from a watchdog line, or from
RCCL's `globalrank`; one without, from the device number, if another process of its host tells how those map.
What cannot be given to a rank is counted and left out. A COLL line says that an operation was launched, never that
it completed. `opCount` is hexadecimal and counts per communicator; the root of a Send or Recv is its peer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import polars as pl
from tracetool.parsers import _nccl_lines as lines  # type: ignore[import-not-found]  # mapped at install time

from tracetool.commwords import dtype_bytes, operation
from tracetool.errors import UnreadableTrace
from tracetool.raw.rawfile import text_lines
from tracetool.tables import frame

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.registry import ParseOptions
    from tracetool.tables import Tables

FORMAT = "nccl_log"
READS_PLACE = True

_TAIL_BYTES: Final = 1 << 18
_LAUNCHES: Final = 200_000
"""Launches kept of one file, the latest."""

_MARKS: Final = re.compile(
    rb":\d+:\d+ \[\d+\] (?:\d+ )?NCCL (?:INFO|WARN)"
    rb"|Watchdog caught collective operation timeout"
    rb"|[Ll]ast enqueued (?:NCCL )?work: -?\d"
)


def sniff(path: Path, head: bytes) -> bool:
    """Say whether this text holds lines of NCCL or of PyTorch's watchdog, at its beginning or its end."""
    if not head or b"\x00" in head[:4096] or head.lstrip()[:1] in (b"{", b"\x80") or b"busbw" in head:
        return False
    if _MARKS.search(head):
        return True
    size = path.stat().st_size
    if size <= len(head):
        return False
    with path.open("rb") as stream:  # a training log may speak of NCCL only in its last lines
        stream.seek(max(0, size - _TAIL_BYTES))
        return bool(_MARKS.search(stream.read(_TAIL_BYTES)))


def parse(path: Path, options: ParseOptions) -> Tables:
    """Read one log. Raises UnreadableTrace when no line of it is NCCL's or the watchdog's."""
    seen = lines.Seen()
    lines.read_lines(text_lines(path, options.display_path), seen)
    if not seen.useful:
        raise UnreadableTrace(options.display_path, f"none of its {seen.lines} lines is NCCL's or the watchdog's")
    notes: list[str] = []
    rank_of = _assign(seen, notes)
    collectives = _collectives(seen, rank_of, options.display_path, notes)
    status = _group_status(seen, options.display_path)
    facts = _log_facts(seen, rank_of, options.display_path)
    told = {*rank_of.values(), *(t.rank for t in seen.timeouts), *(s.rank for s in seen.statuses)}
    ranks = sorted(told)
    if not ranks:
        notes.append("No line says which rank it is of.")
    if len(seen.versions) > 1:
        notes.append(f"Several NCCL versions: {', '.join(sorted(seen.versions))}.")
    stat = path.stat()
    library = max(seen.versions, default=None, key=lambda version: (seen.versions[version], version))
    hosts = {rank: process for process, rank in rank_of.items()}
    entries = dict(collectives.group_by("rank").len().iter_rows())
    column = {
        "rank": ranks,
        "source": [options.display_path] * len(ranks),
        "library": [library] * len(ranks),
    }
    return {
        "collectives": collectives,
        "group_status": status,
        "log_facts": facts,
        "process_groups": _process_groups(seen, rank_of),
        "dumps": frame(
            "dumps",
            {
                **column,
                "kind": ["log"] * len(ranks),
                "entries": [entries.get(rank, 0) for rank in ranks],
                "finished": [0] * len(ranks),
                "has_stacks": [False] * len(ranks),
                "file_unix_ns": [stat.st_mtime_ns] * len(ranks),
            },
        ),
        "ranks": frame(
            "ranks",
            {
                "rank": ranks,
                "rank_source": ["metadata" if rank >= 0 else None for rank in ranks],
                "world_size": [_world_size(seen, hosts.get(rank)) for rank in ranks],
                "host": [hosts[rank][0] if rank in hosts else None for rank in ranks],
                "host_source": ["metadata" if rank in hosts else None for rank in ranks],
                "pid": [hosts[rank][1] if rank in hosts else None for rank in ranks],
                "device": [seen.devices.get(hosts[rank]) if rank in hosts else None for rank in ranks],
                "versions": [f"NCCL {library}" if library else None] * len(ranks),
                "backend": ["nccl"] * len(ranks),
                "format": [FORMAT] * len(ranks),
            },
        ),
        "sources": frame(
            "sources",
            {
                "path": [options.display_path],
                "format": [FORMAT],
                "bytes": [stat.st_size],
                "events": [collectives.height + status.height + facts.height],
                "dropped": [seen.left_out],
                "repaired": [0],
                "complete": [True],
                "notes": [notes],
            },
        ),
    }


# ---- ranks ----


def _assign(seen: lines.Seen, notes: list[str]) -> dict[lines.Process, int]:
    """Give processes their ranks (module docstring); of two of the same rank the later one stays."""
    processes = sorted(seen.last_line)
    known = {process: sizes[max(sizes)] for process, sizes in seen.ranks.items()}
    shift: dict[str, set[int]] = defaultdict(set)
    for process, rank in known.items():
        if process in seen.devices:
            shift[process[0]].add(rank - seen.devices[process])
    taken = set(known.values())
    guesses = {
        process: next(iter(shift[process[0]])) + seen.devices[process]
        for process in processes
        if process not in known and len(shift[process[0]]) == 1
    }
    guesses = {process: rank for process, rank in guesses.items() if rank >= 0 and rank not in taken}
    known |= guesses
    watched = {*(t.rank for t in seen.timeouts), *(s.rank for s in seen.statuses)}
    if not known and processes:
        if len(processes) == 1:
            known = {processes[0]: next(iter(watched)) if len(watched) == 1 else -1}
        elif not watched:
            ordered = sorted(processes, key=lambda p: (_natural(p[0]), seen.devices.get(p, 0), p[1]))
            known = {process: rank for rank, process in enumerate(ordered)}
            notes.append("No line tells ranks: processes were numbered by host, device and process id.")
    if guesses:
        notes.append(f"{len(guesses)} processes got their rank from their device number.")
    by_time = sorted(known.items(), key=lambda item: (seen.last_line.get(item[0], 0), item[0]))
    latest = {rank: process for process, rank in by_time}
    replaced = len(known) - len(latest)
    if replaced:
        notes.append(f"{replaced} processes had the rank of a later one (an earlier start of the job): left out.")
    lost = [process for process in processes if process not in known]
    if lost:
        seen.left_out += sum(launch.process in set(lost) for launch in seen.launches)
        notes.append(f"{len(lost)} processes say no rank (NCCL_DEBUG_SUBSYS=INIT would): their lines were left out.")
    return {process: rank for rank, process in latest.items()}


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text[:200]))


def _world_size(seen: lines.Seen, process: lines.Process | None) -> int | None:
    sizes = [size for size in seen.ranks.get(process, {}) if size < 1 << 30] if process else []
    return max(sizes, default=None)


# ---- tables ----


def _group_name(seen: lines.Seen, process: lines.Process, comm: str) -> str:
    """Return the communicator's id that all its ranks share, if an init line tells it, else one of this process."""
    told = seen.comms.get((process, comm))
    return told[2] if told and told[2] else f"{process[0]}:{process[1]}:{comm}"


def _collectives(seen: lines.Seen, rank_of: dict[lines.Process, int], source: str, notes: list[str]) -> pl.DataFrame:
    """Build table `collectives` from COLL lines (launched, fate unknown) and timeouts (in flight)."""
    launches = [launch for launch in seen.launches if launch.process in rank_of]
    if len(launches) > _LAUNCHES:
        notes.append(f"{len(launches) - _LAUNCHES} launches before the last {_LAUNCHES} were left out.")
        launches = launches[-_LAUNCHES:]
    work = {(s.rank, s.work): s.group for s in seen.statuses if s.work is not None}
    rows: list[tuple[object, ...]] = []
    for launch in launches:
        op = operation(launch.name)
        nranks = launch.nranks or (seen.comms.get((launch.process, launch.comm)) or (0, 0, ""))[1] or None
        ins, outs = _elements(op, launch.count, nranks)
        width = dtype_bytes(launch.dtype) if launch.dtype else None
        elements = max((n for n in (ins, outs) if n is not None), default=None)
        p2p = op in {"send", "recv"}
        rows.append(
            (
                rank_of[launch.process], launch.line, _group_name(seen, launch.process, launch.comm),
                None if p2p else launch.op_count, launch.op_count if p2p else None, p2p, op, launch.name,
                launch.root if p2p else None, ins, outs, elements * width if elements is not None and width else None,
                launch.dtype, None, None,
            )
        )  # fmt: skip
    guessed = 0
    for timeout in seen.timeouts:
        group = timeout.group or work.get((timeout.rank, timeout.seq))
        guessed += group is None
        op = operation(timeout.op)
        p2p = op in {"send", "recv"}  # its number counts the group's sends and receives
        numbers = (None, timeout.seq) if p2p else (timeout.seq, None)
        rows.append(
            (
                timeout.rank, timeout.line, group or "0", *numbers, p2p, op, timeout.op,
                None, timeout.in_elems, timeout.out_elems, None, None, True, timeout.timeout_ms * 1_000_000,
            )
        )  # fmt: skip
    if guessed:
        notes.append(f"{guessed} timeouts name no process group: the default one was assumed.")
    names = (
        "rank", "record", "group", "seq", "p2p_seq", "is_p2p", "op", "name", "peer", "in_elems", "out_elems", "bytes",
        "dtype", "in_flight", "timeout_ns",
    )  # fmt: skip
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    count = len(rows)
    table = frame("collectives", {**columns, "source": [source] * count, "backend": ["nccl"] * count})
    return table.sort("rank", "record", maintain_order=True)


def _elements(op: str, count: int, nranks: int | None) -> tuple[int | None, int | None]:
    """Return elements in and out of a rank, from NCCL's count per rank."""
    wide = count * nranks if nranks else None
    return {
        "all_gather": (count, wide),
        "reduce_scatter": (wide, count),
        "all_to_all": (wide, wide),
        "gather": (count, None),
        "scatter": (None, count),
        "send": (count, None),
        "recv": (None, count),
    }.get(op, (count, count))


def _group_status(seen: lines.Seen, source: str) -> pl.DataFrame:
    """Build table `group_status`: the last that each rank's watchdog said of each group."""
    last = {(status.rank, status.group): status for status in seen.statuses}
    rows = [last[key] for key in sorted(last)]
    return frame(
        "group_status",
        {
            "rank": [row.rank for row in rows],
            "source": [source] * len(rows),
            "local_id": [row.local_id for row in rows],
            "group": [row.group for row in rows],
            "last_enqueued": [row.enqueued for row in rows],
            "last_completed": [row.completed for row in rows],
            "status": ["signalled" if row.signalled else "timeout" for row in rows],
        },
    )


def _process_groups(seen: lines.Seen, rank_of: dict[lines.Process, int]) -> pl.DataFrame:
    """Build table `process_groups`: watchdog's groups by name, communicators by id with the ranks seen in them."""
    rows: dict[tuple[int, str], tuple[str | None, int | None]] = {}
    for (process, _), (_, size, comm_id) in seen.comms.items():
        if process in rank_of and comm_id:
            rows[rank_of[process], comm_id] = (None, size)
    for status in seen.statuses:
        rows[status.rank, status.group] = (status.desc, None)
    for timeout in seen.timeouts:
        if timeout.group is None:
            rows.setdefault((timeout.rank, "0"), ("default_pg", None))
    keys = sorted(rows)
    return frame(
        "process_groups",
        {
            "rank": [rank for rank, _ in keys],
            "group": [group for _, group in keys],
            "desc": [rows[key][0] for key in keys],
            "size": [rows[key][1] for key in keys],
        },
    )


def _log_facts(seen: lines.Seen, rank_of: dict[lines.Process, int], source: str) -> pl.DataFrame:
    rows = [
        (rank, at[0], process[0], process[1], seen.devices.get(process), *key)
        for process, rank in rank_of.items()
        for key, at in seen.facts.get(process, {}).items()
    ]
    names = ("rank", "line", "host", "pid", "device", "topic", "group", "name", "value", "number", "peer")
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    table = frame("log_facts", {**columns, "source": [source] * len(rows)})
    return table.sort("rank", "line", pl.col("name").cast(pl.String), maintain_order=True)
