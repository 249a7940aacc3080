"""Situations that hung jobs are found in, written by hand: the right ranks, or honestly nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
from written_dumps import BASE, SECOND, Dump, blamed, op, verdict

if TYPE_CHECKING:
    from pathlib import Path

Did = Mapping[str, object]
"""The fields of a Dump."""

IN_FIVE: Did = {"entries": [op(4, done=True), op(5)], "status": {"0": (5, 4)}}
AT_FOUR: Did = {"entries": [op(4, done=True)], "status": {"0": (4, 4)}}


def job(others: Did, **odd: Did | None) -> dict[int, Dump]:
    """Return four ranks that all did `others`, but for `r<N>`: what that one did, or None: it left no dump."""
    ranks = {rank: odd.get(f"r{rank}", others) for rank in range(4)}
    return {rank: Dump(**did) for rank, did in ranks.items() if did is not None}  # type: ignore[arg-type] # Dump's fields


def half(name: str, record: int, number: int = 1) -> dict[str, object]:
    return op(0, f"nccl:{name}", is_p2p=True, p2p_seq_id=number, collective_seq_id=0, record_id=record)


def ring(rank: int, source: int | None = None) -> Did:
    """Return what a rank of a batched ring of four posts: a send to the next, a receive from `source` or the last."""
    source = (rank - 1) % 4 if source is None else source
    halves = [half(f"send {rank}->{(rank + 1) % 4}", 1), half(f"recv {rank}<-{source}", 2), half("coalesced", 3)]
    return {"entries": halves, "status": {"0": (1, -1)}}


BARRIER: Did = {"entries": [op(4, done=True), op(5, "nccl:barrier")], "status": {"0": (5, 4)}}
FIRST: Did = {"entries": [op(1)], "status": {"0": (1, -1)}}
NOTHING: Did = {"status": {"0": (-1, -1)}}
OTHER: Did = {"entries": [op(4, done=True), op(5, "nccl:broadcast", input_sizes=[[1]], output_sizes=[[1]])],
         "status": {"0": (5, 4)}}  # fmt: skip
LATE: Did = {"entries": [op(5, time_created_ns=BASE + 500 * SECOND)], "status": {"0": (5, 4)}}
GLOO: Did = {"entries": [op(5, "gloo:barrier")], "status": {"0": (5, 4)}}
GLOO_AT_FOUR: Did = {"entries": [op(4, "gloo:barrier", retired=True)], "status": {"0": (4, 4)}}


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        pytest.param(job(IN_FIVE, r2=None), ("no_dump", (2,), "medium"), id="killed for memory, no dump"),
        pytest.param(job(BARRIER, r0=AT_FOUR), ("never_launched", (0,), "high"), id="barrier, rank 0 saves"),
        pytest.param(
            job(FIRST, r1={"status": {"0": (-1, -1)}}), ("never_launched", (1,), "high"), id="start: one absent"
        ),
        pytest.param(job(FIRST), ("all_inside", (), "medium"), id="start: all in the first operation"),
        pytest.param(job(FIRST, r1={}), ("never_launched", (1,), "medium"), id="start: one without counters"),
        pytest.param(job(IN_FIVE, r2=OTHER), ("mismatched_arguments", (2,), "high"), id="one skipped its gradients"),
        pytest.param(job(IN_FIVE, r3=AT_FOUR), ("never_launched", (3,), "high"), id="one ran out of batches"),
        pytest.param(job(IN_FIVE, r1=LATE), ("never_launched", (1,), "medium"), id="one came eight minutes late"),
        pytest.param(job(GLOO, r3=GLOO_AT_FOUR), ("never_launched", (3,), "high"), id="gloo barrier"),
        pytest.param(job(IN_FIVE, r1=None, r2=None, r3=None), ("unknown", (), "low"), id="one dump of four"),
    ],
)
def test_situation(tmp_path: Path, ranks: dict[int, Dump], expected: tuple[object, ...]) -> None:
    result = verdict(tmp_path, ranks)
    assert (*blamed(result), result.metrics["confidence"]) == expected


def test_a_batched_ring_that_one_rank_does_not_enter(tmp_path: Path) -> None:
    ranks = {rank: Dump(**ring(rank)) for rank in range(4)}  # type: ignore[arg-type] # Dump's fields
    ranks[1] = Dump(**AT_FOUR)  # type: ignore[arg-type] # same
    assert blamed(verdict(tmp_path, ranks)) == ("never_launched", (1,))


def test_a_receive_from_the_wrong_rank_is_no_fault_of_the_network(tmp_path: Path) -> None:
    """All four are in the batch, but rank 1 waits for rank 3, which sends to 0: who is wrong cannot be told."""
    ranks = {rank: Dump(**ring(rank, 3 if rank == 1 else None)) for rank in range(4)}  # type: ignore[arg-type] # same
    result = verdict(tmp_path, ranks)
    assert blamed(result) == ("unknown", ())
    assert "other side" in " ".join(result.notes)


def test_uneven_exchanges_are_legal(tmp_path: Path) -> None:
    """Every rank passes other sizes to an all_to_all whose totals agree: no mismatch."""
    ranks = {
        rank: Dump(entries=[op(5, "nccl:all_to_all", input_sizes=[[10 + rank, 8]], output_sizes=[[13 - rank, 8]])])
        for rank in range(4)
    }
    assert blamed(verdict(tmp_path, ranks)) == ("all_inside", ())


def test_two_ranks_in_different_groups_wait_for_each_other(tmp_path: Path) -> None:
    """Rank 1 calls its pair's operation, rank 0 the one of all: both ways are equally frequent among those in both."""
    pairs: dict[str, tuple[str, list[int]]] = {"1": ("A", [0, 1]), "2": ("B", [2, 3])}
    world = ("default_pg", [0, 1, 2, 3])

    def of_pair(number: int, record: int) -> dict[str, object]:
        return op(number, process_group=("1", "A"), pg_id=1, record_id=record)

    ranks = {
        rank: Dump({"0": world, name: pairs[name]}, [op(5, record_id=2)])
        for rank, name in ((0, "1"), (1, "1"), (2, "2"), (3, "2"))
    }
    ranks[1].entries = [of_pair(2, 2)]
    ranks[0].entries.insert(0, {**of_pair(1, 1), "state": "completed"})
    ranks[1].entries.insert(0, {**of_pair(1, 1), "state": "completed"})
    result = verdict(tmp_path, ranks)
    assert result.metrics["cause"] == "deadlock"
    assert set(result.metrics["culprits"]) <= {0, 1}  # type: ignore[arg-type] # a tuple of ranks
    assert result.metrics["confidence"] == "low"


