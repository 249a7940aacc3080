"""The verdict in words: whole sentences, under ten lines of 80 columns, whatever the names and numbers are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hang_harness import diagnose, read
from simulator_hangs.job import FAULTS, Config, simulate
from simulator_hangs.recorder import Style, write

from tracetool import postmortem
from tracetool.join.hangwords import LONGEST, ranks_named

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("fault", FAULTS)
def test_sentences_are_whole_and_fit(tmp_path: Path, fault: str) -> None:
    """Long group names and long lists of ranks are told shortly; nothing ends in the middle."""
    job = simulate(Config(8, 2, 2, fault=fault, seed=11))
    job.groups = tuple(replace(group, desc=f"{group.desc}_{'X' * 90}") for group in job.groups)
    write(job, tmp_path, Style())
    result = diagnose(read(tmp_path))
    sentences = result.tables["verdict"]["line"].to_list()
    assert all(sentence[-1] in ".?!" for sentence in sentences), sentences
    assert max(map(len, sentences)) <= LONGEST
    lines = postmortem.lines({"hangs": result})
    assert len(lines) < 10
    assert max(map(len, lines)) <= 80
    kept = " ".join(" ".join(lines).split())
    told = [sentence for sentence in sentences if sentence in kept]
    assert len(" ".join(told)) == len(kept)  # nothing but whole sentences


def test_the_operation_stuck_in_and_the_one_waited_in_are_told_apart(tmp_path: Path) -> None:
    job = simulate(Config(4, 2, 1, fault="stuck", seed=5, ahead=6))
    write(job, tmp_path, Style())
    parts = dict(diagnose(read(tmp_path)).tables["verdict"].rows())
    assert parts["operation"].startswith("Stuck in: ")
    number = parts["operation"].split(" seq ")[1].split(" ")[0]
    assert "in it." in parts["waiting"] or f"seq {number}" not in parts["waiting"]


def test_stacks_of_a_waiting_rank_and_of_the_culprit_are_told(tmp_path: Path) -> None:
    job = simulate(Config(4, 2, 1, fault="late", seed=2))
    write(job, tmp_path, Style())
    parts = dict(diagnose(read(tmp_path)).tables["verdict"].rows())
    assert parts["own stack"].startswith(f"Last of rank {job.culprits[0]}: ")
    assert "train_step train.py:" in parts["own stack"]
    assert parts["stack"].startswith("Waiting in train_step train.py:")


def test_a_long_list_of_ranks_is_told_by_its_number() -> None:
    assert ranks_named([7]) == "rank 7"
    assert ranks_named([1, 2, 3]) == "ranks 1-3"
    assert ranks_named([n * n for n in range(40)]) == "40 ranks"
