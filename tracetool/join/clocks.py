"""Bringing ranks' clocks together: offset and drift of every host from when collectives end.

Members of a collective leave it together, so ends align clocks while starts measure lateness. Each end that crosses
hosts is observed as z = E + a_h + b_h·x + noise: E the collective's true end, a the offset and b the drift of host h,
x the time since its first use. E is eliminated by the weighted mean of its members (Schur complement), the normal
equations of all hosts are solved directly, and outliers are weighed down by Huber's rule with a scale for each
(operation, group size): w = 1 / max(1, |r| / 2s), s = 1.4826 · median |r|. Ranks of one host share one clock. Hosts
that no collective connects are joined through what sends and receives prove (join/bounds), or never compared.

aligned = t + base_unix_ns + offset_ns + round(drift_ppm·1e-6·(t − t0_ns)); the lowest rank's host of each component is
the reference, with offset and drift 0. A constant lateness of one host's ends looks exactly like an offset.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Final

import numpy as np
import polars as pl

from tracetool.join.bounds import PAIR_SCHEMA, Joined, bounds
from tracetool.join.fit import Ends, Ints, components, robust

__all__ = ["PAIR_SCHEMA", "RANKS_SCHEMA", "SAMPLE_SCHEMA", "Clocks", "solve"]

_DRIFT_SPAN_NS: Final = 1_000_000_000
"""Shorter than this, drift cannot be told from offset and is left at 0."""
_DRIFT_EVENTS: Final = 4
"""Ends of a host in the first and in the last third of the span that a drift needs at least."""
_DRIFT_ERROR_NS: Final = 20_000
"""A drift that is not known to this over the whole span is not used: an offset alone is then the safer answer."""
_GROUP_BITS: Final = 40
"""The group's number stands above these bits of an instance."""

SAMPLE_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "rank": pl.Int32,
    "instance": pl.Int64,
    "op": pl.String,
    "size": pl.Int32,
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
}
"""Starts and ends of symmetric collectives, in the ranks' own clocks; `instance` unique over all groups."""

RANKS_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "rank": pl.Int32,
    "host": pl.String,
    "offset_ns": pl.Int64,
    "drift_ppm": pl.Float64,
    "t0_ns": pl.Int64,
    "residual_p50_ns": pl.Int64,
    "residual_p95_ns": pl.Int64,
    "samples": pl.Int64,
    "error_ns": pl.Int64,
    "half_width_ns": pl.Int64,
    "component": pl.Int32,
    "basis": pl.String,
    "base_unix_ns": pl.Int64,
}
"""One row a rank. error_ns: standard error of the offset by the fit; half_width_ns: where only sends and receives
join it, how far off it may be; basis: reference, collectives, offset (collectives, drift not told), p2p or alone."""


@dataclass(frozen=True)
class Clocks:
    """The clock of every rank, and what had to be said while finding it."""

    ranks: pl.DataFrame
    """RANKS_SCHEMA, sorted by rank; a host nothing connects is a component of its own."""
    notes: tuple[str, ...]
    checked: int = 0
    """Collectives and pairs across hosts whose causality was checked."""
    violated_before: int = 0
    """How many ended before a member had started, or were received before sent, by the files' own clocks."""
    violated_after: int = 0
    """The same on aligned clocks."""
    kinds: pl.DataFrame = field(default_factory=pl.DataFrame)
    """One row an (op, size) whose ends were looked at: scale_ns of its residuals, ends, and whether it was used."""

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


