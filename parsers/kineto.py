"""Reads the JSON traces of the PyTorch profiler (Kineto): CUDA, ROCm, XPU, MTIA and CPU only, 2021 to today.

Format: Chrome's Trace Event Format (document `CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU`, Google Docs) as written by
pytorch/kineto, libkineto/src/output_json.cpp, with the argument names of pytorch/pytorch,
torch/csrc/profiler/util.h and torch/csrc/profiler/kineto_shim.cpp.

What is read: complete events (`X`), instants (`i`), thread names (`M`), counters (`C`). Left out on purpose: flow
events (they repeat `correlation`), python frames (`python_function`, their number is told), the profiler's own span
(`Trace`: it becomes `ranks.trace_start_ns`/`trace_end_ns`). `[memory]` instants become rows of `counters`.

Times: the decimal text of `ts` and `dur` (µs) in integer ns. Below 2^43 µs a float64 holds 3 decimals exactly enough
(floor and rounded fraction apart); above, integers are exact and decimals are read from the text. `start_ns` is the
time as written; `ranks.base_unix_ns` is `baseTimeNanoseconds`, or 0 where the times themselves count from 1970.

Speed, against `orjson.loads` of the same bytes (CPU, one thread, garbage collector off): parse, sort and Parquet take
0.9 times its CPU on 54 MB of HTA's df_index_resolver, 0.85 times on 87 MB of its MTIA trace; peak 60 to 70 MB above
the interpreter.

`op_shapes` keeps the raw JSON text of `Input Dims`, `Input type`, `Input Strides` and `Concrete Inputs` without white
space outside strings, numbers and strings as written: `[[16,559],[],[]]`.
"""

from __future__ import annotations

import re
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import polars as pl
from msgspec import Raw, Struct

