"""MFU and HFU: the share of the dense peak that the model's arithmetic, and all executed arithmetic, uses.

MFU of a step of a rank = Σ over number formats (model FLOPs ÷ dense peak of the format) ÷ step time. HFU is the same
with the FLOPs that ran. Model FLOPs leave out what is computed twice: recomputation by checkpointing, and the fifth
product of a fused attention backward (backward = 2 × forward); they also leave out the optimizer's. `mfu` and `hfu`
count every pair of causal attention, `mfu_causal` and `hfu_causal` half of them (all other masks count in full). The
run: Σ (FLOPs ÷ peak) ÷ Σ step time over the steps of all ranks, steps with an open end included. FLOPs in tables
count attention in full; rates (TFLOP/s, share of peak) of operators, formats and phases credit the causal mask, which
fused kernels skip. 1 multiply-accumulate = 2 FLOPs.

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

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.errors import UsageError
from tracetool.figures import percent, share
from tracetool.mfu.job_flops import job_flops
from tracetool.mfu.mfu_figures import MEASURES, Known, formats_of, main_format, metrics_of, tables_of
from tracetool.mfu.op_arguments import VARLEN
from tracetool.mfu.rank_flops import by_phase, by_shape, by_step, place, rank_flops, traits
from tracetool.mfu.utilization import NEGLIGIBLE, peaks, per_step, sample, totals, unknown_formats
from tracetool.needs import NEEDS as ALL_NEEDS
from tracetool.results import SAVING_SCHEMA, Chart, Finding, Headline, Result, Value, no_saving, skipped

if TYPE_CHECKING:
    from tracetool.registry import RankView, RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "MFU and HFU"
NEEDS: Final = ("events",)
GATES: Final = {"min-mfu": ("mfu_by_convention", "min")}

LOWER_BOUND: Final = 0.95
"""Coverage below which figures from shapes are lower bounds."""
TOO_LITTLE: Final = 0.5
"""Coverage below which there are none."""
APART: Final = 0.10
"""Difference of two sources of FLOPs that is worth a finding."""
ABOVE_PEAK: Final = 1.02
"""A product this much above its dense peak cannot be: short kernels are timed to about two percent."""
HINT: Final = "--model config.json --tokens-per-step N (or --flops-per-step) counts them from the model"


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


def analyze(parts: Tables, run: RunView, settings: Settings) -> Result:
    """Reduce the ranks' FLOPs to MFU and HFU of each rank-step, each phase and the run."""
    about = _placed(parts["traits"].sort("rank"), run)
    lengths = about["sequence"].drop_nulls().to_list()
    world = max(run.world_size or 1, about.height)
    tokens = about["tokens"][0] if world == about.height == 1 else None
    try:
        job, missing = job_flops(settings, sequence=max(lengths, default=None), tokens=tokens)
    except UsageError as wrong:  # the other questions can still be answered
        return skipped(f"{wrong}.")
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
    k = Known(parts, run, settings, steps, job, known, judged, rows, totals(rows, judged), coverage, trusted)
    metrics = metrics_of(k)
    tables = tables_of(k, metrics)
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


def _notes(k: Known) -> list[str]:
    about, notes = k.parts["traits"], list(k.job.notes if k.job else ())
    if k.coverage is not None and k.job is None and k.coverage < LOWER_BOUND:
        what = "lower bounds" if k.trusted else "not shown"
        notes.append(f"Shapes explain {percent(k.coverage)} of kernel time: figures from shapes are {what}; {HINT}.")
    elif k.coverage is not None and not k.trusted:
        notes.append(f"Shapes explain {percent(k.coverage)} of kernel time: HFU and FLOPs by operator are not shown.")
    if k.job is None and k.parts["flops"].is_empty() and about["calls"].sum() == 0:
        notes.append(
            "Shapes were recorded, but no matrix product among them whose FLOPs are known: complex numbers, recurrent "
            f"layers, decompositions and custom operators have no formula here; {HINT}."
        )
    if k.sample.reason:
        notes.append(f"No figure from shapes for the run: {k.sample.reason}.")
    elif about.height < k.world and k.trusted:
        notes.append(f"{about.height} of {k.world} ranks were read; the others are taken to do the same work.")
    if k.run.world_size is None and k.job is not None:
        notes.append(
            f"The number of ranks of the job is not in the traces: taken as {k.world}; --world-size states it."
        )
    if k.job is not None and k.steps["step"].null_count():
        notes.append(
            "No steps in the traces: the whole window is taken as one optimizer step; --step-range names steps."
        )
    notes += _peak_notes(k)
    for column, text in (
        ("phantom_calls", "recorded operators never ran (checkpointing stopped early); they are not counted"),
        ("outside_calls", "operators were launched outside all steps; they are not counted"),
    ):
        number = int(about[column].sum())
        if number:
            notes.append(f"{number} {text}.")
    if not k.causal_known:
        full = k.totals.utilization(MEASURES["mfu"]) if k.trusted and not k.sample.reason else None
        notes.append(
            "NVTX ranges do not record whether attention was causal: no MFU, HFU or rate with causal credit from "
            f"shapes; with attention in full MFU is {percent(full)}, an upper bound; --mfu-convention full takes that."
        )
    unfused = int(about["square_softmax"].sum())
    if unfused and k.job is None:
        notes.append(
            f"{unfused:,} times a softmax over as many queries as keys: attention as plain products does not say "
            "whether it was causal and is counted in full, also under the causal convention."
        )
    return notes + _flag_notes(k)


