"""From files to numbers: what is read, derived and counted on simulated runs equals the simulator's truth to the ns."""

from __future__ import annotations

import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from inmemory import MemoryRank, ask
from simulator import Config, simulate
from simulator.record import BASE_UNIX_NS

from tracetool.derive.rank import derive
from tracetool.registry import ParseOptions
from tracetool.run import open_run
from tracetool.settings import Settings
from tracetool.tables import frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulator import Run, Truth

    from tracetool.results import Result
    from tracetool.tables import Tables

budget, mfu, overlap = (import_module(f"tracetool.analyses.{name}") for name in ("budget", "mfu", "overlap"))
kineto = import_module("tracetool.parsers.kineto")

KEY = ("rank", "step")
CONFIGS = st.builds(
    Config,
    dp=st.sampled_from([1, 2]),
    tp=st.sampled_from([1, 2]),
    pp=st.sampled_from([1, 2, 3]),
    cp=st.sampled_from([1, 1, 2]),
    ep=st.sampled_from([1, 1, 2]),
    gpus_per_node=st.sampled_from([2, 8]),
    dp_mode=st.sampled_from(["ddp", "zero1", "fsdp"]),
    schedule=st.sampled_from(["1f1b", "gpipe", "zb1p"]),
    microbatches=st.integers(1, 3),
    p2p=st.sampled_from(["async", "batched"]),
    p2p_peers=st.booleans(),
    recompute=st.sampled_from([False, True, "early_stop"]),
    bias=st.booleans(),
    custom_all_reduce=st.booleans(),
    jitter=st.sampled_from([0.0, 0.05]),
    comm_jitter=st.sampled_from([0.0, 0.3]),
    end_jitter_ns=st.sampled_from([0, 3_000]),
    latency_ns=st.sampled_from([1_000, 6_000]),
    latency_jitter_ns=st.sampled_from([0, 9_000]),
    op_ns=st.sampled_from([1_500, 30_000]),
    sync_step=st.booleans(),
    checkpoint_step=st.sampled_from([None, 5, 6]),
    unrecorded_steps=st.sampled_from([0, 1]),
    warmup_work=st.booleans(),
    between_steps_work=st.booleans(),
    profiler_steps=st.sampled_from([True, True, True, False]),
    recorded_steps=st.sampled_from([{}, {0: (6, 6)}]),
    slow_ranks=st.sampled_from([{}, {0: 1.4}]),
    clock_offsets_ns=st.sampled_from([{}, {0: 1_000_000, 1: -700_001}]),
    resolution_ns=st.sampled_from([1, 1000]),
    seed=st.integers(0, 99),
).filter(lambda c: (c.profiler_steps or not c.recorded_steps) and c.dp % c.ep == 0 and c.world_size <= 12)

FILES = st.fixed_dictionaries(
    {
        "pretty": st.booleans(),
        "keys_after": st.booleans(),
        "external_ids": st.sampled_from(["valid", "dangling", "none"]),
        "comm_args": st.booleans(),
        "flows": st.booleans(),
        "memory": st.booleans(),
        "python_functions": st.booleans(),
        "sync_events": st.booleans(),
    }
)


def read(run: Run, directory: Path, ranks: Sequence[int] | None = None, **options: Any) -> list[MemoryRank]:  # noqa: ANN401 - options of the writer
    """Write ranks of a run, read them again and derive what one rank can know."""
    times = "epoch_integer" if run.config.resolution_ns == 1000 else "base"
    found = []
    for trace, path in zip(run.select(ranks), run.write_kineto(directory, ranks, times=times, **options), strict=True):
        tables = kineto.parse(path, ParseOptions(path.name))
        found.append(MemoryRank(trace.place.rank, tables | derive(tables, Settings())))
    return found


def facts(truth: Truth, rank: MemoryRank) -> Tables:
    """Return the true facts about a rank, as a perfect join would give them."""
    gpu = rank.tables["gpu"].join(rank.tables["events"].select("event", "correlation"), on="event")
    event_of = dict(gpu.select("correlation", "event").iter_rows())
    mine = [w for w in truth.waits() if w["rank"] == rank.rank]
    waits = frame(
        "waits",
        {
            "rank": [rank.rank] * len(mine),
            "event": [event_of[w["correlation"]] for w in mine],
            "wait_end_ns": [shifted(truth, w["wait_end_ns"]) for w in mine],
            "role": [w["role"] for w in mine],
            "basis": ["arrival"] * len(mine),
        },
    )
    spans = [(shifted(truth, start), shifted(truth, end)) for start, end in truth.bubbles(rank.rank)]
    bubbles = frame(
        "bubbles",
        {
            "rank": [rank.rank] * len(spans),
            "start_ns": [start for start, _ in spans],
            "end_ns": [end for _, end in spans],
        },
    )
    return {"waits": waits, "bubbles": bubbles}


def shifted(truth: Truth, ns: int) -> int:
    """Return a time as the file counts it: files of whole microseconds count from 1970."""
    return ns + (BASE_UNIX_NS if truth.config.resolution_ns == 1000 else 0)


def rows_of(result: Result, table: str) -> list[dict[str, Any]]:
    assert result.status == "ok", result.reason
    return result.tables[table].to_dicts()


