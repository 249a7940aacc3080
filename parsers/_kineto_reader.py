"""One pass over the events of a Kineto trace: chunk by chunk into columns, in the order of the file."""

from __future__ import annotations

from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from tracetool.parsers._kineto_format import (  # type: ignore[import-not-found]  # mapped at install time
    COMM_INTS,
    COMM_MARKS,
    COMM_RAW,
    COMM_TEXTS,
    FLOWS,
    LIST_DECODERS,
    MEMORY,
    NAMES_OF_2021,
    ONE,
    RARE,
    SHAPE_KEYS,
    SHAPES,
    SYNC_INTS,
    CommArgs,
    Complete,
    CompleteText,
    CopyArgs,
    Count,
    Instant,
    InstantText,
    LaunchArgs,
    MemoryArgs,
    Meta,
    Odd,
    OpArgs,
    SyncArgs,
    args_type,
    decode,
)

from tracetool.raw.rawcolumns import NULL, Codes, append, extend, ints, texts_to_ns, us_to_ns

if TYPE_CHECKING:
    from msgspec import Raw
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


_LONGEST_NS: Final = 10**15
"""An event of more than 11 days is a damaged number; sums of such numbers leave int64."""


class Reader:
    """Decodes chunks of events and keeps their columns, in file order."""

    def __init__(self) -> None:
        self.seen = 0
        self.lost: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.replaced_args = 0
        self.odd_args = 0
        self.categories = Codes()
        self.names = Codes()
        self.pids = Codes()
        self.tids = Codes()
        self.args_texts = Codes({b"": 0})
        self.rows = 0
        self.events: dict[str, list[NDArray[Any]]] = {}
        self.ops: dict[str, list[NDArray[Any]]] = {}
        self.copies: dict[str, list[Any]] = {}
        self.syncs: dict[str, list[Any]] = {}
        self.comms: dict[str, list[NDArray[Any]]] = {}
        self.comm_texts = Codes()
        """Texts of communications as they were decoded; raw JSON as bytes, so that no chunk is kept alive."""
        self.memory: dict[str, list[NDArray[Any]]] = {}
        self.instants: dict[str, list[NDArray[Any]]] = {}
        self.counts: list[Count] = []
        self.thread_names: dict[tuple[str, str], bytes] = {}
        self.labels: dict[str, bytes] = {}
        self._data = b""
        self._text_times = False

    def decode(self, data: bytes) -> list[Any]:
        """Decode the text of a JSON array; raises msgspec.DecodeError or UnicodeDecodeError on broken text."""
        self._data = data
        events: list[Any] = decode(data, text_times=self._text_times)
        return events

    def take(self, events: list[Any]) -> None:
        """Keep the columns of what `decode` returned last."""
        complete, instant = (CompleteText, InstantText) if self._text_times else (Complete, Instant)
        xs = [event for event in events if type(event) is complete]
        others = [event for event in events if type(event) is not complete] if len(xs) < len(events) else []
        instants = [event for event in others if type(event) is instant]
        categories = [event.cat for event in xs]
        frames = categories.count("python_function")
        if frames:
            xs = [event for event in xs if event.cat != "python_function"]
            categories = [event.cat for event in xs]
        start = self._times([event.ts for event in xs])
        dur = self._times([event.dur for event in xs])
        at = self._times([event.ts for event in instants])
        if start is None or dur is None or at is None:
            self._text_times = True  # from here on; this chunk is decoded again
            self.take(decode(self._data, text_times=True))
            return
        self.seen += len(events)
        self.left_out["python_function"] += frames
        if instants:
            self._take_instants(instants, at)
        if len(others) > len(instants) and not FLOWS.issuperset(map(type, others)):
            self._take_others(others)
        good = (start != NULL) & (dur >= 0) & (dur <= _LONGEST_NS)
        if not good.all():
            self.lost["time"] += int((start == NULL).sum())
            self.lost["long"] += int(((start != NULL) & (dur > _LONGEST_NS)).sum())
            self.lost["duration"] += int(((start != NULL) & (dur == NULL)).sum())
            self.lost["negative"] += int(((start != NULL) & (dur < 0) & (dur != NULL)).sum())
            xs = [event for event, keep in zip(xs, good.tolist(), strict=True) if keep]
            categories = [event.cat for event in xs]
            start, dur = start[good], dur[good]
        if xs:
            self._take_complete(xs, categories, start, dur)

    def _times(self, values: list[Any]) -> Ints | None:
        return texts_to_ns(values) if self._text_times else us_to_ns(values)

    def _take_complete(self, xs: list[Any], categories: list[Any], start: Ints, dur: Ints) -> None:
        category = self.categories.of(categories)
        name = self.names.of([event.name for event in xs])
        correlation = np.full(len(xs), NULL)
        external = np.full(len(xs), NULL)
        kinds = (LaunchArgs, OpArgs, CopyArgs, SyncArgs)
        kind_of = np.array([kinds.index(args_type(text)) for text in self.categories])[category]
        for number, kind in enumerate(kinds):
            at = np.flatnonzero(kind_of == number)
            if not at.size:
                continue
            raws = [xs[row].args for row in at.tolist()]
            args, comms, present = self._decode_args(raws, kind)
            external[at] = ints([arg.external_id for arg in args])
            rows = at + self.rows
            if kind is OpArgs:
                self._take_ops(rows, args, present)
            else:
                correlation[at] = ints([arg.correlation for arg in args])
            if kind is CopyArgs:
                self._take_copies(rows, args)
            elif kind is SyncArgs:
                extend(self.syncs, row=rows.tolist(), **_fields(args, "sync_kind", *SYNC_INTS))
            if comms:
                self._take_comms([int(rows[i]) for i in comms], [raws[i] for i in comms])
        append(
            self.events,
            start=start,
            dur=dur,
            category=category,
            name=name,
            pid=self.pids.of([event.pid for event in xs]),
            tid=self.tids.of([event.tid for event in xs]),
            correlation=correlation,
            external=external,
        )
        self.rows += len(xs)

    def _decode_args(self, raws: list[Raw], kind: type[Any]) -> tuple[list[Any], list[int], frozenset[str]]:
        """Return the arguments, the positions of those that tell of a communication, and which shapes there are."""
        text = b",".join(raws)
        if any(name in self.categories for name in NAMES_OF_2021):
            text = text.replace(b'"external id"', b'"External id"').replace(b'"Input dims"', b'"Input Dims"')
        comms = _marked(text, raws) if kind in (LaunchArgs, OpArgs) else []
        present = frozenset(name for name, key in SHAPE_KEYS.items() if key in text) if kind is OpArgs else frozenset()
        try:
            return LIST_DECODERS[kind].decode(b"[" + text + b"]"), comms, present
        except (msgspec.DecodeError, UnicodeDecodeError):
            return [self._decode_odd_args(raw, kind) for raw in raws], comms, present

    def _decode_odd_args(self, raw: Raw, kind: type[Any]) -> Any:  # noqa: ANN401 - one of the argument types
        decoder = ONE[kind]
        try:
            return decoder.decode(raw)
        except UnicodeDecodeError:
            self.replaced_args += 1
            try:
                return decoder.decode(bytes(raw).decode("utf-8", "replace"))
            except msgspec.DecodeError:
                return kind()
        except msgspec.DecodeError:  # not an object at all
            self.odd_args += bytes(raw) != b"null"
            return kind()

    def _take_ops(self, rows: Ints, args: list[OpArgs], present: frozenset[str]) -> None:
        columns: dict[str, NDArray[Any]] = {
            "sequence": ints([arg.sequence for arg in args]),
            "fwd_thread": ints([arg.fwd_thread for arg in args]),
        }
        told = (columns["sequence"] != NULL) | (columns["fwd_thread"] != NULL)
        for name in SHAPES:
            # getattr by a C function: this is the longest column of most traces
            raws = list(map(bytes, map(attrgetter(name), args))) if name in present else []
            columns[name] = self.args_texts.of(raws) if raws else np.zeros(len(args), np.int32)
            told |= columns[name] != 0
        if told.any():
            append(self.ops, row=rows[told], **{name: values[told] for name, values in columns.items()})

    def _take_copies(self, rows: Ints, args: list[CopyArgs]) -> None:
        size = ints([arg.bytes for arg in args])
        size = np.where(size == NULL, ints([arg.size for arg in args]), size)
        direction = [arg.kind if isinstance(arg.kind, str) else arg.direction for arg in args]
        extend(self.copies, row=rows.tolist(), bytes=size.tolist(), direction=direction)

    def _take_comms(self, rows: list[int], raws: list[Raw]) -> None:
        args, *_ = self._decode_args(raws, CommArgs)
        target, source = ints([arg.target for arg in args]), ints([arg.source for arg in args])
        # both ends may be recorded: the peer is the one that is not this rank's side of the operation
        receives = np.array([isinstance(arg.op, str) and "recv" in arg.op for arg in args], dtype=np.bool_)
        first, second = np.where(receives, source, target), np.where(receives, target, source)
        append(
            self.comms,
            row=np.array(rows),
            peer=np.where(first == NULL, second, first),
            **{name: ints(list(map(attrgetter(name), args))) for name in COMM_INTS},
            **{name: self.comm_texts.of(list(map(attrgetter(name), args))) for name in COMM_TEXTS},
            **{name: self.comm_texts.of(list(map(bytes, map(attrgetter(name), args)))) for name in COMM_RAW},
        )

    def _take_instants(self, instants: list[Instant], at: Ints) -> None:
        self.lost["time"] += int((at == NULL).sum())
        is_memory = np.array([event.name == "[memory]" for event in instants])
        memory = np.flatnonzero(is_memory & (at != NULL))
        if memory.size:
            chosen = [instants[i] for i in memory.tolist()]
            args, *_ = self._decode_args([event.args for event in chosen], MemoryArgs)
            device = ints([arg.device for arg in args])
            on_host = ints([arg.device_type for arg in args]) == 0
            append(
                self.memory,
                at=at[memory],
                pid=self.pids.of([event.pid for event in chosen]),
                tid=self.tids.of([event.tid for event in chosen]),
                device=np.where(on_host, -1, device),
                **{name: ints(list(map(attrgetter(name), args))) for name in MEMORY},
            )
        others = np.flatnonzero(~is_memory & (at != NULL))
        if others.size:
            chosen = [instants[i] for i in others.tolist()]
            append(
                self.instants,
                start=at[others],
                name=self.names.of([event.name for event in chosen]),
                category=self.categories.of([event.cat or "" for event in chosen]),
                pid=self.pids.of([event.pid for event in chosen]),
                tid=self.tids.of([event.tid for event in chosen]),
            )

    def _take_others(self, events: list[Any]) -> None:
        metas = [event for event in events if type(event) is Meta]
        named = [event for event in metas if event.name == "thread_name"]
        keys = [(str(event.pid), str(event.tid)) for event in named]  # damaged ones are lists, which are no keys
        self.thread_names.update(zip(keys, [bytes(event.args) for event in named], strict=True))
        for event in metas:
            if event.name == "process_labels":
                self.labels[str(event.pid)] = bytes(event.args)
        rare = [event for event in events if type(event) in RARE]
        for event in rare:
            if type(event) is Count:
                self.counts.append(event)
            elif type(event) is Odd:
                self.lost["odd"] += 1
                self.seen -= 1
            else:
                self.left_out[event.ph] += 1


def _marked(text: bytes, raws: list[Raw]) -> list[int]:
    """Return the positions of the arguments that tell of a communication; `text` is all of them with commas between."""
    found = []
    for mark in COMM_MARKS:
        at = text.find(mark)
        while at >= 0:
            found.append(at)
            at = text.find(mark, at + 1)
    if not found:
        return []
    ends = np.cumsum(np.fromiter(map(len, raws), np.int64, len(raws)) + 1)
    positions: list[int] = np.unique(np.searchsorted(ends, found, side="right")).tolist()
    return positions


def _fields(args: list[Any], *names: str) -> dict[str, list[Any]]:
    return {name: list(map(attrgetter(name), args)) for name in names}
