"""NCCL_DEBUG and watchdog lines: every generation, prefixes, interleaving, many ranks a file, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hang_harness import diagnose, parser
from hypothesis import given
from hypothesis import strategies as st

from tracetool.errors import UnreadableTrace
from tracetool.registry import ParseOptions
from tracetool.settings import Settings
from tracetool.tables import check

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result
    from tracetool.tables import Tables

log = parser("nccl_log")

TIMED_OUT = (
    "[rank{r}]:[E603 17:48:01.005 ProcessGroupNCCL.cpp:632] [Rank {r}] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=12, OpType=ALLREDUCE, NumelIn=865, NumelOut=865, Timeout(ms)=600000) ran for 600068 milliseconds "
    "before timing out.\n"
    "[rank{r}]:[E603 17:48:01.006 ProcessGroupNCCL.cpp:2268] [PG ID 0 PG GUID 0(default_pg) Rank {r}]  failure "
    "detected by watchdog at work sequence id: 12 PG status: last enqueued work: 14, last completed work: 11\n"
)
SIGNALLED = (
    "[rank{r}]:[E603 17:48:02.006 ProcessGroupNCCL.cpp:683] [PG ID 0 PG GUID 0(default_pg) Rank {r}] Received a dump "
    "signal due to a collective timeout from  rank 0 and we will try our best to dump the debug info. Last enqueued "
    "NCCL work: 11, last completed NCCL work: 11.\n"
)


def parse(folder: Path, text: str, name: str = "job.log") -> Tables:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    assert log.sniff(path, path.read_bytes()[:65_536])
    tables: Tables = log.parse(path, ParseOptions(name))
    for table, content in tables.items():
        check(table, content)
    return tables


def judge(folder: Path, text: str, world: int) -> Result:
    return diagnose([parse(folder, text)], Settings(world_size=world))


def test_excerpts(shared: Path) -> None:
    path = shared / "nccl" / "nccl_debug" / "excerpts.log"
    tables = log.parse(path, ParseOptions("excerpts.log"))
    assert tables["group_status"].select("rank", "group", "last_enqueued", "last_completed").rows() == [
        (1, "local 1", 158046, 158045),
        (7, "1", 1, -1),
        (118, "0", 2398578, 2398458),
    ]
    timeouts = tables["collectives"].filter("in_flight").select("rank", "seq", "op", "in_elems", "timeout_ns").rows()
    assert timeouts == [
        (1, 158046, "gather", 2867200, 600_000_000_000),
        (118, 2398459, "all_reduce", 8652160, 1_800_000_000_000),
    ]
    phases = tables["log_facts"].filter(topic="init_phase").select("name", "number").rows()
    assert ("total_ns", 1_580_000_000) in phases


def test_one_watchdog_alone_accuses_nobody(tmp_path: Path) -> None:
    metrics = judge(tmp_path, TIMED_OUT.format(r=118), 128).metrics
    assert (metrics["cause"], metrics["culprits"]) == ("unknown", ())


def test_watchdogs_name_the_rank_whose_counters_lag(tmp_path: Path) -> None:
    text = "".join((SIGNALLED if r == 3 else TIMED_OUT).format(r=r) for r in range(8))
    result = judge(tmp_path, text, 8)
    assert (result.metrics["cause"], result.metrics["culprits"]) == ("never_launched", (3,))
    assert (result.metrics["group"], result.metrics["op"], result.metrics["seq"]) == ("0", "all_reduce", 12)


def test_a_silent_rank_is_suspected_at_most(tmp_path: Path) -> None:
    text = "".join(TIMED_OUT.format(r=r) for r in range(8) if r != 5)
    metrics = judge(tmp_path, text, 8).metrics
    assert (metrics["cause"], metrics["culprits"]) == ("no_dump", (5,))
    assert metrics["confidence"] != "high"


def test_all_timed_out_in_the_same_operation(tmp_path: Path) -> None:
    metrics = judge(tmp_path, "".join(TIMED_OUT.format(r=r) for r in range(8)), 8).metrics
    assert (metrics["cause"], metrics["culprits"]) == ("all_inside", ())


def test_ranks_come_from_the_largest_communicator(tmp_path: Path) -> None:
    lines = [
        f"host{r // 2}:{100 + r}:{200 + r} [{r % 2}] NCCL INFO comm 0x55{r:02x} rank {r} nranks 4 cudaDev {r % 2} "
        f"nvmlDev {r % 2} busId 1000 commId 0xabc - Init COMPLETE\n"
        f"host{r // 2}:{100 + r}:{200 + r} [{r % 2}] NCCL INFO comm 0x66{r:02x} rank {r // 2} nranks 2 cudaDev {r % 2} "
        f"busId 1000 commId 0xdef{r % 2} - Init COMPLETE\n"
        f"host{r // 2}:{100 + r}:{200 + r} [{r % 2}] NCCL INFO AllGather: opCount 1f sendbuff 0x7 recvbuff 0x8 count "
        f"10 datatype 9 op 0 root 0 comm 0x66{r:02x} [nranks=2] stream 0x1\n"
        for r in range(4)
    ]
    tables = parse(tmp_path, "".join(lines))
    assert tables["ranks"].select("rank", "world_size", "host").rows() == [
        (0, 4, "host0"), (1, 4, "host0"), (2, 4, "host1"), (3, 4, "host1"),
    ]  # fmt: skip
    assert tables["collectives"].select(
        "rank", "group", "seq", "op", "in_elems", "out_elems", "bytes", "in_flight"
    ).rows() == [(r, f"0xdef{r % 2}", 31, "all_gather", 10, 20, 40, None) for r in range(4)]


def test_interleaved_writers_keep_their_lines(tmp_path: Path) -> None:
    coll = (
        "Broadcast: opCount {c} sendbuff 0x1 recvbuff 0x2 count 5 datatype 7 op 0 root 0 "
        "comm 0x1{c} [nranks=2] stream 0x1"
    )
    text = (
        "node:10:11 [0] NCCL INFO comm 0x10 rank 0 nranks 2 cudaDev 0 busId 1 commId 0x9 - Init COMPLETE\n"
        "node:20:21 [1] NCCL INFO comm 0x11 rank 1 nranks 2 cudaDev 1 busId 2 commId 0x9 - Init COMPLETE\n"
        f"node:10:11 [0] NCCL INFO node:20:21 [1] NCCL INFO {coll.format(c=1)}\n{coll.format(c=0)}\n"
    )
    tables = parse(tmp_path, text)
    assert tables["collectives"].select("rank", "seq", "group").rows() == [(0, 0, "0x9"), (1, 1, "0x9")]


def test_carriage_returns_colours_and_launcher_prefixes(tmp_path: Path) -> None:
    text = f"\x1b[36m(Worker pid=1)\x1b[0m {TIMED_OUT.format(r=2)}".replace("\n", "\r\n")
    assert parse(tmp_path, text)["group_status"]["rank"].to_list() == [2]


def test_a_log_without_nccl_is_no_source(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text("step 1 loss 3.2\nNCCL is mentioned\n")
    assert not log.sniff(path, path.read_bytes())
    with pytest.raises(UnreadableTrace, match="none of its"):
        log.parse(path, ParseOptions("train.log"))


def test_a_watchdog_line_at_the_end_of_a_long_log_is_found(tmp_path: Path) -> None:
    tables = parse(tmp_path, "step\n" * 40_000 + TIMED_OUT.format(r=4))
    assert tables["group_status"]["rank"].to_list() == [4]


PIECES = st.sampled_from(
    [
        TIMED_OUT.format(r=1),
        SIGNALLED.format(r=2),
        "node:10:11 [0] NCCL INFO ",
        "opCount ffffffffffffffff ",
        "comm 0x10 rank 0 nranks 2 ",
        "Init COMPLETE",
        "[PG ID 0 PG GUID 0(default_pg) Rank 99]",
        "\n",
        "\r",
        "\x00",
        "AllReduce: opCount 3 sendbuff 0x1 recvbuff 0x2 count 9 datatype 99 op 0 root -1 comm 0x1 [nranks=0] stream 0",
        "Channel 00/0 : 0[1] -> 1[2] via NET/IB/0/GDRDMA",
        "64 Bytes -> Algo RING proto LL channel{Lo..Hi}={3..1}",
        "last enqueued work: -1, last completed work: 9",
        "Init timings - x: rank 1 nranks 2 total 9.9 (a 1, b 2)",
    ]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=20)), max_size=30))
def test_fuzzed_lines_never_crash(tmp_path_factory: pytest.TempPathFactory, pieces: list[str]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "job.log"
    path.write_text("".join(pieces), encoding="utf-8", errors="replace")
    try:
        tables = log.parse(path, ParseOptions("job.log"))
    except UnreadableTrace:
        return
    for table, content in tables.items():
        check(table, content)
    assert diagnose([tables]).status in ("ok", "skipped")
