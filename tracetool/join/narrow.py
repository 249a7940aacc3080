"""Replay of a narrow graph, node by node: where few nodes run side by side, arrays cost more than they save.

The same definition and the same arithmetic as join/replay.py, so the same times to the last bit. A replay is sequential
by nature; this is its one plain loop over nodes, on lists, about 0.4 µs a node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracetool.errors import TracetoolError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def circle(count: int) -> str:
    """Say that this many communications wait for each other."""
    return f"{count} communications wait for each other in a circle: matched wrongly; no replay"


def in_turn(first: Ints, follows: Ints, waits_for: Ints) -> Ints:
    """Return the place of each node in a row in which everything comes after what it waits for.

    `follows[first[n]:first[n + 1]]` wait for node n; `waits_for`: how many edges lead to each. Raises TracetoolError
    when there is no such row.
    """
    cuts, after, left = first.tolist(), follows.tolist(), waits_for.tolist()
    row = np.flatnonzero(waits_for == 0).tolist()
    for number in row:  # it grows while it is gone through
        for reached in after[cuts[number] : cuts[number + 1]]:
            left[reached] -= 1
            if not left[reached]:
                row.append(reached)
    if len(row) < len(left):
        raise TracetoolError(circle(len(left) - len(row)))
    turn = np.empty(len(row), np.int64)
    turn[row] = np.arange(len(row))
    return turn


@dataclass(frozen=True)
class Narrow:
    """Nodes in replay order, members of one rendezvous side by side, and the edges to each."""

    pred: list[int]
    """Source of each edge, edges in the order of their targets."""
    cuts: list[int]
    """First edge of each node, and the end of the last one's."""
    opens: list[int]
    """First node of its rendezvous, for the last node of each; −1 for the others."""

    @classmethod
    def of(cls, pred: Ints, target: Ints, group: Ints) -> Narrow:
        """Take source and target of each edge and the rendezvous of each node, in replay order."""
        nodes = np.arange(len(group))
        is_first = np.diff(group, prepend=-1) != 0
        opens = nodes[is_first][np.cumsum(is_first) - 1]
        is_last = np.append(is_first[1:], True)
        cuts = np.searchsorted(target, np.arange(len(group) + 1))
        return cls(pred.tolist(), cuts.tolist(), np.where(is_last, opens, -1).tolist())

    def replay(self, value: Floats, lag: Floats | None, release: Floats, times: tuple[Floats, Floats]) -> None:
        """Fill start and end of every node, `times`; `value` is (nodes, columns), `lag` (edges, columns or 1)."""
        free = release.tolist()
        for column in range(value.shape[1]):
            lags = [0.0] * len(self.pred) if lag is None else lag[:, min(column, lag.shape[1] - 1)].tolist()
            for filled, found in zip(times, self._column(value[:, column].tolist(), lags, free), strict=True):
                filled[:, column] = found

    def _column(self, value: list[float], lag: list[float], free: list[float]) -> tuple[list[float], list[float]]:
        start, end = [0.0] * len(value), [0.0] * len(value)
        pred, begin = self.pred, 0
        for node, (stop, opens) in enumerate(zip(self.cuts[1:], self.opens, strict=True)):
            if begin == stop:
                ready = free[node]
            else:
                ready = end[pred[begin]] + lag[begin]
                for edge in range(begin + 1, stop):
                    came = end[pred[edge]] + lag[edge]
                    if came > ready:  # noqa: PLR1730 - max() would double the time of the loop
                        ready = came
                begin = stop
            start[node] = ready
            if opens == node:
                end[node] = ready + value[node]
            elif opens >= 0:
                met = max(start[opens : node + 1])
                for member in range(opens, node + 1):
                    end[member] = met + value[member]
        return start, end
