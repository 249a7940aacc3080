"""Replay: when everything ends if each piece of work starts as soon as what it waits for has ended.

A graph of *nodes* (stretches of compute, communications, host work) and *edges*. Node j starts at the latest of
end(i) + lag over its edges i → j, or at its release when it has none. A local node ends value later. Nodes of one
*rendezvous* (a collective, a send with its receive) have all to have started: each ends at the latest of their starts
plus its own value. The values are given, so a what-if is the same graph with other values, and many what-ifs (or steps
of the same structure) are columns of one array.

Nodes are put into levels once; a replay is then a few array operations a level, over all nodes of it and all columns.
A graph of few ranks has as many levels as nodes of a rank and next to nothing in each: such a narrow one is gone
through node by node instead (join/narrow.py), in the same arithmetic.
Method: arXiv 2505.05713 (transfer = end − latest start in the group; T = replay with original values).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tracetool.errors import TracetoolError
from tracetool.join.narrow import Narrow, circle, in_turn

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FIRST_LEVELS: Final = 256
"""After this many levels it is known whether a graph is narrow."""
_NARROW: Final = 32
"""Groups a level below which array operations cost more than they save; measured."""


class Replayed(NamedTuple):
    """Times of every node; arrays of shape (nodes,) or (nodes, columns) like the values they came from."""

    start: Floats
    """When the node itself was ready: its arrival, before it waited for its rendezvous."""
    end: Floats


@dataclass(frozen=True)
class Graph:
    """A graph in replay order. Made by `graph`; node numbers in the interface are the caller's."""

    order: Ints
    """Replay place → node."""
    place: Ints
    """Node → replay place."""
    edge_order: Ints
    """Replay order of edges → edge as given."""
    pred: Ints
    """Replay place of each edge's source, edges in replay order."""
    levels: tuple[_Level, ...]
    """Empty for a narrow graph."""
    narrow: Narrow | None
    pred_given: Ints
    node_given: Ints
    rendezvous: Ints

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return len(self.order)

    def replay(self, value: Floats, lag: Floats | None = None, release: Floats | None = None) -> Replayed:
        """Return start and end of every node.

        `value`: (nodes,) or (nodes, columns); `lag`: (edges,) or (edges, columns), None for all 0; `release`: (nodes,),
        None for all 0, used where a node has no edges. One unit of time throughout; any that fits a float64.
        """
        flat = value.ndim == 1
        v = np.ascontiguousarray((value[:, None] if flat else value)[self.order])
        edge_lag = None
        if lag is not None:
            edge_lag = (lag[:, None] if lag.ndim == 1 else lag)[self.edge_order]
        first = np.zeros(self.nodes) if release is None else release[self.order]
        start, end = np.empty_like(v), np.empty_like(v)
        if self.narrow is not None:
            self.narrow.replay(v, edge_lag, first, (start, end))
        for level in self.levels:
            low, high = level.nodes
            ready = start[low:high]
            ready[: level.free] = first[low : low + level.free, None]
            if level.edges[1] > level.edges[0]:
                begin, stop = level.edges
                came = end[self.pred[begin:stop]]
                if edge_lag is not None:
                    came += edge_lag[begin:stop]
                ready[level.free :] = np.maximum.reduceat(came, level.edge_starts, axis=0)
            if level.group_starts is None:
                end[low:high] = ready + v[low:high]
            else:
                # members of a rendezvous stand apart in the level: free ones first
                by_group = ready[level.by_group]
                together = np.maximum.reduceat(by_group, level.group_starts, axis=0)
                met = np.repeat(together, level.group_sizes, axis=0)
                end[low:high][level.by_group] = met + v[low:high][level.by_group]
        back = self.place
        return Replayed(start[back][:, 0], end[back][:, 0]) if flat else Replayed(start[back], end[back])


class _Level(NamedTuple):
    """Nodes that wait only for earlier levels, those without edges first."""

    nodes: tuple[int, int]
    free: int
    edges: tuple[int, int]
    edge_starts: Ints
    by_group: Ints
    group_starts: Ints | None
    """None when every node of the level is alone."""
    group_sizes: Ints


