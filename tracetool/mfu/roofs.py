"""Operators under the roofs of a device: attainable time, time lost, what binds; formulas in analysis `roofline`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.figures import share
from tracetool.mfu.op_arguments import MASK, VARLEN
from tracetool.mfu.rank_flops import OP_KEYS

if TYPE_CHECKING:
    from tracetool import hardware

LATENCY_SHARE: Final = 0.1
"""Less than this of both roofs, and ..."""
LATENCY_NS: Final = 10_000
"""... shorter than this a call: bound by latency."""
LEAST_BOUNDED: Final = 0.01
"""Share of GPU time from which on it is said that FLOPs are upper bounds."""


def roofs_of(devices: dict[int, hardware.Device | None], calls: pl.DataFrame, given: float | None) -> pl.DataFrame:
    """Return peak (FLOP/s) and bandwidth (byte/s) by rank and number format; null where not known."""
    rows = []
    for rank, device in devices.items():
        bandwidth = device.memory_gbs * 1e9 if device and device.memory_gbs else None
        for dtype in sorted(set(calls["peak_dtype"].to_list())):
            peak = given * 1e12 if given else device.peak_flops(dtype) if device else None
            measured = device.measured_tflops.get(dtype) if device else None
            rows.append((rank, dtype, peak, bandwidth, measured))
    schema = {
        "rank": pl.Int32, "peak_dtype": pl.String, "peak": pl.Float64, "bandwidth": pl.Float64,
        "measured_tflops": pl.Float64,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def attainable(calls: pl.DataFrame, roofs: pl.DataFrame) -> pl.DataFrame:
    """Add attainable time and time lost (whole ns) to calls; null where a roof is not known."""
    joined = calls.join(roofs, on=["rank", "peak_dtype"], how="left", maintain_order="left")
    compute = pl.col("flops") / pl.col("peak") * 1e9
    memory = pl.col("moved_bytes") / pl.col("bandwidth") * 1e9
    known = pl.col("peak").is_not_null() & pl.col("bandwidth").is_not_null()
    least = pl.when(known).then(pl.max_horizontal(compute, memory)).round().cast(pl.Int64)
    return joined.with_columns(attainable_ns=least).with_columns(
        lost_ns=(pl.col("kernel_ns") - pl.col("attainable_ns")).clip(lower_bound=0)
    )


def by_shape(timed: pl.DataFrame) -> pl.DataFrame:
    """Return one row an operator and shape over all ranks and steps, the most time lost first."""
    total = timed.group_by(OP_KEYS).agg(
        count=pl.col("count").sum(),
        flops=pl.col("flops").cast(pl.Int128).sum().cast(pl.Float64),  # a sum over a thousand ranks may pass int64
        moved_bytes=pl.col("moved_bytes").cast(pl.Int128).sum().cast(pl.Float64),
        kernel_ns=pl.col("kernel_ns").sum(),
        attainable_ns=pl.when(pl.col("attainable_ns").null_count() == 0).then(pl.col("attainable_ns").sum()),
        lost_ns=pl.when(pl.col("lost_ns").null_count() == 0).then(pl.col("lost_ns").sum()),
        peak=pl.col("peak").max(),
        bandwidth=pl.col("bandwidth").max(),
        measured_tflops=pl.col("measured_tflops").max(),
        flags=pl.col("flags").max(),
    )
    time = pl.col("kernel_ns")
    tflops, gbs = pl.col("flops") / time / 1e3, pl.col("moved_bytes") / time
    intensity = pl.col("flops") / pl.col("moved_bytes")
    far = (tflops * 1e12 < LATENCY_SHARE * pl.col("peak")) & (gbs * 1e9 < LATENCY_SHARE * pl.col("bandwidth"))
    bound = (
        pl.when(pl.col("peak").is_null() | pl.col("bandwidth").is_null())
        .then(None)
        .when(far & (time / pl.col("count") < LATENCY_NS))
        .then(pl.lit("latency"))
        .when(intensity > pl.col("peak") / pl.col("bandwidth"))
        .then(pl.lit("compute"))
        .otherwise(pl.lit("memory"))
    )
    return (
        total.select(
            *OP_KEYS, "count", "flops", "moved_bytes", "kernel_ns", "attainable_ns", "lost_ns",
            intensity=intensity, tflops=tflops, gbs=gbs, bound=bound,
            share_of_attainable=pl.col("attainable_ns") / time,
            share_of_measured_best=tflops / pl.col("measured_tflops"),
            ridge=pl.col("peak") / pl.col("bandwidth"),
            flags="flags",
        )
        .sort("lost_ns", "kernel_ns", *OP_KEYS, descending=[True, True] + [False] * len(OP_KEYS), nulls_last=True)
    )  # fmt: skip


def by_bound(ops: pl.DataFrame) -> pl.DataFrame:
    """Return GPU time, attainable time and time lost by what bounds it."""
    return (
        ops.group_by("bound")
        .agg(
            shapes=pl.len().cast(pl.Int64),
            kernel_ns=pl.col("kernel_ns").sum(),
            **{
                name: pl.when(pl.col(name).null_count() == 0).then(pl.col(name).sum())
                for name in ("attainable_ns", "lost_ns")
            },
        )
        .sort("kernel_ns", "bound", descending=[True, False])
    )


def what_if(ops: pl.DataFrame, other: hardware.Device) -> pl.DataFrame:
    """Return for each operator the least time it can take on another device, and the most that saves."""
    roofs = pl.DataFrame(
        [(dtype, other.peak_flops(dtype)) for dtype in sorted(set(ops["peak_dtype"].to_list()))],
        schema={"peak_dtype": pl.String, "peak": pl.Float64},
        orient="row",
    )
    bandwidth = pl.lit(other.memory_gbs * 1e9 if other.memory_gbs else None, pl.Float64)
    known = pl.col("peak").is_not_null() & bandwidth.is_not_null()
    floor = pl.max_horizontal(pl.col("flops") / pl.col("peak"), pl.col("moved_bytes") / bandwidth) * 1e9
    return (
        ops.join(roofs, on="peak_dtype", how="left", maintain_order="left")
        .with_columns(floor_ns=pl.when(known).then(floor).round().cast(pl.Int64))
        .select(
            "op",
            "shape",
            "dtype",
            "count",
            "kernel_ns",
            "attainable_ns",
            "floor_ns",
            saved_at_most_ns=(pl.col("kernel_ns") - pl.col("floor_ns")).clip(lower_bound=0),
            roofs_ratio=pl.col("attainable_ns") / pl.col("floor_ns"),
        )
    )


def bounded_share(ops: pl.DataFrame) -> float:
    """Return the share of GPU time of operators whose FLOPs are upper bounds, 0 where that is under a hundredth."""
    unsure = ops.filter(pl.any_horizontal(pl.col("flags").str.contains(flag, literal=True) for flag in (MASK, VARLEN)))
    found = share(int(unsure["kernel_ns"].sum()), int(ops["kernel_ns"].sum())) or 0.0
    return found if found >= LEAST_BOUNDED else 0.0
