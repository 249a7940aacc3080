"""What a flight-recorder dump seems to say and does not: one test a trap, from the dump to the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hang_harness import diagnose, parser, read
from written_dumps import BASE, SECOND, Dump, blamed, op, verdict, write

from tracetool.registry import ParseOptions

if TYPE_CHECKING:
    from pathlib import Path


def test_trap_1_pg_id_is_local(tmp_path: Path, shared: Path) -> None:
    """Both pairs call their group number 1, and even by one name: they are two groups, and rank 2 waits for 3 alone."""
    pairs = {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}
    job = {
        rank: Dump({"7": ("DATA", ranks)}, [op(5, pg_id=1, process_group=("7", "DATA"), done=rank < 2)])
        for rank, ranks in pairs.items()
    }
    job[3].entries = [op(4, pg_id=1, process_group=("7", "DATA"), done=True)]
    assert blamed(verdict(tmp_path, job)) == ("never_launched", (3,))
    # the labelled incident: number 11 is group 67 on rank 0, 68 on rank 4 and 72 on rank 8
    names = []
    for rank in (0, 4, 8):
        path = shared / "nccl" / "flight_recorder" / "gpu_error_2nd" / f"_dump_{rank}"
        status = parser("nccl_flight_recorder").parse(path, ParseOptions(path.name))["group_status"]
        names += status.filter(local_id="11")["group"].to_list()
    assert names == ["67", "68", "72"]


def test_trap_2_counters_count_sends_too(tmp_path: Path) -> None:
    """In a group that carries sends the counters say 900, its collectives are at 5: nobody is past or behind."""
    send = op(5, "nccl:send 0->1", is_p2p=True, p2p_seq_id=899, done=True, record_id=1)
    job = {rank: Dump(entries=[send, op(5, record_id=2)], status={"0": (900, 899)}) for rank in range(4)}
    assert blamed(verdict(tmp_path, job)) == ("all_inside", ())


def test_trap_3_an_empty_list_of_records_is_evidence(tmp_path: Path) -> None:
    """Only active records were dumped: the rank without any, with equal counters, is the one that did not come."""
    job = {rank: Dump(entries=[op(5)], status={"0": (5, 4)}) for rank in range(4)}
    job[2] = Dump(status={"0": (4, 4)})
    assert blamed(verdict(tmp_path, job)) == ("never_launched", (2,))


def test_trap_4_a_missing_record_may_be_a_finished_one(tmp_path: Path) -> None:
    """Rank 2 has no record of operation 5 but its counter says completed: it is not missing."""
    job = {rank: Dump(entries=[op(5)], status={"0": (5, 4)}) for rank in range(4)}
    job[2] = Dump(status={"0": (5, 5)})
    result = verdict(tmp_path, job)
    assert 2 not in (result.metrics["culprits"] or ())  # type: ignore[operator] # a tuple of ranks
    assert result.metrics["cause"] != "never_launched"


def test_trap_5_times_of_discovery_are_no_durations(tmp_path: Path) -> None:
    """Without duration_ms there is no duration, whenever the watchdog noticed."""
    seen = op(5, done=True, time_discovered_started_ns=BASE, time_discovered_completed_ns=BASE + SECOND)
    write(tmp_path, {0: Dump(entries=[seen, op(6, done=True, duration_ms=1.5)])})
    table = read(tmp_path)[0]["collectives"]
    assert table["duration_ns"].to_list() == [None, 1_500_000]


def test_trap_6_started_is_seldom_told_and_retired_is_not_completed(tmp_path: Path) -> None:
    """`scheduled` may be running; a retired one that never completed timed out and is still in flight."""
    job = {rank: Dump(entries=[op(5, retired=True)], status={"0": (5, 4)}) for rank in range(4)}
    job[1] = Dump(entries=[op(4, done=True)], status={"0": (4, 4)})
    result = verdict(tmp_path, job)
    assert blamed(result) == ("never_launched", (1,))
    assert result.tables["in_flight"]["ranks"].to_list() == ["0,2-3"]


def test_trap_7_gloo_is_done_when_it_is_retired(tmp_path: Path) -> None:
    """Gloo leaves finished operations `scheduled`, writes one nameless group and no members: those are the world."""
    finished = [op(seq, "gloo:all_reduce", retired=True) for seq in range(1, 5)]
    nameless: dict[str, tuple[str, list[int]]] = {"": ("", [])}
    job = {rank: Dump(nameless, [*finished, op(5, "gloo:all_reduce")], {"0": (5, 4)}) for rank in range(4)}
    job[3] = Dump(nameless, finished, {"0": (4, 4)})
    result = verdict(tmp_path, job)
    assert blamed(result) == ("never_launched", (3,))
    assert result.tables["waiting"]["group_ranks"].to_list() == ["0-3"]


def test_trap_8_ring_buffers_begin_at_different_records(tmp_path: Path) -> None:
    """Rank 1 launched more in another group, so its ids run ahead and its oldest records are gone: numbers align."""
    job = {
        rank: Dump(entries=[op(seq, record_id=seq + 500 * rank, done=seq < 9) for seq in range(5 + rank, 10)])
        for rank in range(4)
    }
    job[2].entries.pop()
    assert blamed(verdict(tmp_path, job)) == ("never_launched", (2,))


def test_trap_9_dumps_are_snapshots_of_different_moments(tmp_path: Path, shared: Path) -> None:
    """Written a second after the launch, one rank a moment before the others: a lag, and no hang."""
    job = {rank: Dump(entries=[op(4, done=True), op(5)]) for rank in range(4)}
    job[2].entries.pop()
    assert blamed(verdict(tmp_path, job, after_s=6)) == ("none", ())
    # rank 2 is past what ranks 0 and 3 have in flight, because its dump is a little younger: they are not stuck
    sizes = diagnose(read(shared / "nccl" / "flight_recorder_gloo" / "size_mismatch"))
    assert blamed(sizes) == ("no_dump", (1,))


def _half(rank: int, name: str, number: int, place: int) -> dict[str, object]:
    return op(0, f"nccl:{name}", is_p2p=True, p2p_seq_id=number, record_id=place, time_created_ns=BASE + rank)


def test_trap_10_sends_pair_by_their_mirror_never_by_number(tmp_path: Path) -> None:
    """Rank 0's 8th send meets rank 1's 3rd receive; rank 2 receives from 3, who never posted the send."""
    job = {
        0: Dump(entries=[_half(0, "send 0->1", 8, 1)]),
        1: Dump(entries=[_half(1, "recv 1<-0", 3, 1)]),
        2: Dump(entries=[_half(2, "recv 2<-3", 6, 1)]),
        3: Dump(entries=[op(4, done=True)]),
    }
    result = verdict(tmp_path, job)
    assert blamed(result) == ("never_launched", (3,))
    assert result.tables["waiting"].select("ranks", "waits_for").rows() == [("2", "3")]


@pytest.mark.parametrize(
    ("third", "found"), [([[6, 8]], ("all_inside", ())), ([[7, 8]], ("mismatched_arguments", (2,)))]
)
def test_trap_10_uneven_sizes(tmp_path: Path, third: list[list[int]], found: tuple[object, object]) -> None:
    """An all_to_all may be uneven while its totals agree; a list of tensors counts with the sum of its sizes."""
    pieces = [[2, 8], [2, 8], [2, 8]]
    usual = op(5, "nccl:all_to_all", input_sizes=[[6, 8]], output_sizes=pieces)
    job = {rank: Dump({"0": ("default_pg", [0, 1, 2])}, [usual]) for rank in range(3)}
    job[2].entries = [op(5, "nccl:all_to_all", input_sizes=third, output_sizes=pieces)]
    assert blamed(verdict(tmp_path, job)) == found
