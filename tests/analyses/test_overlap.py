"""Communication beside compute: unions, roles, shares."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inmemory import MemoryRank, ask, gpu, rows, steps

if TYPE_CHECKING:
    import polars as pl

    from tracetool.results import Result

overlap = import_module("tracetool.analyses.overlap")


def waits(*values: tuple[int, int | None, str]) -> dict[str, pl.DataFrame]:
    return {"waits": rows("waits", 0, ("event", "wait_end_ns", "role"), *values, basis="symmetric")}


def one(
    activities: list[Any], *windows: tuple[int | None, int, int], facts: dict[str, pl.DataFrame] | None = None
) -> Result:
    table = gpu(*activities)
    named = [(e, s, d) for e, s, d, k in table.select("event", "start_ns", "dur_ns", "kind").iter_rows() if k == "comm"]
    comms = rows("comms", 0, ("event", "start_ns", "dur_ns"), *named, op="all_reduce", group="0", track=0, name="nccl")
    tables = {"gpu": table, "comms": comms, "steps": steps(*windows)}
    return ask(overlap, [MemoryRank(0, tables, facts or {})])


def cells(result: Result) -> list[tuple[Any, ...]]:
    return result.tables["per_rank_step"].rows()


def test_the_table_has_exactly_the_columns_of_the_document() -> None:
    result = one([(0, 10, "compute"), (5, 10, "comm")], (3, 0, 15))
    assert tuple(result.tables["per_rank_step"].columns) == overlap.PER_RANK_STEP
    assert cells(result) == [(0, 3, "all", 10, 5, 5)]
    assert result.metrics["overlap_share"] == 0.5
    assert result.metrics["exposed_share_of_step"] == 5 / 15


def test_copies_are_neither_side_and_windows_cut() -> None:
    activities = [(0, 10, "compute"), (5, 20, "comm"), (12, 5, "memcpy"), (30, 10, "memset")]
    assert cells(one(activities, (1, 0, 8), (2, 8, 40))) == [(0, 1, "all", 3, 3, 0), (0, 2, "all", 17, 2, 15)]


def test_unions_per_role_are_not_sums_over_groups() -> None:
    activities = [(0, 20, "compute"), (10, 20, "comm"), (15, 20, "comm"), (30, 10, "comm")]
    facts = waits((1, None, "dp"), (2, None, "dp"), (3, None, "tp"))
    assert cells(one(activities, (1, 0, 40), facts=facts)) == [
        (0, 1, "all", 30, 10, 20),
        (0, 1, "dp", 25, 10, 15),
        (0, 1, "tp", 10, 0, 10),
    ]


def test_a_role_that_is_silent_in_a_step_has_no_row_there() -> None:
    activities = [(0, 5, "comm"), (10, 5, "compute"), (20, 5, "comm")]
    facts = waits((0, None, "dp"), (2, None, "tp"))
    found = cells(one(activities, (1, 0, 10), (2, 10, 25), facts=facts))
    assert [(r[1], r[2]) for r in found] == [(1, "all"), (1, "dp"), (2, "all"), (2, "tp")]


def test_operations_are_listed_with_what_is_exposed_of_them() -> None:
    result = one([(0, 10, "compute"), (5, 10, "comm"), (6, 4, "comm")], (1, 0, 15))
    (found,) = result.tables["ops"].to_dicts()
    assert (found["op"], found["count"], found["ns"], found["overlap_ns"], found["exposed_ns"]) == (
        "all_reduce", 2, 14, 9, 5,
    )  # fmt: skip


def test_no_communication_inside_the_steps_is_skipped() -> None:
    result = one([(0, 10, "compute"), (50, 10, "comm")], (1, 0, 20))
    assert result.status == "skipped"
    assert result.reason


def test_exposed_gradients_are_a_warning_and_waiting_is_not_counted() -> None:
    activities = [(0, 60, "compute"), (60, 40, "comm")]
    (finding,) = one(activities, (1, 0, 100), facts=waits((1, 80, "dp"))).findings
    assert (finding.id, finding.severity) == ("overlap.exposed.dp", "warning")
    assert finding.saving.rows() == [(0, 1, 80, 20)]


@pytest.mark.parametrize("role", ["tp", "pp", "other"])
def test_communication_waited_for_by_design_is_info(role: str) -> None:
    activities = [(0, 50, "compute"), (50, 50, "comm")]
    assert [f.severity for f in one(activities, (1, 0, 100), facts=waits((1, None, role))).findings] == ["info"]


def test_without_roles_the_finding_says_what_is_not_known() -> None:
    result = one([(0, 50, "compute"), (50, 50, "comm")], (1, 0, 100))
    (finding,) = result.findings
    assert (finding.severity, finding.confidence) == ("info", "low")
    assert any("not known" in note for note in result.notes)


@pytest.mark.parametrize(("length", "expected"), [(15, "info"), (40, "warning"), (900, "warning")])
def test_exposed_time_that_may_be_waiting_is_judged_with_care(length: int, expected: str) -> None:
    activities = [(0, 100, "compute"), (100, length, "comm")]
    result = one(activities, (1, 0, 100 + length), facts=waits((1, None, "fsdp")))
    assert [(f.severity, f.confidence) for f in result.findings] == [(expected, "low")]


def test_hidden_communication_gives_no_finding() -> None:
    assert not one([(0, 100, "compute"), (10, 50, "comm")], (1, 0, 100), facts=waits((1, None, "dp"))).findings


SPAN = st.tuples(st.integers(0, 30), st.integers(0, 12), st.sampled_from(["compute", "comm", "memcpy"]))


@settings(deadline=None)
@given(st.lists(SPAN, min_size=1, max_size=7), st.integers(0, 20), st.integers(1, 20))
def test_equal_to_counting_every_nanosecond(spans: list[tuple[int, int, str]], start: int, length: int) -> None:
    def runs(kind: str, t: int) -> bool:
        return any(k == kind and s <= t < s + d for s, d, k in spans)

    window = range(start, start + length)
    comm = sum(runs("comm", t) for t in window)
    both = sum(runs("comm", t) and runs("compute", t) for t in window)
    result = one(list(spans), (1, start, start + length))
    if comm:
        assert cells(result) == [(0, 1, "all", comm, both, comm - both)]
    else:
        assert result.status == "skipped"
