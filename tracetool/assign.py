"""Which source tells of which rank: numbers by option, metadata or name; duplicates, iterations, gaps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracetool.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.read import RankSummary, SourceReport
    from tracetool.settings import Settings


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
    """Give every source's ranks their numbers: option, then metadata, then file name, then 0 when it is alone."""
    claims, unknown = [], []
    for report in reports:
        source = report.source
        ranks = [summary for summary in report.ranks if summary.local is not None]
        for summary in ranks:
            local = summary.local if summary.local is not None and summary.local >= 0 else None
            if source.rank is not None and len(ranks) == 1 and (source.rank_source == "option" or local is None):
                claims.append(Claim(source.rank, source.rank_source or "", report, summary))
            elif local is not None:
                claims.append(Claim(local, summary.rank_source or "metadata", report, summary))
            else:
                unknown.append((report, summary))
    if len(unknown) == 1 and not claims:
        report, summary = unknown[0]
        return [Claim(0, "assumed", report, summary)]
    if unknown:
        names = ", ".join(sorted(report.source.display for report, _ in unknown)[:3])
        raise UsageError(
            f"{len(unknown)} of {len(reports)} traces do not say which rank they are, in metadata or name ({names}); "
            "--rank-regex 'PATTERN([0-9]+)' finds it in the path"
        )
    return claims


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


def gaps(ranks: Sequence[int], world: int) -> list[str]:
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
