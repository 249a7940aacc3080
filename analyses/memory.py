"""Memory of the caching allocator: allocated and reserved over time, peaks by step and by part of training.

The allocator's own figures as the trace holds them, bytes, by device: allocated is what tensors hold, reserved what the
allocator took from the device. A value holds from its record until the next one. Times are the host's.

Peak of a step = largest value in [start of its range, start of the next range), the value it began with included;
without step ranges the whole trace is one. Peak of a part = largest value recorded while the recording thread worked on
that part (as in `phases`); allocated_bytes and freed_bytes are Σ of positive and of negative changes there, with sign
dropped. at_ns counts from the rank's first record; `series` holds the largest value in each of BINS equal stretches.

peak_share_of_device = largest reserved ÷ memory of the device, where its size is recorded. unused_share = (reserved −
allocated) ÷ reserved at the record where reserved was largest (of several, where allocated was).
growth_bytes_per_step = the median over steps of what is allocated at a step's end less that of the step before, of the
rank where it is largest; null below three steps, and for the host, whose earlier allocations no record knows.

Source: PyTorch's profile_memory records (`Total Allocated`, `Total Reserved`); the definitions are tracetool's own.
Memory that other libraries take from the device (NCCL, cuBLAS workspaces outside the allocator) is in neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from tracetool import intervals
from tracetool import parts as training
from tracetool.figures import percent, share
from tracetool.results import Chart, Finding, Headline, Result, Value, no_saving

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Memory"
NEEDS: Final = ("memory",)

BINS: Final = 200
PARTS: Final = ("forward", "backward", "recompute", "optimizer", "dataloader", "checkpoint")
NEAR_LIMIT: Final = 0.95
UNUSED: Final = 0.30
GROWTH: Final = 0.005
"""Growth per step, as a share of the peak, from which it is told."""
_VALUES: Final = {
    "memory_allocated_bytes": "allocated_bytes",
    "memory_reserved_bytes": "reserved_bytes",
    "memory_delta_bytes": "delta_bytes",
}
_STEPS_FOR_GROWTH: Final = 3
_GIB: Final = 2**30


def per_rank(rank: RankView, _facts: Tables, settings: Settings) -> Tables:
    """Return `devices`, `series`, `steps` and `parts` of one rank; a device that is the host has number -1."""
    records = _records(rank)
    windows = _windows(rank, records, settings)
    records = records.join(_parts(rank, records), on="row", how="left", maintain_order="left")
    found: dict[str, list[pl.DataFrame]] = {"devices": [], "series": [], "steps": [], "parts": []}
    for mine in records.partition_by("device", maintain_order=True):
        label = {"rank": pl.lit(rank.rank, pl.Int32), "device": pl.lit(mine["device"][0], pl.Int32)}
        for name, frame in (
            ("devices", _device(mine)),
            ("series", _series(mine, int(records["at_ns"].to_numpy().min()))),
            ("steps", _steps(mine, windows)),
            ("parts", _of_parts(mine)),
        ):
            found[name].append(frame.with_columns(**label))
    return {name: pl.concat(frames) for name, frames in found.items() if frames}


def _records(rank: RankView) -> pl.DataFrame:
    """Return one row a record: row, at_ns, track, device, allocated_bytes, reserved_bytes, delta_bytes."""
    counters = rank.table("counters", ["at_ns", "track", "name", "device", "value"]).with_columns(
        pl.col("name").cast(pl.String), pl.col("device").fill_null(-1)
    )
    keys = ["at_ns", "track", "device"]
    values = {column: counters.filter(pl.col("name") == name) for name, column in _VALUES.items()}
    first, *others = values.values()
    if all(other.select(keys).equals(first.select(keys)) for other in others):
        # every record has all values, in the same order
        wide = first.select(*keys, *(frame["value"].alias(column) for column, frame in values.items()))
    else:
        wide = _paired(counters.filter(pl.col("name").is_in(list(_VALUES))), keys)
    # nothing is reserved on the host; the profiler writes 0 there, which would read as a measurement
    on_host = pl.col("device") < 0
    told = wide.with_columns(reserved_bytes=pl.when(~on_host).then("reserved_bytes"))
    return told.sort("device", "at_ns", maintain_order=True).with_row_index("row")


def _paired(counters: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Return a record a row where some lack a value: the n-th of each kind with the same keys belong together."""
    numbered = counters.with_columns(turn=pl.int_range(pl.len()).over(*keys, "name"))
    return numbered.group_by(*keys, "turn", maintain_order=True).agg(
        pl.col("value").filter(pl.col("name") == name).first().alias(column) for name, column in _VALUES.items()
    )


