"""Values as a trace file writes them, made into columns: int64 with a mark for missing, exact times, numbered texts.

Columns grow chunk by chunk as numpy arrays and become polars series at the end. Nothing here knows a format.
"""

from __future__ import annotations

from array import array
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import polars as pl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

NULL: Final = -(2**63)
"""Stands for a missing value in an int64 array."""
_FLOAT_EXACT_US: Final = 2.0**43
"""Below, half the spacing of float64 is less than half a ns when whole and fraction are taken apart."""
_LARGEST_US: Final = 4.6e15
"""Times beyond are damaged: added to a base of the same size they leave int64 ns (the year 2115)."""
_LARGEST_GRID: Final = 10_000_000


class Codes(dict[Any, int]):
    """Numbers values in the order in which they first come."""

    def of(self, values: list[Any]) -> NDArray[np.int32]:
        """Return the number of each value; lists and objects, which cannot be keys, count by their text."""
        try:
            return np.fromiter(map(self.__getitem__, values), np.int32, len(values))
        except (KeyError, TypeError):  # something new or odd, which is seldom: the usual case needs no check
            try:
                new = dict.fromkeys(values)
            except TypeError:
                values = [value if _is_key(value) else str(value) for value in values]
                new = dict.fromkeys(values)
        for value in new:
            if value not in self:
                self[value] = len(self)
        return np.fromiter(map(self.__getitem__, values), np.int32, len(values))

    def texts(self) -> list[str]:
        """Return the values as text, by number."""
        return ["" if value is None else str(value) for value in self]


def _is_key(value: object) -> bool:
    return not isinstance(value, (list, dict))


def one_int(value: object) -> int:
    """Return a number or its text as int64, `NULL` when it is neither or does not fit."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            return NULL
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and abs(value) < -NULL else NULL


def ints(values: list[Any]) -> Ints:
    """Return int64, `NULL` where a value is missing or no integer."""
    try:
        return np.array(array("q", values), np.int64)
    except (TypeError, OverflowError):
        return np.array([one_int(value) for value in values], np.int64)


def _float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # whatever a damaged file holds; all else raises TypeError
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def us_to_ns(values: list[Any]) -> Ints | None:
    """Return ns, `NULL` where a value is no time; None when float64 cannot hold the values exactly enough."""
    try:
        whole = np.array(array("q", values), np.int64)
    except (TypeError, OverflowError):
        pass
    else:
        return np.where(np.abs(whole) <= int(_LARGEST_US), whole * 1000, NULL)
    try:
        us = np.array(array("d", values))
    except (TypeError, OverflowError):
        us = np.array([_float(value) for value in values])
    good = np.isfinite(us)
    if not good.all():
        us = np.where(good, us, 0.0)
    if us.size and np.abs(us).max() >= _FLOAT_EXACT_US:
        return None
    floor = np.floor(us)
    ns = floor.astype(np.int64) * 1000 + np.rint((us - floor) * 1000).astype(np.int64)
    return ns if good.all() else np.where(good, ns, NULL)


def texts_to_ns(values: list[Any]) -> Ints:
    """Return ns from the decimal text of µs, rounded half up; `NULL` where a text is no time."""
    text = pl.Series([bytes(value).decode("utf-8", "replace") for value in values], dtype=pl.String)
    parts = pl.DataFrame({"text": text}).select(
        pl.col("text").str.extract(r"^(\d{1,16})(?:\.\d*)?$").cast(pl.Int64, strict=False).alias("whole"),
        pl.col("text").str.extract(r"^\d+\.(\d*)$").fill_null("").str.pad_end(4, "0").str.slice(0, 4).cast(pl.Int64)
        .alias("tenths"),
    )  # fmt: skip
    ns = parts.select(
        pl.when(pl.col("whole") <= int(_LARGEST_US)).then(pl.col("whole") * 1000 + (pl.col("tenths") + 5) // 10)
    ).to_series()
    result = ns.fill_null(NULL).to_numpy().copy()
    for row in np.flatnonzero(result == NULL).tolist():
        result[row] = _text_to_ns(bytes(values[row]))
    return result


def _text_to_ns(text: bytes) -> int:
    """Return ns of a number with sign or exponent, or of one in quotes."""
    try:
        us = Decimal(text.decode().strip('"'))
        if not us.is_finite() or abs(us) > int(_LARGEST_US):
            return NULL
        return int((us * 1000).to_integral_value(ROUND_HALF_UP))
    except (ArithmeticError, UnicodeDecodeError):
        return NULL


def joined(columns: dict[str, list[NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return whole columns and forget the parts, one column at a time: memory holds one column twice, not all."""
    return {name: np.concatenate(columns.pop(name)) for name in list(columns)}


def append(columns: dict[str, list[NDArray[Any]]], **parts: NDArray[Any]) -> None:
    """Add one array to each named column."""
    for name, part in parts.items():
        columns.setdefault(name, []).append(part)


def extend(columns: dict[str, list[Any]], **parts: list[Any]) -> None:
    """Add values to each named column."""
    for name, part in parts.items():
        columns.setdefault(name, []).extend(part)


def numbered(keys: Ints, size: int) -> tuple[Ints, Ints]:
    """Return the distinct keys, ascending, and the number of each row's key; keys are below `size`."""
    if size > _LARGEST_GRID:
        distinct, found = np.unique(keys, return_inverse=True)
        return distinct, found
    there = np.zeros(size, bool)
    there[keys] = True
    distinct = np.flatnonzero(there)
    number = np.zeros(size, np.int64)
    number[distinct] = np.arange(len(distinct))
    return distinct, number[keys]


def nullable(values: Ints) -> pl.Series:
    """Return a column in which `NULL` is null."""
    series = pl.Series(values)
    missing = values == NULL
    return series.set(pl.Series(missing), None) if missing.any() else series


def json_value(text: bytes) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return the value of a JSON text; None when it is damaged."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None


def compact_json(raw: bytes) -> str | None:
    """Return JSON text without white space outside strings; None for no text and for null."""
    if raw in (b"", b"null"):
        return None
    return msgspec.json.format(raw, indent=-1).decode("utf-8", "replace")
