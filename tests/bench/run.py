"""What reading and reporting cost, over bare orjson.loads and over HolisticTraceAnalysis asked the same.

    python tests/bench/run.py [--hta-python PYTHON] [--rounds 5] [--simulated-mb 1100] [TRACE...]

Prints a Markdown table: the traces named, else those of ../shared/traces and one made by the project's simulator.
Every figure is the least of ROUNDS runs, each in a process of its own, the things compared taking turns; imports are
told apart. Files are unpacked first: unpacking is on no side. HolisticTraceAnalysis (0.5.0, needs an environment of its
own) runs once a trace, and its columns stay empty without `--hta-python`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
SHARED = REPOSITORY.parent / "shared" / "traces" / "kineto"
REAL = (
    "hta/mtia_rank_0.json.gz", "hta/df_index_resolver.json.gz", "tracelens/mi300/resnet_act_checkpoint.json.gz",
    "hta/nccl_data.json.gz",
)  # fmt: skip
TURNS = ("loads", "ingest", "report", "second", "named")
MB = 1_000_000


@dataclass
class Measured:
    """The least CPU and the largest memory of the runs of one thing, or why it failed."""

    cpu_s: float = float("inf")
    start_cpu_s: float = float("inf")
    wall_s: float = float("inf")
    peak: int = 0
    above: int = 0
    failed: str = ""

    def add(self, told: dict[str, float]) -> None:
        """Count one more run."""
        self.cpu_s = min(self.cpu_s, told["cpu_s"])
        self.start_cpu_s = min(self.start_cpu_s, told["start_cpu_s"])
        self.wall_s = min(self.wall_s, told["wall_s"])
        self.peak = max(self.peak, int(told["peak"]))
        self.above = max(self.above, int(told["above"]))


@dataclass
class Row:
    """All that was measured on one trace."""

    name: str
    size: int
    found: dict[str, Measured] = field(default_factory=dict)


def measure(python: str, what: str, trace: Path, folder: Path, row: Row) -> None:
    """Run one measurement in a fresh process and add it to the row."""
    command = [python, str(HERE / "measure.py"), what, str(trace), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    measured = row.found.setdefault(what, Measured())
    if done.returncode:
        measured.failed = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:90]
    else:
        measured.add(json.loads(done.stdout.splitlines()[-1]))


def unpacked(trace: Path, folder: Path) -> Path:
    """Return the trace as plain JSON, unpacked into the folder where it was packed."""
    if trace.suffix != ".gz":
        return trace
    plain = folder / trace.stem
    with gzip.open(trace) as packed, plain.open("wb") as whole:
        shutil.copyfileobj(packed, whole, 1 << 20)
    return plain


def simulated(megabytes: int, folder: Path) -> Path:
    """Write rank 0 of a simulated 8-rank run, its steps repeated until the file has about that size."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from simulator import Config, simulate  # noqa: PLC0415 - stands beside this folder

    run = simulate(Config(dp=2, tp=2, pp=2, layers=4, microbatches=8, steps=4, jitter=0.02))
    once = run.write_kineto(folder, ranks=[0], names="once{rank}.json")[0]
    repeat = max(1, round(megabytes * MB / once.stat().st_size))
    once.unlink()
    return run.write_kineto(folder, ranks=[0], names="simulated_rank{rank}.json", repeat=repeat)[0]


def measured_row(trace: Path, rounds: int, hta_python: str | None, folder: Path) -> Row:
    """Measure everything on one trace, taking turns."""
    row = Row(trace.name, trace.stat().st_size)
    for number in range(rounds):
        for what in TURNS:
            measure(sys.executable, what, trace, folder, row)
        if hta_python and not number:
            measure(hta_python, "hta", trace, folder, row)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return row


def table(rows: list[Row]) -> list[str]:
    """Return the rows as Markdown: CPU seconds, and the peak of memory above what imports took."""
    heads = ["trace", "JSON MB", "orjson.loads", "ingest", "report", "second report", "the named questions", "HTA"]
    lines = ["| " + " | ".join(heads) + " |", "|---|--:" + "|---" * (len(heads) - 2) + "|"]
    for row in rows:
        base = row.found["loads"].cpu_s
        cells = [row.name, f"{row.size / MB:.0f}", _cell(row, "loads")]
        cells += [
            f"{_cell(row, what)}, **{row.found[what].cpu_s / base:.2f} ×** orjson" for what in ("ingest", "report")
        ]
        share = row.found["report"].cpu_s / row.found["second"].cpu_s
        cells.append(f"{_cell(row, 'second')}, **{share:.1f} ×** less")
        ours, theirs = row.found["named"], row.found.get("hta")
        cells.append(_cell(row, "named"))
        if theirs and not theirs.failed:
            cpu, memory = theirs.cpu_s / ours.cpu_s, theirs.above / ours.above
            cells.append(f"{_cell(row, 'hta')}, **{cpu:.1f} ×** CPU, **{memory:.1f} ×** memory")
        else:
            cells.append(_cell(row, "hta") if theirs else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(row: Row, what: str) -> str:
    found = row.found[what]
    if found.failed:
        return f"fails: {found.failed}"
    return f"{found.cpu_s:.2f} s, +{found.above / MB:.0f} MB"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--simulated-mb", type=int, default=1100, help="0 leaves the simulated trace out")
    parser.add_argument("--hta-python", help="interpreter that has HolisticTraceAnalysis")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        rows += [
            measured_row(unpacked(trace, folder), options.rounds, options.hta_python, folder)
            for trace in options.traces or [SHARED / path for path in REAL if (SHARED / path).exists()]
        ]
        if options.simulated_mb and not options.traces:
            trace = simulated(options.simulated_mb, folder)
            rows.append(measured_row(trace, options.rounds, options.hta_python, folder))
        start = Row("--help", 0)
        for _ in range(options.rounds):
            measure(sys.executable, "start", folder, folder, start)
    out = "\n".join(table(rows))
    helped, report = start.found["start"], [row.found["report"] for row in rows]
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    sys.stdout.write(
        f"{out}\n\n`--help`: {helped.cpu_s:.2f} s CPU, {helped.wall_s:.2f} s in all. Imports of a report: "
        f"{min((found.start_cpu_s for found in report), default=0):.2f} s. Peak of a report in all: "
        f"{', '.join(f'{found.peak / MB:.0f} MB' for found in report)}. {os.cpu_count()} cores, load {load}.\n"
    )


if __name__ == "__main__":
    main()