def graph(nodes: int, pred: Ints, node: Ints, rendezvous: Ints | None = None) -> Graph:
    """Return the graph of `nodes` nodes with an edge from each `pred` to the `node` beside it.

    `rendezvous`: number of each node's rendezvous, nodes with the same one meet; negative or None: alone. Raises
    TracetoolError when the order of the nodes contradicts itself (a cycle).
    """
    meets = np.full(nodes, -1, np.int64) if rendezvous is None else np.asarray(rendezvous, np.int64)
    alone = meets < 0
    _, group = np.unique(np.where(alone, -1 - np.arange(nodes), meets), return_inverse=True)
    group = group.astype(np.int64)
    pred, node = np.asarray(pred, np.int64), np.asarray(node, np.int64)
    turn, is_narrow = _turns(group, pred, node)
    has_edge = np.zeros(nodes, bool)
    has_edge[node] = True
    order = np.lexsort((np.arange(nodes), group, has_edge, turn[group]))
    place = np.empty(nodes, np.int64)
    place[order] = np.arange(nodes)
    edge_order = np.argsort(place[node], kind="stable")
    target, source = place[node][edge_order], place[pred][edge_order]
    return Graph(
        order=order,
        place=place,
        edge_order=edge_order,
        pred=source,
        levels=() if is_narrow else _slices(turn[group][order], has_edge[order], group[order], target),
        narrow=Narrow.of(source, target, group[order]) if is_narrow else None,
        pred_given=pred,
        node_given=node,
        rendezvous=group,
    )


def _turns(group: Ints, pred: Ints, node: Ints) -> tuple[Ints, bool]:
    """Return when each group may be replayed, and whether the graph is narrow.

    Wide: its level, one above the highest of what any member waits for. Narrow: its place in a row in which everything
    comes after what it waits for.
    """
    groups = int(group.max()) + 1 if len(group) else 0
    source, target = group[pred], group[node]
    out = np.argsort(source, kind="stable")
    first = np.searchsorted(source[out], np.arange(groups + 1))
    follows = target[out]
    waits_for = np.bincount(target, minlength=groups)
    level = np.full(groups, -1, np.int64)
    front = np.flatnonzero(waits_for == 0)
    depth = done = 0
    left = waits_for.copy()
    while len(front):
        level[front] = depth
        depth += 1
        done += len(front)
        if depth == _FIRST_LEVELS and done < _FIRST_LEVELS * _NARROW:
            return in_turn(first, follows, waits_for), True
        counts = first[front + 1] - first[front]
        starts = np.repeat(first[front] - np.cumsum(counts) + counts, counts)
        reached, times = np.unique(follows[starts + np.arange(counts.sum())], return_counts=True)
        left[reached] -= times
        front = reached[left[reached] == 0]
    if (level < 0).any():
        raise TracetoolError(circle(int((level < 0).sum())))
    return level, False


def _slices(level: Ints, has_edge: npt.NDArray[np.bool_], group: Ints, target: Ints) -> tuple[_Level, ...]:
    """Cut nodes and edges, both in replay order, at the levels."""
    if not len(level):
        return ()
    edges = np.searchsorted(level, np.arange(level[-1] + 2))
    cuts = np.searchsorted(target, edges)
    found = []
    for number in range(len(edges) - 1):
        low, high = int(edges[number]), int(edges[number + 1])
        begin, stop = int(cuts[number]), int(cuts[number + 1])
        free = int(np.count_nonzero(~has_edge[low:high]))
        inside = target[begin:stop]
        edge_starts = np.flatnonzero(np.diff(inside, prepend=-1)).astype(np.int64)
        mine = group[low:high]
        by_group = np.argsort(mine, kind="stable")
        group_starts = np.flatnonzero(np.diff(mine[by_group], prepend=-1)).astype(np.int64)
        sizes = np.diff(np.append(group_starts, high - low))
        alone = len(group_starts) == high - low
        found.append(
            _Level((low, high), free, (begin, stop), edge_starts, by_group, None if alone else group_starts, sizes)
        )
    return tuple(found)


def binding(graph: Graph, replayed: Replayed, lag: Floats | None = None) -> tuple[Ints, Ints]:
    """Return for each node who it met last and which edge held it: (arriver, edge).

    `arriver`: the node of its rendezvous that started last (itself when alone), the lowest of equals; `edge`: index of
    the edge that decided the node's own start, the first of equals, −1 when it has none. One column only.
    """
    nodes = graph.nodes
    order = np.lexsort((np.arange(nodes), -replayed.start, graph.rendezvous))
    groups = graph.rendezvous[order]
    heads = order[np.flatnonzero(np.diff(groups, prepend=-1))]
    arriver = heads[graph.rendezvous]
    came = replayed.end[graph.pred_given] + (0.0 if lag is None else lag)
    by_node = np.lexsort((np.arange(len(came)), -came, graph.node_given))
    held = np.full(nodes, -1, np.int64)
    first = np.flatnonzero(np.diff(graph.node_given[by_node], prepend=-1))
    held[graph.node_given[by_node][first]] = by_node[first]
    return arriver, held
