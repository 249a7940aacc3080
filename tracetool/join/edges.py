"""The edges of the wait-for graph, from what the ranks say of themselves.

Collectives: the oldest in flight of each group waits for members that have not launched it or have an earlier one
in flight. Sends and receives: the oldest wait for a peer that has not posted the other side; they pair by sender
and receiver, never by number. A rank's first operation in flight also waits for members that launched it behind
another operation which is still in flight there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.join.waitfor import Edge, collective_edges

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tracetool.join.hangstate import Operation, State
    from tracetool.join.waitfor import Why

_ONE_SIDED: Final = frozenset({"broadcast", "reduce", "gather", "scatter"})
"""Operations that some members may complete while others still wait."""
_PAIR: Final = 2


def all_edges(state: State) -> tuple[Edge, ...]:
    """Return every edge: of collectives, of sends and receives, and of operations queued behind others."""
    members = {number: group.ranks for number, group in enumerate(state.groups)}
    edges = collective_edges(state.lanes, members, state.known)
    flying = _halves(state, pl.col("in_flight"))
    edges += _p2p_edges(state, flying)
    return tuple(edges + _queue_edges(state, flying))


@dataclass(frozen=True)
class _Half:
    """One side of a send or receive in flight."""

    rank: int
    group: int
    number: int
    op: str
    peer: int
    record: int

    def key(self) -> tuple[int, int, str, int]:
        """Return what the other side's `mirror` equals."""
        return self.rank, self.group, self.op, self.peer

    def mirror(self) -> tuple[int, int, str, int]:
        """Return the key of the other side."""
        return self.peer, self.group, "recv" if self.op == "send" else "send", self.rank


def _halves(state: State, which: pl.Expr) -> list[_Half]:
    """Return the sends and receives that `which` selects, in the order of launches."""
    rows = state.ops.filter(which, "is_p2p", pl.col("group_id").is_not_null(), pl.col("peer").is_not_null())
    found = []
    for rank, group, number, op, peer, record in rows.select(
        "rank", "group_id", "number", "op", "peer", "record"
    ).iter_rows():
        ranks = state.groups[group].ranks
        if op in {"send", "recv"} and number is not None and peer < len(ranks) and rank in ranks:
            found.append(_Half(rank, group, number, op, ranks[peer], record))
    return found


def _p2p_edges(state: State, flying: Sequence[_Half]) -> list[Edge]:
    """Return the edges of each rank's oldest sends and receives whose other side nobody has posted."""
    posted = {half.key() for half in flying}
    # in a group of two both sides count the same sends and receives: there a number pairs them, finished ones too
    ended = {
        (half.key(), half.number)
        for half in _halves(state, pl.col("in_flight").not_())
        if len(state.groups[half.group].ranks) == _PAIR
    }
    edges = []
    for half in flying:
        lane = state.p2p.get(half.group, {}).get(half.rank)
        if not lane or half.number != lane.oldest or (half.mirror(), half.number) in ended:
            continue
        if half.mirror() not in posted:
            why: Why = "unmatched" if half.peer in state.known else "no_dump"
            edges.append(Edge(half.rank, half.peer, half.group, True, half.number, why))
    return edges


def _queue_edges(state: State, flying: Sequence[_Half]) -> list[Edge]:
    """Return edges from each rank's first operation in flight to ranks that launched it behind another of theirs."""
    rows = state.ops.filter("in_flight", pl.col("group_id").is_not_null(), pl.col("number").is_not_null())
    rows = rows.filter(~pl.col("rank").is_in(list(state.unordered)))
    first: dict[int, tuple[int, Operation]] = {}
    places: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for rank, record, group, is_p2p, number in rows.select(
        "rank", "record", "group_id", "is_p2p", "number"
    ).iter_rows():
        first.setdefault(rank, (record, (group, is_p2p, number)))
        if not is_p2p:
            places[group, number].setdefault(rank, record)
    edges = []
    for waiter, (_, operation) in first.items():
        group, is_p2p, number = operation
        if not is_p2p:
            for target, place in places[group, number].items():
                if first[target][0] < place and target != waiter:
                    edges.append(Edge(waiter, target, group, False, number, "queued"))
    posted = {half.key(): half for half in flying}
    for half in flying:
        if half.rank in state.unordered or half.peer in state.unordered:
            continue
        other = posted.get(half.mirror())
        if other and first[half.rank][1] == (half.group, True, half.number):
            record, operation = first[half.peer]
            if operation != (other.group, True, other.number) and record < other.record:
                edges.append(Edge(half.rank, half.peer, half.group, True, half.number, "queued"))
    return edges


def stuck_operations(state: State) -> dict[int, tuple[Operation, ...]]:
    """Return, per rank, the operations it has in flight that peers have completed, in its order of launches."""
    ops = {
        (group, number): op
        for group, number, op in state.ops.filter(~pl.col("is_p2p"), pl.col("group_id").is_not_null())
        .select("group_id", "number", "op")
        .unique()
        .sort("group_id", "number", "op")
        .iter_rows()
    }
    found: dict[int, list[tuple[int, Operation]]] = defaultdict(list)
    for group, by_rank in state.lanes.items():
        for rank, lane in by_rank.items():
            if lane.oldest is None:
                continue
            passed = sum(other.passed(lane.oldest) for q, other in by_rank.items() if q != rank)
            needed = len(state.groups[group].ranks) - 1 if ops.get((group, lane.oldest)) in _ONE_SIDED else 1
            if passed >= max(needed, 1):
                found[rank].append((lane.order, (group, False, lane.oldest)))
    return {rank: tuple(operation for _, operation in sorted(lanes)) for rank, lanes in found.items()}


def prune(edges: Iterable[Edge], stuck: Mapping[int, tuple[Operation, ...]], state: State) -> tuple[Edge, ...]:
    """Drop what a stuck rank launched after the operation it is stuck in: that waits for itself first."""
    kept = []
    for edge in edges:
        operations = stuck.get(edge.waiter)
        if operations:
            if edge.why == "queued":
                continue
            limit = state.lanes[operations[0][0]][edge.waiter].order
            lane = (state.p2p if edge.is_p2p else state.lanes)[edge.group][edge.waiter]
            if lane.order > limit:
                continue
        kept.append(edge)
    return tuple(kept)
