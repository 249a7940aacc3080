"""Sends and receives brought together by what they carry."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from tracetool.join.messages import messages
from tracetool.join.segments import COMM, COMPUTE


def nodes(*rows: tuple[int, int, str | None, int | None]) -> pl.DataFrame:
    """Rows (rank, kind, op, sent); of the two ranks 0 and 1 each gets what the other made."""
    return pl.DataFrame(
        [(r, k, op, None, sent, None if sent is None else 1 - r) for r, k, op, sent in rows],
        schema={
            "rank": pl.Int32,
            "kind": pl.Int8,
            "op": pl.String,
            "instance": pl.Int64,
            "sent_aligned_ns": pl.Int64,
            "sent_by": pl.Int32,
        },
        orient="row",
    )


def found(table: pl.DataFrame, ends: list[float], *edges: tuple[int, int]) -> tuple[list[Any], list[Any]]:
    pred, node = (np.array([edge[k] for edge in edges], np.int64) for k in range(2))
    answer = messages(table, np.array(ends), (pred, node))
    return list(zip(answer.source.tolist(), answer.receive.tolist(), strict=True)), answer.meeting.tolist()


def test_a_receive_waits_for_the_slot_and_meets_the_send_that_follows_it() -> None:
    # rank 0 computes until 100 and sends; rank 1 receives what was made at 101 (rounding); rank 2 ends then too
    table = nodes((0, COMPUTE, None, None), (0, COMM, "send", None), (1, COMM, "recv", 101), (2, COMPUTE, None, None))
    assert found(table, [100.0, 150.0, 150.0, 101.0], (0, 1)) == ([(0, 2)], [-1, 1, 1, -1])


def test_without_a_send_that_follows_only_the_slot_is_waited_for() -> None:
    table = nodes((0, COMPUTE, None, None), (1, COMM, "recv", 100))
    assert found(table, [100.0, 150.0]) == ([(0, 1)], [-1, -1])


def test_two_kernels_that_swap_messages_meet_once() -> None:
    table = nodes(
        (0, COMPUTE, None, None), (1, COMPUTE, None, None), (0, COMM, "send_recv", 200), (1, COMM, "send_recv", 100)
    )
    edges, meeting = found(table, [100.0, 200.0, 300.0, 300.0], (0, 2), (1, 3))
    assert sorted(edges) == [(0, 3), (1, 2)]
    assert meeting == [-1, -1, 2, 2]


def test_what_nobody_made_then_is_not_guessed() -> None:
    table = nodes((0, COMPUTE, None, None), (1, COMM, "recv", 50_000), (1, COMM, "recv", None))
    assert found(table, [100.0, 60_000.0, 60_000.0]) == ([], [-1, -1, -1])