def without_dry_bubbles(row: dict[str, Any]) -> dict[str, Any]:
    """Put together what only the pipeline's slots can tell apart: dry time that waits for a stage, or for the host."""
    dry = sum(row[f"{bucket}_ns"] for bucket in ("pipeline_bubble", "host_bound", "idle"))
    return {k: v for k, v in row.items() if k not in ("pipeline_bubble_ns", "host_bound_ns", "idle_ns")} | {"dry": dry}


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]], key: Sequence[str]) -> None:
    def keyed(rows: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
        return {tuple(row[k] for k in key): {name: row[name] for name in wanted[0]} for row in rows}

    assert keyed(found) == keyed(wanted)


@settings(max_examples=10, deadline=None)
@given(CONFIGS, FILES)
def test_budget_and_overlap_equal_the_truth(config: Config, files: dict[str, Any]) -> None:
    run = simulate(config)
    with tempfile.TemporaryDirectory() as directory:
        ranks = read(run, Path(directory), **files)
    alone = run.truth()
    same(rows_of(ask(budget, ranks), "per_rank_step"), alone.budget(), KEY)
    communicates = any(row["comm_ns"] for row in alone.overlap())
    if communicates:
        found = [row for row in rows_of(ask(overlap, ranks), "per_rank_step") if row["role"] == "all"]
        same(found, [row for row in alone.overlap() if row["role"] == "all"], KEY)

    joined = run.truth(joined=True)
    knowing = [MemoryRank(r.rank, r.tables, facts(joined, r)) for r in ranks]
    same(rows_of(ask(budget, knowing), "per_rank_step"), joined.budget(), KEY)
    if communicates:
        same(rows_of(ask(overlap, knowing), "per_rank_step"), joined.overlap(), ["rank", "step", "role"])


@settings(max_examples=8, deadline=None)
@given(CONFIGS)
def test_rank_0_alone_equals_the_truth_about_rank_0(config: Config) -> None:
    run = simulate(config)
    with tempfile.TemporaryDirectory() as directory:
        ranks = read(run, Path(directory), ranks=[0])
    same(rows_of(ask(budget, ranks), "per_rank_step"), run.truth(ranks=[0]).budget(), KEY)


@settings(max_examples=8, deadline=None)
@given(CONFIGS, FILES)
def test_kernels_orphans_and_phases_equal_the_truth(config: Config, files: dict[str, Any]) -> None:
    run = simulate(config)
    with tempfile.TemporaryDirectory() as directory:
        ranks = read(run, Path(directory), **files)
    truth = run.truth()
    for rank, trace in zip(ranks, run.traces, strict=True):
        gpu = rank.tables["gpu"]
        kernels = gpu.filter(pl.col("kind").is_in(["compute", "comm"]))["name"].cast(pl.String).to_list()
        assert Counter(kernels) == {name: n for (r, name), n in truth.kernel_counts().items() if r == rank.rank}
        orphans = sum(a.launch_start_ns is None for a in trace.activities)
        assert gpu["launch"].null_count() == orphans
        phases = gpu.drop_nulls("launch").group_by("phase").agg(pl.col("dur_ns").sum())
        found = dict(phases.select(pl.col("phase").cast(pl.String), "dur_ns").iter_rows())
        for phase in ("backward", "recompute", "optimizer", "checkpoint"):
            launched = [a for a in trace.activities if a.launch_start_ns is not None and a.tags.get("phase") == phase]
            assert found.get(phase, 0) == sum(a.end_ns - a.start_ns for a in launched)


@settings(max_examples=8, deadline=None)
@given(CONFIGS, FILES)
def test_flops_equal_the_truth(config: Config, files: dict[str, Any]) -> None:
    run = simulate(config.replace(profiler_steps=True, resolution_ns=1))
    with tempfile.TemporaryDirectory() as directory:
        ranks = read(run, Path(directory), **files)
    result = ask(mfu, ranks, device_name=config.device_name)
    wanted = [{k: row[k] for k in ("rank", "step", "model_flops", "hardware_flops")} for row in run.truth().flops()]
    same(rows_of(result, "per_rank_step"), wanted, KEY)


@settings(max_examples=8, deadline=None)
@given(
    CONFIGS.map(
        lambda c: c.replace(end_jitter_ns=0, clock_offsets_ns={}, custom_all_reduce=False, p2p="async", p2p_peers=True)
    ),
    FILES.map(lambda f: {**f, "comm_args": True}),
)
def test_joined_ranks_tell_waiting_as_the_truth_does(config: Config, files: dict[str, Any]) -> None:
    run = simulate(config)
    times = "epoch_integer" if config.resolution_ns == 1000 else "base"
    with tempfile.TemporaryDirectory() as directory:
        run.write_kineto(Path(directory), times=times, **files)
        opened = open_run(directory, engine="serial", cache="off")
        truth = run.truth(joined=True)
        found = rows_of(opened.results["budget"], "per_rank_step")
        same([without_dry_bubbles(row) for row in found], [without_dry_bubbles(row) for row in truth.budget()], KEY)
        if any(row["comm_ns"] for row in truth.overlap()):
            same(rows_of(opened.results["overlap"], "per_rank_step"), truth.overlap(), ["rank", "step", "role"])
