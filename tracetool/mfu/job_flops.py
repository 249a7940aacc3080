"""Model FLOPs of a whole job in one optimizer step, as the user states them: given, or by a model's config.

Tokens a step are the user's, else those that `aten::embedding` saw where one rank is the whole job. The sequence
length T is that of the recorded embedding [B, T]; without a recording the length of a learned table of positions;
failing that attention is left out and the figure said to be a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracetool.mfu import model_flops

if TYPE_CHECKING:
    from tracetool.settings import Settings


@dataclass(frozen=True)
class JobFlops:
    """Model FLOPs of the whole job in one optimizer step, with full and with causal attention.

    `source` is config or given; `notes` say what was assumed; `experts` says that the model routes tokens.
    """

    source: str
    full: float
    causal: float
    notes: tuple[str, ...]
    experts: bool = False
    tokens: int | None = None
    without_attention: bool = False
    """No sequence length is known: the FLOPs of attention are left out."""


def job_flops(
    settings: Settings, *, sequence: int | None, tokens: int | None
) -> tuple[JobFlops | None, tuple[str, ...]]:
    """Return the job's FLOPs by the user's word, and what to tell when there are none.

    `sequence`: length T seen in the traces; `tokens`: tokens a step seen in the traces, only where those traces hold
    the whole job. Raises UsageError for a config that cannot be read.
    """
    if settings.flops_per_step is not None:
        note = "FLOPs a step are those given with --flops-per-step, for both conventions."
        return JobFlops("given", settings.flops_per_step, settings.flops_per_step, (note,)), ()
    if settings.model is None:
        return None, ()
    shape = model_flops.from_config(model_flops.load(Path(settings.model)))
    notes = []
    if shape.predicting_layers and not settings.mtp:
        notes.append(
            f"The config names {shape.predicting_layers} layer(s) that predict further tokens (MTP); they are not "
            "counted, because a config does not say that they were trained; --mtp counts them."
        )
    count = settings.tokens_per_step
    if count is None and tokens is not None:
        count = tokens
        notes.append(f"Tokens a step, {tokens}, are those that aten::embedding saw; --tokens-per-step N states them.")
    if count is None:
        return None, ("--model needs --tokens-per-step N (tokens of the whole job in one optimizer step).",)
    length = sequence
    if length is None and shape.positions:
        length = shape.positions
        notes.append(f"No sequence length in the traces: taken as the {length} positions of the model.")
    if length is None:
        notes.append(
            "No sequence length in the traces: attention is left out, FLOPs and MFU are lower bounds; "
            "record_shapes=True records it."
        )
    full, causal = (
        count
        * (
            model_flops.flops_per_token(shape, length, convention, predicting=settings.mtp)
            if length
            else 6 * shape.matmul_parameters
        )
        for convention in ("matmul_full", "matmul_causal")
    )
    return JobFlops(
        "config", full, causal, tuple(notes), experts=shape.experts > 0, tokens=count, without_attention=not length
    ), ()
