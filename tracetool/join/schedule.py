"""What a pipeline is made of: its stages, chunks and micro-batches, and which schedule orders its slots.

A *virtual stage* is one piece of the model; with chunks a rank holds several. What a slot needs: a forward the forward
of the virtual stage before it, a backward the backward of the one after it, the first backward of a micro-batch its own
forward, a weight gradient the backward of its own.

Schedules by the order of slots, held against every stage:
  gpipe               all forwards before all backwards (with chunks: looped breadth first)
  1f1b                p − s − 1 forwards, then forward and backward in turn, then the backwards left
  interleaved_1f1b    the same with chunks in rounds of p micro-batches; warm-up 2(p − s − 1) + (v − 1)p forwards
  zb1p                1f1b with the weight gradients put off
  zbv                 two chunks in a V, weight gradients apart
  dualpipe            two chunks in a V, forward and backward in one piece
  unknown             anything else
`exact`: every slot stands where the published order has it. Sources: GPipe arXiv 1811.06965, 1F1B and interleaving
arXiv 2104.04473, zero bubble arXiv 2401.10241, DualPipeV deepseek-ai/DualPipe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEDULES: Final = ("gpipe", "1f1b", "interleaved_1f1b", "zb1p", "zbv", "dualpipe", "unknown")
Slot = tuple[str, int, int]
"""(kind F, B or W; micro-batch; chunk)."""
Order = tuple[Slot, ...]
_STEADY: Final = re.compile(r"F*(?:FB)+B*")


@dataclass(frozen=True)
class Recognised:
    """A schedule's name, whether the published order fits slot by slot, and why it is thought so."""

    name: str
    exact: bool
    why: str


def one_f_one_b(stages: int, stage: int, microbatches: int) -> Order:
    """Return the order of slots of plain 1F1B on one stage."""
    warm = min(stages - stage - 1, microbatches)
    steady = [slot for k in range(microbatches - warm) for slot in (("F", warm + k, 0), ("B", k, 0))]
    rest = [("B", k, 0) for k in range(microbatches - warm, microbatches)]
    return (*(("F", k, 0) for k in range(warm)), *steady, *rest)


def gpipe(microbatches: int, chunks: int = 1) -> Order:
    """Return the order of slots of GPipe, the same on every stage."""
    forward = [("F", k, c) for c in range(chunks) for k in range(microbatches)]
    return (*forward, *(("B", k, c) for c in reversed(range(chunks)) for k in range(microbatches)))


def interleaved(stages: int, stage: int, microbatches: int, chunks: int) -> Order:
    """Return the order of slots of interleaved 1F1B on one stage; micro-batches are a multiple of the stages."""
    total = microbatches * chunks

    def nth(kind: str, n: int) -> Slot:
        round_, inside = divmod(n, stages * chunks)
        chunk = inside // stages
        return kind, round_ * stages + inside % stages, chunk if kind == "F" else chunks - 1 - chunk

    warm = min(2 * (stages - stage - 1) + (chunks - 1) * stages, total)
    steady = [slot for n in range(total - warm) for slot in (nth("F", warm + n), nth("B", n))]
    rest = [nth("B", n) for n in range(total - warm, total)]
    return (*(nth("F", n) for n in range(warm)), *steady, *rest)


def zero_bubble(stages: int, stage: int, microbatches: int) -> Order:
    """Return the order of slots of ZB-H1 on one stage: weight gradients follow `stage` backwards later."""
    order: list[Slot] = []
    done = 0
    for slot in one_f_one_b(stages, stage, microbatches):
        order.append(slot)
        if slot[0] == "B":
            done += 1
            if done > stage:
                order.append(("W", done - 1 - stage, 0))
    return (*order, *(("W", k, 0) for k in range(max(0, microbatches - stage), microbatches)))


