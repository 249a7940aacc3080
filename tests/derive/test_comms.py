"""One row a communication kernel, in one vocabulary, from whatever recorded it."""

from __future__ import annotations

from typing import Any

import pytest
from derive.build import base, event, launched

from tracetool import tables
from tracetool.derive import derive
from tracetool.derive.comms import group_ranks, kernel_operation, operation
from tracetool.settings import Settings

ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL"
SEND_RECV = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"
GENERIC = "ncclDevKernel_Generic"


def test_arguments_on_the_kernel() -> None:
    rows = launched(
        1, 5, 10, 40, name=ALL_REDUCE, op="_ALLGATHER_BASE", group="3", group_desc="fsdp", group_ranks="[0, 2]",
        group_size=2, in_bytes=100, out_bytes=200, dtype="BFloat16", seq=17,
    )  # fmt: skip
    comms = derive(base(rows), Settings())["comms"]
    tables.check("comms", comms)
    assert comms.drop("name", "rank", "track").row(0, named=True) == {
        "event": 1, "op": "all_gather", "group": "3", "group_desc": "fsdp", "group_ranks": [0, 2], "group_size": 2,
        "seq": 17, "start_ns": 10, "dur_ns": 30, "bytes": 200, "dtype": "BFloat16", "peer": None, "step": None,
    }  # fmt: skip


def test_arguments_on_the_range_around_the_launch_fill_what_is_missing() -> None:
    outer = event("cpu_op", "record_param_comms", 0, 50, op="allreduce", group="1", group_size=4, seq=9)
    inner = event("cpu_op", "record_param_comms", 4, 9, op="all_reduce", group="2", group_size=2, seq=8, in_bytes=64)
    rows = [outer, inner, *launched(1, 5, 60, 70, name=GENERIC), *launched(2, 20, 70, 80, name=ALL_REDUCE, seq=77)]
    rows += launched(3, 21, 80, 90, name=ALL_REDUCE, op="broadcast")
    columns = ("op", "group", "group_size", "seq", "bytes")
    assert derive(base(rows), Settings())["comms"].select(columns).rows() == [
        ("all_reduce", "2", 2, 8, 64),
        ("all_reduce", "1", 4, 77, None),
        ("broadcast", None, None, None, None),  # another operation's arguments are not borrowed
    ]


def test_a_named_range_tells_what_sends_and_receives_are_for() -> None:
    def around(number: int, name: str, kernel: str) -> list[dict[str, object]]:
        at = 10 * number
        return [event("annotation", name, at, at + 9), *launched(number, at + 1, 100 + at, 105 + at, name=kernel)]

    rows = [
        *around(1, "nccl:all_to_all", SEND_RECV),
        *around(2, "nccl:coalesced", SEND_RECV),
        *around(3, "nccl:send 0->1", SEND_RECV),
        *around(4, "nccl:all_reduce", SEND_RECV),
        *around(5, "nccl:_reduce_scatter_base", GENERIC),
        *around(6, "nccl:all_to_all", ALL_REDUCE),
        event("kernel", GENERIC, 300, 310),
    ]
    ops = derive(base(rows), Settings())["comms"]["op"].to_list()
    assert ops == ["all_to_all", "send_recv", "send", "send_recv", "reduce_scatter", "all_reduce", "unknown"]


