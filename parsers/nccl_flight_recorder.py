"""PyTorch flight recorder: what each rank launched last, dumped when a collective timed out.

Format: torch/csrc/distributed/c10d/FlightRecorder*.hpp and FlightRecorderDetail.hpp of pytorch/pytorch, as pickle
or JSON; versions none (torch 2.2, a bare list), 1.4, 2.1, 2.4, 2.9 and 2.10 (torch 2.13), backends nccl and gloo,
and torchcomms, which writes the same JSON. The rank is the integer at the end of the file's name.

When an operation is in flight depends on who recorded it. Gloo never says that one completed: done is `retired`.
Otherwise done is `completed`, and three things prove it of an operation that does not say so: its batch (recorded
as one `coalesced` operation with the same number) is complete; a later collective of the same group is, for they
run in order; a later send or receive with the same peer is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, cast

import polars as pl
from tracetool.parsers import _recorder_file as recorder_file  # type: ignore[import-not-found]  # mapped at install time

from tracetool.commwords import LOCAL_GROUP, dtype_bytes, operation
from tracetool.raw.rawfile import read_all
from tracetool.tables import empty, frame

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tracetool.registry import ParseOptions
    from tracetool.tables import Tables

FORMAT = "nccl_flight_recorder"
READS_PLACE = True

_USUAL_NAME: Final = re.compile(r"(?:trace_rank_|fr_trace_|_dump_)\d+(?:\.json|\.pkl|\.pickle)?(?:\.gz)?$")
_TRAILING_INTEGER: Final = re.compile(r"(\d+)(?:\.json|\.pkl|\.pickle)?(?:\.gz)?$")
_KEYS: Final = (b"profiling_name", b"pg_status", b"nccl_comm_state", b"collective_seq_id")
_OTHERS: Final = (b'"traceEvents"', b'"schemaVersion"', b'"coll_perf"')
_ARROW: Final = re.compile(r"(\d{1,7})(?:->|<-)(\d{1,7})$")
_LARGEST_FILE: Final = 1 << 30
_TEXT_TENSORS: Final = 16
_SUMMED_TENSORS: Final = 65_536
_DIMENSIONS: Final = 16
_LATEST_STACKS: Final = 32
"""Stacks are kept of operations in flight and of this many latest ones."""
_FRAMES: Final = 40
_INT64: Final = range(-(1 << 63), 1 << 63)

Entry = dict[str, object]


def sniff(path: Path, head: bytes) -> bool:
    """Say whether this is a dump: a pickle or JSON with the recorder's keys, or a pickle under its usual name."""
    if path.is_dir():
        return False
    if head.lstrip()[:1] == b"{":
        keys = any(b'"' + key + b'"' in head for key in _KEYS)
        return keys and not any(other in head for other in _OTHERS)
    if _USUAL_NAME.search(path.name):
        return True
    return head[:1] == b"\x80" and any(key in head for key in (*_KEYS, b"pg_config", b"time_created_us"))


def parse(path: Path, options: ParseOptions) -> Tables:
    """Read one dump.

    A cut dump gives what stands before the cut. Raises UnreadableTrace when nothing does, and for a pickle that
    asks for anything but plain data.
    """
    data = read_all(path, options.display_path, _LARGEST_FILE)
    content, notes = recorder_file.plain_content(data, options)
    top: Entry = {"entries": content} if isinstance(content, list) else cast("Entry", content)
    entries, dropped = _entries(top.get("entries"))
    if dropped:
        notes.append(f"{dropped} records are no records and were left out.")
    complete = not notes
    rank = _rank_in_name(options.display_path)
    collectives = _in_flight(_collectives(entries, rank or 0, options.display_path, notes))
    rank = -1 if rank is None else rank
    groups = _process_groups(top, entries, rank, options.display_path)
    collectives = collectives.with_columns(rank=pl.lit(rank, pl.Int32))
    version = _text(top.get("version")) or ("none" if isinstance(content, list) else None)
    library = _text(top.get("comm_lib_version")) or _text(top.get("nccl_version"))
    backends = sorted(collectives["backend"].drop_nulls().cast(pl.String).unique().to_list())
    records = collectives["record"]
    stat = path.stat()
    return {
        "collectives": collectives,
        "process_groups": groups,
        "group_status": _group_status(top, entries, rank, options.display_path),
        "dumps": frame(
            "dumps",
            {
                "rank": [rank],
                "source": [options.display_path],
                "kind": ["recorder"],
                "version": [version],
                "library": [library],
                "entries": [collectives.height],
                "first_record": [records.min()],
                "last_record": [records.max()],
                "finished": [collectives.height - int(collectives["in_flight"].sum() or 0)],
                "has_stacks": [any(entry.get("frames") for entry in entries)],
                "file_unix_ns": [stat.st_mtime_ns],
                "newest_unix_ns": [collectives["created_unix_ns"].max()],
            },
        ),
        "ranks": frame(
            "ranks",
            {
                "rank": [rank],
                "rank_source": ["file name" if rank >= 0 else None],
                "world_size": [_world_size(groups)],
                "versions": [f"{_library_name(backends)} {library}" if library else None],
                "backend": [", ".join(backends) or None],
                "format": [FORMAT],
            },
        ),
        "sources": frame(
            "sources",
            {
                "path": [options.display_path],
                "format": [FORMAT],
                "bytes": [stat.st_size],
                "events": [collectives.height],
                "dropped": [dropped],
                "repaired": [0],
                "complete": [complete],
                "notes": [notes],
            },
        ),
    }


