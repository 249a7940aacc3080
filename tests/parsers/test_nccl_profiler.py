"""The example plugin's almost-JSON: mended, counted, paired."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hang_harness import parser

from tracetool.errors import UnreadableTrace
from tracetool.registry import ParseOptions
from tracetool.tables import check

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.tables import Tables

profiler = parser("nccl_profiler")


def parse(path: Path) -> Tables:
    assert profiler.sniff(path, path.read_bytes()[:65_536])
    tables: Tables = profiler.parse(path, ParseOptions(path.name))
    for name, table in tables.items():
        check(name, table)
    return tables


@pytest.mark.parametrize(
    ("name", "events", "repaired", "dropped"),
    [("phaZ_recon_nccl2.28", 370, 12, 0), ("phaZ_cd_nccl2.28", 310, 12, 0)],
)
def test_reference_files(shared: Path, name: str, events: int, repaired: int, dropped: int) -> None:
    tables = parse(shared / "nccl" / "profiler_example" / f"{name}.txt")
    assert tables["sources"].select("events", "repaired", "dropped").row(0) == (events, repaired, dropped)
    assert tables["collectives"].group_by("rank", "op").len().sort("rank", "op")["len"].to_list() == [1] * 8
    assert tables["collectives"]["bytes"].unique().to_list() == [268435456 * 4]


def test_cut_documentation_sample(shared: Path) -> None:
    tables = parse(shared / "nccl" / "profiler_example" / "nccl-docs-example-2gpu-allreduce-truncated.txt")
    source = tables["sources"].row(0, named=True)
    assert source["events"] >= 40
    how = tables["log_facts"].select("name", "value", "number").row(0)
    assert how == ("AllReduce", "RING/SIMPLE", 2)


def test_duration_is_that_of_the_kernel_channels(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    begin = (
        '{"name": "AllReduce", "cat": "COLL", "ph": "b", "id": 0, "pid": 1, "tid": 1, "ts": 1.0, "args": {"SeqNum": 4, '
    )
    path.write_text(
        f'[\n{begin}"CommHash": 255, "Rank": 2, "Count": 8, "Datatype": "ncclBfloat16", "Algorithm": "RING", '
        '"Protocol": "LL", "nChannels": 2}},\n'
        '{"name": "KernelCh", "cat": "GPU", "ph": "b", "id": 0, "pid": 1, "tid": 1, "ts": 10.0, "args": {"x": 0x1}},\n'
        '{"name": "KernelCh", "cat": "GPU", "ph": "e", "id": 0, "pid": 1, "tid": 1, "ts": 15.5},\n'
        '{"name": "AllReduce", "cat": "COLL", "ph": "e", "id": 0, "pid": 1, "tid": 1, "ts": 2.0},\n{}]'
    )
    row = parse(path)["collectives"].select("rank", "group", "seq", "bytes", "duration_ns").row(0)
    assert row == (2, "0xff", 4, 16, 5500)


def test_no_event_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("[\nnonsense\n{}]")
    with pytest.raises(UnreadableTrace, match="none of its lines"):
        profiler.parse(path, ParseOptions("x.txt"))
