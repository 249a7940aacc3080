"""The job as one graph: who is whose peer, medians, and a replay that gives the simulator's times."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import polars as pl
import pytest
from simulator import Config, simulate, whatif

from tracetool.join.job import Job, places
from tracetool.join.path import critical_path
from tracetool.join.whatif import published_slowdown
from tracetool.run import open_run

if TYPE_CHECKING:
    from pathlib import Path

    from simulator import Run

CONFIG = Config(dp=2, tp=1, pp=4, microbatches=4, hidden=2048, ffn=8192, jitter=0.01, gpus_per_node=4,
                clock_offsets_ns={1: 900_000}, slow_ranks={4: 1.3})  # fmt: skip


def groups(*rows: tuple[str, list[int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"role": pl.String, "ranks": pl.List(pl.Int32)}, orient="row")


def job_of(run: Run, folder: Path) -> Job:
    run.write_kineto(folder, host_names=True)
    with open_run(folder, engine="serial", cache="off") as opened:
        job = Job.of(opened.view.joined)
    assert job is not None
    return job


def step_ns(config: Config) -> float:
    times = simulate(config).step_ns.values()
    return sum(times) / len(times)


def test_peers_share_a_stage() -> None:
    table = groups(("dp", [0, 1]), ("dp", [2, 3]), ("pp", [0, 2]), ("pp", [1, 3]), ("other", [0, 1, 2, 3]))
    assert places([0, 1, 2, 3], table).rows() == [(0, 0, 0), (1, 0, 0), (2, 1, 2), (3, 1, 2)]


def test_without_a_pipeline_groups_of_unknown_role_join_peers() -> None:
    assert places([0, 1], groups(("other", [0, 1])))["peers"].to_list() == [0, 0]
    assert places([0, 1], groups(("other", [0, 1]), ("pp", [0, 1])))["peers"].to_list() == [0, 1]


def test_stages_that_positions_do_not_tell_are_counted() -> None:
    told = groups(("dp", [7, 9]), ("pp", [5, 7]), ("pp", [7, 5]))
    assert places([5, 7, 9], told)["stage"].to_list() == [0, 1, 1]


def test_without_a_pipeline_what_divides_ranks_is_not_known() -> None:
    assert places([5, 7, 9], groups(("dp", [7, 9])))["stage"].to_list() == [None] * 3
    assert places([7, 9], groups(("dp", [7, 9])))["stage"].to_list() == [0, 0]


@pytest.mark.parametrize("p2p", ["async", "batched"])
def test_a_pipeline_without_recorded_peers_replays_as_it_ran(p2p: str, tmp_path: Path) -> None:
    config = CONFIG.replace(p2p=p2p)
    run = simulate(config)
    job = job_of(run, tmp_path)
    assert job.trusted
    assert abs(job.error) < 0.001
    assert job.time_ns() == pytest.approx(sum(run.step_ns.values()) / len(run.step_ns), rel=0.001)
    without = job.time_ns(job.with_ranks_idealised([4]))
    assert without == pytest.approx(step_ns(whatif.without_slow_rank(config, 4)), rel=0.005)
    faster = job.time_ns(job.with_transfers(0.5))
    assert faster == pytest.approx(step_ns(whatif.faster_communication(config, 2)), rel=0.005)


def test_the_path_has_no_gap_and_ends_with_the_run(tmp_path: Path) -> None:
    job = job_of(simulate(CONFIG), tmp_path)
    path = critical_path(job)
    assert (path["start_ns"][1:] == path["end_ns"][:-1]).all()
    length = path["end_ns"][-1] - path["start_ns"][0]
    assert length == round(job.step_ns(job.base.start, job.base.end).sum())


def test_the_published_slowdown_of_equal_ranks_is_one_and_counts_a_heavy_stage(tmp_path: Path) -> None:
    even = CONFIG.replace(jitter=0.0, slow_ranks={}, gpus_per_node=8)
    assert published_slowdown(job_of(simulate(even), tmp_path / "even")) == pytest.approx(1.0, abs=1e-3)
    heavy = even.replace(heavy_stages={3: 1.5})
    truth = step_ns(heavy) / step_ns(whatif.balanced_stages(heavy))
    assert truth > 1.05
    assert published_slowdown(job_of(simulate(heavy), tmp_path / "heavy")) == pytest.approx(truth, rel=0.005)


def test_one_rank_is_no_job_unless_asked_for(tmp_path: Path) -> None:
    simulate(CONFIG).write_kineto(tmp_path, ranks=[0])
    with open_run(tmp_path, engine="serial", cache="off") as opened:
        assert Job.of(opened.view.joined) is None
        alone = Job.of(opened.view.joined, fewest=1)
        assert Job.of(dict(opened.view.joined), fewest=1) is alone
        other = {**opened.view.joined, "edges": opened.view.joined["edges"].head(0)}
        assert Job.of(other, fewest=1) is not alone
    assert alone is not None
    gone = weakref.ref(alone)
    del opened, other
    assert gone() is alone
    assert alone.untold == 1.0
    assert not alone.trusted
    del alone
    gc.collect()
    assert gone() is None
    assert Job.of({}) is None
