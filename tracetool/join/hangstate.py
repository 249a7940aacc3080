"""What the ranks of a job that stands still say of themselves, brought together: groups, lanes, operations.

A group is its name *and* its ranks: numbers are local to a rank, and a split can use a name twice. Where no dump
lists the ranks of a group (gloo), the default group is the world and any other the ranks that recorded it. A group
known by a rank's own number (torch before 2.4) is that rank's alone: whose else it is cannot be told.

A rank's own counters (`group_status`) are believed for a group only if nobody sent or received in it, for they
count those too, and if no rank has launched more than it recorded. A rank whose dump holds no record does not say
which group a counter belongs to. Groups are created in one order, so counters and names in numerical order belong
together; that is believed if it holds for every rank whose records show it, and for at least one.

A ring buffer may lose even operations in flight: where all ranks' buffers are full of them and a counter names an
older one, the counter is right.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import polars as pl

from tracetool.commwords import LOCAL_GROUP
from tracetool.join.waitfor import Lane

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Operation = tuple[int, bool, int]
"""Group (position in State.groups), is it a send or receive, its number among those."""


@dataclass(frozen=True)
class Group:
    """One process group."""

    name: str
    desc: str | None
    ranks: tuple[int, ...]
    """In the group's own order."""
    listed: bool
    """A dump lists the ranks; else they are put together from who recorded it."""


@dataclass(frozen=True)
class State:
    """Everything the diagnosis looks at."""

    groups: tuple[Group, ...]
    lanes: Mapping[int, Mapping[int, Lane]]
    """Collectives: group → rank → how far."""
    p2p: Mapping[int, Mapping[int, Lane]]
    """Sends and receives: group → rank → how far."""
    ops: pl.DataFrame
    """The records kept of each rank, with `group_id` and `number`, sorted by (rank, record)."""
    known: frozenset[int]
    """Ranks whose operations a dump or log tells of."""
    idle: frozenset[int]
    """Ranks with nothing in flight, by records and by counters."""
    world: tuple[int, ...]
    keys: pl.DataFrame
    """rank, group (name), group_id: which group a rank means by a name."""
    lossy: frozenset[int]
    """Ranks whose ring buffer lost operations in flight: their oldest one is known from counters at best."""
    unordered: frozenset[int] = frozenset()
    """Ranks of which only a log tells: the order of its lines is not the order of launches."""


def rank_text(ranks: Iterable[int]) -> str:
    """Write ranks shortly, each run of equal steps as one: 0-3,8, or 0-12:4 for 0, 4, 8, 12."""
    left = sorted(set(ranks))
    parts = []
    while left:
        length = 1
        step = left[1] - left[0] if len(left) > 1 else 1
        while length < len(left) and left[length] - left[length - 1] == step:
            length += 1
        if length < 4 and step != 1:  # noqa: PLR2004 - three numbers read better one by one
            length = 1
        first, last = left[0], left[length - 1]
        span = f"{first}-{last}" if step == 1 else f"{first}-{last}:{step}"
        parts.append(str(first) if length == 1 else span)
        left = left[length:]
    return ",".join(parts)


@cache
def ranks_of(text: str) -> tuple[int, ...]:
    """Read what `rank_text` wrote."""
    ranks: list[int] = []
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", text):
        ranks += range(int(first), int(last or first) + 1, int(step or 1))
    return tuple(ranks)


def by_order(local_ids: Sequence[str], names: Sequence[str]) -> dict[str, str] | None:
    """Pair a rank's own numbers of its groups with their names, both in numerical order; None if counts differ."""
    if len(local_ids) != len(names) or not all(word.isdecimal() for word in (*local_ids, *names)):
        return None
    return dict(zip(sorted(local_ids, key=int), sorted(names, key=int), strict=True))


