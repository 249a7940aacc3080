"""Two sources of one rank that contradict each other: told, with both values; agreement tells nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pytest
from hang_harness import Rank, diagnose, parser

from tracetool.join.disagree import contradictions, sentences, told
from tracetool.registry import ParseOptions
from tracetool.tables import frame

if TYPE_CHECKING:
    from pathlib import Path


def rank(number: int, **other: object) -> Rank:
    """Return a rank with a dump and a log that agree; `other` changes what the log or the trace says."""
    said: dict[str, object] = {"completed": 4, "members": [0, 1, 2, 3], "op": "all_reduce", "host": "node1.cluster",
                               "traced": "all_reduce", "backend": "nccl"} | other  # fmt: skip
    two = {"rank": [number, number], "source": ["dump_3", "job.log"]}
    return Rank(
        number,
        {
            "dumps": frame("dumps", {**two, "kind": ["recorder", "log"]}),
            "group_status": frame("group_status", {**two, "group": ["0", "0"], "last_enqueued": [5, 5],
                                                   "last_completed": [4, said["completed"]]}),
            "process_groups": frame("process_groups", {"rank": [number] * 2, "group": ["0", "0"],
                                                       "ranks": [[3, 2, 1, 0], said["members"]]}),
            "collectives": frame("collectives", {**two, "record": [0, 0], "group": ["0", "0"], "seq": [5, 5],
                                                 "is_p2p": [False] * 2, "op": ["all_reduce", said["op"]],
                                                 "name": ["", ""], "backend": [said["backend"]] * 2,
                                                 "in_flight": [True, True]}),
            "ranks": frame("ranks", {"rank": [number] * 2, "host": ["node1", said["host"]],
                                     "format": ["nccl_flight_recorder", "nccl_log"]}),
            "comms": frame("comms", {"rank": [number], "group": ["0"], "seq": [5], "op": [said["traced"]]}),
        },
    )  # fmt: skip


def said_by(one: Rank) -> list[str]:
    return sentences(contradictions(told(one.table)))


def test_sources_that_agree_tell_nothing() -> None:
    assert said_by(rank(3)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"completed": 3}, "last completed of group 0 (dump: 4; log: 3)."),
        ({"members": [0, 1, 2]}, "members of group 0 (a source: 0-2; a source: 0-3)."),
        ({"op": "gather"}, "operation of group 0 at 5 (dump: all_reduce; log: gather; trace: all_reduce)."),
        ({"traced": "gather"}, "operation of group 0 at 5 (dump: all_reduce; log: all_reduce; trace: gather)."),
        ({"host": "node2"}, "host (nccl_flight_recorder: node1; nccl_log: node2)."),
    ],
)
def test_contradiction(change: dict[str, object], said: str) -> None:
    assert said_by(rank(3, **change)) == [f"Sources of rank 3 disagree on the {said}"]


def test_an_address_is_no_other_host() -> None:
    assert said_by(rank(3, host="10.0.0.7")) == []


def test_gloo_and_batches_are_not_compared() -> None:
    assert said_by(rank(3, op="broadcast", backend="gloo")) == []
    assert said_by(rank(3, traced="coalesced")) == []


def test_ranks_that_disagree_alike_share_a_row_and_many_rows_are_counted() -> None:
    alike = contradictions(pl.concat([told(rank(n, host="node2").table) for n in (3, 4, 5, 9)]))
    assert alike.select("ranks", "count").rows() == [("3-5,9", 4)]
    many = contradictions(pl.concat([told(rank(n, host=f"node{n}").table) for n in range(2, 12)]))
    assert len(sentences(many)) == 7
    assert sentences(many)[-1].startswith("4 more")


def test_the_verdict_says_what_a_log_says_otherwise(shared: Path, tmp_path: Path) -> None:
    recorder = parser("nccl_flight_recorder")
    folder = shared / "nccl" / "flight_recorder" / "lock_gil_1st"
    sources = [
        recorder.parse(path, ParseOptions(path.name))
        for path in sorted(folder.iterdir())
        if recorder.sniff(path, path.read_bytes()[:65_536])
    ]
    log = tmp_path / "job.log"
    log.write_text(
        "[rank10]:[E] [PG ID 11 PG GUID 72(EXPERT_MODEL_PARALLEL_GROUP) Rank 10] Timeout at NCCL work: 45265, "
        "last enqueued NCCL work: 45265, last completed NCCL work: 45000.\n"
    )
    both = diagnose([*sources, parser("nccl_log").parse(log, ParseOptions("job.log"))])
    assert both.metrics["culprits"] == (9, 14)
    assert both.tables["disagreements"].select("ranks", "topic", "group").rows() == [("10", "last completed", "72")]
    assert "log: 45000" in " ".join(both.notes)
