"""Pipelines from files to numbers: slots, bubbles, budgets, schedules and changes beside the simulator's truth."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import polars as pl
import pytest
from pipeline_cases import draw, judge
from simulator import Config, simulate, whatif

from tracetool.join.idling import BUBBLE, BUSY, PHASES
from tracetool.run import open_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulator import Truth

    from tracetool.results import Finding, Result

SMALL = Config(dp=1, tp=1, hidden=256, ffn=512, sequence=256, steps=2)
"""A pipeline of tiny kernels, launch-bound: cheap to simulate."""
BUSY_STAGES = Config(dp=1, tp=1, pp=4, microbatches=8, layers=1, hidden=2048, sequence=4096, grad_norm=True)
"""A pipeline of long kernels: the host is always ahead."""
TORCH = {"pp_annotations": "torch"}
VEE = {"chunks": 2, "placement": "vee", **TORCH}


class Answered(NamedTuple):
    truth: Truth
    pipeline: Result
    budget: list[dict[str, Any]]
    slots: pl.DataFrame
    findings: Sequence[Finding]
    notes: Sequence[str]


def answered(
    config: Config,
    ranks: list[int] | None = None,
    beside: str | None = None,
    **files: Any,  # noqa: ANN401 - options of the writer
) -> Answered:
    """Return what the pipeline and the budget say of a run, and the findings of the pipeline and `beside`, priced."""
    run = simulate(config)
    with tempfile.TemporaryDirectory() as directory:
        run.write_kineto(Path(directory), ranks, compression=1, **files)
        with open_run(directory, engine="serial", cache="off") as opened:
            pipeline, budget = opened.results["pipeline"], opened.results["budget"]
            slots = opened.view.joined.get("pipeline_slots", pl.DataFrame())
            asked = [pipeline, *([opened.results[beside]] if beside else [])]
            findings, notes = opened.priced(asked), opened.view.notes
    rows = budget.tables["per_rank_step"].to_dicts()
    return Answered(run.truth(ranks, joined=True), pipeline, rows, slots, findings, notes)


def assert_bubbles(found: Answered, within: float) -> None:
    """Hold every rank-step's bubble to the truth, and its parts to their sums."""
    rows = found.pipeline.tables["per_rank_step"]
    truth = {(r["rank"], r["step"]): r for r in found.truth.pipeline()}
    assert set(rows.select("rank", "step").iter_rows()) == set(truth)
    for row in rows.iter_rows(named=True):
        wanted = truth[row["rank"], row["step"]]
        assert row["stage"] == wanted["stage"]
        assert row["bubble_ns"] / row["window_ns"] == pytest.approx(
            wanted["bubble_ns"] / wanted["window_ns"], abs=within
        )
        assert sum(row[f"{part}_ns"] for part in BUBBLE) == row["bubble_ns"]
        assert sum(row[f"{part}_ns"] for part in BUSY) + row["bubble_ns"] == row["window_ns"]
        assert sum(row[f"{phase}_bubble_ns"] for phase in PHASES) == row["bubble_ns"]
    shares = [row["bubble_ns"] / row["window_ns"] for row in truth.values()]
    assert found.pipeline.metrics["bubble_share"] == pytest.approx(sum(shares) / len(shares), abs=within)


def assert_slots(found: Answered) -> None:
    """Hold the order of slots of every rank and step, and what they are, to the truth."""
    columns = ("rank", "step", "stage", "kind", "microbatch", "chunk")
    wanted = [tuple(row[name] for name in columns) for row in found.truth.slot_rows()]
    assert found.slots.sort("rank", "start_ns", "end_ns").select(columns).rows() == wanted


def assert_budget(found: Answered) -> None:
    wanted = {(row["rank"], row["step"]): row for row in found.truth.budget()}
    assert {
        (row["rank"], row["step"]): {name: row[name] for name in next(iter(wanted.values()))} for row in found.budget
    } == wanted


