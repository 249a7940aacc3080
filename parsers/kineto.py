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

Speed, against `orjson.loads` of the same bytes: tests/bench/README.md. Events are decoded chunk by chunk with only the
fields that are wanted; arguments stay text until their category says which of them are.

`op_shapes` keeps the raw JSON text of `Input Dims`, `Input type`, `Input Strides` and `Concrete Inputs` without white
space outside strings, numbers and strings as written: `[[16,559],[],[]]`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tracetool.parsers._kineto_facts import TOP_KEYS  # type: ignore[import-not-found]  # mapped at install time
from tracetool.parsers._kineto_reader import Reader  # type: ignore[import-not-found]  # mapped at install time
from tracetool.parsers._kineto_tables import Assembly  # type: ignore[import-not-found]  # mapped at install time

from tracetool.errors import UnreadableTrace
from tracetool.raw.jsonstream import ArrayStream

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.registry import ParseOptions
    from tracetool.tables import Tables

FORMAT = "kineto"
_FIRST_KEYS: Final = ("ph", "name", "cat", "pid", "tid", "ts", "dur", "args")


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
    reader = Reader()
    stream = ArrayStream(path, "traceEvents", reader.decode, first_keys=_FIRST_KEYS, wanted=TOP_KEYS)
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
    result: Tables = Assembly(reader, stream, options.display_path, path.stat().st_size).tables()
    return result
