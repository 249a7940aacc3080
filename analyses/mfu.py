"""MFU and HFU: the share of the dense peak that the model's arithmetic, and all executed arithmetic, uses.

MFU of a step of a rank = Σ over number formats (model FLOPs ÷ dense peak of the format) ÷ step time. HFU is the same
with the FLOPs that ran. Model FLOPs leave out what is computed twice: recomputation by checkpointing, and the fifth
product of a fused attention backward (backward = 2 × forward); they also leave out the optimizer's. `mfu` and `hfu`
count every pair of causal attention, `mfu_causal` and `hfu_causal` half of them (all other masks count in full). The
run: Σ (FLOPs ÷ peak) ÷ Σ step time over the steps of all ranks, steps with an open end included. FLOPs in tables
count attention in full. 1 multiply-accumulate = 2 FLOPs.

Where FLOPs come from (`flops_source`):
* shapes: recorded argument sizes of the innermost operators that launched a kernel, each once; without GPU activity
  of those that ran. Formulas: matmul 2·M·K·N; convolution 2·N·C_out·prod(out)·(C_in/groups)·prod(kernel); attention
  2·B·H·S_q·S_k·(d_qk + d_v) forward, 2·B·H·S_q·S_k·(3·d_qk + 2·d_v) in a fused backward.
* config: FLOPs a token of the model in closed form × tokens a step (--model config.json --tokens-per-step N):
  6·N_matmul + 3·A(T) in full, 6·N_matmul + 1.5·A(T) causal, N_matmul the weights that meet every token in a product
  (head in, embedding out; the chosen experts only), A(T) = 2·layers·T·(width of queries + width of values).
* given: --flops-per-step.
The last two speak of the whole job in one optimizer step: they are divided by world size × peak × step time.

`shape_coverage`: share of kernel time, communication included, linked to an operator with usable shapes. Below 0.95
the figures are lower bounds, below 0.5 there are none from shapes. Kernels made by compilers or of custom operators,
captured graphs and work launched before the recording lower it.

Peaks are dense, by device name (tracetool/hardware.json, with sources), or --peak-tflops. A device that is not known
has no MFU, only TFLOP/s. float32 products count against the tf32 peak unless their kernels say otherwise.

Sources: MFU after PaLM (arXiv 2204.02311, appendix B); HFU and full recomputation after Korthikanti et al.
(arXiv 2205.05198); operator formulas as torch/utils/flop_counter.py of PyTorch 2.13; the five products of the fused
backward after FlashAttention (arXiv 2205.14135). The published range shows figures of the same convention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.figures import percent, share
from tracetool.job_flops import JobFlops, job_flops
from tracetool.needs import NEEDS as ALL_NEEDS
from tracetool.published import published
from tracetool.rank_flops import by_phase, by_shape, by_step, place, rank_flops, traits
from tracetool.results import SAVING_SCHEMA, Chart, Finding, Headline, Result, Value, no_saving, skipped
from tracetool.utilization import NEGLIGIBLE, Peaks, Sample, Totals, peaks, per_step, sample, totals, unknown_formats

if TYPE_CHECKING:
    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "MFU and HFU"
NEEDS: Final = ("events",)
GATES: Final = {"min-mfu": ("mfu_by_convention", "min")}

LOWER_BOUND: Final = 0.95
"""Coverage below which figures from shapes are lower bounds (DESIGN §7)."""
TOO_LITTLE: Final = 0.5
"""Coverage below which there are none (DESIGN §7)."""
APART: Final = 0.10
"""Difference of two sources of FLOPs that is worth a finding (DESIGN §7)."""
ABOVE_PEAK: Final = 1.02
"""A product this much above its dense peak cannot be: short kernels are timed to about two percent."""
MAX_OPS: Final = 300
HINT: Final = "--model config.json --tokens-per-step N (or --flops-per-step) counts them from the model"

_MEASURES: Final = {"mfu": "model_full", "mfu_causal": "model_causal", "hfu": "full", "hfu_causal": "causal"}


def per_rank(rank: RankView, _facts: Tables, settings: Settings) -> Tables:
    """Return `flops` by step, phase and format, `shapes`, `phase_time`, `coverage`, `opaque` and `traits`."""
    data = rank_flops(rank, settings)
    number = pl.lit(rank.rank, pl.Int32).alias("rank")
    return {
        "flops": by_step(rank.rank, data.calls),
        "shapes": by_shape(rank.rank, data.calls),
        "phase_time": by_phase(rank.rank, data),
        "coverage": data.found.coverage.select(number, pl.all()),
        "opaque": data.found.opaque.select(number, pl.all()),
        "traits": traits(rank, data),
    }


@dataclass(frozen=True, eq=False)
class _Known:
    """Everything the sections of the result draw on."""

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
        return self.sample.world

    @property
    def chosen(self) -> str:
        """The metric that headlines and gates use."""
        return "mfu" if self.settings.mfu_convention == "full" else "mfu_causal"


def analyze(parts: Tables, run: RunView, settings: Settings) -> Result:
    """Reduce the ranks' FLOPs to MFU and HFU of each rank-step, each phase and the run."""
    about = _placed(parts["traits"].sort("rank"), run)
    lengths = about["sequence"].drop_nulls().to_list()
    world = max(run.world_size or 1, about.height)
    job, missing = job_flops(
        settings, sequence=max(lengths, default=None), tokens=about["tokens"][0] if world == about.height == 1 else None
    )
    flops, kernel_ns = parts["flops"], int(parts["coverage"]["kernel_ns"].sum())
    shaped = int(parts["coverage"]["shaped_ns"].sum()) > 0 or bool(run.features.get("shapes"))
    if flops.is_empty() and job is None and (missing or not shaped):
        return skipped(missing[0] if missing else f"{ALL_NEEDS['shapes'].sentence()} Or {HINT}.")
    steps = _windows(run)
    if steps.is_empty():
        return skipped("no step and no GPU activity to measure. " + ALL_NEEDS["gpu"].hint)
    known = peaks(run.ranks, [*flops["peak_dtype"].to_list(), "bf16", "fp16"], settings.peak_tflops)
    judged = sample(about, world, experts=bool(about["experts"].any()) or (job is not None and job.experts))
    rows = per_step(steps, flops, known)
    coverage = share(int(parts["coverage"]["covered_ns"].sum()), kernel_ns)
    trusted = not flops.is_empty() and (coverage is None or coverage >= TOO_LITTLE)
    k = _Known(parts, run, settings, steps, job, known, judged, rows, totals(rows, judged), coverage, trusted)
    metrics = _metrics(k)
    tables = _tables(k, metrics)
    notes = [*_notes(k), *missing]
    return Result(
        headline=_headline(k, metrics, notes),
        metrics=metrics,
        tables=tables,
        findings=_findings(k, metrics, tables),
        charts=_charts(tables),
        notes=notes,
    )


