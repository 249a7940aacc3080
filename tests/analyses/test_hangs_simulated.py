"""Planted faults over drawn worlds: the culprits and the class exact, never an innocent rank with high confidence."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hang_harness import diagnose, read
from simulator_hangs.job import FAULTS, Config, Job, simulate
from simulator_hangs.recorder import Style, write

from tracetool import postmortem

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result


def draw(seed: int, fault: str, worlds: tuple[int, ...]) -> tuple[Job, Style]:
    """Return a job of a drawn shape and a drawn way of writing its dumps."""
    rng = random.Random(seed)  # noqa: S311 - a test
    world = rng.choice(worlds)
    shapes = [
        (dp, tp, world // dp // tp)
        for dp in (1, 2, 4, 8, 16, 32)
        for tp in (1, 2, 4, 8)
        if world % (dp * tp) == 0 and 1 <= world // dp // tp <= 8 and (fault != "crossed" or dp > 1)
    ]
    dp, tp, pp = rng.choice(shapes)
    config = Config(dp, tp, pp, fault=fault, seed=rng.randrange(1 << 30), ahead=rng.choice([1, 2, 6, 30]))
    style = Style(
        version=rng.choice(["2.4", "2.9", "2.10"]),
        only_active=rng.random() < 0.4,
        buffer=rng.choice([64, 2000]),
        frames=rng.random() < 0.3,
        as_json=rng.random() < 0.3,
    )
    return simulate(config), style


def verdict(job: Job, style: Style, folder: Path) -> Result:
    write(job, folder, style)
    return diagnose(read(folder))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault(tmp_path: Path, fault: str, seed: int) -> None:
    job, style = draw(seed, fault, (8, 16, 32))
    metrics = verdict(job, style, tmp_path).metrics
    assert (metrics["cause"], metrics["culprits"]) == (job.cause, job.culprits), (job.config, style)


@pytest.mark.parametrize("fault", ["late", "stuck"])
def test_512_ranks(tmp_path: Path, fault: str) -> None:
    job, style = draw(7, fault, (512,))
    result = verdict(job, style, tmp_path)
    assert (result.metrics["cause"], result.metrics["culprits"]) == (job.cause, job.culprits)
    assert all(table.height <= 200 for table in result.tables.values())
    assert len(postmortem.lines({"hangs": result})) < 10
    # the picture is a handful of boxes, with every rank in one
    boxes = result.tables["wait_graph"]
    assert boxes["count"].sum() == 512
    assert boxes.height <= 24
    assert boxes["groups"].str.contains(r"^\d+ groups ").any()


@pytest.mark.parametrize("seed", range(12))
def test_lost_dumps_accuse_nobody_with_high_confidence(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a test
    job, style = draw(seed, rng.choice(FAULTS), (8, 16))
    lost = tuple(rng.sample(sorted(job.alive), rng.randrange(1, 4)))
    style = Style(style.version, style.only_active, style.buffer, style.frames, style.as_json, lost)
    metrics = verdict(job, style, tmp_path).metrics
    accused = metrics["culprits"]
    assert isinstance(accused, tuple)
    if set(accused) - set(job.culprits):
        assert metrics["confidence"] != "high", (job.config, lost)


def test_order_of_the_files_changes_nothing(tmp_path: Path) -> None:
    job, style = draw(3, "late", (8,))
    write(job, tmp_path, style)
    sources = read(tmp_path)
    one, other = diagnose(sources), diagnose(sources[::-1])
    assert one.metrics == other.metrics
    assert all(table.equals(other.tables[name]) for name, table in one.tables.items())
