"""Collectives: rows of groups, bandwidths by the conventions, links beside their peers, and what is only a bound."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import polars as pl
from inmemory import MemoryRank, rows, run_view, steps

from tracetool.grouprates import COLUMNS
from tracetool.join.groups import unify
from tracetool.join.match import match
from tracetool.join.summary import sums, worst
from tracetool.join.waits import symmetric_waits
from tracetool.settings import Settings
from tracetool.tables import empty, frame

if TYPE_CHECKING:
    from tracetool.results import Result

collectives = import_module("tracetool.analyses.collectives")

MB = 1 << 20
Comm = tuple[int, int, int, int, int]
"""(group, rank, step, start, duration) of an all-reduce of 1 MiB."""
SEEN = ("rank", "group", "desc", "ranks", "size", "op", "phase", "count")


def _members(group: int, size: int) -> list[int]:
    return list(range(group * size, group * size + size))


def _ask(
    *comms: Comm,
    size: int = 2,
    hosts: dict[int, str] | None = None,
    curve: pl.DataFrame | None = None,
    nic_gbs: float | None = None,
) -> Result:
    groups = sorted({c[0] for c in comms})
    seen = [(c[1], str(c[0]), "mesh_dp", _members(c[0], size), size, "all_reduce", "backward", 1) for c in comms]
    table = unify(pl.DataFrame(seen, schema=collectives_seen(), orient="row"), empty("process_groups"))
    cells, instances, ranks = [], [], {}
    for group_id, group in enumerate(groups):
        mine = [
            (r, n, "all_reduce", None, s, at, ns, MB, None) for n, (g, r, s, at, ns) in enumerate(comms) if g == group
        ]
        names = ["rank", "event", "op", "seq", "step", "start_ns", "dur_ns", "bytes", "peer"]
        matched = match(
            pl.DataFrame(mine, schema=names, orient="row", infer_schema_length=None).cast(
                {"rank": pl.Int32, "step": pl.Int32, "peer": pl.Int32, "seq": pl.Int64}
            )
        ).rows
        waits = symmetric_waits(matched, size)
        cells.append(sums(matched, waits, group_id))
        instances.append(worst(matched, waits, group_id, 300))
        for rank in sorted({c[1] for c in comms if c[0] == group}):
            own = matched.filter(rank=rank)
            facts = {"waits": waits.filter(rank=rank).with_columns(role=pl.lit("dp"))}
            last = own.select((pl.col("start_ns") + pl.col("dur_ns")).max()).item()
            windows = steps(*((s, s * 1_000_000, (s + 1) * 1_000_000) for s in own["step"].unique().sort()), rank=rank)
            assert last < 10**9
            of_rank = frame(
                "comms",
                {
                    **{n: own[n] for n in names},
                    "group": [str(group)] * own.height,
                    "track": [0] * own.height,
                    "name": ["nccl"] * own.height,
                },
            )
            ranks[rank] = MemoryRank(rank, {"comms": of_rank, "steps": windows}, facts)
    answers = [collectives.per_rank(r, r.facts, Settings()) for _, r in sorted(ranks.items())]
    parts = {name: pl.concat([a[name] for a in answers]) for name in answers[0]}
    place = {rank: (hosts or {}).get(rank) for rank in ranks}
    joined = {
        "groups": table,
        "clocks": pl.DataFrame({"rank": list(ranks)}, schema={"rank": pl.Int32}).with_columns(
            half_width_ns=pl.lit(0, pl.Int64), residual_p95_ns=pl.lit(None, pl.Int64)
        ),
        "collective_sums": pl.concat(cells),
        "collective_worst": pl.concat(instances),
        "hosts": pl.DataFrame(
            {
                "rank": list(place),
                "host": [h or "" for h in place.values()],
                "assumed": [h is None for h in place.values()],
            },
            schema={"rank": pl.Int32, "host": pl.String, "assumed": pl.Boolean},
        ),
    }
    if curve is not None:
        joined["bandwidth_curve"] = curve
    view = run_view([r for _, r in sorted(ranks.items())], device_name="NVIDIA H100 80GB HBM3")
    result: Result = collectives.analyze(
        parts, replace(view, joined=joined, world_size=size * len(groups)), Settings(nic_gbs=nic_gbs)
    )
    return result


def collectives_seen() -> dict[str, Any]:
    types = (pl.Int32, pl.String, pl.String, pl.List(pl.Int32), pl.Int32, pl.String, pl.String, pl.Int64)
    return dict(zip(SEEN, types, strict=True))


def _healthy(slow: dict[int, int] | None = None, groups: int = 4) -> list[Comm]:
    """Return three steps of all-reduces of 10 µs, longer in the slow groups; the second member comes 5 µs late."""
    found = []
    for group in range(groups):
        ns = (slow or {}).get(group, 10_000)
        for step in (1, 2, 3):
            for k in range(2):
                at = step * 1_000_000 + k * 100_000
                low, high = _members(group, 2)
                found += [(group, low, step, at, ns + 5_000), (group, high, step, at + 5_000, ns)]
    return found


ONE_HOST = dict.fromkeys(range(8), "a")


def test_waiting_is_no_bandwidth() -> None:
    result = _ask(*_healthy(), hosts=ONE_HOST)
    table = result.tables["groups"]
    assert table.columns == list(COLUMNS)
    first = table.row(0, named=True)
    assert (first["count"], first["wait_ns"], first["transfer_ns"]) == (6, 30_000, 60_000)
    assert first["algbw_gbs"] == first["busbw_gbs"] == MB / 10_000
    assert first["line_rate_gbs"] == 450.0
    assert first["nccl_gbs"] == 370.8
    assert first["share_of_line_rate"] == MB / 10_000 / 450
    assert not first["lower_bound"]
    assert result.metrics["grid_dp"] == 2
    assert result.metrics["matched_share"] == 1.0
    assert result.headline[0].value == "dp 2"


def test_a_healthy_run_names_nothing() -> None:
    result = _ask(*_healthy(), hosts=ONE_HOST)
    assert result.findings == []
    assert result.metrics["slow_links"] == 0
    assert result.tables["links"]["ratio"].to_list() == [1.0] * 4


def test_a_slow_group_is_named_with_what_its_ranks_would_save() -> None:
    result = _ask(*_healthy({2: 20_000}), hosts=ONE_HOST)
    (finding,) = result.findings
    assert finding.where.ranks == (4, 5)
    assert "2 times slower" in finding.title
    assert finding.confidence == "high"
    assert finding.saving.select("rank", "step", "ns").rows() == [(r, s, 20_000) for r in (4, 5) for s in (1, 2, 3)]
    assert result.tables["links"].row(finding.evidence[0][1][0], named=True)["ranks"] == [4, 5]


def test_slow_groups_over_one_pair_of_hosts_name_the_link() -> None:
    hosts = {0: "a", 1: "b", 2: "a", 3: "b", 4: "c", 5: "d", 6: "c", 7: "d"}
    result = _ask(*_healthy({0: 20_000, 1: 20_000}), hosts=hosts, nic_gbs=50.0)
    assert [f.title.partition(" moves")[0] for f in result.findings] == ["The link between hosts a and b"]
    assert result.tables["groups"]["line_rate_gbs"].unique().to_list() == [50.0]


def test_without_known_hosts_line_rates_are_null_and_it_is_said() -> None:
    result = _ask(*_healthy())
    assert result.tables["groups"]["line_rate_gbs"].null_count() == 4
    assert any("which ranks share a host is not known" in note for note in result.notes)


def test_missing_members_make_bandwidths_lower_bounds_and_links_unjudged() -> None:
    result = _ask(*(c for c in _healthy() if c[1] % 2 == 0))
    table = result.tables["groups"]
    assert table["lower_bound"].all()
    assert table["transfer_ns"].null_count() == 4
    assert table["busbw_gbs"][0] == MB / 15_000
    assert result.metrics["slow_links"] is None
    assert result.findings == []


def test_waiting_by_rank_and_step_adds_up() -> None:
    heat = _ask(*_healthy()).tables["per_rank_step"]
    assert heat.filter(rank=0).row(0) == (0, 1, 2, 30_000, 10_000, 20_000, 0)
    assert heat.filter(rank=1).row(0) == (1, 1, 2, 20_000, 0, 20_000, 0)


def test_the_clusters_own_ceiling_stands_beside() -> None:
    curve = frame(
        "bandwidth_curve",
        {"source": ["x"], "op": ["all_reduce"], "bytes": [MB], "in_place": [False], "time_ns": [1], "algbw_gbs": [1.0],
         "busbw_gbs": [200.0]},
    )  # fmt: skip
    result = _ask(*_healthy(), curve=curve)
    assert result.tables["groups"]["ceiling_gbs"].to_list() == [200.0] * 4
    assert result.tables["groups"]["share_of_ceiling"][0] == MB / 10_000 / 200
    assert _ask(*_healthy()).tables["groups"]["ceiling_gbs"].null_count() == 4


def test_without_groups_it_is_skipped_with_what_to_record() -> None:
    rank = MemoryRank(
        0,
        {
            "comms": rows(
                "comms", 0, ("event", "start_ns", "dur_ns", "op", "track", "name"), (0, 0, 5, "all_reduce", 0, "nccl")
            )
        },
    )
    result = collectives.analyze(collectives.per_rank(rank, {}, Settings()), run_view([rank]), Settings())
    assert result.status == "skipped"
    assert "PyTorch 2.4" in result.reason


def test_an_instance_whose_data_moved_three_times_longer_is_an_outlier() -> None:
    odd = [(0, 0, 9, 9_000_000, 45_000), (0, 1, 9, 9_005_000, 40_000)]
    result = _ask(*_healthy(), *odd, hosts=ONE_HOST)
    found = result.tables["instances"].filter("outlier")
    assert found.select("ranks", "step", "transfer_ns", "excess_ns", "last_rank").rows() == [
        ([0, 1], 9, 40_000, 30_000, 1)
    ]
    assert (result.metrics["outliers"], result.metrics["outliers_lost_ns"]) == (1, 30_000)
    assert result.findings == []