# ---- reading ----


def _entries(value: object) -> tuple[list[Entry], int]:
    """Return the records and how many list items are none."""
    if not isinstance(value, list):
        return [], 0
    entries = [entry for entry in value if isinstance(entry, dict) and "profiling_name" in entry]
    return entries, len(value) - len(entries)


def _rank_in_name(display_path: str) -> int | None:
    match = _TRAILING_INTEGER.search(display_path.replace("\\", "/").rpartition("/")[2])
    return int(match[1]) if match and len(match[1]) < 8 else None  # noqa: PLR2004 - longer ones are process ids or times


# ---- tables ----


def _collectives(entries: Sequence[Entry], rank: int, source: str, notes: list[str]) -> pl.DataFrame:
    """Build table `collectives` from records of any version; `in_flight` is not settled yet."""
    if not entries:
        return empty("collectives")
    names = [_text(entry.get("profiling_name")) or "" for entry in entries]
    groups = [_group_of(entry) for entry in entries]
    operations = [operation(name) for name in names]
    arrows = [_ARROW.search(name) if name[-1:].isdigit() else None for name in names]
    sizes = _Sizes()
    inputs = [sizes.of(entry.get("input_sizes")) for entry in entries]
    outputs = [sizes.of(entry.get("output_sizes")) for entry in entries]
    types = [_first(entry.get("input_dtypes")) or _first(entry.get("output_dtypes")) for entry in entries]
    if any(group and group.startswith(LOCAL_GROUP) for group in groups):
        notes.append("Records name groups by the rank's own numbers (torch before 2.4): which are one is not told.")
    created = _ints(entries, "time_created_ns")
    if created.null_count() == len(entries):
        created = _ints(entries, "time_created_us") * 1000
    seq = _ints(entries, "collective_seq_id")
    if seq.null_count() == len(entries):
        seq = _ints(entries, "seq_id")
    pairs = zip(operations, entries, strict=True)
    p2p = [word in {"send", "recv"} or entry.get("is_p2p") is True for word, entry in pairs]
    return frame(
        "collectives",
        {
            "rank": pl.repeat(rank, len(entries), dtype=pl.Int32, eager=True),
            "source": pl.repeat(source, len(entries), eager=True),
            "record": _ints(entries, "record_id").fill_null(pl.int_range(len(entries), eager=True)),
            "group": groups,
            "seq": seq,
            "p2p_seq": _ints(entries, "p2p_seq_id"),
            "is_p2p": p2p,
            "op": operations,
            "name": names,
            "backend": [name.partition(":")[0] if ":" in name else None for name in names],
            "peer": [int(arrow[2]) if arrow else None for arrow in arrows],
            "in_sizes": [size[0] for size in inputs],
            "out_sizes": [size[0] for size in outputs],
            "in_elems": [size[1] for size in inputs],
            "out_elems": [size[1] for size in outputs],
            "bytes": [_bytes(a[1], b[1], word) for a, b, word in zip(inputs, outputs, types, strict=True)],
            "dtype": types,
            "state": [_text(entry.get("state")) for entry in entries],
            "retired": [value if isinstance(value := entry.get("retired"), bool) else None for entry in entries],
            "created_unix_ns": created,
            "started_unix_ns": _positive(_ints(entries, "time_discovered_started_ns")),
            "completed_unix_ns": _positive(_ints(entries, "time_discovered_completed_ns")),
            "duration_ns": [_milliseconds(entry.get("duration_ms")) for entry in entries],
            "timeout_ns": _positive(_ints(entries, "timeout_ms")) * 1_000_000,
            "stack": _stacks(entries),
            "thread": [_text(entry.get("thread_name")) for entry in entries],
        },
    )


