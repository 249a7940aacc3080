"""From a directory of traces to a run: discover → read every source → assign ranks → what the run has.

Reading (maps 1 and 2 of the design) is one job a source: parse, split by rank, derive, store. Only summaries come
back; events never reach this process.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import tracetool
from tracetool import registry, store
from tracetool.discover import Discovery, Source, discover
from tracetool.engine import in_order
from tracetool.errors import NothingReadable, TracetoolError, UnreadableTrace, UsageError
from tracetool.needs import NEEDS
from tracetool.settings import Settings
from tracetool.store import Store, StoredRank

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    import polars as pl

    from tracetool.registry import RunView
    from tracetool.tables import Tables


class RankSummary(msgspec.Struct, frozen=True):
    """What one source tells of one rank, small enough to come back from a worker."""

    local: int | None
    """The rank as the file numbers it: -1 when it does not say; None: tables of the run, not of a rank."""
    rank_source: str | None
    world_size: int | None
    events: int
    steps: list[int]
    first_unix_ns: int | None
    last_unix_ns: int | None
    features: list[str]


@dataclass(frozen=True)
class ReadJob:
    """One source to read, and where the store lies."""

    source: Source
    root: Path
    persistent: bool
    settings: Settings
    """Only what derive looks at is set; the rest is at its default, so that it cannot matter."""


@dataclass(frozen=True)
class SourceReport:
    """What came of one source. `error` says why nothing could be read; then there are no ranks."""

    source: Source
    entry: str = ""
    derived: str = ""
    ranks: tuple[RankSummary, ...] = ()
    row: Mapping[str, object] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Ingested:
    """A run that has been read: its view for analyses, and a handle on each rank's tables in the store."""

    view: RunView
    ranks: tuple[StoredRank, ...]
    damaged: tuple[str, ...]
    """Sources that were cut, or could not be read at all although their format is known."""


def derive_settings(settings: Settings) -> Settings:
    """Return the settings that derivation depends on, everything else at its default."""
    return replace(
        Settings(),
        ignore_steps=settings.ignore_steps,
        step_range=settings.step_range,
        comm_pattern=settings.comm_pattern,
    )


@cache
def code_key(package: str, module: str) -> str:
    """Return a hash of the code that makes tables: all of the core and one plug-in with its private siblings."""
    core = sorted(Path(tracetool.__file__).parent.rglob("*.py")) + sorted(
        Path(tracetool.__file__).parent.glob("*.json")
    )
    folder = Path(registry.package_path(package))
    plugin = [folder / f"{module}.py", *sorted(folder.glob("_*.py"))]
    digest = hashlib.blake2b(digest_size=20)
    for file in [*core, *plugin]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def settings_key(settings: Settings) -> str:
    """Return a hash of settings, for the names of folders that depend on them."""
    return hashlib.blake2b(repr(settings).encode(), digest_size=10).hexdigest()


