"""The real export: figures of its README to the ns, and the file untouched."""

from __future__ import annotations

import hashlib
from importlib import import_module
from typing import TYPE_CHECKING

import polars as pl
import pytest

from tracetool import intervals
from tracetool.derive import derive
from tracetool.read import split_by_rank
from tracetool.registry import ParseOptions
from tracetool.settings import Settings
from tracetool.tables import check

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.tables import Tables

nsight = import_module("tracetool.parsers.nsight")
SHA256 = "4ce32189391cbe9425136a64737526206c677b22e3c0f5cb1549cc2f1c1c79fb"
NCCL = r"^nccl(Dev)?Kernel"


@pytest.fixture(scope="module")
def export(shared: Path) -> Path:
    path = shared / "nsight" / "mfu_2gpu_before.sqlite"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the reference traces")
    return path


@pytest.fixture(scope="module")
def tables(export: Path) -> Tables:
    found: Tables = nsight.parse(export, ParseOptions(display_path=export.name))
    return found


def spans(tables: Tables, rank: int, category: tuple[str, ...], name: str | None = None) -> pl.DataFrame:
    """Return the spans of a rank's events; `name` is a pattern the name must match, or must not after a `!`."""
    chosen = tables["events"].filter((pl.col("rank") == rank) & pl.col("category").is_in(category))
    if name is not None:
        hit = chosen["name"].cast(pl.String).str.contains(name.removeprefix("!"))
        chosen = chosen.filter(~hit if name.startswith("!") else hit)
    return intervals.spans(chosen)


def test_every_table_keeps_the_data_model(tables: Tables) -> None:
    for name, table in tables.items():
        check(name, table)
    assert tables["events"].select("rank", "event").is_duplicated().sum() == 0


def test_the_input_is_not_changed(export: Path, tables: Tables) -> None:
    assert tables["events"].height
    assert hashlib.sha256(export.read_bytes()).hexdigest() == SHA256
    assert sorted(p.name for p in export.parent.glob(f"{export.name}*")) == [export.name]


@pytest.mark.parametrize(
    ("rank", "figures"),
    [
        (0, {"pid": 144, "kernels": 1_993, "nccl": 33, "stream": 7, "first": 60_111_541_307, "last": 60_411_390_119,
             "compute_ns": 253_690_832, "nccl_ns": 17_172_652, "kernels_ns": 270_863_484, "memcpy": 510,
             "memcpy_ns": 2_844_479, "memset": 133, "memset_ns": 109_824, "idle_ns": 28_985_328,
             "idle_all_ns": 26_031_025, "launched": 1_981}),
        (1, {"pid": 145, "kernels": 2_017, "nccl": 33, "stream": 15, "first": 60_111_513_113, "last": 60_410_174_664,
             "compute_ns": 256_095_624, "nccl_ns": 8_229_100, "kernels_ns": 264_324_724, "memcpy": 510,
             "memcpy_ns": 2_847_608, "memset": 136, "memset_ns": 103_584, "idle_ns": 34_336_827,
             "idle_all_ns": 31_385_635, "launched": 2_005}),
    ],
)  # fmt: skip
def test_figures_of_each_device(tables: Tables, rank: int, figures: dict[str, int]) -> None:
    kernels = spans(tables, rank, ("kernel",))
    compute, nccl = spans(tables, rank, ("kernel",), f"!{NCCL}"), spans(tables, rank, ("kernel",), NCCL)
    memcpy, memset = spans(tables, rank, ("memcpy",)), spans(tables, rank, ("memset",))
    window = pl.DataFrame({"start_ns": [figures["first"]], "end_ns": [figures["last"]]})
    everything = spans(tables, rank, ("kernel", "memcpy", "memset"))
    events = tables["events"].filter(pl.col("rank") == rank)
    kernel_rows = events.filter(pl.col("category") == "kernel")
    tracks = tables["tracks"].filter((pl.col("rank") == rank) & pl.col("track").is_in(kernel_rows["track"].to_list()))
    calls = events.filter(pl.col("category") == "runtime")
    row = tables["ranks"].row(rank, named=True)
    found = {
        "pid": row["pid"],
        "kernels": kernels.height,
        "nccl": nccl.height,
        "stream": tracks["stream"].item(),
        "first": kernels["start_ns"].min(),
        "last": kernels["end_ns"].max(),
        "compute_ns": intervals.length(compute),
        "nccl_ns": intervals.length(nccl),
        "kernels_ns": intervals.length(kernels),
        "memcpy": memcpy.height,
        "memcpy_ns": intervals.length(memcpy),
        "memset": memset.height,
        "memset_ns": intervals.length(memset),
        "idle_ns": intervals.length(intervals.subtract(window, kernels)),
        "idle_all_ns": intervals.length(intervals.subtract(window, everything)),
        "launched": kernel_rows.join(calls, on="correlation", how="inner").height,
    }
    assert found == figures
    assert intervals.length(intervals.intersect(compute, nccl)) == 0
    copies = tables["copies"].filter((pl.col("rank") == rank) & pl.col("direction").is_not_null())
    assert copies["bytes"].sum() == 4_023_067_272
    assert dict(copies["direction"].cast(pl.String).value_counts().rows()) == {"DtoD": 493, "HtoD": 17}


