"""Which dumps belong together: one moment of one job, out of a directory that may hold several starts or jobs.

Dumps of different ranks in one folder with one way of naming are a *set*. Where a rank stands in several sets, the
newest set counts, with every other that shares no rank with those taken before; a copy (two dumps that share a record)
only fills in ranks. Every set from the first older one on is of an earlier start, or of another job that hung before:
the dumps do not say which, so it is left aside and told. Two sets whose launches overlap in time are two jobs, and so
are dumps of which one counts a rank to a group that the rank itself lists with other members: of those no verdict is
given.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from tracetool.join.hangstate import rank_text, ranks_of
from tracetool.units import short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_RANK_IN_NAME: Final = re.compile(r"\d+(?=(?:\.json|\.pkl|\.pickle)?(?:\.gz)?$)")
_TIMEOUTS: Final = 3
_LETTERS: Final = 48


@dataclass(frozen=True)
class DumpSet:
    """Dumps of different ranks, written by one start of one job as far as their place tells."""

    files: str
    """Their path with `*` for the rank."""
    sources: Mapping[int, str]
    """Rank → the source."""
    starts: Mapping[int, int]
    """Rank → number of the process start among the rank's dumps."""
    oldest_ns: int | None
    newest_ns: int | None
    """First and last launch in them, Unix ns; None where none holds a record."""

    def text(self) -> str:
        """Name it for a reader."""
        return f"{self.files} (ranks {rank_text(self.sources)})"


@dataclass(frozen=True)
class Choice:
    """The dumps to judge by, and what was found beside them."""

    aside: tuple[DumpSet, ...] = ()
    """Sets of an earlier start, or of a job that hung before."""
    stale: tuple[int, ...] = ()
    """Ranks whose only dump is of an earlier start."""
    jobs: tuple[str, ...] = ()
    """Where the dumps are of several jobs: how each can be told, a few words each."""
    taken: str = ""
    """Files of the newest set, where others were left aside."""
    apart_ns: int | None = None
    """Time between the last launch in the newest set left aside and the first in those that count."""

    def left_out(self) -> pl.Expr:
        """Select, of table `dumps`, those that were left aside."""
        sources = sorted({source for one in self.aside for source in one.sources.values()})
        return pl.col("source").is_in(sources) | pl.col("rank").is_in(list(self.stale))

    def sentences(self) -> tuple[str, ...]:
        """Return what the reader is told of dumps that were left aside."""
        if not self.aside:
            return (
                (f"Dumps of ranks {rank_text(self.stale)} are of an earlier start: left aside.",) if self.stale else ()
            )
        more = f" and {len(self.aside) - 1} more" if len(self.aside) > 1 else ""
        apart = f", {self.apart_ns / 1e9:.0f} s older" if self.apart_ns is not None else ""
        first, taken = short(self.aside[0].text(), _LETTERS), short(self.taken, _LETTERS)
        return (f"Judged by {taken}; left aside as of another start or job{apart}: {first}{more}.",)


def set_name(source: str) -> str:
    """Return a source's path with `*` for the rank: the same for all dumps of a set."""
    return _RANK_IN_NAME.sub("*", source)


def choose(parts: Mapping[str, pl.DataFrame]) -> tuple[dict[str, pl.DataFrame], Choice]:
    """Return the small tables of the dumps that count (join/hangrank.py makes them), and what was chosen."""
    dumps = parts["dumps"]
    aside: tuple[DumpSet, ...] = ()
    jobs: tuple[str, ...] = ()
    taken = ""
    if dumps.filter(kind="recorder")["rank"].is_duplicated().any():
        chosen, taken, aside, jobs = _newest(_sets(dumps.filter(kind="recorder")))
        wanted = pl.DataFrame(
            sorted(chosen.items()), schema={"rank": pl.Int32, "dump": pl.String}, orient="row"
        )  # fmt: skip
        logs = dumps.filter(pl.col("dump") == "").select("rank", "dump").unique()
        wanted = pl.concat([wanted, logs]).sort("rank", "dump")
        parts = {
            name: table.join(wanted, on=["rank", "dump"], how="semi", maintain_order="left")
            if "dump" in table.columns
            else table
            for name, table in parts.items()
        }
    first = parts["dumps"]["oldest_unix_ns"].min()
    last = max((one.newest_ns for one in aside if one.newest_ns is not None), default=None)
    apart = first - last if isinstance(first, int) and last is not None else None
    stale = tuple(_stale(parts["dumps"], parts["ops"]))
    kept = {name: table.filter(~pl.col("rank").is_in(stale)) for name, table in parts.items()}
    return kept, Choice(aside, stale, jobs or _contradicting(kept["groups"], kept["dumps"]), taken, apart)


