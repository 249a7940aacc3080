"""Published figures: same convention only, and the facts agree with what the closed forms give."""

from __future__ import annotations

import pytest

from tracetool.mfu.published import published


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_rows_are_of_one_convention_and_have_a_source(attention: str) -> None:
    rows = published(attention)
    assert rows
    assert {row.attention for row in rows} == {attention}
    assert all(0 < row.low <= row.high < 1 and row.source for row in rows)


def test_causal_credit_lowers_the_same_run() -> None:
    full = {row.what: row for row in published("full")}
    for row in published("causal"):
        assert row.high < full[row.what].high


def test_no_convention_no_range() -> None:
    assert published("folklore") == ()
