"""Pipeline schedules as values: for every stage the order of its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.layout import source_of, virtual_stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator.config import Config, Slot

    Piece = tuple[Slot, ...]


def gpipe(microbatches: int, chunks: int = 1) -> tuple[Slot, ...]:
    """All forwards, then all backwards, chunk by chunk (GPipe, arXiv 1811.06965); the same on every stage."""
    forward = [("F", i, c) for c in range(chunks) for i in range(microbatches)]
    backward = [("B", i, c) for c in reversed(range(chunks)) for i in range(microbatches)]
    return tuple(forward + backward)


def one_f_one_b(stages: int, stage: int, microbatches: int) -> tuple[Slot, ...]:
    """Non-interleaved 1F1B (PipeDream-flush, arXiv 2104.04473): warm-up of stages - stage - 1 forwards."""
    warm = min(stages - stage - 1, microbatches)
    order = [("F", i, 0) for i in range(warm)]
    for k in range(microbatches - warm):
        order += [("F", warm + k, 0), ("B", k, 0)]
    order += [("B", k, 0) for k in range(microbatches - warm, microbatches)]
    return tuple(order)


def interleaved(stages: int, stage: int, microbatches: int, chunks: int) -> tuple[Slot, ...]:
    """Interleaved 1F1B (arXiv 2104.04473 section 2.2); the micro-batches must be a multiple of the stages.

    Micro-batches advance in rounds of `stages`: a round passes chunk 0, then chunk 1, ...; backwards the chunks in
    reverse. Warm-up is 2 (stages - stage - 1) + (chunks - 1) stages forwards.
    """
    if microbatches % stages:
        raise ValueError(f"interleaved 1F1B: {microbatches} micro-batches are no multiple of {stages} stages")
    total = microbatches * chunks

    def piece(kind: str, k: int) -> Slot:
        round_, inside = divmod(k, stages * chunks)
        chunk = inside // stages
        return (kind, round_ * stages + inside % stages, chunk if kind == "F" else chunks - 1 - chunk)

    warm = min(2 * (stages - stage - 1) + (chunks - 1) * stages, total)
    order = [piece("F", k) for k in range(warm)]
    for k in range(total - warm):
        order += [piece("F", warm + k), piece("B", k)]
    order += [piece("B", k) for k in range(total - warm, total)]
    return tuple(order)


def zb1p(stages: int, stage: int, microbatches: int) -> tuple[Slot, ...]:
    """Zero-bubble ZB-H1 (arXiv 2401.10241): 1F1B with weight gradients put off by `stage` micro-batches.

    "B" is the input gradient, "W" the weight gradient. The number of activations in flight is that of 1F1B.
    """
    order: list[Slot] = []
    weights = 0
    backwards = 0
    for kind, i, chunk in one_f_one_b(stages, stage, microbatches):
        if kind == "B":
            order.append(("B", i, chunk))
            backwards += 1
            if backwards > stage:
                order.append(("W", weights, chunk))
                weights += 1
        else:
            order.append((kind, i, chunk))
    order += [("W", w, 0) for w in range(weights, microbatches)]
    return tuple(order)


def greedy_vee(config: Config, *, split: bool, pairs: bool) -> tuple[tuple[Piece, ...], ...]:
    """Two chunks a stage in a V: the order that takes, at unit times, the oldest ready backward, else a forward.

    With `split` weight gradients fill what is left (the idea of ZBV, arXiv 2401.10241); with `pairs` a forward and a
    backward that are ready together make one piece (the idea of DualPipeV). Activations in flight: at most 2 pp chunks.
    """
    p, m = config.pp, config.microbatches
    done: dict[tuple[str, int, int], int] = {}
    free = [0] * p
    pieces: list[list[Piece]] = [[] for _ in range(p)]
    waiting = [[(kind, i, c) for kind in ("B", "F") for i in range(m) for c in (1, 0)] for _ in range(p)]
    weights: list[list[Slot]] = [[] for _ in range(p)]
    flying = [0] * p

    def ready(slot: Slot, stage: int, now: int) -> bool:
        kind, i, chunk = slot
        virtual = virtual_stage(config, stage, chunk)
        if kind == "B" and done.get(("F", i, virtual), now + 1) > now:
            return False
        source = source_of(config, kind, virtual)
        return source is None or done.get((kind, i, source), now + 1) <= now

    now = 0
    while any(waiting) or any(weights):
        for stage in range(p):
            if free[stage] > now:
                continue
            able = [slot for slot in waiting[stage] if ready(slot, stage, now)]
            backward = next((slot for slot in able if slot[0] == "B"), None)
            forward = next((slot for slot in able if slot[0] == "F"), None) if flying[stage] < 2 * p else None
            chosen = [forward, backward] if pairs and forward and backward else [backward or forward]
            piece = tuple(slot for slot in chosen if slot)
            if not piece and weights[stage]:
                piece = (weights[stage].pop(0),)
                flying[stage] -= 1
            for slot in piece:
                free[stage] = max(free[stage], now) + (1 if split or slot[0] == "F" else 2)
                done[slot[0], slot[1], virtual_stage(config, stage, slot[2])] = now + sum(
                    1 if split or s[0] == "F" else 2 for s in piece
                )
                if slot in waiting[stage]:
                    waiting[stage].remove(slot)
                if slot[0] == "F":
                    flying[stage] += 1
                if slot[0] == "B":
                    weights[stage] += [("W", slot[1], slot[2])] if split else []
                    flying[stage] -= 0 if split else 1
            if piece:
                pieces[stage].append(piece)
        now += 1
    return tuple(tuple(mine) for mine in pieces)


def plan(config: Config) -> tuple[tuple[Piece, ...], ...]:
    """Return every stage's pieces in order. Raises ValueError for a name that is not known."""
    p, m = config.pp, config.microbatches
    if config.schedule == "zbv":
        return greedy_vee(config, split=True, pairs=False)
    if config.schedule == "dualpipev":
        return greedy_vee(config, split=False, pairs=True)
    known: dict[str, Callable[[int], tuple[Slot, ...]]] = {
        "gpipe": lambda _: gpipe(m, config.chunks),
        "1f1b": lambda s: one_f_one_b(p, s, m),
        "interleaved_1f1b": lambda s: interleaved(p, s, m, config.chunks),
        "zb1p": lambda s: zb1p(p, s, m),
    }
    if not isinstance(config.schedule, str):
        orders = config.schedule
    elif config.schedule in known:
        orders = tuple(known[config.schedule](s) for s in range(p))
    else:
        raise ValueError(
            f"no schedule {config.schedule!r}: {', '.join(known)}, zbv, dualpipev, or the slots themselves"
        )
    return tuple(tuple((slot,) for slot in order) for order in orders)