def _peak_notes(k: Known) -> list[str]:
    if k.peaks.given:
        return [f"Peak given: {k.settings.peak_tflops:g} TFLOP/s for every number format."]
    notes = []
    names = sorted({str(n) for n in k.run.ranks["device_name"].to_list() if n})
    if any(device is None for device in k.peaks.devices.values()):
        unknown = "Device " + (" or ".join(f'"{name}"' for name in names) or "of the traces")
        notes.append(f"{unknown} is not known: TFLOP/s, but no MFU; --peak-tflops gives its dense peak.")
    if k.parts["flops"].is_empty():
        notes.append(f"Number formats are not in the traces: held against the {main_format(k)} peak.")
    formats, lacking = unknown_formats(k.parts["flops"], k.peaks)
    if formats and any(k.peaks.devices.values()):
        effect = "they are left out" if lacking <= NEGLIGIBLE else "no MFU"
        notes.append(f"No dense peak is known for {', '.join(formats)} on this device: {effect}.")
    devices = {device.key: device for device in k.peaks.devices.values() if device}.values()
    for device in devices:
        peak = device.tflops.get(main_format(k))
        said = "" if peak is None else f" {peak:g} TFLOP/s, dense {main_format(k)}"
        sources = f"{len(device.sources)} sources in table peaks, {device.confidence} confidence"
        notes.append(f"Peak of {device.name}:{said} ({sources}).")
    if formats_of(k).filter(pl.col("share_of_flops") > NEGLIGIBLE)["peak_dtype"].n_unique() > 1:
        notes.append("Several number formats: MFU is the time the FLOPs take at their own peaks ÷ step time.")
    return notes


def _flag_notes(k: Known) -> list[str]:
    flags = ", ".join(k.parts["shapes"]["flags"].drop_nulls().unique().sort().to_list())
    if k.job is not None and k.job.source == "config" and VARLEN in flags:
        return ["Packed sequences: the model's attention is taken at the longest recorded length, an upper bound."]
    texts = {
        "varlen_upper_bound": "Sequence lengths of packed attention are not in the trace: its FLOPs are upper bounds.",
        "mask_unknown": "Some attention has a mask whose pairs are not known: it is counted in full.",
        "causal_alignment": "Causal attention of unequal lengths: the diagonal is taken to end at the last key.",
        "fp32_or_tf32": "Kernels do not say whether float32 products ran in tf32: held against the tf32 peak.",
    }
    return [text for flag, text in texts.items() if flag in flags]


def _reason(notes: list[str]) -> str:
    """Return why a figure is empty."""
    said = ("No figure", "not shown", "no MFU", "no matrix product")
    return next((note for note in notes if any(words in note for words in said)), "FLOPs are not known")


def _headline(k: Known, metrics: dict[str, Value], notes: list[str]) -> list[Headline]:
    hfu = "hfu" if k.chosen == "mfu" else "hfu_causal"
    said = "full attention" if k.chosen == "mfu" else "causal attention"
    value = metrics[k.chosen]
    if value is None:
        note = _reason(notes)
    else:
        note = f"{said}, FLOPs from {metrics['flops_source']}"
        if k.job is not None and k.job.without_attention:
            note = f"FLOPs from {k.job.source} without attention, a lower bound: no sequence length in the traces"
        if k.job is None and k.coverage is not None:
            bound = ", a lower bound" if k.coverage < LOWER_BOUND else ""
            note += f", {percent(k.coverage)} of kernel time covered{bound}"
            if bound:
                note += f"; {HINT}"
    rate = metrics["tflops_per_gpu"]
    return [
        Headline("MFU", value, "share", 0, note),
        Headline("HFU", metrics[hfu], "share", 1, _reason(notes) if metrics[hfu] is None else f"{said}; all that ran"),
        Headline("TFLOP/s per GPU", rate, "tflops", 2, _reason(notes) if rate is None else "model FLOPs"),
    ]


# ---- findings ----


def _findings(k: Known, metrics: dict[str, Value], tables: Tables) -> list[Finding]:
    found = [_sources_differ(k, metrics), _above_peak(metrics, tables), _recomputation(k)]
    return [finding for finding in found if finding is not None]


def _sources_differ(k: Known, metrics: dict[str, Value]) -> Finding | None:
    ratio = metrics["shapes_to_job_ratio"]
    if not isinstance(ratio, float) or k.job is None or abs(ratio - 1) <= APART:
        return None
    covered = "" if k.coverage is None else f" Shapes explain {percent(k.coverage)} of kernel time."
    return Finding(
        id="mfu.sources_differ",
        analysis="mfu",
        severity="warning",
        title=f"FLOPs from shapes are {ratio:.2f} times those {'given' if k.job.source == 'given' else 'of the model'}",
        detail=f"From shapes {k.totals.job_step[MEASURES[k.chosen]] / 1e12:.4g} TFLOP a step of the whole job, "
        f"{k.job.source} {(k.job.full if k.chosen == 'mfu' else k.job.causal) / 1e12:.4g}.{covered}",
        advice="Check tokens per step (whole job, all accumulation steps), the config, and what is not covered.",
        confidence="high",
        confidence_why="both are counted exactly; at least one is not about this run",
        saving=no_saving(),
        evidence=(("opaque", tuple(range(min(3, k.parts["opaque"].height)))),),
    )


def _above_peak(metrics: dict[str, Value], tables: Tables) -> Finding | None:
    above = tables["ops"].with_row_index("row").filter(pl.col("share_of_peak") > ABOVE_PEAK)
    over = [name for name in ("mfu_causal", "hfu_causal") if isinstance(value := metrics[name], float) and value > 1]
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


def _recomputation(k: Known) -> Finding | None:
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
                "bars", "FLOPs by operator and shape", "ops", label="op", y=("flops",), unit="flops",
                note="Executed FLOPs, attention in full.", options={"max_rows": 12, "text": "shape"},
            )
        )  # fmt: skip
    return charts
