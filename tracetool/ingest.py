"""From a directory of traces to a run: discover → read every source → assign ranks → what the run has.

Reading (maps 1 and 2 of the design) is one job a source: parse, split by rank, derive, store. Only summaries come
back; events never reach this process.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracetool import registry, store
from tracetool.assign import Claim, assign, choose, gaps, nameless, ranges, renumbered, strangers, world_of
from tracetool.discover import Discovery, Source, discover, legible
from tracetool.engine import in_order
from tracetool.errors import NothingReadable, TracetoolError, UsageError
from tracetool.needs import NEEDS
from tracetool.read import ReadJob, SourceReport, derive_settings, rank_folder, read_source
from tracetool.store import Store, StoredRank

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    import polars as pl

    from tracetool.registry import RunView
    from tracetool.settings import Settings


@dataclass(frozen=True)
class Ingested:
    """A run that has been read: its view for analyses, and a handle on each rank's tables in the store."""

    view: RunView
    ranks: tuple[StoredRank, ...]
    uses: pl.DataFrame
    """What each rank sends over which communicator, as join.groups.SEEN_SCHEMA."""
    damaged: tuple[str, ...]
    """Sources that were cut, or could not be read at all although their format is known."""
    failed: tuple[str, ...]
    """Sentences about sources on which tracetool itself failed."""
    ignored: tuple[str, ...]
    """Those notes of the view that name files which were not read."""


def ingest(
    run: str,
    settings: Settings,
    root: Store,
    open_executor: Callable[[int, int], Executor],
    progress: Callable[[str, int, int], None],
) -> Ingested:
    """Read a run.

    `open_executor(jobs, bytes)` starts the engine once the sources are known; `progress(phase, done, in all)` is
    called with bytes as sources end, first once as ("found", sources, bytes). Raises NothingReadable when no source
    could be read, UsageError when ranks or steps cannot be told apart or do not exist.
    """
    found = discover(run, settings)
    sources = [source for source in found.sources if _wanted(source, settings)]
    if not sources:
        raise UsageError(f"no file of rank {ranges(settings.ranks or ())} among {len(found.sources)} traces in {run}")
    total = sum(source.work_bytes for source in sources)
    progress("found", len(sources), total)
    progress("reading", 0, total)
    done = 0

    def finished(position: int) -> None:
        nonlocal done
        done += sources[position].work_bytes
        progress("reading", done, total)

    pool = open_executor(len(sources), total)
    narrow = derive_settings(settings)
    jobs = [ReadJob(source, root.root, root.persistent, narrow) for source in sources]
    reports = in_order([pool.submit(read_source, job) for job in jobs], finished)
    for report in reports:
        if report.entry:
            root.hold(report.entry)
    _refuse_nothing(run, reports)
    return _assemble(run, found, reports, settings, root.root)


def _refuse_nothing(run: str, reports: Sequence[SourceReport]) -> None:
    """Raise when no source could be read, or all that could holds nothing."""
    read = [report for report in reports if not report.error]
    if not read:
        first = next((report for report in reports if report.defect), reports[0])
        which = "the trace" if len(reports) == 1 else f"none of the {len(reports)} traces"
        could = "could not be read" if len(reports) == 1 else "could be read"
        sentence = f"{legible(run)}: {which} {could}; {first.source.display}: {first.error}"
        raise TracetoolError(sentence) if first.defect else NothingReadable(sentence)
    if not any(report.row["events"] or any(summary.features for summary in report.ranks) for report in read):
        kept = "the trace holds" if len(reports) == 1 else f"the {len(reports)} traces hold"
        raise NothingReadable(
            f"{legible(run)}: {kept} no events ({read[0].source.display}): the profiler was not active while it "
            "recorded, or its window was empty; record some training steps, see `How to record` in the README"
        )


def _wanted(source: Source, settings: Settings) -> bool:
    """Leave out a source before reading it only when the user's own pattern says it is another rank."""
    if settings.ranks is None or source.rank_source != "option":
        return True
    if registry.holds_several_ranks(source.parser):  # there the pattern may tell a node
        return True
    return source.rank in settings.ranks