EXACT = {
    "1f1b": (SMALL.replace(pp=4, microbatches=6), "1f1b", 1, 6),
    "1f1b, batched": (SMALL.replace(pp=3, microbatches=5, p2p="batched", jitter=0.05), "1f1b", 1, 5),
    "1f1b, fewer micro-batches than stages": (SMALL.replace(pp=5, microbatches=3), "1f1b", 1, 3),
    "gpipe": (SMALL.replace(pp=4, microbatches=5, schedule="gpipe", slow_ranks={2: 1.4}), "gpipe", 1, 5),
    "gpipe, batched": (SMALL.replace(pp=3, microbatches=4, schedule="gpipe", p2p="batched"), "gpipe", 1, 4),
    "gpipe, annotated": (SMALL.replace(pp=3, microbatches=4, schedule="gpipe", pp_annotations="gpipe"), "gpipe", 1, 4),
    "two stages, batched": (SMALL.replace(pp=2, microbatches=5, p2p="batched"), "1f1b", 1, 5),
    "two stages, weight gradients apart": (SMALL.replace(pp=2, schedule="zb1p", **TORCH), "zb1p", 1, 4),
    "3d": (Config(pp=3, dp=2, tp=2, embedding=True, head=True, jitter=0.02), "1f1b", 1, 4),
    "fsdp beside": (Config(pp=2, dp=2, tp=1, dp_mode="fsdp", recompute=True, p2p="batched"), "1f1b", 1, 4),
    "work around steps": (
        SMALL.replace(pp=3, warmup_work=True, between_steps_work=True, unrecorded_steps=1, sync_step=False),
        "1f1b",
        1,
        4,
    ),
    "interleaved": (
        SMALL.replace(pp=4, microbatches=8, chunks=2, schedule="interleaved_1f1b", **TORCH),
        "interleaved_1f1b",
        2,
        8,
    ),
    "breadth first": (SMALL.replace(pp=3, chunks=2, schedule="gpipe", **TORCH), "gpipe", 2, 4),
    "zb1p": (SMALL.replace(pp=4, microbatches=6, schedule="zb1p", **TORCH), "zb1p", 1, 6),
    "zbv": (SMALL.replace(pp=3, microbatches=6, schedule="zbv", **VEE), "zbv", 2, 6),
    "dualpipe": (SMALL.replace(pp=3, microbatches=6, schedule="dualpipev", **VEE), "dualpipe", 2, 6),
}


@pytest.mark.parametrize("name", EXACT)
def test_slots_bubbles_and_budgets_equal_the_truth(name: str) -> None:
    config, schedule, chunks, microbatches = EXACT[name]
    found = answered(config)
    metrics = found.pipeline.metrics
    assert (metrics["schedule"], metrics["chunks"], metrics["microbatches"]) == (schedule, chunks, microbatches)
    assert metrics["stages"] == config.pp
    assert_slots(found)
    assert_bubbles(found, 0.0005 if config.tp > 1 else 1e-9)
    assert_budget(found)


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "gpipe"])
def test_chunks_without_annotations_are_unknown_and_their_bubble_is_still_right(schedule: str) -> None:
    found = answered(SMALL.replace(pp=4, microbatches=4, chunks=2, schedule=schedule))
    metrics = found.pipeline.metrics
    assert (metrics["schedule"], metrics["chunks"], metrics["microbatches"]) == ("unknown", None, None)
    assert_bubbles(found, 1e-9)
    assert found.slots["microbatch"].null_count() == found.slots.height
    assert "ladder" not in found.pipeline.tables


def test_split_backwards_without_annotations_are_not_measured_rather_than_wrong() -> None:
    found = answered(SMALL.replace(pp=3, schedule="zb1p"))
    assert found.pipeline.status == "skipped"
    assert "not measurable" in found.pipeline.reason


def test_skewed_and_drifting_clocks_do_not_matter() -> None:
    config = BUSY_STAGES.replace(
        dp=2, gpus_per_node=2, steps=3, clock_offsets_ns={1: 5_000_000, 2: -3_000_000}, clock_drifts_ppm={3: 9.0},
        end_jitter_ns=2_000, jitter=0.02, slow_ranks={3: 1.2},
    )  # fmt: skip
    for more in ({}, TORCH):
        found = answered(config.replace(**more), host_names=True)
        assert found.pipeline.metrics["schedule"] == "1f1b"
        assert_slots(found)
        assert_bubbles(found, 0.002 if more else 0.01)


def test_without_comm_arguments_the_pipeline_is_still_measured() -> None:
    found = answered(SMALL.replace(pp=3), comm_args=False, host_names=True)
    assert found.pipeline.metrics["schedule"] == "1f1b"
    assert_bubbles(found, 1e-9)


