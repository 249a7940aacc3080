"""JOIN: one job a group, then the run. Turns the communications of many ranks into facts about each of them.

A job reads the rows of one group's members from the store, matches them, and writes what it found back to the store;
only sums, the worst instances and the ends that cross hosts come back. Then clocks are solved, and the groups whose
waits need a common clock are gone through once more.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tracetool import registry, store
from tracetool.discover import read_head
from tracetool.engine import in_order
from tracetool.errors import UsageError
from tracetool.hosts import hosts_of
from tracetool.joined import ARRIVALS, Joined, keep, kept
from tracetool.joinpipeline import join_pipelines, pairs_by_slots
from tracetool.read import core_key
from tracetool.segmentmap import SegmentJob, segment_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    import polars as pl

    from tracetool.join.clocks import Clocks
    from tracetool.join.match import Matched
    from tracetool.settings import Settings
    from tracetool.store import Store, StoredRank
    from tracetool.tables import Tables

_SAMPLES_PER_GROUP = 2000
"""Collectives a group contributes to the clocks at most, spread evenly over the trace."""
_SAMPLES_IN_ALL = 2_000_000
"""Ends of all groups together for the clocks, so that the main process stays small."""
_FEWEST_SAMPLES = 50
_ROWS = 50_000
"""Rows of a row group of what is read again rank by rank."""
_OF_COMMS = ("rank", "event", "op", "seq", "step", "start_ns", "dur_ns", "bytes", "peer")
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
    adopted: tuple[tuple[str, ...], ...]
    """Of each member the operations without a recorded group that are taken for this group's."""
    bases: tuple[int, ...]
    """Unix time of clock value 0 of each member, ns."""
    one_host: bool
    """All members are on one host, and that is known."""
    samples: int
    """Collectives whose ends are wanted for the clocks at most."""
    target: str


class Told(NamedTuple):
    """Something to say about a group; the same said of many groups becomes one sentence."""

    topic: str
    group: str
    rows: int
    of: int
    where: tuple[int, ...] = ()


class GroupReport(NamedTuple):
    """What comes back of one group: small tables and what is to be said."""

    sums: pl.DataFrame
    worst: pl.DataFrame
    samples: pl.DataFrame
    pairs: pl.DataFrame
    needs_clocks: bool
    told: tuple[Told, ...]


