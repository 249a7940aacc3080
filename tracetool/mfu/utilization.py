"""From FLOPs to shares of peak: of a step of a rank, of a run of which some ranks may be missing.

utilization = Σ over number formats (FLOPs ÷ dense peak of the format) ÷ time: the share of the time that the FLOPs
would take at their peaks. With one format that is FLOPs ÷ (time × peak).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool import hardware

if TYPE_CHECKING:
    from collections.abc import Mapping

MEASURES: Final = ("full", "causal", "model_full", "model_causal")
NEGLIGIBLE: Final = 0.001
"""Share of the FLOPs in formats without a known peak that is left out; above it utilization is not known."""


@dataclass(frozen=True, eq=False)
class Peaks:
    """Dense peaks by rank and number format.

    `table`: rank, peak_dtype, peak_flops (FLOP/s, null where not known). `devices`: what each rank's name was found
    to be. `given`: the user's own peak, which then holds for every format.
    """

    table: pl.DataFrame
    devices: Mapping[int, hardware.Device | None]
    given: bool

    def of(self, dtype: str) -> float | None:
        """Return the peak of the first rank that has one for this format, FLOP/s."""
        known = self.table.filter((pl.col("peak_dtype") == dtype) & pl.col("peak_flops").is_not_null())
        return None if known.is_empty() else float(known["peak_flops"][0])


def peaks(ranks: pl.DataFrame, formats: list[str], peak_tflops: float | None) -> Peaks:
    """Look up every rank's device (columns rank, device_name, device_memory_bytes) for these formats."""
    devices = {
        rank: hardware.find(name, memory)
        for rank, name, memory in ranks.select("rank", "device_name", "device_memory_bytes").sort("rank").iter_rows()
    }
    rows = []
    for rank, device in devices.items():
        for dtype in sorted(set(formats)):
            peak = device.peak_flops(dtype) if device else None
            rows.append((rank, dtype, peak_tflops * 1e12 if peak_tflops else peak))
    schema = {"rank": pl.Int32, "peak_dtype": pl.String, "peak_flops": pl.Float64}
    return Peaks(pl.DataFrame(rows, schema=schema, orient="row"), devices, bool(peak_tflops))


def unknown_formats(flops: pl.DataFrame, known: Peaks) -> tuple[list[str], float]:
    """Return the formats without a known peak and their share of the executed FLOPs."""
    joined = flops.join(known.table, on=["rank", "peak_dtype"], how="left")
    total = float(joined["full"].cast(pl.Int128).sum())
    lacking = joined.filter(pl.col("peak_flops").is_null() & (pl.col("full") > 0))
    return sorted(set(lacking["dtype"].to_list())), (
        float(lacking["full"].cast(pl.Int128).sum()) / total if total else 0.0
    )


def per_step(steps: pl.DataFrame, flops: pl.DataFrame, known: Peaks) -> pl.DataFrame:
    """Return one row a window of `steps` (rank, step, open_end, window_ns): FLOPs and seconds at peak by measure.

    `flops` has columns rank, step, dtype, peak_dtype and the measures. `at_peak_…` are null where a format of more
    than a negligible share has no known peak; a window without any counted operator has 0 FLOPs.
    """
    _, lacking = unknown_formats(flops, known)
    keys = ["rank", "step"]
    summed = flops.group_by([*keys, "peak_dtype"]).agg(pl.col(name).sum() for name in MEASURES)
    timed = summed.join(known.table, on=["rank", "peak_dtype"], how="left").sort(*keys, "peak_dtype")
    seconds = {
        f"at_peak_{name}": (pl.col(name) / pl.col("peak_flops")).sum()  # a format without a peak is left out
        for name in MEASURES
    }
    found = timed.group_by(keys, maintain_order=True).agg(*(pl.col(name).sum() for name in MEASURES), **seconds)
    joined = steps.join(found, on=keys, how="left", nulls_equal=True, maintain_order="left")
    filled = joined.with_columns(pl.col(name).fill_null(0) for name in (*MEASURES, *seconds))
    usable = (lacking <= NEGLIGIBLE) and not known.table["peak_flops"].is_null().all()
    if not usable:
        filled = filled.with_columns(pl.lit(None, pl.Float64).alias(name) for name in seconds)
    return filled


