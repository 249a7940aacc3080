"""What a change to a pipeline would save, by replay: balanced stages, more micro-batches, interleaving, zero bubble.

A change is replayed beside what there is, both over the same values, and the difference of the windows is the saving;
of the replicas of a step the slowest counts, since all wait for it. balanced_stages keeps every slot's own deviation;
the others put slots in an order of their own, so both sides take each stage's median. Every row says what it assumes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import polars as pl

from tracetool.join.ladder import planned, values
from tracetool.join.schedule import gpipe, interleaved, one_f_one_b, zero_bubble

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracetool.join.ladder import Bools, Floats, Plan, Slots
    from tracetool.join.schedule import Order

SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "change": pl.String,
    "iteration": pl.Int32,
    "window_ns": pl.Int64,
    "changed_ns": pl.Int64,
    "saving_ns": pl.Int64,
}
ASSUMES: Final = {
    "balanced_stages": "layers can be moved so that every stage takes the mean of all",
    "twice_microbatches": "twice as many micro-batches of half the size take half the time each, and so do transfers",
    "interleaving": "every stage splits into two chunks of half its time; transfers stay as long as they are and sends "
    "hold nothing up",
    "zero_bubble": "weight gradients take as long as the matrix products of the forward (half a backward, where the "
    "kernels' names tell none) and can be launched apart (ZB-H1); sends hold nothing up",
}
"""Every change and what its prediction takes for granted."""
_INPUT: Final = "input gradient"
_WEIGHT: Final = "weight gradient"


class _Change(NamedTuple):
    name: str
    orders: list[Order]
    chunks: int
    parts: dict[str, tuple[str, float]]
    """Kind → the measured kind whose median it takes, and the share of it."""
    moves: float
    """Share of the measured transfers."""


def changes(slots: Slots, schedule: str, microbatches: int, chunks: int) -> pl.DataFrame:
    """Return one row a change and iteration, SCHEMA; changes that the schedule does not admit are left out."""
    real = slots.plan.window(slots.dur, slots.transfer, slots.serial)
    rung = values(slots)
    balanced = slots.dur * rung["even"] / np.maximum(rung["stages"], 1.0)
    rows = [_rows("balanced_stages", slots, real, slots.plan.window(balanced, slots.transfer, slots.serial))]
    possible = _possible(schedule, slots.plan.stages, microbatches, chunks)
    if possible:
        typical = _typical_transfer(slots)
        serial = _mostly_serial(slots)
        shape = slots.dur.shape
        base = slots.plan.window(rung["stages"], slots.plan.receives * typical, np.broadcast_to(serial, shape))
        for change in possible:
            virtual = [[s + c * slots.plan.stages for c in range(change.chunks)] for s in range(slots.plan.stages)]
            plan = planned(change.orders, virtual)
            value = _values(plan, slots, rung["stages"], change, chunks)
            moves = plan.receives * typical * change.moves
            after = plan.window(value, moves, np.broadcast_to(serial, value.shape))
            rows.append(_rows(change.name, slots, base, after))
    return pl.concat(rows)


def _possible(schedule: str, p: int, m: int, v: int) -> list[_Change]:
    """Return the changes of order that make sense for a schedule."""
    whole = {"F": ("F", 1.0), "B": ("B", 1.0)}
    half = {"F": ("F", 0.5), "B": ("B", 0.5)}
    remade: dict[str, Callable[[int, int], Order]] = {
        "1f1b": lambda s, n: one_f_one_b(p, s, n),
        "gpipe": lambda _, n: gpipe(n, v),
        "interleaved_1f1b": lambda s, n: interleaved(p, s, n, v),
        "zb1p": lambda s, n: zero_bubble(p, s, n),
    }
    found = []
    if schedule in remade and (schedule != "interleaved_1f1b" or m % p == 0):
        parts = half | ({"W": ("W", 0.5)} if schedule == "zb1p" else {})
        found.append(_Change("twice_microbatches", [remade[schedule](s, 2 * m) for s in range(p)], v, parts, 0.5))
    if schedule in ("1f1b", "gpipe") and v == 1:
        if m % p == 0:
            found.append(_Change("interleaving", [interleaved(p, s, m, 2) for s in range(p)], 2, half, 1.0))
        split = {**whole, "B": (_INPUT, 1.0), "W": (_WEIGHT, 1.0)}
        found.append(_Change("zero_bubble", [zero_bubble(p, s, m) for s in range(p)], 1, split, 1.0))
    return found


def _typical_transfer(slots: Slots) -> Floats:
    """Return for each column the median time that an input moved, 0 where none is known; shape (1, columns)."""
    known = np.where(slots.transfer > 0, slots.transfer, np.nan)
    some = ~np.isnan(known).all(axis=0)
    answer = np.zeros((1, slots.dur.shape[1]))
    answer[0, some] = np.nanmedian(known[:, some], axis=0)
    return answer


def _mostly_serial(slots: Slots) -> Bools:
    """Return for each column whether most inputs moved only after the slot before had ended; shape (1, columns)."""
    moved = np.maximum(1, (slots.transfer > 0).sum(axis=0, keepdims=True))
    return np.asarray(2 * (slots.serial & (slots.transfer > 0)).sum(axis=0, keepdims=True) > moved)


def _values(plan: Plan, slots: Slots, stages: Floats, change: _Change, chunks: int) -> Floats:
    """Return the durations of a plan's slots from the measured medians of each virtual stage, (nodes, columns).

    Where a stage holds more chunks than before, each new one takes its share of the stage's old chunk.
    """
    nodes = slots.plan.nodes
    measured = {
        (virtual, kind): stages[row] for row, (virtual, kind) in enumerate(nodes.select("virtual", "kind").iter_rows())
    }
    if change.name == "zero_bubble":
        for virtual, weight in _weight_gradients(slots, measured).items():
            measured |= {(virtual, _WEIGHT): weight, (virtual, _INPUT): measured[virtual, "B"] - weight}
    count = slots.plan.stages
    old = [virtual if change.chunks == chunks else virtual % count for virtual in plan.nodes["virtual"].to_list()]
    kinds = plan.nodes["kind"].to_list()
    return np.stack(
        [measured[u, change.parts[kind][0]] * change.parts[kind][1] for u, kind in zip(old, kinds, strict=True)]
    )


def _weight_gradients(slots: Slots, measured: Mapping[tuple[int, str], Floats]) -> dict[int, Floats]:
    """Return how long the weight gradients in a backward of each virtual stage take, (columns,).

    They multiply matrices of the same sizes as the forward does, so they take as long; half a backward where no kernel
    is known to multiply any.
    """
    nodes = slots.plan.nodes
    virtual, forward = nodes["virtual"].to_numpy(), (nodes["kind"] == "F").to_numpy()
    answer = {}
    for u in np.unique(virtual).tolist():
        products = slots.products[forward & (virtual == u)]
        known = products[products > 0]
        whole = measured[u, "B"]
        answer[u] = np.minimum(whole, np.median(known)) if known.size else whole / 2
    return answer


def _rows(name: str, slots: Slots, before: Floats, after: Floats) -> pl.DataFrame:
    """Return one row an iteration: of its replicas the slowest counts on both sides."""
    return (
        slots.columns.with_columns(before=pl.Series(before), after=pl.Series(after))
        .group_by("iteration")
        .agg(
            window_ns=pl.col("before").max().round().cast(pl.Int64),
            changed_ns=pl.col("after").max().round().cast(pl.Int64),
        )
        .sort("iteration")
        .with_columns(change=pl.lit(name), saving_ns=pl.col("window_ns") - pl.col("changed_ns"))
        .select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
    )


def of_run(parts: Sequence[Slots], schedule: str, microbatches: int, chunks: int) -> pl.DataFrame:
    """Return `changes` of all parts of a run, sorted by change and iteration."""
    found = [changes(part, schedule, microbatches, chunks) for part in parts]
    return pl.concat(found).sort("change", "iteration") if found else pl.DataFrame(schema=SCHEMA)
