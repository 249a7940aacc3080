"""What is said where a bandwidth, a line rate or a verdict on a link could not be had."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from tracetool import hardware
from tracetool.ratenotes import link_notes, rate_notes

H100 = hardware.find("NVIDIA H100 80GB HBM3")
SCHEMA = {
    "role": pl.String, "bytes": pl.Int64, "size": pl.Int64, "hosts": pl.Int64, "busbw_gbs": pl.Float64,
    "line_rate_gbs": pl.Float64, "lower_bound": pl.Boolean,
}  # fmt: skip
WHOLE: dict[str, Any] = {
    "role": "dp", "bytes": 8, "size": 2, "hosts": 1, "busbw_gbs": 1.0, "line_rate_gbs": 450.0, "lower_bound": False,
}  # fmt: skip


def table(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([{**WHOLE, **row} for row in rows], schema=SCHEMA)


def test_where_all_is_known_nothing_is_said() -> None:
    assert rate_notes(table({}), H100, None) == []


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"bytes": None, "busbw_gbs": None}, "how many bytes moved was not recorded"),
        ({"size": None, "busbw_gbs": None}, "how many ranks its groups have is not known"),
        ({"lower_bound": True}, "only lower bounds are known"),
        ({"busbw_gbs": None}, "of no kind that has a bus bandwidth"),
    ],
)
def test_a_role_without_a_bandwidth_says_why(row: dict[str, Any], why: str) -> None:
    (note,) = (note for note in rate_notes(table(row), H100, None) if note.startswith("No bus bandwidth"))
    assert why in note
    assert "of dp as a whole" in note
    both = rate_notes(table(row, {"role": "tp"}, {"role": "pp", **row}), H100, None)
    assert any("of dp, pp as a whole" in note for note in both)
    assert not any("No bus" in note for note in rate_notes(table(row, {}), H100, None))


@pytest.mark.parametrize(
    ("row", "device", "nic", "why"),
    [
        ({}, None, None, "device's link rate is not known"),
        ({}, hardware.find("NVIDIA L40S"), None, "NVIDIA L40S has no links"),
        ({"size": None}, H100, None, "how many ranks some groups have"),
        ({"hosts": None}, H100, None, "--gpus-per-node or --hosts"),
        ({"hosts": 2}, H100, None, "--nic-gbs"),
        ({"hosts": 3}, H100, 50.0, "fewer ranks than hosts"),
    ],
)
def test_a_line_rate_that_is_not_known_says_why(
    row: dict[str, Any], device: hardware.Device | None, nic: float | None, why: str
) -> None:
    (note,) = (n for n in rate_notes(table({"line_rate_gbs": None, **row}), device, nic) if "line rates are null" in n)
    assert why in note
    assert note.count(";") == 0


def test_bandwidths_that_are_not_known_leave_line_rates_no_less_unknown() -> None:
    notes = rate_notes(table({"line_rate_gbs": None, "hosts": None, "busbw_gbs": None, "bytes": None}), H100, None)
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((4, 4, 0), []),
        ((4, 3, 0), ["1 of 4 links have no peers"]),
        ((0, 0, 0), ["No link can be judged"]),
        ((0, 0, 3), ["3 pairs of ranks left out"]),
        ((2, 0, 1), ["2 of 2 links", "1 pair of ranks"]),
    ],
)
def test_links_that_cannot_be_judged_say_why(counts: tuple[int, int, int], words: list[str]) -> None:
    notes = link_notes(*counts)
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))
