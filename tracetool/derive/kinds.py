"""Kinds of GPU activity, and repair of durations that cannot be.

*Kind*: compute, comm, memcpy or memset. Only kernels can be communication: by the arguments the tracer recorded, by
name, or by the user's own pattern. Ranges such as `nccl:all_reduce`, which tracers copy onto GPU tracks, are not
activity. Names: NCCL and RCCL (nccl*Kernel*), DeepEP, NVSHMEM, MSCCL, the all-reduces of vLLM, SGLang, aiter,
FlashInfer and TensorRT-LLM, PyTorch's symmetric memory, HCCL.

*Impossible durations*: longer than the trace, or running into the next activity of the same stream by more than 1 ms
and more than half of the event. They are cut at the next start on their stream, and dropped where that leaves nothing
or nothing follows. Shorter overlaps are real (programmatic dependent launch on Hopper and later). Seen in ROCm traces:
AMD-AGI/TraceLens issue 669.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracetool.derive.names import Names, matcher
from tracetool.derive.notes import Note, many, span
from tracetool.tables import KINDS

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from tracetool.derive.columns import Events

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

COMPUTE, COMM, MEMCPY, MEMSET = range(len(KINDS))

COMM_NAMES = (
    r"(?i)nccl|rccl|msccl|nvshmem|deep_ep|dpsk::ep|hccl|cross_device_reduce|(?:one|two)_?shot_?all_?reduce|quickreduce"
    r"|allreduce_fusion|multimem_"
)
NOT_COMM_NAMES = r"(?i)^(?:void )?hip"
"""Kernels of the HIP runtime and libraries: `hip` and `ccl` may meet by chance in what follows."""

OVERLAP_LIMIT_NS = 1_000_000
UNBOUNDED_LIMIT_NS = 1_000_000_000
"""Where the tracer does not say its window, only durations above this can be longer than the trace."""


def kinds(events: Events, activity: Ints, comm_args: pl.DataFrame, pattern: str | None) -> Ints:
    """Return the kind of each GPU activity as an index into tables.KINDS.

    `comm_args` is the table of that name; `pattern` a further regular expression (Python syntax) of kernel names.
    Raises UsageError when it is none.
    """
    kind = np.full(len(activity), COMPUTE, np.int64)
    kind[events.are("memcpy")[activity]] = MEMCPY
    kind[events.are("memset")[activity]] = MEMSET
    kernels = np.flatnonzero(events.are("kernel")[activity])
    names = Names.of(events.names(activity[kernels]))
    comm = names.has(COMM_NAMES) & ~names.has(NOT_COMM_NAMES)
    recorded = comm_args.filter(comm_args["op"].is_not_null() | comm_args["group"].is_not_null())["event"]
    comm |= np.isin(activity[kernels], recorded.to_numpy())
    if pattern is not None:
        comm |= names.each(matcher("--comm-pattern", pattern), np.bool_)
    kind[kernels[comm]] = COMM
    return kind


@dataclass(frozen=True)
class Repaired:
    """GPU activity whose durations can be; `keep` and `dur` run over the activity as given."""

    keep: Bools
    dur: Ints
    notes: tuple[Note, ...]


def repair(events: Events, activity: Ints, window_ns: tuple[int, int] | None) -> Repaired:
    """Clip or drop impossible durations; `window_ns` is the recorded window where the tracer says it."""
    start, end, track = events.start[activity], events.end[activity], events.track[activity]
    dur = end - start
    order = np.argsort(track, kind="stable")
    follows = order[1:][track[order][1:] == track[order][:-1]]
    before = order[:-1][track[order][1:] == track[order][:-1]]
    following = np.full(len(activity), np.iinfo(np.int64).max)
    following[before] = start[follows]
    room = following - start
    overlap = dur - room
    impossible = (overlap > OVERLAP_LIMIT_NS) & (2 * overlap > dur)
    impossible |= dur > _longest_ns(events, activity, window_ns)
    clipped = np.where(impossible, np.minimum(dur, np.where(following == np.iinfo(np.int64).max, 0, room)), dur)
    keep = ~impossible | (clipped > 0)
    cut = impossible & keep & (clipped < dur)
    notes = []
    if cut.any():
        count, ns = int(cut.sum()), int((dur - clipped)[cut].sum())
        notes.append(
            Note(
                "clipped",
                count,
                ns,
                f"{many(count, 'GPU activity', 'GPU activities')} ran impossibly far into the next on the same stream "
                f"and were cut where that one starts: {span(ns)} of recorded time left out.",
            )
        )
    if not keep.all():
        count, ns = int((~keep).sum()), int(dur[~keep].sum())
        notes.append(
            Note(
                "dropped",
                count,
                ns,
                f"{many(count, 'GPU activity', 'GPU activities')} with impossible durations ({span(ns)} in all) "
                "could not be cut to something possible and were left out.",
            )
        )
    return Repaired(keep, clipped, tuple(notes))


def _longest_ns(events: Events, activity: Ints, window_ns: tuple[int, int] | None) -> int:
    """Return the length of the trace, ns: no activity can be longer.

    Without a recorded window it is what all starts and the ends of all CPU events span, at least UNBOUNDED_LIMIT_NS:
    a short program may launch one long kernel and end.
    """
    if window_ns is not None:
        return window_ns[1] - window_ns[0]
    others = np.ones(len(events.start), np.bool_)
    others[activity] = False
    last = max(int(events.start.max(initial=0)), int(events.end[others].max(initial=0)))
    first = int(events.start[0]) if len(events.start) else 0
    return max(last - first, UNBOUNDED_LIMIT_NS)