def _placed(about: pl.DataFrame, run: RunView) -> pl.DataFrame:
    """Fill in what the join found out about groups that the ranks' own lists do not name."""
    groups = run.joined.get("groups")
    if groups is None or not {"ranks", "role"} <= set(groups.columns):
        return about
    found = [place(groups, rank) for rank in about["rank"].to_list()]
    own = about["stages"] > 1
    stage = pl.Series([stage for stage, _, _ in found], dtype=pl.Int32)
    stages = pl.Series([stages for _, stages, _ in found], dtype=pl.Int32)
    expert = pl.Series([expert for _, _, expert in found], dtype=pl.Boolean)
    return about.with_columns(
        stage=pl.when(own).then("stage").otherwise(stage),
        stages=pl.when(own).then("stages").otherwise(stages),
        experts=pl.col("experts") | expert,
    )


def _windows(run: RunView) -> pl.DataFrame:
    """Return rank, step, open_end and the step's length in ns, for windows that are not empty."""
    return (
        run.steps.select("rank", "step", "open_end", "start_ns", window_ns=pl.col("end_ns") - pl.col("start_ns"))
        .filter(pl.col("window_ns") > 0)
        .sort("rank", "start_ns")
        .drop("start_ns")
    )


# ---- figures of the run ----


def _main_format(k: _Known) -> str:
    """Return the format whose peak stands for the run: the one with the most FLOPs; bf16 where none were counted."""
    flops = k.parts["flops"]
    if flops.is_empty():
        return "bf16" if k.peaks.of("bf16") is not None or k.peaks.of("fp16") is None else "fp16"
    summed = flops.group_by("peak_dtype").agg(pl.col("full").sum()).sort("full", "peak_dtype", descending=[True, False])
    return str(summed["peak_dtype"][0])


