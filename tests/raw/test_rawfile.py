"""Files are read whole or by lines, packed or not, bounded, and damaged ones as far as they go."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracetool.errors import UnreadableTrace
from tracetool.raw.rawfile import read_all, text_lines

if TYPE_CHECKING:
    from pathlib import Path


@given(st.binary(max_size=2000).filter(lambda data: not data.startswith(b"\x1f\x8b")), st.booleans())
def test_content_comes_back(tmp_path_factory: pytest.TempPathFactory, data: bytes, packed: bool) -> None:  # noqa: FBT001 - drawn
    path = tmp_path_factory.mktemp("raw") / "x"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert read_all(path, "x", 1 << 20) == data


def test_a_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(50 << 20)))
    with pytest.raises(UnreadableTrace, match="more than the 8 MiB"):
        read_all(path, "bomb.gz", 8 << 20)


def test_members_follow_one_another_and_a_cut_one_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    two = gzip.compress(b"one\n") + gzip.compress(b"two\n")
    path.write_bytes(two)
    assert [line for _, line in text_lines(path, "x.gz")] == ["one", "two"]
    path.write_bytes(two[:-10])
    assert next(text_lines(path, "x.gz")) == (1, "one")


def test_lines_are_numbered_and_any_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\rb\nc\xff")
    assert list(text_lines(path, "x")) == [(1, "a"), (2, "b"), (3, "c\ufffd")]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableTrace, match="gone"):
        read_all(tmp_path / "gone", "gone", 1)
    with pytest.raises(UnreadableTrace, match="gone"):
        list(text_lines(tmp_path / "gone", "gone"))
