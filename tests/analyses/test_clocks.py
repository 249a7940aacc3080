"""Clocks: the table, what is said of components and causality, and nothing where one clock is all there is."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import polars as pl
from inmemory import MemoryRank, run_view

from tracetool.join.clocks import RANKS_SCHEMA
from tracetool.settings import Settings

if TYPE_CHECKING:
    from tracetool.results import Result

clocks = import_module("tracetool.analyses.clocks")


def _ask(*rows: dict[str, Any], used: bool = True, checks: tuple[int, int, int] = (0, 0, 0)) -> Result:
    still = {
        "offset_ns": 0, "drift_ppm": 0.0, "t0_ns": 0, "residual_p50_ns": None, "residual_p95_ns": None, "samples": 0,
        "error_ns": None, "half_width_ns": 0, "component": 0, "basis": "reference", "base_unix_ns": 0,
    }  # fmt: skip
    joined = {
        "clocks": pl.DataFrame([{**still, **row} for row in rows], schema=RANKS_SCHEMA),
        "clock_checks": pl.DataFrame([checks], schema=["checked", "violated_before", "violated_after"], orient="row"),
        "clock_kinds": pl.DataFrame({"op": ["all_reduce"], "size": [2], "ends": [9], "scale_ns": [5], "used": [used]}),
    }
    result: Result = clocks.analyze({}, replace(run_view([]), joined=joined), Settings())
    return result


def test_the_table_holds_the_columns_of_the_document() -> None:
    result = _ask(
        {"rank": 0, "host": "a"},
        {"rank": 1, "host": "b", "offset_ns": -70, "drift_ppm": 3.0, "basis": "collectives", "residual_p95_ns": 900},
        checks=(10, 4, 0),
    )
    table = result.tables["ranks"]
    assert {"rank", "host", "offset_ns", "drift_ppm", "t0_ns", "residual_p95_ns", "component"} <= set(table.columns)
    assert table["rank"].to_list() == [0, 1]
    assert result.metrics["offset_ns_max"] == 70
    assert result.metrics["drift_ppm_max"] == 3.0
    assert result.metrics["components"] == 1
    assert "4 of 10 communications across hosts were impossible by the files' clocks, 0 after" in result.notes[0]
    assert result.headline[0].value == 70
    assert result.headline[0].note == "over 2 hosts; ends agree to 900 ns (p95)"


def test_components_and_what_only_messages_join_are_told() -> None:
    result = _ask(
        {"rank": 0, "host": "a"},
        {"rank": 1, "host": "b", "offset_ns": 5000, "basis": "p2p", "half_width_ns": 40_000},
        {"rank": 2, "host": "c", "component": 1, "basis": "alone"},
    )
    text = " ".join(result.notes)
    assert "2 groups of hosts share no communication" in text
    assert "1 hosts stand alone" in text
    assert "± 40 µs" in text
    assert "confidence low" in text


def test_one_host_needs_no_alignment_and_refused_operations_are_named() -> None:
    result = _ask({"rank": 0, "host": "a"}, {"rank": 1, "host": "a"}, used=False)
    assert result.notes[0] == "All ranks are on one host and share its clock."
    assert "all_reduce of 2 ranks" in result.notes[1]
    assert result.metrics["offset_ns_max"] is None


def test_one_rank_has_nothing_to_compare() -> None:
    assert _ask({"rank": 0, "host": "a"}).status == "skipped"
    assert clocks.analyze({}, run_view([]), Settings()).status == "skipped"
    several = clocks.analyze({}, run_view([MemoryRank(0, {}), MemoryRank(1, {})]), Settings())
    assert several.status == "skipped"
    assert "not compared across ranks" in several.reason
