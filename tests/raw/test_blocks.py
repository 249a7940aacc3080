"""Blocks of a file: plain, packed in one or several members, damaged."""

from __future__ import annotations

import gzip
import random
from typing import TYPE_CHECKING

import pytest

from tracetool.raw.blocks import Blocks

if TYPE_CHECKING:
    from pathlib import Path

TEXT = random.Random(7).randbytes(300_000)  # noqa: S311 - not for secrets


def read(path: Path, block_bytes: int = 4096) -> tuple[bytes, str | None]:
    with Blocks(path, block_bytes) as blocks:
        found = list(blocks)
        assert all(found)
        return b"".join(found), blocks.damage


@pytest.mark.parametrize("block_bytes", [1000, 1 << 20])
def test_plain_and_packed_content_is_the_same(tmp_path: Path, block_bytes: int) -> None:
    path = tmp_path / "x"
    members = gzip.compress(TEXT[:1000]) + b"\0" * 40 + gzip.compress(TEXT[1000:]) + gzip.compress(b"")
    for content in (TEXT, gzip.compress(TEXT), members):
        path.write_bytes(content)
        assert read(path, block_bytes) == (TEXT, None)


def test_blocks_of_a_packed_file_stay_small(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(b"a" * (1 << 24)))
    with Blocks(path, 1 << 16) as blocks:
        sizes = [len(block) for block in blocks]
    assert sum(sizes) == 1 << 24
    assert max(sizes) <= 2 << 16


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.999])
def test_a_cut_stream_gives_what_it_holds(tmp_path: Path, share: float) -> None:
    packed = gzip.compress(TEXT)
    path = tmp_path / "cut"
    path.write_bytes(packed[: max(3, int(len(packed) * share))])
    found, damage = read(path)
    assert TEXT.startswith(found)
    assert len(found) >= int(len(TEXT) * share) - 70_000
    assert damage == "the gzip stream ends early"


def test_damage_loses_nothing_that_stood_before(tmp_path: Path) -> None:
    text = b"".join(b"%d line of text\n" % i for i in range(50_000))
    packed = bytearray(gzip.compress(text))
    packed[len(packed) // 2 : len(packed) // 2 + 40] = b"\xff" * 40
    path = tmp_path / "damaged"
    path.write_bytes(packed)
    found, damage = read(path)
    same = next((i for i, (a, b) in enumerate(zip(found, text, strict=False)) if a != b), len(found))
    assert same > len(text) * 0.4
    assert damage is not None
    assert "gzip stream is damaged" in damage


@pytest.mark.parametrize("block_bytes", [1 << 15, 1 << 17])
def test_text_that_packs_well_is_kept_to_the_damage(tmp_path: Path, block_bytes: int) -> None:
    """One call unpacks more than a block here: what waits inside the unpacker stands before the damage, too."""
    text = b'{"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": 7, "tid": 7},\n' * 20_000
    packed = gzip.compress(text)[:-8] + b"\xff" * 8  # all is there, the checksum is wrong
    path = tmp_path / "packed"
    path.write_bytes(packed)
    assert read(path, block_bytes) == (text, "the gzip stream is damaged (incorrect data check)")


def test_garbage_behind_a_member_is_said(tmp_path: Path) -> None:
    path = tmp_path / "tail"
    path.write_bytes(gzip.compress(TEXT) + b"garbage")
    found, damage = read(path)
    assert found == TEXT
    assert damage is not None


def test_empty_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    assert read(path) == (b"", None)
    with pytest.raises(OSError, match="nowhere"):
        Blocks(tmp_path / "nowhere", 10)
