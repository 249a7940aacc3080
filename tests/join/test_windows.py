"""The pipeline of a replica from small tables: windows, bubbles and waits, on clocks that differ."""

from __future__ import annotations

from typing import Any

import polars as pl

from tracetool.join.clocks import SAMPLE_SCHEMA, Clocks, solve
from tracetool.join.windows import TRANSFER_SCHEMA, Replica, replica
from tracetool.tables import frame


def clocks(*bases: int, one_host: bool = True) -> Clocks:
    hosts = pl.DataFrame(
        {
            "rank": range(len(bases)),
            "host": ["h" if one_host else f"h{rank}" for rank in range(len(bases))],
            "base_unix_ns": bases,
        },
        schema_overrides={"rank": pl.Int32},
    )
    return solve(pl.DataFrame(schema=SAMPLE_SCHEMA), hosts)


def slots(*rows: tuple[int, str, int, int, int], source: str = "launch", stage: int | None = None) -> pl.DataFrame:
    """Return table `slots` of step 1 from (rank, kind, micro-batch, start, end); launched 50 ns ahead of the start."""
    numbers: dict[int, int] = {}
    given: list[dict[str, Any]] = []
    for rank, kind, microbatch, start, end in sorted(rows, key=lambda row: (row[0], row[3])):
        numbers[rank] = numbers.get(rank, -1) + 1
        given.append(
            {
                "rank": rank, "step": 1, "iteration": 1, "piece": numbers[rank], "kind": kind, "microbatch": microbatch,
                "stage": stage, "start_ns": start, "end_ns": end, "launch_start_ns": start - 50,
                "launch_end_ns": start - 50, "kernels": 1, "source": source,
            }
        )  # fmt: skip
    return frame("slots", {name: [row[name] for row in given] for name in given[0]})


def transfers(*rows: tuple[int, int, str, int, int, int]) -> pl.DataFrame:
    """Return sends and receives from (rank, event, op, launch, start, end), without recorded peers."""
    return pl.DataFrame([(*row, "unknown") for row in rows], schema=TRANSFER_SCHEMA, orient="row")


# two stages, two micro-batches, 1F1B; rank 1 counts from 1000 ns later, so its times are 1000 smaller
FIRST = [(0, "F", 0, 1000, 1100), (0, "F", 1, 1100, 1200), (0, "B", 0, 1430, 1500), (0, "B", 1, 1700, 1800)]
SECOND = [(1, "F", 0, 120, 220), (1, "B", 0, 220, 420), (1, "F", 1, 430, 500), (1, "B", 1, 500, 690)]
SENDS = [
    (0, 1, "send", 955, 1100, 1120), (0, 2, "send", 1060, 1200, 1430), (0, 3, "recv", 1065, 1200, 1430),
    (0, 4, "recv", 1640, 1500, 1700),
    (1, 1, "recv", 60, 50, 120), (1, 2, "send", 375, 420, 430), (1, 3, "recv", 376, 420, 430),
    (1, 4, "send", 460, 690, 700),
]  # fmt: skip


def both(**about: Any) -> Replica:  # noqa: ANN401 - see slots
    return replica(0, (0, 1), slots(*FIRST, *SECOND, **about), transfers(*SENDS), clocks(0, 1000))


def test_structure_windows_and_bubbles_of_a_small_pipeline() -> None:
    found = both()
    assert found.structure is not None
    assert found.structure._asdict() == {
        "replica": 0, "ranks": (0, 1), "stages": 2, "chunks": 1, "microbatches": 2, "schedule": "1f1b", "exact": True,
        "why": "every slot stands where 1F1B has it", "source": "launch", "complete": True,
    }  # fmt: skip
    columns = ("rank", "stage", "step", "start_ns", "end_ns", "first_backward_ns", "last_forward_ns")
    assert found.windows.select(columns).rows() == [(0, 0, 1, 1000, 1800, 1430, 1200), (1, 1, 1, 0, 800, 220, 500)]
    # backward 0 ended on stage 1 at 1420 of the common clock, backward 1 at 1690; forward 1 was there in time
    assert found.bubbles.rows() == [(0, 1200, 1420), (0, 1500, 1690)]
    assert found.notes == ()


