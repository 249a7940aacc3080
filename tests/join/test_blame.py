"""Who stands out among peers and why: small matrices of own work."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracetool.join.blame import WORK, Verdict, matrix, others, verdicts

PEERS = {0: 0, 1: 0, 2: 0, 3: 0}


def work(*rows: tuple[int, int, int, int], **more: int) -> pl.DataFrame:
    """Rows (rank, step, self, host); elements and bytes are alike unless told by `rank<r>`."""
    return pl.DataFrame(
        [(r, k, s, h, 0, 0, more.get(f"rank{r}", 100), 50) for r, k, s, h in rows], schema=WORK, orient="row"
    )


def kernels(*rows: tuple[int, str, int, int]) -> pl.DataFrame:
    return pl.DataFrame(
        rows, schema={"rank": pl.Int32, "name": pl.String, "count": pl.Int64, "ns": pl.Int64}, orient="row"
    )


def judged(
    table: pl.DataFrame, names: pl.DataFrame | None = None, peers: dict[int, int] | None = None
) -> list[Verdict]:
    chosen = PEERS if peers is None else peers
    return verdicts(matrix(table, chosen), table, kernels() if names is None else names, chosen)


def four(slow: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Four ranks, three steps; rank 1 has `slow` (self, host), the others (100, 10)."""
    return [(r, k, *(slow if r == 1 else (100, 10))) for r in range(4) for k in range(3)]


@given(st.lists(st.lists(st.integers(0, 9) | st.none(), min_size=3, max_size=3), min_size=1, max_size=6), st.data())
def test_the_median_leaves_the_rank_itself_out(values: list[list[int | None]], data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.integers(0, 1), min_size=len(values), max_size=len(values)))
    measure = np.array([[np.nan if v is None else v for v in row] for row in values], float)
    found = others(measure, np.array(groups))
    for r, k in np.ndindex(measure.shape):
        rest = [measure[o, k] for o in range(len(values)) if o != r and groups[o] == groups[r]]
        rest = [v for v in rest if np.isfinite(v)]
        wanted = float(np.median(rest)) if rest and np.isfinite(measure[r, k]) else np.nan
        assert np.array_equal(found[r, k], wanted, equal_nan=True)


def test_a_rank_six_percent_above_is_named_and_four_percent_is_not() -> None:
    names = kernels(*((r, "k", 10, 106 if r == 1 else 100) for r in range(4)))
    assert [v.cause for v in judged(work(*four((106, 10))), names)] == [None, "device", None, None]
    assert [v.cause for v in judged(work(*four((104, 10))), names)] == [None] * 4


def test_once_is_not_most_of_the_time() -> None:
    rows = [(r, k, 150 if (r, k) == (1, 0) else 100, 0) for r in range(4) for k in range(3)]
    verdict = judged(work(*rows))[1]
    assert verdict.cause is None
    assert verdict.persistence == pytest.approx(1 / 3)


def test_gaps_of_the_host_are_the_hosts() -> None:
    verdict = judged(work(*four((100, 40))))[1]
    assert verdict.cause == "host"
    assert verdict.excess == pytest.approx(30 / 110)


def test_a_peer_that_waits_longer_for_its_host_because_it_computes_less_is_no_straggler() -> None:
    rows = [(0, 0, 130, 0), (1, 0, 100, 30)]
    assert [v.cause for v in judged(work(*rows), kernels((0, "k", 1, 130), (1, "k", 1, 100)), {0: 0, 1: 0})] == [
        "device", None,
    ]  # fmt: skip


def test_larger_inputs_are_more_work() -> None:
    verdict = judged(work(*four((130, 10)), rank1=130))[1]
    assert verdict.cause == "work"
    assert "1.30" in verdict.evidence


def test_more_kernels_are_more_work() -> None:
    names = kernels(*((r, "k", 13 if r == 1 else 10, 130 if r == 1 else 100) for r in range(4)))
    assert judged(work(*four((130, 10))), names)[1].cause == "work"


def test_kernels_slower_by_different_factors_without_shapes_are_unknown() -> None:
    table = work(*four((130, 10))).with_columns(elements=pl.lit(None, pl.Int64))
    names = kernels(*((r, n, 1, 80 if (r, n) == (1, "a") else 50) for r in range(4) for n in "ab"))
    assert judged(table, names)[1].cause == "unknown"


def test_without_peers_nothing_is_said() -> None:
    found = judged(work(*four((200, 0))), peers={r: r for r in range(4)})
    assert {v.persistence for v in found} == {None}
    assert {v.cause for v in found} == {None}
