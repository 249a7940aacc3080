"""The same simulated run as Kineto and as Nsight gives the same numbers, and those are the truth."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from inmemory import MemoryRank, ask
from simulator import Config, simulate
from simulator_nsight import GENERATIONS, write
from simulator_nsight.bridge import capture_of

from tracetool import open_run
from tracetool.derive import derive
from tracetool.errors import UsageError
from tracetool.read import split_by_rank
from tracetool.registry import ParseOptions
from tracetool.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from simulator import Run

budget, overlap, phases = (import_module(f"tracetool.analyses.{name}") for name in ("budget", "overlap", "phases"))
nsight, kineto = (import_module(f"tracetool.parsers.{name}") for name in ("nsight", "kineto"))
RUN = Config(dp=2, tp=2, pp=2, gpus_per_node=8, recompute=True, jitter=0.05, comm_jitter=0.3)


@pytest.fixture(scope="module")
def run() -> Run:
    return simulate(RUN)


def as_nsight(run: Run, path: Path, generation: str = "V325", *, blobs: bool = False) -> list[MemoryRank]:
    tables = nsight.parse(write(path, capture_of(run), generation, blobs=blobs), ParseOptions(path.name))
    return [
        MemoryRank(rank or 0, part | derive(part, Settings()))
        for rank, part in sorted(split_by_rank(tables).items(), key=str)
    ]


def as_kineto(run: Run, folder: Path) -> list[MemoryRank]:
    found = []
    for trace, path in zip(run.traces, run.write_kineto(folder), strict=True):
        tables = kineto.parse(path, ParseOptions(path.name))
        found.append(MemoryRank(trace.place.rank, tables | derive(tables, Settings())))
    return found


def rows(analysis: Any, ranks: list[MemoryRank], table: str) -> list[dict[str, Any]]:  # noqa: ANN401 - a module
    result = ask(analysis, ranks)
    assert result.status == "ok", result.reason
    found: list[dict[str, Any]] = result.tables[table].to_dicts()
    return found


def of_truth(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in wanted[0]} for row in found]


@pytest.mark.parametrize("generation", ["V37", "V325"])
@pytest.mark.parametrize("blobs", [False, True])
def test_budget_and_overlap_equal_the_truth(run: Run, tmp_path: Path, generation: str, blobs: bool) -> None:  # noqa: FBT001 - parametrized
    ranks = as_nsight(run, tmp_path / "r.sqlite", generation, blobs=blobs and generation == "V325")
    assert [r.rank for r in ranks] == list(range(8))
    truth = run.truth()
    key = ("rank", "step")
    wanted = sorted(truth.budget(), key=lambda row: [row[k] for k in key])
    assert of_truth(sorted(rows(budget, ranks, "per_rank_step"), key=lambda r: [r[k] for k in key]), wanted) == wanted
    everything = [row for row in truth.overlap() if row["role"] == "all"]
    found = [row for row in rows(overlap, ranks, "per_rank_step") if row["role"] == "all"]
    order = sorted(everything, key=lambda row: [row[k] for k in key])
    assert of_truth(sorted(found, key=lambda r: [r[k] for k in key]), order) == order


def test_communication_phases_and_links_are_those_of_kineto(run: Run, tmp_path: Path) -> None:
    mine, theirs = as_nsight(run, tmp_path / "r.sqlite", blobs=True), as_kineto(run, tmp_path / "kineto")
    for ours, other in zip(mine, theirs, strict=True):
        for table, columns in (
            ("comms", ["start_ns", "dur_ns", "op", "bytes", "step"]),
            ("gpu", ["start_ns", "dur_ns", "kind", "name", "launch_start_ns", "launch_end_ns", "step", "phase"]),
            ("steps", ["step", "start_ns", "end_ns", "open_end", "range_start_ns", "range_end_ns"]),
        ):
            found = ours.tables[table].with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String)).select(columns)
            wanted = other.tables[table].with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String)).select(columns)
            assert found.rows() == wanted.rows(), table
        ops = [
            r.tables["gpu"].join(r.tables["events"].select("event", op_name="name"), left_on="op", right_on="event")
            for r in (ours, other)
        ]
        names = [frame["op_name"].cast(pl.String).to_list() for frame in ops]
        assert names[0] == names[1]
        members = [r.tables["comms"].select("start_ns", pl.col("group_ranks")).rows() for r in (ours, other)]
        assert members[0] == members[1]


def test_several_reports_form_one_run_with_the_numbers_of_kineto(run: Run, tmp_path: Path) -> None:
    for rank in range(8):
        folder = tmp_path / "nsight"
        folder.mkdir(exist_ok=True)
        write(folder / f"report_rank{rank}.sqlite", capture_of(run, [rank]), blobs=True)
    run.write_kineto(tmp_path / "kineto")
    mine, theirs = (open_run(tmp_path / name, cache="off", engine="serial") for name in ("nsight", "kineto"))
    for name in ("budget", "overlap", "phases", "host"):
        assert mine.results[name].metrics == theirs.results[name].metrics
    ours, other = mine.results["mfu"].metrics, theirs.results["mfu"].metrics
    for name in ("mfu", "hfu", "model_flops_per_step", "hardware_flops_per_step", "shape_coverage"):
        assert ours[name] == other[name]  # not the causal ones: emit_nvtx does not record is_causal
    assert ours["mfu"] is not None


def test_kineto_and_nsight_of_one_rank_are_refused_by_name(run: Run, tmp_path: Path) -> None:
    run.write_kineto(tmp_path, [0])
    write(tmp_path / "rank0.sqlite", capture_of(run, [0]))
    with pytest.raises(UsageError, match=r"rank0_trace.json.gz and rank0.sqlite are both of rank 0"):
        open_run(tmp_path, cache="off", engine="serial")


def test_shapes_and_sequences_are_those_of_kineto(run: Run, tmp_path: Path) -> None:
    mine, theirs = as_nsight(run, tmp_path / "r.sqlite"), as_kineto(run, tmp_path / "kineto")
    seen = []
    for ranks in (mine, theirs):
        tables = ranks[3].tables
        seen.append(
            tables["op_shapes"]
            .join(tables["events"].select("event", "start_ns", "dur_ns", "name"), on="event")
            .with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
            .with_columns(pl.col("input_dims").str.replace_all(" ", ""))
            .filter(pl.col("sequence").is_not_null() | pl.col("input_dims").is_not_null())
            .select("start_ns", "dur_ns", "name", "input_dims", "sequence")
            .rows()
        )
    assert seen[0] == seen[1]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_rank_0_alone(run: Run, tmp_path: Path, generation: str) -> None:
    path = write(tmp_path / "r.sqlite", capture_of(run, [0]), generation)
    tables = nsight.parse(path, ParseOptions("rank0.sqlite"))
    assert tables["ranks"]["rank"].to_list() == [-1]  # left to the file's name
    ranks = [MemoryRank(0, _numbered(tables) | derive(_numbered(tables), Settings()))]
    wanted = run.truth(ranks=[0]).budget()
    found = of_truth(rows(budget, ranks, "per_rank_step"), wanted)
    if generation == "V21":  # memsets were not exported then
        wanted = [{k: v for k, v in row.items() if k in ("rank", "step", "compute_ns")} for row in wanted]
        found = of_truth(found, wanted)
    assert found == wanted


def _numbered(tables: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    return {
        name: table.with_columns(rank=pl.lit(0, pl.Int32)) if "rank" in table.columns else table
        for name, table in tables.items()
    }