def gather(parts: Mapping[str, pl.DataFrame], incomplete: frozenset[str], world_size: int | None) -> State:
    """Bring the ranks' small tables (`ops`, `lanes`, `status`, `dumps`, `groups`) of one moment together.

    `incomplete` names the sources that were read only in part: what they lack was not proven absent.
    """
    dumps = parts["dumps"]
    world = _world(parts["groups"], dumps, world_size)
    groups, group_of = _groups(parts["groups"], parts["status"], world)
    partial = frozenset(dumps.filter(pl.col("source").is_in(incomplete))["rank"].to_list())
    unfiltered = frozenset(dumps.filter(pl.col("finished") > 0)["rank"].to_list())
    lanes: dict[int, dict[int, Lane]] = defaultdict(dict)
    p2p: dict[int, dict[int, Lane]] = defaultdict(dict)
    mixed: set[int] = set()
    for rank, name, is_p2p, oldest, order, newest, done, mixes in (
        parts["lanes"].select("rank", "group", "is_p2p", "oldest", "order", "newest", "done", "mixes").iter_rows()
    ):
        group = group_of.get((rank, name))
        if group is None:
            continue
        settled = rank not in partial and (oldest is not None or rank in unfiltered)
        (p2p if is_p2p else lanes)[group][rank] = Lane(oldest, newest, done, settled, order or 0)
        if mixes:
            mixed.add(group)
    recorders = frozenset(dumps.filter(pl.col("kind") == "recorder")["rank"].to_list())
    lossy = _believe_counters(
        lanes, parts["status"], group_of, mixed=mixed, recorders=recorders, overrun=_overrun(dumps)
    )
    busy = frozenset(
        rank for side in (lanes, p2p) for by in side.values() for rank, lane in by.items() if lane.oldest is not None
    )
    behind = frozenset(parts["status"].filter(pl.col("last_enqueued") > pl.col("last_completed"))["rank"].to_list())
    # a log that says nothing of operations is as good as none
    silent = frozenset(dumps.filter(pl.col("kind") != "recorder")["rank"].to_list())
    silent -= busy | frozenset(parts["status"]["rank"].to_list())
    known = frozenset(dumps["rank"].to_list()) - silent
    ops = parts["ops"]
    keys = pl.DataFrame(
        [(rank, name, group) for (rank, name), group in group_of.items()],
        schema={"rank": pl.Int32, "group": pl.String, "group_id": pl.Int32},
        orient="row",
    )
    return State(
        groups=groups,
        lanes={group: lanes[group] for group in sorted(lanes)},
        p2p={group: p2p[group] for group in sorted(p2p)},
        ops=ops.join(keys, on=["rank", "group"], how="left").sort("rank", "record", "name"),
        known=known,
        idle=known - busy - behind - partial,
        world=world,
        keys=keys,
        lossy=lossy,
        unordered=known - recorders,
    )


def _world(groups: pl.DataFrame, dumps: pl.DataFrame, world_size: int | None) -> tuple[int, ...]:
    """Return the ranks of the job: as many as told, else as any dump names; and those that left one."""
    seen = set(dumps["rank"].to_list())
    if world_size:
        return tuple(range(max(world_size, max(seen, default=0) + 1)))
    for text in groups["ranks"].drop_nulls().unique().sort():
        seen |= set(ranks_of(text))
    return tuple(range(max(seen) + 1)) if seen else ()


