"""Whole simulated runs through the join, held to the simulator's truth: waits, buckets, roles, clocks, slow links."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from simulator import Config, SlowLink, simulate
from simulator.record import BASE_UNIX_NS

import tracetool
from tracetool.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulator import Run as Simulated

    from tracetool.run import Run

KEY = ["rank", "step"]
CONFIGS = st.builds(
    Config,
    gpus_per_node=st.just(64),
    dp=st.sampled_from([1, 2, 4]),
    tp=st.sampled_from([1, 2]),
    pp=st.sampled_from([1, 2]),
    cp=st.sampled_from([1, 2]),
    dp_mode=st.sampled_from(["ddp", "zero1", "fsdp"]),
    schedule=st.sampled_from(["1f1b", "gpipe"]),
    microbatches=st.integers(1, 3),
    steps=st.integers(1, 3),
    p2p_peers=st.just(value=True),
    group_naming=st.sampled_from(["mesh", "megatron", "undefined"]),
    custom_all_reduce=st.booleans(),
    recompute=st.booleans(),
    jitter=st.sampled_from([0.0, 0.05]),
    comm_jitter=st.sampled_from([0.0, 0.3]),
    end_jitter_ns=st.sampled_from([0, 3_000]),
    unrecorded_steps=st.sampled_from([0, 1]),
    sync_step=st.booleans(),
    slow_ranks=st.sampled_from([{}, {1: 1.3}]),
    clock_offsets_ns=st.sampled_from([{}, {0: 77_000_000}]),
    seed=st.integers(0, 1000),
).filter(lambda c: c.world_size > 1)


def _open(simulated: Simulated, folder: str | Path, ranks: Sequence[int] | None = None, **options: Any) -> Run:  # noqa: ANN401 - settings of any type
    files = {name: options.pop(name) for name in ("sequence", "pg_config") if name in options}
    simulated.write_kineto(Path(folder), ranks, **files)
    given = {"gpus_per_node": simulated.config.gpus_per_node, **options}
    return tracetool.open_run(folder, Settings(**given), cache="off", engine="serial")


def _rows(run: Run, name: str, columns: Sequence[str], key: Sequence[str] = KEY) -> list[tuple[Any, ...]]:
    result = run.results[name]
    assert result.status == "ok", result.reason
    return result.tables["per_rank_step"].sort(key).select(columns).rows()


def _truth(rows: list[dict[str, Any]], columns: Sequence[str], key: Sequence[str] = KEY) -> list[tuple[Any, ...]]:
    return pl.DataFrame(rows).sort(key).select(columns).rows()


# a failing run is small enough to look at; making it smaller takes minutes
@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(CONFIGS, st.booleans())
def test_buckets_and_overlap_equal_the_truth_to_the_ns_on_one_host(config: Config, sequence: bool) -> None:  # noqa: FBT001 - drawn
    simulated = simulate(config)
    truth = simulated.truth(joined=True)
    with tempfile.TemporaryDirectory() as folder, _open(simulated, folder, sequence=sequence) as run:
        columns = list(truth.budget()[0])
        assert _rows(run, "budget", columns) == _truth(truth.budget(), columns)
        roles = _roles(simulated, run)
        if all(mine == true for mine, true in roles):
            key = [*KEY, "role"]
            columns = list(truth.overlap()[0])
            assert _rows(run, "overlap", columns, key) == _truth(truth.overlap(), columns, key)


def _roles(simulated: Simulated, run: Run) -> list[tuple[str, str]]:
    """Return (role found, true role) of every group that was found."""
    true = {(group.name, *group.ranks): group.role for group in simulated.groups}
    found = run.view.joined["groups"].select("group", "ranks", "role")
    return [(role, true[name, *ranks]) for name, ranks, role in found.iter_rows()]


@pytest.mark.parametrize("naming", ["mesh", "megatron", "undefined"])
@pytest.mark.parametrize(
    "config",
    [
        Config(steps=1, microbatches=1),
        Config(steps=1, microbatches=1, dp_mode="fsdp", recompute=True),
        Config(steps=1, microbatches=1, dp=4, pp=1, ep=2),
        Config(steps=1, microbatches=1, tp=1, cp=2, dp_mode="zero1"),
        Config(steps=1, microbatches=1, tp=1, cp=2, dp=1, pp=1, recompute=True),
    ],
    ids=["dp tp pp", "fsdp tp pp", "dp ep tp", "dp cp pp", "cp alone"],
)
def test_roles_are_right_or_other(config: Config, naming: Any, tmp_path: Path) -> None:  # noqa: ANN401 - a literal
    simulated = simulate(config.replace(group_naming=naming))
    run = _open(simulated, tmp_path)
    roles = _roles(simulated, run)
    assert len(roles) > 0
    assert [pair for pair in roles if pair[0] not in (pair[1], "other")] == []
    if naming != "undefined":
        assert [pair for pair in roles if pair[0] != pair[1]] == []
        sizes = {"dp": config.dp, "tp": config.tp, "pp": config.pp, "cp": config.cp, "ep": config.ep}
        if config.dp_mode == "fsdp":
            sizes["fsdp"] = sizes.pop("dp")
        metrics = run.results["collectives"].metrics
        grid = {name.removeprefix("grid_"): n for name, n in metrics.items() if name.startswith("grid_")}
        assert grid == {role: size for role, size in sizes.items() if size > 1}


def test_transfers_and_bandwidths_of_every_group_equal_the_truth(tmp_path: Path) -> None:
    simulated = simulate(Config(p2p_peers=True, jitter=0.03, comm_jitter=0.2, end_jitter_ns=500, ep=2))
    table = _open(simulated, tmp_path).results["collectives"].tables["groups"]
    true: dict[tuple[Any, ...], list[int]] = {}
    for row in simulated.truth(joined=True).instances():
        op = "send_recv" if row["op"] in ("send", "recv") else row["op"]
        true.setdefault((row["group"], op, row["bytes"]), []).append(row["transfer_ns"])
    found = {(row["group"], row["op"], row["bytes"]): row for row in table.iter_rows(named=True)}
    assert set(found) == set(true)
    for key, transfers in true.items():
        row = found[key]
        assert (row["count"], row["transfer_ns"]) == (len(transfers), sum(transfers))
        n = row["size"]
        factor = {"all_reduce": 2 * (n - 1) / n, "all_to_all": (n - 1) / n, "send_recv": 1.0}[key[1]]
        assert row["algbw_gbs"] == pytest.approx(key[2] * len(transfers) / sum(transfers), rel=1e-12)
        assert row["busbw_gbs"] == pytest.approx(row["algbw_gbs"] * factor, rel=1e-12)


# ---- what is missing ----


@pytest.mark.parametrize("ranks", [[0], [0, 1], [1, 2, 4, 7], [0, 1, 2, 3, 4, 5, 6]])
def test_with_ranks_missing_the_rest_is_as_true_as_it_can_be(ranks: list[int], tmp_path: Path) -> None:
    simulated = simulate(Config(p2p_peers=True, jitter=0.05, slow_ranks={2: 1.2}))
    truth = simulated.truth(ranks, joined=True)
    run = _open(simulated, tmp_path, ranks)
    columns = list(truth.budget()[0])
    assert _rows(run, "budget", columns) == _truth(truth.budget(), columns)
    assert any("no trace of" in note for note in run.view.notes)
    assert [f for f in run.results["collectives"].findings if f.severity != "info"] == []


def test_ranks_that_recorded_other_steps_are_matched_where_they_overlap(tmp_path: Path) -> None:
    config = Config(p2p_peers=True, jitter=0.05, steps=4, recorded_steps={1: (6, 7), 6: (5, 6)})
    simulated = simulate(config)
    truth = simulated.truth(joined=True)
    run = _open(simulated, tmp_path)
    columns = [name for name in truth.budget()[0] if name not in ("exposed_comm_ns", "sync_wait_ns", "idle_ns")]
    middle = pl.col("step") == 6
    found = run.results["budget"].tables["per_rank_step"].filter(middle).sort(KEY)
    assert found.select(columns).rows() == pl.DataFrame(truth.budget()).filter(middle).sort(KEY).select(columns).rows()
    assert any("whose traces cover other steps" in note or "no counterpart" in note for note in run.view.notes)


def test_a_rank_cut_in_the_middle_of_a_step_is_refused_there_and_told(tmp_path: Path) -> None:
    simulated = simulate(Config(pp=1, dp=4, tp=2, steps=3))
    simulated.write_kineto(tmp_path, names="rank{rank}_trace.json")
    path = tmp_path / "rank3_trace.json"
    lines = path.read_text().splitlines(keepends=True)
    kernels = [number for number, line in enumerate(lines) if "ncclDevKernel" in line]
    path.write_text("".join(lines[: kernels[-4]]))
    run = tracetool.open_run(tmp_path, Settings(gpus_per_node=8), cache="off", engine="serial")
    assert run.damaged == ("rank3_trace.json",)
    assert any("ranks disagree" in note or "missing on some" in note for note in run.view.notes)
    truth = pl.DataFrame(simulated.truth(joined=True).budget()).filter(pl.col("step") == 5).sort(KEY)
    found = run.results["budget"].tables["per_rank_step"].filter(pl.col("step") == 5).sort(KEY)
    assert found["sync_wait_ns"].to_list() == truth["sync_wait_ns"].to_list()


def test_a_rank_in_another_order_is_refused_not_guessed(tmp_path: Path) -> None:
    simulated = simulate(Config(pp=1, dp=2, tp=1, layers=3, steps=2, dp_mode="fsdp", jitter=0.1))
    (trace,) = (t for t in simulated.traces if t.place.rank == 1)
    comms = [a for a in trace.activities if a.kind == "comm" and a.tags["run_step"] == 6]
    first, second = comms[0], next(a for a in comms if a.tags["op"] != comms[0].tags["op"])
    first.source.args, second.source.args = second.source.args, first.source.args
    run = _open(simulated, tmp_path)
    (note,) = (note for note in run.view.notes if "disagree" in note)
    assert "steps 6" in note
    budget = run.results["budget"].tables["per_rank_step"]
    assert budget.filter(pl.col("step") == 6)["sync_wait_ns"].sum() == 0
    assert budget.filter(pl.col("step") == 5)["sync_wait_ns"].sum() > 0


def _without(folder: Path, *keys: str) -> None:
    """Take these arguments out of every event of the Kineto files of a folder."""
    for path in folder.iterdir():
        document = json.loads(path.read_text())
        for happened in document["traceEvents"]:
            for key in keys:
                happened.get("args", {}).pop(key, None)
        path.write_text(json.dumps(document))


NAMES = ("Process Group Name", "Process Group Description", "Process Group Ranks", "Seq")
ALONE = (*NAMES, "Group size", "Collective name", "In msg nelems", "Out msg nelems", "dtype")


@pytest.mark.parametrize(
    ("config", "keys", "role"),
    [
        (Config(pp=1, dp=4, tp=1, steps=2, jitter=0.05), NAMES, "dp"),
        (Config(pp=1, dp=4, tp=1, steps=2, jitter=0.05, dp_mode="fsdp"), NAMES, "fsdp"),
        (Config(pp=1, dp=2, tp=1, steps=2, jitter=0.05), ALONE, "dp"),
        (Config(pp=1, dp=1, tp=2, steps=2, jitter=0.05), ALONE, "tp"),
    ],
    ids=["sizes", "sizes, fsdp", "two ranks", "two ranks, tp"],
)
def test_communications_that_only_all_ranks_can_have_made_are_matched_without_groups(
    config: Config, keys: tuple[str, ...], role: str, tmp_path: Path
) -> None:
    simulated = simulate(config)
    simulated.write_kineto(tmp_path, names="rank{rank}_trace.json", pg_config=False)
    _without(tmp_path, *keys)
    run = tracetool.open_run(tmp_path, Settings(gpus_per_node=8), cache="off", engine="serial")
    assert run.view.joined["groups"].select("group", "size", "role").rows() == [("world", config.world_size, role)]
    truth = simulated.truth(joined=True)
    columns = list(truth.budget()[0])
    assert _rows(run, "budget", columns) == _truth(truth.budget(), columns)
    assert any("no trace names a process group" in note for note in run.view.notes)


def test_two_ranks_that_record_nothing_but_names_are_a_pipeline_all_the_same(tmp_path: Path) -> None:
    config = Config(pp=2, dp=1, tp=1, steps=2, jitter=0.05, p2p_peers="names")
    simulated = simulate(config)
    simulated.write_kineto(tmp_path, names="rank{rank}_trace.json", pg_config=False)
    _without(tmp_path, *ALONE)
    run = tracetool.open_run(tmp_path, Settings(gpus_per_node=8), cache="off", engine="serial")
    assert run.view.joined["groups"].select("group", "role").rows() == [("world", "other"), ("world p2p", "pp")]
    truth = simulated.truth(joined=True)
    columns = list(truth.budget()[0])
    assert _rows(run, "budget", columns) == _truth(truth.budget(), columns)


def test_a_pipeline_known_by_its_slots_alone_breaks_no_question(tmp_path: Path) -> None:
    simulate(Config(pp=4, dp=1, tp=1, steps=1, microbatches=8)).write_kineto(
        tmp_path, names="rank{rank}_trace.json", pg_config=False
    )
    _without(tmp_path, *ALONE)
    run = tracetool.open_run(tmp_path, Settings(gpus_per_node=8), cache="off", engine="serial")
    assert "pipeline_slots" in run.view.joined
    assert [(name, result.reason) for name, result in run.results.items() if result.status == "error"] == []


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (Config(pp=1, dp=4, tp=1, steps=2, jitter=0.05), ALONE),
        (Config(pp=1, dp=2, tp=2, steps=2, jitter=0.05), NAMES),
        (Config(pp=1, dp=2, tp=2, steps=2), ALONE),
    ],
    ids=["four ranks, no size", "groups of two among four", "all ranks launch alike"],
)
def test_communications_that_smaller_groups_can_have_made_are_not_matched(
    config: Config, keys: tuple[str, ...], tmp_path: Path
) -> None:
    simulate(config).write_kineto(tmp_path, names="rank{rank}_trace.json", pg_config=False)
    _without(tmp_path, *keys)
    run = tracetool.open_run(tmp_path, Settings(gpus_per_node=8), cache="off", engine="serial")
    ours = run.results["budget"].tables["per_rank_step"]
    assert ours["sync_wait_ns"].sum() == 0
    assert any("could not be given one: not matched" in note for note in run.view.notes)
    assert [finding for finding in run.findings if finding.where.ranks and finding.severity != "info"] == []


def test_peers_that_stand_in_range_names_alone_pair_sends_with_receives(tmp_path: Path) -> None:
    config = Config(dp=2, tp=1, pp=4, jitter=0.05, steps=2)
    told, named = simulate(config.replace(p2p_peers=True)), simulate(config.replace(p2p_peers="names"))
    for folder in ("told", "named"):
        (tmp_path / folder).mkdir()
    ours, theirs = _open(named, tmp_path / "named"), _open(told, tmp_path / "told")
    columns = list(told.truth(joined=True).budget()[0])
    assert _rows(ours, "budget", columns) == _rows(theirs, "budget", columns)
    assert not any("whose peers nobody recorded" in note for note in ours.view.notes)


# ---- clocks ----

HOSTS = Config(
    dp=4,
    pp=1,
    gpus_per_node=2,
    steps=8,
    layers=2,
    sequence=4096,
    batch=8,
    gemm_flops_per_ns=25_000,
    end_jitter_ns=3_000,
    clock_offsets_ns={1: 1_900_000, 2: -1_500_000, 3: 400_000},
    clock_drifts_ppm={1: 20.0, 2: -15.0, 3: 5.0},
)


def _clock_errors_ns(simulated: Simulated, run: Run) -> pl.Series:
    """Return |aligned end − what rank 0's clock showed| of every communication."""
    ends = [
        (trace.place.rank, a.end_ns, simulated.reference_ns(a.source.end_ns) + BASE_UNIX_NS)
        for trace in simulated.traces
        for a in trace.activities
        if a.kind == "comm"
    ]
    table = pl.DataFrame(ends, schema={"rank": pl.Int32, "t": pl.Int64, "true": pl.Int64}, orient="row")
    clocks = run.results["clocks"].tables["ranks"]
    shift = (pl.col("drift_ppm") * 1e-6 * (pl.col("t") - pl.col("t0_ns"))).round().cast(pl.Int64)
    placed = table.join(clocks, on="rank").with_columns(
        aligned=pl.col("t") + BASE_UNIX_NS + pl.col("offset_ns") + shift
    )
    return (placed["aligned"] - placed["true"]).abs()


