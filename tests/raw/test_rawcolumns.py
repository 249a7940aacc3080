"""Values of trace files as columns."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracetool.raw.rawcolumns import (
    NULL,
    Codes,
    append,
    compact_json,
    extend,
    ints,
    joined,
    json_value,
    nullable,
    numbered,
    one_int,
    texts_to_ns,
    us_to_ns,
)


def test_codes_number_values_as_they_come() -> None:
    codes = Codes()
    assert codes.of(["b", "a", "b"]).tolist() == [0, 1, 0]
    assert codes.of(["a", None, ["x"], {"y": 1}, ["x"]]).tolist() == [1, 2, 3, 4, 3]
    assert codes.of([]).tolist() == []
    assert codes.texts() == ["b", "a", "", "['x']", "{'y': 1}"]


@pytest.mark.parametrize(
    ("value", "number"),
    [(7, 7), ("12", 12), (3.0, 3), (3.5, NULL), (None, NULL), ("x", NULL), (2**63, NULL), (-(2**63), NULL), ([], NULL),
     (float("inf"), NULL), (-(2**62), -(2**62))],
)  # fmt: skip
def test_one_int(value: object, number: int) -> None:
    assert one_int(value) == number
    assert ints([value, 1]).tolist() == [number, 1]


@given(st.lists(st.integers(0, 2**43 * 1000 - 1)))
def test_decimals_below_2_to_43_survive_a_float(times_ns: list[int]) -> None:
    found = us_to_ns([float(f"{ns // 1000}.{ns % 1000:03d}") for ns in times_ns])
    assert found is not None
    assert found.tolist() == times_ns


def test_times_that_a_float_cannot_hold_are_refused() -> None:
    assert us_to_ns([1712345678901234.5]) is None
    assert us_to_ns([1712345678901234, 3.0]) is None
    exact = us_to_ns([1712345678901234, 3])
    assert exact is not None
    assert exact.tolist() == [1712345678901234000, 3000]
    odd = us_to_ns([1.5, None, "2.5", float("nan"), "x"])
    assert odd is not None
    assert odd.tolist() == [1500, NULL, 2500, NULL, NULL]


@given(st.lists(st.decimals(-(10**15), 10**15, places=4)))
def test_text_to_ns_is_decimal_arithmetic(times: list[Decimal]) -> None:
    expected = [int((time * 1000).to_integral_value(ROUND_HALF_UP)) for time in times]
    assert texts_to_ns([str(time).encode() for time in times]).tolist() == expected


def test_texts_that_are_no_times() -> None:
    found = texts_to_ns([b"", b"null", b'"7.5"', b"1e3", b"NaN", b"99999999999999999999", b"\xff", b"-1"])
    assert found.tolist() == [NULL, NULL, 7500, 1_000_000, NULL, NULL, NULL, -1000]


def test_columns_grow_and_are_joined() -> None:
    columns: dict[str, list[np.ndarray]] = {}
    append(columns, a=np.array([1]), b=np.array([2.0]))
    append(columns, a=np.array([3]), b=np.array([4.0]))
    whole = joined(columns)
    assert {name: values.tolist() for name, values in whole.items()} == {"a": [1, 3], "b": [2.0, 4.0]}
    assert not columns
    lists: dict[str, list[object]] = {}
    extend(lists, a=[1])
    extend(lists, a=[2])
    assert lists == {"a": [1, 2]}


@pytest.mark.parametrize("size", [10, 20_000_000])
def test_numbered_keys(size: int) -> None:
    distinct, found = numbered(np.array([7, 3, 7, 0]), size)
    assert (distinct.tolist(), found.tolist()) == ([0, 3, 7], [2, 1, 2, 0])


def test_json_texts() -> None:
    assert nullable(np.array([1, NULL])).to_list() == [1, None]
    assert compact_json(b'[ [1, 2],\n "a  b", 1.50 ]') == '[[1,2],"a  b",1.50]'
    assert compact_json(b"null") is compact_json(b"") is None
    assert json_value(b'{"a": 1}') == {"a": 1}
    assert json_value(b"{") is None