def solve(samples: pl.DataFrame, hosts: pl.DataFrame, pairs: pl.DataFrame | None = None) -> Clocks:
    """Return the clocks that explain the ends best.

    `samples` is SAMPLE_SCHEMA; `pairs` is PAIR_SCHEMA; `hosts` has rank, host, base_unix_ns (null counts as 0) for
    every rank, sorted by rank.
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
    fits, kinds, notes = _fit(placed, len(names))
    messages = _across(pl.DataFrame(schema=PAIR_SCHEMA) if pairs is None else pairs, host_of)
    by_collectives = _table(known, number, fits)
    moves, said = bounds(_sent_and_received(by_collectives, messages), max(fit.component for fit in fits) + 1)
    fits = [_moved(fit, moves[fit.component]) for fit in fits]
    by_all = _table(known, number, _renumbered(fits))
    return Clocks(
        by_all.ranks,
        (*notes, *said),
        checked=placed["instance"].n_unique() + messages.height,
        violated_before=_violated(Clocks(_still(by_all.ranks), ()), placed, messages),
        violated_after=_violated(by_all, placed, messages),
        kinds=kinds,
    )


@dataclass(frozen=True)
class _Fit:
    """The clock of one host as a row of RANKS_SCHEMA; origin_ns is the Unix time of t0, None where there is none."""

    component: int
    offset_ns: int = 0
    drift_ppm: float = 0.0
    origin_ns: int | None = None
    residual_p50_ns: int | None = None
    residual_p95_ns: int | None = None
    samples: int = 0
    error_ns: int | None = None
    half_width_ns: int = 0
    basis: str = "alone"


def _moved(fit: _Fit, move: Joined) -> _Fit:
    if move.component == fit.component:
        return fit
    return replace(
        fit,
        component=move.component,
        offset_ns=fit.offset_ns + move.shift_ns,
        half_width_ns=move.half_width_ns,
        basis="p2p",
    )


def _renumbered(fits: list[_Fit]) -> list[_Fit]:
    """Return the fits with components numbered by their lowest host, which is the reference of those with more."""
    order = {component: place for place, component in enumerate(dict.fromkeys(fit.component for fit in fits))}
    shared = {component for component in order if sum(fit.component == component for fit in fits) > 1}
    seen: set[int] = set()
    answer = []
    for fit in fits:
        first = fit.component in shared and fit.component not in seen
        seen.add(fit.component)
        answer.append(replace(fit, component=order[fit.component], basis="reference" if first else fit.basis))
    return answer


def _table(known: pl.DataFrame, number: dict[str, int], fits: list[_Fit]) -> Clocks:
    rows = []
    for rank, name, base in known.select("rank", "host", "base_unix_ns").iter_rows():
        fit = fits[number[name]]
        own = {key: value for key, value in asdict(fit).items() if key != "origin_ns"}
        # the origin is absolute in the fit and belongs to the rank's own clock in the table
        t0 = 0 if fit.origin_ns is None else fit.origin_ns - base
        rows.append({"rank": rank, "host": name, "base_unix_ns": base, "t0_ns": t0, **own})
    return Clocks(pl.DataFrame(rows, schema=RANKS_SCHEMA), ())


def _still(ranks: pl.DataFrame) -> pl.DataFrame:
    """Return the clocks as the files have them: nothing corrected."""
    return ranks.with_columns(offset_ns=pl.lit(0, pl.Int64), drift_ppm=pl.lit(0.0))


def _across(pairs: pl.DataFrame, host_of: pl.DataFrame) -> pl.DataFrame:
    """Return the pairs whose two ranks are on different hosts, their times in the ranks' own clocks."""
    sources = host_of.select(source="rank", source_host="h", source_base="base")
    targets = host_of.select(target="rank", target_host="h", target_base="base")
    return (
        pairs.join(sources, on="source", how="inner", maintain_order="left")
        .join(targets, on="target", how="inner", maintain_order="left")
        .filter(pl.col("source_host") != pl.col("target_host"))
        .select(
            "source",
            "target",
            sent_ns=pl.col("send_start_unix_ns") - pl.col("source_base"),
            received_ns=pl.col("recv_end_unix_ns") - pl.col("target_base"),
        )
    )


def _sent_and_received(clocks: Clocks, messages: pl.DataFrame) -> pl.DataFrame:
    """Return sent_ns and received_ns of each message aligned, with the component of both sides."""
    sent = clocks.align(messages.select("sent_ns", rank="source"), "sent_ns")
    received = clocks.align(messages.select("received_ns", rank="target"), "received_ns")
    return pl.DataFrame(
        {
            "source_component": sent["component"],
            "target_component": received["component"],
            "sent_ns": sent["aligned_ns"],
            "received_ns": received["aligned_ns"],
        }
    )


