"""What lines of NCCL_DEBUG and of PyTorch's watchdog say, before anybody knows which rank a process is.

Formats: see nccl_log. Lines are searched, not matched from their start: launchers put prefixes before them, and two
writers may share a line.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_TEXT: Final = 400
_FACTS: Final = 20_000
"""Different facts kept of one process."""

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
class Launch:
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
class Timeout:
    rank: int
    line: int
    group: str | None
    seq: int
    op: str
    in_elems: int | None
    out_elems: int | None
    timeout_ms: int


@dataclass(frozen=True)
class Status:
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
class Seen:
    """What the lines said, before processes have ranks."""

    launches: list[Launch] = field(default_factory=list)
    timeouts: list[Timeout] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
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


def read_lines(lines: Iterable[tuple[int, str]], seen: Seen) -> None:
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


def _message(process: Process, message: str, line: int, seen: Seen) -> None:
    """Read one message of NCCL."""
    if match := _COLL.search(message):
        dtype = int(match[4])
        seen.useful += 1
        launch = Launch(
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


def _small_facts(process: Process, message: str, line: int, seen: Seen) -> None:
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


def _fact(seen: Seen, process: Process, line: int, key: FactKey) -> None:
    facts = seen.facts[process]
    if key not in facts and len(facts) < _FACTS:
        facts[key] = [line]


def _seconds(text: str) -> int | None:
    return round(float(text) * 1e9) if re.fullmatch(r"\d{1,6}(?:\.\d{1,9})?", text) else None


def _watchdog(line: str, number: int, seen: Seen) -> bool:
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
            Timeout(
                rank, number, name, int(timeout[1]), timeout[2], _maybe(timeout[3]), _maybe(timeout[4]), int(timeout[5])
            )
        )
    if status:
        work = _WORK.search(line)
        seen.statuses.append(
            Status(
                rank, group[1] if group else "0", name or "0", group[3] if group else None,
                int(work[1]) if work else None, int(status[1]), int(status[2]), "dump signal" in line,
            )
        )  # fmt: skip
    return True


def _maybe(text: str | None) -> int | None:
    return int(text) if text else None
