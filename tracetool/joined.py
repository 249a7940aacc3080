"""What the ranks say together: small tables, the place of each rank's facts, and both kept for the next report.

In the folder of a join, a cache entry: `g<group>/r<rank>.arrow` and `pipeline/p<replica>/r<rank>-*.parquet` hold the
facts of each rank, `clock.parquet` those of all. `kept/` is written last: the small tables, and `told.json` with notes,
groups and a digest of every file of facts. A join is taken from there only if
all of them still are what they were; else the whole folder is dropped and the ranks are joined again.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from tracetool import bundle, store
from tracetool.errors import StoreFailed
from tracetool.joinpipeline import pipeline_facts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from tracetool.tables import Tables

ARRIVALS: Final = "-arrivals"
"""Ending of the folder that holds the waits of a group which need a common clock."""
_KEPT: Final = "kept"
_TABLES: Final = "tables"
_TOLD: Final = "told.json"
_FACTS: Final = ("clock.parquet", "g*/r*.arrow", "pipeline/p*/r*.parquet")


@dataclass(frozen=True)
class Joined:
    """What the ranks say together: small tables for analyses, and where each rank's facts lie."""

    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """groups, clocks, clock_kinds, clock_checks, collective_sums, collective_worst, and for the replay nodes and edges.

    Empty when nothing was joined.
    """
    folder: str = ""
    groups_of: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class _Told(msgspec.Struct, frozen=True):
    """What is kept of a join beside its tables."""

    folder: bool
    """The ranks' facts lie in the folder."""
    groups_of: list[tuple[int, tuple[int, ...]]]
    notes: tuple[str, ...]
    files: dict[str, str]


def facts_of(folder: str, groups: Sequence[int], rank: int) -> Tables:
    """Return the facts about one rank: `waits`, sorted by event, `clock`, its one row, and what its pipeline tells.

    Empty: nothing is known.
    """
    import polars as pl  # noqa: PLC0415 - workers only

    from tracetool.tables import conform  # noqa: PLC0415 - same

    clock = Path(folder, "clock.parquet")
    facts: Tables = {}
    if clock.exists():
        facts["clock"] = conform("clock", pl.read_parquet(clock).filter(pl.col("rank") == rank))
    parts = [Path(folder, f"g{group}{part}", f"r{rank}.arrow") for group in groups for part in ("", ARRIVALS)]
    frames = [pl.read_ipc_stream(path) for path in parts if path.exists()]
    if frames:
        facts["waits"] = conform("waits", pl.concat(frames, how="diagonal")).sort("event")
    return {**facts, **pipeline_facts(folder, rank, facts.get("waits"))}


def keep(folder: Path, joined: Joined) -> None:
    """Keep a join for the next report; where nothing can be written it is only not kept."""
    with contextlib.suppress(StoreFailed, OSError), store.new_folder(folder / _KEPT) as temporary:
        bundle.write(temporary / _TABLES, joined.tables)
        told = _Told(bool(joined.folder), sorted(joined.groups_of.items()), joined.notes, _digests(folder))
        (temporary / _TOLD).write_bytes(msgspec.json.encode(told))


def kept(folder: Path) -> Joined | None:
    """Return the join that is kept in a folder; None when there is none. A damaged one is dropped with its facts."""
    if not (folder / _KEPT).is_dir():
        return None
    try:
        told = msgspec.json.decode((folder / _KEPT / _TOLD).read_bytes(), type=_Told)
        tables = bundle.read(folder / _KEPT / _TABLES)
        if tables is not None and _digests(folder) == told.files:
            return Joined(tables, str(folder) if told.folder else "", dict(told.groups_of), told.notes)
    except (OSError, ValueError):  # cut or garbled, as msgspec says it
        pass
    store.drop(folder)
    return None


def _digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file of facts, by its path in the folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in _FACTS
        for path in sorted(folder.glob(pattern))
    }
