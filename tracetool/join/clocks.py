"""Bringing ranks' clocks together: offset and drift of every host from when collectives end.

Members of a collective leave it together, so ends align clocks while starts measure lateness. Each end that crosses
hosts is observed as z = E + a_h + b_h·x + noise: E the collective's true end, a the offset and b the drift of host h,
x the time since its first use. E is eliminated by the weighted mean of its members (Schur complement), the 2H × 2H
normal equations are solved directly, and outliers are weighed down by Huber's rule with a scale for each (operation,
group size): w = 1 / max(1, |r| / 2s), s = 1.4826 · median |r|. Ranks of one host share one clock. Hosts that no
collective connects are never compared.

aligned = t + base_unix_ns + offset_ns + round(drift_ppm·1e-6·(t − t0_ns)); the lowest rank's host of each component is
the reference, with offset and drift 0.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ROUNDS: Final = 9
_CONVERGED_NS: Final = 50.0
_DRIFT_SPAN_NS: Final = 1_000_000_000
"""Shorter than this, drift cannot be told from offset and is left at 0."""
_DRIFT_EVENTS: Final = 10
_BLOCK: Final = 8192
_NEXT_TO_NOTHING: Final = 1e-9
"""Weight of what is not to count: not 0, so that every instance keeps a mean."""
_REFUSE_FACTOR: Final = 1000.0
"""An operation whose ends scatter this much more than the best one's is wrongly grouped, and not used."""

SAMPLE_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "rank": pl.Int32,
    "instance": pl.Int64,
    "op": pl.String,
    "size": pl.Int32,
    "end_ns": pl.Int64,
}
"""Ends of symmetric collectives, in the ranks' own clocks; `instance` unique over all groups."""

RANKS_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "rank": pl.Int32,
    "host": pl.String,
    "offset_ns": pl.Int64,
    "drift_ppm": pl.Float64,
    "t0_ns": pl.Int64,
    "residual_p50_ns": pl.Int64,
    "residual_p95_ns": pl.Int64,
    "samples": pl.Int64,
    "component": pl.Int32,
    "base_unix_ns": pl.Int64,
}


@dataclass(frozen=True)
class Clocks:
    """The clock of every rank, and what had to be said while finding it."""

    ranks: pl.DataFrame
    """RANKS_SCHEMA, sorted by rank; component −1 never occurs: a host nothing connects is a component of its own."""
    notes: tuple[str, ...]

    def align(self, rows: pl.DataFrame, column: str) -> pl.DataFrame:
        """Return `rows` (with a column rank) plus `aligned_ns` of `column`, `component` and the clock's columns."""
        clock = self.ranks.select("rank", "offset_ns", "drift_ppm", "t0_ns", "component", "base_unix_ns")
        shift = (pl.col("drift_ppm") * 1e-6 * (pl.col(column) - pl.col("t0_ns"))).round().cast(pl.Int64)
        return rows.join(clock, on="rank", how="left", maintain_order="left").with_columns(
            aligned_ns=pl.col(column) + pl.col("base_unix_ns") + pl.col("offset_ns") + shift
        )

    def own_time(self, aligned: pl.DataFrame, column: str) -> pl.Expr:
        """Return an expression that brings aligned time `column` of a table made by `align` into its rank's clock."""
        since = pl.col(column) - pl.col("base_unix_ns") - pl.col("offset_ns") - pl.col("t0_ns")
        assert {"drift_ppm", "t0_ns"} <= set(aligned.columns)  # noqa: S101 - a promise to the caller
        drift = pl.col("drift_ppm") * 1e-6
        return since - (since * (drift / (1 + drift))).round().cast(pl.Int64) + pl.col("t0_ns")


def solve(samples: pl.DataFrame, hosts: pl.DataFrame) -> Clocks:
    """Return the clocks that explain the ends best.

    `samples` is SAMPLE_SCHEMA; `hosts` has rank, host, base_unix_ns (null counts as 0) for every rank, sorted by rank.
    """
    known = hosts.with_columns(base_unix_ns=pl.col("base_unix_ns").fill_null(0))
    names = known["host"].unique(maintain_order=True).to_list()
    number = {name: index for index, name in enumerate(names)}
    host_of = pl.DataFrame(
        {"rank": known["rank"], "h": [number[name] for name in known["host"]], "base": known["base_unix_ns"]},
        schema={"rank": pl.Int32, "h": pl.Int64, "base": pl.Int64},
    )
    placed = samples.join(host_of, on="rank", how="inner").filter(pl.col("h").n_unique().over("instance") > 1)
    placed = placed.sort("instance", "rank")
    fits, notes = _fit(placed, len(names))
    rows = []
    for rank, name, base in known.select("rank", "host", "base_unix_ns").iter_rows():
        fit = fits[number[name]]
        # t0 is absolute in the fit and belongs to the rank's own clock in the table
        rows.append({"rank": rank, "host": name, "base_unix_ns": base, **fit, "t0_ns": fit["t0_ns"] - base})
    return Clocks(pl.DataFrame(rows, schema=RANKS_SCHEMA), tuple(notes))


