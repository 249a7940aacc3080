"""The figures of MFU and HFU: metrics of the run and tables, from the ranks' FLOPs; the words are the analysis' own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.figures import share
from tracetool.mfu.op_arguments import MASK
from tracetool.mfu.published import published
from tracetool.mfu.utilization import NEGLIGIBLE, Peaks, Sample, Totals, unknown_formats

if TYPE_CHECKING:
    from tracetool.mfu.job_flops import JobFlops
    from tracetool.registry import RunView
    from tracetool.results import Value
    from tracetool.settings import Settings
    from tracetool.tables import Tables

MAX_OPS: Final = 300
MEASURES: Final = {"mfu": "model_full", "mfu_causal": "model_causal", "hfu": "full", "hfu_causal": "causal"}
"""Each share of peak and the FLOPs it is made of."""
_MASKED: Final = pl.col("flags").fill_null("").str.contains(MASK, literal=True)


@dataclass(frozen=True, eq=False)
class Known:
    """Everything that figures and words draw on: what the ranks returned, who they are, what the user stated."""

    parts: Tables
    run: RunView
    settings: Settings
    steps: pl.DataFrame
    job: JobFlops | None
    peaks: Peaks
    sample: Sample
    rows: pl.DataFrame
    totals: Totals
    coverage: float | None
    """Share of kernel time; None without GPU activity, where coverage says nothing."""
    trusted: bool
    """FLOPs from shapes explain enough of the time to be shown."""

    @property
    def world(self) -> int:
        """Ranks of the whole job."""
        return self.sample.world

    @property
    def chosen(self) -> str:
        """The metric that headlines and gates use."""
        return "mfu" if self.settings.mfu_convention == "full" else "mfu_causal"

    @property
    def causal_known(self) -> bool:
        """Whether causal attention can be told from full: NVTX ranges of operators hold sizes and no flags."""
        silent = self.run.ranks.filter(pl.col("format") == "nsight")["rank"].to_list()
        shapes = self.parts["shapes"].select("flops", here=pl.col("rank").is_in(silent) & _MASKED)
        unknown = int(shapes.filter("here")["flops"].cast(pl.Int128).sum())
        return unknown <= NEGLIGIBLE * int(shapes["flops"].cast(pl.Int128).sum())


def main_format(k: Known) -> str:
    """Return the format whose peak stands for the run: the one with the most FLOPs; bf16 where none were counted."""
    flops = k.parts["flops"]
    if flops.is_empty():
        return "bf16" if k.peaks.of("bf16") is not None or k.peaks.of("fp16") is None else "fp16"
    summed = (
        flops.group_by("peak_dtype")
        .agg(pl.col("full").cast(pl.Int128).sum())
        .sort("full", "peak_dtype", descending=[True, False])
    )
    return str(summed["peak_dtype"][0])


def _job_peak(k: Known) -> float | None:
    """Return the peak a job's FLOPs are divided by: FLOPs ÷ (FLOPs ÷ peak) over the formats that were recorded."""
    at_peak = k.totals.at_peak["model_full"]
    if at_peak and k.totals.flops["model_full"]:
        return float(k.totals.flops["model_full"]) / at_peak
    return k.peaks.of(main_format(k))


