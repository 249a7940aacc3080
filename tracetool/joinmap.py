"""JOIN: one job a group, then the run. Turns the communications of many ranks into facts about each of them.

A job reads the rows of one group's members from the store, matches them, and writes what it found back to the store;
only sums, the worst instances and the ends that cross hosts come back. Then clocks are solved, and the groups whose
waits need a common clock are gone through once more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tracetool import store
from tracetool.engine import in_order
from tracetool.errors import UsageError
from tracetool.read import core_key, settings_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    import polars as pl

    from tracetool.join.clocks import Clocks
    from tracetool.settings import Settings
    from tracetool.store import Store, StoredRank
    from tracetool.tables import Tables

_SAMPLES_PER_GROUP = 2000
"""Ends a group contributes to the clocks at most, spread evenly over the trace."""
_WORST_PER_GROUP = 300
"""Instances of a group that come back with their members' waits, the longest waits first."""


class GroupJob(NamedTuple):
    """One group to match: its number, name and size, the ranks that use it, and where to write."""

    group_id: int
    name: str
    size: int | None
    role: str
    ranks: tuple[int, ...]
    members: tuple[StoredRank, ...]
    crosses_hosts: bool
    target: str


class GroupReport(NamedTuple):
    """What comes back of one group: small tables and sentences."""

    sums: pl.DataFrame
    worst: pl.DataFrame
    samples: pl.DataFrame
    needs_clocks: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Joined:
    """What the ranks say together: small tables for analyses, and where each rank's facts lie."""

    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """groups, clocks, collective_sums, collective_worst; empty when nothing could be joined."""
    folder: str = ""
    groups_of: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def facts_of(folder: str, groups: Sequence[int], rank: int) -> Tables:
    """Return the facts about one rank: table `waits`, sorted by event. Empty when nothing is known."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.tables import conform  # noqa: PLC0415 - same

    paths = [Path(folder, f"g{group}", f"{part}.parquet") for group in groups for part in ("waits", "arrivals")]
    frames = [pl.read_parquet(path).filter(pl.col("rank") == rank) for path in paths if path.exists()]
    if not frames:
        return {}
    return {"waits": conform("waits", pl.concat(frames, how="diagonal")).sort("event")}


def match_group(job: GroupJob) -> GroupReport:
    """Match one group's communications and write its symmetric waits. Runs in a worker."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.join.match import match  # noqa: PLC0415 - same
    from tracetool.join.summary import clock_samples, sums, worst  # noqa: PLC0415 - same
    from tracetool.join.waits import symmetric_waits  # noqa: PLC0415 - same

    columns = ["rank", "event", "op", "seq", "step", "start_ns", "dur_ns", "bytes", "peer", "group", "group_ranks"]
    rows = pl.concat([_of_group(member.table("comms", columns), job) for member in job.members])
    if len(job.ranks) == 2:  # noqa: PLR2004 - between two ranks the peer needs no record
        other = pl.lit(sum(job.ranks)) - pl.col("rank")
        rows = rows.with_columns(peer=pl.col("peer").fill_null(other).cast(pl.Int32))
    matched = match(rows.drop("group", "group_ranks"), job.name)
    waits = symmetric_waits(matched.rows, job.size).with_columns(role=pl.lit(job.role))
    with store.new_folder(Path(job.target)) as folder:
        store.write_tables(folder, {"waits": waits, "matched": matched.rows})
    lonely = matched.rows["instance"].null_count() if job.size != 1 else 0
    notes = list(matched.notes)
    if lonely and len(job.members) > 1:
        notes.append(f"group {job.name}: {lonely} of {matched.rows.height} communications have no counterpart")
    return GroupReport(
        sums=sums(matched.rows, waits, job.group_id),
        worst=worst(matched.rows, waits, job.group_id, _WORST_PER_GROUP),
        samples=clock_samples(matched.rows, job.group_id, _SAMPLES_PER_GROUP if job.crosses_hosts else 0),
        needs_clocks=matched.rows.height > waits.height,
        notes=tuple(notes),
    )


def _of_group(comms: pl.DataFrame, job: GroupJob) -> pl.DataFrame:
    """Return the rows that went over this group: by name, and by ranks where the row tells them."""
    import polars as pl  # noqa: PLC0415 - workers only

    named = comms.filter(pl.col("group").cast(pl.String) == job.name)
    if not job.ranks:
        return named
    mine = pl.lit(sorted(job.ranks), dtype=pl.List(pl.Int32))
    return named.filter(pl.col("group_ranks").is_null() | (pl.col("group_ranks").list.sort() == mine))


