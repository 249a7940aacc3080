"""The critical path of simulated runs: it sums to the step, and lies where the step's length comes from."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import polars as pl
import pytest
from simulator import Config, simulate

from tracetool.registry import RunView
from tracetool.run import open_run
from tracetool.settings import Settings
from tracetool.tables import empty

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result

critical_path = import_module("tracetool.analyses.critical_path")
NS = [f"{bucket}_ns" for bucket in critical_path.BUCKETS]
HEAVY = Config(dp=2, tp=1, pp=2, hidden=2048, ffn=8192, p2p_peers=True, steps=3, gpus_per_node=2, slow_ranks={2: 1.5})


def asked(folder: Path) -> Result:
    with open_run(folder, engine="serial", cache="off") as run:
        result: Result = run.results["critical_path"]
    return result


def test_the_pieces_sum_to_each_step_and_the_steps_to_the_run(tmp_path: Path) -> None:
    run = simulate(HEAVY.replace(jitter=0.02, clock_offsets_ns={1: 2_000_000}))
    run.write_kineto(tmp_path, host_names=True)
    result = asked(tmp_path)
    steps = result.tables["steps"]
    assert (steps["step_ns"] == steps.select(pl.sum_horizontal(NS)).to_series()).all()
    assert dict(steps.select("step", "step_ns").iter_rows()) == pytest.approx(run.step_ns, rel=0.002)
    for name in ("buckets", "ops", "ranks"):
        assert result.tables[name]["ns"].sum() == steps["step_ns"].sum()
    slowest = steps.filter(pl.col("step") == result.metrics["slowest_step"])["step_ns"][0]
    assert result.tables["chain"]["ns"].sum() == result.tables["path"]["ns"].sum() == slowest


def test_it_runs_over_the_slow_rank(tmp_path: Path) -> None:
    simulate(HEAVY).write_kineto(tmp_path, host_names=True)
    result = asked(tmp_path)
    assert result.tables["ranks"]["rank"][0] == 2
    assert result.tables["ranks"]["share"][0] > 0.6
    assert result.tables["kernels"]["rank"].head(3).to_list() == [2, 2, 2]
    assert result.findings == ()


def test_without_device_work_it_follows_the_host(tmp_path: Path) -> None:
    config = Config(dp=2, tp=1, pp=1, hidden=64, ffn=64, heads=1, sequence=64, op_ns=200_000)
    simulate(config).write_kineto(tmp_path, host_names=True)
    assert asked(tmp_path).metrics["host_bound_share"] > 0.9  # type: ignore[operator] # a number


def test_one_rank_alone_has_a_path_and_says_what_it_lacks(tmp_path: Path) -> None:
    run = simulate(HEAVY)
    run.write_kineto(tmp_path, ranks=[0])
    result = asked(tmp_path)
    assert result.tables["ranks"]["rank"].to_list() == [0]
    assert any("one rank alone" in note for note in result.notes)


def test_a_run_that_could_not_be_joined_is_told() -> None:
    none = pl.DataFrame()
    view = RunView("", empty("ranks"), none, empty("steps"), empty("quality"), None, {}, {})
    result = critical_path.analyze({}, view, Settings())
    assert (result.status, bool(result.reason)) == ("skipped", True)
