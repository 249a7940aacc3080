"""NCCL's example profiler plugin: operations as asynchronous events, in almost-JSON.

Format: plugins/profiler/example/ of NVIDIA/nccl (2.23 to 2.28): a list of objects, one a line, that ends with
`{}]`. Data types and stream pointers stand bare; they are quoted here. Times are us from an unsaid origin, 0 when
not known. The end of an operation is only that of its launch, so its duration is that of its `KernelCh` events,
which stand between its begin and its end and pair in order (their ids are all 0). `Count` is per rank.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import orjson

from tracetool.commwords import dtype_bytes, operation
from tracetool.errors import UnreadableTrace
from tracetool.raw.rawfile import text_lines
from tracetool.tables import frame

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.registry import ParseOptions
    from tracetool.tables import Tables

FORMAT = "nccl_profiler"
READS_PLACE = True

_MARKS: Final = (
    b'"cat": "COLL"',
    b'"cat": "P2P"',
    b'"cat": "COLL_API"',
    b'"cat": "P2P_API"',
    b'"cat": "KERNEL_LAUNCH"',
)
_BARE: Final = re.compile(r'("(?:[^"\\]|\\.)*")|(?<=: )(nccl\w+|0x[0-9a-fA-F]+)(?=\s*[,}])')
_QUOTES: Final = str.maketrans({"\u201c": '"', "\u201d": '"'})
_TIMES_RANKS: Final = ("all_gather", "reduce_scatter")


def sniff(path: Path, head: bytes) -> bool:
    """Say whether these are the plugin's events; Kineto's and others' have other categories."""
    if path.is_dir() or not head.lstrip().startswith((b"[", b"{")):
        return False
    return any(mark in head for mark in _MARKS) and b'"traceEvents"' not in head


def parse(path: Path, options: ParseOptions) -> Tables:
    """Read one file. Raises UnreadableTrace when no line is an event."""
    operations: list[dict[str, object]] = []
    open_ops: dict[tuple[object, object, object], dict[str, object]] = {}
    current: dict[str, object] | None = None
    events = dropped = repaired = 0
    finished = False
    for number, raw in text_lines(path, options.display_path):
        line = raw.strip().rstrip(",")
        if line in ("", "[", "]", "{}]", "{}"):
            finished |= line.endswith("]")
            continue
        event, mended = _event(line)
        if event is None:
            dropped += 1
            continue
        events += 1
        repaired += mended
        category, phase = event.get("cat"), event.get("ph")
        key = (category, event.get("name"), event.get("id"))
        if category in ("COLL", "P2P") and phase == "b":
            current = {"line": number, "event": event, "kernels": []}
            operations.append(current)
            open_ops[key] = current
        elif category in ("COLL", "P2P"):
            open_ops.pop(key, None)
            current = None
        elif event.get("name") == "KernelCh" and current is not None:
            kernels = current["kernels"]
            if isinstance(kernels, list):
                kernels.append((phase, _number(event.get("ts"))))
    if not events:
        raise UnreadableTrace(options.display_path, "none of its lines is an event")
    notes = ["Times have no origin: only durations were kept."]
    if not finished:
        notes.append("Cut: the closing `{}]` is missing.")
    if dropped:
        notes.append(f"{dropped} lines are no events.")
    if repaired:
        notes.append(f"{repaired} lines had bare names or pointers, which were quoted.")
    return _tables(path, options, operations, notes, counts=(events, dropped, repaired), complete=finished)


def _event(line: str) -> tuple[dict[str, object] | None, bool]:
    """Return one event, and whether it had to be mended; None when it is none."""
    try:
        event = orjson.loads(line)
        mended = False
    except orjson.JSONDecodeError:
        text = _BARE.sub(lambda match: match[1] or f'"{match[2]}"', line.translate(_QUOTES))
        try:
            event = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None, False
        mended = True
    return (event, mended) if isinstance(event, dict) and "ph" in event else (None, False)


