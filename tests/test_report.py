"""The page: what it holds, what it must not hold, how large it is, and how it reaches the disk."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from reports import HOSTILE, LONG, budget, finding, pictures, report, timeline, view

from tracetool.document import document
from tracetool.errors import UsageError
from tracetool.grid import grid
from tracetool.outline import verdict
from tracetool.page import HARD_LIMIT_BYTES, TARGET_BYTES, _blocks, render_page
from tracetool.report import refuse_overwrite, render_html, render_markdown, write
from tracetool.results import Headline, Result

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.document import Report

FACTORS = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9, "%": 0.01, "kB": 1e3, "MB": 1e6, "GB": 1e9, "B": 1}


class Outline(HTMLParser):
    """Collects tags, ids, links and the cells of data tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.heads: dict[str, list[tuple[str, str]]] = {}
        self._table = ""
        self._cell: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag == "table":
            self._table = given.get("data-table") or ""
            self.tables.setdefault(self._table, [])
            self.heads.setdefault(self._table, [])
        elif tag == "tr" and self._table:
            self.tables[self._table].append([])
        elif tag == "th" and self._table:
            self.heads[self._table].append((given.get("title") or "", ""))
            self._cell = []
        elif tag == "td":
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if self._cell is None or not self._table:
            return
        text = "".join(self._cell)
        if tag == "td":
            self.tables[self._table][-1].append(text)
            self._cell = None
        elif tag == "th":
            name, _ = self.heads[self._table][-1]
            self.heads[self._table][-1] = (name, text.rpartition(", ")[2] if ", " in text else "")
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)


def attributes(page: str, name: str) -> list[str]:
    return [value for _, given in Outline(page).tags for key, value in given.items() if key == name and value]


def test_the_policy_names_the_one_script_and_the_one_style() -> None:
    page = render_html(report())
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(blocks) == 1
        digest = base64.b64encode(hashlib.sha256(blocks[0].encode()).digest()).decode()
        assert f"{directive} &#39;sha256-{digest}&#39;" in page


def test_nothing_is_fetched_and_nothing_runs_from_an_attribute() -> None:
    made = Outline(render_html(report()))
    for tag, given in made.tags:
        assert not [name for name in given if name == "style" or name.startswith("on")], tag
        for name in ("src", "href"):
            assert re.match(r"#|data:image/png;base64,", given.get(name) or "#"), given
    assert not {tag for tag, _ in made.tags} & {"link", "iframe", "object", "embed", "form", "base"}


def test_hostile_names_stay_text() -> None:
    page = render_html(report(command=f"tracetool report '{HOSTILE}'"))
    assert HOSTILE not in page
    assert "onerror" not in "".join(name for _, given in Outline(page).tags for name in given)
    assert page.count("</script>") == page.count("<script")


def test_ids_are_unique_and_anchors_resolve() -> None:
    page = render_html(report())
    ids = attributes(page, "id")
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in attributes(page, "href")} <= set(ids)


def number(text: str) -> float:
    return float(text.replace("\u202f", "").replace("−", "-"))


def test_every_number_in_a_table_is_in_the_document() -> None:
    made = report()
    page, twin = Outline(render_html(made)), document(made)
    checked = 0
    for table, rows in page.tables.items():
        if not table:
            continue
        section, _, name = table.partition(".")
        rows_of: list[dict[str, Any]]
        rows_of = twin[name] if section == "quality" else twin["results"][section]["tables"][name]
        for place, (column, unit) in enumerate(page.heads[table]):
            known = [row[column] for row in rows_of if isinstance(row[column], int | float)]
            for row in rows[1:]:
                text = row[place]
                if not re.fullmatch(r"[−\d.\u202f]+", text) or not known:
                    continue
                value, factor = number(text), FACTORS.get(unit, 1)
                slack = factor * 0.5 * 10 ** -len(text.partition(".")[2]) * 1.0001
                assert min(abs(value * factor - one) for one in known) <= slack, (table, column, text)
                checked += 1
    assert checked > 500


def test_the_first_screen_says_the_answer() -> None:
    page = render_html(report())
    assert "<title>MFU 38.2\u00a0% · llama-70b-run-17 · tracetool</title>" in page
    assert page.count("<h1>") == 1
    unknown = replace(pictures(), headline=[Headline("MFU", None, "share", 0)])
    assert "<title>llama-70b-run-17 · tracetool</title>" in render_html(report(results={"mfu": unknown}))
    assert page.index('class="verdict"') < page.index("Where a step goes") < page.index('id="what-to-fix"')


def said(made: Report) -> str:
    return "".join(piece.text for piece in verdict(made)).replace("\u00a0", " ")