def test_offsets_and_drifts_are_recovered_at_every_collective(tmp_path: Path) -> None:
    simulated = simulate(HOSTS)
    run = _open(simulated, tmp_path)
    steps = run.view.steps
    assert int(steps["end_ns"].max()) - int(steps["start_ns"].min()) > 3 * 10**9  # type: ignore[arg-type] # not empty
    error = _clock_errors_ns(simulated, run).quantile(0.95)
    assert error is not None
    assert error <= 20_000
    metrics = run.results["clocks"].metrics
    assert metrics["components"] == 1
    assert (metrics["violated_before"], metrics["violated_after"]) == (metrics["causality_checked"], 0)


def test_hosts_that_only_messages_join_are_bounded_by_causality(tmp_path: Path) -> None:
    config = Config(
        dp=1,
        pp=4,
        grad_norm=False,
        p2p_peers=True,
        gpus_per_node=2,
        jitter=0.02,
        clock_offsets_ns={1: 1_900_000, 3: -9},
    )
    simulated = simulate(config)
    run = _open(simulated, tmp_path)
    ranks = run.results["clocks"].tables["ranks"]
    assert ranks["component"].unique().to_list() == [0]
    assert ranks["basis"].to_list() == ["reference"] * 2 + ["p2p"] * 6
    for rank, offset, half in ranks.select("rank", "offset_ns", "half_width_ns").iter_rows():
        true, _ = simulated.clock(rank, 0)
        assert abs(offset - true) <= half + 1
    assert any("confidence low" in note for note in run.results["clocks"].notes)


