"""One rank reduced: several dumps stay apart, copies are one start, logs are one view."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
from hang_harness import Rank, read
from written_dumps import SECOND, Dump, op, write

from tracetool.join.hangrank import reduce_rank

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.tables import Tables


def reduced(*sources: Tables) -> Tables:
    """Return rank 0's small tables from several parsed sources."""
    names = {name for tables in sources for name in tables}
    together = {name: pl.concat([tables[name] for tables in sources if name in tables]) for name in names}
    return reduce_rank(Rank(0, together).table)


def dump(folder: Path, name: str, *entries: dict[str, object]) -> Tables:
    place = folder / name
    place.mkdir()
    write(place, {0: Dump(entries=list(entries), status={"0": (9, 8)})})
    return read(place, name)[0]


def test_dumps_stay_apart_and_copies_are_one_start(tmp_path: Path) -> None:
    first = dump(tmp_path, "a", op(1, done=True), op(2))
    again = dump(tmp_path, "b", op(2), op(3))
    other = dump(tmp_path, "c", op(2, time_created_ns=77 * SECOND))
    tables = reduced(first, again, other)
    told = tables["dumps"].select("dump", "start", "oldest_unix_ns").rows()
    assert [row[:2] for row in told] == [
        ("a/nccl_trace_rank_0", 0), ("b/nccl_trace_rank_0", 0), ("c/nccl_trace_rank_0", 1)
    ]  # fmt: skip
    assert told[2][2] == 77 * SECOND
    lanes = tables["lanes"].select("dump", "oldest", "newest", "done").rows()
    assert lanes == [
        ("a/nccl_trace_rank_0", 2, 2, 1), ("b/nccl_trace_rank_0", 2, 3, None), ("c/nccl_trace_rank_0", 2, 2, None)
    ]  # fmt: skip
    assert tables["groups"].select("dump", "ranks").rows() == [(f"{n}/nccl_trace_rank_0", "0-3") for n in "abc"]
    assert tables["status"]["dump"].to_list() == [f"{n}/nccl_trace_rank_0" for n in "abc"]


def test_a_rank_without_a_dump_or_log_gives_nothing() -> None:
    assert reduce_rank(Rank(0, {}).table) == {}
