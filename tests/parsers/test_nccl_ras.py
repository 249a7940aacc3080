"""RAS answers: launches per communicator, ranks that do not answer, monitor events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hang_harness import parser

from tracetool.errors import UnreadableTrace
from tracetool.registry import ParseOptions
from tracetool.tables import check

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

ras = parser("nccl_ras")


def facts(path: Path) -> pl.DataFrame:
    assert ras.sniff(path, path.read_bytes()[:65_536])
    tables = ras.parse(path, ParseOptions(path.name))
    for name, table in tables.items():
        check(name, table)
    found: pl.DataFrame = tables["log_facts"]
    return found


def test_missing_rank(shared: Path) -> None:
    found = facts(shared / "nccl" / "ras" / "nccl-docs-ras-07.json")
    missing = found.filter(name="missing").select("rank", "host", "pid", "device", "value").rows()
    assert missing == [(1, "172.16.64.245", 1524345, 1, "unresponsive")]
    assert found.filter(name="launched.all_reduce").select("rank", "number").rows() == [(0, 0)]


def test_monitor_event(shared: Path) -> None:
    found = facts(shared / "nccl" / "ras" / "nccl-docs-ras-10.json")
    assert found.select("rank", "pid", "device", "name", "value").rows() == [(-1, 1524345, 1, "event", "PEER_DEAD")]


def test_answers_one_after_another_and_a_cut_one(tmp_path: Path, shared: Path) -> None:
    one = (shared / "nccl" / "ras" / "nccl-docs-ras-10.json").read_text().strip()
    path = tmp_path / "monitor.json"
    path.write_text(f"{one}\n{one}\n{one[:60]}")
    tables = ras.parse(path, ParseOptions("monitor.json"))
    assert tables["log_facts"].height == 2
    assert not tables["sources"]["complete"].item()


def test_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"communicators": [')
    with pytest.raises(UnreadableTrace, match="no JSON"):
        ras.parse(path, ParseOptions("x.json"))


def test_an_answer_that_asks_for_far_more_memory_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"communicators": [' + ",".join(["[]"] * 100_000) + "]}")
    with pytest.raises(UnreadableTrace, match="MiB of memory"):
        ras.parse(path, ParseOptions("x.json", memory_bytes=1 << 20))
