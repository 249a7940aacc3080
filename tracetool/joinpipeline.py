"""JOIN of pipelines: one job a replica. What its stages know together becomes facts about each rank.

A replica is a group of role pp. Its job reads the slots of its ranks and the launches of its sends and receives from
the store, and writes the windows, bubbles and waits of each rank, in that rank's own clock, back to the store. Only
slots and windows come back.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tracetool import store
from tracetool.engine import in_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    import polars as pl

    from tracetool.join.clocks import Clocks
    from tracetool.join.windows import Replica, Structure
    from tracetool.store import StoredRank
    from tracetool.tables import Tables

_FOLDER: Final = "pipeline"
_WAITS: Final = ("", "-arrivals")
"""Endings of the folders that hold a group's waits."""
_FACTS: Final = ("windows", "bubbles", "sends")


class PipelineJob(NamedTuple):
    """One replica: its number, all its ranks in order, those that were traced, and where the waits of each lie."""

    number: int
    ranks: tuple[int, ...]
    members: tuple[StoredRank, ...]
    waits: tuple[tuple[str, ...], ...]
    """Of each member the files with the waits of its sends and receives."""
    clocks: Clocks
    target: str
    guessed: bool = False
    """No group tells that these ranks are one pipeline: their slots have to."""


class Pipelines(NamedTuple):
    """What all replicas tell: small tables for analyses, and sentences."""

    tables: Mapping[str, pl.DataFrame]
    """pipeline (one row a replica that could be measured), pipeline_told (why others could not), pipeline_slots and
    pipeline_windows; empty without a pipeline."""
    notes: tuple[str, ...]


def replicas_of(groups: pl.DataFrame) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Return (ranks, traced ranks, group ids) of every pipeline: the largest groups of role pp, by their ranks.

    `groups` is that table of the run. A group whose ranks all lie in a larger one of the role (pairs of neighbours)
    belongs to it.
    """
    rows = [
        (tuple(row["ranks"] or row["members"]), tuple(row["members"]), row["group_id"])
        for row in groups.iter_rows(named=True)
        if row["role"] == "pp" and max(row["size"] or 0, len(row["ranks"])) > 1 and row["ranks"]
    ]
    found: dict[tuple[int, ...], tuple[set[int], list[int]]] = {}
    for ranks, members, group in sorted(rows, key=lambda row: (-len(row[0]), row[0], row[2])):
        home = next((known for known in found if set(ranks) <= set(known)), None)
        traced, ids = found.setdefault(ranks if home is None else home, (set(), []))
        traced |= set(members)
        ids.append(group)
    return sorted((ranks, tuple(sorted(traced)), tuple(sorted(ids))) for ranks, (traced, ids) in found.items())


def guessed_replicas(
    ranks: Sequence[StoredRank],
) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Return (ranks, traced ranks, no groups) of pipelines that no group tells of.

    Ranges name the virtual stages of a rank: the n-th rank of each stage make replica n, where every stage has as many.
    Without ranges all ranks with slots may be one pipeline; its order has to prove it.
    """
    firsts: dict[int | None, list[int]] = {}
    for rank in ranks:
        found = rank.table("slots", ["stage"])["stage"]
        if len(found):
            least = found.min() if not found.null_count() else None
            firsts.setdefault(least if isinstance(least, int) else None, []).append(rank.rank)
    sizes = {len(mine) for mine in firsts.values()}
    if None in firsts:
        lone = [tuple(sorted(firsts[None]))] if len(firsts) == 1 else []
    else:
        whole = len(sizes) == 1 and sorted(stage or 0 for stage in firsts) == list(range(len(firsts)))
        lone = list(zip(*(sorted(firsts[stage]) for stage in sorted(firsts)), strict=True)) if whole else []  # type: ignore[type-var]  # no None left
    return [(mine, tuple(sorted(mine)), ()) for mine in lone if len(mine) > 1]


def _jobs(ranks: Sequence[StoredRank], groups: pl.DataFrame, clocks: Clocks, folder: Path) -> list[PipelineJob]:
    by_number = {rank.rank: rank for rank in ranks}
    told = replicas_of(groups)
    return [
        PipelineJob(
            number=number,
            ranks=everyone,
            members=tuple(by_number[rank] for rank in traced),
            waits=tuple(
                tuple(str(folder / f"g{group}{end}" / f"r{rank}.arrow") for group in ids for end in _WAITS)
                for rank in traced
            ),
            clocks=clocks,
            target=str(folder / _FOLDER / f"p{number}"),
            guessed=not told,
        )
        for number, (everyone, traced, ids) in enumerate(told or guessed_replicas(ranks))
    ]


