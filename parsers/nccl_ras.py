"""NCCL RAS: what `ncclras -f json` says of every communicator of a job, asked from outside.

Format: docs/userguide/source/troubleshooting/ras.rst of NVIDIA/nccl (JSON since 2.28.7; monitor events since
2.29). Counts are of launches, per operation. Ranks are those of the largest communicator; a rank that does not
answer is told with what RAS thinks of it. Every rank it tells of is a row of `dumps` (kind service).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

import orjson

from tracetool.commwords import operation
from tracetool.errors import UnreadableTrace
from tracetool.raw.rawfile import json_memory_bytes, read_all
from tracetool.tables import frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tracetool.registry import ParseOptions
    from tracetool.tables import Tables

FORMAT = "nccl_ras"
READS_PLACE = True

_LIMIT: Final = 256 << 20
_MEMORY_PER_BYTE: Final = 24
_STATES: Final = (("considered_dead", "dead"), ("unresponsive", "unresponsive"))

Process = tuple[str, int, int]
"""Host, process id, device."""
Fact = tuple[Process, str | None, str, str | None, int | None]
"""Who, communicator, name, value, number."""
Place = tuple[int | None, int | None]
"""Size of a communicator, and a process' rank in it."""


def sniff(path: Path, head: bytes) -> bool:
    """Say whether this is RAS output as JSON: a status or monitor events."""
    if path.is_dir() or head.lstrip()[:1] not in (b"{", b"["):
        return False
    status = b'"communicators"' in head and (b'"collective_counts"' in head or b'"ranks_count"' in head)
    return status or (b'"event"' in head and b'"group"' in head and b'"nvml_devs"' in head)


def parse(path: Path, options: ParseOptions) -> Tables:
    """Read one answer. Raises UnreadableTrace when it is no JSON or tells of no process."""
    data = read_all(path, options.display_path, _LIMIT)
    asked = json_memory_bytes(data)
    if asked > max(options.memory_bytes, len(data) * _MEMORY_PER_BYTE):
        raise UnreadableTrace(options.display_path, f"its JSON would take about {asked >> 20} MiB of memory", 0)
    facts: list[Fact] = []
    ranks: dict[Process, dict[int, int]] = {}
    groups: dict[tuple[Process, str], Place] = {}
    notes: list[str] = []
    version = None
    for answer in _answers(data, options, notes):
        version = _text(answer.get("nccl_version")) or version
        for communicator in _dicts(answer.get("communicators")):
            _communicator(communicator, facts, ranks, groups)
        if answer.get("event"):
            facts += _event(answer)
    if not facts:
        raise UnreadableTrace(options.display_path, "tells of no process", len(data))
    rank_of = {process: by_size[max(by_size)] for process, by_size in ranks.items()}
    told = sorted({rank_of[fact[0]] for fact in facts if fact[0] in rank_of})
    if not told:  # a monitor's event names a process: it belongs to the run, not to a rank
        rank_of = {fact[0]: -1 for fact in facts}
    process_of = {rank: process for process, rank in sorted(rank_of.items(), reverse=True)}
    numbered = [(rank_of[fact[0]], line, fact) for line, fact in enumerate(facts, start=1) if fact[0] in rank_of]
    kept = sorted(numbered, key=lambda row: row[:2])
    keys = sorted({(rank_of[process], group): place for (process, group), place in groups.items()}.items())
    count, source = len(kept), options.display_path
    stat = path.stat()
    members = _members(groups, rank_of)
    entries = Counter(row[0] for row in kept)
    return {
        "dumps": frame(
            "dumps",
            {
                "rank": told,
                "source": [source] * len(told),
                "kind": ["service"] * len(told),
                "library": [version] * len(told),
                "entries": [entries[rank] for rank in told],
                "finished": [0] * len(told),
                "has_stacks": [False] * len(told),
                "file_unix_ns": [stat.st_mtime_ns] * len(told),
            },
        ),
        "log_facts": frame(
            "log_facts",
            {
                "rank": [row[0] for row in kept],
                "source": [source] * count,
                "line": [row[1] for row in kept],
                "host": [row[2][0][0] for row in kept],
                "pid": [row[2][0][1] for row in kept],
                "device": [row[2][0][2] for row in kept],
                "topic": ["ras"] * count,
                "group": [row[2][1] for row in kept],
                "name": [row[2][2] for row in kept],
                "value": [row[2][3] for row in kept],
                "number": [row[2][4] for row in kept],
            },
        ),
        "process_groups": frame(
            "process_groups",
            {
                "rank": [rank for (rank, _), _ in keys],
                "group": [group for (_, group), _ in keys],
                "ranks": [members.get(group) for (_, group), _ in keys],
                "size": [size for _, (size, _) in keys],
            },
        ),
        "ranks": frame(
            "ranks",
            {
                "rank": told,
                "rank_source": ["metadata" if rank >= 0 else None for rank in told],
                "host": [process_of[rank][0] for rank in told],
                "host_source": ["metadata"] * len(told),
                "pid": [process_of[rank][1] for rank in told],
                "device": [process_of[rank][2] for rank in told],
                "versions": [f"NCCL {version}" if version else None] * len(told),
                "backend": ["nccl"] * len(told),
                "format": [FORMAT] * len(told),
            },
        ),
        "sources": frame(
            "sources",
            {
                "path": [source],
                "format": [FORMAT],
                "bytes": [stat.st_size],
                "events": [count],
                "dropped": [len(facts) - count],
                "repaired": [0],
                "complete": [not notes],
                "notes": [notes],
            },
        ),
    }