def match_group(job: GroupJob) -> GroupReport:
    """Match one group's communications and write its symmetric waits. Runs in a worker."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.join.match import match  # noqa: PLC0415 - same
    from tracetool.join.summary import clock_pairs, clock_samples, sums, worst  # noqa: PLC0415 - same
    from tracetool.join.waits import symmetric_waits  # noqa: PLC0415 - same

    rows = pl.concat([_of_group(job, place) for place in range(len(job.members))])
    if len(job.ranks) == 2:  # noqa: PLR2004 - between two ranks the peer needs no record
        other = pl.when(pl.col("op").is_in(["send", "recv"])).then(pl.lit(sum(job.ranks)) - pl.col("rank"))
        rows = rows.with_columns(peer=pl.coalesce("peer", other).cast(pl.Int32))
    matched = match(rows)
    everyone = len(job.members) == job.size
    waits = symmetric_waits(matched.rows, job.size, pipeline=job.role == "pp" and everyone)
    _write_by_rank(Path(job.target), waits, job.role, {"matched": matched.rows})
    return GroupReport(
        sums=sums(matched.rows, waits, job.group_id),
        worst=worst(matched.rows, waits, job.group_id, _WORST_PER_GROUP),
        samples=clock_samples(matched.rows, job.group_id, job.samples),
        pairs=clock_pairs(matched.rows, {m.rank: base for m, base in zip(job.members, job.bases, strict=True)}),
        needs_clocks=matched.rows.height > waits.height,
        told=_told(job, matched),
    )


def _write_by_rank(target: Path, waits: pl.DataFrame, role: str, more: Tables) -> None:
    """Write the waits of each rank into a file of its own, so that a rank's facts are read without the others'."""
    import polars as pl  # noqa: PLC0415 - workers only

    with store.new_folder(target) as folder:
        for name, table in more.items():
            # sorted by rank: with statistics a reader of one rank skips the others' row groups
            table.write_parquet(folder / f"{name}.parquet", compression="lz4", statistics=True, row_group_size=_ROWS)
        with_role = waits.with_columns(role=pl.lit(role))
        for (rank,), mine in with_role.partition_by("rank", as_dict=True, maintain_order=True).items():
            # half the time of a Parquet file, of which there is one a rank and group
            mine.write_ipc_stream(folder / f"r{rank}.arrow", compression="lz4")


def _told(job: GroupJob, matched: Matched) -> tuple[Told, ...]:
    """Return what was not matched and why, most telling reason only."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.join.match import P2P_OPS  # noqa: PLC0415 - same

    rows = matched.rows
    if len(job.members) < 2:  # noqa: PLR2004 - nobody to match with
        return ()
    lonely = rows.filter(pl.col("instance").is_null())
    peerless = lonely.filter(pl.col("op").is_in(P2P_OPS) & pl.col("peer").is_null())
    outside = lonely.filter(pl.col("step").is_null() & ~pl.col("op").is_in(P2P_OPS))
    found = [
        Told(f"disagree {why}", job.name, lonely.height - peerless.height - outside.height, rows.height, where)
        for why, where in matched.refused.items()
    ]
    if peerless.height:
        found.append(Told("peerless", job.name, peerless.height, rows.height))
    if outside.height:
        found.append(Told("outside", job.name, outside.height, rows.height))
    rest = lonely.height - peerless.height - outside.height
    if rest and not matched.refused:
        found.append(Told("unpaired", job.name, rest, rows.height))
    short = rows.filter(pl.col("instance").is_not_null() & (pl.col("present") < len(job.members)))
    short = short.filter(~pl.col("op").is_in(P2P_OPS))
    if short.height:
        found.append(Told("windows", job.name, short.height, rows.height))
    return tuple(found)


def _of_group(job: GroupJob, place: int) -> pl.DataFrame:
    """Return one member's rows that went over this group: by name and by ranks where the row tells them.

    Rows without a group that are taken for this one's keep their kernel's name, to be compared; the others' is null.
    """
    import polars as pl  # noqa: PLC0415 - workers only

    group = pl.col("group").cast(pl.String)
    named = group == job.name
    if job.ranks:
        mine = pl.lit(sorted(job.ranks), dtype=pl.List(pl.Int32))
        named = named & (pl.col("group_ranks").is_null() | (pl.col("group_ranks").list.sort() == mine))
    bare = group.is_null() & pl.col("op").cast(pl.String).is_in(job.adopted[place])
    common = (pl.col("start_ns") + job.bases[place]) if job.one_host else pl.lit(None, pl.Int64)
    member = job.members[place]
    comms = member.table("comms", [*_OF_COMMS, "group", "group_ranks", "name"]).filter(named.fill_null(False) | bare)
    launches = member.table("gpu", ["event", "launch_start_ns"]).rename({"launch_start_ns": "launch_ns"})
    return (
        comms.join(launches, on="event", how="left", maintain_order="left")
        # one launched before the recording began lost its arguments with its launch: no group can be told
        .filter(pl.col("group").is_not_null() | pl.col("launch_ns").is_not_null())
        .select(
            *(pl.col(name).cast(pl.String) if name == "op" else name for name in _OF_COMMS),
            "launch_ns",
            name=pl.when(bare).then(pl.col("name").cast(pl.String)),
            common_ns=common,
        )
    )