def _windows(rank: RankView, records: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """Return the steps in host time: step, start_ns, end_ns."""
    steps = rank.table("steps", ["step", "range_start_ns", "range_end_ns"]).drop_nulls("range_start_ns")
    if not steps.height or settings.ignore_steps:
        times = records["at_ns"].to_numpy()
        whole = {"step": [None], "start_ns": [times.min()], "end_ns": [times.max() + 1]} if len(times) else {}
        schema = {"step": pl.Int32, "start_ns": pl.Int64, "end_ns": pl.Int64}
        return pl.DataFrame(whole, schema=schema)
    ordered = steps.sort("range_start_ns")
    following = pl.col("range_start_ns").shift(-1)
    # chosen steps may leave a hole: a step then ends with its own range
    consecutive = pl.col("step").shift(-1) == pl.col("step") + 1
    end = pl.when(consecutive).then(following).otherwise("range_end_ns")
    return ordered.select("step", pl.col("range_start_ns").alias("start_ns"), end.alias("end_ns"))


def _parts(rank: RankView, records: pl.DataFrame) -> pl.DataFrame:
    """Return for each record (row) the part of training its thread works on; rows without one are left out."""
    events = rank.table("events", ["track", "start_ns", "dur_ns"])
    cpu = events.hstack(rank.table("links", ["parent", "step", "phase"]))
    spans = training.spans(training.changes(cpu), PARTS)
    points = records.select("row", "track", start_ns="at_ns", end_ns=pl.col("at_ns") + 1)
    found = [points.clear().select("row", part=pl.lit(""))]
    recorded = set(spans["phase"].unique())
    for part in filter(recorded.__contains__, PARTS):
        inside = intervals.covered(points, spans.filter(pl.col("phase") == part), "track")
        found.append(points.filter(inside > 0).select("row", part=pl.lit(part)))
    return pl.concat(found).unique("row", keep="first", maintain_order=True)


def _device(mine: pl.DataFrame) -> pl.DataFrame:
    """Return peaks of one device, and how much of the reserved memory was unused at its peak."""
    at_peak = mine.sort("reserved_bytes", "allocated_bytes", descending=True, nulls_last=True).head(1)
    return mine.select(
        pl.len().cast(pl.Int64).alias("records"),
        pl.col("allocated_bytes").max().alias("peak_allocated_bytes"),
        pl.col("reserved_bytes").max().alias("peak_reserved_bytes"),
        unused_bytes=pl.lit(at_peak["reserved_bytes"][0], pl.Int64) - pl.lit(at_peak["allocated_bytes"][0], pl.Int64),
    )


def peaks(at: NDArray[np.int64], values: pl.Series, start: NDArray[np.int64], end: NDArray[np.int64]) -> pl.Series:
    """Return the largest value in force during each [start, end); null where none is known yet.

    `at` is sorted; `values` hold from their time until the next. Stretches are disjoint and sorted.
    """
    first = np.searchsorted(at, start, side="left")
    carried = np.searchsorted(at, start, side="right") - 1
    count = np.maximum(np.searchsorted(at, end, side="left") - first, 0)
    row = np.repeat(np.arange(len(start)), count)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    known = np.flatnonzero((carried >= 0) & (end > start))
    pairs = pl.DataFrame(
        {
            "row": np.concatenate([row, known]).astype(np.int64),
            "value": values.gather(np.concatenate([first[row] + offset, carried[known]]).astype(np.int64)),
        }
    )
    largest = pairs.group_by("row").agg(pl.col("value").max())
    every = pl.DataFrame({"row": np.arange(len(start), dtype=np.int64)})
    return every.join(largest, on="row", how="left", maintain_order="left")["value"]


def _series(mine: pl.DataFrame, origin: int) -> pl.DataFrame:
    """Return the largest values in equal stretches of the time that the device has records of."""
    at = mine["at_ns"].to_numpy()
    width = max(1, -(-(int(at[-1]) + 1 - int(at[0])) // BINS))
    start = np.arange(int(at[0]), int(at[-1]) + 1, width, dtype=np.int64)
    return pl.DataFrame(
        {
            "at_ns": start - origin,
            "allocated_bytes": peaks(at, mine["allocated_bytes"], start, start + width),
            "reserved_bytes": peaks(at, mine["reserved_bytes"], start, start + width),
        }
    )


def _steps(mine: pl.DataFrame, windows: pl.DataFrame) -> pl.DataFrame:
    """Return peaks of each step, and what is allocated at its end."""
    at = mine["at_ns"].to_numpy()
    start, end = windows["start_ns"].to_numpy(), windows["end_ns"].to_numpy()
    return windows.select("step").with_columns(
        peaks(at, mine["allocated_bytes"], start, end).alias("peak_allocated_bytes"),
        peaks(at, mine["reserved_bytes"], start, end).alias("peak_reserved_bytes"),
        _in_force(at, mine["allocated_bytes"], end - 1).alias("end_allocated_bytes"),
    )


def _in_force(at: NDArray[np.int64], values: pl.Series, when: NDArray[np.int64]) -> pl.Series:
    """Return the value in force at each time; null before the first."""
    row = np.searchsorted(at, when, side="right") - 1
    places = pl.Series(row, dtype=pl.Int64)
    return values.gather(places.set(places < 0, None))


def _of_parts(mine: pl.DataFrame) -> pl.DataFrame:
    """Return peaks and changes by part of training."""
    delta = pl.col("delta_bytes")
    return (
        mine.drop_nulls("part")
        .group_by("part")
        .agg(
            records=pl.len().cast(pl.Int64),
            peak_allocated_bytes=pl.col("allocated_bytes").max(),
            allocated_bytes=delta.filter(delta > 0).sum(),
            freed_bytes=-delta.filter(delta < 0).sum(),
        )
        .sort("part")
    )


def analyze(parts: Tables, run: RunView, _settings: Settings) -> Result:
    """Put the ranks together: peaks, series, what grows and what is wasted."""
    if not parts:
        return Result(status="skipped", reason="the memory records of the traces hold no value of the allocator.")
    size = run.ranks.select("rank", "device_memory_bytes")
    devices = (
        parts["devices"]
        .join(size, on="rank", how="left")
        .with_columns(
            device_memory_bytes=pl.when(pl.col("device") >= 0).then("device_memory_bytes"),
            unused_bytes=pl.when(pl.col("peak_reserved_bytes") > 0).then("unused_bytes"),
            unused_share=pl.when(pl.col("peak_reserved_bytes") > 0).then(
                pl.col("unused_bytes") / pl.col("peak_reserved_bytes")
            ),
        )
        .with_columns(peak_share_of_device=pl.col("peak_reserved_bytes") / pl.col("device_memory_bytes"))
        .sort("rank", "device")
        .select(
            "rank", "device", "records", "peak_allocated_bytes", "peak_reserved_bytes", "unused_bytes", "unused_share",
            "device_memory_bytes", "peak_share_of_device",
        )
    )  # fmt: skip
    on_gpu = devices.filter(pl.col("device") >= 0)
    shown = on_gpu if on_gpu.height else devices
    fullest = shown.sort(["peak_reserved_bytes", "rank", "device"], descending=[True, False, False], nulls_last=True)
    worst = fullest.row(0, named=True)
    steps = parts["steps"].sort("rank", "device", "step", maintain_order=True)
    growth = _growth(steps.filter(pl.col("device") >= 0))
    grown = growth.row(0, named=True) if growth.height else None
    metrics: dict[str, Value] = {
        "peak_allocated_bytes": _largest(shown["peak_allocated_bytes"]),
        "peak_reserved_bytes": worst["peak_reserved_bytes"],
        "peak_share_of_device": worst["peak_share_of_device"],
        "unused_share": worst["unused_share"],
        "growth_bytes_per_step": None if grown is None else grown["growth_bytes"],
        "devices": shown.height,
    }
    label = pl.format("rank {} {}", "rank", _device_name())
    series = parts["series"].sort("rank", "device", "at_ns").with_columns(of=label)
    tables = {
        "devices": devices,
        "per_rank_step": steps.select("rank", "device", "step", pl.exclude("rank", "device", "step")),
        "parts": _parts_of_run(parts["parts"]),
        "series": series.select("of", "rank", "device", "at_ns", "allocated_bytes", "reserved_bytes"),
    }
    notes = []
    if not on_gpu.height:
        notes.append(
            "The traces hold memory of the host only: nothing is reserved there, and what was allocated before the "
            "recording is not in it, so growth is not told."
        )
    elif worst["device_memory_bytes"] is None:
        notes.append("The size of the devices is not recorded, so peak_share_of_device is null.")
    if grown is None and on_gpu.height:
        notes.append(f"Growth needs at least {_STEPS_FOR_GROWTH} steps, so growth_bytes_per_step is null.")
    of = f"of {worst['device_memory_bytes'] / _GIB:.0f} GiB, " if worst["device_memory_bytes"] else ""
    return Result(
        metrics=metrics,
        headline=[_headline(worst, of)],
        tables=tables,
        charts=_charts(tables),
        findings=_findings(worst, _row_of(devices, worst), grown),
        notes=notes,
    )


def _headline(worst: dict[str, Any], of: str) -> Headline:
    if worst["peak_reserved_bytes"] is None:
        return Headline("Peak memory", worst["peak_allocated_bytes"], "bytes", 70, "allocated, largest rank")
    return Headline("Peak memory", worst["peak_reserved_bytes"], "bytes", 70, f"{of}reserved, largest rank")


def _row_of(devices: pl.DataFrame, worst: dict[str, object]) -> int:
    """Return the row of table `devices` that holds a device."""
    numbered = devices.with_row_index("row")
    return int(numbered.filter((pl.col("rank") == worst["rank"]) & (pl.col("device") == worst["device"]))["row"][0])


def _device_name() -> pl.Expr:
    return pl.when(pl.col("device") < 0).then(pl.lit("host")).otherwise(pl.format("device {}", "device"))


def _largest(values: pl.Series) -> int | None:
    return None if values.null_count() == values.len() else int(values.drop_nulls().to_numpy().max())


def _growth(steps: pl.DataFrame) -> pl.DataFrame:
    """Return rank, device, growth_bytes (median over steps), always (it grows in every step); the largest first."""
    change = pl.col("end_allocated_bytes").diff().drop_nulls()
    return (
        steps.group_by("rank", "device")
        .agg(
            growth_bytes=change.median().round().cast(pl.Int64),
            always=(change > 0).all(),
            steps=pl.len(),
            peak=pl.col("peak_allocated_bytes").max(),
        )
        .filter((pl.col("steps") >= _STEPS_FOR_GROWTH) & pl.col("growth_bytes").is_not_null())
        .sort(["growth_bytes", "rank", "device"], descending=[True, False, False])
    )


def _parts_of_run(parts: pl.DataFrame) -> pl.DataFrame:
    """Return one row a part and kind of device: the largest peak of any rank, Σ of changes over ranks."""
    order = {part: i for i, part in enumerate(PARTS)}
    return (
        parts.with_columns(on=pl.when(pl.col("device") < 0).then(pl.lit("host")).otherwise(pl.lit("device")))
        .group_by("part", "on")
        .agg(
            pl.col("records").sum(),
            pl.col("peak_allocated_bytes").max(),
            pl.col("allocated_bytes", "freed_bytes").sum(),
            ranks=pl.col("rank").n_unique(),
        )
        .sort("on", pl.col("part").replace_strict(order, return_dtype=pl.Int64))
        .with_columns(of=pl.when(pl.col("on") == "host").then(pl.format("{} (host)", "part")).otherwise("part"))
    )


def _charts(tables: Tables) -> list[Chart]:
    several = tables["series"]["of"].n_unique() > 1
    charts = [
        Chart(
            "line", "Memory over time", "series", x="at_ns", unit="bytes", options={"x_unit": "ns"},
            y=("allocated_bytes",) if several else ("allocated_bytes", "reserved_bytes"),
            series="of" if several else "", note="The largest value in each stretch of time.",
        )
    ]  # fmt: skip
    if tables["parts"].height:
        charts.append(
            Chart(
                "bars", "Peak by part of training", "parts", label="of", y=("peak_allocated_bytes",), unit="bytes",
                note="Largest value recorded while a thread worked on the part.",
            )
        )  # fmt: skip
    return charts


def _findings(worst: dict[str, object], row: int, grown: dict[str, object] | None) -> list[Finding]:
    """Return what memory itself tells; time is not what it saves, so nothing is priced."""
    found = []
    full, unused, peak = worst["peak_share_of_device"], worst["unused_share"], worst["peak_reserved_bytes"]
    if isinstance(full, float) and full >= NEAR_LIMIT:
        found.append(
            _finding(
                "near_limit", row, warning=True,
                title="The device's memory is nearly full",
                detail=f"The allocator reserves {percent(full)} of the device on rank {worst['rank']}.",
                advice="Lower the micro-batch, recompute activations or shard more: at the limit the allocator frees "
                "and allocates again, which synchronises the device.",
                why="the allocator's own figures",
            )
        )  # fmt: skip
    if isinstance(unused, float) and isinstance(full, float) and unused >= UNUSED and full >= NEAR_LIMIT / 2:
        found.append(
            _finding(
                "unused", row, warning=full >= NEAR_LIMIT,
                title="Much of the reserved memory holds no tensor",
                detail=f"{percent(unused)} of what is reserved at the peak of rank {worst['rank']} is unused.",
                advice="Set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True and keep sizes constant.",
                why="reserved less allocated at the peak of reserved; earlier peaks may have needed it",
            )
        )  # fmt: skip
    if grown is not None and grown["always"] and isinstance(peak, int):
        growth, largest = grown["growth_bytes"], grown["peak"]
        if isinstance(growth, int) and isinstance(largest, int) and (share(growth, largest) or 0) >= GROWTH:
            found.append(
                _finding(
                    "growth", row, warning=True,
                    title="Allocated memory grows with every step",
                    detail=f"By {growth / 2**20:.1f} MiB a step on rank {grown['rank']}.",
                    advice="Look for tensors kept across steps: losses summed without .item() or .detach(), lists of "
                    "outputs, caches.",
                    why="growth in each of the recorded steps; warm-up of caches looks the same for a few steps",
                )
            )  # fmt: skip
    return found


def _finding(name: str, row: int, *, warning: bool, title: str, detail: str, advice: str, why: str) -> Finding:
    return Finding(
        id=f"memory.{name}",
        analysis="memory",
        severity="warning" if warning else "info",
        title=title,
        detail=detail,
        advice=advice,
        confidence="medium",
        confidence_why=why,
        saving=no_saving(),
        evidence=(("devices", (row,)),),
    )
