"""Why a job stands still: culprits, class and how sure that is, from what its ranks say of themselves.

1. Members that called one operation with different arguments: the mismatch is the cause.
2. Else the wait-for graph. For each rank, group and kind (collective, or send and receive) the oldest operation
   in flight waits for every member that has not launched it, or still has an earlier one of the group in flight; a
   send or receive waits for its peer until that has posted the other side. A rank whose earlier operation its
   peers have completed is stuck in that one, and what it launched later proves nothing.
3. What the graph ends in is the cause. One rank with nothing of its own in flight: it never launched. One rank in
   an operation that others have completed: it is stuck inside. A rank without a dump: unknown, unless that is all
   there is. Several ranks that wait for each other: a deadlock; of those that launched two groups' operations, the
   ones in the rarer order. Ranks that are all inside the same operation: nobody is to blame, look at the network.
4. A launch that came half a timeout after the others' is a rank that did not come in time.

An operation in flight for less than a tenth of its timeout is no hang.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import polars as pl

from tracetool.join.edges import all_edges, prune, stuck_operations
from tracetool.join.hangstate import rank_text
from tracetool.join.mismatch import mismatches
from tracetool.join.waitfor import PROVEN, Edge, minority, terminals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tracetool.join.hangstate import Operation, State
    from tracetool.join.mismatch import Mismatch
    from tracetool.results import Confidence

Cause = Literal[
    "never_launched", "stuck_in_collective", "mismatched_arguments", "deadlock", "no_dump", "all_inside", "none",
    "unknown",
]  # fmt: skip
_YOUNG: Final = 0.1
_TIMEOUT_NS: Final = 600_000_000_000
"""NCCL's default in torch, for dumps that do not tell (before 2.5)."""
_LATE: Final = 0.5
_FEW: Final = 2
_COPIED: Final = 3


@dataclass(frozen=True)
class Diagnosis:
    """The verdict and what it rests on."""

    cause: Cause
    culprits: tuple[int, ...]
    confidence: Confidence
    why: tuple[str, ...]
    """Reasons for the confidence, a sentence each."""
    operation: Operation | None
    """The operation that most ranks wait in for the culprits; for a stuck rank the one it is stuck in."""
    edges: tuple[Edge, ...]
    mismatch: Mismatch | None = None


def diagnose(state: State, file_unix_ns: Mapping[int, int]) -> Diagnosis:
    """Find the cause; `file_unix_ns` is when each rank's dump was written."""
    stuck = stuck_operations(state)
    edges = prune(all_edges(state), stuck, state)
    missing = tuple(sorted(set(state.world) - state.known))
    if not _anything_in_flight(state):
        rest = (f"{len(missing)} of {len(state.world)} ranks left none.",) if missing else ()
        nothing = ("No operation is in flight on any rank that left a dump.", *rest)
        return Diagnosis("none", (), "medium" if missing else "high", nothing, None, ())
    age = _oldest_age(state, file_unix_ns)
    young = age is not None and age < _YOUNG
    found = mismatches(state)
    if found:
        return _mismatched(found[0], edges)
    if young:
        gone = [part[0] for part in terminals(edges) if len(part) == 1 and part[0] in missing]
        if gone:  # ranks that crash take the others along at once
            return _doubted(_unproven(state, gone, edges, dumped=False), state, age)
        share = f"{100 * (age or 0):.1f} %" if age else "0 %"
        reason = f"The oldest operation in flight had waited {share} of its timeout when it was dumped."
        return Diagnosis("none", (), "medium" if missing else "high", (reason,), None, edges)
    return _doubted(_from_graph(state, edges, stuck, missing), state, age)


def several_jobs(jobs: Sequence[str]) -> Diagnosis:
    """Return the verdict over dumps of several jobs: none."""
    told = "; ".join(jobs[:_FEW]) + (f"; and {len(jobs) - _FEW} more" if len(jobs) > _FEW else "")
    return Diagnosis("unknown", (), "low", (f"Not one job: {told}.",), None, ())


def beside_older(verdict: Diagnosis, older: tuple[str, ...]) -> Diagnosis:
    """Add what was left aside; that it is older and not another job's is an assumption, so never high confidence."""
    if not older:
        return verdict
    confidence: Confidence = "medium" if verdict.confidence == "high" else verdict.confidence
    return replace(verdict, confidence=confidence, why=(*verdict.why, *older))