def _members(groups: Mapping[tuple[Process, str], Place], rank_of: Mapping[Process, int]) -> dict[str, list[int]]:
    """Return the ranks of each communicator in its order, where all of them were told."""
    found: dict[str, dict[int, int]] = defaultdict(dict)
    sizes: dict[str, int | None] = {}
    for (process, group), (size, place) in groups.items():
        sizes[group] = size
        if place is not None:
            found[group][place] = rank_of[process]
    return {
        group: [places[place] for place in sorted(places)]
        for group, places in found.items()
        if len(places) == sizes[group] == len(set(places.values()))
    }


def _answers(data: bytes, options: ParseOptions, notes: list[str]) -> Iterator[dict[str, object]]:
    """Yield the JSON objects of a file: one answer, a list of them, or one after another (monitor mode)."""
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        pieces = data.replace(b"}\r\n{", b"}\n{").split(b"\n}\n{")
        good = 0
        for place, piece in enumerate(pieces):
            text = (b"{" if place else b"") + piece + (b"\n}" if place + 1 < len(pieces) else b"")
            try:
                answer = orjson.loads(text)
            except orjson.JSONDecodeError:
                notes.append(f"Answer {place + 1} of {len(pieces)} is no whole JSON object and was left out.")
                continue
            good += 1
            if isinstance(answer, dict):
                yield answer
        if not good:
            raise UnreadableTrace(options.display_path, f"no JSON ({error.msg})", error.pos) from None
        return
    yield from _dicts(content if isinstance(content, list) else [content])


def _communicator(
    communicator: dict[str, object],
    facts: list[Fact],
    ranks: dict[Process, dict[int, int]],
    groups: dict[tuple[Process, str], Place],
) -> None:
    group, size = str(communicator.get("hash"))[:80], _int(communicator.get("size"))
    for present in _dicts(communicator.get("ranks")):
        process = _process(present)
        groups[process, group] = size, _int(present.get("rank"))
        _rank(present, process, size, ranks)
        counts = present.get("collective_counts")
        for name, number in sorted(counts.items()) if isinstance(counts, dict) else ():
            facts.append((process, group, f"launched.{operation(str(name))}", None, _int(number)))
        status = present.get("status")
        for name, value in sorted(status.items()) if isinstance(status, dict) else ():
            if value not in (0, False, None):
                facts.append((process, group, "status", str(name)[:80], _int(value)))
    for missing in _dicts(communicator.get("missing_ranks")):
        process = _process(missing)
        groups[process, group] = size, _int(missing.get("rank"))
        _rank(missing, process, size, ranks)
        status = missing.get("status")
        state = next((word for key, word in _STATES if isinstance(status, dict) and status.get(key)), "missing")
        facts.append((process, group, "missing", state, None))


def _rank(told: dict[str, object], process: Process, size: int | None, ranks: dict[Process, dict[int, int]]) -> None:
    rank = _int(told.get("rank"))
    if rank is not None and 0 <= rank < 1 << 24:
        ranks.setdefault(process, {})[size or 0] = rank


def _event(answer: dict[str, object]) -> list[Fact]:
    """Read a monitor event; it names a process, not a rank."""
    peer = answer.get("peer")
    peer = peer if isinstance(peer, dict) else {}
    devices = peer.get("cuda_devs")
    device = _int(devices[0]) if isinstance(devices, list) and devices else None
    process = (str(peer.get("host"))[:200], _int(peer.get("pid")) or 0, device or 0)
    return [(process, None, "event", str(answer.get("event"))[:80], None)]


def _process(told: dict[str, object]) -> Process:
    return str(told.get("host"))[:200], _int(told.get("pid")) or 0, _int(told.get("cuda_dev")) or 0


def _dicts(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value[:80] if isinstance(value, str) else None


def _int(value: object) -> int | None:
    return int(value) if isinstance(value, int) and abs(value) < 1 << 62 else None