def _groups(
    table: pl.DataFrame, status: pl.DataFrame, world: tuple[int, ...]
) -> tuple[tuple[Group, ...], dict[tuple[int, str], int]]:
    """Return the groups in a fixed order and, per rank and name, the position of the one that the rank means."""
    rows = table.select("rank", "group", "desc", "ranks").sort("group", "ranks", "rank").rows()
    have = {(rank, name) for rank, name, _, _ in rows}
    rows += [
        (rank, name, desc, None)
        for rank, name, desc in status.select("rank", "group", "desc")
        .drop_nulls("group")
        .unique()
        .sort("group", "rank")
        .rows()
        if (rank, name) not in have
    ]
    listed: dict[tuple[str, tuple[int, ...]], str | None] = {}
    loose: dict[str, tuple[str | None, list[int]]] = {}
    for _, name, desc, text in rows:
        if text is not None:
            key = (name, ranks_of(text))
            listed[key] = listed.get(key) or desc
    homes = defaultdict(list)
    for name, ranks in listed:
        homes[name].append(ranks)
    meant: dict[tuple[int, str], tuple[str, tuple[int, ...] | None]] = {}
    own: list[tuple[int, str, str | None]] = []
    for rank, name, desc, text in rows:
        if name.startswith(LOCAL_GROUP):
            own.append((rank, name, desc))
            meant[rank, name] = (name, (rank,))
            continue
        home = ranks_of(text) if text is not None else next((r for r in homes[name] if rank in r), None)
        meant[rank, name] = (name, home)
        if home is None:
            old, members = loose.get(name, (None, []))
            loose[name] = (old or desc, [*members, rank])
    groups: list[Group] = []
    number: dict[tuple[str, tuple[int, ...] | None], int] = {}
    for (name, ranks), desc in sorted(listed.items()):
        number[name, ranks] = len(groups)
        groups.append(Group(name, desc, ranks, listed=True))
    for rank, name, desc in own:
        number[name, (rank,)] = len(groups)
        groups.append(Group(name, desc, (rank,), listed=False))
    for name, (desc, found) in sorted(loose.items()):
        default = desc == "default_pg" or (name == "0" and desc in (None, "", "undefined"))
        number[name, None] = len(groups)
        groups.append(Group(name, desc, world if default else tuple(sorted(set(found))), listed=False))
    return tuple(groups), {key: number[value] for key, value in meant.items()}


def _believe_counters(
    lanes: dict[int, dict[int, Lane]],
    status: pl.DataFrame,
    group_of: Mapping[tuple[int, str], int],
    *,
    mixed: set[int],
    recorders: frozenset[int],
    overrun: frozenset[int],
) -> frozenset[int]:
    """Add to the lanes what the ranks' own counters say, where they can be believed (module docstring).

    Returns the ranks of which records in flight were overwritten.
    """
    lossy = set()
    votes = status["order_agrees"].drop_nulls()
    orderly = votes.len() > 0 and bool(votes.all())
    rows = []
    doubted = set(mixed)
    for rank, name, basis, enqueued, completed in status.select(
        "rank", "group", "basis", "last_enqueued", "last_completed"
    ).iter_rows():
        group = group_of.get((rank, name)) if name is not None else None
        if group is None or (basis == "order" and not orderly):
            continue
        rows.append((group, rank, enqueued, completed))
        lane = lanes.get(group, {}).get(rank)
        if rank in recorders and lane and lane.newest is not None and enqueued > lane.newest:
            doubted.add(group)
    for group, rank, enqueued, completed in rows:
        if group in doubted:
            continue
        lane = lanes[group].get(rank) or Lane(None, None, None, settled=True)
        newest = max(enqueued, -1 if lane.newest is None else lane.newest)
        done = max(completed, -1 if lane.done is None else lane.done)
        oldest = lane.oldest
        if lane.newest is None and enqueued > completed:  # nothing but counters
            oldest = completed + 1 if completed > 0 else 1
        elif oldest is not None and rank in overrun and 0 <= completed < oldest - 1:
            lossy.add(rank)
            oldest = completed + 1
        lanes[group][rank] = replace(lane, oldest=oldest, newest=newest, done=done, settled=True)
    return frozenset(lossy)


def _overrun(dumps: pl.DataFrame) -> frozenset[int]:
    """Return the ranks whose ring buffer is full of operations in flight, if all ranks' buffers look full."""
    recorders = dumps.filter(pl.col("kind") == "recorder", pl.col("entries") > 0)
    full = (pl.col("first_record") > 0) & (pl.col("last_record") - pl.col("first_record") + 1 == pl.col("entries"))
    if recorders.is_empty() or recorders["entries"].n_unique() > 1 or not recorders.select(full.all()).item():
        return frozenset()
    return frozenset(recorders.filter(pl.col("finished") == 0)["rank"].to_list())