def _in_flight(records: pl.DataFrame) -> pl.DataFrame:
    """Settle which operations are in flight (module docstring), and keep only the stacks worth keeping."""
    if records.is_empty():
        return records
    gloo = (pl.col("backend").cast(pl.String) == "gloo").fill_null(False)
    complete = (pl.col("state").cast(pl.String) == "completed") | pl.col("completed_unix_ns").is_not_null()
    done = pl.when(gloo).then(pl.col("retired")).otherwise(complete).fill_null(False)
    number = pl.when("is_p2p").then("p2p_seq").otherwise("seq")
    batch = pl.col("op").cast(pl.String) == "coalesced"
    records = records.with_columns(_done=done, _number=number, _batch=batch, _ordered=~gloo & ~batch)
    lane = ["group", "is_p2p"]
    by_batch = (pl.col("_batch") & pl.col("_done")).any().over([*lane, "_number"])
    newest_done = pl.col("_number").filter(pl.col("_done") & ~pl.col("_batch")).max()
    reached = pl.when("is_p2p").then(newest_done.over([*lane, "op", "peer"])).otherwise(newest_done.over(lane))
    by_order = (reached > pl.col("_number")).fill_null(False)
    in_flight = ~(pl.col("_done") | (pl.col("_ordered") & (by_batch | by_order)))
    latest = pl.col("record") > pl.col("record").max() - _LATEST_STACKS
    return (
        records.with_columns(in_flight=in_flight)
        .with_columns(stack=pl.when(pl.col("in_flight") | latest).then("stack"))
        .drop("_done", "_number", "_batch", "_ordered")
    )


def _process_groups(top: Entry, entries: Sequence[Entry], rank: int, source: str) -> pl.DataFrame:
    """Build table `process_groups`: what the dump configures, and what only its records name."""
    described: dict[str, tuple[str | None, list[int] | None]] = {}
    config = top.get("pg_config")
    if isinstance(config, dict):
        for key, value in config.items():
            if isinstance(value, dict):
                name = _text(value.get("name")) or str(key)
                described[name] = (_text(value.get("desc")), _members(value.get("ranks")))
    named: dict[str, str | None] = {}
    for entry in entries:
        group = _group_of(entry)
        pair = entry.get("process_group")
        if group is not None:
            named.setdefault(group, _text(pair[1]) if isinstance(pair, list | tuple) and len(pair) > 1 else None)
    # gloo writes one nameless key: its ranks are those of the one group there is
    nameless = described.pop("", None)
    for name, desc in named.items():
        if name not in described:
            only = nameless[1] if nameless and len(named) == 1 else None
            described[name] = (desc, only)
        elif not described[name][0]:
            described[name] = (desc, described[name][1])
    if nameless and nameless[1] and not described:
        described["0"] = ("default_pg", nameless[1])
    if rank >= 0:  # a group named by the rank's own number may be somebody else's of the same number
        described = {
            name: (desc, members if members is None or rank in members else None)
            for name, (desc, members) in described.items()
        }
    names = sorted(described)
    return frame(
        "process_groups",
        {
            "rank": [rank] * len(names),
            "group": names,
            "desc": [described[name][0] or None for name in names],
            "ranks": [described[name][1] for name in names],
            "size": [len(members) if (members := described[name][1]) else None for name in names],
            "source": [source] * len(names),
        },
    )


def _group_status(top: Entry, entries: Sequence[Entry], rank: int, source: str) -> pl.DataFrame:
    """Build table `group_status`; the group's name is told by the rank's own records alone."""
    status = top.get("pg_status")
    rows = (
        [(str(key), value) for key, value in status.items() if isinstance(value, dict)]
        if isinstance(status, dict)
        else []
    )
    names = {str(entry.get("pg_id")): group for entry in entries if (group := _group_of(entry)) is not None}
    rows.sort(key=lambda row: (len(row[0]), row[0]))

    def column(key: str, absent: int | None) -> list[int | None]:
        return [absent if (found := _integer(value.get(key))) is None else found for _, value in rows]

    return frame(
        "group_status",
        {
            "rank": [rank] * len(rows),
            "source": [source] * len(rows),
            "local_id": [local for local, _ in rows],
            "group": [names.get(local) for local, _ in rows],
            "last_enqueued": column("last_enqueued_collective", -1),
            "last_started": column("last_started_collective", None),
            "last_completed": column("last_completed_collective", -1),
            "status": [None] * len(rows),
        },
    )


def _world_size(groups: pl.DataFrame) -> int | None:
    """Return the size of the default group, if its ranks are known."""
    world = groups.filter((pl.col("desc") == "default_pg") | (pl.col("group") == "0"), pl.col("size").is_not_null())
    return world["size"].max() if world.height else None  # type: ignore[return-value] # polars types max() as any literal


