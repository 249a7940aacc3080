"""Stragglers in the sample runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from inmemory import MemoryRank, ask, gpu, steps

from tracetool.run import open_run

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result

stragglers = import_module("tracetool.analyses.stragglers")
NAMES = {"rank", "self_ns", "lateness_ns", "caused_wait_ns", "cost_ns", "persistence", "cause"}


def sample(repository: Path, name: str) -> Result:
    with open_run(repository / "sample_traces" / name, engine="serial", cache="off") as run:
        result: Result = run.results["stragglers"]
    return result


def test_the_healthy_sample_names_nobody(repository: Path) -> None:
    result = sample(repository, "healthy")
    assert set(result.tables["ranks"].columns) >= NAMES
    assert {"slowdown", "slowdown_paper", "replay_error", "worst_rank"} <= set(result.metrics)
    assert result.metrics["worst_rank"] is None
    assert result.tables["ranks"]["cause"].null_count() == 8
    assert result.findings == []
    assert result.tables["ranks"]["cost_ns"].abs().max() < 50_000  # type: ignore[operator] # a number


def test_the_troubled_sample_names_its_two_and_nobody_else(repository: Path) -> None:
    result = sample(repository, "troubled")
    causes = dict(result.tables["ranks"].select("rank", "cause").drop_nulls().iter_rows())
    assert causes == {2: "host", 5: "device"}
    assert abs(result.metrics["replay_error"]) < 0.001  # type: ignore[arg-type] # a number
    cost = {row[0]: row[1:] for row in result.tables["ranks"].select("rank", "cost_ns", "cost_after_ns").iter_rows()}
    # rank 2's lateness hides behind rank 5 while that is slow
    assert cost[2][0] == pytest.approx(0, abs=10_000)
    assert cost[2][1] == pytest.approx(5_940_000, rel=0.02)
    assert cost[5][0] == pytest.approx(3_920_000, rel=0.02)
    assert [finding.where.ranks for finding in result.findings] == [(2,), (5,)]


def test_one_rank_alone_is_not_compared() -> None:
    rank = MemoryRank(0, {"gpu": gpu((0, 10, "compute")), "steps": steps((1, 0, 10))})
    result = ask(stragglers, [rank])
    assert result.status == "skipped"
    assert "peers" in result.reason