def _violated(clocks: Clocks, placed: pl.DataFrame, messages: pl.DataFrame) -> int:
    """Count collectives that a member left before another had come, and receives that ended before the send began."""
    started = clocks.align(placed, "start_ns")
    ended = clocks.align(placed, "end_ns")
    ends = pl.DataFrame({"instance": placed["instance"], "start": started["aligned_ns"], "end": ended["aligned_ns"]})
    left_early = ends.group_by("instance").agg(broken=pl.col("end").min() < pl.col("start").max())
    both = _sent_and_received(clocks, messages)
    early = both.filter(
        (pl.col("source_component") == pl.col("target_component")) & (pl.col("received_ns") < pl.col("sent_ns"))
    )
    return int(left_early["broken"].sum()) + early.height


def _fit(placed: pl.DataFrame, hosts: int) -> tuple[list[_Fit], pl.DataFrame, list[str]]:
    """Return the clock of each host by collectives alone, the kinds of ends looked at, and sentences."""
    h = placed["h"].to_numpy()
    component = components(h, placed["instance"].to_numpy(), hosts)
    fits = [_Fit(int(component[index])) for index in range(hosts)]
    kinds, kind_table = _kinds(placed)
    if not placed.height:
        return fits, kind_table.with_columns(scale_ns=pl.lit(None, pl.Int64), used=pl.lit(True)), []
    absolute = (placed["end_ns"] + placed["base"]).to_numpy()
    origin = int(absolute.min())
    z = (absolute - origin).astype(np.float64)
    span = float(z.max())
    early = np.bincount(h[z < span / 3], minlength=hosts)
    late = np.bincount(h[z > span * 2 / 3], minlength=hosts)
    long_enough = span >= _DRIFT_SPAN_NS
    ends = Ends(
        z_ns=z,
        host=h,
        instance=np.unique(placed["instance"].to_numpy(), return_inverse=True)[1].astype(np.int64),
        group=placed["instance"].to_numpy() >> _GROUP_BITS,
        kind=kinds,
        hosts=hosts,
        drifting=(np.minimum(early, late) >= _DRIFT_EVENTS) & long_enough,
    )
    solution = robust(ends, component)
    unsure = ends.drifting & (solution.drift_error_ns > _DRIFT_ERROR_NS)
    if unsure.any():
        ends = replace(ends, drifting=ends.drifting & ~unsure)
        solution = robust(ends, component)
    for index in range(hosts):
        mine = np.abs(solution.residual[h == index])
        if mine.size:
            drift = bool(ends.drifting[index])
            # z = E + a + b·z: a clock that is ahead by a must be set back by a
            fits[index] = replace(
                fits[index],
                offset_ns=-round(float(solution.offset[index])),
                drift_ppm=0.0 - float(solution.drift[index]) * 1e6,
                origin_ns=origin,
                residual_p50_ns=round(float(np.median(mine))),
                residual_p95_ns=round(float(np.quantile(mine, 0.95))),
                samples=int(mine.size),
                error_ns=round(float(solution.error_ns[index])),
                basis="collectives" if drift else "offset",
            )
    refused = set(solution.refused)
    told = kind_table.with_columns(
        scale_ns=pl.Series(np.round(solution.scales), dtype=pl.Int64),
        used=pl.Series([kind not in refused for kind in range(kind_table.height)]),
    )
    notes = [
        f"{op} of {size} ranks: its ends scatter too much to align clocks (a wrong group?); not used"
        for op, size in told.filter(~pl.col("used")).select("op", "size").iter_rows()
    ]
    if not long_enough:
        notes.append("the traces span too little time to tell drift from offset: offsets only")
    elif not ends.drifting.all():
        few = int(np.count_nonzero(~ends.drifting & (np.bincount(h, minlength=hosts) > 0)))
        notes += (
            [f"{few} hosts took part in too few collectives across hosts to tell their drift: offsets only"]
            if few
            else []
        )
    return fits, told, notes


def _kinds(placed: pl.DataFrame) -> tuple[Ints, pl.DataFrame]:
    keys = placed.group_by("op", "size").agg(ends=pl.len().cast(pl.Int64)).sort("op", "size")
    numbered = keys.with_row_index("kind")
    kinds = placed.join(numbered, on=["op", "size"], how="left", maintain_order="left", nulls_equal=True)["kind"]
    return kinds.to_numpy().astype(np.int64), keys
