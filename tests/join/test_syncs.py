"""Recorded waits between streams and of the host: small tables in, pairs of activities out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from inmemory import MemoryRank, gpu, rows, steps
from simulator import Config, simulate, whatif

from tracetool.join.job import Job
from tracetool.join.segments import COMPUTE, COPY, HOST, segments
from tracetool.join.syncs import Launched, between, syncs
from tracetool.run import open_run

if TYPE_CHECKING:
    from pathlib import Path

NONE = pl.DataFrame(
    schema={"event": pl.Int64, "group_id": pl.Int32, "instance": pl.Int64, "sent_ns": pl.Int64, "sent_by": pl.Int32}
)
STREAMS = rows("tracks", 0, ("track", "device", "stream"), (1, 0, 7), (2, 0, 20), (5, 1, 7), kind="gpu")
STREAM_WAIT, STREAM_SYNC, EVENT_SYNC = "Stream Wait Event", "Stream Sync", "Event Sync"


def events(*given: tuple[int, int, int, int, str, str, int]) -> pl.DataFrame:
    """Return events from (event, track, start, duration, category, name, correlation)."""
    columns = ("event", "track", "start_ns", "dur_ns", "category", "name", "correlation")
    return rows("events", 0, columns, *given)


def sync_rows(*given: tuple[int, str, int | None, int | None, int | None]) -> pl.DataFrame:
    return rows("syncs", 0, ("event", "sync_kind", "stream", "wait_on_stream", "wait_on_correlation"), *given)


def test_a_wait_names_the_call_that_recorded_its_event_and_the_stream_of_the_same_device() -> None:
    calls = events(
        (0, 9, 50, 2, "runtime", "cudaEventRecord", 11),
        (1, 9, 60, 2, "runtime", "cudaStreamWaitEvent", 12),
        (2, 2, 61, 1, "sync", STREAM_WAIT, 12),
    )
    told = syncs(MemoryRank(0, {"events": calls, "tracks": STREAMS, "syncs": sync_rows((2, STREAM_WAIT, 20, 7, 11))}))
    assert told.waits is not None
    assert told.waits.select("track", "at_ns", "awaited", "recorded_ns").rows() == [(2, 60, 1, 50)]


@pytest.mark.parametrize("record", [None, 99])
def test_waits_for_events_whose_record_is_not_in_the_trace_tell_nothing(record: int | None) -> None:
    calls = events((1, 9, 60, 2, "runtime", "cudaStreamWaitEvent", 12), (2, 2, 61, 1, "sync", STREAM_WAIT, 12))
    tables = {"events": calls, "tracks": STREAMS, "syncs": sync_rows((2, STREAM_WAIT, 20, 7, record))}
    assert syncs(MemoryRank(0, tables)).waits is None


def test_without_synchronisations_there_is_nothing() -> None:
    told = syncs(MemoryRank(0, {}))
    assert (told.waits, told.host.height) == (None, 0)


def test_what_was_launched_last_before_the_record_holds_what_is_launched_first_after_the_wait() -> None:
    launched = Launched(np.array([1, 1, 1, 2, 2]), np.array([10, 20, 30, 15, 40]), np.array([True] * 5))
    schema = {"track": pl.Int64, "at_ns": pl.Int64, "awaited": pl.Int64, "recorded_ns": pl.Int64}
    waits = pl.DataFrame([(2, 16, 1, 25), (2, 50, 1, 25), (2, 12, 1, 5), (2, 12, 3, 25)], schema=schema, orient="row")
    pred, waiter = between(launched, waits)
    assert list(zip(pred.tolist(), waiter.tolist(), strict=True)) == [(1, 4)]


def overlapped(*, told: bool) -> MemoryRank:
    """Return a rank whose copy waits for the first of two kernels and starts with the end of the second by chance."""
    table = gpu((10, 50, "compute", 4, 5), (60, 40, "compute", 6, 7), (100, 30, "memcpy", 12, 13)).with_columns(
        track=pl.Series([1, 1, 2], dtype=pl.Int32), step=pl.lit(1, pl.Int32)
    )
    calls = events(
        (900, 9, 5, 1, "runtime", "cudaEventRecord", 11),
        (901, 9, 10, 1, "runtime", "cudaStreamWaitEvent", 12),
        (902, 2, 10, 1, "sync", STREAM_WAIT, 12),
        (903, 9, 20, 42, "runtime", "cudaEventSynchronize", 13),
        (904, 8, 20, 42, "sync", EVENT_SYNC, 13),
    )
    one_device = STREAMS.filter(pl.col("device") == 0)
    tables = {"gpu": table, "events": calls, "tracks": one_device, "steps": steps((1, 0, 200))}
    if told:
        tables["syncs"] = sync_rows((902, STREAM_WAIT, 20, 7, 11), (904, EVENT_SYNC, None, 7, 11))
    return MemoryRank(0, tables)


def test_recorded_waits_replace_inferred_ones() -> None:
    found = segments(overlapped(told=True), {}, NONE)
    (copy,) = found["nodes"].filter(pl.col("kind") == COPY)["node"].to_list()
    first, second = found["nodes"].filter(pl.col("kind") == COMPUTE)["node"].to_list()
    between_streams = found["edges"].filter(pl.col("recorded").is_not_null())
    assert between_streams.select("pred", "node", "recorded").rows() == [(first, copy, True)]
    guessed = segments(overlapped(told=False), {}, NONE)
    assert True not in guessed["edges"]["recorded"].to_list()
    (wait,) = found["nodes"].filter((pl.col("kind") == HOST) & (pl.col("start_ns") == 20))["node"].to_list()
    # the host waits for the event behind the first kernel, not for what is launched on that stream after it
    assert found["edges"].filter((pl.col("node") == wait) & (pl.col("pred") == first)).height == 1
    assert second > first


def test_a_recorded_wait_that_the_times_contradict_is_left_out() -> None:
    rank = overlapped(told=True)
    early = rank.tables["gpu"].with_columns(
        start_ns=pl.when(pl.col("kind") == "memcpy").then(-9_000).otherwise("start_ns")
    )
    found = segments(MemoryRank(0, {**rank.tables, "gpu": early.sort("start_ns")}), {}, NONE)
    assert found["edges"]["recorded"].drop_nulls().to_list() == []


@pytest.mark.parametrize("told", [True, False])
def test_a_run_says_which_and_its_what_ifs_hold(tmp_path: Path, *, told: bool) -> None:
    config = Config(dp=4, tp=1, pp=1, dp_mode="fsdp", layers=3, hidden=2048, microbatches=2, nvlink_gbs=60.0)
    simulate(config).write_kineto(tmp_path, sync_events=told, host_names=True)
    with open_run(tmp_path, engine="serial", cache="off") as opened:
        job = Job.of(opened.view.joined)
    assert job is not None
    assert job.stream_waits.endswith("as the tracer recorded it" if told else "events=True) would tell")
    assert job.error == pytest.approx(0, abs=1e-4)
    truth = simulate(whatif.faster_communication(config, 2)).step_ns.values()
    # what was inferred from one run need not hold in another: recorded waits are nearer
    assert job.time_ns(job.with_transfers(0.5)) == pytest.approx(sum(truth) / len(truth), rel=0.005 if told else 0.05)
