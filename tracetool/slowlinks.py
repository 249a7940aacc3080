"""Slow links: communicators whose data moves slower than that of their peers, and what they have in common.

Peers carry the same operation of the same size for the same role over as many ranks on as many hosts. Only transfer
counts, never waiting. A communicator (of sends and receives: a pair of ranks) is slow where its transfers together take
at least a quarter longer than at the median of its peers and even its fastest one is slower than its peers usually
are; in most steps, or, in single steps, by half and several times. Of two peers the faster one is the measure.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOWER: Final = 1.25
"""Transfer time against the peers' from which on a communicator is slow."""
_FASTEST: Final = 1.10
"""Its fastest transfer against the peers' median: less is chance."""
_SINGLE_STEP: Final = 1.5
_FEWEST: Final = 4
"""Fewer transfers than this prove nothing, unless they are slower by half, again and again."""

KIND: Final = ("role", "op", "bytes", "size", "hosts")
"""What peers have in common."""
LINK: Final = ("group_id", "low_rank", "high_rank")
"""A communicator; of sends and receives a pair of ranks."""


def compare(cells: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (links, steps): every communicator beside its peers, and the time a slow one loses in each step.

    `cells`: LINK, KIND, step, instances, transfer_ns (sum), transfer_p50_ns, transfer_min_ns; whole instances only.
    links: LINK, role, op (the one that moves longest), hosts, size, instances, peers, transfer_ns, expected_ns,
    ratio, slow_steps, steps, slow; sorted by LINK. Communicators without peers have null expected_ns and ratio.
    steps: LINK, step, lost_ns, of the slow ones, in slow steps, sorted.
    """
    whole = cells.filter(pl.col("instances") > 0)
    typical = whole.group_by(*LINK, *KIND).agg(own_ns=pl.col("transfer_p50_ns").median())
    measure = typical.group_by(KIND).agg(peers=pl.len(), expected=pl.col("own_ns").quantile(0.5, interpolation="lower"))
    beside = (
        whole.join(measure, on=KIND, how="left", nulls_equal=True)
        .filter((pl.col("peers") > 1) & (pl.col("expected") > 0))
        .with_columns(
            expected_ns=(pl.col("expected") * pl.col("instances")).round().cast(pl.Int64),
            fastest=pl.col("transfer_min_ns") / pl.col("expected"),
        )
    )
    of_step = (
        beside.group_by(*LINK, "step")
        .agg(
            pl.col("instances", "transfer_ns", "expected_ns").sum(),
            # of several sizes the largest decide: small ones are mostly latency
            fastest=(pl.col("fastest") * pl.col("expected_ns")).sum() / pl.col("expected_ns").sum(),
        )
        .with_columns(ratio=pl.col("transfer_ns") / pl.col("expected_ns"))
        .with_columns(
            slow=(pl.col("ratio") >= SLOWER) & (pl.col("fastest") >= _FASTEST),
            very=(pl.col("ratio") >= _SINGLE_STEP) & (pl.col("fastest") >= SLOWER) & (pl.col("instances") >= _FEWEST),
        )
    )
    judged = (
        of_step.group_by(LINK)
        .agg(
            compared=pl.col("instances").sum(),
            compared_ns=pl.col("transfer_ns").sum(),
            expected_ns=pl.col("expected_ns").sum(),
            steps=pl.len().cast(pl.Int64),
            slow_steps=pl.col("slow").sum().cast(pl.Int64),
            very=pl.col("very").any(),
        )
        .with_columns(ratio=pl.col("compared_ns") / pl.col("expected_ns"))
        .with_columns(
            slow=(
                (pl.col("ratio") >= SLOWER)
                & (2 * pl.col("slow_steps") > pl.col("steps"))
                & ((pl.col("compared") >= _FEWEST) | ((pl.col("ratio") >= _SINGLE_STEP) & (pl.col("slow_steps") > 1)))
            )
            | pl.col("very")
        )
    )
    links = (
        whole.sort("transfer_ns", "op", "bytes", descending=[True, False, False])
        .group_by(LINK, maintain_order=True)
        .agg(
            *(pl.col(name).first() for name in ("role", "op", "size", "hosts")),
            pl.col("instances").sum(),
            pl.col("transfer_ns").sum(),
        )
        .join(
            measure.join(typical, on=KIND, nulls_equal=True).group_by(LINK).agg(pl.col("peers").max() - 1),
            on=LINK,
            how="left",
            nulls_equal=True,
        )
        .join(judged.drop("compared"), on=LINK, how="left", nulls_equal=True)
        .with_columns(slow=pl.col("slow").fill_null(value=False))
        .sort(LINK)
    )
    lost = (
        of_step.join(
            links.filter("slow").select(*LINK, often=2 * pl.col("slow_steps") > pl.col("steps")),
            on=LINK,
            nulls_equal=True,
        )
        .filter((pl.col("slow") & pl.col("often")) | pl.col("very"))
        .select(*LINK, "step", lost_ns=pl.col("transfer_ns") - pl.col("expected_ns"))
        .sort(*LINK, "step")
    )
    return links, lost


class Place(NamedTuple):
    """One communicator: the ranks it joins, their hosts (empty: not known), and whether it is slow."""

    ranks: frozenset[int]
    hosts: frozenset[str]
    slow: bool


class Culprit(NamedTuple):
    """What slow communicators have in common: a pair of hosts, one rank's way out of its host, or just themselves."""

    kind: str
    """hosts, nic or group."""
    hosts: tuple[str, ...]
    ranks: tuple[int, ...]
    members: tuple[int, ...]
    """Row numbers of the communicators it explains."""


def locate(places: Sequence[Place]) -> list[Culprit]:
    """Return the culprits behind the slow communicators; each slow one is explained exactly once.

    Several slow communicators that cross hosts are put down to one pair of hosts, or to the NIC of one rank, when that
    alone is in all of them and in no healthy one that crosses hosts. Else each stands for itself: the group is named.
    """
    slow = [number for number, place in enumerate(places) if place.slow]
    crossing = [number for number in slow if len(places[number].hosts) > 1]
    found: list[Culprit] = []
    if len(crossing) > 1:
        healthy = [place for place in places if not place.slow and len(place.hosts) > 1]
        pairs = set.intersection(*(_pairs(places[number].hosts) for number in crossing))
        pairs -= {pair for place in healthy for pair in _pairs(place.hosts)}
        ranks = set(frozenset.intersection(*(places[number].ranks for number in crossing)))
        ranks -= {rank for place in healthy for rank in place.ranks}
        if len(ranks) == 1:
            found = [Culprit("nic", (), tuple(ranks), tuple(crossing))]
        elif len(pairs) == 1:
            everyone = frozenset[int]().union(*(places[number].ranks for number in crossing))
            found = [Culprit("hosts", pairs.pop(), tuple(sorted(everyone)), tuple(crossing))]
    explained = {number for culprit in found for number in culprit.members}
    for number in slow:
        if number not in explained:
            place = places[number]
            found.append(Culprit("group", tuple(sorted(place.hosts)), tuple(sorted(place.ranks)), (number,)))
    return found


def _pairs(hosts: frozenset[str]) -> set[tuple[str, ...]]:
    return set(combinations(sorted(hosts), 2))
