"""The join's edges: sentences, the ceiling's file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tracetool.errors import UsageError
from tracetool.joinmap import Told, ceiling_curve, sentences

if TYPE_CHECKING:
    from pathlib import Path


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
