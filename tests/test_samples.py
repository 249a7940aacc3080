"""The sample runs: healthy ones warn of nothing and name nobody, the troubled one shows what was put there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import tracetool

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("sample", ["healthy", "ddp_gloo", "fsdp_gloo"])
def test_a_healthy_run_warns_of_nothing(repository: Path, sample: str) -> None:
    run = tracetool.open_run(repository / "sample_traces" / sample, cache="off")
    assert [finding.title for finding in run.findings if finding.severity != "info"] == []
    assert {name for name, result in run.results.items() if result.status == "error"} == set()


@pytest.mark.parametrize("sample", ["ddp_gloo", "fsdp_gloo"])
def test_a_run_on_the_cpu_says_what_it_can(repository: Path, sample: str) -> None:
    run = tracetool.open_run(repository / "sample_traces" / sample, cache="off")
    assert run.ranks == [0, 1, 2, 3]
    assert run.view.world_size == 4
    assert {"phases", "memory", "mfu"} <= {name for name, result in run.results.items() if result.status == "ok"}
    assert run.results["memory"].metrics["peak_reserved_bytes"] is None
    phases = run.results["phases"].tables["phases"]
    assert {"forward", "backward", "optimizer", "dataloader"} <= set(phases["phase"].to_list())
    assert "ProfilerActivity.CUDA" in run.results["budget"].reason


def test_the_troubled_run_shows_its_troubles(repository: Path) -> None:
    run = tracetool.open_run(repository / "sample_traces" / "troubled", cache="off")
    assert run.results["stragglers"].metrics["worst_rank"] == 2
    named = {rank for finding in run.findings if finding.analysis == "stragglers" for rank in finding.where.ranks}
    assert named == {2, 5}
    titles = " / ".join(finding.title for finding in run.findings)
    assert "data loader" in titles
    assert "dp communication" in titles
