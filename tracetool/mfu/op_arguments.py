"""What a recorded call of an operator says: its arguments as parsed text, and the record of what it costs.

Arguments are text from a file made elsewhere: they are parsed, never evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DTYPE_BYTES: Final[Mapping[str, int]] = {
    "bf16": 2, "fp16": 2, "fp32": 4, "tf32": 4, "fp64": 8, "fp8": 1, "fp4": 1, "int8": 1, "int16": 2, "int32": 4,
    "int64": 8,
}  # fmt: skip
"""Bytes of one recorded element; fp4 elements are recorded in pairs, a byte each."""

_DTYPE_OF: Final[Mapping[str, str]] = {
    "c10::bfloat16": "bf16", "bfloat16": "bf16", "c10::half": "fp16", "half": "fp16", "float": "fp32",
    "double": "fp64", "signed char": "int8", "unsigned char": "int8", "char": "int8", "short": "int16",
    "int": "int32", "long": "int64", "long int": "int64", "long long": "int64",
}  # fmt: skip
SCALAR_TYPE_BYTES: Final[Mapping[int, int]] = {5: 2, 6: 4, 7: 8, 15: 2}
"""Bytes of c10::ScalarType numbers that an out_dtype argument takes: half, float, double, bfloat16."""

VARLEN: Final = "varlen_upper_bound"
"""Sequence lengths are not in the trace: counted as if all were as long as the longest."""
MASK: Final = "mask_unknown"
"""A mask or bias was passed, or whether the mask is causal was not recorded: counted in full."""
ALIGNMENT: Final = "causal_alignment"
"""Causal with different numbers of queries and keys: the diagonal is taken to end at the last key."""

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """What one call of an operator costs.

    `full` is what runs without credit for a causal mask, `causal` with it; `model_full` and `model_causal` leave out
    what a fused backward recomputes. `moved_bytes` counts each operand and each result once, the least that any
    implementation must move. `shape` is for readers.
    """

    family: str
    """matmul, grouped_matmul, convolution or attention."""
    dtype: str
    shape: str
    full: int
    causal: int
    model_full: int
    model_causal: int
    moved_bytes: int
    backward: bool = False
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arguments:
    """The recorded arguments of one call, by position."""

    dims: Sequence[object] = ()
    types: Sequence[object] = ()
    concrete: Sequence[object] = ()

    def size(self, position: int) -> Dims | None:
        """Return a tensor's sizes; None for what is not recorded, a list of tensors, or negative."""
        value = self.dims[position] if position < len(self.dims) else None
        if not isinstance(value, list) or not value:
            return None
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value):
            return None
        return tuple(value)

    def text(self, position: int) -> str:
        """Return the text of a scalar argument; empty when it was not recorded."""
        value = self.concrete[position] if position < len(self.concrete) else ""
        return value if isinstance(value, str) else ""

    def flag(self, position: int) -> bool | None:
        """Return a boolean argument; None when it was not recorded as one."""
        return {"True": True, "False": False}.get(self.text(position))

    def integer(self, position: int) -> int | None:
        """Return an integer argument; None when it was not recorded as one."""
        text = self.text(position).strip()
        return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None

    def integers(self, position: int) -> Dims | None:
        """Return a list of integers; None when it was not recorded as one."""
        text = self.text(position).strip()
        if not re.fullmatch(r"\[[-\d,\s]*\]", text):
            return None
        return tuple(int(n) for n in re.findall(r"-?\d{1,18}", text))

    def flags(self, position: int) -> tuple[bool, ...] | None:
        """Return a list of booleans; None when it was not recorded as one."""
        words = re.findall(r"True|False", self.text(position))
        return tuple(word == "True" for word in words) or None

    def dtype(self, position: int) -> str | None:
        """Return the number format of an argument by the names of `hardware.DTYPES`; None when it has none."""
        value = self.types[position] if position < len(self.types) else None
        return dtype_of(value) if isinstance(value, str) else None

    def tensors(self) -> list[tuple[int, Dims]]:
        """Return (position, sizes) of every tensor with at least two dimensions."""
        sized = ((at, self.size(at)) for at in range(len(self.dims)))
        return [(at, size) for at, size in sized if size is not None and len(size) >= 2]  # noqa: PLR2004 - a matrix


def dtype_of(recorded: str) -> str | None:
    """Return the number format that a tracer's type name means; None for what is not a number (or complex)."""
    name = recorded.strip().lower()
    if "float8" in name:
        return "fp8"
    if "float4" in name:
        return "fp4"
    return _DTYPE_OF.get(name)


@lru_cache(maxsize=65_536)
def items(text: str | None) -> tuple[object, ...]:
    """Parse one JSON list; anything else counts as not recorded."""
    if not text:
        return ()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return tuple(value) if isinstance(value, list) else ()


Handler = Callable[[Arguments], Work | None]
"""Counts one call; None when the arguments do not fit the operator."""
