"""Each sentence of the definition of a step, on traces one can check by eye."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from derive.build import AUTOGRAD, MAIN, SIDE, base, event, launched, notes
from hypothesis import given
from hypothesis import strategies as st

from tracetool import tables
from tracetool.derive import derive
from tracetool.errors import UsageError
from tracetool.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

Rows = list["Mapping[str, Any]"]


def step(number: int, start: int, end: int, track: int = MAIN) -> dict[str, Any]:
    return event("annotation", f"ProfilerStep#{number}", start, end, track=track)


def windows(rows: Sequence[Mapping[str, Any]], settings: Settings | None = None) -> list[tuple[Any, ...]]:
    made = derive(base(rows), settings or Settings())
    tables.check("steps", made["steps"])
    return made["steps"].select("step", "start_ns", "end_ns", "open_end", "basis").rows()


TWO: Rows = [
    step(3, 0, 100),
    *launched(1, 10, 50, 70),
    *launched(2, 90, 90, 130),
    step(4, 100, 200),
    *launched(3, 110, 140, 150),
    *launched(4, 120, 150, 260),
]


def test_a_step_runs_from_its_first_kernel_to_the_next_steps_first_kernel() -> None:
    assert windows(TWO) == [(3, 50, 140, False, "gpu"), (4, 140, 260, True, "gpu")]
    made = derive(base(TWO), Settings())
    assert made["steps"].select("range_start_ns", "range_end_ns").rows() == [(0, 100), (100, 200)]
    assert made["gpu"]["step"].to_list() == [3, 3, 4, 4]
    assert made["quality"].height == 0


def test_a_launch_at_the_very_start_of_a_range_belongs_to_it() -> None:
    rows = [step(1, 0, 100), *launched(1, 99, 100, 110), step(2, 100, 200), *launched(2, 100, 120, 130)]
    assert windows(rows) == [(1, 100, 120, False, "gpu"), (2, 120, 130, True, "gpu")]


def test_work_launched_between_ranges_belongs_to_the_earlier_one() -> None:
    rows = [
        step(1, 0, 50),
        *launched(1, 10, 20, 30),
        *launched(2, 60, 70, 80),
        step(2, 90, 99),
        *launched(3, 95, 96, 99),
    ]
    made = derive(base(rows), Settings())
    assert made["gpu"]["step"].to_list() == [1, 1, 2]


def test_launches_of_any_thread_count() -> None:
    rows = [step(1, 0, 100), *launched(1, 50, 60, 70), *launched(2, 10, 20, 30, thread=AUTOGRAD)]
    assert windows(rows) == [(1, 20, 70, True, "gpu")]


def test_kernels_start_a_step_before_copies_do() -> None:
    copy = launched(1, 5, 6, 9, category="memcpy", name="Memcpy HtoD")
    assert windows([step(1, 0, 100), *copy, *launched(2, 10, 40, 60)]) == [(1, 40, 60, True, "gpu")]
    assert windows([step(1, 0, 100), *copy]) == [(1, 6, 9, True, "gpu")]


def test_communication_starts_a_step() -> None:
    rows = [step(1, 0, 100), *launched(1, 5, 6, 9, name="ncclDevKernel_AllReduce_Sum"), *launched(2, 10, 40, 60)]
    assert windows(rows) == [(1, 6, 60, True, "gpu")]


def test_a_range_that_launched_nothing_makes_no_step_and_is_told() -> None:
    rows = [step(1, 0, 10), *launched(1, 1, 5, 8), step(2, 20, 33), step(3, 40, 50), *launched(2, 41, 45, 48)]
    rows.append(event("cpu_op", "aten::add", 21, 22))
    assert windows(rows) == [(1, 5, 45, False, "gpu"), (3, 45, 48, True, "gpu")]
    made = derive(base(rows), Settings())
    assert notes(made) == {"empty_ranges": (1, 13)}
    assert made["quality"]["note"].to_list() == ["1 step range launched no GPU activity and made no step: 2."]
    in_steps = dict(zip(base(rows)["events"]["name"].cast(str), made["links"]["step"], strict=True))
    assert in_steps["aten::add"] is None


def test_begins_never_decrease() -> None:
    rows = [
        step(1, 0, 50),
        *launched(1, 10, 100, 120),
        step(2, 50, 90),
        *launched(2, 55, 60, 70, track=SIDE),
        step(3, 90, 99),
        *launched(3, 95, 130, 140),
    ]
    assert windows(rows) == [(1, 100, 100, False, "gpu"), (2, 100, 130, False, "gpu"), (3, 130, 140, True, "gpu")]


def test_the_last_step_does_not_end_before_it_begins() -> None:
    rows = [step(1, 0, 50), *launched(1, 10, 100, 120), step(2, 50, 90), *launched(2, 55, 60, 70, track=SIDE)]
    assert windows(rows) == [(1, 100, 100, False, "gpu"), (2, 100, 100, True, "gpu")]


def test_the_last_step_ends_with_the_last_activity_it_launched() -> None:
    rows = [step(1, 0, 50), *launched(1, 10, 20, 30), *launched(2, 11, 60, 95, track=SIDE), step(2, 50, 90)]
    rows += launched(3, 55, 60, 70)
    made = derive(base(rows), Settings())
    assert made["steps"]["end_ns"].to_list() == [60, 70]
    assert notes(made) == {"outside_steps": (1, 25)}


def test_what_lies_outside_all_steps_is_told_once_per_instant() -> None:
    before = [*launched(1, 1, 2, 9), *launched(2, 2, 5, 12, track=SIDE)]
    rows = [*before, step(1, 3, 20), *launched(3, 4, 10, 14), event("kernel", "orphan", 30, 37)]
    made = derive(base(rows), Settings())
    assert made["steps"].select("start_ns", "end_ns").rows() == [(10, 14)]
    # [2, 10) before and [30, 37) after; the second kernel reaches into the step
    assert notes(made) == {"orphans": (1, 7), "outside_steps": (3, 15)}
    assert made["gpu"]["step"].to_list() == [None, None, 1, None]


def test_activity_belongs_to_the_step_that_launched_it_wherever_it_runs() -> None:
    rows = [step(1, 0, 10), *launched(1, 1, 5, 8), *launched(2, 2, 50, 60, track=SIDE), step(2, 20, 30)]
    rows += launched(3, 21, 40, 70)
    made = derive(base(rows), Settings())
    assert made["gpu"].select("start_ns", "step").rows() == [(5, 1), (40, 2), (50, 1)]


def test_cpu_events_lie_between_the_starts_of_ranges() -> None:
    rows = [*TWO, event("cpu_op", "late", 205, 206), event("annotation", "early", -5, 99)]
    made = derive(base(rows), Settings())
    found = dict(zip(base(rows)["events"]["name"].cast(str), made["links"]["step"], strict=True))
    assert (found["early"], found["ProfilerStep#3"], found["ProfilerStep#4"], found["late"]) == (None, 3, 4, 4)


def test_without_ranges_or_with_steps_none_there_is_one_window() -> None:
    plain = [row for row in TWO if row["category"] != "annotation"]
    assert windows(plain) == [(None, 50, 260, False, "window")]
    assert windows(TWO, Settings(ignore_steps=True)) == [(None, 50, 260, False, "window")]
    made = derive(base(plain), Settings())
    assert made["gpu"]["step"].null_count() == 4
    assert made["links"]["step"].null_count() == made["links"].height


def test_ranges_that_launched_nothing_at_all_leave_one_window() -> None:
    rows = [step(1, 0, 10), step(2, 20, 30), event("kernel", "orphan", 5, 25)]
    assert windows(rows) == [(None, 5, 25, False, "window")]
    assert notes(derive(base(rows), Settings())) == {"orphans": (1, 20), "no_steps": (2, None)}


def test_without_gpu_activity_the_step_is_the_cpu_range() -> None:
    rows = [step(1, 0, 10), event("cpu_op", "aten::mm", 2, 12), step(2, 15, 30)]
    assert windows(rows) == [(1, 0, 10, False, "cpu"), (2, 15, 30, False, "cpu")]
    assert derive(base(rows), Settings())["links"]["step"].to_list() == [1, 1, 2]
    assert windows(rows, Settings(ignore_steps=True)) == [(None, 0, 30, False, "cpu")]
    assert windows([event("cpu_op", "aten::mm", 2, 12)]) == [(None, 2, 12, False, "cpu")]
    assert windows([event("instant", "[memory]", 2, 2)]) == []
    assert windows([]) == []


def test_chosen_steps_keep_their_windows() -> None:
    assert windows(TWO, Settings(steps=(3,))) == [(3, 50, 140, False, "gpu")]
    assert windows(TWO, Settings(steps=(9,))) == []
    assert derive(base(TWO), Settings(steps=(3,)))["gpu"]["step"].to_list() == [3, 3, 4, 4]


def test_gpu_copies_of_ranges_are_not_looked_at() -> None:
    rows = [*TWO, event("gpu_annotation", "ProfilerStep#3", 51, 52), event("gpu_annotation", "ProfilerStep#9", 55, 57)]
    assert windows(rows) == windows(TWO)


def test_one_number_on_several_threads_counts_once() -> None:
    other = [step(3, 5, 95, AUTOGRAD), step(4, 125, 190, AUTOGRAD)]
    assert windows([*TWO, *other]) == windows(TWO)
    assert notes(derive(base([*TWO, *other]), Settings())) == {"duplicate_ranges": (2, None)}


def test_a_step_loop_that_moves_to_another_thread() -> None:
    moved = [*TWO, step(5, 200, 300, AUTOGRAD), *launched(5, 210, 270, 280, thread=AUTOGRAD)]
    assert [row[:3] for row in windows(moved)] == [(3, 50, 140), (4, 140, 270), (5, 270, 280)]


def test_one_range_inside_another_of_the_same_number_counts_once() -> None:
    assert windows([*TWO, step(3, 4, 90)]) == windows(TWO)


def test_ranges_by_pattern_take_the_last_integer_of_the_name() -> None:
    rows = [
        event("annotation", "epoch 2 batch 7", 0, 10),
        *launched(1, 1, 5, 8),
        event("annotation", "epoch 2 batch 9", 10, 20),
        *launched(2, 11, 15, 18),
        step(1, 0, 20),
    ]
    expected = [(7, 5, 15, False, "gpu"), (9, 15, 18, True, "gpu")]
    assert windows(rows, Settings(step_range=r"^epoch \d+ batch")) == expected
    assert windows(rows, Settings(step_range=r"(?=epoch)epoch")) == expected


def test_ranges_without_usable_numbers_are_counted_from_one() -> None:
    names = ["train", "train", "train"]
    rows = [event("annotation", name, 10 * i, 10 * i + 9) for i, name in enumerate(names)]
    rows += [row for i in range(3) for row in launched(i, 10 * i + 1, 10 * i + 5, 10 * i + 8)]
    settings = Settings(step_range="^train")
    assert [row[0] for row in windows(rows, settings)] == [1, 2, 3]
    assert notes(derive(base(rows), settings)) == {}
    for repeated in (
        ["train 1", "train 2", "train 1"],
        ["train 1", "train", "train 99999999999"],
        ["t" + "9" * 5000] * 3,
    ):
        again = [event("annotation", f"train {name}", 10 * i, 10 * i + 9) for i, name in enumerate(repeated)] + rows[3:]
        assert [row[0] for row in windows(again, settings)] == [1, 2, 3]
        assert notes(derive(base(again), settings)) == {"step_numbers": (3, None)}


def test_a_pattern_that_fits_nothing_or_is_none() -> None:
    made = derive(base(TWO), Settings(step_range="^nothing"))
    assert made["steps"]["basis"].to_list() == ["window"]
    assert notes(made) == {"no_step_ranges": (0, None)}
    with pytest.raises(UsageError, match=r"--step-range \(: not a regular expression"):
        derive(base(TWO), Settings(step_range="("))


def test_old_files_list_step_ranges_as_operators() -> None:
    rows = [{**row, "category": "cpu_op"} if row["category"] == "annotation" else row for row in TWO]
    assert windows(rows) == windows(TWO)


WORK = st.tuples(
    st.integers(0, 60),  # launch
    st.integers(0, 80),  # start
    st.integers(0, 9),  # duration
    st.sampled_from(["kernel", "kernel", "memcpy", "memset"]),
    st.booleans(),  # has a launch
)


def by_the_definition(
    begins: list[int], work: list[tuple[int, int, int, str, bool]]
) -> list[tuple[int, int, int, bool]]:
    """Walk the ranges in order, as the definition reads; ranges are numbered by their place."""
    cuts: list[tuple[int, int]] = []
    end = 0
    for k, begin in enumerate(begins):
        until = begins[k + 1] if k + 1 < len(begins) else 10**9
        mine = [row for row in work if row[4] and begin <= row[0] < until]
        if not mine:
            continue
        kernels = [row[1] for row in mine if row[3] == "kernel"] or [row[1] for row in mine]
        cuts.append((k, max([min(kernels), *[cut for _, cut in cuts]])))
        end = max([cuts[-1][1], *[row[1] + row[2] for row in mine]])
    ends = [*[cut for _, cut in cuts[1:]], *[end][: len(cuts)]]
    return [(k, cut, to, k == cuts[-1][0]) for (k, cut), to in zip(cuts, ends, strict=True)]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5, unique=True), st.lists(WORK, min_size=1, max_size=12))
def test_steps_equal_the_definition(begins: list[int], work: list[tuple[int, int, int, str, bool]]) -> None:
    begins.sort()
    rows = [step(k, begin, begin + 1) for k, begin in enumerate(begins)]
    for number, (launch, start, dur, category, has_launch) in enumerate(work):
        both = launched(number, launch, start, start + dur, category=category, track=10 + number)
        rows += both if has_launch else both[1:]
    expected = by_the_definition(begins, work)
    got = windows(rows)
    if expected:
        assert [row[:4] for row in got] == expected
    else:
        whole = (min(row[1] for row in work), max(row[1] + row[2] for row in work))
        assert got == [(None, *whole, False, "window")]
