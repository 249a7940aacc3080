"""A run from files to results: the same whatever the engine or the cache, honest about what is missing."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from simulator import Config, simulate
from simulator_hangs import inspector

import tracetool
from tracetool import registry
from tracetool.errors import NothingReadable, UsageError
from tracetool.run import cache_root
from tracetool.settings import Settings

if TYPE_CHECKING:
    from tracetool.results import Result
    from tracetool.run import Run

CONFIG = Config(jitter=0.01, gpus_per_node=4, clock_offsets_ns={1: 200_000_000})


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the eight ranks of a small simulated run."""
    folder = tmp_path_factory.mktemp("traces")
    simulate(CONFIG).write_kineto(folder)
    return folder


def _open(path: Path, **settings: Any) -> Run:  # noqa: ANN401 - settings of any type
    return tracetool.open_run(path, Settings(**settings), cache="off", engine="serial")


def _answers(run: Run) -> dict[str, Any]:
    return {
        name: (result.status, dict(result.metrics), {key: table.rows() for key, table in result.tables.items()})
        for name, result in run.results.items()
    }


def test_engine_and_cache_change_no_number(traces: Path, tmp_path: Path) -> None:
    serial = _answers(_open(traces))
    assert serial["budget"][0] == "ok"
    for engine, cache in (("processes:2", "off"), ("serial", str(tmp_path)), ("serial", str(tmp_path))):
        with tracetool.open_run(traces, engine=engine, cache=cache) as run:
            assert _answers(run) == serial