def _sets(dumps: pl.DataFrame) -> list[DumpSet]:
    """Return the sets, the one with the latest launches first; one without any launch goes by its files' times."""
    rows: dict[str, dict[int, dict[str, object]]] = defaultdict(dict)
    for row in dumps.sort("newest_unix_ns", "file_unix_ns", "source", nulls_last=False).iter_rows(named=True):
        rows[set_name(row["source"])][row["rank"]] = row
    ages = []
    for files, by_rank in rows.items():
        told = pl.DataFrame(list(by_rank.values()), schema_overrides=dict(dumps.schema))
        oldest, newest = told["oldest_unix_ns"].min(), told["newest_unix_ns"].max()
        made = DumpSet(
            files,
            {rank: str(row["source"]) for rank, row in sorted(by_rank.items())},
            dict(told.sort("rank").select("rank", "start").iter_rows()),
            oldest if isinstance(oldest, int) else None,
            newest if isinstance(newest, int) else None,
        )
        ages.append((told["newest_unix_ns"].median() or told["file_unix_ns"].median() or 0.0, files, made))
    return [made for _, _, made in sorted(ages, key=lambda age: (age[0], age[1]), reverse=True)]


def _newest(sets: Sequence[DumpSet]) -> tuple[dict[int, str], str, tuple[DumpSet, ...], tuple[str, ...]]:
    """Return the source to take of each rank, the newest set, those left aside, and the jobs, if there are several."""
    chosen: dict[int, str] = {}
    starts: dict[int, int] = {}
    taken: list[DumpSet] = []
    aside: list[DumpSet] = []
    for one in sets:
        shared = [rank for rank in one.sources if rank in chosen]
        copy = any(one.starts[rank] == starts[rank] for rank in shared)
        if aside or (shared and not copy):
            aside.append(one)
            continue
        taken.append(one)
        chosen = {**one.sources, **chosen}
        starts = {**one.starts, **starts}
    begun = min((one.oldest_ns for one in taken if one.oldest_ns is not None), default=None)
    at_once = [one for one in aside if begun is not None and one.newest_ns is not None and one.newest_ns >= begun]
    jobs = [one.text() for one in (*taken, *at_once)] if at_once else []
    return chosen, taken[0].files, tuple(aside), tuple(jobs)


def _stale(dumps: pl.DataFrame, ops: pl.DataFrame) -> list[int]:
    """Return the ranks whose newest launch is so long before the others' hang that their dump is of an earlier start.

    The hang is dated by the median of the ranks' oldest operations in flight; within it nobody launches anything
    for one timeout, so what ended three timeouts earlier belongs to another run of the job.
    """
    flying = ops.filter("in_flight").drop_nulls(["created_unix_ns", "timeout_ns"])
    if flying.is_empty():
        return []
    # a dump without records is as old as its file
    newest = dumps.select("rank", newest_unix_ns=pl.coalesce("newest_unix_ns", "file_unix_ns")).drop_nulls()
    oldest = flying.group_by("rank").agg(pl.col("created_unix_ns").min())
    # the newest set decides: a rank's hang counts from the latest of those that most ranks share
    latest = dumps["newest_unix_ns"].max()
    span = _TIMEOUTS * pl.lit(flying["timeout_ns"].max())
    current = oldest.filter(pl.col("created_unix_ns") > pl.lit(latest) - span)["created_unix_ns"]
    if current.is_empty():
        return []
    since = pl.lit(current.min()) - span
    return sorted(newest.filter(pl.col("newest_unix_ns") < since)["rank"].to_list())


def _contradicting(groups: pl.DataFrame, dumps: pl.DataFrame) -> tuple[str, ...]:
    """Return how the jobs differ where a rank is counted to a group that it lists with other members itself."""
    recorders = dumps.filter(kind="recorder")["rank"].to_list()
    listed = groups.filter(pl.col("rank").is_in(recorders)).drop_nulls("ranks")
    several = listed.group_by("group").agg(pl.col("ranks").n_unique(), pl.col("desc").drop_nulls().min())
    # the default group first: it tells the jobs apart best
    several = several.filter(pl.col("ranks") > 1).sort(pl.col("desc") != "default_pg", "group", nulls_last=True)
    for name in several["group"].to_list():
        own = dict(listed.filter(group=name).select("rank", "ranks").iter_rows())
        sides = defaultdict(list)
        for rank, members in own.items():
            sides[members].append(rank)
        if any(own.get(other, members) != members for members in sides for other in ranks_of(members)):
            return tuple(
                f"dumps of ranks {rank_text(ranks)}, whose group {name} is ranks {members}"
                for members, ranks in sorted(sides.items(), key=lambda side: (-len(side[1]), side[0]))
            )
    return ()
