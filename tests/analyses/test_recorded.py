"""Bandwidths, slow links and late ranks from Inspector files and flight-recorder dumps alone."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING

import pytest
from simulator_hangs.inspector import Cluster, families, write
from simulator_hangs.job import Config, simulate
from simulator_hangs.recorder import Style
from simulator_hangs.recorder import write as write_dumps

import tracetool

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tracetool.results import Result


def ask(folder: Path) -> Result:
    with tracetool.open_run(folder, cache="off", engine="serial") as run:
        return run.results["recorded"]


def recorded(folder: Path, cluster: Cluster) -> Result:
    write(cluster, folder)
    return ask(folder)


def named(result: Result) -> list[tuple[int, ...]]:
    return [finding.where.ranks for finding in result.findings]


def groups_of(cluster: Cluster, family: str, rank: int) -> Iterable[tuple[int, ...]]:
    return [tuple(ranks) for name, ranks in families(cluster) if name == family and rank in ranks]


@pytest.mark.parametrize("seed", range(4))
def test_a_slow_nic_is_a_link_finding_of_its_group(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a test
    shape = rng.choice([(2, 4), (2, 8), (3, 4), (4, 4)])
    cluster = Cluster(*shape, slow_rank=rng.randrange(shape[0] * shape[1]), seed=seed)
    result = recorded(tmp_path, cluster)
    assert cluster.slow_rank is not None
    assert named(result) == groups_of(cluster, "dp", cluster.slow_rank)
    (finding,) = result.findings
    assert (finding.severity, finding.id.partition(".")[2][:9]) == ("warning", "slow_link")
    (slow,) = result.tables["links"].filter("slow").iter_rows(named=True)
    assert slow["ratio"] == pytest.approx(cluster.slowdown, rel=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_a_healthy_job_names_nobody(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a test
    result = recorded(tmp_path, Cluster(rng.choice([2, 3, 4]), rng.choice([2, 4, 8]), seed=seed, noise=0.1))
    assert result.findings == []
    assert result.tables["links"].drop_nulls("ratio").height > 0


def test_a_late_rank_is_no_slow_link(tmp_path: Path) -> None:
    assert recorded(tmp_path, Cluster(2, 4, late_rank=5)).findings == []


def test_bandwidth_is_that_of_the_links_without_waiting(tmp_path: Path) -> None:
    result = recorded(tmp_path, Cluster(2, 4, noise=0.0))
    table = result.tables["bandwidth"]
    assert not table["lower_bound"].any()
    assert table["count"].unique().to_list() == [20]
    tensor = table.filter(size=4)["busbw_gbs"].to_list()
    assert tensor == pytest.approx([370.0] * len(tensor), rel=0.01)
    data = table.filter(size=2)["busbw_gbs"].to_list()
    assert data == pytest.approx([45.0] * len(data), rel=0.01)


def test_missing_files_make_lower_bounds_and_no_judgement(tmp_path: Path) -> None:
    write(Cluster(2, 4, slow_rank=1), tmp_path)
    (tmp_path / "node0-pid4001.log").unlink()
    result = ask(tmp_path)
    table = result.tables["bandwidth"]
    assert table.filter(ranks_told=1, size=2)["lower_bound"].all()
    assert result.findings == []
    assert any("lower_bound" in note for note in result.notes)


def test_nccl_tests_are_the_ceiling(tmp_path: Path, shared: Path) -> None:
    write(Cluster(2, 4, noise=0.0), tmp_path)
    shutil.copy(shared / "nccl" / "nccl_tests" / "all_reduce_perf_2x8_H100_a3mega.txt", tmp_path)
    reduced = ask(tmp_path).tables["bandwidth"].filter(op="all_reduce")
    assert reduced["ceiling_gbs"].null_count() == 0
    expected = (reduced["busbw_gbs"] / reduced["ceiling_gbs"]).to_list()
    assert reduced["share_of_ceiling"].to_list() == pytest.approx(expected)


def test_the_documentations_samples(tmp_path: Path, shared: Path) -> None:
    shutil.copy(shared / "nccl" / "inspector" / "nccl-docs-examples.jsonl", tmp_path / "x.jsonl")
    table = ask(tmp_path).tables["bandwidth"]
    assert table["lower_bound"].all()  # one rank of each communicator
    assert sorted(round(value, 1) for value in table["busbw_gbs"]) == [18.5, 366.1, 485.1]


def test_the_straggler_of_the_recorder_launches_last(shared: Path) -> None:
    result = ask(shared / "nccl" / "flight_recorder_gloo" / "straggler")
    assert named(result) == [(2,)]
    first = result.tables["arrivals"].row(0, named=True)
    assert (first["operations"], first["last"], first["clock_error_ns"]) == (21, 20, 0)
    assert first["lateness_p50_ns"] == pytest.approx(50.5e6, rel=0.01)
    assert result.metrics["last_rank"] == 2


@pytest.mark.parametrize("scenario", ["ok", "subgroups_p2p", "wrap"])
def test_healthy_dumps_name_nobody(shared: Path, scenario: str) -> None:
    assert ask(shared / "nccl" / "flight_recorder_gloo" / scenario).findings == []


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_simulated_job_has_no_late_rank(tmp_path: Path, seed: int) -> None:
    write_dumps(simulate(Config(4, 2, 2, seed=seed)), tmp_path, Style())
    assert ask(tmp_path).findings == []


def test_lateness_below_the_clocks_error_names_nobody(tmp_path: Path, shared: Path) -> None:
    job = tmp_path / "job"
    shutil.copytree(shared / "nccl" / "flight_recorder_gloo" / "straggler", job)
    # the log says that every rank has its own host: 50 ms are still far above the 10 ms that hosts may differ by
    lines = [f"h{rank}:{rank + 9}:1 [0] NCCL INFO comm 0x1 rank {rank} nranks 4 cudaDev 0 commId 0xa - Init COMPLETE\n"
             for rank in range(4)]  # fmt: skip
    (job / "job.log").write_text("".join(lines))
    result = ask(job)
    (finding,) = result.findings
    assert (finding.where.ranks, finding.confidence) == ((2,), "medium")
    assert set(result.tables["arrivals"]["clock_error_ns"]) == {10_000_000}
