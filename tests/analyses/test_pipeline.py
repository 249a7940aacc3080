"""The pipeline question on one rank's tables, on runs without trouble, and without what it needs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from inmemory import MemoryRank, ask, gpu, rows, steps
from simulator import Config, simulate

import tracetool
from tracetool.tables import frame

if TYPE_CHECKING:
    from pathlib import Path

pipeline = import_module("tracetool.analyses.pipeline")


def rank(*activities: tuple[Any, ...], waits: list[tuple[int, int | None, str]], ops: dict[int, str]) -> MemoryRank:
    """Return rank 0 with a window [0, 1000), first backward at 400, last forward until 600."""
    tables = {
        "gpu": gpu(*activities),
        "steps": steps((3, 0, 1000)),
        "comms": rows("comms", 0, ("event", "op", "start_ns", "dur_ns", "track", "name", "group"),
                      *((event, op, 0, 1, 0, "nccl", "7") for event, op in ops.items())),
        "slots": rows("slots", 0, ("iteration", "piece", "kind", "microbatch", "start_ns", "end_ns", "launch_start_ns",
                                   "launch_end_ns", "kernels", "source"), (3, 0, "F", 0, 0, 300, 0, 50, 2, "launch")),
    }  # fmt: skip
    facts = {
        "windows": frame("windows", {"rank": [0], "replica": [0], "stage": [1], "step": [3], "iteration": [3],
                                     "start_ns": [0], "end_ns": [1000], "first_backward_ns": [400],
                                     "last_forward_ns": [600]}),
        "waits": rows("waits", 0, ("event", "wait_end_ns", "role", "basis"), *((*wait, "slots") for wait in waits)),
        "bubbles": frame("bubbles", {"rank": [0], "start_ns": [650], "end_ns": [700]}),
    }  # fmt: skip
    return MemoryRank(0, tables, facts)


def part(found: MemoryRank) -> dict[str, Any]:
    row = pipeline.per_rank(found, found.facts, None)["rows"].row(0, named=True)
    return {name.removesuffix("_ns"): ns for name, ns in row.items() if name.endswith("_ns") and ns}


def test_every_instant_of_the_window_goes_to_one_part() -> None:
    found = rank(
        (0, 200, "compute", 0, 5),
        (200, 100, "comm", 40, 45),
        (300, 100, "comm", 60, 65),
        (400, 200, "compute", 70, 75),
        (600, 20, "memcpy", 80, 85),
        (700, 100, "comm", 690, 695),
        (900, 100, "compute", 860, 880),
        waits=[(1, None, "other"), (2, 380, "pp"), (5, None, "other")],
        ops={1: "all_reduce", 2: "recv", 5: "all_reduce"},
    )
    assert part(found) == {
        "window": 1000,
        "compute": 500,
        "memcpy": 20,
        # launched in the middle of the slot: inside the stage, whatever its role
        "stage_comm": 100,
        # waits until 380, then moves
        "p2p_wait": 80 + 50,
        "p2p_transfer": 20,
        # launched outside every slot: it spans stages
        "cross_stage": 100,
        # 800 to 880 until the launch call has ended, then idle; 620 to 650 before the collective's launch at 690
        "host_bound": 30 + 80,
        "idle": 20,
        "bubble": 380,
        "warm_up_bubble": 100,
        "cool_down_bubble": 280,
    }


def test_without_facts_there_is_nothing_to_say_and_the_reason_is_given() -> None:
    alone = MemoryRank(0, {"gpu": gpu((0, 10, "compute")), "steps": steps((1, 0, 10))})
    assert pipeline.per_rank(alone, {}, None) == {}
    result = ask(pipeline, [alone])
    assert result.status == "skipped"
    assert result.reason.startswith("no pipeline group")


HEALTHY = {
    "1f1b": Config(),
    "gpipe": Config(schedule="gpipe", pp=4, tp=1, dp=1),
    "jitter": Config(pp=4, dp=2, tp=1, microbatches=8, jitter=0.03, host_jitter=0.05, hidden=2048),
    "embedding and head": Config(pp=2, dp=2, tp=1, layers=4, embedding=True, head=True, hidden=2048),
    "interleaved": Config(pp=2, dp=2, tp=1, chunks=2, schedule="interleaved_1f1b", pp_annotations="torch"),
}


@pytest.mark.parametrize("ranks", [None, [0]], ids=["all ranks", "rank 0 alone"])
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_pipeline_has_no_warning(tmp_path: Path, name: str, ranks: list[int] | None) -> None:
    simulate(HEALTHY[name]).write_kineto(tmp_path, ranks)
    with tracetool.open_run(tmp_path, engine="serial", cache="off") as run:
        result = run.results["pipeline"]
        assert result.status == "ok"
        assert [f.id for f in run.priced([result]) if f.severity != "info"] == []


def test_the_drawing_holds_the_step_its_bubbles_and_the_ideal(tmp_path: Path) -> None:
    simulate(Config(pp=3, dp=1, tp=1, hidden=2048)).write_kineto(tmp_path)
    with tracetool.open_run(tmp_path, engine="serial", cache="off") as run:
        tables = run.results["pipeline"].tables
    drawn = tables["drawn"]
    assert drawn["lane"].unique(maintain_order=True).to_list() == [
        *(f"stage {stage}" for stage in range(3)),
        *(f"ideal {stage}" for stage in range(3)),
    ]
    assert {"forward", "backward", "bubble"} <= set(drawn["what"])
    assert drawn["start_ns"].min() == 0
    ideal = drawn.filter(pl.col("lane").str.starts_with("ideal"))
    assert ideal.height == tables["slots"].height == 3 * 2 * 4
    # the ideal ends earlier than the step at the same scale
    ends = [(part["start_ns"] + part["dur_ns"]).max() for part in (ideal, tables["slots"])]
    assert ends[0] < ends[1]  # type: ignore[operator]  # integers
