"""The events of a Kineto trace as they are decoded: only the fields that are wanted, arguments by category.

Format: see kineto.py. Arguments stay raw text until their category is known: of most events two fields are wanted.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from tracetool import tables
from tracetool.raw.rawcolumns import NULL

_NO_ARGS: Final = Raw(b"{}")
NO_TEXT: Final = Raw(b"")

CATEGORY: Final = {
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
CATEGORY_CODE: Final = {name: code for code, name in enumerate(tables.CATEGORIES)}
ON_GPU: Final = frozenset({"kernel", "memcpy", "memset", "gpu_annotation", "sync"})
ON_CPU: Final = frozenset({"cpu_op", "annotation", "runtime"})


class Complete(Struct, gc=False, tag_field="ph", tag="X"):
    cat: Any = None
    name: Any = None
    pid: Any = None
    tid: Any = None
    ts: Any = None
    dur: Any = None
    args: Raw = _NO_ARGS


class CompleteText(Complete, gc=False, tag_field="ph", tag="X"):
    """The same with times as text: epoch µs with decimals do not fit a float64."""

    ts: Raw = NO_TEXT
    dur: Raw = NO_TEXT


class Instant(Struct, gc=False, tag_field="ph", tag="i"):
    cat: Any = None
    name: Any = None
    pid: Any = None
    tid: Any = None
    ts: Any = None
    args: Raw = _NO_ARGS


class InstantText(Instant, gc=False, tag_field="ph", tag="i"):
    ts: Raw = NO_TEXT


class Meta(Struct, gc=False, tag_field="ph", tag="M"):
    name: Any = None
    pid: Any = None
    tid: Any = None
    args: Raw = _NO_ARGS


class Count(Struct, gc=False, tag_field="ph", tag="C"):
    name: Any = None
    pid: Any = None
    tid: Any = None
    ts: Raw = NO_TEXT
    args: Raw = _NO_ARGS


class Skipped(Struct, gc=False):
    """An event of a phase that is not read."""

    ph: str


class Odd(Struct, gc=False):
    """Something in the list of events that is no readable event."""


class _Flow(Struct, gc=False, tag_field="ph", tag="s"):
    pass


class _FlowStep(Struct, gc=False, tag_field="ph", tag="t"):
    pass


class _FlowEnd(Struct, gc=False, tag_field="ph", tag="f"):
    pass


class _Phase(Struct, gc=False):
    ph: Any = None


class LaunchArgs(Struct, gc=False):
    external_id: Any = msgspec.field(default=NULL, name="External id")
    correlation: Any = NULL


class CopyArgs(Struct, gc=False):
    external_id: Any = msgspec.field(default=NULL, name="External id")
    correlation: Any = NULL
    bytes: Any = NULL
    size: Any = NULL
    kind: Any = None
    direction: Any = None


class OpArgs(Struct, gc=False):
    external_id: Any = msgspec.field(default=NULL, name="External id")
    sequence: Any = msgspec.field(default=NULL, name="Sequence number")
    fwd_thread: Any = msgspec.field(default=NULL, name="Fwd thread id")
    concrete_inputs: Raw = msgspec.field(default=NO_TEXT, name="Concrete Inputs")
    input_types: Raw = msgspec.field(default=NO_TEXT, name="Input type")
    input_strides: Raw = msgspec.field(default=NO_TEXT, name="Input Strides")
    input_dims: Raw = msgspec.field(default=NO_TEXT, name="Input Dims")


class SyncArgs(Struct, gc=False):
    external_id: Any = msgspec.field(default=NULL, name="External id")
    correlation: Any = NULL
    sync_kind: Any = msgspec.field(default=None, name="cuda_sync_kind")
    stream: Any = NULL
    wait_on_stream: Any = NULL
    wait_on_correlation: Any = msgspec.field(default=NULL, name="wait_on_cuda_event_record_corr_id")


class CommArgs(Struct, gc=False):
    op: Any = msgspec.field(default=None, name="Collective name")
    group: Any = msgspec.field(default=None, name="Process Group Name")
    group_desc: Any = msgspec.field(default=None, name="Process Group Description")
    group_ranks: Raw = msgspec.field(default=NO_TEXT, name="Process Group Ranks")
    group_size: Any = msgspec.field(default=NULL, name="Group size")
    in_elems: Any = msgspec.field(default=NULL, name="In msg nelems")
    out_elems: Any = msgspec.field(default=NULL, name="Out msg nelems")
    dtype: Any = None
    seq: Any = msgspec.field(default=NULL, name="Seq")
    source: Any = msgspec.field(default=NULL, name="Src Rank")
    target: Any = msgspec.field(default=NULL, name="Dst Rank")
    in_split: Raw = msgspec.field(default=NO_TEXT, name="In split size")
    out_split: Raw = msgspec.field(default=NO_TEXT, name="Out split size")


class MemoryArgs(Struct, gc=False):
    device: Any = msgspec.field(default=NULL, name="Device Id")
    device_type: Any = msgspec.field(default=NULL, name="Device Type")
    delta: Any = msgspec.field(default=NULL, name="Bytes")
    allocated: Any = msgspec.field(default=NULL, name="Total Allocated")
    reserved: Any = msgspec.field(default=NULL, name="Total Reserved")


COMM_INTS: Final = ("group_size", "in_elems", "out_elems", "seq")
COMM_TEXTS: Final = ("op", "group", "group_desc", "dtype")
COMM_RAW: Final = ("group_ranks", "in_split", "out_split")
COMM_MARKS: Final = (b'"Collective name"', b'"Process Group Name"')
SHAPE_KEYS: Final = {
    "input_dims": b'"Input Dims"', "input_types": b'"Input type"', "input_strides": b'"Input Strides"',
    "concrete_inputs": b'"Concrete Inputs"',
}  # fmt: skip
SHAPES: Final = tuple(SHAPE_KEYS)
MEMORY: Final = {
    "delta": "memory_delta_bytes",
    "allocated": "memory_allocated_bytes",
    "reserved": "memory_reserved_bytes",
}
_ARGS_OF: Final = {
    "gpu_memcpy": CopyArgs, "Memcpy": CopyArgs, "gpu_memset": CopyArgs, "Memset": CopyArgs,
    "mtia_ccp_events": CopyArgs, "cpu_op": OpArgs, "Operator": OpArgs, "user_annotation": OpArgs,
    "cuda_sync": SyncArgs, "xpu_sync": SyncArgs,
}  # fmt: skip
SYNC_INTS: Final = ("stream", "wait_on_stream", "wait_on_correlation")
NAMES_OF_2021: Final = ("Kernel", "Memcpy", "Memset", "Runtime", "Operator")


FLOWS: Final = frozenset({_Flow, _FlowStep, _FlowEnd})
RARE: Final = frozenset({Count, Odd, Skipped})
_READ: Final = ("X", "i", "M", "C", "s", "t", "f")
LIST_DECODERS: Final = {
    kind: msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]  # a class held in a variable
    for kind in (LaunchArgs, CopyArgs, OpArgs, SyncArgs, CommArgs, MemoryArgs)
}
ONE: Final = {kind: msgspec.json.Decoder(kind) for kind in LIST_DECODERS}
_EVENTS: Final = msgspec.json.Decoder(list[Complete | Instant | Meta | Count | _Flow | _FlowStep | _FlowEnd])
_EVENTS_TEXT: Final = msgspec.json.Decoder(
    list[CompleteText | InstantText | Meta | Count | _Flow | _FlowStep | _FlowEnd]
)
_EVENT: Final = msgspec.json.Decoder(Complete | Instant | Meta | Count | _Flow | _FlowStep | _FlowEnd)
_EVENT_TEXT: Final = msgspec.json.Decoder(CompleteText | InstantText | Meta | Count | _Flow | _FlowStep | _FlowEnd)
_RAWS: Final = msgspec.json.Decoder(list[Raw])
_PHASE: Final = msgspec.json.Decoder(_Phase)


def decode(data: bytes, *, text_times: bool) -> list[Any]:
    """Decode the text of a JSON array of events; entries that are no event of a known phase become Skipped or Odd."""
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
            return Odd()
        known = isinstance(phase, str) and phase not in _READ
        return Skipped(phase[:8]) if known and phase else Odd()


def args_type(category: object) -> type[Any]:
    return _ARGS_OF.get(category, LaunchArgs) if isinstance(category, str) else LaunchArgs