def arrive_group(job: GroupJob, clocks: Clocks) -> GroupReport:
    """Write the waits of one group's operations that need a common clock. Runs in a worker."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.join.bounds import PAIR_SCHEMA  # noqa: PLC0415 - same
    from tracetool.join.clocks import SAMPLE_SCHEMA  # noqa: PLC0415 - same
    from tracetool.join.summary import sums, worst  # noqa: PLC0415 - same
    from tracetool.join.waits import arrival_waits  # noqa: PLC0415 - same

    matched = pl.read_parquet(Path(job.target, "matched.parquet"))
    waits = arrival_waits(matched, clocks, job.size)
    if waits.height:
        _write_by_rank(Path(job.target + ARRIVALS), waits, job.role, {})
    rows = matched.join(waits.select("rank", "event"), on=["rank", "event"], how="semi", maintain_order="left")
    unknown = waits.filter(pl.col("basis") == "unknown").height
    return GroupReport(
        sums=sums(rows, waits, job.group_id),
        worst=worst(rows, waits, job.group_id, _WORST_PER_GROUP),
        samples=pl.DataFrame(schema=SAMPLE_SCHEMA),
        pairs=pl.DataFrame(schema=PAIR_SCHEMA),
        needs_clocks=False,
        told=(Told("clocks", job.name, unknown, matched.height),) if unknown else (),
    )


def join(
    ranks: Sequence[StoredRank],
    seen: pl.DataFrame,
    identities: pl.DataFrame,
    settings: Settings,
    opened: Store,
    *,
    sources: pl.DataFrame,
    pool: Executor,
    progress: Callable[[str, int, int], None],
) -> Joined:
    """Join the ranks of a run.

    `seen` is join.groups.SEEN_SCHEMA; `identities` and `sources` are tables `ranks` and `sources` of the run. With
    fewer than two ranks that communicate, groups and their roles are still told, and the facts are empty.
    """
    curve = {"bandwidth_curve": ceiling_curve(settings.nccl_tests)} if settings.nccl_tests else {}
    if not seen.height:
        return Joined(tables=curve)
    hosts, host_notes = hosts_of(identities, sources, settings)
    world = settings.world_size or max(identities["world_size"].drop_nulls().to_list(), default=None)
    key = _join_key(ranks, seen, hosts, (*host_notes, f"world {world}"))
    folder = store.entry_path(opened.root, key)
    opened.hold(key)
    found = kept(folder) if opened.persistent else None
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        found = _join(ranks, seen, hosts, host_notes, folder, world=world, pool=pool, progress=progress)
        store.write_manifest(folder, [])
        if opened.persistent:
            keep(folder, found)
    return replace(found, tables={**curve, **found.tables})


def _join(
    ranks: Sequence[StoredRank],
    seen: pl.DataFrame,
    hosts: pl.DataFrame,
    host_notes: Sequence[str],
    folder: Path,
    *,
    world: int | None,
    pool: Executor,
    progress: Callable[[str, int, int], None],
) -> Joined:
    """Join the ranks, their facts into `folder`; `hosts` has rank, base_unix_ns, host, assumed of every rank.

    `world` is how many ranks the job has, as far as that is known.
    """
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    from tracetool.join.clocks import solve  # noqa: PLC0415 - same
    from tracetool.join.groups import adopt, unify  # noqa: PLC0415 - same

    listed = pl.concat([rank.table("process_groups") for rank in ranks])
    adopted = adopt(seen, listed, world)
    groups = unify(adopted.seen, listed)
    jobs = _jobs(ranks, groups, hosts, adopted.given, folder)
    done = 0

    def matched(_: int) -> None:
        nonlocal done
        done += 1
        progress("joining", done, len(jobs))

    reports = in_order([pool.submit(match_group, job) for job in jobs], matched)
    if not reports:
        return _without_groups(
            Joined(tables={"groups": groups}, notes=adopted.notes), ranks, hosts.drop("assumed"), folder, pool
        )
    samples = pl.concat([report.samples for report in reports])
    pairs = pl.concat([report.pairs for report in reports])
    clocks = solve(samples, hosts.drop("assumed"), pairs)
    proven = pairs_by_slots(ranks, groups, clocks, folder, pool)
    if proven.height:
        clocks = solve(samples, hosts.drop("assumed"), pl.concat([pairs, proven]))
    store.write_table(folder / "clock.parquet", clocks.ranks)
    later = [job for job, report in zip(jobs, reports, strict=True) if report.needs_clocks]
    reports += in_order([pool.submit(arrive_group, job, clocks) for job in later], lambda _: None)
    pipelines = join_pipelines(ranks, groups, clocks, folder, pool)
    groups_of = {
        rank.rank: tuple(job.group_id for job in jobs if rank.rank in {m.rank for m in job.members}) for rank in ranks
    }
    parts = in_order(
        [pool.submit(segment_rank, SegmentJob(rank, str(folder), groups_of[rank.rank])) for rank in ranks],
        lambda _: None,
    )
    return Joined(
        tables={
            "groups": groups,
            "hosts": hosts.select("rank", "host", "assumed"),
            **_clock_tables(clocks),
            "nodes": pl.concat([part["nodes"] for part in parts]),
            "edges": pl.concat([part["edges"] for part in parts]),
            "collective_sums": pl.concat([report.sums for report in reports]).sort(pl.all()),
            "collective_worst": pl.concat([report.worst for report in reports]).sort(
                "wait_ns", "group_id", "instance", descending=[True, False, False]
            ),
            **pipelines.tables,
        },
        folder=str(folder),
        groups_of=groups_of,
        notes=(
            *adopted.notes,
            *(host_notes if len(jobs) else ()),
            *clocks.notes,
            *sentences([told for report in reports for told in report.told]),
            *pipelines.notes,
        ),
    )


def _clock_tables(clocks: Clocks) -> Tables:
    """Return the tables that tell of the clocks."""
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    checks = {
        "checked": [clocks.checked],
        "violated_before": [clocks.violated_before],
        "violated_after": [clocks.violated_after],
    }
    return {"clocks": clocks.ranks, "clock_kinds": clocks.kinds, "clock_checks": pl.DataFrame(checks)}


def _without_groups(
    joined: Joined, ranks: Sequence[StoredRank], hosts: pl.DataFrame, folder: Path, pool: Executor
) -> Joined:
    """Return what is joined of a run whose groups nobody recorded: its pipelines, if their slots tell them."""
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    from tracetool.join.clocks import SAMPLE_SCHEMA, solve  # noqa: PLC0415 - same

    nothing, groups = pl.DataFrame(schema=SAMPLE_SCHEMA), joined.tables["groups"]
    clocks = solve(nothing, hosts)
    clocks = solve(nothing, hosts, pairs_by_slots(ranks, groups, clocks, folder, pool))
    pipelines = join_pipelines(ranks, groups, clocks, folder, pool)
    if not pipelines.tables:
        return joined
    store.write_table(folder / "clock.parquet", clocks.ranks)
    tables = {**joined.tables, **_clock_tables(clocks), **pipelines.tables}
    notes = (*joined.notes, *clocks.notes, *pipelines.notes)
    return replace(joined, tables=tables, folder=str(folder), notes=notes)


def _jobs(
    ranks: Sequence[StoredRank],
    groups: pl.DataFrame,
    hosts: pl.DataFrame,
    given: Mapping[str, Mapping[int, tuple[str, ...]]],
    folder: Path,
) -> list[GroupJob]:
    by_number = {rank.rank: rank for rank in ranks}
    host = {rank: (name, assumed) for rank, name, assumed in hosts.select("rank", "host", "assumed").iter_rows()}
    base = {rank: unix or 0 for rank, unix in hosts.select("rank", "base_unix_ns").iter_rows()}
    crossing = sum(len(row) for row in groups["members"] if len({host[rank][0] for rank in row}) > 1)
    wanted = min(_SAMPLES_PER_GROUP, max(_FEWEST_SAMPLES, _SAMPLES_IN_ALL // max(1, crossing)))
    jobs = []
    for row in groups.iter_rows(named=True):
        members = row["members"]
        crosses = len({host[rank][0] for rank in members}) > 1
        jobs.append(
            GroupJob(
                group_id=row["group_id"],
                name=row["group"],
                size=row["size"],
                role=row["role"],
                ranks=tuple(row["ranks"]),
                members=tuple(by_number[rank] for rank in members),
                adopted=tuple(given.get(row["group"], {}).get(rank, ()) for rank in members),
                bases=tuple(base[rank] for rank in members),
                one_host=not crosses and not any(host[rank][1] for rank in members),
                samples=wanted if crosses else 0,
                target=str(folder / f"g{row['group_id']}"),
            )
        )
    return jobs


_SENTENCES = {
    "disagree steps": "{where}: ranks disagree on operations, sizes, counts or times; {count} of {of} "
    "communications are not matched",
    "disagree sequence numbers": "sequence numbers {where}: ranks disagree on operations or sizes; {count} of {of} "
    "communications are not matched",
    "peerless": "{count} of {of} communications are sends and receives whose peers nobody recorded; not paired",
    "outside": "{count} of {of} communications belong to no step; without sequence numbers they are not matched",
    "unpaired": "{count} of {of} communications have no counterpart",
    "windows": "{count} of {of} communications are missing on some of its ranks, whose traces cover other steps or "
    "were cut; waiting is a lower bound there",
    "clocks": "{count} of {of} communications link hosts whose clocks nothing connects; how long they waited is not "
    "known",
}


def sentences(told: Sequence[Told]) -> list[str]:
    """Put what is to be said of groups into one sentence a topic, the groups counted."""
    found = []
    for topic, text in _SENTENCES.items():
        mine = [one for one in told if one.topic == topic]
        if not mine:
            continue
        names = list(dict.fromkeys(one.group for one in mine))
        which = f"group {names[0]}" if len(names) == 1 else f"{len(names)} groups ({', '.join(names[:5])}"
        if len(names) > 1:
            which += ", …)" if len(names) > 5 else ")"  # noqa: PLR2004 - five are shown
        parts = sorted({part for one in mine for part in one.where})
        where = ", ".join(map(str, parts[:5])) + (", …" if len(parts) > 5 else "")  # noqa: PLR2004 - same
        if topic == "disagree steps":
            where = "the whole window" if parts == [-1] else f"steps {where}"
        count, of = sum(one.rows for one in mine), sum(one.of for one in mine)
        found.append(
            f"{which}, {text.format(where=where, count=count, of=of)}"
            if "{where}" in text
            else f"{which}: {text.format(count=count, of=of)}"
        )
    return found


def _join_key(ranks: Sequence[StoredRank], seen: pl.DataFrame, hosts: pl.DataFrame, host_notes: Sequence[str]) -> str:
    """Return a key of all that a join depends on: the code, the ranks' tables, what they tell of groups and hosts."""
    text = f"{core_key()} {list(ranks)} {list(host_notes)}"
    return f"join-{store.tables_key(text, [seen, hosts])}"


def ceiling_curve(path: str) -> pl.DataFrame:
    """Return table `bandwidth_curve` of the file given with `--nccl-tests`.

    Raises UsageError when the file cannot be read or is no output of nccl-tests.
    """
    source = Path(path)
    try:
        parser = registry.sniff(source, read_head(source))
        tables = parser.parse(source, registry.ParseOptions(display_path=path)) if parser else {}
    except OSError as error:
        raise UsageError(f"--nccl-tests {path}: {error.strerror or error}") from None
    if "bandwidth_curve" not in tables:
        raise UsageError(f"--nccl-tests {path}: is no output of nccl-tests; give what e.g. all_reduce_perf printed")
    return tables["bandwidth_curve"]