def _job_peak(k: _Known) -> float | None:
    """Return the peak a job's FLOPs are divided by: FLOPs ÷ (FLOPs ÷ peak) over the formats that were recorded."""
    at_peak = k.totals.at_peak["model_full"]
    if at_peak and k.totals.flops["model_full"]:
        return float(k.totals.flops["model_full"]) / at_peak
    return k.peaks.of(_main_format(k))


def _metrics(k: _Known) -> dict[str, Value]:
    found: dict[str, Value] = dict.fromkeys((*_MEASURES, "mfu_by_convention"))
    step: dict[str, Value] = dict.fromkeys(("model_flops_per_step", "model_flops_per_step_causal"))
    rate: float | None = None
    whole = k.trusted and not k.sample.reason
    if whole:
        found |= {name: k.totals.utilization(measure) for name, measure in _MEASURES.items()}
        step = {
            "model_flops_per_step": _number(k.totals.job_step["model_full"]),
            "model_flops_per_step_causal": _number(k.totals.job_step["model_causal"]),
        }
        rate = k.totals.flops_per_second(_MEASURES[k.chosen])
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
        "peak_flops": k.peaks.of(_main_format(k)),
        "peak_format": _main_format(k),
        "shape_coverage": k.coverage,
        "linked_share": share(int(coverage["linked_ns"].sum()), kernel_ns),
        "orphan_share": share(int(coverage["orphan_ns"].sum()), kernel_ns),
        "flops_source": k.job.source if k.job else "shapes" if k.trusted else None,
        "convention": k.settings.mfu_convention,
        "tokens_per_second_per_gpu": _tokens_per_second(k),
        "shapes_to_job_ratio": _ratio(k),
    }


def _tokens_per_second(k: _Known) -> float | None:
    """Return tokens of the whole job a step ÷ (world size × mean step time), as far as the user stated them."""
    tokens = k.job.tokens if k.job and k.job.tokens else k.settings.tokens_per_step
    seconds = int(k.rows["window_ns"].sum()) / 1e9
    return tokens * k.rows.height / (k.world * seconds) if tokens else None


def _number(value: float) -> float | int:
    """Return FLOPs as a whole number where JSON readers keep it exactly."""
    whole = round(value)
    return whole if abs(whole) < 2**63 else float(whole)


def _ratio(k: _Known) -> float | None:
    """Return the job's FLOPs a step counted from shapes ÷ those stated by the user, in the chosen convention."""
    if k.job is None or not k.trusted or k.sample.reason:
        return None
    stated = k.job.full if k.chosen == "mfu" else k.job.causal
    return k.totals.job_step[_MEASURES[k.chosen]] / stated if stated else None


# ---- tables ----


