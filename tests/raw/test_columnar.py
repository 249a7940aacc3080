"""Tables out of SQLite, Parquet and Arrow, with the traps of the SQLite driver."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pytest

from tracetool.errors import UnreadableTrace
from tracetool.raw.columnar import open_directory, open_sqlite, sqlite_tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def sqlite(path: Path, rows: Sequence[tuple[object, ...]], columns: str = "n integer, t text, b blob") -> Path:
    with contextlib.closing(sqlite3.connect(path)) as made, made:
        made.execute(f'create table "a ""quoted"" name" ({columns})')
        marks = ", ".join("?" * (columns.count(",") + 1))
        made.executemany(f'insert into "a ""quoted"" name" values ({marks})', rows)  # noqa: S608 - the test's own text
    return path


def read(path: Path, keep: tuple[str, Sequence[str | int]] | None = None) -> pl.DataFrame:
    with open_sqlite(path, path.name) as source:
        return source.read('a "quoted" name', {"n": "int", "t": "text", "b": "bytes"}, keep)


def test_text_that_is_null_in_all_first_rows_and_then_is_not(tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [(None, None, None)] * 70_000
    found = read(sqlite(tmp_path / "x.db", [*rows, (1, "late", b"\x00\xff")]))
    assert found.height == 70_001
    assert found.row(-1) == (1, "late", b"\x00\xff")
    assert found.row(0) == (None, None, None)


def test_an_empty_table_has_the_types_that_were_asked_for(tmp_path: Path) -> None:
    assert read(sqlite(tmp_path / "x.db", [])).schema == {"n": pl.Int64, "t": pl.String, "b": pl.Binary}


def test_what_is_not_there_is_null_or_empty(tmp_path: Path) -> None:
    with open_sqlite(sqlite(tmp_path / "x.db", [(5,)], "n integer"), "x.db") as source:
        assert source.read('a "quoted" name', {"n": "int", "t": "text"}).rows() == [(5, None)]
        assert source.read("nothing", {"n": "int"}).rows() == []
        assert source.read('a "quoted" name', {"n": "int"}, keep=("t", ("x",))).rows() == []
        assert source.notes == []


def test_only_rows_with_the_values_asked_for(tmp_path: Path) -> None:
    path = sqlite(tmp_path / "x.db", [(1, "it's", b""), (2, "b", b"x"), (3, "it's", None)])
    assert read(path, ("t", ("it's",)))["n"].to_list() == [1, 3]
    assert read(path, ("n", (2, 3)))["t"].to_list() == ["b", "it's"]


def test_bad_utf8_is_replaced(tmp_path: Path) -> None:
    path = sqlite(tmp_path / "x.db", [(1, "fine", None)])
    with contextlib.closing(sqlite3.connect(path)) as made, made:
        made.execute("""insert into "a ""quoted"" name" values (2, cast(x'61ff62' as text), null)""")
    assert read(path)["t"].to_list() == ["fine", "a\ufffdb"]


def test_a_number_where_none_is_expected_is_told_and_what_stands_before_it_kept(tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [(k, "x", None) for k in range(100)]
    path = sqlite(tmp_path / "x.db", [*rows, ("not a number", "y", None)])
    with open_sqlite(path, "x.db") as source:
        found = source.read('a "quoted" name', {"n": "int"})
        assert 80 <= found.height <= 100
        assert found["n"].to_list() == list(range(found.height))
        assert not source.complete
        assert "is damaged after" in source.notes[0]


def test_directories_of_both_kinds(tmp_path: Path) -> None:
    table = pa.table({"n": pa.array([1, None], pa.int32()), "t": pa.array(["x", None]).dictionary_encode()})
    frame = pl.DataFrame(pl.from_arrow(table))
    frame.write_parquet(tmp_path / "one.parquet")
    with pa.OSFile(str(tmp_path / "two.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "three.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "four.parquet").write_bytes(b"")
    source = open_directory(tmp_path, "folder")
    assert sorted(source.tables) == ["one", "three", "two"]
    for name in source.tables:
        assert source.read(name, {"n": "int", "t": "text", "z": "bytes"}).rows() == [(1, "x", None), (None, None, None)]
    assert not source.complete
    assert source.notes[0].startswith("four.parquet could not be read")


def test_names_of_tables_without_the_driver(tmp_path: Path) -> None:
    assert sqlite_tables(sqlite(tmp_path / "a b#?.db", [])) == {'a "quoted" name'}
    (tmp_path / "text").write_text("no", encoding="utf-8")
    assert sqlite_tables(tmp_path / "text") == frozenset()
    assert sqlite_tables(tmp_path / "missing") == frozenset()
    assert not (tmp_path / "missing").exists()


def test_the_list_of_tables_is_damaged(tmp_path: Path) -> None:
    path = sqlite(tmp_path / "x.db", [])
    content = bytearray(path.read_bytes())
    content[100:4096] = b"\xff" * (4096 - 100)
    path.write_bytes(content)
    with pytest.raises(UnreadableTrace, match=r"list of tables cannot be read"):
        open_sqlite(path, "x.db")
