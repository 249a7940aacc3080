"""From one rank's base tables to its derived ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from tracetool.derive import tree
from tracetool.derive.columns import Events, nullable, words
from tracetool.derive.comms import comms
from tracetool.derive.kinds import kinds, repair
from tracetool.derive.links import link
from tracetool.derive.notes import Note, many, quality, span
from tracetool.derive.phases import phases
from tracetool.derive.slots import slots
from tracetool.derive.steps import Activity, find_ranges, find_steps, launched_steps
from tracetool.tables import GPU_ACTIVITY, KINDS, PHASES, Kind, Phase, Tables, conform, empty

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracetool.derive.links import Links
    from tracetool.settings import Settings

    Ints = NDArray[np.int64]


def derive(tables: Tables, settings: Settings) -> Tables:
    """Return the tables links, gpu, steps, comms, slots and quality of one rank.

    `tables` are the base tables of one rank; any of them may be missing. `settings.steps` chooses rows of `steps` and
    nothing else: what was launched in other steps keeps their numbers. Raises TracetoolError when `events` is not in
    its promised order, UsageError for a pattern in the settings that is no regular expression.
    """
    base = {name: tables.get(name, empty(name)) for name in ("events", "tracks", "op_shapes", "comm_args", "ranks")}
    groups = tables.get("process_groups", empty("process_groups"))
    events = Events.of(base["events"])
    rank = _rank(base["events"], base["ranks"])
    links = link(events, base["tracks"])
    kind = kinds(events, links.activity, base["comm_args"], settings.comm_pattern)
    repaired = repair(events, links.activity, _recorded_window(base["ranks"]))

    kept = links.activity[repaired.keep]
    start, dur = events.start[kept], repaired.dur[repaired.keep]
    launch = links.launch[kept]
    called = events.start[launch] if len(kept) else start
    activity = Activity(start, start + dur, kind[repaired.keep], launch >= 0, called)
    # Kineto marks its steps itself: a trace without marks has none. Elsewhere names are the program's own.
    of_nvtx = base["ranks"]["format"].to_list() == ["nsight"]
    ranges = find_ranges(events, links.nested, settings, by_usual_names=of_nvtx)
    steps = find_steps(events, activity, ranges, rank)
    phase = phases(events, links, base["tracks"], base["op_shapes"], ranges.events)

    step = np.full(len(events.start), -1, np.int64)
    cpu = ~events.are(*GPU_ACTIVITY, "gpu_annotation", "sync")
    step[cpu] = steps.of_time(events.start[cpu])
    step[kept] = steps.of_activity
    gpu = _gpu_table(rank, events, links, kept=kept, activity=activity, step=step, phase=phase)
    all_kinds = np.full(len(events.start), -1, np.int64)
    all_kinds[links.activity] = kind
    notes = (*_launch_notes(activity), *repaired.notes, *steps.notes)
    told = comms(gpu, events, links, base["comm_args"], groups)
    return {
        "links": _links_table(rank, events, links, kind=all_kinds, step=step, phase=phase),
        "gpu": gpu,
        "steps": steps.table if settings.steps is None else steps.table.filter(pl.col("step").is_in(settings.steps)),
        "comms": told,
        "slots": slots(gpu, told, events, links.nested),
        "quality": quality(rank, notes),
    }


def _links_table(rank: int, events: Events, links: Links, *, kind: Ints, step: Ints, phase: Ints) -> pl.DataFrame:
    """Return table `links`; all arrays run over all events."""
    return conform(
        "links",
        pl.DataFrame(
            {
                "event": events.frame["event"],
                "kind": words(kind, KINDS, Kind),
                "launch": nullable(links.launch),
                "op": nullable(links.op),
                "parent": nullable(links.parent),
                "depth": nullable(np.where(links.nested, tree.depths(links.parent), -1)),
                "step": launched_steps(step),
                "phase": words(phase, PHASES, Phase),
            }
        ).with_columns(rank=pl.lit(rank)),
    )


def _gpu_table(
    rank: int, events: Events, links: Links, *, kept: Ints, activity: Activity, step: Ints, phase: Ints
) -> pl.DataFrame:
    """Return table `gpu`: the activity that is left after repair, ids in `kept`."""
    launch = pl.Series("launch", nullable(links.launch[kept]))
    return conform(
        "gpu",
        pl.DataFrame(
            {
                "event": kept,
                "track": events.track[kept],
                "start_ns": activity.start,
                "dur_ns": activity.end - activity.start,
                "kind": words(activity.kind, KINDS, Kind),
                "name": events.names(kept),
                "launch": launch,
                "launch_start_ns": pl.Series("", events.start).gather(launch),
                "launch_end_ns": pl.Series("", events.end).gather(launch),
                "op": nullable(links.op[kept]),
                "step": launched_steps(step[kept]),
                "phase": words(phase[kept], PHASES, Phase),
            }
        ).with_columns(rank=pl.lit(rank)),
    )


def _launch_notes(activity: Activity) -> list[Note]:
    """Tell of orphans and of activity that seems to start before its launch."""
    notes = []
    dur = activity.end - activity.start
    orphans = ~activity.launched
    if orphans.any():
        count, ns, total = int(orphans.sum()), int(dur[orphans].sum()), int(dur.sum())
        share = f" and {ns / total:.1%} of GPU time" if total else ""
        notes.append(
            Note(
                "orphans",
                count,
                ns,
                f"{count:,} of {many(len(dur), 'GPU activity', 'GPU activities')} ({count / len(dur):.1%}{share}) have "
                "no launch in the trace: they fill the time they ran in and belong to no step, operator or phase.",
            )
        )
    early = np.where(activity.launched, activity.launch_start - activity.start, 0)
    if (early > 0).any():
        count, worst = int((early > 0).sum()), int(early.max())
        notes.append(
            Note(
                "negative_latency",
                count,
                worst,
                f"{many(count, 'GPU activity', 'GPU activities')} start before their own launch, by up to "
                f"{span(worst)}: CPU and GPU times of this trace do not agree better than that.",
            )
        )
    return notes


def _rank(events: pl.DataFrame, ranks: pl.DataFrame) -> int:
    """Return the rank that the tables speak of; -1 while it is not known."""
    for table in (events, ranks):
        if table.height:
            return int(table["rank"][0])
    return -1


def _recorded_window(ranks: pl.DataFrame) -> tuple[int, int] | None:
    """Return start and end of the recorded window, ns, where the trace says both."""
    known = ranks.filter(pl.col("trace_end_ns") > pl.col("trace_start_ns"))
    return (known["trace_start_ns"][0], known["trace_end_ns"][0]) if known.height else None