@pytest.mark.parametrize(
    ("config", "ranks", "components"),
    [
        # the data-parallel groups {0, 2, 4, 6} and {1, 3, 5, 7} still have two members each
        (Config(dp=4, pp=1, tp=2, gpus_per_node=2), [0, 1, 6, 7], [0, 0, 0, 0]),
        # the first and the last stage of four exchange nothing
        (Config(dp=1, pp=4, tp=2, gpus_per_node=2, grad_norm=False), [0, 1, 6, 7], [0, 0, 1, 1]),
    ],
    ids=["joined", "apart"],
)
def test_ranks_that_nothing_connects_are_never_compared(
    config: Config, ranks: list[int], components: list[int], tmp_path: Path
) -> None:
    run = _open(simulate(config), tmp_path, ranks)
    assert run.results["clocks"].tables["ranks"]["component"].to_list() == components


def test_shifting_one_ranks_clock_by_200_ms_changes_no_verdict(tmp_path: Path) -> None:
    answers = []
    for name, offsets in (("as it was", {}), ("shifted", {3: 200_000_000})):
        config = Config(gpus_per_node=1, p2p_peers=True, jitter=0.03, clock_offsets_ns=offsets,
                        slow_links=(SlowLink(2.0, role="tp", ranks=(2, 3)),))  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        run = _open(simulate(config), folder)
        budget = run.results["budget"].tables["per_rank_step"]
        findings = [(f.id, f.severity, f.where.ranks, f.recoverable_ns_per_step) for f in run.findings]
        answers.append((budget.rows(), findings, run.results["collectives"].tables["links"].rows()))
    before, after = answers
    assert [row[:3] for row in before[0]] == [row[:3] for row in after[0]]
    assert [f[:3] for f in before[1]] == [f[:3] for f in after[1]]
    for mine, other in zip(before[0], after[0], strict=True):
        # receives are cut by the fitted clock: equal to its rounding
        assert max(abs(a - b) for a, b in zip(mine[3:], other[3:], strict=True)) <= 100