def _assemble(run: str, found: Discovery, reports: Sequence[SourceReport], settings: Settings, root: Path) -> Ingested:
    """Turn the reports of all sources into the view of the run and a handle on each rank."""
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    notes = list(found.ignored)
    by_rank: dict[int, list[Claim]] = defaultdict(list)
    claimed = assign(reports)
    notes += nameless(reports, claimed)
    for claim in claimed:
        by_rank[claim.rank].append(claim)
    everyone = sorted(by_rank)
    wanted = everyone if settings.ranks is None else [rank for rank in everyone if rank in settings.ranks]
    if not wanted and everyone:
        raise UsageError(
            f"no trace of rank {ranges(settings.ranks or ())} in {run}; there are ranks {ranges(everyone)}"
        )
    chosen: dict[int, list[Claim]] = {}
    for rank in wanted:
        chosen[rank], note = choose(rank, by_rank[rank], settings)
        notes += [note] if note else []
    handles = tuple(_handle(rank, claims, settings, root) for rank, claims in chosen.items())
    stated, unbelieved = world_of([c.summary.world_size or 0 for claims in by_rank.values() for c in claims])
    world = settings.world_size or stated
    notes += unbelieved
    notes += gaps(everyone, world)
    notes += strangers(chosen, world)
    if settings.ranks is not None and (absent := sorted(set(settings.ranks) - set(everyone))):
        notes.append(f"no trace of the chosen ranks {ranges(absent)}")
    features = {
        need: tuple(rank for rank, claims in chosen.items() if any(need in c.summary.features for c in claims))
        for need in NEEDS
    }
    steps = _together("steps", handles)
    if settings.steps and not steps.height and features["events"]:
        there = sorted({step for claims in chosen.values() for claim in claims for step in claim.summary.steps})
        have = f"there are steps {ranges(there)}" if there else "the traces have no step ranges"
        raise UsageError(f"no step {ranges(settings.steps)} in {run}; {have}")
    if settings.step_range and features["events"] and not steps["step"].count():
        raise UsageError(f"--step-range {settings.step_range!r} matches no range in {run}; `phases` lists the ranges")
    ranks = (
        pl.concat([_identity(handle, claims[0]) for handle, claims in zip(handles, chosen.values(), strict=True)])
        if handles
        else _together("ranks", handles)
    )
    view = registry.RunView(
        path=run,
        ranks=ranks,
        sources=_sources(reports, chosen),
        steps=steps,
        quality=_together("quality", handles),
        world_size=world or None,
        features=features,
        joined=_run_tables(reports, root),
        notes=tuple(notes),
    )
    damaged = tuple(r.source.display for r in reports if r.error or not r.row["complete"] or r.row["dropped"])
    failed = (*found.failed, *(f"{report.source.display}: {report.error}" for report in reports if report.defect))
    return Ingested(view, handles, _uses(chosen), (*found.damaged, *damaged), failed, found.ignored)


def _uses(chosen: Mapping[int, list[Claim]]) -> pl.DataFrame:
    import polars as pl  # noqa: PLC0415 - see _assemble

    from tracetool.join.groups import SEEN_SCHEMA  # noqa: PLC0415 - same

    rows = [
        (rank, use.group, use.desc, use.ranks, use.size, use.op, use.phase, use.count)
        for rank, claims in chosen.items()
        for use in claims[0].summary.groups
    ]
    return pl.DataFrame(rows, schema=SEEN_SCHEMA, orient="row")


def _handle(rank: int, claims: list[Claim], settings: Settings, root: Path) -> StoredRank:
    folders = [store.entry_path(root, claim.report.entry) / rank_folder(claim.summary.local) for claim in claims]
    derived = str(folders[0] / claims[0].report.derived) if claims and claims[0].summary.events else None
    return StoredRank(rank, tuple(map(str, folders)), derived, settings.steps)


def _identity(handle: StoredRank, claim: Claim) -> pl.DataFrame:
    """Return the rank's row of table `ranks`, that of the source with events when several tell of it."""
    import polars as pl  # noqa: PLC0415 - see _assemble

    return handle.table("ranks").head(1).with_columns(rank_source=pl.lit(claim.rank_source))


def _together(name: str, handles: Sequence[StoredRank]) -> pl.DataFrame:
    import polars as pl  # noqa: PLC0415 - see _assemble

    from tracetool.tables import empty  # noqa: PLC0415 - same

    return pl.concat([empty(name), *(handle.table(name) for handle in handles)])


def _run_tables(reports: Sequence[SourceReport], root: Path) -> dict[str, pl.DataFrame]:
    """Return the tables of sources that belong to no rank, such as a bandwidth curve."""
    import polars as pl  # noqa: PLC0415 - see _assemble

    found: dict[str, list[pl.DataFrame]] = defaultdict(list)
    for report in reports:
        if any(summary.local is None for summary in report.ranks):
            for name, table in store.read_tables(store.entry_path(root, report.entry) / rank_folder(None)).items():
                found[name].append(table)
    return {name: pl.concat(parts, how="diagonal") for name, parts in sorted(found.items())}


def _sources(reports: Sequence[SourceReport], chosen: Mapping[int, list[Claim]]) -> pl.DataFrame:
    """Return table `sources` with the ranks that each one was used for, in the order of discovery."""
    import polars as pl  # noqa: PLC0415 - see _assemble

    from tracetool.tables import SCHEMAS  # noqa: PLC0415 - same

    schema = {**{name: column.dtype for name, column in SCHEMAS["sources"].columns.items()}, "ranks": pl.List(pl.Int32)}
    rows = []
    for report in reports:
        used = {rank: claim for rank, claims in chosen.items() for claim in claims if claim.report is report}
        assumed = [rank for rank, claim in used.items() if claim.rank_source == "assumed" and claim.summary.local == -1]
        notes = [f"no rank in its metadata or name: rank {rank} is assumed" for rank in assumed]
        notes += [moved] if (moved := renumbered(list(used.values()))) else []
        if report.error:
            row = {
                "path": report.source.display, "format": report.source.format, "bytes": report.source.bytes,
                "events": 0, "dropped": 0, "repaired": 0, "complete": False, "notes": [f"not read: {report.error}"],
            }  # fmt: skip
        else:
            row = {**report.row, "bytes": report.source.bytes, "notes": [*_texts(report.row["notes"]), *notes]}
        rows.append({**row, "ranks": sorted(used)})
    return pl.DataFrame(rows, schema=schema)


def _texts(value: object) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []
