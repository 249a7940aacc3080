"""Steps and slots of recorded ranks, straight from the definitions, and the measure of a set of spans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from simulator.record import RankTrace, Seen


@dataclass(frozen=True)
class Window:
    """A step of a rank."""

    rank: int
    step: int | None
    start_ns: int
    end_ns: int
    open_end: bool


@dataclass(frozen=True)
class SlotSpan:
    """One slot on one rank, in true time: first compute start, last compute end."""

    rank: int
    step: int
    kind: str
    microbatch: int
    chunk: int
    start_ns: int
    end_ns: int


def windows(trace: RankTrace) -> list[Window]:
    """Return the steps of a rank in GPU time."""
    rank = trace.place.rank
    if not trace.step_ranges:
        if not trace.activities:
            return []
        first = min(a.start_ns for a in trace.activities)
        return [Window(rank, None, first, max(a.end_ns for a in trace.activities), open_end=False)]
    starts = [start for _, start, _ in trace.step_ranges]
    launched: list[list[Seen]] = [[] for _ in starts]
    for activity in trace.activities:
        if activity.launch_start_ns is None or activity.launch_start_ns < starts[0]:
            continue
        at = max(i for i, start in enumerate(starts) if start <= activity.launch_start_ns)
        launched[at].append(activity)
    found: list[tuple[int, int, int]] = []
    reached = None
    for (step, _, _), mine in zip(trace.step_ranges, launched, strict=True):
        kernels = [a for a in mine if a.kind in ("compute", "comm")] or mine
        if kernels:
            begin = min(a.start_ns for a in kernels)
            reached = begin if reached is None else max(reached, begin)
            found.append((step, reached, max(a.end_ns for a in mine)))
    last = len(found) - 1
    return [
        Window(rank, step, begin, end if i == last else found[i + 1][1], open_end=i == last)
        for i, (step, begin, end) in enumerate(found)
    ]


def slots(traces: Iterable[RankTrace]) -> list[SlotSpan]:
    """Return every slot of the recorded steps, in true time, by rank and start."""
    spans: dict[tuple[int, int, tuple[str, int, int]], list[int]] = {}
    for trace in traces:
        for activity in trace.activities:
            tags = activity.tags
            if tags.get("slot") is None or activity.kind != "compute" or activity.launch_start_ns is None:
                continue
            key = (activity.rank, tags["run_step"], tags["slot"])
            source = activity.source
            span = spans.setdefault(key, [source.start_ns, source.end_ns])
            span[0] = min(span[0], source.start_ns)
            span[1] = max(span[1], source.end_ns)
    rows = [SlotSpan(rank, step, *slot, *span) for (rank, step, slot), span in spans.items()]
    return sorted(rows, key=lambda s: (s.rank, s.start_ns, s.end_ns))


def host_bound(activities: Sequence[Seen]) -> list[tuple[int, int]]:
    """Return the dry stretches up to the end of the next activity's launch call, if that call began when it was dry."""
    found = []
    dry = None
    for a in activities:
        if dry is not None and a.start_ns > dry and a.launch_start_ns is not None and a.launch_start_ns > dry:
            assert a.launch_end_ns is not None
            found.append((dry, min(a.start_ns, a.launch_end_ns)))
        dry = a.end_ns if dry is None else max(dry, a.end_ns)
    return found


def measure(spans: Iterable[tuple[int, int]]) -> int:
    """Return the ns covered by at least one span."""
    total, reached = 0, None
    for start, end in sorted(spans):
        if end <= start:
            continue
        begin = start if reached is None else max(start, reached)
        if end > begin:
            total += end - begin
            reached = end
    return total