@dataclass(frozen=True)
class _Ends:
    """The observed ends as columns: time since the first, host, instance and kind of each; all of one length."""

    z_ns: Floats
    host: Ints
    instance: Ints
    kind: Ints
    hosts: int
    with_drift: bool

    @property
    def unknowns(self) -> int:
        """Offsets, then drifts."""
        return 2 * self.hosts if self.with_drift else self.hosts

    @property
    def scale_ns(self) -> float:
        """Unit of x, so that the normal equations stay well conditioned."""
        return max(float(self.z_ns.max()), 1.0)

    def columns(self) -> list[tuple[Ints, Floats]]:
        """Return the design matrix by its non-zero columns: (unknown, factor) of each end."""
        x = self.z_ns / self.scale_ns
        offset = (self.host, np.ones_like(x))
        return [offset, (self.host + self.hosts, x)] if self.with_drift else [offset]


def _fit(placed: pl.DataFrame, hosts: int) -> tuple[list[dict[str, int | float]], list[str]]:
    """Return offset, drift, t0, residuals, samples and component of each host."""
    h = placed["h"].to_numpy()
    component = _components(h, placed["instance"].to_numpy(), hosts)
    still = {"offset_ns": 0, "drift_ppm": 0.0, "t0_ns": 0, "residual_p50_ns": 0, "residual_p95_ns": 0, "samples": 0}
    fits: list[dict[str, int | float]] = [{**still, "component": int(component[index])} for index in range(hosts)]
    if not placed.height:
        return fits, []
    absolute = (placed["end_ns"] + placed["base"]).to_numpy()
    origin = int(absolute.min())
    z = (absolute - origin).astype(np.float64)
    kinds, kind_names = _kinds(placed)
    span = float(z.max())
    fewest = min(np.count_nonzero(z < span / 3), np.count_nonzero(z > span * 2 / 3))
    ends = _Ends(
        z_ns=z,
        host=h,
        instance=np.unique(placed["instance"].to_numpy(), return_inverse=True)[1],
        kind=kinds,
        hosts=hosts,
        with_drift=bool(span >= _DRIFT_SPAN_NS and fewest >= _DRIFT_EVENTS),
    )
    offset, drift, residual, refused = _robust(ends, component)
    for index, fit in enumerate(fits):
        mine = np.abs(residual[h == index])
        if mine.size:
            # z = E + a + b·z: a clock that is ahead by a must be set back by a
            fit |= {
                "offset_ns": -round(float(offset[index])),
                "drift_ppm": -float(drift[index]) * 1e6,
                "t0_ns": origin,
                "residual_p50_ns": round(float(np.median(mine))),
                "residual_p95_ns": round(float(np.quantile(mine, 0.95))),
                "samples": int(mine.size),
            }
    notes = [f"{kind_names[kind]}: its ends scatter too much to align clocks; not used" for kind in refused]
    if not ends.with_drift:
        notes.append("the traces span too little time to tell drift from offset: offsets only")
    return fits, notes


def _kinds(placed: pl.DataFrame) -> tuple[Ints, list[str]]:
    keys = placed.select("op", "size").unique().sort("op", "size").with_row_index("kind")
    kinds = placed.join(keys, on=["op", "size"], how="left", maintain_order="left", nulls_equal=True)["kind"]
    names = [f"{op} of {size} ranks" for op, size in keys.select("op", "size").iter_rows()]
    return kinds.to_numpy().astype(np.int64), names


def _components(h: Ints, instance: Ints, hosts: int) -> Ints:
    """Return the component of each host: hosts joined by a collective share one, numbered by their lowest host."""
    parent = np.arange(hosts)
    order = np.argsort(instance, kind="stable")
    same = instance[order][1:] == instance[order][:-1]
    links = np.unique(np.sort(np.stack([h[order][1:][same], h[order][:-1][same]], axis=1), axis=1), axis=0)
    for _ in range(hosts):
        low = parent.copy()
        for a, b in links:  # one row a pair of hosts that ever met
            low[a] = low[b] = min(low[a], low[b])
        if np.array_equal(low, parent):
            break
        parent = low
    return np.unique(parent, return_inverse=True)[1].astype(np.int64)


