"""Who waits for whom: the wait-for graph of a job that stands still, and what it hangs on.

Nodes are ranks. An edge r → q says that r cannot go on before q has done something. Following edges from any rank
ends in a component that waits for nobody outside itself: one rank (it did not come), or several in a cycle.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Why = Literal["not_launched", "behind", "unmatched", "queued", "no_dump", "unknown"]
"""Why r waits for q.

not_launched: q provably has not launched r's operation; behind: q has an earlier one of the same group in flight;
unmatched: q has not posted the other side of r's send or receive; queued: q launched it after another operation
that is still in flight; no_dump: nothing is known of q; unknown: q's dump does not tell.
"""
PROVEN: frozenset[str] = frozenset({"not_launched", "behind", "unmatched"})


@dataclass(frozen=True)
class Edge:
    """One rank that waits for another because of one operation."""

    waiter: int
    target: int
    group: int
    is_p2p: bool
    number: int
    why: Why


@dataclass(frozen=True)
class Lane:
    """How far one rank has come in one group, counting its collectives or its sends and receives."""

    oldest: int | None
    """Smallest number in flight; None: nothing is."""
    newest: int | None
    """Largest number known to be launched."""
    done: int | None
    """Largest number known to be complete."""
    settled: bool
    """`newest` is proven to be the last one launched: what is larger was not launched."""
    order: int = 0
    """Place of the oldest operation in flight in the rank's own order of launches."""

    def launched(self, number: int) -> bool:
        """Say whether the operation is known to have been launched."""
        return any(known is not None and known >= number for known in (self.newest, self.done))

    def passed(self, number: int) -> bool:
        """Say whether the operation is known to be complete; collectives of a group complete in order."""
        if self.oldest is not None and self.oldest <= number:
            return False
        return (self.done is not None and self.done >= number) or (self.oldest is not None and self.oldest > number)


def collective_edges(
    lanes: Mapping[int, Mapping[int, Lane]], members: Mapping[int, Sequence[int]], known: frozenset[int]
) -> list[Edge]:
    """Return the edges of collectives: `lanes[group][rank]`, `members[group]`, and the ranks that left a dump."""
    edges = []
    for group, by_rank in lanes.items():
        for number in sorted({lane.oldest for lane in by_rank.values() if lane.oldest is not None}):
            waiters = sorted(rank for rank, lane in by_rank.items() if lane.oldest == number)
            for target in members[group]:
                why = _why(by_rank.get(target), number, covered=target in known)
                if why:
                    edges += [Edge(waiter, target, group, False, number, why) for waiter in waiters if waiter != target]
    return edges


def _why(lane: Lane | None, number: int, *, covered: bool) -> Why | None:
    """Say why an operation must wait for a rank that has come as far as `lane`; None: it need not."""
    if lane is None:
        return "unknown" if covered else "no_dump"
    if lane.oldest is not None and lane.oldest < number:
        return "behind"
    if lane.launched(number):
        return None
    return "not_launched" if lane.settled else "unknown"


def components(edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the strongly connected components of a graph, each sorted, every one after those it leads to.

    Tarjan's algorithm (Depth-first search and linear graph algorithms, SIAM J. Comput. 1972) without recursion.
    """
    after: dict[int, list[int]] = defaultdict(list)
    nodes: set[int] = set()
    for source, target in sorted(set(edges)):
        after[source].append(target)
        nodes |= {source, target}
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    path: list[int] = []
    on_path: set[int] = set()
    found = []
    for root in sorted(nodes):
        if root in index:
            continue
        work = [(root, 0)]
        while work:
            node, place = work.pop()
            if place == 0:
                index[node] = low[node] = len(index)
                path.append(node)
                on_path.add(node)
            else:
                low[node] = min(low[node], low[after[node][place - 1]])
            for step in range(place, len(after[node])):
                target = after[node][step]
                if target not in index:
                    work += [(node, step + 1), (target, 0)]
                    break
                if target in on_path:
                    low[node] = min(low[node], index[target])
            else:
                if low[node] == index[node]:
                    cut = path.index(node)
                    found.append(sorted(path[cut:]))
                    on_path -= set(path[cut:])
                    del path[cut:]
    return found


def terminals(edges: Sequence[Edge]) -> list[list[int]]:
    """Return the components that wait for nobody outside themselves, in the order of their lowest rank."""
    parts = components((edge.waiter, edge.target) for edge in edges)
    part_of = {rank: number for number, part in enumerate(parts) for rank in part}
    leaving = {part_of[edge.waiter] for edge in edges if part_of[edge.waiter] != part_of[edge.target]}
    return sorted(part for number, part in enumerate(parts) if number not in leaving)


def minority(sides: Mapping[str, Sequence[int]]) -> tuple[list[int], bool]:
    """Return the ranks outside the largest side, or all of them when several sides are largest; and whether so."""
    largest = max(len(ranks) for ranks in sides.values())
    tie = sum(len(ranks) == largest for ranks in sides.values()) > 1
    chosen = [rank for ranks in sides.values() if tie or len(ranks) < largest for rank in ranks]
    return sorted(chosen), tie
