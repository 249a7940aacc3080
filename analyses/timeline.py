"""What ran when: GPU activity of every stream, thinned until it can be drawn.

A slice is one GPU activity, or several short ones drawn as one (count > 1). Slices are cut to `slice_budget` over all
ranks, an equal share a rank, by one rule: for a resolution r, activities shorter than r that follow a neighbour of the
same lane and kind which is also shorter than r within less than r become one slice from the first start to the last
end. r starts at 0 and doubles until the slices fit. So nothing of r or longer is ever merged, no gap of r or more is
drawn over, and no edge moves by more than r; the notes name r. busy_ns is what really ran inside a slice, ns.

A lane is one stream of one rank. With several ranks the streams with most busy time are shown. start_ns counts from the
first activity of the run on aligned clocks where the join has them, else of each rank, and then lanes of different
ranks must not be compared. Table `longest` holds the longest single activities, never merged.

Source: tracetool's own definition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool import intervals
from tracetool.kernelname import short_name
from tracetool.results import Chart, Result

if TYPE_CHECKING:
    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Timeline"
NEEDS: Final = ("gpu",)

MOST_PER_RANK: Final = 20_000
"""Slices a rank of a large job hands over: how many ranks were traced is not known where it is thinned first."""
LANES_OF_MANY: Final = 4
"""Streams shown of each rank when there are several."""
LONGEST: Final = 50
FIRST_RESOLUTION_NS: Final = 1_000
_SLICE: Final = ("rank", "track", "start_ns", "dur_ns", "name", "kind", "count", "busy_ns")


def per_rank(rank: RankView, _facts: Tables, settings: Settings) -> Tables:
    """Return `slices`, the thinned activity, `longest`, and `lanes` with the busy time of each stream."""
    gpu = rank.table("gpu", ["event", "track", "start_ns", "dur_ns", "name", "kind"])
    if settings.steps is not None:
        windows = rank.table("steps", ["start_ns", "end_ns"])
        at = gpu.select("start_ns", (pl.col("start_ns") + 1).alias("end_ns"))
        gpu = gpu.filter(intervals.covered(at, windows) > 0)
    names = gpu["name"].unique(maintain_order=True).cast(pl.String).to_list()
    short = pl.DataFrame({"name": names, "short": [short_name(name) for name in names]}, schema_overrides=_TEXT)
    activity = (
        gpu.with_columns(pl.col("name").cast(pl.String))
        .join(short, on="name", how="left", maintain_order="left")
        .with_columns(name="short", rank=pl.lit(rank.rank, pl.Int32), count=pl.lit(1, pl.Int64), busy_ns="dur_ns")
        .sort("track", "start_ns", "event")
        .select(_SLICE)
    )
    world = rank.table("ranks", ["world_size"])["world_size"].drop_nulls().to_list()
    most = max(min(MOST_PER_RANK, settings.slice_budget), settings.slice_budget // max(1, *world, 1))
    slices, resolution = thin(activity, most)
    tracks = rank.table("tracks", ["track", "device", "stream", "name"])
    lanes = (
        activity.group_by("rank", "track")
        .agg(activities=pl.len().cast(pl.Int64), busy_ns=pl.col("dur_ns").sum())
        .join(tracks.rename({"name": "track_name"}), on="track", how="left")
        .with_columns(resolution_ns=pl.lit(resolution, pl.Int64), first_ns=pl.lit(activity["start_ns"].min(), pl.Int64))
        .sort("rank", "track")
    )
    longest = activity.sort(["dur_ns", "start_ns", "track"], descending=[True, False, False]).head(LONGEST)
    return {"slices": slices, "longest": longest.drop("count", "busy_ns"), "lanes": lanes}


_TEXT: Final = {"name": pl.String, "short": pl.String}


def thin(slices: pl.DataFrame, most: int) -> tuple[pl.DataFrame, int]:
    """Merge neighbours until at most `most` slices are left, or one a lane and kind; return them and the resolution.

    `slices` has the columns of a slice, sorted by (rank, track, start_ns), and so has what is returned. The resolution
    is in ns, 0 when nothing was merged.
    """
    resolution = 0
    found = slices
    while found.height > most:
        resolution = max(FIRST_RESOLUTION_NS, 2 * resolution)
        before = found.height
        found = merge(found, resolution)
        if found.height == before and resolution > _extent(found):
            break
    return found, resolution


def _extent(slices: pl.DataFrame) -> int:
    ends = (slices["start_ns"] + slices["dur_ns"]).to_numpy()
    return int(ends.max() - slices["start_ns"].to_numpy().min())


def merge(slices: pl.DataFrame, resolution: int) -> pl.DataFrame:
    """Merge slices shorter than `resolution` with the one before, if it is short too, near, and of the same kind."""
    end = pl.col("start_ns") + pl.col("dur_ns")
    alone = (
        (pl.col("dur_ns") >= resolution)
        | (pl.col("dur_ns").shift(1) >= resolution)
        | (pl.col("start_ns") - end.shift(1) >= resolution)
        | (pl.col("track") != pl.col("track").shift(1))
        | (pl.col("rank") != pl.col("rank").shift(1))
        | (pl.col("kind") != pl.col("kind").shift(1))
    )
    return (
        slices.with_columns(chain=alone.fill_null(True).cum_sum())
        .group_by("chain")
        .agg(
            pl.col("rank", "track", "start_ns", "kind").first(),
            end.max().alias("end_ns"),
            pl.when(pl.len() == 1)
            .then(pl.col("name").first())
            .otherwise(pl.lit("short ") + pl.col("kind").first().cast(pl.String))
            .alias("name"),
            pl.col("count", "busy_ns").sum(),
        )
        .sort("chain")
        .with_columns(dur_ns=pl.col("end_ns") - pl.col("start_ns"))
        .select(_SLICE)
    )


def analyze(parts: Tables, run: RunView, settings: Settings) -> Result:
    """Thin the ranks' slices to the budget of the run and put them on one time axis."""
    lanes = _labelled(parts["lanes"])
    if not lanes.height:
        return Result(status="skipped", reason="no GPU activity starts inside the chosen steps.")
    ranks = lanes["rank"].n_unique()
    shown = lanes
    if ranks > 1:
        busiest = lanes.sort(["rank", "busy_ns", "track"], descending=[False, True, False])
        shown = busiest.group_by("rank", maintain_order=True).head(LANES_OF_MANY)
    given = parts["slices"].join(shown.select("rank", "track"), on=["rank", "track"], how="semi", maintain_order="left")
    share = max(1, settings.slice_budget // ranks)
    thinned = [thin(mine, share) for mine in given.partition_by("rank", maintain_order=True)]
    resolution = max([int(value) for value in lanes["resolution_ns"]] + [r for _, r in thinned])
    shift, aligned = _shifts(lanes, run)
    order = ["rank", "track", "start_ns", "dur_ns", "name"]
    slices = _placed(pl.concat([frame for frame, _ in thinned]), lanes, shift).sort(order)
    longest = _placed(parts["longest"], lanes, shift)
    longest = longest.sort(["dur_ns", *order[:3]], descending=[True, False, False, False]).head(LONGEST)
    activities = int(lanes["activities"].sum())
    notes = []
    if resolution:
        single = slices.filter(pl.col("count") == 1).height
        notes.append(
            f"{activities} activities are drawn as {slices.height} slices, {single} of them single: what is shorter "
            f"than {resolution / 1000:g} µs is merged with its neighbours, and no edge moves by more than that."
        )
    if shown.height < lanes.height:
        notes.append(f"Of each rank the {LANES_OF_MANY} busiest streams are shown, {shown.height} of {lanes.height}.")
    if not aligned:
        notes.append(
            "Clocks of the ranks are not aligned: each rank counts from its own first activity, so times of different "
            "ranks must not be compared."
        )
    columns = ["rank", "lane", "start_ns", "dur_ns", "name", "kind"]
    return Result(
        metrics={
            "activities": activities,
            "slices": slices.height,
            "lanes": shown.height,
            "resolution_ns": resolution,
        },
        tables={
            "slices": slices.select(*columns, "count", "busy_ns"),
            "longest": longest.select(columns),
            "lanes": lanes.select("rank", "lane", "activities", "busy_ns"),
        },
        charts=[
            Chart(
                "timeline", "GPU activity", "slices", label="lane", x="start_ns", y=("dur_ns",), series="kind",
                note="One row a stream of a rank; short activity of one kind is drawn together.",
                options={"text": "name"},
            )
        ],
        notes=notes,
    )  # fmt: skip


def _labelled(lanes: pl.DataFrame) -> pl.DataFrame:
    """Add `lane`, the label of each stream, with its device where a rank uses several."""
    devices = pl.col("device").drop_nulls().n_unique().over("rank") > 1
    device = pl.when(devices).then(pl.format(" device {}", pl.col("device").cast(pl.String).fill_null("?")))
    stream = pl.col("stream").cast(pl.String).fill_null(pl.col("track_name")).fill_null(pl.col("track").cast(pl.String))
    return lanes.with_columns(
        lane=pl.format("rank {}{} stream {}", pl.col("rank"), device.otherwise(pl.lit("")), stream)
    ).sort("rank", "track")


def _shifts(lanes: pl.DataFrame, run: RunView) -> tuple[pl.DataFrame, bool]:
    """Return what to subtract from each rank's times (rank, shift_ns, drift_ppm, t0_ns), and whether clocks agree."""
    first = lanes.group_by("rank").agg(pl.col("first_ns").min()).sort("rank")
    alone = first.select("rank", shift_ns="first_ns", drift_ppm=pl.lit(0.0), t0_ns=pl.lit(0, pl.Int64))
    clocks = run.joined.get("clocks")
    if first.height == 1 or clocks is None:
        return alone, first.height == 1
    base = run.ranks.select("rank", pl.col("base_unix_ns"))
    if base["base_unix_ns"].null_count() == base.height:
        base = base.with_columns(base_unix_ns=pl.lit(0, pl.Int64))
    known = clocks.select("rank", "offset_ns", "drift_ppm", "t0_ns", "component")
    both = first.join(known, on="rank", how="left").join(base, on="rank", how="left").sort("rank")
    if both.select("offset_ns", "base_unix_ns").null_count().sum_horizontal().sum() or both["component"].n_unique() > 1:
        return alone, False
    both = both.with_columns(pl.col("drift_ppm").fill_null(0.0), pl.col("t0_ns").fill_null(0))
    to_run = pl.col("base_unix_ns") + pl.col("offset_ns")
    drift = ((pl.col("first_ns") - pl.col("t0_ns")) * pl.col("drift_ppm") * 1e-6).round().cast(pl.Int64)
    origin = int(both.select((pl.col("first_ns") + to_run + drift).min()).item())
    return both.select("rank", shift_ns=origin - to_run, drift_ppm="drift_ppm", t0_ns="t0_ns"), True


def _placed(slices: pl.DataFrame, lanes: pl.DataFrame, shift: pl.DataFrame) -> pl.DataFrame:
    """Put slices on the time axis of the picture and give them their lane."""
    drift = ((pl.col("start_ns") - pl.col("t0_ns")) * pl.col("drift_ppm") * 1e-6).round().cast(pl.Int64)
    return (
        slices.join(lanes.select("rank", "track", "lane"), on=["rank", "track"], how="left", maintain_order="left")
        .join(shift, on="rank", how="left", maintain_order="left")
        .with_columns(start_ns=pl.col("start_ns") + drift - pl.col("shift_ns"))
    )
