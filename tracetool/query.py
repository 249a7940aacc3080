"""SQL over the tables of a run, and how its answer is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import polars as pl

from tracetool.errors import UsageError
from tracetool.tables import SCHEMAS

if TYPE_CHECKING:
    from tracetool.run import Run


def query_run(run: Run, query: str) -> pl.DataFrame:
    """Return the answer to a polars SQL query in which every table of the data model can be named.

    Only the columns that the query needs are read. Raises UsageError with polars' own reason when it cannot be run.
    """
    context = pl.SQLContext({name: run.table(name) for name in SCHEMAS}, eager=True)
    try:
        return context.execute(query)
    except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"the query cannot be run: {reason}; `tracetool schema` lists tables and columns") from None


def render_frame(frame: pl.DataFrame, form: str) -> str:
    """Return a table as text: `table` for reading, `csv`, `json` (a list of rows) or `md`; ends with a newline."""
    if form == "csv":
        return _flat(frame).write_csv()
    if form == "json":
        return orjson.dumps(frame.to_dicts(), option=orjson.OPT_APPEND_NEWLINE).decode()
    with pl.Config(
        tbl_formatting="MARKDOWN" if form == "md" else "NOTHING",
        tbl_cell_numeric_alignment="RIGHT",
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=10_000,
        fmt_str_lengths=200,
    ):
        # without rules; polars pads every line on both sides
        lines = f"{frame}".splitlines()
    return "".join(f"{line.strip() if form == 'md' else line[1:].rstrip()}\n" for line in lines)


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Write lists as text: CSV has no lists."""
    lists = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.List)]
    return frame.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join(" ") for name in lists)
