"""MAP after the join: each rank's work as a few nodes and edges for the replay; one job a rank, small tables back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tracetool import store

if TYPE_CHECKING:
    from tracetool.store import StoredRank
    from tracetool.tables import Tables


class SegmentJob(NamedTuple):
    """One rank, and the folder of what the join knows about it, where its nodes and edges are kept too."""

    rank: StoredRank
    folder: str
    groups: tuple[int, ...]
    """Groups of that folder which this rank belongs to."""


def segment_rank(job: SegmentJob) -> Tables:
    """Return tables `nodes` and `edges` of one rank, found in the store or made. Runs in a worker."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.join.segments import segments  # noqa: PLC0415 - same
    from tracetool.joinmap import facts_of  # noqa: PLC0415 - it submits this job

    target = Path(job.folder, f"segments-r{job.rank.rank}")
    if target.is_dir() and not store.whole(target):
        store.drop(target)
    if target.is_dir():
        return {name: pl.read_parquet(target / f"{name}.parquet") for name in ("nodes", "edges")}
    matched = [
        pl.scan_parquet(path)
        .filter((pl.col("rank") == job.rank.rank) & pl.col("instance").is_not_null() & (pl.col("present") > 1))
        .select("event", "instance", group_id=pl.lit(group, pl.Int32))
        .collect()
        for group in job.groups
        if (path := Path(job.folder, f"g{group}", "matched.parquet")).exists()
    ]
    schema = {"event": pl.Int64, "instance": pl.Int64, "group_id": pl.Int32}
    instances = pl.concat([pl.DataFrame(schema=schema), *matched]).unique("event", keep="first", maintain_order=True)
    messages = [
        pl.scan_parquet(path).select("event", "sent_ns", "sent_by").collect()
        for path in sorted(Path(job.folder, "pipeline").glob(f"p*/r{job.rank.rank}-sends.parquet"))
        if "sent_by" in pl.read_parquet_schema(path)
    ]
    sent = pl.concat([pl.DataFrame(schema={"event": pl.Int64, "sent_ns": pl.Int64, "sent_by": pl.Int32}), *messages])
    instances = instances.join(
        sent.unique("event", keep="first", maintain_order=True), on="event", how="full", coalesce=True
    )
    found = segments(job.rank, facts_of(job.folder, job.groups, job.rank.rank), instances)
    with store.new_folder(target) as folder:
        for name, table in found.items():
            table.write_parquet(folder / f"{name}.parquet", compression="lz4")
    return found
