"""The JSON document: names, nulls, bytes."""

from __future__ import annotations

import json

import polars as pl
import pytest
from reports import finding, report, view

from tracetool.document import SAVING_ROWS, document, run_facts, to_json
from tracetool.results import SAVING_SCHEMA, Result


def test_the_document_has_the_agreed_names() -> None:
    made = json.loads(to_json(document(report())))
    assert {"schema_version", "tracetool", "run", "sources", "results", "findings"} <= set(made)
    assert made["schema_version"] == 1
    assert made["tracetool"] == {"version": "0.1.0"}
    assert {"path", "ranks", "world_size", "steps", "formats", "devices", "complete"} <= set(made["run"])
    assert {"path", "format", "ranks", "events", "dropped", "repaired", "notes"} <= set(made["sources"][0])
    assert made["sources"][0]["notes"] == ["rank assumed"]
    assert {"status", "reason", "title", "headline", "metrics", "tables", "findings"} <= set(made["results"]["budget"])
    assert made["results"]["budget"]["headline"][0] == ["Step time, median", 4_120_000_000, "ns", 10]


def test_what_is_no_number_is_null() -> None:
    made = json.loads(to_json(document(report())))
    assert made["results"]["budget"]["metrics"]["odd"] is None
    assert [row["gpu_share"] for row in made["results"]["kernels"]["tables"]["kernels"]] == [0.61, 0.333, None, None]


def test_enums_categories_and_lists_are_written() -> None:
    table = pl.DataFrame({"name": pl.Series(["a", None], dtype=pl.Categorical), "on": [[1, 2], None]})
    made = document(report(results={"one": Result(tables={"t": table}, metrics={"culprits": (1, 2)})}))
    assert json.loads(to_json(made))["results"]["one"]["tables"]["t"] == [
        {"name": "a", "on": [1, 2]}, {"name": None, "on": None},
    ]  # fmt: skip
    assert made["results"]["one"]["metrics"]["culprits"] == [1, 2]


def test_a_finding_has_every_field_and_its_price() -> None:
    saving = pl.DataFrame({"rank": 0, "step": range(500), "at_ns": 0, "ns": 1}, schema_overrides=SAVING_SCHEMA)
    unpriced = finding(1, saving=saving)
    priced = finding(1, ns=9, saving=saving)
    made = document(report(results={"budget": Result(findings=[unpriced])}, findings=[priced]))
    one = made["findings"][0]
    assert set(one) == {
        "id", "analysis", "severity", "title", "detail", "recoverable_ns_per_step", "recoverable_share", "price_basis",
        "confidence", "confidence_why", "evidence", "where", "advice", "saving", "saving_rows",
    }  # fmt: skip
    assert one["where"] == {"ranks": [0, 1, 2, 3, 7], "stages": [], "steps": [1, 2], "window_ns": [5, 9]}
    assert one["evidence"] == [{"table": "mean_step", "rows": [0]}]
    assert (len(one["saving"]), one["saving_rows"]) == (SAVING_ROWS, 500)
    assert made["results"]["budget"]["findings"] == made["findings"]


@pytest.mark.parametrize(
    ("ranks", "world", "whole", "complete"),
    [(4, 4, True, True), (4, None, True, True), (4, 5, True, False), (4, 4, False, False)],
)
def test_complete_means_every_rank_and_every_file(ranks: int, world: int, *, whole: bool, complete: bool) -> None:
    facts = run_facts(view(ranks, world, complete=whole))
    assert facts["complete"] is complete
    assert facts["ranks"] == [0, 1, 2, 3]
    assert facts["steps"] == [0, 1, 2]
    assert facts["recorded_unix_ns"] == 1_763_647_320_000_000_000


def test_the_same_report_gives_the_same_bytes() -> None:
    assert to_json(document(report())) == to_json(document(report()))
