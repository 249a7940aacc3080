"""Dumps of several starts or several jobs in one directory: the newest set counts, a mixture gets no verdict."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import polars as pl
import pytest
from hang_harness import diagnose, read
from simulator_hangs.job import Config, Job, simulate
from simulator_hangs.recorder import Style, write

from tracetool import postmortem
from tracetool.join.dumpsets import set_name

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result
    from tracetool.tables import Tables

MINUTES = 60 * 10**9


def dumps(folder: Path, job: Job, name: str, later_ns: int = 0) -> list[Tables]:
    """Return the dumps of a job as read from folder `name`, with all times later by `later_ns`."""
    place = folder / name
    place.mkdir()
    write(job, place, Style())
    for path in place.iterdir():
        at = path.stat().st_mtime_ns + later_ns
        os.utime(path, ns=(at, at))
    times = pl.col("^(created_unix_ns|newest_unix_ns|completed_unix_ns)$") + later_ns
    return [{table: rows.with_columns(times) for table, rows in one.items()} for one in read(place, name)]


def job(fault: str, seed: int, *, dp: int = 4) -> Job:
    return simulate(Config(dp=dp, tp=2, pp=1, fault=fault, seed=seed))


def blamed(result: Result) -> tuple[object, object]:
    return result.metrics["cause"], result.metrics["culprits"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a/nccl_trace_rank_12", "a/nccl_trace_rank_*"),
        ("job7/_dump_3.json.gz", "job7/_dump_*.json.gz"),
        ("one", "one"),
    ],
)
def test_a_set_is_named_without_the_rank(source: str, expected: str) -> None:
    assert set_name(source) == expected


def test_of_two_starts_the_newer_counts_and_the_older_is_told(tmp_path: Path) -> None:
    before, now = job("late", 3), job("stuck", 5)
    result = diagnose([*dumps(tmp_path, now, "second", 20 * MINUTES), *dumps(tmp_path, before, "first")])
    assert blamed(result) == (now.cause, now.culprits)
    assert result.metrics["confidence"] == "medium"
    told = [line for line in postmortem.lines({"hangs": result}) if "left aside" in line]
    assert told
    assert "second/nccl_trace_rank_*" in told[0]
    assert "first/nccl_trace_rank_*" in " ".join(result.tables["verdict"]["line"])
    coverage = result.tables["coverage"].select("state", "files", "count").rows()
    assert coverage == [
        ("read", "second/nccl_trace_rank_*", 8),
        ("earlier start", "first/nccl_trace_rank_*", 8),
    ]


def test_a_rank_without_a_record_belongs_to_its_own_set(tmp_path: Path) -> None:
    """Only active records were dumped: the late rank has none, and its older dump must not take their place."""
    before, now = job("stuck", 5), job("late", 3)
    active = Style(only_active=True)
    for name, one in (("first", before), ("second", now)):
        (tmp_path / name).mkdir()
        write(one, tmp_path / name, active)
    old = [
        {table: rows.with_columns(pl.col("^(created|newest|file|completed)_unix_ns$") - 20 * MINUTES)
         for table, rows in one.items()}
        for one in read(tmp_path / "first", "first")
    ]  # fmt: skip
    assert blamed(diagnose([*old, *read(tmp_path / "second", "second")])) == (now.cause, now.culprits)


def test_a_dead_ranks_dump_of_the_start_before_is_no_dump(tmp_path: Path) -> None:
    before, now = job("late", 3), job("dead", 7)
    result = diagnose([*dumps(tmp_path, before, "first"), *dumps(tmp_path, now, "second", 20 * MINUTES)])
    assert blamed(result) == ("no_dump", now.culprits)


def test_pickle_and_json_of_one_moment_are_one_set(tmp_path: Path) -> None:
    one = job("late", 3)
    for name, style in (("pickle", Style()), ("json", Style(as_json=True))):
        (tmp_path / name).mkdir()
        write(one, tmp_path / name, style)
    result = diagnose([*read(tmp_path / "pickle", "pickle"), *read(tmp_path / "json", "json")])
    assert blamed(result) == (one.cause, one.culprits)
    assert result.metrics["dumps_left_aside"] == 0
    assert result.metrics["confidence"] == "high"


def test_two_jobs_at_once_get_no_verdict(tmp_path: Path) -> None:
    one, other = job("late", 3), job("stuck", 5)
    result = diagnose([*dumps(tmp_path, one, "a"), *dumps(tmp_path, other, "b", 1_000)])
    assert blamed(result) == ("unknown", ())
    assert result.metrics["confidence"] == "low"
    told = " ".join(postmortem.lines({"hangs": result}))
    assert "several jobs" in told
    assert "a/nccl_trace_rank_*" in told
    assert "b/nccl_trace_rank_*" in told


def test_ranks_that_list_one_group_differently_are_of_several_jobs(tmp_path: Path) -> None:
    """A job of 4 wrote over the first dumps of a job of 16 in the same folder: no rank stands there twice."""
    large, small = job("late", 3, dp=8), job("late", 4, dp=2)
    rest = [one for one in dumps(tmp_path, large, "y") if one["ranks"]["rank"].item() > 3]
    result = diagnose([*dumps(tmp_path, small, "x"), *rest])
    assert blamed(result) == ("unknown", ())
    told = " ".join(result.tables["verdict"]["line"])
    assert "group 0 is ranks 0-15" in told
    assert "group 0 is ranks 0-3" in told


@pytest.mark.parametrize("folder", ["flight_recorder", "flight_recorder_gloo"])
def test_labelled_incidents_side_by_side(shared: Path, folder: str) -> None:
    """Two incidents 18 minutes apart, and seven runs: the newest alone is judged, never with high confidence."""
    where = shared / "nccl" / folder
    sources = [tables for place in sorted(where.iterdir()) for tables in read(place, place.name)]
    result = diagnose(sources)
    assert result.metrics["confidence"] != "high"
    assert "left aside" in " ".join(postmortem.lines({"hangs": result}))
    if folder == "flight_recorder":
        assert blamed(result) == ("never_launched", (9, 14))
        assert "gpu_error_2nd" in " ".join(result.tables["verdict"]["line"])
