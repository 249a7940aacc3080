"""Verdicts from RAS answers alone: who launched less, who does not answer, and when nobody can be named."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hang_harness import diagnose, parser

from tracetool import postmortem
from tracetool.registry import ParseOptions

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result


def _rank(rank: int, counts: dict[str, int] | None, **status: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"rank": rank, "host": f"node{rank // 2}", "pid": 100 + rank, "cuda_dev": rank % 2}
    return told | ({"status": status} if counts is None else {"status": {}, "collective_counts": counts})


def answer(
    counts: dict[int, dict[str, int]], missing: dict[int, str] | None = None, group: str = "0xab"
) -> dict[str, Any]:
    """Return one communicator as RAS tells it."""
    gone = missing or {}
    return {
        "hash": group,
        "size": len(counts) + len(gone),
        "ranks": [_rank(rank, told) for rank, told in counts.items()],
        "missing_ranks": [
            _rank(rank, None, unresponsive=True, considered_dead=state == "dead") for rank, state in gone.items()
        ],
    }


def verdict(folder: Path, *asked: list[dict[str, Any]]) -> Result:
    """Ask RAS once per argument and diagnose."""
    sources = []
    for number, communicators in enumerate(asked):
        path = folder / f"ras{number}.json"
        path.write_text(json.dumps({"nccl_version": "2.29.1", "communicators": communicators}))
        os.utime(path, ns=(1_000 * number, 1_000 * number))
        assert parser("nccl_ras").sniff(path, path.read_bytes())
        sources.append(parser("nccl_ras").parse(path, ParseOptions(path.name)))
    return diagnose(sources)


def even(launched: int, ranks: int = 8) -> dict[int, dict[str, int]]:
    return {rank: {"AllReduce": launched, "AllGather": 7} for rank in range(ranks)}


BEHIND = {**even(50), 5: {"AllReduce": 49, "AllGather": 7}}


def test_who_launched_less_is_named_with_low_confidence(tmp_path: Path) -> None:
    result = verdict(tmp_path, [answer(BEHIND)])
    metrics = result.metrics
    assert (metrics["cause"], metrics["culprits"], metrics["confidence"]) == ("never_launched", (5,), "low")
    assert (metrics["group"], metrics["op"], metrics["seq"]) == ("0xab", "all_reduce", 57)
    assert "asked once" in " ".join(result.notes)
    assert result.tables["waiting"]["ranks"].to_list() == ["0-4,6-7"]
    lines = postmortem.lines({"hangs": result})
    assert len(lines) < 10
    assert max(map(len, lines)) <= 80


def test_the_same_counts_twice_are_surer(tmp_path: Path) -> None:
    metrics = verdict(tmp_path, [answer(BEHIND)], [answer(BEHIND)]).metrics
    assert (metrics["cause"], metrics["culprits"], metrics["confidence"]) == ("never_launched", (5,), "medium")


def test_counts_that_grow_are_no_hang(tmp_path: Path) -> None:
    result = verdict(tmp_path, [answer(BEHIND)], [answer(even(60))])
    assert (result.metrics["cause"], result.metrics["culprits"], result.findings) == ("none", (), [])


def test_equal_counts_are_no_hang(tmp_path: Path) -> None:
    result = verdict(tmp_path, [answer(even(50))])
    assert (result.metrics["cause"], result.findings) == ("none", [])


@pytest.mark.parametrize(("state", "confidence"), [("dead", "medium"), ("unresponsive", "low")])
def test_a_rank_that_does_not_answer_is_named(tmp_path: Path, state: str, confidence: str) -> None:
    present = {rank: told for rank, told in even(50).items() if rank != 3}
    result = verdict(tmp_path, [answer(present, {3: state})])
    metrics = result.metrics
    assert (metrics["cause"], metrics["culprits"], metrics["confidence"]) == ("no_dump", (3,), confidence)
    assert result.tables["verdict"]["line"][0] == "Rank 3 on node1 does not answer RAS."
    assert result.findings[0].evidence[0][0] in result.tables


def test_most_ranks_are_not_accused(tmp_path: Path) -> None:
    counts = {rank: {"AllReduce": 49 + (rank == 0)} for rank in range(8)}
    metrics = verdict(tmp_path, [answer(counts)]).metrics
    assert (metrics["cause"], metrics["culprits"]) == ("unknown", ())


def test_which_of_several_kinds_is_missing_is_not_guessed(tmp_path: Path) -> None:
    counts = {**even(50), 5: {"AllReduce": 49, "AllGather": 6}}
    assert verdict(tmp_path, [answer(counts)]).metrics["op"] == "a collective"


def test_the_documentations_answer(shared: Path) -> None:
    path = shared / "nccl" / "ras" / "nccl-docs-ras-07.json"
    metrics = diagnose([parser("nccl_ras").parse(path, ParseOptions(path.name))]).metrics
    assert (metrics["cause"], metrics["culprits"], metrics["confidence"]) == ("no_dump", (1,), "low")


def test_dumps_are_believed_before_counts(shared: Path, tmp_path: Path) -> None:
    recorder = parser("nccl_flight_recorder")
    folder = shared / "nccl" / "flight_recorder_gloo" / "missing_rank"
    sources = [recorder.parse(path, ParseOptions(path.name)) for path in sorted(folder.iterdir())]
    path = tmp_path / "ras.json"
    path.write_text(json.dumps({"communicators": [answer({**even(50, 4), 0: {"AllReduce": 1, "AllGather": 7}})]}))
    metrics = diagnose([*sources, parser("nccl_ras").parse(path, ParseOptions(path.name))]).metrics
    assert (metrics["cause"], metrics["culprits"]) == ("never_launched", (3,))
