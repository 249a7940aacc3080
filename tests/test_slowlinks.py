"""Slow links: named only when slower than their peers again and again, and put down to what they share."""

from __future__ import annotations

import polars as pl

from tracetool.slowlinks import Culprit, Place, compare, locate

Cell = tuple[int, int, int, int, int]


def _cells(*cells: Cell, role: str = "dp", size: int = 2) -> pl.DataFrame:
    """Return cells of (group, step, instances, typical transfer, fastest transfer)."""
    return pl.DataFrame(
        {
            "group_id": pl.Series([c[0] for c in cells], dtype=pl.Int32),
            "low_rank": pl.Series([None] * len(cells), dtype=pl.Int32),
            "high_rank": pl.Series([None] * len(cells), dtype=pl.Int32),
            "role": [role] * len(cells),
            "op": ["all_reduce"] * len(cells),
            "bytes": [1024] * len(cells),
            "size": pl.Series([size] * len(cells), dtype=pl.Int32),
            "hosts": pl.Series([2] * len(cells), dtype=pl.Int64),
            "step": pl.Series([c[1] for c in cells], dtype=pl.Int32),
            "instances": [c[2] for c in cells],
            "transfer_ns": [c[2] * c[3] for c in cells],
            "transfer_p50_ns": [c[3] for c in cells],
            "transfer_min_ns": [c[4] for c in cells],
        }
    )


def _slow(cells: pl.DataFrame) -> list[int]:
    return compare(cells)[0].filter("slow")["group_id"].to_list()


def test_one_slow_group_among_four() -> None:
    cells = _cells(*((group, step, 5, 200 if group == 2 else 100, 100) for group in range(4) for step in (1, 2)))
    cells = cells.with_columns(transfer_min_ns=pl.when(group_id=2).then(190).otherwise("transfer_min_ns"))
    links, lost = compare(cells)
    assert links.filter("slow")["group_id"].to_list() == [2]
    assert links["ratio"].to_list() == [1.0, 1.0, 2.0, 1.0]
    assert links["peers"].to_list() == [3] * 4
    assert lost.select("group_id", "step", "lost_ns").rows() == [(2, 1, 500), (2, 2, 500)]


def test_of_two_the_faster_one_is_the_measure() -> None:
    assert _slow(_cells((0, 1, 5, 100, 95), (1, 1, 5, 150, 140))) == [1]


def test_without_peers_nothing_is_judged() -> None:
    links, lost = compare(_cells((0, 1, 5, 900, 900)))
    assert links.select("ratio", "slow").rows() == [(None, False)]
    assert lost.height == 0


def test_scatter_is_not_slowness() -> None:
    # its mean is high, but its fastest transfer is as fast as anybody's
    assert _slow(_cells((0, 1, 9, 100, 95), (1, 1, 9, 140, 96))) == []


def test_a_few_transfers_prove_nothing_unless_they_are_very_slow_again() -> None:
    assert _slow(_cells((0, 1, 1, 100, 100), (1, 1, 1, 140, 140))) == []
    assert _slow(_cells((0, 1, 1, 100, 100), (1, 1, 1, 200, 200))) == []
    assert _slow(
        _cells(*((group, step, 1, 100 + 100 * group, 100 + 100 * group) for group in (0, 1) for step in (1, 2)))
    ) == [1]


def test_one_slow_step_among_many_is_named_with_that_step_only() -> None:
    cells = _cells(
        *(
            (g, s, 8, 300 if (g, s) == (1, 3) else 100, 290 if (g, s) == (1, 3) else 95)
            for g in (0, 1, 2)
            for s in range(6)
        )
    )
    links, lost = compare(cells)
    assert links.filter("slow")["group_id"].to_list() == [1]
    assert lost.select("group_id", "step", "lost_ns").rows() == [(1, 3, 1600)]


def test_other_roles_and_sizes_are_no_peers() -> None:
    cells = pl.concat(
        [_cells((0, 1, 5, 100, 100)), _cells((1, 1, 5, 900, 900), role="tp"), _cells((2, 1, 5, 900, 900), size=4)]
    )
    assert _slow(cells) == []


def _place(ranks: set[int], hosts: str, *, slow: bool) -> Place:
    return Place(frozenset(ranks), frozenset(hosts), slow)


def test_several_slow_groups_over_one_pair_of_hosts() -> None:
    places = [
        _place({0, 2}, "ab", slow=True),
        _place({1, 3}, "ab", slow=True),
        _place({4, 6}, "cd", slow=False),
        _place({0, 4}, "ac", slow=False),
    ]
    assert locate(places) == [Culprit("hosts", ("a", "b"), (0, 1, 2, 3), (0, 1))]


def test_several_slow_groups_through_one_rank() -> None:
    places = [
        _place({3, 5}, "ab", slow=True),
        _place({3, 7}, "ac", slow=True),
        _place({2, 4}, "ab", slow=False),
        _place({2, 3}, "a", slow=False),
    ]
    assert locate(places) == [Culprit("nic", (), (3,), (0, 1))]


def test_what_nothing_else_explains_stands_for_itself() -> None:
    places = [_place({0, 1}, "a", slow=True), _place({2, 3}, "", slow=False), _place({4, 5}, "", slow=True)]
    assert locate(places) == [Culprit("group", ("a",), (0, 1), (0,)), Culprit("group", (), (4, 5), (2,))]
    assert locate([]) == []