def test_a_named_range_tells_the_peer_by_its_place_in_the_group() -> None:
    """The trap: both numbers count within the group, not within the job."""

    def around(number: int, name: str, **args: Any) -> list[dict[str, object]]:  # noqa: ANN401 - arguments of any type
        at = 10 * number
        kernel = launched(number, at + 1, 100 + at, 105 + at, name=SEND_RECV, **args)
        return [event("annotation", name, at, at + 9), *kernel]

    here: dict[str, Any] = {"group": "7", "group_size": 3, "group_ranks": "[0, 4, 8]"}
    rows = [
        *around(1, "nccl:send 0->2", **here),
        *around(2, "nccl:recv 0<-1", **here),
        *around(3, "nccl:send 1->2", **here),
        *around(4, "nccl:send 0->3", **here),
        *around(5, "nccl:send 0->1", group="8"),
        *around(6, "nccl:send 0->2", peer=5, **here),
        *around(7, "nccl:send 0->2", op="recv", **here),
        *around(8, "nccl:coalesced", **here),
    ]
    found = derive(base(rows), Settings())["comms"].select("op", "peer").rows()
    assert found == [
        ("send", 8),
        ("recv", 4),
        ("send", None),  # the own place is another rank's: the name is not about this group
        ("send", None),  # no such place
        ("send", None),  # the group's ranks are not known
        ("send", 5),  # recorded
        ("recv", None),  # the range is about another operation
        ("send_recv", None),
    ]


def test_ranks_of_a_group_by_its_name() -> None:
    groups = tables.frame("process_groups", {"rank": [0, 0], "group": ["a", "b"], "ranks": [[0, 1, 2], [0, 4]]})
    rows = [
        *launched(1, 1, 10, 20, name=ALL_REDUCE, group="a", group_size=3, group_ranks="[0, 1, ...]"),
        *launched(2, 2, 20, 30, name=ALL_REDUCE, group="b", group_size=3),
        *launched(3, 3, 30, 40, name=ALL_REDUCE, group="c"),
        *launched(4, 4, 40, 50, name=ALL_REDUCE, group="b"),
    ]
    comms = derive(base(rows, process_groups=groups), Settings())["comms"]
    assert comms["group_ranks"].to_list() == [[0, 1, 2], None, None, [0, 4]]


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("[0, 1]", 2, [0, 1]),
        ("[5,3,9]", None, [5, 3, 9]),
        ("0-3", 4, [0, 1, 2, 3]),
        ("[0-1, 8-9]", 4, [0, 1, 8, 9]),
        ("0:8:2", 4, [0, 2, 4, 6]),
        ("[0, 1, ..., 7]", 8, None),
        ("[0, 1, 2", 8, None),
        ("[0, 0]", 2, None),
        ("[]", 0, None),
        ("", None, None),
        (None, 2, None),
        ("0-9999999", None, None),
        ("0:5:0", None, None),
        ("1-2-3", None, None),
        ("__import__('os')", None, None),
    ],
)
def test_group_ranks_from_text(text: str | None, size: int | None, expected: list[int] | None) -> None:
    assert group_ranks(text, size) == expected


def test_operations_as_tracers_spell_them() -> None:
    spelled = {
        "allreduce": "all_reduce", "_allgather_base": "all_gather", "nccl:_reduce_scatter_base": "reduce_scatter",
        "reduce_scatter_tensor_coalesced": "reduce_scatter", "all_to_allv": "all_to_all", "_broadcast_oop": "broadcast",
        "nccl:recv 1<-0": "recv", "barrier": "barrier", "coalesced": None, "init": None, "": None,
    }  # fmt: skip
    assert {name: operation(name) for name in spelled} == spelled


def test_operations_in_kernel_names() -> None:
    named = {
        ALL_REDUCE: "all_reduce", SEND_RECV: "send_recv", GENERIC: "unknown",
        "ncclDevKernel_Reduce_Sum_f32_RING_LL": "reduce", "ncclKernel_ReduceScatter_RING_LL_Sum_half": "reduce_scatter",
        "ncclDevKernel_Broadcast_RING_LL": "broadcast", "ncclSymkDevKernel_AllGather_LL": "all_gather",
        "deep_ep::internode::notify_dispatch": "unknown", "dpsk::ep::internode::combine<8>": "all_to_all",
        "_ZN5aiter26cross_device_reduce_1stageIDF16": "all_reduce", "multimem_one_shot_all_reduce": "all_reduce",
    }  # fmt: skip
    assert {name: kernel_operation(name) for name in named} == named