def _duration(kernels: object) -> int | None:
    """Return the time from the first channel's start to the last one's end, ns."""
    pairs: list[tuple[str, float]] = kernels if isinstance(kernels, list) else []
    starts = [at for phase, at in pairs if phase == "b" and at]
    ends = [at for phase, at in pairs if phase == "e" and at]
    if not starts or len(starts) != len(ends) or max(ends) <= min(starts):
        return None
    return round((max(ends) - min(starts)) * 1000)


def _tables(
    path: Path,
    options: ParseOptions,
    operations: list[dict[str, object]],
    notes: list[str],
    *,
    counts: tuple[int, int, int],
    complete: bool,
) -> Tables:
    rows: list[tuple[object, ...]] = []
    facts: list[tuple[object, ...]] = []
    pids: dict[int, int | None] = {}
    for found in operations:
        event = found["event"]
        args = event.get("args") if isinstance(event, dict) else None
        if not isinstance(event, dict) or not isinstance(args, dict):
            continue
        rank = _int(args.get("Rank"))
        rank = rank if rank is not None and 0 <= rank < 1 << 24 else -1
        op, p2p = operation(str(event.get("name"))), event.get("cat") == "P2P"
        group = args.get("CommHash")
        count, dtype = _int(args.get("Count")), str(args.get("Datatype") or "") or None
        width = dtype_bytes(dtype) if dtype else None
        pids.setdefault(rank, _int(event.get("pid")))
        name = f"0x{group:x}" if isinstance(group, int) else str(group)
        known = op not in _TIMES_RANKS and count is not None and width is not None
        size = (count or 0) * (width or 0) if known else None
        rows.append(
            (
                rank, found["line"], name, None if p2p else _int(args.get("SeqNum")), p2p, op, event.get("name"),
                _int(args.get("Peer")), count, size, dtype, _duration(found["kernels"]),
            )
        )  # fmt: skip
        if args.get("Algorithm"):
            how = f"{args['Algorithm']}/{args.get('Protocol')}"[:80]
            facts.append((rank, found["line"], name, str(event.get("name")), how, _int(args.get("nChannels"))))
    ranks = sorted(pids)
    if len(ranks) > 1 and ranks[0] == -1:
        ranks = ranks[1:]
    rows = [row for row in rows if row[0] in ranks]
    facts = [row for row in facts if row[0] in ranks]
    ranks = ranks or [-1]
    source, count = options.display_path, len(rows)
    names = (
        "rank", "record", "group", "seq", "is_p2p", "op", "name", "peer", "in_elems", "bytes", "dtype", "duration_ns",
    )  # fmt: skip
    fact_names = ("rank", "line", "group", "name", "value", "number")
    keys = sorted({(row[0], row[2]) for row in rows}, key=str)
    events, dropped, repaired = counts
    return {
        "collectives": frame(
            "collectives",
            {
                **{name: [row[place] for row in rows] for place, name in enumerate(names)},
                "source": [source] * count,
                "backend": ["nccl"] * count,
                "in_flight": [False] * count,
            },
        ).sort("rank", "record", maintain_order=True),
        "log_facts": frame(
            "log_facts",
            {
                **{name: [row[place] for row in facts] for place, name in enumerate(fact_names)},
                "source": [source] * len(facts),
                "topic": ["algorithm"] * len(facts),
            },
        ).sort("rank", "line", maintain_order=True),
        "process_groups": frame(
            "process_groups", {"rank": [rank for rank, _ in keys], "group": [group for _, group in keys]}
        ),
        "ranks": frame(
            "ranks",
            {
                "rank": ranks,
                "rank_source": ["metadata" if rank >= 0 else None for rank in ranks],
                "pid": [pids.get(rank) for rank in ranks],
                "backend": ["nccl"] * len(ranks),
                "format": [FORMAT] * len(ranks),
            },
        ),
        "sources": frame(
            "sources",
            {
                "path": [source],
                "format": [FORMAT],
                "bytes": [path.stat().st_size],
                "events": [events],
                "dropped": [dropped],
                "repaired": [repaired],
                "complete": [complete],
                "notes": [notes],
            },
        ),
    }


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _int(value: object) -> int | None:
    return int(value) if isinstance(value, int) and abs(value) < 1 << 62 else None
