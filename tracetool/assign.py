"""Which source tells of which rank: numbers by option, metadata or name; duplicates, iterations, gaps.

A file of several ranks that does not name them numbers them from 0. Several such files are the nodes of one run:
their ranks go on counting from file to file, in the order of their paths, which is an assumption and is told; or
`--rank-regex` finds the number of the node in the path, and rank = node × ranks a node + number in the file.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tracetool import units
from tracetool.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracetool.read import RankSummary, SourceReport
    from tracetool.settings import Settings


MOST_RANKS: Final = 1 << 20
"""A world size beyond this is a damaged number, not a job."""


@dataclass(frozen=True)
class Claim:
    """One source's claim to tell of one rank."""

    rank: int
    rank_source: str
    report: SourceReport
    summary: RankSummary

    @property
    def name(self) -> str:
        """Path of the source, for messages."""
        return self.report.source.display


def assign(reports: Sequence[SourceReport]) -> list[Claim]:
    """Give every source's ranks their numbers: option, then metadata, then file name, then 0 when it is alone.

    A log or dump that tells no rank is left out when anything else does (`nameless` says so); a trace with events
    that tells none is an error.
    """
    claims, unknown = [], []
    first = _ranks_before(reports)
    for position, report in enumerate(reports):
        source = report.source
        ranks = [summary for summary in report.ranks if summary.local is not None]
        for summary in ranks:
            local = summary.local if summary.local is not None and summary.local >= 0 else None
            if source.rank is not None and len(ranks) == 1 and (source.rank_source == "option" or local is None):
                claims.append(Claim(source.rank, source.rank_source or "", report, summary))
            elif local is not None:
                number = local + first.get(position, 0)
                claims.append(Claim(number, summary.rank_source or "metadata", report, summary))
            else:
                unknown.append((report, summary))
    with_events = [pair for pair in unknown if pair[1].events]
    if not claims and 1 in (len(unknown), len(with_events)):
        report, summary = (with_events or unknown)[0]
        return [Claim(0, "assumed", report, summary)]
    if with_events or (unknown and not claims):
        names = ", ".join(sorted(report.source.display for report, _ in unknown)[:3])
        raise UsageError(
            f"{len(unknown)} of {len(reports)} traces do not say which rank they are, in metadata or name ({names}); "
            "--rank-regex 'PATTERN([0-9]+)' finds it in the path"
        )
    return claims


def _ranks_before(reports: Sequence[SourceReport]) -> dict[int, int]:
    """Return, by position, the rank at which each file begins whose several ranks are only numbered, not named."""
    numbered = {at: report for at, report in enumerate(reports) if _only_numbered(report)}
    counts = {at: len(report.ranks) for at, report in numbered.items()}
    nodes = [report.source.rank for report in numbered.values() if report.source.rank_source == "option"]
    if counts and len(nodes) == len(counts):
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{report.source.display}: {counts[at]}" for at, report in numbered.items())
            raise UsageError(
                f"--rank-regex numbers nodes, and the files hold different numbers of ranks ({listed}): which ranks "
                "are whose cannot be told; without --rank-regex they are counted in the order of paths"
            )
        return {at: (node or 0) * counts[at] for at, node in zip(counts, nodes, strict=True)}
    if any(_before(a, b) or _before(b, a) for a, b in itertools.combinations(numbered.values(), 2)):
        return {}  # nodes of one run record at the same time: these are iterations
    return dict(zip(counts, itertools.accumulate(counts.values(), initial=0), strict=False))


def _only_numbered(report: SourceReport) -> bool:
    """Say whether a file holds several ranks and their numbers are its own count."""
    return len(report.ranks) > 1 and all(summary.rank_source == "assumed" for summary in report.ranks)


def _before(earlier: SourceReport, later: SourceReport) -> bool:
    """Say whether a file ends before another begins, by the wall clock; not when that is unknown."""
    ends = [summary.last_unix_ns for summary in earlier.ranks]
    starts = [summary.first_unix_ns for summary in later.ranks]
    known_ends, known_starts = [t for t in ends if t is not None], [t for t in starts if t is not None]
    return bool(known_ends and known_starts) and max(known_ends) < min(known_starts)


