"""Costs and what-ifs of jobs through files, each beside a second simulation in which that change was really made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from simulator import Config, SlowLink, Stall, simulate, whatif

from tracetool.run import open_run

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.results import Result

WORK: dict[str, Any] = {
    "layers": 1, "hidden": 2048, "ffn": 8192, "heads": 16, "jitter": 0.02, "comm_jitter": 0.1, "host_jitter": 0.1,
    "gpus_per_node": 4, "clock_offsets_ns": {1: 1_700_000}, "clock_drifts_ppm": {1: -6.0}, "p2p_peers": True,
}  # fmt: skip
JOBS = {
    "dp": Config(dp=8, tp=1, pp=1, dp_mode="fsdp", microbatches=2, slow_ranks={2: 1.25}, **WORK),
    "tp": Config(dp=2, tp=4, pp=1, microbatches=2, slow_ranks={6: 1.2}, stalls=(Stall(1, 900_000, "sync"),),
                 slow_links=(SlowLink(4.0, role="tp", ranks=(4, 5, 6, 7)),), **WORK),
    "pp": Config(dp=2, tp=1, pp=4, slow_ranks={3: 1.3}, heavy_stages={2: 1.4, 0: 1.1}, **WORK),
    "mixed": Config(dp=2, tp=2, pp=2, slow_ranks={5: 1.3}, heavy_stages={0: 1.2},
                    slow_links=(SlowLink(4.0, role="tp", ranks=(2, 3)),), **WORK),
}  # fmt: skip


def asked(config: Config, folder: Path) -> Result:
    simulate(config).write_kineto(folder, host_names=True)
    with open_run(folder, engine="serial", cache="off") as opened:
        return opened.results["stragglers"]


def step_ns(config: Config) -> float:
    times = simulate(config).step_ns.values()
    return sum(times) / len(times)


@pytest.mark.parametrize("name", JOBS)
def test_every_what_if_and_cost_is_that_of_the_change(name: str, tmp_path: Path) -> None:
    config = JOBS[name]
    result = asked(config, tmp_path)
    whole = step_ns(config)
    assert result.metrics["replayed_step_ns"] == pytest.approx(whole, rel=0.005)
    changes = {
        "no stragglers": whatif.without_stragglers(config),
        "communication 2 times faster": whatif.faster_communication(config, 2),
        "perfect overlap": config.replace(zero_transfer=True),
        "no host gaps": whatif.without_host_gaps(config),
        "no jitter": whatif.without_device_jitter(config),
        **({"balanced stages": whatif.balanced_stages(config)} if config.pp > 1 else {}),
    }
    said = dict(result.tables["what_ifs"].select("change", "step_ns").iter_rows())
    assert said == pytest.approx({change: step_ns(made) for change, made in changes.items()}, rel=0.05)

    def near(made: Config) -> Any:  # noqa: ANN401 - pytest's approx has no public type
        return pytest.approx(whole - step_ns(made), rel=0.05, abs=0.01 * whole)

    costs = dict(result.tables["ranks"].select("rank", "cost_ns").iter_rows())
    stalled = {stall.rank for stall in config.stalls}
    for rank, cost in costs.items():
        made = whatif.without_slow_rank(config, rank)
        assert cost == near(made.replace(stalls=()) if rank in stalled else made)
    if config.pp > 1:
        stages = dict(result.tables["stages"].select("stage", "cost_ns").iter_rows())
        assert stages == {stage: near(whatif.one_stage_balanced(config, stage)) for stage in range(config.pp)}
    links = {tuple(row[0]): row[1:] for row in result.tables["links"].select("ranks", "role", "slow", "cost_ns").rows()}
    groups = {tuple(ranks): cost for ranks, cost in result.tables["groups"].select("ranks", "cost_ns").iter_rows()}
    healed = config.replace(slow_links=())
    guilty = {link.ranks for link in config.slow_links}
    assert {ranks for ranks, (_, slow, _) in links.items() if slow} == guilty
    for _, slow, cost in links.values():
        # what has no peers has no cost; what is as fast as its peers costs nothing
        assert cost is None or cost == (near(healed) if slow else near(config))
    for ranks in guilty:
        assert groups[ranks] == near(healed)
    op_types = dict(result.tables["op_types"].select("op_type", "cost_ns").iter_rows())
    if guilty:
        assert op_types["tp all_reduce"] == near(healed)
    compute = sum(cost for name, cost in op_types.items() if name.startswith("compute"))
    assert compute == pytest.approx(whole - step_ns(config.replace(slow_ranks={})), abs=0.02 * whole)


def test_what_a_rank_with_longer_sequences_costs_holds_its_transfers_too(tmp_path: Path) -> None:
    config = Config(dp=4, tp=2, pp=1, long_sequences={1: 1.4}, nvlink_gbs=80.0, **WORK)
    result = asked(config, tmp_path)
    assert dict(result.tables["ranks"].select("rank", "cause").drop_nulls().iter_rows()) == {2: "work", 3: "work"}
    truth = step_ns(config) / step_ns(whatif.without_stragglers(config))
    assert result.metrics["slowdown"] == pytest.approx(truth, rel=0.025)


def test_noise_that_makes_ranks_wait_for_each_other_is_no_jitters_worth(tmp_path: Path) -> None:
    config = Config(dp=1, tp=8, pp=1, **{**WORK, "jitter": 0.1, "comm_jitter": 0.0}, microbatches=2, steps=3)
    result = asked(config, tmp_path)
    said = dict(result.tables["what_ifs"].select("change", "step_ns").iter_rows())["no jitter"]
    truth, whole = step_ns(whatif.without_device_jitter(config)), step_ns(config)
    assert said == pytest.approx(truth, rel=0.01)
    assert whole - said > 0.5 * (whole - truth) > 0.005 * whole
