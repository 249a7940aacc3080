"""The join's edges: hosts, sentences, the ceiling's file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tracetool.errors import UsageError
from tracetool.joinmap import Told, ceiling_curve, hosts_of, sentences
from tracetool.settings import Settings
from tracetool.tables import frame

if TYPE_CHECKING:
    from pathlib import Path

IDENTITIES = frame("ranks", {"rank": [0, 1, 8], "format": ["kineto"] * 3, "host": ["a", None, None]})


def test_hosts_are_given_recorded_counted_or_assumed(tmp_path: Path) -> None:
    hosts, notes = hosts_of(IDENTITIES, Settings())
    assert hosts.select("host", "assumed").rows() == [("a", False), ("rank-1", True), ("rank-8", True)]
    assert "traces of 2 ranks do not name their host" in notes[0]
    hosts, notes = hosts_of(IDENTITIES, Settings(gpus_per_node=8))
    assert hosts["host"].to_list() == ["a", "node-0", "node-1"]
    assert notes == []
    path = tmp_path / "hosts"
    path.write_text("# rank host\n0 x\n1 x\n8 y\n")
    assert hosts_of(IDENTITIES, Settings(hosts=str(path)))[0]["host"].to_list() == ["x", "x", "y"]


def test_a_bad_hosts_file_says_where(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("0 a\nzero a\n")
    with pytest.raises(UsageError, match="line 2: 'zero a'"):
        hosts_of(IDENTITIES, Settings(hosts=str(path)))
    with pytest.raises(UsageError, match="No such file"):
        hosts_of(IDENTITIES, Settings(hosts=str(tmp_path / "none")))


def test_what_is_said_of_many_groups_is_one_sentence() -> None:
    assert sentences([Told("unpaired", "1", 2, 8)]) == ["group 1: 2 of 8 communications have no counterpart"]
    many = sentences([Told("disagree steps", str(n), 3, 8, (5,)) for n in range(7)])
    assert len(many) == 1
    assert many[0].startswith("7 groups (0, 1, 2, 3, 4, …), steps 5: ranks disagree on operations, sizes, counts")
    assert many[0].endswith("21 of 56 communications are not matched")
    assert "the whole window" in sentences([Told("disagree steps", "1", 3, 8, (-1,))])[0]
    assert sentences([]) == []


def test_the_ceiling_is_read_from_the_file_or_the_file_is_named(shared: Path, tmp_path: Path) -> None:
    curve = ceiling_curve(str(shared / "nccl" / "nccl_tests" / "all_reduce_perf_2x8_H100_a3mega.txt"))
    assert curve["busbw_gbs"].max() == 338.82
    path = tmp_path / "other.txt"
    path.write_text("nothing of the kind")
    with pytest.raises(UsageError, match=r"other\.txt: is no output of nccl-tests"):
        ceiling_curve(str(path))
    with pytest.raises(UsageError, match="No such file"):
        ceiling_curve(str(tmp_path / "none"))
