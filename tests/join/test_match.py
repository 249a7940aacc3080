"""Matching: by sequence, by order with checks, in pairs; refused where the ranks disagree."""

from __future__ import annotations

import polars as pl

from tracetool.join.match import match

SCHEMA = {
    "rank": pl.Int32, "event": pl.Int64, "op": pl.String, "seq": pl.Int64, "step": pl.Int32,
    "start_ns": pl.Int64, "dur_ns": pl.Int64, "bytes": pl.Int64, "peer": pl.Int32,
}  # fmt: skip
Row = tuple[int, int, str, int | None, int | None, int, int, int | None, int | None]


def _match(*rows: Row) -> tuple[list[tuple[tuple[int, int], ...]], dict[str, tuple[int, ...]]]:
    """Return the instances as a sorted list of members (rank, event) with their number of members present."""
    matched = match(pl.DataFrame(list(rows), schema=SCHEMA, orient="row"))
    groups: dict[int, list[tuple[int, int]]] = {}
    for rank, event, instance, present in matched.rows.select("rank", "event", "instance", "present").iter_rows():
        if instance is not None:
            groups.setdefault(instance, []).append((rank, event))
            assert present >= len({r for r, _ in groups[instance]})
    return sorted(tuple(sorted(members)) for members in groups.values()), dict(matched.refused)


def test_by_sequence_whatever_the_order_or_the_window() -> None:
    found, notes = _match(
        (0, 0, "all_reduce", 7, 1, 10, 5, 64, None),
        (0, 1, "all_reduce", 8, 1, 20, 5, 64, None),
        (1, 5, "all_reduce", 8, 1, 21, 4, 64, None),
        (1, 6, "all_reduce", 9, 1, 30, 4, 64, None),
    )
    assert found == [((0, 0),), ((0, 1), (1, 5)), ((1, 6),)]
    assert notes == {}


def test_a_sequence_number_with_two_operations_is_refused() -> None:
    found, notes = _match(
        (0, 0, "all_reduce", 7, 1, 10, 5, 64, None),
        (1, 0, "all_gather", 7, 1, 10, 5, 64, None),
        (0, 1, "all_reduce", 8, 1, 20, 5, 64, None),
        (1, 1, "all_reduce", 8, 1, 20, 5, 64, None),
    )
    assert found == [((0, 1), (1, 1))]
    assert notes == {"sequence numbers": (7,)}


def test_by_order_within_each_step() -> None:
    found, _ = _match(
        (0, 0, "all_reduce", None, 1, 10, 5, 64, None),
        (0, 1, "all_gather", None, 2, 20, 5, 8, None),
        (1, 3, "all_reduce", None, 1, 11, 4, 64, None),
        (1, 4, "all_gather", None, 2, 21, 4, 8, None),
    )
    assert found == [((0, 0), (1, 3)), ((0, 1), (1, 4))]


def test_a_rank_that_lacks_a_step_does_not_take_part_in_it() -> None:
    found, notes = _match(
        *((0, step, "all_reduce", None, step, step * 10, 5, 64, None) for step in (1, 2, 3)),
        *((1, step, "all_reduce", None, step, step * 10, 5, 64, None) for step in (2, 3)),
    )
    assert found == [((0, 1),), ((0, 2), (1, 2)), ((0, 3), (1, 3))]
    assert notes == {}


def test_steps_of_different_counts_sizes_or_operations_are_refused_as_a_whole() -> None:
    found, notes = _match(
        (0, 0, "all_reduce", None, 1, 10, 5, 64, None),
        (0, 1, "all_reduce", None, 1, 20, 5, 64, None),
        (1, 0, "all_reduce", None, 1, 10, 5, 64, None),
        (0, 2, "all_reduce", None, 2, 30, 5, 64, None),
        (1, 2, "all_reduce", None, 2, 30, 5, 65, None),
        (0, 3, "all_to_all", None, 3, 40, 5, 10, None),
        (1, 3, "all_to_all", None, 3, 40, 5, 90, None),
    )
    assert found == [((0, 3), (1, 3))]
    assert notes == {"steps": (1, 2)}


