"""The timeline's data block, unpacked as the page's script does it."""

from __future__ import annotations

import base64
import zlib
from itertools import pairwise

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from tracetool.drawing.lanes import NAMES, Packed, pack
from tracetool.results import Chart

CHART = Chart(
    "timeline", "t", "s", label="lane", x="start_ns", y=("dur_ns",), series="kind", options={"text": "name"}
)  # fmt: skip


def slices(rows: list[tuple[str, int, int, str, str]]) -> pl.DataFrame:
    return pl.DataFrame(
        rows,
        schema={"lane": pl.String, "start_ns": pl.Int64, "dur_ns": pl.Int64, "name": pl.String, "kind": pl.String},
        orient="row",
    )


def unpack(packed: Packed) -> list[tuple[str, int, int, str]]:
    """Return (lane, start µs, duration µs, name) of every slice."""
    block = zlib.decompress(base64.b64decode(packed.data["block"]), -15)
    n = packed.slices
    gaps, lengths = np.frombuffer(block, "<u4", n), np.frombuffer(block, "<u4", n, 4 * n)
    names = np.frombuffer(block, np.uint8, n, 8 * n)
    found, at = [], 0
    for lane, count in packed.data["lanes"]:
        end = 0
        for i in range(at, at + count):
            start = end + int(gaps[i])
            end = start + int(lengths[i])
            found.append((lane, start, int(lengths[i]), packed.data["names"][names[i]][0]))
        at += count
    return found


def test_slices_come_back() -> None:
    packed = pack(CHART, slices([("a", 5000, 2000, "x", "k"), ("a", 9000, 1000, "y", "k"), ("b", 6000, 500, "x", "m")]))
    assert unpack(packed) == [("a", 0, 2, "x"), ("a", 4, 1, "y"), ("b", 1, 1, "x")]
    assert packed.notes == ()


def test_an_overlap_is_drawn_from_the_earlier_end_and_told() -> None:
    packed = pack(CHART, slices([("a", 0, 10_000, "x", "k"), ("a", 4000, 8000, "y", "k")]))
    assert unpack(packed) == [("a", 0, 10, "x"), ("a", 10, 2, "y")]
    assert "1 slices overlap" in packed.notes[0]


def test_names_beyond_a_byte_are_folded_and_told() -> None:
    rows = [("a", 1000 * i, 1000, f"kernel {i}", "k") for i in range(400)]
    packed = pack(CHART, slices(rows))
    assert len(packed.data["names"]) == NAMES
    assert sum(name == "other names" for *_, name in unpack(packed)) == 400 - (NAMES - 1)
    assert packed.notes


def test_thinning_leaves_out_short_slices_and_says_how_many() -> None:
    packed = pack(CHART, slices([("a", 0, 500, "x", "k"), ("a", 9000, 90_000, "y", "k")]), shortest_ns=10_000)
    assert unpack(packed) == [("a", 9, 90, "y")]
    assert packed.notes[0].startswith("1 of 2 slices")


@settings(deadline=None, max_examples=50)  # polars is slow to start on a busy machine
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 10**9), st.integers(0, 10**7), st.sampled_from("xyz")),
        max_size=30,
    )
)
def test_the_block_keeps_count_order_and_ends(rows: list[tuple[str, int, int, str]]) -> None:
    packed = pack(CHART, slices([(lane, start, dur, name, "k") for lane, start, dur, name in rows]))
    found = unpack(packed)
    assert len(found) == len(rows)
    assert sorted(name for *_, name in found) == sorted(name for *_, name in rows)
    origin = min((start for _, start, _, _ in rows), default=0)
    for lane in "ab":
        mine = [(start, start + length) for where, start, length, _ in found if where == lane]
        assert all(one[1] <= other[0] for one, other in pairwise(mine))
        expected = max(((s + d - origin + 500) // 1000 for where, s, d, _ in rows if where == lane), default=0)
        assert max((end for _, end in mine), default=0) == expected
