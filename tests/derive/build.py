"""Small base tables for tests of derive, written as rows: one event a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from tracetool import tables
from tracetool.derive.columns import Events
from tracetool.derive.links import Links, link

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAIN, AUTOGRAD, STREAM, SIDE = 1, 2, 7, 8
"""Tracks of the tests: two threads and two streams."""

TRACKS = tables.frame(
    "tracks",
    {
        "rank": [0] * 4,
        "track": [MAIN, AUTOGRAD, STREAM, SIDE],
        "kind": ["cpu", "cpu", "gpu", "gpu"],
        "name": ["thread 1 (python)", "thread 2 (pt_autograd_0)", "stream 7", "stream 8"],
    },
)


def event(
    category: str,
    name: str,
    start: int,
    end: int,
    *,
    track: int | None = None,
    corr: int | None = None,
    ext: int | None = None,
    **more: Any,  # noqa: ANN401 - columns of side tables
) -> dict[str, Any]:
    """Describe one event; further keywords go to `op_shapes` or `comm_args` by their column."""
    default = STREAM if category in (*tables.GPU_ACTIVITY, "gpu_annotation") else MAIN
    return {
        "category": category,
        "name": name,
        "start_ns": start,
        "dur_ns": end - start,
        "track": default if track is None else track,
        "correlation": corr,
        "external_id": ext,
        **more,
    }


def launched(
    number: int,
    at: int,
    start: int,
    end: int,
    *,
    name: str = "gemm",
    track: int = STREAM,
    thread: int = MAIN,
    **more: Any,  # noqa: ANN401 - see event
) -> list[dict[str, Any]]:
    """Describe a kernel and its launch call of 1 ns."""
    return [
        event("runtime", "cudaLaunchKernel", at, at + 1, track=thread, corr=number),
        event(more.pop("category", "kernel"), name, start, end, track=track, corr=number, **more),
    ]


def base(rows: Sequence[Mapping[str, Any]], **others: pl.DataFrame) -> tables.Tables:
    """Return base tables of rank 0; rows may come in any order."""
    ordered = sorted(rows, key=lambda row: (row["start_ns"], -row["dur_ns"]))
    columns = [*tables.SCHEMAS["events"].columns]
    events = tables.frame(
        "events",
        {
            "event": range(len(ordered)),
            "rank": [0] * len(ordered),
            **{name: [row[name] for row in ordered] for name in columns if name not in ("event", "rank")},
        },
    )
    made = {"events": events, "tracks": TRACKS}
    for table in ("op_shapes", "comm_args"):
        names = [name for name in tables.SCHEMAS[table].columns if name not in ("rank", "event")]
        picked = [(number, row) for number, row in enumerate(ordered) if any(name in row for name in names)]
        if picked:
            made[table] = tables.frame(
                table,
                {
                    "rank": [0] * len(picked),
                    "event": [number for number, _ in picked],
                    **{name: [row.get(name) for _, row in picked] for name in names},
                },
            )
    return {**made, **others}


def arrays(made: tables.Tables) -> tuple[Events, Links]:
    """Return the arrays and links of base tables."""
    events = Events.of(made["events"])
    return events, link(events, made["tracks"])


def ids(made: tables.Tables) -> dict[str, int]:
    """Return event ids by name; names are unique in tests that use it."""
    return dict(zip(made["events"]["name"].cast(pl.String), made["events"]["event"], strict=True))


def notes(derived: tables.Tables) -> dict[str, tuple[int, int | None]]:
    """Return count and ns of each quality topic."""
    return {topic: (count, ns) for _, topic, count, ns, _ in derived["quality"].rows()}
