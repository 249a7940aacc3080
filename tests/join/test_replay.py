"""Replay: a brute-force oracle on random graphs, and the published answers of two real jobs."""

from __future__ import annotations

import json
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optables import MERGED, OpTable, load

from tracetool.errors import TracetoolError
from tracetool.join import replay
from tracetool.join.replay import binding, graph

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int]], list[int], list[int], list[int]]:
    """Nodes, edges (pred, node, lag), rendezvous, values, releases; edges and meetings follow one order: no circle."""
    rounds = draw(st.integers(1, 5))
    width = draw(st.integers(1, 4))
    nodes = rounds * width
    edges = [
        (draw(st.integers(0, r * width - 1)), r * width + w, draw(st.integers(-3, 9)))
        for r in range(1, rounds)
        for w in range(width)
        for _ in range(draw(st.integers(0, 3)))
    ]
    meets = [draw(st.sampled_from([-1, r])) for r in range(rounds) for _ in range(width)]
    numbers = st.lists(st.integers(0, 20), min_size=nodes, max_size=nodes)
    return nodes, edges, meets, draw(numbers), draw(numbers)


@given(graphs())
def test_times_are_those_of_the_definition(
    case: tuple[int, list[tuple[int, int, int]], list[int], list[int], list[int]],
) -> None:
    nodes, edges, meets, values, releases = case
    start, end = [0] * nodes, [0] * nodes
    for _ in range(nodes + 1):  # plain fixed point: as many rounds as the longest path
        for n in range(nodes):
            came = [end[p] + lag for p, q, lag in edges if q == n]
            start[n] = max(came) if came else releases[n]
        for n in range(nodes):
            met = [start[m] for m in range(nodes) if m == n or (meets[n] >= 0 and meets[m] == meets[n])]
            end[n] = max(met) + values[n]
    pred, node, lag = (np.array([e[k] for e in edges], np.int64) for k in range(3))
    made = graph(nodes, pred, node, np.array(meets))
    found = made.replay(np.array(values, float), lag.astype(float), np.array(releases, float))
    assert found.start.tolist() == start
    assert found.end.tolist() == end
    both = made.replay(np.array([values, values], float).T, lag.astype(float), np.array(releases, float))
    assert both.end[:, 1].tolist() == end
    arriver, edge = binding(made, found, lag.astype(float))
    for n in range(nodes):
        assert end[n] == start[arriver[n]] + values[n]
        assert start[n] == (releases[n] if edge[n] < 0 else end[pred[edge[n]]] + lag[edge[n]])


@pytest.mark.parametrize("narrow", [False, True])
def test_a_circle_is_told(narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001 - drawn
    monkeypatch.setattr(replay, "_FIRST_LEVELS", 1 if narrow else 256)
    with pytest.raises(TracetoolError, match="2 communications wait for each other in a circle"):
        graph(3, np.array([0, 1, 2]), np.array([1, 2, 1]))


@given(graphs())
def test_a_narrow_graph_has_the_times_of_its_levels_to_the_last_bit(
    case: tuple[int, list[tuple[int, int, int]], list[int], list[int], list[int]],
) -> None:
    nodes, edges, meets, values, releases = case
    pred, node, lag = (np.array([e[k] for e in edges], np.int64) for k in range(3))
    columns = np.array([values, values[::-1]]).T / 7
    found = []
    for first_levels in (1, 256):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replay, "_FIRST_LEVELS", first_levels)
            made = graph(nodes, pred, node, np.array(meets))
        assert (made.narrow is not None) == (first_levels == 1)
        found.append(made.replay(columns, lag / 3, np.array(releases) / 11))
        alone = made.replay(columns[:, 0], lag / 3, np.array(releases) / 11)
        assert np.array_equal(alone.end, found[-1].end[:, 0])
    assert np.array_equal(found[0].start, found[1].start)
    assert np.array_equal(found[0].end, found[1].end)


def test_a_long_chain_is_narrow_and_a_wide_graph_is_not() -> None:
    chain = np.arange(1_000)
    assert graph(1_001, chain, chain + 1).narrow is not None
    many = np.arange(100 * 300)
    assert graph(100 * 301, many, many + 100).narrow is None


def test_nothing_replays_to_nothing() -> None:
    nothing = np.zeros(0, np.int64)
    assert graph(0, nothing, nothing).replay(np.zeros(0)).end.size == 0


# ---- the published jobs: S, S_t, S_stage, S_dp, M_W, M_S by the same replay ----


def only(job: OpTable, ideal: NDArray[np.float64], mine: NDArray[np.bool_]) -> float:
    """Return the mean step time when `mine` keep their own values and all others are ideal."""
    return float(job.total(np.where(mine[:, None], job.value, ideal)).mean())


@pytest.mark.parametrize("name", ["ST", "AR"])
def test_published_slowdowns(name: str, shared: Path) -> None:
    folder = shared / "stragglers"
    job = load(folder, name)
    said = json.loads((folder / f"result-{name}.json").read_text())
    ideal = job.ideal()
    original, best = job.total(job.value), float(job.total(ideal).mean())
    assert job.measured.mean() / original.mean() == pytest.approx(said["launch_slowdown"], rel=1e-5)
    assert original.mean() / best == pytest.approx(said["blocking_slowdown"], rel=1e-5)
    steps = [value for _, value in sorted((int(k), v) for k, v in said["step_t_nodelay"].items())]
    assert original.tolist() == pytest.approx(steps, abs=2e-5)
    columns = {
        "optype": job.nodes["optype"].replace(MERGED).to_numpy(),
        "stage": job.nodes["stage"].cast(str).to_numpy(),
        "dp_rank": job.nodes["dp_rank"].cast(str).to_numpy(),
    }
    slowdowns = {}
    for dimension, labels in columns.items():
        wanted = said[f"blocking_decompose_by_{dimension}"]
        found = {label: only(job, ideal, labels == label) / best for label in wanted}
        assert found == pytest.approx(wanted, rel=1e-5)
        slowdowns[dimension] = found
    ranks = job.nodes.unique("rank").sort("rank").select("rank", "stage", "dp_rank").rows()
    score = {
        rank: min(slowdowns["dp_rank"][str(replica)], slowdowns["stage"][str(stage)]) for rank, stage, replica in ranks
    }
    top = sorted(score, key=lambda rank: (-score[rank], rank))[: ceil(0.03 * len(score))]
    last = job.nodes["stage"].max()
    for file, mine in (
        (f"mw-{name}.json", job.nodes["rank"].is_in(top).to_numpy()),
        (f"ms-{name}.json", (job.nodes["stage"] == last).to_numpy()),
    ):
        wanted = json.loads((folder / file).read_text())
        removed = only(job, ideal, ~mine)
        share = (original.mean() - removed) / (original.mean() - best)
        added = (only(job, ideal, mine) - best) / (original.mean() - best)
        assert share == pytest.approx(wanted["rem"], abs=1e-5)
        assert added == pytest.approx(wanted["add"], abs=1e-5)
