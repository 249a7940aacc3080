"""Savings made real in the replay: taken from where they were spent, and what a simulated run really gains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest
from simulator import Config, Stall, simulate, whatif

from tracetool.join.job import Job
from tracetool.join.price import price
from tracetool.join.saving import what_runs, without
from tracetool.join.segments import COMM, COMPUTE, HOST
from tracetool.results import SAVING_SCHEMA, Finding
from tracetool.run import open_run

if TYPE_CHECKING:
    from pathlib import Path

    from simulator import Run

CONFIG = Config(
    dp=2, tp=1, pp=1, hidden=2048, ffn=8192, grad_overlap=False, steps=3, stalls=(Stall(1, 2_000_000, "sync"),)
)


def opened(run: Run, folder: Path) -> tuple[Job, pl.DataFrame]:
    run.write_kineto(folder, host_names=True)
    with open_run(folder, engine="serial", cache="off") as found:
        job = Job.of(found.view.joined)
        steps = found.view.steps
    assert job is not None
    return job, steps


def at(job: Job, kind: int, rank: int) -> pl.DataFrame:
    """Return where nodes of a kind start to work on a rank, by step."""
    mine = (job.kind == kind) & (job.rank == rank) & (job.step >= 0)
    nodes = job.nodes.filter(pl.Series(mine))
    return nodes.select("rank", "step", at_ns=pl.col("end_ns") - pl.col("value_ns")).unique(
        "step", keep="first", maintain_order=True
    )


def step_ns(config: Config) -> float:
    times = simulate(config).step_ns.values()
    return sum(times) / len(times)


def test_what_runs_is_told_apart(tmp_path: Path) -> None:
    job, _ = opened(simulate(CONFIG), tmp_path)
    for kind in (COMPUTE, COMM):
        rows = at(job, kind, 0)
        assert set(what_runs(job, rows.with_columns(ns=1)).tolist()) == {kind}
    before = pl.DataFrame({"rank": [0], "step": [5], "at_ns": [-(10**15)]}, schema_overrides={"rank": pl.Int32})
    assert what_runs(job, before).tolist() == [HOST]


def test_waiting_cannot_be_taken_out(tmp_path: Path) -> None:
    job, steps = opened(simulate(CONFIG), tmp_path)
    waits = job.nodes.filter(
        (pl.col("kind") == COMM) & (pl.col("end_ns") - pl.col("start_ns") > pl.col("value_ns") + 1_000)
    )
    saving = waits.select("rank", "step", at_ns="start_ns", ns=pl.lit(5_000)).head(1)
    assert saving.height
    assert without(job, saving, steps) is None


def test_transfers_cut_in_half_give_what_the_simulation_gives(tmp_path: Path) -> None:
    run = simulate(CONFIG.replace(stalls=()))
    job, steps = opened(run, tmp_path)
    half = job.nodes.filter(pl.col("kind") == COMM).group_by("rank", "step").agg(ns=pl.col("value_ns").sum() // 2)
    rows = pl.concat([at(job, COMM, rank) for rank in (0, 1)]).join(half, on=["rank", "step"])
    saved = job.time_ns() - job.time_ns(without(job, rows.sort("rank", "step"), steps))
    truth = step_ns(run.config) - step_ns(whatif.faster_communication(run.config, 2))
    assert saved == pytest.approx(truth, rel=0.05)


def test_a_gap_of_the_host_cut_gives_what_the_simulation_gives(tmp_path: Path) -> None:
    run = simulate(CONFIG)
    job, steps = opened(run, tmp_path)
    gaps = job.nodes.filter((pl.col("kind") == HOST) & (pl.col("rank") == 1)).sort("start_ns")
    # the stall follows the host's wait in the middle of a step
    stalled = gaps["end_ns"].to_list()
    rows = [
        (1, step, max(end for end in stalled if start <= end < start + (stop - start) * 0.9), 2_000_000)
        for step, start, stop in steps.filter(pl.col("rank") == 1).select("step", "start_ns", "end_ns").iter_rows()
    ]
    saving = pl.DataFrame(rows, schema=SAVING_SCHEMA, orient="row")
    saved = job.time_ns() - job.time_ns(without(job, saving, steps))
    truth = step_ns(run.config) - step_ns(run.config.replace(stalls=()))
    assert saved == pytest.approx(truth, rel=0.05)


def finding(name: str, saving: pl.DataFrame) -> Finding:
    return Finding(
        id=name, analysis="stragglers", severity="warning", title="t", detail="d", advice="a", confidence="high",
        confidence_why="w", saving=saving.select(pl.col(n).cast(t) for n, t in SAVING_SCHEMA.items()),
    )  # fmt: skip


def test_a_finding_is_priced_by_replay_and_one_hidden_behind_a_costlier_stays_grave(tmp_path: Path) -> None:
    config = Config(dp=4, tp=1, pp=1, hidden=2048, ffn=8192, slow_ranks={0: 1.5, 1: 1.3})
    run = simulate(config)
    run.write_kineto(tmp_path, host_names=True)
    with open_run(tmp_path, engine="serial", cache="off") as opened_run:
        found = {f.id: f for f in opened_run.priced([opened_run.results["stragglers"]])}
        bound = {f.id: f for f in price(opened_run.results["stragglers"].findings, opened_run.view.steps)}
    assert {f.price_basis for f in found.values()} == {"replay"}
    assert {f.price_basis for f in bound.values()} == {"bound"}
    truth = step_ns(config) - step_ns(config.replace(slow_ranks={1: 1.3}))
    assert found["stragglers.rank-0"].recoverable_ns_per_step == pytest.approx(truth, rel=0.05)
    assert found["stragglers.rank-1"].recoverable_ns_per_step == pytest.approx(0, abs=2_000)
    assert found["stragglers.rank-1"].severity != "info"


def test_ranks_the_replay_does_not_know_are_not_priced_by_it(tmp_path: Path) -> None:
    job, steps = opened(simulate(CONFIG), tmp_path)
    assert without(job, pl.DataFrame([(9, 5, 0, 10)], schema=SAVING_SCHEMA, orient="row"), steps) is None
    assert without(job, pl.DataFrame(schema=SAVING_SCHEMA), steps) is None
