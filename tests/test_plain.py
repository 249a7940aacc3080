"""Markdown, terminal, and single results as text."""

from __future__ import annotations

import csv
import io

import pytest
from reports import HOSTILE, budget, kernels, report

from tracetool.errors import UsageError
from tracetool.plain import render_markdown, render_result, render_results, render_table, render_terminal
from tracetool.results import skipped


def test_markdown_holds_the_first_screen_and_no_markup_of_the_trace() -> None:
    text = render_markdown(report())
    assert text.startswith("# llama-70b-run-17\n")
    assert "| compute | 58.5\u00a0% | 2410\u00a0ms |" in text
    assert "up to 410\u00a0ms" in text
    assert "<img" not in text
    assert "plain\\|pipe \\`tick\\` \\*star\\*" in text
    assert "skipped: no memory events" in text


def test_the_terminal_summary_fits_and_has_no_colour_unless_asked() -> None:
    text = render_terminal(report(), color=False, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "Next: Enable overlap" in text
    assert HOSTILE in text
    assert "Not answered: Memory" in text
    assert "\x1b[" in render_terminal(report(), color=True, width=80)


def test_a_run_without_findings_says_so() -> None:
    assert "Nothing above 1 % of the step" in render_terminal(report(findings=()), color=False, width=100)


def test_csv_holds_every_row_unscaled() -> None:
    text = render_table(budget(ranks=64), "csv")
    blocks = [block.split("\n", 1) for block in text.split("# ")[1:]]
    by_rank = next(body for head, body in blocks if head == ".ranks")
    rows = list(csv.DictReader(io.StringIO(by_rank.strip())))
    assert len(rows) == 64
    assert rows[0]["compute_ns"] == "2410000000"


def test_lists_survive_csv() -> None:
    assert "0 1 2 3" in render_table(kernels(), "csv")


def test_a_wide_terminal_shows_the_whole_table_and_says_when_not() -> None:
    assert "40 of 240 rows" in render_table(budget(), "table")
    assert "58.5\u00a0%" in render_table(budget(), "table")


def test_results_come_in_one_text_with_what_was_skipped() -> None:
    text = render_results(report(), "table", width=100)
    assert "skipped: no memory events" in text
    assert "error: ValueError" in text


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="table, csv, md"):
        render_result(skipped("x"), "xml", name="n", title="t", width=80)
