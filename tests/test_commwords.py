"""One word for every spelling of an operation and a size for every element type."""

from __future__ import annotations

import pytest

from tracetool.commwords import dtype_bytes, operation


@pytest.mark.parametrize(
    ("spelled", "word"),
    [
        ("nccl:_all_gather_base", "all_gather"),
        ("AllGather", "all_gather"),
        ("_ALLGATHER_BASE", "all_gather"),
        ("nccl:all_reduce_barrier", "barrier"),
        ("ALLREDUCE", "all_reduce"),
        ("nccl:_reduce_scatter_base", "reduce_scatter"),
        ("nccl:_reduce_oop", "reduce"),
        ("AlltoAll", "all_to_all"),
        ("ALLTOALL_BASE", "all_to_all"),
        ("nccl:send 0->3", "send"),
        ("SendRecv", "send_recv"),
        ("gloo:gather", "gather"),
        ("COALESCED", "coalesced"),
        ("nccl:something_new", "something_new"),
        ("", "unknown"),
    ],
)
def test_operation(spelled: str, word: str) -> None:
    assert operation(spelled) == word


def test_dtype_bytes() -> None:
    assert [dtype_bytes(word) for word in ("BFloat16", "Float", "ncclFloat32", "int64", "float8_e5m2", "Odd")] == [
        2, 4, 4, 8, 1, None,
    ]  # fmt: skip
