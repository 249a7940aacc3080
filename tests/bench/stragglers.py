"""Who is named over drawn jobs with planted faults, and how near costs come to the change really made.

    python tests/bench/stragglers.py [cases] [first] [workers]     numbers first, first + 1, ...

Each case (tests/straggler_cases.py) is simulated, written as trace files, and asked. Printed: a row a kind of fault
(cases; ranks missed; innocent ranks named; wrong causes; wrong links or stages; worst error of the slowdown and of the
replay), then a row a what-if with its worst error against a second simulation; what failed goes to stderr at once. Each
third job is asked again with one rank missing and with rank 0 alone: nobody innocent may be named there.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import polars as pl
from simulator import simulate
from straggler_cases import KINDS, changes, draw, peers, step_ns, without_faults

from tracetool.join.blame import LIMIT
from tracetool.run import open_run
from tracetool.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from simulator import Run
    from straggler_cases import Case

    from tracetool.results import Result

LARGE = 16
"""Jobs of more ranks are asked once only, and their what-ifs are left out."""


class Row(NamedTuple):
    """What came of one case."""

    case: Case
    missed: list[int]
    innocent: list[int]
    causes: list[str]
    """Ranks named for the wrong reason."""
    places: list[str]
    """Links and stages that were missed, or named without reason."""
    slowdown: float
    """Slowdown ÷ the true one − 1."""
    replay: float
    """Error of the replay."""
    what_ifs: dict[str, float]
    """By what-if, its time of a step ÷ the true one − 1."""
    fewer: list[str] | None
    """What was wrong with a rank missing, or with rank 0 alone; None: not asked."""


def ask(run: Run, *subsets: Iterable[int]) -> list[Result]:
    """Return the answers to question `stragglers`: of all ranks' files, then of each subset of the ranks alone."""
    with tempfile.TemporaryDirectory() as folder:
        files, cache = Path(folder, "run"), Path(folder, "cache")
        run.write_kineto(files, host_names=True, compression=1)
        found = []
        for ranks in (None, *subsets):
            settings = Settings() if ranks is None else Settings(ranks=tuple(ranks))
            with open_run(files, settings, engine="serial", cache=str(cache)) as opened:
                found.append(opened.results["stragglers"])
        return found


def named(result: Result) -> dict[int, str]:
    """Return the named ranks and why."""
    if result.status != "ok":
        return {}
    return dict(result.tables["ranks"].select("rank", "cause").drop_nulls().iter_rows())


def accused(result: Result) -> set[int]:
    """Return every rank that a table or a finding names."""
    return {*named(result), *(rank for finding in result.findings for rank in finding.where.ranks)}


def judge(number: int) -> Row:
    """Run one case."""
    case = draw(number)
    run = simulate(case.config)
    again = case.config.world_size <= LARGE and number % 3 == 0
    gone = random.Random(number).randrange(case.config.world_size)  # noqa: S311 - a simulation
    left = [rank for rank in range(case.config.world_size) if rank != gone]
    result, *rest = ask(run, *([left, [0]] if again else []))
    found = named(result)
    slow = [tuple(ranks) for ranks, is_slow in result.tables["links"].select("ranks", "slow").iter_rows() if is_slow]
    # `pipeline` says it where slots tell the stages
    stages = result.tables["stages"].filter(pl.col("of_mean") > 1 + LIMIT)["stage"].to_list()
    places = [f"link {ranks}" for ranks in sorted(set(slow) ^ set(case.links))]
    if stages != ([] if case.stage is None else [case.stage]):
        places.append(f"stages {stages}")
    truth = step_ns(case.config)
    slowdown, replay = result.metrics["slowdown"], result.metrics["replay_error"]
    what_ifs: dict[str, float] = {}
    if case.config.world_size <= LARGE and result.tables["what_ifs"].height:
        told = dict(result.tables["what_ifs"].select("change", "step_ns").iter_rows())
        what_ifs = {name: told[name] / step_ns(changed) - 1 for name, changed in changes(case).items()}
    return Row(
        case,
        sorted(set(case.must) - set(found)),
        sorted(accused(result) - case.allowed),
        [f"{rank}: {found[rank]}" for rank, cause in case.must.items() if found.get(rank, cause) != cause],
        places,
        slowdown / (truth / step_ns(without_faults(case))) - 1 if isinstance(slowdown, float) else float("nan"),
        replay if isinstance(replay, float) else float("nan"),
        what_ifs,
        with_fewer(case, gone, *rest) if again else None,
    )


