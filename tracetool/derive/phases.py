"""Which part of training each CPU event and GPU activity belongs to, by where it was launched.

A CPU event belongs to its innermost range (itself or around it) that marks a phase:
  backward    `autograd::engine::evaluate_function: …`; recompute where the event, or an operator between it and that
              range, has an autograd sequence number and forward thread 0: a forward operator run again
  optimizer   `Optimizer.step#…`, `Optimizer.zero_grad#…`
  dataloader  `enumerate(DataLoader)#…`
  checkpoint  saving of a model: names such as save_checkpoint, save_state_dict, checkpoint.save, torch.save,
              torch.distributed.checkpoint, dcp.async_save (never activation checkpointing, never loading)
Without a mark: backward on an autograd thread; forward for operators, what they enclose, and API calls inside a step
range; other for the rest. GPU activity has the phase of its launch; an orphan has none.

Only where no autograd engine range was recorded do weaker signs count: ranges the user or a framework named after a
phase (`forward`, `## backward ##`, `Forward 3`, `PP:0B2`, `DeepSpeedEngine.step`, step ranges of vLLM and SGLang) and
operators named `…Backward`. A launch on a thread without any mark then lies in the backward range that runs
at its time.

Names: torch wheels 2.4-2.15, Kineto files 2021-2026, torch/distributed/pipelining, DeepSpeed, vLLM, SGLang. The rule
for recomputation was checked against Python stacks on public traces with activation checkpointing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from tracetool import intervals
from tracetool.derive import tree
from tracetool.derive.columns import numbers
from tracetool.derive.names import Names
from tracetool.tables import PHASES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracetool.derive.columns import Events
    from tracetool.derive.links import Links

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

FORWARD, BACKWARD, RECOMPUTE, OPTIMIZER, DATALOADER, CHECKPOINT, OTHER = range(len(PHASES))

ENGINE = r"^autograd::engine::evaluate_function"
SAVING = (
    r"(?i)save[ _-]*(?:(?:model|optimizer|distributed|sharded|full|async)[ _-]*)*(?:checkpoint|ckpt|state_?dict)"
    r"|(?:checkpoint(?:er|ing)?|ckpt)[ _./:-]*(?:save|saving|write|writing)"
    r"|\btorch\.save\b|torch[./]distributed[./]checkpoint|\bdcp[._:/]+(?:async_)?save"
)
MARKS = (
    (r"^Optimizer\.(?:step|zero_grad)#", OPTIMIZER),
    (r"^enumerate\(DataLoader\)#", DATALOADER),
    (SAVING, CHECKPOINT),
)
_AROUND = r"[\s#=*<>\[\]-]*"
_NUMBER = r"(?:[ _#:-]*\d+)?"
HINTS = (
    (rf"(?i)^{_AROUND}(?:forward|fwd)(?:[ _-]?(?:pass|step|compute))?{_NUMBER}{_AROUND}$", FORWARD),
    (r"^(?:\w+\.)?forward$|^PP:\d+F\d*$|^FSDP::(?:pre|post)_forward", FORWARD),
    (r"^execute_(?:model\b|new_|context_|\d+_)|^step\[|^gpu_model_runner: ", FORWARD),
    (rf"(?i)^{_AROUND}(?:backward|bwd)(?:[ _-]?(?:pass|step|compute))?{_NUMBER}{_AROUND}$", BACKWARD),
    (r"^(?:\w+\.)?backward$|^PP:\d+[BIW]\d*$|^FSDP::(?:pre|post)_backward", BACKWARD),
    (r"^FullyShardedDataParallel\._(?:pre|post)_backward|Backward\d*$|AccumulateGrad$", BACKWARD),
    (rf"(?i)^{_AROUND}optim(?:izer)?(?:[ ._-]?(?:step|update))?{_NUMBER}{_AROUND}$|^DeepSpeedEngine\.step$", OPTIMIZER),
    (rf"(?i)^{_AROUND}data[ _-]?(?:load(?:er|ing)?|fetch){_NUMBER}{_AROUND}$", DATALOADER),
)
AUTOGRAD_THREAD = r"pt_autograd_"
ENGINE_SHARE = 0.9
"""A thread without a name is an autograd thread when this share of its outermost operators are engine ranges."""


def phases(events: Events, links: Links, tracks: pl.DataFrame, op_shapes: pl.DataFrame, step_ranges: Ints) -> Ints:
    """Return the phase of each event as an index into tables.PHASES, -1 for events that have none.

    `tracks` and `op_shapes` are the tables of those names (op_shapes may be empty), `step_ranges` the event ids of
    the ranges that define steps.
    """
    rows = np.flatnonzero(links.nested)
    phase = np.full(len(links.nested), -1, np.int64)
    if len(rows):
        phase[rows] = _on_cpu(events, links, tracks, op_shapes, step_ranges)
    launched = links.activity[links.launch[links.activity] >= 0]
    phase[launched] = phase[links.launch[launched]]
    return phase


def _on_cpu(events: Events, links: Links, tracks: pl.DataFrame, op_shapes: pl.DataFrame, step_ranges: Ints) -> Ints:
    """Return the phase of each nested CPU event; everything below runs over these alone."""
    rows = np.flatnonzero(links.nested)
    place = np.full(len(links.nested), -1, np.int64)
    place[rows] = np.arange(len(rows))
    above = links.parent[rows]
    parent = np.where(above >= 0, place[above], -1)
    names = Names.of(events.names(rows))
    calls, operators = events.are("runtime")[rows], events.are("cpu_op")[rows]
    engine = names.has(ENGINE) & ~calls
    mark = np.full(len(rows), -1, np.int64)
    for pattern, number in MARKS if engine.any() else (*HINTS, *MARKS):
        mark[names.has(pattern) & ~calls] = number
    mark[engine] = BACKWARD

    track = events.track[rows]
    nearest = tree.nearest(mark >= 0, parent)
    marked = nearest >= 0
    again = _forward_operators(place, len(rows), op_shapes) & ~engine
    forward_tracks = np.unique(track[again & ~marked])
    autograd = np.isin(track, _autograd_tracks(track, tracks, engine, operators & (parent < 0), forward_tracks))
    in_operator = tree.nearest(operators, parent) >= 0
    is_step = np.zeros(len(links.nested), np.bool_)
    is_step[step_ranges] = True
    in_step = (tree.nearest(is_step[rows], parent) >= 0) & calls
    phase = np.where(autograd, BACKWARD, np.where(in_operator | in_step, FORWARD, OTHER))
    if not engine.any():
        phase = _beside_backward(events, rows, mark, track, phase)

    phase[marked] = mark[nearest[marked]]
    first = tree.nearest(again | (mark >= 0), parent)
    rerun = marked & again[first]
    rerun[rerun] &= engine[nearest[rerun]]
    phase[rerun] = RECOMPUTE
    return phase


def _forward_operators(place: Ints, count: int, op_shapes: pl.DataFrame) -> Bools:
    """Return which CPU events are operators of a forward: a sequence number and forward thread 0."""
    sequence, thread = numbers(op_shapes, "sequence")[1], numbers(op_shapes, "fwd_thread")
    at = place[op_shapes["event"].to_numpy()[sequence & thread[1] & (thread[0] == 0)]]
    found = np.zeros(count, np.bool_)
    found[at[at >= 0]] = True
    return found


def _autograd_tracks(track: Ints, tracks: pl.DataFrame, engine: Bools, outermost: Bools, forward_tracks: Ints) -> Ints:
    """Return the tracks that are threads of the autograd engine, by name or by what runs there."""
    named = tracks.filter(pl.col("name").str.contains(AUTOGRAD_THREAD).fill_null(False))["track"].to_numpy()
    count = np.bincount(track[outermost])
    engines = np.bincount(track[outermost & engine], minlength=len(count))
    by_content = np.flatnonzero((count > 0) & (engines >= np.maximum(1, ENGINE_SHARE * count)))
    return np.append(named, np.setdiff1d(by_content, forward_tracks))


def _beside_backward(events: Events, rows: Ints, mark: Ints, track: Ints, phase: Ints) -> Ints:
    """Put events of threads that mark nothing themselves into the backward range that runs at their start."""
    backward = rows[mark == BACKWARD]
    silent = np.flatnonzero(~np.isin(track, track[mark >= 0]))
    if not len(backward) or not len(silent):
        return phase
    start = events.start[rows[silent]]
    inside = intervals.covered(
        pl.DataFrame({"start_ns": start, "end_ns": start + 1}),
        pl.DataFrame({"start_ns": events.start[backward], "end_ns": events.end[backward]}),
    ).to_numpy()
    phase = phase.copy()
    phase[silent[inside > 0]] = BACKWARD
    return phase
