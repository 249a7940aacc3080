"""Which source tells of which rank: precedence, duplicates, iterations, gaps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracetool.assign import assign, choose, gaps, nameless, ranges, renumbered, strangers, world_of
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
    told: str = "metadata",
) -> SourceReport:
    source = Source(Path(name), name, "kineto", "kineto", 1, 1, rank, by, iteration)
    summaries = tuple(
        RankSummary(
            local=local,
            rank_source=told if local >= 0 else None,
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


def test_a_log_without_a_rank_is_left_out_beside_sources_that_tell_theirs_and_it_is_said() -> None:
    reports = [_report("dump", 4, events=0), _report("a.log", -1, events=0), _report("b.log", -1, events=0)]
    claims = assign(reports)
    assert [(claim.rank, claim.name) for claim in claims] == [(4, "dump")]
    (note,) = nameless(reports, claims)
    assert note.startswith("2 logs or dumps tell of processes")
    assert "a.log, b.log; --rank-regex" in note
    assert nameless(reports[:1], claims) == []


def test_a_lone_trace_stays_rank_0_beside_a_log_that_tells_none() -> None:
    reports = [_report("trace", -1), _report("a.log", -1, events=0)]
    assert _found(*reports) == [(0, "assumed", "trace")]
    assert "a.log" in nameless(reports, assign(reports))[0]


def test_logs_alone_that_tell_no_rank_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"2 of 2 traces .*--rank-regex"):
        assign([_report("a.log", -1, events=0), _report("b.log", -1, events=0)])


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
    assert world_of([]) == (0, [])
    assert world_of([8, 0, 16]) == (16, [])
    assert world_of([8, 2**31 - 1]) == (8, ["a world size of 2,147,483,647 is stated and not believed"])
    assert gaps([0, 1], 2) == []
    assert gaps([0], 0) == []
    assert gaps([0, 3], 0) == ["no trace of 2 of 4 ranks: 1-2"]
    assert gaps([3], 1 << 40) == [f"no trace of {(1 << 40) - 1} of {1 << 40} ranks: 0-2, 4-{(1 << 40) - 1}"]
    assert gaps([0], 128) == ["no trace of 127 of 128 ranks: 1-127"]


def test_ranges() -> None:
    assert ranges([]) == ""
    assert ranges([3, 1, 2, 7, 7]) == "1-3, 7"


def _node(name: str, count: int, *, node: int | None = None, unix: tuple[int, int] | None = None) -> SourceReport:
    return _report(name, *range(count), rank=node, by=None if node is None else "option", told="assumed", unix=unix)


def test_files_of_several_numbered_ranks_are_the_nodes_of_one_run() -> None:
    found = assign([_node("a", 2), _node("b", 3), _report("c", 9), _node("d", 2, unix=(0, 9))])
    assert [claim.rank for claim in found] == [0, 1, 2, 3, 4, 9, 5, 6]
    notes = {name: renumbered([c for c in found if c.name == name]) for name in "abcd"}
    assert [notes["a"], notes["c"]] == ["", ""]
    assert "assumed to be 2-4 of the run: counted on from the files before it" in notes["b"]
    assert "assumed to be 5-6" in notes["d"]


def test_the_option_numbers_nodes_of_numbered_ranks() -> None:
    found = assign([_node("a", 4, node=2), _node("b", 4, node=0)])
    assert [claim.rank for claim in found] == [8, 9, 10, 11, 0, 1, 2, 3]
    assert "8-11 of the run: --rank-regex told the node" in renumbered(found[:4])
    with pytest.raises(UsageError, match=r"different numbers of ranks \(a: 4, b: 2\)"):
        assign([_node("a", 4, node=2), _node("b", 2, node=0)])


def test_numbered_ranks_recorded_one_after_the_other_are_iterations() -> None:
    claims = assign([_node("a", 2, unix=(0, 99)), _node("b", 2, unix=(100, 200))])
    assert [claim.rank for claim in claims] == [0, 1, 0, 1]
    chosen, note = choose(1, [claim for claim in claims if claim.rank == 1], Settings())
    assert chosen[0].name == "b"
    assert "the last of 2 iterations" in note


def test_ranks_that_cannot_be_of_one_job_are_told() -> None:
    claims = assign([_report("a", 0, unix=(0, 100)), _report("b", 1, unix=(50, 150)), _report("c", 9, unix=(900, 950))])
    chosen = {claim.rank: [claim] for claim in claims}
    notes = strangers(chosen, 2)
    assert notes[0].startswith("ranks 9 do not exist in a job of 2")
    assert notes[1].startswith("ranks 9 were recorded at another time")
    assert strangers({rank: chosen[rank] for rank in (0, 1)}, 2) == []
