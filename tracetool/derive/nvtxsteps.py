"""Which ranges are steps where the tracer marks none: by names that programs and frameworks give, or not at all.

Taken are, in this order:
1. Ranges with the number of the iteration in their name (`iteration 7`, `iteration7`, `step_7`, `train step: 7`), when
   on their thread numbers grow and ranges follow each other. Where several such names nest, the outermost.
2. Ranges of the optimizer, at least MIN_OPTIMIZER_STEPS with backward work before each but the first:
   `Optimizer.step#…` (pytorch/pytorch torch/optim/optimizer.py, profile_hook_step; so also Megatron-LM and NeMo under
   torch.autograd.profiler.emit_nvtx) and `DeepSpeedZeroOptimizer_Stage3.step` (deepspeed/runtime/zero/stage3.py,
   instrument_w_nvtx). A step then runs from one optimizer step to the next. Several optimizers after one backward
   count once. Ranges of single micro-batches (`DeepSpeedEngine.forward`, Lightning's `run_training_batch`) are none.
Whatever was taken is told, and so is a name that looks like a step and was not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from tracetool.derive.names import Names
from tracetool.derive.notes import Note, many

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracetool.derive.columns import Events

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

NUMBERED = r"(?i)^(?:(?:global|train(?:ing)?)[ _-]?)?(?:iter(?:ation)?|step)s?[ _#:=-]{0,2}[0-9]{1,9}$"
OPTIMIZER = r"^Optimizer\.step#|^DeepSpeedZeroOptimizer_Stage3\.step$"
BACKWARD = r"^autograd::engine::evaluate_function: |Backward[0-9]*$|^DeepSpeed\w+\.backward$"
MIN_OPTIMIZER_STEPS = 3
OTHERS = "--step-range chooses other ranges, --steps none takes the whole trace"


@dataclass(frozen=True)
class Guess:
    """Event ids of the ranges to take for steps, in order of start; whether names number them; what to tell."""

    rows: Ints
    numbered: bool
    notes: tuple[Note, ...]


def usual_ranges(events: Events, on_cpu: Bools) -> Guess:
    """Find the ranges that are steps by the rules above; `on_cpu` says which events stand on CPU threads."""
    rows = np.flatnonzero(on_cpu & events.are("annotation"))
    names = Names.of(events.names(rows))
    rows, unsure = _by_number(events, rows, names)
    if len(rows):
        told = f"no range marks steps by itself: the {many(len(rows), 'range')} named like `{_name(events, rows[0])}`"
        return Guess(rows, True, (Note("assumed_steps", len(rows), None, f"{_sentence(told)} are taken; {OTHERS}."),))
    if unsure:
        return Guess(rows, False, (unsure,))
    rows = _by_optimizer(events, on_cpu)
    if len(rows) < MIN_OPTIMIZER_STEPS:
        return Guess(rows[:0], False, ())
    told = (
        f"no range marks steps: each runs from one `{_name(events, rows[0])}` to the next, numbered from 1. What was "
        f"launched before the first one is in no step, and the last step is not whole; {OTHERS}."
    )
    return Guess(rows, False, (Note("assumed_steps", len(rows), None, _sentence(told)),))


def _by_number(events: Events, rows: Ints, names: Names) -> tuple[Ints, Note | None]:
    """Return the outermost ranges that are numbered like iterations, or none and why they are not taken."""
    hit = names.has(NUMBERED)
    rows = rows[hit]
    if not len(rows):
        return rows, None
    texts = events.names(rows).cast(pl.String)
    kinds = texts.str.to_lowercase().str.replace(r"[0-9]+$", "").to_list()
    numbers = texts.str.extract(r"([0-9]+)$").cast(pl.Int64).to_numpy()
    families: list[Ints] = []
    for kind in sorted(set(kinds)):
        mine = np.flatnonzero([k == kind for k in kinds])
        tracks, count = np.unique(events.track[rows[mine]], return_counts=True)
        mine = mine[events.track[rows[mine]] == tracks[np.argmax(count)]]
        at = rows[mine]
        if (np.diff(numbers[mine]) <= 0).any() or (events.start[at][1:] < events.end[at][:-1]).any():
            return rows[:0], _not_taken(events, at, "their numbers come again or they overlap")
        families.append(at)
    families.sort(key=lambda at: (int(events.start[at[0]]), -int(events.end[at[0]])))
    outer = families[0]
    for inner in families[1:]:
        place = np.searchsorted(events.start[outer], events.start[inner], side="right") - 1
        if (place < 0).any() or (events.end[inner] > events.end[outer[place]]).any():
            return rows[:0], _not_taken(events, inner, f"so do those like `{_name(events, outer[0])}` beside them")
    return outer, None


def _not_taken(events: Events, rows: Ints, why: str) -> Note:
    text = f"ranges named like `{_name(events, rows[0])}` look like steps, but {why}: not taken; {OTHERS}."
    return Note("unsure_steps", len(rows), None, _sentence(text))


def _by_optimizer(events: Events, on_cpu: Bools) -> Ints:
    """Return the optimizer's ranges before each of which, but for the first, something ran backward."""
    rows = np.flatnonzero(on_cpu & events.are("annotation", "cpu_op"))
    names = Names.of(events.names(rows))
    optimizer = rows[names.has(OPTIMIZER)]
    backward = events.start[rows[names.has(BACKWARD)]]
    done = np.searchsorted(backward, events.start[optimizer])
    return optimizer[np.append(True, np.diff(done) > 0)] if len(optimizer) else optimizer


def _name(events: Events, row: int) -> str:
    return re.sub(r"\s+", " ", str(events.frame["name"][int(row)]))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
