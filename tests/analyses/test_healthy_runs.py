"""Findings on simulated runs: a healthy run is told nothing grave, a troubled one what troubles it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from simulator import Config, Stall, simulate

import tracetool

if TYPE_CHECKING:
    from pathlib import Path

QUESTIONS = ("budget", "overlap", "phases", "kernels", "timeline", "host")
DATA_PARALLEL = Config(pp=1, tp=1, dp=2)
HEALTHY = {
    "3d": Config(),
    "ddp": DATA_PARALLEL,
    "fsdp": DATA_PARALLEL.replace(dp_mode="fsdp", recompute=True),
    "tensor parallel": Config(dp=1, pp=1, tp=4),
    "gpipe": Config(schedule="gpipe", pp=4, tp=1, dp=1),
    "one gpu": Config(pp=1, tp=1, dp=1),
    "jitter": DATA_PARALLEL.replace(jitter=0.02, host_jitter=0.05, unrecorded_steps=1, sync_step=False, steps=3),
}
TROUBLED = {
    "host.dataloader": DATA_PARALLEL.replace(stalls=(Stall(1, 500_000, "dataloader"),)),
    "host.sync": DATA_PARALLEL.replace(stalls=(Stall(1, 300_000, "sync"),)),
    "host.python": DATA_PARALLEL.replace(stalls=(Stall(1, 600_000, "gc"),)),
}


def grave(folder: Path) -> list[str]:
    """Return the ids of findings above info; every question must have been answered or skipped with a reason."""
    with tracetool.open_run(folder, engine="serial", cache="off") as run:
        results = [run.results[name] for name in QUESTIONS]
    assert [r.reason for r in results if r.status == "error"] == []
    assert all(r.reason for r in results if r.status == "skipped")
    return [f.id for r in results for f in r.findings if f.severity != "info"]


@pytest.mark.parametrize("ranks", [None, [0]], ids=["all ranks", "rank 0 alone"])
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_no_warning(tmp_path: Path, name: str, ranks: list[int] | None) -> None:
    simulate(HEALTHY[name]).write_kineto(tmp_path, ranks)
    assert grave(tmp_path) == []


@pytest.mark.parametrize("finding", TROUBLED)
def test_a_stall_of_one_host_is_found_with_its_cause(tmp_path: Path, finding: str) -> None:
    simulate(TROUBLED[finding]).write_kineto(tmp_path)
    assert grave(tmp_path) == [finding]