@dataclass(frozen=True)
class Sample:
    """Whether the ranks that were read stand for the job.

    `reason` says why not (empty: they do). `weight` of a rank is 1 over the number of read ranks of its pipeline stage;
    `stages` pipeline stages, `world` ranks of the job.
    """

    reason: str
    weight: Mapping[int, Fraction]
    stages: int
    world: int


def sample(places: pl.DataFrame, world: int, *, experts: bool) -> Sample:
    """Judge the ranks that were read (columns rank, stage, stages; stage null where not known).

    Ranks of one stage do the same work, those of different stages do not: one rank of each is needed. With experts,
    ranks get different numbers of tokens, so that one rank alone never stands for the others.
    """
    stages = max(1, max((count for count in places["stages"].to_list() if count), default=1))
    ranks = places["rank"].to_list()
    whole = len(ranks) >= world
    stage_of = dict(zip(ranks, places["stage"].to_list(), strict=True)) if stages > 1 else dict.fromkeys(ranks, 0)
    seen = Counter(stage for stage in stage_of.values() if stage is not None)
    reason = ""
    if not whole and experts and len(ranks) == 1:
        reason = (
            f"rank {ranks[0]} alone of {world} ranks of a model with experts: ranks get different numbers of tokens; "
            "trace more ranks, or give --flops-per-step"
        )
    elif not whole and len(seen) < stages:
        reason = (
            f"{len(seen) or 'none'} of {stages} pipeline stages traced: ranks of other stages do other work; "
            "trace one rank of each stage, or give --model and --tokens-per-step"
        )
    if whole or reason or len(set(seen.values())) == 1:
        weight = dict.fromkeys(ranks, Fraction(1))
    else:
        weight = {
            rank: Fraction(1, seen[stage]) if stage is not None else Fraction(0) for rank, stage in stage_of.items()
        }
    return Sample(reason, weight, stages, world)


@dataclass(frozen=True)
class Totals:
    """The run: seconds of weighted rank-steps, FLOPs and seconds at peak by measure, FLOPs of the job in one step."""

    seconds: float
    rank_steps: Fraction
    flops: Mapping[str, Fraction]
    at_peak: Mapping[str, float | None]
    job_step: Mapping[str, int]

    def utilization(self, measure: str) -> float | None:
        """Return Σ seconds at peak ÷ Σ step time; None where a peak is not known."""
        at_peak = self.at_peak[measure]
        return None if at_peak is None or not self.seconds else at_peak / self.seconds

    def flops_per_second(self, measure: str) -> float | None:
        """Return FLOPs ÷ step time of one rank, FLOP/s."""
        return float(self.flops[measure]) / self.seconds if self.seconds else None


def totals(rows: pl.DataFrame, judged: Sample) -> Totals:
    """Sum the rows of `per_step` over the run, each rank by its weight.

    FLOPs of the job in one step: the mean over a rank's steps, summed over ranks; ranks that were not read are taken
    to be like those of their stage.
    """
    seconds, count = Fraction(0), Fraction(0)
    flops = dict.fromkeys(MEASURES, Fraction(0))
    mean = dict.fromkeys(MEASURES, Fraction(0))
    at_peak: dict[str, float | None] = dict.fromkeys(MEASURES, 0.0)
    for (rank,), part in rows.partition_by("rank", as_dict=True, maintain_order=True).items():
        weight = judged.weight.get(int(str(rank)), Fraction(1))
        seconds += weight * Fraction(int(part["window_ns"].sum()), 10**9)
        count += weight * part.height
        for name in MEASURES:
            total = sum(part[name].to_list())  # Python's integers: a job's sum may pass 2**63
            flops[name] += weight * total
            mean[name] += weight * Fraction(total, part.height)
            known, so_far = part[f"at_peak_{name}"], at_peak[name]
            at_peak[name] = (
                None if known.null_count() or so_far is None else so_far + float(weight) * float(known.sum())
            )
    ranks = sum(judged.weight.get(rank, Fraction(1)) for rank in rows["rank"].unique().sort().to_list())
    scale = Fraction(judged.world) / ranks if ranks else Fraction(1)
    return Totals(float(seconds), count, flops, at_peak, {name: round(scale * mean[name]) for name in MEASURES})
