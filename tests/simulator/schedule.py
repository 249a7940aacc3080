"""Pipeline schedules as values: for every stage the order of its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.config import Config, Slot


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


def orders(config: Config) -> tuple[tuple[Slot, ...], ...]:
    """Return the slots of every stage in their order. Raises ValueError for a name that is not known."""
    p, m = config.pp, config.microbatches
    if not isinstance(config.schedule, str):
        return config.schedule
    if config.schedule == "gpipe":
        return tuple(gpipe(m, config.chunks) for _ in range(p))
    if config.schedule == "1f1b":
        return tuple(one_f_one_b(p, s, m) for s in range(p))
    if config.schedule == "interleaved_1f1b":
        return tuple(interleaved(p, s, m, config.chunks) for s in range(p))
    if config.schedule == "zb1p":
        return tuple(zb1p(p, s, m) for s in range(p))
    raise ValueError(f"no schedule {config.schedule!r}: gpipe, 1f1b, interleaved_1f1b, zb1p, or the slots themselves")