def metrics_of(k: Known) -> dict[str, Value]:
    """Return the run's metrics; those that cannot be had are None.

    From shapes: Σ (FLOPs ÷ peak) ÷ Σ step time of the ranks that were read. From FLOPs that the user states for the
    whole job: FLOPs × rank-steps ÷ (world size × Σ step time of those rank-steps × peak).
    """
    found: dict[str, Value] = dict.fromkeys((*MEASURES, "mfu_by_convention"))
    step: dict[str, Value] = dict.fromkeys(("model_flops_per_step", "model_flops_per_step_causal"))
    rate: float | None = None
    whole = k.trusted and not k.sample.reason
    if whole:
        found |= {name: k.totals.utilization(measure) for name, measure in MEASURES.items()}
        step = {
            "model_flops_per_step": _number(k.totals.job_step["model_full"]),
            "model_flops_per_step_causal": _number(k.totals.job_step["model_causal"]),
        }
        rate = k.totals.flops_per_second(MEASURES[k.chosen])
    if not k.causal_known:
        found |= dict.fromkeys(("mfu_causal", "hfu_causal"))
        step["model_flops_per_step_causal"] = None
        rate = rate if k.chosen == "mfu" else None
    if k.job is not None:
        peak = _job_peak(k)
        per_second = {
            "mfu": k.job.full * k.rows.height / (k.world * int(k.rows["window_ns"].sum()) / 1e9),
            "mfu_causal": k.job.causal * k.rows.height / (k.world * int(k.rows["window_ns"].sum()) / 1e9),
        }
        found |= {name: value / peak if peak else None for name, value in per_second.items()}
        step = {
            "model_flops_per_step": _number(k.job.full),
            "model_flops_per_step_causal": _number(k.job.causal),
        }
        rate = per_second[k.chosen]
    found["mfu_by_convention"] = found[k.chosen]
    coverage = k.parts["coverage"]
    kernel_ns = int(coverage["kernel_ns"].sum())
    return {
        **found,
        **step,
        "hardware_flops_per_step": _number(k.totals.job_step["full"]) if whole else None,
        "tflops_per_gpu": None if rate is None else rate / 1e12,
        "peak_flops": k.peaks.of(main_format(k)),
        "peak_format": main_format(k),
        "shape_coverage": k.coverage,
        "linked_share": share(int(coverage["linked_ns"].sum()), kernel_ns),
        "orphan_share": share(int(coverage["orphan_ns"].sum()), kernel_ns),
        "flops_source": k.job.source if k.job else "shapes" if k.trusted else None,
        "convention": k.settings.mfu_convention,
        "tokens_per_second_per_gpu": _tokens_per_second(k),
        "shapes_to_job_ratio": _ratio(k),
    }


def _tokens_per_second(k: Known) -> float | None:
    """Return tokens of the whole job a step ÷ (world size × mean step time), as far as the user stated them."""
    tokens = k.job.tokens if k.job and k.job.tokens else k.settings.tokens_per_step
    seconds = int(k.rows["window_ns"].sum()) / 1e9
    return tokens * k.rows.height / (k.world * seconds) if tokens else None


def _number(value: float) -> float | int:
    """Return FLOPs as a whole number where JSON readers keep it exactly."""
    whole = round(value)
    return whole if abs(whole) < 2**63 else float(whole)


def _ratio(k: Known) -> float | None:
    """Return the job's FLOPs a step counted from shapes ÷ those stated by the user, in the chosen convention."""
    if k.job is None or not k.trusted or k.sample.reason or not (k.causal_known or k.chosen == "mfu"):
        return None
    stated = k.job.full if k.chosen == "mfu" else k.job.causal
    return k.totals.job_step[MEASURES[k.chosen]] / stated if stated else None


def tables_of(k: Known, metrics: dict[str, Value]) -> Tables:
    """Return the tables of the result; `beside_published` only where there is an MFU to set beside."""
    tables = {
        "per_rank_step": _per_rank_step(k),
        "phases": _phases(k),
        "formats": formats_of(k),
        "ops": _ops(k),
        "coverage": k.parts["coverage"].sort("rank"),
        "opaque": _opaque(k),
        "peaks": _peak_table(k),
        "published": pl.DataFrame(
            [(row.what, row.low, row.high, row.source, row.converted) for row in published(k.settings.mfu_convention)],
            schema={
                "what": pl.String, "low_share": pl.Float64, "high_share": pl.Float64, "source": pl.String,
                "converted": pl.Boolean,
            },
            orient="row",
        ),
    }  # fmt: skip
    value = metrics["mfu_by_convention"]
    others = tables["published"]
    phases = set(k.parts["phase_time"]["phase"].drop_nulls().cast(pl.String).to_list())
    inference = bool(phases) and not phases & {
        "backward",
        "optimizer",
        "recompute",
    }  # published figures are of training
    if isinstance(value, float) and not others.is_empty() and not inference:
        tables["beside_published"] = pl.DataFrame(
            {
                "mfu": [value],
                "published_low": [others["low_share"].min()],
                "published_high": [others["high_share"].max()],
            }
        )
    return tables


