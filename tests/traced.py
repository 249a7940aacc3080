"""One rank written as a tree of calls, to ask what ran without a trace file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl
from inmemory import MemoryRank, steps

from tracetool.tables import frame

if TYPE_CHECKING:
    from collections.abc import Sequence

BF16 = "c10::BFloat16"


@dataclass
class Call:
    """An operator: what it was given, what it called, which (kernel name, kind, ns) it launched itself."""

    name: str
    dims: Sequence[object] | None = None
    children: Sequence[Call] = ()
    kernels: Sequence[tuple[str, str, int]] = ()
    concrete: Sequence[str] = ()
    dtype: str = BF16
    phase: str = "forward"
    step: int | None = 0
    sequence: int | None = None


def mm(m: int, k: int, n: int, *kernel_ns: int, **about: Any) -> Call:  # noqa: ANN401 - fields of Call
    """Return a product below its usual wrappers; no kernel time, no kernel."""
    kernels = [("sm90_gemm_bf16", "compute", ns) for ns in kernel_ns]
    return Call(
        "aten::linear", [[m, k], [n, k]], [Call("aten::mm", [[m, k], [k, n]], kernels=kernels, **about)], **about
    )


@dataclass
class _Rows:
    events: list[dict[str, Any]] = field(default_factory=list)
    shapes: list[dict[str, Any]] = field(default_factory=list)
    gpu: list[dict[str, Any]] = field(default_factory=list)

    def add(self, call: Call, parent: int | None) -> None:
        event = len(self.events)
        about = {"step": call.step, "phase": call.phase}
        self.events.append({"name": call.name, "parent": parent, **about})
        if call.dims is not None or call.sequence is not None:
            types = [call.dtype if d else "Scalar" for d in call.dims or ()]
            self.shapes.append(
                {
                    "event": event,
                    "input_dims": None if call.dims is None else json.dumps(list(call.dims)),
                    "input_types": json.dumps(types),
                    "concrete_inputs": json.dumps(list(call.concrete)),
                    "sequence": call.sequence,
                }
            )
        for name, kind, ns in call.kernels:
            self.gpu.append({"name": name, "kind": kind, "dur_ns": ns, "op": event, "launch": event, **about})
        for child in call.children:
            self.add(child, event)


def traced(
    calls: Sequence[Call],
    *,
    rank: int = 0,
    windows: Sequence[tuple[int | None, int, int]] = ((0, 0, 1_000_000),),
    orphans: Sequence[tuple[str, str, int]] = (),
    groups: Sequence[tuple[str, Sequence[int]]] = (),
) -> MemoryRank:
    """Return the rank that made these calls; GPU activity runs back to back from 0 on; orphans have no launch."""
    found = _Rows()
    for call in calls:
        found.add(call, None)
    found.gpu += [{"name": n, "kind": k, "dur_ns": ns, "op": None, "launch": None} for n, k, ns in orphans]
    count = len(found.events)
    ends = pl.Series([g["dur_ns"] for g in found.gpu], dtype=pl.Int64).cum_sum()
    events = {"rank": [rank] * count, "event": range(count), "name": [e["name"] for e in found.events]}
    gpu = {
        "rank": [rank] * len(found.gpu),
        "event": [count + n for n in range(len(found.gpu))],
        "start_ns": [end - g["dur_ns"] for end, g in zip(ends, found.gpu, strict=True)],
    }
    gpu |= {key: [g.get(key) for g in found.gpu] for key in ("dur_ns", "kind", "name", "launch", "op", "step", "phase")}
    shapes = {
        key: [s[key] for s in found.shapes]
        for key in ("event", "input_dims", "input_types", "concrete_inputs", "sequence")
    }
    links = {key: [e[key] for e in found.events] for key in ("parent", "step", "phase")}
    return MemoryRank(
        rank,
        {
            "events": frame("events", events),
            "links": frame("links", {"rank": [rank] * count, "event": range(count), **links}),
            "gpu": frame("gpu", gpu),
            "op_shapes": frame("op_shapes", {"rank": [rank] * len(found.shapes), **shapes}),
            "steps": steps(*windows, rank=rank),
            "process_groups": frame(
                "process_groups",
                {
                    "rank": [rank] * len(groups),
                    "group": [str(n) for n in range(len(groups))],
                    "desc": [desc for desc, _ in groups],
                    "ranks": [list(ranks) for _, ranks in groups],
                    "size": [len(ranks) for _, ranks in groups],
                },
            ),
        },
    )