from tracetool import tables
from tracetool.commwords import dtype_bytes
from tracetool.errors import UnreadableTrace
from tracetool.jsonstream import ArrayStream
from tracetool.rawcolumns import (
    NULL,
    Codes,
    append,
    compact_json,
    extend,
    ints,
    joined,
    json_value,
    nullable,
    numbered,
    one_int,
    texts_to_ns,
    us_to_ns,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tracetool.registry import ParseOptions
    from tracetool.tables import Tables

    Ints = NDArray[np.int64]

FORMAT = "kineto"

_NO_ARGS: Final = Raw(b"{}")
_NO_TEXT: Final = Raw(b"")
_EPOCH_US: Final = 3e14
"""Times above this (the year 1979) count from 1970; base-relative ones stay within a quarter of a year."""

_CATEGORY: Final = {
    "kernel": "kernel", "Kernel": "kernel", "mtia_ccp_events": "kernel",
    "gpu_memcpy": "memcpy", "Memcpy": "memcpy", "gpu_memset": "memset", "Memset": "memset",
    "gpu_user_annotation": "gpu_annotation",
    "cpu_op": "cpu_op", "Operator": "cpu_op", "user_annotation": "annotation",
    "cuda_runtime": "runtime", "cuda_driver": "runtime", "Runtime": "runtime", "mtia_runtime": "runtime",
    "xpu_runtime": "runtime", "xpu_driver": "runtime", "glow_runtime": "runtime", "hpu_op": "runtime",
    "privateuse1_runtime": "runtime", "privateuse1_driver": "runtime",
    "cuda_sync": "sync", "xpu_sync": "sync", "overhead": "overhead", "cpu_instant_event": "instant",
}  # fmt: skip
"""Kineto's categories (libkineto/include/ActivityType.h and the names of 2021) in the data model's words."""
_ON_GPU: Final = frozenset({"kernel", "memcpy", "memset", "gpu_annotation", "sync"})
_ON_CPU: Final = frozenset({"cpu_op", "annotation", "runtime"})
_VERSIONS: Final = (
    "cupti_version", "cuda_runtime_version", "cuda_driver_version",
    "roctracer_version", "hip_runtime_version", "hip_driver_version",
)  # fmt: skip
_TOP_KEYS: Final = frozenset(
    {"deviceProperties", "distributedInfo", "baseTimeNanoseconds", "host_name", "record_shapes", "with_stack",
     "profile_memory", *_VERSIONS}
)  # fmt: skip
"""The only top-level keys that are looked at: the others may hold environments and tokens."""
_FIRST_KEYS: Final = ("ph", "name", "cat", "pid", "tid", "ts", "dur", "args")
_DIRECTIONS: Final = {"HOST_TO_DEVICE": "HtoD", "DEVICE_TO_HOST": "DtoH", "DEVICE_TO_DEVICE": "DtoD"}


# ---- what is decoded ----


class _Complete(Struct, gc=False, tag_field="ph", tag="X"):
    cat: Any = None
    name: Any = None
    pid: Any = None
    tid: Any = None
    ts: Any = None
    dur: Any = None
    args: Raw = _NO_ARGS


class _CompleteText(_Complete, gc=False, tag_field="ph", tag="X"):
    """The same with times as text: epoch µs with decimals do not fit a float64."""

    ts: Raw = _NO_TEXT
    dur: Raw = _NO_TEXT


class _Instant(Struct, gc=False, tag_field="ph", tag="i"):
    cat: Any = None
    name: Any = None
    pid: Any = None
    tid: Any = None
    ts: Any = None
    args: Raw = _NO_ARGS


class _InstantText(_Instant, gc=False, tag_field="ph", tag="i"):
    ts: Raw = _NO_TEXT


class _Meta(Struct, gc=False, tag_field="ph", tag="M"):
    name: Any = None
    pid: Any = None
    tid: Any = None
    args: Raw = _NO_ARGS


class _Count(Struct, gc=False, tag_field="ph", tag="C"):
    name: Any = None
    pid: Any = None
    tid: Any = None
    ts: Raw = _NO_TEXT
    args: Raw = _NO_ARGS


class _Skipped(Struct, gc=False):
    """An event of a phase that is not read."""

    ph: str


class _Odd(Struct, gc=False):
    """Something in the list of events that is no readable event."""


class _Flow(Struct, gc=False, tag_field="ph", tag="s"):
    pass


class _FlowStep(Struct, gc=False, tag_field="ph", tag="t"):
    pass


class _FlowEnd(Struct, gc=False, tag_field="ph", tag="f"):
    pass


class _Phase(Struct, gc=False):
    ph: Any = None


class _LaunchArgs(Struct, gc=False):
    external_id: Any = msgspec.field(default=NULL, name="External id")
    correlation: Any = NULL


class _CopyArgs(Struct, gc=False):
    external_id: Any = msgspec.field(default=NULL, name="External id")
    correlation: Any = NULL
    bytes: Any = NULL
    size: Any = NULL
    kind: Any = None
    direction: Any = None


class _OpArgs(Struct, gc=False):
    external_id: Any = msgspec.field(default=NULL, name="External id")
    sequence: Any = msgspec.field(default=NULL, name="Sequence number")
    fwd_thread: Any = msgspec.field(default=NULL, name="Fwd thread id")
    concrete_inputs: Raw = msgspec.field(default=_NO_TEXT, name="Concrete Inputs")
    input_types: Raw = msgspec.field(default=_NO_TEXT, name="Input type")
    input_strides: Raw = msgspec.field(default=_NO_TEXT, name="Input Strides")
    input_dims: Raw = msgspec.field(default=_NO_TEXT, name="Input Dims")


class _SyncArgs(Struct, gc=False):
    external_id: Any = msgspec.field(default=NULL, name="External id")
    correlation: Any = NULL
    sync_kind: Any = msgspec.field(default=None, name="cuda_sync_kind")
    stream: Any = NULL
    wait_on_stream: Any = NULL
    wait_on_correlation: Any = msgspec.field(default=NULL, name="wait_on_cuda_event_record_corr_id")


class _CommArgs(Struct, gc=False):
    op: Any = msgspec.field(default=None, name="Collective name")
    group: Any = msgspec.field(default=None, name="Process Group Name")
    group_desc: Any = msgspec.field(default=None, name="Process Group Description")
    group_ranks: Raw = msgspec.field(default=_NO_TEXT, name="Process Group Ranks")
    group_size: Any = msgspec.field(default=NULL, name="Group size")
    in_elems: Any = msgspec.field(default=NULL, name="In msg nelems")
    out_elems: Any = msgspec.field(default=NULL, name="Out msg nelems")
    dtype: Any = None
    seq: Any = msgspec.field(default=NULL, name="Seq")
    source: Any = msgspec.field(default=NULL, name="Src Rank")
    target: Any = msgspec.field(default=NULL, name="Dst Rank")
    in_split: Raw = msgspec.field(default=_NO_TEXT, name="In split size")
    out_split: Raw = msgspec.field(default=_NO_TEXT, name="Out split size")


class _MemoryArgs(Struct, gc=False):
    device: Any = msgspec.field(default=NULL, name="Device Id")
    device_type: Any = msgspec.field(default=NULL, name="Device Type")
    delta: Any = msgspec.field(default=NULL, name="Bytes")
    allocated: Any = msgspec.field(default=NULL, name="Total Allocated")
    reserved: Any = msgspec.field(default=NULL, name="Total Reserved")


_COMM_MARKS: Final = (b'"Collective name"', b'"Process Group Name"')
_SHAPE_KEYS: Final = {
    "input_dims": b'"Input Dims"', "input_types": b'"Input type"', "input_strides": b'"Input Strides"',
    "concrete_inputs": b'"Concrete Inputs"',
}  # fmt: skip
_SHAPES: Final = tuple(_SHAPE_KEYS)
_MEMORY: Final = {
    "delta": "memory_delta_bytes",
    "allocated": "memory_allocated_bytes",
    "reserved": "memory_reserved_bytes",
}
_ARGS_OF: Final = {
    "gpu_memcpy": _CopyArgs, "Memcpy": _CopyArgs, "gpu_memset": _CopyArgs, "Memset": _CopyArgs,
    "mtia_ccp_events": _CopyArgs, "cpu_op": _OpArgs, "Operator": _OpArgs, "user_annotation": _OpArgs,
    "cuda_sync": _SyncArgs, "xpu_sync": _SyncArgs,
}  # fmt: skip
_SYNC_INTS: Final = ("stream", "wait_on_stream", "wait_on_correlation")
_NAMES_OF_2021: Final = ("Kernel", "Memcpy", "Memset", "Runtime", "Operator")


# ---- the two doors ----


def sniff(path: Path, head: bytes) -> bool:
    """Say by content whether this is a Chrome trace as Kineto writes it; the name of the file does not count."""
    del path
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return bool(_SNIFF_BARE.match(text))
    if _SNIFF_KEY.search(text):
        return True
    # a long header (metadata, devices) can push the events beyond the head
    return text.startswith(b"{") and bool(_SNIFF_HEADER.search(text[:4096])) and not _SNIFF_OTHER.search(text)


_SNIFF_KEY: Final = re.compile(rb'"traceEvents"\s*:\s*\[')
_SNIFF_BARE: Final = re.compile(
    rb'\[\s*\{(?=[^\[\]]{0,4096}?"ph"\s*:\s*"[XiMCsft]")(?=[^\[\]]{0,4096}?"(?:ts|pid)"\s*:)'
)
_SNIFF_HEADER: Final = re.compile(
    rb'"(?:schemaVersion|deviceProperties|distributedInfo|traceName|baseTimeNanoseconds|record_shapes)"\s*:'
)
_SNIFF_OTHER: Final = re.compile(rb'"(?:entries|pg_status|nccl_version|coll_perf)"\s*:')


def parse(path: Path, options: ParseOptions) -> Tables:
    """Read one trace of one process into base tables; times in ns of the trace's own clock.

    Damaged events are left out and counted in `sources`. Raises UnreadableTrace when no event could be read, or when
    the file holds the merged traces of several processes: their correlation numbers cannot be told apart.
    """
    reader = _Reader()
    stream = ArrayStream(path, "traceEvents", reader.decode, first_keys=_FIRST_KEYS, wanted=_TOP_KEYS)
    try:
        for events in stream:
            reader.take(events)
    except OSError as error:
        raise UnreadableTrace(options.display_path, f"cannot be read ({error.strerror or error})") from None
    if not stream.array_found:
        reason = "no list of events (traceEvents) in it" if stream.size else "the file is empty"
        raise UnreadableTrace(options.display_path, reason, stream.size)
    damaged = not stream.repairs.complete or stream.repairs.dropped
    if not reader.seen and damaged:
        reason = "not one whole event could be read"
        raise UnreadableTrace(options.display_path, reason, stream.repairs.first_damage or stream.size)
    return _Assembly(reader, stream, options.display_path, path.stat().st_size).tables()


# ---- one pass over the events ----


class _Reader:
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
        self.comms: dict[str, list[Any]] = {}
        self.memory: dict[str, list[NDArray[Any]]] = {}
        self.instants: dict[str, list[NDArray[Any]]] = {}
        self.counts: list[_Count] = []
        self.thread_names: dict[tuple[Any, Any], bytes] = {}
        self.labels: dict[str, bytes] = {}
        self._data = b""
        self._text_times = False

    def decode(self, data: bytes) -> list[Any]:
        """Decode the text of a JSON array; raises msgspec.DecodeError or UnicodeDecodeError on broken text."""
        self._data = data
        return _decode(data, text_times=self._text_times)

    def take(self, events: list[Any]) -> None:
        """Keep the columns of what `decode` returned last."""
        complete, instant = (_CompleteText, _InstantText) if self._text_times else (_Complete, _Instant)
        xs = [event for event in events if type(event) is complete]
        others = len(events) - len(xs)
        instants = [event for event in events if type(event) is instant] if others else []
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
            self.take(_decode(self._data, text_times=True))
            return
        self.seen += len(events)
        self.left_out["python_function"] += frames
        if instants:
            self._take_instants(instants, at)
        if others > len(instants):
            self._take_others(events)
        good = (start != NULL) & (dur >= 0)
        if not good.all():
            self.lost["time"] += int((start == NULL).sum())
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
        kinds = (_LaunchArgs, _OpArgs, _CopyArgs, _SyncArgs)
        kind_of = np.array([kinds.index(_args_type(text)) for text in self.categories])[category]
        for number, kind in enumerate(kinds):
            at = np.flatnonzero(kind_of == number)
            if not at.size:
                continue
            raws = [xs[row].args for row in at.tolist()]
            args, comms, present = self._decode_args(raws, kind)
            external[at] = ints([arg.external_id for arg in args])
            rows = at + self.rows
            if kind is _OpArgs:
                self._take_ops(rows, args, present)
            else:
                correlation[at] = ints([arg.correlation for arg in args])
            if kind is _CopyArgs:
                self._take_copies(rows, args)
            elif kind is _SyncArgs:
                extend(self.syncs, row=rows.tolist(), **_fields(args, "sync_kind", *_SYNC_INTS))
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
        if any(name in self.categories for name in _NAMES_OF_2021):
            text = text.replace(b'"external id"', b'"External id"')
        comms: list[int] = []
        if kind in (_LaunchArgs, _OpArgs) and any(mark in text for mark in _COMM_MARKS):
            comms = [i for i, raw in enumerate(raws) if any(mark in bytes(raw) for mark in _COMM_MARKS)]
        present = (
            frozenset(name for name, key in _SHAPE_KEYS.items() if key in text) if kind is _OpArgs else frozenset()
        )
        try:
            return _LIST_DECODERS[kind].decode(b"[" + text + b"]"), comms, present
        except (msgspec.DecodeError, UnicodeDecodeError):
            return [self._decode_odd_args(raw, kind) for raw in raws], comms, present

    def _decode_odd_args(self, raw: Raw, kind: type[Any]) -> Any:  # noqa: ANN401 - one of the argument types
        decoder = _ONE[kind]
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

    def _take_ops(self, rows: Ints, args: list[_OpArgs], present: frozenset[str]) -> None:
        columns: dict[str, NDArray[Any]] = {
            "sequence": ints([arg.sequence for arg in args]),
            "fwd_thread": ints([arg.fwd_thread for arg in args]),
        }
        told = (columns["sequence"] != NULL) | (columns["fwd_thread"] != NULL)
        for name in _SHAPES:
            # getattr by a C function: this is the longest column of most traces
            raws = list(map(bytes, map(attrgetter(name), args))) if name in present else []
            columns[name] = self.args_texts.of(raws) if raws else np.zeros(len(args), np.int32)
            told |= columns[name] != 0
        if told.any():
            append(self.ops, row=rows[told], **{name: values[told] for name, values in columns.items()})

    def _take_copies(self, rows: Ints, args: list[_CopyArgs]) -> None:
        size = ints([arg.bytes for arg in args])
        size = np.where(size == NULL, ints([arg.size for arg in args]), size)
        direction = [arg.kind if isinstance(arg.kind, str) else arg.direction for arg in args]
        extend(self.copies, row=rows.tolist(), bytes=size.tolist(), direction=direction)

    def _take_comms(self, rows: list[int], raws: list[Raw]) -> None:
        args, *_ = self._decode_args(raws, _CommArgs)
        fields = _fields(args, *(name for name in _CommArgs.__struct_fields__ if name not in ("source", "target")))
        target, source = ints([arg.target for arg in args]), ints([arg.source for arg in args])
        # both ends may be recorded: the peer is the one that is not this rank's side of the operation
        receives = np.array([isinstance(arg.op, str) and "recv" in arg.op for arg in args], dtype=np.bool_)
        first, second = np.where(receives, source, target), np.where(receives, target, source)
        extend(self.comms, row=rows, peer=np.where(first == NULL, second, first).tolist(), **fields)

    def _take_instants(self, instants: list[_Instant], at: Ints) -> None:
        self.lost["time"] += int((at == NULL).sum())
        is_memory = np.array([event.name == "[memory]" for event in instants])
        memory = np.flatnonzero(is_memory & (at != NULL))
        if memory.size:
            chosen = [instants[i] for i in memory.tolist()]
            args, *_ = self._decode_args([event.args for event in chosen], _MemoryArgs)
            device = ints([arg.device for arg in args])
            on_host = ints([arg.device_type for arg in args]) == 0
            append(
                self.memory,
                at=at[memory],
                pid=self.pids.of([event.pid for event in chosen]),
                tid=self.tids.of([event.tid for event in chosen]),
                device=np.where(on_host, -1, device),
                **{name: ints([getattr(arg, name) for arg in args]) for name in _MEMORY},
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
        metas = [event for event in events if type(event) is _Meta]
        named = [event for event in metas if event.name == "thread_name"]
        keys = zip([event.pid for event in named], [event.tid for event in named], strict=True)
        self.thread_names.update(zip(keys, [bytes(event.args) for event in named], strict=True))
        for event in metas:
            if event.name == "process_labels":
                self.labels[str(event.pid)] = bytes(event.args)
        rare = [event for event in events if type(event) in _RARE]
        for event in rare:
            if type(event) is _Count:
                self.counts.append(event)
            elif type(event) is _Odd:
                self.lost["odd"] += 1
                self.seen -= 1
            else:
                self.left_out[event.ph] += 1


# ---- decoding ----

_RARE: Final = frozenset({_Count, _Odd, _Skipped})
_READ: Final = ("X", "i", "M", "C", "s", "t", "f")
_LIST_DECODERS: Final = {
    kind: msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]  # a class held in a variable
    for kind in (_LaunchArgs, _CopyArgs, _OpArgs, _SyncArgs, _CommArgs, _MemoryArgs)
}
_ONE: Final = {kind: msgspec.json.Decoder(kind) for kind in _LIST_DECODERS}
_EVENTS: Final = msgspec.json.Decoder(list[_Complete | _Instant | _Meta | _Count | _Flow | _FlowStep | _FlowEnd])
_EVENTS_TEXT: Final = msgspec.json.Decoder(
    list[_CompleteText | _InstantText | _Meta | _Count | _Flow | _FlowStep | _FlowEnd]
)
_EVENT: Final = msgspec.json.Decoder(_Complete | _Instant | _Meta | _Count | _Flow | _FlowStep | _FlowEnd)
_EVENT_TEXT: Final = msgspec.json.Decoder(_CompleteText | _InstantText | _Meta | _Count | _Flow | _FlowStep | _FlowEnd)
_RAWS: Final = msgspec.json.Decoder(list[Raw])
_PHASE: Final = msgspec.json.Decoder(_Phase)


def _decode(data: bytes, *, text_times: bool) -> list[Any]:
    """Decode the text of a JSON array of events; entries that are no event of a known phase become _Skipped or _Odd."""
    try:
        return (_EVENTS_TEXT if text_times else _EVENTS).decode(data)
    except msgspec.ValidationError:
        one = _EVENT_TEXT if text_times else _EVENT
        return [_decode_one(raw, one) for raw in _RAWS.decode(data)]


def _decode_one(raw: Raw, decoder: msgspec.json.Decoder[Any]) -> Any:  # noqa: ANN401 - one of the event types
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError:
        try:
            phase = _PHASE.decode(raw).ph
        except msgspec.ValidationError:
            return _Odd()
        known = isinstance(phase, str) and phase not in _READ
        return _Skipped(phase[:8]) if known and phase else _Odd()


def _args_type(category: object) -> type[Any]:
    return _ARGS_OF.get(category, _LaunchArgs) if isinstance(category, str) else _LaunchArgs


def _fields(args: list[Any], *names: str) -> dict[str, list[Any]]:
    return {name: [getattr(arg, name) for arg in args] for name in names}


# ---- columns to tables ----

_CATEGORY_CODE: Final = {name: code for code, name in enumerate(tables.CATEGORIES)}
_GPU, _CPU, _OTHER = range(len(tables.TRACK_KINDS))
_ALWAYS: Final = ("events", "tracks", "ranks", "sources")


class _Assembly:
    """Makes the base tables of one trace from what the reader kept."""

    def __init__(self, reader: _Reader, stream: ArrayStream[Any], display_path: str, file_bytes: int) -> None:
        self._reader = reader
        self._stream = stream
        self._path = display_path
        self._bytes = file_bytes
        self._notes: list[str] = []
        self._top = {key: json_value(text) for key, text in stream.values.items()}
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
        event_of = np.full(int(rows["row"].max(initial=-1)) + 1, -1)
        event_of[rows["row"][order]] = np.arange(len(order))
        result = {
            "events": self._events(order),
            "tracks": self._tracks,
            "op_shapes": self._op_shapes(event_of),
            "comm_args": self._comm_args(event_of),
            "copies": self._copies(event_of),
            "syncs": self._syncs(event_of),
            "counters": self._counters(),
            "process_groups": self._process_groups(),
            "ranks": self._ranks(),
        }
        result["sources"] = self._sources(result["events"].height)
        rank = self._rank()
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
        rows["row"] = np.arange(len(rows["start"]))
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
        kinds = np.array([_CATEGORY_CODE[_CATEGORY.get(text, "other")] for text in texts], np.uint8)
        codes = rows["category"]
        rows["kind"] = kinds[codes] if len(codes) else np.zeros(0, np.uint8)
        rows["kind"][rows["instant"]] = _CATEGORY_CODE["instant"]
        if "mtia_ccp_events" in reader.categories and "dma_request" in reader.names:
            moved = (codes == reader.categories["mtia_ccp_events"]) & (rows["name"] == reader.names["dma_request"])
            rows["kind"][moved] = _CATEGORY_CODE["memcpy"]
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
            rows = {name: values[~span] for name, values in rows.items()}
        return rows

    def _number_tracks(self) -> tuple[pl.DataFrame, NDArray[np.int32]]:
        """Return table `tracks` and the track of every row."""
        rows = self._rows
        side_of = np.full(len(tables.CATEGORIES), _OTHER)
        side_of[[_CATEGORY_CODE[name] for name in _ON_GPU]] = _GPU
        side_of[[_CATEGORY_CODE[name] for name in _ON_CPU]] = _CPU
        side = side_of[rows["kind"]]
        processes, threads = max(len(self._process_texts), 1), max(len(self._thread_texts), 1)
        pair = rows["pid"].astype(np.int64) * threads + rows["tid"]
        key = side * (processes * threads) + pair
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
        names = {(str(pid), str(tid)): args for (pid, tid), args in self._reader.thread_names.items()}
        on_gpu = [label[0] == _GPU for label in distinct]
        table = pl.DataFrame(
            {
                "track": np.arange(len(distinct), dtype=np.int32),
                "kind": [tables.TRACK_KINDS[label[0]] for label in distinct],
                "process": [label[1] for label in distinct],
                "thread": [label[2] for label in distinct],
                "device": [_small(label[1]) if gpu else None for label, gpu in zip(distinct, on_gpu, strict=True)],
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
        runtime = rows["kind"] == _CATEGORY_CODE["runtime"]
        on_gpu = np.isin(rows["kind"], [_CATEGORY_CODE[name] for name in tables.GPU_ACTIVITY])
        launched = runtime & np.isin(rows["correlation"], rows["correlation"][on_gpu & (rows["correlation"] != NULL)])
        evidence = launched if launched.any() else rows["kind"] == _CATEGORY_CODE["cpu_op"]
        count = Counter[str]()
        for code, number in enumerate(np.bincount(rows["pid"][evidence]).tolist()):
            if number and self._process_texts[code]:  # an event whose number is damaged is of no process
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
        rows = self._rows
        names = pl.Series(self._reader.names.texts(), dtype=pl.String).cast(tables.Text)
        return pl.DataFrame(
            {
                "event": np.arange(len(order)),
                "track": self._track_of[order],
                "start_ns": rows["start"][order],
                "dur_ns": rows["dur"][order],
                "category": pl.Series(tables.CATEGORIES, dtype=tables.Category).gather(rows["kind"][order]),
                "name": names.gather(rows["name"][order]),
                "correlation": nullable(rows["correlation"][order]),
                "external_id": nullable(rows["external"][order]),
            }
        )

    def _op_shapes(self, event_of: Ints) -> pl.DataFrame:
        if not self._reader.ops:
            return tables.empty("op_shapes")
        columns = joined(self._reader.ops)
        event = event_of[columns["row"]]
        order = np.argsort(event)
        texts = pl.Series([compact_json(text) for text in self._reader.args_texts], dtype=pl.String).cast(tables.Text)
        data = {name: texts.gather(columns[name][order]) for name in _SHAPES}
        data |= {name: nullable(columns[name][order]) for name in ("sequence", "fwd_thread")}
        return pl.DataFrame({"event": event[order], **data})

    def _comm_args(self, event_of: Ints) -> pl.DataFrame:
        columns = self._reader.comms
        if not columns:
            return tables.empty("comm_args")
        width = [dtype_bytes(text) if isinstance(text, str) else None for text in columns["dtype"]]
        data: dict[str, pl.Series] = {"event": pl.Series(event_of[np.array(columns["row"])])}
        for name in ("group_size", "in_elems", "out_elems", "seq", "peer"):
            data[name] = nullable(ints(columns[name]))
        for name in ("op", "group", "group_desc", "group_ranks", "dtype", "in_split", "out_split"):
            data[name] = pl.Series([_text(value) for value in columns[name]], dtype=pl.String)
        size = pl.Series(width, dtype=pl.Int64)
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
        spelled = pl.Series([_text(value) for value in columns["direction"]], dtype=pl.String).replace(_DIRECTIONS)
        data = {
            "event": event_of[row],
            "bytes": nullable(ints(columns["bytes"])),
            "direction": named.zip_with(named.is_not_null(), spelled),
            "copied": np.isin(self._rows["kind"][position[row]], [_CATEGORY_CODE["memcpy"], _CATEGORY_CODE["memset"]]),
        }
        return pl.DataFrame(data).filter("copied").drop("copied").sort("event")

    def _syncs(self, event_of: Ints) -> pl.DataFrame:
        columns = self._reader.syncs
        if not columns:
            return tables.empty("syncs")
        data: dict[str, object] = {"event": event_of[np.array(columns["row"])]}
        data["sync_kind"] = pl.Series([_text(value) for value in columns["sync_kind"]], dtype=pl.String)
        for name in _SYNC_INTS:
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
            for order, (field, name) in enumerate(_MEMORY.items()):
                told = columns[field] != NULL
                parts.append(
                    pl.DataFrame(
                        {
                            "at_ns": columns["at"][told],
                            "track": track.filter(pl.Series(told)),
                            "name": pl.Series([name], dtype=tables.Text).new_from_index(0, int(told.sum())),
                            "device": nullable(columns["device"][told]).cast(pl.Int32, strict=False),
                            "value": columns[field][told],
                            "row": np.flatnonzero(told) * len(_MEMORY) + order,
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
                    rows.append((time, f"{_text(event.name) or ''} {key}".strip(), round(value)))
        first = len(self._reader.memory) * len(_MEMORY) + (1 << 40)
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

    def _process_groups(self) -> pl.DataFrame:
        info = self._top.get("distributedInfo")
        groups = info.get("pg_config") if isinstance(info, dict) else None
        found: dict[str, dict[str, object]] = {}
        for group in groups if isinstance(groups, list) else ():
            if not isinstance(group, dict) or group.get("pg_name") is None:
                continue
            ranks = group.get("ranks")
            good = isinstance(ranks, list) and all(_small_int(rank) is not None for rank in ranks)
            found[str(group["pg_name"])] = {
                "group": str(group["pg_name"]),
                "desc": _text(group.get("pg_desc")),
                "ranks": ranks if good else None,
                "size": _small_int(group.get("pg_size")),
            }
        schema: pl._typing.SchemaDict = {
            "group": pl.String,
            "desc": pl.String,
            "ranks": pl.List(pl.Int32),
            "size": pl.Int32,
        }
        return pl.DataFrame(list(found.values()), schema=schema)

    # ---- one row ----

    def _distributed(self, key: str) -> object:
        info = self._top.get("distributedInfo")
        return info.get(key) if isinstance(info, dict) else None

    def _rank(self) -> pl.Expr:
        rank = _small_int(self._distributed("rank"))
        return pl.lit(-1 if rank is None or rank < 0 else rank, dtype=pl.Int32)

    def _ranks(self) -> pl.DataFrame:
        rank = _small_int(self._distributed("rank"))
        device = self._device()
        name, memory = self._device_properties(device)
        world = _small_int(self._distributed("world_size"))
        host = _text(self._top.get("host_name"))
        versions = [(key.removesuffix("_version"), self._top.get(key)) for key in _VERSIONS]
        versions.append(("nccl", self._distributed("nccl_version")))
        window = self._window or self._instant_window()
        return tables.frame(
            "ranks",
            {
                "rank": [-1],
                "rank_source": ["metadata" if rank is not None and rank >= 0 else None],
                "world_size": [world if world and world > 0 else None],
                "host": [host or None],
                "host_source": ["metadata" if host else None],
                "pid": [self._pid()],
                "device": [device],
                "device_name": [name],
                "device_memory_bytes": [memory],
                "base_unix_ns": [self._base()],
                "versions": [
                    ", ".join(f"{key} {value}" for key, value in versions if isinstance(value, (int, float, str)))
                    or None
                ],
                "backend": [_text(self._distributed("backend"))],
                "format": [FORMAT],
                "record_shapes": [self._flag("record_shapes")],
                "with_stack": [self._with_stack()],
                "profile_memory": [self._flag("profile_memory")],
                "trace_start_ns": [window[0] if window else None],
                "trace_end_ns": [window[1] if window else None],
            },
        )

    def _with_stack(self) -> bool | None:
        return True if self._reader.left_out["python_function"] else self._flag("with_stack")

    def _flag(self, key: str) -> bool | None:
        value = self._top.get(key)
        return bool(value) if isinstance(value, (bool, int)) else None

    def _base(self) -> int | None:
        """Return the Unix time of clock value 0, ns; null when neither the file nor its times tell."""
        base = self._top.get("baseTimeNanoseconds")
        starts = self._rows["start"]
        if len(starts) and int(np.median(starts)) > _EPOCH_US * 1000:
            if isinstance(base, int) and base:
                self._notes.append("baseTimeNanoseconds was not added: the times themselves count from 1970")
            return 0
        return base if isinstance(base, int) and abs(base) < -NULL else None

    def _pid(self) -> int | None:
        """Return the process that most CPU events name."""
        cpu = np.isin(self._rows["kind"], [_CATEGORY_CODE[name] for name in _ON_CPU])
        found = np.bincount(self._rows["pid"][cpu])
        return _small_int(one_int(self._process_texts[int(found.argmax())])) if found.size else None

    def _device(self) -> int | None:
        """Return the device on which most GPU activities ran."""
        on_gpu = np.isin(self._rows["kind"], [_CATEGORY_CODE[name] for name in tables.GPU_ACTIVITY])
        found = np.bincount(self._rows["pid"][on_gpu])
        return _small(self._process_texts[int(found.argmax())]) if found.size else None

    def _device_properties(self, device: int | None) -> tuple[str | None, int | None]:
        """Return name and memory of the device; on ROCm ids count CPUs too, so equal devices stand for each other."""
        given = self._top.get("deviceProperties")
        devices = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
        told = {(_text(item.get("name")) or None, _positive(item.get("totalGlobalMem"))) for item in devices}
        if len(told) == 1:
            return next(iter(told))
        for item in devices:
            if device is not None and item.get("id") == device:
                return _text(item.get("name")) or None, _positive(item.get("totalGlobalMem"))
        return None, None

    def _instant_window(self) -> tuple[int, int] | None:
        names = self._reader.names
        instant = self._rows["instant"]
        begins = [code for name, code in names.items() if isinstance(name, str) and name.startswith("Iteration Start:")]
        start = self._rows["start"][instant & np.isin(self._rows["name"], begins)]
        end = self._rows["start"][instant & (self._rows["name"] == names.get("Record Window End", -1))]
        return (int(start.min()), int(end.max())) if start.size and end.size else None

    def _sources(self, events: int) -> pl.DataFrame:
        reader, repairs = self._reader, self._stream.repairs
        lost = {what: number for what, number in reader.lost.items() if number}
        dropped = repairs.dropped + sum(lost.values())
        repaired = (
            repairs.replaced_bytes
            + repairs.not_numbers
            + repairs.trailing_commas
            + reader.replaced_args
            + reader.odd_args
        )
        texts = {
            "time": "without a readable time",
            "duration": "without a duration",
            "negative": "with a negative duration",
            "odd": "that are no events of the format",
        }
        told = [f"{number:,} dropped {texts[what]}" for what, number in sorted(lost.items())]
        if repairs.dropped:
            told.append(
                f"{repairs.dropped:,} dropped whose text is damaged, the first near byte {repairs.first_damage:,}"
            )
        if repairs.not_numbers:
            told.append(f"{repairs.not_numbers:,} values NaN or Infinity read as null")
        if repairs.replaced_bytes + reader.replaced_args:
            told.append(f"{repairs.replaced_bytes + reader.replaced_args:,} texts that are not UTF-8: bytes replaced")
        if reader.odd_args:
            told.append(f"{reader.odd_args:,} arguments that are no object were ignored")
        if repairs.trailing_commas:
            told.append("a comma before the end of the events was ignored")
        for what, number in sorted(reader.left_out.items()):
            if what == "python_function" and number:
                told.append(f"{number:,} python frames left out")
            elif number:
                told.append(f'{number:,} events of phase "{what}" left out')
        notes = [*repairs.notes, *told, *self._notes]
        if not events:
            notes.append("the list of events is empty")
        return tables.frame(
            "sources",
            {
                "path": [self._path],
                "format": [FORMAT],
                "bytes": [self._bytes],
                "events": [events],
                "dropped": [dropped],
                "repaired": [repaired],
                "complete": [repairs.complete],
                "notes": [notes],
            },
        )


# ---- small conversions ----

_MOST_NAMED: Final = 8
_SHARE_OF_A_PROCESS: Final = 0.05
_KNOWN: Final = frozenset({*_CATEGORY, "Trace", "python_function"})
_WAY: Final = re.compile(r"Memcpy (\w+)")
_STREAM: Final = re.compile(r"(?:stream\s*)?(\d{1,18})\s*$")


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


def _small(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None


def _small_int(value: object) -> int | None:
    number = one_int(value)
    return number if abs(number) < 1 << 31 else None


def _positive(value: object) -> int | None:
    number = one_int(value)
    return number if number > 0 else None


def _label(args: bytes | None, key: str) -> str | None:
    value = json_value(args) if args else None
    text = value.get(key) if isinstance(value, dict) else None
    return text.strip() or None if isinstance(text, str) else None


def _text(value: object) -> str | None:
    """Return a text as it is, the raw JSON of anything else, None for nothing."""
    if isinstance(value, Raw):
        raw = bytes(value)
        plain = json_value(raw) if raw.startswith(b'"') else None
        return plain if isinstance(plain, str) else compact_json(raw)
    return None if value is None else str(value)


def _narrowed(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return integers that do not fit the data model's narrower columns as null."""
    columns = tables.SCHEMAS[name].columns
    narrow = [column for column in table.columns if columns[column].dtype == pl.Int32]
    return table.with_columns(pl.col(column).cast(pl.Int32, strict=False) for column in narrow)