def _tables(k: _Known, metrics: dict[str, Value]) -> Tables:
    tables = {
        "per_rank_step": _per_rank_step(k),
        "phases": _phases(k),
        "formats": _formats(k),
        "ops": _ops(k),
        "coverage": k.parts["coverage"].sort("rank"),
        "opaque": _opaque(k),
        "peaks": _peak_table(k),
        "published": pl.DataFrame(
            [(row.what, row.low, row.high, row.source, row.converted) for row in published(k.settings.mfu_convention)],
            schema={
                "what": pl.String, "low": pl.Float64, "high": pl.Float64, "source": pl.String, "converted": pl.Boolean,
            },
            orient="row",
        ),
    }  # fmt: skip
    value = metrics["mfu_by_convention"]
    others = tables["published"]
    if isinstance(value, float) and not others.is_empty():
        tables["beside_published"] = pl.DataFrame(
            {"mfu": [value], "published_low": [others["low"].min()], "published_high": [others["high"].max()]}
        )
    return tables


def _per_rank_step(k: _Known) -> pl.DataFrame:
    """Return FLOPs with full attention and utilization of each window; the job's FLOPs are shared out evenly."""
    seconds = pl.col("window_ns") / 1e9
    rows = k.rows.with_columns((pl.col(f"at_peak_{measure}") / seconds).alias(n) for n, measure in _MEASURES.items())
    rows = rows.with_columns(model_flops="model_full", hardware_flops="full")
    shown = ["model_flops", "hardware_flops", "mfu", "hfu", "mfu_causal", "hfu_causal"]
    if not k.trusted:
        rows = rows.with_columns(pl.lit(None, rows.schema[name]).alias(name) for name in shown)
    if k.job is not None:
        peak = _job_peak(k)
        each = k.world * (peak or 1)
        rows = rows.with_columns(
            model_flops=pl.lit(round(k.job.full / k.world), pl.Int64),
            mfu=pl.lit(k.job.full / each if peak else None, pl.Float64) / seconds,
            mfu_causal=pl.lit(k.job.causal / each if peak else None, pl.Float64) / seconds,
        )
    return rows.select("rank", "step", *shown, "open_end", "window_ns")


def _phases(k: _Known) -> pl.DataFrame:
    """Return FLOPs of each phase over all rank-steps, the time its kernels ran, and HFU within that time."""
    if not k.trusted:
        return pl.DataFrame(
            schema={
                "phase": pl.String, "model_flops": pl.Float64, "hardware_flops": pl.Float64, "gpu_ns": pl.Int64,
                "tflops": pl.Float64, "share_of_peak": pl.Float64,
            }
        )  # fmt: skip
    flops = k.parts["flops"].join(k.peaks.table, on=["rank", "peak_dtype"], how="left")
    usable = unknown_formats(k.parts["flops"], k.peaks)[1] <= NEGLIGIBLE
    found = flops.sort("rank", "step", "phase", "dtype").group_by("phase", maintain_order=True).agg(
        model_flops=pl.col("model_full").cast(pl.Float64).sum(),
        hardware_flops=pl.col("full").cast(pl.Float64).sum(),
        at_peak=(pl.col("full") / pl.col("peak_flops")).sum(),
    )  # fmt: skip
    time = k.parts["phase_time"].group_by("phase").agg(pl.col("gpu_ns").sum())
    joined = found.join(time, on="phase", how="left", nulls_equal=True)
    busy = pl.when(pl.col("gpu_ns") > 0).then(pl.col("gpu_ns"))
    return joined.select(
        "phase",
        "model_flops",
        "hardware_flops",
        "gpu_ns",
        tflops=pl.col("hardware_flops") / busy / 1e3,
        share_of_peak=(pl.col("at_peak") / busy * 1e9) if usable else pl.lit(None, pl.Float64),
    ).sort("hardware_flops", "phase", descending=[True, False])