def read_source(job: ReadJob) -> SourceReport:
    """Read one source into the store, or find it there: parse, split by rank, derive. Runs in a worker.

    A source that cannot be read is reported, not raised: the other ranks go on.
    """
    source = job.source
    code = code_key("tracetool.parsers", source.parser)
    derived = f"d-{settings_key(job.settings)}"
    try:
        key, fresh = _entry(job, code)
        summaries = [
            _derive_rank(store.entry_path(job.root, key), local, derived, job.settings, fresh.get(local))
            for local in _manifest(job.root, key).ranks
        ]
    except UnreadableTrace as error:
        return SourceReport(source, error=error.reason if error.byte is None else f"byte {error.byte}: {error.reason}")
    except OSError as error:
        return SourceReport(source, error=f"cannot be opened: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - one defect of ours must not cost the other ranks
        return SourceReport(
            source, error=f"tracetool failed on it, please report this: {type(error).__name__}: {error}"
        )
    row = store.read_tables(store.entry_path(job.root, key))["sources"].row(0, named=True)
    return SourceReport(source, entry=key, derived=derived, ranks=tuple(summaries), row={**row, "path": source.display})


def _manifest(root: Path, key: str) -> store.Manifest:
    found = store.manifest(root, key)
    if found is None:
        raise TracetoolError(f"cache entry {key} vanished while it was read; try again or use --cache off")
    return found


def _entry(job: ReadJob, code: str) -> tuple[str, dict[int | None, Tables]]:
    """Return the entry's key and, when the source was parsed just now, its tables by local rank."""
    source = job.source
    before = store.stat_key(source.path, code) if job.persistent else ""
    if before and (known := store.indexed(job.root, before)):
        return known, {}
    # without a cache nobody looks an entry up again: the path is key enough and the file is read once
    key = store.content_key(source.path, code) if job.persistent else store.stat_key(source.path, code)
    fresh: dict[int | None, Tables] = {}
    if store.manifest(job.root, key) is None:
        parser = next(p for p in registry.parsers() if p.__name__.rpartition(".")[2] == source.parser)
        tables = parser.parse(source.path, registry.ParseOptions(display_path=source.display))
        fresh = split_by_rank(tables)
        with store.new_folder(store.entry_path(job.root, key)) as folder:
            for local, part in fresh.items():
                store.write_tables(folder / rank_folder(local), part)
            store.write_tables(folder, {"sources": tables["sources"]})
            store.write_manifest(folder, list(fresh))
    if before and store.stat_key(source.path, code) == before:
        # a file that grew meanwhile is not what was hashed: it is read again next time
        store.index(job.root, before, key)
    return key, fresh


def rank_folder(local: int | None) -> str:
    """Return the name of the folder of one rank's tables inside an entry."""
    return "run" if local is None else f"r{local}"


def split_by_rank(tables: Tables) -> dict[int | None, Tables]:
    """Split what a parser returned into tables of one rank each; None holds tables without ranks."""
    import polars as pl  # noqa: PLC0415 - only workers need it

    ranks = tables["ranks"]["rank"].to_list() if "ranks" in tables else []
    rest = {name: table for name, table in tables.items() if name != "sources"}
    if len(ranks) <= 1:
        local = ranks[0] if ranks else None
        return {local: rest}
    return {
        local: {name: table.filter(pl.col("rank") == local) for name, table in rest.items() if "rank" in table.columns}
        for local in sorted(ranks)
    }


def _derive_rank(
    entry: Path, local: int | None, derived: str, settings: Settings, tables: Tables | None
) -> RankSummary:
    """Derive one rank's tables unless the store has them, and return the rank's summary."""
    folder = entry / rank_folder(local)
    target = folder / derived
    summary = target / "summary.json"
    if not summary.exists():
        from tracetool.derive import derive  # noqa: PLC0415 - imports polars, which a cache hit does not need

        base = tables if tables is not None else store.read_tables(folder)
        made = derive(base, settings) if "events" in base and base["events"].height else {}
        with store.new_folder(target) as temporary:
            store.write_tables(temporary, made)
            (temporary / "summary.json").write_bytes(msgspec.json.encode(summarize(local, base, made)))
    return msgspec.json.decode(summary.read_bytes(), type=RankSummary)


def summarize(local: int | None, base: Tables, derived: Tables) -> RankSummary:
    """Return what the main process must know of one rank in one source."""
    both = {**base, **derived}
    row = base["ranks"].row(0, named=True) if "ranks" in base and base["ranks"].height else {}
    events, steps = base.get("events"), derived.get("steps")
    unix = row.get("base_unix_ns")
    has_events = events is not None and events.height > 0
    return RankSummary(
        local=local,
        rank_source=row.get("rank_source"),
        world_size=row.get("world_size"),
        events=events.height if events is not None else 0,
        steps=sorted(steps["step"].drop_nulls().to_list()) if steps is not None else [],
        first_unix_ns=events["start_ns"][0] + unix if events is not None and has_events and unix is not None else None,
        last_unix_ns=events["start_ns"][-1] + unix if events is not None and has_events and unix is not None else None,
        features=[name for name, need in NEEDS.items() if need.met(both.get)],
    )


def ingest(
    run: str,
    settings: Settings,
    root: Store,
    open_executor: Callable[[int, int], Executor],
    progress: Callable[[str, int, int], None],
) -> Ingested:
    """Read a run.

    `open_executor(jobs, bytes)` starts the engine once the sources are known; `progress(phase, bytes done, bytes
    in all)` is called as sources end. Raises NothingReadable when no source could be read, UsageError when ranks
    or steps cannot be told apart or do not exist.
    """
    found = discover(run, settings)
    sources = [source for source in found.sources if _wanted(source, settings)]
    if not sources:
        raise UsageError(f"no file of rank {ranges(settings.ranks or ())} among {len(found.sources)} traces in {run}")
    total = sum(source.bytes for source in sources)
    progress("reading", 0, total)
    done = 0

    def finished(position: int) -> None:
        nonlocal done
        done += sources[position].bytes
        progress("reading", done, total)

    pool = open_executor(len(sources), total)
    narrow = derive_settings(settings)
    jobs = [ReadJob(source, root.root, root.persistent, narrow) for source in sources]
    reports = in_order([pool.submit(read_source, job) for job in jobs], finished)
    for report in reports:
        if report.entry:
            root.hold(report.entry)
    if all(report.error for report in reports):
        first = reports[0]
        raise NothingReadable(
            f"{run}: none of the {len(reports)} traces could be read; {first.source.display}: {first.error}"
        )
    return _assemble(run, found, reports, settings, root.root)


def _wanted(source: Source, settings: Settings) -> bool:
    """Leave out a source before reading it only when the user's own pattern says it is another rank."""
    if settings.ranks is None or source.rank_source != "option":
        return True
    return source.rank in settings.ranks


@dataclass(frozen=True)
class _Claim:
    """One source's claim to tell of one rank."""

    rank: int
    rank_source: str
    report: SourceReport
    summary: RankSummary

    @property
    def name(self) -> str:
        return self.report.source.display


def _claims(reports: Sequence[SourceReport]) -> list[_Claim]:
    """Give every source's ranks their numbers: option, then metadata, then file name, then 0 when it is alone."""
    claims, unknown = [], []
    for report in reports:
        source = report.source
        ranks = [summary for summary in report.ranks if summary.local is not None]
        for summary in ranks:
            local = summary.local if summary.local is not None and summary.local >= 0 else None
            if source.rank is not None and len(ranks) == 1 and (source.rank_source == "option" or local is None):
                claims.append(_Claim(source.rank, source.rank_source or "", report, summary))
            elif local is not None:
                claims.append(_Claim(local, summary.rank_source or "metadata", report, summary))
            else:
                unknown.append((report, summary))
    if len(unknown) == 1 and not claims:
        report, summary = unknown[0]
        return [_Claim(0, "assumed", report, summary)]
    if unknown:
        names = ", ".join(sorted(report.source.display for report, _ in unknown)[:3])
        raise UsageError(
            f"{len(unknown)} of {len(reports)} traces do not say which rank they are, in metadata or name ({names}); "
            "--rank-regex 'PATTERN([0-9]+)' finds it in the path"
        )
    return claims


def _choose(rank: int, claims: list[_Claim], settings: Settings) -> tuple[list[_Claim], str]:
    """Return the claims of a rank to use, at most one with events (it comes first), and what was left out."""
    with_events = [claim for claim in claims if claim.summary.events]
    rest = [claim for claim in claims if not claim.summary.events]
    if len(with_events) <= 1:
        return with_events + rest, ""
    if settings.iteration is not None:
        asked = [c for c in with_events if settings.iteration in (c.report.source.iteration, *c.summary.steps)]
        if len(asked) == 1:
            return asked + rest, ""
    ordered = sorted(with_events, key=lambda c: (c.summary.steps, c.summary.first_unix_ns or 0, c.name))
    for earlier, later in itertools.pairwise(ordered):
        if not _apart(earlier.summary, later.summary):
            raise UsageError(
                f"{earlier.name} and {later.name} are both of rank {rank} and of the same steps; "
                "leave one out, or tell ranks apart with --rank-regex"
            )
    last = ordered[-1]
    others = ", ".join(claim.name for claim in ordered[:-1])
    return [
        last,
        *rest,
    ], f"rank {rank}: {last.name} was taken, the last of {len(ordered)} iterations; not read: {others}"


def _apart(earlier: RankSummary, later: RankSummary) -> bool:
    """Say whether two traces of a rank are of different iterations: other steps, or without steps other times."""
    if earlier.steps and later.steps:
        return not set(earlier.steps) & set(later.steps)
    if earlier.last_unix_ns is None or later.first_unix_ns is None:
        return False
    return not (earlier.steps or later.steps) and earlier.last_unix_ns < later.first_unix_ns


def _assemble(run: str, found: Discovery, reports: Sequence[SourceReport], settings: Settings, root: Path) -> Ingested:
    """Turn the reports of all sources into the view of the run and a handle on each rank."""
    import polars as pl  # noqa: PLC0415 - keeps `--help` fast

    notes = list(found.ignored)
    by_rank: dict[int, list[_Claim]] = defaultdict(list)
    for claim in _claims(reports):
        by_rank[claim.rank].append(claim)
    everyone = sorted(by_rank)
    wanted = everyone if settings.ranks is None else [rank for rank in everyone if rank in settings.ranks]
    if not wanted and everyone:
        raise UsageError(
            f"no trace of rank {ranges(settings.ranks or ())} in {run}; there are ranks {ranges(everyone)}"
        )
    chosen: dict[int, list[_Claim]] = {}
    for rank in wanted:
        chosen[rank], note = _choose(rank, by_rank[rank], settings)
        notes += [note] if note else []
    handles = tuple(_handle(rank, claims, settings, root) for rank, claims in chosen.items())
    world = settings.world_size or max(
        (claim.summary.world_size or 0 for claims in by_rank.values() for claim in claims), default=0
    )
    notes += _gaps(everyone, world)
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
    return Ingested(view, handles, damaged)


def _handle(rank: int, claims: list[_Claim], settings: Settings, root: Path) -> StoredRank:
    folders = [store.entry_path(root, claim.report.entry) / rank_folder(claim.summary.local) for claim in claims]
    derived = str(folders[0] / claims[0].report.derived) if claims and claims[0].summary.events else None
    return StoredRank(rank, tuple(map(str, folders)), derived, settings.steps)


def _identity(handle: StoredRank, claim: _Claim) -> pl.DataFrame:
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


def _sources(reports: Sequence[SourceReport], chosen: Mapping[int, list[_Claim]]) -> pl.DataFrame:
    """Return table `sources` with the ranks that each one was used for, in the order of discovery."""
    import polars as pl  # noqa: PLC0415 - see _assemble

    from tracetool.tables import SCHEMAS  # noqa: PLC0415 - same

    schema = {**{name: column.dtype for name, column in SCHEMAS["sources"].columns.items()}, "ranks": pl.List(pl.Int32)}
    rows = []
    for report in reports:
        used = {rank: claim for rank, claims in chosen.items() for claim in claims if claim.report is report}
        assumed = [rank for rank, claim in used.items() if claim.rank_source == "assumed" and claim.summary.local == -1]
        notes = [f"no rank in its metadata or name: rank {rank} is assumed" for rank in assumed]
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


def _gaps(ranks: Sequence[int], world: int) -> list[str]:
    """Say which ranks of the job have no trace."""
    expected = range(world) if world else range(max(ranks, default=-1) + 1)
    missing = sorted(set(expected) - set(ranks))
    if not missing:
        return []
    return [f"no trace of {len(missing)} of {len(expected)} ranks: {ranges(missing)}"]


def ranges(numbers: Sequence[int]) -> str:
    """Write numbers shortly: 0-7, 12."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
