"""The data model documents itself and checks what parsers hand over."""

from __future__ import annotations

import polars as pl
import pytest

from tracetool import tables
from tracetool.errors import TracetoolError


@pytest.mark.parametrize("name", tables.SCHEMAS)
def test_every_table_and_column_is_documented(name: str) -> None:
    schema = tables.SCHEMAS[name]
    assert schema.doc.endswith(".")
    for column, described in schema.columns.items():
        assert described.doc.endswith("."), f"{name}.{column}"
        assert not column.endswith(("_us", "_ms", "_kb", "_mb")), f"{name}.{column}: times are ns, sizes bytes"


@pytest.mark.parametrize("name", tables.SCHEMAS)
def test_the_documentation_travels_with_arrow(name: str) -> None:
    schema = tables.arrow_schema(name)
    assert schema.metadata[b"doc"].decode() == tables.SCHEMAS[name].doc
    for field in schema:
        assert field.metadata[b"doc"].decode() == tables.SCHEMAS[name].columns[field.name].doc
        assert field.nullable == tables.SCHEMAS[name].columns[field.name].nullable


@pytest.mark.parametrize("name", tables.SCHEMAS)
def test_empty_tables_pass_the_check(name: str) -> None:
    tables.check(name, tables.empty(name))


def test_a_frame_is_completed_in_order_and_typed() -> None:
    frame = tables.frame("copies", {"event": [3], "rank": [0]})
    assert frame.columns == ["rank", "event", "bytes", "direction"]
    assert frame.rows() == [(0, 3, None, None)]
    tables.check("copies", frame)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(TracetoolError, match=r"copies: no column size in the data model"):
        tables.frame("copies", {"size": [1]})
    with pytest.raises(TracetoolError, match=r"copies: no column event, bytes, direction; has rank"):
        tables.check("copies", pl.DataFrame({"rank": [0]}))
    wrong = tables.empty("copies").with_columns(pl.col("bytes").cast(pl.Float64))
    with pytest.raises(TracetoolError, match=r"copies\.bytes: is Float64, must be Int64"):
        tables.check("copies", wrong)
    with pytest.raises(TracetoolError, match=r"copies\.event: 1 of 1 values are null"):
        tables.check("copies", tables.frame("copies", {"rank": [0]}))