def test_the_verdict_names_the_two_largest_causes_or_none() -> None:
    assert "Reduce-scatter 1 is not hidden behind compute (up to 410 ms, 10.2 % of the step). Second:" in said(report())
    assert said(report(findings=())).startswith("Nothing above 1 % of the step stands out.")
    assert said(report(results={})).startswith("None of the questions")
    worthwhile = [finding(1, ns=400_000_000, severity="info"), finding(2, ns=4_000, severity="info")]
    assert said(report(findings=worthwhile)).startswith("Largest cause of lost time: Reduce-scatter 1")
    assert "Reduce-scatter 2" not in said(report(findings=worthwhile))


def test_states_are_told_apart() -> None:
    page = render_html(report())
    assert "This analysis failed." in page
    assert "No memory events in the traces. Record with torch.profiler.profile(profile_memory=True)." in page
    assert 'id="not-answered"' in page
    assert 'id="not-answered"' not in render_html(report(results={"budget": budget()}))


def test_no_finding_and_no_result_still_make_a_page() -> None:
    page = render_html(report(findings=(), results={}))
    assert "No finding" in page
    assert "None of the questions" in page


def test_small_findings_fold_away() -> None:
    findings = [finding(1, ns=410_000_000), *(finding(n, ns=1000, severity="info") for n in range(2, 9))]
    page = render_html(report(findings=findings))
    assert "7 more, smaller" in page
    assert 'id="finding-8"' in page


def test_data_quality_names_what_is_missing() -> None:
    page = render_html(report(run=view(4, 8, complete=False)))
    assert "<strong>Damaged</strong>: 1 of 4 files read in part." in page
    assert '<span class="whole">4-7</span>' in page


def test_a_table_stands_beside_every_canvas_and_png() -> None:
    page = render_html(report())
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    pictured = [text for text in figures if "<canvas" in text or "<img" in text]
    assert len(pictured) == 2
    assert all("data-table=" in text for text in pictured)


def test_long_names_are_cut_and_kept_whole_in_the_title() -> None:
    page = render_html(report())
    assert f'title="{html.escape(LONG)}"' in page


def test_sentences_in_tables_stay_whole() -> None:
    run = view()
    note = "A sentence about what was dropped, repaired or assumed that is longer than any name may stand in a cell."
    run = replace(run, quality=run.quality.with_columns(note=pl.lit(note)))
    assert f">{note}<" in render_html(report(run=run))


def test_tables_are_capped_and_say_so() -> None:
    assert "rows; all in the JSON" in render_html(report())
    shown = grid(budget().tables["per_rank_step"], 5, longest="window_ns")
    assert (len(shown.rows), shown.total) == (5, 240)


def test_64_ranks_and_100_000_slices_fit_the_budget() -> None:
    page = render_page(report(64, 100_000))
    assert len(page.html.encode()) <= TARGET_BYTES
    assert page.notes == ()


def test_above_the_hard_limit_the_timeline_thins_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracetool.page.TARGET_BYTES", 100_000)
    monkeypatch.setattr("tracetool.page.HARD_LIMIT_BYTES", 150_000)
    page = render_page(report(results={"timeline": timeline(4, 40_000)}))
    assert len(page.html.encode()) <= 150_000 < HARD_LIMIT_BYTES
    assert "left out of the timeline" in page.notes[0]
    assert "left out of the timeline" in page.html


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render_html(report()) == render_html(report())
    assert render_markdown(report()) == render_markdown(report())


def test_a_docstring_becomes_paragraphs_and_shaped_blocks() -> None:
    assert _blocks("One\nline `x`.\n\n- a\n- b") == [
        ("p", [(False, "One line "), (True, "x"), (False, ".")]), ("pre", [(False, "- a\n- b")]),
    ]  # fmt: skip


def test_a_result_without_tables_or_charts_is_a_section() -> None:
    assert 'id="bare"' in render_html(report(results={"bare": Result()}))


def test_files_are_written_whole_and_never_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write(path, "one")
    with pytest.raises(UsageError, match="--force"):
        write(path, "two")
    assert path.read_text() == "one"
    write(path, "two ü", force=True)
    assert path.read_text(encoding="utf-8") == "two ü"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path / "report.html", "\udcff")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make it first"):
        refuse_overwrite(tmp_path / "nowhere" / "report.html", force=False)
    with pytest.raises(UsageError, match="is a directory"):
        refuse_overwrite(tmp_path, force=True)


def test_no_name_of_an_analysis_collides_with_the_pages_own_ids() -> None:
    names = ("findings", "quality", "provenance", "main", "verdict")
    ids = attributes(render_html(report(results=dict.fromkeys(names, Result()))), "id")
    assert set(names) <= set(ids)
    assert len(ids) == len(set(ids))


def test_a_place_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(UsageError, match=r"x\.html cannot be written: Permission denied"):
        write(tmp_path / "x.html", "text")
