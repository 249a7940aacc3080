"""Shares of peak: several formats, missing ranks, sums beyond 64 bits."""

from __future__ import annotations

from fractions import Fraction

import polars as pl
import pytest

from tracetool.mfu import utilization
from tracetool.tables import frame

H100 = "NVIDIA H100 80GB HBM3"
DAY_NS = 1_000_000_000


def ranks(*names: str | None) -> pl.DataFrame:
    return frame("ranks", {"rank": range(len(names)), "device_name": names, "format": ["kineto"] * len(names)})


def flops(*rows: tuple[int, int | None, str, int]) -> pl.DataFrame:
    """Return FLOPs from (rank, step, format, FLOPs); all measures equal."""
    return pl.DataFrame(
        [(rank, step, dtype, dtype, *[value] * 4) for rank, step, dtype, value in rows],
        schema={"rank": pl.Int32, "step": pl.Int32, "dtype": pl.String, "peak_dtype": pl.String}
        | dict.fromkeys(utilization.MEASURES, pl.Int64),
        orient="row",
    )


def windows(*rows: tuple[int, int | None, int]) -> pl.DataFrame:
    schema = {"rank": pl.Int32, "step": pl.Int32, "open_end": pl.Boolean, "window_ns": pl.Int64}
    return pl.DataFrame([(rank, step, False, ns) for rank, step, ns in rows], schema=schema, orient="row")


def run(
    counted: pl.DataFrame, steps: pl.DataFrame, names: list[str | None], given: float | None = None
) -> float | None:
    known = utilization.peaks(ranks(*names), counted["peak_dtype"].to_list(), given)
    rows = utilization.per_step(steps, counted, known)
    places = pl.DataFrame({"rank": range(len(names)), "stage": [None] * len(names), "stages": [1] * len(names)})
    judged = utilization.sample(places, len(names), experts=False)
    return utilization.totals(rows, judged).utilization("model_full")


def test_one_format() -> None:
    half = round(989.4e12 / 2)
    assert run(flops((0, 1, "bf16", half)), windows((0, 1, DAY_NS)), [H100]) == pytest.approx(0.5)


def test_several_formats_are_each_held_against_their_own_peak() -> None:
    """FP8 linears with bf16 attention: the time both take at their peaks, by the step's time."""
    counted = flops((0, 1, "bf16", round(0.2 * 989.4e12)), (0, 1, "fp8", round(0.3 * 1979e12)))
    assert run(counted, windows((0, 1, DAY_NS)), [H100]) == pytest.approx(0.5)


def test_run_is_sum_by_sum_not_a_mean_of_shares() -> None:
    work = round(989.4e12 / 4)
    counted = flops((0, 1, "bf16", work), (0, 2, "bf16", work))
    assert run(counted, windows((0, 1, DAY_NS), (0, 2, 3 * DAY_NS)), [H100]) == pytest.approx(0.5 / 4)


def test_ranks_on_different_devices() -> None:
    counted = flops((0, 1, "bf16", round(989.4e12 / 2)), (1, 1, "bf16", round(312e12 / 4)))
    steps = windows((0, 1, DAY_NS), (1, 1, DAY_NS))
    assert run(counted, steps, [H100, "NVIDIA A100-SXM4-80GB"]) == pytest.approx(0.375)


@pytest.mark.parametrize("name", ["", None, "NVIDIA H100", "AMD Radeon Graphics"])
def test_an_unknown_device_has_no_share_and_none_of_infinity(name: str | None) -> None:
    counted = flops((0, 1, "bf16", 10**15))
    assert run(counted, windows((0, 1, DAY_NS)), [name]) is None
    assert run(counted, windows((0, 1, DAY_NS)), [name], 2000.0) == pytest.approx(0.5)


def test_a_given_peak_wins_over_the_table() -> None:
    counted = flops((0, 1, "bf16", 10**14))
    assert run(counted, windows((0, 1, DAY_NS)), [H100], 500.0) == pytest.approx(0.2)


