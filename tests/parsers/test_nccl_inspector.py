"""Inspector lines: documented samples recompute; state carries over; damage is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hang_harness import parser

from tracetool.errors import UnreadableTrace
from tracetool.registry import ParseOptions
from tracetool.tables import check

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.tables import Tables

inspector = parser("nccl_inspector")


def parse(path: Path) -> Tables:
    assert inspector.sniff(path, path.read_bytes()[:65_536])
    tables: Tables = inspector.parse(path, ParseOptions(path.name))
    for name, table in tables.items():
        check(name, table)
    return tables


def test_documented_samples_recompute(shared: Path) -> None:
    rows = parse(shared / "nccl" / "inspector" / "nccl-docs-examples.jsonl")["collectives"]
    told = {}
    for op, size, ns in rows.select("op", "bytes", "duration_ns").iter_rows():
        told[op, size] = size / ns
    assert told["all_reduce", 17179869184] == pytest.approx(277.21, abs=0.01)
    assert told["reduce_scatter", 2147483648 * 8] == pytest.approx(418.44, abs=0.01)
    assert told["reduce_scatter", 65536 * 32] == pytest.approx(19.065, abs=0.001)


def line(**parts: object) -> str:
    return json.dumps(parts) + "\n"


HEADER = {"id": "0xab", "rank": 3, "n_ranks": 8, "nnodes": 1, "comm_name": "DP"}
METADATA = {"inspector_output_format_version": "v4.3", "hostname": "h", "pid": 7}


def test_header_and_metadata_on_their_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "h-pid7.log"
    path.write_text(
        line(metadata=METADATA)
        + line(header=HEADER)
        + line(coll_perf={"coll": "AllGather", "coll_sn": 5, "coll_msg_size_bytes": 100, "coll_exec_time_us": 9})
        + line(p2p_perf={"p2p": "Send", "p2p_sn": 2, "p2p_msg_size_bytes": 64, "p2p_exec_time_us": 4, "peer": 1})
        + '{"coll_perf": {"coll": "AllRed'
    )
    tables = parse(path)
    assert tables["collectives"].select("rank", "group", "seq", "p2p_seq", "op", "bytes", "duration_ns").rows() == [
        (3, "0xab", 5, None, "all_gather", 800, 9000),
        (3, "0xab", None, 2, "send", 64, 4000),
    ]
    assert tables["process_groups"].select("rank", "group", "desc", "size").rows() == [(3, "0xab", "DP", 8)]
    assert tables["sources"]["dropped"].item() == 1
    assert not tables["sources"]["complete"].item()


def test_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text(line(header=HEADER, metadata=METADATA))
    with pytest.raises(UnreadableTrace, match="none of its"):
        inspector.parse(path, ParseOptions("x.log"))
