"""The wait-for graph as a picture shows it: a few boxes of ranks in equal state, and which box waits for which.

A rank waits in the first of its operations that cannot end. Layer 0 holds what everything hangs on: the culprits, or
without any what the graph ends in; a rank stands below all that it waits for, and ranks that wait for each other
beside each other. Ranks of a layer that wait in the same operation of the same kind of group (its description) share a
box, so that a job of hundreds of ranks makes a handful. Every rank of the job stands in exactly one box.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.join.hangstate import rank_text
from tracetool.join.waitfor import components

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tracetool.join.diagnose import Diagnosis
    from tracetool.join.hangstate import Operation, State
    from tracetool.join.waitfor import Edge

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "box": pl.Int64, "layer": pl.Int64, "role": pl.String, "ranks": pl.String, "count": pl.Int64, "state": pl.String,
    "groups": pl.String, "waits_for": pl.List(pl.Int64()),
}  # fmt: skip
_MOST: Final = 24
_UNKNOWN: Final = "an operation"
_CULPRITS: Final = {
    "never_launched": "launched nothing of what is waited for",
    "stuck_in_collective": "launched it and never finished",
    "mismatched_arguments": "called it with other arguments",
    "deadlock": "launched two groups' operations in opposite order",
    "no_dump": "left no dump",
}
_Key = tuple[int, str, str, str]
"""Layer, role, kind of group, operation or state."""


def boxes(state: State, verdict: Diagnosis) -> pl.DataFrame:
    """Return one row a box, at most 24: the culprits first, then layer by layer, the larger ones first."""
    names = _names(state)
    first = _first_waits(state, verdict)
    layers = _layers(first, verdict.culprits)
    key_of: dict[int, _Key] = {}
    calls: dict[_Key, set[Operation]] = defaultdict(set)
    asked: dict[int, set[int]] = defaultdict(set)
    for rank in verdict.culprits:
        key_of[rank] = (0, "culprit", "", _CULPRITS.get(verdict.cause, ""))
    for rank, (operation, targets) in sorted(first.items()):
        asked[rank] |= targets
        if rank not in key_of:
            key_of[rank] = (layers[rank], "waits", _kind(state, operation[0]), names.get(operation, _UNKNOWN))
            calls[key_of[rank]].add(operation)
    last = max(layers.values(), default=0) + 1
    for rank in state.world:
        if rank in key_of:
            continue
        oldest = _oldest(state, rank)
        if rank not in state.known:
            key_of[rank] = (layers.get(rank, last), "no dump", "", "left no dump")
        elif oldest:
            key_of[rank] = (last, "inside", _kind(state, oldest[0]), names.get(oldest, _UNKNOWN))
            calls[key_of[rank]].add(oldest)
            if verdict.mismatch and oldest == verdict.operation:
                asked[rank].update(verdict.culprits)
        else:
            key_of[rank] = (layers.get(rank, last), "free", "", "nothing in flight")
    return _table(state, key_of, calls, asked)


def _first_waits(state: State, verdict: Diagnosis) -> dict[int, tuple[Operation, set[int]]]:
    """Return the operation that each rank waits in first, and for whom."""
    found: dict[int, tuple[Operation, set[int]]] = {}
    for edge in sorted(verdict.edges, key=lambda e: (e.waiter, _order(state, e), e.group, e.is_p2p, e.number)):
        operation = (edge.group, edge.is_p2p, edge.number)
        known = found.setdefault(edge.waiter, (operation, set()))
        if known[0] == operation:
            known[1].add(edge.target)
    return found


def _layers(first: Mapping[int, tuple[Operation, set[int]]], culprits: Sequence[int]) -> dict[int, int]:
    """Return how many steps at most each rank of the graph is from what it hangs on."""
    after = {rank: targets for rank, (_, targets) in first.items() if rank not in culprits}
    found = dict.fromkeys(culprits, 0)
    # every component comes after those it leads to
    for part in components((rank, target) for rank, targets in after.items() for target in targets):
        beyond = {target for rank in part for target in after.get(rank, ())} - set(part)
        layer = 1 + max((found[target] for target in beyond), default=-1)
        found |= dict.fromkeys(part, layer)
    return found


def _order(state: State, edge: Edge) -> int:
    lane = (state.p2p if edge.is_p2p else state.lanes).get(edge.group, {}).get(edge.waiter)
    return lane.order if lane else 0


def _kind(state: State, group: int) -> str:
    return state.groups[group].desc or f"group {state.groups[group].name}"


def _names(state: State) -> dict[Operation, str]:
    """Return what each operation is called."""
    rows = state.ops.filter(
        pl.col("group_id").is_not_null(), pl.col("number").is_not_null(), pl.col("op") != "coalesced"
    )
    named = rows.group_by("group_id", "is_p2p", "number").agg(pl.col("op").min())
    return {(group, is_p2p, number): op for group, is_p2p, number, op in named.iter_rows()}


def _oldest(state: State, rank: int) -> Operation | None:
    """Return the operation in flight that a rank launched first."""
    flying = [
        (lane.order, (group, is_p2p, lane.oldest))
        for is_p2p, side in ((False, state.lanes), (True, state.p2p))
        for group, by_rank in side.items()
        if (lane := by_rank.get(rank)) and lane.oldest is not None
    ]
    return min(flying)[1] if flying else None


def _table(
    state: State, key_of: Mapping[int, _Key], calls: Mapping[_Key, Iterable[Operation]], asked: Mapping[int, set[int]]
) -> pl.DataFrame:
    ranks: dict[_Key, list[int]] = defaultdict(list)
    for rank, key in sorted(key_of.items()):
        ranks[key].append(rank)
    order = sorted(ranks, key=lambda key: (key[0], key[1] != "culprit", -len(ranks[key]), ranks[key]))
    shown = order if len(order) <= _MOST else order[: _MOST - 1]
    number = {key: min(place, _MOST - 1) + 1 for place, key in enumerate(order)}
    rows = [
        {
            "box": number[key],
            "layer": key[0],
            "role": key[1],
            "ranks": rank_text(ranks[key]),
            "count": len(ranks[key]),
            "state": _words(key, sorted(calls.get(key, ()))),
            "groups": _place(state, key, ranks[key], sorted(calls.get(key, ()))),
            "waits_for": sorted({number[key_of[target]] for rank in ranks[key] for target in asked.get(rank, ())}),
        }
        for key in shown
    ]
    rest = [rank for key in order[len(shown) :] for rank in ranks[key]]
    if rest:
        targets = {number[key_of[target]] for rank in rest for target in asked.get(rank, ())} - {_MOST}
        state_words = f"{len(order) - len(shown)} more sets of ranks; all stand in the table of who waits"
        rows.append(
            {"box": _MOST, "layer": order[len(shown)][0], "role": "more", "ranks": rank_text(rest), "count": len(rest),
             "state": state_words, "groups": "", "waits_for": sorted(targets)}
        )  # fmt: skip
    return pl.DataFrame(rows, schema=SCHEMA)


def _words(key: _Key, operations: Sequence[Operation]) -> str:
    """Return what the ranks of a box do."""
    if not operations:
        return key[3]
    numbers = [number for _, _, number in operations]
    seq = f"seq {numbers[0]}" if len(set(numbers)) == 1 else f"seq {min(numbers)} to {max(numbers)}"
    return f"{'waiting' if key[1] == 'waits' else 'inside'}: {key[3]} {seq}"


def _place(state: State, key: _Key, ranks: Sequence[int], operations: Sequence[Operation]) -> str:
    """Return in which group or groups; of culprits, what they did last."""
    if key[1] == "culprit":
        return _last(state, ranks)
    groups = sorted({group for group, _, _ in operations})
    if not groups:
        return ""
    if len(groups) > 1:
        return f"{len(groups)} groups {key[2]}"
    only = state.groups[groups[0]]
    return f"{only.desc or 'group'} {only.name}, ranks {rank_text(only.ranks)}"


def _last(state: State, ranks: Sequence[int]) -> str:
    """Return what the culprits have in flight first, or launched last, where it is the same for all."""
    told = set()
    for rank in ranks:
        own = state.ops.filter(pl.col("rank") == rank).drop_nulls(["number", "group_id"])
        flying = own.filter("in_flight")
        for row in (flying.head(1) if flying.height else own.tail(1)).iter_rows(named=True):
            said = "in flight first" if flying.height else "launched last"
            told.add(f"{said}: {row['op']} seq {row['number']} of {_kind(state, row['group_id'])}")
    return told.pop() if len(told) == 1 else ""
