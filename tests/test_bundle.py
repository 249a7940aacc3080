"""Small tables in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest

from tracetool import bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TABLES = {
    "rows": pl.DataFrame(
        {
            "rank": pl.Series([0, None, 3], dtype=pl.Int32),
            "name": pl.Series(["gemm", None, "\n{"], dtype=pl.Categorical),
            "kind": pl.Series(["a", "b", None], dtype=pl.Enum(["a", "b"])),
            "ranks": [[0, 1], [], None],
        }
    ),
    "empty": pl.DataFrame(schema={"ns": pl.Int64, "share": pl.Float64}),
    "nothing": pl.DataFrame(),
}


def test_what_is_written_is_read_with_its_types_and_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "of" / "a rank"
    bundle.write(path, TABLES)
    found = bundle.read(path)
    assert found is not None
    assert list(found) == list(TABLES)
    assert all(found[name].schema == table.schema and found[name].equals(table) for name, table in TABLES.items())
    assert [entry.name for entry in path.parent.iterdir()] == ["a rank"]


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        bundle.write(tmp_path / name, TABLES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda data: data[:-1], id="cut"),
        pytest.param(lambda data: data + b"\0", id="longer"),
        pytest.param(lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], id="one bit"),
        pytest.param(lambda data: data.replace(b'"rows":', b'"rows":1', 1), id="other sizes"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"[]\n", id="another format"),
    ],
)
def test_a_damaged_file_is_none_at_all(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "answer"
    bundle.write(path, TABLES)
    path.write_bytes(harm(path.read_bytes()))
    assert bundle.read(path) is None


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert bundle.read(tmp_path / "nowhere") is None


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        bundle.write(tmp_path / "taken", TABLES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]
