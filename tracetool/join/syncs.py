"""What waits for what on the GPU, as the tracer recorded it: streams for events of others, the host for the GPU.

A recorded wait names a stream, the stream it waits for, and the call that recorded the awaited event. The first
activity launched on the one after the wait was called starts when what was launched last on the other before the event
was recorded has ended. Kineto records this with enable_cuda_sync_events, Nsight Systems with its CUDA event trace.
Source: CUPTI_ActivitySynchronization of the CUPTI documentation; libkineto's `cuda_sync` events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

if TYPE_CHECKING:
    from tracetool.join.segments import Rank

Ints = npt.NDArray[np.int64]

_MOST: Final = 0.5
"""Share of waits whose event's record must be in the trace; some were recorded before the tracing began."""


class Launched:
    """GPU activities of a rank by stream and launch: which was launched last before a time, which first after it."""

    def __init__(self, track: Ints, call: Ints, launched: npt.NDArray[np.bool_]) -> None:
        self._by_track = {}
        for number in np.unique(track).tolist():
            mine = np.flatnonzero((track == number) & launched)
            order = mine[np.argsort(call[mine], kind="stable")]
            self._by_track[number] = (order, call[order])

    @property
    def tracks(self) -> list[int]:
        """Streams, ascending."""
        return list(self._by_track)

    def last_before(self, track: int, at: Ints) -> Ints:
        """Return the activity of a stream launched last before each time; −1: none."""
        order, calls = self._by_track[track]
        place = np.searchsorted(calls, at, side="left") - 1
        return np.where(place >= 0, order[np.maximum(place, 0)], -1) if len(order) else np.full(len(at), -1)

    def first_from(self, track: int, at: Ints) -> Ints:
        """Return the activity of a stream launched first at or after each time; −1: none."""
        order, calls = self._by_track[track]
        place = np.searchsorted(calls, at, side="left")
        there = place < len(order)
        return np.where(there, order[np.where(there, place, 0)], -1) if len(order) else np.full(len(at), -1)


class Syncs(NamedTuple):
    """Recorded synchronisations of one rank, by call."""

    waits: pl.DataFrame | None
    """track (that waits), at_ns (of the call), awaited (track), recorded_ns; None: the trace does not tell."""
    host: pl.DataFrame
    """call_ns, awaited (track; null: all), recorded_ns (null: all launched before the call), of waits of the host."""


def syncs(rank: Rank) -> Syncs:
    """Return the recorded synchronisations of a rank."""
    nothing = pl.DataFrame(schema={"call_ns": pl.Int64, "awaited": pl.Int64, "recorded_ns": pl.Int64})
    rows = rank.table("syncs").with_columns(pl.col("sync_kind").cast(pl.String))
    if not rows.height:
        return Syncs(None, nothing)
    events = rank.table("events", ["event", "track", "start_ns", "category", "correlation"]).with_columns(
        pl.col("track").cast(pl.Int64)
    )
    calls = (
        events.filter((pl.col("category").cast(pl.String) == "runtime") & pl.col("correlation").is_not_null())
        .sort("start_ns", "event")
        .unique("correlation", keep="first", maintain_order=True)
        .select("correlation", call_ns="start_ns")
    )
    streams = (
        rank.table("tracks", ["track", "kind", "device", "stream"])
        .filter((pl.col("kind").cast(pl.String) == "gpu") & pl.col("stream").is_not_null())
        .select(pl.col("track", "device", "stream").cast(pl.Int64))
    )
    # a stream's number is its own only on one device; a wait of the host does not name the device
    single = streams.filter(pl.col("stream").is_unique()).select("stream", single="track")
    told = (
        rows.join(events.select("event", "track", "start_ns", "correlation"), on="event", how="left")
        .join(calls, on="correlation", how="left")
        .join(
            calls.select(wait_on_correlation="correlation", recorded_ns="call_ns"), on="wait_on_correlation", how="left"
        )
        .join(streams.select("track", "device"), on="track", how="left")
        .join(
            streams.select("device", wait_on_stream="stream", other="track"),
            on=["device", "wait_on_stream"],
            how="left",
        )
        .join(single.rename({"stream": "wait_on_stream"}), on="wait_on_stream", how="left")
        .with_columns(at_ns=pl.coalesce("call_ns", "start_ns"), awaited=pl.coalesce("other", "single"))
    )
    kind = pl.col("sync_kind")
    between = told.filter(kind == "Stream Wait Event")
    known = between.filter(pl.col("recorded_ns").is_not_null() & pl.col("awaited").is_not_null())
    on_stream = told.filter((kind == "Stream Sync") & pl.col("call_ns").is_not_null() & pl.col("device").is_not_null())
    on_event = told.filter(
        (kind == "Event Sync") & pl.col("call_ns").is_not_null() & pl.col("recorded_ns").is_not_null()
    ).filter(pl.col("awaited").is_not_null())
    host = pl.concat(
        [
            on_stream.select("call_ns", awaited="track", recorded_ns="call_ns"),
            on_event.select("call_ns", "awaited", "recorded_ns"),
        ]
    )
    return Syncs(
        known.select("track", "at_ns", "awaited", "recorded_ns").sort(pl.all())
        if known.height and known.height >= _MOST * between.height
        else None,
        host.sort("call_ns", "recorded_ns", "awaited").unique("call_ns", keep="last", maintain_order=True),
    )


def between(launched: Launched, waits: pl.DataFrame) -> tuple[Ints, Ints]:
    """Return pairs (activity, activity that waits for it) of the recorded waits between streams."""
    known = set(launched.tracks)
    preds, waiters = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    pairs = waits.partition_by("awaited", "track", as_dict=True, maintain_order=True)
    for (awaited, track), mine in pairs.items():
        if awaited in known and track in known and awaited != track:
            pred = launched.last_before(awaited, mine["recorded_ns"].to_numpy())
            waiter = launched.first_from(track, mine["at_ns"].to_numpy())
            there = (pred >= 0) & (waiter >= 0)
            preds.append(pred[there])
            waiters.append(waiter[there])
    return np.concatenate(preds), np.concatenate(waiters)
