"""Steps of traces whose tracer marks none: names of programs and frameworks, taken only where they are certain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from derive.build import AUTOGRAD, base, event, launched, notes

from tracetool import tables
from tracetool.derive import derive
from tracetool.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

OPTIMIZER = "Optimizer.step#AdamW.step"


def made(rows: Sequence[dict[str, Any]], form: str = "nsight", settings: Settings | None = None) -> tables.Tables:
    about = tables.frame("ranks", {"rank": [0], "format": [form]})
    return derive(base(rows, ranks=about), settings or Settings())


def steps(found: tables.Tables) -> list[tuple[Any, ...]]:
    return found["steps"].select("step", "start_ns", "end_ns", "open_end").rows()


def three(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return three ranges of 100 ns with a kernel each."""
    rows = []
    for k, name in enumerate(names):
        rows += [
            event("annotation", name, 100 * k, 100 * k + 99),
            *launched(k + 1, 100 * k + 10, 100 * k + 20, 100 * k + 80),
        ]
    return rows


NUMBERED = [
    "iteration {}", "iteration{}", "iteration_{}", "Iteration: {}", "iter {}", "step_{}", "Step {}", "step={}",
    "steps{}", "train_step {}", "Training step {}", "global_step: {}", "train iteration #{}",
]  # fmt: skip


@pytest.mark.parametrize("name", NUMBERED)
def test_a_number_in_the_name_makes_steps_and_it_is_told(name: str) -> None:
    found = made(three([name.format(k) for k in (7, 8, 9)]))
    assert steps(found) == [(7, 20, 120, False), (8, 120, 220, False), (9, 220, 280, True)]
    note = found["quality"].filter(found["quality"]["topic"] == "assumed_steps")["note"].item()
    assert f"`{name.format(7)}`" in note
    assert "--step-range" in note


@pytest.mark.parametrize(
    "name",
    ["layer {}", "batch {}", "microbatch {}", "forward {}", "step {} of 9", "time_step_{}", "iteration {} end"],
)
def test_other_numbered_names_are_no_steps(name: str) -> None:
    found = made(three([name.format(k) for k in (7, 8, 9)]))
    assert steps(found) == [(None, 20, 280, False)]
    assert "assumed_steps" not in notes(found)


def test_traces_of_a_tracer_with_steps_of_its_own_have_one_window() -> None:
    found = made(three(["iteration 1", "iteration 2", "iteration 3"]), "kineto")
    assert steps(found) == [(None, 20, 280, False)]
    assert not notes(found)


def test_marks_of_the_tracer_win_over_usual_names() -> None:
    rows = [event("annotation", "ProfilerStep#4", 0, 299), *three(["step 1", "step 2", "step 3"])]
    assert steps(made(rows)) == [(4, 20, 280, True)]


def test_the_outermost_of_nested_names_is_the_step() -> None:
    inner = [event("annotation", f"step {k}", 50 * k + 5, 50 * k + 45) for k in range(6)]
    assert [row[0] for row in steps(made([*three([f"iteration {k}" for k in (7, 8, 9)]), *inner]))] == [7, 8, 9]


def test_numbers_that_come_again_are_no_steps_and_it_is_told() -> None:
    found = made(three(["step 0", "step 1", "step 0"]))
    assert steps(found) == [(None, 20, 280, False)]
    assert "numbers come again" in found["quality"]["note"].to_list()[0]


def test_two_names_side_by_side_are_no_steps_and_it_is_told() -> None:
    found = made(three(["step 0", "iteration 0", "step 1"]))
    assert steps(found) == [(None, 20, 280, False)]
    assert notes(found)["unsure_steps"][0] == 1


def backward(at: int) -> dict[str, Any]:
    return event("cpu_op", "autograd::engine::evaluate_function: AddBackward0", at, at + 4, track=AUTOGRAD)


@pytest.mark.parametrize("name", [OPTIMIZER, "DeepSpeedZeroOptimizer_Stage3.step"])
def test_optimizers_cut_steps_where_something_ran_backward_between_them(name: str) -> None:
    rows = []
    for k in range(4):
        at = 100 * k
        rows += [*launched(3 * k + 1, at + 5, at + 10, at + 20), backward(at + 30)]
        for i, begin in enumerate((60, 80)):  # two optimizers after one backward
            rows.append(event("annotation", name, at + begin, at + begin + 15))
            rows += launched(3 * k + 2 + i, at + begin + 1, at + begin + 2, at + begin + 9)
    found = made(rows)
    assert steps(found) == [(1, 62, 162, False), (2, 162, 262, False), (3, 262, 362, False), (4, 362, 389, True)]
    assert notes(found)["assumed_steps"][0] == 4
    assert notes(found)["outside_steps"][0] == 1
    # the optimizer's own range stays one: it is a phase, no step
    assert found["gpu"]["phase"].to_list().count("optimizer") == (8 if name == OPTIMIZER else 0)


def test_two_optimizer_steps_are_too_few_to_cut_at() -> None:
    rows = [backward(5), event("annotation", OPTIMIZER, 10, 20), *launched(1, 11, 12, 13)]
    rows += [backward(25), event("annotation", OPTIMIZER, 30, 40), *launched(2, 31, 32, 33)]
    assert steps(made(rows)) == [(None, 12, 33, False)]


def test_optimizers_without_backward_between_them_are_no_steps() -> None:
    rows = [event("annotation", OPTIMIZER, 20 * k, 20 * k + 9) for k in range(5)]
    assert steps(made([*rows, *launched(1, 1, 2, 90)])) == [(None, 2, 90, False)]


def test_the_users_choice_wins() -> None:
    rows = three(["iteration 1", "iteration 2", "iteration 3"])
    assert steps(made(rows, settings=Settings(ignore_steps=True))) == [(None, 20, 280, False)]
    found = made([*rows, event("annotation", "mine 5", 150, 190)], settings=Settings(step_range="^mine"))
    assert steps(found) == [(5, 220, 280, True)]
    assert "assumed_steps" not in notes(found)