def with_fewer(case: Case, gone: int, result: Result, alone: Result) -> list[str]:
    """Return what is wrong with the answers without rank `gone`, and of rank 0 alone."""
    wrong = []
    innocent = accused(result) - case.allowed
    if innocent:
        wrong.append(f"without rank {gone}: {sorted(innocent)} named")
    # its peers still tell who is slow where more than one healthy peer of it is left
    for rank, cause in case.must.items():
        healthy = [p for p in peers(case.config, rank) if p not in case.allowed and p != gone]
        if rank != gone and len(healthy) > len(case.must) and cause != "link" and rank not in named(result):
            wrong.append(f"without rank {gone}: {rank} not named")
    if accused(alone) or alone.status != "skipped":
        wrong.append(f"rank 0 alone: {alone.status}, {sorted(accused(alone))} named")
    return wrong


def wrong(row: Row) -> list[str]:
    """Return what is not as it has to be."""
    said = [f"missed {row.missed}"] if row.missed else []
    said += [f"INNOCENT {row.innocent}"] if row.innocent else []
    said += [*row.causes, *row.places, *(row.fewer or ())]
    said += [f"slowdown {row.slowdown:+.1%}"] if not abs(row.slowdown) <= 0.025 else []
    said += [f"replay {row.replay:+.1%}"] if not abs(row.replay) < 0.02 else []
    return said + [f"{name} {error:+.1%}" for name, error in row.what_ifs.items() if abs(error) > 0.05]


def worst(errors: Iterable[float]) -> float:
    """Return the largest error without its sign; NaN counts as the largest of all."""
    return max((abs(error) if error == error else float("inf") for error in errors), default=0.0)  # noqa: PLR0124 - NaN


def main(cases: int, first: int, workers: int) -> None:
    """Run the cases and print what came of them."""
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    rows: list[Row] = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for row in pool.imap_unordered(judge, range(first, first + cases)):
            rows.append(row)
            if len(rows) % 10 == 0:
                sys.stderr.write(f"{len(rows)} of {cases}\n")
            if said := wrong(row):
                sys.stderr.write(f"{row.case.number} {row.case.kind}, {row.case.grid}: {'; '.join(said)}\n")
    out = ["| fault | cases | missed | innocent named | wrong cause | wrong place | slowdown | replay |"]
    out.append("|---|---|---|---|---|---|---|---|")
    for kind in KINDS:
        mine = [row for row in rows if row.case.kind == kind]
        counts = (sum(bool(getattr(row, name)) for row in mine) for name in ("missed", "innocent", "causes", "places"))
        errors = f"{worst(r.slowdown for r in mine):.2%} | {worst(r.replay for r in mine):.3%}"
        out.append(f"| {kind} | {len(mine)} | {' | '.join(map(str, counts))} | {errors} |")
    out += ["", "| what if | jobs | worst error |", "|---|---|---|"]
    by_change: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, error in row.what_ifs.items():
            by_change[name].append(error)
    out += [f"| {name} | {len(errors)} | {worst(errors):.2%} |" for name, errors in sorted(by_change.items())]
    fewer = [row for row in rows if row.fewer is not None]
    out += ["", f"One rank missing, and rank 0 alone: {len(fewer)} jobs, wrong in {sum(bool(r.fewer) for r in fewer)}."]
    out.append(f"Not as it has to be: {sum(bool(wrong(row)) for row in rows)} of {len(rows)}.")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    asked = [int(word) for word in sys.argv[1:]]
    main(*(asked + [165, 0, 2][len(asked) :]))
