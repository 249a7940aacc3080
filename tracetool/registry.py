"""Finds the modules of parsers/ and analyses/ by folder and holds the two contracts they keep.

The core never imports a parser or an analysis by name: to add one, add a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

from tracetool.errors import TracetoolError
from tracetool.needs import NEEDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import polars as pl

    from tracetool.results import Result
    from tracetool.settings import Settings
    from tracetool.tables import Tables

HEAD_BYTES = 65_536
"""How much of a source, decompressed, `sniff` gets to see."""


class Parser(Protocol):
    """A module in parsers/. Its docstring links the specification of the format.

    It may also define `CONVERT`, the command line (a tuple of words with {source} and {target}) that makes a
    readable form of a source in the store, `SEVERAL_RANKS = True` where a file may hold several ranks,
    `READS_PLACE = True` where its tables hold the file's path or time, or a rank told by its name, and
    `why_not_read(path, head) -> str | None`, which says of a file it knows and leaves alone what to do instead.
    """

    __name__: str
    __doc__: str
    FORMAT: str

    def sniff(self, path: Path, head: bytes) -> bool:
        """Say by content whether this is the format; `head` is empty for a directory."""
        ...

    def parse(self, path: Path, options: ParseOptions) -> Tables:
        """Read the source once, in bounded memory, into base tables that pass tables.check.

        Recovers what a damaged file still holds and says so in `sources`; raises UnreadableTrace when nothing
        can be had. A source of one rank whose rank it does not state uses rank -1; a source of several ranks
        numbers them. Never writes beside its input.
        """
        ...


class Analysis(Protocol):
    """A module in analyses/. Its docstring is the definition the report's help shows: formula, units, source.

    It may also define `per_rank(rank, facts, settings) -> Tables`, run in a worker for each rank, and `GATES`,
    a mapping of a short option of `tracetool check` to (metric, "min" or "max"), and `INSTEAD`, the analysis that
    answers the same from other sources.
    """

    __name__: str
    __doc__: str
    TITLE: str
    NEEDS: Sequence[str]

    def analyze(self, parts: Tables, run: RunView, settings: Settings) -> Result:
        """Reduce what `per_rank` returned (each table concatenated over ranks, in rank order) to a Result."""
        ...


@dataclass(frozen=True)
class ParseOptions:
    """What a parser may be told. Nothing here changes numbers."""

    display_path: str
    """How to name the source in tables and messages: the path as found below what the user typed."""
    memory_bytes: int = 1 << 30
    """Memory the parse may use beside its result, a soft bound."""


class RankView(Protocol):
    """What `per_rank` sees of one rank: its own tables, read column by column."""

    @property
    def rank(self) -> int:
        """The rank's number."""
        ...

    def table(self, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return a base or derived table of this rank, only the named columns; empty when it was not recorded."""
        ...


@dataclass(frozen=True)
class RunView:
    """What `analyze` sees of the run: the small tables, no events."""

    path: str
    """The run as the user typed it."""
    ranks: pl.DataFrame
    """Table `ranks`, one row a rank, sorted by rank."""
    sources: pl.DataFrame
    """Table `sources`, with a column `ranks` (list) beside those of the data model."""
    steps: pl.DataFrame
    """Table `steps` of all ranks, sorted by (rank, start_ns)."""
    quality: pl.DataFrame
    """Table `quality` of all ranks."""
    world_size: int | None
    """Ranks of the job: option, else metadata, else null."""
    features: Mapping[str, tuple[int, ...]]
    """Need → the ranks that meet it."""
    joined: Mapping[str, pl.DataFrame]
    """Small tables of the join (groups, clocks, …) and of sources that belong to no rank; may be empty."""
    notes: Sequence[str] = ()
    """What holds for the run as a whole: missing ranks, files not read, iterations left out; a sentence each."""


def package_path(package: str) -> str:
    """Return the folder of a plug-in package."""
    return next(iter(importlib.import_module(package).__path__))


def modules(package: str) -> list[object]:
    """Import every module of a folder whose name does not begin with an underscore, sorted by name."""
    paths = importlib.import_module(package).__path__
    names = sorted(module.name for module in pkgutil.iter_modules(paths) if not module.name.startswith("_"))
    return [importlib.import_module(f"{package}.{name}") for name in names]


@cache
def parsers() -> tuple[Parser, ...]:
    """Return every parser, sorted by module name."""
    return tuple(cast("Parser", module) for module in modules("tracetool.parsers"))


@cache
def analyses() -> Mapping[str, Analysis]:
    """Return every analysis by name (its module's), sorted. Raises TracetoolError when one names an unknown need."""
    found = {}
    for module in modules("tracetool.analyses"):
        analysis = cast("Analysis", module)
        name = analysis.__name__.rpartition(".")[2]
        unknown = [need for need in analysis.NEEDS if need not in NEEDS]
        if unknown:
            raise TracetoolError(f"analysis {name}: unknown need {', '.join(unknown)}; known: {', '.join(NEEDS)}")
        found[name] = analysis
    return found


def holds_several_ranks(parser: str) -> bool:
    """Say whether files of a parser, by its module's name, may hold several ranks (its `SEVERAL_RANKS`)."""
    return any(p.__name__.endswith(f".{parser}") and getattr(p, "SEVERAL_RANKS", False) for p in parsers())


def reads_its_place(parser: str) -> bool:
    """Say whether what a parser returns, by its module's name, depends on a file's path and time (`READS_PLACE`)."""
    return any(p.__name__.endswith(f".{parser}") and getattr(p, "READS_PLACE", False) for p in parsers())


def why_not_read(path: Path, head: bytes) -> str | None:
    """Return what a parser says of a file that it knows and does not read; None when none knows it."""
    said = (getattr(parser, "why_not_read", None) for parser in parsers())
    return next((why for ask in said if ask is not None and (why := ask(path, head))), None)


def sniff(path: Path, head: bytes) -> Parser | None:
    """Return the one parser that recognises a source; None when none does.

    Raises TracetoolError when two do: that is a defect of a parser, and the message names the candidates.
    """
    candidates = [parser for parser in parsers() if parser.sniff(path, head)]
    if len(candidates) > 1:
        formats = ", ".join(parser.FORMAT for parser in candidates)
        raise TracetoolError(f"recognised by several parsers ({formats}); please report this file")
    return candidates[0] if candidates else None
