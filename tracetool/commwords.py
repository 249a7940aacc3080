"""One vocabulary for what communication libraries spell in many ways: operations and element types."""

from __future__ import annotations

from functools import cache
from typing import Final

_OPERATIONS: Final = (
    ("allreducebarrier", "barrier"),
    ("allreduce", "all_reduce"),
    ("allgather", "all_gather"),
    ("reducescatter", "reduce_scatter"),
    ("alltoall", "all_to_all"),
    ("sendrecv", "send_recv"),
    ("broadcast", "broadcast"),
    ("reduce", "reduce"),
    ("gather", "gather"),
    ("scatter", "scatter"),
    ("send", "send"),
    ("recv", "recv"),
    ("barrier", "barrier"),
    ("coalesced", "coalesced"),
)
"""Beginning of the name without underscores and case, and the word for it; the first that fits counts."""

_DTYPE_BYTES: Final = {
    "double": 8, "float64": 8, "long": 8, "int64": 8, "uint64": 8, "complexfloat": 8,
    "float": 4, "float32": 4, "int": 4, "int32": 4, "uint32": 4, "complexhalf": 4,
    "half": 2, "float16": 2, "bfloat16": 2, "short": 2, "int16": 2, "uint16": 2,
    "char": 1, "byte": 1, "bool": 1, "int8": 1, "uint8": 1, "complexdouble": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "fp8_e4m3": 1, "fp8_e5m2": 1, "float8e4m3": 1, "float8e5m2": 1,
}  # fmt: skip


LOCAL_GROUP: Final = "local "
"""How the name of a group begins that is known by the rank's own number of it: it says nothing beside another's."""


@cache
def operation(name: str) -> str:
    """Return the plain word for an operation as PyTorch, NCCL or a watchdog spells it.

    `nccl:_all_gather_base`, `AllGather`, `_ALLGATHER_BASE` are all `all_gather`; `nccl:send 0->3` is `send`.
    A name nobody knows comes back without backend prefix and arrow, in lower case.
    """
    bare = name.rpartition(":")[2].strip().partition(" ")[0]
    squeezed = bare.replace("_", "").casefold()
    for beginning, word in _OPERATIONS:
        if squeezed.startswith(beginning):
            return word
    return bare.casefold() or "unknown"


@cache
def dtype_bytes(dtype: str) -> int | None:
    """Return the size of one element in bytes, for c10 names (`BFloat16`) and NCCL's (`ncclBfloat16`); else None."""
    return _DTYPE_BYTES.get(dtype.casefold().removeprefix("nccl").removeprefix("torch."))