def _doubted(verdict: Diagnosis, state: State, age: float | None) -> Diagnosis:
    """Lower the confidence of a verdict where buffers lost records or the files' times leave the hang open."""
    if state.lossy:
        lost = f"The ring buffers of ranks {rank_text(state.lossy)} lost operations in flight."
        blank = verdict.cause == "all_inside"
        return replace(verdict, cause="unknown" if blank else verdict.cause, confidence="low", why=(*verdict.why, lost))
    group = state.groups[verdict.operation[0]] if verdict.operation else None
    if group and not group.listed and group.ranks != state.world and verdict.culprits:
        doubt = f"No source lists the ranks of group {group.name}: they were put together from who told of it."
        verdict = replace(verdict, confidence="low", why=(*verdict.why, doubt))
    if age is not None and age < _YOUNG:
        doubt = "The operations in flight are far younger than their timeout."
        return replace(verdict, confidence="low", why=(*verdict.why, doubt))
    if age is None and verdict.confidence == "high":
        doubt = "The files' times do not tell how long the operations had waited: that they hung was taken as given."
        return replace(verdict, confidence="medium", why=(*verdict.why, doubt))
    return verdict


# ---- the verdict ----


def _anything_in_flight(state: State) -> bool:
    return any(
        lane.oldest is not None for side in (state.lanes, state.p2p) for by in side.values() for lane in by.values()
    )


def _oldest_age(state: State, file_unix_ns: Mapping[int, int]) -> float | None:
    """Return the largest age of an operation in flight, in its timeouts; None when it cannot be told.

    A file that is older than its records, or younger by more than three timeouts, has the time of a copy.
    """
    rows = state.ops.filter("in_flight").select(
        "rank", "created_unix_ns", timeout_ns=pl.col("timeout_ns").fill_null(_TIMEOUT_NS)
    )
    if rows.is_empty() or rows["created_unix_ns"].null_count():
        return None
    written = rows["rank"].replace_strict(dict(file_unix_ns), default=None, return_dtype=pl.Int64)
    ages = rows.select(age=(written - pl.col("created_unix_ns")) / pl.col("timeout_ns"))["age"]
    if ages.null_count() or bool((ages < 0).any()) or bool((ages > _COPIED).all()):
        return None
    return float(ages.max())  # type: ignore[arg-type] # polars types max() as any literal


def _mismatched(found: Mismatch, edges: tuple[Edge, ...]) -> Diagnosis:
    sides = "; ".join(f"{rank_text(ranks)}: {called}" for called, ranks in found.sides[:3])
    why = [f"Called at the same number: {sides}."]
    confidence: Confidence = "high" if found.clear else "medium"
    if found.tie:
        confidence = "low"
        why.append("The sides are equally large: which of them is wrong cannot be told.")
    operation = (found.group, False, found.number)
    return Diagnosis("mismatched_arguments", found.culprits, confidence, tuple(why), operation, edges, found)


def _from_graph(
    state: State, edges: tuple[Edge, ...], stuck: Mapping[int, tuple[Operation, ...]], missing: tuple[int, ...]
) -> Diagnosis:
    """Read the cause off what the graph ends in."""
    ends = terminals(edges)
    single = [part[0] for part in ends if len(part) == 1]
    waiting = {edge.waiter for edge in edges}
    inside = sorted({rank for rank in single if rank in stuck} | (stuck.keys() - waiting))
    proven = {edge.target for edge in edges if edge.why in PROVEN}
    away = [r for r in single if r in state.known and r not in stuck and not _flying(state, r)]
    away = [rank for rank in away if rank in proven or rank in state.idle]
    gone = [rank for rank in single if rank in missing]
    if gone and not any(_left_behind(state, edges, stuck, rank) for rank in inside):
        inside = []  # dumps are snapshots: a peer's may just have been written a moment later
    if inside or away:
        return _blame(state, sorted({*inside, *away}), edges, stuck=stuck, missing=missing)
    if cycles := [part for part in ends if len(part) > 1]:
        return _deadlock(state, max(cycles, key=len), edges)
    silent = [rank for rank in single if rank in state.known and rank not in stuck and not _flying(state, rank)]
    if gone or silent:
        return _unproven(state, gone or silent, edges, dumped=not gone, stuck=bool(stuck))
    return _all_inside(state, edges, missing)


