"""Distinct names and the rows that hold them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tracetool.derive.names import Names, matcher
from tracetool.errors import UsageError


def names(*texts: str) -> Names:
    # names seen elsewhere in the process share the numbering of Categorical: codes need not start at 0
    pl.Series(["seen", "before"], dtype=pl.Categorical)
    return Names.of(pl.Series(texts, dtype=pl.Categorical))


def test_rows_find_their_names() -> None:
    found = names("b", "a", "b", "c")
    assert [found.texts[code] for code in found.code.tolist()] == ["b", "a", "b", "c"]
    assert len(found.texts) == 3


def test_each_name_is_looked_at_once() -> None:
    asked: list[str] = []

    def length(text: str) -> int:
        asked.append(text)
        return len(text)

    assert names("bb", "a", "bb").each(length, np.int64).tolist() == [2, 1, 2]
    assert sorted(asked) == ["a", "bb"]


def test_patterns() -> None:
    found = names("nccl:all", "aten::mm", "x nccl")
    assert found.has("^nccl").tolist() == [True, False, False]
    assert found.each(matcher("--x", r"(?<=x )nccl"), np.bool_).tolist() == [False, False, True]
    assert names().has("x").tolist() == []
    assert names().each(len, np.int64).tolist() == []


def test_a_broken_pattern_names_its_option() -> None:
    with pytest.raises(UsageError, match=r"--comm-pattern \[: not a regular expression"):
        matcher("--comm-pattern", "[")
