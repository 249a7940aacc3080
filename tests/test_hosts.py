"""Hosts: given, recorded, in file names, counted or assumed; said where assumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest

from tracetool.errors import UsageError
from tracetool.hosts import host_of_file, hosts_of
from tracetool.settings import Settings
from tracetool.tables import frame

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = pl.DataFrame(schema={"path": pl.String, "ranks": pl.List(pl.Int32)})
IDENTITIES = frame("ranks", {"rank": [0, 1, 8], "format": ["kineto"] * 3, "host": ["a", None, None]})


def test_hosts_are_given_recorded_counted_or_assumed(tmp_path: Path) -> None:
    hosts, notes = hosts_of(IDENTITIES, SOURCES, Settings())
    assert hosts.select("host", "assumed").rows() == [("a", False), ("rank-1", True), ("rank-8", True)]
    assert "traces of 2 ranks do not name their host" in notes[0]
    hosts, notes = hosts_of(IDENTITIES, SOURCES, Settings(gpus_per_node=8))
    assert hosts["host"].to_list() == ["a", "node-0", "node-1"]
    assert notes == []
    path = tmp_path / "hosts"
    path.write_text("# rank host\n0 x\n1 x\n8 y\n")
    assert hosts_of(IDENTITIES, SOURCES, Settings(hosts=str(path)))[0]["host"].to_list() == ["x", "x", "y"]


def test_a_bad_hosts_file_says_where(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("0 a\nzero a\n")
    with pytest.raises(UsageError, match="line 2: 'zero a'"):
        hosts_of(IDENTITIES, SOURCES, Settings(hosts=str(path)))
    with pytest.raises(UsageError, match="No such file"):
        hosts_of(IDENTITIES, SOURCES, Settings(hosts=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("path", "host"),
    [
        ("logs/gpu-node-17_4711.1700000000123456789.pt.trace.json.gz", "gpu-node-17"),
        ("a.b.example_12.1700000000123.pt.trace.json", "a.b.example"),
        ("rank0_4711.1700000000123456789.pt.trace.json", None),
        ("global_rank3_4711.1700000000123456789.pt.trace.json", None),
        ("worker-3_1.1700000000123456789.pt.trace.json", None),
        ("rank-34.Jul_15_10_52_41.1074.pt.trace.json.gz", None),
        ("node_1.json", None),
    ],
)
def test_the_host_in_a_file_name(path: str, host: str | None) -> None:
    assert host_of_file(path) == host


def test_file_names_tell_hosts_and_it_is_said() -> None:
    path = "n17_4711.1700000000123456789.pt.trace.json"
    sources = pl.DataFrame({"path": [path], "ranks": [[1, 8]]}, schema=SOURCES.schema)
    hosts, notes = hosts_of(IDENTITIES, sources, Settings(gpus_per_node=1))
    assert hosts["host"].to_list() == ["a", "n17", "n17"]
    assert notes == ["the hosts of 2 ranks are those in the names of their files"]
