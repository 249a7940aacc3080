"""Maps 1 and 2: one source into the store. Parse, split by rank, derive; only a summary comes back."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tracetool import heap, registry, store
from tracetool.errors import StoreFailed, TracetoolError, UnreadableTrace
from tracetool.needs import NEEDS
from tracetool.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracetool.discover import Source
    from tracetool.tables import Tables


class GroupUse(msgspec.Struct, frozen=True):
    """How often a rank did one operation over one communicator in one phase; group None: none was recorded."""

    group: str | None
    desc: str | None
    ranks: list[int] | None
    size: int | None
    op: str | None
    phase: str | None
    count: int


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
    groups: list[GroupUse] = []


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
    defect: bool = False
    """The error is one of tracetool, not of the source."""


def derive_settings(settings: Settings) -> Settings:
    """Return the settings that derivation depends on, everything else at its default."""
    return replace(
        Settings(),
        ignore_steps=settings.ignore_steps,
        step_range=settings.step_range,
        comm_pattern=settings.comm_pattern,
    )


@cache
def core_key() -> str:
    """Return a hash of the core's code and facts: whatever it made is stale when this changes."""
    home = Path(__file__).parent
    return _hash_files([*sorted(home.rglob("*.py")), *sorted(home.rglob("*.json"))])


@cache
def code_key(package: str, module: str) -> str:
    """Return a hash of the code that makes tables: all of the core and one plug-in with its private siblings."""
    folder = Path(registry.package_path(package))
    return core_key() + _hash_files([folder / f"{module}.py", *sorted(folder.glob("_*.py"))])


def _hash_files(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for file in files:
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
    if registry.reads_its_place(source.parser) and source.path.exists():
        # rank, source and age of a dump stand in no byte of it: equal content is not equal tables
        code = f"{code} {source.display} {source.path.stat().st_mtime_ns}"
    derived = f"d-{settings_key(job.settings)}"
    try:
        return _read(job, code, derived)
    except StoreFailed:
        raise  # no fault of this source
    except UnreadableTrace as error:
        return SourceReport(source, error=error.reason if error.byte is None else f"byte {error.byte}: {error.reason}")
    except OSError as error:
        return SourceReport(source, error=f"cannot be opened: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - one defect of ours must not cost the other ranks
        why = f"tracetool failed on it, please report this: {type(error).__name__}: {error}"
        return SourceReport(source, error=why, defect=True)


def _read(job: ReadJob, code: str, derived: str) -> SourceReport:
    key, fresh = _entry(job, code)
    try:
        return _report(job, key, derived, fresh)
    except (StoreFailed, UnreadableTrace):
        raise
    except Exception:
        if fresh or not job.persistent:
            raise
        # found in the cache, and not readable any more: read the source itself
        store.drop(store.entry_path(job.root, key))
        key, fresh = _entry(job, code)
        return _report(job, key, derived, fresh)


def _report(job: ReadJob, key: str, derived: str, fresh: Mapping[int | None, Tables]) -> SourceReport:
    entry = store.entry_path(job.root, key)
    summaries = [
        _derive_rank(entry, local, derived, job.settings, fresh.get(local)) for local in _manifest(job.root, key).ranks
    ]
    row = {**store.read_tables(entry)["sources"].row(0, named=True), "path": job.source.display}
    return SourceReport(job.source, entry=key, derived=derived, ranks=tuple(summaries), row=row)


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
        store.touch(job.root, known)
        return known, {}
    # without a cache nobody looks an entry up again: the path is key enough and the file is read once
    key = store.content_key(source.path, code) if job.persistent else store.stat_key(source.path, code)
    fresh: dict[int | None, Tables] = {}
    if store.manifest(job.root, key) is None:
        store.drop(store.entry_path(job.root, key))  # what is there is not whole
        parser = next(p for p in registry.parsers() if p.__name__.rpartition(".")[2] == source.parser)
        tables = parser.parse(source.path, registry.ParseOptions(display_path=source.display))
        heap.give_back()
        fresh = split_by_rank(tables)
        if before and store.stat_key(source.path, code) != before:
            # it grew meanwhile: what was read is not what was hashed, and is good for this run only
            key = f"changed-{uuid.uuid4().hex}"
        with store.new_folder(store.entry_path(job.root, key)) as folder:
            for local, part in fresh.items():
                store.write_tables(folder / rank_folder(local), part)
            store.write_tables(folder, {"sources": tables["sources"]})
            store.write_manifest(folder, list(fresh))
    if before and store.stat_key(source.path, code) == before:
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
    if not store.whole(target):
        store.drop(target)
        from tracetool.derive import derive  # noqa: PLC0415 - imports polars, which a cache hit does not need

        base = tables if tables is not None else store.read_tables(folder)
        made = derive(base, settings) if "events" in base and base["events"].height else {}
        with store.new_folder(target) as temporary:
            store.write_tables(temporary, made)
            (temporary / "summary.json").write_bytes(msgspec.json.encode(summarize(local, base, made)))
        del base, made
        heap.give_back()
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
        groups=_group_uses(derived),
    )


def _group_uses(derived: Tables) -> list[GroupUse]:
    import polars as pl  # noqa: PLC0415 - only workers need it

    comms = derived.get("comms")
    if comms is None or not comms.height:
        return []
    text = [pl.col(name).cast(pl.String) for name in ("group", "group_desc", "op")]
    keys = ["group", "group_desc", "group_ranks", "group_size", "op", "phase"]
    counted = (
        comms.select("event", *text, "group_ranks", "group_size")
        .join(derived["gpu"].select("event", "launch", pl.col("phase").cast(pl.String)), on="event", how="left")
        # one launched before the recording began lost its arguments with its launch: no group can be told
        .filter(pl.col("group").is_not_null() | pl.col("launch").is_not_null())
        .group_by(keys)
        .agg(count=pl.len())
        .sort("group", "op", "phase", pl.col("group_ranks").list.len(), "group_desc", "count")
    )
    return [GroupUse(*row) for row in counted.select(*keys, "count").iter_rows()]