def test_outside_steps_nothing_is_matched_by_order() -> None:
    found, _ = _match(
        (0, 0, "all_reduce", None, None, 1, 5, 64, None),
        (0, 1, "all_reduce", None, 1, 10, 5, 64, None),
        (1, 1, "all_reduce", None, 1, 10, 5, 64, None),
    )
    assert found == [((0, 1), (1, 1))]


def test_without_steps_whole_windows_must_agree() -> None:
    alike, _ = _match(*((rank, 0, "all_reduce", None, None, 1, 5, 64, None) for rank in (0, 1)))
    assert alike == [((0, 0), (1, 0))]
    apart, notes = _match(
        (0, 0, "all_reduce", None, None, 1, 5, 64, None),
        (0, 1, "all_reduce", None, None, 9, 5, 64, None),
        (1, 0, "all_reduce", None, None, 1, 5, 64, None),
    )
    assert apart == []
    assert notes == {"steps": (-1,)}


def test_sends_pair_with_the_mirrored_receives() -> None:
    found, _ = _match(
        (0, 0, "send", None, 1, 10, 5, 64, 1),
        (0, 1, "recv", None, 1, 20, 5, 64, 1),
        (1, 0, "recv", None, 1, 9, 6, 64, 0),
        (1, 1, "send", None, 1, 19, 6, 64, 0),
        (1, 2, "send", None, 1, 30, 6, 64, 2),
    )
    assert found == [((0, 0), (1, 0)), ((0, 1), (1, 1))]


def test_one_rank_alone_is_not_matched() -> None:
    found, notes = _match((0, 0, "all_reduce", 1, 1, 10, 5, 64, None))
    assert (found, notes) == ([], {})


def _more(columns: dict[str, list[object]], *rows: Row) -> list[int | None]:
    """Return the instance of each row, with further columns filled in."""
    table = pl.DataFrame(list(rows), schema=SCHEMA, orient="row")
    typed = [
        pl.Series(name, values, dtype=pl.String if name == "name" else pl.Int64) for name, values in columns.items()
    ]
    return match(table.with_columns(typed)).rows["instance"].to_list()


def test_rows_without_arguments_must_agree_in_their_kernels_names() -> None:
    rows: list[Row] = [(rank, 0, "all_reduce", None, 1, 10, 5, None, None) for rank in (0, 1)]
    assert None not in _more({"name": ["one_stage", "one_stage"]}, *rows)
    assert _more({"name": ["one_stage", "two_stage"]}, *rows) == [None, None]


def test_rows_without_arguments_do_not_disturb_the_order_of_the_others() -> None:
    found = _more(
        {"name": [None, "custom", "custom", None]},
        (0, 0, "all_reduce", None, 1, 10, 5, 64, None),
        (0, 1, "all_reduce", None, 1, 20, 5, None, None),
        (1, 0, "all_reduce", None, 1, 10, 5, None, None),
        (1, 1, "all_reduce", None, 1, 20, 5, 64, None),
    )
    assert found[0] == found[3]
    assert found[1] == found[2] != found[0]


def test_on_one_clock_an_order_in_which_a_member_left_before_another_came_is_refused() -> None:
    rows: list[Row] = [(rank, 0, "all_reduce", None, 1, 10, 50, 64, None) for rank in (0, 1)]
    assert None not in _more({"common_ns": [0, 60_000]}, *rows)
    assert _more({"common_ns": [0, 200_000]}, *rows) == [None, None]


def test_sends_and_receives_without_a_peer_are_not_paired() -> None:
    found, notes = _match(
        (0, 0, "send", None, 1, 10, 5, 64, None),
        (1, 0, "recv", None, 1, 10, 5, 64, None),
        (0, 1, "send_recv", 4, 1, 20, 5, 64, 1),
        (1, 1, "send_recv", 4, 1, 20, 5, 64, 0),
    )
    assert (found, notes) == ([], {})