def _per_rank_step(k: Known) -> pl.DataFrame:
    """Return FLOPs with full attention and utilization of each window; the job's FLOPs are shared out evenly."""
    seconds = pl.col("window_ns") / 1e9
    rows = k.rows.with_columns((pl.col(f"at_peak_{measure}") / seconds).alias(n) for n, measure in MEASURES.items())
    rows = rows.with_columns(model_flops="model_full", hardware_flops="full")
    shown = ["model_flops", "hardware_flops", "mfu", "hfu", "mfu_causal", "hfu_causal"]
    if not k.trusted:
        rows = rows.with_columns(pl.lit(None, rows.schema[name]).alias(name) for name in shown)
    elif not k.causal_known:
        rows = rows.with_columns(mfu_causal=pl.lit(None, pl.Float64), hfu_causal=pl.lit(None, pl.Float64))
    if k.job is not None:
        peak = _job_peak(k)
        each = k.world * (peak or 1)
        rows = rows.with_columns(
            model_flops=pl.lit(round(k.job.full / k.world), pl.Int64),
            mfu=pl.lit(k.job.full / each if peak else None, pl.Float64) / seconds,
            mfu_causal=pl.lit(k.job.causal / each if peak else None, pl.Float64) / seconds,
        )
    return rows.select("rank", "step", *shown, "open_end", "window_ns")


def _phases(k: Known) -> pl.DataFrame:
    """Return FLOPs of each phase over all rank-steps, the time its kernels ran, and HFU within that time."""
    if not k.trusted:
        return pl.DataFrame(
            schema={
                "phase": pl.String, "model_flops": pl.Float64, "hardware_flops": pl.Float64,
                "hardware_flops_causal": pl.Float64, "gpu_ns": pl.Int64,
                "tflops": pl.Float64, "share_of_peak": pl.Float64,
            }
        )  # fmt: skip
    flops = k.parts["flops"].join(k.peaks.table, on=["rank", "peak_dtype"], how="left")
    usable = unknown_formats(k.parts["flops"], k.peaks)[1] <= NEGLIGIBLE
    whole = {"model_flops": "model_full", "hardware_flops": "full", "hardware_flops_causal": "causal"}
    found = (
        flops.group_by("phase", "peak_flops")
        .agg(**{name: pl.col(column).cast(pl.Int128).sum().cast(pl.Float64) for name, column in whole.items()})
        .with_columns(at_peak=pl.col("hardware_flops_causal") / pl.col("peak_flops"))
        .sort("phase", "peak_flops")
        .group_by("phase", maintain_order=True)
        .agg(pl.col(*whole, "at_peak").sum())
    )
    if not k.causal_known:
        found = found.with_columns(
            pl.lit(None, pl.Float64).alias(name) for name in ("hardware_flops_causal", "at_peak")
        )
    time = k.parts["phase_time"].group_by("phase").agg(pl.col("gpu_ns").sum())
    joined = found.join(time, on="phase", how="left", nulls_equal=True)
    busy = pl.when(pl.col("gpu_ns") > 0).then(pl.col("gpu_ns"))
    return joined.select(
        "phase",
        "model_flops",
        "hardware_flops",
        "hardware_flops_causal",
        "gpu_ns",
        tflops=pl.col("hardware_flops_causal") / busy / 1e3,
        share_of_peak=(pl.col("at_peak") / busy * 1e9) if usable else pl.lit(None, pl.Float64),
    ).sort("hardware_flops", "phase", descending=[True, False])