# ---- links ----


@pytest.mark.parametrize(
    ("config", "link", "named"),
    [
        (Config(jitter=0.03, comm_jitter=0.2), SlowLink(2.0, role="tp", ranks=(2, 3)), (2, 3)),
        (Config(dp=4, pp=1, comm_jitter=0.2, steps=3), SlowLink(1.5, role="tp", ranks=(4, 5)), (4, 5)),
        (Config(gpus_per_node=2), SlowLink(2.0, role="dp", hosts=(0, 1)), (0, 1, 2, 3)),
        (Config(tp=1, dp=4, gpus_per_node=1, p2p_peers=True), SlowLink(3.0, role="pp", ranks=(1, 5)), (1, 5)),
    ],
    ids=["tp pair", "tp of four", "hosts", "pipeline pair"],
)
def test_a_planted_slow_link_is_named_and_nothing_else(
    config: Config, link: SlowLink, named: tuple[int, ...], tmp_path: Path
) -> None:
    healthy, slow = tmp_path / "healthy", tmp_path / "slow"
    healthy.mkdir()
    slow.mkdir()
    assert _open(simulate(config), healthy).results["collectives"].findings == []
    run = _open(simulate(config.replace(slow_links=(link,))), slow)
    (finding,) = run.results["collectives"].findings
    assert finding.where.ranks == named
    (priced,) = run.priced([run.results["collectives"]])
    assert priced.severity in ("warning", "critical")


def test_custom_kernels_without_arguments_are_matched_by_order_and_said(tmp_path: Path) -> None:
    run = _open(simulate(Config(pp=1, dp=2, custom_all_reduce=True, jitter=0.05)), tmp_path)
    assert any("carry no arguments (all_reduce)" in note for note in run.view.notes)
    assert run.results["collectives"].metrics["matched_share"] == 1.0


def test_between_clocks_known_only_from_messages_no_link_is_judged(tmp_path: Path) -> None:
    config = Config(dp=4, tp=1, pp=2, gpus_per_node=1, grad_norm=False, p2p_peers=True, dp_mode="ddp")
    lonely = Config(dp=1, tp=2, pp=4, gpus_per_node=2, grad_norm=False, p2p_peers=True, jitter=0.02)
    joined, apart = tmp_path / "joined", tmp_path / "apart"
    joined.mkdir()
    apart.mkdir()
    links = _open(simulate(config), joined).results["collectives"].tables["links"]
    assert links.filter(pl.col("op") == "all_reduce")["ratio"].null_count() == 0
    links = _open(simulate(lonely), apart).results["collectives"].tables["links"]
    assert "send_recv" not in links["op"].to_list()
