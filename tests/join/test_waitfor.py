"""The wait-for graph against a slow definition, and what ends it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tracetool.join.waitfor import Edge, Lane, collective_edges, components, minority, terminals

EDGES = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=25)


def reachable(edges: list[tuple[int, int]]) -> dict[int, set[int]]:
    nodes = {node for edge in edges for node in edge}
    seen = {node: {node} for node in nodes}
    for _ in nodes:
        for source, target in edges:
            for node in nodes:
                if source in seen[node]:
                    seen[node].add(target)
    return seen


@given(EDGES)
def test_components_are_mutual_reachability(edges: list[tuple[int, int]]) -> None:
    seen = reachable(edges)
    slow = {frozenset(b for b in seen[a] if a in seen[b]) for a in seen}
    fast = components(edges)
    assert {frozenset(part) for part in fast} == slow
    place = {rank: number for number, part in enumerate(fast) for rank in part}
    assert all(place[a] >= place[b] for a, b in edges), "a component stands after those it leads to"


@given(EDGES)
def test_terminals_wait_for_nobody_outside(edges: list[tuple[int, int]]) -> None:
    waits = [Edge(a, b, 0, False, 1, "not_launched") for a, b in edges]
    for part in terminals(waits):
        assert all(b in part for a, b in edges if a in part)
    assert bool(terminals(waits)) == bool(edges)


def lane(
    oldest: int | None = None, newest: int | None = None, done: int | None = None, *, settled: bool = True
) -> Lane:
    return Lane(oldest, newest, done, settled)


def why(other: Lane | None, *, known: bool = True) -> str | None:
    lanes = {0: {0: lane(5, 5, 4)}}
    if other:
        lanes[0][1] = other
    edges = collective_edges(lanes, {0: (0, 1)}, frozenset({0, 1} if known else {0}))
    told = [edge.why for edge in edges if edge.waiter == 0]
    return told[0] if told else None


def test_who_is_waited_for_and_why() -> None:
    assert why(lane(None, 4, 4)) == "not_launched"
    assert why(lane(None, 4, 4, settled=False)) == "unknown"
    assert why(lane(3, 5, 2)) == "behind"
    assert why(lane(5, 5, 4)) is None
    assert why(lane(None, 5, 5)) is None
    assert why(lane(7, 9, None)) is None
    assert why(None) == "unknown"
    assert why(None, known=False) == "no_dump"


def test_minority_and_ties() -> None:
    assert minority({"a": [0, 1, 2], "b": [3]}) == ([3], False)
    assert minority({"a": [0, 1], "b": [2, 3]}) == ([0, 1, 2, 3], True)
    assert minority({"a": [0, 1, 5], "b": [2], "c": [4]}) == ([2, 4], False)
