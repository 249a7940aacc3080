"""Robust least squares over the ends of collectives: offset and drift of every host, solved directly.

z = E + a_h + b_h·x + noise for every observed end; E, the true end of its collective, is eliminated by the weighted
mean of its members (Schur complement). Huber's weights w = 1 / max(1, |r| / 2s) with a scale s = 1.4826 · median |r|
for each kind of collective. Iterating between offsets and ends instead converges far too slowly on weakly joined hosts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ROUNDS: Final = 9
_CONVERGED_NS: Final = 50.0
_BLOCK: Final = 8192
_NEXT_TO_NOTHING: Final = 1e-9
"""Weight of what is not to count: not 0, so that every instance keeps a mean."""
_REFUSE_FACTOR: Final = 1000.0
"""An operation whose ends scatter this much more than the best one's is wrongly grouped, and not used."""


@dataclass(frozen=True)
class Ends:
    """The observed ends as columns: time since the first, host, instance, group and kind; all of one length."""

    z_ns: Floats
    host: Ints
    instance: Ints
    """Numbered from 0 in order, ascending."""
    group: Ints
    kind: Ints
    hosts: int
    drifting: npt.NDArray[np.bool_]
    """Hosts whose drift can be told; nobody's when the span is short."""

    @property
    def unknowns(self) -> int:
        """Offsets, then drifts."""
        return 2 * self.hosts

    @property
    def scale_ns(self) -> float:
        """Unit of x, so that the normal equations stay well conditioned."""
        return max(float(self.z_ns.max()), 1.0)

    def columns(self) -> list[tuple[Ints, Floats]]:
        """Return the design matrix by its non-zero columns: (unknown, factor) of each end."""
        x = self.z_ns / self.scale_ns
        offset = (self.host, np.ones_like(x))
        return [offset, (self.host + self.hosts, x)] if self.drifting.any() else [offset]


def components(h: Ints, instance: Ints, hosts: int) -> Ints:
    """Return the component of each host: hosts joined by a collective share one, numbered by their lowest host.

    `h` and `instance` are the host and the collective of each end; a host in none is a component of its own.
    """
    order = np.argsort(instance, kind="stable")
    same = instance[order][1:] == instance[order][:-1]
    links = np.unique(np.sort(np.stack([h[order][1:][same], h[order][:-1][same]], axis=1), axis=1), axis=0)
    parent = np.arange(hosts)
    while True:
        low = parent.copy()
        np.minimum.at(low, links[:, 0], parent[links[:, 1]])
        np.minimum.at(low, links[:, 1], parent[links[:, 0]])
        low = low[low]
        if np.array_equal(low, parent):
            return np.unique(parent, return_inverse=True)[1].astype(np.int64)
        parent = low


@dataclass(frozen=True)
class Solution:
    """Offsets and drifts of the hosts (ns, and ns a ns), standard errors of the offsets, residuals, kinds' scales."""

    offset: Floats
    drift: Floats
    error_ns: Floats
    drift_error_ns: Floats
    """Standard error of what each drift adds up to over the whole span."""
    residual: Floats
    scales: Floats
    refused: tuple[int, ...]


