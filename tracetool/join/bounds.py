"""What sends and receives prove about clocks: a receive cannot end before its send has started.

Between two components of hosts a and b, messages from a to b bound the shift of b's clock from below, those from b to
a from above: shift_b − shift_a ≥ sent − received, each time in its component's clock. All bounds together are a system
of difference constraints; shortest paths give the tightest shift of every component against the first (its upper bound
u and lower bound l), and the middle (u + l) / 2 meets every constraint, because u and l do. Its half-width (u − l) / 2
is how far off it may be. Components with a bound on one side only stay apart.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import polars as pl

PAIR_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    "source": pl.Int32,
    "target": pl.Int32,
    "send_start_unix_ns": pl.Int64,
    "recv_end_unix_ns": pl.Int64,
}
"""Matched sends and receives: rank of each, Unix times by each rank's own clock."""


class Joined(NamedTuple):
    """Where a component goes: the lowest component it can be compared with, its shift, and how far off that may be."""

    component: int
    shift_ns: int
    half_width_ns: int


def bounds(messages: pl.DataFrame, components: int) -> tuple[list[Joined], list[str]]:
    """Return where each of the components goes, and sentences on what could not be.

    `messages`: source_component, target_component, sent_ns, received_ns, each time aligned within its component.
    """
    apart = [Joined(number, 0, 0) for number in range(components)]
    across = messages.filter(pl.col("source_component") != pl.col("target_component"))
    if not across.height:
        return apart, []
    tight = (
        across.group_by("source_component", "target_component")
        .agg(most=(pl.col("received_ns") - pl.col("sent_ns")).min())
        .sort("source_component", "target_component")
    )
    # distance[b, a] bounds shift_a − shift_b from above: a's message cannot have been sent after b received it
    distance = np.full((components, components), np.inf)
    np.fill_diagonal(distance, 0.0)
    for a, b, most in tight.iter_rows():
        distance[b, a] = min(distance[b, a], float(most))
    for via in range(components):
        distance = np.minimum(distance, distance[:, via, None] + distance[None, via, :])
    if (np.diagonal(distance) < 0).any():
        said = (
            "sends and receives between hosts contradict each other on any constant clock offset: hosts that only they "
            "connect are not compared"
        )
        return apart, [said]
    found, loose = list(apart), 0
    for number in range(components):
        # the lowest component that both bounds reach
        both = np.flatnonzero(np.isfinite(distance[:, number]) & np.isfinite(distance[number, :]))
        home = int(both[0])
        if home != number:
            upper, lower = distance[home, number], -distance[number, home]
            found[number] = Joined(home, round((upper + lower) / 2), round((upper - lower) / 2))
        elif (np.isfinite(distance[:number, number]) | np.isfinite(distance[number, :number])).any():
            loose += 1
    notes = []
    joined = [part for part in found if part.half_width_ns or part.shift_ns]
    if joined:
        widest = max(part.half_width_ns for part in joined)
        notes.append(
            f"the clocks of {len(joined)} hosts or groups of hosts are known only from sends and receives: to "
            f"± {widest / 1000:.0f} µs at worst, confidence low"
        )
    if loose:
        notes.append(
            f"{loose} hosts or groups of hosts exchange messages in one direction only: their clocks are not compared"
        )
    return found, notes
