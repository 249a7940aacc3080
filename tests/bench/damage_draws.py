"""Damage at random: every kind of tests/damage.py on slices of every real trace, and on the traces as they are.

    python tests/bench/damage_draws.py [--draws 200] [--whole 3] [--events 600] [--seed 0] [--kind KIND] [TRACE...]

Prints a Markdown row a trace: draws, how many were wrong (crash, refusal, events lost that stood before the damage,
damage not told, no end within a minute), the share of events behind the damage that was read, and the longest time and
the most memory that one reading took, beside those of reading the undamaged trace. Wrong draws are named with their
seed on stderr; exits 1 when there are any. One process a trace. `tests/test_damage.py` draws a few of the same each
time. Memory is what Linux counts (VmHWM, reset before each reading).
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from damage import BOUNDARY, KINDS  # noqa: E402 - found by the line above
from intact import Intact, Judged, judge, read, slice_of, sliced, unpacked  # noqa: E402 - same

from tracetool import registry  # noqa: E402 - same
from tracetool.raw import jsonstream  # noqa: E402 - same

if TYPE_CHECKING:
    from tracetool.tables import Tables

TRACES = HERE.parent.parent.parent / "shared" / "traces"
LONGEST_S = 60
CHUNKS = (1 << 12, 1 << 15, 1 << 20)
"""Sizes of the reader's chunks: small ones put the seams of a large file into a slice."""
WHOLE_KINDS = ("cut", "cut_packed", "flipped", "flipped_packed", "hole", "zeros", "interleaved")
MB = 1_000_000


@dataclass(frozen=True)
class Draws:
    """What to draw for one trace."""

    path: Path
    slices: int
    whole: int
    events: int
    seed: int
    kinds: tuple[str, ...]


@dataclass
class Row:
    """What came of one trace."""

    name: str
    size: int
    draws: int = 0
    wrong: int = 0
    behind: int = 0
    behind_lost: int = 0
    whole_s: float = 0.0
    whole_bytes: int = 0
    longest_s: float = 0.0
    most_bytes: int = 0

    def parse(self, path: Path, content: bytes) -> Tables:
        """Read a file, and keep how long that took and how much memory, at most."""
        path.write_bytes(content)
        parser = next(parser for parser in registry.parsers() if parser.FORMAT == "kineto")
        held, began = _memory("VmRSS", reset=True), time.process_time()
        signal.alarm(LONGEST_S)
        try:
            return parser.parse(path, registry.ParseOptions(display_path=path.name))
        finally:
            signal.alarm(0)
            self.longest_s = max(self.longest_s, time.process_time() - began)
            self.most_bytes = max(self.most_bytes, _memory("VmHWM") - held)


def _memory(what: str, *, reset: bool = False) -> int:
    """Return a count of this process' memory, bytes; `reset` makes the peak begin here."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    told = Path("/proc/self/status").read_text(encoding="ascii")
    return int(told.partition(f"{what}:")[2].split()[0]) * 1024


def _too_long(*_: object) -> None:
    raise TimeoutError


def _drawn(intact: Intact, kind: str, chance: random.Random, path: Path, row: Row) -> Judged:
    try:
        return judge(intact, kind, KINDS[kind](intact.text, chance), lambda content: row.parse(path, content))
    except TimeoutError:
        return Judged(f"no end within {LONGEST_S} s")
    except Exception as error:  # noqa: BLE001 - whatever escapes the parser is what is looked for
        return Judged(f"{type(error).__name__}: {error}")


def draw(job: Draws) -> Row:
    """Damage one trace again and again; runs in a process of its own."""
    text = unpacked(job.path)
    ends = [match.start() for match in BOUNDARY.finditer(text)]
    row = Row(job.path.name, len(text))
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rank0.json"
        whole = read(text) if job.whole else None
        row.parse(path, sliced(text, ends, 0, job.events))  # what is imported and made once is no part of it
        row.longest_s, row.most_bytes = 0.0, 0
        row.parse(path, text)
        row.whole_s, row.whole_bytes, row.longest_s, row.most_bytes = row.longest_s, row.most_bytes, 0.0, 0
        for kind in job.kinds:
            for seed in range(job.slices + (job.whole if kind in WHOLE_KINDS else 0)):
                full = seed >= job.slices
                chance = random.Random(f"{kind} {job.seed + seed}")  # noqa: S311 - no secret
                intact = whole if full and whole else slice_of(text, ends, chance, job.events)
                jsonstream.CHUNK_BYTES = 1 << 20 if full else chance.choice(CHUNKS)  # type: ignore[misc]
                found = _drawn(intact, kind, chance, path, row)
                row.draws += 1
                row.behind += found.behind
                row.behind_lost += found.behind_lost
                if found.wrong:
                    row.wrong += 1
                    place = "whole" if full else f"slice, chunks of {jsonstream.CHUNK_BYTES}"
                    sys.stderr.write(f"{row.name} {kind} seed {job.seed + seed} ({place}): {found.wrong}\n")
    return row


def main() -> None:
    """Draw, print the table, exit 1 when something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--whole", type=int, default=3)
    parser.add_argument("--events", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(KINDS))
    given = parser.parse_args()
    found = [path for path in TRACES.rglob("*.json*") if b'"traceEvents"' in unpacked(path)[: 4 << 20]]
    kinds = (given.kind,) if given.kind else tuple(KINDS)
    jobs = [
        Draws(path, given.draws, given.whole, given.events, given.seed, kinds) for path in given.traces or sorted(found)
    ]
    print("| trace | JSON MB | draws | wrong | read behind the damage | undamaged | at most |")  # noqa: T201 - its result
    print("|---|--:|--:|--:|--:|--:|--:|")  # noqa: T201 - same
    wrong = 0
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for row in pool.map(draw, jobs):
            behind = f"{1 - row.behind_lost / row.behind:.2%}" if row.behind else ""
            line = f"| {row.name} | {row.size / MB:.0f} | {row.draws} | {row.wrong} | {behind} "
            line += f"| {row.whole_s:.1f} s, {row.whole_bytes / MB:.0f} MB "
            line += f"| {row.longest_s:.1f} s, {row.most_bytes / MB:.0f} MB |"
            print(line, flush=True)  # noqa: T201 - same
            wrong += row.wrong
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
