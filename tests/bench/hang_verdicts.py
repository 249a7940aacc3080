"""Are the verdicts right? Planted faults over drawn worlds of 4 to 512 ranks, and every way of losing evidence.

    python tests/bench/hang_verdicts.py [--per-fault 12] [--seed 0] [--only WORDS] [--misses]

Prints a Markdown table, a row a way in which the job's traces were written: how often cause and culprits are exact, how
often a rank was named that is not to blame (and how often so with high confidence), how often nobody was named. The
defaults take about five minutes on one core; `--misses` also prints each verdict that is not exact.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hang_harness import diagnose, parser, read
from simulator_hangs import logs, recorder
from simulator_hangs.job import FAULTS, Config, Job, simulate
from simulator_hangs.recorder import Style

from tracetool.join.hangstate import rank_text
from tracetool.registry import ParseOptions

if TYPE_CHECKING:
    from tracetool.tables import Tables

WORLDS = (4, 8, 16, 32, 64, 128, 256, 512)
WEIGHTS = (8, 12, 12, 8, 4, 2, 1, 1)
HOUR_NS = 3600 * 10**9
Written = Callable[[Job, random.Random, Path], "list[Tables]"]


@dataclass
class Row:
    """What came of one way of writing."""

    runs: int = 0
    exact: int = 0
    innocent: int = 0
    innocent_high: int = 0
    nobody: int = 0
    healthy: int = 0
    healthy_none: int = 0
    misses: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        """Return the row of the table."""
        share = f"{100 * self.exact / self.runs:.1f} %"
        return (
            f"| {name} | {self.runs} | {self.exact} ({share}) | {self.innocent} | {self.innocent_high} | {self.nobody} "
            f"| {self.healthy_none} of {self.healthy} |"
        )


def drawn(rng: random.Random, fault: str, *, pipelines: bool = True) -> Job:
    """Return a job of a drawn shape."""
    world = rng.choices(WORLDS, WEIGHTS)[0]
    shapes = [
        (dp, tp, world // dp // tp)
        for dp in (1, 2, 4, 8, 16, 32, 64)
        for tp in (1, 2, 4, 8)
        if world % (dp * tp) == 0
        and 1 <= world // dp // tp <= (8 if pipelines else 1)
        and (fault != "crossed" or dp > 1)
    ]
    dp, tp, pp = rng.choice(shapes or [(world, 1, 1)])
    return simulate(Config(dp, tp, pp, fault=fault, seed=rng.randrange(1 << 30), ahead=rng.choice([1, 2, 6, 30])))


def style(rng: random.Random, **fixed: Any) -> Style:  # noqa: ANN401 - fields of Style
    """Return a drawn way of writing dumps, with some of it fixed."""
    made = Style(
        version=rng.choice(["2.4", "2.9", "2.10"]),
        only_active=rng.random() < 0.4,
        frames=rng.random() < 0.3,
        as_json=rng.random() < 0.3,
    )
    return replace(made, **fixed)


def dumped(**fixed: Any) -> Written:  # noqa: ANN401 - same
    """Write one dump a living rank."""

    def written(job: Job, rng: random.Random, folder: Path) -> list[Tables]:
        recorder.write(job, folder, style(rng, **fixed))
        return read(folder)

    return written


def some_lost(job: Job, rng: random.Random, folder: Path) -> list[Tables]:
    """Lose the dumps of one to three ranks that lived."""
    lost = rng.sample(sorted(job.alive), min(len(job.alive) - 1, rng.randrange(1, 4)))
    recorder.write(job, folder, style(rng, lost=tuple(lost)))
    return read(folder)


def logged(job: Job, rng: random.Random, folder: Path) -> list[Tables]:
    """Write nothing but the job's log."""
    logs.write(job, folder / "job.log", seed=rng.randrange(1 << 30))
    return [parser("nccl_log").parse(folder / "job.log", ParseOptions("job.log"))]