def pairs_by_slots(
    ranks: Sequence[StoredRank], groups: pl.DataFrame, clocks: Clocks, folder: Path, pool: Executor
) -> pl.DataFrame:
    """Return what slots prove about the clocks of stages that nothing else connects, as bounds.PAIR_SCHEMA."""
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    from tracetool.join.bounds import PAIR_SCHEMA  # noqa: PLC0415 - same

    component = dict(clocks.ranks.select("rank", "component").iter_rows())
    apart = [
        job
        for job in _jobs(ranks, groups, clocks, folder)
        if len({component[member.rank] for member in job.members}) > 1
    ]
    found = in_order([pool.submit(replica_pairs, job) for job in apart], lambda _: None)
    return pl.concat([pl.DataFrame(schema=PAIR_SCHEMA), *found])


def join_pipelines(
    ranks: Sequence[StoredRank], groups: pl.DataFrame, clocks: Clocks, folder: Path, pool: Executor
) -> Pipelines:
    """Put the stages of every replica together. `folder` holds the waits of every group."""
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    jobs = _jobs(ranks, groups, clocks, folder)
    if not jobs:
        return Pipelines({}, ())
    found = in_order([pool.submit(join_replica, job) for job in jobs], lambda _: None)
    structures = [one.structure._asdict() for one in found if one.structure is not None]
    notes: dict[str, int] = {}
    for one in found:
        for note in one.notes:
            notes[note] = notes.get(note, 0) + 1
    if jobs[0].guessed and not structures:
        return Pipelines({}, ())
    if jobs[0].guessed:
        note = "no group of the pipeline was recorded: its ranks are put together by their slots"
        notes[note] = len(structures)
    rows = [{**row, "ranks": list(row["ranks"])} for row in structures]
    tables = {
        "pipeline": pl.DataFrame(rows, schema=_schema()),
        "pipeline_told": pl.DataFrame({"note": list(notes)}, schema={"note": pl.String}),
    }
    if structures:
        tables["pipeline_slots"] = pl.concat([one.slots for one in found])
        tables["pipeline_windows"] = pl.concat([one.windows for one in found])
    many = f" ({{}} of {len(jobs)} pipelines)" if len(jobs) > 1 else ""
    return Pipelines(tables, tuple(note + many.format(count) for note, count in notes.items()))


def _schema() -> dict[str, pl.DataType | type[pl.DataType]]:
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    return {
        "replica": pl.Int32, "ranks": pl.List(pl.Int32), "stages": pl.Int32, "chunks": pl.Int32,
        "microbatches": pl.Int32, "schedule": pl.String, "exact": pl.Boolean, "why": pl.String, "source": pl.String,
        "complete": pl.Boolean,
    }  # fmt: skip


def join_replica(job: PipelineJob) -> Replica:
    """Put one replica together and write the facts of its ranks. Runs in a worker."""
    from tracetool.join.windows import Replica, replica  # noqa: PLC0415 - workers only

    slots, transfers = _read(job)
    made = replica(job.number, job.ranks, slots, transfers, job.clocks)
    if job.guessed and not _proven(made.structure):
        return Replica(None)
    with store.new_folder(Path(job.target)) as folder:
        for name, table in zip(_FACTS, (made.windows, made.bubbles, made.waits), strict=True):
            for (rank,), mine in table.partition_by("rank", as_dict=True, maintain_order=True).items():
                mine.write_parquet(folder / f"r{rank}-{name}.parquet", compression="lz4", statistics=False)
    return made


def _proven(structure: Structure | None) -> bool:
    """Say whether slots alone prove that these ranks are one pipeline: by their names, or by the warm-up of 1F1B."""
    if structure is None:
        return False
    by_order = structure.schedule == "1f1b" and structure.exact and (structure.microbatches or 0) > 1
    return structure.source == "pp" or by_order


def replica_pairs(job: PipelineJob) -> pl.DataFrame:
    """Return what the slots of one replica prove about its clocks, as bounds.PAIR_SCHEMA. Runs in a worker."""
    from tracetool.join.windows import slot_pairs  # noqa: PLC0415 - workers only

    bases = dict(job.clocks.ranks.select("rank", "base_unix_ns").iter_rows())
    return slot_pairs(job.ranks, *_read(job), bases)


