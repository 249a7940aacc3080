"""Numbers and names as text."""

from __future__ import annotations

import math

import pytest

from tracetool.units import ABSENT, absent, cell, clean, figure, heading, ranges, scale, short, unit_of


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "ns", "0 ns"),
        (999, "ns", "999 ns"),
        (1500, "ns", "1.50 µs"),
        (4_120_000_000, "ns", "4120 ms"),
        (43_000_000_000, "ns", "43.0 s"),
        (0.1234, "share", "12.3 %"),
        (81_559_814_144, "bytes", "81.6 GB"),
        (7, "count", "7"),
        (12_345, "count", "12 345"),
        (989.4, "tflops", "989 TFLOP/s"),
        (0.000572, "tflops", "572 MFLOP/s"),
        (0.25, "gbs", "250 MB/s"),
        (47_185_920, "flops", "47.2 MFLOP"),
        (105_553_116_266_496, "flops", "106 TFLOP"),
        (-30_000, "ns", "−30.0 µs"),
        (None, "ns", ABSENT),
        (math.nan, "share", ABSENT),
        ("rank 3 \x1b[31mred", "text", "rank 3 \ufffd[31mred"),
        ((0, 1, 2, 7), "count", "0-2, 7"),
        ((), "count", "none"),
    ],
)
def test_figure(value: float | str | tuple[int, ...] | None, unit: str, text: str) -> None:
    assert figure(value, unit).replace("\u00a0", " ").replace("\u202f", " ") == text


def test_a_column_is_scaled_by_its_largest_value() -> None:
    chosen = scale([1_000_000, 2_410_000_000, None], "ns")
    assert chosen.unit == "ms"
    assert [chosen.number(v) for v in (1_000_000, 2_410_000_000)] == ["1.0", "2410.0"]


def test_units_come_from_the_end_of_a_name() -> None:
    named = {"window_ns": "ns", "step_ns_p50": "ns", "compute_share": "share", "share_of_peak": "share",
             "mfu": "share", "busbw_gbs": "gbs", "rank": "", "patterns": "", "flops_causal": "flops",
             "hardware_flops_causal": "flops", "lost_ns_per_step": "ns", "tflops_per_gpu": "tflops",
             "bubble_ratio": "ratio"}  # fmt: skip
    assert {name: unit_of(name) for name in named} == named
    assert heading("exposed_comm_ns") == "exposed comm"
    assert heading("step_ns_p50") == "step p50"
    assert heading("share_of_flops") == "share of flops"
    assert heading("tflops") == "rate"
    assert heading("flops_causal") == "work causal"
    assert heading("hardware_flops_causal") == "hardware causal"
    assert heading("lost_ns_per_step") == "lost per step"
    assert heading("bubble_ratio") == "bubble ratio"


def test_long_names_keep_both_ends() -> None:
    cut = short("a" * 50 + "b" * 50)
    assert len(cut) == 64
    assert cut.startswith("aaa")
    assert cut.endswith("bbb")
    assert "…" in cut


def test_what_would_act_on_the_readers_screen_is_removed() -> None:
    assert clean("a\x1b]0;title\x07b\u202ec\nd") == "a\ufffd]0;title\ufffdb\ufffdc d"


def test_lists_of_ranks_collapse_and_others_do_not() -> None:
    assert ranges([0, 1, 2, 3, 7, 9, 10]) == ["0-3", "7", "9-10"]
    assert cell([0, 1, 2]) == "0-2"
    assert cell(["x", None]) == f"x, {ABSENT}"
    assert cell(list(range(0, 80, 2))).endswith("… 40 in all")


@pytest.mark.parametrize(
    ("present", "size", "missing"),
    [
        ([], 0, []),
        ([], 3, ["0-2"]),
        ([0, 1, 2], 3, []),
        ([2, 0, 9, -1], 5, ["1", "3-4"]),
        ([1], 10**12, ["0", f"2-{10**12 - 1}"]),
    ],
)
def test_what_is_absent(present: list[int], size: int, missing: list[str]) -> None:
    assert absent(present, size) == missing
