"""Which source tells of which rank: precedence, duplicates, iterations, gaps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracetool.assign import assign, choose, gaps, ranges
from tracetool.discover import Source
from tracetool.errors import UsageError
from tracetool.read import RankSummary, SourceReport
from tracetool.settings import Settings


def _report(
    name: str,
    *locals_: int,
    rank: int | None = None,
    by: str | None = None,
    steps: tuple[int, ...] = (),
    events: int = 1,
    unix: tuple[int, int] | None = None,
    iteration: int | None = None,
) -> SourceReport:
    source = Source(Path(name), name, "kineto", "kineto", 1, 1, rank, by, iteration)
    summaries = tuple(
        RankSummary(
            local=local,
            rank_source="metadata" if local >= 0 else None,
            world_size=None,
            events=events,
            steps=list(steps),
            first_unix_ns=unix[0] if unix else None,
            last_unix_ns=unix[1] if unix else None,
            features=[],
        )
        for local in locals_
    )
    return SourceReport(source, entry=name, ranks=summaries)


def _found(*reports: SourceReport) -> list[tuple[int, str, str]]:
    return [(claim.rank, claim.rank_source, claim.name) for claim in assign(reports)]


def test_an_option_wins_then_metadata_then_the_name() -> None:
    assert _found(
        _report("a", 5, rank=1, by="option"),
        _report("b", 6, rank=2, by="file name"),
        _report("c", -1, rank=3, by="file name"),
    ) == [(1, "option", "a"), (6, "metadata", "b"), (3, "file name", "c")]


def test_a_lone_trace_without_a_rank_is_taken_for_rank_0_and_it_is_said() -> None:
    assert _found(_report("a", -1)) == [(0, "assumed", "a")]


def test_several_traces_without_a_rank_are_an_error_that_names_the_option() -> None:
    with pytest.raises(UsageError, match=r"2 of 2 traces .*a, b.*--rank-regex"):
        assign([_report("a", -1), _report("b", -1)])
    with pytest.raises(UsageError, match=r"1 of 2 traces"):
        assign([_report("a", 0), _report("b", -1)])


def test_ranks_of_a_file_with_several_keep_their_numbers_whatever_its_name() -> None:
    assert _found(_report("rank9", 0, 1, rank=9, by="option")) == [(0, "metadata", "rank9"), (1, "metadata", "rank9")]


def test_two_files_of_one_rank_and_the_same_steps_are_an_error_that_names_both() -> None:
    claims = assign([_report("one", 0, steps=(3, 4)), _report("two", 0, steps=(4, 5))])
    with pytest.raises(UsageError, match=r"one and two are both of rank 0"):
        choose(0, claims, Settings())


def test_two_files_of_one_rank_without_steps_or_clock_are_an_error() -> None:
    with pytest.raises(UsageError, match="both of rank 0"):
        choose(0, assign([_report("one", 0), _report("two", 0)]), Settings())


def test_of_different_iterations_the_last_is_taken_and_said() -> None:
    claims = assign([_report("later", 0, steps=(12, 13)), _report("earlier", 0, steps=(2, 3))])
    chosen, note = choose(0, claims, Settings())
    assert [claim.name for claim in chosen] == ["later"]
    assert "later was taken" in note
    assert "earlier" in note


def test_an_iteration_can_be_chosen_by_path_or_step() -> None:
    claims = assign([_report("a", 0, steps=(2, 3), iteration=10), _report("b", 0, steps=(12, 13), iteration=20)])
    assert [c.name for c in choose(0, claims, Settings(iteration=10))[0]] == ["a"]
    assert [c.name for c in choose(0, claims, Settings(iteration=12))[0]] == ["b"]


def test_without_steps_other_times_are_other_iterations() -> None:
    claims = assign([_report("b", 0, unix=(100, 200)), _report("a", 0, unix=(0, 99))])
    assert [claim.name for claim in choose(0, claims, Settings())[0]] == ["b"]
    overlapping = assign([_report("b", 0, unix=(50, 200)), _report("a", 0, unix=(0, 99))])
    with pytest.raises(UsageError, match="a and b"):
        choose(0, overlapping, Settings())


def test_sources_without_events_stand_beside_the_one_that_has_them() -> None:
    claims = assign([_report("dump", 0, events=0), _report("trace", 0)])
    chosen, note = choose(0, claims, Settings())
    assert ([claim.name for claim in chosen], note) == (["trace", "dump"], "")


def test_gaps_are_told_against_the_world_or_the_highest_rank() -> None:
    assert gaps([0, 1], 2) == []
    assert gaps([0], 0) == []
    assert gaps([0, 3], 0) == ["no trace of 2 of 4 ranks: 1-2"]
    assert gaps([0], 128) == ["no trace of 127 of 128 ranks: 1-127"]


def test_ranges() -> None:
    assert ranges([]) == ""
    assert ranges([3, 1, 2, 7, 7]) == "1-3, 7"