def _read(job: PipelineJob) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the slots of a replica's ranks in the chosen steps, and their sends and receives."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.join.windows import TRANSFER_SCHEMA  # noqa: PLC0415 - same

    slots, transfers = [], [pl.DataFrame(schema=TRANSFER_SCHEMA)]
    for member, files in zip(job.members, job.waits, strict=True):
        mine = member.table("slots")
        steps = member.table("steps", ["step"])["step"].drop_nulls()
        slots.append(mine.filter(pl.col("step").is_null() | pl.col("step").is_in(steps.implode())))
        transfers.append(_nameless(member) if job.guessed else _transfers(member, files))
    return pl.concat(slots), pl.concat(transfers)


def _nameless(member: StoredRank) -> pl.DataFrame:
    """Return the rank's sends and receives without a recorded group, join.windows.TRANSFER_SCHEMA."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.join.windows import TRANSFER_SCHEMA  # noqa: PLC0415 - same

    forward = pl.col("phase").cast(pl.String).is_in(["backward", "recompute"]).not_().fill_null(True)
    launches = member.table("gpu", ["event", "launch_start_ns", "phase"]).filter(
        pl.col("launch_start_ns").is_not_null() & forward
    )
    return (
        member.table("comms", ["rank", "event", "op", "group", "start_ns", "dur_ns"])
        .filter(pl.col("group").is_null() & pl.col("op").cast(pl.String).is_in(["send", "recv", "send_recv"]))
        .join(launches, on="event", how="inner", maintain_order="left")
        .with_columns(end_ns=pl.col("start_ns") + pl.col("dur_ns"), basis=pl.lit("unknown"))
        .select(pl.col(name).cast(dtype) for name, dtype in TRANSFER_SCHEMA.items())
    )


def _transfers(member: StoredRank, files: Sequence[str]) -> pl.DataFrame:
    """Return the rank's sends and receives of the pipeline, join.windows.TRANSFER_SCHEMA."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.join.windows import TRANSFER_SCHEMA  # noqa: PLC0415 - same

    parts = [pl.read_ipc_stream(path, columns=["event", "basis"]) for path in files if Path(path).exists()]
    if not parts:
        return pl.DataFrame(schema=TRANSFER_SCHEMA)
    launches = member.table("gpu", ["event", "launch_start_ns"]).drop_nulls()
    return (
        member.table("comms", ["rank", "event", "op", "start_ns", "dur_ns"])
        .join(pl.concat(parts), on="event", how="inner", maintain_order="left")
        .join(launches, on="event", how="inner", maintain_order="left")
        .with_columns(end_ns=pl.col("start_ns") + pl.col("dur_ns"))
        .filter(pl.col("op").cast(pl.String).is_in(["send", "recv", "send_recv"]))
        .select(pl.col(name).cast(dtype) for name, dtype in TRANSFER_SCHEMA.items())
    )


def pipeline_facts(folder: str, rank: int, waits: pl.DataFrame | None) -> Tables:
    """Return `windows`, `bubbles` and `waits` of one rank as far as there are any; `waits` as the slots tell it."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.tables import conform  # noqa: PLC0415 - same

    facts: Tables = {}
    read = {
        name: [pl.read_parquet(path) for path in sorted(Path(folder, _FOLDER).glob(f"p*/r{rank}-{name}.parquet"))]
        for name in _FACTS
    }
    for name in ("windows", "bubbles"):
        if read[name]:
            facts[name] = conform(name, pl.concat(read[name])).sort("start_ns", "end_ns")
    if read["sends"]:
        told = pl.concat(read["sends"]).select("event", by_slots="wait_end_ns").unique("event", keep="first")
        known = conform("waits", pl.DataFrame({"event": []}, schema={"event": pl.Int64})) if waits is None else waits
        # what no group was recorded of is known through its slots alone
        facts["waits"] = (
            known.join(told, on="event", how="full", coalesce=True)
            .select(
                pl.col("rank").fill_null(rank),
                "event",
                wait_end_ns=pl.coalesce("by_slots", "wait_end_ns"),
                role=pl.col("role").fill_null("pp"),
                basis=pl.when(pl.col("by_slots").is_not_null()).then(pl.lit("slots")).otherwise("basis"),
            )
            .sort("event")
        )
    return facts