@pytest.mark.parametrize("dp_mode", ["ddp", "zero1", "fsdp"])
def test_collectives_without_arguments_are_told_from_those_that_span_stages(
    dp_mode: Literal["ddp", "zero1", "fsdp"],
) -> None:
    config = Config(pp=3, dp=2, tp=2, microbatches=4, dp_mode=dp_mode, recompute=dp_mode == "fsdp")
    assert_bubbles(answered(config, comm_args=False, host_names=True), 1e-9)


def test_stages_on_hosts_that_only_sends_connect_are_compared_through_their_slots() -> None:
    config = BUSY_STAGES.replace(grad_norm=False, gpus_per_node=1, clock_offsets_ns={1: 4_000_000, 3: -2_000_000})
    found = answered(config, host_names=True, comm_args=False)
    assert found.pipeline.metrics["schedule"] == "1f1b"
    assert_slots(found)
    assert_bubbles(found, 0.01)


def test_causes_sum_to_the_bubble_and_blame_what_was_done() -> None:
    heavy = answered(BUSY_STAGES.replace(dp=2, heavy_stages={3: 1.6}))
    slow = answered(BUSY_STAGES.replace(dp=3, slow_ranks={4: 1.6}))
    for found in (heavy, slow):
        ladder = found.pipeline.tables["ladder"]
        assert ladder["ns"][:-1].sum() == ladder["ns"][-1] == found.pipeline.tables["per_rank_step"]["bubble_ns"].sum()
        assert found.pipeline.metrics["replay_error"] < 0.05  # type: ignore[operator]  # a number
    parts = [dict(f.pipeline.tables["ladder"].select("cause", "share_of_window").iter_rows()) for f in (heavy, slow)]
    assert parts[0]["stage_imbalance"] > 0.08
    assert abs(parts[0]["slow_rank"]) < 0.005
    assert parts[1]["slow_rank"] > 0.03
    assert abs(parts[1]["stage_imbalance"]) < 0.005
    named = {f.id: f for f in heavy.findings}
    assert named["pipeline.stage_imbalance"].severity == "warning"
    assert named["pipeline.stage_imbalance"].where.stages == (3,)
    assert named["pipeline.stage_imbalance"].where.ranks == ()
    assert [f.id for f in slow.findings if f.severity != "info"] == []
    assert "pipeline.stage_imbalance" not in {f.id for f in slow.findings}


BLAME = {
    "dp 2": BUSY_STAGES.replace(dp=2),
    "dp 3": BUSY_STAGES.replace(dp=3, jitter=0.02),
    "tp 2": BUSY_STAGES.replace(tp=2, microbatches=4),
    "tp 2, dp 2": BUSY_STAGES.replace(pp=2, tp=2, dp=2, jitter=0.02),
    "fsdp": BUSY_STAGES.replace(pp=2, dp=2, dp_mode="fsdp", layers=2),
}


@pytest.mark.parametrize("name", BLAME)
def test_one_slow_rank_is_named_and_its_stage_is_not_called_heavy(name: str) -> None:
    config = BLAME[name]
    slow = config.world_size - 2
    found = answered(config.replace(slow_ranks={slow: 1.4}), beside="stragglers")
    named = {f.id for f in found.findings if f.severity != "info"}
    assert named == {f"stragglers.rank-{slow}"}
    causes = dict(found.pipeline.tables["ladder"].select("cause", "share_of_window").iter_rows())
    assert abs(causes["stage_imbalance"]) < 0.01
    assert causes["slow_rank"] > 0.02


@pytest.mark.parametrize("name", BLAME)
def test_a_heavy_stage_is_told_once_and_nobody_is_named(name: str) -> None:
    config = BLAME[name]
    found = answered(config.replace(heavy_stages={config.pp - 1: 1.4}), beside="stragglers")
    told = [f for f in found.findings if f.severity != "info"]
    assert [(f.id, f.where.stages, f.where.ranks) for f in told] == [("pipeline.stage_imbalance", (config.pp - 1,), ())]
    assert told[0].price_basis == "replay"
    assert told[0].confidence == "high"


def test_with_one_rank_a_stage_a_slow_rank_and_a_heavy_stage_are_told_alike_and_the_page_says_so() -> None:
    titles = []
    for change in ({"slow_ranks": {2: 1.4}}, {"heavy_stages": {2: 1.4}}):
        found = answered(BUSY_STAGES.replace(**change), beside="stragglers")
        (told,) = (f for f in found.findings if f.severity != "info")
        assert (told.id, told.where.stages, told.where.ranks) == ("pipeline.stage_imbalance", (2,), ())
        assert told.confidence == "low"
        titles.append(told.title)
    assert titles[0] == titles[1]
    assert "or its rank is slow" in titles[0]