def recognise(
    orders: Mapping[int, Sequence[Order]],
    stages: int,
    microbatches: int,
    chunks: int,
    *,
    vee: bool,
    paired: bool,
    hint: str | None = None,
) -> Recognised:
    """Name the schedule of the slots of some stages.

    `orders`: stage → the orders of all its steps and replicas, equal ones once. `vee`: chunks run from the last stage
    back; `paired`: forward and backward share pieces; `hint`: what other ranges of the trace name.
    """
    kinds = ["".join(kind for kind, _, _ in order) for found in orders.values() for order in found]
    if paired:
        if vee:
            return Recognised("dualpipe", exact=False, why="forward and backward share ranges, chunks stand in a V")
        return Recognised("unknown", exact=False, why="forward and backward share ranges, but no chunks stand in a V")
    if any("W" in text for text in kinds):
        return _split(orders, stages, microbatches, chunks, vee=vee)
    found = _unsplit(orders, kinds, stages, microbatches, chunks, vee=vee)
    if found.name == "unknown" and hint:
        return Recognised(hint, exact=False, why="ranges of the framework name it")
    return found


def _fits(orders: Mapping[int, Sequence[Order]], wanted: Mapping[int, Order]) -> bool:
    return all(order == wanted[stage] for stage, found in orders.items() for order in found)


def _plain(orders: Mapping[int, Sequence[Order]], stages: int, microbatches: int) -> dict[int, Order]:
    return {stage: one_f_one_b(stages, stage, microbatches) for stage in orders}


def _unsplit(
    orders: Mapping[int, Sequence[Order]],
    kinds: Sequence[str],
    stages: int,
    microbatches: int,
    chunks: int,
    *,
    vee: bool,
) -> Recognised:
    """Name a schedule whose backwards are whole; `kinds`: the kinds of slots of each order as text."""
    in_turn = chunks == 1 and _fits(orders, _plain(orders, stages, microbatches))
    if microbatches > 1 and all(re.fullmatch(r"F+B+", text) for text in kinds):
        if in_turn:
            return Recognised("unknown", exact=False, why="GPipe and 1F1B order the stages that were traced alike")
        exact = _fits(orders, dict.fromkeys(orders, gpipe(microbatches, chunks)))
        return Recognised("gpipe", exact, "all forwards stand before all backwards")
    if in_turn:
        return Recognised("1f1b", exact=True, why="every slot stands where 1F1B has it")
    if chunks > 1 and not vee and all(_STEADY.fullmatch(text) for text in kinds):
        exact = microbatches % stages == 0 and _fits(
            orders, {stage: interleaved(stages, stage, microbatches, chunks) for stage in orders}
        )
        return Recognised("interleaved_1f1b", exact, "chunks alternate; forward and backward take turns")
    return Recognised("unknown", exact=False, why="the order of slots is that of no schedule known here")


def _split(
    orders: Mapping[int, Sequence[Order]], stages: int, microbatches: int, chunks: int, *, vee: bool
) -> Recognised:
    """Name a schedule whose weight gradients are slots of their own."""
    if vee and chunks == 2:  # noqa: PLR2004 - a V has two
        return Recognised("zbv", exact=False, why="weight gradients are apart, chunks stand in a V")
    without = {
        stage: [tuple(slot for slot in order if slot[0] != "W") for order in found] for stage, found in orders.items()
    }
    if chunks == 1 and _fits(without, _plain(orders, stages, microbatches)):
        exact = _fits(orders, {stage: zero_bubble(stages, stage, microbatches) for stage in orders})
        return Recognised("zb1p", exact, "1F1B with the weight gradients put off")
    return Recognised(
        "unknown", exact=False, why="weight gradients are apart, but the order is that of no schedule known"
    )


def ideal_share(name: str, stages: int, microbatches: int, chunks: int) -> float | None:
    """Return the bubble of a schedule as a share of the window, equal stages and free transfers; None: no formula.

    zb1p and zbv: for forward, input gradient and weight gradient of equal length. Source: arXiv 2104.04473, 2401.10241.
    """
    work = {"gpipe": microbatches * chunks, "1f1b": microbatches, "interleaved_1f1b": microbatches * chunks}
    if name in work:
        return (stages - 1) / (work[name] + stages - 1)
    if name == "zb1p":
        return (stages - 1) / (3 * microbatches + stages - 1)
    return 0.0 if name == "zbv" else None
