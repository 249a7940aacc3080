"""The picture of a hang: few boxes, every rank in one, the culprits on top, lines only to what is waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hang_harness import diagnose, read
from simulator_hangs.job import FAULTS, Config, simulate
from simulator_hangs.recorder import Style, write

from tracetool.join.hangstate import ranks_of

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl


def picture(folder: Path, fault: str, *, seed: int) -> pl.DataFrame:
    write(simulate(Config(4, 2, 2, fault=fault, seed=seed)), folder, Style())
    return diagnose(read(folder)).tables["wait_graph"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_rank_stands_in_one_box(tmp_path: Path, fault: str, seed: int) -> None:
    table = picture(tmp_path, fault, seed=seed)
    ranks = [rank for text in table["ranks"].to_list() for rank in ranks_of(text)]
    assert sorted(ranks) == list(range(16))
    assert table["count"].sum() == 16
    assert table["box"].to_list() == list(range(1, table.height + 1))
    layers = dict(table.select("box", "layer").rows())
    for box, role, targets in table.select("box", "role", "waits_for").iter_rows():
        assert set(targets) <= set(layers)
        if role == "waits" and fault in {"dead", "late", "stuck"}:
            # what is waited for stands above
            assert all(layers[target] < layers[box] for target in targets)


def test_the_culprit_is_on_top_and_says_what_it_did_last(tmp_path: Path) -> None:
    job = simulate(Config(4, 2, 2, fault="late", seed=1))
    table = picture(tmp_path, "late", seed=1)
    first = table.row(0, named=True)
    last = job.records[job.culprits[0]][-1]
    assert (first["role"], first["ranks"], first["layer"]) == ("culprit", str(job.culprits[0]), 0)
    number = last.p2p_seq if last.op.is_p2p else last.seq
    assert first["groups"].endswith(f"seq {number} of {job.groups[last.op.group].desc}")
    assert first["waits_for"] == []
