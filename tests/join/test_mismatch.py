"""Who called the same operation with other arguments."""

from __future__ import annotations

import polars as pl
import pytest

from tracetool.join.hangstate import Group, State
from tracetool.join.mismatch import mismatches

Call = tuple[int, str, int, int, str]
"""Rank, operation, elements in, elements out, element type."""


def state(calls: list[Call], members: int, *, place: int = 0) -> State:
    rows = [
        {
            "rank": rank, "group_id": 0, "number": 7, "is_p2p": False, "op": op, "in_elems": ins, "out_elems": outs,
            "dtype": dtype, "in_flight": True, "place": place, "created_unix_ns": 5,
        }
        for rank, op, ins, outs, dtype in calls
    ]  # fmt: skip
    return State(
        groups=(Group("0", "default_pg", tuple(range(members)), listed=True),),
        lanes={},
        p2p={},
        ops=pl.DataFrame(rows, schema_overrides={"rank": pl.Int32, "group_id": pl.Int32}),
        known=frozenset(range(members)),
        idle=frozenset(),
        world=tuple(range(members)),
        keys=pl.DataFrame(),
        lossy=frozenset(),
    )


def same(count: int, call: tuple[str, int, int, str], **other: tuple[str, int, int, str]) -> list[Call]:
    """Return the same call from every rank, but for `rN=` another."""
    return [(rank, *other.get(f"r{rank}", call)) for rank in range(count)]


REDUCE = ("all_reduce", 64, 64, "Float")


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (("broadcast", 64, 64, "Float"), "operation"),
        (("all_reduce", 32, 32, "Float"), "size"),
        (("all_reduce", 64, 64, "Half"), "type"),
    ],
)
def test_one_of_four(other: tuple[str, int, int, str], what: str) -> None:
    (found,) = mismatches(state(same(4, REDUCE, r2=other), 4))
    assert (found.what, found.culprits, found.tie, found.clear, found.number) == (what, (2,), False, True, 7)


def test_an_even_split_names_all() -> None:
    half = ("all_reduce", 32, 32, "Float")
    (found,) = mismatches(state(same(4, REDUCE, r2=half, r3=half), 4))
    assert (found.culprits, found.tie) == ((0, 1, 2, 3), True)


def test_equal_calls_and_waits_on_something_older_are_no_mismatch() -> None:
    assert mismatches(state(same(4, REDUCE), 4)) == []
    other = ("broadcast", 64, 64, "Float")
    assert mismatches(state(same(4, REDUCE, r2=other), 4, place=1)) == []


def test_the_side_that_must_be_equal_depends_on_the_operation() -> None:
    assert mismatches(state(same(3, ("gather", 8, 0, "Float"), r0=("gather", 8, 24, "Float")), 3)) == []
    assert mismatches(state(same(3, ("scatter", 0, 8, "Float"), r0=("scatter", 24, 8, "Float")), 3)) == []
    (found,) = mismatches(state(same(3, ("reduce_scatter", 24, 8, "Float"), r1=("reduce_scatter", 12, 4, "Float")), 3))
    assert found.culprits == (1,)


def test_an_uneven_all_to_all_is_legitimate_while_totals_agree() -> None:
    uneven = [(0, "all_to_all", 10, 4, "Float"), (1, "all_to_all", 4, 6, "Float"), (2, "all_to_all", 6, 10, "Float")]
    assert mismatches(state(uneven, 3)) == []
    even = ("all_to_all", 8, 8, "Float")
    (found,) = mismatches(state(same(4, even, r3=("all_to_all", 8, 4, "Float")), 4))
    assert (found.what, found.culprits) == ("size", (3,))
    # with a record missing the totals are not known
    assert mismatches(state(same(3, even, r2=("all_to_all", 8, 4, "Float")), 4)) == []
