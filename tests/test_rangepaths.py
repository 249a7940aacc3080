"""Paths of names and spans of launched work, against counting one by one."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from tracetool.rangepaths import SEPARATOR, paths, projections


@given(st.lists(st.tuples(st.integers(-1, 30), st.booleans(), st.sampled_from("abc")), max_size=30))
def test_paths_are_the_names_of_the_chosen_around(tree: list[tuple[int, bool, str]]) -> None:
    parent = [min(up, row - 1) for row, (up, _, _) in enumerate(tree)]  # what is around stands before
    chosen = [is_range for _, is_range, _ in tree]
    names = [name for _, _, name in tree]

    def path(row: int) -> list[str]:
        above = path(parent[row]) if parent[row] >= 0 else []
        return [*above, names[row]] if chosen[row] else above

    found = paths(pl.Series(names, dtype=pl.String), np.array(parent, np.int64), np.array(chosen, np.bool_))
    wanted = [path(row) for row in found.rows]
    texts = found.texts.rows()
    assert found.rows.tolist() == [row for row, is_range in enumerate(chosen) if is_range]
    assert [texts[number] for number in found.number] == [(SEPARATOR.join(p), len(p) - 1) for p in wanted]
    assert len(set(texts)) == len(texts)


SPAN = st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(0, 20))


@given(st.lists(SPAN, max_size=12), st.lists(st.tuples(SPAN, st.integers(0, 9)), max_size=25))
def test_projections_are_first_start_to_last_end_of_what_the_thread_launched(
    ranges: list[tuple[int, int, int]], work: list[tuple[tuple[int, int, int], int]]
) -> None:
    schema = dict.fromkeys(("track", "start_ns", "end_ns"), pl.Int64)
    table = pl.DataFrame([(track, start, start + dur) for track, start, dur in ranges], schema=schema, orient="row")
    rows = [(track, at, at + wait, at + wait + dur) for (track, at, wait), dur in work]
    launched = dict.fromkeys(("launch_track", "launch_start_ns", "start_ns", "end_ns"), pl.Int64)
    wanted = []
    for track, start, dur in ranges:
        inside = [row for row in rows if row[0] == track and start <= row[1] < start + dur]
        span = max(row[3] for row in inside) - min(row[2] for row in inside) if inside else None
        wanted.append((span, len(inside)))
    assert projections(table, pl.DataFrame(rows, schema=launched, orient="row")).rows() == wanted