def formats_of(k: Known) -> pl.DataFrame:
    """Return executed FLOPs by number format with the peak each is held against."""
    found = k.parts["flops"].group_by("dtype", "peak_dtype").agg(
        hardware_flops=pl.col("full").cast(pl.Int128).sum().cast(pl.Float64),
        causal=pl.col("causal").cast(pl.Int128).sum().cast(pl.Float64),
        kernel_ns=pl.col("kernel_ns").sum(),
    )  # fmt: skip
    total = found["hardware_flops"].sum()
    if not k.causal_known:
        found = found.with_columns(causal=pl.lit(None, pl.Float64))
    return (
        found.join(_best_peaks(k), on="peak_dtype", how="left")
        .sort("hardware_flops", "dtype", "peak_dtype", descending=[True, False, False])
        .select(
            "dtype",
            "peak_dtype",
            "hardware_flops",
            share_of_flops=pl.col("hardware_flops") / (total or 1),
            peak_tflops=pl.col("peak_flops") / 1e12,
            tflops=pl.col("causal") / pl.when(pl.col("kernel_ns") > 0).then(pl.col("kernel_ns")) / 1e3,
        )
    )


def _best_peaks(k: Known) -> pl.DataFrame:
    """Return one peak a format: that of the first rank that has one."""
    known = k.peaks.table.filter(pl.col("peak_flops").is_not_null()).sort("peak_dtype", "rank")
    return known.unique("peak_dtype", keep="first", maintain_order=True).select("peak_dtype", "peak_flops")


def _ops(k: Known) -> pl.DataFrame:
    """Return operators by shape over all ranks, the most FLOPs first, with what their kernels reached.

    Rates credit the causal mask, which fused kernels skip: counted in full, such a kernel may pass its peak.
    """
    keys = ["op", "shape", "dtype", "peak_dtype"]
    found = k.parts["shapes"].group_by(keys).agg(
        count=pl.col("count").sum(),
        flops=pl.col("flops").cast(pl.Int128).sum().cast(pl.Float64),  # a sum over a thousand ranks may pass int64
        flops_causal=pl.col("flops_causal").cast(pl.Int128).sum().cast(pl.Float64),
        model_flops=pl.col("model_flops").cast(pl.Int128).sum().cast(pl.Float64),
        kernel_ns=pl.when(pl.col("kernel_ns").count() > 0).then(pl.col("kernel_ns").sum()),
        flags=pl.col("flags").max(),
    )  # fmt: skip
    if not k.causal_known:
        found = found.with_columns(flops_causal=pl.when(~_MASKED).then("flops_causal"))
    tflops = pl.col("flops_causal") / pl.when(pl.col("kernel_ns") > 0).then(pl.col("kernel_ns")) / 1e3
    peak = pl.col("peak_flops") / 1e12
    return (
        found.join(_best_peaks(k), on="peak_dtype", how="left")
        .sort("flops", *keys, descending=[True] + [False] * len(keys))
        .head(MAX_OPS)
        .select(
            *keys,
            "count",
            "flops",
            "flops_causal",
            "model_flops",
            "kernel_ns",
            tflops=tflops,
            share_of_peak=tflops / peak,
            flags="flags",
        )
    )


def _opaque(k: Known) -> pl.DataFrame:
    """Return what launched the kernel time that no FLOPs were counted for."""
    found = k.parts["opaque"].group_by("name").agg(pl.col("kernel_ns").sum(), pl.col("kernels").sum())
    return found.sort("kernel_ns", "name", descending=[True, False]).head(20)


def _peak_table(k: Known) -> pl.DataFrame:
    """Return the devices and the dense peak of each format that was recorded, with where the figures come from."""
    used = set(k.parts["flops"]["peak_dtype"].to_list()) or {main_format(k)}
    devices = {device.key: (device, rank) for rank, device in sorted(k.peaks.devices.items(), reverse=True) if device}
    rows = [
        (device.name, dtype, peak / 1e12, device.confidence, "; ".join(device.sources), device.note)
        for device, _ in sorted(devices.values(), key=lambda pair: pair[1])
        for dtype in sorted(used)
        if (peak := device.peak_flops(dtype)) is not None
    ]
    names = ("device", "format", "peak_tflops", "confidence", "sources", "note")
    types = [pl.Float64 if name == "peak_tflops" else pl.String for name in names]
    return pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row")
