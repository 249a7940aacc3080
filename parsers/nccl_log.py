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
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.commwords import dtype_bytes, operation
from tracetool.errors import UnreadableTrace
from tracetool.rawfile import text_lines
from tracetool.tables import frame

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tracetool.registry import ParseOptions
    from tracetool.tables import Tables

FORMAT = "nccl_log"

_TAIL_BYTES: Final = 1 << 18
_TEXT: Final = 400
_FACTS: Final = 20_000
"""Different facts kept of one process."""
_LAUNCHES: Final = 200_000
"""Launches kept of one file, the latest."""

_MARKS: Final = re.compile(
    rb":\d+:\d+ \[\d+\] (?:\d+ )?NCCL (?:INFO|WARN)"
    rb"|Watchdog caught collective operation timeout"
    rb"|[Ll]ast enqueued (?:NCCL )?work: -?\d"
)
_PREFIX: Final = re.compile(r"([\w.-]+):(\d{1,10}):\d{1,10} \[(\d{1,4})\] (?:\d+ )?NCCL (INFO|WARN) ?")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_COLL: Final = re.compile(
    r"(\w+): opCount ([0-9a-fA-F]{1,16}) sendbuff \S+ (?:acc \S+ )?recvbuff \S+ (?:acc \S+ )?count (\d{1,18})"
    r" datatype (\d{1,3}) op (\d{1,3}) root (-?\d{1,9}) comm (\S+)(?: \[nranks=(\d{1,7})\])?"
)
_GLOBAL_RANK: Final = re.compile(r"globalrank (\d{1,7})")
_COMM: Final = re.compile(
    r"comm (0x[0-9a-fA-F]+) rank (\d{1,7}) n[rR]anks (\d{1,7})(?:.*?cudaDev (\d{1,4}))?(?:.*?commId (0x[0-9a-fA-F]+))?"
)
_TIMINGS: Final = re.compile(r"Init timings - (\w+): rank (\d{1,7}) nranks (\d{1,7}) total ([\d.]+)(?: \(([^)]*)\))?")
_VIA: Final = re.compile(r"Channel (\S+)\s*:\s*(\d+)(?:\[\w+\])? -> (\d+)(?:\[\w+\])?(?: \[\w+\])? via (\S+)")
_TUNING: Final = re.compile(
    r"(?:(\w+): )?(\d{1,18}) Bytes -> Algo (\w+) proto (\w+)(?: channel\S*=\{(\d+)\.\.(\d+)\})?"
)
_CHANNELS: Final = re.compile(r"(\d+) coll channels")
_VERSION: Final = re.compile(r"NCCL version (\d[\w.+-]*)")
_SPEED: Final = re.compile(r"NET/(\w+).*?(?:\] (?!name=)|name=)(\w+).*?speed=(\d{1,9})")
_USING: Final = re.compile(r"NET/(\w+) : Using ((?:\[\d+\]\S+ ?)+)")
_NETWORK: Final = re.compile(r"Using network (\S+)")
_GDR: Final = re.compile(r"GPU Direct RDMA (Enabled|Disabled)")

_TIMEOUT: Final = re.compile(
    r"Watchdog caught collective operation timeout: Work\w*\(SeqNum=(\d{1,18}), OpType=(\w+)"
    r"(?:, NumelIn=(\d{1,18}), NumelOut=(\d{1,18}))?.*?Timeout\(ms\)=(\d{1,15})\)(?: ran for (\d{1,15}) milli)?"
)
_STATUS: Final = re.compile(
    r"[Ll]ast enqueued (?:NCCL )?work: (-?\d{1,18}), last completed (?:NCCL )?work: (-?\d{1,18})"
)
_WORK: Final = re.compile(r"(?:work sequence id|at NCCL work): (\d{1,18})")
_GROUP: Final = re.compile(r"\[PG (?:ID )?(\d{1,9})(?: PG GUID (\w+)(?:\(([^)]*)\))?)? Rank (\d{1,7})\]")
_RANK: Final = re.compile(r"\[[Rr]ank ?(\d{1,7})\]")

_DTYPES: Final = (
    "int8", "uint8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", "bfloat16", "float8_e4m3fn",
    "float8_e5m2",
)  # fmt: skip

Process = tuple[str, int]


@dataclass(frozen=True)
class _Launch:
    process: Process
    line: int
    name: str
    count: int
    op_count: int
    dtype: str | None
    root: int
    comm: str
    nranks: int | None


