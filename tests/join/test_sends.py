"""Which slot's input a send or receive brings: by its place between pieces, and never by guessing."""

from __future__ import annotations

import numpy as np
import pytest

from tracetool.join.sends import NOT_KNOWN, NOTHING, Pieces, brings

F, B = 0, 1


def pieces(*rows: tuple[int, int, int, int, int, int, int]) -> Pieces:
    """Return pieces from (launch, sends, receives, last kind, last target, first kind, first source)."""
    return Pieces(*(np.array(column, np.int64) for column in zip(*rows, strict=True)))


MIDDLE = pieces(
    (10, 1, 1, F, 2, F, 0),
    (20, 1, 1, F, 2, F, 0),
    (30, 1, 1, B, 0, B, 2),
)
"""A stage between ranks 0 and 2: two forwards, then a backward."""


def found(made: Pieces, *launched: int) -> list[tuple[int, int]]:
    gap, which = brings(made, np.array(launched, np.int64))
    return list(zip(gap.tolist(), which.tolist(), strict=True))


def test_one_kernel_each_sends_come_before_receives() -> None:
    assert found(MIDDLE, 5, 12, 14, 22, 24, 35) == [(0, 0), (1, NOTHING), (1, 0), (2, NOTHING), (2, 0), (3, NOTHING)]


def test_a_send_shares_its_kernel_with_a_receive_from_the_same_neighbour_only() -> None:
    # forward to rank 2 and backward from rank 2: one kernel; forward to rank 2 and forward from rank 0: two
    assert found(MIDDLE, 5, 12, 14, 22) == [(0, 0), (1, NOTHING), (1, 0), (2, 0)]


def test_everything_in_one_kernel_brings_all_that_is_received() -> None:
    assert found(MIDDLE, 5, 12) == [(0, 0), (1, 1)]


@pytest.mark.parametrize("launched", [(12, 13, 14), (12, 13, 14, 15)])
def test_any_other_number_tells_nothing(launched: tuple[int, ...]) -> None:
    assert found(MIDDLE, *launched) == [(1, NOT_KNOWN)] * len(launched)


def test_slots_that_were_not_told_tell_nothing_of_their_neighbours() -> None:
    made = pieces((10, 1, 1, F, 2, F, 0), (20, NOT_KNOWN, NOT_KNOWN, F, 2, F, 0))
    assert found(made, 5, 12, 14) == [(0, 0), (1, NOT_KNOWN), (1, NOT_KNOWN)]


def test_a_piece_of_two_slots_receives_twice() -> None:
    made = pieces((10, 2, 2, B, 0, F, 0), (20, 2, 2, B, 0, F, 0))
    assert found(made, 11, 12, 13, 14) == [(1, NOTHING), (1, NOTHING), (1, 0), (1, 1)]
    # the backward's output and the next forward's input go to and come from rank 0: they share the second kernel
    assert found(made, 11, 12, 13) == [(1, NOTHING), (1, 0), (1, 1)]
