"""Sums: one row an operation and size; pairs, uneven members, partial and untold communications kept apart."""

from __future__ import annotations

import polars as pl

from tracetool.join.match import match
from tracetool.join.summary import clock_pairs, clock_samples, sums, worst
from tracetool.join.waits import symmetric_waits

SCHEMA = {
    "rank": pl.Int32, "event": pl.Int64, "op": pl.String, "seq": pl.Int64, "step": pl.Int32,
    "start_ns": pl.Int64, "dur_ns": pl.Int64, "bytes": pl.Int64, "peer": pl.Int32,
}  # fmt: skip
COLUMNS = ("op", "bytes", "step", "instances", "members", "partial", "wait_ns", "transfer_ns", "untold", "untold_ns")


def _matched(*rows: tuple[int, str, int, int, int]) -> pl.DataFrame:
    """Match (rank, op, start, dur, bytes) of one step."""
    full = [(rank, n, op, None, 1, start, dur, size, None) for n, (rank, op, start, dur, size) in enumerate(rows)]
    return match(pl.DataFrame(full, schema=SCHEMA, orient="row")).rows


def test_waits_sum_over_members_and_transfers_over_instances() -> None:
    rows = _matched(
        (0, "all_reduce", 0, 50, 8),
        (1, "all_reduce", 30, 20, 8),
        (0, "all_reduce", 60, 10, 8),
        (1, "all_reduce", 60, 15, 8),
    )
    found = sums(rows, symmetric_waits(rows, 2), 7)
    assert found.select(COLUMNS).rows() == [("all_reduce", 8, 1, 2, 4, 0, 35, 30, 0, 0)]
    assert found["group_id"].to_list() == [7]
    assert found.select("transfer_min_ns", "transfer_max_ns", "bytes_total").rows() == [(10, 20, 16)]


def test_members_of_different_size_are_one_instance_of_the_largest() -> None:
    rows = _matched((0, "all_to_all", 0, 50, 8), (1, "all_to_all", 30, 20, 100))
    found = sums(rows, symmetric_waits(rows, 2), 0)
    assert found.select("bytes", "instances", "members", "bytes_total").rows() == [(100, 1, 2, 100)]


def test_many_sizes_are_put_together_by_powers_of_two() -> None:
    rows = _matched(*((rank, "all_to_all", 100 * n, 50, 1000 + n) for n in range(80) for rank in (0, 1)))
    found = sums(rows, symmetric_waits(rows, 2), 0)
    assert found.select("bytes", "instances").rows() == [(1024, 25), (2048, 55)]
    assert found["bytes_total"].sum() == sum(1000 + n for n in range(80))


def test_what_was_not_matched_is_counted_beside_and_missing_members_make_it_partial() -> None:
    alone = _matched((0, "all_reduce", 0, 50, 8))
    assert sums(alone, symmetric_waits(alone, 2), 0).select(COLUMNS).rows() == [
        ("all_reduce", 8, 1, 0, 0, 0, 0, 0, 1, 50)
    ]
    two = _matched((0, "all_reduce", 0, 50, 8), (1, "all_reduce", 30, 20, 8))
    assert sums(two, symmetric_waits(two, 4), 0)["partial"].to_list() == [1]


def test_a_group_of_one_moves_from_start_to_end() -> None:
    rows = _matched((0, "all_reduce", 0, 50, 8), (0, "all_reduce", 60, 5, 8))
    assert sums(rows, symmetric_waits(rows, 1), 0).select(COLUMNS).rows() == [
        ("all_reduce", 8, 1, 2, 2, 0, 0, 55, 0, 0)
    ]


def test_the_worst_instances_say_who_came_last() -> None:
    rows = _matched(
        (0, "all_reduce", 0, 50, 8),
        (1, "all_reduce", 30, 20, 8),
        (0, "all_reduce", 60, 10, 8),
        (1, "all_reduce", 60, 15, 8),
    )
    found = worst(rows, symmetric_waits(rows, 2), 3, 1)
    assert found.select("wait_ns", "transfer_ns", "last_rank", "start_ns", "excess_ns").rows() == [(30, 20, 1, 30, 5)]


def test_samples_are_spread_and_capped() -> None:
    rows = _matched(*((rank, "all_reduce", 100 * n, 50, 8) for n in range(100) for rank in (0, 1)))
    found = clock_samples(rows, 2, 10)
    assert found["instance"].n_unique() == 10
    assert set(found["instance"].to_list()) <= {(2 << 40) + n for n in range(1000)}
    assert found["end_ns"].max() == 9050
    assert clock_samples(rows, 2, 0).height == 0


def test_pairs_carry_unix_times_of_both_sides() -> None:
    full = [(0, 0, "send", None, 1, 10, 5, 8, 1), (1, 0, "recv", None, 1, 3, 9, 8, 0)]
    rows = match(pl.DataFrame(full, schema=SCHEMA, orient="row")).rows
    assert clock_pairs(rows, {0: 100, 1: 200}).rows() == [(0, 1, 110, 212)]