def _robust(ends: _Ends, component: Ints) -> tuple[Floats, Floats, Floats, list[int]]:
    """Huber's iteratively reweighted least squares; returns offset, drift, residuals and the kinds left out."""
    hosts = ends.hosts
    reference = np.array([np.flatnonzero(component == part)[0] for part in range(component.max() + 1)])
    fixed = np.concatenate([reference, reference + hosts]) if ends.with_drift else reference
    free = np.setdiff1d(np.arange(ends.unknowns), fixed)
    scales = np.array(
        [
            _scales(ends, _fitted(ends, free, np.where(ends.kind == kind, 1.0, _NEXT_TO_NOTHING))[1])[kind]
            for kind in range(ends.kind.max() + 1)
        ]
    )
    refused = [int(kind) for kind in np.flatnonzero(scales > _REFUSE_FACTOR * scales.min())]
    allowed = np.where(np.isin(ends.kind, refused), _NEXT_TO_NOTHING, 1.0)
    solution, residual = _fitted(ends, free, allowed)
    for _ in range(_ROUNDS):
        scales = _scales(ends, residual)
        weight = 1.0 / np.maximum(1.0, np.abs(residual) / (2.0 * scales[ends.kind]))
        before = solution
        solution, residual = _fitted(ends, free, weight * allowed)
        if float(np.abs(solution - before).max()) < _CONVERGED_NS:
            break
    drift = solution[hosts:] / ends.scale_ns if ends.with_drift else np.zeros(hosts)
    return solution[:hosts], drift, residual, refused


def _fitted(ends: _Ends, free: Ints, weight: Floats) -> tuple[Floats, Floats]:
    """Return the weighted least-squares solution, 0 where not free, and every end's residual."""
    normal, right = _normal_equations(ends, weight)
    solution = np.zeros(ends.unknowns)
    solution[free] = np.linalg.lstsq(normal[np.ix_(free, free)], right[free], rcond=None)[0]
    predicted = sum((solution[unknown] * factor for unknown, factor in ends.columns()), np.zeros_like(ends.z_ns))
    centred = ends.z_ns - predicted
    total = np.bincount(ends.instance, weight)
    mean = np.bincount(ends.instance, weight * centred) / np.where(total > 0, total, 1.0)
    return solution, centred - mean[ends.instance]


def _scales(ends: _Ends, residual: Floats) -> Floats:
    """Return the robust scale of each kind's residuals, ns."""
    spread = [1.4826 * np.median(np.abs(residual[ends.kind == kind])) for kind in range(ends.kind.max() + 1)]
    scales: Floats = np.maximum(np.array(spread), 1.0)
    return scales


def _normal_equations(ends: _Ends, weight: Floats) -> tuple[Floats, Floats]:
    """Accumulate AᵀWA and AᵀWz with every instance's true end eliminated, in blocks of instances."""
    unknowns = ends.unknowns
    normal, right = np.zeros((unknowns, unknowns)), np.zeros(unknowns)
    columns = ends.columns()
    for unknown, factor in columns:
        right += np.bincount(unknown, weight * factor * ends.z_ns, minlength=unknowns)
        for other, other_factor in columns:
            np.add.at(normal, (unknown, other), weight * factor * other_factor)
    total = np.bincount(ends.instance, weight)
    order = np.argsort(ends.instance, kind="stable")
    starts = np.searchsorted(ends.instance[order], np.arange(0, len(total) + _BLOCK, _BLOCK))
    for number, (first, last) in enumerate(itertools.pairwise(starts.tolist())):
        here = order[first:last]
        row = ends.instance[here] - number * _BLOCK
        size = min(_BLOCK, len(total) - number * _BLOCK)
        design = np.zeros((size, unknowns))
        for unknown, factor in columns:
            np.add.at(design, (row, unknown[here]), weight[here] * factor[here])
        sums = np.bincount(row, weight[here] * ends.z_ns[here], minlength=size)
        weights = total[number * _BLOCK : number * _BLOCK + size]
        inverse = 1.0 / np.where(weights > 0, weights, 1.0)
        normal -= design.T @ (design * inverse[:, None])
        right -= design.T @ (sums * inverse)
    return normal, right
