"""MAP after the join: each rank's work as a few nodes and edges for the replay; one job a rank, small tables back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tracetool import heap
from tracetool.joined import facts_of

if TYPE_CHECKING:
    from tracetool.store import StoredRank
    from tracetool.tables import Tables


class SegmentJob(NamedTuple):
    """One rank, and the folder of what the join knows about it."""

    rank: StoredRank
    folder: str
    groups: tuple[int, ...]
    """Groups of that folder which this rank belongs to."""


def segment_rank(job: SegmentJob) -> Tables:
    """Return tables `nodes` and `edges` of one rank. Runs in a worker."""
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.join.segments import EDGES, NODES, segments  # noqa: PLC0415 - same

    if not job.rank.files("gpu"):  # nothing ran that could be replayed
        return {"nodes": pl.DataFrame(schema=NODES), "edges": pl.DataFrame(schema=EDGES)}
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
    heap.give_back()
    return found