def test_the_slow_rank_of_the_sample_is_no_part_of_its_unequal_stages(repository: Path) -> None:
    """The head makes the last stage 3 % longer in both; rank 5 is slow in one of them, with a tensor-parallel peer."""
    shares = {}
    for name in ("healthy", "troubled"):
        with open_run(repository / "sample_traces" / name, engine="serial", cache="off") as opened:
            ladder = opened.results["pipeline"].tables["ladder"]
        shares[name] = dict(ladder.select("cause", "share_of_window").iter_rows())
    assert shares["troubled"]["stage_imbalance"] == pytest.approx(shares["healthy"]["stage_imbalance"], abs=0.002)
    assert shares["troubled"]["slow_rank"] > 0.03
    assert abs(shares["healthy"]["slow_rank"]) < 0.001


def test_a_heavy_stage_of_a_launch_bound_run_is_priced_by_the_replay_of_all_ranks() -> None:
    """The slots' replay knows no host: where it is too far off, what the stage computes beyond the mean is priced."""
    found = answered(SMALL.replace(pp=2, dp=2, heavy_stages={1: 30.0}))
    assert found.pipeline.metrics["replay_error"] > 0.05  # type: ignore[operator]  # a number
    named = {f.id: f for f in found.findings}
    assert "changes" not in found.pipeline.tables
    assert named["pipeline.stage_imbalance"].replay_error is None
    assert named["pipeline.stage_imbalance"].saving["rank"].unique().to_list() == [2, 3]
    assert named["pipeline.stage_imbalance"].price_basis == "replay"


MANY_LAYERS = BUSY_STAGES.replace(layers=2, batch=2, sequence=2048, microbatches=8, steps=1)
MADE = {
    "balanced_stages": whatif.balanced_stages,
    "twice_microbatches": whatif.twice_microbatches,
    "interleaving": whatif.interleaved,
    "zero_bubble": whatif.zero_bubble,
}
"""Every change, really made."""
CHANGED = {
    "1f1b": MANY_LAYERS,
    "noise, a heavy stage, two replicas": MANY_LAYERS.replace(
        dp=2, heavy_stages={2: 1.4}, jitter=0.03, comm_jitter=0.1, host_jitter=0.1
    ),
    "tensor parallel": MANY_LAYERS.replace(pp=2, tp=2, microbatches=4, jitter=0.02),
    "gpipe": MANY_LAYERS.replace(schedule="gpipe"),
    "slow links": MANY_LAYERS.replace(nvlink_gbs=20.0),
    "coalesced, slow links": MANY_LAYERS.replace(p2p="batched", nvlink_gbs=20.0),
    "recomputed": MANY_LAYERS.replace(recompute=True),
    "head and embedding": MANY_LAYERS.replace(embedding=True, head=True, vocab=16_384),
    "fsdp": MANY_LAYERS.replace(pp=2, dp=2, dp_mode="fsdp", microbatches=4),
    "a slow rank, eight stages": MANY_LAYERS.replace(pp=8, microbatches=8, steps=1, slow_ranks={5: 1.2}),
    "interleaved": MANY_LAYERS.replace(layers=1, chunks=2, schedule="interleaved_1f1b", **TORCH),
    "zb1p": MANY_LAYERS.replace(schedule="zb1p", **TORCH),
}


def step_ns(config: Config) -> float:
    """Return the true step time of a run: the median over ranks of the mean step that ends in the trace."""
    means = []
    for windows in simulate(config).truth().windows.values():
        closed = [w for w in windows if not w.open_end] or windows
        means.append(sum(w.end_ns - w.start_ns for w in closed) / len(closed))
    return median(means)


@pytest.mark.parametrize("name", CHANGED)
def test_every_predicted_step_is_that_of_a_run_in_which_the_change_was_made(name: str) -> None:
    config = CHANGED[name]
    changes = {row["change"]: row for row in answered(config).pipeline.tables["changes"].to_dicts()}
    assert set(changes) == (set(MADE) if config.schedule in {"1f1b", "gpipe"} else set(MADE) & set(changes))
    assert len(changes) > 1
    for change, row in changes.items():
        if change == "balanced_stages" and (config.head or config.slow_ranks):
            continue  # layers that are not alike cannot be shared out in a simulation
        # smaller micro-batches pay the latency of each transfer once more, which no trace tells from its bandwidth
        within = 0.05 if change == "twice_microbatches" else 0.005
        assert row["predicted_step_ns"] == pytest.approx(step_ns(MADE[change](config)), rel=within), change


def test_a_finding_of_the_schedule_is_worth_what_the_change_saves() -> None:
    config = MANY_LAYERS.replace(steps=2)
    (told,) = answered(config).findings
    assert (told.id, told.price_basis) == ("pipeline.schedule", "replay")
    saved = step_ns(config) - step_ns(whatif.zero_bubble(config))
    assert told.recoverable_ns_per_step == pytest.approx(saved, rel=0.1)


def test_the_first_stage_alone_still_says_its_bubble() -> None:
    found = answered(SMALL.replace(pp=4, microbatches=6), ranks=[0])
    whole = answered(SMALL.replace(pp=4, microbatches=6))
    metrics = found.pipeline.metrics
    assert (metrics["schedule"], metrics["stages"], metrics["microbatches"]) == ("1f1b", 4, 6)
    mine = whole.pipeline.tables["per_rank_step"].filter(pl.col("rank") == 0)
    assert found.pipeline.tables["per_rank_step"]["window_ns"].to_list() == mine["window_ns"].to_list()
    assert found.pipeline.tables["per_rank_step"]["bubble_ns"].to_list() == mine["bubble_ns"].to_list()
    assert any("Only stages 0 of 4" in note for note in found.pipeline.notes)
    assert metrics["replay_error"] is None


def test_a_stage_in_the_middle_says_what_it_can() -> None:
    found = answered(SMALL.replace(pp=4, microbatches=6), ranks=[1, 2])
    assert found.pipeline.metrics["bubble_share"] is None
    assert found.pipeline.metrics["schedule"] == "1f1b"
    assert found.pipeline.tables["per_rank_step"].height == 0
    assert found.pipeline.tables["slots"].height > 0


def test_one_rank_of_each_stage_is_a_whole_pipeline() -> None:
    config = BUSY_STAGES.replace(pp=2, dp=2, tp=2, microbatches=4)
    found = answered(config, ranks=[0, 4])
    assert (found.pipeline.metrics["schedule"], found.pipeline.metrics["replicas"]) == ("1f1b", 1)
    assert_slots(found)
    assert_bubbles(found, 0.0005)
    assert "ladder" in found.pipeline.tables


def test_the_first_stage_of_a_v_alone_has_no_window() -> None:
    found = answered(SMALL.replace(pp=3, microbatches=6, schedule="zbv", **VEE), ranks=[0])
    assert (found.pipeline.metrics["schedule"], found.pipeline.metrics["bubble_share"]) == ("zbv", None)
    assert found.pipeline.tables["slots"].height == 6 * 3 * 2


@pytest.mark.parametrize("seed", [5, 10, 23, 41, 53, 67])
def test_drawn_runs_hold_to_the_truth(seed: int) -> None:
    assert judge(draw(seed, 40)).wrong == ()


NAMELESS: dict[str, Any] = {"comm_args": False, "host_names": True, "pg_config": False}


@pytest.mark.parametrize(
    "config",
    [
        SMALL.replace(pp=4, microbatches=6),
        SMALL.replace(pp=4, microbatches=4, dp=2, chunks=2, schedule="interleaved_1f1b", **TORCH),
    ],
    ids=["1f1b by its warm-up", "ranges that name the stages"],
)
def test_slots_alone_put_a_pipeline_together_that_no_group_tells_of(config: Config) -> None:
    found = answered(config, **NAMELESS)
    assert found.pipeline.metrics["schedule"] == config.schedule
    assert found.pipeline.metrics["stages"] == config.pp
    assert_slots(found)
    assert_bubbles(found, 1e-9)
    assert any("no group of the pipeline was recorded" in note for note in found.notes)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_ranks_that_might_be_several_pipelines_are_not_guessed_at(schedule: str) -> None:
    found = answered(SMALL.replace(pp=3, dp=1 + (schedule == "1f1b"), schedule=schedule), **NAMELESS)
    assert found.pipeline.reason.startswith("no pipeline group")


@pytest.mark.parametrize("config", [Config(pp=1), Config(pp=1, dp=1, tp=1), Config(pp=1, dp=2, cp=2)])
def test_a_run_without_pipeline_is_skipped_with_the_reason(config: Config) -> None:
    result = answered(config).pipeline
    assert result.status == "skipped"
    assert result.reason.startswith("no pipeline group")