def _formats(k: _Known) -> pl.DataFrame:
    """Return executed FLOPs by number format with the peak each is held against."""
    found = k.parts["flops"].group_by("dtype", "peak_dtype").agg(
        hardware_flops=pl.col("full").cast(pl.Float64).sum(), kernel_ns=pl.col("kernel_ns").sum()
    )  # fmt: skip
    total = found["hardware_flops"].sum()
    return (
        found.join(_best_peaks(k), on="peak_dtype", how="left")
        .sort("hardware_flops", "dtype", "peak_dtype", descending=[True, False, False])
        .select(
            "dtype",
            "peak_dtype",
            "hardware_flops",
            share_of_flops=pl.col("hardware_flops") / (total or 1),
            peak_tflops=pl.col("peak_flops") / 1e12,
            tflops=pl.col("hardware_flops") / pl.when(pl.col("kernel_ns") > 0).then(pl.col("kernel_ns")) / 1e3,
        )
    )


def _best_peaks(k: _Known) -> pl.DataFrame:
    """Return one peak a format: that of the first rank that has one."""
    known = k.peaks.table.filter(pl.col("peak_flops").is_not_null()).sort("peak_dtype", "rank")
    return known.unique("peak_dtype", keep="first", maintain_order=True).select("peak_dtype", "peak_flops")


def _ops(k: _Known) -> pl.DataFrame:
    """Return operators by shape over all ranks, the most FLOPs first, with what their kernels reached."""
    keys = ["op", "shape", "dtype", "peak_dtype"]
    found = k.parts["shapes"].group_by(keys).agg(
        count=pl.col("count").sum(),
        flops=pl.col("flops").cast(pl.Float64).sum(),  # a sum over a thousand ranks may pass int64
        model_flops=pl.col("model_flops").cast(pl.Float64).sum(),
        kernel_ns=pl.when(pl.col("kernel_ns").count() > 0).then(pl.col("kernel_ns").sum()),
        flags=pl.col("flags").max(),
    )  # fmt: skip
    tflops = pl.col("flops") / pl.when(pl.col("kernel_ns") > 0).then(pl.col("kernel_ns")) / 1e3
    peak = pl.col("peak_flops") / 1e12
    return (
        found.join(_best_peaks(k), on="peak_dtype", how="left")
        .sort("flops", *keys, descending=[True] + [False] * len(keys))
        .head(MAX_OPS)
        .select(
            *keys,
            "count",
            "flops",
            "model_flops",
            "kernel_ns",
            tflops=tflops,
            share_of_peak=tflops / peak,
            flags="flags",
        )
    )


def _opaque(k: _Known) -> pl.DataFrame:
    """Return what launched the kernel time that no FLOPs were counted for."""
    found = k.parts["opaque"].group_by("name").agg(pl.col("kernel_ns").sum(), pl.col("kernels").sum())
    return found.sort("kernel_ns", "name", descending=[True, False]).head(20)


def _peak_table(k: _Known) -> pl.DataFrame:
    """Return the devices and the dense peak of each format that was recorded, with where the figures come from."""
    used = set(k.parts["flops"]["peak_dtype"].to_list()) or {_main_format(k)}
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


# ---- words ----


def _notes(k: _Known) -> list[str]:
    about, notes = k.parts["traits"], list(k.job.notes if k.job else ())
    if k.coverage is not None and k.job is None and k.coverage < LOWER_BOUND:
        what = "lower bounds" if k.trusted else "not shown"
        notes.append(f"Shapes explain {percent(k.coverage)} of kernel time: figures from shapes are {what}; {HINT}.")
    elif k.coverage is not None and not k.trusted:
        notes.append(f"Shapes explain {percent(k.coverage)} of kernel time: HFU and FLOPs by operator are not shown.")
    if k.sample.reason:
        notes.append(f"No figure from shapes for the run: {k.sample.reason}.")
    elif about.height < k.world and k.trusted:
        notes.append(f"{about.height} of {k.world} ranks were read; the others are taken to do the same work.")
    if k.run.world_size is None and k.job is not None:
        notes.append(
            f"The number of ranks of the job is not in the traces: taken as {k.world}; --world-size states it."
        )
    notes += _peak_notes(k)
    for column, text in (
        ("phantom_calls", "recorded operators never ran (checkpointing stopped early); they are not counted"),
        ("outside_calls", "operators were launched outside all steps; they are not counted"),
    ):
        number = int(about[column].sum())
        if number:
            notes.append(f"{number} {text}.")
    return notes + _flag_notes(k)


