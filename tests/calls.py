"""Recorded calls as JSON text, the way a trace holds them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tracetool.mfu import flops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.mfu.op_arguments import Work

BF16 = "c10::BFloat16"


def work(
    name: str, dims: Sequence[object], concrete: Sequence[str] = (), types: str | Sequence[str] = BF16
) -> Work | None:
    """Count one call; one type for all tensors, or one each."""
    spelled = [types if dims[i] else "Scalar" for i in range(len(dims))] if isinstance(types, str) else list(types)
    return flops.count(name, json.dumps(list(dims)), json.dumps(spelled), json.dumps(list(concrete)))


def full(
    name: str, dims: Sequence[object], concrete: Sequence[str] = (), types: str | Sequence[str] = BF16
) -> int | None:
    """Return the executed FLOPs of one call; None when it is not counted."""
    found = work(name, dims, concrete, types)
    return None if found is None else found.full
