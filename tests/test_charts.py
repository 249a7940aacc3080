"""Charts: every part where and as long as the table says."""

from __future__ import annotations

import re

import polars as pl
import pytest
from reports import HOSTILE, budget, kernels, pictures, timeline

from tracetool.charts import SLICES_WITH_WORDS, draw
from tracetool.results import Chart, Result


def widths(body: str, tag: str = "rect") -> list[float]:
    return [float(text) for text in re.findall(rf'<{tag}[^>]*? width="([\d.]+)%"', body)]


def test_the_parts_of_the_one_bar_sum_to_the_whole() -> None:
    result = budget()
    made = draw(result.charts[0], result.tables["mean_step"])
    parts = widths(made.body.split("<table")[0], 'svg x="[^"]*"')
    assert sum(parts) == pytest.approx(100, abs=0.05)
    assert parts[0] == pytest.approx(100 * 2_410 / 4_120, abs=0.01)
    assert "58.5\u00a0%" in made.body
    assert "url(#hatch)" in made.body


def test_stacks_share_one_scale() -> None:
    table = pl.DataFrame({"rank": [0, 1], "a_ns": [30, 60], "b_ns": [20, 40]})
    made = draw(Chart("stack", "t", "x", label="rank", y=("a_ns", "b_ns")), table)
    assert widths(made.body) == [30, 20, 60, 40]
    assert "rank 0" in made.body


def test_a_null_part_is_not_drawn() -> None:
    table = pl.DataFrame({"rank": [0, 1], "a_ns": [None, 60], "b_ns": [20, 40]})
    made = draw(Chart("stack", "t", "x", label="rank", y=("a_ns", "b_ns")), table)
    assert widths(made.body) == [20, 60, 40]


def test_bars_draw_the_part_over_its_pale_whole() -> None:
    made = draw(kernels().charts[0], kernels().tables["kernels"])
    assert widths(made.body)[:2] == [100, 91]
    assert 'fill-opacity="0.3"' in made.body


def test_a_bars_label_may_have_two_parts() -> None:
    table = pl.DataFrame({"op": ["aten::mm", "a::very_long_operator_name_with_backward"], "shape": ["2×3×4", "<1>"]})
    chart = Chart("bars", "t", "x", label="op", y=("n",), unit="count", options={"text": "shape"})
    made = draw(chart, table.with_columns(n=pl.Series([2, 1])))
    assert "<span>aten::mm</span> <span>2×3×4</span>" in made.body
    assert 'title="a::very_long_operator_name_with_backward &lt;1&gt;"' in made.body
    assert "<span>a::very_long_opera…_backward</span> <span>&lt;1&gt;</span>" in made.body


def test_a_waterfall_ends_in_its_total() -> None:
    table = pl.DataFrame({"part": ["a", "b", "sum"], "ns": [60, -20, 40]})
    made = draw(Chart("waterfall", "t", "x", label="part", y=("ns",)), table)
    assert re.findall(r'<rect x="([\d.]+)%" width="([\d.]+)%"', made.body) == [
        ("0", "100"), ("66.67", "33.33"), ("0", "66.67"),
    ]  # fmt: skip


def test_roofs_meet_where_bandwidth_reaches_the_peak() -> None:
    table = pl.DataFrame({"x": [1.0, 1000.0], "y": [1.0, 100.0]})
    chart = Chart(
        "scatter", "t", "x", x="x", y=("y",), unit="tflops", options={"log": True, "roof_tflops": 100, "roof_gbs": 1000}
    )
    made = draw(chart, table)
    lines = re.findall(r'<line x1="([\d.]+%)" y1="([\d.]+)" x2="([\d.]+%)" y2="([\d.]+)" stroke="c', made.body)
    assert lines[0][2:] == lines[1][:2]
    assert made.body.count("<circle") == 2


def test_lines_break_where_a_value_is_absent() -> None:
    table = pl.DataFrame({"at_ns": [0, 1, 2, 3, 4], "used_bytes": [1, 2, None, 3, 4]})
    made = draw(Chart("line", "t", "x", x="at_ns", y=("used_bytes",), unit="bytes"), table)
    assert made.body.count("<polyline") == 2


