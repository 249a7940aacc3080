"""Prices: a bound per step over ranks that work side by side, ranked, and small ones for information only."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from tracetool.join.price import price, step_time_ns
from tracetool.results import SAVING_SCHEMA, Finding, no_saving
from tracetool.tables import frame

Row = tuple[int, int | None, int, int]


def _steps(*rows: tuple[int, int, int, int, bool]) -> pl.DataFrame:
    rank, step, start, end, open_end = zip(*rows, strict=True)
    return frame(
        "steps",
        {
            "rank": rank,
            "step": step,
            "start_ns": start,
            "end_ns": end,
            "open_end": open_end,
            "basis": ["gpu"] * len(rank),
        },
    )


def _finding(name: str, *saving: Row, severity: str = "warning") -> Finding:
    return Finding(
        id=name, analysis="a", severity=severity, title="t", detail="d", advice="do",  # type: ignore[arg-type] # a literal
        confidence="high", confidence_why="w", saving=pl.DataFrame(list(saving), schema=SAVING_SCHEMA, orient="row"),
    )  # fmt: skip


STEPS = _steps((0, 1, 0, 1000, False), (0, 2, 1000, 2000, True), (1, 1, 0, 1200, False), (1, 2, 1200, 2000, True))


def test_a_step_gains_at_most_what_its_best_rank_would() -> None:
    finding = _finding("x", (0, 1, 0, 60), (0, 1, 50, 40), (1, 1, 0, 70), (1, 2, 0, 300))
    (priced,) = price([finding], STEPS)
    assert priced.recoverable_ns_per_step == (100 + 300) // 2
    assert priced.recoverable_share == 200 / 1100
    assert priced.price_basis == "bound"


def test_below_one_percent_it_is_information_and_stands_last() -> None:
    small, large = _finding("small", (0, 1, 0, 10), severity="critical"), _finding("large", (0, 1, 0, 200))
    ranked = price([small, large], STEPS)
    assert [(f.id, f.severity) for f in ranked] == [("large", "warning"), ("small", "info")]


def test_rows_that_a_replay_gave_are_taken_as_they_are_up_to_its_limit() -> None:
    rows = [(None, 1, 0, 60), (None, 2, 0, 300)]
    finding = _finding("x", *rows)  # type: ignore[arg-type]  # whole steps
    good, bad = (replace(finding, replay_error=error) for error in (0.05, 0.051))
    assert [(f.recoverable_ns_per_step, f.price_basis) for f in price([good], STEPS)] == [(180, "replay")]
    assert [(f.recoverable_ns_per_step, f.price_basis) for f in price([bad], STEPS)] == [(180, "bound")]


def test_without_saving_there_is_no_price() -> None:
    unpriced = _finding("x")
    (finding,) = price([unpriced], STEPS)
    assert (finding.recoverable_ns_per_step, finding.recoverable_share, finding.price_basis) == (None, None, None)
    assert finding.saving.equals(no_saving())


def test_worth_ranks_before_severity_and_an_unpriced_critical_before_all() -> None:
    found = [
        _finding("a", (0, 1, 0, 40)),
        _finding("b", (0, 1, 0, 400), severity="info"),
        _finding("c"),
        _finding("hang", severity="critical"),
    ]
    assert [finding.id for finding in price(found, STEPS)] == ["hang", "b", "a", "c"]


def test_an_upper_bound_of_low_confidence_stands_behind_what_was_measured() -> None:
    bound = replace(_finding("bound", (0, 1, 0, 900), severity="info"), confidence="low")
    measured = _finding("measured", (0, 1, 0, 90), severity="info")
    assert [finding.id for finding in price([bound, measured], STEPS)] == ["measured", "bound"]


def test_without_steps_there_is_no_share() -> None:
    (finding,) = price([_finding("x", (0, None, 0, 10))], STEPS.clear())
    assert (finding.recoverable_ns_per_step, finding.recoverable_share, finding.severity) == (10, None, "warning")


def test_the_step_time_leaves_open_ends_out_unless_there_is_nothing_else() -> None:
    assert step_time_ns(STEPS) == 1100
    assert step_time_ns(_steps((0, 1, 0, 700, True))) == 700
    assert step_time_ns(STEPS.clear()) is None
