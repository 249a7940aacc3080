"""Waits: w = end − shortest stay for symmetric operations, the last arrival for others; the rest flagged."""

from __future__ import annotations

import polars as pl

from tracetool.join.clocks import SAMPLE_SCHEMA, solve
from tracetool.join.match import match
from tracetool.join.waits import arrival_waits, symmetric_waits

SCHEMA = {
    "rank": pl.Int32, "event": pl.Int64, "op": pl.String, "seq": pl.Int64, "step": pl.Int32,
    "start_ns": pl.Int64, "dur_ns": pl.Int64, "bytes": pl.Int64, "peer": pl.Int32,
}  # fmt: skip


def _rows(*rows: tuple[int, str, int, int, int | None]) -> pl.DataFrame:
    full = [(rank, 0, op, None, 1, start, dur, 8, peer) for rank, op, start, dur, peer in rows]
    return match(pl.DataFrame(full, schema=SCHEMA, orient="row")).rows


def _hosts(*bases: int, one_host: bool = True) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "rank": range(len(bases)),
            "host": ["h" if one_host else f"h{rank}" for rank in range(len(bases))],
            "base_unix_ns": bases,
        },
        schema_overrides={"rank": pl.Int32},
    )


def _answer(waits: pl.DataFrame) -> list[tuple[int, int | None, str]]:
    return waits.sort("rank").select("rank", "wait_end_ns", "basis").rows()


def test_in_a_symmetric_operation_the_shortest_stay_is_the_transfer() -> None:
    rows = _rows((0, "all_reduce", 100, 50, None), (1, "all_reduce", 1130, 20, None))
    assert _answer(symmetric_waits(rows, 2)) == [(0, 130, "symmetric"), (1, 1130, "symmetric")]


def test_with_members_missing_it_is_a_lower_bound() -> None:
    rows = _rows((0, "all_reduce", 100, 50, None), (1, "all_reduce", 130, 20, None))
    assert _answer(symmetric_waits(rows, 4)) == [(0, 130, "partial"), (1, 130, "partial")]
    assert _answer(symmetric_waits(rows, None))[0][2] == "partial"


def test_alone_nothing_can_be_told_unless_the_group_has_one_member() -> None:
    rows = _rows((0, "all_reduce", 100, 50, None))
    assert _answer(symmetric_waits(rows, 2)) == [(0, None, "unmatched")]
    assert _answer(symmetric_waits(rows, 1)) == [(0, 100, "symmetric")]


def test_a_receive_waits_for_the_send_on_the_common_clock() -> None:
    # rank 1 counts from 1000 ns later: its send at 70 is at 1070 on rank 0's clock
    rows = _rows((0, "recv", 1000, 100, 1), (1, "send", 70, 30, 0))
    clocks = solve(pl.DataFrame(schema=SAMPLE_SCHEMA), _hosts(0, 1000))
    assert _answer(arrival_waits(rows, clocks, 2)) == [(0, 1070, "arrival"), (1, 70, "arrival")]
    assert symmetric_waits(rows, 2).height == 0


def test_an_arrival_after_the_end_is_clamped() -> None:
    rows = _rows((0, "recv", 0, 10, 1), (1, "send", 500, 30, 0))
    clocks = solve(pl.DataFrame(schema=SAMPLE_SCHEMA), _hosts(0, 0))
    assert _answer(arrival_waits(rows, clocks, 2)) == [(0, 10, "arrival"), (1, 500, "arrival")]


def test_hosts_that_nothing_connects_are_not_compared() -> None:
    rows = _rows((0, "recv", 0, 10, 1), (1, "send", 5, 30, 0))
    clocks = solve(pl.DataFrame(schema=SAMPLE_SCHEMA), _hosts(0, 0, one_host=False))
    assert _answer(arrival_waits(rows, clocks, 2)) == [(0, None, "unknown"), (1, None, "unknown")]


def test_pipeline_messages_without_peers_are_all_waiting_and_flagged() -> None:
    rows = _rows((0, "send", 0, 10, None), (1, "recv", 5, 30, None))
    assert _answer(symmetric_waits(rows, 2, pipeline=True)) == [(0, 10, "unknown"), (1, 35, "unknown")]
    assert _answer(symmetric_waits(rows, 2)) == [(0, None, "unmatched"), (1, None, "unmatched")]
