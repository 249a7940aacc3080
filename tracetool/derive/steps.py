"""Steps of a rank, in GPU time.

Step k is [b(k), b(k+1)): b(k) = earliest start among the kernels (compute or comm; if none, any GPU activity) launched,
on any thread, at or after the start of range k and before the start of the next range. Ranges are ordered by start; b
never decreases; work launched between ranges belongs to the earlier one; a range that launched nothing makes no step.
The last step ends at the end of the last activity it launched and has `open_end`.

Ranges are the CPU ranges `ProfilerStep#k`, or those whose name matches the user's pattern. Their copies on GPU tracks
are not looked at (on ROCm they last some µs). Tracers that have no such range (Nsight Systems) leave the names to the
program: usual ones are tried (nvtxsteps.py) and told. Without ranges: one window from first GPU activity start to
last GPU activity end, step null. Without GPU activity the step is the CPU range itself; without ranges either, one
window over the CPU events.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from tracetool import intervals
from tracetool.derive.columns import masked
from tracetool.derive.kinds import COMM, COMPUTE
from tracetool.derive.names import Names, matcher
from tracetool.derive.notes import Note, many, span
from tracetool.derive.nvtxsteps import usual_ranges
from tracetool.tables import empty, frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracetool.derive.columns import Events
    from tracetool.settings import Settings

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

PROFILER_STEP = r"^ProfilerStep#\d+$"
INTEGER = re.compile(r"\d+", re.ASCII)
LARGEST_STEP = 2**31 - 1


@dataclass(frozen=True)
class Range:
    """One CPU range that defines a step."""

    number: int
    start: int
    end: int
    track: int


@dataclass(frozen=True)
class Ranges:
    """The ranges of a rank, by start; numbers are unique. `events` are the ids of all events that matched."""

    ranges: tuple[Range, ...]
    events: Ints
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Activity:
    """GPU activity after repair, as arrays of equal length; `launch_start` counts only where `launched`."""

    start: Ints
    end: Ints
    kind: Ints
    launched: Bools
    launch_start: Ints


@dataclass(frozen=True)
class Steps:
    """Table `steps` before the user's choice; what launched in which step, and which CPU event lies in which.

    `of_activity` runs over the activity given; -1 is none. `starts` and `numbers` are those of all ranges, -1 for a
    range that made no step.
    """

    table: pl.DataFrame
    of_activity: Ints
    starts: Ints
    numbers: Ints
    notes: tuple[Note, ...]

    def of_time(self, times: Ints) -> Ints:
        """Return the step in whose range, up to the start of the next one, each CPU time lies, or -1."""
        return _at(self.starts, self.numbers, times)


def find_ranges(events: Events, on_cpu: Bools, settings: Settings, *, by_usual_names: bool = False) -> Ranges:
    """Find the step ranges among annotations, else among operators (files of 2021 list them there).

    `on_cpu` says which events stand on CPU threads. The same number on several threads counts once, on the thread
    with most ranges. Numbers that come again, or do not fit 31 bits, are replaced by ordinals, counted from 1. Raises
    UsageError when the user's pattern is none. With `by_usual_names` ranges that programs name like steps will do.
    """
    if settings.ignore_steps:
        return Ranges((), np.zeros(0, np.int64), ())
    wanted = None if settings.step_range is None else matcher("--step-range", settings.step_range)
    for category in ("annotation", "cpu_op"):
        rows = np.flatnonzero(on_cpu & events.are(category))
        names = Names.of(events.names(rows))
        hit = names.has(PROFILER_STEP) if wanted is None else names.each(wanted, np.bool_)
        if hit.any():
            return _numbered(events, rows[hit])
    if settings.step_range is None:
        return _usual(events, on_cpu) if by_usual_names else Ranges((), np.zeros(0, np.int64), ())
    note = f"No range on a CPU thread matches --step-range {settings.step_range}."
    return Ranges((), np.zeros(0, np.int64), (Note("no_step_ranges", 0, None, note),))


def find_steps(events: Events, activity: Activity, found: Ranges, rank: int) -> Steps:
    """Return the steps of a rank. `found` comes from find_ranges; see the module for the definition."""
    if not len(activity.start):
        return _cpu_steps(events, found, rank)
    if found.ranges:
        steps = _gpu_steps(activity, found, rank)
        if steps.table.height:
            return steps
        note = Note(
            "no_steps",
            len(found.ranges),
            None,
            f"None of the {many(len(found.ranges), 'step range')} launched GPU activity that is in the trace: "
            "the whole trace is taken as one window.",
        )
        found = Ranges((), found.events, (*found.notes, note))
    window = (int(activity.start.min()), int(activity.end.max()))
    return _one_window(window, len(activity.start), found, "window", rank)


def _gpu_steps(activity: Activity, found: Ranges, rank: int) -> Steps:
    """Cut GPU time where the first kernel of each range starts."""
    ranges = found.ranges
    range_starts = np.array([r.start for r in ranges], np.int64)
    launched_in = np.where(
        activity.launched, np.searchsorted(range_starts, activity.launch_start, side="right") - 1, -1
    )
    any_start, last_end = _extremes(launched_in, activity.start, activity.end, len(ranges))
    kernels = (activity.kind == COMPUTE) | (activity.kind == COMM)
    kernel_start, _ = _extremes(launched_in[kernels], activity.start[kernels], activity.end[kernels], len(ranges))
    none = np.iinfo(np.int64).max
    begins = np.where(kernel_start < none, kernel_start, any_start)
    filled = np.flatnonzero(begins < none)
    number = np.full(len(ranges) + 1, -1, np.int64)
    number[filled] = [ranges[index].number for index in filled]
    begins = np.maximum.accumulate(begins[filled])
    if not len(filled):
        return Steps(empty("steps"), number[launched_in], range_starts, number[:-1], ())
    ends = np.append(begins[1:], max(int(last_end[filled[-1]]), int(begins[-1])))
    chosen = [ranges[index] for index in filled]
    table = frame(
        "steps",
        {
            "rank": [rank] * len(chosen),
            "step": [r.number for r in chosen],
            "start_ns": begins,
            "end_ns": ends,
            "open_end": [*[False] * (len(chosen) - 1), True],
            "basis": ["gpu"] * len(chosen),
            "range_start_ns": [r.start for r in chosen],
            "range_end_ns": [r.end for r in chosen],
        },
    )
    notes = [*found.notes]
    idle = [r for index, r in enumerate(ranges) if number[index] < 0]
    if idle:
        listed = ", ".join(str(r.number) for r in idle[:5]) + (", …" if len(idle) > 5 else "")  # noqa: PLR2004 - a sentence
        notes.append(
            Note(
                "empty_ranges",
                len(idle),
                sum(r.end - r.start for r in idle),
                f"{many(len(idle), 'step range')} launched no GPU activity and made no step: {listed}.",
            )
        )
    outside = _outside(activity, int(begins[0]), int(ends[-1]))
    if outside is not None:
        notes.append(outside)
    return Steps(table, number[launched_in], range_starts, number[:-1], tuple(notes))


def _outside(activity: Activity, first: int, last: int) -> Note | None:
    """Tell of GPU activity before the first or after the last step."""
    out = (activity.start < first) | (activity.end > last)
    if not out.any():
        return None
    busy = pl.DataFrame({"start_ns": activity.start[out], "end_ns": activity.end[out]})
    steps = pl.DataFrame({"start_ns": [first], "end_ns": [last]})
    ns = intervals.length(intervals.subtract(busy, steps))
    count = int(out.sum())
    return Note(
        "outside_steps",
        count,
        ns,
        f"{many(count, 'GPU activity', 'GPU activities')} ran, wholly or in part, before the first step or after the "
        f"last one: {span(ns)} of GPU time in no step.",
    )


def _cpu_steps(events: Events, found: Ranges, rank: int) -> Steps:
    """Without GPU activity: the CPU ranges themselves, or one window over the CPU events."""
    nobody = np.zeros(0, np.int64)
    if not found.ranges:
        work = events.are("annotation", "cpu_op", "runtime")
        if not work.any():
            return Steps(empty("steps"), nobody, nobody, nobody, found.notes)
        window = (int(events.start[work].min()), int(events.end[work].max()))
        return _one_window(window, 0, found, "cpu", rank)
    ranges = found.ranges
    table = frame(
        "steps",
        {
            "rank": [rank] * len(ranges),
            "step": [r.number for r in ranges],
            "start_ns": [r.start for r in ranges],
            "end_ns": [r.end for r in ranges],
            "open_end": [False] * len(ranges),
            "basis": ["cpu"] * len(ranges),
            "range_start_ns": [r.start for r in ranges],
            "range_end_ns": [r.end for r in ranges],
        },
    )
    starts = np.array([r.start for r in ranges], np.int64)
    return Steps(table, nobody, starts, np.array([r.number for r in ranges], np.int64), found.notes)


def _one_window(window: tuple[int, int], count: int, found: Ranges, basis: str, rank: int) -> Steps:
    """Return a single window without a step number; `count` is how many GPU activities there are."""
    table = frame(
        "steps",
        {
            "rank": [rank],
            "step": [None],
            "start_ns": window[:1],
            "end_ns": window[1:],
            "open_end": [False],
            "basis": [basis],
            "range_start_ns": [None],
            "range_end_ns": [None],
        },
    )
    nobody = np.zeros(0, np.int64)
    return Steps(table, np.full(count, -1, np.int64), nobody, nobody, found.notes)


def _usual(events: Events, on_cpu: Bools) -> Ranges:
    """Take ranges with usual names. Those of the optimizer stay what they are: only the first kind are step ranges."""
    guess = usual_ranges(events, on_cpu)
    if guess.numbered:
        found = _numbered(events, guess.rows)
        return Ranges(found.ranges, found.events, (*guess.notes, *found.notes))
    ranges = tuple(
        Range(number, int(events.start[row]), int(events.end[row]), int(events.track[row]))
        for number, row in enumerate(guess.rows, start=1)
    )
    return Ranges(ranges, np.zeros(0, np.int64), guess.notes)


def _numbered(events: Events, rows: Ints) -> Ranges:
    """Turn matching events into ranges with unique numbers, ordered by start."""
    texts = events.names(rows).cast(pl.String).to_list()
    raw = [
        Range(_last_integer(text), int(events.start[row]), int(events.end[row]), int(events.track[row]))
        for row, text in zip(rows, texts, strict=True)
    ]
    ranges, copies = _one_thread_each(raw)
    notes = []
    if copies:
        notes.append(
            Note(
                "duplicate_ranges",
                copies,
                None,
                f"{many(copies, 'step range')} stood a second time on another thread or inside a step of the same "
                "number; counted once.",
            )
        )
    numbers = [r.number if r.number >= 0 else index for index, r in enumerate(ranges, start=1)]
    if len(set(numbers)) < len(numbers) or max(numbers) > LARGEST_STEP:
        notes.append(
            Note(
                "step_numbers",
                len(numbers),
                None,
                f"The numbers in the names of {many(len(numbers), 'step range')} do not tell them apart: "
                "they are numbered in order of their start, from 1.",
            )
        )
        numbers = list(range(1, len(ranges) + 1))
    return Ranges(
        tuple(Range(n, r.start, r.end, r.track) for n, r in zip(numbers, ranges, strict=True)), rows, tuple(notes)
    )


def _last_integer(text: str) -> int:
    """Return the last integer in a name, or -1; of absurdly long ones only as much as shows that they are."""
    found = INTEGER.findall(text)
    return int(found[-1][:18]) if found else -1


def _one_thread_each(raw: list[Range]) -> tuple[list[Range], int]:
    """Keep each number's ranges from one thread, merge neighbours of one number; also return how many went.

    The thread with most ranges comes first, of equals the one that began first.
    """
    threads: dict[int, list[Range]] = {}
    for r in raw:
        threads.setdefault(r.track, []).append(r)
    preferred = sorted(threads, key=lambda track: (-len(threads[track]), threads[track][0].start, track))
    kept: list[Range] = []
    seen: set[int] = set()
    for track in preferred:
        kept += [r for r in threads[track] if r.number not in seen]
        seen |= {r.number for r in threads[track]}
    kept.sort(key=lambda r: (r.start, -r.end, r.track))
    merged: list[Range] = []
    for r in kept:
        if merged and r.number >= 0 and merged[-1].number == r.number and r.start < merged[-1].end:
            merged[-1] = Range(r.number, merged[-1].start, max(merged[-1].end, r.end), merged[-1].track)
        else:
            merged.append(r)
    return merged, len(raw) - len(merged)


def _extremes(group: Ints, start: Ints, end: Ints, groups: int) -> tuple[Ints, Ints]:
    """Return the earliest start and latest end of each group; the largest and smallest int64 where it has none."""
    limits = np.iinfo(np.int64)
    earliest = np.full(groups, limits.max)
    latest = np.full(groups, limits.min)
    inside = group >= 0
    np.minimum.at(earliest, group[inside], start[inside])
    np.maximum.at(latest, group[inside], end[inside])
    return earliest, latest


def _at(starts: Ints, numbers: Ints, times: Ints) -> Ints:
    """Return the number of the last start at or before each time, or -1."""
    place = np.searchsorted(starts, times, side="right") - 1
    return np.append(numbers, -1)[place] if len(starts) else np.full(len(times), -1, np.int64)


def launched_steps(steps: Ints) -> pl.Series:
    """Return step numbers as the column of the data model: -1 becomes null."""
    return masked(steps, steps >= 0, pl.Int32)