def test_launches_are_launches_and_never_after_their_kernel(tables: Tables) -> None:
    events = tables["events"]
    calls = events.filter(pl.col("category") == "runtime")
    kernels = events.filter(pl.col("category") == "kernel").join(calls, on=["rank", "correlation"], suffix="_call")
    assert kernels.height == 3_986  # without the process in the key: 4,280
    assert dict(kernels["name_call"].cast(pl.String).value_counts().rows()) == {
        "cudaLaunchKernel": 3_587,
        "cuLaunchKernelEx": 399,
    }
    assert (kernels["start_ns_call"] <= kernels["start_ns"]).all()
    copies = events.filter(pl.col("category") == "memcpy").join(calls, on=["rank", "correlation"])
    assert copies.height == 1_015


def test_operators_of_kernels_as_derived(tables: Tables) -> None:
    counts: dict[str, int] = {}
    for rank, part in split_by_rank(tables).items():
        derived = derive(part, Settings())
        gpu = derived["gpu"].filter(pl.col("kind").is_in(["compute", "comm"]))
        assert gpu["launch"].count() == {0: 1_981, 1: 2_005}[rank or 0]
        assert gpu.filter(pl.col("kind") == "comm").height == 33
        for name, count in (
            gpu.join(part["events"], left_on="op", right_on="event", suffix="_op")["name_op"]
            .cast(pl.String)
            .value_counts()
            .rows()
        ):
            counts[name] = counts.get(name, 0) + count
    assert counts["aten::copy_"] == 1_816
    assert counts["aten::add"] == 505
    assert counts["aten::mul"] == 501
    assert counts["aten::addmm"] == 335
    assert counts["aten::cat"] == 129
    assert counts["aten::pow"] == counts["aten::mean"] == counts["aten::rsqrt"] == 134


def test_all_to_all_is_told_from_send_and_receive(tables: Tables) -> None:
    found = tables["comm_args"]
    assert dict(found["op"].cast(pl.String).value_counts().rows()) == {"all_to_all": 64}
    assert found["in_bytes"].count() == found["group"].count() == 0
    notes = tables["sources"]["notes"][0].to_list()
    assert any("--include-blobs=true" in note for note in notes)


def test_ranks_are_assumed_and_clocks_known(tables: Tables) -> None:
    ranks = tables["ranks"]
    assert ranks["rank"].to_list() == [0, 1]
    assert ranks["rank_source"].to_list() == ["assumed", "assumed"]
    assert ranks["device"].to_list() == [0, 1]
    assert ranks["base_unix_ns"].to_list() == [1_779_782_330_176_752_435 - 28_254_349_605] * 2
    notes = tables["sources"]["notes"][0].to_list()
    assert any("rank 0: process 144 on device 0, rank 1: process 145 on device 1" in note for note in notes)


def test_sniffed_whatever_its_name(export: Path, tmp_path: Path) -> None:
    other = tmp_path / "unknown"
    other.write_bytes(export.read_bytes())
    with other.open("rb") as stream:
        assert nsight.sniff(other, stream.read(65_536))
