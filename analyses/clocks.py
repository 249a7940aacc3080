"""Clocks: how far the ranks' clocks are apart, and how well that is known.

aligned = t + base_unix_ns + offset_ns + round(drift_ppm·1e-6·(t − t0_ns)), t in the rank's own clock. Ranks of one
host share one clock. Offset and drift of every host are fitted, robustly, to the ends of all_reduce, all_gather and
reduce_scatter over several hosts: their members leave together. A drift is told from one second of trace on, where a
host's ends lie at both ends of it and fix it to 20 µs over the span; else offsets only. The reference of each component
is its lowest rank's host.

basis: reference; collectives; offset (collectives, no drift); p2p (only sends and receives join it to the others: the
middle of what causality allows, ± half_width_ns, confidence low); alone (nothing joins it: its times are compared with
nobody's). residual_p50_ns, residual_p95_ns: |end − mean end of the collective| after the fit. error_ns: standard error
of the offset. violated: collectives that a member left before another had come, and receives that ended before their
send began, by the files' clocks and after alignment. Waiting and transfer of symmetric collectives need no common clock
and do not depend on any of this. A constant lateness of one host's ends cannot be told from an offset.

Source: tracetool's own definition; least squares with the true ends eliminated and Huber's weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.results import Chart, Headline, Result, Value, skipped
from tracetool.units import scale

if TYPE_CHECKING:
    from tracetool.registry import RunView
    from tracetool.settings import Settings
    from tracetool.tables import Tables

TITLE: Final = "Clocks of the ranks"
NEEDS: Final = ("comm",)

RANKS: Final = (
    "rank", "host", "offset_ns", "drift_ppm", "t0_ns", "residual_p50_ns", "residual_p95_ns", "samples", "error_ns",
    "half_width_ns", "component", "basis",
)  # fmt: skip
_FAR_NS: Final = 1_000_000


def analyze(_parts: Tables, run: RunView, _settings: Settings) -> Result:
    """Show the clocks that the join found."""
    clocks = run.joined.get("clocks")
    if clocks is None and run.ranks.height > 1:
        return skipped(
            "no communication of several ranks could be matched, and nothing else brings their clocks together: times "
            "are not compared across ranks. Record with PyTorch 2.4 or later, which writes the group of every NCCL "
            "kernel."
        )
    if clocks is None or clocks.height < 2:  # noqa: PLR2004 - one clock needs no other
        return skipped("one rank has one clock; clocks are compared when several ranks that communicate were traced.")
    table = clocks.select(RANKS).sort("rank")
    checks, kinds = run.joined["clock_checks"].row(0, named=True), run.joined["clock_kinds"]
    hosts = table.unique("host", keep="first", maintain_order=True)
    fitted = hosts.filter(pl.col("basis").is_in(["collectives", "offset", "p2p"]))
    metrics: dict[str, Value] = {
        "hosts": hosts.height,
        "components": hosts["component"].n_unique(),
        "offset_ns_max": _largest(fitted["offset_ns"].abs()),
        "drift_ppm_max": _largest(fitted.filter(pl.col("basis") == "collectives")["drift_ppm"].abs()),
        "residual_p95_ns_max": _largest(hosts["residual_p95_ns"]),
        "half_width_ns_max": _largest(hosts["half_width_ns"]),
        "causality_checked": checks["checked"],
        "violated_before": checks["violated_before"],
        "violated_after": checks["violated_after"],
    }
    charts = []
    if hosts["residual_p95_ns"].is_not_null().any():
        charts.append(
            Chart(
                "bars", "How well each host's clock is known", "hosts", label="host", y=("residual_p95_ns",),
                note="How far ends of collectives on this host stay from the mean end after alignment (95 of 100).",
                options={"max_rows": 64},
            )
        )  # fmt: skip
    return Result(
        metrics=metrics,
        headline=[_headline(metrics)],
        tables={"ranks": table, "hosts": hosts.drop("rank"), "kinds": kinds},
        charts=charts,
        notes=_notes(hosts, kinds, metrics),
    )


def _largest(values: pl.Series) -> int | float | None:
    known = values.drop_nulls()
    return known.max() if known.len() else None  # type: ignore[return-value] # numbers only


def _headline(metrics: dict[str, Value]) -> Headline:
    residual = metrics["residual_p95_ns_max"]
    note = f"over {metrics['hosts']} hosts"
    if isinstance(residual, int):
        shown = scale([residual], "ns")
        note += f"; ends agree to {shown.number(residual)} {shown.unit} (p95)"
    return Headline("Largest clock offset", metrics["offset_ns_max"], "ns", 60, note)


def _notes(hosts: pl.DataFrame, kinds: pl.DataFrame, metrics: dict[str, Value]) -> list[str]:
    notes = []
    if hosts.height == 1:
        notes.append("All ranks are on one host and share its clock.")
    components, alone = metrics["components"], hosts.filter(pl.col("basis") == "alone").height
    if isinstance(components, int) and components > 1:
        notes.append(
            f"{components} groups of hosts share no communication that could bring their clocks together"
            f"{f' ({alone} hosts stand alone)' if alone else ''}: times are not comparable across them."
        )
    if (p2p := hosts.filter(pl.col("basis") == "p2p")).height:
        notes.append(
            f"{p2p.height} hosts are joined by sends and receives only: offsets are the middle of what causality "
            f"allows, up to ± {int(p2p['half_width_ns'].max()) / 1000:.0f} µs off; confidence low."  # type: ignore[arg-type] # not empty
        )
    if kinds.height and not kinds["used"].all():
        refused = ", ".join(
            f"{op} of {size} ranks" for op, size in kinds.filter(~pl.col("used")).select("op", "size").iter_rows()
        )
        notes.append(f"Not used, their ends scatter too much (a wrong group?): {refused}.")
    checked, before, after = (metrics[name] for name in ("causality_checked", "violated_before", "violated_after"))
    if checked:
        notes.append(
            f"Causality: {before} of {checked} communications across hosts were impossible by the files' clocks, "
            f"{after} after alignment."
        )
    if hosts.height > 1 and checked:
        notes.append("A constant lateness of one host's ends looks exactly like an offset and is counted as one.")
    return notes
