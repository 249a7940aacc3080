"""Exports of three generations in three forms, against what was written into them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from simulator_nsight import (
    GENERATIONS,
    Call,
    Capture,
    Copy,
    Gpu,
    Graph,
    Kernel,
    Range,
    Record,
    Sync,
    Warned,
    write,
)

from tracetool import registry
from tracetool.registry import ParseOptions
from tracetool.tables import BASE_TABLES, check

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.tables import Tables

nsight = import_module("tracetool.parsers.nsight")
SECRET = "hf_" + "x" * 20
A, B = 144, 145


def two_processes(**changes: Any) -> Capture:  # noqa: ANN401 - fields of Capture
    """Two processes whose correlation numbers overlap, as under one nsys."""
    given: dict[str, Any] = {
        "kernels": [
            Kernel(A, 0, 7, 1_000, 2_000, 10, "void gemm<float>(int)"),
            Kernel(B, 1, 15, 1_500, 2_500, 10, "void gemm<float>(int)"),
            Kernel(A, 0, 7, 2_000, 2_600, 11, "softmax"),
            Kernel(B, 1, 15, 3_000, 3_100, 99, "orphan"),
        ],
        "copies": [
            Copy(A, 0, 8, 3_000, 3_400, 12, 4_096, kind=1, source=1),
            Copy(B, 1, 15, 4_000, 4_050, 13, 64, None),
        ],
        "calls": [
            Call(A, A, 900, 950, 10),
            Call(B, B, 910, 940, 10, "cuLaunchKernelEx", 1),
            Call(A, A + 1, 1_900, 1_950, 11),
            Call(A, A, 2_700, 2_800, 12, "cudaMemcpyAsync_v3020"),
            Call(B, B, 2_600, 2_650, 11, "cudaMemcpyAsync_v3020"),
            Call(B, B, 3_900, 3_950, 13, "cudaMemsetAsync_v3020"),
        ],
        "ranges": [
            Range(A, A, 800, 3_000, "train_step"),
            Range(A, A, 850, 960, "aten::mm, seq = 4, op_id = 9, sizes = [[2, 3], [3, 4]]"),
            Range(B, B, 700, None, "iteration 1", by_id=True),
            Range(A, A, 1_000, 1_000, "empty"),
            Range(A, A, 1_100, 9_000, "load", type=60, end_tid=A + 1),
            Range(A, A, 1_200, None, "marked", type=34),
        ],
        "processes": {A: "python3", B: "python3", 1: "sh"},
        "threads": {(A, A): "python3", (A, A + 1): "pt_autograd_0"},
        "gpus": [Gpu(1, 0, "NVIDIA H100 80GB HBM3", 80 << 30), Gpu(0, 1, "NVIDIA H100 80GB HBM3", 80 << 30)],
        "environment": f"HF_TOKEN={SECRET};RANK=3;WORLD_SIZE=8",
        "output": f"logged in with {SECRET}",
        "command": "torchrun",
        "system_clock_ns": 600,
    }  # fmt: skip
    return Capture(**{**given, **changes})


def read(path: Path) -> Tables:
    found: Tables = nsight.parse(path, ParseOptions(display_path=path.name))
    for name, table in found.items():
        check(name, table)
    assert set(found) <= set(BASE_TABLES)
    return found


def notes(tables: Tables) -> str:
    return "\n".join(tables["sources"]["notes"][0].to_list())


def plain(tables: Tables, *columns: str) -> list[tuple[Any, ...]]:
    return tables["events"].with_columns(pl.col("category", "name").cast(pl.String)).select(columns).rows()


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("form", ["sqlite", "parquetdir", "arrowdir"])
@pytest.mark.parametrize("lazy", [True, False])
def test_every_generation_and_form_reads_the_same(tmp_path: Path, generation: str, form: Any, lazy: bool) -> None:  # noqa: ANN401, FBT001 - parametrized
    capture = two_processes()
    path = write(tmp_path / "report.sqlite", capture, generation, lazy=lazy, form=form)
    with_memset = generation != "V21"
    tables = read(path)
    rows = plain(tables, "rank", "start_ns", "dur_ns", "category", "name", "correlation")
    assert [r for r in rows if r[3] in ("kernel", "memcpy", "memset")] == [
        (0, 1_000, 1_000, "kernel", "void gemm<float>(int)", 10),
        (0, 2_000, 600, "kernel", "softmax", 11),
        (0, 3_000, 400, "memcpy", "Memcpy HtoD (Pinned -> Device)", 12),
        (1, 1_500, 1_000, "kernel", "void gemm<float>(int)", 10),
        (1, 3_000, 100, "kernel", "orphan", 99),
        *([(1, 4_000, 50, "memset", "Memset (Device)", 13)] if with_memset else []),
    ]
    assert [r for r in rows if r[3] == "runtime"] == [
        (0, 900, 50, "runtime", "cudaLaunchKernel", 10),
        (0, 1_900, 50, "runtime", "cudaLaunchKernel", 11),
        (0, 2_700, 100, "runtime", "cudaMemcpyAsync", 12),
        (1, 910, 30, "runtime", "cuLaunchKernelEx", 10),
        (1, 2_600, 50, "runtime", "cudaMemcpyAsync", 11),
        (1, 3_900, 50, "runtime", "cudaMemsetAsync", 13),
    ]
    assert [r for r in rows if r[3] in ("annotation", "cpu_op", "instant")] == [
        (0, 800, 2_200, "annotation", "train_step", None),
        (0, 850, 110, "cpu_op", "aten::mm", None),
        (0, 1_000, 0, "annotation", "empty", None),
        (0, 1_100, 7_900, "annotation", "load", None),
        (0, 1_200, 0, "instant", "marked", None),
        (1, 700, 8_300, "annotation", "iteration 1", None),
    ]
    assert tables["sources"]["repaired"].item() == 1  # the open range ends with the recording
    ranks = tables["ranks"]
    assert ranks.select("rank", "pid", "device", "device_name").rows() == [
        (0, A, 0, "NVIDIA H100 80GB HBM3"),
        (1, B, 1, "NVIDIA H100 80GB HBM3"),
    ]
    assert ranks["device_memory_bytes"].to_list() == [80 << 30] * 2
    assert ranks["rank_source"].to_list() == ["assumed"] * 2  # RANK is of torchrun's node, not of its children
    copies = tables["copies"].with_columns(pl.col("direction").cast(pl.String))
    assert copies.select("rank", "bytes", "direction").rows() == [
        (0, 4_096, "HtoD"),
        *([(1, 64, None)] if with_memset else []),
    ]
    shapes = tables["op_shapes"].with_columns(pl.col("input_dims").cast(pl.String))
    assert shapes.select("rank", "input_dims", "sequence").rows() == [(0, "[[2, 3], [3, 4]]", 4)]
    named = tables["events"].filter((pl.col("rank") == 0) & (pl.col("event") == shapes["event"].item()))
    assert named["name"].cast(pl.String).to_list() == ["aten::mm"]
    assert ranks["record_shapes"].to_list() == [True, None]


def test_tracks_carry_names_and_ranges_that_cross_stand_apart(tmp_path: Path) -> None:
    tables = read(write(tmp_path / "r.sqlite", two_processes()))
    tracks = tables["tracks"].with_columns(pl.col("kind").cast(pl.String))
    of_first = tracks.filter(pl.col("rank") == 0)
    assert of_first.select("kind", "process", "thread", "device", "stream", "name").rows() == [
        ("cpu", "144", "144", None, None, "python3 start/end ranges"),
        ("cpu", "144", "144", None, None, "python3"),
        ("cpu", "144", "145", None, None, "pt_autograd_0"),
        ("gpu", "0", "7", 0, 7, "stream 7"),
        ("gpu", "0", "8", 0, 8, "stream 8"),
    ]


@pytest.mark.parametrize(
    ("generation", "metadata", "base"),
    [
        ("V325", {}, 1_700_000_000_000_000_000 - 600),
        ("V37", {}, 1_700_000_000_000_000_000),
        ("V37", {"EXPORT_PARAM_TIME_SHIFT": "50"}, 1_700_000_000_000_000_000 - 50),
        ("V37", {"EXPORT_PARAM_TIME_SHIFT": "soon"}, 1_700_000_000_000_000_000),
        ("V325", {"EXPORT_PARAM_TIME_NORMALIZE": "true"}, 0),
        ("V21", {}, None),
    ],
)
def test_wall_clock(tmp_path: Path, generation: str, metadata: dict[str, str], base: int | None) -> None:
    tables = read(write(tmp_path / "r.sqlite", two_processes(metadata=metadata), generation))
    assert tables["ranks"]["base_unix_ns"].to_list() == [base, base]
    assert ("no wall clock" in notes(tables)) == (base is None)


def alone(**changes: Any) -> Capture:  # noqa: ANN401 - fields of Capture
    return Capture(
        kernels=[Kernel(A, 0, 7, 100, 200, 1, "k")],
        calls=[Call(A, A, 50, 60, 1)],
        **{"command": "python", **changes},
    )


def test_rank_of_a_process_that_nsys_started_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "r.sqlite", alone(environment=f"TOKEN={SECRET};SLURM_PROCID=5;RANK=5;WORLD_SIZE=16"))
    ranks = read(path)["ranks"]
    assert ranks.select("rank", "rank_source", "world_size").row(0) == (5, "metadata", 16)


def test_the_environment_of_a_launcher_tells_no_rank_and_no_world(tmp_path: Path) -> None:
    capture = two_processes(command="bash", environment="SLURM_PROCID=1;SLURM_NTASKS=2")
    ranks = read(write(tmp_path / "r.sqlite", capture))["ranks"]
    assert ranks.select("rank", "rank_source", "world_size").rows() == [(0, "assumed", None), (1, "assumed", None)]


def test_rank_that_nobody_tells_is_left_open(tmp_path: Path) -> None:
    tables = read(write(tmp_path / "r.sqlite", alone(environment="BANK=3;MY_RANK=4")))
    assert tables["ranks"].select("rank", "rank_source", "world_size").row(0) == (-1, None, None)
    assert tables["events"]["rank"].unique().to_list() == [-1]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_secrets_reach_no_table(tmp_path: Path, generation: str) -> None:
    warned = [Warned(1, 2, f"cannot read /home/{SECRET}/file\nenvironment: {SECRET}")]
    tables = read(write(tmp_path / "r.sqlite", two_processes(diagnostics=warned), generation))
    for name, table in tables.items():
        text = table.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String)).write_ndjson()
        assert SECRET not in text, name
    if generation == "V325":
        assert "nsys warning: cannot read <path>" in notes(tables)


def test_synchronisations_name_what_they_wait_for(tmp_path: Path) -> None:
    capture = two_processes(
        syncs=[
            Sync(B, 2_000, 2_010, 22, 2, stream=15, event=4),
            Sync(B, 2_100, 2_200, 23, 3, stream=32),
            Sync(B, 2_300, 2_400, 24, 1, event=4),
            Sync(B, 2_500, 2_600, 25, 4),
        ],
        records=[Record(B, 1, 32, 20, 4), Record(B, 1, 33, 26, 4), Record(A, 0, 7, 21, 4)],
    )
    tables = read(write(tmp_path / "r.sqlite", capture))
    syncs = tables["syncs"].with_columns(pl.col("sync_kind").cast(pl.String))
    assert syncs.select("rank", "sync_kind", "stream", "wait_on_stream", "wait_on_correlation").rows() == [
        (1, "Stream Wait Event", 15, 32, 20),
        (1, "Stream Sync", 32, None, None),
        (1, "Event Sync", None, None, None),
        (1, "Context Sync", None, None, None),
    ]
    gpu = tables["tracks"].filter((pl.col("rank") == 1) & (pl.col("kind") == "gpu"))
    assert gpu.select("device", "stream").rows() == [(1, 15), (1, 32)]  # the rows say device 0


def test_graph_replays_are_work_and_their_limits_are_told(tmp_path: Path) -> None:
    capture = alone(graphs=[Graph(A, 0, 7, 300, 900, 2, 5)])
    tables = read(write(tmp_path / "r.sqlite", capture))
    assert (-1, 300, 600, "graph", "CUDA graph 5", 2) in plain(
        tables, "rank", "start_ns", "dur_ns", "category", "name", "correlation"
    )
    assert "--cuda-graph-trace=node" in notes(tables)


def test_kernels_of_one_graph_launch_share_its_number(tmp_path: Path) -> None:
    kernels = [Kernel(A, 0, 7, 100 * k, 100 * k + 50, 9, f"k{k}", graph_node=k) for k in range(1, 4)]
    tables = read(
        write(tmp_path / "r.sqlite", Capture(kernels=kernels, calls=[Call(A, A, 50, 60, 9, "cudaGraphLaunch_v10000")]))
    )
    work = tables["events"].filter(pl.col("category") == "kernel")
    assert work["correlation"].to_list() == [9, 9, 9]


def test_a_process_with_two_devices_is_two_ranks_and_calls_go_where_their_work_ran(tmp_path: Path) -> None:
    capture = Capture(
        kernels=[Kernel(A, 0, 7, 100, 200, 1, "a"), Kernel(A, 1, 7, 150, 250, 2, "b")],
        calls=[Call(A, A, 50, 60, 1), Call(A, A, 70, 80, 2), Call(A, A, 300, 400, 3, "cudaDeviceSynchronize_v3020")],
        ranges=[Range(A, A, 10, 500, "step")],
    )
    tables = read(write(tmp_path / "r.sqlite", capture))
    assert plain(tables, "rank", "start_ns", "name") == [
        (0, 10, "step"), (0, 50, "cudaLaunchKernel"), (0, 100, "a"), (0, 300, "cudaDeviceSynchronize"),
        (1, 10, "step"), (1, 70, "cudaLaunchKernel"), (1, 150, "b"), (1, 300, "cudaDeviceSynchronize"),
    ]  # fmt: skip


def test_a_stray_context_on_another_device_is_no_rank(tmp_path: Path) -> None:
    capture = alone(copies=[Copy(A, 1, 13, 300, 310, 2, 8)])
    tables = read(write(tmp_path / "r.sqlite", capture))
    assert tables["ranks"].height == 1
    assert tables["copies"].height == 1


def test_processes_without_gpu_work_are_left_out_and_told(tmp_path: Path) -> None:
    capture = alone(ranges=[Range(9, 9, 10, 20, "loader")])
    tables = read(write(tmp_path / "r.sqlite", capture))
    assert "loader" not in tables["events"]["name"].cast(pl.String).to_list()
    assert "1 NVTX ranges of processes without GPU work were left out" in notes(tables)
    assert tables["sources"]["dropped"].item() == 0


def test_only_ranges_still_make_a_rank(tmp_path: Path) -> None:
    tables = read(write(tmp_path / "r.sqlite", Capture(ranges=[Range(A, A, 10, 20, "step 1")])))
    assert plain(tables, "rank", "start_ns", "dur_ns", "category") == [(-1, 10, 10, "annotation")]
    assert tables["ranks"]["device"].to_list() == [None]


def test_two_hosts_with_one_pid_stay_apart(tmp_path: Path) -> None:
    for host in (1, 7):
        tables = read(write(tmp_path / f"{host}.sqlite", two_processes(host=host)))
        assert tables["ranks"]["pid"].to_list() == [A, B]


def test_exactly_one_parser_takes_it(tmp_path: Path) -> None:
    for form in ("sqlite", "parquetdir", "arrowdir"):
        path = write(tmp_path / f"x_{form}", two_processes(), form=form)
        head = b"" if path.is_dir() else path.read_bytes()[: registry.HEAD_BYTES]
        found = registry.sniff(path, head)
        assert found is not None
        assert found.FORMAT == "nsight"
