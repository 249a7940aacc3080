"""The time budget: every instant in exactly one bucket."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inmemory import MemoryRank, ask, gpu, rows, steps

from tracetool.tables import frame

if TYPE_CHECKING:
    import polars as pl

    from tracetool.results import Result

budget = import_module("tracetool.analyses.budget")
EVEN = [(0, 100, "compute", -20, -10), (100, 40, "comm", 50, 55)]


Window = tuple[int | None, int, int]


def one(activities: list[Any], *windows: Window, facts: dict[str, pl.DataFrame] | None = None, **about: bool) -> Result:
    table = gpu(*activities)
    whole = (None, min(a[0] for a in activities), max(a[0] + a[1] for a in activities))
    return ask(
        budget, [MemoryRank(0, {"gpu": table, "steps": steps(*(windows or (whole,)))}, facts or {})], None, **about
    )


def row(result: Result, number: int = 0) -> dict[str, int]:
    found = result.tables["per_rank_step"].row(number, named=True)
    assert sum(found[name] for name in budget.NS) == found["window_ns"]
    assert found["overlap_ns"] + found["exposed_total_ns"] == found["comm_total_ns"]
    return {name.removesuffix("_ns"): value for name, value in found.items() if value}


def test_the_table_has_exactly_the_columns_of_the_document() -> None:
    assert tuple(one(EVEN).tables["per_rank_step"].columns) == budget.PER_RANK_STEP


@pytest.mark.parametrize(
    ("activities", "expected"),
    [
        pytest.param([(0, 10, "compute")], {"compute": 10}, id="compute alone"),
        pytest.param(
            [(0, 10, "compute"), (5, 10, "comm")],
            {"compute": 10, "exposed_comm": 5, "comm_total": 10, "overlap": 5, "exposed_total": 5},
            id="compute goes before communication",
        ),
        pytest.param(
            [(0, 10, "comm"), (5, 10, "memcpy"), (15, 5, "memset")],
            {"exposed_comm": 10, "memcpy": 10, "comm_total": 10, "exposed_total": 10},
            id="communication goes before copies",
        ),
        pytest.param(
            [(0, 10, "compute", -5, -4), (30, 5, "compute", 12, 20)],
            {"compute": 15, "host_bound": 10, "idle": 10},
            id="dry until the launch call ends",
        ),
        pytest.param(
            [(0, 10, "compute", -5, -4), (30, 5, "compute", 12, 50)],
            {"compute": 15, "host_bound": 20},
            id="the kernel starts before its call returns",
        ),
        pytest.param(
            [(0, 10, "compute", -5, -4), (30, 5, "compute", 10, 20)],
            {"compute": 15, "idle": 20},
            id="a call that began as it ran dry is not late",
        ),
        pytest.param(
            [(0, 10, "compute", -5, -4), (30, 5, "compute")], {"compute": 15, "idle": 20}, id="an orphan's gap is idle"
        ),
        pytest.param(
            [(0, 10, "compute", -5, -4), (30, 5, "compute", 5, 6), (30, 4, "memcpy", 25, 26)],
            {"compute": 15, "idle": 20},
            id="of two that start together the longest is the next",
        ),
        pytest.param(
            [(0, 10, "compute", -5, -4), (20, 0, "compute", 15, 18), (30, 5, "compute", 21, 23)],
            {"compute": 15, "host_bound": 11, "idle": 9},
            id="zero duration ends a gap",
        ),
        pytest.param(
            [(0, 30, "compute", -5, -4), (2, 3, "memcpy", 0, 1), (40, 5, "compute", 31, 32)],
            {"compute": 35, "host_bound": 2, "idle": 8},
            id="dry since the latest end, not the last one's",
        ),
    ],
)
def test_each_instant_goes_to_the_first_that_holds(activities: list[Any], expected: dict[str, int]) -> None:
    found = row(one(activities))
    assert {k: v for k, v in found.items() if k not in ("window", "open_end")} == expected


def waits(*values: tuple[int, int | None, str, str]) -> dict[str, pl.DataFrame]:
    return {"waits": rows("waits", 0, ("event", "wait_end_ns", "role", "basis"), *values)}


def test_waiting_is_cut_from_communication() -> None:
    activities = [(0, 10, "compute"), (10, 20, "comm"), (40, 20, "comm"), (60, 5, "compute")]
    facts = waits((1, 25, "dp", "symmetric"), (2, 52, "pp", "slots"))
    result = one(activities, facts=facts)
    found = row(result)
    assert (found["sync_wait"], found["pipeline_bubble"], found["exposed_comm"]) == (15, 12, 13)
    assert result.metrics["sync_wait_share"] == 15 / 65
    assert result.metrics["waiting_told_share"] == 1.0


def test_moving_goes_before_waiting_and_the_pipeline_before_the_rest() -> None:
    activities = [(0, 1, "compute"), (1, 30, "comm"), (1, 29, "comm"), (1, 10, "comm")]
    facts = waits((1, 31, "tp", "symmetric"), (2, 21, "pp", "arrival"), (3, 6, "dp", "symmetric"))
    found = row(one(activities, facts=facts))
    # waiting: tp [1,31), pp [1,21), dp [1,6); moving: dp [6,11), pp [21,30)
    assert (found["exposed_comm"], found["pipeline_bubble"], found["sync_wait"]) == (14, 15, 1)


def test_an_end_of_waiting_outside_the_communication_is_clamped() -> None:
    activities = [(0, 10, "compute"), (10, 10, "comm"), (20, 10, "comm")]
    found = row(one(activities, facts=waits((1, 3, "dp", "arrival"), (2, 99, "dp", "arrival"))))
    assert (found["exposed_comm"], found["sync_wait"]) == (10, 10)


def test_a_bubble_takes_the_gap_before_the_host_and_copies_before_the_bubble() -> None:
    activities = [(0, 10, "compute", -5, -4), (20, 5, "memcpy", 11, 12), (50, 5, "compute", 26, 45)]
    bubbles = frame("bubbles", {"rank": [0], "start_ns": [10], "end_ns": [35]})
    found = row(one(activities, facts={**waits(), "bubbles": bubbles}))
    assert (found["pipeline_bubble"], found["memcpy"], found["host_bound"], found["idle"]) == (20, 5, 10, 5)


def test_without_the_join_waiting_is_null_and_the_rows_still_sum() -> None:
    result = one(EVEN)
    assert row(result)["exposed_comm"] == 40
    assert result.metrics["sync_wait_share"] is None
    assert result.metrics["pipeline_bubble_share"] is None
    assert any("could not be told apart" in note for note in result.notes)
    assert result.tables["per_rank_step"]["sync_wait_ns"].to_list() == [0]


def test_without_communication_nobody_waits() -> None:
    assert one([(0, 10, "compute")]).metrics["sync_wait_share"] == 0.0


def test_unmatched_communication_is_said_with_its_share() -> None:
    activities = [(0, 30, "comm"), (30, 10, "comm")]
    result = one(activities, facts=waits((0, 10, "dp", "symmetric"), (1, None, "dp", "unmatched")))
    assert result.metrics["waiting_told_share"] == 0.75
    assert any("75.0 %" in note for note in result.notes)


def test_all_that_runs_in_a_window_counts_and_a_gap_keeps_its_start_across_steps() -> None:
    activities = [(0, 10, "compute", -5, -4), (20, 10, "compute", 12, 13), (40, 10, "comm", 35, 37)]
    result = one(activities, (3, 0, 25), (4, 25, 50))
    assert row(result, 0) == {"step": 3, "window": 25, "compute": 15, "host_bound": 3, "idle": 7}
    second = row(result, 1)
    assert (second["compute"], second["host_bound"], second["idle"], second["exposed_comm"]) == (5, 7, 3, 10)


def test_step_time_is_the_median_over_ranks_and_leaves_out_open_ends() -> None:
    ranks = []
    for rank, length in enumerate((100, 300, 120)):
        activities = [(0, 10, "compute"), (length, 10, "compute"), (2 * length, 5, "compute")]
        windows = steps((7, 0, length), (8, length, 2 * length), (9, 2 * length, 2 * length + 5), rank=rank)
        ranks.append(MemoryRank(rank, {"gpu": gpu(*activities, rank=rank), "steps": windows}))
    result = ask(budget, ranks)
    assert result.metrics["step_ns_p50"] == 120
    assert result.metrics["step_ns_p99"] == 120
    assert result.metrics["steps_compared"] == 2
    assert result.tables["steps"]["compared"].to_list() == [True, True, False]
    assert any("3 such steps count in the sums" in note for note in result.notes)
    assert sum(result.tables["buckets"]["mean_ns"]) == result.tables["per_rank_step"]["window_ns"].sum() // 9


def test_a_single_open_step_is_the_step_time() -> None:
    assert one(EVEN, (1, 0, 140)).metrics["step_ns_p50"] == 140


def test_shares_sum_to_one_and_charts_name_what_is_there() -> None:
    result = one(EVEN, facts=waits((1, 120, "dp", "symmetric")))
    values = [result.metrics[f"{b}_share"] for b in budget.BUCKETS]
    assert sum(v for v in values if isinstance(v, float)) == pytest.approx(1)
    assert None not in values
    for chart in result.charts:
        assert {chart.label, *chart.y} <= set(result.tables[chart.table].columns)
    assert result.charts[0].options["first_screen"]


def test_profiler_settings_that_slow_the_host_are_said() -> None:
    assert any("with_stack" in note for note in one(EVEN, with_stack=True, record_shapes=False).notes)
    assert not any("Recorded with" in note for note in one(EVEN, with_stack=False).notes)


def test_orphans_are_counted_and_said() -> None:
    quality = frame("quality", {"rank": [0], "topic": ["orphans"], "count": [1], "ns": [10], "note": ["x"]})
    tables = {"gpu": gpu((0, 10, "compute")), "steps": steps((None, 0, 10)), "quality": quality}
    result = ask(budget, [MemoryRank(0, tables)])
    assert result.metrics["orphans"] == 1
    assert any("1 GPU activity on 1 rank without a launch" in note for note in result.notes)


def test_no_window_is_skipped_with_a_reason() -> None:
    result = ask(budget, [MemoryRank(0, {"gpu": gpu((0, 10, "compute"))})])
    assert result.status == "skipped"
    assert result.reason


def test_exposed_copies_are_a_finding_with_their_place() -> None:
    result = one([(0, 60, "compute"), (60, 40, "memcpy"), (100, 100, "compute")], (1, 0, 200))
    (finding,) = result.findings
    assert (finding.id, finding.severity) == ("budget.memcpy", "warning")
    assert finding.saving.rows() == [(0, 1, 60, 40)]
    table, numbers = finding.evidence[0]
    assert result.tables[table][list(numbers)]["at_ns"].to_list() == [60]


def test_a_healthy_run_has_no_finding() -> None:
    assert not one([(0, 100, "compute", -9, -5), (100, 50, "compute", 20, 25)]).findings


def test_idle_of_one_rank_of_many_is_never_a_warning() -> None:
    activities = [(0, 10, "compute", -9, -5), (10, 5, "comm", 0, 1), (80, 20, "compute", 2, 3)]
    (finding,) = one(activities).findings
    assert (finding.id, finding.severity) == ("budget.idle", "info")


KINDS = st.sampled_from(["compute", "comm", "memcpy", "memset"])


@st.composite
def timelines(draw: st.DrawFn) -> tuple[list[Any], list[tuple[int | None, str]], list[tuple[int, int]], list[int]]:
    activities = []
    for _ in range(draw(st.integers(1, 7))):
        start, dur, kind = draw(st.integers(0, 40)), draw(st.integers(0, 12)), draw(KINDS)
        began = draw(st.none() | st.integers(-5, 45))
        returns = None if began is None else began + draw(st.integers(0, 8))
        activities.append((start, dur, kind, began, returns))
    activities.sort(key=lambda a: (a[0], -a[1]))
    cut = [(draw(st.none() | st.integers(-3, 60)), draw(st.sampled_from(["dp", "pp"]))) for _ in activities]
    bubbles = [(s, s + draw(st.integers(1, 9))) for s in draw(st.lists(st.integers(0, 45), max_size=2))]
    edges = sorted(draw(st.sets(st.integers(0, 55), min_size=2, max_size=4)))
    return activities, cut, bubbles, edges


def oracle(activities: list[Any], cut: list[Any], bubbles: list[Any], t: int) -> str:  # noqa: PLR0911 - one return a rule
    """Say to which bucket the instant [t, t + 1) belongs, straight from the definition."""

    def runs(kinds: tuple[str, ...]) -> list[int]:
        return [i for i, a in enumerate(activities) if a[2] in kinds and a[0] <= t < a[0] + a[1]]

    if runs(("compute",)):
        return "compute"
    waiting = []
    for i in runs(("comm",)):
        start, dur = activities[i][:2]
        moves = start if cut[i][0] is None else min(max(cut[i][0], start), start + dur)
        if t >= moves:
            return "exposed_comm"
        waiting.append(cut[i][1])
    if waiting:
        return "pipeline_bubble" if "pp" in waiting else "sync_wait"
    if runs(("memcpy", "memset")):
        return "memcpy"
    if any(s <= t < e for s, e in bubbles):
        return "pipeline_bubble"
    ended = [a[0] + a[1] for a in activities if a[0] <= t]
    later = [a for a in activities if a[0] > t]
    if not ended or not later or later[0][3] is None or later[0][3] <= max(ended):
        return "idle"
    return "host_bound" if t < later[0][4] else "idle"


@settings(deadline=None)
@given(timelines())
def test_equal_to_counting_every_nanosecond(drawn: tuple[Any, ...]) -> None:
    activities, cut, bubbles, edges = drawn
    facts = waits(*((i, w, role, "arrival") for i, (w, role) in enumerate(cut) if activities[i][2] == "comm"))
    starts, ends = [b[0] for b in bubbles], [b[1] for b in bubbles]
    facts["bubbles"] = frame("bubbles", {"rank": [0] * len(bubbles), "start_ns": starts, "end_ns": ends})
    windows = [(i, a, b) for i, (a, b) in enumerate(pairwise(edges))]
    result = one(activities, *windows, facts=facts)
    for number, (_, start, end) in enumerate(windows):
        expected = [oracle(activities, cut, bubbles, t) for t in range(start, end)]
        found = row(result, number)
        assert {b: found.get(b, 0) for b in budget.BUCKETS} == {b: expected.count(b) for b in budget.BUCKETS}