def _peak_notes(k: _Known) -> list[str]:
    if k.peaks.given:
        return [f"Peak given: {k.settings.peak_tflops:g} TFLOP/s for every number format."]
    notes = []
    names = sorted({str(n or "") for n in k.run.ranks["device_name"].to_list()})
    if any(device is None for device in k.peaks.devices.values()):
        unknown = " or ".join(f'"{name}"' for name in names)
        notes.append(f"Device {unknown} is not known: TFLOP/s, but no MFU; --peak-tflops gives its dense peak.")
    formats, lacking = unknown_formats(k.parts["flops"], k.peaks)
    if formats and any(k.peaks.devices.values()):
        effect = "they are left out" if lacking <= NEGLIGIBLE else "no MFU"
        notes.append(f"No dense peak is known for {', '.join(formats)} on this device: {effect}.")
    devices = {device.key: device for device in k.peaks.devices.values() if device}.values()
    for device in devices:
        peak = device.tflops.get(_main_format(k))
        said = "" if peak is None else f" {peak:g} TFLOP/s, dense {_main_format(k)}"
        sources = f"{len(device.sources)} sources in table peaks, {device.confidence} confidence"
        notes.append(f"Peak of {device.name}:{said} ({sources}).")
    if _formats(k).filter(pl.col("share_of_flops") > NEGLIGIBLE)["peak_dtype"].n_unique() > 1:
        notes.append("Several number formats: MFU is the time the FLOPs take at their own peaks ÷ step time.")
    return notes


def _flag_notes(k: _Known) -> list[str]:
    flags = ", ".join(k.parts["shapes"]["flags"].drop_nulls().unique().sort().to_list())
    texts = {
        "varlen_upper_bound": "Sequence lengths of packed attention are not in the trace: its FLOPs are upper bounds.",
        "mask_unknown": "Some attention has a mask whose pairs are not known: it is counted in full.",
        "causal_alignment": "Causal attention of unequal lengths: the diagonal is taken to end at the last key.",
        "fp32_or_tf32": "Kernels do not say whether float32 products ran in tf32: held against the tf32 peak.",
    }
    return [text for flag, text in texts.items() if flag in flags]


def _headline(k: _Known, metrics: dict[str, Value], notes: list[str]) -> list[Headline]:
    hfu = "hfu" if k.chosen == "mfu" else "hfu_causal"
    said = "full attention" if k.chosen == "mfu" else "causal attention"
    value = metrics[k.chosen]
    if value is None:
        note = next((n for n in notes if "No figure" in n or "not shown" in n or "no MFU" in n), "FLOPs are not known")
    else:
        note = f"{said}, FLOPs from {metrics['flops_source']}"
        if k.job is None and k.coverage is not None:
            bound = ", a lower bound" if k.coverage < LOWER_BOUND else ""
            note += f", {percent(k.coverage)} of kernel time covered{bound}"
            if bound:
                note += f"; {HINT}"
    rate = metrics["tflops_per_gpu"]
    return [
        Headline("MFU", value, "share", 0, note),
        Headline("HFU", metrics[hfu], "share", 1, f"{said}; all that ran"),
        Headline("TFLOP/s per GPU", rate, "tflops", 2, "model FLOPs"),
    ]


# ---- findings ----


def _findings(k: _Known, metrics: dict[str, Value], tables: Tables) -> list[Finding]:
    found = [_sources_differ(k, metrics), _above_peak(metrics, tables), _recomputation(k)]
    return [finding for finding in found if finding is not None]