def robust(ends: Ends, component: Ints) -> Solution:
    """Fit by iteratively reweighted least squares; the lowest host of each component keeps offset and drift 0."""
    hosts = ends.hosts
    reference = np.array([np.flatnonzero(component == part)[0] for part in range(component.max() + 1)])
    seen = np.bincount(ends.host, minlength=hosts) > 0
    offsets = np.setdiff1d(np.flatnonzero(seen), reference)
    drifts = np.setdiff1d(np.flatnonzero(ends.drifting), reference) + hosts
    free = np.concatenate([offsets, drifts]).astype(np.int64)
    alone = [
        _scales(ends, _fitted(ends, free, np.where(ends.kind == kind, 1.0, _NEXT_TO_NOTHING))[1])[kind]
        for kind in range(ends.kind.max() + 1)
    ]
    scales = np.array(alone)
    refused = tuple(int(kind) for kind in np.flatnonzero(scales > _REFUSE_FACTOR * scales.min()))
    allowed = np.where(np.isin(ends.kind, refused), _NEXT_TO_NOTHING, 1.0)
    weight = allowed
    solution, residual = _fitted(ends, free, weight)
    for _ in range(_ROUNDS):
        scales = _scales(ends, residual)
        weight = allowed / np.maximum(1.0, np.abs(residual) / (2.0 * scales[ends.kind]))
        before = solution
        solution, residual = _fitted(ends, free, weight)
        if float(np.abs(solution - before).max()) < _CONVERGED_NS:
            break
    error = np.zeros(ends.unknowns)
    noise = weight / np.square(scales[ends.kind])
    normal, _ = _normal_equations(ends, noise)
    error[free] = np.sqrt(np.maximum(np.diagonal(np.linalg.pinv(normal[np.ix_(free, free)])), 0.0))
    return Solution(
        offset=solution[:hosts],
        drift=solution[hosts:] / ends.scale_ns,
        error_ns=error[:hosts],
        drift_error_ns=error[hosts:],
        residual=residual,
        scales=scales,
        refused=refused,
    )


def _fitted(ends: Ends, free: Ints, weight: Floats) -> tuple[Floats, Floats]:
    """Return the weighted least-squares solution, 0 where not free, and every end's residual."""
    normal, right = _normal_equations(ends, weight)
    solution = np.zeros(ends.unknowns)
    part = normal[np.ix_(free, free)]
    try:
        solution[free] = np.linalg.solve(part, right[free])
    except np.linalg.LinAlgError:
        solution[free] = np.linalg.lstsq(part, right[free], rcond=None)[0]
    predicted = sum((solution[unknown] * factor for unknown, factor in ends.columns()), np.zeros_like(ends.z_ns))
    centred = ends.z_ns - predicted
    total = np.bincount(ends.instance, weight)
    mean = np.bincount(ends.instance, weight * centred) / total
    return solution, centred - mean[ends.instance]


def _scales(ends: Ends, residual: Floats) -> Floats:
    """Return the robust scale of each kind's residuals, ns."""
    spread = [1.4826 * np.median(np.abs(residual[ends.kind == kind])) for kind in range(ends.kind.max() + 1)]
    scales: Floats = np.maximum(np.array(spread), 1.0)
    return scales


def _normal_equations(ends: Ends, weight: Floats) -> tuple[Floats, Floats]:
    """Accumulate AᵀWA and AᵀWz with every instance's true end eliminated.

    Group by group, in blocks of instances: a group touches the unknowns of its own hosts only.
    """
    unknowns = ends.unknowns
    normal, right = np.zeros((unknowns, unknowns)), np.zeros(unknowns)
    columns = ends.columns()
    for unknown, factor in columns:
        right += np.bincount(unknown, weight * factor * ends.z_ns, minlength=unknowns)
        for other, other_factor in columns:
            np.add.at(normal, (unknown, other), weight * factor * other_factor)
    # instances ascend and carry their group in the upper bits: a group's ends lie together
    edges = np.flatnonzero(np.diff(ends.group, prepend=ends.group[0] - 1, append=ends.group[-1] + 1))
    for begin, end in itertools.pairwise(edges.tolist()):
        mine = np.unique(np.concatenate([unknown[begin:end] for unknown, _ in columns]))
        lowest, highest = int(ends.instance[begin]), int(ends.instance[end - 1]) + 1
        block = max(1, min(_BLOCK, _BLOCK * 64 // len(mine)))
        for first in range(lowest, highest, block):
            last = min(first + block, highest)
            low, high = begin + np.searchsorted(ends.instance[begin:end], [first, last])
            row = ends.instance[low:high] - first
            here = weight[low:high]
            design = np.zeros((last - first, len(mine)))
            for unknown, factor in columns:
                np.add.at(design, (row, np.searchsorted(mine, unknown[low:high])), here * factor[low:high])
            total = np.bincount(row, here, minlength=last - first)
            sums = np.bincount(row, here * ends.z_ns[low:high], minlength=last - first)
            normal[np.ix_(mine, mine)] -= design.T @ (design / total[:, None])
            right[mine] -= design.T @ (sums / total)
    return normal, right