@dataclass(frozen=True)
class _Timeout:
    rank: int
    line: int
    group: str | None
    seq: int
    op: str
    in_elems: int | None
    out_elems: int | None
    timeout_ms: int


@dataclass(frozen=True)
class _Status:
    rank: int
    local_id: str
    group: str
    desc: str | None
    work: int | None
    enqueued: int
    completed: int
    signalled: bool


FactKey = tuple[str, str | None, str, str | None, int | None, int | None]
"""topic, communicator, name, value, number, peer."""


@dataclass
class _Seen:
    """What the lines said, before processes have ranks."""

    launches: list[_Launch] = field(default_factory=list)
    timeouts: list[_Timeout] = field(default_factory=list)
    statuses: list[_Status] = field(default_factory=list)
    facts: dict[Process, dict[FactKey, list[int]]] = field(default_factory=lambda: defaultdict(dict))
    comms: dict[tuple[Process, str], tuple[int, int, str]] = field(default_factory=dict)
    ranks: dict[Process, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """process → communicator size → rank in it."""
    devices: dict[Process, int] = field(default_factory=dict)
    last_line: dict[Process, int] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    useful: int = 0
    left_out: int = 0


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
    seen = _Seen()
    _read(text_lines(path, options.display_path), seen)
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


# ---- reading ----


def _read(lines: Iterable[tuple[int, str]], seen: _Seen) -> None:
    """Take every line apart; a writer that was interrupted after its prefix continues on the next bare line."""
    waiting: Process | None = None
    for number, raw in lines:
        seen.lines = number
        if "NCCL" not in raw and "opCount" not in raw and "work:" not in raw:
            continue
        line = _COLOUR.sub("", raw) if "\x1b" in raw else raw
        if _watchdog(line, number, seen):
            continue
        prefixes = list(_PREFIX.finditer(line))
        if not prefixes:
            if waiting and _COLL.match(line):
                _message(waiting, line, number, seen)
                waiting = None
            elif version := _VERSION.search(line):
                seen.versions[version[1]] += 1
                seen.useful += 1
            continue
        for place, prefix in enumerate(prefixes):
            process = (prefix[1], int(prefix[2]))
            seen.devices.setdefault(process, int(prefix[3]))
            seen.last_line[process] = number
            end = prefixes[place + 1].start() if place + 1 < len(prefixes) else len(line)
            message = line[prefix.end() : end].strip()
            if not message:
                waiting = process
                continue
            seen.useful += 1
            if prefix[4] == "WARN":
                _fact(seen, process, number, ("warning", None, "warning", message[:_TEXT], None, None))
            _message(process, message, number, seen)


def _message(process: Process, message: str, line: int, seen: _Seen) -> None:
    """Read one message of NCCL."""
    if match := _COLL.search(message):
        dtype = int(match[4])
        seen.useful += 1
        launch = _Launch(
            process, line, match[1], int(match[3]), int(match[2], 16) & ((1 << 63) - 1),
            _DTYPES[dtype] if dtype < len(_DTYPES) else None, int(match[6]), match[7],
            int(match[8]) if match[8] else None,
        )  # fmt: skip
        seen.launches.append(launch)
        if told := _GLOBAL_RANK.search(message):
            seen.ranks[process][1 << 30] = int(told[1])
        return
    if match := _TIMINGS.search(message):
        rank, size = int(match[2]), int(match[3])
        seen.ranks[process].setdefault(size, rank)
        phases = [("total", match[4]), *re.findall(r"([a-z]+) ([\d.]+)", match[5] or "")]
        for phase, seconds in phases:
            nanoseconds = _seconds(seconds)
            _fact(seen, process, line, ("init_phase", None, f"{phase}_ns", match[1], nanoseconds, None))
    elif match := _COMM.search(message):
        rank, size = int(match[2]), int(match[3])
        seen.ranks[process].setdefault(size, rank)
        old = seen.comms.get((process, match[1]))
        seen.comms[process, match[1]] = (rank, size, match[5] or (old[2] if old else ""))
        if "Init COMPLETE" in message:
            _fact(seen, process, line, ("init", match[5] or match[1], "nranks", None, size, None))
    elif match := _VIA.search(message):
        via = match[4]
        name = "/".join(via.split("/")[:2]) if via.startswith("NET/") else via.split("/")[0]
        _fact(seen, process, line, ("transport", None, name, via, None, int(match[3])))
    elif match := _TUNING.search(message):
        value = f"{match[3]}/{match[4]}" + (f" {int(match[6]) - int(match[5]) + 1} channels" if match[5] else "")
        _fact(seen, process, line, ("algorithm", None, match[1] or "collective", value, int(match[2]), None))
    elif match := _CHANNELS.search(message):
        _fact(seen, process, line, ("channels", None, "coll_channels", None, int(match[1]), None))
    else:
        _small_facts(process, message, line, seen)


def _small_facts(process: Process, message: str, line: int, seen: _Seen) -> None:
    if match := _SPEED.search(message):
        _fact(seen, process, line, ("nic", None, match[2], match[1], int(match[3]), None))
    elif match := _USING.search(message):
        nics = re.findall(r"\[\d+\](\S+)", match[2])
        _fact(seen, process, line, ("net", None, "nics", match[1], len(nics), None))
    elif match := _NETWORK.search(message):
        _fact(seen, process, line, ("net", None, "network", match[1], None, None))
    elif match := _GDR.search(message):
        _fact(seen, process, line, ("net", None, "gdr", match[1], None, None))
    elif match := _VERSION.search(message):
        seen.versions[match[1]] += 1
        _fact(seen, process, line, ("version", None, "nccl", match[1], None, None))


def _fact(seen: _Seen, process: Process, line: int, key: FactKey) -> None:
    facts = seen.facts[process]
    if key not in facts and len(facts) < _FACTS:
        facts[key] = [line]


def _seconds(text: str) -> int | None:
    return round(float(text) * 1e9) if re.fullmatch(r"\d{1,6}(?:\.\d{1,9})?", text) else None


def _watchdog(line: str, number: int, seen: _Seen) -> bool:
    """Read a line of PyTorch's watchdog; False when it is none."""
    timeout = _TIMEOUT.search(line)
    status = _STATUS.search(line)
    if not timeout and not status:
        return False
    group = _GROUP.search(line)
    told = _RANK.search(line)
    rank = int(group[4]) if group else int(told[1]) if told else None
    if rank is None:
        seen.left_out += 1
        return True
    # before torch 2.5 only the rank's own number of the group is printed: its 0 alone means the same everywhere
    name = (group[2] or ("0" if group[1] == "0" else f"local {group[1]}")) if group else None
    seen.useful += 1
    if timeout:
        seen.timeouts.append(
            _Timeout(
                rank, number, name, int(timeout[1]), timeout[2], _maybe(timeout[3]), _maybe(timeout[4]), int(timeout[5])
            )
        )
    if status:
        work = _WORK.search(line)
        seen.statuses.append(
            _Status(
                rank, group[1] if group else "0", name or "0", group[3] if group else None,
                int(work[1]) if work else None, int(status[1]), int(status[2]), "dump signal" in line,
            )
        )  # fmt: skip
    return True


def _maybe(text: str | None) -> int | None:
    return int(text) if text else None


# ---- ranks ----


def _assign(seen: _Seen, notes: list[str]) -> dict[Process, int]:
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


def _world_size(seen: _Seen, process: Process | None) -> int | None:
    sizes = [size for size in seen.ranks.get(process, {}) if size < 1 << 30] if process else []
    return max(sizes, default=None)


# ---- tables ----


def _group_name(seen: _Seen, process: Process, comm: str) -> str:
    """Return the communicator's id that all its ranks share, if an init line tells it, else one of this process."""
    told = seen.comms.get((process, comm))
    return told[2] if told and told[2] else f"{process[0]}:{process[1]}:{comm}"


def _collectives(seen: _Seen, rank_of: dict[Process, int], source: str, notes: list[str]) -> pl.DataFrame:
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
        rows.append(
            (
                timeout.rank, timeout.line, group or "0", timeout.seq, None, op in {"send", "recv"}, op, timeout.op,
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


def _group_status(seen: _Seen, source: str) -> pl.DataFrame:
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


def _process_groups(seen: _Seen, rank_of: dict[Process, int]) -> pl.DataFrame:
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


def _log_facts(seen: _Seen, rank_of: dict[Process, int], source: str) -> pl.DataFrame:
    rows = [
        (rank, lines[0], process[0], process[1], seen.devices.get(process), *key)
        for process, rank in rank_of.items()
        for key, lines in seen.facts.get(process, {}).items()
    ]
    names = ("rank", "line", "host", "pid", "device", "topic", "group", "name", "value", "number", "peer")
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    table = frame("log_facts", {**columns, "source": [source] * len(rows)})
    return table.sort("rank", "line", pl.col("name").cast(pl.String), maintain_order=True)
