"""Which recorded operators ran, what they cost, and which kernels are theirs.

* The innermost operator of `flops.OPERATORS` counts; those around it describe the same work.
* With GPU activity an operator counts only if it, or something it called, launched a compute kernel; then once,
  however many kernels it launched. So neither work that was launched before the window nor work that was recorded but
  never ran gets FLOPs.
* Without GPU activity every innermost operator counts, except one that was recorded but never ran: checkpointing that
  stops early leaves the last operator of each recomputed block with nothing below it but `detach`.
* The number format is that of the operands, unless the kernels say otherwise: float32 that ran in tf32, and layers
  that quantise inside.
* An opaque forward (`flops.Operator.pair`) gives its sizes to the backward that carries the same sequence number.

Coverage is the share of kernel time (communication included) whose kernels are linked to an operator with usable
shapes: one whose FLOPs were counted, or one of PyTorch's own without matrix products. Custom, compiled and captured
kernels are not covered, because nobody counted what they multiply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from tracetool.mfu import flops

if TYPE_CHECKING:
    import numpy.typing as npt

    Ids = npt.NDArray[np.int64]
    Mask = npt.NDArray[np.bool_]

TF32_KERNELS: Final = r"(?i)tf32|s1688|xf32"
"""Kernel names that say a float32 product ran on tensor cores in tf32 (s1688 is its instruction shape on sm80)."""
FP32_KERNELS: Final = r"(?i)sgemm|simt|ffma|f32f32_f32f32|gemv|gemmsn|dot_kernel"
"""Kernel names that say it ran in full float32, without tensor cores."""
FP8_KERNELS: Final = r"(?i)(gemm|cutlass|matmul|tensorop).*(e4m3|e5m2|fp8)|^nvjet_(sm\d+_)?q|^Cijk_\w*_B?F8"
FP4_KERNELS: Final = r"(?i)(gemm|cutlass|matmul|tensorop).*(e2m1|fp4)|^nvjet_(sm\d+_)?oo"
"""Names of matrix products of 8 and 4 bits (nvjet spells its operands' formats as letters: q, o)."""
_WIDE: Final = ("bf16", "fp16", "fp32")
"""Formats that layers which quantise inside (Transformer Engine) get as input."""
PRECISION: Final = "fp32_or_tf32"
"""Flag of a float32 product whose kernels do not say whether it ran in tf32; held against the tf32 peak."""

CALLS_SCHEMA: Final = {
    "event": pl.Int64,
    "name": pl.String,
    "step": pl.Int32,
    "phase": pl.String,
    **flops.WORK_SCHEMA,
    "peak_dtype": pl.String,
    "kernels": pl.Int32,
    "kernel_ns": pl.Int64,
}
COVERAGE_SCHEMA: Final = {
    "kernel_ns": pl.Int64,
    "linked_ns": pl.Int64,
    "shaped_ns": pl.Int64,
    "covered_ns": pl.Int64,
    "orphan_ns": pl.Int64,
}


@dataclass(frozen=True, eq=False)
class Executed:
    """What one rank ran.

    `calls`: one row an operator that counts, by event. `step` is that of its kernels' launch, `peak_dtype` the format
    whose peak it is held against, `kernel_ns` the GPU time of all that it launched, the memsets of a split product
    included (null without GPU activity). `coverage`: one row, kernel time in all, linked to an operator, to one with
    shapes, to one with usable shapes, and without any launch. `opaque`: kernel time that is not covered, by what
    launched it. `phantom`: operators recorded but never run, with their FLOPs.
    """

    calls: pl.DataFrame
    coverage: pl.DataFrame
    opaque: pl.DataFrame
    phantom: pl.DataFrame


def executed(events: pl.DataFrame, links: pl.DataFrame, gpu: pl.DataFrame, op_shapes: pl.DataFrame) -> Executed:
    """Return what ran on one rank.

    Takes columns event, name of `events` and event, parent, step, phase of `links` (one row an event, in event order);
    kind, name, dur_ns, launch, op, step of `gpu`; and all of `op_shapes`.
    """
    parents = links["parent"].fill_null(-1).to_numpy().astype(np.int64)
    shapes = op_shapes.with_columns(name=events["name"].gather(op_shapes["event"]).cast(pl.String))
    counted = _innermost(shapes, parents, events)
    works = _works(shapes.filter(pl.col("event").is_in(counted)))
    owner = _owners(counted, parents)
    if gpu.is_empty():
        calls = works.hstack(_looked_up(links, works, "step", "phase")).with_columns(
            peak_dtype="dtype", kernels=pl.lit(None, pl.Int32), kernel_ns=pl.lit(None, pl.Int64)
        )
        never = _phantoms(calls, parents, events)
        kept = calls.filter(pl.col("full").is_not_null() & ~pl.col("event").is_in(never))
        gone = calls.filter(pl.col("event").is_in(never))
        nothing = pl.DataFrame({name: [0] for name in COVERAGE_SCHEMA}, schema=COVERAGE_SCHEMA)
        return Executed(_ordered(kept), nothing, _opaque(pl.DataFrame()), _ordered(gone))
    activity = _launched(gpu, owner)
    kernels = activity.filter("compute")
    name = pl.col("name").filter("compute")
    launched = (
        activity.filter(pl.col("owner").is_not_null())
        .group_by("owner")
        .agg(
            step=pl.col("step").min(),
            kernels=pl.col("compute").sum().cast(pl.Int32),
            kernel_ns=pl.col("dur_ns").sum(),
            tf32=name.str.contains(TF32_KERNELS).any(),
            fp32=name.str.contains(FP32_KERNELS).any(),
            fp8=name.str.contains(FP8_KERNELS).any(),
            fp4=name.str.contains(FP4_KERNELS).any(),
        )
        .filter(pl.col("kernels") > 0)
    )
    calls = works.join(launched, left_on="event", right_on="owner", maintain_order="left")
    calls = calls.hstack(_looked_up(links, calls, "phase"))
    narrow = pl.when("fp4").then(pl.lit("fp4")).when("fp8").then(pl.lit("fp8"))
    calls = calls.with_columns(dtype=pl.when(pl.col("dtype").is_in(_WIDE)).then(narrow).fill_null(pl.col("dtype")))
    single = pl.col("dtype") == "fp32"
    said = pl.col("tf32") | pl.col("fp32")
    calls = calls.with_columns(
        dtype=pl.when(single & pl.col("tf32")).then(pl.lit("tf32")).otherwise("dtype"),
        peak_dtype=pl.when(single & ~pl.col("fp32")).then(pl.lit("tf32")).otherwise("dtype"),
        flags=pl.when(single & ~said).then(pl.concat_list("flags", pl.lit([PRECISION]))).otherwise("flags"),
    ).filter(pl.col("full").is_not_null())
    coverage, opaque = _coverage(gpu, kernels, shapes, events, calls)
    return Executed(_ordered(calls), coverage, opaque, _ordered(works.clear()))


def _looked_up(links: pl.DataFrame, calls: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """Return columns of `links`, text for phase, of each call's own event."""
    found = links.select(columns)[calls["event"]]
    return found.with_columns(pl.col("phase").cast(pl.String))


def _ordered(calls: pl.DataFrame) -> pl.DataFrame:
    """Return calls with exactly the columns of the schema, by event."""
    return calls.select(
        (pl.col(name).cast(dtype) if name in calls.columns else pl.lit(None, dtype).alias(name))
        for name, dtype in CALLS_SCHEMA.items()
    ).sort("event")


def _innermost(shapes: pl.DataFrame, parents: Ids, events: pl.DataFrame) -> Ids:
    """Return the ids of known operators that hold no other known operator, nor lie inside their own wrapper."""
    names = shapes["name"].unique().drop_nulls().to_list()
    known = {name: how for name in names if (how := flops.operator(name)) is not None}
    backwards = [name for name in names if name.endswith("Backward") and _is_paired(name.removesuffix("Backward"))]
    candidates = shapes.filter(pl.col("name").is_in([*known, *backwards]))
    ids = candidates["event"].to_numpy()
    wrapped = [name for name, how in known.items() if how.inside]
    if wrapped:
        above = {name: set(known[name].inside) for name in wrapped}
        inner = candidates.filter(pl.col("name").is_in(wrapped))
        all_names = events["name"].cast(pl.String)
        dropped = [
            rows["event"].to_numpy()[_has_ancestor(rows["event"].to_numpy(), parents, _ids_of(all_names, above[name]))]
            for (name,), rows in inner.partition_by("name", as_dict=True, maintain_order=True).items()
        ]
        ids = np.setdiff1d(ids, np.concatenate(dropped))
    holds = np.zeros(len(parents), dtype=bool)
    current = parents[ids]
    while True:
        current = np.unique(current[current >= 0])
        current = current[~holds[current]]
        if not current.size:
            break
        holds[current] = True
        current = parents[current]
    return np.sort(ids[~holds[ids]])


def _is_paired(name: str) -> bool:
    how = flops.operator(name)
    return how is not None and how.pair is not None


def _ids_of(names: pl.Series, wanted: set[str]) -> Mask:
    return names.is_in(sorted(wanted)).fill_null(value=False).to_numpy()


def _has_ancestor(ids: Ids, parents: Ids, wanted: Mask) -> Mask:
    """Say for each event whether one that encloses it is wanted."""
    found = np.zeros(len(ids), dtype=bool)
    current = parents[ids]
    while (current >= 0).any():
        inside = current >= 0
        found |= inside & wanted[np.where(inside, current, 0)]
        current = np.where(inside, parents[np.where(inside, current, 0)], -1)
    return found


def _owners(counted: Ids, parents: Ids) -> Ids:
    """Return for each event the counted operator that it is or lies in; -1 for none."""
    chosen = np.zeros(len(parents), dtype=bool)
    chosen[counted] = True
    owner = np.where(chosen, np.arange(len(parents)), parents)
    while True:  # each round doubles how far an event has looked up
        open_ = (owner >= 0) & ~chosen[np.maximum(owner, 0)]
        if not open_.any():
            return owner
        owner[open_] = owner[owner[open_]]


def _works(shapes: pl.DataFrame) -> pl.DataFrame:
    """Return event, name and work of each operator; a paired backward takes its forward's sizes."""
    works = flops.add_work(shapes).select("event", "name", "sequence", *flops.WORK_SCHEMA)
    forward = works.filter(pl.col("sequence").is_not_null() & pl.col("full").is_not_null())
    pairs = [
        (name, how)
        for name in forward["name"].unique().sort()
        if (how := flops.operator(name)) and how.pair is not None
    ]
    for name, how in pairs:
        source = (
            forward.filter(pl.col("name") == name)
            .sort("event")
            .unique("sequence", keep="first", maintain_order=True)
            .with_columns(
                name=pl.lit(f"{name}Backward"),
                backward=pl.lit(True),
                moved_bytes=2 * pl.col("moved_bytes"),
                **{
                    column: (pl.col(column) * how.pair_executed).round().cast(pl.Int64) for column in ("full", "causal")
                },
                **{
                    column: (pl.col(column) * how.pair).round().cast(pl.Int64)
                    for column in ("model_full", "model_causal")
                },
            )
            .drop("event")
        )
        paired = works.select("event", "name", "sequence").join(source, on=["name", "sequence"])
        works = pl.concat([works.filter(~pl.col("event").is_in(paired["event"])), paired.select(works.columns)])
    return works.drop("sequence")


def _phantoms(calls: pl.DataFrame, parents: Ids, events: pl.DataFrame) -> pl.Series:
    """Return recomputed operators below which nothing but `detach` was recorded."""
    suspects = calls.filter((pl.col("phase") == "recompute") & pl.col("full").is_not_null())["event"].to_numpy()
    below = np.flatnonzero(np.isin(parents, suspects))
    names = events["name"].gather(below).cast(pl.String)
    children = pl.DataFrame({"event": parents[below], "detach": names.is_in(["aten::detach", "detach"])})
    return children.group_by("event").agg(pl.col("detach").all()).filter("detach")["event"].sort()


def _launched(gpu: pl.DataFrame, owner: Ids) -> pl.DataFrame:
    """Return GPU activity but communication, with the counted operator that launched it."""
    own = gpu.filter(pl.col("kind") != "comm")
    op = own["op"].fill_null(-1).to_numpy()
    owners = np.where(op >= 0, owner[np.maximum(op, 0)], -1) if len(owner) else np.full(len(op), -1)
    return own.select(
        pl.col("name").cast(pl.String),
        "dur_ns",
        "launch",
        "op",
        "step",
        compute=pl.col("kind") == "compute",
        owner=pl.Series(owners, dtype=pl.Int64).replace(-1, None),
    )


def _coverage(
    gpu: pl.DataFrame, kernels: pl.DataFrame, shapes: pl.DataFrame, events: pl.DataFrame, calls: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return kernel time by how much is known about it, and what is not covered by what launched it."""
    comm = gpu.filter(pl.col("kind") == "comm").select(
        pl.col("name").cast(pl.String), "dur_ns", "launch", "op", "step", owner=pl.lit(None, pl.Int64)
    )
    both = pl.concat([kernels.drop("compute").with_columns(comm=pl.lit(False)), comm.with_columns(comm=pl.lit(True))])
    sized = shapes.filter(pl.col("input_dims").is_not_null()).select("event", op_name="name")
    counted = calls.select("event").with_columns(counted=pl.lit(True))
    both = (
        both.join(sized, left_on="op", right_on="event", how="left", maintain_order="left")
        .join(counted, left_on="owner", right_on="event", how="left", maintain_order="left")
        .with_columns(launcher=events["name"].gather(both["op"]).cast(pl.String))
    )
    clear = {name: flops.is_transparent(name) and flops.operator(name) is None for name in sized["op_name"].unique()}
    plain = pl.col("op_name").is_in([name for name, good in clear.items() if good])
    linked = pl.col("op").is_not_null()
    covered = (
        (pl.col("comm") & (linked | pl.col("launch").is_not_null()) & pl.lit(sized.height > 0))
        | pl.col("counted").fill_null(value=False)
        | (pl.col("owner").is_null() & plain.fill_null(value=False))
    )
    time = pl.col("dur_ns")
    coverage = both.select(
        kernel_ns=time.sum(),
        linked_ns=time.filter(linked).sum(),
        shaped_ns=time.filter(pl.col("op_name").is_not_null()).sum(),
        covered_ns=time.filter(covered).sum(),
        orphan_ns=time.filter(pl.col("launch").is_null() & ~linked).sum(),
    )
    rest = both.filter(~covered & (linked | pl.col("launch").is_not_null()))
    return coverage, _opaque(rest)


def _opaque(rest: pl.DataFrame) -> pl.DataFrame:
    """Return kernel time that is not covered by the operator that launched it, else by the kernel's own name."""
    if rest.is_empty():
        return pl.DataFrame(schema={"name": pl.String, "kernel_ns": pl.Int64, "kernels": pl.Int64})
    return (
        rest.group_by(name=pl.coalesce("launcher", "name"))
        .agg(kernel_ns=pl.col("dur_ns").sum(), kernels=pl.len().cast(pl.Int64))
        .sort("kernel_ns", "name", descending=[True, False])
        .head(20)
    )
