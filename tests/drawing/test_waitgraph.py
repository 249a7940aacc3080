"""Boxes and lines of the wait-for graph: one track a target, arrows at what is waited for, names escaped."""

from __future__ import annotations

import re

import polars as pl

from tracetool.charts import draw
from tracetool.results import Chart

CHART = Chart(
    "graph", "Who waits", "g", "ranks", x="box", y=("waits_for",), series="role", size="count", unit="count",
    options={"text": "state", "detail": "groups"},
)  # fmt: skip


def table(rows: list[tuple[str, int, str, list[int]]]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"box": at, "ranks": ranks, "count": count, "role": role, "state": f"state {at}", "groups": f"g{at}",
             "waits_for": targets}
            for at, (ranks, count, role, targets) in enumerate(rows, 1)
        ],
        schema_overrides={"waits_for": pl.List(pl.Int64)},
    )  # fmt: skip


def arrows(body: str) -> int:
    return len(re.findall(r"l-8 -4\.5v9z", body))


def test_each_target_has_one_arrow_and_each_waiter_a_joint() -> None:
    drawn = draw(CHART, table([("3", 1, "culprit", []), ("0-2", 3, "waits", [1]), ("4-7", 4, "waits", [1, 2])]))
    body = str(drawn.body)
    assert arrows(body) == 2
    assert body.count("<circle") == 3
    assert "Culprit: rank 3" in body
    assert "3 ranks: 0-2" in body
    assert [words for words, _ in drawn.legend] == ["culprit", "waits"]


def test_tracks_that_do_not_touch_share_a_place() -> None:
    rows = [("0", 1, "culprit", []), ("1", 1, "waits", [1]), ("2", 1, "waits", []), ("3", 1, "waits", [3])]
    assert len(set(re.findall(r'd="M(-\d+) ', str(draw(CHART, table(rows)).body)))) == 1
    rows[3] = ("3", 1, "waits", [1, 3])
    assert len(set(re.findall(r'd="M(-\d+) ', str(draw(CHART, table(rows)).body)))) == 2


def test_ranks_that_wait_for_each_other_share_a_box_without_a_line() -> None:
    body = str(draw(CHART, table([("0-3", 4, "waits", [1])])).body)
    assert arrows(body) == 0
    assert "they wait for each other" in body


def test_names_from_a_dump_make_no_element() -> None:
    rows = table([("0", 1, "culprit", [])]).with_columns(groups=pl.lit("</svg><script>alert(1)</script>"))
    assert "<script>" not in str(draw(CHART, rows).body)


def test_a_chart_that_names_a_missing_column_is_a_sentence() -> None:
    assert "no column" in draw(CHART, table([("0", 1, "culprit", [])]).drop("groups")).notes[0]
