"""Sentences of table `quality`."""

from __future__ import annotations

from tracetool.derive.notes import Note, many, quality, span
from tracetool.tables import check


def test_one_row_a_note_in_the_order_given() -> None:
    table = quality(3, [Note("b", 2, None, "Second."), Note("a", 1, 5, "First.")])
    check("quality", table)
    assert table.rows() == [(3, "b", 2, None, "Second."), (3, "a", 1, 5, "First.")]
    check("quality", quality(0, []))


def test_numbers_in_sentences() -> None:
    assert many(1, "range") == "1 range"
    assert many(1204, "activity", "activities") == "1,204 activities"
    assert span(1_597_000_123) == "1,597.000 ms"