def test_a_second_run_parses_nothing(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tracetool.open_run(traces, engine="serial", cache=str(tmp_path)) as run:
        first = _answers(run)

    def never(*_: object) -> None:
        raise AssertionError("parsed although the cache has it")

    kineto = next(parser for parser in registry.parsers() if parser.FORMAT == "kineto")
    monkeypatch.setattr(kineto, "parse", never)
    with tracetool.open_run(traces, engine="serial", cache=str(tmp_path)) as run:
        assert _answers(run) == first
    moved = tmp_path / "moved"
    shutil.copytree(traces, moved)
    with tracetool.open_run(moved, engine="serial", cache=str(tmp_path)) as run:
        assert _answers(run) == first


def test_a_changed_file_is_read_again(traces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    one = folder / "rank0.json"
    source = sorted(traces.iterdir())
    one.write_bytes(source[0].read_bytes())
    cache = str(tmp_path / "cache")
    with tracetool.open_run(folder, cache=cache) as run:
        before = run.results["kernels"].metrics["activities"]
    trace = json.loads(gzip.decompress(one.read_bytes()) if source[0].suffix == ".gz" else one.read_bytes())
    trace["traceEvents"] = [event for event in trace["traceEvents"] if event.get("cat") != "gpu_memset"]
    one.write_text(json.dumps(trace))
    with tracetool.open_run(folder, cache=cache) as run:
        assert run.results["kernels"].metrics["activities"] != before


def test_ranks_and_steps_can_be_chosen(traces: Path) -> None:
    run = _open(traces, ranks=(1, 3), steps=(5,))
    assert run.ranks == [1, 3]
    assert run.results["budget"].tables["per_rank_step"].select("rank", "step").rows() == [(1, 5), (3, 5)]
    with pytest.raises(UsageError, match=r"no trace of rank 9 .*there are ranks 0-7"):
        _open(traces, ranks=(9,))
    with pytest.raises(UsageError, match=r"no step 99 .*there are steps 5-6"):
        _open(traces, steps=(99,))
    assert "no trace of the chosen ranks 9" in _open(traces, ranks=(0, 9)).view.notes


def test_missing_ranks_are_told(traces: Path, tmp_path: Path) -> None:
    for path in sorted(traces.iterdir())[:3]:
        shutil.copy(path, tmp_path)
    run = _open(tmp_path)
    assert run.view.world_size == 8
    assert "no trace of 5 of 8 ranks: 3-7" in run.view.notes


def test_one_file_twice_is_an_error_that_names_both(traces: Path, tmp_path: Path) -> None:
    path = min(traces.iterdir())
    shutil.copy(path, tmp_path / f"a_{path.name}")
    shutil.copy(path, tmp_path / f"b_{path.name}")
    with pytest.raises(UsageError, match=r"a_.* and b_.* are both of rank 0"):
        _open(tmp_path)


def test_an_unreadable_file_does_not_cost_the_others(traces: Path, tmp_path: Path) -> None:
    good, bad = sorted(traces.iterdir())[:2]
    shutil.copy(good, tmp_path)
    (tmp_path / bad.name).write_bytes(b'{"schemaVersion": 1, "traceEvents": [')
    run = _open(tmp_path)
    assert run.ranks == [0]
    assert run.damaged == (bad.name,)
    told = run.view.sources.filter(pl.col("path") == bad.name)
    assert told["complete"].to_list() == [False]
    assert told["notes"].list.len().item() > 0


def test_nothing_readable_says_why(tmp_path: Path) -> None:
    (tmp_path / "rank0.json").write_bytes(b'{"schemaVersion": 1, "traceEvents": [')
    with pytest.raises(NothingReadable, match=r"rank0\.json"):
        _open(tmp_path)


def test_a_crash_in_one_question_leaves_the_others(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> Result:
        raise ZeroDivisionError("by design")

    monkeypatch.setattr(registry.analyses()["kernels"], "analyze", crash)
    monkeypatch.setattr(registry.analyses()["overlap"], "per_rank", crash)
    run = _open(traces, ranks=(0,))
    assert run.results["kernels"].status == "error"
    assert run.results["kernels"].reason == "ZeroDivisionError: by design"
    assert run.results["overlap"].reason == "rank 0: ZeroDivisionError: by design"
    assert run.results["budget"].status == "ok"


def test_a_missing_need_is_skipped_with_the_option_to_use(shared: Path) -> None:
    run = _open(shared / "kineto" / "hta" / "cpu_only")
    assert run.results["budget"].status == "skipped"
    assert "ProfilerActivity.CUDA" in run.results["budget"].reason


@pytest.mark.parametrize("name", ["collectives", "stragglers"])
def test_a_question_that_other_sources_answer_says_where(tmp_path: Path, name: str) -> None:
    """Without any trace of the GPU, what NCCL Inspector recorded is judged by another question."""
    inspector.write(inspector.Cluster(hosts=2, gpus=2, slow_rank=1), tmp_path)
    run = _open(tmp_path)
    assert run.results[name].status == "skipped"
    assert "`recorded`" in run.results[name].reason
    assert run.results["recorded"].metrics["links_judged"]
    assert run.results["recorded"].tables["bandwidth"]["busbw_gbs"].drop_nulls().len()


def test_tables_come_as_lazy_frames(traces: Path) -> None:
    run = _open(traces, ranks=(0, 2))
    assert run.table("gpu").select("rank").unique().collect()["rank"].sort().to_list() == [0, 2]
    assert run.table("gpu", rank=2).select(pl.col("rank").unique()).collect()["rank"].to_list() == [2]
    assert run.table("ranks").collect()["rank"].to_list() == [0, 2]
    with pytest.raises(UsageError, match="no table"):
        run.table("nonsense")
    with pytest.raises(UsageError, match="no rank 5"):
        run.table("gpu", rank=5)
    with pytest.raises(KeyError, match="there are budget"):
        run.results["nonsense"]


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACETOOL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_root(None) == Path("/x/tracetool")
    monkeypatch.setenv("TRACETOOL_CACHE", "/y")
    assert cache_root(None) == Path("/y")
    assert cache_root("/z") == Path("/z")
    assert cache_root("off") is None


def test_the_public_names_are_these() -> None:
    assert tracetool.__all__ == [
        "Finding", "NotComparable", "NothingReadable", "Result", "Run", "Settings", "TracetoolError",
        "UnreadableTrace", "UsageError", "open_run",
    ]  # fmt: skip
    for name in tracetool.__all__:
        assert getattr(tracetool, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = tracetool.nonsense


@pytest.mark.parametrize("step_offset", [0, 1])
def test_waiting_of_every_rank_step_is_that_of_the_simulator(traces: Path, step_offset: int) -> None:
    truth = pl.DataFrame(simulate(CONFIG).truth(joined=True).budget())
    table = _open(traces, gpus_per_node=4).results["budget"].tables["per_rank_step"]
    step = 5 + step_offset
    columns = ["rank", "window_ns", "compute_ns", "sync_wait_ns", "memcpy_ns", "host_bound_ns", "idle_ns"]
    assert (
        table.filter(pl.col("step") == step).select(columns).rows()
        == truth.filter(pl.col("step") == step).select(columns).rows()
    )
