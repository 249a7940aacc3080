"""Who launches last, against a slow definition."""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING

from hang_harness import diagnose, read
from simulator_hangs.job import Config, simulate
from simulator_hangs.recorder import BASE_NS, TICK_NS, Style, write

if TYPE_CHECKING:
    from pathlib import Path


def test_launch_order_by_hand(tmp_path: Path) -> None:
    job = simulate(Config(dp=2, tp=2, pp=2, fault="healthy", seed=11))
    write(job, tmp_path, Style())
    made: dict[tuple[int, int], dict[int, int]] = {}
    for rank, records in enumerate(job.records):
        for record in records:
            if not record.op.is_p2p:
                made.setdefault((record.op.group, record.seq), {})[rank] = BASE_NS + record.created * TICK_NS
    whole = {key: at for key, at in made.items() if len(at) == len(job.groups[key[0]].ranks)}
    table = diagnose(read(tmp_path)).tables["launch_order"]
    for rank, operations, last, median in table.select("rank", "operations", "last", "median_lateness_ns").iter_rows():
        mine = [at for at in whole.values() if rank in at]
        assert operations == len(mine)
        assert last == sum(max(at, key=lambda r: (at[r], r)) == rank for at in mine)
        assert median == round(statistics.median(at[rank] - min(at.values()) for at in mine))
    assert table["last"].to_list() == sorted(table["last"].to_list(), reverse=True)
    assert table["last"].sum() == len(whole)


def test_files_in_any_order_give_the_same_table(tmp_path: Path) -> None:
    job = simulate(Config(dp=4, tp=1, pp=1, fault="healthy", seed=2))
    write(job, tmp_path, Style())
    sources = read(tmp_path)
    shuffled = random.Random(1).sample(sources, len(sources))  # noqa: S311 - a test
    assert diagnose(sources).tables["launch_order"].equals(diagnose(shuffled).tables["launch_order"])
