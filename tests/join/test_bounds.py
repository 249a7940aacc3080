"""Bounds: what causality of sends and receives allows, the middle of it, and where it allows nothing."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from tracetool.join.bounds import Joined, bounds

Message = tuple[int, int, int, int]


def _messages(*rows: Message) -> pl.DataFrame:
    return pl.DataFrame(
        list(rows),
        schema={
            "source_component": pl.Int32,
            "target_component": pl.Int32,
            "sent_ns": pl.Int64,
            "received_ns": pl.Int64,
        },
        orient="row",
    )


def test_both_directions_bound_the_shift_and_the_middle_is_taken() -> None:
    # 1's clock is 1000 behind: its times need about + 1000
    found, notes = bounds(_messages((0, 1, 5000, 4100), (1, 0, 4300, 5400)), 2)
    assert found == [Joined(0, 0, 0), Joined(0, 1000, 100)]
    assert "± 0 µs" in notes[0]
    assert "confidence low" in notes[0]


def test_one_direction_only_joins_nothing() -> None:
    found, notes = bounds(_messages((0, 1, 5000, 4100)), 2)
    assert [part.component for part in found] == [0, 1]
    assert "one direction only" in notes[0]


def test_half_widths_add_up_along_a_chain() -> None:
    found, _ = bounds(_messages((0, 1, 100, 110), (1, 0, 100, 110), (1, 2, 100, 120), (2, 1, 100, 120)), 3)
    assert found == [Joined(0, 0, 0), Joined(0, 0, 10), Joined(0, 0, 30)]


def test_contradictions_are_told_and_join_nothing() -> None:
    found, notes = bounds(_messages((0, 1, 5000, 4000), (1, 0, 5000, 4000)), 2)
    assert [part.component for part in found] == [0, 1]
    assert "contradict" in notes[0]


def test_no_messages_across_say_nothing() -> None:
    assert bounds(_messages((0, 0, 5, 9)), 2) == ([Joined(0, 0, 0), Joined(1, 0, 0)], [])


@given(st.integers(2, 5), st.data())
def test_the_middle_meets_every_bound_and_holds_the_truth(components: int, data: st.DataObject) -> None:
    true = [0, *(data.draw(st.integers(-(10**6), 10**6)) for _ in range(components - 1))]
    rows = []
    for a in range(components):
        for b in range(components):
            if a != b and data.draw(st.booleans()):
                sent = data.draw(st.integers(0, 10**6))
                rows.append((a, b, sent - true[a], sent + data.draw(st.integers(0, 10**5)) - true[b]))
    found, _ = bounds(_messages(*rows), components)
    for part, shift in zip(found, true, strict=True):
        assert abs(part.shift_ns - (shift - true[part.component])) <= part.half_width_ns + 1
    for a, b, sent, received in rows:
        if found[a].component == found[b].component:
            assert received + found[b].shift_ns >= sent + found[a].shift_ns - 1
