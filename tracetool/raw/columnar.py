"""Reads named tables, column by column, from a SQLite file or a directory of Parquet or Arrow files.

SQLite goes through ADBC, Arrow's own driver (https://arrow.apache.org/adbc/current/driver/sqlite.html), opened
`mode=ro&immutable=1`: nothing is created, locked or written, not even side files. Its traps are met here: it types
a column by its first rows and not as declared, so text is asked for as bytes that are never null, and an empty
table comes with wrong types, so every column is cast to the type that was asked for.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import quote

import polars as pl

from tracetool.errors import UnreadableTrace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

SQLITE_MAGIC: Final = b"SQLite format 3\0"
Wanted = Literal["int", "text", "bytes"]
_DTYPES: Final[dict[Wanted, type[pl.DataType]]] = {"int": pl.Int64, "text": pl.String, "bytes": pl.Binary}
_BATCH_ROWS: Final = 65_536
_SALVAGE_ROWS: Final = 16
_PAGE_SIZE_AT: Final = slice(16, 18)
_PAGES_AT: Final = slice(28, 32)
_SUFFIXES: Final = (".parquet", ".arrow")


@dataclass
class Columnar:
    """Tables by name. `tables` maps each to its columns; `notes` tells what could not be read and why."""

    path: Path
    display: str
    tables: Mapping[str, tuple[str, ...]]
    connection: Any = None
    """ADBC connection; None for a directory."""
    files: Mapping[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complete: bool = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.connection is not None:
            self.connection.close()

    def read(
        self, table: str, columns: Mapping[str, Wanted], keep: tuple[str, Sequence[str | int]] | None = None
    ) -> pl.DataFrame:
        """Return the wanted columns of a table, in file order; a column or table that is not there is null or empty.

        Empty text counts as null. `keep` = (column, values) reads only rows with one of the values; without that
        column none. What stands behind damage is left out, and `notes` says so.
        """
        schema = {name: _DTYPES[kind] for name, kind in columns.items()}
        there = self.tables.get(table, ())
        if not there or (keep and keep[0] not in there):
            return pl.DataFrame(schema=schema)
        have = {name: kind for name, kind in columns.items() if name in there}
        if keep:
            have.setdefault(keep[0], "text" if isinstance(keep[1][0], str) else "int")
        found = self._from_file(table, have) if self.connection is None else self._from_sqlite(table, have, keep)
        if keep:
            found = found.filter(pl.col(keep[0]).is_in(list(keep[1])))
        return found.select(
            pl.col(name) if name in found.columns else pl.lit(None, dtype=dtype).alias(name)
            for name, dtype in schema.items()
        )

    def _from_sqlite(
        self, table: str, columns: Mapping[str, Wanted], keep: tuple[str, Sequence[str | int]] | None
    ) -> pl.DataFrame:
        chosen = ", ".join(
            _quoted(name) if kind == "int" else f"cast(coalesce({_quoted(name)}, '') as blob)"
            for name, kind in columns.items()
        )
        query = f"select {chosen} from {_quoted(table)}"  # noqa: S608 - names come from the file's own schema, quoted
        if keep:
            values = ", ".join(_literal(value) for value in keep[1])
            query += f" where {_quoted(keep[0])} in ({values})"
        nothing = pl.DataFrame(schema={name: _DTYPES[kind] for name, kind in columns.items()})
        parts: list[pl.DataFrame] = []
        reason = ""
        for batch_rows in (_BATCH_ROWS, _SALVAGE_ROWS):  # damage costs a whole batch: small ones lose less
            parts = []
            try:
                for batch in self._batches(query, batch_rows):
                    parts.append(_typed(batch, columns))
            except _driver_errors() as error:
                reason = _reason(error)
            else:
                break
        found = pl.concat([nothing, *parts])
        if reason:
            self.complete = False
            self.notes.append(f"table {table} is damaged after {found.height} rows ({reason}); the rest was left out")
        return found

    def _batches(self, query: str, batch_rows: int = _BATCH_ROWS) -> Iterator[Any]:
        with self.connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(batch_rows)})
            cursor.execute(query)
            yield from cursor.fetch_record_batch()

    def _from_file(self, table: str, columns: Mapping[str, Wanted]) -> pl.DataFrame:
        import pyarrow as pa  # noqa: PLC0415 - SQLite files do not need it

        try:
            batch = _arrow_file(self.files[table], list(columns))
            return _typed(batch, columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            self.complete = False
            self.notes.append(f"table {table} could not be read ({_reason(error)})")
            return pl.DataFrame(schema={name: _DTYPES[kind] for name, kind in columns.items()})


def open_sqlite(path: Path, display: str) -> Columnar:
    """Open a SQLite file without locking or changing it.

    Raises UnreadableTrace for a file that is empty, was cut inside its header, whose header is zero (a writer that
    was interrupted), that is no SQLite file or whose table of tables is damaged.
    """
    import adbc_driver_sqlite.dbapi as sqlite  # noqa: PLC0415 - half of the time of an import of this module

    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(100)
    if not head:
        raise UnreadableTrace(display, "the file is empty; export it again", 0)
    if not head.strip(b"\0"):
        reason = "its header is zero: the program that wrote it was interrupted; delete it and export again"
        raise UnreadableTrace(display, reason, 0)
    if head[:2] == b"\x1f\x8b":
        raise UnreadableTrace(display, "is packed with gzip: SQLite files are read in place, unpack it first", 0)
    if not head.startswith(SQLITE_MAGIC):
        raise UnreadableTrace(display, "is no SQLite file (it does not begin with `SQLite format 3`)", 0)
    notes: list[str] = []
    page = int.from_bytes(head[_PAGE_SIZE_AT]) or 1
    promised = int.from_bytes(head[_PAGES_AT]) * (65_536 if page == 1 else page)
    if size < promised:
        notes.append(f"the file was cut: {size} of {promised} bytes are there; what stands before the cut was read")
    connection = sqlite.connect(f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1")
    found = Columnar(path, display, {}, connection, notes=notes, complete=not notes)
    for suffix in ("-wal", "-journal"):
        side = path.with_name(path.name + suffix)
        if side.exists() and side.stat().st_size:
            found.complete = False
            notes.append(f"{side.name} stands beside it: a writer has not finished, and what it holds is not read")
    if size < promised:
        # SQLite refuses every page of a file shorter than its header says, unless this is on; nothing can be written
        connection.execute("pragma writable_schema = on").close()
    columns: dict[str, list[str]] = {}
    query = "select m.name, t.name from sqlite_master m, pragma_table_info(m.name) t where m.type = 'table'"
    try:
        for batch in found._batches(query + " order by m.name, t.cid"):  # noqa: SLF001 - made just above
            for table, name in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                columns.setdefault(str(table), []).append(str(name))
    except _driver_errors() as error:
        connection.close()
        what = f"{notes[0]}; " if notes else ""
        raise UnreadableTrace(
            display, f"{what}its list of tables cannot be read ({_reason(error)}); export it again", min(size, 4096)
        ) from None
    found.tables = {table: tuple(names) for table, names in columns.items()}
    return found


def open_directory(path: Path, display: str) -> Columnar:
    """Open a directory of `<table>.parquet` or `<table>.arrow` files; a file that cannot be opened is noted."""
    import pyarrow as pa  # noqa: PLC0415 - SQLite files do not need it

    files = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in _SUFFIXES}
    found = Columnar(path, display, {}, files=files)
    columns: dict[str, tuple[str, ...]] = {}
    for table, file in files.items():
        try:
            columns[table] = tuple(_arrow_names(file))
        except (pa.ArrowException, OSError, ValueError) as error:
            found.complete = False
            found.notes.append(f"{file.name} could not be read ({_reason(error)})")
    found.tables = columns
    return found


def sqlite_tables(path: Path) -> frozenset[str]:
    """Return the names of the tables of a SQLite file; empty when it is none or cannot be read."""
    import sqlite3  # noqa: PLC0415 - light, unlike the Arrow driver: every file of a run is looked at

    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1", uri=True)
        ) as opened:
            return frozenset(str(row[0]) for row in opened.execute("select name from sqlite_master where type='table'"))
    except sqlite3.Error:
        return frozenset()


def _typed(batch: Any, columns: Mapping[str, Wanted]) -> pl.DataFrame:  # noqa: ANN401 - an Arrow batch or table
    """Return Arrow columns as what was asked for: they come in the order of `columns`."""
    import pyarrow as pa  # noqa: PLC0415 - see open_sqlite

    made = {}
    for position, (name, kind) in enumerate(columns.items()):
        column = batch.column(position)
        if kind == "int":
            made[name] = pl.from_arrow(column.cast(pa.int64()))
            continue
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        text_like = pa.types.is_binary(column.type) or pa.types.is_string(column.type)
        large = pa.types.is_large_binary(column.type) or pa.types.is_large_string(column.type)
        if not (text_like or large) and column.null_count == len(column):
            made[name] = pl.Series(name, [None] * len(column), dtype=_DTYPES[kind])
            continue
        raw = column.cast(pa.large_binary()) if text_like or large else column.cast(pa.string()).cast(pa.large_binary())
        made[name] = _text(raw) if kind == "text" else pl.Series(pl.from_arrow(raw))
    frame = pl.DataFrame({name: pl.Series(name, series) for name, series in made.items()})
    return frame.with_columns(
        pl.when(pl.col(name) != (b"" if kind == "bytes" else "")).then(pl.col(name))
        for name, kind in columns.items()
        if kind != "int"
    )


def _text(raw: Any) -> pl.Series:  # noqa: ANN401 - an Arrow array
    """Decode UTF-8; where some is not, bad bytes become U+FFFD."""
    import pyarrow as pa  # noqa: PLC0415 - see open_sqlite

    try:
        return pl.Series(pl.from_arrow(raw.cast(pa.large_string())))
    except pa.ArrowInvalid:
        return pl.Series(
            [None if b is None else b.decode("utf-8", "replace") for b in raw.to_pylist()], dtype=pl.String
        )


def _arrow_names(file: Path) -> list[str]:
    import pyarrow as pa  # noqa: PLC0415 - see open_directory
    import pyarrow.parquet as pq  # noqa: PLC0415 - same

    if file.suffix == ".parquet":
        return list(pq.read_schema(file).names)
    with pa.memory_map(str(file)) as source:
        return list(_ipc(source).schema.names)


def _arrow_file(file: Path, names: list[str]) -> Any:  # noqa: ANN401 - an Arrow table
    import pyarrow as pa  # noqa: PLC0415 - see open_directory
    import pyarrow.parquet as pq  # noqa: PLC0415 - same

    if file.suffix == ".parquet":
        return pq.read_table(file, columns=names).select(names)
    with pa.memory_map(str(file)) as source:
        return _ipc(source).read_all().select(names)


def _ipc(source: Any) -> Any:  # noqa: ANN401 - pyarrow ships no types
    """Open an Arrow file or, failing that, an Arrow stream."""
    import pyarrow as pa  # noqa: PLC0415 - see open_directory

    try:
        return pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source)


def _driver_errors() -> tuple[type[Exception], ...]:
    import adbc_driver_manager as adbc  # noqa: PLC0415 - see open_sqlite
    import pyarrow as pa  # noqa: PLC0415 - same

    return (adbc.Error, pa.ArrowException, OSError, ValueError)


def _reason(error: Exception) -> str:
    """Return the driver's sentence without the query that it repeats."""
    return str(error).partition("\n")[0].strip()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str | int) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
