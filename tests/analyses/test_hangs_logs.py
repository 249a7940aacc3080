"""Watchdog lines alone: planted faults over drawn worlds, without a single dump."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hang_harness import diagnose, parser
from simulator_hangs.job import FAULTS, Config, Job, simulate
from simulator_hangs.logs import write

from tracetool.registry import ParseOptions

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result


def drawn(seed: int, fault: str, *, pipeline: bool) -> Job:
    rng = random.Random(f"{seed} {fault}")  # noqa: S311 - a test
    dp, tp = rng.choice([(4, 1), (2, 2), (8, 1), (4, 2), (4, 4), (16, 2), (8, 8)])
    pp = rng.choice([2, 4]) if pipeline else 1
    return simulate(Config(dp, tp, pp, fault=fault, seed=rng.randrange(1 << 30), ahead=rng.choice([1, 2, 6])))


def verdict(job: Job, folder: Path) -> Result:
    path = folder / "job.log"
    write(job, path)
    return diagnose([parser("nccl_log").parse(path, ParseOptions("job.log"))])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fault", ["healthy", "late", "size", "type"])
def test_watchdog_lines_alone(tmp_path: Path, fault: str, seed: int) -> None:
    job = drawn(seed, fault, pipeline=seed % 2 == 1)
    metrics = verdict(job, tmp_path).metrics
    assert (metrics["cause"], metrics["culprits"]) == (job.cause, job.culprits), job.config


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("pipeline", [False, True])
def test_no_innocent_is_named(tmp_path: Path, fault: str, seed: int, *, pipeline: bool) -> None:
    job = drawn(seed, fault, pipeline=pipeline)
    metrics = verdict(job, tmp_path).metrics
    accused = metrics["culprits"]
    assert isinstance(accused, tuple)
    assert set(accused) <= set(job.culprits), job.config