def renumbered(claims: Sequence[Claim]) -> str:
    """Return a sentence about the ranks of one file that were numbered after those of other files; mostly empty."""
    moved = [claim.rank for claim in claims if claim.summary.local not in (None, -1, claim.rank)]
    if not moved or any(claim.rank_source != "assumed" for claim in claims):
        return ""
    how = (
        "--rank-regex told the node"
        if claims[0].report.source.rank_source == "option"
        else "counted on from the files before it, in the order of paths; --rank-regex 'node([0-9]+)' finds the node"
    )
    return f"its ranks are assumed to be {ranges(moved)} of the run: {how}"


def nameless(reports: Sequence[SourceReport], claims: Sequence[Claim]) -> list[str]:
    """Name the sources that tell of a process but not of which rank it is, and were therefore left out."""
    used = {(claim.name, claim.summary.local) for claim in claims}
    left = sorted(
        {
            report.source.display
            for report in reports
            for summary in report.ranks
            if summary.local is not None and summary.local < 0 and (report.source.display, summary.local) not in used
        }
    )
    if not left:
        return []
    names = ", ".join(left[:3]) + (", \u2026" if len(left) > 3 else "")  # noqa: PLR2004 - as shown
    what = "1 log or dump tells of a process" if len(left) == 1 else f"{len(left)} logs or dumps tell of processes"
    told = f"{what} without saying which rank it is, and was left out: {names}"
    return [f"{told}; --rank-regex 'PATTERN([0-9]+)' finds it in the path"]


def choose(rank: int, claims: list[Claim], settings: Settings) -> tuple[list[Claim], str]:
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


def world_of(stated: Sequence[int]) -> tuple[int, list[str]]:
    """Return how many ranks the job has, by what the traces state (0: they do not), and what is not believed of it."""
    odd = sorted({size for size in stated if size > MOST_RANKS})
    notes = [f"a world size of {size:,} is stated and not believed" for size in odd]
    return max((size for size in stated if size <= MOST_RANKS), default=0), notes


def gaps(ranks: Sequence[int], world: int) -> list[str]:
    """Say which ranks of the job have no trace."""
    expected = world or max(ranks, default=-1) + 1
    missing = units.absent(ranks, expected)
    if not missing:
        return []
    count = expected - len({rank for rank in ranks if rank < expected})
    return [f"no trace of {count} of {expected} ranks: {', '.join(missing)}"]


def strangers(chosen: Mapping[int, Sequence[Claim]], world: int) -> list[str]:
    """Say what speaks against these ranks being of one job: other world sizes, ranks beyond it, other times."""
    notes = []
    sizes = {rank: claim.summary.world_size for rank, claims in chosen.items() for claim in claims}
    stated = sorted({size for size in sizes.values() if size})
    if len(stated) > 1:
        notes.append(f"the traces state world sizes {', '.join(map(str, stated))}: are they of one job?")
    if world and (beyond := [rank for rank in chosen if rank >= world]):
        notes.append(f"ranks {ranges(beyond)} do not exist in a job of {world}: are the traces of one job?")
    spans = {
        rank: (claims[0].summary.first_unix_ns, claims[0].summary.last_unix_ns)
        for rank, claims in chosen.items()
        if claims and claims[0].summary.first_unix_ns is not None and claims[0].summary.last_unix_ns is not None
    }
    if spans:
        middle = sorted(spans.values())[len(spans) // 2]
        apart = [rank for rank, span in spans.items() if span[0] > middle[1] or span[1] < middle[0]]
        if apart:
            notes.append(f"ranks {ranges(apart)} were recorded at another time than the rest: are they of one run?")
    return notes


def ranges(numbers: Sequence[int]) -> str:
    """Write numbers shortly: 0-7, 12."""
    return ", ".join(units.ranges(sorted(set(numbers))))
