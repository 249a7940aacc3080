"""Simulated jobs through files: planted stragglers are found and only they."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from simulator import Config, SlowLink, Stall, simulate, whatif
from simulator_nsight import write
from simulator_nsight.bridge import capture_of
from straggler_cases import draw

from tracetool.run import open_run

if TYPE_CHECKING:
    from pathlib import Path

    from simulator import Run

    from tracetool.results import Result

WORK: dict[str, Any] = {
    "layers": 1,
    "hidden": 2048,
    "ffn": 8192,
    "heads": 16,
    "jitter": 0.01,
    "comm_jitter": 0.1,
    "host_jitter": 0.1,
}
"""Enough work a kernel that the GPU is the slower side; noise as on a healthy machine."""
SKEWED: dict[str, Any] = {
    "gpus_per_node": 4,
    "clock_offsets_ns": {1: 1_700_000, 2: -900_000, 3: 333_333},
    "clock_drifts_ppm": {1: 6.0},
}


def asked(run: Run, folder: Path) -> Result:
    run.write_kineto(folder, host_names=True)
    with open_run(folder, engine="serial", cache="off") as opened:
        result = opened.results["stragglers"]
    assert result.status == "ok", result.reason
    return result


def named(result: Result) -> dict[int, str]:
    rows = result.tables["ranks"].select("rank", "cause").drop_nulls()
    return dict(rows.iter_rows())


def step_ns(config: Config) -> float:
    times = simulate(config).step_ns.values()
    return sum(times) / len(times)


GRIDS = {
    "dp8": Config(dp=8, tp=1, pp=1, microbatches=2, **WORK, **SKEWED),
    "tp8": Config(dp=1, tp=8, pp=1, microbatches=2, **WORK, **SKEWED),
    "fsdp8": Config(dp=8, tp=1, pp=1, microbatches=2, dp_mode="fsdp", **WORK, **SKEWED),
    "dp2 tp2 pp2": Config(dp=2, tp=2, pp=2, p2p_peers=True, **WORK, **SKEWED),
    "dp4 pp4": Config(dp=4, tp=1, pp=4, p2p_peers=True, **WORK, **SKEWED),
    "dp2 tp2 pp4": Config(dp=2, tp=2, pp=4, p2p_peers=True, microbatches=2, **WORK, **SKEWED),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_slow_device_is_found_and_nobody_else(name: str, tmp_path: Path) -> None:
    grid = GRIDS[name]
    slow = grid.world_size - 3
    config = grid.replace(slow_ranks={slow: 1.15}, seed=len(name))
    run = simulate(config)
    result = asked(run, tmp_path)
    assert named(result) == {slow: "device"}
    assert result.metrics["worst_rank"] == slow
    assert abs(result.metrics["replay_error"]) < 0.02  # type: ignore[arg-type] # a float
    truth = sum(run.step_ns.values()) / len(run.step_ns) / step_ns(whatif.without_slow_rank(config, slow))
    assert result.metrics["slowdown"] == pytest.approx(truth, rel=0.025)
    assert [finding.where.ranks for finding in result.findings if finding.id.startswith("stragglers.rank")] == [(slow,)]


@pytest.mark.parametrize("name", GRIDS)
def test_a_healthy_run_names_nobody(name: str, tmp_path: Path) -> None:
    result = asked(simulate(GRIDS[name].replace(seed=7)), tmp_path)
    assert named(result) == {}
    assert result.metrics["worst_rank"] is None
    assert result.metrics["slowdown"] == 1.0
    assert not [finding for finding in result.findings if finding.where.ranks]


def test_sixty_four_ranks(tmp_path: Path) -> None:
    config = Config(dp=4, tp=4, pp=4, microbatches=2, p2p_peers=True, slow_ranks={37: 1.15}, **WORK, **SKEWED)
    assert named(asked(simulate(config), tmp_path)) == {37: "device"}


def test_several_at_once_each_for_its_own_reason(tmp_path: Path) -> None:
    config = Config(
        dp=4,
        tp=2,
        pp=1,
        steps=3,
        microbatches=2,
        slow_ranks={1: 1.3, 6: 1.2},
        stalls=(Stall(3, 3_000_000, "dataloader"),),
        **WORK,
        **SKEWED,
    )
    result = asked(simulate(config), tmp_path)
    assert named(result) == {1: "device", 3: "host", 6: "device"}
    truth = step_ns(config) / step_ns(whatif.without_stragglers(config))
    assert result.metrics["slowdown"] == pytest.approx(truth, rel=0.025)


def test_a_heavy_stage_names_no_rank_but_the_stage(tmp_path: Path) -> None:
    config = Config(dp=2, tp=2, pp=2, p2p_peers=True, heavy_stages={1: 1.4}, **WORK, **SKEWED)
    result = asked(simulate(config), tmp_path)
    assert named(result) == {}
    stages = dict(result.tables["stages"].select("stage", "of_mean").iter_rows())
    assert stages[1] > 1.1 > stages[0]
    # what to do about it is told by question pipeline, once
    assert not result.findings


def test_a_late_host_is_the_hosts_fault(tmp_path: Path) -> None:
    config = Config(dp=4, tp=2, pp=1, stalls=(Stall(5, 2_000_000, "gc"), Stall(5, 2_000_000, "sync")), **WORK, **SKEWED)
    result = asked(simulate(config), tmp_path)
    assert named(result) == {5: "host"}
    truth = step_ns(config) / step_ns(whatif.without_stragglers(config))
    assert result.metrics["slowdown"] == pytest.approx(truth, rel=0.025)


def test_unequal_work_is_the_works_fault(tmp_path: Path) -> None:
    config = Config(dp=4, tp=2, pp=1, long_sequences={2: 1.3}, **WORK, **SKEWED)
    assert named(asked(simulate(config), tmp_path)) == {4: "work", 5: "work"}


def test_a_slow_link_is_the_links_fault(tmp_path: Path) -> None:
    config = Config(dp=4, tp=2, pp=1, slow_links=(SlowLink(8.0, role="tp", ranks=(2, 3)),), **WORK, **SKEWED)
    result = asked(simulate(config), tmp_path)
    assert named(result) == {}
    assert result.tables["links"].filter("slow")["ranks"].to_list() == [[2, 3]]
    truth = step_ns(config) / step_ns(whatif.without_stragglers(config))
    assert result.metrics["slowdown"] == pytest.approx(truth, rel=0.025)


def test_without_peers_nobody_is_named(tmp_path: Path) -> None:
    config = Config(dp=1, tp=1, pp=4, p2p_peers=True, slow_ranks={2: 1.4}, **WORK)
    result = asked(simulate(config), tmp_path)
    assert named(result) == {}
    assert result.metrics["worst_rank"] is None
    assert any("cannot be told apart" in note for note in result.notes)


@pytest.mark.parametrize("tracer", ["nsight", "kineto"])
def test_where_no_group_is_known_neither_a_rank_nor_a_stage_is_accused(tracer: str, tmp_path: Path) -> None:
    run = simulate(Config(dp=4, tp=1, pp=1, slow_ranks={1: 1.4}, microbatches=2, **WORK, **SKEWED))
    if tracer == "nsight":
        for rank in range(4):
            write(tmp_path / f"report_rank{rank}.sqlite", capture_of(run, [rank]), blobs=False)
    else:
        run.write_kineto(tmp_path, host_names=True, comm_args=False, pg_config=False)
    with open_run(tmp_path, engine="serial", cache="off") as opened:
        result = opened.results["stragglers"]
    assert named(result) == {}
    assert not result.findings
    assert result.tables["stages"].height == 0
    assert result.tables["ranks"]["stage"].to_list() == [None] * 4
    assert (result.metrics["stragglers"], result.metrics["worst_rank"]) == (None, None)
    assert any(note.startswith("No group of ranks that do the same work is known") for note in result.notes)


DRAWN = (3, 4, 17, 41, 246)
"""Of each kind that no test above has: two faults, some steps, unequal work, a heavy stage with a slow rank."""


@pytest.mark.parametrize("number", DRAWN)
def test_drawn_jobs_name_the_guilty_and_nobody_else(number: int, tmp_path: Path) -> None:
    case = draw(number)
    result = asked(simulate(case.config), tmp_path)
    assert named(result) == case.must
    assert abs(result.metrics["replay_error"]) < 0.02  # type: ignore[arg-type] # a float
    heavy = result.tables["stages"].filter(pl.col("of_mean") > 1.05)["stage"].to_list()
    assert heavy == ([] if case.stage is None else [case.stage])
    assert {rank for finding in result.findings for rank in finding.where.ranks} == set(case.must)


def test_a_missing_rank_makes_nobody_guilty(tmp_path: Path) -> None:
    config = GRIDS["dp2 tp2 pp2"].replace(slow_ranks={5: 1.3}, seed=3)
    run = simulate(config)
    left = [rank for rank in range(8) if rank != 6]
    run.write_kineto(tmp_path, left, host_names=True)
    with open_run(tmp_path, engine="serial", cache="off") as opened:
        result = opened.results["stragglers"]
    assert named(result) == {5: "device"}
    assert {rank for finding in result.findings for rank in finding.where.ranks} == {5}


def test_rank_0_alone_is_not_judged(tmp_path: Path) -> None:
    simulate(GRIDS["dp8"].replace(slow_ranks={0: 1.3})).write_kineto(tmp_path, [0])
    with open_run(tmp_path, engine="serial", cache="off") as opened:
        result = opened.results["stragglers"]
    assert result.status == "skipped"
    assert not result.findings