def mixed(job: Job, rng: random.Random, folder: Path) -> list[Tables]:
    """Write dumps of half of the ranks, and the log of all."""
    lost = rng.sample(sorted(job.alive), len(job.alive) // 2)
    recorder.write(job, folder, style(rng, lost=tuple(lost)))
    return [*read(folder), *logged(job, rng, folder)]


def beside_log(job: Job, rng: random.Random, folder: Path) -> list[Tables]:
    """Write dumps of all ranks, and the log."""
    recorder.write(job, folder, style(rng))
    return [*read(folder), *logged(job, rng, folder)]


def _before(job: Job, rng: random.Random) -> Job:
    return simulate(replace(job.config, fault=rng.choice(["late", "stuck", "dead"]), seed=rng.randrange(1 << 30)))


def restarted(job: Job, rng: random.Random, folder: Path) -> list[Tables]:
    """Write the dumps of an earlier start, which hung too, into another folder."""
    found = []
    for name, one, later in (("attempt_0", _before(job, rng), 0), ("attempt_1", job, HOUR_NS)):
        (folder / name).mkdir()
        recorder.write(one, folder / name, style(rng, later_ns=later))
        found += read(folder / name, name)
    return found


def overwritten(job: Job, rng: random.Random, folder: Path) -> list[Tables]:
    """Write the dumps over those of an earlier start: a rank without a new one keeps its old one."""
    drawn_style = style(rng)
    recorder.write(_before(job, rng), folder, drawn_style)
    recorder.write(job, folder, replace(drawn_style, later_ns=HOUR_NS))
    return read(folder)


NCCL = FAULTS
GLOO = tuple(fault for fault in FAULTS if fault != "stuck")
ROWS: dict[str, tuple[Written, tuple[str, ...], bool]] = {
    # nothing is lost that the verdict needs
    "dumps of all ranks": (dumped(), NCCL, True),
    "ring buffer of 40": (dumped(buffer=40), NCCL, True),
    "torch 2.4 (format 2.1)": (dumped(version="2.1"), NCCL, True),
    "gloo": (dumped(gloo=True, only_active=False, version="2.10"), GLOO, False),
    "dumps and log": (beside_log, NCCL, True),
    "dumps of two starts": (restarted, NCCL, True),
    "dumps over older ones": (overwritten, NCCL, True),
    # evidence is lost: nobody innocent may be named with high confidence
    "ring buffer of 8, up to 30 in flight": (dumped(buffer=8), NCCL, True),
    "1 to 3 dumps lost": (some_lost, NCCL, True),
    "torch 2.3 (format 1.4)": (dumped(version="1.4"), NCCL, True),
    "torch 2.2 (no version)": (dumped(version="none", as_json=False), NCCL, True),
    "gloo, with pipelines": (dumped(gloo=True, only_active=False, version="2.10"), GLOO, True),
    "log alone": (logged, NCCL, True),
    "half dumps, log of all": (mixed, NCCL, True),
}


def judged(job: Job, sources: list[Tables], row: Row, told: str) -> None:
    """Count one verdict."""
    metrics = diagnose(sources).metrics
    named = metrics["culprits"]
    assert isinstance(named, tuple)
    exact = (metrics["cause"], named) == (job.cause, job.culprits)
    wrong = bool(set(named) - set(job.culprits))
    row.runs += 1
    row.exact += exact
    row.innocent += wrong
    row.innocent_high += wrong and metrics["confidence"] == "high"
    row.nobody += not named
    if job.config.fault == "healthy":
        row.healthy += 1
        row.healthy_none += metrics["cause"] == "none"
    if not exact:
        row.misses.append(
            f"{told}: {job.config}: {job.cause} {rank_text(job.culprits)}, told {metrics['cause']} {rank_text(named)}, "
            f"{metrics['confidence']}"
        )


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--per-fault", type=int, default=12)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="", help="rows whose name holds these words")
    options.add_argument("--misses", action="store_true")
    given = options.parse_args()
    head = "| traces | runs | exact | innocent named | with high confidence | nobody named | healthy: none |"
    print(f"{head}\n|---|--:|--:|--:|--:|--:|--:|", flush=True)  # noqa: T201 - a program
    for name, (write, faults, pipelines) in ROWS.items():
        if given.only not in name:
            continue
        row = Row()
        for fault in faults:
            for number in range(given.per_fault):
                rng = random.Random(f"{given.seed} {name} {fault} {number}")  # noqa: S311 - a simulation
                job = drawn(rng, fault, pipelines=pipelines)
                with tempfile.TemporaryDirectory() as folder:
                    judged(job, write(job, rng, Path(folder)), row, f"{fault} {number}")
        print(row.text(name), flush=True)  # noqa: T201 - same
        if given.misses:
            print("\n".join(f"    {miss}" for miss in row.misses), flush=True)  # noqa: T201 - same


if __name__ == "__main__":
    main()
