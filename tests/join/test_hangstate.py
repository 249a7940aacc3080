"""Ranks as text, groups by name and ranks, counters believed only where they can be, dumps of several starts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
from hang_harness import diagnose, read
from hypothesis import given
from hypothesis import strategies as st
from simulator_hangs.job import Config, simulate
from simulator_hangs.recorder import Style, write

from tracetool.join.hangstate import by_order, rank_text, ranks_of

if TYPE_CHECKING:
    from pathlib import Path


@given(st.sets(st.integers(0, 300)))
def test_rank_text_is_read_back(ranks: set[int]) -> None:
    assert ranks_of(rank_text(ranks)) == tuple(sorted(ranks))


def test_rank_text_reads_well() -> None:
    assert rank_text([9, 14]) == "9,14"
    assert rank_text([8, *range(10, 14), 15]) == "8,10-13,15"
    assert rank_text(range(0, 64, 8)) == "0-56:8"
    assert rank_text([1, 3, 5]) == "1,3,5"
    assert rank_text([]) == ""


def test_local_numbers_and_names_pair_in_order() -> None:
    assert by_order(["0", "11", "5"], ["72", "0", "37"]) == {"0": "0", "5": "37", "11": "72"}
    assert by_order(["0"], ["0", "1"]) is None
    assert by_order(["0"], ["mesh_tp"]) is None


def test_groups_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    """A split can give several groups one name: rank 0 and 1 stand in another `tp` than 2 and 3."""
    job = simulate(Config(dp=2, tp=2, pp=1, fault="late", seed=5))
    renamed = [replace(group, name="1") if group.desc.startswith("TENSOR") else group for group in job.groups]
    job.groups = tuple(renamed)
    write(job, tmp_path, Style())
    metrics = diagnose(read(tmp_path)).metrics
    assert (metrics["cause"], metrics["culprits"]) == (job.cause, job.culprits)


def test_a_dump_of_an_earlier_start_is_left_aside(tmp_path: Path) -> None:
    """The rank that died left no dump; the one found is of the start before, hours older."""
    job = simulate(Config(dp=4, tp=1, pp=1, fault="dead", seed=3))
    write(job, tmp_path, Style())
    (culprit,) = job.culprits
    job.alive.add(culprit)
    before = tmp_path / "before"
    before.mkdir()
    write(job, before, Style())
    hours = 10 * 3600 * 10**9
    old = [
        {
            name: table.with_columns(
                pl.col("^(created_unix_ns|newest_unix_ns|file_unix_ns|completed_unix_ns)$") - hours
            )
            for name, table in tables.items()
        }
        for tables in read(before)
        if tables["ranks"]["rank"].item() == culprit
    ]
    result = diagnose([*read(tmp_path), *old])
    assert (result.metrics["cause"], result.metrics["culprits"]) == ("no_dump", (culprit,))
    assert "earlier start" in result.tables["coverage"]["state"].to_list()


def test_of_two_dumps_of_a_rank_the_newer_counts(tmp_path: Path) -> None:
    job = simulate(Config(dp=4, tp=1, pp=1, fault="late", seed=4))
    write(job, tmp_path, Style())
    sources = read(tmp_path)
    hours = 10 * 3600 * 10**9
    before = [
        {
            name: table.with_columns(
                pl.col("^(created_unix_ns|newest_unix_ns|file_unix_ns|completed_unix_ns)$") - hours,
                **({"source": pl.lit("before/x").cast(table.schema["source"])} if "source" in table.columns else {}),
            )
            for name, table in tables.items()
        }
        for tables in sources
    ]
    metrics = diagnose([*before, *sources]).metrics
    assert (metrics["cause"], metrics["culprits"]) == (job.cause, job.culprits)
