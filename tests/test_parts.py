"""When each thread works on which part of training."""

from __future__ import annotations

import polars as pl

from tracetool import parts

ROWS = [
    # track, start, end, step, phase, above
    (0, 0, 100, 1, "backward", None),
    (0, 10, 40, 1, "recompute", "backward"),
    (0, 12, 20, 1, "recompute", "recompute"),
    (0, 50, 60, 1, "backward", "backward"),
    (1, 30, 70, 1, "backward", "other"),
    (2, 0, 90, 1, "other", None),
]
CPU = pl.DataFrame(ROWS, schema=["track", "start_ns", "end_ns", "step", "phase", "above"], orient="row")


def test_a_part_inside_another_is_taken_out_of_it() -> None:
    found = parts.spans(CPU, ("backward", "recompute"))
    assert found.select("phase", "track", "start_ns", "end_ns").rows() == [
        ("backward", 0, 0, 10),
        ("backward", 0, 40, 100),
        ("backward", 1, 30, 70),
        ("recompute", 0, 10, 40),
    ]


def test_only_the_outermost_ranges_of_a_part_are_edges() -> None:
    outermost, inside = parts.edges(CPU, ("backward", "recompute"))
    assert outermost["start_ns"].to_list() == [0, 10, 30]
    assert inside.select("phase", "start_ns", "end_ns").rows() == [("backward", 10, 40)]


def test_edges_of_parts_are_where_the_phase_changes() -> None:
    events = pl.DataFrame(
        {
            "start_ns": [0, 10, 12, 50, 200],
            "dur_ns": [100, 30, 8, 10, 5],
            "phase": ["backward", "recompute", "recompute", "backward", None],
            "parent": [None, 0, 1, 0, None],
        }
    )
    found = parts.changes(events)
    assert found.select("start_ns", "end_ns", "phase", "above").rows() == [
        (0, 100, "backward", None),
        (10, 40, "recompute", "backward"),
    ]
