"""Puts other words for the names of hosts, files and folders into tables and sentences.

A host becomes host-0, host-1, …, a file trace-0, trace-1, …, wherever a table names one; folders are cut from the
frames of a stack, and folders and network addresses from what a log states.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

_FOLDERS: Final = r"(?:[^\s/\"'()]*/)+"
_ADDRESS: Final = r"\b\d{1,3}(?:\.\d{1,3}){3}\b(?::\d+)?|\b[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{0,4}){3,7}(?:%\w+)?"
_ABSOLUTE: Final = r"(?:^|(?<=[\s=:'\"(]))(?:/[^\s/:'\")]+){2,}"
_SHORTEST: Final = 3
UNKNOWN_HOST: Final = "another host"


def disguised(table: pl.LazyFrame, names: Mapping[str, str]) -> pl.LazyFrame:
    """Return a table of the data model with the names of `names` replaced; a host that is not among them is hidden."""
    import polars as pl  # noqa: PLC0415 - the store is imported before a command knows whether it needs tables

    schema = table.collect_schema()
    changes = []
    for column in schema.names():
        text = pl.col(column).cast(pl.String)
        change: pl.Expr
        if column == "host":
            there = text.replace_strict(dict(names), default=pl.lit(UNKNOWN_HOST), return_dtype=pl.String)
            change = pl.when(text.is_not_null()).then(there)
        elif column in ("source", "path"):
            change = text.replace(dict(names))
        elif column == "stack":
            change = text.str.replace_all(_FOLDERS, "")
        elif column in ("value", "note") and schema[column] != pl.Int64:
            change = text.map_elements(lambda said: told(said, names), return_dtype=pl.String)
        elif column == "notes":
            change = pl.col(column).list.eval(
                pl.element().map_elements(lambda said: told(said, names), return_dtype=pl.String)
            )
        else:
            continue
        changes.append(change.cast(schema[column]).alias(column))
    return table.with_columns(changes)


def _is_name(name: str) -> bool:
    """Say whether a name may be looked for inside a sentence: a host called `a`, or the folder `.`, may not."""
    return bool(re.search(r"[A-Za-z]", name)) and (len(name) >= _SHORTEST or bool(re.search(r"\d", name)))


def told(sentence: str, names: Mapping[str, str]) -> str:
    """Return a sentence with every name replaced, longer names first, and addresses and absolute paths hidden."""
    for name in sorted(filter(_is_name, names), key=len, reverse=True):
        sentence = re.sub(rf"(?<![\w]){re.escape(name)}(?![\w])", lambda _: names[name], sentence)  # noqa: B023 - used at once
    return re.sub(_ABSOLUTE, "a path", re.sub(_ADDRESS, "an address", sentence))
