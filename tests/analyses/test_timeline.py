"""The timeline: slices within a budget, a picture that stays true to its resolution."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inmemory import MemoryRank, ask, gpu, rows, run_view, steps

from tracetool.settings import Settings

timeline = import_module("tracetool.analyses.timeline")


def rank_of(number: int, *activities: tuple[int, int, int, str], streams: tuple[int, ...] = (7, 8)) -> MemoryRank:
    """Return a rank from (track, start, dur, kind)."""
    table = gpu(*(a[1:] for a in activities), rank=number).drop("track")
    ordered = sorted(activities, key=lambda a: (a[1], -a[2]))
    table = table.with_columns(track=pl.Series([a[0] for a in ordered], dtype=pl.Int32))
    tracks = rows("tracks", number, ("track", "stream"), *enumerate(streams), kind="gpu", device=0)
    return MemoryRank(number, {"gpu": table, "tracks": tracks, "steps": steps((None, 0, 10**9), rank=number)})


def test_a_small_run_is_drawn_as_it_is() -> None:
    result = ask(timeline, [rank_of(0, (0, 100, 10, "compute"), (1, 105, 50, "comm"))])
    assert result.tables["slices"].select("lane", "start_ns", "dur_ns", "kind", "count").rows() == [
        ("rank 0 stream 7", 0, 10, "compute", 1),
        ("rank 0 stream 8", 5, 50, "comm", 1),
    ]
    assert result.metrics["resolution_ns"] == 0
    assert not result.notes
    assert result.tables["longest"]["dur_ns"].to_list() == [50, 10]
    (chart,) = result.charts
    assert {chart.label, chart.x, *chart.y, chart.series, chart.options["text"]} <= set(result.tables["slices"].columns)


def test_the_budget_holds_and_the_note_names_the_resolution() -> None:
    short = [(0, 1000 * i, 500, "compute") for i in range(100)]
    result = ask(timeline, [rank_of(0, *short, (0, 200_000, 90_000, "compute"))], Settings(slice_budget=10))
    slices = result.tables["slices"]
    assert slices.select("start_ns", "dur_ns", "name", "count", "busy_ns").rows() == [
        (0, 99_500, "short compute", 100, 50_000),
        (200_000, 90_000, "compute_kernel", 1, 90_000),
    ]
    assert any("101 activities are drawn as 2 slices" in note and "1 µs" in note for note in result.notes)


@pytest.mark.parametrize(("world_size", "single"), [(None, 30), (1, 30), (3, 10), (1000, 5)])
def test_a_rank_of_a_large_job_hands_over_less(
    monkeypatch: pytest.MonkeyPatch, world_size: int | None, single: int
) -> None:
    monkeypatch.setattr(timeline, "MOST_PER_RANK", 5)
    # each gap is twice the one before, so that every doubling of the resolution merges one more
    given_rank = rank_of(0, *((0, 1000 * 2**i, 1, "compute") for i in range(40)))
    about = rows("ranks", 0, ("world_size", "format"), (world_size, "kineto"))
    rank = MemoryRank(0, {**given_rank.tables, "ranks": about})
    parts = timeline.per_rank(rank, {}, Settings(slice_budget=30))
    assert parts["slices"].height == single
    assert parts["slices"]["count"].sum() == 40


def test_kinds_and_lanes_never_merge() -> None:
    mixed = [(i % 2, 100 * i, 50, "compute" if i % 4 < 2 else "memcpy") for i in range(8)]
    slices = ask(timeline, [rank_of(0, *mixed)], Settings(slice_budget=1)).tables["slices"]
    assert slices.height == 8


def test_several_ranks_share_the_budget_and_say_that_clocks_differ() -> None:
    ranks = [rank_of(r, *((0, r * 777 + 2000 * i, 500, "compute") for i in range(50))) for r in range(4)]
    result = ask(timeline, ranks, Settings(slice_budget=40))
    assert result.tables["slices"].height <= 40
    assert result.tables["slices"].group_by("rank").agg(pl.col("start_ns").min())["start_ns"].unique().to_list() == [0]
    assert any("not aligned" in note for note in result.notes)


def test_with_clocks_of_the_join_all_ranks_are_on_one_axis() -> None:
    ranks = [rank_of(0, (0, 1_000, 10, "compute")), rank_of(1, (0, 5_000, 10, "compute"))]
    parts: dict[str, Any] = {}
    answers = [timeline.per_rank(r, {}, Settings()) for r in ranks]
    parts = {name: pl.concat([a[name] for a in answers]) for name in answers[0]}
    clocks = pl.DataFrame(
        {"rank": [0, 1], "offset_ns": [0, -3_500], "drift_ppm": [0.0, 0.0], "t0_ns": [0, 0], "component": [0, 0]},
        schema_overrides={"rank": pl.Int32},
    )
    view = replace(run_view(ranks, base_unix_ns=10**18), joined={"clocks": clocks})
    result = timeline.analyze(parts, view, Settings())
    assert result.tables["slices"]["start_ns"].to_list() == [0, 500]
    assert not result.notes


def test_many_streams_of_many_ranks_are_cut_to_the_busiest() -> None:
    streams = tuple(range(6))
    ranks = [rank_of(r, *((t, 10 * t, 5 + t, "compute") for t in streams), streams=streams) for r in (0, 1)]
    result = ask(timeline, ranks)
    assert result.metrics["lanes"] == 8
    assert result.tables["slices"].filter(pl.col("rank") == 1)["lane"].to_list() == [
        f"rank 1 stream {s}" for s in (2, 3, 4, 5)
    ]
    assert any("8 of 12" in note for note in result.notes)


def test_nothing_inside_the_chosen_steps_is_skipped() -> None:
    rank = rank_of(0, (0, 100, 10, "compute"))
    tables = {**rank.tables, "steps": steps((1, 500, 600))}
    assert ask(timeline, [MemoryRank(0, tables)], Settings(steps=(1,))).status == "skipped"


ACTIVITY = st.tuples(
    st.integers(0, 1), st.integers(0, 60_000), st.integers(1, 5_000), st.sampled_from(["compute", "comm"])
)


@settings(deadline=None)
@given(st.lists(ACTIVITY, min_size=1, max_size=30), st.integers(1, 12))
def test_no_edge_moves_by_more_than_the_resolution(activities: list[tuple[int, int, int, str]], budget: int) -> None:
    result = ask(timeline, [rank_of(0, *activities)], Settings(slice_budget=budget))
    slices = result.tables["slices"]
    resolution = result.metrics["resolution_ns"]
    assert isinstance(resolution, int)
    assert slices["count"].sum() == len(activities)
    assert slices["busy_ns"].sum() == sum(a[2] for a in activities)
    origin = min(a[1] for a in activities)
    drawn = [
        (lane, kind, s + origin, s + origin + d)
        for lane, kind, s, d in slices.select("lane", "kind", "start_ns", "dur_ns").iter_rows()
    ]
    for track, start, dur, kind in activities:
        lane = f"rank 0 stream {(7, 8)[track]}"
        assert any(k == kind and ln == lane and s <= start and start + dur <= e for ln, k, s, e in drawn)
        if dur >= resolution:
            assert any((s, e) == (start, start + dur) for _, _, s, e in drawn)


@pytest.mark.parametrize("most", [1, 3, 100])
def test_thinning_always_ends(most: int) -> None:
    activity = ask(timeline, [rank_of(0, (0, 0, 10**9, "compute"), (0, 2 * 10**9, 5, "comm"))]).tables["slices"]
    slices = activity.with_columns(track=pl.lit(0, pl.Int32)).select(timeline._SLICE)  # noqa: SLF001 - the order of its columns
    found, _ = timeline.thin(slices, most)
    assert found.height == 2
