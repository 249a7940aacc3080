"""NCCL's own ranges: operation of kernels launched in groups, sizes, peers and communicators from payloads."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from simulator_nsight import Call, Capture, Kernel, Range, write

from tracetool.registry import ParseOptions
from tracetool.tables import check

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.tables import Tables

nsight = import_module("tracetool.parsers.nsight")
ALL, PAIR = 0xDEAD_BEEF_0000_0001, 0x77
COLUMNS = ("op", "group", "group_size", "in_bytes", "out_bytes", "peer")


def read(path: Path) -> Tables:
    found: Tables = nsight.parse(path, ParseOptions(display_path=path.name))
    for name, table in found.items():
        check(name, table)
    return found


class Script:
    """Writes what one thread did: NCCL calls and the kernels they launched, one after the other."""

    def __init__(self, pid: int, device: int, rank: int) -> None:
        self.pid, self.device, self.rank = pid, device, rank
        self.at = 1_000 + pid
        self.number = 0
        self.kernels: list[Kernel] = []
        self.calls: list[Call] = []
        self.ranges: list[Range] = []

    def call(
        self, name: str, payload: dict[str, int] | None = None, launches: tuple[str, ...] = (), domain: int = 3
    ) -> None:
        """Record an NVTX range and inside it launches of kernels."""
        start = self.at
        for kernel in launches:
            self.number += 1
            self.calls.append(Call(self.pid, self.pid, self.at + 1, self.at + 3, self.number))
            self.kernels.append(
                Kernel(self.pid, self.device, 7, self.at + 5, self.at + 9, self.number, f"{kernel}(ncclDevKernelArgs)")
            )
            self.at += 10
        self.at += 10
        self.ranges.append(
            Range(self.pid, self.pid, start, self.at - 1, name, by_id=True, domain=domain, payload=payload)
        )

    def init(self, communicator: int, ranks: int, rank: int) -> None:
        payload = {"communicator": communicator, "ranks": ranks, "rank": rank, "device": self.device}
        self.call("ncclCommInitRankConfig", payload)

    def group(self, *calls: tuple[str, dict[str, int]], launches: tuple[str, ...]) -> None:
        self.call("ncclGroupStart")
        for name, payload in calls:
            self.call(name, payload)
        self.call("ncclGroupEnd", launches=launches)


def script(pid: int, device: int, rank: int) -> Script:
    made = Script(pid, device, rank)
    made.init(ALL, 2, rank)
    made.init(PAIR, 2, 1 - rank)
    other = 1 - rank
    made.call(
        "ncclAllReduce", {"communicator": ALL, "bytes": 4_096, "redop": 0}, ("ncclDevKernel_AllReduce_Sum_f32_RING_LL",)
    )
    made.call("ncclAllGather", {"communicator": ALL, "bytes": 100}, ("ncclDevKernel_AllGather_RING_LL",))
    made.call(
        "ncclReduceScatter",
        {"communicator": ALL, "bytes": 50, "redop": 0},
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL",),
    )
    made.call("ncclBroadcast", {"communicator": ALL, "bytes": 7, "root": 0}, ("ncclDevKernel_Generic_1",))
    made.group(
        ("ncclSend", {"communicator": PAIR, "bytes": 64, "peer": rank}),  # positions are swapped in PAIR
        launches=("ncclDevKernel_SendRecv",),
    )
    made.group(
        ("ncclSend", {"communicator": ALL, "bytes": 30, "peer": other}),
        ("ncclRecv", {"communicator": ALL, "bytes": 40, "peer": other}),
        launches=("ncclDevKernel_SendRecv",),
    )
    made.group(
        ("ncclAllReduce", {"communicator": ALL, "bytes": 8, "redop": 0}),
        ("ncclAllReduce", {"communicator": PAIR, "bytes": 16, "redop": 0}),
        launches=("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "ncclDevKernel_AllReduce_Sum_f32_RING_LL"),
    )
    return made


def capture(*scripts: Script, **changes: Any) -> Capture:  # noqa: ANN401 - fields of Capture
    return Capture(
        kernels=[k for s in scripts for k in s.kernels],
        calls=[c for s in scripts for c in s.calls],
        ranges=[r for s in scripts for r in s.ranges],
        **changes,
    )


def rows(tables: Tables, rank: int) -> list[tuple[Any, ...]]:
    found = tables["comm_args"].filter(pl.col("rank") == rank)
    return found.with_columns(pl.col(pl.Categorical).cast(pl.String)).select(COLUMNS).rows()


@pytest.mark.parametrize("schema_base", [1 << 24, (1 << 24) + 90])
@pytest.mark.parametrize("form", ["sqlite", "parquetdir", "arrowdir"])
def test_payloads_say_sizes_peers_and_communicators(tmp_path: Path, schema_base: int, form: Any) -> None:  # noqa: ANN401 - parametrized
    # devices in the opposite order of ranks: the ranks come from NCCL
    both = capture(script(50, 1, 0), script(60, 0, 1))
    tables = read(write(tmp_path / "r", both, blobs=True, schema_base=schema_base, form=form))
    everyone, pair = f"0x{ALL:x}", "0x77"
    for rank in (0, 1):
        assert rows(tables, rank) == [
            ("all_reduce", everyone, 2, 4_096, 4_096, None),
            ("all_gather", everyone, 2, 100, 200, None),
            ("reduce_scatter", everyone, 2, 100, 50, None),
            ("broadcast", everyone, 2, 7, 7, None),
            ("send", pair, 2, 64, None, 1 - rank),
            ("send_recv", everyone, 2, 30, 40, None),
            # two kernels, two communicators: whose is whose is not said
            ("all_reduce", None, None, None, None, None),
            ("all_reduce", None, None, None, None, None),
        ]
    ranks = tables["ranks"]
    assert ranks.select("rank", "pid", "device", "rank_source").rows() == [
        (0, 50, 1, "metadata"),
        (1, 60, 0, "metadata"),
    ]
    groups = tables["process_groups"]
    assert groups.select("rank", "group", "ranks", "size").rows() == [
        (0, "0x77", [1, 0], 2),
        (0, everyone, [0, 1], 2),
        (1, "0x77", [1, 0], 2),
        (1, everyone, [0, 1], 2),
    ]
    assert "4 of 16 NCCL kernels share their group" in "\n".join(tables["sources"]["notes"][0].to_list())


def test_without_payloads_operations_are_still_told(tmp_path: Path) -> None:
    tables = read(write(tmp_path / "r.sqlite", capture(script(50, 0, 0))))
    assert [row[0] for row in rows(tables, -1)] == [
        "all_reduce", "all_gather", "reduce_scatter", "broadcast", "send", "send_recv", "all_reduce", "all_reduce",
    ]  # fmt: skip
    assert all(row[1:] == (None,) * 5 for row in rows(tables, -1))
    assert "--include-blobs=true" in "\n".join(tables["sources"]["notes"][0].to_list())


def test_a_domain_that_names_itself_is_nccls_whatever_else_is_in_it(tmp_path: Path) -> None:
    one = script(50, 0, 0)
    one.ranges.append(Range(50, 50, 1, None, "NCCL", domain=3, type=75))
    one.ranges.append(Range(50, 50, 2, 3, "other", domain=3))
    assert len(rows(read(write(tmp_path / "r.sqlite", capture(one))), -1)) == 8


def test_ranges_called_like_nccl_in_the_programs_own_domain_tell_nothing(tmp_path: Path) -> None:
    one = Script(50, 0, 0)
    one.call("ncclAllReduce", None, ("ncclDevKernel_Generic_1",), domain=0)
    assert rows(read(write(tmp_path / "r.sqlite", capture(one))), -1) == []


def test_a_file_that_begins_inside_a_group(tmp_path: Path) -> None:
    one = Script(50, 0, 0)
    one.call("ncclSend", {"communicator": ALL, "bytes": 5, "peer": 0})
    one.call("ncclGroupEnd", launches=("ncclDevKernel_SendRecv",))
    one.group(("ncclRecv", {"communicator": ALL, "bytes": 6, "peer": 0}), launches=("ncclDevKernel_SendRecv",))
    found = rows(read(write(tmp_path / "r.sqlite", capture(one), blobs=True)), -1)
    assert [(row[0], row[4]) for row in found] == [("recv", 6)]


def test_groups_within_groups_launch_at_the_outer_end(tmp_path: Path) -> None:
    one = Script(50, 0, 0)
    one.call("ncclGroupStart")
    one.group(("ncclSend", {"communicator": ALL, "bytes": 5, "peer": 0}), launches=())
    one.call("ncclSend", {"communicator": ALL, "bytes": 6, "peer": 0})
    one.call("ncclGroupEnd", launches=("ncclDevKernel_SendRecv",))
    found = rows(read(write(tmp_path / "r.sqlite", capture(one), blobs=True)), -1)
    assert [(row[0], row[3]) for row in found] == [("send", 11)]


def test_payloads_of_an_unknown_layout_are_counted_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "r", capture(script(50, 0, 0)), blobs=True, form="parquetdir")
    events = pl.read_parquet(path / "NVTX_EVENTS.parquet")
    cut = events.with_columns(pl.col("binaryData").bin.slice(0, 20))
    cut.write_parquet(path / "NVTX_EVENTS.parquet")
    tables = read(path)
    assert all(row[1:] == (None,) * 5 for row in rows(tables, -1))
    assert "have a layout that is not known" in "\n".join(tables["sources"]["notes"][0].to_list())