def test_a_crash_at_once_is_suspected_though_nothing_waited_long(tmp_path: Path) -> None:
    """Dumps written a second after the launch: no hang, unless a rank is missing, which may have taken all along."""
    assert blamed(verdict(tmp_path, job(IN_FIVE, r2=AT_FOUR), after_s=6)) == ("none", ())
    (tmp_path / "nccl_trace_rank_2").unlink()
    result = verdict(tmp_path, job(IN_FIVE, r2=None), after_s=6)
    assert (*blamed(result), result.metrics["confidence"]) == ("no_dump", (2,), "low")


def test_one_missing_rank_explains_what_also_lacks_others(tmp_path: Path) -> None:
    """Ranks 1 and 3 left no dump; rank 0 waits for 1 alone in its pair, and rank 2 for both in the operation of all."""
    world = ("default_pg", [0, 1, 2, 3])
    pair = op(2, process_group=("1", "PAIR"), pg_id=1, record_id=1)
    ranks = {0: Dump({"0": world, "1": ("PAIR", [0, 1])}, [pair]), 2: Dump({"0": world}, [op(5)])}
    assert blamed(verdict(tmp_path, ranks)) == ("no_dump", (1,))


def test_numbers_of_groups_that_are_a_ranks_own_join_nothing(tmp_path: Path) -> None:
    """Torch 2.3 tells groups by local numbers: group 1 of two ranks may be two groups, so nobody is behind there."""

    def old(number: int, local: int, *, done: bool = False) -> dict[str, object]:
        left_out = {"process_group", "collective_seq_id", "p2p_seq_id", "is_p2p"}
        told = {key: value for key, value in op(number, done=done).items() if key not in left_out}
        return {**told, "seq_id": number, "pg_id": local}

    ranks = {rank: Dump(entries=[old(3, 0, done=True), old(4 + rank, 1)]) for rank in range(4)}
    result = verdict(tmp_path, ranks)
    assert blamed(result) == ("unknown", ())
    assert result.metrics["confidence"] == "low"