def test_a_format_without_a_peak_hides_the_share_unless_it_is_negligible() -> None:
    much = flops((0, 1, "bf16", 10**14), (0, 1, "fp64", 10**13))
    little = flops((0, 1, "bf16", 10**14), (0, 1, "fp64", 10**10))
    steps = windows((0, 1, DAY_NS))
    assert run(much, steps, [H100]) is None
    assert run(little, steps, [H100]) == pytest.approx(1e14 / 989.4e12)


def test_one_window_without_a_step_number() -> None:
    assert run(flops((0, None, "bf16", round(989.4e12))), windows((0, None, DAY_NS)), [H100]) == pytest.approx(1.0)


def place(*rows: tuple[int, int | None, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"rank": pl.Int32, "stage": pl.Int32, "stages": pl.Int32}, orient="row")


@pytest.mark.parametrize(
    ("places", "world", "experts", "reason"),
    [
        pytest.param(place((0, None, 1)), 8, False, "", id="rank 0 of a data-parallel run"),
        pytest.param(place((0, 0, 2)), 8, False, "1 of 2 pipeline stages", id="rank 0 of a pipeline"),
        pytest.param(place((0, 0, 2), (1, 0, 2)), 8, False, "1 of 2 pipeline stages", id="two ranks of one stage"),
        pytest.param(place((0, None, 2)), 8, False, "none of 2 pipeline stages", id="stage not known"),
        pytest.param(place((0, 0, 2), (4, 1, 2)), 8, False, "", id="one rank of each stage"),
        pytest.param(place((0, None, 1)), 8, True, "model with experts", id="rank 0 with experts"),
        pytest.param(place((0, None, 1)), 1, True, "", id="the only rank with experts"),
        pytest.param(place((0, None, 2), (1, None, 2)), 2, False, "", id="all ranks, stages not known"),
    ],
)
def test_whether_ranks_stand_for_the_job(places: pl.DataFrame, world: int, *, experts: bool, reason: str) -> None:
    judged = utilization.sample(places, world, experts=experts)
    assert reason in judged.reason
    assert bool(judged.reason) == bool(reason)


def test_stages_weigh_the_same_however_many_ranks_of_each_were_read() -> None:
    counted = flops((0, 1, "bf16", 100), (1, 1, "bf16", 100), (2, 1, "bf16", 400))
    steps = windows((0, 1, DAY_NS), (1, 1, DAY_NS), (2, 1, DAY_NS))
    judged = utilization.sample(place((0, 0, 2), (1, 0, 2), (2, 1, 2)), 8, experts=False)
    known = utilization.peaks(ranks(H100, H100, H100), ["bf16"], 1e-12)
    found = utilization.totals(utilization.per_step(steps, counted, known), judged)
    assert found.job_step["model_full"] == 8 * 250
    assert found.utilization("model_full") == pytest.approx(250)
    assert found.rank_steps == Fraction(2)


def test_flops_of_a_large_job_do_not_overflow() -> None:
    each = 2**62
    counted = flops(*((rank, 1, "bf16", each) for rank in range(4)))
    steps = windows(*((rank, 1, DAY_NS) for rank in range(4)))
    known = utilization.peaks(ranks(*[H100] * 4), ["bf16"], None)
    judged = utilization.sample(place(*((rank, None, 1) for rank in range(4))), 4096, experts=False)
    found = utilization.totals(utilization.per_step(steps, counted, known), judged)
    assert found.job_step["full"] == 4096 * each
    assert found.utilization("full") == pytest.approx(each / 989.4e12)


def test_the_mean_step_is_exact() -> None:
    counted = flops((0, 1, "bf16", 10), (0, 2, "bf16", 20))
    steps = windows((0, 1, DAY_NS), (0, 2, DAY_NS))
    known = utilization.peaks(ranks(H100), ["bf16"], None)
    judged = utilization.sample(place((0, None, 1)), 4, experts=False)
    assert utilization.totals(utilization.per_step(steps, counted, known), judged).job_step["full"] == 60