def arrive_group(job: GroupJob, clocks: Clocks) -> GroupReport:
    """Write the waits of one group's operations that need a common clock. Runs in a worker."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.join.summary import sums, worst  # noqa: PLC0415 - same
    from tracetool.join.waits import arrival_waits  # noqa: PLC0415 - same

    matched = pl.read_parquet(Path(job.target, "matched.parquet"))
    waits = arrival_waits(matched, clocks, job.size).with_columns(role=pl.lit(job.role))
    if waits.height:
        waits.write_parquet(Path(job.target, "arrivals.parquet"))
    rows = matched.join(waits.select("rank", "event"), on=["rank", "event"], how="semi", maintain_order="left")
    return GroupReport(
        sums=sums(rows, waits, job.group_id),
        worst=worst(rows, waits, job.group_id, _WORST_PER_GROUP),
        samples=matched.clear(),
        needs_clocks=False,
        notes=(),
    )


def join(
    ranks: Sequence[StoredRank],
    seen: pl.DataFrame,
    identities: pl.DataFrame,
    settings: Settings,
    opened: Store,
    *,
    pool: Executor,
    progress: Callable[[str, int, int], None],
) -> Joined:
    """Join the ranks of a run.

    `seen` is join.groups.SEEN_SCHEMA; `identities` is table `ranks` of the run. With fewer than two ranks that
    communicate, groups and their roles are still told, and the facts are empty.
    """
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    from tracetool.join.clocks import solve  # noqa: PLC0415 - same
    from tracetool.join.groups import unify  # noqa: PLC0415 - same

    if not seen.height:
        return Joined()
    listed = pl.concat([rank.table("process_groups") for rank in ranks])
    groups = unify(seen, listed)
    hosts, host_notes = hosts_of(identities, settings)
    host = dict(hosts.select("rank", "host").iter_rows())
    by_number = {rank.rank: rank for rank in ranks}
    key = _join_key(ranks, settings)
    folder = store.entry_path(opened.root, key)
    folder.mkdir(parents=True, exist_ok=True)
    opened.hold(key)
    jobs = [
        GroupJob(
            group_id=row["group_id"],
            name=row["group"],
            size=row["size"],
            role=row["role"],
            ranks=tuple(row["ranks"]),
            members=tuple(by_number[rank] for rank in row["members"]),
            crosses_hosts=len({host[rank] for rank in row["members"]}) > 1,
            target=str(folder / f"g{row['group_id']}"),
        )
        for row in groups.iter_rows(named=True)
    ]
    reports = in_order([pool.submit(match_group, job) for job in jobs], lambda _: progress("joining", 0, len(jobs)))
    clocks = solve(pl.concat([report.samples for report in reports]), hosts)
    later = [job for job, report in zip(jobs, reports, strict=True) if report.needs_clocks]
    reports += in_order([pool.submit(arrive_group, job, clocks) for job in later], lambda _: None)
    store.write_manifest(folder, [])
    groups_of = {
        rank.rank: tuple(job.group_id for job in jobs if rank.rank in {m.rank for m in job.members}) for rank in ranks
    }
    return Joined(
        tables={
            "groups": groups,
            "clocks": clocks.ranks,
            "collective_sums": pl.concat([report.sums for report in reports]).sort(pl.all()),
            "collective_worst": pl.concat([report.worst for report in reports]),
        },
        folder=str(folder),
        groups_of=groups_of,
        notes=(*host_notes, *clocks.notes, *(note for report in reports for note in report.notes)),
    )


def _join_key(ranks: Sequence[StoredRank], settings: Settings) -> str:
    text = f"{core_key()} {settings_key(settings)} {[(r.rank, r.base, r.derived) for r in ranks]}"
    return f"join-{hashlib.blake2b(text.encode(), digest_size=20).hexdigest()}"


def hosts_of(identities: pl.DataFrame, settings: Settings) -> tuple[pl.DataFrame, list[str]]:
    """Return (rank, host, base_unix_ns) of every rank, and how the hosts were found, as notes.

    The user's file wins, then recorded names, then `--gpus-per-node`; else every rank is taken for a host of its own.
    """
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    given = _hosts_file(settings.hosts) if settings.hosts else {}
    names, assumed = [], 0
    for rank, recorded in identities.select("rank", "host").iter_rows():
        if rank in given:
            names.append(given[rank])
        elif recorded:
            names.append(recorded)
        elif settings.gpus_per_node:
            names.append(f"node-{rank // settings.gpus_per_node}")
        else:
            names.append(f"rank-{rank}")
            assumed += 1
    notes = []
    if assumed and len(names) > 1:
        notes.append(
            f"the traces of {assumed} ranks do not name their host: each is taken for a host with a clock of its own; "
            "--gpus-per-node or --hosts tells which share one"
        )
    return identities.select("rank", "base_unix_ns").with_columns(host=pl.Series(names, dtype=pl.String)), notes


def _hosts_file(path: str) -> dict[int, str]:
    found = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--hosts {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not words[0].isdigit():  # noqa: PLR2004 - "rank host"
            raise UsageError(f"--hosts {path}, line {number}: {line.strip()!r} is not `rank host`")
        found[int(words[0])] = words[1]
    return found