def test_slots_tell_until_when_sends_and_receives_waited() -> None:
    found = both()
    # until when it waited; when its input had been made, the same unless it came later; and by whom
    assert found.waits.rows() == [
        (0, 3, 1420, 1420, 1), (0, 4, 1690, 1690, 1), (1, 1, 100, 100, 0), (1, 3, 420, 200, 0)
    ]  # fmt: skip
    moved = found.slots.drop_nulls("transfer_ns").select("rank", "kind", "microbatch", "transfer_ns", "serial")
    assert moved.rows() == [
        (0, "B", 0, 10, True), (0, "B", 1, 10, True), (1, "F", 0, 20, None), (1, "F", 1, 10, True)
    ]  # fmt: skip


def test_waits_that_are_known_already_are_left_alone() -> None:
    known = transfers(*SENDS).with_columns(basis=pl.lit("arrival"))
    assert replica(0, (0, 1), slots(*FIRST, *SECOND), known, clocks(0, 1000)).waits.height == 0


def test_an_operation_that_contradicts_its_place_tells_nothing() -> None:
    swapped = transfers(*SENDS).with_columns(
        op=pl.when(pl.col("op") == "send").then(pl.lit("recv")).otherwise(pl.lit("send"))
    )
    assert replica(0, (0, 1), slots(*FIRST, *SECOND), swapped, clocks(0, 1000)).waits.height == 0


def test_stages_whose_clocks_nothing_connects_are_not_measured() -> None:
    found = replica(0, (0, 1), slots(*FIRST, *SECOND), transfers(*SENDS), clocks(0, 1000, one_host=False))
    assert found.structure is None
    assert "nothing connects the clocks" in found.notes[0]


def test_a_step_in_which_stages_disagree_is_not_measured_and_said() -> None:
    found = replica(0, (0, 1), slots(*FIRST, *SECOND[:3]), transfers(*SENDS), clocks(0, 1000))
    assert found.structure is None
    assert found.notes == ("1 of 1 steps have stages that disagree on slots: not measured",)


def test_an_order_that_no_schedule_has_is_measured_and_not_numbered() -> None:
    odd = [(0, "F", 0, 1000, 1100), (0, "B", 0, 1430, 1500), (0, "F", 1, 1500, 1600), (0, "B", 1, 1700, 1800)]
    found = replica(0, (0, 1), slots(*odd, *SECOND), transfers(*SENDS), clocks(0, 1000))
    assert found.structure is not None
    assert (found.structure.schedule, found.structure.microbatches, found.structure.chunks) == ("unknown", None, None)
    assert found.windows.height == 2
    assert found.waits.height == found.bubbles.height == 0
    assert found.slots["microbatch"].null_count() == found.slots.height


def test_the_first_stage_alone_has_the_whole_window_and_the_last_has_none() -> None:
    alone = replica(0, (0, 1), slots(*FIRST), transfers(*SENDS[:4]), clocks(0, 1000))
    assert alone.structure is not None
    assert not alone.structure.complete
    assert alone.windows.select("start_ns", "end_ns").rows() == [(1000, 1800)]
    last = replica(0, (0, 1), slots(*SECOND), transfers(*SENDS[4:]), clocks(0, 1000))
    assert last.structure is not None
    assert last.windows.height == 0


def test_no_slots_and_mixed_signs_say_so() -> None:
    nothing = replica(0, (0, 1), slots(*FIRST).clear(), transfers(), clocks(0, 1000))
    assert nothing.structure is None
    assert "no forward or backward slots" in nothing.notes[0]
    mixed = pl.concat([slots(*FIRST), slots(*SECOND, source="gpipe")])
    assert "different signs (gpipe, launch)" in replica(0, (0, 1), mixed, transfers(), clocks(0, 1000)).notes[0]


def test_the_order_of_first_forwards_places_ranks_that_the_group_lists_otherwise() -> None:
    found = replica(0, (1, 0), slots(*FIRST, *SECOND), transfers(*SENDS), clocks(0, 1000))
    assert found.windows.select("rank", "stage").rows() == [(0, 0), (1, 1)]
