"""Schedules: the orders are the simulator's, each is recognised, and what is none of them is unknown."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from simulator import Config
from simulator.schedule import plan

from tracetool.join.schedule import (
    Recognised,
    gpipe,
    ideal_share,
    interleaved,
    one_f_one_b,
    recognise,
    zero_bubble,
)

if TYPE_CHECKING:
    from tracetool.join.schedule import Order

GRID = [(2, 2), (2, 5), (4, 4), (4, 8), (4, 3), (8, 32), (16, 64)]


def orders(schedule: str, stages: int, microbatches: int, chunks: int = 1, *, vee: bool = False) -> dict[int, Order]:
    config = Config(
        pp=stages,
        microbatches=microbatches,
        chunks=chunks,
        schedule=schedule,
        placement="vee" if vee else "loop",
    )
    return {stage: tuple(s for piece in pieces for s in piece) for stage, pieces in enumerate(plan(config))}


def name(
    found: dict[int, Order], microbatches: int, chunks: int = 1, *, vee: bool = False, paired: bool = False
) -> Recognised:
    given = {stage: [order] for stage, order in found.items()}
    return recognise(given, len(found), microbatches, chunks, vee=vee, paired=paired)


@pytest.mark.parametrize(("p", "m"), GRID)
def test_plain_schedules_are_recognised_slot_by_slot(p: int, m: int) -> None:
    for schedule, made in (
        ("1f1b", {s: one_f_one_b(p, s, m) for s in range(p)}),
        ("gpipe", dict.fromkeys(range(p), gpipe(m))),
        ("zb1p", {s: zero_bubble(p, s, m) for s in range(p)}),
    ):
        assert orders(schedule, p, m) == made
        found = name(made, m)
        assert (found.name, found.exact) == (schedule, True)


@pytest.mark.parametrize(("p", "m", "v"), [(2, 4, 2), (4, 4, 2), (4, 8, 2), (8, 32, 2), (2, 4, 4)])
def test_interleaving_is_recognised_slot_by_slot(p: int, m: int, v: int) -> None:
    made = {s: interleaved(p, s, m, v) for s in range(p)}
    assert orders("interleaved_1f1b", p, m, v) == made
    found = name(made, m, v)
    assert (found.name, found.exact) == ("interleaved_1f1b", True)
    assert name(orders("gpipe", p, m, v), m, v).name == "gpipe"


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (4, 6)])
def test_schedules_in_a_v_are_recognised(p: int, m: int) -> None:
    assert name(orders("zbv", p, m, 2, vee=True), m, 2, vee=True).name == "zbv"
    assert name(orders("dualpipev", p, m, 2, vee=True), m, 2, vee=True, paired=True).name == "dualpipe"


def test_interleaving_taken_for_more_micro_batches_of_one_chunk_is_unknown() -> None:
    found = orders("interleaved_1f1b", 4, 8, 2)
    counted: dict[int, Order] = {}
    for stage, order in found.items():
        seen = {"F": 0, "B": 0}
        renumbered = []
        for kind, _, _ in order:
            renumbered.append((kind, seen[kind], 0))
            seen[kind] += 1
        counted[stage] = tuple(renumbered)
    assert name(counted, 16).name == "unknown"


def test_any_other_order_is_unknown_and_says_so() -> None:
    odd = {0: (("F", 0, 0), ("B", 0, 0), ("F", 1, 0), ("B", 1, 0)), 1: one_f_one_b(2, 1, 2)}
    found = name(odd, 2)
    assert (found.name, found.exact) == ("unknown", False)
    assert "no schedule known" in found.why
    assert (
        recognise({0: [odd[0]]}, 2, 2, 1, vee=False, paired=False, hint="interleaved_1f1b").name == "interleaved_1f1b"
    )


def test_stages_that_gpipe_and_1f1b_order_alike_do_not_tell_them_apart() -> None:
    first = orders("1f1b", 4, 3)[0]
    assert first == orders("gpipe", 4, 3)[0]
    assert recognise({0: [first]}, 4, 3, 1, vee=False, paired=False).name == "unknown"
    alone = orders("1f1b", 4, 8)[0]
    assert recognise({0: [alone]}, 4, 8, 1, vee=False, paired=False).name == "1f1b"


def test_ideal_shares_are_the_published_ones() -> None:
    for p, m in GRID:
        assert ideal_share("1f1b", p, m, 1) == ideal_share("gpipe", p, m, 1) == float(Fraction(p - 1, m + p - 1))
        assert ideal_share("interleaved_1f1b", p, m, 2) == float(Fraction(p - 1, 2 * m + p - 1))
        assert ideal_share("zb1p", p, m, 1) == float(Fraction(p - 1, 3 * m + p - 1))
    assert ideal_share("zbv", 4, 8, 2) == 0
    assert ideal_share("unknown", 4, 8, 1) is None
    assert round(ideal_share("1f1b", 4, 4, 1) or 0, 6) == 0.428571
    assert round(ideal_share("1f1b", 4, 8, 1) or 0, 6) == 0.272727
    assert round(ideal_share("1f1b", 8, 32, 1) or 0, 6) == 0.179487