def _library_name(backends: Sequence[str]) -> str:
    return "NCCL" if not backends or "nccl" in backends else backends[0]


# ---- single values: every one may be anything in a file from elsewhere ----


def _group_of(entry: Entry) -> str | None:
    """Return the process group's name; before torch 2.4 only the rank's own number of it is told."""
    pair = entry.get("process_group")
    if isinstance(pair, list | tuple) and pair:
        return _text(pair[0])
    number = _integer(entry.get("pg_id"))
    # the first group of all ranks is the default one
    return None if number is None else "0" if number == 0 else f"{LOCAL_GROUP}{number}"


def _members(value: object) -> list[int] | None:
    """Read ranks from the text "[0, 1, 2]" or a list; null when there are none."""
    if isinstance(value, str):
        numbers = [int(word) for word in re.findall(r"\d{1,7}", value[: 1 << 22])]
    elif isinstance(value, list):
        numbers = [item for item in value if isinstance(item, int) and 0 <= item < 1 << 24]
    else:
        return None
    return numbers or None


def _text(value: object) -> str | None:
    return value[:4096] if isinstance(value, str) else None


def _first(value: object) -> str | None:
    return _text(value[0]) if isinstance(value, list) and value else None


def _integer(value: object) -> int | None:
    """Read an integer, also from text; null for anything else and beyond 64 bits."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,19}", value):
        value = int(value)
    return _in_int64(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _bytes(in_elems: int | None, out_elems: int | None, dtype: str | None) -> int | None:
    """Return S of the bandwidth formulas: the larger of the bytes in and out."""
    width = dtype_bytes(dtype) if dtype else None
    if width is None or (in_elems is None and out_elems is None):
        return None
    return _in_int64(max(in_elems or 0, out_elems or 0) * width)


def _milliseconds(value: object) -> int | None:
    """Return ns; null for anything that is no duration below a year."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 3e10:  # noqa: PLR2004 - ms
        return None
    return round(value * 1e6)


def _in_int64(value: int) -> int | None:
    return value if value in _INT64 else None


def _ints(entries: Sequence[Entry], key: str) -> pl.Series:
    values = [entry.get(key) for entry in entries]
    try:
        return pl.Series(key, values, dtype=pl.Int64, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        return pl.Series(key, [_integer(value) for value in values], dtype=pl.Int64)


def _positive(values: pl.Series) -> pl.Series:
    """Null what is not above 0: JSON dumps write 0 for times that are not known."""
    return pl.select(pl.when(values > 0).then(values)).to_series()


class _Sizes:
    """Texts and element counts of lists of tensor sizes; equal lists are worked out once."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[str | None, int | None]] = {}

    def of(self, value: object) -> tuple[str | None, int | None]:
        """Return JSON text of the sizes (at most 16 tensors) and the elements of all; nulls when there are none."""
        if not isinstance(value, list) or not value:
            return None, None
        try:
            key = tuple([tuple(size[:_DIMENSIONS]) for size in value[:_SUMMED_TENSORS]])
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = self._work_out(key)
        except TypeError:  # sizes that are no lists of integers
            return None, None
        return known

    @staticmethod
    def _work_out(sizes: Sequence[Sequence[object]]) -> tuple[str | None, int | None]:
        total = 0
        for size in sizes:
            count = 1
            for length in size:
                if not isinstance(length, int) or length not in _INT64:
                    return None, None
                count *= length
            total += count
        text = ", ".join(str(list(size)) for size in sizes[:_TEXT_TENSORS])
        return f"[{text}{', …' if len(sizes) > _TEXT_TENSORS else ''}]", _in_int64(total)


def _stacks(entries: Sequence[Entry]) -> list[str | None]:
    """Return the stacks worth keeping as text, innermost frame first; equal stacks are written once."""
    known: dict[tuple[object, ...], str] = {}
    stacks: list[str | None] = []
    for place, entry in enumerate(entries):
        frames = entry.get("frames")
        old = place < len(entries) - _LATEST_STACKS
        complete = entry.get("state") == "completed" or entry.get("retired") is True
        if not isinstance(frames, list) or not frames or (old and complete):
            stacks.append(None)
            continue
        try:
            key = tuple([(item["name"], item["filename"], item["line"]) for item in frames[:_FRAMES]])
            text = known.get(key)
            if text is None:
                text = known[key] = "\n".join(f"{str(a)[:200]} {str(b)[:400]}:{str(c)[:12]}" for a, b, c in key)
        except (TypeError, KeyError, IndexError, RecursionError):  # frames of some other shape
            text = None
        stacks.append(text)
    return stacks