def _flying(state: State, rank: int) -> bool:
    return any(
        lane is not None and lane.oldest is not None
        for side in (state.lanes, state.p2p)
        for lane in (by.get(rank) for by in side.values())
    )


def _left_behind(state: State, edges: Iterable[Edge], stuck: Mapping[int, tuple[Operation, ...]], rank: int) -> bool:
    """Say whether peers provably went on after the operation that `rank` is stuck in."""
    group, _, number = stuck[rank][0]
    waited = any(edge.target == rank and edge.why == "behind" for edge in edges)
    return waited or any((lane.newest or 0) > number for q, lane in state.lanes[group].items() if q != rank)


def _blame(
    state: State,
    culprits: Sequence[int],
    edges: tuple[Edge, ...],
    *,
    stuck: Mapping[int, tuple[Operation, ...]],
    missing: Sequence[int],
) -> Diagnosis:
    """Name ranks, and say how sure that is. One that is stuck inside makes the whole cause the GPUs' side."""
    cause: Cause = "stuck_in_collective" if any(rank in stuck for rank in culprits) else "never_launched"
    to_them = [edge for edge in edges if edge.target in culprits]
    waiters = {edge.waiter for edge in to_them}
    operation = _first_missing(to_them, edges, culprits, state)
    if cause == "stuck_in_collective":
        own = [Edge(rank, rank, *operation, "behind") for rank in culprits for operation in stuck.get(rank, ())]
        operation = _main_operation(own, state)
        why = [f"{_many(culprits, 'still has', 'still have')} in flight what others have completed."]
    else:
        idle = (
            "Nothing of its own is in flight there" if len(culprits) == 1 else "Nothing of their own is in flight there"
        )
        why = [f"{idle}, while {len(waiters)} rank{'s wait' if len(waiters) > 1 else ' waits'}."]
    confidence: Confidence = "high"
    unsure = [
        rank for rank in culprits if not any(e.target == rank and e.why in PROVEN for e in edges) and rank not in stuck
    ]
    asked = {edge.target for edge in edges if edge.why == "no_dump"}
    if unsure:
        confidence = "medium"
        why.append(f"That {rank_text(unsure)} did not launch it follows from its counters, not from records.")
    if asked:
        confidence = "medium"
        why.append(f"Ranks {rank_text(asked)} are waited for too and left no dump: unknown.")
    if len(culprits) > max(_FEW, len(state.world) // 8):
        confidence = "low" if len(culprits) * 2 > len(state.world) else "medium"
        why.append(f"{len(culprits)} of {len(state.world)} ranks look like this: a common cause is likelier than each.")
    if missing and not asked:
        why.append(f"{len(missing)} dumps are missing, of ranks nobody waits for.")
    return Diagnosis(cause, tuple(culprits), confidence, tuple(why), operation, edges)


def _unproven(
    state: State, ranks: Sequence[int], edges: tuple[Edge, ...], *, dumped: bool, stuck: bool = False
) -> Diagnosis:
    """Name ranks of which nothing is known, if they are few and all that the others wait for.

    Those that some operation lacks alone explain what also lacks others of them. `stuck`: ranks with a dump look as
    if they had not finished what others have.
    """
    ranks = _needed(ranks, edges)
    to_them = [edge for edge in edges if edge.target in ranks]
    waiters = {edge.waiter for edge in to_them}
    operation = _first_missing(to_them, edges, ranks, state)
    few = len(ranks) <= max(1, len(state.world) // 2) and len(waiters) >= len(ranks)
    cause: Cause = "never_launched" if dumped else "no_dump"
    told = "left a log that does not say more" if dumped else "left no dump"
    waits = f"{len(waiters)} rank{'s wait' if len(waiters) > 1 else ' waits'} for"
    if not few:
        why = (f"{waits} {len(ranks)} ranks that {told}: too many to name.",)
        return Diagnosis("unknown", (), "low", why, operation, edges)
    everyone = len(ranks) == 1 and len(waiters) > 1 and not stuck
    why = (f"{waits} {'it' if len(ranks) == 1 else 'them'}; {'it' if len(ranks) == 1 else 'they'} {told}.",)
    return Diagnosis(cause, tuple(ranks), "medium" if everyone else "low", why, operation, edges)


def _needed(ranks: Sequence[int], edges: Sequence[Edge]) -> list[int]:
    """Return the ranks that operations lack alone, if these explain all that waits for any of the ranks."""
    lacking: dict[Operation, set[int]] = defaultdict(set)
    for edge in edges:
        if edge.target in ranks:
            lacking[edge.group, edge.is_p2p, edge.number].add(edge.target)
    alone = {next(iter(lack)) for lack in lacking.values() if len(lack) == 1}
    return sorted(alone) if alone and all(lack & alone for lack in lacking.values()) else list(ranks)


def _deadlock(state: State, cycle: Sequence[int], edges: tuple[Edge, ...]) -> Diagnosis:
    """Find, in a cycle, the ranks that launched two groups' operations in the rarer order."""
    within = [edge for edge in edges if edge.waiter in cycle and edge.target in cycle]
    operation = _main_operation(within, state)
    heads: dict[str, list[int]] = defaultdict(list)
    groups: dict[int, set[int]] = {}
    for rank in cycle:
        own = [edge for edge in within if edge.waiter == rank]
        head = min(own, key=lambda e: (_order(state, e), e.group, e.is_p2p, e.number))
        heads[f"{head.group} {head.is_p2p} {head.number}"].append(rank)
        groups.setdefault(head.group, set(state.groups[head.group].ranks))
    why = [f"Ranks {rank_text(cycle)} wait for each other in a circle."]
    if len(heads) == 2 and len(groups) == 2:  # noqa: PLR2004 - one order and its reverse
        both = set.intersection(*groups.values())
        sides = {head: [rank for rank in ranks if rank in both] for head, ranks in heads.items()}
        if all(sides.values()):
            culprits, tie = minority(sides)
            why.append("Two groups' operations were launched in opposite order.")
            if tie:
                why.append("As many did it one way as the other: which order is wrong cannot be told.")
            return Diagnosis("deadlock", tuple(culprits), "low" if tie else "medium", tuple(why), operation, edges)
    return Diagnosis("deadlock", tuple(cycle), "low", tuple(why), operation, edges)


def _order(state: State, edge: Edge) -> int:
    return (state.p2p if edge.is_p2p else state.lanes)[edge.group][edge.waiter].order


def _all_inside(state: State, edges: tuple[Edge, ...], missing: Sequence[int]) -> Diagnosis:
    """Say that all members have launched what does not end, unless some came late or a missing dump leaves it open."""
    late = _latecomers(state)
    if late:
        ranks, operation, seconds = late
        why = (f"They launched it {seconds:.0f} s after the others, as their clocks tell.",)
        return Diagnosis("never_launched", ranks, "medium", why, operation, edges)
    alone = sorted({edge.waiter for edge in edges if edge.why == "unmatched"})
    if alone:
        why = (f"Ranks {rank_text(alone)} wait in sends or receives whose other side nobody has launched.",)
        return Diagnosis("unknown", (), "low", why, _main_operation(edges, state), edges)
    counts: Counter[Operation] = Counter()
    for group, by_rank in state.lanes.items():
        counts.update((group, False, lane.oldest) for lane in by_rank.values() if lane.oldest is not None)
    for group, by_rank in state.p2p.items():
        counts.update((group, True, lane.oldest) for lane in by_rank.values() if lane.oldest is not None)
    operation = min(counts, key=lambda op: (-counts[op], op))
    members = state.groups[operation[0]].ranks
    if not state.groups[operation[0]].listed and members != state.world:
        return _unlisted(state, edges, operation)
    if set(members) - state.known:
        why = (f"Of the {len(members)} ranks of the group, {len(set(members) - state.known)} left no dump.",)
        return Diagnosis("unknown", (), "low", why, operation, edges)
    hidden = {group for group, _, _ in counts if not state.groups[group].listed and len(state.world) > 1}
    hidden -= {group for group in hidden if state.groups[group].ranks == state.world}
    if hidden:
        return _unlisted(state, edges, min((op for op in counts if op[0] in hidden), key=lambda op: (-counts[op], op)))
    told = ["Every member has launched it and none has completed it: the network, or all GPUs, stand still."]
    group, is_p2p, number = operation
    own = state.ops.filter(group_id=group, is_p2p=is_p2p, number=number, in_flight=True).drop_nulls("dtype")
    blank = sorted((set(members) - set(own["rank"].to_list())) | (set(members) & state.unordered))
    if blank:
        whose = "the members" if len(blank) == len(members) else f"ranks {rank_text(blank)}"
        told.append(f"Of {whose} no type, or no order of launches, is recorded: other ones would look the same.")
    return Diagnosis("all_inside", (), "low" if missing or blank else "medium", tuple(told), operation, edges)


def _unlisted(state: State, edges: tuple[Edge, ...], operation: Operation) -> Diagnosis:
    """Name the ranks that have nothing in flight while all others wait in groups whose members nobody lists."""
    waiting = {rank for side in (state.lanes, state.p2p) for by in side.values() for rank in by if _flying(state, rank)}
    rest = tuple(sorted(state.idle - waiting))
    hidden = f"No source lists the ranks of group {state.groups[operation[0]].name}"
    if rest and len(rest) <= max(1, len(state.world) // 8) and set(state.world) == waiting | set(rest):
        why = (
            f"All ranks but {rank_text(rest)} wait in some operation.",
            f"{hidden}: that they wait for it is likely.",
        )
        return Diagnosis("never_launched", rest, "low", why, operation, edges)
    return Diagnosis("unknown", (), "low", (f"{hidden}: who is missing in it cannot be told.",), operation, edges)


def _latecomers(state: State) -> tuple[tuple[int, ...], Operation, float] | None:
    """Return the few ranks that launched the operation they are all in half a timeout after the first."""
    rows = state.ops.filter(
        "in_flight", ~pl.col("is_p2p"), pl.col("place") == 0, pl.col("group_id").is_not_null()
    ).drop_nulls(["created_unix_ns", "timeout_ns"])
    found = (
        rows.with_columns(lag=pl.col("created_unix_ns") - pl.col("created_unix_ns").min().over("group_id", "number"))
        .filter(pl.col("lag") > _LATE * pl.col("timeout_ns"))
        .group_by("group_id", "number")
        .agg(pl.col("rank").sort(), pl.col("lag").min(), pl.col("created_unix_ns").min().alias("created"))
        .sort("created", "group_id", "number")
    )
    for group, number, ranks, lag, _ in found.iter_rows():
        inside = rows.filter(pl.col("group_id") == group, pl.col("number") == number).height
        if len(ranks) * 2 < inside or (inside == 2 and len(ranks) == 1):  # noqa: PLR2004 - a pair
            return tuple(ranks), (group, False, number), lag / 1e9
    return None


def _first_missing(
    to_them: Sequence[Edge], edges: Sequence[Edge], culprits: Sequence[int], state: State
) -> Operation | None:
    """Return the operation that the culprits should have launched next: no other rank lacks it.

    Of several, one that no rank launched behind another; of those a collective, the one that most ranks wait in.
    """
    lacking: dict[Operation, set[int]] = defaultdict(set)
    for edge in edges:
        lacking[edge.group, edge.is_p2p, edge.number].add(edge.target)
    alone = [edge for edge in to_them if lacking[edge.group, edge.is_p2p, edge.number] <= set(culprits)]
    by_rank: dict[int, list[Edge]] = defaultdict(list)
    for edge in alone:
        by_rank[edge.waiter].append(edge)
    later = set()
    for own in by_rank.values():
        first = min(_order(state, edge) for edge in own)
        later |= {(edge.group, edge.is_p2p, edge.number) for edge in own if _order(state, edge) > first}
    earliest = [edge for edge in alone if (edge.group, edge.is_p2p, edge.number) not in later]
    collectives = [edge for edge in earliest if not edge.is_p2p]
    return _main_operation(collectives or earliest or alone or to_them, state)


def _main_operation(edges: Sequence[Edge], state: State) -> Operation | None:
    """Return the operation that most ranks wait in, the first launched of equals."""
    counts = Counter((edge.group, edge.is_p2p, edge.number) for edge in edges)
    if not counts:
        return None
    created = {
        (group, is_p2p, number): at
        for group, is_p2p, number, at in state.ops.filter(pl.col("group_id").is_not_null())
        .group_by("group_id", "is_p2p", "number")
        .agg(pl.col("created_unix_ns").min())
        .iter_rows()
    }
    return min(counts, key=lambda op: (-counts[op], created.get(op) or 0, op))


def _many(ranks: Sequence[int], one: str, several: str) -> str:
    """Return `Rank 3 waits` or `Ranks 0-2 wait`."""
    return f"Rank {ranks[0]} {one}" if len(ranks) == 1 else f"Ranks {rank_text(ranks)} {several}"
