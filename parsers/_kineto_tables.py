"""From the columns of a Kineto trace to its tables: tracks, events, shapes, communications, copies, counters."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from msgspec import Raw
from tracetool.parsers._kineto_facts import (  # type: ignore[import-not-found]  # mapped at install time
    Facts,
    small,
    text_of,
)
from tracetool.parsers._kineto_format import (  # type: ignore[import-not-found]  # mapped at install time
    CATEGORY,
    CATEGORY_CODE,
    COMM_INTS,
    COMM_RAW,
    COMM_TEXTS,
    MEMORY,
    ON_CPU,
    ON_GPU,
    SHAPES,
    SYNC_INTS,
)

from tracetool import tables
from tracetool.commwords import dtype_bytes
from tracetool.errors import UnreadableTrace
from tracetool.raw.rawcolumns import NULL, compact_json, ints, joined, json_value, nullable, numbered, texts_to_ns

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tracetool.parsers._kineto_reader import Reader  # type: ignore[import-not-found]  # mapped at install time

    from tracetool.raw.jsonstream import ArrayStream
    from tracetool.tables import Tables

    Ints = NDArray[np.int64]

_GPU, _CPU, _OTHER = range(len(tables.TRACK_KINDS))
_ALWAYS: Final = ("events", "tracks", "ranks", "sources")
_MOST_NAMED: Final = 8
_SHARE_OF_A_PROCESS: Final = 0.05
_KNOWN: Final = frozenset({*CATEGORY, "Trace", "python_function"})
_WAY: Final = re.compile(r"Memcpy (\w+)")
_STREAM: Final = re.compile(r"(?:stream\s*)?(\d{1,18})\s*$")
_DIRECTIONS: Final = {"HOST_TO_DEVICE": "HtoD", "DEVICE_TO_HOST": "DtoH", "DEVICE_TO_DEVICE": "DtoD"}


class Assembly:
    """Makes the base tables of one trace from what the reader kept."""

    def __init__(self, reader: Reader, stream: ArrayStream[Any], display_path: str, file_bytes: int) -> None:
        self._reader = reader
        self._stream = stream
        self._path = display_path
        self._bytes = file_bytes
        self._notes: list[str] = []
        self._process_texts = reader.pids.texts()
        self._thread_texts = reader.tids.texts()
        self._window: tuple[int, int] | None = None
        self._rows = self._gather()
        self._tracks, self._track_of = self._number_tracks()

    def tables(self) -> Tables:
        """Return the tables; raises UnreadableTrace when several processes are mixed in the file."""
        rows = self._rows
        self._refuse_merged()
        order = np.lexsort((-rows["dur"], rows["start"]))
        facts = Facts(self._reader, self._stream, rows, self._window, self._notes)
        event_of = np.full(int(rows["row"].max(initial=-1)) + 1, -1)
        event_of[rows["row"][order]] = np.arange(len(order))
        small = {
            "tracks": self._tracks,
            "op_shapes": self._op_shapes(event_of),
            "comm_args": self._comm_args(event_of),
            "copies": self._copies(event_of),
            "syncs": self._syncs(event_of),
            "counters": self._counters(),
            "process_groups": facts.process_groups(),
            "ranks": facts.ranks(),
        }
        del event_of
        # the longest table last: it takes the columns of the rows with it
        result = {"events": self._events(order), **small}
        result["sources"] = facts.sources(self._path, self._bytes, result["events"].height)
        rank = facts.rank()
        return {
            name: tables.conform(
                name, table.with_columns(rank=rank) if "rank" in tables.SCHEMAS[name].columns else table
            )
            for name, table in result.items()
            if table.height or name in _ALWAYS
        }

    # ---- rows and tracks ----

    def _gather(self) -> dict[str, NDArray[Any]]:
        """Return the columns of all events: complete ones in file order, then instants."""
        reader = self._reader
        names = ("start", "dur", "category", "name", "pid", "tid", "correlation", "external")
        rows = joined(reader.events) or {name: np.zeros(0, np.int64) for name in names}
        rows["row"] = np.arange(len(rows["start"]), dtype=np.int32)
        if reader.instants:
            instants = joined(reader.instants)
            count = len(instants["start"])
            instants["dur"] = np.zeros(count, np.int64)
            instants["correlation"] = instants["external"] = np.full(count, NULL)
            instants["row"] = np.arange(count) + len(rows["row"])
            instants["instant"] = np.ones(count, bool)
            rows["instant"] = np.zeros(len(rows["row"]), bool)
            rows = {name: np.concatenate((rows[name], instants[name])) for name in rows}
        else:
            rows["instant"] = np.zeros(len(rows["row"]), bool)
        texts = reader.categories.texts()
        kinds = np.array([CATEGORY_CODE[CATEGORY.get(text, "other")] for text in texts], np.uint8)
        codes = rows["category"]
        rows["kind"] = kinds[codes] if len(codes) else np.zeros(0, np.uint8)
        rows["kind"][rows["instant"]] = CATEGORY_CODE["instant"]
        if "mtia_ccp_events" in reader.categories and "dma_request" in reader.names:
            moved = (codes == reader.categories["mtia_ccp_events"]) & (rows["name"] == reader.names["dma_request"])
            rows["kind"][moved] = CATEGORY_CODE["memcpy"]
        found = np.bincount(codes[~rows["instant"]], minlength=len(texts)).tolist()
        unknown = sorted((text, found[i]) for i, text in enumerate(texts) if found[i] and text not in _KNOWN)
        if unknown:
            told = ", ".join(f'{count:,} of "{text}"' for text, count in unknown[:_MOST_NAMED])
            more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
            self._notes.append(f"events of unknown categories kept as other: {told}{more}")
        span = (codes == reader.categories.get("Trace", -1)) & ~rows["instant"]
        if span.any():
            start, end = rows["start"][span], (rows["start"] + rows["dur"])[span]
            self._window = int(start.min()), int(end.max())
            kept = ~span
            for name in list(rows):  # one at a time: memory holds one column twice, not all
                rows[name] = rows[name][kept]
        return rows

    def _number_tracks(self) -> tuple[pl.DataFrame, NDArray[np.int32]]:
        """Return table `tracks` and the track of every row."""
        rows = self._rows
        side_of = np.full(len(tables.CATEGORIES), _OTHER, np.int64)
        side_of[[CATEGORY_CODE[name] for name in ON_GPU]] = _GPU
        side_of[[CATEGORY_CODE[name] for name in ON_CPU]] = _CPU
        processes, threads = max(len(self._process_texts), 1), max(len(self._thread_texts), 1)
        key = side_of[rows["kind"]] * (processes * threads)
        key += rows["pid"] * np.int64(threads) + rows["tid"]
        keys, found = numbered(key, 3 * processes * threads)
        # the same thread may have been written as 7 and as "7": one label, one track
        labels = [
            (int(k // (processes * threads)), self._process_texts[k % (processes * threads) // threads],
             self._thread_texts[k % threads])
            for k in keys.tolist()
        ]  # fmt: skip
        known = {label[1:]: label for label in sorted(labels, reverse=True) if label[0] != _OTHER}
        merged = [known.get(label[1:], label) if label[0] == _OTHER else label for label in labels]
        memory = self._reader.memory
        pairs = set()
        if memory:
            of_memory = np.concatenate(memory["pid"]).astype(np.int64) * threads + np.concatenate(memory["tid"])
            pairs = {(self._process_texts[k // threads], self._thread_texts[k % threads]) for k in np.unique(of_memory)}
        distinct = sorted({*merged, *((_CPU, *label) for label in pairs)}, key=_natural)
        number = {label: i for i, label in enumerate(distinct)}
        self._track_numbers = number
        track_of = np.array([number[label] for label in merged], np.int32)[found] if merged else found.astype(np.int32)
        names = self._reader.thread_names
        on_gpu = [label[0] == _GPU for label in distinct]
        table = pl.DataFrame(
            {
                "track": np.arange(len(distinct), dtype=np.int32),
                "kind": [tables.TRACK_KINDS[label[0]] for label in distinct],
                "process": [label[1] for label in distinct],
                "thread": [label[2] for label in distinct],
                "device": [small(label[1]) if gpu else None for label, gpu in zip(distinct, on_gpu, strict=True)],
                "stream": [_stream(label[2]) if gpu else None for label, gpu in zip(distinct, on_gpu, strict=True)],
                "name": [_label(names.get(label[1:]), "name") for label in distinct],
            },
            schema_overrides={
                "kind": tables.TrackKind, "process": pl.String, "thread": pl.String, "device": pl.Int32,
                "stream": pl.Int64, "name": pl.String,
            },
        )  # fmt: skip
        return table, track_of

    def _refuse_merged(self) -> None:
        """Raise UnreadableTrace when CPU events of several processes are in the file: ranks must not be mixed."""
        rows = self._rows
        runtime = rows["kind"] == CATEGORY_CODE["runtime"]
        on_gpu = np.isin(rows["kind"], [CATEGORY_CODE[name] for name in tables.GPU_ACTIVITY])
        launched = runtime & np.isin(rows["correlation"], rows["correlation"][on_gpu & (rows["correlation"] != NULL)])
        evidence = launched if launched.any() else rows["kind"] == CATEGORY_CODE["cpu_op"]
        count = Counter[str]()
        for code, number in enumerate(np.bincount(rows["pid"][evidence]).tolist()):
            if number and small(self._process_texts[code]) is not None:  # a damaged number is of no process
                count[self._process_texts[code]] += number
        # a single damaged number is no second process
        several = sorted(
            name for name, number in count.items() if number >= max(2, _SHARE_OF_A_PROCESS * count.total())
        )
        if len(several) > 1:
            reason = (
                f"holds the merged traces of {len(several)} processes (pid {', '.join(several[:_MOST_NAMED])}): "
                "their correlation numbers cannot be told apart; give the file of each rank instead"
            )
            raise UnreadableTrace(self._path, reason)

    # ---- tables ----

    def _events(self, order: Ints) -> pl.DataFrame:
        """Return table `events`; the columns of the rows are let go of one by one: they are long."""
        rows = self._rows
        names = pl.Series(self._reader.names.texts(), dtype=pl.String).cast(tables.Text)
        return pl.DataFrame(
            {
                "event": np.arange(len(order)),
                "track": self._track_of[order],
                "start_ns": rows.pop("start")[order],
                "dur_ns": rows.pop("dur")[order],
                "category": pl.Series(tables.CATEGORIES, dtype=tables.Category).gather(rows.pop("kind")[order]),
                "name": names.gather(rows.pop("name")[order]),
                "correlation": nullable(rows.pop("correlation")[order]),
                "external_id": nullable(rows.pop("external")[order]),
            }
        )

    def _op_shapes(self, event_of: Ints) -> pl.DataFrame:
        if not self._reader.ops:
            return tables.empty("op_shapes")
        columns = joined(self._reader.ops)
        event = event_of[columns["row"]]
        order = np.argsort(event)
        texts = pl.Series([compact_json(text) for text in self._reader.args_texts], dtype=pl.String).cast(tables.Text)
        data = {name: texts.gather(columns[name][order]) for name in SHAPES}
        data |= {name: nullable(columns[name][order]) for name in ("sequence", "fwd_thread")}
        return pl.DataFrame({"event": event[order], **data})

    def _comm_args(self, event_of: Ints) -> pl.DataFrame:
        if not self._reader.comms:
            return tables.empty("comm_args")
        columns = joined(self._reader.comms)
        keys = list(self._reader.comm_texts)
        texts = pl.Series([text_of(Raw(key) if isinstance(key, bytes) else key) for key in keys], dtype=pl.String)
        width = pl.Series([dtype_bytes(key) if isinstance(key, str) else None for key in keys], dtype=pl.Int64)
        data: dict[str, pl.Series] = {"event": pl.Series(event_of[columns["row"]])}
        data |= {name: nullable(columns[name]) for name in ("peer", *COMM_INTS)}
        data |= {name: texts.gather(columns[name]) for name in (*COMM_TEXTS, *COMM_RAW)}
        size = width.gather(columns["dtype"])
        data["in_bytes"], data["out_bytes"] = data["in_elems"] * size, data["out_elems"] * size
        return _narrowed(pl.DataFrame(data), "comm_args").sort("event")

    def _copies(self, event_of: Ints) -> pl.DataFrame:
        columns = self._reader.copies
        if not columns:
            return tables.empty("copies")
        row = np.array(columns["row"])
        position = np.full(len(event_of), -1)
        position[self._rows["row"]] = np.arange(len(self._rows["row"]))
        texts = self._reader.names.texts()
        way_of = [found[1] if (found := _WAY.match(text)) else None for text in texts]
        name = self._rows["name"][position[row]]
        named = pl.Series(way_of, dtype=pl.String).gather(name)
        spelled = pl.Series([text_of(value) for value in columns["direction"]], dtype=pl.String).replace(_DIRECTIONS)
        data = {
            "event": event_of[row],
            "bytes": nullable(ints(columns["bytes"])),
            "direction": named.zip_with(named.is_not_null(), spelled),
            "copied": np.isin(self._rows["kind"][position[row]], [CATEGORY_CODE["memcpy"], CATEGORY_CODE["memset"]]),
        }
        return pl.DataFrame(data).filter("copied").drop("copied").sort("event")

    def _syncs(self, event_of: Ints) -> pl.DataFrame:
        columns = self._reader.syncs
        if not columns:
            return tables.empty("syncs")
        data: dict[str, object] = {"event": event_of[np.array(columns["row"])]}
        data["sync_kind"] = pl.Series([text_of(value) for value in columns["sync_kind"]], dtype=pl.String)
        for name in SYNC_INTS:
            values = ints(columns[name])
            data[name] = nullable(np.where(values < 0, NULL, values))  # -1: the whole context
        return pl.DataFrame(data).sort("event")

    def _counters(self) -> pl.DataFrame:
        parts = []
        if self._reader.memory:
            columns = joined(self._reader.memory)
            labels = zip(columns["pid"].tolist(), columns["tid"].tolist(), strict=True)
            track_of = {
                pair: self._memory_track(self._process_texts[pair[0]], self._thread_texts[pair[1]])
                for pair in dict.fromkeys(labels)
            }
            pairs = zip(columns["pid"].tolist(), columns["tid"].tolist(), strict=True)
            track = pl.Series([track_of[pair] for pair in pairs], dtype=pl.Int32)
            for order, (field, name) in enumerate(MEMORY.items()):
                told = columns[field] != NULL
                parts.append(
                    pl.DataFrame(
                        {
                            "at_ns": columns["at"][told],
                            "track": track.filter(pl.Series(told)),
                            "name": pl.Series([name], dtype=tables.Text).new_from_index(0, int(told.sum())),
                            "device": nullable(columns["device"][told]).cast(pl.Int32, strict=False),
                            "value": columns[field][told],
                            "row": np.flatnonzero(told) * len(MEMORY) + order,
                        }
                    )
                )
        if self._reader.counts:
            parts.append(self._other_counters())
        if not parts:
            return tables.empty("counters")
        return pl.concat(parts).sort("at_ns", "row").drop("row")

    def _memory_track(self, process: str, thread: str) -> int:
        return self._track_numbers[_CPU, process, thread]

    def _other_counters(self) -> pl.DataFrame:
        """Return the counters that other tools add: each number of `args` is one."""
        counts = self._reader.counts
        at = texts_to_ns([event.ts for event in counts])
        rows: list[tuple[int, str, int]] = []
        for event, time in zip(counts, at.tolist(), strict=True):
            args = json_value(bytes(event.args))
            for key, value in args.items() if isinstance(args, dict) and time != NULL else ():
                if isinstance(value, (int, float)) and abs(value) < -NULL:
                    rows.append((time, f"{text_of(event.name) or ''} {key}".strip(), round(value)))
        first = len(self._reader.memory) * len(MEMORY) + (1 << 40)
        return pl.DataFrame(
            {
                "at_ns": pl.Series([row[0] for row in rows], dtype=pl.Int64),
                "track": pl.Series([None] * len(rows), dtype=pl.Int32),
                "name": pl.Series([row[1] for row in rows], dtype=tables.Text),
                "device": pl.Series([None] * len(rows), dtype=pl.Int32),
                "value": pl.Series([row[2] for row in rows], dtype=pl.Int64),
                "row": np.arange(len(rows)) + first,
            }
        )


def _natural(label: tuple[int, str, str]) -> tuple[int, int, str, int, str]:
    """Order by kind, then by numbers where they are numbers, else by text."""
    side, process, thread = label
    return side, _order(process), process, _order(thread), thread


def _order(text: str) -> int:
    number = _stream(text)
    return -NULL if number is None else number


def _stream(text: str) -> int | None:
    """Return the number of a stream written `7` or `stream 7`; null for the whole context (-1) and other texts."""
    found = _STREAM.match(text)
    return int(found[1]) if found else None


def _label(args: bytes | None, key: str) -> str | None:
    value = json_value(args) if args else None
    text = value.get(key) if isinstance(value, dict) else None
    return text.strip() or None if isinstance(text, str) else None


def _narrowed(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return integers that do not fit the data model's narrower columns as null."""
    columns = tables.SCHEMAS[name].columns
    narrow = [column for column in table.columns if columns[column].dtype == pl.Int32]
    return table.with_columns(pl.col(column).cast(pl.Int32, strict=False) for column in narrow)