def _sources_differ(k: _Known, metrics: dict[str, Value]) -> Finding | None:
    ratio = metrics["shapes_to_job_ratio"]
    if not isinstance(ratio, float) or k.job is None or abs(ratio - 1) <= APART:
        return None
    covered = "" if k.coverage is None else f" Shapes explain {percent(k.coverage)} of kernel time."
    return Finding(
        id="mfu.sources_differ",
        analysis="mfu",
        severity="warning",
        title=f"FLOPs from shapes are {ratio:.2f} times those {'given' if k.job.source == 'given' else 'of the model'}",
        detail=f"From shapes {k.totals.job_step[_MEASURES[k.chosen]] / 1e12:.4g} TFLOP a step of the whole job, "
        f"{k.job.source} {(k.job.full if k.chosen == 'mfu' else k.job.causal) / 1e12:.4g}.{covered}",
        advice="Check tokens per step (whole job, all accumulation steps), the config, and what is not covered.",
        confidence="high",
        confidence_why="both are counted exactly; at least one is not about this run",
        saving=no_saving(),
        evidence=(("opaque", tuple(range(min(3, k.parts["opaque"].height)))),),
    )


def _above_peak(metrics: dict[str, Value], tables: Tables) -> Finding | None:
    above = tables["ops"].with_row_index("row").filter(pl.col("share_of_peak") > ABOVE_PEAK)
    over = [name for name in _MEASURES if isinstance(value := metrics[name], float) and value > 1]
    if above.is_empty() and not over:
        return None
    what = f"{above['op'][0]} {above['shape'][0]} reaches {percent(above['share_of_peak'][0])}" if above.height else ""
    return Finding(
        id="mfu.above_peak",
        analysis="mfu",
        severity="warning",
        title="Arithmetic above the dense peak: a shape, number format, device or the stated FLOPs is wrong",
        detail="; ".join(
            [*(f"{name} is {percent(float(str(metrics[name])))}" for name in over), *([what] if what else [])]
        )
        + " of the dense peak.",
        advice="Check the device name and --peak-tflops, the number format, tokens per step, windowed attention.",
        confidence="high",
        confidence_why="nothing runs above its peak",
        saving=no_saving(),
        evidence=(("ops", tuple(above["row"].to_list()[:10])),) if above.height else (),
    )


def _recomputation(k: _Known) -> Finding | None:
    time = k.parts["phase_time"].filter((pl.col("phase") == "recompute") & (pl.col("gpu_ns") > 0))
    if time.is_empty():
        return None
    total = int(k.steps["window_ns"].sum())
    spent = int(time["gpu_ns"].sum())
    starts = k.run.steps.select("rank", "step", at_ns="start_ns")
    saving = time.join(starts, on=["rank", "step"], how="left", nulls_equal=True).select(
        "rank", "step", "at_ns", ns="gpu_ns"
    )
    return Finding(
        id="mfu.recomputation",
        analysis="mfu",
        severity="info",
        title=f"Activation checkpointing computes {percent(spent / total)} of the step a second time",
        detail=f"Compute kernels of recomputed forwards ran {spent / 1e6:.1f} ms over {k.steps.height} rank-steps.",
        advice="With memory to spare, checkpoint fewer blocks, or only attention.",
        confidence="medium",
        confidence_why="memory decides; the time is exact",
        saving=saving.cast(SAVING_SCHEMA).sort("rank", "at_ns"),  # type: ignore[arg-type] # polars' stub wants a plain dict
        evidence=(("phases", (0,)),),
    )


def _charts(tables: Tables) -> list[Chart]:
    charts = []
    if "beside_published" in tables:
        charts.append(
            Chart(
                "bullet",
                "MFU beside published figures",
                "beside_published",
                y=("mfu", "published_low", "published_high"),
                unit="share",
                note="This run against the range of published figures of the same convention.",
                options={"first_screen": True},
            )
        )
    if tables["ops"].height:
        charts.append(
            Chart(
                "bars", "FLOPs by operator and shape", "ops", label="shape", y=("flops",), unit="count",
                note="Executed FLOPs, attention in full.", options={"max_rows": 12},
            )
        )  # fmt: skip
    return charts