def test_a_gantt_of_thousands_of_slices_draws_each_as_part_of_its_lanes_path() -> None:
    count = SLICES_WITH_WORDS + 2
    table = pl.DataFrame(
        {"stage": ["0"] * count, "start_ns": range(0, 10 * count, 10), "dur_ns": [10] * (count - 1) + [5],
         "phase": ["forward", "bubble"] * (count // 2)}
    )  # fmt: skip
    made = draw(Chart("gantt", "t", "x", label="stage", x="start_ns", y=("dur_ns",), series="phase"), table)
    text = str(made.body)
    (path,) = re.findall(r'<path d="([^"]*)"', text)
    assert path.count("M") == path.count("z") == count // 2
    assert text.count("url(#hatch)") == count // 2  # a stretched hatch would be none
    assert "too thin to be labelled" in made.notes[0]


def test_a_gantt_places_slices_from_the_first_start() -> None:
    table = pl.DataFrame({"stage": [0, 1], "start_ns": [100, 150], "dur_ns": [50, 50], "phase": ["forward", "bubble"]})
    made = draw(Chart("gantt", "t", "x", label="stage", x="start_ns", y=("dur_ns",), series="phase"), table)
    assert re.findall(r'<rect x="([\d.]+)%" width="([\d.]+)%"', made.body) == [("0", "50"), ("50", "50")]
    assert [words for words, _ in made.legend] == ["bubble", "forward"]


def test_a_heat_map_without_a_signal_is_a_sentence() -> None:
    table = pl.DataFrame({"rank": [0, 1], "step": [0, 0], "window_ns": [100, 101]})
    made = draw(Chart("heat", "t", "x", label="rank", x="step", y=("window_ns",)), table)
    assert "<img" not in made.body
    assert "Nothing stands out" in made.body


def test_a_heat_map_names_its_coloured_rows_and_its_own_limits() -> None:
    table = pl.DataFrame({"rank": [0, 1, 2], "step": [1, 1, 1], "excess": [0.0, 2.0, 0.3]})
    chart = Chart("heat", "t", "x", label="rank", x="step", y=("excess",), unit="share", options={"least": 0.05})
    made = draw(chart, table)
    assert made.notes == ["Coloured: rank 1, 2."]
    assert made.legend[-1][0] == "50.0\N{NO-BREAK SPACE}% and more"
    assert "no value reaches" in draw(chart, table.with_columns(excess=pl.col("excess") / 100)).body


def test_a_heat_map_of_a_run_without_steps_is_a_sentence() -> None:
    table = pl.DataFrame({"rank": [0], "step": pl.Series([None], dtype=pl.Int32), "window_ns": [100]})
    made = draw(Chart("heat", "t", "x", label="rank", x="step", y=("window_ns",)), table)
    assert "<img" not in made.body


@pytest.mark.parametrize(
    ("chart", "said"),
    [
        (Chart("bars", "t", "x", label="nowhere", y=("n",)), "no column nowhere"),
        (Chart("bars", "t", "x", y=("n",)), "does not say its label"),
        (Chart("bullet", "t", "x", y=("n",)), "does not say its y"),
    ],
)
def test_a_chart_that_cannot_be_drawn_says_why(chart: Chart, said: str) -> None:
    made = draw(chart, pl.DataFrame({"n": [1]}))
    assert said in made.notes[0]
    assert not made.body


def test_no_table_and_no_row_say_so() -> None:
    chart = Chart("bars", "t", "x", label="n", y=("n",))
    assert "no table x" in draw(chart, None).notes[0]
    assert "no row" in draw(chart, pl.DataFrame({"n": []})).notes[0]


@pytest.mark.parametrize("result", [budget(), kernels(), pictures(), timeline()])
def test_no_chart_uses_what_the_policy_forbids(result: Result) -> None:
    for chart in result.charts:
        made = draw(chart, result.tables.get(chart.table))
        assert not re.search(r"\sstyle=|\son\w+=[\"']|<script|http", made.body)
        assert HOSTILE not in made.body


def test_flops_counted_in_a_chart_get_their_unit() -> None:
    table = pl.DataFrame({"op": ["mm"], "hardware_flops": [105_553_116_266_496]})
    made = draw(Chart("bars", "t", "x", label="op", y=("hardware_flops",), unit="count"), table)
    assert "106\u00a0TFLOP" in made.body
